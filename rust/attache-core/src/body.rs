//! [`Body`]: the bytes of a message, pulled as they arrive.

use std::cell::RefCell;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use futures_core::Stream;
use http::{HeaderMap, StatusCode};
use http_body::{Frame, SizeHint};

use crate::error::{BodyError, Error, ErrorKind, Result};
use crate::exchange::Inner;
use crate::headers::{Headers, Trailers};
use crate::hint::rarely;
use crate::host::Direction;

pub(crate) type FrameStream = Pin<Box<dyn Stream<Item = Result<Frame<Bytes>>>>>;

/// The body of a message.
///
/// The body of a request or of an upstream's response is *live*: its bytes stay in Envoy, under
/// Envoy's watermarks, until [`chunk`](Body::chunk) (or one of its relatives) takes them. A body
/// that is not touched is never copied, and does not pass through the filter at all.
///
/// It is also an [`http_body::Body`] and a [`Stream`] of chunks.
pub struct Body(Repr);

enum Repr {
    Live(Live),
    Empty,
    /// Boxed, to keep the live ones, of which there are many, small.
    Full(Box<Bytes>),
    Frames(FrameStream),
}

/// The one reader of a direction's bytes. When it goes, bytes that nobody will read are discarded.
struct Live {
    exchange: Rc<Inner>,
    direction: Direction,
    /// Its trailers were given out as a frame, after which there is nothing more.
    trailers_given: bool,
}

impl Drop for Live {
    fn drop(&mut self) {
        self.exchange.reader_dropped(self.direction);
    }
}

/// What is to become of a message's body when the message is let go.
pub(crate) enum Disposition {
    /// As it comes: the filter is out of the data path.
    Untouched,
    /// These bytes and no others.
    Full(Bytes),
    /// What this stream yields.
    Stream(FrameStream),
}

impl Body {
    pub(crate) fn live(exchange: Rc<Inner>, direction: Direction) -> Self {
        Body(Repr::Live(Live { exchange, direction, trailers_given: false }))
    }

    pub(crate) fn from_frames(frames: FrameStream) -> Self {
        Body(Repr::Frames(frames))
    }

    /// No bytes.
    pub fn empty() -> Self {
        Body(Repr::Empty)
    }

    fn full(bytes: Bytes) -> Self {
        Body(if bytes.is_empty() { Repr::Empty } else { Repr::Full(Box::new(bytes)) })
    }

    /// A body that yields what `stream` yields. An error in it fails the exchange.
    pub fn from_stream<S, E>(stream: S) -> Self
    where
        S: Stream<Item = std::result::Result<Bytes, E>> + 'static,
        E: Into<Error> + 'static,
    {
        struct Data<S>(Pin<Box<S>>);
        impl<S, E> Stream for Data<S>
        where
            S: Stream<Item = std::result::Result<Bytes, E>>,
            E: Into<Error>,
        {
            type Item = Result<Frame<Bytes>>;
            fn poll_next(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
            ) -> Poll<Option<Self::Item>> {
                let item = ready!(self.0.as_mut().poll_next(cx));
                Poll::Ready(item.map(|r| r.map(Frame::data).map_err(Into::into)))
            }
        }
        Body(Repr::Frames(Box::pin(Data(Box::pin(stream)))))
    }

    /// A body from another crate's [`http_body::Body`], trailers included.
    pub fn from_http<B>(body: B) -> Self
    where
        B: http_body::Body<Data = Bytes> + 'static,
        B::Error: Into<Error>,
    {
        struct Frames<B>(Pin<Box<B>>);
        impl<B> Stream for Frames<B>
        where
            B: http_body::Body<Data = Bytes>,
            B::Error: Into<Error>,
        {
            type Item = Result<Frame<Bytes>>;
            fn poll_next(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
            ) -> Poll<Option<Self::Item>> {
                let frame = ready!(self.0.as_mut().poll_frame(cx));
                Poll::Ready(frame.map(|r| r.map_err(Into::into)))
            }
        }
        Body(Repr::Frames(Box::pin(Frames(Box::pin(body)))))
    }

    /// Chunk by chunk, `f` replaces the bytes. Nothing waits: each chunk leaves as it comes.
    pub(crate) fn map(self, mut f: impl FnMut(Bytes) -> Bytes + 'static) -> Self {
        struct Mapped<F>(Body, F);
        impl<F> Unpin for Mapped<F> {}
        impl<F: FnMut(Bytes) -> Bytes> Stream for Mapped<F> {
            type Item = Result<Frame<Bytes>>;
            fn poll_next(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
            ) -> Poll<Option<Self::Item>> {
                let chunk = ready!(self.0.poll_chunk(cx))?;
                Poll::Ready(chunk.map(|c| Ok(Frame::data((self.1)(c)))))
            }
        }
        match self.0 {
            Repr::Empty => Body::empty(),
            Repr::Full(bytes) => Body::full(f(*bytes)),
            repr => Body(Repr::Frames(Box::pin(Mapped(Body(repr), f)))),
        }
    }

    /// `f` reads this body and writes another.
    pub(crate) fn pipe<F, Fut>(self, f: F) -> Self
    where
        F: FnOnce(Body, BodyWriter) -> Fut,
        Fut: Future<Output = Result<()>> + 'static,
    {
        let slot = Rc::new(RefCell::new(Slot::default()));
        let future = f(self, BodyWriter(slot.clone()));
        Body(Repr::Frames(Box::pin(Pipe { future: Some(Box::pin(future)), slot })))
    }

    /// As dropping it, for a live one.
    #[inline(always)]
    pub(crate) fn let_go(self) {
        match self.0 {
            Repr::Live(live) => drop(live),
            repr => {
                rarely();
                drop(repr);
            }
        }
    }

    pub(crate) fn disposition(self, of: &Rc<Inner>, direction: Direction) -> Disposition {
        if self.is_live_of(of, direction) {
            return Disposition::Untouched;
        }
        match self.0 {
            Repr::Empty => Disposition::Full(Bytes::new()),
            Repr::Full(bytes) => Disposition::Full(*bytes),
            Repr::Frames(stream) => Disposition::Stream(stream),
            live @ Repr::Live(_) => Disposition::Stream(Body(live).into_frames()),
        }
    }

    /// Whether this is the untouched body of a direction of `of`.
    pub(crate) fn is_live_of(&self, of: &Rc<Inner>, direction: Direction) -> bool {
        matches!(&self.0, Repr::Live(live)
            if Rc::ptr_eq(&live.exchange, of) && live.direction == direction)
    }

    /// The bytes, if they are all there.
    pub(crate) fn into_full(self) -> std::result::Result<Bytes, Body> {
        match self.0 {
            Repr::Empty => Ok(Bytes::new()),
            Repr::Full(bytes) => Ok(*bytes),
            repr => Err(Body(repr)),
        }
    }

    pub(crate) fn into_frames(self) -> FrameStream {
        struct Frames(Body);
        impl Stream for Frames {
            type Item = Result<Frame<Bytes>>;
            fn poll_next(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
            ) -> Poll<Option<Self::Item>> {
                self.0.poll_frame_inner(cx)
            }
        }
        match self.0 {
            Repr::Frames(stream) => stream,
            repr => Box::pin(Frames(Body(repr))),
        }
    }

    /// The next bytes, as many as there are; `None` after the last.
    ///
    /// A live body's bytes are copied out of Envoy here, and Envoy may then receive more.
    /// Cancel-safe: bytes that were not returned are still there.
    ///
    /// # Errors
    /// The exchange has ended, or the stream that this body was made of failed.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>> {
        poll_fn(|cx| self.poll_chunk(cx)).await
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>>> {
        match &mut self.0 {
            Repr::Live(live) => live.exchange.poll_read(live.direction, cx),
            Repr::Empty => Poll::Ready(Ok(None)),
            Repr::Full(bytes) => {
                let bytes = std::mem::take(&mut **bytes);
                self.0 = Repr::Empty;
                Poll::Ready(Ok(Some(bytes)))
            }
            Repr::Frames(stream) => loop {
                match ready!(stream.as_mut().poll_next(cx)) {
                    None => return Poll::Ready(Ok(None)),
                    Some(frame) => {
                        if let Ok(data) = frame?.into_data()
                            && !data.is_empty()
                        {
                            return Poll::Ready(Ok(Some(data)));
                        }
                    }
                }
            },
        }
    }

    fn poll_frame_inner(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>>>> {
        if let Repr::Frames(stream) = &mut self.0 {
            return stream.as_mut().poll_next(cx);
        }
        if let Some(chunk) = ready!(self.poll_chunk(cx))? {
            return Poll::Ready(Some(Ok(Frame::data(chunk))));
        }
        let Repr::Live(live) = &mut self.0 else { return Poll::Ready(None) };
        if std::mem::replace(&mut live.trailers_given, true) {
            return Poll::Ready(None);
        }
        let trailers = live.exchange.trailers_frame(live.direction);
        Poll::Ready(trailers.map(|t| Ok(Frame::trailers(t))))
    }

    /// All the bytes that are still to come.
    ///
    /// Cancel-safe only in that nothing is lost for the proxy: bytes taken so far go with the
    /// dropped future.
    ///
    /// # Errors
    /// More than `limit` bytes: status 413 for a request's body, 500 for any other. Otherwise as
    /// [`chunk`](Body::chunk).
    pub async fn collect(&mut self, limit: usize) -> Result<Bytes> {
        let Some(first) = self.chunk().await? else { return Ok(Bytes::new()) };
        self.check_limit(first.len(), limit)?;
        let Some(second) = self.chunk().await? else { return Ok(first) };
        let mut all = BytesMut::from(first);
        let mut next = second;
        loop {
            self.check_limit(all.len() + next.len(), limit)?;
            all.extend_from_slice(&next);
            match self.chunk().await? {
                Some(chunk) => next = chunk,
                None => return Ok(all.freeze()),
            }
        }
    }

    fn check_limit(&self, len: usize, limit: usize) -> Result<()> {
        if len <= limit {
            return Ok(());
        }
        let status = match &self.0 {
            Repr::Live(live) if live.direction == Direction::Request => {
                StatusCode::PAYLOAD_TOO_LARGE
            }
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Err(too_large(status, limit))
    }

    /// Waits for the whole body and leaves it in place, so that it goes on as it came.
    ///
    /// Envoy holds the bytes; its buffer limit for the stream is raised to twice `limit` if it is
    /// lower. Cancel-safe.
    ///
    /// # Errors
    /// As [`collect`](Body::collect).
    pub async fn buffer(&mut self, limit: usize) -> Result<Buffered<'_>> {
        if let Repr::Live(live) = &self.0 {
            poll_fn(|cx| live.exchange.poll_buffered(live.direction, limit, cx)).await?;
        } else {
            let all = self.collect(limit).await?;
            *self = Body::full(all);
        }
        Ok(Buffered(self))
    }

    /// The trailers, once all data has come; `None` if there are none. Data that nobody read is
    /// discarded.
    ///
    /// They can be changed until the message goes on: until the `pipe` that reads this body ends,
    /// or the message is let go. Only a live body has them. Cancel-safe.
    ///
    /// # Errors
    /// As [`chunk`](Body::chunk).
    pub async fn trailers(&mut self) -> Result<Option<Trailers>> {
        while self.chunk().await?.is_some() {}
        let Repr::Live(live) = &self.0 else { return Ok(None) };
        Ok(live
            .exchange
            .has_trailers(live.direction)
            .then(|| Trailers(Headers::live(live.exchange.clone(), live.direction.trailers()))))
    }

    /// Whether it is known that no byte will come any more.
    pub fn is_end_stream(&self) -> bool {
        match &self.0 {
            Repr::Live(live) => live.exchange.is_drained(live.direction),
            Repr::Empty => true,
            Repr::Full(_) | Repr::Frames(_) => false,
        }
    }
}

pub(crate) fn too_large(status: StatusCode, limit: usize) -> Error {
    Error::make(
        ErrorKind::BodyTooLarge,
        status,
        format!("the body is over the limit of {limit} bytes"),
    )
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Repr::Live(live) => write!(f, "Body(live {:?})", live.direction),
            Repr::Empty => f.write_str("Body(0 bytes)"),
            Repr::Full(bytes) => write!(f, "Body({} bytes)", bytes.len()),
            Repr::Frames(_) => f.write_str("Body(stream)"),
        }
    }
}

impl Default for Body {
    fn default() -> Self {
        Body::empty()
    }
}

macro_rules! full_from {
    ($($from:ty),*) => {$(
        impl From<$from> for Body {
            fn from(bytes: $from) -> Self {
                Body::full(bytes.into())
            }
        }
    )*};
}
full_from!(Bytes, Vec<u8>, String, &'static str, &'static [u8]);

impl From<()> for Body {
    fn from((): ()) -> Self {
        Body::empty()
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, BodyError>>> {
        self.poll_frame_inner(cx).map(|o| o.map(|r| r.map_err(BodyError)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Repr::Live(live) => {
                live.exchange.is_drained(live.direction)
                    && (live.trailers_given || !live.exchange.has_trailers(live.direction))
            }
            _ => Body::is_end_stream(self),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Repr::Empty => SizeHint::with_exact(0),
            Repr::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            _ => SizeHint::default(),
        }
    }
}

impl Stream for Body {
    type Item = Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes>>> {
        self.poll_chunk(cx).map(Result::transpose)
    }
}

/// A whole body that is still in its place; see [`Body::buffer`].
#[derive(Debug)]
pub struct Buffered<'a>(&'a mut Body);

impl Buffered<'_> {
    /// How many bytes there are.
    pub fn len(&self) -> usize {
        let mut len = 0;
        self.for_each(|slice| len += slice.len());
        len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Calls `f` with each piece of the body, in order, without a copy.
    pub fn for_each(&self, mut f: impl FnMut(&[u8])) {
        match &self.0.0 {
            Repr::Live(live) => live.exchange.look(live.direction, &mut f),
            Repr::Empty => f(&[]),
            Repr::Full(bytes) => f(bytes),
            Repr::Frames(_) => unreachable!("buffering has made it a full body"),
        }
    }

    /// A copy of the bytes.
    pub fn to_bytes(&self) -> Bytes {
        if let Repr::Full(bytes) = &self.0.0 {
            return Bytes::clone(bytes);
        }
        let mut all = BytesMut::new();
        self.for_each(|slice| all.extend_from_slice(slice));
        all.freeze()
    }
}

/// The writing end of a piped body.
///
/// Dropping it does not end the body; the end of the future that was given to `pipe_body` does.
#[derive(Debug)]
pub struct BodyWriter(Rc<RefCell<Slot>>);

#[derive(Debug, Default)]
struct Slot {
    item: Option<Frame<Bytes>>,
    waiting: Option<Waker>,
}

impl BodyWriter {
    /// Writes a chunk, once the one before has been taken: this is where a slow receiver holds the
    /// writer. An empty chunk is skipped.
    ///
    /// Not cancel-safe: a dropped future may or may not have written.
    ///
    /// # Errors
    /// None today; the `Result` keeps room for hosts that can tell that the receiver has gone.
    pub async fn send(&mut self, chunk: impl Into<Bytes>) -> Result<()> {
        let chunk = chunk.into();
        if chunk.is_empty() {
            return Ok(());
        }
        self.put(Frame::data(chunk)).await;
        Ok(())
    }

    /// Ends the body with trailers.
    ///
    /// # Errors
    /// As [`send`](BodyWriter::send). A message that came without trailers can get them only on a
    /// host with [`new_trailers`](crate::host::Capabilities::new_trailers), and in time, as is told
    /// there; else the exchange fails.
    pub async fn send_trailers(&mut self, trailers: HeaderMap) -> Result<()> {
        self.put(Frame::trailers(trailers)).await;
        Ok(())
    }

    async fn put(&mut self, frame: Frame<Bytes>) {
        let mut frame = Some(frame);
        poll_fn(|cx| {
            let mut slot = self.0.borrow_mut();
            if slot.item.is_none() {
                slot.item = frame.take();
                return Poll::Ready(());
            }
            slot.waiting = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

struct Pipe {
    future: Option<Pin<Box<dyn Future<Output = Result<()>>>>>,
    slot: Rc<RefCell<Slot>>,
}

impl Pipe {
    fn take(&self) -> Option<Frame<Bytes>> {
        let mut slot = self.slot.borrow_mut();
        let item = slot.item.take();
        let waiting = if item.is_some() { slot.waiting.take() } else { None };
        drop(slot);
        if let Some(waker) = waiting {
            waker.wake();
        }
        item
    }
}

impl Stream for Pipe {
    type Item = Result<Frame<Bytes>>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(item) = self.take() {
            return Poll::Ready(Some(Ok(item)));
        }
        let Some(future) = &mut self.future else { return Poll::Ready(None) };
        match future.as_mut().poll(cx) {
            Poll::Ready(done) => {
                // Whatever the future held (the body it read) goes now.
                self.future = None;
                if let Err(error) = done {
                    return Poll::Ready(Some(Err(error)));
                }
                Poll::Ready(self.take().map(Ok))
            }
            Poll::Pending => match self.take() {
                Some(item) => Poll::Ready(Some(Ok(item))),
                None => Poll::Pending,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now<T>(future: impl Future<Output = T>) -> T {
        let mut future = std::pin::pin!(future);
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => value,
            Poll::Pending => panic!("it would wait"),
        }
    }

    #[test]
    fn a_full_body_yields_itself_once() {
        let mut body = Body::from("abc");
        assert_eq!(now(body.chunk()).unwrap().unwrap(), "abc");
        assert!(now(body.chunk()).unwrap().is_none());
    }

    #[test]
    fn collect_stops_at_the_limit() {
        assert_eq!(now(Body::from("abc").collect(3)).unwrap(), "abc");
        let error = now(Body::from("abcd").collect(3)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BodyTooLarge);
    }

    #[test]
    fn a_pipe_yields_what_is_written_and_ends_with_its_future() {
        let body = Body::from("abc").pipe(|mut input, mut output| async move {
            while let Some(chunk) = input.chunk().await? {
                for byte in chunk {
                    output.send(vec![byte]).await?;
                }
            }
            Ok(())
        });
        let mut body = body;
        let mut seen = Vec::new();
        while let Some(chunk) = now(body.chunk()).unwrap() {
            seen.push(chunk);
        }
        assert_eq!(seen, ["a", "b", "c"]);
    }

    #[test]
    fn a_map_changes_each_chunk() {
        let mut body = Body::from("abc").map(|c| c.to_ascii_uppercase().into());
        assert_eq!(now(body.collect(10)).unwrap(), "ABC");
    }

    #[test]
    fn buffering_leaves_the_bytes_in_place() {
        let mut body = Body::from("abc").map(|c| c);
        assert_eq!(now(body.buffer(3)).unwrap().to_bytes(), "abc");
        assert_eq!(now(body.collect(3)).unwrap(), "abc");
    }
}
