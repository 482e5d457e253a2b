//! Answers one path with the request itself: its body streams back while it still comes in, its
//! headers return as `x-echo-..`. A filter that replies by itself, and never holds a whole body.

#![forbid(unsafe_code)]

use attache::prelude::*;
use serde::Deserialize;

/// Answers [`Config::path`] with what was sent there. Everything else passes.
pub struct Echo {
    path: String,
}

/// The config: `{path: /echo}`.
#[derive(Deserialize)]
#[cfg_attr(feature = "schema", derive(attache::schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(crate = "attache::schemars"))]
pub struct Config {
    /// The path that is answered, with any query.
    #[serde(default = "default_path")]
    pub path: String,
}

fn default_path() -> String {
    "/echo".to_owned()
}

impl Filter for Echo {
    type Config = Config;
    type RouteConfig = ();

    fn new(config: Config, _: &mut Setup) -> Result<Self, ConfigError> {
        if !config.path.starts_with('/') || config.path.contains('?') {
            let why = "must start with `/` and have no query";
            return Err(ConfigError::field("path", why));
        }
        Ok(Echo { path: config.path })
    }

    async fn handle(&self, mut req: Request, next: Next) -> Result<Response> {
        let path = req.path();
        if path.split('?').next() != Some(&self.path) {
            return next.run(req).await;
        }
        if req.method() != Method::POST {
            return Ok(Response::new(StatusCode::METHOD_NOT_ALLOWED).with_header("allow", "POST"));
        }
        let mut resp = Response::new(StatusCode::OK)
            .with_header("x-echo-method", req.method().as_str())
            .with_header("x-echo-path", path);
        req.headers().for_each(|name, value| match std::str::from_utf8(name) {
            Ok(name) if !name.starts_with(':') => {
                resp.headers_mut().append(&format!("x-echo-{name}"), value);
            }
            _ => (),
        });
        if let Some(kind) = req.headers().get("content-type") {
            resp.headers_mut().set("content-type", kind);
        }
        Ok(resp.with_body(req.take_body()))
    }
}

attache::filters! { "echo" => Echo }

#[cfg(test)]
mod tests {
    use super::*;
    use attache_test::{TestHost, TestRequest, TestResponse};

    #[test]
    fn the_request_comes_back_piece_by_piece() {
        let host = TestHost::new::<Echo>("");
        let call = TestRequest::post("/echo?x=1").header("X-Twice", "1").header("x-twice", "2");
        let exchange = host.open(call.header("content-type", "text/plain").streaming());
        let response = exchange.response().unwrap();
        assert_eq!((response.status(), response.text()), (200, String::new()));
        assert_eq!(response.header_text("content-type"), Some("text/plain"));
        assert_eq!(response.header_text("x-echo-method"), Some("POST"));
        assert_eq!(response.header_text("x-echo-path"), Some("/echo?x=1"));
        assert_eq!(response.header_texts("x-echo-x-twice"), ["1", "2"]);

        exchange.send("one");
        assert_eq!(exchange.response().unwrap().text(), "one");
        exchange.send("two");
        assert_eq!(exchange.response().unwrap().text(), "onetwo");
        exchange.send_trailers(&[("x-end", "now")]);
        let response = exchange.finish();
        assert_eq!((response.text(), response.is_complete()), ("onetwo".to_owned(), true));
        assert_eq!(response.trailer_text("x-end"), Some("now"));
    }

    #[test]
    fn a_client_that_does_not_read_is_not_read_from() {
        let host = TestHost::new::<Echo>("").with_buffer_limit(4096);
        let exchange = host.open(TestRequest::post("/echo").streaming());
        exchange.send("one");
        exchange.client_watermark(true);
        let mut sent = 3;
        while !exchange.client_is_paused() {
            exchange.send(vec![b'x'; 1000]);
            sent += 1000;
        }
        assert!(sent < 16 * 1024, "{sent} bytes were taken");
        exchange.client_watermark(false);
        assert!(!exchange.client_is_paused());
        exchange.send_last("end");
        assert_eq!(exchange.finish().bytes().len(), sent + 3);
    }

    #[test]
    fn only_its_path_and_only_post() {
        let host = TestHost::new::<Echo>(r#"{"path": "/mirror"}"#);
        for path in ["/", "/echo", "/mirrors", "/mirror/x"] {
            let response = host
                .request(TestRequest::post(path).body("x"))
                .upstream(|_| TestResponse::new(201))
                .run();
            assert_eq!(response.status(), 201, "{path}");
        }
        let response = host.request(TestRequest::get("/mirror")).run();
        assert_eq!((response.status(), response.header_text("allow")), (405, Some("POST")));
        let response = host.request(TestRequest::post("/mirror").body("abc")).run();
        assert_eq!((response.status(), response.text()), (200, "abc".to_owned()));
        for path in ["echo", "/echo?x"] {
            let config = format!(r#"{{"path": "{path}"}}"#);
            let error = TestHost::try_new::<Echo>(&config).unwrap_err();
            assert!(error.contains("field `path`"), "{error}");
        }
    }
}
