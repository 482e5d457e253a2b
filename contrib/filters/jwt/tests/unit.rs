//! `jwt` without an Envoy.

mod issuer;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use attache_test::{ClusterAnswer, TestHost, TestRequest, TestResponse};
use issuer::{Signer, claims, claims_with, ec, ed, jwks, now, other_rsa, rsa, short_rsa};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use jwt::Jwt;
use serde_json::{Value, json};

fn config() -> Value {
    json!({
        "issuer": "https://issuer.test",
        "audiences": ["us"],
        "jwks": {"cluster": "keys", "path": "/jwks", "refresh_ms": 60_000, "keep_ms": 200_000},
        "claims_to_headers": {"sub": "x-user", "admin": "x-admin"},
    })
}

/// A filter whose issuer has these keys, which can be changed.
fn host_with(config: &Value, keys: Vec<Value>) -> (TestHost, Arc<Mutex<Vec<Value>>>) {
    let keys = Arc::new(Mutex::new(keys));
    let served = keys.clone();
    let host = TestHost::new::<Jwt>(&config.to_string()).with_cluster("keys", move |request| {
        assert_eq!((request.method(), request.path()), ("GET", "/jwks"));
        TestResponse::new(200).body(jwks(&served.lock().unwrap()))
    });
    (host, keys)
}

fn host(keys: &[&Signer]) -> TestHost {
    host_with(&config(), keys.iter().map(|key| key.jwk()).collect()).0
}

fn bearing(token: &str) -> TestRequest {
    TestRequest::get("/").header("authorization", format!("Bearer {token}"))
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

const ALICE: Result<&str, u16> = Ok("alice");

fn passes(host: &TestHost, token: &str) -> bool {
    let user = user(host, bearing(token));
    assert!(matches!(user.as_deref(), Ok("alice") | Err(&401)), "{user:?}");
    user.is_ok()
}

#[test]
fn a_token_of_each_kind_of_key_passes() {
    let (rsa, ec, ed) = (rsa("r"), ec("e"), ed("d"));
    let host = host(&[&rsa, &ec, &ed]);
    for signer in [&rsa, &ec, &ed] {
        let token = signer.sign(&claims());
        let spoofed = bearing(&token).header("x-user", "root").header("x-admin", "true");
        let response = host
            .request(spoofed)
            .upstream(move |request| {
                assert_eq!(request.header_text("authorization"), Some(&*format!("Bearer {token}")));
                assert_eq!(request.header_texts("x-admin"), [""; 0]);
                TestResponse::new(200).body(request.header_texts("x-user").join(","))
            })
            .run();
        assert_eq!(response.text(), "alice");
    }
    assert_eq!((host.calls("keys").len(), count(&host, "allowed")), (1, 3));
}

#[test]
fn without_one_token_there_is_no_way_through() {
    let signer = rsa("r");
    let host = host(&[&signer]);
    let token = signer.sign(&claims());
    let with = |value: String| TestRequest::get("/").header("authorization", value);
    for request in [
        TestRequest::get("/"),
        with(token.clone()),
        with(format!("Basic {token}")),
        with("Bearer ".to_owned()),
        bearing(&token).header("authorization", format!("Bearer {token}")),
    ] {
        let response = host.request(request).run();
        assert_eq!(response.status(), 401);
        assert_eq!(response.header_text("www-authenticate"), Some("Bearer realm=\"api\""));
    }
    assert_eq!(count(&host, "missing"), 5);
    let lower = TestRequest::get("/").header("authorization", format!("bearer {token}"));
    assert_eq!(user(&host, lower).as_deref(), ALICE.as_ref().copied());
}

#[test]
fn claims_are_checked_with_room_for_clocks_that_differ() {
    let signer = ed("d");
    let host = host(&[&signer]);
    let now = now();
    for (changes, passed) in [
        (json!({"exp": now - 30}), true),
        (json!({"exp": now - 120}), false),
        (json!({"nbf": now + 30}), true),
        (json!({"nbf": now + 120}), false),
        (json!({"exp": null}), false),
        (json!({"exp": "tomorrow"}), false),
        (json!({"iss": "https://other.test"}), false),
        (json!({"iss": null}), false),
        (json!({"aud": ["them", "us"]}), true),
        (json!({"aud": "them"}), false),
        (json!({"aud": null}), false),
    ] {
        assert_eq!(passes(&host, &signer.sign(&claims_with(changes.clone()))), passed, "{changes}");
    }
    let response = host.request(bearing(&signer.sign(&claims_with(json!({"aud": "x"}))))).run();
    let challenge = "Bearer realm=\"api\", error=\"invalid_token\"";
    assert_eq!(response.header_text("www-authenticate"), Some(challenge));
    assert!(!response.text().contains("aud"), "the reason is not the client's concern");

    let mut strict = config();
    strict["leeway_s"] = json!(0);
    let (host, _) = host_with(&strict, vec![signer.jwk()]);
    assert!(!passes(&host, &signer.sign(&claims_with(json!({"exp": now - 30})))));
}

#[test]
fn a_key_decides_which_algorithm_it_is_for() {
    let (r, e) = (rsa("r"), ec("e"));
    let mut all = config();
    all["algorithms"] = json!(["RS256", "RS512", "PS256", "ES256", "EdDSA"]);
    let (host, _) = host_with(&all, vec![r.jwk(), e.jwk()]);
    assert!(passes(&host, &r.sign(&claims())));
    // The key says RS256, and nothing else will do.
    assert!(!passes(&host, &r.sign_as(Algorithm::RS512, &claims())));
    assert!(!passes(&host, &r.sign_as(Algorithm::PS256, &claims())));
    // A key of another kind under its name.
    assert!(!passes(&host, &Signer { kid: "r", ..e.clone() }.sign(&claims())));
    assert!(!passes(&host, &Signer { kid: "e", ..r.clone() }.sign(&claims())));
    // What everybody knows as a secret.
    for secret in [r.jwk()["n"].as_str().unwrap().to_owned(), jwks(&[r.jwk()])] {
        let key = EncodingKey::from_secret(secret.as_bytes());
        for algorithm in [Algorithm::HS256, Algorithm::HS512] {
            let forged = Signer { kid: "r", algorithm, key: key.clone() };
            assert!(!passes(&host, &forged.sign(&claims())));
        }
    }
    // No signature at all. The head is {"alg":"none"}.
    let payload = r.sign(&claims());
    let payload = payload.split('.').nth(1).unwrap();
    assert!(!passes(&host, &format!("eyJhbGciOiJub25lIn0.{payload}.")));
    // A signature of something else.
    let other = r.sign(&claims_with(json!({"sub": "root"})));
    let (head, _) = other.split_once('.').unwrap();
    let signature = other.rsplit('.').next().unwrap();
    assert!(!passes(&host, &format!("{head}.{payload}.{signature}")));
    // The config allows less than the key.
    let mut less = config();
    less["algorithms"] = json!(["ES256"]);
    let (host, _) = host_with(&less, vec![r.jwk(), e.jwk()]);
    assert!(!passes(&host, &r.sign(&claims())));
    assert!(passes(&host, &e.sign(&claims())));
}

#[test]
fn what_is_no_token_is_refused() {
    let signer = rsa("r");
    let host = host(&[&signer]);
    let long = signer.sign(&claims_with(json!({"x": "x".repeat(20_000)})));
    let header = Header {
        kid: Some("r".to_owned()),
        crit: Some(vec!["b64".to_owned()]),
        ..Header::new(Algorithm::RS256)
    };
    let critical = encode(&header, &claims(), &signer.key).unwrap();
    for token in ["x", "a.b", "a.b.c", "..", "a.b.c.d", &long, &critical] {
        assert!(!passes(&host, token), "{token}");
    }
    let newline = signer.sign(&claims_with(json!({"sub": "a\r\nx-admin: true"})));
    assert!(!passes(&host, &newline));
}

#[test]
fn keys_that_cannot_be_used_are_passed_over() {
    let good = rsa("good");
    let with = |mut key: Value, field: &str, value: Value| {
        key[field] = value;
        key
    };
    let no_kid = |mut key: Value| {
        key.as_object_mut().unwrap().remove("kid");
        key
    };
    let keys = vec![
        json!("no key"),
        json!({"kty": "oct", "kid": "secret", "k": "c2VjcmV0", "alg": "HS256"}),
        short_rsa("short").jwk(),
        with(other_rsa("sealing").jwk(), "use", json!("enc")),
        with(ec("signing").jwk(), "key_ops", json!(["sign"])),
        no_kid(ed("").jwk()),
        good.jwk(),
    ];
    let (host, _) = host_with(&config(), keys);
    assert!(passes(&host, &good.sign(&claims())));
    for signer in [short_rsa("short"), other_rsa("sealing"), ec("signing")] {
        assert!(!passes(&host, &signer.sign(&claims())), "{}", signer.kid);
    }
    let secret = EncodingKey::from_secret(b"secret");
    let forged = Signer { kid: "secret", algorithm: Algorithm::HS256, key: secret };
    assert!(!passes(&host, &forged.sign(&claims())));
    // Without a key id, each key of the algorithm may be it.
    let bare =
        |signer: &Signer| encode(&Header::new(signer.algorithm), &claims(), &signer.key).unwrap();
    assert!(passes(&host, &bare(&ed(""))));
    assert!(passes(&host, &bare(&good)));
    assert!(!passes(&host, &bare(&other_rsa(""))));
}

#[test]
fn keys_are_fetched_again_and_old_ones_forgotten() {
    let (old, new) = (rsa("old"), other_rsa("new"));
    let (host, keys) = host_with(&config(), vec![old.jwk()]);
    assert!(passes(&host, &old.sign(&claims())));
    *keys.lock().unwrap() = vec![new.jwk()];
    assert!(passes(&host, &old.sign(&claims())));
    host.advance(Duration::from_secs(60));
    assert!(passes(&host, &new.sign(&claims())));
    assert!(!passes(&host, &old.sign(&claims())));
    assert_eq!(host.counter_with("test.refreshes", &["done"]), 2);
}

/// Has the keys fetched again. The task gets its turn while requests are served.
fn fetch_again(host: &TestHost) {
    let done = || host.counter_with("test.refreshes", &["done"]);
    let before = done();
    host.advance(Duration::from_secs(60));
    for _ in 0..100 {
        if done() > before {
            return;
        }
        host.request(TestRequest::get("/")).run();
    }
    panic!("the keys were not fetched again");
}

#[test]
fn a_token_is_checked_once_for_as_long_as_the_keys_are_the_same() {
    let (old, new) = (rsa("old"), other_rsa("new"));
    let (host, keys) = host_with(&config(), vec![old.jwk()]);
    let remembered = |host: &TestHost| host.counter("test.remembered");
    let token = old.sign(&claims());
    for times in 0..3 {
        assert!(passes(&host, &token));
        assert_eq!(remembered(&host), times);
    }
    // What is not valid is checked each time, and another token is another token.
    let expired = old.sign(&claims_with(json!({"exp": now() - 120})));
    for _ in 0..2 {
        assert!(!passes(&host, &expired));
        assert!(!passes(&host, &token[..token.len() - 1]));
    }
    assert_eq!(remembered(&host), 2);
    // The same keys, fetched again.
    fetch_again(&host);
    assert!(passes(&host, &token));
    assert_eq!((remembered(&host), host.counter_with("test.refreshes", &["done"])), (3, 2));
    // With other keys it is checked again, though its own is still there.
    *keys.lock().unwrap() = vec![old.jwk(), new.jwk()];
    fetch_again(&host);
    assert!(passes(&host, &token));
    assert_eq!(remembered(&host), 3);
    assert!(passes(&host, &token));
    assert_eq!(remembered(&host), 4);
    // And without its own it is nothing any more.
    *keys.lock().unwrap() = vec![new.jwk()];
    fetch_again(&host);
    assert!(!passes(&host, &token));
    assert_eq!(remembered(&host), 4);
}

#[test]
fn a_remembered_token_brings_the_same_headers() {
    let signer = ed("d");
    let host = host(&[&signer]);
    let token = signer.sign(&claims_with(json!({"admin": true})));
    for _ in 0..2 {
        let spoofed = bearing(&token).header("x-user", "root").header("x-admin", "false");
        let response = host
            .request(spoofed)
            .upstream(|request| {
                assert_eq!(request.header_texts("x-user"), ["alice"]);
                assert_eq!(request.header_texts("x-admin"), ["true"]);
                TestResponse::new(204)
            })
            .run();
        assert_eq!(response.status(), 204);
    }
    assert_eq!(host.counter("test.remembered"), 1);
}

#[test]
fn without_a_cache_each_token_is_checked_each_time() {
    let signer = ed("d");
    let mut config = config();
    config["cache"] = json!({"entries": 0});
    let (host, _) = host_with(&config, vec![signer.jwk()]);
    let token = signer.sign(&claims());
    assert!(passes(&host, &token) && passes(&host, &token));
    assert_eq!(host.counter("test.remembered"), 0);
}

#[test]
fn a_remembered_token_is_of_no_use_once_there_are_no_keys() {
    let signer = rsa("r");
    let (host, _) = host_with(&config(), vec![signer.jwk()]);
    let token = signer.sign(&claims());
    assert!(passes(&host, &token));
    let host = host.with_cluster("keys", |_| ClusterAnswer::reset());
    for _ in 0..3 {
        host.advance(Duration::from_secs(60));
        assert!(passes(&host, &token));
    }
    assert_eq!(host.counter("test.remembered"), 3);
    host.advance(Duration::from_secs(60));
    assert_eq!(user(&host, bearing(&token)), Err(503));
}

#[test]
fn an_unknown_key_is_looked_for_but_not_too_often() {
    let (old, new) = (rsa("old"), other_rsa("new"));
    let (host, keys) = host_with(&config(), vec![old.jwk()]);
    assert!(passes(&host, &old.sign(&claims())));
    *keys.lock().unwrap() = vec![old.jwk(), new.jwk()];
    // Just fetched: a flood of made-up key ids costs no fetch each.
    for _ in 0..10 {
        assert!(!passes(&host, &new.sign(&claims())));
    }
    assert_eq!(host.calls("keys").len(), 1);
    host.advance(Duration::from_secs(5));
    assert!(passes(&host, &new.sign(&claims())));
    assert!(passes(&host, &old.sign(&claims())));
    assert_eq!(host.calls("keys").len(), 2);
}

#[test]
fn keys_stay_when_they_cannot_be_fetched_but_not_for_ever() {
    let signer = rsa("r");
    let (host, _) = host_with(&config(), vec![signer.jwk()]);
    assert!(passes(&host, &signer.sign(&claims())));
    let answers = [
        ClusterAnswer::reset(),
        ClusterAnswer::from(TestResponse::new(500)),
        ClusterAnswer::from(TestResponse::new(200).body("{}")),
        ClusterAnswer::from(TestResponse::new(200).body(jwks(&[]))),
    ];
    let next = Mutex::new(answers.into_iter().cycle());
    let host = host.with_cluster("keys", move |_| next.lock().unwrap().next().unwrap());
    for _ in 0..3 {
        host.advance(Duration::from_secs(60));
        assert!(passes(&host, &signer.sign(&claims())));
    }
    assert!(host.counter_with("test.refreshes", &["failed"]) >= 3);
    host.advance(Duration::from_secs(60));
    assert_eq!(user(&host, bearing(&signer.sign(&claims()))), Err(503));
    // They come back with the issuer. The task gets its turn after a request's first step.
    let keys = jwks(&[signer.jwk()]);
    let host = host.with_cluster("keys", move |_| TestResponse::new(200).body(keys.clone()));
    host.advance(Duration::from_secs(60));
    host.request(TestRequest::get("/")).run();
    assert!(passes(&host, &signer.sign(&claims())));
}

#[test]
fn without_keys_nobody_passes_and_the_first_request_waits_for_them() {
    let signer = rsa("r");
    let token = signer.sign(&claims());
    let never = TestHost::new::<Jwt>(&config().to_string());
    let never = never.with_cluster("keys", |_| ClusterAnswer::never());
    assert_eq!(user(&never, bearing(&token)), Err(503));
    assert_eq!(count(&never, "unavailable"), 1);
    assert_eq!(user(&TestHost::new::<Jwt>(&config().to_string()), bearing(&token)), Err(503));

    let keys = jwks(&[signer.jwk()]);
    let slow = TestHost::new::<Jwt>(&config().to_string()).with_cluster("keys", move |_| {
        let answer = TestResponse::new(200).body(keys.clone());
        ClusterAnswer::from(answer).after(Duration::from_millis(900))
    });
    assert_eq!(user(&slow, bearing(&token)).as_deref(), Ok("alice"));
}

#[test]
fn the_token_can_stay_here_and_a_route_can_do_without() {
    let signer = rsa("r");
    let mut keeps = config();
    keeps["forward"] = json!(false);
    let (host, _) = host_with(&keeps, vec![signer.jwk()]);
    let response = host
        .request(bearing(&signer.sign(&claims_with(json!({"admin": true})))))
        .upstream(|request| {
            assert_eq!(request.header_text("authorization"), None);
            assert_eq!(request.header_text("x-admin"), Some("true"));
            TestResponse::new(204)
        })
        .run();
    assert_eq!(response.status(), 204);
    let open = host.on_route(r#"{"disabled": true}"#);
    let spoofed = TestRequest::get("/").header("x-user", "root");
    assert_eq!(user(&open, spoofed).as_deref(), Ok(""));
    assert_eq!(count(&open, "skipped"), 1);
}

#[test]
fn a_config_that_cannot_work_is_refused() {
    for (field, value, part) in [
        ("issuer", json!(""), "field `issuer`"),
        ("algorithms", json!([]), "field `algorithms`"),
        ("algorithms", json!(["RS256", "none"]), "field `algorithms[1]`"),
        ("algorithms", json!(["HS256"]), "needs a secret"),
        ("leeway_s", json!(100_000), "field `leeway_s`"),
        ("realm", json!("a\"b"), "field `realm`"),
        ("claims_to_headers", json!({"sub": "not ok"}), "field `claims_to_headers.sub`"),
        ("jwks", json!({"cluster": "a", "refresh_ms": 0}), "field `jwks.refresh_ms`"),
        ("jwks", json!({"path": "/"}), "missing field `cluster`"),
    ] {
        let mut config = config();
        config[field] = value;
        let error = TestHost::try_new::<Jwt>(&config.to_string()).unwrap_err();
        assert!(error.contains(part), "{error}");
    }
}
