//! Hosts Attaché filters that are compiled into Envoy.
//!
//! Envoy has a C++ filter (`cc/filter`), which calls this crate through a [cxx](https://cxx.rs)
//! bridge. One crate, built as a `staticlib`, names the crates whose filters are linked in:
//!
//! ```
//! # mod hello {
//! #     use attache_core::*;
//! #     struct Hello;
//! #     impl Filter for Hello {
//! #         type Config = ();
//! #         type RouteConfig = ();
//! #         fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> { Ok(Hello) }
//! #         async fn handle(&self, request: Request, next: Next) -> Result<Response> {
//! #             next.run(request).await
//! #         }
//! #     }
//! #     pub fn attache_registry() -> registry::Registry {
//! #         registry::Registry::new().with::<Hello>("hello")
//! #     }
//! # }
//! attache_cxx::filters! {
//!     hello,
//! }
//! # fn main() {}
//! ```
//!
//! Each of these is a crate like any that is built as a module for stock Envoy, with its own
//! `attache::filters!`.
//!
//! | what | where |
//! |---|---|
//! | what C++ and Rust call of each other | `bridge.rs`, and the headers in `cc/bridge/` |
//! | a stream, as the engine sees it | `stream.rs` |
//! | what is around its messages | `facts.rs`, `span.rs` |
//! | configs and metrics | `config.rs` |
//! | calls to clusters from any thread | `calls.rs` |
//! | secrets and runtime flags | `envoy.rs` |
//! | `tracing` to Envoy's log | `log.rs` |
//!
//! This is one of the crates where `unsafe` lives. Its rules: every pointer that C++ gives is used
//! only as long as the headers in `cc/bridge/` promise; nothing borrowed from C++ leaves the call
//! that got it; no panic leaves a function that C++ calls.

mod bridge;
mod calls;
mod config;
mod envoy;
mod facts;
mod log;
mod span;
mod stream;

/// For the macros of this crate only.
#[doc(hidden)]
pub mod __private {
    pub use attache_core::registry::Registry;

    #[cfg(debug_assertions)]
    pub use crate::stream::faults::fail_next_stream;
}

/// Names the crates whose filters are compiled into Envoy, once in a program:
/// `filters! { hello, api_key }`.
///
/// Each has its own `attache::filters!`; their names are what `name` refers to in Envoy's config. A
/// crate may be `crate` itself, for filters that live beside this list.
///
/// Two crates cannot both have a filter of the same name: Envoy then does not start, and says so.
#[macro_export]
macro_rules! filters {
    ($($($module:ident)::+),+ $(,)?) => {
        const _: () = {
            #[cfg(panic = "abort")]
            compile_error!(
                "filters must be built with panic = \"unwind\": with \"abort\", a panic in one \
                 exchange would end the whole Envoy; change `panic` in the Cargo profile"
            );

            #[unsafe(no_mangle)]
            fn attache_cxx_registry() -> $crate::__private::Registry {
                $crate::__private::Registry::new()$(.merge($($module)::+::attache_registry()))+
            }
        };
    };
}
