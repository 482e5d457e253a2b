//! Everything a test needs to see a filter at work in a real Envoy: the Envoy itself
//! ([`Version`], [`Launch`], [`Envoy`]), its config ([`Config`]), the modules it loads
//! ([`Modules`]), a real upstream behind it ([`Upstream`], [`RawUpstream`]) and a real client in
//! front ([`Client`], [`RawConn`]). All on loopback and free ports, so tests run side by side.
//!
//! ```no_run
//! use attache_e2e::{Call, Config, ModuleFilter, Modules, Upstream, on_every_host};
//! use serde_json::json;
//!
//! // #[tokio::test]
//! async fn greets_on_the_way_back() {
//!     let modules = Modules::new().package("hello"); // cargo builds it, once
//!     on_every_host(async |host| {
//!         // each pinned Envoy, HTTP/1.1 and HTTP/2
//!         let upstream = Upstream::echo().await;
//!         let config = Config::new()
//!             .upstream(upstream.address())
//!             .filter(ModuleFilter::new("hello", "hello").config(json!({"greeting": "hi"})));
//!         let envoy = host.launch().modules(&modules).start(&config).await;
//!
//!         let mut client = host.connect(&envoy).await;
//!         let call = Call::post("/a?b=c").header("x-one", "1");
//!         let reply = client.fetch(call.chunks_and_trailers(["go", "od"], &[("x-t", "1")])).await;
//!         assert_eq!((reply.status.as_u16(), reply.text()), (200, "good"));
//!         assert_eq!(reply.header("x-hello"), Some("hi"));
//!         assert_eq!(reply.trailer("x-t"), Some("1"));
//!         assert_eq!(upstream.seen(0).await.path(), "/a?b=c");
//!
//!         envoy.finish().await; // it is still alive, and ends cleanly
//!     })
//!     .await;
//! }
//! ```
//!
//! Where a test must hold each step in its hand, [`Upstream::manual`] gives it every request as a
//! [`Turn`] to read and answer piece by piece, [`Call::stream`] does the same for the request, and
//! [`Reply`] is read chunk by chunk; dropping any of these breaks the exchange off at that point.
//!
//! All waiting here ends: by what was waited for, or after [`LIMIT`] in a failed test that says
//! what it waited for. Wrap other waits in [`within`]; look again and again with [`eventually`].

mod body;
mod client;
mod config;
mod envoy;
mod module;
mod raw;
mod upstream;
mod wait;

pub use body::{BodySender, Closed, OutBody, Trouble, header_map};
pub use client::{
    AUTHORITY, Broken, Call, Client, ClientOptions, Collected, Pending, Protocol, Reply,
};
pub use config::{Cluster, Config, ModuleFilter, Route, UPSTREAM, disabled, envoy_filter, typed};
pub use envoy::{Envoy, Host, Launch, Refusal, Update, Validation, Version, on_every_host};
pub use module::{Modules, module_path, workspace_root};
pub use raw::{RawConn, RawUpstream};
pub use upstream::{Exchange, Progress, Seen, SeenBody, Turn, Upstream, response};
pub use wait::{LIMIT, eventually, within};
