//! [`Cluster`]: calls that one exchange makes.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_core::Stream;
use http_body::Frame;

use super::answer::{Answer, Progress};
use super::error::{CalloutError, CalloutErrorKind};
use super::head::cluster_head;
use super::request::{Caller, Callout, DEFAULT_LIMIT, Head, Limits, trailer_fields};
use crate::body::{Body, FrameStream};
use crate::error::{Error, Result};
use crate::exchange::{Exchange, Inner, Waiter};
use crate::flow::OUTPUT_LIMIT;
use crate::host::{CallFailure, CallRefused, CallStart};

/// A cluster of Envoy's, to call from one exchange: [`Request::cluster`](crate::Request::cluster).
///
/// A call goes through Envoy's own client: its connection pools, TLS, load balancing, circuit
/// breakers, outlier detection and stats are those of the cluster. The worker that owns the exchange
/// makes the call and gets the answer, so waiting for it costs no other thread anything.
///
/// ```
/// use attache_core::{Next, Request, Response, Result};
/// use http::StatusCode;
/// use std::time::Duration;
///
/// async fn handle(req: Request, next: Next) -> Result<Response> {
///     let token = req.headers().get_str("authorization").unwrap_or_default();
///     let allowed = req
///         .cluster("authz")
///         .get("/check")
///         .header("authorization", token)
///         .timeout(Duration::from_millis(200))
///         .send()
///         .await?;
///     if allowed.status() != StatusCode::OK {
///         return Ok(Response::new(StatusCode::FORBIDDEN));
///     }
///     next.run(req).await
/// }
/// ```
///
/// It is a handle: cheap to clone, and good for as many calls as wanted, one after the other or at
/// once, before and after [`Next::run`](crate::Next::run). It stays on the exchange's worker (it is
/// not `Send`), and once the exchange has ended, its calls fail with [`CalloutErrorKind::Gone`].
/// [`SharedCluster`](crate::SharedCluster) is for calls from elsewhere.
///
/// ```compile_fail,E0277
/// # async fn f(cluster: attache_core::Cluster) {
/// attache_core::spawn(async move { cluster.get("/").send().await });    // not `Send`
/// # }
/// ```
///
/// Dropping the future of a call, or the body of a streamed response, cancels the call.
#[derive(Clone)]
pub struct Cluster {
    exchange: Rc<Inner>,
    name: Rc<str>,
    limits: Limits,
}

cluster_head!(Cluster);

impl Caller for Cluster {
    type Body = Body;
}

impl Cluster {
    pub(crate) fn new(exchange: Rc<Inner>, name: &str) -> Self {
        Cluster { exchange, name: name.into(), limits: Limits::DEFAULT }
    }

    /// Sends a request as the [`http`] crate has it, and gives the response the same way, streamed
    /// both ways as [`Callout::send_streaming`] does.
    ///
    /// The URI's authority (else the `host` header, else the cluster's name) becomes the authority;
    /// its host is not looked up, as the cluster says where to go. A body that is there as a whole is
    /// sent as one, with its length.
    ///
    /// # Errors
    /// As [`Callout::send_streaming`].
    pub async fn request<B>(
        &self,
        request: http::Request<B>,
    ) -> std::result::Result<http::Response<Body>, CalloutError>
    where
        B: http_body::Body<Data = Bytes> + 'static,
        B::Error: Into<Error>,
    {
        let (parts, body) = request.into_parts();
        let body = if body.is_end_stream() { Body::empty() } else { whole_or_streamed(body).await };
        let callout = Callout::from_parts(self.clone(), self.limits, parts);
        callout.body(body).send_streaming().await
    }
}

/// A body that is complete with its first frame, or one that streams.
async fn whole_or_streamed<B>(body: B) -> Body
where
    B: http_body::Body<Data = Bytes> + 'static,
    B::Error: Into<Error>,
{
    let mut rest = Box::pin(body);
    let first = poll_fn(|cx| Poll::Ready(rest.as_mut().poll_frame(cx))).await;
    let first = match first {
        Poll::Ready(Some(Ok(frame))) if frame.is_data() && rest.is_end_stream() => {
            return Body::from(frame.into_data().unwrap_or_default());
        }
        Poll::Ready(None) => return Body::empty(),
        Poll::Ready(Some(frame)) => Some(frame),
        Poll::Pending => None,
    };
    Body::from_http(Resumed { first, rest })
}

/// A body whose first frame has been taken.
struct Resumed<B: http_body::Body> {
    first: Option<std::result::Result<Frame<B::Data>, B::Error>>,
    rest: Pin<Box<B>>,
}

impl<B: http_body::Body> Unpin for Resumed<B> {}

impl<B: http_body::Body> http_body::Body for Resumed<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<B::Data>, B::Error>>> {
        match self.first.take() {
            Some(first) => Poll::Ready(Some(first)),
            None => self.rest.as_mut().poll_frame(cx),
        }
    }
}

impl Callout<Cluster> {
    /// Sends the request, and waits for the whole response.
    ///
    /// The response's trailers are left out; [`send_streaming`](Callout::send_streaming) has them.
    /// Not cancel-safe: dropping the future cancels the call, and the service may or may not have
    /// seen it.
    ///
    /// # Errors
    /// There is no response; [`CalloutErrorKind`] has the reasons. Once a future has returned, for
    /// whatever reason, nothing of the call goes on.
    pub async fn send(self) -> std::result::Result<http::Response<Bytes>, CalloutError> {
        let mut open = OpenCall::start(self)?;
        poll_fn(|cx| open.poll_whole(cx)).await
    }

    /// Sends the request, and waits for the headers of the response, whose body is then read as it
    /// comes. Trailers come as the body's last frame ([`http_body::Body::poll_frame`]).
    ///
    /// A body that streams is sent while the response is waited for, and after that while the
    /// response's body is read: whoever stops polling stops the sending, too. A live body
    /// ([`Request::take_body`](crate::Request::take_body)) can be sent this way, and the response
    /// can be the filter's own: `Ok(response.into())`.
    ///
    /// Envoy cannot slow down the service that answers; see [`limit`](Callout::limit). A service that
    /// is slow to read holds the body back where the host tells of it; elsewhere
    /// [`request_limit`](Callout::request_limit) bounds what waits.
    ///
    /// Not cancel-safe: dropping the future, or later the response's body, cancels the call.
    ///
    /// # Errors
    /// As [`send`](Callout::send); what goes wrong after the headers fails the response's body, with
    /// the [`CalloutError`] as the error's [source](Error::source).
    pub async fn send_streaming(self) -> std::result::Result<http::Response<Body>, CalloutError> {
        let mut open = OpenCall::start(self)?;
        let (status, headers) = poll_fn(|cx| open.poll_head(cx)).await?;
        let mut response = http::Response::new(Body::from_frames(Box::pin(open)));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        Ok(response)
    }
}

/// The calls of an exchange that are under way.
#[derive(Default)]
pub(crate) struct Calls(RefCell<Vec<Rc<Call>>>);

struct Call {
    id: u64,
    answer: RefCell<Answer>,
    waiter: Cell<Waiter>,
    timeout: Option<Duration>,
    /// When the whole request had been sent, if there is a timeout.
    sent: Cell<Option<Instant>>,
}

impl Call {
    fn request_is_sent(&self) {
        if self.timeout.is_some() {
            self.sent.set(Some(Instant::now()));
        }
    }

    /// Envoy does not say that it was the timeout that cut off a response that had begun. Its timers
    /// start from when its event loop last woke, which is some time before we look at the clock.
    fn failure(&self) -> CallFailure {
        match (self.timeout, self.sent.get()) {
            (Some(timeout), Some(sent)) if sent.elapsed() + lag(timeout) >= timeout => {
                CallFailure::Timeout
            }
            _ => CallFailure::Reset,
        }
    }
}

fn lag(timeout: Duration) -> Duration {
    (timeout / 4).min(Duration::from_millis(500))
}

impl Calls {
    fn find(&self, id: u64) -> Option<Rc<Call>> {
        self.0.borrow().iter().find(|call| call.id == id).cloned()
    }

    fn remove(&self, id: u64) {
        self.0.borrow_mut().retain(|call| call.id != id);
    }
}

/// A call that was started; it is cancelled when this is dropped.
struct OpenCall {
    exchange: Rc<Inner>,
    cluster: Rc<str>,
    call: Rc<Call>,
    pump: Option<Pump>,
}

/// What is still to be sent.
struct Pump {
    frames: FrameStream,
    sent: usize,
    limit: usize,
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        let Some(calls) = self.exchange.calls.get() else { return };
        // First: what the host reports from now on is for nobody.
        calls.remove(self.call.id);
        let ended = self.call.answer.try_borrow().is_ok_and(|answer| answer.is_ended());
        if !ended {
            self.exchange.read(|host| host.reset_call(self.call.id));
        }
    }
}

fn gone(cluster: &str) -> CalloutError {
    CalloutError::new(CalloutErrorKind::Gone, cluster, "the exchange has ended")
}

pub(crate) fn refused(why: CallRefused, cluster: &str) -> CalloutError {
    let (kind, detail) = match why {
        CallRefused::Unsupported => {
            (CalloutErrorKind::Unsupported, "this Envoy host cannot call clusters")
        }
        CallRefused::UnknownCluster => {
            (CalloutErrorKind::UnknownCluster, "Envoy has no cluster of this name")
        }
        CallRefused::InvalidRequest => {
            (CalloutErrorKind::InvalidRequest, "Envoy does not take the request")
        }
        CallRefused::Unavailable => (
            CalloutErrorKind::Unavailable,
            "it takes no request now: no host is healthy, or a circuit breaker is open",
        ),
        CallRefused::NoHealthyHost => (CalloutErrorKind::Unavailable, "no host of it is healthy"),
        CallRefused::Overflow => (CalloutErrorKind::Overflow, "a circuit breaker is open"),
        CallRefused::Gone => (CalloutErrorKind::Gone, "the filter's config has ended"),
    };
    CalloutError::new(kind, cluster, detail)
}

impl OpenCall {
    fn start(callout: Callout<Cluster>) -> std::result::Result<Self, CalloutError> {
        let Callout { caller: Cluster { exchange, name, .. }, head, body } = callout;
        head.check(&name)?;
        if exchange.is_over() {
            return Err(gone(&name));
        }
        let (whole, frames) = match body.into_full() {
            Ok(bytes) => (bytes, None),
            Err(body) => (Bytes::new(), Some(body.into_frames())),
        };
        let id = start(&exchange, &name, &head, &whole, frames.is_none())?;
        let reports = exchange.read(|host| host.capabilities().call_reports) == Some(true);
        let call = Rc::new(Call {
            id,
            answer: RefCell::new(Answer::new(head.limits.response, reports)),
            waiter: Cell::new(Waiter::Nobody),
            timeout: head.limits.timeout(),
            sent: Cell::new(None),
        });
        if frames.is_none() {
            call.request_is_sent();
        }
        exchange.calls.get_or_init(Box::default).0.borrow_mut().push(call.clone());
        let pump = frames.map(|frames| {
            let limit = head.limits.request.unwrap_or(match reports {
                // What waits is held back by the service.
                true => usize::MAX,
                false => DEFAULT_LIMIT,
            });
            Pump { frames, sent: 0, limit }
        });
        Ok(OpenCall { exchange, cluster: name, call, pump })
    }

    fn error(&self, kind: CalloutErrorKind, detail: impl Into<Cow<'static, str>>) -> CalloutError {
        CalloutError::new(kind, &self.cluster, detail)
    }

    /// Sends what there is to send.
    fn poll_pump(&mut self, cx: &mut Context<'_>) -> std::result::Result<(), CalloutError> {
        let Some(mut pump) = self.pump.take() else { return Ok(()) };
        let id = self.call.id;
        let mut budget = OUTPUT_LIMIT;
        loop {
            // The service has answered in full, or is gone: it wants no more.
            if self.exchange.is_over() || self.call.answer.borrow().is_ended() {
                return Ok(());
            }
            // It is slow to read. When it has read, `call_drained` says so.
            if self.exchange.read(|host| host.call_is_full(id)) == Some(true) {
                self.pump = Some(pump);
                return Ok(());
            }
            if budget == 0 {
                // There may be more; first the worker gets to write out what it has.
                cx.waker().wake_by_ref();
                self.pump = Some(pump);
                return Ok(());
            }
            match pump.frames.as_mut().poll_next(cx) {
                Poll::Pending => {
                    self.pump = Some(pump);
                    return Ok(());
                }
                Poll::Ready(Some(Err(error))) => {
                    return Err(self.error(CalloutErrorKind::RequestBody, format!("{error:?}")));
                }
                Poll::Ready(None) => {
                    self.exchange.read(|host| host.send_call_data(id, &[], true));
                    self.call.request_is_sent();
                    return Ok(());
                }
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => {
                        pump.sent = pump.sent.saturating_add(data.len());
                        if pump.sent > pump.limit {
                            let text = format!("the request is over {} bytes", pump.limit);
                            return Err(self.error(CalloutErrorKind::TooLarge, text));
                        }
                        budget = budget.saturating_sub(data.len());
                        if !data.is_empty() {
                            self.exchange.read(|host| host.send_call_data(id, &data, false));
                        }
                    }
                    Err(frame) => {
                        let trailers = frame.into_trailers().unwrap_or_default();
                        let fields = trailer_fields(&trailers);
                        self.exchange.read(|host| host.send_call_trailers(id, &fields));
                        self.call.request_is_sent();
                        return Ok(());
                    }
                },
            }
        }
    }

    /// `ready` says what there is to give; if nothing, whoever polls is told when there is more.
    fn poll_answer<T>(
        &mut self,
        cx: &mut Context<'_>,
        ready: impl FnOnce(&mut Answer, &str) -> Option<std::result::Result<T, CalloutError>>,
    ) -> Poll<std::result::Result<T, CalloutError>> {
        self.poll_pump(cx)?;
        let found = ready(&mut self.call.answer.borrow_mut(), &self.cluster);
        if let Some(found) = found {
            return Poll::Ready(found);
        }
        if self.exchange.is_over() {
            return Poll::Ready(Err(gone(&self.cluster)));
        }
        drop(self.call.waiter.replace(self.exchange.waiter(cx)));
        Poll::Pending
    }

    fn poll_whole(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<std::result::Result<http::Response<Bytes>, CalloutError>> {
        self.poll_answer(cx, |answer, cluster| {
            if !answer.is_ended() {
                return None;
            }
            Some(match answer.take_error(cluster) {
                Some(error) => Err(error),
                None => answer.take_whole().ok_or_else(|| gone(cluster)),
            })
        })
    }

    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<std::result::Result<(http::StatusCode, http::HeaderMap), CalloutError>> {
        self.poll_answer(cx, |answer, cluster| {
            answer.take_head().map(Ok).or_else(|| answer.take_error(cluster).map(Err))
        })
    }
}

/// The body of a streamed response.
impl Stream for OpenCall {
    type Item = Result<Frame<Bytes>>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let polled = self.poll_answer(cx, |answer, cluster| {
            if let Some(chunk) = answer.take_chunk() {
                return Some(Ok(Some(Frame::data(chunk))));
            }
            if !answer.is_ended() {
                return None;
            }
            Some(match answer.take_error(cluster) {
                Some(error) => Err(error),
                None => Ok(answer.take_trailers().map(Frame::trailers)),
            })
        });
        polled.map(|frame| frame.map_err(Error::from).transpose())
    }
}

fn start(
    exchange: &Rc<Inner>,
    cluster: &str,
    head: &Head,
    body: &[u8],
    end_stream: bool,
) -> std::result::Result<u64, CalloutError> {
    let length = body.len().to_string();
    let known = end_stream && !(body.is_empty() && head.is_bodyless());
    let fields = head.fields(cluster, known.then_some(length.as_str()));
    let start =
        CallStart { cluster, headers: &fields, body, end_stream, timeout: head.limits.timeout() };
    match exchange.read(|host| host.start_call(&start)) {
        None => Err(gone(cluster)),
        Some(started) => started.map_err(|why| refused(why, cluster)),
    }
}

/// What the host reports of calls. An id that is not known (any more) is ignored: what comes late is
/// for nobody.
impl Exchange {
    /// The response's headers have arrived, `:status` among them.
    pub fn call_headers<'a>(
        &self,
        call: u64,
        end_stream: bool,
        headers: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    ) {
        self.call_event(call, |answer, _| answer.headers(headers, end_stream));
    }

    /// A piece of the response's body has arrived; `end_stream` also when it is empty.
    pub fn call_data<'a>(
        &self,
        call: u64,
        end_stream: bool,
        slices: impl Iterator<Item = &'a [u8]>,
    ) {
        self.call_event(call, |answer, _| answer.data(slices, end_stream));
    }

    /// The response's trailers have arrived.
    pub fn call_trailers<'a>(
        &self,
        call: u64,
        trailers: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    ) {
        self.call_event(call, |answer, _| answer.trailers(trailers));
    }

    /// The call is over, and all of it was reported.
    pub fn call_complete(&self, call: u64) {
        self.call_event(call, |answer, _| answer.end());
    }

    /// The call is over, and has failed. Where the host does not know why, the clock tells a timeout
    /// from a reset.
    pub fn call_failed(&self, call: u64, failure: Option<CallFailure>) {
        self.call_event(call, |answer, call| {
            answer.failed(failure.unwrap_or_else(|| call.failure()), b"")
        });
    }

    /// The call is over, and has failed: `why` is what Envoy says of it, for the error's text. Empty,
    /// the text is that of [`call_failed`](Exchange::call_failed).
    pub fn call_failed_because(&self, call: u64, failure: CallFailure, why: &[u8]) {
        self.call_event(call, |answer, _| answer.failed(failure, why));
    }

    /// The service takes more of the request again, after
    /// [`Host::call_is_full`](crate::host::Host::call_is_full) said that it does not.
    pub fn call_drained(&self, call: u64) {
        self.call_event(call, |_, _| Progress::News);
    }

    fn call_event(&self, id: u64, f: impl FnOnce(&mut Answer, &Call) -> Progress) {
        let inner = self.inner();
        let Some(call) = inner.calls.get().and_then(|calls| calls.find(id)) else { return };
        let progress = f(&mut call.answer.borrow_mut(), &call);
        match progress {
            Progress::Nothing => return,
            Progress::News => (),
            Progress::Overrun => {
                inner.read(|host| host.reset_call(id));
            }
        }
        inner.wake_for(call.waiter.take());
    }
}
