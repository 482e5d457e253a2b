//! Upstreams: real servers on loopback that speak HTTP/1.1 and HTTP/2 (prior knowledge) on one
//! port, answer as the test wants, and remember what they saw.

use std::fmt;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};

use crate::body::{BodySender, OutBody, Trouble};
use crate::wait::within;

/// What an upstream saw of one exchange, so far.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The request's method.
    pub method: Method,
    /// The request's target, as it came.
    pub uri: Uri,
    /// The HTTP version that Envoy spoke.
    pub version: Version,
    /// The request's headers.
    pub headers: HeaderMap,
    /// The bytes of the request's body that were read so far.
    pub body: BytesMut,
    /// The request's trailers, once they have come.
    pub trailers: Option<HeaderMap>,
    /// How far the request has come.
    pub request: Progress,
    /// How far the response has gone.
    pub response: Progress,
}

impl Seen {
    /// The path with its query.
    pub fn path(&self) -> &str {
        self.uri.path_and_query().map_or("", |path| path.as_str())
    }

    /// The first header of that name, as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("a text header"))
    }

    /// The body as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("a text body")
    }
}

/// How far one direction of an exchange has come at the upstream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Progress {
    /// Not at its end.
    Open,
    /// Came to its proper end.
    Complete,
    /// Cut short: reset by the peer, or given up by the handler.
    Cut,
}

/// One exchange at an upstream; looks at it while it happens.
#[derive(Clone, Debug)]
pub struct Exchange(watch::Receiver<Seen>);

impl Exchange {
    /// What was seen up to now.
    pub fn seen(&self) -> Seen {
        self.0.borrow().clone()
    }

    /// Waits until `reached` holds of what was seen. What the handler does not read is not seen.
    pub async fn until(&self, what: &str, reached: impl Fn(&Seen) -> bool) -> Seen {
        let mut watched = self.0.clone();
        let seen = within(what, watched.wait_for(|seen| reached(seen))).await;
        match seen {
            Ok(seen) => seen.clone(),
            Err(_) => panic!("the exchange was over before {what}: {:?}", self.seen()),
        }
    }

    /// Waits until the request has come to its end, one way or the other.
    pub async fn request_over(&self) -> Seen {
        self.until("the end of the request at the upstream", |seen| seen.request != Progress::Open)
            .await
    }

    /// Waits until the response has come to its end, one way or the other.
    pub async fn response_over(&self) -> Seen {
        self.until("the end of the response at the upstream", |seen| {
            seen.response != Progress::Open
        })
        .await
    }
}

/// The request body as a handler gets it; reading it is what fills [`Seen`].
#[derive(Debug)]
pub struct SeenBody {
    inner: Incoming,
    seen: watch::Sender<Seen>,
}

impl SeenBody {
    /// The next chunk of data; `None` at the end, or when trailers came (they are in [`Seen`]).
    pub async fn chunk(&mut self) -> Option<Result<Bytes, Trouble>> {
        match self.frame().await? {
            Ok(frame) => frame.into_data().ok().map(Ok),
            Err(error) => Some(Err(error)),
        }
    }

    fn ended(&self, progress: Progress) {
        self.seen.send_modify(|seen| seen.request = progress);
    }
}

impl Body for SeenBody {
    type Data = Bytes;
    type Error = Trouble;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Trouble>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => {
                let ended = self.inner.is_end_stream() || frame.is_trailers();
                self.seen.send_modify(|seen| {
                    if let Some(data) = frame.data_ref() {
                        seen.body.extend_from_slice(data);
                    }
                    if let Some(trailers) = frame.trailers_ref() {
                        seen.trailers = Some(trailers.clone());
                    }
                    if ended {
                        seen.request = Progress::Complete;
                    }
                });
            }
            Some(Err(_)) => self.ended(Progress::Cut),
            None => self.ended(Progress::Complete),
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for SeenBody {
    fn drop(&mut self) {
        let ended = self.inner.is_end_stream();
        self.seen.send_modify(|seen| {
            if seen.request == Progress::Open {
                seen.request = if ended { Progress::Complete } else { Progress::Cut };
            }
        });
    }
}

/// Notes how the response ended; alive from the request's arrival to the response's end.
struct ResponseWatch {
    seen: watch::Sender<Seen>,
    complete: bool,
}

impl Drop for ResponseWatch {
    fn drop(&mut self) {
        let end = if self.complete { Progress::Complete } else { Progress::Cut };
        self.seen.send_modify(|seen| seen.response = end);
    }
}

/// [`Trouble`] as an error type of its own; hyper's bounds and boxed errors do not go together.
#[derive(Debug)]
struct Failure(Trouble);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.0)
    }
}

struct WatchedBody {
    inner: OutBody,
    watch: ResponseWatch,
}

impl Body for WatchedBody {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => {
                self.watch.complete |= frame.is_trailers() || self.inner.is_end_stream();
            }
            Some(Err(_)) => {}
            None => self.watch.complete = true,
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Failure)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

type Answer = Result<Response<OutBody>, Trouble>;

/// An upstream server on a free loopback port, gone when dropped.
pub struct Upstream {
    address: SocketAddr,
    exchanges: watch::Receiver<Vec<Exchange>>,
    turns: tokio::sync::Mutex<Option<mpsc::UnboundedReceiver<Turn>>>,
    server: JoinHandle<()>,
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Upstream {
    /// Answers each request by `handler`. An `Err` from it cuts the exchange without an answer
    /// (a closed connection in HTTP/1.1, a reset stream in HTTP/2).
    pub async fn start<H, F>(handler: H) -> Self
    where
        H: Fn(Request<SeenBody>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Response<OutBody>, Trouble>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        Self::serve(listener, move |request, _| handler(request))
    }

    /// As [`start`](Self::start), on a given port; for servers that people look at.
    pub async fn start_at<H, F>(address: SocketAddr, handler: H) -> std::io::Result<Self>
    where
        H: Fn(Request<SeenBody>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Response<OutBody>, Trouble>> + Send + 'static,
    {
        let listener = TcpListener::bind(address).await?;
        Ok(Self::serve(listener, move |request, _| handler(request)))
    }

    /// Sends back what comes: 200 with the request's body, streamed, and its trailers.
    pub async fn echo() -> Self {
        Self::start(async |request: Request<SeenBody>| {
            let mut response = Response::builder();
            // HTTP/1.1 sends only the trailers that its headers have declared.
            for name in [header::CONTENT_TYPE, header::TRAILER] {
                for value in request.headers().get_all(&name) {
                    response = response.header(&name, value);
                }
            }
            Ok(response.body(OutBody::other(request.into_body()))?)
        })
        .await
    }

    /// Reads the request to its end, then answers with this status and body.
    pub async fn fixed(status: u16, body: impl Into<Bytes>) -> Self {
        let body = body.into();
        Self::start(move |request: Request<SeenBody>| {
            let body = body.clone();
            async move {
                request.into_body().collect().await?;
                Ok(Response::builder().status(status).body(body.into())?)
            }
        })
        .await
    }

    /// Leaves every step to the test: see [`accept`](Self::accept).
    pub async fn manual() -> Self {
        let (sender, turns) = mpsc::unbounded_channel();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let mut upstream = Self::serve(listener, move |request, exchange| {
            let sender = sender.clone();
            async move {
                let (answer, answered) = oneshot::channel();
                let turn = Turn { request: Some(request), exchange, answer: Some(answer) };
                let _ = sender.send(turn);
                answered.await.unwrap_or_else(|_| Err("the test hung up".into()))
            }
        });
        upstream.turns = tokio::sync::Mutex::new(Some(turns));
        upstream
    }

    /// The next request of a [`manual`](Self::manual) upstream, to be answered by hand.
    pub async fn accept(&self) -> Turn {
        let mut turns = self.turns.lock().await;
        let turns = turns.as_mut().expect("an upstream made by `manual`");
        within("a request at the upstream", turns.recv()).await.expect("a running upstream")
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many requests have arrived.
    pub fn count(&self) -> usize {
        self.exchanges.borrow().len()
    }

    /// The exchange of the request that arrived as number `index`, from 0; waits for it.
    pub async fn exchange(&self, index: usize) -> Exchange {
        let mut exchanges = self.exchanges.clone();
        let what = format!("request number {index} at the upstream");
        let list = within(&what, exchanges.wait_for(|list| list.len() > index)).await;
        list.expect("a running upstream")[index].clone()
    }

    /// What was seen of the request that arrived as number `index`, once it has ended.
    pub async fn seen(&self, index: usize) -> Seen {
        self.exchange(index).await.request_over().await
    }

    fn serve<H, F>(listener: TcpListener, handler: H) -> Self
    where
        H: Fn(Request<SeenBody>, Exchange) -> F + Send + Sync + 'static,
        F: Future<Output = Answer> + Send + 'static,
    {
        let address = listener.local_addr().expect("a bound socket");
        let (list, exchanges) = watch::channel(Vec::new());
        let (list, handler) = (Arc::new(Mutex::new(list)), Arc::new(handler));
        let server = tokio::spawn(async move {
            // Owns the connections, so that they end with the server.
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (list, handler) = (list.clone(), handler.clone());
                connections.spawn(serve_connection(stream, list, handler));
                while connections.try_join_next().is_some() {}
            }
        });
        Self { address, exchanges, turns: tokio::sync::Mutex::new(None), server }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve_connection<H, F>(
    stream: TcpStream,
    list: Arc<Mutex<watch::Sender<Vec<Exchange>>>>,
    handler: Arc<H>,
) where
    H: Fn(Request<SeenBody>, Exchange) -> F + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request: Request<Incoming>| {
        let (seen, exchange) = watch_exchange(&request);
        list.lock()
            .expect("no panic under this lock")
            .send_modify(|list| list.push(exchange.clone()));
        let without_body = request.method() == Method::HEAD || request.method() == Method::CONNECT;
        let mut watch = ResponseWatch { seen: seen.clone(), complete: false };
        let request = request.map(|inner| SeenBody { inner, seen });
        let answer = handler(request, exchange);
        async move {
            let response = answer.await.map_err(Failure)?;
            // Bodies that have no place on the wire are dropped unread, and rightly so.
            watch.complete = without_body
                || response.body().is_end_stream()
                || response.status().is_informational();
            Ok::<_, Failure>(response.map(|inner| WatchedBody { inner, watch }))
        }
    });
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http2().enable_connect_protocol();
    // An error here is a connection that broke, which the exchanges on it have noted.
    let _ = server.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
}

fn watch_exchange(request: &Request<Incoming>) -> (watch::Sender<Seen>, Exchange) {
    let request_progress =
        if request.body().is_end_stream() { Progress::Complete } else { Progress::Open };
    let (seen, exchange) = watch::channel(Seen {
        method: request.method().clone(),
        uri: request.uri().clone(),
        version: request.version(),
        headers: request.headers().clone(),
        body: BytesMut::new(),
        trailers: None,
        request: request_progress,
        response: Progress::Open,
    });
    (seen, Exchange(exchange))
}

/// A request that waits for the test to answer it.
#[derive(Debug)]
pub struct Turn {
    request: Option<Request<SeenBody>>,
    exchange: Exchange,
    answer: Option<oneshot::Sender<Answer>>,
}

impl Turn {
    /// What was seen up to now.
    pub fn seen(&self) -> Seen {
        self.exchange.seen()
    }

    /// A handle that outlives this turn.
    pub fn exchange(&self) -> Exchange {
        self.exchange.clone()
    }

    /// The next chunk of the request's body; `None` at its end.
    pub async fn chunk(&mut self) -> Option<Result<Bytes, Trouble>> {
        let request = self.request.as_mut().expect("a request that was not taken");
        within("a chunk of the request at the upstream", request.body_mut().chunk()).await
    }

    /// Reads the request's body until `count` more bytes have come (or it ends).
    pub async fn read(&mut self, count: usize) -> Bytes {
        let mut read = BytesMut::new();
        while read.len() < count {
            match self.chunk().await {
                Some(chunk) => read.extend_from_slice(&chunk.expect("an unbroken request")),
                None => break,
            }
        }
        read.freeze()
    }

    /// Reads the request to its end.
    pub async fn read_to_end(&mut self) -> Seen {
        while let Some(Ok(_)) = self.chunk().await {}
        self.seen()
    }

    /// Answers with a whole response. The request's body can still be read.
    pub fn respond(&mut self, response: Response<OutBody>) {
        let answer = self.answer.take().expect("a turn that was not answered");
        // The exchange may be over already; a test that cares looks at `Seen`.
        let _ = answer.send(Ok(response));
    }

    /// Answers with a status and a body.
    pub fn reply(&mut self, status: u16, body: impl Into<OutBody>) {
        let response = Response::builder().status(status).body(body.into());
        self.respond(response.expect("a valid status"));
    }

    /// Answers with headers, and hands out what feeds the body.
    pub fn stream(&mut self, response: Response<()>) -> BodySender {
        let (sender, body) = OutBody::channel();
        self.respond(response.map(|()| body));
        sender
    }

    /// Accepts an upgrade (101, or 200 to an extended CONNECT) and hands out its bytes.
    pub async fn upgrade(&mut self, protocol: &str) -> TokioIo<Upgraded> {
        let request = self.request.take().expect("a request that was not taken");
        let extended = request.method() == Method::CONNECT;
        let response = if extended {
            Response::builder().status(StatusCode::OK)
        } else {
            Response::builder()
                .status(StatusCode::SWITCHING_PROTOCOLS)
                .header(header::CONNECTION, "upgrade")
                .header(header::UPGRADE, protocol)
        };
        let on_upgrade: OnUpgrade = hyper::upgrade::on(request);
        self.respond(response.body(OutBody::empty()).expect("a valid response"));
        let upgraded = within("the upgrade at the upstream", on_upgrade).await;
        TokioIo::new(upgraded.expect("an upgraded connection"))
    }

    /// Cuts the exchange: without an answer if none was given, else nothing more than dropping it.
    pub fn hang_up(self) {}
}

/// A response that cannot fail to be built, for handlers.
pub fn response(status: u16, body: impl Into<OutBody>) -> Result<Response<OutBody>, Trouble> {
    Ok(Response::builder().status(status).body(body.into())?)
}
