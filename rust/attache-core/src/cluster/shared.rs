//! [`SharedCluster`]: calls from any thread, tied to a filter's config.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::answer::{Answer, Progress};
use super::call::refused;
use super::error::{CalloutError, CalloutErrorKind};
use super::head::cluster_head;
use super::request::{Caller, Callout, Head, Limits};
use crate::host::{CallFailure, CallRefused, CallStart};

/// A cluster of Envoy's, to call from any thread: [`Setup::cluster`](crate::Setup::cluster).
///
/// It is for whatever belongs to the filter's config and not to one exchange: a background task that
/// fetches keys, say. It works for as long as the config lives; after that, calls fail with
/// [`CalloutErrorKind::Gone`].
///
/// ```
/// use attache_core::{ConfigError, Setup};
/// use std::time::Duration;
///
/// fn refresh_keys(setup: &mut Setup) {
///     let keys = setup.cluster("keys").with_timeout(Duration::from_secs(5));
///     setup.spawn(async move {
///         loop {
///             match keys.get("/jwks.json").send().await {
///                 Ok(response) => println!("{} bytes of keys", response.body().len()),
///                 Err(error) => println!("no keys: {error}"),
///             }
///             tokio::time::sleep(Duration::from_secs(300)).await;
///         }
///     });
/// }
/// ```
///
/// Envoy makes these calls on its main thread, so each costs two hops between threads. For a
/// call that belongs to an exchange, [`Request::cluster`](crate::Request::cluster) costs none.
#[derive(Clone)]
pub struct SharedCluster {
    calls: Option<Arc<dyn SharedCalls>>,
    name: Arc<str>,
    limits: Limits,
}

cluster_head!(SharedCluster);

impl Caller for SharedCluster {
    type Body = Bytes;
}

impl SharedCluster {
    pub(crate) fn new(calls: Option<Arc<dyn SharedCalls>>, name: &str) -> Self {
        SharedCluster { calls, name: name.into(), limits: Limits::DEFAULT }
    }

    /// Sends a request as the [`http`] crate has it, and gives the whole response the same way. What
    /// [`Cluster::request`](crate::Cluster::request) says of the authority holds here, too.
    ///
    /// # Errors
    /// As [`Callout::send`].
    pub async fn request(
        &self,
        request: http::Request<impl Into<Bytes>>,
    ) -> Result<http::Response<Bytes>, CalloutError> {
        let (parts, body) = request.into_parts();
        Callout::from_parts(self.clone(), self.limits, parts).body(body).send().await
    }
}

impl Callout<SharedCluster> {
    /// Sends the request, and waits for the whole response, as
    /// [the exchange's own](Callout::<crate::Cluster>::send) does. The future is `Send`.
    ///
    /// Not cancel-safe: dropping the future cancels the call, and the service may or may not have
    /// seen it.
    ///
    /// # Errors
    /// There is no response; [`CalloutErrorKind`] has the reasons.
    pub async fn send(self) -> Result<http::Response<Bytes>, CalloutError> {
        let Callout { caller: SharedCluster { calls, name, .. }, head, body } = self;
        head.check(&name)?;
        let Some(calls) = calls else { return Err(refused(CallRefused::Unsupported, &name)) };
        let (answer, answered) = oneshot::channel();
        let pending = PendingCall {
            answer: Answer::new(head.limits.response, calls.reports()),
            to: Some(answer),
            cluster: name.clone(),
        };
        let length = body.len().to_string();
        let request = SharedRequest { cluster: name.clone(), head, length, body };
        let ticket = calls.start(request, pending);
        let mut open = OpenShared { calls, ticket, ended: false };
        let answered = answered.await;
        open.ended = true;
        answered.unwrap_or_else(|_| Err(refused(CallRefused::Gone, &name)))
    }
}

struct OpenShared {
    calls: Arc<dyn SharedCalls>,
    ticket: u64,
    ended: bool,
}

impl Drop for OpenShared {
    fn drop(&mut self) {
        if !self.ended {
            self.calls.cancel(self.ticket);
        }
    }
}

/// Makes the calls of a [`SharedCluster`]. Implemented by the host, once per filter config.
pub trait SharedCalls: Send + Sync {
    /// Starts a call, now or on a thread that can, and reports to `pending`. Returns a number by
    /// which it can be cancelled. Any thread.
    ///
    /// Dropping `pending` before its end says that the config has gone.
    fn start(&self, request: SharedRequest, pending: PendingCall) -> u64;
    /// Nobody waits for a call any more. Does nothing if it is over. Any thread.
    fn cancel(&self, ticket: u64);
    /// Whether the host says why a call failed, as
    /// [`Capabilities::call_reports`](crate::host::Capabilities::call_reports).
    fn reports(&self) -> bool {
        false
    }
}

/// A request that waits for the thread that can send it.
#[derive(Debug)]
pub struct SharedRequest {
    cluster: Arc<str>,
    head: Head,
    length: String,
    body: Bytes,
}

impl SharedRequest {
    /// Gives it to `f` as hosts take requests.
    pub fn with<R>(&self, f: impl FnOnce(&CallStart<'_>) -> R) -> R {
        let known = !(self.body.is_empty() && self.head.is_bodyless());
        let fields = self.head.fields(&self.cluster, known.then_some(self.length.as_str()));
        f(&CallStart {
            cluster: &self.cluster,
            headers: &fields,
            body: &self.body,
            end_stream: true,
            timeout: self.head.limits.timeout(),
        })
    }
}

/// Where a host reports what comes of a call of a [`SharedCluster`].
pub struct PendingCall {
    answer: Answer,
    to: Option<oneshot::Sender<Result<http::Response<Bytes>, CalloutError>>>,
    cluster: Arc<str>,
}

impl fmt::Debug for PendingCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PendingCall({})", self.cluster)
    }
}

impl PendingCall {
    /// The response's headers have arrived, `:status` among them.
    ///
    /// Here and below: false when the call is to be reset, because too much has come.
    #[must_use]
    pub fn headers<'a>(
        &mut self,
        end_stream: bool,
        headers: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    ) -> bool {
        let progress = self.answer.headers(headers, end_stream);
        self.report(progress)
    }

    /// A piece of the response's body has arrived.
    #[must_use]
    pub fn data<'a>(&mut self, end_stream: bool, slices: impl Iterator<Item = &'a [u8]>) -> bool {
        let progress = self.answer.data(slices, end_stream);
        self.report(progress)
    }

    /// The response's trailers have arrived; they are left out.
    pub fn trailers(&mut self) {
        let progress = self.answer.end();
        self.report(progress);
    }

    /// The call is over, and all of it was reported.
    pub fn complete(&mut self) {
        let progress = self.answer.end();
        self.report(progress);
    }

    /// The call could not be started.
    pub fn refused(&mut self, why: CallRefused) {
        let error = refused(why, &self.cluster);
        self.tell(Err(error));
    }

    /// The call is over, and has failed.
    pub fn failed(&mut self, failure: CallFailure) {
        self.failed_because(failure, b"");
    }

    /// The same; `why` is what Envoy says of it, for the error's text.
    pub fn failed_because(&mut self, failure: CallFailure, why: &[u8]) {
        let progress = self.answer.failed(failure, why);
        self.report(progress);
    }

    /// Whether all has been told.
    pub fn is_over(&self) -> bool {
        self.to.is_none()
    }

    fn report(&mut self, progress: Progress) -> bool {
        if self.answer.is_ended() && self.to.is_some() {
            let told = match self.answer.take_error(&self.cluster) {
                Some(error) => Err(error),
                None => self.answer.take_whole().ok_or_else(|| {
                    let detail = "it ended without a response";
                    CalloutError::new(CalloutErrorKind::Reset, &self.cluster, detail)
                }),
            };
            self.tell(told);
        }
        !matches!(progress, Progress::Overrun)
    }

    fn tell(&mut self, told: Result<http::Response<Bytes>, CalloutError>) {
        if let Some(to) = self.to.take() {
            // Whoever asked may have left.
            let _ = to.send(told);
        }
    }
}
