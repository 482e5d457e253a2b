//! Calls to clusters, over Envoy's asynchronous client: those of a stream, and those of a config.
//!
//! Both use the client's streams, which can be reset; Envoy's whole-response callouts cannot. Envoy
//! reports nothing of a call before its start has returned (a failure inside of the start is the
//! start's own answer), and nothing after the filter or the config has been destroyed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use attache_core::host::{CallRefused, CallStart};
use attache_core::{PendingCall, SharedCalls, SharedRequest};

use crate::abi::{
    Callbacks, EnvoyBuffer, EnvoyConfig, EnvoyFilter, EnvoyHeader, ModuleBuffer, ModuleHeader,
    callout_init,
};
use crate::config::{MainThread, event};
use crate::stream::module_headers;

/// How long a config that goes on a worker waits for the main thread to be done with its calls.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a start answers, from Envoy's code for it.
fn started(result: u32, id: u64) -> Result<u64, CallRefused> {
    match result {
        callout_init::SUCCESS => Ok(id),
        callout_init::MISSING_REQUIRED_HEADERS => Err(CallRefused::InvalidRequest),
        callout_init::CLUSTER_NOT_FOUND => Err(CallRefused::UnknownCluster),
        // Envoy has answered at once: no healthy host, or a circuit breaker.
        _ => Err(CallRefused::Unavailable),
    }
}

/// Envoy's timeouts are milliseconds, and none is 0.
fn millis(timeout: Option<Duration>) -> u64 {
    timeout.map_or(0, |timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX))
}

type Start<E> = unsafe extern "C" fn(
    E,
    *mut u64,
    ModuleBuffer,
    *const ModuleHeader,
    usize,
    ModuleBuffer,
    bool,
    u64,
) -> u32;

/// # Safety
/// `envoy` must be valid, this must be its thread, and `start` the callback for it.
unsafe fn start_on<E>(start: Start<E>, envoy: E, call: &CallStart<'_>) -> Result<u64, CallRefused> {
    let headers = module_headers(call.headers);
    let mut id = 0;
    // SAFETY: the caller's promise; Envoy copies all buffers, which are ours and live, and the
    // out-pointer is ours, too.
    let result = unsafe {
        start(
            envoy,
            &mut id,
            call.cluster.into(),
            headers.as_ptr(),
            headers.len(),
            call.body.into(),
            call.end_stream,
            millis(call.timeout),
        )
    };
    started(result, id)
}

/// Starts a call of a stream.
///
/// # Safety
/// `envoy` must be a stream that is not destroyed, and this its worker thread.
pub(crate) unsafe fn start(
    api: &Callbacks,
    envoy: EnvoyFilter,
    call: &CallStart<'_>,
) -> Result<u64, CallRefused> {
    // SAFETY: the caller's promise.
    unsafe { start_on(api.start_http_stream, envoy, call) }
}

/// Header fields as Envoy hands them to a hook.
///
/// # Safety
/// `headers` must be null or point to `len` headers of Envoy's that stay for `'a`.
pub(crate) unsafe fn fields<'a>(
    headers: *const EnvoyHeader,
    len: usize,
) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
    let headers = if headers.is_null() || len == 0 {
        &[]
    } else {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts(headers, len) }
    };
    headers.iter().map(|header| {
        // SAFETY: the caller's promise.
        unsafe { (header.name.as_slice(), header.value.as_slice()) }
    })
}

/// Pieces of a body as Envoy hands them to a hook.
///
/// # Safety
/// As [`fields`].
pub(crate) unsafe fn slices<'a>(
    chunks: *const EnvoyBuffer,
    len: usize,
) -> impl Iterator<Item = &'a [u8]> {
    let chunks = if chunks.is_null() || len == 0 {
        &[]
    } else {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts(chunks, len) }
    };
    chunks.iter().map(|chunk| {
        // SAFETY: the caller's promise.
        unsafe { chunk.as_slice() }
    })
}

/// The calls of one filter config, which Envoy makes on its main thread.
pub(crate) struct ConfigCalls {
    envoy: EnvoyConfig,
    api: &'static Callbacks,
    main: Arc<MainThread>,
    tickets: AtomicU64,
    state: Mutex<State>,
    /// No call is under way any more.
    idle: Condvar,
}

#[derive(Default)]
struct State {
    /// For the main thread, in order.
    queue: Vec<Order>,
    scheduled: bool,
    closed: bool,
    /// Calls that Envoy has started, by Envoy's number.
    live: HashMap<u64, Live>,
}

enum Order {
    Start(Box<ToStart>),
    Cancel(u64),
}

struct ToStart {
    ticket: u64,
    request: SharedRequest,
    pending: PendingCall,
}

struct Live {
    ticket: u64,
    /// Taken out while it is told something, and for good when nobody waits any more.
    pending: Option<PendingCall>,
}

// What the mutex guards goes from thread to thread.
const _: () = {
    const fn is_send<T: Send>() {}
    is_send::<State>();
};

// SAFETY: `envoy` is used only by methods whose callers prove that the config lives and that this is
// Envoy's main thread.
unsafe impl Send for ConfigCalls {}
// SAFETY: as above; the rest is behind a mutex.
unsafe impl Sync for ConfigCalls {}

impl ConfigCalls {
    /// # Safety
    /// `envoy` must be the config that Envoy is making, further down the stack.
    pub(crate) unsafe fn new(
        envoy: EnvoyConfig,
        api: &'static Callbacks,
        main: Arc<MainThread>,
    ) -> Self {
        ConfigCalls {
            envoy,
            api,
            main,
            tickets: AtomicU64::new(0),
            state: Mutex::default(),
            idle: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn order(&self, order: Order) {
        let mut state = self.state();
        if state.closed {
            // Outside of the lock: dropping a call tells whoever waits for it.
            drop(state);
            return drop(order);
        }
        state.queue.push(order);
        let first = !std::mem::replace(&mut state.scheduled, true);
        drop(state);
        if first {
            self.main.ask(event::CALLS);
        }
    }

    /// The main thread does what other threads have asked for.
    ///
    /// # Safety
    /// This must be Envoy's main thread, and the config must live during the call.
    pub(crate) unsafe fn flush(&self) {
        let mut state = self.state();
        state.scheduled = false;
        let orders = std::mem::take(&mut state.queue);
        drop(state);
        for order in orders {
            match order {
                Order::Start(order) => {
                    let ToStart { ticket, request, mut pending } = *order;
                    // SAFETY: the caller's promise. No lock is held: Envoy may run hooks.
                    let started = request.with(|call| unsafe {
                        start_on(self.api.config_start_http_stream, self.envoy, call)
                    });
                    match started {
                        Ok(id) => {
                            let pending = Some(pending);
                            self.state().live.insert(id, Live { ticket, pending });
                        }
                        Err(why) => pending.refused(why),
                    }
                }
                Order::Cancel(ticket) => {
                    let mut state = self.state();
                    let mut live = state.live.iter_mut();
                    let found = live.find(|(_, live)| live.ticket == ticket);
                    let found = found.map(|(id, live)| (*id, live.pending.take()));
                    drop(state);
                    if let Some((id, _unwanted)) = found {
                        // SAFETY: the caller's promise, and no lock is held.
                        unsafe { self.reset(id) };
                    }
                }
            }
        }
    }

    /// # Safety
    /// As [`flush`](Self::flush). No lock may be held: the reset hook runs before this returns.
    unsafe fn reset(&self, id: u64) {
        // SAFETY: the caller's promise.
        unsafe { (self.api.config_reset_http_stream)(self.envoy, id) }
    }

    /// Tells a call what Envoy reports of it. `f` says whether it may go on.
    ///
    /// # Safety
    /// As [`flush`](Self::flush).
    pub(crate) unsafe fn report(&self, id: u64, f: impl FnOnce(&mut PendingCall) -> bool) {
        let pending = self.state().live.get_mut(&id).and_then(|live| live.pending.take());
        let Some(mut pending) = pending else { return };
        let goes_on = f(&mut pending);
        if let Some(live) = self.state().live.get_mut(&id) {
            live.pending = Some(pending);
        }
        if !goes_on {
            // SAFETY: the caller's promise, and no lock is held.
            unsafe { self.reset(id) };
        }
    }

    /// A call is over for Envoy, too, which does not touch the config for it any more.
    pub(crate) fn finished(&self, id: u64, f: impl FnOnce(&mut PendingCall)) {
        let mut state = self.state();
        let live = state.live.remove(&id);
        if state.live.is_empty() {
            self.idle.notify_all();
        }
        drop(state);
        if let Some(mut pending) = live.and_then(|live| live.pending) {
            f(&mut pending);
        }
    }

    /// The config goes: whoever waits for a call is told so.
    ///
    /// Envoy then resets the calls on this thread. On a worker (the last stream of a config that was
    /// replaced ends there), the main thread could be in the middle of one: so it is given the time
    /// to end them, unless it is itself waiting for this worker.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        let orders = std::mem::take(&mut state.queue);
        if !self.main.is_here() && !state.live.is_empty() {
            let waited = self.idle.wait_timeout_while(state, PATIENCE, |s| !s.live.is_empty());
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            if !state.live.is_empty() {
                tracing::warn!(
                    "a filter config went on a worker while it was calling a cluster, and the call \
                     did not end within {PATIENCE:?}"
                );
            }
        }
        let live = std::mem::take(&mut state.live);
        drop(state);
        drop(orders);
        drop(live);
    }
}

impl SharedCalls for ConfigCalls {
    fn start(&self, request: SharedRequest, pending: PendingCall) -> u64 {
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        self.order(Order::Start(Box::new(ToStart { ticket, request, pending })));
        ticket
    }

    fn cancel(&self, ticket: u64) {
        self.order(Order::Cancel(ticket));
    }
}
