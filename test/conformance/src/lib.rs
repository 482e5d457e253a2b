//! Runs the conformance scenarios (`scenarios/*.json`) on every host and reports scenario x host.
//!
//! A scenario is data: what the filter does (a script for the `conformance` filter), what client
//! and upstream do, and what must come out on either side. See `src/scenario.rs` for the format. Each is
//! run over HTTP/1.1 and HTTP/2, and, where it says `async`, with a filter that answers at once,
//! one that waits for a timer, and one that is woken from other threads.
//!
//! Whatever a scenario expects, it also holds that every future that was started has been dropped
//! once, that `on_complete` ran once for it, and that nothing is left alive.

mod check;
mod content;
mod envoy;
mod play;
mod profile;
mod report;
mod scenario;
mod testhost;

pub use envoy::{EnvoyHost, run as run_on_envoy};
pub use report::{Cell, Outcome, Report};
pub use scenario::{Case, Flavour, Scenario, load};
pub use testhost::run as run_on_test_host;
