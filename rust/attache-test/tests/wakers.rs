//! Wakers that a filter makes itself, as combinators of futures do: one that panics costs its exchange
//! nothing, and is the filter's own panic. And wakers of the engine's that other threads keep longer than
//! their streams: they are not those of the next ones.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Wake, Waker};

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
    fn wake(self: Arc<Self>) {
        drop(self);
    }
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

thread_local!(static AWAY: RefCell<Vec<mpsc::Sender<Waker>>> = RefCell::default());

/// Gives its waker to the other threads, or counts how often it is polled.
struct Leaves;

impl Filter for Leaves {
    type Config = ();
    type RouteConfig = ();

    fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Leaves)
    }

    async fn handle(&self, req: Request, next: Next) -> Result<Response> {
        if req.path() == "/leaves" {
            let waker = poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
            AWAY.with_borrow(|all| all.iter().for_each(|away| away.send(waker.clone()).unwrap()));
            return next.run(req).await;
        }
        let mut polls = 0;
        let mut run = pin!(next.run(req));
        let counted = poll_fn(|cx| {
            polls += 1;
            run.as_mut().poll(cx)
        });
        let mut resp = counted.await?;
        resp.headers_mut().set("x-polls", polls.to_string());
        Ok(resp)
    }
}

#[test]
fn a_waker_that_outlives_its_stream_is_not_the_next_one_s() {
    let host = TestHost::new::<Leaves>("");
    let threads: Vec<_> = (1..=2)
        .map(|hold| {
            let (sender, wakers) = mpsc::channel::<Waker>();
            AWAY.with_borrow_mut(|all| all.push(sender));
            std::thread::spawn(move || {
                let mut held = std::collections::VecDeque::new();
                for waker in wakers {
                    waker.wake_by_ref();
                    held.push_back(waker);
                    if held.len() > 3 * hold {
                        held.pop_front().unwrap().wake();
                    }
                }
            })
        })
        .collect();
    for _ in 0..500 {
        for path in ["/leaves", "/counts", "/counts"] {
            let exchange = host.open(TestRequest::get(path));
            exchange.respond(TestResponse::new(200).body("it came"));
            let response = exchange.finish();
            assert_eq!(response.text(), "it came");
            let polls = (path == "/counts").then_some("2");
            assert_eq!(response.header_text("x-polls"), polls);
        }
    }
    AWAY.take();
    threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
}
