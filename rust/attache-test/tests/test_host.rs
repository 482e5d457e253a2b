//! What a filter's author can rely on: every part of `TestHost`.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Duration;

use attache_core::registry::Registry;
use attache_core::{
    Body, Completion, ConfigError, Counter, Error, Filter, Gauge, Histogram, Next, Outcome,
    Request, Response, Result, Setup, spawn, spawn_blocking,
};
use attache_test::model::{Options, Upstream};
use attache_test::{TestHost, TestRequest, TestResponse};
use http::StatusCode;
use serde::Deserialize;

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    greeting: String,
}

#[derive(Deserialize)]
struct Route {
    greeting: String,
}

/// Does what the path says.
struct Many {
    config: Config,
    requests: Counter,
    by_path: Counter,
    open: Gauge,
    sizes: Histogram,
}

impl Filter for Many {
    type Config = Config;
    type RouteConfig = Route;

    fn new(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        if config.greeting == "bad" {
            return Err(ConfigError::field("greeting", "must be polite"));
        }
        Ok(Many {
            config,
            requests: setup.counter("requests")?,
            by_path: setup.counter_with("by_path", &["path"])?,
            open: setup.gauge("open")?,
            sizes: setup.histogram("sizes")?,
        })
    }

    async fn handle(&self, mut req: Request, next: Next) -> Result<Response> {
        self.requests.inc();
        self.open.add(1);
        self.by_path.inc_with(&[&req.path()]);
        match &*req.path() {
            "/greet" => {
                let route = req.route_config::<Many>();
                let greeting = route.as_ref().map_or(&*self.config.greeting, |r| &*r.greeting);
                Ok(Response::text(StatusCode::OK, greeting))
            }
            "/sleep" => {
                tokio::time::sleep(Duration::from_secs(60)).await;
                next.run(req).await
            }
            "/spawn" => {
                let answer = spawn(async {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    41
                })
                .await?;
                let answer = spawn_blocking(move || answer + 1).await?;
                Ok(Response::text(StatusCode::OK, answer.to_string()))
            }
            "/size" => {
                self.sizes.record(req.body_mut().buffer(8).await?.len() as u64);
                next.run(req).await
            }
            "/shout" => {
                req.map_body(|chunk| chunk.to_ascii_uppercase().into());
                req.map_trailers(|trailers| trailers.set("x-shouted", "yes"));
                let mut resp = next.run(req).await?;
                resp.map_body(|chunk| chunk.to_ascii_uppercase().into());
                Ok(resp)
            }
            "/stream" => {
                let chunks = futures_util::stream::unfold(0, |n| async move {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    (n < 3).then(|| (Ok::<_, Error>(format!("{n}").into()), n + 1))
                });
                Ok(Response::new(StatusCode::OK).with_body(Body::from_stream(chunks)))
            }
            "/hang" => std::future::pending().await,
            "/panic" => panic!("this is a test"),
            "/timeout" => {
                let run = next.run(req);
                match tokio::time::timeout(Duration::from_secs(5), run).await {
                    Ok(response) => response,
                    Err(_) => Ok(Response::new(StatusCode::GATEWAY_TIMEOUT)),
                }
            }
            _ => next.run(req).await,
        }
    }

    fn on_complete(&self, done: &Completion) {
        self.open.sub(1);
        self.sizes.record(match done.outcome() {
            Outcome::Responded => 1000,
            Outcome::Cancelled => 2000,
            _ => 3000,
        });
    }
}

fn host() -> TestHost {
    TestHost::new::<Many>(r#"{"greeting": "hello"}"#)
}

fn panic_of(f: impl FnOnce()) -> String {
    let payload = catch_unwind(AssertUnwindSafe(f)).expect_err("it did not panic");
    payload.downcast_ref::<String>().expect("a message").clone()
}

#[test]
fn the_upstream_sees_the_request_and_the_client_the_response() {
    let response = host()
        .request(TestRequest::post("/any?x=1").header("X-A", "1").header("x-a", "2").body("abc"))
        .upstream(|request| {
            assert_eq!((request.method(), request.path()), ("POST", "/any?x=1"));
            assert_eq!(request.header_texts("x-a"), ["1", "2"]);
            assert_eq!(request.header_text("content-length"), Some("3"));
            assert_eq!(request.bytes(), "abc");
            assert!(request.is_complete());
            TestResponse::new(418).header("x-b", "3").chunk("short ").chunk("and stout")
        })
        .run();
    assert_eq!(response.status(), 418);
    assert_eq!(response.header_text("X-B"), Some("3"));
    assert_eq!(response.text(), "short and stout");
    assert!(response.is_complete() && !response.is_reset());
}

#[test]
fn an_upstream_that_nobody_describes_says_200() {
    let response = host().request(TestRequest::get("/")).run();
    assert_eq!((response.status(), response.text()), (200, String::new()));
}

#[test]
fn time_passes_by_itself_in_a_whole_exchange() {
    assert_eq!(host().request(TestRequest::get("/sleep")).run().status(), 200);
    assert_eq!(host().request(TestRequest::get("/spawn")).run().text(), "42");
    assert_eq!(host().request(TestRequest::get("/stream")).run().text(), "012");
}

#[test]
fn time_stands_still_step_by_step() {
    let exchange = host().open(TestRequest::get("/sleep"));
    exchange.advance(Duration::from_secs(59));
    assert!(exchange.upstream().is_none());
    exchange.advance(Duration::from_secs(1));
    assert!(exchange.upstream().unwrap().is_complete());
    exchange.respond(TestResponse::new(200));
    assert_eq!(exchange.finish().status(), 200);
}

#[test]
fn a_streamed_reply_arrives_piece_by_piece() {
    let exchange = host().open(TestRequest::get("/stream"));
    assert_eq!(exchange.response().unwrap().text(), "");
    exchange.advance(Duration::from_secs(1));
    assert_eq!(exchange.response().unwrap().text(), "0");
    exchange.client_watermark(true);
    exchange.advance(Duration::from_secs(1));
    assert_eq!(exchange.response().unwrap().text(), "0", "the client takes no more");
    exchange.client_watermark(false);
    exchange.advance(Duration::from_secs(1));
    assert!(exchange.response().unwrap().text().starts_with("01"));
    exchange.advance(Duration::from_secs(9));
    assert_eq!(exchange.finish().text(), "012");
}

#[test]
fn bodies_and_trailers_stream_both_ways() {
    let exchange = host().open(TestRequest::post("/shout").streaming());
    exchange.send("one ");
    assert_eq!(exchange.upstream().unwrap().text(), "ONE ");
    exchange.respond(TestResponse::new(200).streaming());
    exchange.respond_chunk("uno ");
    assert_eq!(exchange.response().unwrap().text(), "UNO ");
    exchange.send("two");
    exchange.send_trailers(&[("X-Last", "1")]);
    let upstream = exchange.upstream().unwrap();
    assert_eq!(upstream.text(), "ONE TWO");
    assert_eq!(upstream.trailer_text("x-last"), Some("1"));
    assert_eq!(upstream.trailer_text("x-shouted"), Some("yes"));
    exchange.respond_last("dos");
    assert_eq!(exchange.finish().text(), "UNO DOS");
}

#[test]
fn config_and_route_config() {
    let host = host();
    let greet = || TestRequest::get("/greet");
    assert_eq!(host.request(greet()).run().text(), "hello");
    let route = host.on_route(r#"{"greeting": "salut"}"#);
    assert_eq!(route.request(greet()).run().text(), "salut");
    assert_eq!(route.counter("requests"), 2, "it is the same filter");
    let error = host.try_on_route(r#"{"greeting": "x", "greting": "y"}"#).unwrap_err();
    assert!(error.contains("greting"), "{error}");
    let error = TestHost::try_new::<Many>(r#"{"greeting": "bad"}"#).unwrap_err();
    assert!(error.contains("must be polite"), "{error}");
    assert!(panic_of(|| drop(TestHost::new::<Many>("{"))).contains("not JSON"));
}

#[test]
fn a_filter_of_a_registry() {
    let registry = || Registry::new().with::<Many>("many");
    let host = TestHost::from_registry(registry(), "many", "");
    assert_eq!(host.request(TestRequest::get("/")).run().status(), 200);
    assert_eq!(host.counter("attache.many.panics"), 0);
    let error = TestHost::load(registry(), "few", "").unwrap_err();
    assert!(error.contains("`many`"), "{error}");
}

#[test]
fn metrics() {
    let host = host();
    let exchange = host.open(TestRequest::post("/size").body("12345"));
    assert_eq!(host.counter("requests"), 1);
    assert_eq!(host.counter_with("by_path", &["/size"]), 1);
    assert_eq!(host.counter_with("by_path", &["/other"]), 0);
    assert_eq!(host.gauge("open"), 1);
    exchange.respond(TestResponse::new(200));
    assert_eq!(exchange.finish().status(), 200);
    assert_eq!(host.gauge("open"), 0);
    assert_eq!(host.histogram("sizes"), [5, 1000]);
    assert!(panic_of(|| assert_eq!(host.counter("sizes"), 0)).contains("no Counter `sizes`"));
}

#[test]
fn too_large_a_body_is_refused() {
    let host = host();
    let response = host.request(TestRequest::post("/size").body("123456789")).run();
    assert_eq!(response.status(), 413);
    assert_eq!(host.counter("attache.test.errors"), 1);
}

#[test]
fn a_panic_is_a_500_and_the_next_exchange_is_served() {
    let host = host();
    assert_eq!(host.request(TestRequest::get("/panic")).run().status(), 500);
    assert_eq!(host.counter("attache.test.panics"), 1);
    assert_eq!(host.request(TestRequest::get("/greet")).run().status(), 200);
}

#[test]
fn the_client_leaves() {
    let host = host();
    let exchange = host.open(TestRequest::get("/sleep"));
    exchange.client_resets();
    assert!(exchange.is_over());
    let response = exchange.finish();
    assert!(response.is_reset());
    assert_eq!(response.status(), 0);
    assert_eq!(host.histogram("sizes"), [2000]);

    drop(host.open(TestRequest::get("/sleep")));
    assert_eq!(host.histogram("sizes"), [2000, 2000], "an exchange that is dropped ends, too");
}

#[test]
fn the_upstream_breaks_off() {
    let exchange = host().open(TestRequest::get("/"));
    exchange.upstream_resets();
    assert_eq!(exchange.finish().status(), 503);

    let exchange = host().open(TestRequest::get("/"));
    exchange.respond(TestResponse::new(200).streaming());
    exchange.upstream_resets();
    assert!(exchange.finish().is_reset());

    let refuses = Options { upstream: Upstream::Refuses, ..Options::default() };
    let response = host().in_chain(refuses).request(TestRequest::get("/")).run();
    assert_eq!(response.status(), 503);
}

#[test]
fn somebody_else_answers() {
    let host = host();
    let exchange = host.open(TestRequest::get("/sleep"));
    exchange.local_reply(408, "too late");
    assert_eq!(exchange.reply_details(), ["elsewhere"]);
    let response = exchange.finish();
    assert_eq!((response.status(), response.text()), (408, "too late".to_owned()));
    assert_eq!(host.histogram("sizes"), [2000]);
}

#[test]
fn the_filter_gives_up_waiting() {
    let called = Rc::new(Cell::new(false));
    let exchange = host().open(TestRequest::get("/timeout"));
    assert!(exchange.upstream().is_some());
    exchange.advance(Duration::from_secs(5));
    assert_eq!(exchange.finish().status(), 504);
    let seen = called.clone();
    let response = host()
        .request(TestRequest::get("/timeout"))
        .upstream(move |_| {
            seen.set(true);
            TestResponse::new(200)
        })
        .run();
    assert_eq!((response.status(), called.get()), (200, true));
}

#[test]
fn slow_readers_pause_the_sender() {
    let host = host().with_buffer_limit(10);
    let exchange = host.open(TestRequest::post("/sleep").streaming());
    exchange.send("0123456789");
    assert!(!exchange.client_is_paused());
    exchange.send("a");
    assert!(exchange.client_is_paused());
    assert_eq!(exchange.buffered(attache_core::host::Direction::Request), 11);
    exchange.advance(Duration::from_secs(60));
    assert!(!exchange.client_is_paused());
    assert_eq!(exchange.upstream().unwrap().text(), "0123456789a");
    assert!(!exchange.upstream_is_paused());
}

#[test]
fn an_upstream_may_answer_before_it_has_the_whole_request() {
    let response = host()
        .request(TestRequest::post("/shout").chunk("a").chunk("b").trailer("x-end", "1"))
        .upstream(|request| {
            assert_eq!(request.trailer_text("x-end"), Some("1"));
            TestResponse::new(200).body("ok").trailer("x-too", "2")
        })
        .answers_early()
        .run();
    assert_eq!(response.trailer_text("x-too"), Some("2"));
    assert_eq!(response.text(), "OK");
}

#[test]
fn an_exchange_that_waits_for_ever_fails_the_test() {
    let message = panic_of(|| drop(host().request(TestRequest::get("/hang")).run()));
    assert!(message.contains("is stuck"), "{message}");
    let message = panic_of(|| drop(host().open(TestRequest::get("/hang")).finish()));
    assert!(message.contains("has not ended"), "{message}");
}

/// Says what the request looks like.
struct Mirror;

impl Filter for Mirror {
    type Config = ();
    type RouteConfig = ();
    fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Mirror)
    }
    async fn handle(&self, req: Request, _: Next) -> Result<Response> {
        let uri = req.uri().map_err(|error| error.status_code());
        let text = format!("{} {:?} {uri:?}", req.path(), req.authority());
        Ok(Response::text(StatusCode::OK, text))
    }
}

/// A filter that looks at the path must not take such a one for none.
#[test]
fn a_path_that_is_no_text_is_not_an_empty_one() {
    let host = TestHost::new::<Mirror>("");
    let odd = |name, value: &'static [u8]| host.request(TestRequest::get("/").header(name, value));
    let path = odd(":path", b"/secret/\xff").run();
    let expected = "/secret/\u{fffd} Some(\"test\") Ok(http://test/secret/\u{fffd})";
    assert_eq!(path.text(), expected);
    let authority = odd(":authority", b"secret\xff").run();
    assert_eq!(authority.text(), "/ Some(\"secret\u{fffd}\") Err(400)");
}
