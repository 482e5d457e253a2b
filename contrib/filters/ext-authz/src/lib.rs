//! Asks a service whether a request may pass: a filter that calls a cluster, remembers its answers,
//! asks equal questions once, and fails closed.

#![forbid(unsafe_code)]

mod answers;

use std::num::NonZeroUsize;
use std::time::Duration;

use attache::http::HeaderName;
use attache::{Callout, CalloutError, Counter, Histogram, prelude::*};
use serde::Deserialize;
use tokio::time::Instant;

use answers::{Answers, Key, Shared, Source};

/// The most bytes of a refusal that are taken from the service.
const LIMIT: usize = 64 * 1024;

/// Asks for each request.
pub struct ExtAuthz {
    cluster: String,
    path_prefix: String,
    ask_by_request: bool,
    headers: Vec<HeaderName>,
    upstream_headers: Vec<HeaderName>,
    client_headers: Vec<HeaderName>,
    timeout: Duration,
    status_on_error: StatusCode,
    answers: Answers<Verdict>,
    requests: Counter,
    call_time: Histogram,
}

/// The config; the README has a table of it.
#[derive(Deserialize)]
#[cfg_attr(feature = "schema", derive(attache::schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(crate = "attache::schemars"))]
pub struct Config {
    /// The cluster of the service.
    pub cluster: String,
    /// What goes before the request's path.
    #[serde(default)]
    pub path_prefix: String,
    /// The service is told the request's method, path and authority.
    #[serde(default = "yes")]
    pub ask_by_request: bool,
    /// The request's headers that the service is told.
    #[serde(default = "default_headers")]
    pub headers: Vec<String>,
    /// The headers of a consent that go on to the upstream.
    #[serde(default)]
    pub upstream_headers: Vec<String>,
    /// The headers of a refusal that go to the client.
    #[serde(default = "default_client_headers")]
    pub client_headers: Vec<String>,
    /// How long the service may take.
    #[serde(default = "default_timeout_ms")]
    pub timeout_ms: u64,
    /// What the client gets when there is no answer.
    #[serde(default = "default_status_on_error")]
    pub status_on_error: u16,
    /// Which answers are remembered.
    #[serde(default)]
    pub cache: Cache,
}

/// Which answers are remembered.
#[derive(Deserialize)]
#[cfg_attr(feature = "schema", derive(attache::schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(crate = "attache::schemars"))]
#[serde(default)]
pub struct Cache {
    /// For how long a consent is.
    pub ttl_ms: u64,
    /// For how long a refusal is.
    pub refusal_ttl_ms: u64,
    /// How many are, at most.
    pub entries: usize,
}

impl Default for Cache {
    fn default() -> Self {
        Cache { ttl_ms: 5000, refusal_ttl_ms: 1000, entries: 10_000 }
    }
}

/// The per-route config.
#[derive(Default, Deserialize)]
#[cfg_attr(feature = "schema", derive(attache::schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(crate = "attache::schemars"))]
#[serde(default)]
pub struct Route {
    /// Nobody is asked.
    pub disabled: bool,
}

fn yes() -> bool {
    true
}

fn default_headers() -> Vec<String> {
    vec!["authorization".to_owned()]
}

fn default_client_headers() -> Vec<String> {
    vec!["www-authenticate".to_owned(), "content-type".to_owned(), "location".to_owned()]
}

fn default_timeout_ms() -> u64 {
    200
}

fn default_status_on_error() -> u16 {
    403
}

/// What the service has said.
enum Verdict {
    /// Pass, with these headers for the upstream.
    Consent(Vec<(HeaderName, HeaderValue)>),
    /// Do not pass.
    Refusal { status: StatusCode, headers: Vec<(HeaderName, HeaderValue)>, body: Bytes },
}

fn names(field: &str, names: Vec<String>) -> Result<Vec<HeaderName>, ConfigError> {
    let parsed = names.iter().enumerate().map(|(i, name)| {
        HeaderName::try_from(name)
            .map_err(|error| ConfigError::field(format!("{field}[{i}]"), error))
    });
    parsed.collect()
}

fn only(names: &[HeaderName], headers: &HeaderMap) -> Vec<(HeaderName, HeaderValue)> {
    let of = |name| headers.get_all(name).iter().map(move |value| (name, value));
    let kept = names.iter().flat_map(of);
    kept.map(|(name, value)| (name.clone(), value.clone())).collect()
}

impl Filter for ExtAuthz {
    type Config = Config;
    type RouteConfig = Route;

    fn new(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        if config.cluster.is_empty() {
            return Err(ConfigError::field("cluster", "must not be empty"));
        }
        if !(config.path_prefix.is_empty() || config.path_prefix.starts_with('/')) {
            return Err(ConfigError::field("path_prefix", "must start with a slash"));
        }
        if config.timeout_ms == 0 {
            return Err(ConfigError::field("timeout_ms", "must be at least 1"));
        }
        let status_on_error = StatusCode::from_u16(config.status_on_error)
            .ok()
            .filter(|status| status.is_client_error() || status.is_server_error())
            .ok_or_else(|| ConfigError::field("status_on_error", "must be from 400 to 599"))?;
        let entries = NonZeroUsize::new(config.cache.entries)
            .ok_or_else(|| ConfigError::field("cache.entries", "must be at least 1"))?;
        let name = setup.filter_name().to_owned();
        Ok(ExtAuthz {
            cluster: config.cluster,
            path_prefix: config.path_prefix,
            ask_by_request: config.ask_by_request,
            headers: names("headers", config.headers)?,
            upstream_headers: names("upstream_headers", config.upstream_headers)?,
            client_headers: names("client_headers", config.client_headers)?,
            timeout: Duration::from_millis(config.timeout_ms),
            status_on_error,
            answers: Answers::new(
                entries,
                Duration::from_millis(config.cache.ttl_ms),
                Duration::from_millis(config.cache.refusal_ttl_ms),
            ),
            requests: setup.counter_with(&format!("{name}.requests"), &["result"])?,
            call_time: setup.histogram(&format!("{name}.call_us"))?,
        })
    }

    async fn handle(&self, mut req: Request, next: Next) -> Result<Response> {
        // Whatever else happens: only the service says what these are.
        for name in &self.upstream_headers {
            req.headers_mut().remove(name.as_str());
        }
        if req.route_config::<Self>().is_some_and(|route| route.disabled) {
            self.requests.inc_with(&["skipped"]);
            return next.run(req).await;
        }
        let (key, question) = self.question(&req);
        let ask = async || {
            let started = Instant::now();
            let answer = question().send().await;
            let took = started.elapsed().as_micros();
            self.call_time.record(took.try_into().unwrap_or(u64::MAX));
            let verdict = self.verdict(answer)?;
            let consents = matches!(verdict, Verdict::Consent(_));
            Ok((verdict, consents))
        };
        let (answer, source) = self.answers.get(key, ask).await;
        match answer {
            Shared::Answer(verdict) => match &*verdict {
                Verdict::Consent(headers) => {
                    self.count("allowed", source);
                    for (name, value) in headers {
                        req.headers_mut().append(name.as_str(), value);
                    }
                    next.run(req).await
                }
                Verdict::Refusal { status, headers, body } => {
                    self.count("denied", source);
                    let mut response = Response::new(*status).with_body(body.clone());
                    for (name, value) in headers {
                        response.headers_mut().append(name.as_str(), value);
                    }
                    Ok(response)
                }
            },
            Shared::Failed(error) => {
                self.count("failed", source);
                tracing::warn!("nobody could be asked: {error}");
                Ok(Response::new(self.status_on_error))
            }
        }
    }
}

impl ExtAuthz {
    /// What the service is asked, and the key by which equal questions are known: all of what it is
    /// told, so that whatever gets the same answer was the same question.
    fn question<'a>(&'a self, req: &Request) -> (Key, impl Fn() -> Callout + use<'a>) {
        let cluster = req.cluster(&self.cluster).with_timeout(self.timeout).with_limit(LIMIT);
        let mut key = Key::new();
        let (method, path, authority) = if self.ask_by_request {
            (req.method(), self.path_prefix.clone() + &req.path(), req.authority())
        } else {
            let path = if self.path_prefix.is_empty() { "/" } else { &self.path_prefix };
            (Method::GET, path.to_owned(), None)
        };
        key.add(method.as_str().as_bytes());
        key.add(path.as_bytes());
        key.add(authority.as_deref().unwrap_or_default().as_bytes());
        let mut told = Vec::new();
        for name in &self.headers {
            let values = req.headers().get_all(name.as_str());
            key.add(&values.len().to_ne_bytes());
            for value in values {
                key.add(value.as_bytes());
                told.push((name, value));
            }
        }
        let ask = move || {
            let mut call = cluster.call(method.clone(), path.clone());
            if let Some(authority) = &authority {
                call = call.authority(authority);
            }
            call.headers(told.iter().map(|(name, value)| (*name, value)))
        };
        (key, ask)
    }

    fn verdict(
        &self,
        answer: std::result::Result<attache::http::Response<Bytes>, CalloutError>,
    ) -> std::result::Result<Verdict, CalloutError> {
        let (parts, body) = answer?.into_parts();
        if parts.status == StatusCode::OK {
            return Ok(Verdict::Consent(only(&self.upstream_headers, &parts.headers)));
        }
        // Any other success is not the consent that was asked for, and would read as one.
        let refuses = parts.status.is_redirection()
            || parts.status.is_client_error()
            || parts.status.is_server_error();
        let status = if refuses { parts.status } else { StatusCode::FORBIDDEN };
        let headers = only(&self.client_headers, &parts.headers);
        Ok(Verdict::Refusal { status, headers, body })
    }

    fn count(&self, what: &str, source: Source) {
        let how = match source {
            Source::Asked => "",
            Source::Remembered => "_cached",
            Source::Joined => "_joined",
        };
        self.requests.inc_with(&[&format!("{what}{how}")]);
    }
}

attache::filters! { "ext-authz" => ExtAuthz }
