//! Hosts Attaché filters in stock Envoy, through its dynamic modules C ABI.
//!
//! One `.so` serves Envoy 1.39 and 1.40. Filters do not use this crate; the `filters!` macro of
//! `attache` does.
//!
//! | what | where |
//! |---|---|
//! | declarations of the ABI | `abi.rs` |
//! | what Envoy calls | `hooks.rs` |
//! | a stream, as the engine sees it | `stream.rs` |
//! | calls to clusters | `callout.rs` |
//! | what is around its messages | `facts.rs`, `state.rs` |
//! | what a worker keeps, found fast | `worker.rs` |
//! | configs and metrics | `config.rs` |
//! | secrets and runtime flags | `envoy.rs` |
//! | posting to the main thread, up to Envoy's end | `commit.rs` |
//! | tracing spans | `span.rs` |
//! | `tracing` to Envoy's log | `log.rs` |
//!
//! This is one of the crates where `unsafe` lives. Its rules: every pointer that Envoy gives is used
//! only as long as Envoy's header promises; nothing borrowed from Envoy leaves the call that got it;
//! no panic leaves a hook.

mod abi;
mod callout;
mod commit;
mod config;
mod envoy;
mod facts;
mod hooks;
mod log;
mod span;
mod state;
mod stream;
mod worker;

#[doc(hidden)]
pub use hooks::register;
