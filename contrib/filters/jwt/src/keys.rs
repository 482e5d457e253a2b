//! The issuer's keys: a background task fetches them, and requests look at what it has.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use attache::prelude::*;
use attache::{Counter, SharedCluster};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::Value;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// The most bytes that a key set may have.
pub(crate) const LIMIT: usize = 1 << 20;

/// The most keys that are looked at.
const KEYS_LIMIT: usize = 64;

/// RSA keys with a modulus of less than 2048 bits can be broken: so many base64 digits it must have.
const MIN_MODULUS: usize = 342;

/// How long to wait after the first failure; it doubles with each further one.
const FIRST_WAIT: Duration = Duration::from_secs(1);

const RSA: [Algorithm; 6] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];

struct Key {
    kid: Option<String>,
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

/// The keys of one fetch that can be used.
pub(crate) struct KeySet {
    keys: Vec<Key>,
    /// What was fetched.
    text: Bytes,
}

impl KeySet {
    /// # Errors
    /// It is no key set, or has no key that can be used.
    fn parse(text: Bytes, allowed: &[Algorithm]) -> Result<Self, String> {
        let set: Value = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
        let keys = set.get("keys").and_then(Value::as_array).ok_or("it has no list `keys`")?;
        // What is not understood is passed over, as RFC 7517 (5) says.
        let keys = keys.iter().take(KEYS_LIMIT).filter_map(|key| Key::parse(key, allowed));
        let keys: Vec<_> = keys.collect();
        if keys.is_empty() {
            return Err("it has no key that can be used".to_owned());
        }
        Ok(KeySet { keys, text })
    }

    /// No key at all.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        KeySet { keys: Vec::new(), text: Bytes::new() }
    }

    pub(crate) fn knows(&self, kid: &str) -> bool {
        self.keys.iter().any(|key| key.kid.as_deref() == Some(kid))
    }

    /// The keys that a token may be signed with: those of its key id, if it names one, and of its
    /// algorithm.
    pub(crate) fn find(
        &self,
        kid: Option<&str>,
        algorithm: Algorithm,
    ) -> impl Iterator<Item = &DecodingKey> {
        let fits = move |key: &&Key| {
            (kid.is_none() || key.kid.as_deref() == kid) && key.algorithms.contains(&algorithm)
        };
        self.keys.iter().filter(fits).map(|key| &key.key)
    }
}

impl Key {
    fn parse(value: &Value, allowed: &[Algorithm]) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(value.clone()).ok()?;
        let possible: &[Algorithm] = match &jwk.algorithm {
            AlgorithmParameters::RSA(rsa) if rsa.n.len() >= MIN_MODULUS => &RSA,
            AlgorithmParameters::EllipticCurve(ec) => match ec.curve {
                EllipticCurve::P256 => &[Algorithm::ES256],
                EllipticCurve::P384 => &[Algorithm::ES384],
                _ => return None,
            },
            AlgorithmParameters::OctetKeyPair(_) => &[Algorithm::EdDSA],
            // A secret in a public key set is none.
            _ => return None,
        };
        let common = &jwk.common;
        if common.public_key_use.as_ref().is_some_and(|u| *u != PublicKeyUse::Signature) {
            return None;
        }
        let operations = common.key_operations.as_ref();
        if operations.is_some_and(|all| !all.contains(&KeyOperations::Verify)) {
            return None;
        }
        let named = match common.key_algorithm {
            Some(named) => Some(named.to_string().parse::<Algorithm>().ok()?),
            None => None,
        };
        let fits = |a: &Algorithm| allowed.contains(a) && named.is_none_or(|named| named == *a);
        let algorithms: Vec<_> = possible.iter().copied().filter(fits).collect();
        if algorithms.is_empty() {
            return None;
        }
        let key = DecodingKey::from_jwk(&jwk).ok()?;
        Some(Key { kid: common.key_id.clone(), algorithms, key })
    }
}

/// How the keys are fetched.
pub(crate) struct Refresh {
    pub(crate) cluster: SharedCluster,
    pub(crate) path: String,
    pub(crate) algorithms: Vec<Algorithm>,
    pub(crate) every: Duration,
    /// No more often than this.
    pub(crate) at_least: Duration,
    pub(crate) refreshes: Counter,
}

/// What the task has.
#[derive(Clone, Default)]
struct Fetched {
    keys: Option<(Arc<KeySet>, Instant)>,
    /// When the last fetch ended, well or not.
    tried: Option<Instant>,
}

/// The keys, as requests see them.
pub(crate) struct Keys {
    fetched: watch::Receiver<Fetched>,
    wanted: Arc<Notify>,
    patience: Duration,
    keep: Duration,
    at_least: Duration,
}

impl Keys {
    /// The keys, and the task that fetches them.
    pub(crate) fn new(
        refresh: Refresh,
        patience: Duration,
        keep: Duration,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (to, fetched) = watch::channel(Fetched::default());
        let wanted = Arc::new(Notify::new());
        let at_least = refresh.at_least;
        let task = refresh.run(to, wanted.clone());
        (Keys { fetched, wanted, patience, keep, at_least }, task)
    }

    fn usable(&self, fetched: &Fetched) -> Option<Arc<KeySet>> {
        let (keys, at) = fetched.keys.as_ref()?;
        (at.elapsed() < self.keep).then(|| keys.clone())
    }

    /// The keys, if there are some.
    pub(crate) fn now(&self) -> Option<Arc<KeySet>> {
        self.usable(&self.fetched.borrow())
    }

    /// The keys; waits a while if nothing has been fetched yet.
    pub(crate) async fn get(&self) -> Option<Arc<KeySet>> {
        let mut fetched = self.fetched.clone();
        let first = fetched.wait_for(|fetched| fetched.tried.is_some());
        let fetched = timeout(self.patience, first).await.ok()?.ok()?.clone();
        self.usable(&fetched)
    }

    /// Has the keys fetched again, unless that was done just now, and waits a while for them. `None`
    /// if there is nothing new.
    pub(crate) async fn newer(&self, old: &Arc<KeySet>) -> Option<Arc<KeySet>> {
        let mut fetched = self.fetched.clone();
        let asked = Instant::now();
        let now = fetched.borrow_and_update().clone();
        let current = self.usable(&now)?;
        if !Arc::ptr_eq(&current, old) {
            return Some(current);
        }
        if now.tried.is_some_and(|tried| tried.elapsed() < self.at_least) {
            return None;
        }
        self.wanted.notify_one();
        let tried = fetched.wait_for(|fetched| fetched.tried.is_some_and(|at| at >= asked));
        let fetched = timeout(self.patience, tried).await.ok()?.ok()?.clone();
        self.usable(&fetched)
    }
}

impl Refresh {
    async fn run(self, to: watch::Sender<Fetched>, wanted: Arc<Notify>) {
        let mut failures = 0u32;
        loop {
            let keys = self.fetch().await;
            let now = Instant::now();
            let wait = match &keys {
                Ok(_) => {
                    failures = 0;
                    self.refreshes.inc_with(&["done"]);
                    self.every
                }
                Err(why) => {
                    self.refreshes.inc_with(&["failed"]);
                    tracing::warn!(
                        cluster = self.cluster.name(),
                        path = self.path,
                        "no keys were fetched: {why}"
                    );
                    let wait = FIRST_WAIT.saturating_mul(1 << failures.min(16)).min(self.every);
                    failures += 1;
                    wait
                }
            };
            to.send_modify(|fetched| {
                fetched.tried = Some(now);
                if let Ok(keys) = keys {
                    // The same text is the same set: what it has verified stays verified.
                    let same = fetched.keys.take().filter(|(old, _)| old.text == keys.text);
                    let keys = same.map_or_else(|| Arc::new(keys), |(old, _)| old);
                    fetched.keys = Some((keys, now));
                }
            });
            tokio::select! {
                () = sleep(wait) => (),
                () = wanted.notified() => sleep_until(now + self.at_least).await,
            }
        }
    }

    async fn fetch(&self) -> Result<KeySet, String> {
        let answer = self.cluster.get(self.path.clone()).header("accept", "application/json");
        let answer = answer.send().await.map_err(|error| error.to_string())?;
        if answer.status() != StatusCode::OK {
            return Err(format!("the answer was {}", answer.status()));
        }
        KeySet::parse(answer.into_body(), &self.algorithms)
    }
}
