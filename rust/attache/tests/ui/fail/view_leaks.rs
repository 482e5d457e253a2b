// A view of a header does not leave the closure that looks at it.

use attache::prelude::*;

struct Wrong;

impl Filter for Wrong {
    type Config = ();
    type RouteConfig = ();

    fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Wrong)
    }

    async fn handle(&self, req: Request, next: Next) -> Result<Response> {
        let token = req.headers().with("authorization", |value| value);
        let resp = next.run(req).await?;
        drop(token);
        Ok(resp)
    }
}

fn main() {}
