//! [`Error`]: what a filter's `?` turns into.

use std::any::Any;
use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;

use http::StatusCode;

use crate::cluster::CalloutError;
use crate::facts::ResetReason;

/// The result of a filter.
pub type Result<T, E = Error> = std::result::Result<T, E>;

type BoxError = Box<dyn StdError + Send + Sync>;

/// An error of a filter: a status for the client, and a cause for the log.
///
/// Any [`std::error::Error`] converts into it, so `?` works everywhere; the status is then 500. The
/// client never sees the message or the cause: they go to Envoy's log. Use
/// [`with_status`](Error::with_status) or [`ResultExt::status`] to choose the status.
///
/// ```
/// use attache_core::{Error, ResultExt, Result};
/// use http::StatusCode;
///
/// fn port(text: &str) -> Result<u16> {
///     text.parse::<u16>().status(StatusCode::BAD_REQUEST)
/// }
/// assert_eq!(port("http").unwrap_err().status_code(), StatusCode::BAD_REQUEST);
/// ```
///
/// It is opaque on purpose, and does not itself implement `std::error::Error` (that would forbid
/// the conversion); [`source`](Error::source) gives the cause.
pub struct Error(Box<Repr>);

struct Repr {
    kind: ErrorKind,
    status: StatusCode,
    message: Cow<'static, str>,
    source: Option<BoxError>,
}

/// What kind of failure an [`Error`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Made by the filter.
    Filter,
    /// A body was over the limit that the filter named.
    BodyTooLarge,
    /// A task that the filter waited for panicked.
    Panicked,
    /// The exchange has ended.
    Gone,
    /// This host cannot do it; see [`Capabilities`](crate::host::Capabilities).
    Unsupported,
    /// The filter made an invalid message: a header, a status.
    InvalidMessage,
    /// A call to a cluster brought no response; see [`CalloutError`].
    Callout,
    /// Envoy has no attribute of that name.
    UnknownAttribute,
    /// A value is there, but it is of another type.
    WrongType,
    /// What was asked for is not possible here and now; the message says why.
    Refused,
    /// The filter wants the stream to be reset; see [`Error::reset`].
    Reset(ResetReason),
}

impl Error {
    /// An error with a message for the log, status 500.
    pub fn new(message: impl Into<Cow<'static, str>>) -> Self {
        Self::make(ErrorKind::Filter, StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// An error with a status for the client and a message for the log.
    pub fn status(status: StatusCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self::make(ErrorKind::Filter, status, message)
    }

    pub(crate) fn make(
        kind: ErrorKind,
        status: StatusCode,
        message: impl Into<Cow<'static, str>>,
    ) -> Self {
        Error(Box::new(Repr { kind, status, message: message.into(), source: None }))
    }

    /// Not an error, but a wish: returned from a filter, it resets the stream instead of answering.
    /// The client sees the stream end (HTTP/2: RST_STREAM; HTTP/1.1: the connection is closed).
    ///
    /// Reason and details are for Envoy, which in stock 1.39 and 1.40 makes nothing of them: a client
    /// of HTTP/2 sees one and the same code, and the access log no details. The details are logged at
    /// debug level. The reset is neither counted nor logged as an error;
    /// [`on_complete`](crate::Filter::on_complete) is told
    /// [`Outcome::Reset`](crate::Outcome::Reset). Once everything has gone to the client, it does
    /// nothing.
    ///
    /// ```
    /// # use attache_core::{Error, Filter, Next, Request, Response, ResetReason, Result, Setup, ConfigError};
    /// # struct Shed;
    /// # impl Filter for Shed { type Config = (); type RouteConfig = ();
    /// # fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> { Ok(Shed) }
    /// async fn handle(&self, req: Request, next: Next) -> Result<Response> {
    ///     if req.headers().contains("x-overloaded") {
    ///         return Err(Error::reset(ResetReason::Refused, "overloaded"));
    ///     }
    ///     next.run(req).await
    /// }
    /// # }
    /// ```
    pub fn reset(reason: ResetReason, details: impl Into<Cow<'static, str>>) -> Self {
        Self::make(ErrorKind::Reset(reason), StatusCode::INTERNAL_SERVER_ERROR, details)
    }

    pub(crate) fn gone() -> Self {
        Self::make(ErrorKind::Gone, StatusCode::INTERNAL_SERVER_ERROR, "the exchange has ended")
    }

    pub(crate) fn panicked(message: String) -> Self {
        Self::make(ErrorKind::Panicked, StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// The same error with another status.
    #[must_use]
    pub fn with_status(mut self, status: StatusCode) -> Self {
        self.0.status = status;
        self
    }

    /// The same error, with `message` before its own.
    #[must_use]
    pub fn context(mut self, message: impl fmt::Display) -> Self {
        self.0.message = format!("{message}: {}", self.0.message).into();
        self
    }

    /// The status that the client gets if nothing has been sent yet.
    pub fn status_code(&self) -> StatusCode {
        self.0.status
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether it stands for a panic in a task that the filter waited for.
    pub fn is_panic(&self) -> bool {
        self.0.kind == ErrorKind::Panicked
    }

    /// The cause, if the error was made from another one.
    pub fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|e| e as _)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

/// One line: the message and its causes.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        let mut cause = self.source().and_then(StdError::source);
        while let Some(e) = cause {
            write!(f, ": {e}")?;
            cause = e.source();
        }
        Ok(())
    }
}

impl<E: StdError + Send + Sync + 'static> From<E> for Error {
    fn from(error: E) -> Self {
        // A body error comes back as what it was, with its status.
        let mut slot = Some(error);
        if let Some(body) = (&mut slot as &mut dyn Any).downcast_mut::<Option<BodyError>>()
            && let Some(BodyError(inner)) = body.take()
        {
            return inner;
        }
        let callout = (&slot as &dyn Any).downcast_ref::<Option<CalloutError>>();
        let (kind, status) = match callout {
            Some(Some(error)) => (ErrorKind::Callout, error.status_code()),
            _ => (ErrorKind::Filter, StatusCode::INTERNAL_SERVER_ERROR),
        };
        match slot {
            Some(error) => Error(Box::new(Repr {
                kind,
                status,
                message: error.to_string().into(),
                source: Some(Box::new(error)),
            })),
            None => Error::gone(),
        }
    }
}

/// [`Error`] as a [`std::error::Error`], for the traits that want one (`http_body::Body`).
pub struct BodyError(pub(crate) Error);

impl BodyError {
    /// The error itself.
    pub fn into_inner(self) -> Error {
        self.0
    }
}
impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}
impl fmt::Debug for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}
impl StdError for BodyError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source()
    }
}

/// Adds a status or a context to the error of a `Result`, or turns a `None` into an error.
pub trait ResultExt<T> {
    /// On failure, answer the client with `status`.
    fn status(self, status: StatusCode) -> Result<T>;
    /// On failure, put `message` before the error's own.
    fn context(self, message: impl fmt::Display) -> Result<T>;
}

impl<T, E: Into<Error>> ResultExt<T> for std::result::Result<T, E> {
    fn status(self, status: StatusCode) -> Result<T> {
        self.map_err(|e| e.into().with_status(status))
    }
    fn context(self, message: impl fmt::Display) -> Result<T> {
        self.map_err(|e| e.into().context(message))
    }
}

impl<T> ResultExt<T> for Option<T> {
    fn status(self, status: StatusCode) -> Result<T> {
        self.ok_or_else(|| Error::status(status, "a value was missing"))
    }
    fn context(self, message: impl fmt::Display) -> Result<T> {
        self.ok_or_else(|| Error::new(message.to_string()))
    }
}

/// Why a filter cannot be made from its config. Envoy refuses the config and logs the reason.
#[derive(Debug)]
pub struct ConfigError {
    path: Option<String>,
    message: String,
}

impl ConfigError {
    /// A reason.
    pub fn new(message: impl fmt::Display) -> Self {
        ConfigError { path: None, message: message.to_string() }
    }

    /// A reason, and the field that it is about: `keys[0].name`.
    pub fn field(path: impl Into<String>, message: impl fmt::Display) -> Self {
        ConfigError { path: Some(path.into()), message: message.to_string() }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => write!(f, "field `{path}`: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl<E: StdError> From<E> for ConfigError {
    fn from(error: E) -> Self {
        ConfigError::new(error)
    }
}

/// What a panic said.
pub(crate) fn panic_message(payload: &(dyn Any + Send)) -> &str {
    if let Some(text) = payload.downcast_ref::<&'static str>() {
        text
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text
    } else {
        "a panic without a message"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_error_converts_and_keeps_its_cause() {
        let e: Error = "x".parse::<i32>().unwrap_err().into();
        assert_eq!(e.status_code(), StatusCode::INTERNAL_SERVER_ERROR);
        assert!(e.source().is_some());
    }

    #[test]
    fn a_body_error_comes_back_with_its_status() {
        let e: Error = BodyError(Error::status(StatusCode::PAYLOAD_TOO_LARGE, "too large")).into();
        assert_eq!(e.status_code(), StatusCode::PAYLOAD_TOO_LARGE);
    }

    #[test]
    fn context_comes_first() {
        assert_eq!(Error::new("inner").context("outer").to_string(), "outer: inner");
    }
}
