// A look at a buffered body ends where the body is taken.

use attache::prelude::*;

struct Wrong;

impl Filter for Wrong {
    type Config = ();
    type RouteConfig = ();

    fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Wrong)
    }

    async fn handle(&self, mut req: Request, next: Next) -> Result<Response> {
        let whole = req.body_mut().buffer(1024).await?;
        let resp = next.run(req).await?;
        drop(whole.len());
        Ok(resp)
    }
}

fn main() {}
