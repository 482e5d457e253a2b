//! `api-key` without an Envoy.

use std::sync::Arc;
use std::time::Duration;

use api_key::{ApiKey, Config, Consumer, KeyStore, Lookup, Route};
use attache::prelude::*;
use attache_test::{TestHost, TestRequest, TestResponse};

/// The keys `alice-key`, which may read and write, and `bob-key`, which may read.
const CONFIG: &str = r#"{
    "realm": "tests",
    "scopes": ["read"],
    "keys": [
        {
            "consumer": "alice",
            "sha256": "72ee9d4355ccb9d3a4c9dbf37382e38e75c1b1a225b5bd1f729ee91bbda30c20",
            "scopes": ["read", "write"]
        },
        {
            "consumer": "bob",
            "sha256": "9B94DC1A51A38769F135EDF04033AD7F2F487B6C25929BE7A861CFC1AB10CF98",
            "scopes": ["read"]
        }
    ]
}"#;

fn with_key(key: &str) -> TestRequest {
    TestRequest::get("/").header("x-api-key", key.to_owned())
}

/// Whom the upstream saw, if the request got there.
fn consumer_of(host: &TestHost, request: TestRequest) -> Result<String, u16> {
    let response = host
        .request(request)
        .upstream(|request| {
            assert_eq!(request.header_text("x-api-key"), None, "the key went on");
            let consumers = request.header_texts("x-consumer").join(",");
            TestResponse::new(200).body(consumers)
        })
        .run();
    if response.status() == 200 { Ok(response.text()) } else { Err(response.status()) }
}

fn count(host: &TestHost, result: &str) -> u64 {
    host.counter_with("test.requests", &[result])
}

#[test]
fn the_upstream_learns_whose_key_it_was() {
    let host = TestHost::new::<ApiKey>(CONFIG);
    assert_eq!(consumer_of(&host, with_key("alice-key")), Ok("alice".into()));
    assert_eq!(consumer_of(&host, with_key("bob-key")), Ok("bob".into()));
    let spoofed = with_key("bob-key").header("x-consumer", "alice").header("X-Consumer", "root");
    assert_eq!(consumer_of(&host, spoofed), Ok("bob".into()));
    assert_eq!(count(&host, "allowed"), 3);
    assert_eq!(host.histogram("test.lookup_us").len(), 3);
}

#[test]
fn without_one_known_key_nobody_gets_through() {
    let host = TestHost::new::<ApiKey>(CONFIG);
    let response = host.request(TestRequest::get("/").header("x-consumer", "alice")).run();
    assert_eq!(response.status(), 401);
    let challenge = r#"ApiKey realm="tests", header="x-api-key""#;
    assert_eq!(response.header_text("www-authenticate"), Some(challenge));
    for (refused, result) in [
        (with_key("alice-kez"), "unknown"),
        (with_key("Alice-Key"), "unknown"),
        (with_key("alice-key ,bob-key"), "unknown"),
        (with_key("alice-key").header("x-api-key", "alice-key"), "missing"),
    ] {
        let before = count(&host, result);
        assert_eq!(consumer_of(&host, refused), Err(401));
        assert_eq!(count(&host, result), before + 1);
    }
}

#[test]
fn a_route_can_ask_for_more_or_for_nothing() {
    let host = TestHost::new::<ApiKey>(CONFIG);
    let admin = host.on_route(r#"{"scopes": ["read", "write"]}"#);
    assert_eq!(consumer_of(&admin, with_key("alice-key")), Ok("alice".into()));
    assert_eq!(consumer_of(&admin, with_key("bob-key")), Err(403));
    assert_eq!(consumer_of(&admin, with_key("?")), Err(401));
    assert_eq!(count(&host, "forbidden"), 1);

    let public = host.on_route(r#"{"disabled": true}"#);
    let spoofed = TestRequest::get("/").header("x-consumer", "alice");
    assert_eq!(consumer_of(&public, spoofed), Ok(String::new()));
    assert_eq!(count(&host, "skipped"), 1);

    let any = host.on_route(r#"{"scopes": []}"#);
    assert_eq!(consumer_of(&any, with_key("bob-key")), Ok("bob".into()));
    let error = host.try_on_route(r#"{"disable": true}"#).unwrap_err();
    assert!(error.contains("field `disable`"), "{error}");
}

#[test]
fn the_header_can_have_another_name() {
    let config = CONFIG.replacen('{', r#"{"header": "Authorization","#, 1);
    let host = TestHost::new::<ApiKey>(&config);
    let request = TestRequest::get("/").header("authorization", "bob-key");
    assert_eq!(consumer_of(&host, request), Ok("bob".into()));
}

#[test]
fn configs_that_make_no_sense_are_refused() {
    let hash = "0".repeat(64);
    let key = |consumer: &str| format!(r#"{{"consumer": "{consumer}", "sha256": "{hash}"}}"#);
    for (config, wanted) in [
        ("".to_owned(), "either `keys` or `keys_file`"),
        (r#"{"keys": [], "keys_file": "x"}"#.to_owned(), "either `keys` or `keys_file`"),
        (r#"{"keys": [{"consumer": "a", "sha256": "abc"}]}"#.to_owned(), "keys[0].sha256"),
        (format!(r#"{{"keys": [{}, {}]}}"#, key("a"), key("b")), "keys[1]"),
        (format!(r#"{{"keys": [{}]}}"#, key("a b")), "keys[0]"),
        (r#"{"keys": [], "header": "no header"}"#.to_owned(), "`header`"),
        (r#"{"keys": [], "header": "X-Consumer"}"#.to_owned(), "`header`"),
        (r#"{"keys": [], "realm": "\""}"#.to_owned(), "`realm`"),
        (r#"{"keys_file": "x", "reload_ms": 0}"#.to_owned(), "`reload_ms`"),
    ] {
        let Err(error) = TestHost::try_new::<ApiKey>(&config) else { panic!("{config} is fine") };
        assert!(error.contains(wanted), "{config}: {error}");
        assert!(!error.contains("abc"), "it shows what may be a key: {error}");
    }
}

/// A store that is far away: it answers after a while, or never, or that it cannot.
struct Remote;

impl KeyStore for Remote {
    fn lookup<'a>(&'a self, key: &'a [u8]) -> Lookup<'a> {
        Box::pin(async move {
            match key {
                b"slow" => tokio::time::sleep(Duration::from_millis(200)).await,
                b"stuck" => std::future::pending().await,
                b"broken" => return Err(Error::new("no route to the store")),
                _ => return Ok(None),
            }
            Ok(Some(Arc::new(Consumer { name: "far".into(), scopes: vec!["read".into()] })))
        })
    }
}

struct WithRemote(ApiKey);

impl Filter for WithRemote {
    type Config = Config;
    type RouteConfig = Route;

    fn new(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        ApiKey::with_store(config, Box::new(Remote), setup).map(WithRemote)
    }

    async fn handle(&self, req: Request, next: Next) -> Result<Response> {
        self.0.handle(req, next).await
    }
}

#[test]
fn a_lookup_is_awaited_and_fails_closed() {
    let host = TestHost::new::<WithRemote>("");
    let exchange = host.open(with_key("slow"));
    exchange.advance(Duration::from_millis(199));
    assert!(exchange.upstream().is_none(), "it did not wait for the lookup");
    exchange.advance(Duration::from_millis(1));
    assert_eq!(exchange.upstream().unwrap().header_text("x-consumer"), Some("far"));
    exchange.respond(TestResponse::new(200));
    assert_eq!(exchange.finish().status(), 200);

    assert_eq!(consumer_of(&host, with_key("broken")), Err(503));
    assert_eq!(consumer_of(&host, with_key("stuck")), Err(503));
    assert_eq!(consumer_of(&host, with_key("other")), Err(401));
    assert_eq!(count(&host, "unavailable"), 2);

    // A client that does not wait for the end costs nothing.
    host.open(with_key("stuck")).client_resets();
    assert_eq!(count(&host, "unavailable"), 2);
}

#[test]
fn keys_in_a_file_are_read_again_when_it_changes() {
    // SHA-256 of `one` and of `two`.
    const ONE: &str = "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed";
    const TWO: &str = "3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3";
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("keys.json");
    let write = |hash: &str| {
        let new = file.with_extension("new");
        std::fs::write(&new, format!(r#"[{{"consumer": "a", "sha256": "{hash}"}}]"#)).unwrap();
        std::fs::rename(new, &file).unwrap();
    };
    let host = TestHost::new::<ApiKey>(&format!(r#"{{"keys_file": "{}"}}"#, file.display()));
    let becomes = |key: &str, wanted: Result<String, u16>| {
        for _ in 0..1000 {
            if consumer_of(&host, with_key(key)) == wanted {
                return;
            }
            host.advance(Duration::from_secs(1));
        }
        panic!("{key} never became {wanted:?}");
    };
    assert_eq!(consumer_of(&host, with_key("one")), Err(503));
    write(ONE);
    becomes("one", Ok("a".into()));
    let failures = host.counter("test.reload_failures");
    write("no hash");
    while host.counter("test.reload_failures") == failures {
        becomes("one", Ok("a".into()));
        host.advance(Duration::from_secs(1));
    }
    write(TWO);
    becomes("one", Err(401));
    becomes("two", Ok("a".into()));
}
