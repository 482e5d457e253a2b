//! Clients: one real connection each, HTTP/1.1 or HTTP/2 (prior knowledge) by one parameter, so
//! that a scenario is written once and runs on both.

use std::fmt;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};

use crate::body::{BodySender, OutBody, header_map};
use crate::wait::within;

/// What a client speaks.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 in clear text, from the first byte.
    Http2,
}

impl Protocol {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Http1, Self::Http2];
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http1 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
        })
    }
}

/// The authority that requests carry unless they name one.
pub const AUTHORITY: &str = "attache.test";

/// A request under construction.
///
/// Each carries `te: trailers`, without which an HTTP/1.1 upstream would keep its trailers to
/// itself; and HTTP/1.1 needs trailers declared, which [`declare_trailers`](Self::declare_trailers) does.
#[derive(Debug)]
pub struct Call {
    method: Method,
    path: String,
    authority: String,
    headers: HeaderMap,
    body: OutBody,
}

impl Call {
    /// Any method, and a path with its query.
    pub fn new(method: Method, path: &str) -> Self {
        Self {
            method,
            path: path.to_owned(),
            authority: AUTHORITY.to_owned(),
            headers: header_map([("te", "trailers")]),
            body: OutBody::empty(),
        }
    }

    /// A GET.
    pub fn get(path: &str) -> Self {
        Self::new(Method::GET, path)
    }

    /// A POST.
    pub fn post(path: &str) -> Self {
        Self::new(Method::POST, path)
    }

    /// Adds a header; a repeated name is kept twice.
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        let value = HeaderValue::from_bytes(value.as_ref()).expect("a valid header value");
        self.headers.append(name.parse::<HeaderName>().expect("a valid header name"), value);
        self
    }

    /// Takes a header out again.
    pub fn without(mut self, name: &str) -> Self {
        self.headers.remove(name);
        self
    }

    /// The authority (`host` in HTTP/1.1).
    pub fn authority(mut self, authority: &str) -> Self {
        authority.clone_into(&mut self.authority);
        self
    }

    /// A body.
    pub fn body(mut self, body: impl Into<OutBody>) -> Self {
        self.body = body.into();
        self
    }

    /// A streamed body of these chunks, with no `content-length`.
    pub fn chunks<C: Into<Bytes>>(self, chunks: impl IntoIterator<Item = C>) -> Self {
        self.body(OutBody::frames(chunks, HeaderMap::new()))
    }

    /// A streamed body of these chunks, and trailers after it.
    pub fn chunks_and_trailers<C: Into<Bytes>>(
        self,
        chunks: impl IntoIterator<Item = C>,
        trailers: &[(&str, &str)],
    ) -> Self {
        let names: Vec<_> = trailers.iter().map(|(name, _)| *name).collect();
        self.declare_trailers(&names)
            .body(OutBody::frames(chunks, header_map(trailers.iter().copied())))
    }

    /// Names the trailers that a streamed body will end with.
    pub fn declare_trailers(self, names: &[&str]) -> Self {
        self.header("trailer", names.join(", "))
    }

    /// A body that the test sends frame by frame.
    pub fn stream(self) -> (BodySender, Self) {
        let (sender, body) = OutBody::channel();
        (sender, self.body(body))
    }

    fn into_request(self, protocol: Protocol) -> Request<OutBody> {
        let mut request = Request::builder().method(self.method);
        request = match protocol {
            Protocol::Http1 => request.uri(self.path).header(header::HOST, self.authority),
            Protocol::Http2 => request.uri(format!("http://{}{}", self.authority, self.path)),
        };
        let mut request = request.body(self.body).expect("a valid request");
        request.headers_mut().extend(self.headers);
        request
    }
}

/// How a client's connection is made.
#[derive(Clone, Copy, Debug)]
pub struct ClientOptions {
    address: SocketAddr,
    protocol: Protocol,
    window: Option<u32>,
}

impl ClientOptions {
    /// Reads at most about this far ahead of the test (socket buffer, HTTP/2 windows), so that a
    /// test that stops reading is felt by the sender soon; and sends no further ahead of Envoy.
    pub fn window(mut self, bytes: u32) -> Self {
        self.window = Some(bytes);
        self
    }

    /// Connects.
    pub async fn connect(self) -> Client {
        let socket = TcpSocket::new_v4().expect("a socket");
        if let Some(bytes) = self.window {
            socket.set_recv_buffer_size(bytes).expect("a socket option");
            socket.set_send_buffer_size(bytes).expect("a socket option");
        }
        let stream = within("a connection to Envoy", socket.connect(self.address)).await;
        Client::over(stream.expect("a connection to Envoy"), self).await
    }
}

/// A connection that can also be ended from outside, by the second handle of its socket. That one
/// lives no longer than the connection itself, or it would keep the socket open.
struct Socket {
    stream: TcpStream,
    _handle: Arc<std::net::TcpStream>,
}

impl Socket {
    fn new(stream: TcpStream) -> (Self, Weak<std::net::TcpStream>) {
        let stream = stream.into_std().expect("a registered socket");
        let handle = Arc::new(stream.try_clone().expect("a second handle"));
        let weak = Arc::downgrade(&handle);
        let stream = TcpStream::from_std(stream).expect("a socket to register");
        (Self { stream, _handle: handle }, weak)
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

enum Sender {
    Http1(http1::SendRequest<OutBody>),
    Http2(http2::SendRequest<OutBody>),
}

/// A client with one connection.
pub struct Client {
    sender: Sender,
    socket: Weak<std::net::TcpStream>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("protocol", &self.protocol()).finish_non_exhaustive()
    }
}

impl Client {
    /// Connects, fails the test when that does not work.
    pub async fn connect(address: SocketAddr, protocol: Protocol) -> Self {
        Self::options(address, protocol).connect().await
    }

    /// Connects with options.
    pub fn options(address: SocketAddr, protocol: Protocol) -> ClientOptions {
        ClientOptions { address, protocol, window: None }
    }

    async fn over(stream: TcpStream, options: ClientOptions) -> Self {
        stream.set_nodelay(true).expect("a socket option");
        let (io, socket) = Socket::new(stream);
        let io = TokioIo::new(io);
        // Connection tasks end in an error whenever a test breaks something; the exchange that
        // was hit reports it.
        match options.protocol {
            Protocol::Http1 => {
                let mut builder = http1::Builder::new();
                if options.window.is_some() {
                    builder.max_buf_size(8 * 1024);
                }
                let (sender, connection) =
                    builder.handshake(io).await.expect("an HTTP/1.1 connection");
                tokio::spawn(async { drop(connection.with_upgrades().await) });
                Self { sender: Sender::Http1(sender), socket }
            }
            Protocol::Http2 => {
                let mut builder = http2::Builder::new(TokioExecutor::new());
                builder
                    .initial_stream_window_size(options.window)
                    .initial_connection_window_size(options.window);
                let (sender, connection) =
                    builder.handshake(io).await.expect("an HTTP/2 connection");
                tokio::spawn(async { drop(connection.await) });
                Self { sender: Sender::Http2(sender), socket }
            }
        }
    }

    /// What it speaks.
    pub fn protocol(&self) -> Protocol {
        match self.sender {
            Sender::Http1(_) => Protocol::Http1,
            Sender::Http2(_) => Protocol::Http2,
        }
    }

    /// Sends a request and waits for the whole response; fails the test unless both are complete.
    pub async fn fetch(&mut self, call: Call) -> Collected {
        self.send(call).await.expect("a response").collect().await.expect("a complete response")
    }

    /// Sends a request and waits for the response's headers.
    pub async fn send(&mut self, call: Call) -> Result<Reply, Broken> {
        self.start(call).await.await
    }

    /// Sends a request and does not wait for anything to come back. On HTTP/1.1 this first waits
    /// for the connection to be free.
    pub async fn start(&mut self, call: Call) -> Pending {
        let request = call.into_request(self.protocol());
        self.start_request(request).await
    }

    async fn start_request(&mut self, request: Request<OutBody>) -> Pending {
        let ready = match &mut self.sender {
            Sender::Http1(sender) => within("a free connection", sender.ready()).await,
            Sender::Http2(sender) => within("a free stream", sender.ready()).await,
        };
        // Closed by the server, which may do so at any time: the answer is that there is none.
        if let Err(closed) = ready {
            return Pending::new(std::future::ready(Err(closed)));
        }
        match &mut self.sender {
            Sender::Http1(sender) => Pending::new(sender.send_request(request)),
            Sender::Http2(sender) => Pending::new(sender.send_request(request)),
        }
    }

    /// Opens an upgraded stream (`websocket`, say): an upgrade in HTTP/1.1, an extended CONNECT in
    /// HTTP/2. `Err` holds the response that refused it.
    pub async fn upgrade(
        &mut self,
        path: &str,
        protocol: &'static str,
    ) -> Result<TokioIo<Upgraded>, Box<Collected>> {
        self.upgrade_with(Call::get(path), protocol).await
    }

    /// As [`upgrade`](Self::upgrade), with the path and headers of a call.
    pub async fn upgrade_with(
        &mut self,
        mut call: Call,
        protocol: &'static str,
    ) -> Result<TokioIo<Upgraded>, Box<Collected>> {
        let reply = match self.protocol() {
            Protocol::Http1 => {
                call.method = Method::GET;
                let call =
                    call.without("te").header("connection", "upgrade").header("upgrade", protocol);
                self.send(call).await
            }
            Protocol::Http2 => {
                call.method = Method::CONNECT;
                let mut request = call.into_request(Protocol::Http2);
                request.extensions_mut().insert(hyper::ext::Protocol::from_static(protocol));
                self.start_request(request).await.await
            }
        };
        let reply = reply.expect("an answer to the upgrade");
        let accepted = match self.protocol() {
            Protocol::Http1 => reply.status() == StatusCode::SWITCHING_PROTOCOLS,
            Protocol::Http2 => reply.status().is_success(),
        };
        if !accepted {
            return Err(Box::new(reply.collect().await.expect("a complete refusal")));
        }
        let upgraded = within("the upgrade", hyper::upgrade::on(reply.0)).await;
        Ok(TokioIo::new(upgraded.expect("an upgraded connection")))
    }

    /// Closes the connection at once, whatever is under way on it.
    pub fn disconnect(self) {
        // By the socket: hyper's tasks know no sudden end. It may have been closed already.
        if let Some(socket) = self.socket.upgrade() {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// True once the connection has ended.
    pub fn is_closed(&self) -> bool {
        match &self.sender {
            Sender::Http1(sender) => sender.is_closed(),
            Sender::Http2(sender) => sender.is_closed(),
        }
    }
}

/// A request under way. Await it for the response's headers; dropping it cancels (a reset stream
/// in HTTP/2, a closed connection in HTTP/1.1).
pub struct Pending {
    answer: Pin<Box<dyn Future<Output = hyper::Result<Response<Incoming>>> + Send>>,
    arrived: Option<hyper::Result<Response<Incoming>>>,
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pending")
    }
}

impl Pending {
    fn new(
        answer: impl Future<Output = hyper::Result<Response<Incoming>>> + Send + 'static,
    ) -> Self {
        Self { answer: Box::pin(answer), arrived: None }
    }

    /// Gives the request up.
    pub fn cancel(self) {}

    /// True if nothing has come back yet, as far as can be seen without waiting.
    pub fn is_waiting(&mut self) -> bool {
        if self.arrived.is_none() {
            let mut context = Context::from_waker(Waker::noop());
            if let Poll::Ready(answer) = self.answer.as_mut().poll(&mut context) {
                self.arrived = Some(answer);
            }
        }
        self.arrived.is_none()
    }
}

impl IntoFuture for Pending {
    type Output = Result<Reply, Broken>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let answer = match self.arrived {
                Some(answer) => answer,
                None => within("the response's headers", self.answer).await,
            };
            answer.map(Reply).map_err(Broken)
        })
    }
}

/// An exchange that broke: reset, cut or refused by a protocol error.
#[derive(Debug)]
pub struct Broken(hyper::Error);

impl Broken {
    /// The reason of the reset, if this is an HTTP/2 one.
    pub fn h2_reason(&self) -> Option<h2::Reason> {
        let mut cause: Option<&dyn std::error::Error> = Some(&self.0);
        while let Some(error) = cause {
            if let Some(error) = error.downcast_ref::<h2::Error>() {
                return error.reason();
            }
            cause = error.source();
        }
        None
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = std::error::Error::source(&self.0);
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl std::error::Error for Broken {}

/// A response whose headers have come. Dropping it cancels the exchange.
#[derive(Debug)]
pub struct Reply(Response<Incoming>);

impl Reply {
    /// The status.
    pub fn status(&self) -> StatusCode {
        self.0.status()
    }

    /// The headers.
    pub fn headers(&self) -> &HeaderMap {
        self.0.headers()
    }

    /// The first header of that name, as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        text_header(self.headers(), name)
    }

    /// The next chunk of the body; `None` at its end (or where trailers come: use
    /// [`collect`](Self::collect) for those).
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Broken> {
        match within("a chunk of the response", self.0.body_mut().frame()).await {
            Some(Ok(frame)) => Ok(frame.into_data().ok()),
            Some(Err(error)) => Err(Broken(error)),
            None => Ok(None),
        }
    }

    /// Reads until `count` bytes have come (or the body ends).
    pub async fn read(&mut self, count: usize) -> Result<Bytes, Broken> {
        let mut read = BytesMut::new();
        while read.len() < count {
            match self.chunk().await? {
                Some(chunk) => read.extend_from_slice(&chunk),
                None => break,
            }
        }
        Ok(read.freeze())
    }

    /// The rest of the response.
    pub async fn collect(self) -> Result<Collected, Broken> {
        let (head, body) = self.0.into_parts();
        let collected = within("the end of the response", body.collect()).await.map_err(Broken)?;
        let trailers = collected.trailers().cloned();
        Ok(Collected {
            status: head.status,
            headers: head.headers,
            body: collected.to_bytes(),
            trailers,
        })
    }
}

/// A whole response.
#[derive(Clone, Debug)]
pub struct Collected {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// The trailers, if any came.
    pub trailers: Option<HeaderMap>,
}

impl Collected {
    /// The first header of that name, as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        text_header(&self.headers, name)
    }

    /// The first trailer of that name, as text.
    pub fn trailer(&self, name: &str) -> Option<&str> {
        self.trailers.as_ref().and_then(|trailers| text_header(trailers, name))
    }

    /// The body as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("a text body")
    }
}

fn text_header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).map(|value| value.to_str().expect("a text header"))
}
