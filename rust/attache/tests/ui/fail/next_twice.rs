// The request goes on once.

use attache::prelude::*;

struct Wrong;

impl Filter for Wrong {
    type Config = ();
    type RouteConfig = ();

    fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Wrong)
    }

    async fn handle(&self, req: Request, next: Next) -> Result<Response> {
        let first = next.run(req).await?;
        let again = next.run(req).await?;
        drop(first);
        Ok(again)
    }
}

fn main() {}
