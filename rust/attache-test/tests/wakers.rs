//! Wakers that a filter makes itself, as combinators of futures do: one that panics costs its exchange
//! nothing, and is the filter's own panic.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};

use attache_core::{ConfigError, Filter, Next, Request, Response, Result, Setup};
use attache_test::{TestHost, TestRequest, TestResponse};
use http::StatusCode;

struct Panics;

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        panic!("in a waker");
    }
}

/// Panics when it goes, but not while something else does.
struct Explodes;

impl Wake for Explodes {
    fn wake(self: Arc<Self>) {}
}

impl Drop for Explodes {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("in the end of a waker");
        }
    }
}

/// Waits under a waker of its own, for what the path says.
struct Own;

async fn under<F: Future>(waker: Waker, future: F) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|_| future.as_mut().poll(&mut Context::from_waker(&waker))).await
}

impl Filter for Own {
    type Config = ();
    type RouteConfig = ();

    fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Own)
    }

    async fn handle(&self, mut req: Request, next: Next) -> Result<Response> {
        let waker: Waker = match req.path().ends_with("explodes") {
            true => Arc::new(Explodes).into(),
            false => Arc::new(Panics).into(),
        };
        if req.path().starts_with("/body") {
            let chunk = under(waker, req.body_mut().chunk()).await?;
            return Ok(Response::text(StatusCode::OK, format!("{chunk:?}")));
        }
        under(waker, next.run(req)).await
    }
}

#[test]
fn a_waker_that_panics_is_the_filter_s_panic_and_the_exchange_goes_on() {
    let host = TestHost::new::<Own>("");
    let exchange = host.open(TestRequest::get("/response"));
    exchange.respond(TestResponse::new(200).body("it came"));
    assert_eq!(exchange.finish().text(), "it came");
    assert_eq!(host.counter("attache.test.panics"), 1);

    let exchange = host.open(TestRequest::post("/body").streaming());
    exchange.send_last("a chunk");
    assert_eq!(exchange.finish().text(), "Some(b\"a chunk\")");
    assert_eq!(host.counter("attache.test.panics"), 2);
}

#[test]
fn a_waker_that_panics_when_it_goes_costs_its_exchange_at_most() {
    let host = TestHost::new::<Own>("");
    for path in ["/response-explodes", "/body-explodes"] {
        let exchange = host.open(TestRequest::get(path).streaming());
        exchange.client_resets();
        drop(exchange);
    }
    assert_eq!(host.counter("attache.test.exchanges"), 2);
    assert_eq!(host.gauge("attache.test.active"), 0);
    assert_eq!(host.request(TestRequest::get("/body")).run().text(), "None");
}
