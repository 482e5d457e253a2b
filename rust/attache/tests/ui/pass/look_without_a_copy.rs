// A look at a header without a copy: its result may leave the closure, and be held across an await.

use attache::prelude::*;

struct Looks;

impl Filter for Looks {
    type Config = ();
    type RouteConfig = ();

    fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Looks)
    }

    async fn handle(&self, req: Request, next: Next) -> Result<Response> {
        let length = req.headers().with("authorization", |value| value.map_or(0, <[u8]>::len));
        let mut resp = next.run(req).await?;
        resp.headers_mut().set("x-length", length.to_string());
        Ok(resp)
    }
}

attache::filters! { "looks" => Looks }

fn main() {}
