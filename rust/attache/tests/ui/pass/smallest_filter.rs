// The smallest filter, in fewer than ten lines.

use attache::prelude::*;

struct Hello;

#[rustfmt::skip]
impl Filter for Hello {
    type Config = ();
    type RouteConfig = ();
    fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> { Ok(Hello) }
    async fn handle(&self, req: Request, next: Next) -> Result<Response> {
        next.run(req).await
    }
}

attache::filters! { "hello" => Hello }

fn main() {}
