//! Answers with its secret, for tests of how secrets reach a filter in a real Envoy.

use attache::prelude::*;
use attache::{Secret, SecretSource};
use serde::Deserialize;

#[derive(Deserialize)]
pub(crate) struct Config {
    key: SecretSource,
}

pub(crate) struct Keyed(Secret);

impl Filter for Keyed {
    type Config = Config;
    type RouteConfig = ();

    fn new(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        let secret = setup.secret(&config.key);
        Ok(Keyed(secret.map_err(|error| ConfigError::field("key", error))?))
    }

    async fn handle(&self, _: Request, _: Next) -> Result<Response> {
        Ok(match self.0.try_get() {
            Ok(key) => Response::new(StatusCode::OK).with_body(key),
            Err(error) => Response::text(StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
        })
    }
}
