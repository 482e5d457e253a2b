//! Bodies that tests send: whole, in given frames, or frame by frame under the test's control.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use tokio::sync::mpsc;

/// Any error, as bodies and handlers of the harness report it.
pub type Trouble = Box<dyn std::error::Error + Send + Sync>;

/// A header map from pairs; repeated names are kept.
pub fn header_map<N: AsRef<str>, V: AsRef<str>>(
    pairs: impl IntoIterator<Item = (N, V)>,
) -> HeaderMap {
    pairs
        .into_iter()
        .map(|(name, value)| {
            let name: http::HeaderName = name.as_ref().parse().expect("a valid header name");
            let value: http::HeaderValue = value.as_ref().parse().expect("a valid header value");
            (name, value)
        })
        .collect()
}

/// A body that a client or an upstream sends.
///
/// From text or bytes it is whole (a `content-length` goes with it); [`OutBody::frames`] and
/// [`OutBody::channel`] stream (chunked in HTTP/1.1).
pub struct OutBody(Kind);

enum Kind {
    Whole(Option<Bytes>),
    Frames(VecDeque<Frame<Bytes>>),
    Channel(mpsc::Receiver<Item>, bool),
    Other(UnsyncBoxBody<Bytes, Trouble>),
}

enum Item {
    Frame(Frame<Bytes>),
    End,
}

impl OutBody {
    /// No body at all.
    pub fn empty() -> Self {
        Self(Kind::Whole(None))
    }

    /// These chunks, then the trailers unless there are none.
    pub fn frames<C: Into<Bytes>>(
        chunks: impl IntoIterator<Item = C>,
        trailers: HeaderMap,
    ) -> Self {
        let mut frames: VecDeque<_> =
            chunks.into_iter().map(|chunk| Frame::data(chunk.into())).collect();
        if !trailers.is_empty() {
            frames.push_back(Frame::trailers(trailers));
        }
        Self(Kind::Frames(frames))
    }

    /// A body whose frames the test sends one by one, when it wants.
    pub fn channel() -> (BodySender, Self) {
        // One frame may wait, so `data` returns when the connection took the frame before.
        let (sender, receiver) = mpsc::channel(1);
        (BodySender { sender }, Self(Kind::Channel(receiver, false)))
    }

    /// Any other body.
    pub fn other<B>(body: B) -> Self
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Trouble>,
    {
        Self(Kind::Other(UnsyncBoxBody::new(body.map_err(Into::into))))
    }
}

impl fmt::Debug for OutBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Kind::Whole(None) => "OutBody(empty)",
            Kind::Whole(Some(_)) => "OutBody(whole)",
            Kind::Frames(_) => "OutBody(frames)",
            Kind::Channel(..) => "OutBody(channel)",
            Kind::Other(_) => "OutBody(other)",
        })
    }
}

impl<T: Into<Bytes>> From<T> for OutBody {
    fn from(bytes: T) -> Self {
        let bytes = bytes.into();
        Self(Kind::Whole(if bytes.is_empty() { None } else { Some(bytes) }))
    }
}

impl Body for OutBody {
    type Data = Bytes;
    type Error = Trouble;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Trouble>>> {
        match &mut self.0 {
            Kind::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Kind::Frames(frames) => Poll::Ready(frames.pop_front().map(Ok)),
            Kind::Channel(_, true) => Poll::Ready(None),
            Kind::Channel(receiver, ended) => match receiver.poll_recv(context) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Some(Item::Frame(frame))) => {
                    *ended = frame.is_trailers();
                    Poll::Ready(Some(Ok(frame)))
                }
                Poll::Ready(Some(Item::End)) => {
                    *ended = true;
                    Poll::Ready(None)
                }
                Poll::Ready(None) => {
                    *ended = true;
                    Poll::Ready(Some(Err("the test broke this body off".into())))
                }
            },
            Kind::Other(body) => Pin::new(body).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Whole(bytes) => bytes.is_none(),
            Kind::Frames(frames) => frames.is_empty(),
            Kind::Channel(_, ended) => *ended,
            Kind::Other(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Kind::Other(body) => body.size_hint(),
            Kind::Frames(_) | Kind::Channel(..) => SizeHint::default(),
        }
    }
}

/// The hand that feeds an [`OutBody::channel`]. Dropping it breaks the body off: the peer sees a
/// reset stream (HTTP/2) or a cut connection (HTTP/1.1). End it with [`finish`](Self::finish) or
/// [`trailers`](Self::trailers).
#[derive(Debug)]
pub struct BodySender {
    sender: mpsc::Sender<Item>,
}

/// The connection does not want the body any more.
#[derive(Debug)]
pub struct Closed;

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the receiver of this body is gone")
    }
}

impl std::error::Error for Closed {}

impl BodySender {
    /// Sends a chunk; returns once the connection has taken the one before, so a receiver that
    /// does not read holds this up. Unbounded on purpose: wrap it in [`crate::within`] where it
    /// must get through.
    pub async fn data(&mut self, chunk: impl Into<Bytes>) -> Result<(), Closed> {
        self.send(Item::Frame(Frame::data(chunk.into()))).await
    }

    /// Ends the body.
    pub async fn finish(mut self) -> Result<(), Closed> {
        self.send(Item::End).await
    }

    /// Ends the body with trailers. On HTTP/1.1 their names must have been declared in a
    /// `trailer` header.
    pub async fn trailers(mut self, trailers: HeaderMap) -> Result<(), Closed> {
        self.send(Item::Frame(Frame::trailers(trailers))).await
    }

    /// Breaks the body off.
    pub fn abort(self) {}

    /// Resolves when the connection dropped its end: the stream was reset, or is complete.
    pub async fn closed(&self) {
        self.sender.closed().await;
    }

    async fn send(&mut self, item: Item) -> Result<(), Closed> {
        self.sender.send(item).await.map_err(|_| Closed)
    }
}
