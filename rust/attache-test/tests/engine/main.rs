//! The engine against the strict model of Envoy.
//!
//! | what | where |
//! |---|---|
//! | what was once found, as small as it gets | `found.rs` |
//! | random filters in random weather | `random.rs` |
//! | the players: programs, scripts, events, the oracle | `support.rs` |

mod found;
mod random;
mod support;
