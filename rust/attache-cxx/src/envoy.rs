//! What a config has of Envoy's own: generic secrets, and runtime flags.

use attache_core::{RuntimeFlags, RuntimeUnsupported, SecretUpdates};
use cxx::UniquePtr;

use crate::bridge::ffi;
use crate::config::shielded;

/// Where C++ tells of a secret's values.
pub(crate) struct SecretSlot(pub(crate) SecretUpdates);

impl SecretSlot {
    pub(crate) fn set(&self, value: &[u8]) {
        let _ = shielded("secret", || self.0.set(value));
    }

    pub(crate) fn failed(&self, why: &[u8]) {
        let _ = shielded("secret", || self.0.failed(&String::from_utf8_lossy(why)));
    }
}

/// Envoy's runtime flags, for any thread.
pub(crate) struct Flags(pub(crate) UniquePtr<ffi::RuntimeFlags>);

// SAFETY: `cc/bridge/runtime_flags.h` makes it callable, and deletable, on any thread.
unsafe impl Send for Flags {}
// SAFETY: as above.
unsafe impl Sync for Flags {}

impl RuntimeFlags for Flags {
    fn feature_enabled(&self, key: &str, default_percent: u64) -> bool {
        self.0.feature_enabled(key, default_percent)
    }

    fn boolean(&self, key: &str, default: bool) -> bool {
        self.0.boolean(key, default)
    }

    fn integer(&self, key: &str, default: u64) -> u64 {
        self.0.integer(key, default)
    }

    fn double(&self, key: &str, default: f64) -> f64 {
        self.0.double(key, default)
    }

    fn string(&self, key: &str) -> Result<Option<String>, RuntimeUnsupported> {
        let mut value = String::new();
        Ok(self.0.text(key, &mut value).then_some(value))
    }
}
