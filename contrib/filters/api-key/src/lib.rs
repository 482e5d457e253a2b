//! Lets only requests with a known API key through, and tells the upstream whose it was: a filter
//! that awaits a lookup, and fails closed.

#![forbid(unsafe_code)]

mod store;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use attache::{Counter, Histogram, prelude::*};
use serde::Deserialize;

pub use store::{Consumer, Entry, FileStore, Hash, KeyStore, Lookup, Reload, Table};

/// The header by which the upstream learns whose key it was. A client's own is always removed.
pub const CONSUMER_HEADER: &str = "x-consumer";

/// Checks the key of each request.
pub struct ApiKey {
    store: Box<dyn KeyStore>,
    header: String,
    challenge: HeaderValue,
    scopes: Vec<String>,
    timeout: Duration,
    requests: Counter,
    lookup_time: Histogram,
}

/// The config; the README has a table of it.
#[derive(Deserialize)]
#[cfg_attr(feature = "schema", derive(attache::schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(crate = "attache::schemars"))]
pub struct Config {
    /// The header that has the key.
    #[serde(default = "default_header")]
    pub header: String,
    /// What the keys are for, as told to clients that have none.
    #[serde(default = "default_realm")]
    pub realm: String,
    /// The scopes that a consumer needs, all of them, where the route does not name others.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// How long a lookup may take.
    #[serde(default = "default_lookup_timeout_ms")]
    pub lookup_timeout_ms: u64,
    /// The keys themselves.
    pub keys: Option<Vec<Entry>>,
    /// A file with the keys, instead of `keys`.
    pub keys_file: Option<PathBuf>,
    /// How often the file is looked at for changes.
    #[serde(default = "default_reload_ms")]
    pub reload_ms: u64,
}

/// The per-route config.
#[derive(Default, Deserialize)]
#[cfg_attr(feature = "schema", derive(attache::schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(crate = "attache::schemars"))]
#[serde(default)]
pub struct Route {
    /// No key is asked for.
    pub disabled: bool,
    /// The scopes that a consumer needs here, instead of the config's.
    pub scopes: Option<Vec<String>>,
}

fn default_header() -> String {
    "x-api-key".to_owned()
}

fn default_realm() -> String {
    "api".to_owned()
}

fn default_lookup_timeout_ms() -> u64 {
    1000
}

fn default_reload_ms() -> u64 {
    1000
}

/// What became of a request; the label `result` of the counter.
#[derive(Clone, Copy)]
enum Verdict {
    Allowed,
    Skipped,
    Missing,
    Unknown,
    Forbidden,
    Unavailable,
}

impl Verdict {
    fn label(self) -> &'static str {
        match self {
            Verdict::Allowed => "allowed",
            Verdict::Skipped => "skipped",
            Verdict::Missing => "missing",
            Verdict::Unknown => "unknown",
            Verdict::Forbidden => "forbidden",
            Verdict::Unavailable => "unavailable",
        }
    }
}

impl Filter for ApiKey {
    type Config = Config;
    type RouteConfig = Route;

    fn new(mut config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        let store: Box<dyn KeyStore> = match (config.keys.take(), config.keys_file.take()) {
            (Some(keys), None) => Box::new(
                Table::new(keys)
                    .map_err(|(number, why)| ConfigError::field(format!("keys[{number}]"), why))?,
            ),
            (None, Some(path)) => {
                if config.reload_ms == 0 {
                    return Err(ConfigError::field("reload_ms", "must be at least 1"));
                }
                let failures =
                    setup.counter(&format!("{}.reload_failures", setup.filter_name()))?;
                let every = Duration::from_millis(config.reload_ms);
                let (store, reload) = FileStore::new(path, every, failures);
                setup.spawn(reload.run());
                Box::new(store)
            }
            _ => return Err(ConfigError::new("give either `keys` or `keys_file`")),
        };
        ApiKey::with_store(config, store, setup)
    }

    async fn handle(&self, mut req: Request, next: Next) -> Result<Response> {
        // Whatever else happens: only this filter says who a consumer is.
        req.headers_mut().remove(CONSUMER_HEADER);

        let route = req.route_config::<Self>();
        if route.as_ref().is_some_and(|route| route.disabled) {
            self.count(Verdict::Skipped);
            return next.run(req).await;
        }
        let keys = req.headers().get_all(&self.header);
        let key = match &keys[..] {
            [key] if !key.is_empty() => key,
            // Two keys are as good as none: which of them would count?
            _ => return Ok(self.refuse(Verdict::Missing)),
        };

        let started = Instant::now();
        let found = tokio::time::timeout(self.timeout, self.store.lookup(key.as_bytes())).await;
        self.lookup_time.record(started.elapsed().as_micros().try_into().unwrap_or(u64::MAX));
        let consumer = match found {
            Ok(Ok(Some(consumer))) => consumer,
            Ok(Ok(None)) => return Ok(self.refuse(Verdict::Unknown)),
            Ok(Err(error)) => {
                tracing::error!("the lookup of a key failed: {error:?}");
                return Ok(self.refuse(Verdict::Unavailable));
            }
            Err(_) => {
                tracing::error!(timeout = ?self.timeout, "the lookup of a key took too long");
                return Ok(self.refuse(Verdict::Unavailable));
            }
        };

        let needed = route.as_ref().and_then(|route| route.scopes.as_ref()).unwrap_or(&self.scopes);
        if !needed.iter().all(|scope| consumer.scopes.contains(scope)) {
            return Ok(self.refuse(Verdict::Forbidden));
        }
        self.count(Verdict::Allowed);
        req.headers_mut().remove(&self.header);
        req.headers_mut().set(CONSUMER_HEADER, &consumer.name);
        next.run(req).await
    }
}

impl ApiKey {
    /// With a store of one's own, in place of the config's `keys` and `keys_file`.
    ///
    /// # Errors
    /// The config is not valid.
    pub fn with_store(
        config: Config,
        store: Box<dyn KeyStore>,
        setup: &mut Setup,
    ) -> Result<Self, ConfigError> {
        let header = attache::http::HeaderName::try_from(config.header)
            .map_err(|error| ConfigError::field("header", error))?;
        if header == CONSUMER_HEADER {
            return Err(ConfigError::field("header", "is the one that names the consumer"));
        }
        if config.realm.contains(['"', '\\']) {
            return Err(ConfigError::field("realm", "must not contain a quote or a backslash"));
        }
        let challenge = format!("ApiKey realm=\"{}\", header=\"{header}\"", config.realm);
        let challenge =
            HeaderValue::try_from(challenge).map_err(|error| ConfigError::field("realm", error))?;
        let name = setup.filter_name().to_owned();
        Ok(ApiKey {
            store,
            header: header.as_str().to_owned(),
            challenge,
            scopes: config.scopes,
            timeout: Duration::from_millis(config.lookup_timeout_ms),
            requests: setup.counter_with(&format!("{name}.requests"), &["result"])?,
            lookup_time: setup.histogram(&format!("{name}.lookup_us"))?,
        })
    }

    fn count(&self, verdict: Verdict) {
        self.requests.inc_with(&[verdict.label()]);
    }

    /// The answer to a request that does not get through. It tells a missing key from a wrong one as
    /// little as HTTP allows.
    fn refuse(&self, verdict: Verdict) -> Response {
        self.count(verdict);
        match verdict {
            Verdict::Forbidden => {
                Response::text(StatusCode::FORBIDDEN, "This key is not allowed to do that.\n")
            }
            Verdict::Unavailable => Response::text(
                StatusCode::SERVICE_UNAVAILABLE,
                "Keys cannot be checked at the moment.\n",
            ),
            _ => Response::text(StatusCode::UNAUTHORIZED, "A valid API key is needed.\n")
                .with_header("www-authenticate", &self.challenge),
        }
    }
}

attache::filters! { "api-key" => ApiKey }
