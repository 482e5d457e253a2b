// The request has gone on: there is nothing left to touch.

use attache::prelude::*;

struct Wrong;

impl Filter for Wrong {
    type Config = ();
    type RouteConfig = ();

    fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Wrong)
    }

    async fn handle(&self, mut req: Request, next: Next) -> Result<Response> {
        let resp = next.run(req).await?;
        req.headers_mut().set("x-late", "1");
        Ok(resp)
    }
}

fn main() {}
