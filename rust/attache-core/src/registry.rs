//! From the bytes of an Envoy config to a loaded filter, with errors that name the field.

use std::any::{Any, TypeId};
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::clock::PollClock;
use crate::current::{self, Scope, step_of};
use crate::error::{ConfigError, Result};
use crate::exchange::Inner;
use crate::filter::{Completion, ConfigHost, Filter, Outcome, Setup};
use crate::flush::keep_flushing;
use crate::metrics::{Counter, Histogram, MetricId, MetricOp};
pub use crate::route::LoadedRoute;
use crate::runtime::{Tied, enter, guarded};
use crate::runtime_flags::Runtime;
use crate::stats::Stats;
use crate::stream::Stream;
use crate::worker::Worker;
use crate::{Next, Request, Response};

/// The filters of a module, by name. Made by `attache::filters!`.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    entries: Vec<Entry>,
}

type Load = fn(&'static str, Value, Options, Box<dyn ConfigHost>) -> Result<Loaded, ConfigError>;

#[derive(Clone, Copy)]
struct Entry {
    name: &'static str,
    filter: TypeId,
    load: Load,
    load_route: fn(Value) -> Result<LoadedRoute, ConfigError>,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)
    }
}

/// What every filter's config may carry under the key `attache`, beside the filter's own fields.
#[derive(Clone, Copy, Debug, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Options {
    /// Let the exchange go on when the filter fails and nothing of the message was taken.
    pub(crate) fail_open: bool,
    /// A poll that takes longer is counted and logged.
    slow_poll_ms: f64,
    /// The most output, in bytes, that is gathered where the host can emit only once more.
    pub(crate) gather_limit_bytes: usize,
    /// What is counted, and how often Envoy learns of it.
    stats: StatsOptions,
}

/// What is counted, and how often Envoy learns of it.
#[derive(Clone, Copy, Debug, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
struct StatsOptions {
    /// Record how long each poll takes, in `attache.<filter>.poll_time_us`.
    poll_time: bool,
    /// How often Envoy is told what was counted: 10 or more.
    interval_ms: f64,
}

impl Default for StatsOptions {
    fn default() -> Self {
        StatsOptions { poll_time: false, interval_ms: 1000.0 }
    }
}

/// What holds unless a filter's config says otherwise.
#[derive(Clone, Copy, Debug, Default)]
pub struct Defaults {
    /// Let the exchange go on when the filter fails and nothing of the message was taken.
    pub fail_open: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            fail_open: false,
            slow_poll_ms: 10.0,
            gather_limit_bytes: 16 << 20,
            stats: StatsOptions::default(),
        }
    }
}

impl Options {
    fn slow_poll(&self) -> Duration {
        Duration::try_from_secs_f64(self.slow_poll_ms / 1e3).unwrap_or(Duration::MAX)
    }

    fn check(&self) -> Result<(), ConfigError> {
        if self.slow_poll_ms.is_nan() || self.slow_poll_ms < 0.0 {
            return Err(ConfigError::field("attache.slow_poll_ms", "must not be negative"));
        }
        if !(10.0..=1e9).contains(&self.stats.interval_ms) {
            let reason = "must be 10 or more, in milliseconds";
            return Err(ConfigError::field("attache.stats.interval_ms", reason));
        }
        Ok(())
    }
}

/// A loaded filter: what exchanges are made from.
#[derive(Clone)]
pub struct Loaded(pub(crate) Arc<LoadedFilter>);

impl Loaded {
    /// The name under which the filter was configured.
    pub fn name(&self) -> &str {
        self.0.meta.name
    }

    /// An exchange could not be made, for a fault of the runtime: counts that among the filter's panics.
    /// Returns whether the stream may go on without it, since the filter fails open.
    #[cold]
    pub fn lose(&self) -> bool {
        let meta = &self.0.meta;
        meta.panics.inc();
        meta.options.fail_open
    }

    /// Gives out, as changes of metrics without labels, what the runtime has counted and not yet told
    /// the config's [`MetricSink`](crate::MetricSink).
    ///
    /// A host takes this where it lets go of a config, and makes the changes itself while it still
    /// can: otherwise counters lack the last of them, and gauges stay where they were. Envoy's hosts,
    /// where other updates wait for a thread, do so by [`MetricQueue::end`](crate::MetricQueue::end).
    pub fn take_stats(&self, apply: impl FnMut(MetricId, MetricOp, u64)) {
        self.0.meta.stats.take(apply);
    }
}

impl fmt::Debug for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Loaded({})", self.name())
    }
}

pub(crate) type HandleFuture = Pin<Box<dyn Future<Output = Result<Response>>>>;

/// Makes the future of a filter's `handle`, for exchanges of a worker's.
pub(crate) type Start = fn(Rc<Worker>) -> HandleFuture;

/// A filter whose type is forgotten, and what knows the type. Thin to point to, and no search through
/// tables of functions: this is in the way of every exchange. So what each of them needs stands
/// together, as it is written here.
#[repr(C)]
pub(crate) struct LoadedFilter {
    pub(crate) start: Start,
    /// The filter has no `on_complete` of its own, as that which it has by default has found out.
    ignores_the_end: AtomicBool,
    /// There until it is dropped.
    filter: Option<Box<dyn Any + Send + Sync>>,
    pub(crate) meta: Meta,
    pub(crate) start_reply: fn(Rc<Inner>) -> HandleFuture,
    /// Runs `on_complete`. Returns the message of its panic.
    pub(crate) complete: fn(&Rc<Inner>, Outcome) -> Result<(), String>,
}

impl LoadedFilter {
    /// The filter itself, if it is of this type.
    pub(crate) fn filter_of<F: Filter>(&self) -> Option<&F> {
        self.filter.as_ref()?.downcast_ref()
    }

    /// Whether `on_complete` has to be run.
    #[inline]
    pub(crate) fn listens_for_the_end(&self) -> bool {
        !self.ignores_the_end.load(Ordering::Relaxed)
    }

    /// `F` has no `on_complete` of its own. That is nothing to a filter of another type, which has
    /// passed the call on.
    pub(crate) fn end_is_ignored_by<F: Filter>(&self) {
        if self.filter_of::<F>().is_some() {
            self.ignores_the_end.store(true, Ordering::Relaxed);
        }
    }

    fn filter<F: Filter>(&self) -> &F {
        self.filter_of().expect("a filter is there until it is dropped, and of one type")
    }
}

/// What the engine keeps beside the filter itself: first what each exchange needs.
#[repr(C)]
pub(crate) struct Meta {
    pub(crate) stats: Arc<Stats>,
    pub(crate) clock: PollClock,
    pub(crate) name: &'static str,
    pub(crate) options: Options,
    pub(crate) errors: Counter,
    pub(crate) panics: Counter,
    pub(crate) slow_polls: Counter,
    pub(crate) poll_time: Option<Histogram>,
    /// Where the host has them.
    pub(crate) runtime: Option<Runtime>,
    _tasks: Vec<Tied>,
}

impl Drop for LoadedFilter {
    fn drop(&mut self) {
        let filter = self.filter.take();
        if let Err(message) = guarded(|| drop(filter)) {
            let name = &self.meta.name;
            tracing::error!("filter `{name}`: panicked while it was dropped: {message}");
        }
    }
}

// The exchange owns the filter, and a future owns the exchange while it works for it: no second
// reference count, which all workers would share.

/// The future runs `handle` for the exchange that polls it. If that has let go the response that came,
/// there is nothing left to be done: then it rests, to run `handle` for another exchange, in memory
/// that is there already. It ends with whatever else `handle` has returned.
fn start<F: Filter>(worker: Rc<Worker>) -> HandleFuture {
    // Memory first: of a future that has not begun almost nothing is there yet, and `Box::pin` would
    // make it elsewhere and then copy all of it.
    let place = Box::new_uninit();
    let future = Box::write(place, async move {
        loop {
            let exchange = worker.serving();
            let filter = exchange.filter().filter::<F>();
            let returned =
                filter.handle(Request::live(exchange.clone()), Next::new(exchange.clone())).await;
            if let Some(returned) = exchange.rest_after(returned) {
                return returned;
            }
            drop(exchange);
            until_polled_again().await;
        }
    });
    Box::into_pin(future)
}

fn until_polled_again() -> impl Future<Output = ()> {
    let mut again = false;
    poll_fn(
        move |_| if std::mem::replace(&mut again, true) { Poll::Ready(()) } else { Poll::Pending },
    )
}

fn start_reply<F: Filter>(exchange: Rc<Inner>) -> HandleFuture {
    Box::pin(async move {
        let filter = exchange.filter().filter::<F>();
        filter.handle_reply(Response::upstream(exchange.clone())).await
    })
}

fn complete<F: Filter>(exchange: &Rc<Inner>, outcome: Outcome) -> Result<(), String> {
    current::within(exchange, || {
        let done = Completion { outcome, stream: Stream::new(Some(exchange.clone())) };
        guarded(|| exchange.filter().filter::<F>().on_complete(&done))
    })
}

impl Registry {
    /// No filters.
    pub fn new() -> Self {
        Registry::default()
    }

    /// Adds a filter type under a name.
    ///
    /// # Panics
    /// When the name is taken.
    #[must_use]
    pub fn with<F: Filter>(mut self, name: &'static str) -> Self {
        let filter = TypeId::of::<F>();
        self.add(Entry { name, filter, load: load::<F>, load_route: load_route::<F> });
        self
    }

    /// Adds all filters of another list. A filter that both lists have under the same name is there
    /// once.
    ///
    /// # Panics
    /// When the name is taken by another filter.
    #[must_use]
    pub fn merge(mut self, other: Registry) -> Self {
        for entry in other.entries {
            if self.entries.iter().all(|e| (e.name, e.filter) != (entry.name, entry.filter)) {
                self.add(entry);
            }
        }
        self
    }

    fn add(&mut self, entry: Entry) {
        let name = entry.name;
        assert!(
            self.entries.iter().all(|e| e.name != name),
            "two filters are called `{name}`; give one of them another name in `filters!`"
        );
        self.entries.push(entry);
    }

    /// The names, in the order of `filters!`.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.entries.iter().map(|e| e.name)
    }

    fn find(&self, name: &str) -> Result<&Entry, ConfigError> {
        self.entries.iter().find(|e| e.name == name).ok_or_else(|| {
            let known: Vec<_> = self.names().map(|n| format!("`{n}`")).collect();
            ConfigError::new(format!(
                "there is no filter of this name; the module has {}",
                if known.is_empty() { "none".to_owned() } else { known.join(", ") }
            ))
        })
    }

    /// Loads a filter from its config: JSON, or nothing at all.
    ///
    /// # Errors
    /// A text for the log that names the filter, the field and the reason.
    pub fn load(
        &self,
        name: &str,
        config: &[u8],
        host: Box<dyn ConfigHost>,
    ) -> Result<Loaded, String> {
        self.load_with(name, config, Defaults::default(), host)
    }

    /// As [`load`](Registry::load), with defaults of the host's for what the config does not say
    /// under `attache`.
    ///
    /// # Errors
    /// As [`load`](Registry::load).
    pub fn load_with(
        &self,
        name: &str,
        config: &[u8],
        defaults: Defaults,
        host: Box<dyn ConfigHost>,
    ) -> Result<Loaded, String> {
        enter();
        let load = || {
            let entry = self.find(name)?;
            let (config, options) = parse(config, defaults)?;
            (entry.load)(entry.name, config, options, host)
        };
        match guarded(load) {
            Ok(Ok(loaded)) => Ok(loaded),
            Ok(Err(error)) => Err(format!("filter `{name}`: config refused: {error}")),
            Err(panic) => Err(format!("filter `{name}`: `Filter::new` panicked: {panic}")),
        }
    }

    /// Parses a per-route config.
    ///
    /// # Errors
    /// As [`load`](Registry::load).
    pub fn load_route(&self, name: &str, config: &[u8]) -> Result<LoadedRoute, String> {
        let load = || {
            let entry = self.find(name)?;
            (entry.load_route)(parse_json(config)?)
        };
        match guarded(load) {
            Ok(Ok(loaded)) => Ok(loaded),
            Ok(Err(error)) => Err(format!("filter `{name}`: per-route config refused: {error}")),
            Err(panic) => {
                Err(format!("filter `{name}`: parsing the route config panicked: {panic}"))
            }
        }
    }
}

fn load<F: Filter>(
    name: &'static str,
    config: Value,
    options: Options,
    host: Box<dyn ConfigHost>,
) -> Result<Loaded, ConfigError> {
    let config: F::Config = typed(config)?;
    let mut setup = Setup::new(name, host)?;
    let counter = |setup: &mut Setup, what| setup.counter(&format!("attache.{name}.{what}"));
    let errors = counter(&mut setup, "errors")?;
    let slow_polls = counter(&mut setup, "slow_polls")?;
    let poll_time = match options.stats.poll_time {
        true => Some(setup.histogram(&format!("attache.{name}.poll_time_us"))?),
        false => None,
    };
    let stats = Arc::new(Stats::new(&mut setup)?);
    let filter = step_of(Some(Scope::of(name)), || F::new(config, &mut setup))?;
    if setup.host.wants_stats() {
        let interval = Duration::from_secs_f64(options.stats.interval_ms / 1e3);
        keep_flushing(&stats, interval)
            .map_err(|error| ConfigError::new(format!("no thread for its stats: {error}")))?;
    }
    let runtime = setup.runtime().ok();
    let meta = Meta {
        name,
        options,
        clock: PollClock::new(options.slow_poll(), poll_time.is_some()),
        errors,
        panics: setup.panics,
        slow_polls,
        poll_time,
        stats,
        runtime,
        _tasks: setup.tasks,
    };
    Ok(Loaded(Arc::new(LoadedFilter {
        meta,
        filter: Some(Box::new(filter)),
        start: start::<F>,
        ignores_the_end: AtomicBool::new(false),
        start_reply: start_reply::<F>,
        complete: complete::<F>,
    })))
}

fn load_route<F: Filter>(config: Value) -> Result<LoadedRoute, ConfigError> {
    Ok(LoadedRoute::new(typed::<F::RouteConfig>(config)?))
}

fn parse_json(config: &[u8]) -> Result<Value, ConfigError> {
    if config.iter().all(u8::is_ascii_whitespace) {
        return Ok(Value::Object(Default::default()));
    }
    serde_json::from_slice(config).map_err(|error| {
        ConfigError::new(format!(
            "it is not JSON ({error}); give `filter_config` as a google.protobuf.Struct, or as a \
             StringValue with JSON text"
        ))
    })
}

/// Splits the reserved key off.
pub(crate) fn parse(config: &[u8], defaults: Defaults) -> Result<(Value, Options), ConfigError> {
    let mut config = parse_json(config)?;
    let options = config.as_object_mut().and_then(|fields| fields.remove("attache"));
    let mut options = options.unwrap_or_else(|| Value::Object(Default::default()));
    if let Some(fields) = options.as_object_mut() {
        fields.entry("fail_open").or_insert(Value::Bool(defaults.fail_open));
    }
    let options: Options = typed_at("attache.", options)?;
    options.check()?;
    Ok((config, options))
}

pub(crate) fn typed<T: DeserializeOwned>(config: Value) -> Result<T, ConfigError> {
    typed_at("", config)
}

fn typed_at<T: DeserializeOwned>(prefix: &str, config: Value) -> Result<T, ConfigError> {
    let empty = config.as_object().is_some_and(serde_json::Map::is_empty);
    let mut unknown = None;
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(&config, &mut track);
    let parsed = serde_ignored::deserialize(tracked, |path| {
        unknown.get_or_insert_with(|| written(&path));
    });
    let path = track.path().to_string();
    match (parsed, unknown) {
        (Ok(value), None) => Ok(value),
        (Ok(_), Some(path)) => Err(ConfigError::field(
            format!("{prefix}{path}"),
            "there is no such field; correct its name or remove it",
        )),
        // `()` and unit structs: no config at all.
        (Err(error), _) if empty => {
            T::deserialize(Value::Null).map_err(|_| describe(prefix, path, &error))
        }
        (Err(error), _) => Err(describe(prefix, path, &error)),
    }
}

/// A path as the errors of `serde_path_to_error` write it: `keys[0].name`.
fn written(path: &serde_ignored::Path<'_>) -> String {
    use serde_ignored::Path;
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => format!("{}[{index}]", written(parent)),
        Path::Map { parent, key } => match written(parent) {
            parent if parent.is_empty() => key.clone(),
            parent => format!("{parent}.{key}"),
        },
        Path::Some { parent }
        | Path::NewtypeStruct { parent }
        | Path::NewtypeVariant { parent } => written(parent),
    }
}

fn describe(prefix: &str, path: String, error: &serde_json::Error) -> ConfigError {
    if path == "." || path.is_empty() {
        let prefix = prefix.trim_end_matches('.');
        if prefix.is_empty() { ConfigError::new(error) } else { ConfigError::field(prefix, error) }
    } else {
        ConfigError::field(format!("{prefix}{path}"), error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[allow(dead_code)]
    struct Config {
        keys: Vec<Key>,
        groups: Option<Vec<Vec<Key>>>,
    }
    #[derive(Debug, Deserialize)]
    #[allow(dead_code)]
    struct Key {
        name: String,
    }

    fn error(json: &str) -> String {
        parse(json.as_bytes(), Defaults::default())
            .and_then(|(config, _)| typed::<Config>(config))
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn errors_name_the_field() {
        assert_eq!(
            error(r#"{"keys": [{"name": 3}]}"#),
            "field `keys[0].name`: invalid type: integer `3`, expected a string"
        );
        assert_eq!(error("{}"), "missing field `keys`");
        assert_eq!(
            error(r#"{"keys": [{"name": "a", "nmae": 1}]}"#),
            "field `keys[0].nmae`: there is no such field; correct its name or remove it"
        );
        assert_eq!(
            error(r#"{"keys": [], "extra": [{"a": 1}]}"#).split(':').next(),
            Some("field `extra`")
        );
        assert_eq!(
            error(r#"{"keys": [], "groups": [[], [{"name": "a", "b": 1}]]}"#).split(':').next(),
            Some("field `groups[1][0].b`")
        );
        assert!(error("{").contains("not JSON"));
        assert_eq!(
            error(r#"{"keys": [], "attache": {"fail_opne": true}}"#).split(':').next(),
            Some("field `attache.fail_opne`")
        );
    }

    #[test]
    fn no_config_is_fine_for_a_filter_that_takes_none() {
        let config = |json: &[u8]| parse(json, Defaults::default()).unwrap().0;
        assert!(typed::<()>(config(b"")).is_ok());
        assert!(typed::<()>(config(b"{}")).is_ok());
        assert!(typed::<()>(config(br#"{"a": 1}"#)).is_err());
    }

    #[test]
    fn the_reserved_key_is_not_the_filter_s() {
        let json = br#"{"attache": {"fail_open": true}}"#;
        let (config, options) = parse(json, Defaults::default()).unwrap();
        assert!(options.fail_open);
        assert_eq!(config, serde_json::json!({}));
    }

    #[test]
    fn the_config_goes_before_the_host_s_defaults() {
        let fails_open = |json: &str| {
            let defaults = Defaults { fail_open: true };
            parse(json.as_bytes(), defaults).unwrap().1.fail_open
        };
        assert!(fails_open(""));
        assert!(fails_open(r#"{"attache": {"slow_poll_ms": 1}}"#));
        assert!(!fails_open(r#"{"attache": {"fail_open": false}}"#));
    }

    struct Nothing<const N: u8>;

    impl<const N: u8> Filter for Nothing<N> {
        type Config = ();
        type RouteConfig = ();

        fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> {
            Ok(Nothing)
        }

        async fn handle(&self, request: Request, next: Next) -> Result<Response> {
            next.run(request).await
        }
    }

    #[test]
    fn lists_are_merged() {
        let first = Registry::new().with::<Nothing<1>>("one");
        let second = Registry::new().with::<Nothing<1>>("one").with::<Nothing<1>>("two");
        let merged = first.merge(second);
        assert_eq!(merged.names().collect::<Vec<_>>(), ["one", "two"]);
    }

    #[test]
    #[should_panic = "two filters are called `one`"]
    fn a_name_is_one_filter_s() {
        let _ = Registry::new()
            .with::<Nothing<1>>("one")
            .merge(Registry::new().with::<Nothing<2>>("one"));
    }
}
