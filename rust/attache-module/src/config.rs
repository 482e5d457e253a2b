//! Filter configs and their metrics in stock Envoy.

use std::sync::Arc;
use std::thread::ThreadId;

use attache_core::registry::{Loaded, LoadedRoute};
use attache_core::{
    ConfigHost, EachUpdate, FirstLook, MetricId, MetricKind, MetricOp, MetricQueue, MetricSink,
    RuntimeFlags, SecretError, SecretUpdates, SharedCalls, is_serving,
};

use crate::abi::{Callbacks, EnvoyConfig, METRICS_FROZEN, METRICS_SUCCESS, ModulePtr, Scheduler};
use crate::callout::ConfigCalls;
use crate::commit::{self, commit, is_committing};
use crate::envoy::InEnvoy;
use crate::stream::module_buffers;

/// Envoy's main thread, as a config of ours can ask for it.
pub(crate) struct MainThread {
    api: &'static Callbacks,
    scheduler: Scheduler,
    id: ThreadId,
}

/// What the main thread is asked for: Envoy hands it to `config_scheduled`.
pub(crate) mod event {
    /// The metrics of other threads: [`Sink`](super::Sink).
    pub(crate) const METRICS: u64 = 0;
    /// Calls to clusters: [`ConfigCalls`](super::ConfigCalls).
    pub(crate) const CALLS: u64 = 1;
    /// A look at secrets and runtime flags: [`InEnvoy`](super::InEnvoy).
    pub(crate) const LOOK: u64 = 2;
}

// SAFETY: the scheduler holds a weak reference to the config, and committing is made for any thread, as
// long as Envoy is there (`commit.rs`).
unsafe impl Send for MainThread {}
// SAFETY: as above.
unsafe impl Sync for MainThread {}

impl MainThread {
    /// # Safety
    /// `envoy` must be the config that Envoy is making, further down the stack, on its main thread.
    pub(crate) unsafe fn new(envoy: EnvoyConfig, api: &'static Callbacks) -> Self {
        commit::open();
        // SAFETY: the caller's promise.
        let scheduler = unsafe { (api.config_scheduler_new)(envoy) };
        MainThread { api, scheduler, id: std::thread::current().id() }
    }

    /// Whether this is it.
    pub(crate) fn is_here(&self) -> bool {
        std::thread::current().id() == self.id
    }

    /// Asks for one of [`event`]. The config may end in here.
    pub(crate) fn ask(&self, event: u64) {
        // SAFETY: the scheduler lives as long as we do; any thread may commit, and when the config is
        // gone it does nothing.
        commit(|| unsafe { (self.api.config_scheduler_commit)(self.scheduler, event) });
    }
}

impl Drop for MainThread {
    fn drop(&mut self) {
        // SAFETY: made by `config_scheduler_new`, deleted once.
        unsafe { (self.api.config_scheduler_delete)(self.scheduler) }
    }
}

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

    fn watch_secret(
        &mut self,
        name: &str,
        sds_config: Option<&str>,
        updates: SecretUpdates,
    ) -> Result<Option<FirstLook>, SecretError> {
        // SAFETY: the config is being made by Envoy, further down the stack.
        let watched = unsafe { self.sink.in_envoy.watch(name, sds_config, updates) }?;
        let (sink, watched) = (self.sink.clone(), Arc::downgrade(&watched));
        Ok(Some(Arc::new(move || {
            if is_serving(&*sink)
                && let Some(watched) = watched.upgrade()
            {
                // SAFETY: as in `Sink::update`.
                unsafe { sink.in_envoy.first(&watched) }
            }
        })))
    }

    fn runtime_flags(&self) -> Option<Arc<dyn RuntimeFlags>> {
        self.sink.in_envoy.flags()
    }
}

/// Where a config's metric updates go.
///
/// Envoy's stats can be touched only on Envoy's threads, and only while the config lives. A stream
/// of the config proves both; from anywhere else the update goes through a queue to the main thread.
pub(crate) struct Sink {
    envoy: EnvoyConfig,
    api: &'static Callbacks,
    main: Arc<MainThread>,
    pub(crate) queue: MetricQueue,
    pub(crate) in_envoy: Arc<InEnvoy>,
}

// SAFETY: `envoy` is used only through `apply`, whose callers prove that the config lives and that
// this is a thread of Envoy's.
unsafe impl Send for Sink {}
// SAFETY: as above; the queue is made for any thread.
unsafe impl Sync for Sink {}

impl Sink {
    /// # Safety
    /// `envoy` must be the config that Envoy is making, further down the stack.
    pub(crate) unsafe fn new(
        envoy: EnvoyConfig,
        api: &'static Callbacks,
        main: Arc<MainThread>,
    ) -> Self {
        // SAFETY: the caller's promise.
        let in_envoy = Arc::new(unsafe { InEnvoy::new(envoy, api, main.clone()) });
        Sink { envoy, api, main, queue: MetricQueue::new(), in_envoy }
    }

    /// # Safety
    /// The config must live during the call, and this must be a thread of Envoy's unless
    /// [`is_for_any_thread`].
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

    /// The config is destroyed, on whatever thread: its last metrics.
    ///
    /// # Safety
    /// The config must live during the call.
    pub(crate) unsafe fn end(&self, loaded: &Loaded) {
        let foreign = is_committing();
        self.queue.end(loaded, |metric, op, value, labels| {
            // What needs a thread of Envoy's is lost on another one.
            if !foreign || is_for_any_thread(metric.kind, labels) {
                // SAFETY: the caller's promise. Only within a commit of ours does Envoy destroy a
                // config on a thread that is not its own.
                unsafe { self.apply(metric, op, value, labels) }
            }
        });
    }
}

/// Envoy looks nothing up by thread to change it: it is one atomic number.
fn is_for_any_thread(kind: MetricKind, labels: &[&str]) -> bool {
    labels.is_empty() && kind != MetricKind::Histogram
}

impl MetricSink for Sink {
    fn update(&self, metric: MetricId, op: MetricOp, value: u64, labels: &[&str]) {
        if is_serving(self) {
            // SAFETY: this thread is inside an event of an exchange of this config. Only our hooks
            // report events: it is a worker of Envoy's, and the hook's stream keeps the config.
            unsafe { self.apply(metric, op, value, labels) }
        } else if self.queue.leave(metric, op, value, labels) {
            self.main.ask(event::METRICS);
        }
    }

    fn update_all(&self, updates: &mut dyn FnMut(&mut EachUpdate<'_>)) {
        if self.queue.leave_all(updates) {
            self.main.ask(event::METRICS);
        }
    }
}

/// What of Envoy tests need to load a config.
#[cfg(test)]
pub(crate) mod fake {
    use std::ffi::{CStr, c_void};

    use super::*;
    use crate::abi::ModuleBuffer;

    unsafe extern "C" fn define(
        _: EnvoyConfig,
        _: ModuleBuffer,
        _: *const ModuleBuffer,
        _: usize,
        _: *mut usize,
    ) -> u32 {
        METRICS_SUCCESS
    }

    /// The scheduler is the config.
    unsafe extern "C" fn make_scheduler(envoy: EnvoyConfig) -> Scheduler {
        envoy
    }

    unsafe extern "C" fn delete_scheduler(_: Scheduler) {}

    unsafe extern "C" fn never() {
        std::process::abort();
    }

    /// A callback's name, without what all have in common.
    pub(crate) fn name_of(name: &'static CStr) -> &'static str {
        name.to_str().unwrap().strip_prefix("envoy_dynamic_module_callback_").unwrap()
    }

    pub(crate) fn find(name: &'static CStr) -> *mut c_void {
        match name_of(name).strip_prefix("http_filter_config_").unwrap_or("") {
            "define_counter" | "define_gauge" | "define_histogram" => define as *mut c_void,
            "scheduler_new" => make_scheduler as *mut c_void,
            "scheduler_delete" => delete_scheduler as *mut c_void,
            _ => never as *mut c_void,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::{CStr, c_void};
    use std::ptr::null_mut;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicPtr, Ordering};

    use attache_core::registry::Registry;
    use attache_core::{ConfigError, Counter, Filter, Histogram, Next, Request, Response, Setup};

    use super::*;
    use crate::abi::ModuleBuffer;
    use crate::hooks::envoy_dynamic_module_on_http_filter_config_destroy as destroy;

    /// Envoy's config: it is let go of while the module commits, if `going` has the module's.
    #[derive(Default)]
    struct FakeConfig {
        going: AtomicPtr<c_void>,
        changed: Mutex<Vec<&'static str>>,
    }

    /// # Safety
    /// `envoy` must come from `loaded`.
    unsafe fn fake<'a>(envoy: *mut c_void) -> &'a FakeConfig {
        // SAFETY: the caller's promise; the test keeps it.
        unsafe { &*envoy.cast::<FakeConfig>() }
    }

    unsafe extern "C" fn add(
        envoy: EnvoyConfig,
        _: usize,
        _: *const ModuleBuffer,
        labels: usize,
        _: u64,
    ) -> u32 {
        let what = if labels == 0 { "counter" } else { "labelled counter" };
        // SAFETY: the module hands back what it was given.
        unsafe { fake(envoy) }.changed.lock().unwrap().push(what);
        METRICS_SUCCESS
    }

    unsafe extern "C" fn record(
        envoy: EnvoyConfig,
        _: usize,
        _: *const ModuleBuffer,
        _: usize,
        _: u64,
    ) -> u32 {
        // SAFETY: as in `add`.
        unsafe { fake(envoy) }.changed.lock().unwrap().push("histogram");
        METRICS_SUCCESS
    }

    unsafe extern "C" fn post(scheduler: Scheduler, _: u64) {
        // SAFETY: as in `add`: the scheduler is the config.
        let going = unsafe { fake(scheduler) }.going.swap(null_mut(), Ordering::SeqCst);
        if !going.is_null() {
            destroy(going);
        }
    }

    fn find(name: &'static CStr) -> *mut c_void {
        match fake::name_of(name) {
            "http_filter_config_increment_counter" => add as *mut c_void,
            "http_filter_config_record_histogram_value" => record as *mut c_void,
            "http_filter_config_scheduler_commit" => post as *mut c_void,
            _ => fake::find(name),
        }
    }

    struct Metrics {
        plain: Counter,
        labelled: Counter,
        histogram: Histogram,
    }

    /// Those of the config that was loaded last.
    static METRICS: Mutex<Option<Metrics>> = Mutex::new(None);
    static LOADING: Mutex<()> = Mutex::new(());

    struct Counting;

    impl Filter for Counting {
        type Config = ();
        type RouteConfig = ();

        fn new(_: (), setup: &mut Setup) -> Result<Self, ConfigError> {
            *METRICS.lock().unwrap() = Some(Metrics {
                plain: setup.counter("plain")?,
                labelled: setup.counter_with("labelled", &["of"])?,
                histogram: setup.histogram("histogram")?,
            });
            Ok(Counting)
        }

        async fn handle(&self, request: Request, next: Next) -> attache_core::Result<Response> {
            next.run(request).await
        }
    }

    fn loaded(envoy: &FakeConfig) -> (ModulePtr, Metrics) {
        // SAFETY: these are the functions that the test makes the module call.
        let api = Box::leak(Box::new(unsafe { Callbacks::load(find) }.unwrap()));
        let envoy = std::ptr::from_ref(envoy).cast_mut().cast();
        // SAFETY: the callbacks above take it.
        let main = Arc::new(unsafe { MainThread::new(envoy, api) });
        // SAFETY: as above.
        let (sink, calls) =
            unsafe { (Sink::new(envoy, api, main.clone()), ConfigCalls::new(envoy, api, main)) };
        let (sink, calls) = (Arc::new(sink), Arc::new(calls));
        let host = ConfigStream { envoy, api, sink: sink.clone(), calls: calls.clone() };
        let registry = Registry::new().with::<Counting>("counting");
        let (loaded, metrics) = {
            let _one_at_a_time = LOADING.lock().unwrap();
            let loaded = registry.load("counting", b"", Box::new(host)).unwrap();
            (loaded, METRICS.lock().unwrap().take().unwrap())
        };
        let config = Box::new(ModuleConfig { loaded, sink, calls });
        (Box::into_raw(config).cast_const().cast(), metrics)
    }

    #[test]
    fn the_end_of_a_config_makes_what_still_waits_on_its_thread() {
        let envoy = FakeConfig::default();
        let (config, metrics) = loaded(&envoy);
        metrics.plain.inc();
        metrics.labelled.inc_with(&["it"]);
        metrics.histogram.record(1);
        assert!(envoy.changed.lock().unwrap().is_empty());
        destroy(config);
        assert_eq!(*envoy.changed.lock().unwrap(), ["counter", "labelled counter", "histogram"]);
        metrics.plain.inc();
        assert_eq!(envoy.changed.lock().unwrap().len(), 3);
    }

    /// Envoy's scheduler holds its config while it posts, so a thread of ours may be the last to let go
    /// of it. There, Envoy's look-ups by thread find nothing: it would crash.
    #[test]
    fn a_config_that_ends_in_a_commit_touches_only_what_any_thread_may() {
        let ends_in = |update: fn(&Metrics)| {
            let envoy = FakeConfig::default();
            let (config, metrics) = loaded(&envoy);
            envoy.going.store(config.cast_mut(), Ordering::SeqCst);
            update(&metrics);
            assert!(envoy.going.load(Ordering::SeqCst).is_null(), "it has not ended");
            envoy.changed.into_inner().unwrap()
        };
        assert_eq!(ends_in(|metrics| metrics.plain.inc()), ["counter"]);
        assert!(ends_in(|metrics| metrics.labelled.inc_with(&["it"])).is_empty());
        assert!(ends_in(|metrics| metrics.histogram.record(1)).is_empty());
    }
}
