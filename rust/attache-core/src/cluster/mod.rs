//! Calls to Envoy's clusters, as futures.
//!
//! A call is a stream of Envoy's asynchronous client: the host starts it, is given what the request
//! still has, and reports what comes of the response as events of the exchange. The future that waits
//! is polled inside of that event, on the worker. There is one mechanism for whole and for streamed
//! calls, because only streams can be cancelled; `docs/decisions/0007` has the reasons.
//!
//! | what | where |
//! |---|---|
//! | what both kinds of clusters have | `head.rs` |
//! | the request, as it is built | `request.rs` |
//! | calls of an exchange | `call.rs` |
//! | calls from any thread | `shared.rs` |
//! | what has come of a response | `answer.rs` |

mod answer;
mod call;
mod error;
mod head;
mod request;
mod shared;

pub(crate) use call::Calls;
pub use call::Cluster;
pub use error::{CalloutError, CalloutErrorKind};
pub use request::{Caller, Callout};
pub use shared::{PendingCall, SharedCalls, SharedCluster, SharedRequest};
