//! `ext-authz` without an Envoy.

use std::time::Duration;

use attache_test::{ClusterAnswer, TestHost, TestRequest, TestResponse};
use ext_authz::ExtAuthz;

const CONFIG: &str = r#"{
    "cluster": "authz",
    "path_prefix": "/check",
    "upstream_headers": ["x-user"],
    "cache": {"ttl_ms": 5000, "refusal_ttl_ms": 1000, "entries": 2}
}"#;

fn host() -> TestHost {
    TestHost::new::<ExtAuthz>(CONFIG)
}

/// Lets `alice` and `bob` pass.
fn service(request: &TestRequest) -> TestResponse {
    match request.header_text("authorization") {
        Some(name @ ("alice" | "bob")) => {
            TestResponse::new(200).header("x-user", name.to_owned()).header("x-other", "1")
        }
        _ => TestResponse::new(401)
            .header("www-authenticate", "Basic")
            .header("x-secret", "1")
            .body("who are you?"),
    }
}

fn of(name: &str) -> TestRequest {
    TestRequest::get("/data").header("authorization", name.to_owned())
}

/// Whom the upstream saw, if the request got there.
fn user(host: &TestHost, request: TestRequest) -> Result<String, u16> {
    let response = host
        .request(request)
        .upstream(|request| TestResponse::new(200).body(request.header_texts("x-user").join(",")))
        .run();
    if response.status() == 200 { Ok(response.text()) } else { Err(response.status()) }
}

fn count(host: &TestHost, result: &str) -> u64 {
    host.counter_with("test.requests", &[result])
}

#[test]
fn a_consent_lets_the_request_pass_with_the_headers_of_the_answer() {
    let host = host().with_cluster("authz", |request| {
        assert_eq!((request.method(), request.path()), ("POST", "/check/data?a=b"));
        assert_eq!(request.header_text(":authority"), Some("test"));
        assert_eq!(request.header_text("x-private"), None);
        assert!(request.bytes().is_empty());
        service(request)
    });
    let request = TestRequest::post("/data?a=b")
        .header("authorization", "alice")
        .header("x-private", "1")
        .header("x-user", "root")
        .body("a body");
    let response = host
        .request(request)
        .upstream(|request| {
            assert_eq!(request.header_texts("x-user"), ["alice"]);
            assert_eq!(request.header_text("x-other"), None);
            assert_eq!(request.text(), "a body");
            TestResponse::new(204)
        })
        .run();
    assert_eq!(response.status(), 204);
    assert_eq!((count(&host, "allowed"), host.histogram("test.call_us").len()), (1, 1));
}

#[test]
fn a_refusal_goes_to_the_client() {
    let host = host().with_cluster("authz", service);
    let response = host.request(TestRequest::get("/data")).run();
    assert_eq!((response.status(), &*response.text()), (401, "who are you?"));
    assert_eq!(response.header_text("www-authenticate"), Some("Basic"));
    assert_eq!(response.header_text("x-secret"), None);
    assert_eq!(count(&host, "denied"), 1);
    // A success that is not the one that was asked for is no consent.
    for status in [201, 204] {
        let host = TestHost::new::<ExtAuthz>(CONFIG)
            .with_cluster("authz", move |_| TestResponse::new(status));
        assert_eq!(user(&host, of("alice")), Err(403));
    }
    let host = TestHost::new::<ExtAuthz>(CONFIG)
        .with_cluster("authz", |_| TestResponse::new(302).header("location", "/login"));
    let response = host.request(of("alice")).run();
    assert_eq!((response.status(), response.header_text("location")), (302, Some("/login")));
}

#[test]
fn whatever_goes_wrong_nothing_passes() {
    for answer in [
        ClusterAnswer::never(),
        ClusterAnswer::reset(),
        ClusterAnswer::unavailable(),
        ClusterAnswer::overflow(),
        TestResponse::new(200).chunk("half").cut_off().into(),
        TestResponse::new(200).chunk("half").streaming().into(),
        TestResponse::new(200).body(vec![b'x'; 64 * 1024 + 1]).into(),
        ClusterAnswer::from(TestResponse::new(200)).after(Duration::from_millis(200)),
    ] {
        let host = host().with_cluster("authz", move |_| answer.clone());
        assert_eq!(user(&host, of("alice")), Err(403));
        assert_eq!(count(&host, "failed"), 1);
        // It is not remembered.
        let host = host.with_cluster("authz", service);
        assert_eq!(user(&host, of("alice")), Ok("alice".into()));
    }
    assert_eq!(user(&host(), of("alice")), Err(403), "the cluster is not there");
    let other = CONFIG.replace("{\n    \"cluster\"", "{\"status_on_error\": 503, \"cluster\"");
    assert_eq!(user(&TestHost::new::<ExtAuthz>(&other), of("alice")), Err(503));
}

#[test]
fn answers_are_remembered_for_their_time() {
    let host = host().with_cluster("authz", service);
    let calls = |host: &TestHost| host.calls("authz").len();
    for _ in 0..3 {
        assert_eq!(user(&host, of("alice")), Ok("alice".into()));
    }
    assert_eq!((calls(&host), count(&host, "allowed_cached")), (1, 2));
    host.advance(Duration::from_millis(4999));
    assert_eq!(user(&host, of("alice")), Ok("alice".into()));
    assert_eq!(calls(&host), 1);
    host.advance(Duration::from_millis(1));
    assert_eq!(user(&host, of("alice")), Ok("alice".into()));
    assert_eq!(calls(&host), 2);

    assert_eq!(user(&host, of("mallory")), Err(401));
    host.advance(Duration::from_millis(999));
    assert_eq!(user(&host, of("mallory")), Err(401));
    assert_eq!((calls(&host), count(&host, "denied_cached")), (3, 1));
    host.advance(Duration::from_millis(1));
    assert_eq!(user(&host, of("mallory")), Err(401));
    assert_eq!(calls(&host), 4);
}

#[test]
fn only_so_many_answers_are_remembered() {
    let host = host().with_cluster("authz", service);
    for name in ["alice", "bob", "alice", "mallory", "alice", "bob"] {
        let _ = user(&host, of(name));
    }
    // `bob` was the least used of two when `mallory` came.
    let asked: Vec<_> = host.calls("authz");
    let asked: Vec<_> = asked.iter().filter_map(|call| call.header_text("authorization")).collect();
    assert_eq!(asked, ["alice", "bob", "mallory", "bob"]);
}

#[test]
fn an_answer_is_for_the_same_question_only() {
    let host = host().with_cluster("authz", service);
    let same = [of("alice"), of("alice").header("x-private", "1"), of("alice").header("a", "b")];
    let different = [
        TestRequest::post("/data").header("authorization", "alice"),
        TestRequest::get("/data?").header("authorization", "alice"),
        of("alice").header(":authority", "other"),
        of("alice").header("authorization", "alice"),
        of("alic").header("authorization", "e"),
        TestRequest::get("/data"),
    ];
    let expected = 1 + different.len();
    for request in same.into_iter().chain(different) {
        host.request(request).run();
    }
    assert_eq!(host.calls("authz").len(), expected);
}

#[test]
fn equal_questions_are_asked_once() {
    let slow = |request: &TestRequest| {
        ClusterAnswer::from(service(request)).after(Duration::from_millis(100))
    };
    let host = host().with_cluster("authz", slow);
    let waiting: Vec<_> = (0..5).map(|_| host.open(of("alice"))).collect();
    let other = host.open(of("bob"));
    assert_eq!(host.calls("authz").len(), 2);
    waiting[0].advance(Duration::from_millis(100));
    for exchange in waiting.iter().chain([&other]) {
        exchange.advance(Duration::ZERO);
        assert!(exchange.upstream().is_some());
        exchange.respond(TestResponse::new(200));
    }
    assert_eq!((count(&host, "allowed"), count(&host, "allowed_joined")), (2, 4));
    assert_eq!(host.calls("authz").len(), 2);
}

#[test]
fn when_the_one_that_asks_leaves_another_takes_over() {
    let slow = |request: &TestRequest| {
        ClusterAnswer::from(service(request)).after(Duration::from_millis(100))
    };
    let host = host().with_cluster("authz", slow);
    let first = host.open(of("alice"));
    let second = host.open(of("alice"));
    let third = host.open(of("alice"));
    assert_eq!(host.calls("authz").len(), 1);
    first.client_resets();
    second.advance(Duration::ZERO);
    third.advance(Duration::ZERO);
    assert_eq!((host.calls("authz").len(), host.cancelled_calls("authz")), (2, 1));
    second.advance(Duration::from_millis(100));
    third.advance(Duration::ZERO);
    for exchange in [second, third] {
        assert!(exchange.upstream().is_some());
        exchange.respond(TestResponse::new(200));
        assert_eq!(exchange.finish().status(), 200);
    }
    assert_eq!(host.calls("authz").len(), 2);
}

#[test]
fn a_failure_is_told_to_all_who_wait() {
    let host = host().with_cluster("authz", |_| ClusterAnswer::never());
    let waiting: Vec<_> = (0..3).map(|_| host.open(of("alice"))).collect();
    waiting[0].advance(Duration::from_millis(200));
    for exchange in waiting {
        exchange.advance(Duration::ZERO);
        assert_eq!(exchange.finish().status(), 403);
    }
    assert_eq!((host.calls("authz").len(), count(&host, "failed_joined")), (1, 2));
}

#[test]
fn a_route_may_ask_nobody() {
    let host = host().on_route(r#"{"disabled": true}"#);
    let spoofed = TestRequest::get("/data").header("x-user", "root");
    assert_eq!(user(&host, spoofed), Ok(String::new()));
    assert_eq!(count(&host, "skipped"), 1);
}

#[test]
fn a_question_need_not_tell_of_the_request() {
    let config = r#"{"cluster": "authz", "path_prefix": "/check", "ask_by_request": false}"#;
    let host = TestHost::new::<ExtAuthz>(config).with_cluster("authz", service);
    assert_eq!(user(&host, of("alice")), Ok(String::new()));
    let post = TestRequest::post("/other").header("authorization", "alice");
    assert_eq!(user(&host, post), Ok(String::new()));
    let calls = host.calls("authz");
    assert_eq!(calls.len(), 1);
    assert_eq!((calls[0].method(), calls[0].path()), ("GET", "/check"));
    assert_eq!(calls[0].header_text(":authority"), Some("authz"));
}

#[test]
fn a_config_that_cannot_work_is_refused() {
    for (config, part) in [
        (r#"{}"#, "missing field `cluster`"),
        (r#"{"cluster": ""}"#, "field `cluster`"),
        (r#"{"cluster": "a", "path_prefix": "x"}"#, "field `path_prefix`"),
        (r#"{"cluster": "a", "timeout_ms": 0}"#, "field `timeout_ms`"),
        (r#"{"cluster": "a", "status_on_error": 200}"#, "field `status_on_error`"),
        (r#"{"cluster": "a", "headers": ["ok", "not ok"]}"#, "field `headers[1]`"),
        (r#"{"cluster": "a", "cache": {"entries": 0}}"#, "field `cache.entries`"),
        (r#"{"cluster": "a", "cache": {"tll_ms": 0}}"#, "field `cache.tll_ms`"),
    ] {
        let error = TestHost::try_new::<ExtAuthz>(config).unwrap_err();
        assert!(error.contains(part), "{error}");
    }
}
