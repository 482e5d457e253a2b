//! Layers that know nothing of Envoy, over its clusters.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use attache_core::{
    CalloutError, CalloutErrorKind, ConfigError, Error, Filter, Next, Request, Response, Result,
    Setup,
};
use attache_test::{ClusterAnswer, TestHost, TestRequest, TestResponse};
use attache_tower::{ClusterService, SharedClusterService};
use bytes::Bytes;
use http::StatusCode;
use http_body_util::{BodyExt, Full};
use tower::limit::ConcurrencyLimitLayer;
use tower::retry::Policy;
use tower::{ServiceBuilder, ServiceExt};

/// Tries again, so many times, what failed in a way that may pass.
#[derive(Clone)]
struct Again(usize);

impl<Res> Policy<http::Request<Full<Bytes>>, Res, CalloutError> for Again {
    type Future = std::future::Ready<()>;

    fn retry(
        &mut self,
        _: &mut http::Request<Full<Bytes>>,
        result: &mut std::result::Result<Res, CalloutError>,
    ) -> Option<Self::Future> {
        let passing = matches!(result, Err(error) if error.kind() == CalloutErrorKind::Reset);
        self.0 = if passing { self.0.checked_sub(1)? } else { return None };
        Some(std::future::ready(()))
    }

    fn clone_request(
        &mut self,
        request: &http::Request<Full<Bytes>>,
    ) -> Option<http::Request<Full<Bytes>>> {
        Some(request.clone())
    }
}

struct Layered {
    shared: SharedClusterService,
}

fn question() -> Result<http::Request<Full<Bytes>>> {
    Ok(http::Request::post("/ask").body(Full::new(Bytes::from("why")))?)
}

impl Filter for Layered {
    type Config = ();
    type RouteConfig = ();

    fn new(_: (), setup: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Layered { shared: SharedClusterService::new(setup.cluster("c")) })
    }

    async fn handle(&self, req: Request, _: Next) -> Result<Response> {
        let service = ClusterService::new(req.cluster("c"));
        let answer = match &*req.path() {
            "/plain" => service.oneshot(question()?).await?,
            "/timeout" => {
                let service =
                    ServiceBuilder::new().timeout(Duration::from_millis(10)).service(service);
                service.oneshot(question()?).await.map_err(attache_tower::error)?
            }
            "/retry" => {
                let service = ServiceBuilder::new().retry(Again(2)).service(service);
                service.oneshot(question()?).await?
            }
            "/limit" => {
                let service =
                    ServiceBuilder::new().layer(ConcurrencyLimitLayer::new(1)).service(service);
                let mut calls = Vec::new();
                for _ in 0..3 {
                    calls.push(service.clone().oneshot(question()?));
                }
                let [a, b, c]: [_; 3] = calls.try_into().map_err(|_| Error::new("three"))?;
                let (a, b, c) = tokio::join!(a, b, c);
                let text = format!("{} {} {}", a?.status(), b?.status(), c?.status());
                return Ok(Response::text(StatusCode::OK, text));
            }
            "/shared" => {
                let service = ServiceBuilder::new()
                    .timeout(Duration::from_secs(1))
                    .service(self.shared.clone());
                let question = http::Request::post("/ask").body("why")?;
                let answer = service.oneshot(question).await.map_err(attache_tower::error)?;
                return Ok(answer.into());
            }
            other => return Err(Error::new(other.to_owned())),
        };
        let (parts, body) = answer.into_parts();
        let body = body.collect().await.map_err(|error| error.into_inner())?.to_bytes();
        Ok(Response::new(parts.status).with_body(body))
    }
}

fn because(request: &TestRequest) -> TestResponse {
    assert_eq!((request.method(), request.path()), ("POST", "/ask"));
    assert_eq!(request.text(), "why");
    TestResponse::new(200).chunk("be").chunk("cause")
}

fn ask(host: &TestHost, path: &str) -> TestResponse {
    host.request(TestRequest::get(path)).run()
}

#[test]
fn a_cluster_is_a_service() {
    let host = TestHost::new::<Layered>("").with_cluster("c", because);
    assert_eq!(ask(&host, "/plain").text(), "because");
    assert_eq!(ask(&host, "/shared").text(), "because");
    let unknown = TestHost::new::<Layered>("");
    assert_eq!(ask(&unknown, "/plain").status(), 500);
}

#[test]
fn a_timeout_layer_cancels_the_call() {
    let host = TestHost::new::<Layered>("").with_cluster("c", |_| ClusterAnswer::never());
    assert_eq!(ask(&host, "/timeout").status(), 500);
    assert_eq!(host.cancelled_calls("c"), 1);
    assert_eq!(ask(&host, "/shared").status(), 500);
    assert_eq!(host.cancelled_calls("c"), 2);
    // An error of the call itself comes through with its status.
    let host = host.with_cluster("c", |_| ClusterAnswer::unavailable());
    assert_eq!(ask(&host, "/timeout").status(), 503);
    assert_eq!(ask(&host, "/shared").status(), 503);
}

#[test]
fn a_retry_layer_tries_again() {
    let tries = Arc::new(AtomicUsize::new(0));
    let counted = tries.clone();
    let host = TestHost::new::<Layered>("").with_cluster("c", move |request| {
        match counted.fetch_add(1, Ordering::Relaxed) {
            0 | 1 => ClusterAnswer::reset(),
            _ => because(request).into(),
        }
    });
    assert_eq!(ask(&host, "/retry").text(), "because");
    assert_eq!(tries.load(Ordering::Relaxed), 3);
    let host = host.with_cluster("c", |_| ClusterAnswer::reset());
    assert_eq!(ask(&host, "/retry").status(), 502);
    assert_eq!(host.calls("c").len(), 6);
}

#[test]
fn a_concurrency_limit_holds_calls_back() {
    let host = TestHost::new::<Layered>("").with_cluster("c", |request| {
        ClusterAnswer::from(because(request)).after(Duration::from_millis(100))
    });
    let exchange = host.open(TestRequest::get("/limit"));
    for out in 1..=3 {
        assert_eq!(host.calls("c").len(), out);
        assert!(exchange.response().is_none());
        exchange.advance(Duration::from_millis(100));
    }
    assert_eq!(exchange.finish().text(), "200 OK 200 OK 200 OK");
}
