//! Messages that must not have a body do not get one, whatever the filter does.

use attache_core::{ConfigError, Filter, Next, Request, Response, Result, Setup};
use attache_test::model::Kind;
use attache_test::{TestHost, TestRequest, TestResponse};
use http::{Method, StatusCode};

struct Bodies;

impl Filter for Bodies {
    type Config = ();
    type RouteConfig = ();
    fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Bodies)
    }
    async fn handle(&self, req: Request, next: Next) -> Result<Response> {
        let path = req.path();
        if let Some(status) = path.strip_prefix("/reply/") {
            let status: StatusCode = status.parse().unwrap();
            return Ok(Response::new(status).with_body("too much"));
        }
        let mut resp = next.run(req).await?;
        if let Some(status) = path.strip_prefix("/status/") {
            resp.set_status(status.parse().unwrap());
        }
        if path == "/replace" {
            resp.set_body("replaced");
        }
        if path == "/map" {
            resp.map_body(|chunk| [&chunk[..], b"!"].concat().into());
        }
        Ok(resp)
    }
}

/// Asks both kinds of hosts, which must answer alike.
fn ask(method: Method, path: &str) -> TestResponse {
    let stock = ask_on(Kind::Stock, method.clone(), path);
    let compiled_in = ask_on(Kind::CompiledIn, method, path);
    assert_eq!(stock.headers(), compiled_in.headers(), "{path}");
    assert_eq!(stock.text(), compiled_in.text(), "{path}");
    assert_eq!(stock.is_complete(), compiled_in.is_complete(), "{path}");
    compiled_in
}

fn ask_on(kind: Kind, method: Method, path: &str) -> TestResponse {
    TestHost::new::<Bodies>("")
        .on(kind)
        .request(TestRequest::new(method.clone(), path))
        .upstream(move |_| match method {
            Method::HEAD => TestResponse::new(200).header("content-length", "4"),
            _ => TestResponse::new(200).body("body"),
        })
        .run()
}

#[test]
fn replies_without_a_body_stay_without() {
    for status in ["204", "304"] {
        let response = ask(Method::GET, &format!("/reply/{status}"));
        assert_eq!(response.status().to_string(), status);
        assert_eq!(response.text(), "");
        assert!(response.is_complete());
    }
    assert_eq!(ask(Method::GET, "/reply/200").text(), "too much");
}

#[test]
fn a_response_that_becomes_a_204_loses_its_body() {
    for status in ["204", "304"] {
        let response = ask(Method::GET, &format!("/status/{status}"));
        assert_eq!(response.status().to_string(), status);
        assert_eq!(response.text(), "");
        assert_eq!(response.header_text("content-length"), None);
    }
    assert_eq!(ask(Method::GET, "/status/201").text(), "body");
}

#[test]
fn the_answer_to_head_stays_bare() {
    for path in ["/", "/replace", "/map", "/reply/200"] {
        let response = ask(Method::HEAD, path);
        assert_eq!((response.status(), response.text()), (200, String::new()), "{path}");
        assert!(response.is_complete());
    }
    assert_eq!(ask(Method::HEAD, "/").header_text("content-length"), Some("4"));
}

#[test]
fn an_illegal_status_is_an_error() {
    assert_eq!(ask(Method::GET, "/reply/100").status(), 500);
    assert_eq!(ask(Method::GET, "/reply/600").status(), 500);
}
