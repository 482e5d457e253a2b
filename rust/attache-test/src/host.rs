//! [`TestHost`]: a loaded filter, a clock, and exchanges on demand.

use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use attache_core::facts::Fact;
use attache_core::registry::{Loaded, Registry};
use attache_core::{Attribute, Filter, MetricKind, MetricSink};
use tokio::runtime::{Builder, Runtime};

use crate::cluster::{ClusterAnswer, Clusters, TestCalls};
use crate::exchange::{OneShot, TestExchange};
use crate::in_envoy::InEnvoy;
use crate::known::{Known, Surroundings};
use crate::message::TestRequest;
use crate::metrics::{Metrics, TestConfig};
use crate::model::{Kind, Level, Options};

/// The name that a filter gets from [`TestHost::new`].
const NAME: &str = "test";

/// A filter with its config, ready for exchanges, on one thread and with a clock of its own.
///
/// Time stands still until a test [advances](TestHost::advance) it, or until a whole exchange is
/// [run](OneShot::run): then it jumps to wherever the filter waits for.
///
/// Tasks that the filter spawns run on the test's own thread, between the steps of the exchange.
/// `spawn_blocking` has one thread, so closures of two of them must not wait for each other.
#[derive(Clone)]
pub struct TestHost(pub(crate) Rc<Shared>);

pub(crate) struct Shared {
    pub(crate) loaded: Loaded,
    registry: Registry,
    name: String,
    metrics: Metrics,
    envoy: InEnvoy,
    pub(crate) options: Options,
    pub(crate) runtime: Rc<Runtime>,
}

impl fmt::Debug for TestHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TestHost({})", self.0.name)
    }
}

fn runtime() -> Result<Runtime, String> {
    Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        // In order: whatever was spawned before has run when a later one has.
        .max_blocking_threads(1)
        .build()
        .map_err(|error| format!("no runtime for the test: {error}"))
}

impl TestHost {
    /// A filter with a config, as JSON. An empty text is no config.
    ///
    /// # Panics
    /// When the config is refused, with the reason that Envoy would log.
    pub fn new<F: Filter>(config: &str) -> Self {
        TestHost::try_new::<F>(config).unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`new`](TestHost::new), for tests of configs that are refused.
    ///
    /// # Errors
    /// What Envoy would log.
    pub fn try_new<F: Filter>(config: &str) -> Result<Self, String> {
        TestHost::load(Registry::new().with::<F>(NAME), NAME, config)
    }

    /// A filter of a module's registry, by its name.
    ///
    /// # Panics
    /// As [`new`](TestHost::new); also if there is no filter of that name.
    pub fn from_registry(registry: Registry, name: &str, config: &str) -> Self {
        TestHost::load(registry, name, config).unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`from_registry`](TestHost::from_registry).
    ///
    /// # Errors
    /// What Envoy would log.
    pub fn load(registry: Registry, name: &str, config: &str) -> Result<Self, String> {
        let runtime = runtime()?;
        let metrics = Metrics::default();
        let entered = runtime.enter();
        let clusters = Clusters::default();
        let calls = Arc::new(TestCalls::new(clusters.clone()));
        let envoy = InEnvoy::default();
        let host = Box::new(TestConfig { metrics: metrics.clone(), calls, envoy: envoy.clone() });
        let loaded = registry.load(name, config.as_bytes(), host)?;
        drop(entered);
        Ok(TestHost(Rc::new(Shared {
            loaded,
            registry,
            name: name.to_owned(),
            metrics,
            envoy,
            options: Options { clusters, ..Options::default() },
            runtime: Rc::new(runtime),
        })))
    }

    fn with_options(&self, change: impl FnOnce(&mut Options)) -> Self {
        let shared = &self.0;
        let mut options = shared.options.clone();
        change(&mut options);
        TestHost(Rc::new(Shared {
            loaded: shared.loaded.clone(),
            registry: shared.registry.clone(),
            name: shared.name.clone(),
            metrics: shared.metrics.clone(),
            envoy: shared.envoy.clone(),
            options,
            runtime: shared.runtime.clone(),
        }))
    }

    /// The same filter, on a route with this per-route config.
    ///
    /// # Panics
    /// When the config is refused.
    #[must_use]
    pub fn on_route(&self, config: &str) -> Self {
        self.on_level(Level::Route, config)
    }

    /// As [`on_route`](TestHost::on_route).
    ///
    /// # Errors
    /// What Envoy would log.
    pub fn try_on_route(&self, config: &str) -> Result<Self, String> {
        self.try_on_level(Level::Route, config)
    }

    /// The same filter, on a route with this per-route config at this level, beside those of other
    /// levels. The most specific alone is known in stock Envoy; all of them
    /// [compiled in](TestHost::on).
    ///
    /// ```
    /// # use attache_core::{ConfigError, Filter, Next, Request, Response, Result, Setup};
    /// # use attache_test::{Level, TestHost, TestRequest, model::Kind};
    /// # struct Names;
    /// # #[derive(serde::Deserialize)] struct Name { name: String }
    /// # impl Filter for Names { type Config = (); type RouteConfig = Name;
    /// # fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> { Ok(Names) }
    /// # fn merge_route(&self, levels: &[&Name]) -> Option<Name> {
    /// #     let names: Vec<_> = levels.iter().map(|level| &*level.name).collect();
    /// #     Some(Name { name: names.join(" ") })
    /// # }
    /// # async fn handle(&self, req: Request, _: Next) -> Result<Response> {
    /// #     Ok(Response::text(http::StatusCode::OK, req.route_config::<Self>().unwrap().name.clone()))
    /// # } }
    /// let host = TestHost::new::<Names>("")
    ///     .on_level(Level::VirtualHost, r#"{"name": "host"}"#)
    ///     .on_level(Level::Route, r#"{"name": "route"}"#);
    /// let names = |host: &TestHost| host.request(TestRequest::get("/")).run().text();
    /// assert_eq!(names(&host), "route");
    /// assert_eq!(names(&host.on(Kind::CompiledIn)), "host route");
    /// ```
    ///
    /// # Panics
    /// When the config is refused.
    #[must_use]
    pub fn on_level(&self, level: Level, config: &str) -> Self {
        self.try_on_level(level, config).unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`on_level`](TestHost::on_level).
    ///
    /// # Errors
    /// What Envoy would log.
    pub fn try_on_level(&self, level: Level, config: &str) -> Result<Self, String> {
        let route = self.0.registry.load_route(&self.0.name, config.as_bytes())?;
        Ok(self.with_options(|options| {
            options.route_configs.insert(level, route);
        }))
    }

    /// The same filter, in a host of this kind: [compiled in](Kind::CompiledIn), instead of stock
    /// Envoy.
    #[must_use]
    pub fn on(&self, kind: Kind) -> Self {
        self.with_options(|options| options.kind = kind)
    }

    /// The same filter, where Envoy buffers at most `bytes` before it pauses a sender.
    #[must_use]
    pub fn with_buffer_limit(&self, bytes: u64) -> Self {
        self.with_options(|options| options.buffer_limit = bytes)
    }

    /// The same filter in another chain; see [`Options`].
    #[must_use]
    pub fn in_chain(&self, chain: Options) -> Self {
        self.with_options(|options| {
            let mut route_configs = std::mem::take(&mut options.route_configs);
            route_configs.extend(chain.route_configs);
            let clusters = options.clusters.clone();
            *options = Options { route_configs, clusters, ..chain };
        })
    }

    /// Adds a cluster that the filter can call, or replaces what it answers: for all clones of this
    /// host, and for the filter's background tasks, too. `answer` is asked once a whole request has
    /// come. Other clusters are unknown.
    ///
    /// ```
    /// use attache_core::{ConfigError, Filter, Next, Request, Response, Result, Setup};
    /// use attache_test::{ClusterAnswer, TestHost, TestRequest, TestResponse};
    ///
    /// struct Ask;
    ///
    /// impl Filter for Ask {
    ///     type Config = ();
    ///     type RouteConfig = ();
    ///     fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> {
    ///         Ok(Ask)
    ///     }
    ///     async fn handle(&self, req: Request, next: Next) -> Result<Response> {
    ///         let answer = req.cluster("authz").get("/check").send().await?;
    ///         if answer.status() != 200 {
    ///             return Ok(Response::new(answer.status()));
    ///         }
    ///         next.run(req).await
    ///     }
    /// }
    ///
    /// let host = TestHost::new::<Ask>("");
    /// let host = host.with_cluster("authz", |_| TestResponse::new(403));
    /// assert_eq!(host.request(TestRequest::get("/")).run().status(), 403);
    /// assert_eq!(host.calls("authz")[0].path(), "/check");
    ///
    /// let host = host.with_cluster("authz", |_| ClusterAnswer::never());
    /// assert_eq!(host.request(TestRequest::get("/")).run().status(), 504);
    /// ```
    pub fn with_cluster<A: Into<ClusterAnswer>>(
        &self,
        name: &str,
        answer: impl Fn(&TestRequest) -> A + Send + Sync + 'static,
    ) -> Self {
        self.0.options.clusters.set(name, move |request| answer(request).into());
        self.clone()
    }

    /// The whole requests that a cluster has got, in order.
    pub fn calls(&self, cluster: &str) -> Vec<TestRequest> {
        self.0.options.clusters.calls(cluster)
    }

    /// How many calls to a cluster were cancelled before their end.
    pub fn cancelled_calls(&self, cluster: &str) -> usize {
        self.0.options.clusters.cancelled(cluster)
    }

    /// Envoy has a new value of a generic secret: for all clones of this host.
    ///
    /// A static one ([`SecretSource::Sds`](attache_core::SecretSource::Sds)) has its own name for a value
    /// until then; one of a secret discovery has none.
    ///
    /// ```
    /// use attache_core::{ConfigError, Filter, Next, Request, Response, Result, Secret, SecretSource, Setup};
    /// use attache_test::{TestHost, TestRequest};
    ///
    /// struct Key(Secret);
    ///
    /// impl Filter for Key {
    ///     type Config = SecretSource;
    ///     type RouteConfig = ();
    ///     fn new(key: SecretSource, setup: &mut Setup) -> std::result::Result<Self, ConfigError> {
    ///         Ok(Key(setup.secret(&key)?))
    ///     }
    ///     async fn handle(&self, req: Request, next: Next) -> Result<Response> {
    ///         // No key, no service.
    ///         let key = self.0.try_get()?;
    ///         Ok(Response::new(http::StatusCode::OK).with_body(key))
    ///     }
    /// }
    ///
    /// let config = r#"{"sds_secret_config": {"name": "key", "sds_config": {"ads": {}}}}"#;
    /// let host = TestHost::new::<Key>(config);
    /// assert_eq!(host.request(TestRequest::get("/")).run().status(), 500);
    /// host.set_secret("key", "first");
    /// assert_eq!(host.request(TestRequest::get("/")).run().text(), "first");
    /// host.set_secret("key", "second");
    /// assert_eq!(host.request(TestRequest::get("/")).run().text(), "second");
    /// ```
    pub fn set_secret(&self, name: &str, value: impl AsRef<[u8]>) {
        self.0.envoy.secrets.set(name, value.as_ref());
    }

    /// Sets one of Envoy's runtime flags, or with `None` removes it: for all clones of this host. A
    /// percentage is on from 50 on; nothing is left to chance.
    ///
    /// ```
    /// use attache_core::{ConfigError, Filter, Next, Request, Response, Result, Runtime, Setup};
    /// use attache_test::{TestHost, TestRequest};
    ///
    /// struct Shed(Runtime);
    ///
    /// impl Filter for Shed {
    ///     type Config = ();
    ///     type RouteConfig = ();
    ///     fn new(_: (), setup: &mut Setup) -> std::result::Result<Self, ConfigError> {
    ///         Ok(Shed(setup.runtime()?))
    ///     }
    ///     async fn handle(&self, req: Request, next: Next) -> Result<Response> {
    ///         if self.0.feature_enabled("shed.load", 0) {
    ///             let status = self.0.integer("shed.status", 503) as u16;
    ///             return Ok(Response::new(http::StatusCode::from_u16(status).unwrap()));
    ///         }
    ///         next.run(req).await
    ///     }
    /// }
    ///
    /// let host = TestHost::new::<Shed>("");
    /// assert_eq!(host.request(TestRequest::get("/")).run().status(), 200);
    /// host.set_runtime("shed.load", "100");
    /// assert_eq!(host.request(TestRequest::get("/")).run().status(), 503);
    /// host.set_runtime("shed.status", "429");
    /// assert_eq!(host.request(TestRequest::get("/")).run().status(), 429);
    /// host.set_runtime("shed.load", None);
    /// assert_eq!(host.request(TestRequest::get("/")).run().status(), 200);
    /// ```
    pub fn set_runtime<'a>(&self, key: &str, value: impl Into<Option<&'a str>>) {
        self.0.envoy.flags.set(key, value.into());
    }

    /// The same filter, where something more is known of the stream.
    ///
    /// What Envoy reads from the messages (`request.path`, and how many bytes of body came and went) need
    /// not be set, nor how long the stream took in the test's time. What else is not set is not there;
    /// [`Known::Unsupported`](crate::Known::Unsupported) is for what a host does not know.
    ///
    /// ```
    /// # use attache_core::{Attribute, ConfigError, Filter, Next, Request, Response, Result, Setup};
    /// # use attache_test::{TestHost, TestRequest};
    /// # struct Where;
    /// # impl Filter for Where { type Config = (); type RouteConfig = ();
    /// # fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> { Ok(Where) }
    /// # async fn handle(&self, req: Request, _: Next) -> Result<Response> {
    /// #     let from = req.stream().info().downstream_remote_address()?;
    /// #     Ok(Response::text(http::StatusCode::OK, from.unwrap_or_default()))
    /// # } }
    /// let host = TestHost::new::<Where>("").with(Attribute::SourceAddress, "10.0.0.1:50000");
    /// assert_eq!(host.request(TestRequest::get("/")).run().text(), "10.0.0.1:50000");
    /// ```
    #[must_use]
    pub fn with(&self, attribute: Attribute, value: impl Into<Known>) -> Self {
        self.with_surroundings(|s| s.set(Fact::Attribute(attribute), value))
    }

    /// The same filter, with other surroundings: facts, metadata, filter state.
    #[must_use]
    pub fn with_surroundings(&self, change: impl FnOnce(&mut Surroundings)) -> Self {
        self.with_options(|options| change(&mut options.surroundings))
    }

    /// The filter as it was loaded, for a [`Model`](crate::model::Model) of one's own.
    pub fn loaded(&self) -> Loaded {
        self.0.loaded.clone()
    }

    /// A whole request, to be [run](OneShot::run) to its end.
    pub fn request(&self, request: TestRequest) -> OneShot {
        OneShot::new(self.clone(), request)
    }

    /// Starts an exchange, to be led step by step: sends what the request has so far.
    pub fn open(&self, request: TestRequest) -> TestExchange {
        TestExchange::open(self.clone(), request)
    }

    /// Lets time pass. Exchanges notice at their next step; see [`TestExchange::advance`].
    pub fn advance(&self, time: Duration) {
        self.0.runtime.block_on(tokio::time::advance(time));
    }

    /// Runs `f` on `workers` new threads at once, as Envoy runs one filter on several workers, and
    /// returns what it returned, in order. Each has its number and a host with the same filter and
    /// metrics, but a clock of its own. Tasks that the filter started in its `new` stand still
    /// meanwhile: they belong to this host's thread.
    ///
    /// ```
    /// use std::cell::Cell;
    /// use std::sync::atomic::{AtomicU64, Ordering};
    /// use attache_core::{ConfigError, Filter, Next, PerWorker, Request, Response, Result, Setup};
    /// use attache_test::{TestHost, TestRequest};
    ///
    /// struct Counting {
    ///     /// Of all workers.
    ///     all: AtomicU64,
    ///     /// Of one.
    ///     mine: PerWorker<Cell<u64>>,
    /// }
    ///
    /// impl Filter for Counting {
    ///     type Config = ();
    ///     type RouteConfig = ();
    ///     fn new(_: (), setup: &mut Setup) -> Result<Self, ConfigError> {
    ///         Ok(Counting { all: AtomicU64::new(0), mine: setup.per_worker(|| Cell::new(0)) })
    ///     }
    ///     async fn handle(&self, req: Request, next: Next) -> Result<Response> {
    ///         self.all.fetch_add(1, Ordering::Relaxed);
    ///         let mine = self.mine.get();
    ///         mine.set(mine.get() + 1);
    ///         let mut resp = next.run(req).await?;
    ///         resp.headers_mut().set("x-mine", mine.get().to_string());
    ///         resp.headers_mut().set("x-all", self.all.load(Ordering::Relaxed).to_string());
    ///         Ok(resp)
    ///     }
    /// }
    ///
    /// let host = TestHost::new::<Counting>("");
    /// let seen = host.on_workers(3, |_, host| {
    ///     host.request(TestRequest::get("/")).run();
    ///     let second = host.request(TestRequest::get("/")).run();
    ///     second.header_text("x-mine").unwrap().to_owned()
    /// });
    /// assert_eq!(seen, ["2", "2", "2"]);
    /// let last = host.request(TestRequest::get("/")).run();
    /// assert_eq!(last.header_text("x-mine").unwrap(), "1");
    /// assert_eq!(last.header_text("x-all").unwrap(), "7");
    /// ```
    ///
    /// # Panics
    /// When `f` does, once all threads have ended.
    pub fn on_workers<R: Send>(
        &self,
        workers: usize,
        f: impl Fn(usize, &TestHost) -> R + Sync,
    ) -> Vec<R> {
        let Shared { loaded, registry, name, metrics, envoy, options, .. } = &*self.0;
        let on_worker = |number: usize| {
            let host = TestHost(Rc::new(Shared {
                loaded: loaded.clone(),
                registry: registry.clone(),
                name: name.clone(),
                metrics: metrics.clone(),
                envoy: envoy.clone(),
                options: options.clone(),
                runtime: Rc::new(runtime().unwrap_or_else(|error| panic!("{error}"))),
            }));
            f(number, &host)
        };
        let on_worker = &on_worker;
        std::thread::scope(|scope| {
            let workers: Vec<_> =
                (0..workers).map(|number| scope.spawn(move || on_worker(number))).collect();
            let ended: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
            let result = |worker: std::thread::Result<R>| {
                worker.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            ended.into_iter().map(result).collect()
        })
    }

    /// The value of a counter. Those of the runtime itself are called `attache.<filter>.` and then
    /// `exchanges`, `local_replies`, `errors`, `panics`, `cancelled`, `wakes`, `slow_polls`; its
    /// gauges `active` and `suspended`. The filter of [`new`](TestHost::new) is called `test`.
    ///
    /// # Panics
    /// When the filter has not defined it, here and below.
    pub fn counter(&self, name: &str) -> u64 {
        self.counter_with(name, &[])
    }

    /// The value of a counter with labels.
    pub fn counter_with(&self, name: &str, labels: &[&str]) -> u64 {
        self.values(MetricKind::Counter, name, labels).pop().unwrap_or(0)
    }

    /// The value of a gauge.
    pub fn gauge(&self, name: &str) -> u64 {
        self.gauge_with(name, &[])
    }

    /// The value of a gauge with labels.
    pub fn gauge_with(&self, name: &str, labels: &[&str]) -> u64 {
        self.values(MetricKind::Gauge, name, labels).pop().unwrap_or(0)
    }

    /// The values that a histogram has got, in order.
    pub fn histogram(&self, name: &str) -> Vec<u64> {
        self.histogram_with(name, &[])
    }

    /// The values that a histogram has got for these labels, in order.
    pub fn histogram_with(&self, name: &str, labels: &[&str]) -> Vec<u64> {
        self.values(MetricKind::Histogram, name, labels)
    }
    fn values(&self, kind: MetricKind, name: &str, labels: &[&str]) -> Vec<u64> {
        let metrics = &self.0.metrics;
        self.0.loaded.take_stats(|metric, op, value| metrics.update(metric, op, value, &[]));
        self.0.metrics.values(kind, name, labels)
    }
}
