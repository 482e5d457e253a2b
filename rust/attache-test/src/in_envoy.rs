//! What a filter under test finds in Envoy beside its streams: generic secrets and runtime flags.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use attache_core::{RuntimeFlags, RuntimeUnsupported, SecretUpdates};

/// Clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct InEnvoy {
    pub(crate) secrets: Secrets,
    pub(crate) flags: Flags,
}

/// Generic secrets by name, static ones and those of a secret discovery alike. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Secrets(Arc<Mutex<HashMap<String, Held>>>);

#[derive(Debug, Default)]
struct Held {
    value: Option<Vec<u8>>,
    watching: Vec<SecretUpdates>,
}

impl Secrets {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Held>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set(&self, name: &str, value: &[u8]) {
        let mut all = self.lock();
        let held = all.entry(name.to_owned()).or_default();
        held.value = Some(value.to_vec());
        held.watching.iter().for_each(|updates| updates.set(value));
    }

    /// `first` is its value if it has none yet.
    pub(crate) fn watch(&self, name: &str, first: Option<&str>, updates: SecretUpdates) {
        let mut all = self.lock();
        let held = all.entry(name.to_owned()).or_default();
        if held.value.is_none() {
            held.value = first.map(|first| first.as_bytes().to_vec());
        }
        if let Some(value) = &held.value {
            updates.set(value);
        }
        held.watching.push(updates);
    }
}

/// Runtime flags by key, each as its text. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Flags(Arc<Mutex<HashMap<String, String>>>);

impl Flags {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set(&self, key: &str, value: Option<&str>) {
        match value {
            Some(value) => self.lock().insert(key.to_owned(), value.to_owned()),
            None => self.lock().remove(key),
        };
    }

    fn parsed<T: std::str::FromStr>(&self, key: &str) -> Option<T> {
        self.lock().get(key)?.parse().ok()
    }
}

impl RuntimeFlags for Flags {
    /// On from 50 % on: a test is not left to chance.
    fn feature_enabled(&self, key: &str, default_percent: u64) -> bool {
        self.integer(key, default_percent) >= 50
    }

    fn boolean(&self, key: &str, default: bool) -> bool {
        self.parsed(key).unwrap_or(default)
    }

    /// Envoy takes the whole part of another number.
    fn integer(&self, key: &str, default: u64) -> u64 {
        let part = || self.parsed(key).filter(|part: &f64| *part >= 0.0).map(|part| part as u64);
        self.parsed(key).or_else(part).unwrap_or(default)
    }

    fn double(&self, key: &str, default: f64) -> f64 {
        self.parsed(key).unwrap_or(default)
    }

    fn string(&self, key: &str) -> Result<Option<String>, RuntimeUnsupported> {
        Ok(self.lock().get(key).cloned())
    }
}
