//! Greets in a response header: the smallest filter that has a config.

#![forbid(unsafe_code)]

use attache::prelude::*;

/// Sets `x-hello` on every response.
pub struct Hello {
    greeting: HeaderValue,
}

/// The config: `{greeting: hi}`.
#[derive(serde::Deserialize)]
#[cfg_attr(feature = "schema", derive(attache::schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(crate = "attache::schemars"))]
pub struct Config {
    /// What is in `x-hello`.
    greeting: String,
}

impl Filter for Hello {
    type Config = Config;
    type RouteConfig = ();

    fn new(config: Config, _: &mut Setup) -> Result<Self, ConfigError> {
        let greeting = HeaderValue::try_from(config.greeting)
            .map_err(|e| ConfigError::field("greeting", e))?;
        Ok(Hello { greeting })
    }

    async fn handle(&self, req: Request, next: Next) -> Result<Response> {
        let mut resp = next.run(req).await?;
        resp.headers_mut().set("x-hello", &self.greeting);
        Ok(resp)
    }
}

attache::filters! { "hello" => Hello }

#[cfg(test)]
mod tests {
    use super::*;
    use attache_test::{TestHost, TestRequest, TestResponse};

    #[test]
    fn it_greets_on_every_response() {
        let host = TestHost::new::<Hello>(r#"{"greeting": "hi"}"#);
        let response = host
            .request(TestRequest::get("/"))
            .upstream(|_| TestResponse::new(404).header("x-hello", "from upstream").body("gone"))
            .run();
        assert_eq!((response.status(), response.text()), (404, "gone".to_owned()));
        assert_eq!(response.header_texts("x-hello"), ["hi"]);
    }

    #[test]
    fn a_greeting_must_be_a_header_value() {
        let error = TestHost::try_new::<Hello>(r#"{"greeting": "a\nb"}"#).unwrap_err();
        assert!(error.contains("field `greeting`"), "{error}");
        let error = TestHost::try_new::<Hello>("").unwrap_err();
        assert!(error.contains("missing field `greeting`"), "{error}");
    }
}
