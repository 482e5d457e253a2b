//! `redact` without an Envoy.

use attache_test::{TestHost, TestRequest, TestResponse};
use proptest::prelude::*;
use redact::Redact;

const CONFIG: &str = r#"{"patterns": ["secret", "secretive"], "replacement": "*"}"#;

fn text(path: &str) -> TestRequest {
    TestRequest::post(path).header("content-type", "text/plain; charset=utf-8")
}

#[test]
fn both_directions_are_redacted_and_counted() {
    let host = TestHost::new::<Redact>(CONFIG);
    let response = host
        .request(text("/").body("a secret").trailer("x-end", "1"))
        .upstream(|request| {
            assert_eq!(request.text(), "a *");
            assert_eq!(request.trailer_text("x-end"), Some("1"));
            assert_eq!(request.header_text("content-length"), None);
            assert_eq!(request.header_text("accept-encoding"), Some("identity"));
            TestResponse::new(200)
                .header("content-type", "Application/JSON")
                .header("content-digest", "sha-256=:stale:")
                .body(r#"["secretive", "secrets"]"#)
        })
        .run();
    assert_eq!(response.text(), r#"["*", "*s"]"#);
    assert_eq!(response.header_text("content-digest"), None);
    assert_eq!(response.header_text("content-length"), None);
    assert_eq!(host.counter_with("test.replaced", &["request"]), 1);
    assert_eq!(host.counter_with("test.replaced", &["response"]), 2);
}

#[test]
fn bytes_go_on_as_soon_as_they_cannot_be_a_secret() {
    let host = TestHost::new::<Redact>(CONFIG);
    let exchange = host.open(text("/").streaming());
    exchange.send("one, ");
    assert_eq!(exchange.upstream().unwrap().text(), "one, ");
    exchange.send("two sec");
    assert_eq!(exchange.upstream().unwrap().text(), "one, two ");
    exchange.send("onds, secret");
    assert_eq!(exchange.upstream().unwrap().text(), "one, two seconds, ");
    exchange.send_last("");
    assert_eq!(exchange.upstream().unwrap().text(), "one, two seconds, *");
    exchange.respond(TestResponse::new(200));
    assert!(exchange.finish().is_complete());
}

#[test]
fn a_body_larger_than_the_buffer_streams_through() {
    let host = TestHost::new::<Redact>(CONFIG).with_buffer_limit(8192);
    let exchange = host.open(TestRequest::get("/"));
    let head = TestResponse::new(200).header("content-type", "text/plain");
    exchange.respond(head.streaming());
    let mut sent = 0;
    for _ in 0..64 {
        exchange.respond_chunk(vec![b's'; 1024]);
        sent += 1024;
    }
    exchange.respond_last("ecret");
    let text = exchange.finish().text();
    assert_eq!(text, format!("{}*", "s".repeat(sent - 1)));
}

#[test]
fn other_types_pass_untouched() {
    let host = TestHost::new::<Redact>(CONFIG);
    for kind in ["image/png", "application/jsonl", "texture/x", ""] {
        let response = host
            .request(TestRequest::post("/").header("content-type", kind).body("secret"))
            .upstream(|request| {
                assert_eq!(request.text(), "secret");
                assert_eq!(request.header_text("content-length"), Some("6"));
                TestResponse::new(200).body("secret")
            })
            .run();
        assert_eq!(response.text(), "secret", "{kind}");
    }
    let host = TestHost::new::<Redact>(r#"{"patterns": ["secret"], "content_types": ["*/*"]}"#);
    let response = host
        .request(TestRequest::get("/"))
        .upstream(|_| TestResponse::new(200).body("a secret"))
        .run();
    assert_eq!(response.text(), "a [redacted]");
}

#[test]
fn only_the_directions_that_are_named() {
    let host = TestHost::new::<Redact>(r#"{"patterns": ["secret"], "directions": ["request"]}"#);
    let response = host
        .request(text("/").header("accept-encoding", "gzip").body("a secret"))
        .upstream(|request| {
            assert_eq!(request.text(), "a [redacted]");
            assert_eq!(request.header_text("accept-encoding"), Some("gzip"));
            TestResponse::new(200).header("content-type", "text/html").body("a secret")
        })
        .run();
    assert_eq!(response.text(), "a secret");
}

#[test]
fn encoded_bodies_are_refused_or_pass() {
    let host = TestHost::new::<Redact>(CONFIG);
    let response = host.request(text("/").header("content-encoding", "br").body("?")).run();
    assert_eq!(response.status(), 415);
    let encoded = |_: &TestRequest| {
        let head = TestResponse::new(200).header("content-type", "text/plain");
        head.header("content-encoding", "gzip").body("secret")
    };
    let response = host.request(TestRequest::get("/")).upstream(encoded).run();
    assert_eq!(response.status(), 502);

    let host = TestHost::new::<Redact>(r#"{"patterns": ["secret"], "encoded": "pass"}"#);
    let response = host
        .request(text("/").header("content-encoding", "br").body("secret"))
        .upstream(move |request| {
            assert_eq!(request.text(), "secret");
            encoded(request)
        })
        .run();
    assert_eq!((response.status(), response.text()), (200, "secret".to_owned()));

    // `identity` is no coding.
    let host = TestHost::new::<Redact>(CONFIG);
    let response = host
        .request(text("/").header("content-encoding", "identity").body("secret"))
        .upstream(|request| TestResponse::new(200).body(request.bytes()))
        .run();
    assert_eq!(response.text(), "*");
}

#[test]
fn configs_that_make_no_sense_are_refused() {
    for (config, field) in [
        ("", "missing field `patterns`"),
        (r#"{"patterns": []}"#, "field `patterns`"),
        (r#"{"patterns": ["a", ""]}"#, "field `patterns[1]`"),
        (r#"{"patterns": ["a"], "replacement": "abc"}"#, "field `replacement`"),
        (r#"{"patterns": ["b"], "content_types": ["text"]}"#, "field `content_types[0]`"),
        (r#"{"patterns": ["b"], "encoded": "drop"}"#, "field `encoded`"),
    ] {
        let error = TestHost::try_new::<Redact>(config).unwrap_err();
        assert!(error.contains(field), "{config}: {error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_upstream_gets_the_same_however_the_body_is_cut(
        words in prop::collection::vec("secret|secretive|sec|ret|[a-z ]{1,5}", 0..30),
        cuts in prop::collection::vec(1..12_usize, 1..12),
    ) {
        let whole = words.concat();
        let host = TestHost::new::<Redact>(CONFIG);
        let exchange = host.open(text("/").streaming());
        let (mut rest, mut cuts) = (whole.as_str(), cuts.iter().cycle());
        while !rest.is_empty() {
            let (chunk, after) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
            exchange.send(chunk.to_owned());
            rest = after;
        }
        exchange.send_last("");
        let expected = whole.replace("secretive", "*").replace("secret", "*");
        prop_assert_eq!(exchange.upstream().unwrap().text(), expected);
        exchange.respond(TestResponse::new(200));
        prop_assert!(exchange.finish().is_complete());
    }
}
