//! [`Runtime`]: Envoy's runtime flags.

use std::fmt;
use std::sync::Arc;

/// Envoy's runtime flags, as the layers of its `layered_runtime` have them now: of the bootstrap, of
/// files, of the admin endpoint `/runtime_modify`, of RTDS. From [`Setup::runtime`](crate::Setup::runtime).
///
/// Each method looks at the present value, on any thread; a new one is seen from the next look on. A
/// flag that is not set, or set to something of another kind, has the default. So has every flag once
/// Envoy ends. A look takes a lock that threads share for some tens of nanoseconds, and blocks on
/// nothing else.
///
/// Stock Envoy shows flags on its main thread alone, from 1.40 on. There, a flag is known once it has been
/// looked at: in [`Filter::new`](crate::Filter::new), at once; elsewhere, the first look has the default,
/// and those shortly after it have the value. So look in `new` at what the first exchanges need. A new
/// value is seen within a second, up to 1024 flags of a config are known, and they stay as they were when
/// the config goes.
///
/// ```
/// use attache_core::{Filter, Next, Request, Response, Result, Runtime, Setup};
/// # use attache_core::ConfigError;
///
/// struct Trial {
///     runtime: Runtime,
/// }
///
/// impl Filter for Trial {
/// #   type Config = ();
/// #   type RouteConfig = ();
///     fn new(_: (), setup: &mut Setup) -> std::result::Result<Self, ConfigError> {
///         Ok(Trial { runtime: setup.runtime()? })
///     }
///
///     async fn handle(&self, mut req: Request, next: Next) -> Result<Response> {
///         // For one request in ten, unless the flag says otherwise.
///         if self.runtime.feature_enabled("trial.new_path", 10) {
///             req.headers_mut().set("x-trial", "new");
///         }
///         next.run(req).await
///     }
/// }
/// ```
#[derive(Clone)]
pub struct Runtime(Arc<dyn RuntimeFlags>);

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Runtime(..)")
    }
}

impl Runtime {
    pub(crate) fn new(flags: Arc<dyn RuntimeFlags>) -> Self {
        Runtime(flags)
    }

    /// Whether a feature is on for this look: so many times in a hundred as the flag says, at random.
    pub fn feature_enabled(&self, key: &str, default_percent: u64) -> bool {
        self.0.feature_enabled(key, default_percent)
    }

    /// A flag that is `true` or `false`.
    pub fn boolean(&self, key: &str, default: bool) -> bool {
        self.0.boolean(key, default)
    }

    /// A flag that is a whole number, up to about 2^53.
    pub fn integer(&self, key: &str, default: u64) -> u64 {
        self.0.integer(key, default)
    }

    /// A flag that is a number.
    pub fn double(&self, key: &str, default: f64) -> f64 {
        self.0.double(key, default)
    }

    /// The text of a flag of whatever kind; `None` if it is not set.
    ///
    /// # Errors
    /// Stock Envoy does not tell it.
    pub fn string(&self, key: &str) -> Result<Option<String>, RuntimeUnsupported> {
        self.0.string(key)
    }
}

/// This host has no way to Envoy's runtime flags, or to the text of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeUnsupported(&'static str);

impl RuntimeUnsupported {
    pub(crate) const FLAGS: Self = RuntimeUnsupported(
        "filters cannot see Envoy's runtime flags in this host; use Envoy 1.40, compile the filter into \
         Envoy, or have what is to change in the config or in a file",
    );
    const TEXT: Self = RuntimeUnsupported(
        "filters cannot see the text of a runtime flag in this host; have it as a boolean or a number, or \
         compile the filter into Envoy",
    );
}

impl fmt::Display for RuntimeUnsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for RuntimeUnsupported {}

/// Where a [`Runtime`] looks. Implemented by the host; any thread calls it.
pub trait RuntimeFlags: Send + Sync {
    /// As [`Runtime::feature_enabled`].
    fn feature_enabled(&self, key: &str, default_percent: u64) -> bool;
    /// As [`Runtime::boolean`].
    fn boolean(&self, key: &str, default: bool) -> bool;
    /// As [`Runtime::integer`].
    fn integer(&self, key: &str, default: u64) -> u64;
    /// As [`Runtime::double`].
    fn double(&self, key: &str, default: f64) -> f64;
    /// As [`Runtime::string`], where the host can tell it.
    ///
    /// # Errors
    /// As there.
    fn string(&self, key: &str) -> Result<Option<String>, RuntimeUnsupported> {
        let _ = key;
        Err(RuntimeUnsupported::TEXT)
    }
}
