//! Test filters with no Envoy.
//!
//! [`TestHost`] runs a filter in a unit test: it plays the client, the upstream and the clock. It is
//! strict: whatever real Envoy would punish fails the test.
//!
//! ```
//! use attache_core::{ConfigError, Filter, Next, Request, Response, Result, Setup};
//! use attache_test::{TestHost, TestRequest, TestResponse};
//! use http::StatusCode;
//!
//! #[derive(serde::Deserialize)]
//! struct Config {
//!     key: String,
//! }
//!
//! struct ApiKey(Config);
//!
//! impl Filter for ApiKey {
//!     type Config = Config;
//!     type RouteConfig = ();
//!     fn new(config: Config, _: &mut Setup) -> Result<Self, ConfigError> {
//!         Ok(ApiKey(config))
//!     }
//!     async fn handle(&self, mut req: Request, next: Next) -> Result<Response> {
//!         if req.headers().get_str("x-api-key").as_deref() != Some(&*self.0.key) {
//!             return Ok(Response::text(StatusCode::FORBIDDEN, "no"));
//!         }
//!         req.headers_mut().remove("x-api-key");
//!         next.run(req).await
//!     }
//! }
//!
//! let host = TestHost::new::<ApiKey>(r#"{"key": "secret"}"#);
//!
//! // The common case: a whole request, an upstream as a closure, the whole response.
//! let response = host
//!     .request(TestRequest::get("/data").header("x-api-key", "secret"))
//!     .upstream(|request| {
//!         assert_eq!(request.header_text("x-api-key"), None);
//!         TestResponse::new(200).body("the data")
//!     })
//!     .run();
//! assert_eq!(response.status(), 200);
//! assert_eq!(response.text(), "the data");
//!
//! // Without the key, the upstream sees nothing.
//! let response = host.request(TestRequest::get("/data")).run();
//! assert_eq!(response.status(), 403);
//!
//! // Step by step, for whatever depends on timing.
//! let exchange = host.open(TestRequest::post("/data").header("x-api-key", "secret").streaming());
//! exchange.send("one piece, ");
//! assert_eq!(exchange.upstream().unwrap().text(), "one piece, ");
//! exchange.send_last("and another");
//! exchange.respond(TestResponse::new(201));
//! assert_eq!(exchange.finish().status(), 201);
//! ```
//!
//! | what | where |
//! |---|---|
//! | unit tests of filters | [`TestHost`], [`TestExchange`], [`TestRequest`], [`TestResponse`] |
//! | clusters that filters call | [`TestHost::with_cluster`], [`ClusterAnswer`] |
//! | what is around the messages | [`Surroundings`], [`Known`], [`Done`] |
//! | the strict model of Envoy | [`model`] |

#![forbid(unsafe_code)]

mod cluster;
mod exchange;
mod host;
mod in_envoy;
mod known;
mod message;
mod metrics;
pub mod model;

pub use cluster::{ClusterAnswer, Clusters};
pub use exchange::{OneShot, TestExchange};
pub use host::TestHost;
pub use known::{Done, Known, Surroundings};
pub use message::{TestRequest, TestResponse};
pub use model::Level;
