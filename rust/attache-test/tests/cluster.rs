//! Calls to clusters: what a filter gets from them, and what becomes of them when it goes.

use std::cell::RefCell;
use std::time::Duration;

use attache_core::{
    Body, CalloutError, Cluster, ConfigError, Error, Filter, Next, Request, Response, Result,
    Setup, SharedCluster,
};
use attache_test::model::{Model, Options};
use attache_test::{ClusterAnswer, Clusters, TestHost, TestRequest, TestResponse};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::{Either, join_all, select};
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body::Frame;

thread_local! {
    /// A handle that has outlived its exchange.
    static STASH: RefCell<Option<Cluster>> = const { RefCell::new(None) };
}

/// Calls the cluster `c` in the way that the path names.
struct Caller {
    shared: SharedCluster,
}

fn kind<T>(result: std::result::Result<T, CalloutError>) -> Result<Response> {
    let text = match result {
        Ok(_) => "answered".to_owned(),
        Err(error) => format!("{:?}", error.kind()),
    };
    Ok(Response::text(StatusCode::OK, text))
}

fn pieces(count: usize, size: usize) -> Body {
    let pieces = (0..count).map(move |_| Ok::<_, Error>(Bytes::from(vec![b'x'; size])));
    Body::from_stream(futures_util::stream::iter(pieces))
}

impl Filter for Caller {
    type Config = ();
    type RouteConfig = ();

    fn new(_: (), setup: &mut Setup) -> Result<Self, ConfigError> {
        let shared = setup.cluster("c").with_timeout(Duration::from_secs(1));
        Ok(Caller { shared })
    }

    async fn handle(&self, mut req: Request, next: Next) -> Result<Response> {
        let c = req.cluster("c").with_timeout(Duration::from_secs(1));
        match &*req.path() {
            "/get" => {
                let answer = c.get("/check?a=b").header("x-in", "1").send().await?;
                let text = String::from_utf8_lossy(answer.body()).into_owned();
                Ok(Response::text(answer.status(), text))
            }
            "/kind" => kind(c.get("/").send().await),
            "/question-mark" => {
                c.get("/").send().await?;
                next.run(req).await
            }
            "/limit" => kind(c.get("/").limit(4).send().await),
            "/post" => kind(c.post("/").authority("a.test").body("a body").send().await),
            "/proxy" => {
                let body = req.take_body();
                Ok(c.post("/up").body(body).send_streaming().await?.into())
            }
            "/after" => {
                let mut response = next.run(req).await?;
                let answer = c.get("/").send().await?;
                response.headers_mut().set("x-answer", answer.status().as_str());
                Ok(response)
            }
            "/race" => {
                let slow = Box::pin(c.get("/slow").send());
                let time = Box::pin(tokio::time::sleep(Duration::from_millis(10)));
                match select(slow, time).await {
                    Either::Left((answer, _)) => kind(answer),
                    Either::Right(((), _)) => next.run(req).await,
                }
            }
            "/many" => {
                let calls = (0..100).map(|i| c.get(format!("/{i}")).send());
                let answers = join_all(calls).await;
                let good = answers.into_iter().filter(|a| a.is_ok()).count();
                Ok(Response::text(StatusCode::OK, good.to_string()))
            }
            "/panic" => {
                let _out = c.get("/").send_streaming().await?;
                panic!("while a call is out");
            }
            "/invalid-header" => kind(c.get("/").header("bad name", "x").send().await),
            "/invalid-value" => kind(c.get("/").header("x", "a\r\nb: c").send().await),
            "/invalid-path" => kind(c.get("/a b").send().await),
            "/invalid-authority" => kind(c.get("/").authority("a\r\nb").send().await),
            "/pseudo" => kind(c.get("/").header(":path", "/x").send().await),
            "/connection-headers" => {
                let call = c.post("/").header("Content-Length", "99").header("host", "h.test");
                kind(call.header("transfer-encoding", "gzip").body("abc").send().await)
            }
            "/upload-fails" => {
                let pieces = [Ok(Bytes::from("a")), Err(Error::new("no more"))];
                let body = Body::from_stream(futures_util::stream::iter(pieces));
                kind(c.post("/").body(body).send().await)
            }
            "/upload-large" => {
                kind(c.post("/").body(pieces(10, 1000)).request_limit(9_999).send().await)
            }
            "/upload" => kind(c.post("/").body(pieces(300, 1000)).send().await),
            "/trailers" => {
                let mut trailers = HeaderMap::new();
                trailers.insert("x-t", HeaderValue::from_static("1"));
                let frames = [Frame::data(Bytes::from("a")), Frame::trailers(trailers)];
                let frames = futures_util::stream::iter(frames.map(Ok::<_, std::io::Error>));
                let body = Body::from_http(http_body_util::StreamBody::new(frames));
                let answer = c.post("/").body(body).send_streaming().await?;
                let mut body = answer.into_body();
                let mut seen = Vec::new();
                while let Some(frame) = std::future::poll_fn(|cx| {
                    http_body::Body::poll_frame(std::pin::Pin::new(&mut body), cx)
                })
                .await
                {
                    seen.push(match frame?.into_data() {
                        Ok(data) => String::from_utf8_lossy(&data).into_owned(),
                        Err(frame) => format!("{:?}", frame.into_trailers().unwrap_or_default()),
                    });
                }
                Ok(Response::text(StatusCode::OK, seen.join(" ")))
            }
            "/broken-body" => {
                let mut body = c.get("/").send_streaming().await?.into_body();
                let mut seen = 0;
                let error = loop {
                    match body.next().await {
                        Some(Ok(chunk)) => seen += chunk.len(),
                        Some(Err(error)) => break error,
                        None => return Ok(Response::text(StatusCode::OK, "whole")),
                    }
                };
                let callout = error.source().and_then(|e| e.downcast_ref::<CalloutError>());
                let kind = callout.map(CalloutError::kind);
                Ok(Response::text(StatusCode::OK, format!("{seen} {kind:?} {:?}", error.kind())))
            }
            "/http" => {
                let request = http::Request::post("http://service.test/a?b")
                    .header("x-in", "1")
                    .header("host", "ignored.test")
                    .body(http_body_util::Full::new(Bytes::from("body")))?;
                let answer = c.request(request).await?;
                Ok(answer.into())
            }
            "/stash" => {
                STASH.set(Some(c));
                Ok(Response::new(StatusCode::OK))
            }
            "/use" => kind(STASH.take().ok_or(Error::new("nothing"))?.get("/").send().await),
            "/shared" => kind(self.shared.post("/s").body("shared").send().await),
            "/shared-task" => {
                let shared = self.shared.clone();
                let answer = attache_core::spawn(async move { shared.get("/").send().await });
                kind(answer.await?)
            }
            "/shared-dropped" => {
                let call = Box::pin(self.shared.get("/slow").send());
                let time = Box::pin(tokio::time::sleep(Duration::from_millis(10)));
                drop(select(call, time).await);
                next.run(req).await
            }
            _ => next.run(req).await,
        }
    }
}

fn host() -> TestHost {
    TestHost::new::<Caller>("")
}

fn answering<A: Into<ClusterAnswer>>(
    answer: impl Fn(&TestRequest) -> A + Send + Sync + 'static,
) -> TestHost {
    host().with_cluster("c", answer)
}

fn text(host: &TestHost, path: &str) -> String {
    host.request(TestRequest::get(path)).run().text()
}

#[test]
fn an_answer_comes_back_with_status_headers_and_body() {
    let host = answering(|request| {
        assert_eq!(request.header_text("x-in"), Some("1"));
        assert_eq!((request.method(), request.path()), ("GET", "/check?a=b"));
        assert_eq!(request.header_text(":authority"), Some("c"));
        assert_eq!(request.header_text("content-length"), None);
        TestResponse::new(418).chunk("short ").chunk("and stout")
    });
    let response = host.request(TestRequest::get("/get")).run();
    assert_eq!((response.status(), &*response.text()), (418, "short and stout"));
    assert_eq!(host.cancelled_calls("c"), 0);
}

#[test]
fn a_request_has_the_body_its_length_and_the_authority() {
    let host = answering(|request| {
        assert_eq!(request.text(), "a body");
        assert_eq!(request.header_text("content-length"), Some("6"));
        assert_eq!(request.header_text(":authority"), Some("a.test"));
        TestResponse::new(200)
    });
    assert_eq!(text(&host, "/post"), "answered");
}

#[test]
fn each_way_to_fail_has_its_kind() {
    assert_eq!(text(&host(), "/kind"), "UnknownCluster");
    for (answer, expected) in [
        (ClusterAnswer::from(TestResponse::new(503).body("my own")), "answered"),
        (ClusterAnswer::never(), "Timeout"),
        (ClusterAnswer::from(TestResponse::new(200)).after(Duration::from_secs(2)), "Timeout"),
        (ClusterAnswer::from(TestResponse::new(200)).after(Duration::from_millis(999)), "answered"),
        (TestResponse::new(200).chunk("half").streaming().into(), "Timeout"),
        (ClusterAnswer::reset(), "Reset"),
        (TestResponse::new(200).chunk("half").cut_off().into(), "Reset"),
        (ClusterAnswer::unavailable(), "Unavailable"),
        (ClusterAnswer::overflow(), "Overflow"),
    ] {
        let host = answering(move |_| answer.clone());
        assert_eq!(text(&host, "/kind"), expected);
    }
    let host = answering(|_| TestResponse::new(200).body("12345"));
    assert_eq!(text(&host, "/limit"), "TooLarge");
    assert_eq!(host.cancelled_calls("c"), 1);
    let host = answering(|_| TestResponse::new(200).body("1234"));
    assert_eq!(text(&host, "/limit"), "answered");
}

#[test]
fn an_error_has_the_status_that_a_gateway_gives() {
    for (answer, status) in [
        (ClusterAnswer::never(), 504),
        (ClusterAnswer::reset(), 502),
        (ClusterAnswer::unavailable(), 503),
        (ClusterAnswer::overflow(), 503),
        (TestResponse::new(500).into(), 200),
    ] {
        let host = answering(move |_| answer.clone());
        let response = host.request(TestRequest::get("/question-mark")).run();
        assert_eq!(response.status(), status);
    }
    assert_eq!(host().request(TestRequest::get("/question-mark")).run().status(), 500);
}

#[test]
fn nothing_invalid_reaches_envoy() {
    let host = answering(|_| TestResponse::new(200));
    for path in
        ["/invalid-header", "/invalid-value", "/invalid-path", "/invalid-authority", "/pseudo"]
    {
        assert_eq!(text(&host, path), "InvalidRequest", "{path}");
    }
    assert!(host.calls("c").is_empty());
    assert_eq!(text(&host, "/connection-headers"), "answered");
    let call = &host.calls("c")[0];
    assert_eq!(call.header_texts("content-length"), ["3"]);
    assert_eq!(call.header_text(":authority"), Some("h.test"));
    assert_eq!((call.header_text("host"), call.header_text("transfer-encoding")), (None, None));
}

#[test]
fn a_request_streams_through_a_cluster_and_its_answer_back() {
    let host = answering(|request| {
        assert_eq!(request.text(), "one two three");
        assert_eq!(request.header_text("content-length"), None);
        TestResponse::new(201).header("x-up", "1").chunk("four ").chunk("five")
    });
    let exchange = host.open(TestRequest::post("/proxy").streaming());
    exchange.send("one ");
    exchange.send("two ");
    exchange.send_last("three");
    assert!(exchange.upstream().is_none());
    let response = exchange.finish();
    assert_eq!(response.status(), 201);
    assert_eq!(response.header_text("x-up"), Some("1"));
    assert_eq!(response.text(), "four five");
}

#[test]
fn trailers_go_both_ways() {
    let host = answering(|request| {
        assert_eq!(request.trailer_text("x-t"), Some("1"));
        TestResponse::new(200).chunk("b").trailer("x-u", "2")
    });
    assert_eq!(text(&host, "/trailers"), r#"b {"x-u": "2"}"#);
}

#[test]
fn a_streamed_answer_that_breaks_off_is_an_error_after_what_came() {
    let broken = TestResponse::new(200).chunk("half").cut_off();
    let host = answering(move |_| broken.clone());
    assert_eq!(text(&host, "/broken-body"), "4 Some(Reset) Callout");
    let slow = TestResponse::new(200).chunk("half").streaming();
    let host = answering(move |_| slow.clone());
    assert_eq!(text(&host, "/broken-body"), "4 Some(Timeout) Callout");
    let host = answering(move |_| TestResponse::new(200).chunk("half"));
    assert_eq!(text(&host, "/broken-body"), "whole");
}

#[test]
fn a_streamed_request_has_a_limit_and_may_fail() {
    let host = answering(|_| TestResponse::new(200));
    assert_eq!(text(&host, "/upload-large"), "TooLarge");
    assert_eq!(text(&host, "/upload-fails"), "RequestBody");
    assert!(host.calls("c").is_empty());
    assert_eq!(host.cancelled_calls("c"), 2);
    assert_eq!(text(&host, "/upload"), "answered");
    assert_eq!(host.calls("c")[0].bytes().len(), 300_000);
}

#[test]
fn calls_work_after_next_has_run() {
    let host = answering(|_| TestResponse::new(204));
    let response = host.request(TestRequest::get("/after")).run();
    assert_eq!(response.header_text("x-answer"), Some("204"));
}

#[test]
fn a_dropped_future_cancels_its_call() {
    let host = answering(|_| ClusterAnswer::never());
    assert_eq!(host.request(TestRequest::get("/race")).run().status(), 200);
    assert_eq!((host.calls("c").len(), host.cancelled_calls("c")), (1, 1));
}

#[test]
fn a_stream_that_dies_cancels_its_calls() {
    let host = answering(|_| ClusterAnswer::never());
    let exchange = host.open(TestRequest::get("/kind"));
    assert_eq!(exchange.model().open_calls(), 1);
    exchange.client_resets();
    assert!(exchange.model().is_freed());
    assert_eq!((host.calls("c").len(), host.cancelled_calls("c")), (1, 1));
}

#[test]
fn a_reply_made_elsewhere_cancels_the_calls_of_a_request_that_waits() {
    let host = answering(|_| ClusterAnswer::never());
    let exchange = host.open(TestRequest::get("/kind"));
    exchange.local_reply(408, "too slow");
    assert_eq!(exchange.finish().status(), 408);
    assert_eq!(host.cancelled_calls("c"), 1);
}

#[test]
fn a_panic_while_a_call_is_out_costs_the_exchange_and_the_call() {
    let host = answering(|_| TestResponse::new(200).chunk("half").streaming());
    let response = host.request(TestRequest::get("/panic")).run();
    assert_eq!(response.status(), 500);
    assert_eq!((host.counter("attache.test.panics"), host.cancelled_calls("c")), (1, 1));
    assert_eq!(text(&host, "/broken-body"), "4 Some(Timeout) Callout");
}

#[test]
fn a_hundred_calls_at_once_all_come_back() {
    let host = answering(|_| ClusterAnswer::from(TestResponse::new(200)));
    assert_eq!(text(&host, "/many"), "100");
    assert_eq!(host.calls("c").len(), 100);
}

#[test]
fn a_handle_that_outlives_its_exchange_is_harmless() {
    let host = answering(|_| TestResponse::new(200));
    assert_eq!(host.request(TestRequest::get("/stash")).run().status(), 200);
    assert_eq!(text(&host, "/use"), "Gone");
    assert!(host.calls("c").is_empty());
}

#[test]
fn an_http_request_goes_as_it_is() {
    let host = answering(|request| {
        assert_eq!((request.method(), request.path()), ("POST", "/a?b"));
        assert_eq!(request.header_text(":authority"), Some("service.test"));
        assert_eq!(request.header_text(":scheme"), Some("http"));
        assert_eq!(request.header_text("x-in"), Some("1"));
        assert_eq!(request.header_text("content-length"), Some("4"));
        TestResponse::new(200).body(request.text() + "!")
    });
    assert_eq!(text(&host, "/http"), "body!");
}

#[test]
fn a_shared_cluster_works_from_exchanges_and_tasks() {
    let host = answering(|_| TestResponse::new(200));
    assert_eq!(text(&host, "/shared"), "answered");
    assert_eq!(host.calls("c")[0].text(), "shared");
    assert_eq!(text(&host, "/shared-task"), "answered");
    for (answer, expected) in [
        (ClusterAnswer::never(), "Timeout"),
        (ClusterAnswer::reset(), "Reset"),
        (ClusterAnswer::unavailable(), "Unavailable"),
        (TestResponse::new(200).chunk("half").cut_off().into(), "Reset"),
    ] {
        let host = host.with_cluster("c", move |_| answer.clone());
        assert_eq!(text(&host, "/shared-task"), expected);
    }
    assert_eq!(text(&TestHost::new::<Caller>(""), "/shared"), "UnknownCluster");
}

#[test]
fn a_dropped_future_cancels_a_shared_call() {
    let host = answering(|_| ClusterAnswer::never());
    assert_eq!(host.request(TestRequest::get("/shared-dropped")).run().status(), 200);
    assert_eq!((host.calls("c").len(), host.cancelled_calls("c")), (1, 1));
}

/// Whatever happens between which two events of a call, nothing of it is left.
#[test]
fn an_exchange_may_end_at_any_point_of_a_call() {
    type End = fn(&Model);
    let ends: [End; 4] = [
        Model::client_reset,
        |model| model.local_reply(503, "elsewhere"),
        |model| model.client_data("more", true),
        |_| (),
    ];
    let host = host();
    let field = |name: &str, value: &str| (name.to_owned(), Bytes::from(value.to_owned()));
    let mut points = 0;
    for path in ["/get", "/limit", "/proxy", "/after", "/panic", "/broken-body", "/upload"] {
        for (end, late_end) in ends.iter().flat_map(|end| [(end, false), (end, true)]) {
            for before in 0..6 {
                let clusters = Clusters::default();
                clusters.set("c", |_| {
                    TestResponse::new(200).chunk("a").chunk("b").trailer("t", "1").into()
                });
                let options = Options { clusters, late_end, ..Options::default() };
                let model = Model::new(&host.loaded(), options);
                let head = [(":method", "POST"), (":path", path), (":authority", "t")];
                let head = head.map(|(name, value)| field(name, value)).into();
                model.client_headers(head, false);
                model.client_data("some", false);
                for _ in 0..before {
                    model.run_call();
                    while model.run_scheduled() {}
                }
                end(&model);
                while model.run_scheduled() || model.run_call() {}
                model.client_reset();
                model.flush();
                let what = format!("{path}, {before} events before");
                assert_eq!(model.violations(), [], "{what}");
                assert!(model.is_freed(), "{what}");
                assert_eq!(model.open_calls(), 0, "{what}");
                points += 1;
            }
        }
    }
    assert_eq!(points, 7 * 8 * 6);
}
