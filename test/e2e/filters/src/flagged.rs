//! Answers with runtime flags, for tests of how they reach a filter in a real Envoy.

use attache::Runtime;
use attache::prelude::*;
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(default)]
pub(crate) struct Config {
    /// Whether the filter takes the flags, and looks at them, while it is made, and not just in an exchange.
    early: bool,
}

impl Default for Config {
    fn default() -> Self {
        Config { early: true }
    }
}

pub(crate) struct Flagged(Option<Runtime>);

impl Filter for Flagged {
    type Config = Config;
    type RouteConfig = ();

    fn new(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        let early = config.early.then(|| setup.runtime()).transpose()?;
        // Where a look has to be the second one to be right, this is the first.
        let _ = early.as_ref().map(told);
        Ok(Flagged(early))
    }

    async fn handle(&self, req: Request, _: Next) -> Result<Response> {
        let stream = req.stream();
        let runtime = match stream.runtime() {
            Ok(runtime) => runtime.clone(),
            Err(error) => {
                let text = format!("{:?}: {error}", error.kind());
                return Ok(Response::text(StatusCode::OK, text));
            }
        };
        let here = told(&runtime);
        let kept = self.0.clone().unwrap_or(runtime);
        let elsewhere = attache::spawn_blocking(move || told(&kept)).await?;
        let text = if here == elsewhere { here } else { format!("{here}, but {elsewhere}") };
        Ok(Response::text(StatusCode::OK, text))
    }
}

fn told(runtime: &Runtime) -> String {
    let feature = runtime.feature_enabled("test.feature", 0);
    let boolean = runtime.boolean("test.boolean", true);
    let integer = runtime.integer("test.integer", 7);
    let double = runtime.double("test.double", 0.5);
    let string = match runtime.string("test.string") {
        Ok(string) => format!("{string:?}"),
        Err(_) => "untold".to_owned(),
    };
    format!("{feature} {boolean} {integer} {double} {string}")
}
