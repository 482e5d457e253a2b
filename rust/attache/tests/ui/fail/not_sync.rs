// One filter value serves all workers at once.

use std::cell::Cell;

use attache::prelude::*;

struct Counts(Cell<u64>);

impl Filter for Counts {
    type Config = ();
    type RouteConfig = ();

    fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Counts(Cell::new(0)))
    }

    async fn handle(&self, req: Request, next: Next) -> Result<Response> {
        self.0.set(self.0.get() + 1);
        next.run(req).await
    }
}

fn main() {}
