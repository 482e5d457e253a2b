//! Calls to clusters: those that belong to a config and come from any thread, and what both kinds
//! share. The C++ half posts them to Envoy's main thread, so nothing here waits or locks.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};

use attache_core::host::{CallFailure, CallRefused, CallStart};
use attache_core::{PendingCall, SharedCalls, SharedRequest};
use cxx::UniquePtr;

use crate::bridge::ffi::{self, HeaderView};
use crate::config::shielded;
use crate::stream::{fields, header_views};

/// Envoy's timeouts are milliseconds, and none is 0.
pub(crate) fn timeout_ms(call: &CallStart<'_>) -> u64 {
    call.timeout.map_or(0, |timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX))
}

/// Makes the calls of one filter config.
pub(crate) struct Calls {
    host: UniquePtr<ffi::ClusterCalls>,
    tickets: AtomicU64,
}

// SAFETY: `cc/bridge/cluster_calls.h` makes it callable, and deletable, on any thread.
unsafe impl Send for Calls {}
// SAFETY: as above.
unsafe impl Sync for Calls {}

impl Calls {
    pub(crate) fn new(host: UniquePtr<ffi::ClusterCalls>) -> Self {
        Calls { host, tickets: AtomicU64::new(0) }
    }
}

impl SharedCalls for Calls {
    fn start(&self, request: SharedRequest, pending: PendingCall) -> u64 {
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        self.host.start(Box::new(SharedCall { ticket, request, pending }));
        ticket
    }

    fn cancel(&self, ticket: u64) {
        self.host.cancel(ticket);
    }

    fn reports(&self) -> bool {
        true
    }
}

/// One of them, for C++ to carry to the main thread and to keep there.
pub(crate) struct SharedCall {
    ticket: u64,
    request: SharedRequest,
    pending: PendingCall,
}

// C++ takes it from thread to thread.
const _: () = {
    const fn is_send<T: Send>() {}
    is_send::<SharedCall>();
};

impl SharedCall {
    pub(crate) fn id(&self) -> u64 {
        self.ticket
    }

    pub(crate) fn send(&self, starter: Pin<&mut ffi::CallStarter>) {
        let _ = shielded("shared_call_send", || {
            self.request.with(|call| {
                let headers = header_views(call.headers);
                starter.start_call(call.cluster, &headers, call.body, timeout_ms(call));
            });
        });
    }

    /// Tells whoever waits. A panic here is a bug; the call then ends as one whose config has gone.
    fn tell<R>(&mut self, safe: R, f: impl FnOnce(&mut PendingCall) -> R) -> R {
        shielded("shared_call", || f(&mut self.pending)).unwrap_or(safe)
    }

    pub(crate) fn on_headers(&mut self, headers: &[HeaderView], end_stream: bool) -> bool {
        self.tell(false, |pending| pending.headers(end_stream, fields(headers)))
    }

    pub(crate) fn on_data(&mut self, slices: &[ffi::Bytes], end_stream: bool) -> bool {
        self.tell(false, |pending| {
            // SAFETY: C++ keeps the bytes during this call.
            let slices = slices.iter().map(|slice| unsafe { slice.as_slice() });
            pending.data(end_stream, slices)
        })
    }

    pub(crate) fn on_trailers(&mut self) {
        self.tell((), PendingCall::trailers);
    }

    pub(crate) fn on_complete(&mut self) {
        self.tell((), PendingCall::complete);
    }

    pub(crate) fn on_refused(&mut self, why: ffi::CallStart) {
        self.tell((), |pending| pending.refused(why.into()));
    }

    pub(crate) fn on_failed(&mut self, failure: ffi::CallFailure, why: &[u8]) {
        self.tell((), |pending| pending.failed_because(failure.into(), why));
    }
}

/// Of an answer that is not `Started`.
impl From<ffi::CallStart> for CallRefused {
    fn from(started: ffi::CallStart) -> Self {
        match started {
            ffi::CallStart::UnknownCluster => CallRefused::UnknownCluster,
            ffi::CallStart::InvalidRequest => CallRefused::InvalidRequest,
            ffi::CallStart::NoHealthyHost => CallRefused::NoHealthyHost,
            ffi::CallStart::Overflow => CallRefused::Overflow,
            _ => CallRefused::Unavailable,
        }
    }
}

impl From<ffi::CallFailure> for CallFailure {
    fn from(failure: ffi::CallFailure) -> Self {
        match failure {
            ffi::CallFailure::Timeout => CallFailure::Timeout,
            ffi::CallFailure::Overflow => CallFailure::Overflow,
            ffi::CallFailure::Unavailable => CallFailure::Unavailable,
            _ => CallFailure::Reset,
        }
    }
}
