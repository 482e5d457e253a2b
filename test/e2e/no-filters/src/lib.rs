//! A module whose author forgot `attache::filters!`: Envoy must refuse it and say what is missing.

#![forbid(unsafe_code)]

use attache::prelude::*;

/// A filter that no name leads to.
pub struct Unnamed;

impl Filter for Unnamed {
    type Config = ();
    type RouteConfig = ();

    fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Unnamed)
    }

    async fn handle(&self, req: Request, next: Next) -> Result<Response> {
        next.run(req).await
    }
}
