// Nothing can be awaited while a view is held.

use attache::prelude::*;

struct Wrong;

impl Filter for Wrong {
    type Config = ();
    type RouteConfig = ();

    fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Wrong)
    }

    async fn handle(&self, req: Request, next: Next) -> Result<Response> {
        req.headers().with("authorization", |value| {
            attache::spawn(async {}).await;
            value.is_some()
        });
        next.run(req).await
    }
}

fn main() {}
