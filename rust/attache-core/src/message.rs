//! [`Request`], [`Response`] and [`Next`].

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};

use crate::body::{Body, BodyWriter};
use crate::cluster::Cluster;
use crate::error::{Error, ErrorKind, Result};
use crate::exchange::Inner;
use crate::filter::Filter;
use crate::headers::Headers;
use crate::hint::rarely;
use crate::host::{Capabilities, Direction};
use crate::route::route_config;
use crate::span::Trace;
use crate::stream::Stream;

/// Boxed twice, to be small where there is none: in nearly every message.
pub(crate) type TrailersHook = Box<Box<dyn FnOnce(&mut Headers)>>;

/// The request: its headers and its body, live in Envoy.
///
/// It is consumed by [`Next::run`]: once the request has gone on, there is nothing left to touch.
///
/// ```compile_fail,E0382
/// # use attache_core::{Next, Request, Response, Result};
/// # async fn f(mut req: Request, next: Next) -> Result<Response> {
/// let resp = next.run(req).await?;
/// req.headers_mut().set("x-late", "1");    // borrow of moved value: `req`
/// # Ok(resp) }
/// ```
#[derive(Debug)]
pub struct Request {
    pub(crate) message: Message,
}

/// A response: the upstream's, live in Envoy, or one that the filter makes.
#[derive(Debug)]
pub struct Response {
    pub(crate) message: Message,
    /// The status of a response that the filter makes; an upstream's is in its headers.
    pub(crate) status: StatusCode,
    pub(crate) trailers: Option<Box<HeaderMap>>,
}

/// What requests and responses have in common.
pub(crate) struct Message {
    pub(crate) headers: Headers,
    pub(crate) body: Body,
    pub(crate) on_trailers: Option<TrailersHook>,
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Message")
            .field("headers", &self.headers)
            .field("body", &self.body)
            .finish_non_exhaustive()
    }
}

impl Message {
    fn live(exchange: Rc<Inner>, direction: Direction) -> Self {
        Message {
            headers: Headers::live(exchange.clone(), direction.headers()),
            body: Body::live(exchange, direction),
            on_trailers: None,
        }
    }

    /// Whether it is that of a direction of `of`, with its own body, and trailers as they come.
    #[inline]
    pub(crate) fn is_whole(&self, of: &Rc<Inner>, direction: Direction) -> bool {
        self.on_trailers.is_none()
            && self.headers.is_live(of, direction.headers())
            && self.body.is_live_of(of, direction)
    }

    /// As dropping it, for one that is live, as nearly all are.
    #[inline(always)]
    pub(crate) fn let_go(self) {
        let Message { headers, body, on_trailers } = self;
        headers.let_go();
        body.let_go();
        if let Some(hook) = on_trailers {
            rarely();
            drop(hook);
        }
    }

    fn chain_trailers(&mut self, f: impl FnOnce(&mut Headers) + 'static) {
        self.on_trailers = Some(match self.on_trailers.take() {
            None => Box::new(Box::new(f)),
            Some(first) => Box::new(Box::new(move |trailers: &mut Headers| {
                first(trailers);
                f(trailers);
            })),
        });
    }
}

macro_rules! message_methods {
    ($what:literal) => {
        #[doc = concat!("The headers of the ", $what, ".")]
        pub fn headers(&self) -> &Headers {
            &self.message.headers
        }

        #[doc = concat!("The headers of the ", $what, ", to change.")]
        pub fn headers_mut(&mut self) -> &mut Headers {
            &mut self.message.headers
        }

        #[doc = concat!("What is around the ", $what, ": the exchange as Envoy sees it.")]
        pub fn stream(&self) -> Stream {
            Stream::new(self.headers().exchange().cloned())
        }

        /// The body.
        pub fn body(&self) -> &Body {
            &self.message.body
        }

        /// The body, to read.
        pub fn body_mut(&mut self) -> &mut Body {
            &mut self.message.body
        }

        /// Takes the body out and leaves an empty one.
        pub fn take_body(&mut self) -> Body {
            std::mem::take(&mut self.message.body)
        }

        /// Replaces the body. `content-length` follows: it is set if the new length is known and no
        /// trailers can follow, and removed if not.
        pub fn set_body(&mut self, body: impl Into<Body>) {
            self.message.body = body.into();
        }

        /// Changes the body chunk by chunk as it streams through. `f` must not wait; see
        /// [`pipe_body`](Self::pipe_body) for a change that does. Chunk borders are wherever the
        /// network put them. Trailers stay.
        pub fn map_body(&mut self, f: impl FnMut(Bytes) -> Bytes + 'static) {
            self.message.body = self.take_body().map(f);
        }

        /// Replaces the body by what an async function writes while it reads the old one.
        ///
        /// The function runs beside `handle`, on the same worker, once the message goes on. Its
        /// error fails the exchange. Trailers that it changes
        /// ([`Body::trailers`]) go on when it returns.
        ///
        /// Where the host cannot emit at any time
        /// ([`Capabilities::emit_any_time`](crate::host::Capabilities::emit_any_time)), what is
        /// written without new input waits for the next piece of it, and what is written after the
        /// input's end leaves together when the function returns, up to the config's
        /// `attache.gather_limit_bytes` (16 MiB by default).
        pub fn pipe_body<F, Fut>(&mut self, f: F)
        where
            F: FnOnce(Body, BodyWriter) -> Fut,
            Fut: Future<Output = Result<()>> + 'static,
        {
            self.message.body = self.take_body().pipe(f);
        }

        /// Changes the trailers when they arrive; nothing happens if none do. `f` must not wait.
        pub fn map_trailers(&mut self, f: impl FnOnce(&mut Headers) + 'static) {
            self.message.chain_trailers(f);
        }
    };
}

impl Request {
    pub(crate) fn live(exchange: Rc<Inner>) -> Self {
        Request { message: Message::live(exchange, Direction::Request) }
    }

    message_methods!("request");

    /// The method. `GET` if it is missing, which Envoy does not let happen.
    pub fn method(&self) -> Method {
        self.headers()
            .with(":method", |v| v.and_then(|v| Method::from_bytes(v).ok()).unwrap_or(Method::GET))
    }

    /// Replaces the method.
    pub fn set_method(&mut self, method: &Method) {
        self.headers_mut().set(":method", method.as_str());
    }

    /// The path, with the query. Empty for CONNECT. Bytes that are no UTF-8 become U+FFFD; see
    /// [`Headers::get`] with `:path` for them as they are.
    pub fn path(&self) -> String {
        self.pseudo(":path").unwrap_or_default()
    }

    /// Replaces the path, query included. Envoy has already chosen the route, and keeps it; see
    /// [`Stream::clear_route_cache`].
    pub fn set_path(&mut self, path: &str) {
        self.headers_mut().set(":path", path);
    }

    /// The scheme.
    pub fn scheme(&self) -> Option<String> {
        self.pseudo(":scheme")
    }

    /// The authority (`Host`). Bytes that are no UTF-8 become U+FFFD.
    pub fn authority(&self) -> Option<String> {
        self.pseudo(":authority")
    }

    /// What is not text must not look as if it were not there: filters decide by it.
    fn pseudo(&self, name: &str) -> Option<String> {
        self.headers().with(name, |value| Some(String::from_utf8_lossy(value?).into_owned()))
    }

    /// The whole URI.
    ///
    /// # Errors
    /// Status 400: its parts do not make a URI.
    pub fn uri(&self) -> Result<Uri> {
        let mut uri = Uri::builder();
        if let (Some(scheme), Some(authority)) = (self.scheme(), self.authority()) {
            uri = uri.scheme(scheme.as_str()).authority(authority.as_str());
        }
        uri.path_and_query(self.path())
            .build()
            .map_err(|e| Error::from(e).with_status(StatusCode::BAD_REQUEST))
    }

    /// The per-route config of this filter, `F`, if the route has one at any level: what
    /// [`Filter::merge_route`] makes of all that there are; unless the filter says otherwise, the most
    /// specific (weighted cluster, then route, then virtual host, then route table).
    ///
    /// `None` also if `F` is not this filter, or the config belongs to a filter of another type. Costs
    /// nothing until it is called. See also [`Stream::route_config`].
    pub fn route_config<F: Filter>(&self) -> Option<Arc<F::RouteConfig>> {
        route_config::<F>(self.headers().exchange()?)
    }

    /// A cluster of Envoy's, by its name, to call from this exchange: also after
    /// [`Next::run`], with a handle taken before.
    ///
    /// That there is no such cluster shows when it is called.
    pub fn cluster(&self, name: &str) -> Cluster {
        let exchange = self.headers().exchange().expect("a request is always live");
        Cluster::new(exchange.clone(), name)
    }

    /// Envoy's tracing span of this exchange, and its context for calls elsewhere. Does nothing where
    /// Envoy does not trace.
    pub fn trace(&self) -> Trace {
        Trace::new(self.headers().exchange().cloned())
    }

    /// What this host can do beyond the common ground.
    pub fn capabilities(&self) -> Capabilities {
        self.headers()
            .exchange()
            .and_then(|e| e.read(|host| host.capabilities()))
            .unwrap_or(Capabilities::COMMON)
    }
}

impl Response {
    pub(crate) fn upstream(exchange: Rc<Inner>) -> Self {
        let message = Message::live(exchange, Direction::Response);
        Response { message, status: StatusCode::OK, trailers: None }
    }

    /// A response of the filter's own. Returned instead of calling [`Next::run`], it is a local
    /// reply; returned instead of the upstream's response, it replaces that.
    ///
    /// A status below 200 or above 599 cannot be sent: the exchange fails with a 500.
    pub fn new(status: StatusCode) -> Self {
        let message = Message {
            headers: Headers::owned(HeaderMap::new()),
            body: Body::empty(),
            on_trailers: None,
        };
        Response { message, status, trailers: None }
    }

    /// A response with a text as its body.
    pub fn text(status: StatusCode, text: impl Into<String>) -> Self {
        Response::new(status)
            .with_header("content-type", "text/plain; charset=utf-8")
            .with_body(text.into())
    }

    message_methods!("response");

    /// Adds a header. Fails like [`Headers::append`].
    #[must_use]
    pub fn with_header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers_mut().append(name, value);
        self
    }

    /// Gives the response a body.
    #[must_use]
    pub fn with_body(mut self, body: impl Into<Body>) -> Self {
        self.set_body(body);
        self
    }

    /// Ends a response that the filter makes with trailers.
    #[must_use]
    pub fn with_trailers(mut self, trailers: HeaderMap) -> Self {
        self.trailers = Some(Box::new(trailers));
        self
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        if self.headers().exchange().is_none() {
            return self.status;
        }
        self.headers().with(":status", |v| {
            v.and_then(|v| StatusCode::from_bytes(v).ok()).unwrap_or(StatusCode::OK)
        })
    }

    /// Replaces the status. A 204 or 304 has no body: what the upstream sends is discarded.
    pub fn set_status(&mut self, status: StatusCode) {
        if self.headers().exchange().is_none() {
            self.status = status;
        } else {
            self.headers_mut().set(":status", status.as_str());
        }
    }
}

impl Response {
    /// As dropping it, for one that is live, as nearly all are.
    #[inline(always)]
    pub(crate) fn let_go(self) {
        self.message.let_go();
        if let Some(trailers) = self.trailers {
            rarely();
            drop(trailers);
        }
    }
}

impl<B: Into<Body>> From<http::Response<B>> for Response {
    fn from(response: http::Response<B>) -> Self {
        let (parts, body) = response.into_parts();
        let mut made = Response::new(parts.status).with_body(body);
        made.message.headers = Headers::owned(parts.headers);
        made
    }
}

impl From<StatusCode> for Response {
    fn from(status: StatusCode) -> Self {
        Response::new(status)
    }
}

/// The rest of the chain: later filters and the upstream.
#[derive(Debug)]
pub struct Next {
    exchange: Rc<Inner>,
}

impl Next {
    pub(crate) fn new(exchange: Rc<Inner>) -> Self {
        Next { exchange }
    }

    /// Lets the request go on, and waits for the response's headers.
    ///
    /// The request's body goes on as it now is: untouched (the filter is then out of its way),
    /// mapped, piped, or replaced. It keeps streaming while the response is awaited and after, in
    /// both directions at once.
    ///
    /// The response may also come from Envoy itself (no healthy upstream, a timeout) or from a
    /// later filter. Not cancel-safe: once polled, the request has gone; after dropping the future,
    /// a response of the filter's own still can be returned.
    ///
    /// # Errors
    /// The request was made invalid (a bad header), or is not this exchange's.
    pub fn run(self, req: Request) -> impl Future<Output = Result<Response>> {
        Run { exchange: Some(self.exchange), req: Some(req) }
    }
}

/// What [`Next::run`] returns: nearly every exchange has one, and written out it is smaller than what
/// an `async fn` becomes.
struct Run {
    /// There until it is done.
    exchange: Option<Rc<Inner>>,
    /// There until it is polled.
    req: Option<Request>,
}

impl Future for Run {
    type Output = Result<Response>;

    // Where nearly every `handle` is resumed: a part of its own code.
    #[inline(always)]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Response>> {
        let run = &mut *self;
        let exchange = run.exchange.as_ref().expect("not polled again when it is done");
        if let Some(req) = run.req.take() {
            exchange.release_request(req)?;
        }
        ready!(exchange.poll_response(cx));
        Poll::Ready(Ok(Response::upstream(run.exchange.take().expect("as above"))))
    }
}

#[cold]
pub(crate) fn not_its_own() -> Error {
    Error::make(
        ErrorKind::InvalidMessage,
        StatusCode::INTERNAL_SERVER_ERROR,
        "`next.run` was given the request of another exchange",
    )
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Exchange({})", self.filter().meta.name)
    }
}

/// Header names that the runtime itself deals with.
pub(crate) const CONTENT_LENGTH: &str = "content-length";

/// The names and values of a map, as the host wants them.
pub(crate) fn pairs<'a>(
    headers: &'a HeaderMap,
    keep: impl Fn(&HeaderName) -> bool + 'a,
) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + 'a {
    headers.iter().filter(move |(name, _)| keep(name)).map(
        |(name, value): (&HeaderName, &HeaderValue)| (name.as_str().as_bytes(), value.as_bytes()),
    )
}
