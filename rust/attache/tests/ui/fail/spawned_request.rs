// What belongs to the worker stays on it: no other thread gets at the request.

use attache::prelude::*;

struct Wrong;

impl Filter for Wrong {
    type Config = ();
    type RouteConfig = ();

    fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Wrong)
    }

    async fn handle(&self, req: Request, next: Next) -> Result<Response> {
        attache::spawn(async move {
            req.headers().get("authorization");
        })
        .detach();
        drop(next);
        Ok(Response::new(StatusCode::OK))
    }
}

fn main() {}
