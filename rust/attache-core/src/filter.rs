//! [`Filter`]: what a user writes, and [`Setup`]: what it is made with.

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::task::Poll;

use serde::de::DeserializeOwned;

use crate::cluster::{SharedCalls, SharedCluster};
use crate::error::{ConfigError, Result};
use crate::metrics::{Counter, Gauge, Histogram, MetricId, MetricKind, MetricSink};
use crate::per_worker::PerWorker;
use crate::runtime::{Tied, guarded};
use crate::runtime_flags::{Runtime, RuntimeFlags, RuntimeUnsupported};
use crate::secret::{self, FirstLook, Secret, SecretError, SecretSource, SecretUpdates};
use crate::stream::Stream;
use crate::supervise::Supervised;
use crate::{Next, Request, Response};

/// An HTTP filter: one async function that sees the whole exchange.
///
/// ```
/// use attache_core::{ConfigError, Filter, Next, Request, Response, Result, Setup};
///
/// struct Hello;
///
/// impl Filter for Hello {
///     type Config = ();
///     type RouteConfig = ();
///     fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> {
///         Ok(Hello)
///     }
///     async fn handle(&self, req: Request, next: Next) -> Result<Response> {
///         let mut resp = next.run(req).await?;
///         resp.headers_mut().set("x-hello", "world");
///         Ok(resp)
///     }
/// }
/// ```
///
/// One value serves all exchanges of a filter config, on all workers: shared state is a field.
/// State of one exchange is a local variable of [`handle`](Filter::handle).
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a filter",
    label = "not a filter",
    note = "implement `attache::Filter` for it: one async function that sees the whole exchange"
)]
pub trait Filter: Sized + Send + Sync + 'static {
    /// The filter's config, parsed from the config's JSON when Envoy loads it. `()` for none.
    /// Unknown fields are refused.
    type Config: DeserializeOwned;
    /// The per-route config. `()` for none. See [`merge_route`](Filter::merge_route).
    type RouteConfig: DeserializeOwned + Send + Sync + 'static;

    /// Makes the filter. Runs on Envoy's main thread, inside the Tokio runtime, once per config; it
    /// must not block for long.
    ///
    /// # Errors
    /// Envoy refuses the config, logs the error and keeps what it had.
    fn new(config: Self::Config, setup: &mut Setup) -> Result<Self, ConfigError>;

    /// Makes one per-route config of those of several levels, for
    /// [`Request::route_config`](crate::Request::route_config). By default (`None`), the most specific
    /// holds, as it is.
    ///
    /// `levels` are those that have one, the most general first: route table, virtual host, route,
    /// weighted cluster; never none. A host whose
    /// [`Capabilities::route_levels`](crate::host::Capabilities::route_levels) is not set knows the
    /// most specific only. The filter's own config, which is more general than all of them, is what
    /// [`new`](Filter::new) has kept of it: that is merged in every host.
    ///
    /// ```
    /// use attache_core::{ConfigError, Filter, Next, Request, Response, Result, Setup};
    /// use serde::Deserialize;
    ///
    /// #[derive(Clone, Deserialize)]
    /// struct Limits {
    ///     per_second: Option<u32>,
    ///     message: Option<String>,
    /// }
    ///
    /// struct Limiter {
    ///     limits: Limits,
    /// }
    ///
    /// impl Filter for Limiter {
    ///     type Config = Limits;
    ///     type RouteConfig = Limits;
    ///     fn new(limits: Limits, _: &mut Setup) -> Result<Self, ConfigError> {
    ///         Ok(Limiter { limits })
    ///     }
    ///     fn merge_route(&self, levels: &[&Limits]) -> Option<Limits> {
    ///         Some(levels.iter().fold(self.limits.clone(), |general, level| Limits {
    ///             per_second: level.per_second.or(general.per_second),
    ///             message: level.message.clone().or(general.message),
    ///         }))
    ///     }
    ///     async fn handle(&self, req: Request, next: Next) -> Result<Response> {
    ///         let route = req.route_config::<Self>();
    ///         let limits = route.as_deref().unwrap_or(&self.limits);
    ///         let limit = limits.per_second.unwrap_or(100);
    ///         let mut resp = next.run(req).await?;
    ///         resp.headers_mut().set("x-limit", limit.to_string());
    ///         Ok(resp)
    ///     }
    /// }
    /// ```
    ///
    /// It runs when an exchange first asks on a route, once for each combination of levels: the result
    /// is kept until the filter or one of the levels goes. (Once more on each worker that asks while
    /// it runs elsewhere.) A panic is one of the exchange that asked, and nothing is kept.
    fn merge_route(&self, levels: &[&Self::RouteConfig]) -> Option<Self::RouteConfig> {
        let _ = levels;
        None
    }

    /// Handles one exchange.
    ///
    /// It runs on the worker thread that owns the stream, and only there: locals need not be
    /// `Send`, and the first poll happens at once, when the request headers arrive. Awaiting holds
    /// the exchange, not the worker; blocking blocks the worker, and is counted and logged. With a
    /// `block_on` (anybody's; Tokio's does not refuse it here) it may be for ever: what the exchange
    /// waits for, a body, a response, a call to a cluster, is brought by that same worker. Use
    /// [`spawn_blocking`](crate::spawn_blocking) for what blocks.
    ///
    /// When the client goes or the stream is reset, the future is dropped where it waits.
    ///
    /// # Errors
    /// Before response headers have gone to the client, it gets the error's status; after, the
    /// stream is reset. The message goes to the log only. A panic is treated as an error with
    /// status 500.
    fn handle(&self, req: Request, next: Next) -> impl Future<Output = Result<Response>>;

    /// Handles a reply that was made elsewhere, to a request that [`handle`](Filter::handle) did not
    /// let go on. By default, it goes on unchanged.
    ///
    /// `handle` sees the whole exchange, from the request to the response. Not every response comes
    /// out of its `next.run(req).await`:
    ///
    /// | who answered | what runs |
    /// |---|---|
    /// | the upstream, a later filter, or Envoy itself, after `next.run` | `next.run` returns it to `handle` |
    /// | an earlier filter, before this one saw the request | only this, with no `handle` before it, and no [`on_complete`](Filter::on_complete) after it |
    /// | another filter, or Envoy (a timeout, a limit), while `handle` held the request | `handle` is dropped where it waits; then this |
    /// | this filter, from `handle` | nothing: it is as you made it |
    /// | anybody, while this filter holds a response, or after its headers have gone | nothing: Envoy sends it past all filters, or resets the stream |
    ///
    /// The reply can be changed as any response can: headers, status, body; awaiting holds it. Its
    /// [`stream`](Response::stream) tells who made it:
    /// [`response_code_details`](crate::Info::response_code_details), and what earlier filters have
    /// left. Returning another response replaces it; an error answers the client as one of `handle`
    /// does.
    ///
    /// It is no exchange, and counts in the filter's stats as `handled_replies`; errors and panics count
    /// as ever. Where `handle` was dropped for it, `on_complete` tells
    /// [`Cancelled`](Outcome::Cancelled), unless the reply was replaced
    /// ([`Replied`](Outcome::Replied)) or failed. Its route's config is
    /// [`Stream::route_config`].
    ///
    /// ```
    /// use attache_core::{ConfigError, Filter, Next, Request, Response, Result, Setup};
    ///
    /// struct Branded;
    ///
    /// impl Filter for Branded {
    /// #   type Config = ();
    /// #   type RouteConfig = ();
    /// #   fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> { Ok(Branded) }
    ///     async fn handle(&self, req: Request, next: Next) -> Result<Response> {
    ///         let resp = next.run(req).await?;
    ///         self.handle_reply(resp).await
    ///     }
    ///     async fn handle_reply(&self, mut reply: Response) -> Result<Response> {
    ///         if reply.status().is_server_error() {
    ///             reply.headers_mut().set("content-type", "text/plain");
    ///             reply.set_body("Something went wrong on our side.\n");
    ///         }
    ///         Ok(reply)
    ///     }
    /// }
    /// ```
    ///
    /// # Errors
    /// As those of [`handle`](Filter::handle).
    fn handle_reply(&self, reply: Response) -> impl Future<Output = Result<Response>> {
        std::future::ready(Ok(reply))
    }

    /// Runs once at the end of every exchange that `handle` was started for, before Envoy writes the
    /// access log, however the exchange ended.
    fn on_complete(&self, done: &Completion) {
        done.is_ignored_by::<Self>();
    }
}

/// How an exchange ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The upstream's response went on, perhaps changed.
    Responded,
    /// The filter answered by itself.
    Replied,
    /// The filter returned an error.
    Failed,
    /// The filter, or a task that it waited for, panicked.
    Panicked,
    /// The client left, the stream was reset, or another filter answered, before `handle` was done.
    Cancelled,
    /// The filter reset the stream ([`Error::reset`](crate::Error::reset)).
    Reset,
    /// The filter started the stream again ([`Stream::recreate`]); the new one is another exchange.
    Recreated,
}

/// What [`Filter::on_complete`] is told.
#[derive(Clone, Debug)]
pub struct Completion {
    pub(crate) outcome: Outcome,
    pub(crate) stream: Stream,
}

impl Completion {
    /// How the exchange ended, as far as this filter goes.
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// `F` does nothing with it, and need not be told of the next.
    pub(crate) fn is_ignored_by<F: Filter>(&self) {
        if let Ok(exchange) = self.stream.exchange() {
            exchange.filter().end_is_ignored_by::<F>();
        }
    }

    /// What is around the messages. The final response code, flags and byte counts are known now,
    /// and metadata and filter state can still be set for the access log.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }
}

/// What a host offers while a config is loaded.
pub trait ConfigHost {
    /// Defines a metric.
    ///
    /// # Errors
    /// A reason for the log.
    fn define(&mut self, kind: MetricKind, name: &str, labels: &[&str])
    -> Result<MetricId, String>;
    /// Where updates go.
    fn sink(&self) -> Arc<dyn MetricSink>;
    /// What makes the calls of a [`SharedCluster`], where the host can.
    fn calls(&self) -> Option<Arc<dyn SharedCalls>> {
        None
    }

    /// Tells `updates` of the values of a generic secret that Envoy has, until the config goes: a static
    /// one if there is no `sds_config` (a `ConfigSource` as JSON). What is known by now is told before
    /// this returns; a static one always is. What is returned looks for the first value, in a host that
    /// may learn of it later than Envoy's workers.
    ///
    /// # Errors
    /// There is no such secret, or this host has no way to it.
    fn watch_secret(
        &mut self,
        name: &str,
        sds_config: Option<&str>,
        updates: SecretUpdates,
    ) -> Result<Option<FirstLook>, SecretError> {
        let _ = (name, sds_config, updates);
        Err(SecretError::UNSUPPORTED)
    }

    /// Envoy's runtime flags, where the host has them.
    fn runtime_flags(&self) -> Option<Arc<dyn RuntimeFlags>> {
        None
    }

    /// Whether the runtime is to hand its own counts on from time to time. A host for tests takes
    /// them ([`Loaded::take_stats`](crate::registry::Loaded::take_stats)) when it looks at them.
    fn wants_stats(&self) -> bool {
        true
    }
}

/// What a filter is made with: its name, its metrics, its background tasks.
pub struct Setup {
    pub(crate) name: &'static str,
    pub(crate) host: Box<dyn ConfigHost>,
    pub(crate) panics: Counter,
    restarts: Option<Counter>,
    pub(crate) tasks: Vec<Tied>,
}

fn define(
    host: &mut dyn ConfigHost,
    kind: MetricKind,
    name: &str,
    labels: &[&str],
) -> Result<MetricId, ConfigError> {
    host.define(kind, name, labels)
        .map_err(|reason| ConfigError::new(format!("metric `{name}` cannot be defined: {reason}")))
}

impl Setup {
    /// The name under which the filter was configured.
    pub fn filter_name(&self) -> &str {
        self.name
    }

    pub(crate) fn new(
        name: &'static str,
        mut host: Box<dyn ConfigHost>,
    ) -> Result<Self, ConfigError> {
        let panics = format!("attache.{name}.panics");
        let panics =
            Counter::new(host.sink(), define(&mut *host, MetricKind::Counter, &panics, &[])?, 0);
        Ok(Setup { name, host, panics, restarts: None, tasks: Vec::new() })
    }

    pub(crate) fn define(
        &mut self,
        kind: MetricKind,
        name: &str,
        labels: &[&str],
    ) -> Result<MetricId, ConfigError> {
        define(&mut *self.host, kind, name, labels)
    }

    /// Defines a counter.
    ///
    /// # Errors
    /// Envoy refuses the definition; the reason is in the error. So for all metrics.
    pub fn counter(&mut self, name: &str) -> Result<Counter, ConfigError> {
        self.counter_with(name, &[])
    }

    /// Defines a counter with labels.
    ///
    /// # Errors
    /// As [`counter`](Setup::counter).
    pub fn counter_with(&mut self, name: &str, labels: &[&str]) -> Result<Counter, ConfigError> {
        let id = self.define(MetricKind::Counter, name, labels)?;
        Ok(Counter::new(self.host.sink(), id, labels.len()))
    }

    /// Defines a gauge.
    ///
    /// # Errors
    /// As [`counter`](Setup::counter).
    pub fn gauge(&mut self, name: &str) -> Result<Gauge, ConfigError> {
        self.gauge_with(name, &[])
    }

    /// Defines a gauge with labels.
    ///
    /// # Errors
    /// As [`counter`](Setup::counter).
    pub fn gauge_with(&mut self, name: &str, labels: &[&str]) -> Result<Gauge, ConfigError> {
        let id = self.define(MetricKind::Gauge, name, labels)?;
        Ok(Gauge::new(self.host.sink(), id, labels.len()))
    }

    /// Defines a histogram. Its values are plain numbers; say the unit in the name.
    ///
    /// # Errors
    /// As [`counter`](Setup::counter).
    pub fn histogram(&mut self, name: &str) -> Result<Histogram, ConfigError> {
        self.histogram_with(name, &[])
    }

    /// Defines a histogram with labels.
    ///
    /// # Errors
    /// As [`counter`](Setup::counter).
    pub fn histogram_with(
        &mut self,
        name: &str,
        labels: &[&str],
    ) -> Result<Histogram, ConfigError> {
        let id = self.define(MetricKind::Histogram, name, labels)?;
        Ok(Histogram::new(self.host.sink(), id, labels.len()))
    }

    /// A cluster of Envoy's, by its name, to call from any thread for as long as the config lives.
    ///
    /// That there is no such cluster shows when it is called; while the config is made, Envoy may not
    /// know its clusters yet.
    pub fn cluster(&self, name: &str) -> SharedCluster {
        SharedCluster::new(self.host.calls(), name)
    }

    /// A secret of a filter's config: reads it now, and keeps it up to date until the config goes.
    ///
    /// A secret of Envoy's own changes as soon as Envoy has a new value; in stock Envoy, within a second.
    /// Envoy may not have it yet while the config is made ([`Secret::try_get`]).
    ///
    /// Files are looked at every second; one that another is moved over (as rotation usually does),
    /// a link that leads elsewhere and one that is written in place are all noticed. If there is
    /// nothing to be read any more, or nothing of use, the last value stays, and the reason is
    /// logged.
    ///
    /// # Errors
    /// There is no such secret, or none that could be used; this becomes a [`ConfigError`] with `?`.
    pub fn secret(&mut self, source: &SecretSource) -> Result<Secret, SecretError> {
        let in_envoy = match source {
            SecretSource::Sds(name) => Some((name, None)),
            SecretSource::SdsSecretConfig { name, sds_config } => Some((name, Some(sds_config))),
            _ => None,
        };
        if let Some((name, sds_config)) = in_envoy {
            return secret::watch_in_envoy(self.name, name, sds_config, &mut *self.host);
        }
        let (secret, watching) = secret::open(self.name, source)?;
        self.tasks.extend(watching);
        Ok(secret)
    }

    /// Envoy's runtime flags, to read on any thread.
    ///
    /// # Errors
    /// This host has no way to them: stock Envoy before 1.40.
    pub fn runtime(&self) -> std::result::Result<Runtime, RuntimeUnsupported> {
        self.host.runtime_flags().map(Runtime::new).ok_or(RuntimeUnsupported::FLAGS)
    }

    /// State for each worker: `make` runs on a worker when that first asks for it. See
    /// [`PerWorker`]. For state that all workers share, a field of the filter is enough.
    pub fn per_worker<T: 'static>(
        &mut self,
        make: impl Fn() -> T + Send + Sync + 'static,
    ) -> PerWorker<T> {
        PerWorker::new(make)
    }

    /// Runs a task beside the filter until the config goes. If the config is refused after all, the
    /// task is cancelled at once. A panic ends the task; it is counted and logged. For a task that
    /// is to go on after that, see [`spawn_supervised`](Setup::spawn_supervised). In Envoy's log, the
    /// task's `tracing` events have the filter's name in front.
    pub fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        let panics = self.panics.clone();
        let mut task = Box::pin(task);
        let guarded = poll_fn(move |cx| {
            guarded(|| task.as_mut().poll(cx)).unwrap_or_else(|message| {
                panics.inc();
                tracing::error!("a background task panicked: {message}");
                Poll::Ready(())
            })
        });
        self.tasks.push(Tied::spawn_for(self.name, guarded));
    }

    /// Runs a task beside the filter until it returns `Ok` or the config goes, and starts it again
    /// when it fails: `start` makes a new one.
    ///
    /// A failure is an error or a panic, of the task or of `start` itself. The next start comes
    /// after 100 ms; the delay doubles with each failure in a row, up to 30 s, and a task that has
    /// run for 30 s counts as well again. Every new start is logged, with `name` and the reason, and
    /// counted in `attache.<filter>.task_restarts`; panics also in `attache.<filter>.panics`.
    ///
    /// ```
    /// use std::sync::{Arc, RwLock};
    /// use std::time::Duration;
    /// use attache_core::{ConfigError, Result, Setup};
    ///
    /// # async fn fetch_keys() -> Result<Vec<String>> { Ok(Vec::new()) }
    /// fn keys(setup: &mut Setup) -> Result<Arc<RwLock<Vec<String>>>, ConfigError> {
    ///     let keys = Arc::new(RwLock::new(Vec::new()));
    ///     let ours = keys.clone();
    ///     setup.spawn_supervised("refresh keys", move || {
    ///         let keys = ours.clone();
    ///         async move {
    ///             loop {
    ///                 // An outage: logged, counted, tried again.
    ///                 let fresh = fetch_keys().await?;
    ///                 *keys.write().unwrap() = fresh;
    ///                 tokio::time::sleep(Duration::from_secs(300)).await;
    ///             }
    ///         }
    ///     })?;
    ///     Ok(keys)
    /// }
    /// ```
    ///
    /// # Errors
    /// Envoy refuses to define the counter.
    pub fn spawn_supervised<F, Fut>(&mut self, name: &str, start: F) -> Result<(), ConfigError>
    where
        F: FnMut() -> Fut + Send + 'static,
        Fut: Future<Output = Result<()>> + Send + 'static,
    {
        let restarts = match &self.restarts {
            Some(restarts) => restarts.clone(),
            None => self.counter(&format!("attache.{}.task_restarts", self.name))?,
        };
        self.restarts = Some(restarts.clone());
        let supervised =
            Supervised { task: name.to_owned(), panics: self.panics.clone(), restarts };
        self.tasks.push(Tied::spawn_for(self.name, supervised.run(start)));
        Ok(())
    }
}

impl std::fmt::Debug for Setup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Setup").field("filter", &self.name).finish_non_exhaustive()
    }
}
