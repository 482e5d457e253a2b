//! The engine against the strict model of Envoy.
//!
//! | what | where |
//! |---|---|
//! | what was once found, as small as it gets | `found.rs` |
//! | random filters in random weather | `random.rs` |
//! | random streams beside and after each other, with what they leave behind | `crowd.rs` |
//! | every order of a few events | `exhaustive.rs` |
//! | what only a host that emits at any time can do | `any_time.rs` |
//! | no body where none may be | `framing.rs` |
//! | the players: programs, scripts, events, the oracle | `support.rs` |

mod any_time;
mod crowd;
mod exhaustive;
mod found;
mod framing;
mod random;
mod support;
