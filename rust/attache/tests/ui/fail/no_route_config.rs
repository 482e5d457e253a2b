// Every filter says what its per-route config is; `()` if it has none.

use attache::prelude::*;

struct Wrong;

impl Filter for Wrong {
    type Config = ();

    fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Wrong)
    }

    async fn handle(&self, req: Request, next: Next) -> Result<Response> {
        next.run(req).await
    }
}

fn main() {}
