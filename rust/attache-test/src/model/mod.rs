//! A strict model of one stream inside Envoy.
//!
//! [`Model`] plays Envoy's filter manager for a chain of a few filters: the filter under test, which
//! runs in a real [`Exchange`](attache_core::exchange::Exchange), a [neighbour](Neighbour) on either
//! side if wanted, and the router. The test plays the client and the upstream, and decides when
//! wakes arrive.
//!
//! What the model keeps of Envoy:
//! * a filter that stops a direction is passed by only when it lets the direction go on; a stop buys
//!   one continue
//! * one buffer per direction, shared by all filters, under watermarks that pause the sender
//! * what is let go runs through the later filters before the call returns, and may end the stream
//! * local replies: prepared while a request hook runs, immediate otherwise, past all filters when
//!   response headers are held, a reset when they have gone
//! * calls to clusters: refused at once or reported as events, ended by a timeout, reset when the
//!   stream goes
//! * the end: `complete`, then `destroy`, perhaps in the middle of a call
//!
//! The filter's host is of one of two [kinds](Kind). A compiled-in one has besides
//! * a private buffer for each direction, under watermarks of its own
//! * injection past the filter, outside of its hooks, which changes Envoy's record of the end
//! * trailers that are added in the hook that brings the end
//!
//! What Envoy would punish (with a crash, a hang, or lost bytes) is a [`ModelViolation`]: it is
//! recorded, and it panics at once. [`Model::violations`] has what a caught panic would hide.

mod buffer;
mod callout;
mod compiled_in;
mod host;
mod stream;

pub use host::ModelHost;
pub use stream::{Kind, Level, Model, Neighbour, Options, Received, Upstream};

use bytes::Bytes;

/// Header or trailer fields, in order, pseudo headers included.
pub type Fields = Vec<(String, Bytes)>;

/// A call or an answer that real Envoy would punish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelViolation(pub String);

impl std::fmt::Display for ModelViolation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ModelViolation: {}", self.0)
    }
}

impl std::error::Error for ModelViolation {}
