//! Envoy's clusters as [`tower_service::Service`]s, so that generic Rust clients and `tower`'s layers
//! run over Envoy's connection pools, TLS, load balancing, circuit breakers and stats.
//!
//! [`ClusterService`] calls from one exchange, on its worker, and streams both ways.
//! [`SharedClusterService`] calls from any thread, with whole messages.
//!
//! ```
//! use attache_core::{Next, Request, Response, Result, ResultExt};
//! use attache_tower::ClusterService;
//! use bytes::Bytes;
//! use http_body_util::Full;
//! use std::time::Duration;
//! use tower::{ServiceBuilder, ServiceExt};
//!
//! async fn handle(req: Request, next: Next) -> Result<Response> {
//!     let service = ServiceBuilder::new()
//!         .timeout(Duration::from_millis(200))
//!         .service(ClusterService::new(req.cluster("authz")));
//!     let check = http::Request::post("/check").body(Full::new(Bytes::from("a body")))?;
//!     let answer = service.oneshot(check).await.map_err(attache_tower::error)?;
//!     if !answer.status().is_success() {
//!         return Ok(Response::new(answer.status()));
//!     }
//!     next.run(req).await
//! }
//! ```
//!
//! A service is always ready: Envoy's circuit breakers, not readiness, say when a cluster is full.

#![forbid(unsafe_code)]

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use attache_core::{Body, CalloutError, Cluster, Error, SharedCluster};
use bytes::Bytes;
use http::{Request, Response};
use tower_service::Service;

/// The future of a [`ClusterService`]: not `Send`, as it stays on the exchange's worker. Dropping it
/// cancels the call.
pub type LocalFuture = Pin<Box<dyn Future<Output = Result<Response<Body>, CalloutError>>>>;

/// The future of a [`SharedClusterService`]. Dropping it cancels the call.
pub type SharedFuture = Pin<Box<dyn Future<Output = Result<Response<Bytes>, CalloutError>> + Send>>;

/// A cluster, called from one exchange. Clones share nothing but the exchange.
#[derive(Clone, Debug)]
pub struct ClusterService(Cluster);

impl ClusterService {
    /// Calls `cluster`, with its timeout and limit.
    pub fn new(cluster: Cluster) -> Self {
        ClusterService(cluster)
    }
}

impl<B> Service<Request<B>> for ClusterService
where
    B: http_body::Body<Data = Bytes> + 'static,
    B::Error: Into<Error>,
{
    type Response = Response<Body>;
    type Error = CalloutError;
    type Future = LocalFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), CalloutError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> LocalFuture {
        let cluster = self.0.clone();
        Box::pin(async move { cluster.request(request).await })
    }
}

/// A cluster, called from any thread for as long as the filter's config lives.
#[derive(Clone, Debug)]
pub struct SharedClusterService(SharedCluster);

impl SharedClusterService {
    /// Calls `cluster`, with its timeout and limit.
    pub fn new(cluster: SharedCluster) -> Self {
        SharedClusterService(cluster)
    }
}

impl<B: Into<Bytes>> Service<Request<B>> for SharedClusterService {
    type Response = Response<Bytes>;
    type Error = CalloutError;
    type Future = SharedFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), CalloutError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> SharedFuture {
        let cluster = self.0.clone();
        let request = request.map(Into::into);
        Box::pin(async move { cluster.request(request).await })
    }
}

/// A middleware's boxed error as the filter's: what a [`CalloutError`] is inside keeps its kind and
/// its status.
pub fn error(error: Box<dyn std::error::Error + Send + Sync>) -> Error {
    match error.downcast::<CalloutError>() {
        Ok(callout) => Error::from(*callout),
        Err(other) => Error::new(other.to_string()),
    }
}
