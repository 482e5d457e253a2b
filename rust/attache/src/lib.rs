//! **Extend Envoy by writing ordinary async Rust.**
//!
//! A filter is one async function that sees the whole exchange. It awaits anything, streams bodies
//! with back-pressure, and runs on the Envoy worker that owns the stream, so there is nothing to
//! lock. A panic costs one exchange.
//!
//! ```
//! use attache::prelude::*;
//!
//! struct Hello;
//!
//! impl Filter for Hello {
//!     type Config = ();
//!     type RouteConfig = ();
//!     fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> { Ok(Hello) }
//!     async fn handle(&self, req: Request, next: Next) -> Result<Response> {
//!         let mut resp = next.run(req).await?;
//!         resp.headers_mut().set("x-hello", "world");
//!         Ok(resp)
//!     }
//! }
//!
//! attache::filters! { "hello" => Hello }
//! # fn main() {}
//! ```
//!
//! Build it as a `cdylib`, and Envoy loads it as a dynamic module:
//!
//! ```yaml
//! - name: envoy.filters.http.dynamic_modules
//!   typed_config:
//!     "@type": type.googleapis.com/envoy.extensions.filters.http.dynamic_modules.v3.DynamicModuleFilter
//!     dynamic_module_config: {name: hello, do_not_close: true}
//!     filter_name: hello
//! ```
//!
//! # What happens when
//!
//! * The request is held until [`Next::run`] is called. Body bytes that arrive stay in Envoy, under
//!   its watermarks, until they are read.
//! * `next.run(req)` lets the request go on with whatever its body now is, and resumes when the
//!   response's headers arrive. The response is held until `handle` returns it.
//! * Returning a response that `next` did not make is a local reply. Returning an error is a local
//!   reply with its status, or a reset when headers have gone.
//! * When the client goes, the future is dropped where it waits. [`Filter::on_complete`] runs once.
//! * A reply that was made elsewhere, to a request that never went on, is for
//!   [`Filter::handle_reply`].
//!
//! # Where to look
//!
//! | for | see |
//! |---|---|
//! | what can be done with a message | [`Request`], [`Response`], [`Headers`], [`Body`] |
//! | the route, addresses, TLS, metadata, filter state, where the request goes | [`Request::stream`], a [`Stream`]: a handle for the whole exchange |
//! | calls to Envoy's clusters | [`Request::cluster`]; [`Setup::cluster`] for any thread |
//! | configs, metrics, secrets, background tasks | [`Filter::Config`], [`Setup`] |
//! | configs of routes | [`Filter::RouteConfig`], [`Request::route_config`], [`Filter::merge_route`] |
//! | what the client gets when something fails | [`Error`] |
//! | where a filter keeps its state | [below](#state) |
//! | what a host can do that another cannot | [`Capabilities`] |
//!
//! # State
//!
//! | state of | where | to be |
//! |---|---|---|
//! | one exchange | local variables of `handle`; [`Stream::extensions`] for what `on_complete` or another filter is to see | anything |
//! | one worker | [`Setup::per_worker`], a field of the filter | anything: no locks needed |
//! | one config, on all workers | other fields of the filter | `Send + Sync` |
//! | all configs | a `static` | `Sync` |
//!
//! All workers share what is a field:
//!
//! ```
//! use std::sync::atomic::{AtomicU64, Ordering};
//! use attache::prelude::*;
//!
//! struct Numbering { all: AtomicU64 }
//!
//! impl Filter for Numbering {
//!     type Config = ();
//!     type RouteConfig = ();
//!     fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> {
//!         Ok(Numbering { all: AtomicU64::new(0) })
//!     }
//!     async fn handle(&self, mut req: Request, next: Next) -> Result<Response> {
//!         let number = self.all.fetch_add(1, Ordering::Relaxed);
//!         req.headers_mut().set("x-number", number.to_string());
//!         next.run(req).await
//!     }
//! }
//! ```
//!
//! Each worker has a value of its own, which may be a `Cell` or an `Rc`:
//!
//! ```
//! use std::cell::RefCell;
//! use std::collections::HashMap;
//! use attache::{PerWorker, prelude::*};
//!
//! struct Paths { here: PerWorker<RefCell<HashMap<String, u64>>> }
//!
//! impl Filter for Paths {
//!     type Config = ();
//!     type RouteConfig = ();
//!     fn new(_: (), setup: &mut Setup) -> Result<Self, ConfigError> {
//!         Ok(Paths { here: setup.per_worker(RefCell::default) })
//!     }
//!     async fn handle(&self, req: Request, next: Next) -> Result<Response> {
//!         let path = req.path().to_string();
//!         // Borrowed for no longer than this: other exchanges run while `handle` waits.
//!         self.here.with(|here| *here.borrow_mut().entry(path).or_insert(0) += 1);
//!         next.run(req).await
//!     }
//! }
//! ```
//!
//! What belongs to one exchange is a local variable, across any wait. `on_complete` and the other
//! filters of the exchange see what is put among its extensions:
//!
//! ```
//! use std::time::Instant;
//! use attache::{Completion, prelude::*};
//!
//! struct Timing;
//! struct Began(Instant);
//!
//! impl Filter for Timing {
//!     type Config = ();
//!     type RouteConfig = ();
//!     fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> { Ok(Timing) }
//!     async fn handle(&self, req: Request, next: Next) -> Result<Response> {
//!         let began = Instant::now();
//!         req.stream().extensions().insert(Began(began))?;
//!         let mut resp = next.run(req).await?;
//!         resp.headers_mut().set("x-took-ms", began.elapsed().as_millis().to_string());
//!         Ok(resp)
//!     }
//!     fn on_complete(&self, done: &Completion) {
//!         if let Ok(Some(began)) = done.stream().extensions().get::<Began>() {
//!             let took = began.0.elapsed().as_millis() as f64;
//!             // For the access log: %DYNAMIC_METADATA(com.example.timing:took_ms)%
//!             let _ = done.stream().metadata().set("com.example.timing", "took_ms", took);
//!         }
//!     }
//! }
//! ```
//!
//! Filters are tested without Envoy by the crate `attache-test`, and `attache-tower` makes `tower`
//! services of clusters.
//!
//! # Waiting
//!
//! An exchange never leaves its worker, so what `handle` holds across an `.await` need not be `Send`. It
//! runs inside a Tokio runtime: timers, sockets and whatever is built on them can be awaited as they
//! are. What blocks, or computes for long, belongs on other threads: [`spawn_blocking`], [`spawn`].
//! State that all exchanges of a worker share without a lock is a [`PerWorker`].
//!
//! A future is dropped where it waits when the client goes, or when something else ends the wait
//! (`select!`, a timeout). Each method that waits says what that does to it: "cancel-safe" means that
//! nothing is lost, and the same can be awaited again.
//!
//! # Features
//!
//! | feature | default | |
//! |---|---|---|
//! | `module` | yes | a `cdylib` of the crate is a module that stock Envoy loads |
//! | `schema` | no | `attache::schema::of` makes a JSON Schema of a filter's config, whose types derive `schemars::JsonSchema` |
//!
//! The oldest Rust is 1.88.

#![forbid(unsafe_code)]

pub use attache_core::host::Capabilities;
#[cfg(feature = "schema")]
pub use attache_core::schema;
pub use attache_core::{
    Attribute, AttributeValue, Extensions, FilterState, FromMetadata, HostHealth, Info, LifeSpan,
    Metadata, MetadataValue, ResetReason, ResponseFlags, Sharing, Stream, TimePoint, Tls,
};
pub use attache_core::{
    Body, BodyError, BodyWriter, Buffered, Caller, Callout, CalloutError, CalloutErrorKind,
    Cluster, Completion, ConfigError, Counter, Error, ErrorKind, Filter, Gauge, HeaderError,
    Headers, Histogram, JoinHandle, Next, Outcome, PerWorker, Request, Response, Result, ResultExt,
    Runtime, RuntimeUnsupported, Secret, SecretError, SecretSource, Setup, SharedCluster, Trace,
    Trailers, spawn, spawn_blocking,
};
pub use bytes;
pub use http;
#[cfg(feature = "schema")]
pub use schemars;

/// What a filter usually needs.
pub mod prelude {
    pub use crate::{
        Body, BodyWriter, Completion, ConfigError, Error, Filter, Headers, Next, Outcome,
        PerWorker, Request, Response, Result, ResultExt, Setup, Stream,
    };
    pub use bytes::Bytes;
    pub use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
}

/// Names the filters of a crate, once: `filters! { "auth" => Auth, "log" => Log }`.
///
/// The names are what `filter_name` refers to in Envoy's config. A `cdylib` of the crate is a module
/// with these filters, and with those of each crate in it that has its own `filters!`. The macro also
/// defines `attache_registry()`, which tests use, and which brings the crate's filters into an Envoy
/// that they are compiled into.
#[macro_export]
macro_rules! filters {
    ($($name:literal => $filter:ty),+ $(,)?) => {
        /// The filters of this crate.
        pub fn attache_registry() -> $crate::__private::Registry {
            $crate::__private::Registry::new()$(.with::<$filter>($name))+
        }

        $crate::__private::export_module!(attache_registry);
    };
}

/// For the macros of this crate only.
#[doc(hidden)]
pub mod __private {
    #[cfg(not(feature = "module"))]
    pub use crate::no_module as export_module;
    pub use attache_core::registry::Registry;
    #[cfg(feature = "module")]
    pub use attache_module::export_module;
}

/// Without stock Envoy as a host there is nothing to export.
#[cfg(not(feature = "module"))]
#[doc(hidden)]
#[macro_export]
macro_rules! no_module {
    ($registry:path) => {};
}
