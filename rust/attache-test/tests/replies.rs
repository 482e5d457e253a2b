//! Replies of a filter's own that are long, to clients that still send: when they end, and how they go.

use attache_core::{
    Attribute, Body, ConfigError, Error, Filter, Next, Request, Response, Result, Setup,
};
use attache_test::model::Kind;
use attache_test::{TestHost, TestRequest};
use bytes::Bytes;
use http::{Method, StatusCode};

const LONG: usize = 300_000;

/// More than a client surely has room for in HTTP/2.
fn long() -> Bytes {
    (0..LONG).map(|at| (at % 251) as u8).collect()
}

/// Answers as the path says, at once.
struct Answers;

impl Filter for Answers {
    type Config = ();
    type RouteConfig = ();

    fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Answers)
    }

    async fn handle(&self, mut req: Request, _: Next) -> Result<Response> {
        if req.headers().contains("x-late") {
            req.body_mut().chunk().await?;
        }
        let body = match req.path().as_str() {
            "/whole" => Body::from(long()),
            "/short" => Body::from(&b"short"[..]),
            "/streamed" => stream(None),
            // It still reads, for all that anybody knows.
            "/talks" => stream(Some(req.take_body())),
            other => return Err(Error::new(format!("no such path: {other}"))),
        };
        Ok(Response::new(StatusCode::OK).with_body(body))
    }
}

fn stream(holds: Option<Body>) -> Body {
    let chunks = [long(), Bytes::from_static(b"the last")];
    let chunks = chunks.into_iter().inspect(move |_| _ = &holds);
    Body::from_stream(futures_util::stream::iter(chunks.map(Ok::<_, Error>)))
}

fn hosts(protocol: &str) -> [TestHost; 2] {
    let host = TestHost::new::<Answers>("").with(Attribute::RequestProtocol, protocol);
    [host.clone(), host.on(Kind::CompiledIn)]
}

#[test]
fn over_http2_a_long_one_ends_when_its_request_has() {
    for host in hosts("HTTP/2") {
        for path in ["/whole", "/streamed"] {
            let exchange = host.open(TestRequest::post(path).streaming());
            exchange.send("more");
            let response = exchange.response().unwrap();
            assert!(response.bytes().starts_with(&long()), "{path}");
            assert!(!response.is_complete(), "{path}");
            assert!(response.chunks().iter().all(|chunk| chunk.len() <= 64 * 1024));
            exchange.send("and more");
            assert!(!exchange.client_is_paused(), "{path}");
            assert!(!exchange.response().unwrap().is_complete(), "{path}");
            if path == "/whole" {
                assert_eq!(response.header_text("content-length"), Some("300000"));
                assert_eq!(response.header_text("content-type"), Some("text/plain"));
                exchange.send_last("the end");
            } else {
                exchange.send_trailers(&[("x-end", "now")]);
            }
            assert!(exchange.finish().is_complete(), "{path}");
        }
    }
}

#[test]
fn a_client_that_goes_meanwhile_ends_it() {
    for host in hosts("HTTP/2") {
        let exchange = host.open(TestRequest::post("/whole").streaming());
        assert_eq!(exchange.response().unwrap().bytes().len(), LONG);
        exchange.client_resets();
        assert!(exchange.is_over());
    }
}

#[test]
fn it_goes_as_fast_as_the_client_reads() {
    for host in hosts("HTTP/2") {
        for path in ["/whole", "/streamed"] {
            let exchange = host.open(TestRequest::post(path).header("x-late", "1").streaming());
            exchange.client_watermark(true);
            exchange.send("now");
            exchange.send("more");
            assert_eq!(exchange.response().unwrap().bytes().len(), 0, "{path}");
            exchange.client_watermark(false);
            exchange.send_last("the end");
            let response = exchange.finish();
            assert!(response.bytes().starts_with(&long()) && response.is_complete(), "{path}");
        }
    }
}

#[test]
fn others_end_at_once() {
    let post = |path: &str| TestRequest::post(path);
    let cases = [
        ("HTTP/1.1", post("/whole"), LONG),
        ("HTTP/1.1", post("/streamed"), LONG + 8),
        ("HTTP/3", post("/whole"), LONG),
        ("HTTP/2", post("/short"), 5),
        ("HTTP/2", post("/talks"), LONG + 8),
        ("HTTP/2", post("/whole").header("content-type", "application/grpc"), 0),
        ("HTTP/2", post("/streamed").header("content-type", "application/grpc+x"), LONG + 8),
        ("HTTP/2", TestRequest::new(Method::CONNECT, "/whole"), LONG),
    ];
    for (protocol, request, length) in cases {
        for host in hosts(protocol) {
            let what = format!("{protocol} {request:?}");
            let response = host.open(request.clone().streaming()).finish();
            assert_eq!((response.bytes().len(), response.is_complete()), (length, true), "{what}");
        }
    }
}
