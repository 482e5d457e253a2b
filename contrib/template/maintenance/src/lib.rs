//! Answers everything with 503 while the service behind is being worked on, but for a path that
//! tells whether it is alive.

#![forbid(unsafe_code)]

use attache::prelude::*;
use serde::Deserialize;

/// Stands in for the service.
pub struct Maintenance(Config);

/// The config, for example `{"retry_after_seconds": 60, "except": "/health"}`.
#[derive(Deserialize)]
pub struct Config {
    /// When clients may come back.
    pub retry_after_seconds: u32,
    /// The path that still reaches the service.
    pub except: Option<String>,
}

impl Filter for Maintenance {
    type Config = Config;
    type RouteConfig = ();

    fn new(config: Config, _setup: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Maintenance(config))
    }

    async fn handle(&self, req: Request, next: Next) -> Result<Response> {
        if self.0.except.as_deref() == Some(&req.path()) {
            return next.run(req).await;
        }
        let mut resp = Response::text(StatusCode::SERVICE_UNAVAILABLE, "back soon\n");
        resp.headers_mut().set("retry-after", self.0.retry_after_seconds.to_string());
        Ok(resp)
    }
}

attache::filters! { "maintenance" => Maintenance }
