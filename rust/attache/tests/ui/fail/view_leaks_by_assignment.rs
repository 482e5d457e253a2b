// Nor does it by way of a variable outside.

use attache::prelude::*;

struct Wrong;

impl Filter for Wrong {
    type Config = ();
    type RouteConfig = ();

    fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Wrong)
    }

    async fn handle(&self, req: Request, next: Next) -> Result<Response> {
        let mut longest: &[u8] = &[];
        req.headers().for_each(|_, value| longest = value);
        let resp = next.run(req).await?;
        drop(longest);
        Ok(resp)
    }
}

fn main() {}
