// `handle` returns a response, not what a response is made of.

use attache::prelude::*;

struct Wrong;

impl Filter for Wrong {
    type Config = ();
    type RouteConfig = ();

    fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Wrong)
    }

    async fn handle(&self, req: Request, next: Next) -> Result<StatusCode> {
        let resp = next.run(req).await?;
        Ok(resp.status())
    }
}

fn main() {}
