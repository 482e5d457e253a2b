//! What is made once: the list of filters, filter configs with their metrics, per-route configs.

use std::cell::OnceCell;
use std::pin::Pin;
use std::ptr::NonNull;
use std::sync::{Arc, OnceLock};

use attache_core::registry::{Defaults, Loaded, LoadedRoute, Registry};
use attache_core::{
    ConfigHost, EachUpdate, FirstLook, MetricId, MetricKind, MetricOp, MetricQueue, MetricSink,
    RuntimeFlags, SecretError, SecretUpdates, SharedCalls, guarded, is_serving,
};
use cxx::UniquePtr;

use crate::bridge::ffi;
use crate::calls::Calls;
use crate::envoy::{Flags, SecretSlot};
use crate::log::Log;

unsafe extern "Rust" {
    /// Made by `filters!`, once in a program; the signature is the macro's.
    safe fn attache_cxx_registry() -> Registry;
}

static LOG: OnceLock<Log> = OnceLock::new();
static REGISTRY: OnceLock<Result<Registry, String>> = OnceLock::new();

/// The filters of this program, or what is wrong with the list of them.
fn registry() -> Result<&'static Registry, String> {
    REGISTRY.get_or_init(|| guarded(attache_cxx_registry)).as_ref().map_err(String::clone)
}

/// Runs something for C++. A panic here is a fault of the runtime (a filter's own are caught closer
/// to it); it must not unwind into C++, so its message is all that is left.
pub(crate) fn shielded<R>(what: &str, f: impl FnOnce() -> R) -> Result<R, String> {
    guarded(f).inspect_err(|message| {
        if let Some(log) = LOG.get() {
            log.critical(&format!(
                "attache: the runtime panicked in {what}; this is a bug in Attaché: {message}"
            ));
        }
    })
}

/// As [`shielded`], where failing is an answer as well.
fn fallible<R>(what: &str, f: impl FnOnce() -> Result<R, String>) -> Result<R, String> {
    shielded(what, f).and_then(|result| result)
}

pub(crate) fn init(sink: UniquePtr<ffi::LogSink>) -> Result<(), String> {
    fallible("init", || {
        registry()?;
        if LOG.get().is_none() {
            attache_core::log::install(LOG.get_or_init(|| Log(sink)));
        }
        Ok(())
    })
}

pub(crate) fn filter_names() -> Vec<String> {
    let names = || Some(registry().ok()?.names().map(str::to_owned).collect());
    shielded("filter_names", names).ok().flatten().unwrap_or_default()
}

/// A loaded filter, for C++ to keep.
pub(crate) struct FilterConfig {
    /// There until it is dropped.
    loaded: Option<Loaded>,
    sink: Arc<Sink>,
}

impl FilterConfig {
    pub(crate) fn loaded(&self) -> &Loaded {
        self.loaded.as_ref().expect("the filter is there until it is dropped")
    }

    pub(crate) fn on_scheduled(&self) {
        let _ = shielded("config_scheduled", || {
            self.sink.queue.take(|metric, op, value, labels| {
                // SAFETY: C++ calls this on a thread of Envoy's, and has the config.
                unsafe { self.sink.apply(metric, op, value, labels) }
            });
        });
    }
}

impl Drop for FilterConfig {
    fn drop(&mut self) {
        let _ = shielded("config_destroy", || {
            self.sink.queue.end(self.loaded(), |metric, op, value, labels| {
                // SAFETY: C++ drops it on a thread of Envoy's, and the host outlives it.
                unsafe { self.sink.apply(metric, op, value, labels) }
            });
            drop(self.loaded.take());
        });
    }
}

/// # Safety
/// `host` must be valid, and stay so for as long as the config, if one is returned.
pub(crate) unsafe fn load_config(
    name: &str,
    config: &[u8],
    fail_open: bool,
    host: *mut ffi::ConfigHost,
) -> Result<Box<FilterConfig>, String> {
    fallible("load_config", || {
        let registry = registry()?;
        let host = NonNull::new(host).ok_or("there is no host for the config")?;
        // SAFETY: the caller's promise.
        let sink = Arc::new(unsafe { Sink::new(host) });
        let defining = Box::new(Defining { sink: sink.clone(), calls: OnceCell::new() });
        match registry.load_with(name, config, Defaults { fail_open }, defining) {
            Ok(loaded) => Ok(Box::new(FilterConfig { loaded: Some(loaded), sink })),
            Err(reason) => {
                sink.queue.close();
                Err(reason)
            }
        }
    })
}

/// A parsed per-route config, for C++ to keep.
pub(crate) struct RouteConfig(Option<LoadedRoute>);

/// Where C++ puts the per-route configs of a stream. Lives as long as that call.
#[derive(Default)]
pub(crate) struct RouteLevels(Vec<NonNull<RouteConfig>>);

impl RouteLevels {
    pub(crate) fn add(&mut self, config: &RouteConfig) {
        self.0.push(config.into());
    }

    /// # Safety
    /// What was added must still be there, and stay as long as the references.
    pub(crate) unsafe fn get(&self) -> Vec<&LoadedRoute> {
        // SAFETY: the caller's promise.
        self.0.iter().filter_map(|config| unsafe { config.as_ref() }.0.as_ref()).collect()
    }
}

impl Drop for RouteConfig {
    fn drop(&mut self) {
        let _ = shielded("route_config_destroy", || drop(self.0.take()));
    }
}

pub(crate) fn load_route_config(name: &str, config: &[u8]) -> Result<Box<RouteConfig>, String> {
    fallible("load_route_config", || {
        Ok(Box::new(RouteConfig(Some(registry()?.load_route(name, config)?))))
    })
}

/// What a filter is offered while it is made. Lives no longer than that.
struct Defining {
    sink: Arc<Sink>,
    /// Made if the filter asks for a cluster.
    calls: OnceCell<Arc<Calls>>,
}

impl Defining {
    #[expect(clippy::mut_from_ref, reason = "what it refers to is not part of `self`")]
    fn host(&self) -> Pin<&mut ffi::ConfigHost> {
        // SAFETY: the filter is being made, so C++ has the host, on this thread; nothing else uses it
        // before what it is used for returns.
        unsafe { Pin::new_unchecked(&mut *self.sink.host.as_ptr()) }
    }
}

impl ConfigHost for Defining {
    fn define(
        &mut self,
        kind: MetricKind,
        name: &str,
        labels: &[&str],
    ) -> Result<MetricId, String> {
        let (mut id, mut reason) = (0, String::new());
        match self.host().define_metric(kind.into(), name, labels, &mut id, &mut reason) {
            true => Ok(MetricId { kind, id }),
            false => Err(reason),
        }
    }

    fn sink(&self) -> Arc<dyn MetricSink> {
        self.sink.clone()
    }

    fn calls(&self) -> Option<Arc<dyn SharedCalls>> {
        let made = || Arc::new(Calls::new(self.host().make_cluster_calls()));
        Some(self.calls.get_or_init(made).clone())
    }

    fn watch_secret(
        &mut self,
        name: &str,
        sds_config: Option<&str>,
        updates: SecretUpdates,
    ) -> Result<Option<FirstLook>, SecretError> {
        let (slot, mut why) = (Box::new(SecretSlot(updates)), String::new());
        match self.host().watch_secret(name, sds_config.unwrap_or_default(), slot, &mut why) {
            true => Ok(None),
            false => Err(SecretError::Refused { name: name.to_owned(), why }),
        }
    }

    fn runtime_flags(&self) -> Option<Arc<dyn RuntimeFlags>> {
        Some(Arc::new(Flags(self.host().make_runtime_flags())))
    }
}

/// Where a config's metric updates go. On a thread that serves a stream of the config they are made
/// at once; from anywhere else they wait for the main thread.
struct Sink {
    host: NonNull<ffi::ConfigHost>,
    notifier: Notifier,
    queue: MetricQueue,
}

// SAFETY: `host` is used only through `apply`, whose callers prove that the config lives and that
// this is a thread of Envoy's; `cc/bridge/config_host.h` makes the update callable on all of those.
unsafe impl Send for Sink {}
// SAFETY: as above; the rest is made for any thread.
unsafe impl Sync for Sink {}

impl Sink {
    /// # Safety
    /// `host` must be the config that C++ is loading, further down the stack.
    unsafe fn new(host: NonNull<ffi::ConfigHost>) -> Self {
        // SAFETY: the caller's promise; nothing else uses it before it returns.
        let notifier = unsafe { Pin::new_unchecked(&mut *host.as_ptr()) }.make_notifier();
        Sink { host, notifier: Notifier(notifier), queue: MetricQueue::new() }
    }

    /// # Safety
    /// This must be a thread of Envoy's, and the config must live during the call.
    unsafe fn apply(&self, metric: MetricId, op: MetricOp, value: u64, labels: &[&str]) {
        // SAFETY: the host lives as long as the config: the caller's promise.
        let host = unsafe { self.host.as_ref() };
        host.update_metric(metric.kind.into(), metric.id, op.into(), value, labels);
    }
}

impl MetricSink for Sink {
    fn update(&self, metric: MetricId, op: MetricOp, value: u64, labels: &[&str]) {
        if is_serving(self) {
            // SAFETY: this thread is inside an event of an exchange of this config. Only a `Stream`
            // reports events: it is a worker of Envoy's, and C++ keeps the config for the stream.
            unsafe { self.apply(metric, op, value, labels) }
        } else if self.queue.leave(metric, op, value, labels) {
            self.notifier.notify();
        }
    }

    fn update_all(&self, updates: &mut dyn FnMut(&mut EachUpdate<'_>)) {
        if self.queue.leave_all(updates) {
            self.notifier.notify();
        }
    }
}

/// Wakes a stream or a config.
pub(crate) struct Notifier(pub(crate) UniquePtr<ffi::Notifier>);

// SAFETY: `cc/bridge/notifier.h` makes it callable, and deletable, on any thread.
unsafe impl Send for Notifier {}
// SAFETY: as above.
unsafe impl Sync for Notifier {}

impl Notifier {
    pub(crate) fn notify(&self) {
        self.0.notify();
    }
}

impl From<MetricKind> for ffi::MetricKind {
    fn from(kind: MetricKind) -> Self {
        match kind {
            MetricKind::Counter => ffi::MetricKind::Counter,
            MetricKind::Gauge => ffi::MetricKind::Gauge,
            MetricKind::Histogram => ffi::MetricKind::Histogram,
        }
    }
}

impl From<MetricOp> for ffi::MetricOp {
    fn from(op: MetricOp) -> Self {
        match op {
            MetricOp::Add => ffi::MetricOp::Add,
            MetricOp::Sub => ffi::MetricOp::Sub,
            MetricOp::Set => ffi::MetricOp::Set,
            MetricOp::Record => ffi::MetricOp::Record,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use attache_core::{ConfigError, Filter, Next, Request, Response, Setup};

    mod filters {
        use super::*;

        struct Plain;

        impl Filter for Plain {
            type Config = ();
            type RouteConfig = ();

            fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> {
                Ok(Plain)
            }

            async fn handle(&self, request: Request, next: Next) -> attache_core::Result<Response> {
                next.run(request).await
            }
        }

        pub(super) fn attache_registry() -> Registry {
            Registry::new().with::<Plain>("plain")
        }
    }

    crate::filters! { filters }

    #[test]
    fn the_listed_filters_are_there() {
        assert_eq!(filter_names(), ["plain"]);
    }

    #[test]
    fn a_config_that_is_refused_says_why() {
        let route = |name: &str, config: &str| {
            load_route_config(name, config.as_bytes()).err().unwrap_or_default()
        };
        assert_eq!(route("plain", ""), "");
        assert_eq!(
            route("plian", ""),
            "filter `plian`: per-route config refused: there is no filter of this name; the module \
             has `plain`"
        );
        assert!(route("plain", r#"{"a": 1}"#).contains("per-route config refused"));

        // SAFETY: there is no host, which is checked.
        let loaded = unsafe { load_config("plain", b"", false, std::ptr::null_mut()) };
        assert_eq!(loaded.err().as_deref(), Some("there is no host for the config"));
    }

    #[test]
    fn a_panic_becomes_its_message() {
        assert_eq!(fallible::<()>("test", || panic!("a bug")), Err("a bug".to_owned()));
    }
}
