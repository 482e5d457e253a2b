//! [`CalloutError`]: why a call to a cluster brought no response.

use std::borrow::Cow;
use std::fmt;

use http::StatusCode;

/// Why a call to a cluster brought no response.
///
/// A response with an error status (a 503 that the service itself sent) is a response, not an error.
/// What Envoy answers in the service's place (the request timed out, the connection broke) is an
/// error of the right [kind](CalloutErrorKind).
///
/// With `?` it becomes the filter's [`Error`](crate::Error), with the status that a gateway gives:
/// 504 for a timeout, 502 for a reset and for an answer that is too large, 503 for a cluster that
/// takes no request now, 500 for everything that the filter or its config got wrong. The error can
/// be had back from [`Error::source`](crate::Error::source).
///
/// ```
/// use attache_core::{CalloutError, CalloutErrorKind};
///
/// fn is_worth_another_try(error: &CalloutError) -> bool {
///     matches!(
///         error.kind(),
///         CalloutErrorKind::Unavailable | CalloutErrorKind::Overflow | CalloutErrorKind::Reset
///     )
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CalloutError {
    kind: CalloutErrorKind,
    cluster: Box<str>,
    detail: Cow<'static, str>,
}

/// What kind of failure a [`CalloutError`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CalloutErrorKind {
    /// Envoy has no cluster of this name (now: clusters come and go).
    UnknownCluster,
    /// The request is invalid: its method, path, authority or a header. Nothing was sent.
    InvalidRequest,
    /// The cluster takes no request now: it has no healthy host, or drops load. Nothing was sent. Stock
    /// Envoy does not tell this from [`Overflow`](CalloutErrorKind::Overflow) unless a request was
    /// queued first.
    Unavailable,
    /// A circuit breaker of the cluster is open. Nothing was sent.
    Overflow,
    /// There was no whole response in time. Where a response had begun, stock Envoy does not tell this
    /// from a reset: one that comes near the end of the time counts as a timeout. (Other hosts do:
    /// [`Capabilities::call_reports`](crate::host::Capabilities::call_reports).)
    Timeout,
    /// The connection could not be made, or broke, or the service reset the request.
    Reset,
    /// The response is over [`Callout::limit`](crate::Callout::limit), or the streamed request is
    /// over [`Callout::request_limit`](crate::Callout::request_limit).
    TooLarge,
    /// The body that was to be sent failed.
    RequestBody,
    /// The exchange, or the filter's config, has ended.
    Gone,
    /// This host cannot call clusters.
    Unsupported,
}

impl CalloutError {
    pub(crate) fn new(
        kind: CalloutErrorKind,
        cluster: &str,
        detail: impl Into<Cow<'static, str>>,
    ) -> Self {
        CalloutError { kind, cluster: cluster.into(), detail: detail.into() }
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> CalloutErrorKind {
        self.kind
    }

    /// The name of the cluster.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// The status that a client gets for it, unless the filter chooses another.
    pub fn status_code(&self) -> StatusCode {
        match self.kind {
            CalloutErrorKind::Unavailable | CalloutErrorKind::Overflow => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            CalloutErrorKind::Timeout => StatusCode::GATEWAY_TIMEOUT,
            CalloutErrorKind::Reset | CalloutErrorKind::TooLarge => StatusCode::BAD_GATEWAY,
            CalloutErrorKind::UnknownCluster
            | CalloutErrorKind::InvalidRequest
            | CalloutErrorKind::RequestBody
            | CalloutErrorKind::Gone
            | CalloutErrorKind::Unsupported => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl fmt::Display for CalloutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cluster `{}`: {}", self.cluster, self.detail)
    }
}

impl std::error::Error for CalloutError {}
