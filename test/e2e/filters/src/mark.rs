//! Leaves its name, and that of its route config, on the request and on the response.

use std::time::Duration;

use attache::prelude::*;
use serde::Deserialize;

/// Its name, and what it does on the way.
#[derive(Deserialize)]
pub(crate) struct Mark {
    name: String,
    /// Blocks the worker for so long, which a filter must not do.
    #[serde(default)]
    block_ms: u64,
}

/// The name of a route.
#[derive(Deserialize)]
pub(crate) struct Name {
    name: String,
}

impl Filter for Mark {
    type Config = Mark;
    type RouteConfig = Name;

    fn new(config: Mark, _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(config)
    }

    async fn handle(&self, mut req: Request, next: Next) -> Result<Response> {
        let route = req.route_config::<Self>();
        let route = route.as_ref().map_or("none", |route| &route.name);
        let mark = format!("{}:{route}", self.name);
        req.headers_mut().append("x-mark", &mark);
        if self.block_ms > 0 {
            std::thread::sleep(Duration::from_millis(self.block_ms));
        }
        let mut resp = next.run(req).await?;
        resp.headers_mut().append("x-mark", &mark);
        Ok(resp)
    }
}
