//! Filter configs and their metrics in stock Envoy.

use std::any::Any;
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use attache_core::registry::Loaded;
use attache_core::{ConfigHost, MetricId, MetricKind, MetricOp, MetricSink};
use crossbeam_channel::{Receiver, Sender, TrySendError};

use crate::abi::{Callbacks, EnvoyConfig, METRICS_FROZEN, METRICS_SUCCESS, ModulePtr, Scheduler};
use crate::stream::module_buffers;

/// How many metric updates from foreign threads may wait for Envoy's main thread.
const QUEUE: usize = 64 * 1024;

/// What Envoy keeps for us per filter config.
pub(crate) struct ModuleConfig {
    pub(crate) loaded: Loaded,
    pub(crate) sink: Arc<Sink>,
}

/// What Envoy keeps for us per route.
pub(crate) struct RouteConfig(pub(crate) Arc<dyn Any + Send + Sync>);

impl RouteConfig {
    pub(crate) fn into_raw(self) -> ModulePtr {
        Box::into_raw(Box::new(self)).cast_const().cast()
    }

    /// # Safety
    /// `ptr` must be null or come from `into_raw`, and not be freed while the reference is used.
    pub(crate) unsafe fn from_raw<'a>(ptr: ModulePtr) -> Option<&'a Self> {
        // SAFETY: the caller's promise.
        unsafe { ptr.cast::<Self>().as_ref() }
    }
}

/// What a filter is offered while it is made.
pub(crate) struct ConfigStream {
    pub(crate) envoy: EnvoyConfig,
    pub(crate) api: &'static Callbacks,
    pub(crate) sink: Arc<Sink>,
}

impl ConfigHost for ConfigStream {
    fn define(
        &mut self,
        kind: MetricKind,
        name: &str,
        labels: &[&str],
    ) -> Result<MetricId, String> {
        let define = match kind {
            MetricKind::Counter => self.api.define_counter,
            MetricKind::Gauge => self.api.define_gauge,
            MetricKind::Histogram => self.api.define_histogram,
        };
        let buffers = module_buffers(labels);
        let mut id = 0;
        // SAFETY: the config is being made by Envoy, further down the stack; all buffers are ours
        // and live.
        let result =
            unsafe { define(self.envoy, name.into(), buffers.as_ptr(), buffers.len(), &mut id) };
        match result {
            METRICS_SUCCESS => Ok(MetricId { kind, id }),
            METRICS_FROZEN => Err("metrics can be defined only while the filter is made".into()),
            other => Err(format!("Envoy answered {other}")),
        }
    }

    fn sink(&self) -> Arc<dyn MetricSink> {
        self.sink.clone()
    }
}

/// An update that waits for the main thread.
struct Update {
    metric: MetricId,
    op: MetricOp,
    value: u64,
    labels: Vec<String>,
}

/// Where a config's metric updates go.
///
/// Envoy's stats can be touched only on Envoy's threads, and only while the config lives. A stream
/// of the config proves both; from anywhere else the update goes through a queue to the main thread.
pub(crate) struct Sink {
    envoy: EnvoyConfig,
    api: &'static Callbacks,
    scheduler: Scheduler,
    queue: (Sender<Update>, Receiver<Update>),
    scheduled: AtomicBool,
    closed: AtomicBool,
    dropped: AtomicBool,
}

// SAFETY: `envoy` is used only through `apply`, whose callers prove that the config lives and that
// this is a thread of Envoy's. The scheduler holds a weak reference to the config, and committing is
// made for any thread.
unsafe impl Send for Sink {}
// SAFETY: as above; the rest is atomics and a channel.
unsafe impl Sync for Sink {}

thread_local!(static SERVING: Cell<*const Sink> = const { Cell::new(std::ptr::null()) });

/// While it lives, this thread runs a hook of a stream of one config.
pub(crate) struct Serving(*const Sink);

impl Serving {
    pub(crate) fn enter(sink: &Sink) -> Self {
        Serving(SERVING.replace(sink))
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        SERVING.set(self.0);
    }
}

impl Sink {
    /// # Safety
    /// `envoy` must be the config that Envoy is making, further down the stack.
    pub(crate) unsafe fn new(envoy: EnvoyConfig, api: &'static Callbacks) -> Self {
        // SAFETY: the caller's promise.
        let scheduler = unsafe { (api.config_scheduler_new)(envoy) };
        Sink {
            envoy,
            api,
            scheduler,
            queue: crossbeam_channel::bounded(QUEUE),
            scheduled: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            dropped: AtomicBool::new(false),
        }
    }

    /// # Safety
    /// This must be a thread of Envoy's, and the config must live during the call.
    unsafe fn apply(&self, metric: MetricId, op: MetricOp, value: u64, labels: &[&str]) {
        let update = match (metric.kind, op) {
            (MetricKind::Counter, _) => self.api.increment_counter,
            (MetricKind::Gauge, MetricOp::Add) => self.api.increment_gauge,
            (MetricKind::Gauge, MetricOp::Sub) => self.api.decrement_gauge,
            (MetricKind::Gauge, _) => self.api.set_gauge,
            (MetricKind::Histogram, _) => self.api.record_histogram,
        };
        let buffers = module_buffers(labels);
        // SAFETY: the caller's promise; the buffers are ours and live.
        let result =
            unsafe { update(self.envoy, metric.id, buffers.as_ptr(), buffers.len(), value) };
        debug_assert_eq!(result, METRICS_SUCCESS, "ids and label counts are checked before");
    }

    /// The main thread takes what foreign threads have left.
    ///
    /// # Safety
    /// This must be Envoy's main thread, and the config must live during the call.
    pub(crate) unsafe fn flush(&self) {
        // Cleared first: an update that comes now either is seen below or schedules again.
        self.scheduled.store(false, Ordering::SeqCst);
        for update in self.queue.1.try_iter() {
            let labels: Vec<_> = update.labels.iter().map(String::as_str).collect();
            // SAFETY: the caller's promise.
            unsafe { self.apply(update.metric, update.op, update.value, &labels) };
        }
    }

    /// The config goes: later updates have nowhere to go.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }
}

impl MetricSink for Sink {
    fn update(&self, metric: MetricId, op: MetricOp, value: u64, labels: &[&str]) {
        if std::ptr::eq(SERVING.get(), self) {
            // SAFETY: this thread is inside a hook of a stream of this config: a worker of Envoy's,
            // and the stream keeps the config.
            return unsafe { self.apply(metric, op, value, labels) };
        }
        if self.closed.load(Ordering::SeqCst) {
            return;
        }
        let labels = labels.iter().map(|&l| l.to_owned()).collect();
        match self.queue.0.try_send(Update { metric, op, value, labels }) {
            Ok(()) => {
                if !self.scheduled.swap(true, Ordering::SeqCst) {
                    // SAFETY: the scheduler lives as long as we do; any thread may commit, and when
                    // the config is gone it does nothing.
                    unsafe { (self.api.config_scheduler_commit)(self.scheduler, 0) }
                }
            }
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                if !self.dropped.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        "{QUEUE} metric updates from threads outside Envoy are waiting for the \
                         main thread; further ones are dropped until it catches up"
                    );
                }
            }
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        // SAFETY: made by `config_scheduler_new`, deleted once.
        unsafe { (self.api.config_scheduler_delete)(self.scheduler) }
    }
}
