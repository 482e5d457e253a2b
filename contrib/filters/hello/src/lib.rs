//! Greets in a response header: the smallest filter that has a config.

use attache::prelude::*;

/// Sets `x-hello` on every response.
pub struct Hello {
    greeting: HeaderValue,
}

/// The config: `{greeting: hi}`.
#[derive(serde::Deserialize)]
pub struct Config {
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
