//! One stream of the compiled-in Envoy: what C++ calls, and the engine's [`Host`].

use std::any::Any;
use std::fmt;
use std::pin::Pin;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

use attache_core::Views;
use attache_core::exchange::Exchange;
use attache_core::facts::{Facts, ResetReason};
use attache_core::host::{
    self, CallRefused, CallStart, Capabilities, Host, HostSpan, LocalReply, Map, Notify,
};
use attache_core::log::write_stream_id;
use attache_core::registry::LoadedRoute;
use bytes::Bytes;

use crate::bridge::ffi::{self, Area, DataVerdict, Direction, HeaderView, StreamHost, Verdict};
use crate::calls::timeout_ms;
use crate::config::{FilterConfig, Notifier, RouteLevels, shielded};
use crate::span::Span;

/// How many headers fit on the stack.
const HEADERS: usize = 32;
/// How many slices of a body do.
const SLICES: usize = 16;

/// A stream, for C++ to keep.
///
/// C++ keeps the config for as long as the stream.
pub(crate) struct Stream(Made);

enum Made {
    Exchange(Exchange),
    /// The runtime has failed to make one.
    Failed(Failed),
}

/// What is done with a stream that has no exchange: the request is refused, unless the filter fails
/// open. Whatever comes as a response is not for the filter.
struct Failed {
    /// There if the request is refused. The invariant is that of [`CxxHost`].
    refuses: Option<NonNull<StreamHost>>,
}

/// # Safety
/// `config` and `host` must stay valid for as long as the stream, which must not leave the thread.
pub(crate) unsafe fn new_stream(config: &FilterConfig, host: *mut StreamHost) -> Box<Stream> {
    let begin = || {
        #[cfg(debug_assertions)]
        faults::strike();
        let host = NonNull::new(host).expect("a stream has a host");
        Exchange::new(config.loaded(), CxxHost { host, views: Views::default() })
    };
    let made = match shielded("new_stream", begin) {
        Ok(exchange) => Made::Exchange(exchange),
        Err(_) => {
            let passes = shielded("new_stream", || config.loaded().lose()).unwrap_or(false);
            Made::Failed(Failed { refuses: NonNull::new(host).filter(|_| !passes) })
        }
    };
    Box::new(Stream(made))
}

/// Faults of the runtime, for tests of what comes of them.
#[cfg(debug_assertions)]
pub(crate) mod faults {
    use std::cell::Cell;

    thread_local!(static ARMED: Cell<bool> = const { Cell::new(false) });

    /// The next stream of this thread will have no exchange.
    pub fn fail_next_stream() {
        ARMED.set(true);
    }

    pub(super) fn strike() {
        assert!(!ARMED.take(), "a test has asked for this");
    }
}

impl Failed {
    fn is_let_go(&self, direction: Direction) -> bool {
        self.refuses.is_none() || direction != Direction::Request
    }

    fn headers(&self, direction: Direction) -> Verdict {
        let Some(mut host) = self.refuses.filter(|_| !self.is_let_go(direction)) else {
            return Verdict::Continue;
        };
        // SAFETY: the invariant of the type.
        let host = unsafe { Pin::new_unchecked(host.as_mut()) };
        host.send_reply(500, &[], b"Internal Server Error", "attache.runtime.panic");
        Verdict::Stop
    }
}

impl Stream {
    fn exchange(&self) -> Option<&Exchange> {
        match &self.0 {
            Made::Exchange(exchange) => Some(exchange),
            Made::Failed(_) => None,
        }
    }

    /// Runs an event of an exchange.
    fn run<R>(what: &str, exchange: &Exchange, safe: R, f: impl FnOnce(&Exchange) -> R) -> R {
        shielded(what, || f(exchange)).unwrap_or_else(|_| {
            let _ = shielded("abort", || exchange.abort());
            safe
        })
    }

    /// Runs an event that asks for nothing.
    fn event(&self, what: &str, f: impl FnOnce(&Exchange)) {
        if let Some(exchange) = self.exchange() {
            Self::run(what, exchange, (), f);
        }
    }

    pub(crate) fn on_headers(&self, direction: Direction, end_stream: bool) -> Verdict {
        match &self.0 {
            Made::Exchange(exchange) => Self::run("headers", exchange, Verdict::Stop, |exchange| {
                exchange.headers(direction.into(), end_stream).into()
            }),
            Made::Failed(failed) => {
                shielded("headers", || failed.headers(direction)).unwrap_or(Verdict::Stop)
            }
        }
    }

    pub(crate) fn on_data(&self, direction: Direction, end_stream: bool) -> DataVerdict {
        match &self.0 {
            Made::Exchange(exchange) => {
                Self::run("data", exchange, DataVerdict::StopNoBuffer, |exchange| {
                    exchange.data(direction.into(), end_stream).into()
                })
            }
            Made::Failed(failed) if failed.is_let_go(direction) => DataVerdict::Continue,
            Made::Failed(_) => DataVerdict::StopNoBuffer,
        }
    }

    pub(crate) fn on_trailers(&self, direction: Direction) -> Verdict {
        match &self.0 {
            Made::Exchange(exchange) => {
                Self::run("trailers", exchange, Verdict::Stop, |exchange| {
                    exchange.trailers(direction.into()).into()
                })
            }
            Made::Failed(failed) if failed.is_let_go(direction) => Verdict::Continue,
            Made::Failed(_) => Verdict::Stop,
        }
    }

    pub(crate) fn on_scheduled(&self) {
        self.event("scheduled", Exchange::scheduled);
    }

    pub(crate) fn on_local_reply(&self) {
        self.event("local_reply", Exchange::local_reply);
    }

    pub(crate) fn on_downstream_watermark(&self, above: bool) {
        self.event("watermark", |exchange| exchange.downstream_watermark(above));
    }

    pub(crate) fn on_upstream_watermark(&self, above: bool) {
        self.event("watermark", |exchange| exchange.upstream_watermark(above));
    }

    pub(crate) fn on_call_headers(&self, id: u64, headers: &[HeaderView], end_stream: bool) {
        self.event("call_headers", |exchange| {
            exchange.call_headers(id, end_stream, fields(headers));
        });
    }

    pub(crate) fn on_call_data(&self, id: u64, slices: &[ffi::Bytes], end_stream: bool) {
        self.event("call_data", |exchange| {
            // SAFETY: C++ keeps the bytes during this call.
            let slices = slices.iter().map(|slice| unsafe { slice.as_slice() });
            exchange.call_data(id, end_stream, slices);
        });
    }

    pub(crate) fn on_call_trailers(&self, id: u64, trailers: &[HeaderView]) {
        self.event("call_trailers", |exchange| exchange.call_trailers(id, fields(trailers)));
    }

    pub(crate) fn on_call_complete(&self, id: u64) {
        self.event("call_complete", |exchange| exchange.call_complete(id));
    }

    pub(crate) fn on_call_failed(&self, id: u64, failure: ffi::CallFailure, why: &[u8]) {
        self.event("call_failed", |exchange| {
            exchange.call_failed_because(id, failure.into(), why);
        });
    }

    pub(crate) fn on_call_drained(&self, id: u64) {
        self.event("call_drained", |exchange| exchange.call_drained(id));
    }

    pub(crate) fn on_complete(&self) {
        self.event("complete", Exchange::complete);
    }

    pub(crate) fn on_destroy(&self) {
        self.event("destroy", Exchange::destroy);
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // Where C++ has done it, it does nothing more.
        self.on_destroy();
        // It may be the last owner of the filter, whose `Drop` is the filter's.
        let gone = Made::Failed(Failed { refuses: None });
        if let Made::Exchange(exchange) = std::mem::replace(&mut self.0, gone) {
            let _ = shielded("drop", || exchange.retire());
        }
    }
}

/// A stream of Envoy, as the engine sees it.
///
/// # Invariant
/// `host` is valid until the stream has been destroyed: `new_stream` says so, and the engine calls a
/// host only until `Exchange::destroy`, which `Stream` calls before it goes. Being `!Send`, it does so
/// only on the worker thread. Every `SAFETY` below leans on this.
pub(crate) struct CxxHost {
    host: NonNull<StreamHost>,
    /// Callbacks that look at Envoy's memory are running: nothing may change it.
    pub(crate) views: Views,
}

impl CxxHost {
    fn host(&self) -> &StreamHost {
        // SAFETY: the type's invariant.
        unsafe { self.host.as_ref() }
    }

    /// For what may change what a callback sees.
    fn host_mut(&self) -> Pin<&mut StreamHost> {
        self.views.none();
        self.host_beside_views()
    }

    /// For what changes nothing that a callback sees.
    #[expect(clippy::mut_from_ref, reason = "what it refers to is not part of `self`")]
    fn host_beside_views(&self) -> Pin<&mut StreamHost> {
        // SAFETY: the type's invariant. Such a reference may exist twice, when what it is used for
        // runs another event: it claims no memory, since to Rust a C++ class has no size.
        unsafe { Pin::new_unchecked(&mut *self.host.as_ptr()) }
    }
}

impl CxxHost {
    /// What is around the messages, or null.
    pub(crate) fn facts_host(&self) -> *mut ffi::StreamFacts {
        self.host_beside_views().facts()
    }

    /// One that wakes this stream.
    fn make_notifier(&self) -> Notifier {
        Notifier(self.host_mut().make_notifier())
    }
}

impl ffi::Bytes {
    const EMPTY: ffi::Bytes = ffi::Bytes { data: std::ptr::null(), size: 0 };

    fn of(bytes: &[u8]) -> Self {
        ffi::Bytes { data: bytes.as_ptr(), size: bytes.len() }
    }

    /// # Safety
    /// The bytes must stay where they are for as long as `'a` says.
    pub(crate) unsafe fn as_slice<'a>(self) -> &'a [u8] {
        if self.data.is_null() || self.size == 0 {
            return &[];
        }
        // SAFETY: C++ gives `size` initialised bytes at `data`; the caller answers for `'a`.
        unsafe { std::slice::from_raw_parts(self.data, self.size) }
    }
}

impl HeaderView {
    const EMPTY: HeaderView = HeaderView { name: ffi::Bytes::EMPTY, value: ffi::Bytes::EMPTY };
}

/// Header fields that C++ keeps during the call that runs.
pub(crate) fn fields(headers: &[HeaderView]) -> impl Iterator<Item = (&[u8], &[u8])> {
    headers.iter().map(|header| {
        // SAFETY: views in what C++ passes to an event stay as long as the list itself.
        unsafe { (header.name.as_slice(), header.value.as_slice()) }
    })
}

pub(crate) fn header_views(list: &[(&[u8], &[u8])]) -> Vec<HeaderView> {
    list.iter()
        .map(|(name, value)| HeaderView {
            name: ffi::Bytes::of(name),
            value: ffi::Bytes::of(value),
        })
        .collect()
}

/// Has C++ fill a list, on the stack if it is short, and returns what it has filled.
fn filled<'a, T: Copy>(
    inline: &'a mut [T],
    spilled: &'a mut Vec<T>,
    empty: T,
    mut fill: impl FnMut(&mut [T]) -> usize,
) -> &'a [T] {
    let count = fill(inline);
    if count <= inline.len() {
        return &inline[..count];
    }
    spilled.resize(count, empty);
    let again = fill(spilled);
    &spilled[..again.min(count)]
}

impl Host for CxxHost {
    fn capabilities(&self) -> Capabilities {
        Capabilities::COMPILED_IN
    }

    fn header(&self, map: Map, name: &str, index: usize, f: &mut dyn FnMut(&[u8])) -> usize {
        let mut value = ffi::Bytes::EMPTY;
        let count = self.host().header(map.into(), name, index, &mut value);
        if index < count {
            let _view = self.views.look();
            // SAFETY: the value stays until a non-const method is called, and while the view lives
            // `host_mut` panics first.
            f(unsafe { value.as_slice() });
        }
        count
    }

    fn headers(&self, map: Map, f: &mut dyn FnMut(&[u8], &[u8])) -> bool {
        let (mut inline, mut spilled) = ([HeaderView::EMPTY; HEADERS], Vec::new());
        let mut exists = false;
        let list = filled(&mut inline, &mut spilled, HeaderView::EMPTY, |out| {
            let mut count = 0;
            exists = self.host().headers(map.into(), out, &mut count);
            count
        });
        if exists {
            let _view = self.views.look();
            for header in list {
                // SAFETY: as in `header`.
                f(unsafe { header.name.as_slice() }, unsafe { header.value.as_slice() });
            }
        }
        exists
    }

    fn set_header(&self, map: Map, name: &str, value: &[u8]) -> bool {
        self.host_mut().set_header(map.into(), name, value)
    }

    fn append_header(&self, map: Map, name: &str, value: &[u8]) -> bool {
        self.host_mut().append_header(map.into(), name, value)
    }

    fn remove_header(&self, map: Map, name: &str) -> bool {
        self.host_mut().remove_header(map.into(), name)
    }

    fn body_len(&self, direction: host::Direction, area: host::Area) -> usize {
        self.host().body_length(direction.into(), area.into())
    }

    fn frame_is_buffer(&self, _: host::Direction) -> bool {
        false
    }

    fn body(&self, direction: host::Direction, area: host::Area, f: &mut dyn FnMut(&[u8])) {
        let (mut inline, mut spilled) = ([ffi::Bytes::EMPTY; SLICES], Vec::new());
        let slices = filled(&mut inline, &mut spilled, ffi::Bytes::EMPTY, |out| {
            self.host().body_slices(direction.into(), area.into(), out)
        });
        let _view = self.views.look();
        for slice in slices {
            // SAFETY: as in `header`.
            f(unsafe { slice.as_slice() });
        }
    }

    fn drain(&self, direction: host::Direction, area: host::Area, bytes: usize) {
        self.host_mut().drain_body(direction.into(), area.into(), bytes);
    }

    fn append(&self, direction: host::Direction, area: host::Area, data: &[u8]) {
        self.host_mut().append_body(direction.into(), area.into(), data);
    }

    fn buffer_limit(&self) -> u64 {
        self.host().buffer_limit()
    }

    fn set_buffer_limit(&self, bytes: u64) {
        self.host_mut().set_buffer_limit(bytes);
    }

    fn keep_end(&self, direction: host::Direction, kept: bool) {
        self.host_mut().keep_end(direction.into(), kept);
    }

    fn end_is_kept(&self, direction: host::Direction) -> bool {
        self.host().end_is_kept(direction.into())
    }

    fn resume(&self, direction: host::Direction) {
        self.host_mut().resume(direction.into());
    }

    fn inject(
        &self,
        direction: host::Direction,
        data: &mut dyn Iterator<Item = Bytes>,
        end_stream: bool,
    ) {
        let first = data.next().unwrap_or_default();
        let rest: Vec<Bytes> = data.collect();
        if rest.is_empty() {
            let piece = [ffi::Bytes::of(&first)];
            self.host_mut().inject(direction.into(), &piece, end_stream);
        } else {
            let pieces: Vec<_> =
                std::iter::once(&first).chain(&rest).map(|piece| ffi::Bytes::of(piece)).collect();
            self.host_mut().inject(direction.into(), &pieces, end_stream);
        }
    }

    fn release(&self, direction: host::Direction) {
        self.host_mut().release(direction.into());
    }

    fn others_hold(&self, direction: host::Direction) -> bool {
        self.host().others_hold(direction.into())
    }

    fn add_trailers(&self, direction: host::Direction, now: bool) -> bool {
        self.host_mut().add_trailers(direction.into(), now)
    }

    fn send_reply(&self, reply: &LocalReply<'_>) {
        let headers = header_views(reply.headers);
        self.host_mut().send_reply(reply.status, &headers, reply.body, reply.details);
    }

    fn send_reply_headers(&self, headers: &[(&[u8], &[u8])], end_stream: bool) {
        self.host_mut().send_reply_headers(&header_views(headers), end_stream);
    }

    fn send_reply_data(&self, data: &[u8], end_stream: bool) {
        self.host_mut().send_reply_data(data, end_stream);
    }

    fn send_reply_trailers(&self, trailers: &[(&[u8], &[u8])]) {
        self.host_mut().send_reply_trailers(&header_views(trailers));
    }

    fn reset(&self, details: &str) {
        self.reset_for(ResetReason::Local, details);
    }

    fn reset_for(&self, reason: ResetReason, details: &str) {
        let reason = match reason {
            ResetReason::Refused => ffi::ResetReason::Refused,
            _ => ffi::ResetReason::Local,
        };
        self.host_mut().reset(reason, details);
    }

    fn facts(&self) -> &dyn Facts {
        self
    }

    fn span(&self) -> Option<Box<dyn HostSpan>> {
        let span = Span::new(self.host_mut().span())?;
        Some(Box::new(span))
    }

    fn start_call(&self, call: &CallStart<'_>) -> Result<u64, CallRefused> {
        let headers = header_views(call.headers);
        let mut id = 0;
        let started = self.host_mut().start_call(
            call.cluster,
            &headers,
            call.body,
            call.end_stream,
            timeout_ms(call),
            &mut id,
        );
        if started == ffi::CallStart::Started { Ok(id) } else { Err(started.into()) }
    }

    fn send_call_data(&self, call: u64, data: &[u8], end_stream: bool) -> bool {
        self.host_mut().send_call_data(call, data, end_stream)
    }

    fn send_call_trailers(&self, call: u64, trailers: &[(&[u8], &[u8])]) -> bool {
        self.host_mut().send_call_trailers(call, &header_views(trailers))
    }

    fn call_is_full(&self, call: u64) -> bool {
        self.host().call_is_full(call)
    }

    fn reset_call(&self, call: u64) {
        // A call is also dropped when a closure that looks at a message panics: a second panic, for
        // the view, would end the process.
        self.host_beside_views().reset_call(call);
    }

    fn notifier(&self) -> Box<dyn Notify> {
        Box::new(StreamNotifier(Mutex::new(Some(self.make_notifier()))))
    }

    fn bind(&self, notifier: &dyn Notify) {
        let notifier: &dyn Any = notifier;
        let notifier: &StreamNotifier = notifier.downcast_ref().expect("made by this kind of host");
        notifier.replace(Some(self.make_notifier()));
    }

    fn route_configs(&self, look: &mut dyn FnMut(&[&LoadedRoute])) {
        let mut levels = RouteLevels::default();
        self.host().route_configs(&mut levels);
        // SAFETY: configs of ours, which C++ keeps for as long as the stream has its route: at least
        // while `look` runs, which calls nothing of C++'s.
        match &unsafe { levels.get() }[..] {
            [] => (),
            levels => look(levels),
        }
    }

    fn stream_id(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let mut id =
            ffi::StreamId { has_connection: false, connection: 0, request: ffi::Bytes::EMPTY };
        self.host().stream_id(&mut id);
        // SAFETY: as in `header`; it is read at once.
        let request = unsafe { id.request.as_slice() };
        let connection = id.has_connection.then_some(id.connection);
        write_stream_id(out, connection, (!request.is_empty()).then_some(request))
    }
}

/// Wakes a stream, and then another one.
struct StreamNotifier(Mutex<Option<Notifier>>);

impl StreamNotifier {
    fn current(&self) -> MutexGuard<'_, Option<Notifier>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn replace(&self, with: Option<Notifier>) {
        *self.current() = with;
    }
}

impl Notify for StreamNotifier {
    fn notify(&self) {
        if let Some(notifier) = &*self.current() {
            notifier.notify();
        }
    }

    fn release(&self) {
        self.replace(None);
    }
}

impl From<Direction> for host::Direction {
    fn from(direction: Direction) -> Self {
        match direction {
            Direction::Request => host::Direction::Request,
            _ => host::Direction::Response,
        }
    }
}

impl From<host::Direction> for Direction {
    fn from(direction: host::Direction) -> Self {
        match direction {
            host::Direction::Request => Direction::Request,
            host::Direction::Response => Direction::Response,
        }
    }
}

impl From<Map> for ffi::HeaderMapType {
    fn from(map: Map) -> Self {
        match map {
            Map::RequestHeaders => ffi::HeaderMapType::RequestHeaders,
            Map::RequestTrailers => ffi::HeaderMapType::RequestTrailers,
            Map::ResponseHeaders => ffi::HeaderMapType::ResponseHeaders,
            Map::ResponseTrailers => ffi::HeaderMapType::ResponseTrailers,
        }
    }
}

impl From<host::Area> for Area {
    fn from(area: host::Area) -> Self {
        match area {
            host::Area::Frame => Area::Frame,
            host::Area::Buffer => Area::Buffer,
        }
    }
}

impl From<host::Verdict> for Verdict {
    fn from(verdict: host::Verdict) -> Self {
        match verdict {
            host::Verdict::Continue => Verdict::Continue,
            host::Verdict::Stop => Verdict::Stop,
        }
    }
}

impl From<host::DataVerdict> for DataVerdict {
    fn from(verdict: host::DataVerdict) -> Self {
        match verdict {
            host::DataVerdict::Continue => DataVerdict::Continue,
            host::DataVerdict::StopAndWatermark => DataVerdict::StopAndWatermark,
            host::DataVerdict::StopNoBuffer => DataVerdict::StopNoBuffer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_list_is_filled_in_place_and_a_long_one_once_more() {
        let (mut inline, mut spilled) = ([0; 4], Vec::new());
        for length in 0..9 {
            let mut calls = 0;
            let list = filled(&mut inline, &mut spilled, 0, |out| {
                calls += 1;
                (1..).zip(out.iter_mut().take(length)).for_each(|(n, slot)| *slot = n);
                length
            });
            assert_eq!(list, (1..=length).collect::<Vec<_>>());
            assert_eq!(calls, if length <= 4 { 1 } else { 2 });
        }
    }

    #[test]
    fn no_bytes_need_no_address() {
        // SAFETY: there are none.
        assert_eq!(unsafe { ffi::Bytes::EMPTY.as_slice() }, b"");
        let text = b"text";
        // SAFETY: `text` stays.
        assert_eq!(unsafe { ffi::Bytes::of(text).as_slice() }, text);
    }
}
