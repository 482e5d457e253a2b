//! The runtime of Attaché: HTTP filters for Envoy as ordinary async Rust.
//!
//! This crate has the filter API, the exchange engine and the [`Host`](host::Host) trait that the
//! hosts implement. There is no Envoy in it and no `unsafe`. Filters depend on the facade crate
//! `attache`; hosts depend on this one.
//!
//! | what | where |
//! |---|---|
//! | what a user writes against | `filter.rs`, `message.rs`, `headers.rs`, `body.rs`, `error.rs` |
//! | what is around the messages | `stream.rs`, `info.rs`, `attribute.rs`, `metadata.rs`, `filter_state.rs`, `extensions.rs` |
//! | calls to Envoy's clusters | `cluster/` |
//! | from config to filter | `registry.rs`, `metrics.rs`, `secret.rs` |
//! | beside the exchanges | `runtime.rs`, `supervise.rs`, `per_worker.rs`, `stats.rs`, `span.rs` |
//! | the engine | `exchange.rs` (effects), `flow.rs` (decisions), `wake.rs` (the waker), `worker.rs`, `lazy.rs` |
//! | what a host provides | `host.rs`, `facts.rs` |
//! | what hosts have in common | `log.rs`, `looking.rs`, `metric_queue.rs`, `views.rs` |

#![forbid(unsafe_code)]

mod attribute;
mod body;
mod clock;
mod cluster;
mod current;
mod error;
pub mod exchange;
mod extensions;
pub mod facts;
mod filter;
mod filter_state;
mod flow;
mod flush;
mod foreign;
mod headers;
mod hint;
pub mod host;
mod info;
mod lazy;
pub mod log;
mod looking;
mod message;
mod metadata;
mod metric_queue;
mod metrics;
mod per_worker;
pub mod protobuf;
pub mod registry;
mod route;
mod runtime;
mod runtime_flags;
#[cfg(feature = "schema")]
pub mod schema;
mod secret;
mod span;
mod stats;
mod stream;
mod supervise;
mod sync;
mod views;
mod wake;
mod worker;

pub use attribute::{Attribute, AttributeValue};
pub use body::{Body, BodyWriter, Buffered};
pub use cluster::{
    Caller, Callout, CalloutError, CalloutErrorKind, Cluster, PendingCall, SharedCalls,
    SharedCluster, SharedRequest,
};
pub use current::{is_serving, write_current};
pub use error::{BodyError, ConfigError, Error, ErrorKind, Result, ResultExt};
pub use extensions::{Extensions, Store};
pub use facts::{HostHealth, LifeSpan, ResetReason, Sharing, TimePoint};
pub use filter::{Completion, ConfigHost, Filter, Outcome, Setup};
pub use filter_state::FilterState;
pub use headers::{HeaderError, Headers, Trailers};
pub use info::{Info, ResponseFlags, Tls};
pub use looking::{Looking, keep_looking};
pub use message::{Next, Request, Response};
pub use metadata::{FromMetadata, Metadata, MetadataValue};
pub use metric_queue::MetricQueue;
pub use metrics::{
    Counter, EachUpdate, Gauge, Histogram, MetricId, MetricKind, MetricOp, MetricSink,
};
pub use per_worker::PerWorker;
pub use runtime::{JoinHandle, guarded, spawn, spawn_blocking};
pub use runtime_flags::{Runtime, RuntimeFlags, RuntimeUnsupported};
pub use secret::{FirstLook, Secret, SecretError, SecretSource, SecretUpdates};
pub use span::Trace;
pub use stream::Stream;
pub use views::{View, Views};
pub use worker::when_workers_end;
