//! Answers with runtime flags, for tests of how they reach a filter in a real Envoy.

use attache::Runtime;
use attache::prelude::*;

pub(crate) struct Flagged(Runtime);

impl Filter for Flagged {
    type Config = ();
    type RouteConfig = ();

    fn new(_: (), setup: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Flagged(setup.runtime()?))
    }

    async fn handle(&self, _: Request, _: Next) -> Result<Response> {
        let here = told(&self.0);
        let runtime = self.0.clone();
        let elsewhere = attache::spawn_blocking(move || told(&runtime)).await?;
        let text = if here == elsewhere { here } else { format!("{here}, but {elsewhere}") };
        Ok(Response::text(StatusCode::OK, text))
    }
}

fn told(runtime: &Runtime) -> String {
    let feature = runtime.feature_enabled("test.feature", 0);
    let boolean = runtime.boolean("test.boolean", true);
    let integer = runtime.integer("test.integer", 7);
    let double = runtime.double("test.double", 0.5);
    let string = runtime.string("test.string");
    format!("{feature} {boolean} {integer} {double} {string:?}")
}
