//! Filter configs and their metrics in stock Envoy.

use std::sync::Arc;

use attache_core::registry::{Loaded, LoadedRoute};
use attache_core::{
    ConfigHost, MetricId, MetricKind, MetricOp, MetricQueue, MetricSink, SharedCalls, is_serving,
};

use crate::abi::{Callbacks, EnvoyConfig, METRICS_FROZEN, METRICS_SUCCESS, ModulePtr, Scheduler};
use crate::callout::ConfigCalls;
use crate::stream::module_buffers;

/// What Envoy keeps for us per filter config.
pub(crate) struct ModuleConfig {
    pub(crate) loaded: Loaded,
    pub(crate) sink: Arc<Sink>,
    pub(crate) calls: Arc<ConfigCalls>,
}

/// What Envoy keeps for us per route.
pub(crate) struct RouteConfig(pub(crate) LoadedRoute);

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
    pub(crate) calls: Arc<ConfigCalls>,
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

    fn calls(&self) -> Option<Arc<dyn SharedCalls>> {
        Some(self.calls.clone())
    }
}

/// Where a config's metric updates go.
///
/// Envoy's stats can be touched only on Envoy's threads, and only while the config lives. A stream
/// of the config proves both; from anywhere else the update goes through a queue to the main thread.
pub(crate) struct Sink {
    envoy: EnvoyConfig,
    api: &'static Callbacks,
    scheduler: Scheduler,
    pub(crate) queue: MetricQueue,
}

// SAFETY: `envoy` is used only through `apply`, whose callers prove that the config lives and that
// this is a thread of Envoy's. The scheduler holds a weak reference to the config, and committing is
// made for any thread.
unsafe impl Send for Sink {}
// SAFETY: as above; the queue is made for any thread.
unsafe impl Sync for Sink {}

impl Sink {
    /// # Safety
    /// `envoy` must be the config that Envoy is making, further down the stack.
    pub(crate) unsafe fn new(envoy: EnvoyConfig, api: &'static Callbacks) -> Self {
        // SAFETY: the caller's promise.
        let scheduler = unsafe { (api.config_scheduler_new)(envoy) };
        Sink { envoy, api, scheduler, queue: MetricQueue::new() }
    }

    /// # Safety
    /// This must be a thread of Envoy's, and the config must live during the call.
    pub(crate) unsafe fn apply(&self, metric: MetricId, op: MetricOp, value: u64, labels: &[&str]) {
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

    /// Takes what foreign threads have left.
    ///
    /// # Safety
    /// This must be a thread of Envoy's, and the config must live during the call.
    pub(crate) unsafe fn flush(&self) {
        self.queue.take(|metric, op, value, labels| {
            // SAFETY: the caller's promise.
            unsafe { self.apply(metric, op, value, labels) }
        });
    }
}

impl MetricSink for Sink {
    fn update(&self, metric: MetricId, op: MetricOp, value: u64, labels: &[&str]) {
        if is_serving(self) {
            // SAFETY: this thread is inside an event of an exchange of this config. Only our hooks
            // report events: it is a worker of Envoy's, and the hook's stream keeps the config.
            unsafe { self.apply(metric, op, value, labels) }
        } else if self.queue.leave(metric, op, value, labels) {
            // SAFETY: the scheduler lives as long as we do; any thread may commit, and when the
            // config is gone it does nothing.
            unsafe { (self.api.config_scheduler_commit)(self.scheduler, 0) }
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        // SAFETY: made by `config_scheduler_new`, deleted once.
        unsafe { (self.api.config_scheduler_delete)(self.scheduler) }
    }
}
