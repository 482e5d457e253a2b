//! Lets only requests with a valid JSON Web Token through: a filter whose keys a background task
//! fetches from a cluster, again and again.

#![forbid(unsafe_code)]

mod keys;
mod verified;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use attache::http::HeaderName;
use attache::{Counter, PerWorker, prelude::*};
use jsonwebtoken::{Algorithm, Validation, decode, decode_header};
use serde::Deserialize;
use serde_json::{Map, Value};

use keys::{KeySet, Keys, Refresh};
use verified::{Told, Verified};

/// The longest token that is looked at.
const TOKEN_LIMIT: usize = 16 * 1024;

/// Checks the token of each request.
pub struct Jwt {
    keys: Keys,
    algorithms: Vec<Algorithm>,
    validation: Validation,
    claims: Vec<(String, HeaderName)>,
    forward: bool,
    challenge: String,
    requests: Counter,
    /// Each worker's own, so that nobody waits for another.
    verified: Option<PerWorker<RefCell<Verified>>>,
    remembered: Counter,
}

/// The config; the README has a table of it.
#[derive(Deserialize)]
#[cfg_attr(feature = "schema", derive(attache::schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(crate = "attache::schemars"))]
pub struct Config {
    /// Who may have made the token.
    pub issuer: String,
    /// Whom the token may be for; if none, that is not looked at.
    #[serde(default)]
    pub audiences: Vec<String>,
    /// Where the keys are.
    pub jwks: Jwks,
    /// Which algorithms tokens may be signed with.
    #[serde(default = "default_algorithms")]
    pub algorithms: Vec<String>,
    /// How far apart the clocks of the issuer and of this machine may be.
    #[serde(default = "default_leeway_s")]
    pub leeway_s: u64,
    /// Claims that the upstream gets as headers.
    #[serde(default)]
    pub claims_to_headers: BTreeMap<String, String>,
    /// The upstream gets the token, too.
    #[serde(default = "yes")]
    pub forward: bool,
    /// What the tokens are for, as told to clients that have none.
    #[serde(default = "default_realm")]
    pub realm: String,
    /// Tokens that have been checked.
    #[serde(default)]
    pub cache: Cache,
}

/// What is remembered of valid tokens.
#[derive(Deserialize)]
#[cfg_attr(feature = "schema", derive(attache::schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(crate = "attache::schemars"))]
#[serde(default)]
pub struct Cache {
    /// How many tokens each worker remembers; with none, each is checked each time.
    pub entries: usize,
}

impl Default for Cache {
    fn default() -> Self {
        Cache { entries: 1000 }
    }
}

/// Where the keys are.
#[derive(Deserialize)]
#[cfg_attr(feature = "schema", derive(attache::schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(crate = "attache::schemars"))]
pub struct Jwks {
    /// The cluster that has them.
    pub cluster: String,
    /// Their path.
    #[serde(default = "default_path")]
    pub path: String,
    /// How long a fetch may take, and how long a request waits for one.
    #[serde(default = "default_timeout_ms")]
    pub timeout_ms: u64,
    /// How often they are fetched.
    #[serde(default = "default_refresh_ms")]
    pub refresh_ms: u64,
    /// How soon after a fetch a token with an unknown key may cause another.
    #[serde(default = "default_min_refresh_ms")]
    pub min_refresh_ms: u64,
    /// How long keys are used when they cannot be fetched any more.
    #[serde(default = "default_keep_ms")]
    pub keep_ms: u64,
}

/// The per-route config.
#[derive(Default, Deserialize)]
#[cfg_attr(feature = "schema", derive(attache::schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(crate = "attache::schemars"))]
#[serde(default)]
pub struct Route {
    /// No token is asked for.
    pub disabled: bool,
}

fn yes() -> bool {
    true
}

fn default_algorithms() -> Vec<String> {
    vec!["RS256".to_owned(), "ES256".to_owned(), "EdDSA".to_owned()]
}

fn default_leeway_s() -> u64 {
    60
}

fn default_realm() -> String {
    "api".to_owned()
}

fn default_path() -> String {
    "/.well-known/jwks.json".to_owned()
}

fn default_timeout_ms() -> u64 {
    1000
}

fn default_refresh_ms() -> u64 {
    300_000
}

fn default_min_refresh_ms() -> u64 {
    5000
}

fn default_keep_ms() -> u64 {
    3_600_000
}

/// Why a request does not get through.
enum Refusal {
    /// It has no token, or two.
    Missing,
    /// Its token is not valid, for this reason (for the log, not for the client).
    Invalid(String),
    /// There are no keys to tell.
    Unavailable,
}

fn invalid(why: impl std::fmt::Display) -> Refusal {
    Refusal::Invalid(why.to_string())
}

fn algorithm(index: usize, name: &str) -> Result<Algorithm, ConfigError> {
    let refused = |why: &str| ConfigError::field(format!("algorithms[{index}]"), why);
    let algorithm: Algorithm = name.parse().map_err(|_| refused("there is no such algorithm"))?;
    match algorithm {
        // With a secret, and a key set that everybody can read, everybody could make tokens.
        Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => {
            Err(refused("needs a secret, which a public key set cannot have"))
        }
        _ => Ok(algorithm),
    }
}

impl Filter for Jwt {
    type Config = Config;
    type RouteConfig = Route;

    fn new(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        let names = config.algorithms.iter().enumerate();
        let algorithms: Vec<_> =
            names.map(|(i, name)| algorithm(i, name)).collect::<Result<_, _>>()?;
        if algorithms.is_empty() {
            return Err(ConfigError::field("algorithms", "must name one"));
        }
        if config.issuer.is_empty() {
            return Err(ConfigError::field("issuer", "must not be empty"));
        }
        if config.leeway_s > 24 * 3600 {
            return Err(ConfigError::field("leeway_s", "must be at most a day"));
        }
        if config.realm.contains(['"', '\\']) || config.realm.contains(|c: char| c.is_control()) {
            return Err(ConfigError::field("realm", "must be text without quote or backslash"));
        }
        let mut claims = Vec::new();
        for (claim, header) in config.claims_to_headers {
            let name = HeaderName::try_from(&header)
                .map_err(|error| ConfigError::field(format!("claims_to_headers.{claim}"), error))?;
            claims.push((claim, name));
        }
        let jwks = config.jwks;
        for (field, value) in [
            ("jwks.timeout_ms", jwks.timeout_ms),
            ("jwks.refresh_ms", jwks.refresh_ms),
            ("jwks.min_refresh_ms", jwks.min_refresh_ms),
        ] {
            if value == 0 {
                return Err(ConfigError::field(field, "must be at least 1"));
            }
        }
        let mut validation = Validation::new(algorithms[0]);
        validation.leeway = config.leeway_s;
        validation.validate_nbf = true;
        validation.set_issuer(&[config.issuer]);
        validation.set_required_spec_claims(&["exp", "iss"]);
        validation.validate_aud = !config.audiences.is_empty();
        if validation.validate_aud {
            validation.set_audience(&config.audiences);
            validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        }
        let name = setup.filter_name().to_owned();
        let refresh = Refresh {
            cluster: setup
                .cluster(&jwks.cluster)
                .with_timeout(Duration::from_millis(jwks.timeout_ms))
                .with_limit(keys::LIMIT),
            path: jwks.path,
            algorithms: algorithms.clone(),
            every: Duration::from_millis(jwks.refresh_ms),
            at_least: Duration::from_millis(jwks.min_refresh_ms),
            refreshes: setup.counter_with(&format!("{name}.refreshes"), &["result"])?,
        };
        let (keys, run) = Keys::new(
            refresh,
            Duration::from_millis(jwks.timeout_ms),
            Duration::from_millis(jwks.keep_ms),
        );
        setup.spawn(run);
        let verified = NonZeroUsize::new(config.cache.entries)
            .map(|entries| setup.per_worker(move || RefCell::new(Verified::new(entries))));
        Ok(Jwt {
            keys,
            algorithms,
            validation,
            claims,
            forward: config.forward,
            challenge: format!("Bearer realm=\"{}\"", config.realm),
            requests: setup.counter_with(&format!("{name}.requests"), &["result"])?,
            verified,
            remembered: setup.counter(&format!("{name}.remembered"))?,
        })
    }

    async fn handle(&self, mut req: Request, next: Next) -> Result<Response> {
        // Whatever else happens: only a token says what these are.
        for (_, header) in &self.claims {
            req.headers_mut().remove(header.as_str());
        }
        if req.route_config::<Self>().is_some_and(|route| route.disabled) {
            self.requests.inc_with(&["skipped"]);
            return next.run(req).await;
        }
        let checked = match token(&req) {
            Some(token) => self.check(&token).await,
            None => Err(Refusal::Missing),
        };
        let told = match checked {
            Ok(told) => told,
            Err(refusal) => return Ok(self.refuse(refusal)),
        };
        for (header, value) in &told[..] {
            req.headers_mut().set(header.as_str(), value);
        }
        if !self.forward {
            req.headers_mut().remove("authorization");
        }
        self.requests.inc_with(&["allowed"]);
        next.run(req).await
    }
}

/// The one bearer token of a request.
fn token(req: &Request) -> Option<String> {
    let values = req.headers().get_all("authorization");
    // Two are as good as none: which of them would count?
    let [value] = &values[..] else { return None };
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then(|| token.to_owned())
}

impl Jwt {
    async fn check(&self, token: &str) -> Result<Told, Refusal> {
        if token.len() > TOKEN_LIMIT {
            return Err(invalid("it is too long"));
        }
        if let Some(told) = self.remember(token) {
            self.remembered.inc();
            return Ok(told);
        }
        let header = decode_header(token).map_err(invalid)?;
        if !self.algorithms.contains(&header.alg) {
            return Err(invalid(format!("it is signed with {:?}", header.alg)));
        }
        if header.crit.is_some() {
            return Err(invalid("it has extensions that must be understood"));
        }
        let mut keys = self.keys.get().await.ok_or(Refusal::Unavailable)?;
        if let Some(kid) = &header.kid
            && !keys.knows(kid)
        {
            // The issuer may have a new key.
            keys = self.keys.newer(&keys).await.unwrap_or(keys);
        }
        let claims = self.verify(token, header.alg, header.kid.as_deref(), &keys)?;
        let told = self.headers(&claims)?;
        if let Some(verified) = &self.verified
            && let Some(until) = self.valid_until(&claims)
        {
            verified.with(|known| known.borrow_mut().keep(token, &keys, told.clone(), until));
        }
        Ok(told)
    }

    /// What is known of a token that was checked before, by the keys that are in use now.
    fn remember(&self, token: &str) -> Option<Told> {
        let verified = self.verified.as_ref()?;
        let keys = self.keys.now()?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs();
        verified.with(|known| known.borrow_mut().find(token, &keys, now))
    }

    /// Until when valid claims stay valid.
    fn valid_until(&self, claims: &Map<String, Value>) -> Option<u64> {
        let exp = claims.get("exp")?;
        let exp = exp.as_u64().or_else(|| exp.as_f64().map(|exp| exp as u64))?;
        Some(exp.saturating_add(self.validation.leeway))
    }

    /// A key decides which algorithms it is for, not the token: what is signed with the wrong one is
    /// not even looked at.
    fn verify(
        &self,
        token: &str,
        algorithm: Algorithm,
        kid: Option<&str>,
        keys: &Arc<KeySet>,
    ) -> Result<Map<String, Value>, Refusal> {
        let mut validation = self.validation.clone();
        validation.algorithms = vec![algorithm];
        let mut why = invalid("there is no key for it");
        for key in keys.find(kid, algorithm) {
            match decode::<Map<String, Value>>(token, key, &validation) {
                Ok(data) => return Ok(data.claims),
                Err(error) => why = invalid(error),
            }
        }
        Err(why)
    }

    fn headers(&self, claims: &Map<String, Value>) -> Result<Told, Refusal> {
        let mut headers = Vec::new();
        for (claim, header) in &self.claims {
            let text = match claims.get(claim) {
                None | Some(Value::Null) => continue,
                Some(Value::String(text)) => text.clone(),
                Some(other) => other.to_string(),
            };
            let value = HeaderValue::try_from(text)
                .map_err(|_| invalid(format!("its claim `{claim}` is no header value")))?;
            headers.push((header.clone(), value));
        }
        Ok(headers.into())
    }

    /// The answer to a request that does not get through. Why a token is not valid is not the
    /// client's concern.
    fn refuse(&self, refusal: Refusal) -> Response {
        match refusal {
            Refusal::Missing => {
                self.requests.inc_with(&["missing"]);
                Response::text(StatusCode::UNAUTHORIZED, "A token is needed.\n")
                    .with_header("www-authenticate", &self.challenge)
            }
            Refusal::Invalid(why) => {
                self.requests.inc_with(&["invalid"]);
                tracing::debug!("a token was refused: {why}");
                let challenge = format!("{}, error=\"invalid_token\"", self.challenge);
                Response::text(StatusCode::UNAUTHORIZED, "A valid token is needed.\n")
                    .with_header("www-authenticate", challenge)
            }
            Refusal::Unavailable => {
                self.requests.inc_with(&["unavailable"]);
                let text = "Tokens cannot be checked at the moment.\n";
                Response::text(StatusCode::SERVICE_UNAVAILABLE, text)
            }
        }
    }
}

attache::filters! { "jwt" => Jwt }
