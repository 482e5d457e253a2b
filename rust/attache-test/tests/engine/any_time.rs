//! What only a host that emits at any time can do, one test for each promise.

use std::time::Duration;

use attache_core::host::Direction;
use attache_core::{
    Body, BodyWriter, ConfigError, Error, Filter, Next, Request, Response, Result, Setup, spawn,
};
use attache_test::model::{Kind, Neighbour, Options};
use attache_test::{TestExchange, TestHost, TestRequest, TestResponse};
use bytes::Bytes;
use http::{HeaderMap, StatusCode};

const TICK: Duration = Duration::from_secs(1);
const CHUNK: usize = 16 * 1024;

/// What it does, the path says.
struct Does;

async fn tick() {
    tokio::time::sleep(TICK).await;
}

/// A piece each tick, whatever comes in.
async fn ticks(_input: Body, mut output: BodyWriter) -> Result<()> {
    for piece in ["one ", "two ", "three"] {
        output.send(piece).await?;
        tick().await;
    }
    Ok(())
}

/// As many pieces as the next hop takes.
async fn floods(_input: Body, mut output: BodyWriter) -> Result<()> {
    for _ in 0..64 {
        output.send(vec![b'x'; CHUNK]).await?;
        tokio::task::yield_now().await;
    }
    Ok(())
}

/// Each piece takes a tick.
async fn crawls(mut input: Body, mut output: BodyWriter) -> Result<()> {
    while let Some(chunk) = input.chunk().await? {
        tick().await;
        output.send(chunk).await?;
    }
    Ok(())
}

fn counted(count: usize) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-count", count.into());
    trailers
}

/// Passes everything on, and ends with its length.
async fn counts(mut input: Body, mut output: BodyWriter) -> Result<()> {
    let mut count = 0;
    while let Some(chunk) = input.chunk().await? {
        count += chunk.len();
        output.send(chunk).await?;
    }
    output.send_trailers(counted(count)).await
}

/// Keeps all of it until it is complete, and ends with its length.
async fn collects(mut input: Body, mut output: BodyWriter) -> Result<()> {
    let all = input.collect(usize::MAX).await?;
    let count = all.len();
    output.send(all).await?;
    output.send_trailers(counted(count)).await
}

/// As `counts`, but it has to think about the length.
async fn counts_slowly(mut input: Body, mut output: BodyWriter) -> Result<()> {
    let mut count = 0;
    while let Some(chunk) = input.chunk().await? {
        count += chunk.len();
        output.send(chunk).await?;
    }
    let count = spawn(async move { count }).await?;
    output.send_trailers(counted(count)).await
}

fn stream() -> Body {
    let pieces = ["one ", "two ", "three"].into_iter();
    Body::from_stream::<_, Error>(futures_util::stream::unfold(pieces, |mut left| async {
        let piece = left.next()?;
        tick().await;
        Some((Ok(Bytes::from(piece)), left))
    }))
}

fn own() -> Response {
    Response::new(StatusCode::ACCEPTED).with_body(stream())
}

impl Filter for Does {
    type Config = ();
    type RouteConfig = ();

    fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Does)
    }

    async fn handle(&self, mut req: Request, next: Next) -> Result<Response> {
        let path = req.path();
        let (what, how) = path[1..].split_once('/').unwrap();
        if what == "request" {
            match how {
                "ticks" => req.pipe_body(ticks),
                "floods" => req.pipe_body(floods),
                "crawls" => req.pipe_body(crawls),
                "counts" => req.pipe_body(counts),
                "counts-slowly" => req.pipe_body(counts_slowly),
                "collects" => req.pipe_body(collects),
                "maps" => req.map_body(|chunk| chunk.to_ascii_uppercase().into()),
                _ => unreachable!("{how}"),
            }
        }
        if what == "gives-up" {
            let _ = tokio::time::timeout(TICK, next.run(req)).await;
            return Ok(match how {
                "streams" => own(),
                _ => own().with_trailers(counted(13)),
            });
        }
        let mut resp = next.run(req).await?;
        if what == "held" {
            tick().await;
        }
        match (what, how) {
            ("held", "counts") => resp.pipe_body(counts),
            ("held", "counts-slowly") => resp.pipe_body(counts_slowly),
            ("held", "buffers") => assert_eq!(resp.body_mut().buffer(100).await?.len(), 7),
            ("held", "becomes-204") => resp.set_status(StatusCode::NO_CONTENT),
            ("held", "replaces") => return Ok(own().with_trailers(counted(13))),
            ("response", "ticks") => resp.pipe_body(ticks),
            ("response", "floods") => resp.pipe_body(floods),
            ("response", "crawls") => resp.pipe_body(crawls),
            ("response", "counts") => resp.pipe_body(counts),
            ("response", "counts-slowly") => resp.pipe_body(counts_slowly),
            ("response", "maps") => resp.map_body(|chunk| chunk.to_ascii_uppercase().into()),
            ("replaces", "streams") => return Ok(own()),
            ("replaces", _) => return Ok(own().with_trailers(counted(13))),
            ("empty", name) => resp.headers_mut().set(name, ""),
            _ => (),
        }
        Ok(resp)
    }
}

fn host() -> TestHost {
    TestHost::new::<Does>("").on(Kind::CompiledIn)
}

fn open(path: &str) -> TestExchange {
    host().open(TestRequest::post(path).streaming())
}

/// An exchange whose response has begun.
fn answered(path: &str) -> TestExchange {
    let exchange = host().open(TestRequest::get(path));
    exchange.respond(TestResponse::new(200).streaming());
    exchange
}

/// Lets so many ticks pass, one by one.
fn pass(exchange: &TestExchange, ticks: u32) {
    for _ in 0..ticks {
        exchange.advance(TICK);
    }
}

fn at_upstream(exchange: &TestExchange) -> String {
    exchange.upstream().map(|request| request.text()).unwrap_or_default()
}

fn at_client(exchange: &TestExchange) -> String {
    exchange.response().map(|response| response.text()).unwrap_or_default()
}

#[test]
fn a_request_s_output_leaves_when_it_is_ready() {
    let exchange = open("/request/ticks");
    assert_eq!(at_upstream(&exchange), "one ", "nothing has come in yet");
    exchange.advance(TICK);
    assert_eq!(at_upstream(&exchange), "one two ");
    exchange.send_last("ignored");
    exchange.advance(TICK);
    assert_eq!(at_upstream(&exchange), "one two three");
    assert!(!exchange.upstream().unwrap().is_complete());
    exchange.advance(TICK);
    assert!(exchange.upstream().unwrap().is_complete());
}

#[test]
fn a_response_s_output_leaves_when_it_is_ready() {
    let exchange = answered("/response/ticks");
    assert_eq!(at_client(&exchange), "one ");
    exchange.respond_last("ignored");
    exchange.advance(TICK);
    assert_eq!(at_client(&exchange), "one two ");
    pass(&exchange, 2);
    assert_eq!(exchange.finish().text(), "one two three");
}

#[test]
fn headers_of_a_message_without_a_body_do_not_wait_for_the_body_that_it_gets() {
    let exchange = host().open(TestRequest::get("/request/crawls"));
    assert!(exchange.upstream().is_some());
    let exchange = host().open(TestRequest::get("/response/ticks"));
    exchange.respond(TestResponse::new(200));
    let response = exchange.response().unwrap();
    assert_eq!((response.status(), &*response.text()), (200, "one "));
    assert!(!response.is_complete());
}

#[test]
fn both_directions_go_on_at_once() {
    let exchange = open("/request/crawls");
    exchange.send("a");
    exchange.advance(TICK);
    exchange.respond(TestResponse::new(200).streaming());
    exchange.respond_chunk("1");
    exchange.send("b");
    exchange.advance(TICK);
    assert_eq!((&*at_upstream(&exchange), &*at_client(&exchange)), ("ab", "1"));
    exchange.send_last("");
    exchange.respond_last("2");
    assert_eq!(exchange.finish().text(), "12");
}

#[test]
fn a_full_upstream_holds_back_what_the_filter_makes() {
    let exchange = open("/request/floods");
    exchange.send_last("");
    exchange.advance(Duration::ZERO);
    let whole = at_upstream(&exchange).len();
    assert_eq!(whole, 64 * CHUNK, "with room, all of it goes");

    let exchange = host().open(TestRequest::post("/request/floods").streaming());
    exchange.upstream_watermark(true);
    exchange.upstream_watermark(true);
    let before = at_upstream(&exchange).len();
    exchange.send_last("");
    exchange.advance(TICK);
    assert_eq!(at_upstream(&exchange).len(), before);
    exchange.upstream_watermark(false);
    assert_eq!(at_upstream(&exchange).len(), before, "one reason is left");
    exchange.upstream_watermark(false);
    assert_eq!(at_upstream(&exchange).len(), 64 * CHUNK);
}

#[test]
fn a_full_client_holds_back_what_the_filter_makes() {
    let exchange = host().open(TestRequest::get("/response/floods"));
    exchange.client_watermark(true);
    exchange.respond(TestResponse::new(200).streaming());
    exchange.respond_last("");
    exchange.advance(TICK);
    assert!(exchange.response().is_some(), "headers are no output");
    assert_eq!(at_client(&exchange), "");
    exchange.client_watermark(false);
    assert_eq!(exchange.finish().text().len(), 64 * CHUNK);
}

/// While the next hop is full nobody reads, so the private buffer fills, and pauses the sender.
#[test]
fn what_is_not_read_pauses_the_sender_and_no_more() {
    let exchange =
        host().with_buffer_limit(100).open(TestRequest::post("/request/maps").streaming());
    exchange.send("early ");
    exchange.upstream_watermark(true);
    let mut sent = 0;
    // The pause is for the upstream, at first.
    while sent <= 100 {
        exchange.send("x".repeat(10));
        sent += 10;
    }
    assert_eq!(exchange.buffered(Direction::Request), sent);
    exchange.upstream_watermark(false);
    assert!(!exchange.client_is_paused());
    assert_eq!(exchange.buffered(Direction::Request), 0);
    exchange.send_last("");
    assert_eq!(at_upstream(&exchange), format!("EARLY {}", "X".repeat(sent)));
}

#[test]
fn a_slow_reader_pauses_the_sender() {
    let exchange = host().with_buffer_limit(100).open(TestRequest::get("/response/crawls"));
    exchange.respond(TestResponse::new(200).streaming());
    let mut sent = 0;
    while !exchange.upstream_is_paused() {
        exchange.respond_chunk("x".repeat(10));
        sent += 10;
        assert!(sent < 1_000);
    }
    assert_eq!(exchange.buffered(Direction::Response), 110, "one piece is being worked on");
    exchange.advance(TICK);
    assert!(!exchange.upstream_is_paused());
    exchange.respond_last("");
    pass(&exchange, 2);
    assert_eq!(exchange.finish().text().len(), sent);
}

/// A map has its output in the hook that brings the input: no post to the worker at all.
#[test]
fn a_change_that_does_not_wait_costs_no_wake() {
    let exchange = host().open(TestRequest::post("/request/maps").streaming());
    let model = exchange.model();
    model.client_data("piece ", false);
    model.client_data("by ", false);
    model.client_data("piece", true);
    assert!(!model.has_scheduled());
    assert_eq!(model.upstream().chunks, ["PIECE ", "BY ", "PIECE"]);
    assert!(model.upstream().ended);
}

/// The last filter lets the request go on when it likes. Envoy has the end on record; it must not go
/// before the output.
#[test]
fn a_later_filter_that_goes_on_by_itself_does_not_end_the_message() {
    let chain =
        Options { kind: Kind::CompiledIn, after: Some(Neighbour::Passes), ..Options::default() };
    let exchange = host().in_chain(chain).open(TestRequest::post("/request/crawls").streaming());
    exchange.model().hold(false, Direction::Request);
    exchange.send("a");
    exchange.advance(TICK);
    exchange.send_last("b");
    assert!(exchange.model().release(false, Direction::Request));
    assert!(!exchange.upstream().unwrap().is_complete());
    exchange.advance(TICK);
    assert_eq!(at_upstream(&exchange), "ab");
    assert!(exchange.upstream().unwrap().is_complete());
}

#[test]
fn a_request_gets_trailers() {
    for path in ["/request/counts", "/request/collects"] {
        let exchange = open(path);
        exchange.send("one ");
        exchange.send("two ");
        exchange.send_last("three");
        let upstream = exchange.upstream().unwrap();
        assert_eq!(
            (&*upstream.text(), upstream.trailer_text("x-count")),
            ("one two three", Some("13"))
        );
        assert!(upstream.is_complete());
    }
    let exchange = host().open(TestRequest::get("/request/counts-slowly"));
    assert_eq!(exchange.upstream().unwrap().trailer_text("x-count"), Some("0"));
}

#[test]
fn a_response_gets_trailers_even_late() {
    for path in ["/response/counts", "/response/counts-slowly"] {
        let exchange = answered(path);
        exchange.respond_chunk("one ");
        exchange.respond_chunk("two ");
        exchange.respond_last("three");
        let response = exchange.finish();
        assert_eq!(
            (&*response.text(), response.trailer_text("x-count")),
            ("one two three", Some("13"))
        );
        assert!(response.is_complete());
    }
}

/// What becomes of it is not known yet when its end comes.
#[test]
fn a_response_that_ended_while_it_was_held_gets_trailers() {
    let ended = |path: &str| {
        let exchange = host().open(TestRequest::get(path));
        exchange.respond(TestResponse::new(200).streaming());
        exchange.respond_chunk("one ");
        exchange.respond_last("two");
        assert!(exchange.response().is_none(), "it is held");
        pass(&exchange, 6);
        exchange
    };
    for path in ["/held/counts", "/held/counts-slowly"] {
        let response = ended(path).finish();
        assert_eq!(
            (&*response.text(), response.trailer_text("x-count")),
            ("one two", Some("7")),
            "{path}"
        );
        assert!(response.is_complete());
    }
    let response = ended("/held/replaces").finish();
    assert_eq!(
        (&*response.text(), response.trailer_text("x-count")),
        ("one two three", Some("13"))
    );
    for (path, body) in
        [("/held/none", "one two"), ("/held/buffers", "one two"), ("/held/becomes-204", "")]
    {
        let response = ended(path).finish();
        assert_eq!((&*response.text(), response.trailers()), (body, Some(&[][..])), "{path}");
        assert!(response.is_complete(), "{path}");
    }
}

/// Without a body, it ends with its headers.
#[test]
fn a_response_without_a_body_gets_no_trailers() {
    let exchange = host().open(TestRequest::get("/held/counts"));
    exchange.respond(TestResponse::new(200));
    pass(&exchange, 1);
    assert_eq!(exchange.finish().status(), 500);
}

#[test]
fn trailers_that_came_are_replaced() {
    let exchange = open("/request/counts-slowly");
    exchange.send("one");
    exchange.send_trailers(&[("x-last", "1")]);
    let upstream = exchange.upstream().unwrap();
    assert_eq!(upstream.trailer_text("x-count"), Some("3"));
    assert_eq!(upstream.trailer_text("x-last"), None);
}

/// Envoy has no place for them any more.
#[test]
fn trailers_of_a_request_that_are_late_fail_the_exchange() {
    let exchange = open("/request/counts-slowly");
    exchange.send_last("one");
    assert!(!exchange.upstream().unwrap().is_complete());
    assert_eq!(exchange.finish().status(), 500);
}

#[test]
fn a_reply_streams_although_the_request_has_gone() {
    let exchange = host().open(TestRequest::get("/gives-up/streams"));
    assert!(exchange.upstream().unwrap().is_complete());
    exchange.advance(TICK);
    let response = exchange.response().unwrap();
    assert_eq!((response.status(), &*response.text()), (202, ""));
    exchange.advance(TICK);
    assert_eq!(at_client(&exchange), "one ");
    exchange.client_watermark(true);
    pass(&exchange, 3);
    assert_eq!(at_client(&exchange), "one ");
    exchange.client_watermark(false);
    pass(&exchange, 3);
    let response = exchange.finish();
    assert_eq!(response.text(), "one two three");
    assert_eq!(response.trailers(), Some(&[][..]));
}

#[test]
fn a_reply_gets_trailers_although_the_request_has_gone() {
    let exchange = host().open(TestRequest::get("/gives-up/with-trailers"));
    exchange.advance(TICK);
    pass(&exchange, 4);
    let response = exchange.finish();
    assert_eq!((response.status(), &*response.text()), (202, "one two three"));
    assert_eq!(response.trailer_text("x-count"), Some("13"));
}

/// Once the reply has begun, another one that Envoy makes comes in its place.
#[test]
fn a_reply_that_streams_gives_way_to_one_that_envoy_makes() {
    let chain = Options {
        kind: Kind::CompiledIn,
        before: Some(Neighbour::Passes),
        late_end: true,
        ..Options::default()
    };
    let exchange = host().in_chain(chain).open(TestRequest::get("/gives-up/streams"));
    exchange.model().hold(true, Direction::Response);
    exchange.advance(TICK);
    exchange.local_reply(504, "too late");
    pass(&exchange, 5);
    let response = exchange.finish();
    assert_eq!((response.status(), &*response.text()), (504, "too late"));
}

#[test]
fn a_replacement_ends_with_its_own_body() {
    let exchange = answered("/replaces/streams");
    exchange.advance(TICK);
    assert_eq!(at_client(&exchange), "one ");
    pass(&exchange, 3);
    let response = exchange.finish();
    assert_eq!((response.status(), &*response.text()), (202, "one two three"));
    assert!(response.is_complete());
}

/// With trailers it has to wait: Envoy has a place for them where the upstream's response ends.
#[test]
fn a_replacement_with_trailers_ends_with_what_it_replaces() {
    let exchange = answered("/replaces/with-trailers");
    pass(&exchange, 5);
    assert_eq!(at_client(&exchange), "one two three");
    assert!(!exchange.is_over());
    exchange.respond_last("");
    let response = exchange.finish();
    assert_eq!(response.trailer_text("x-count"), Some("13"));
}

#[test]
fn an_empty_header_value_is_kept() {
    let exchange = host().open(TestRequest::get("/empty/x-empty"));
    exchange.respond(TestResponse::new(200));
    assert_eq!(exchange.finish().header_text("x-empty"), Some(""));
}
