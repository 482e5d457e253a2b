//! One stream of stock Envoy, as the engine's [`Host`].

use std::any::Any;
use std::ffi::c_void;
use std::fmt::{self, Write};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use attache_core::Views;
use attache_core::facts::{Facts, ResetReason};
use attache_core::host::{
    Area, CallRefused, CallStart, Capabilities, Direction, Host, HostSpan, LocalReply, Map, Notify,
};
use attache_core::log::write_stream_id;
use attache_core::registry::LoadedRoute;

use crate::abi::{
    ATTRIBUTE_CONNECTION_ID, ATTRIBUTE_REQUEST_ID, Callbacks, EnvoyBuffer, EnvoyFilter,
    EnvoyHeader, ModuleBuffer, ModuleHeader, Scheduler, body_type, header_type, metadata_source,
    reset_reason,
};
use crate::callout;
use crate::config::RouteConfig;
use crate::span::Span;

/// How many slices or headers fit on the stack.
const INLINE: usize = 16;

/// A stream of Envoy.
///
/// # Invariant
/// `envoy` is valid from when Envoy makes the filter until its destroy hook returns. The engine
/// calls a host only until `Exchange::destroy`, which that hook calls; and being `!Send`, only on
/// the worker thread. Every `SAFETY` below leans on this.
pub(crate) struct Stream {
    pub(crate) envoy: EnvoyFilter,
    pub(crate) api: &'static Callbacks,
    /// Callbacks that look at Envoy's memory are running: nothing may change it.
    pub(crate) views: Views,
}

impl Stream {
    /// One that commits to this stream.
    fn scheduler(&self) -> Scheduler {
        // SAFETY: the stream is valid (type invariant), and this is its worker thread.
        unsafe { (self.api.scheduler_new)(self.envoy) }
    }

    pub(crate) fn new(envoy: EnvoyFilter, api: &'static Callbacks) -> Self {
        Stream { envoy, api, views: Views::default() }
    }
}

fn map_type(map: Map) -> u32 {
    match map {
        Map::RequestHeaders => header_type::REQUEST_HEADER,
        Map::RequestTrailers => header_type::REQUEST_TRAILER,
        Map::ResponseHeaders => header_type::RESPONSE_HEADER,
        Map::ResponseTrailers => header_type::RESPONSE_TRAILER,
    }
}

fn area_type(direction: Direction, area: Area) -> u32 {
    match (direction, area) {
        (Direction::Request, Area::Frame) => body_type::RECEIVED_REQUEST,
        (Direction::Request, Area::Buffer) => body_type::BUFFERED_REQUEST,
        (Direction::Response, Area::Frame) => body_type::RECEIVED_RESPONSE,
        (Direction::Response, Area::Buffer) => body_type::BUFFERED_RESPONSE,
    }
}

/// Where the filters of a stream tell each other, whichever modules they are in, that the end of a
/// message is kept back.
const METADATA_NAMESPACE: &str = "attache";

fn end_kept_key(direction: Direction) -> &'static str {
    match direction {
        Direction::Request => "request_end_kept",
        Direction::Response => "response_end_kept",
    }
}

pub(crate) fn module_headers(list: &[(&[u8], &[u8])]) -> Vec<ModuleHeader> {
    list.iter()
        .map(|(name, value)| ModuleHeader { name: (*name).into(), value: (*value).into() })
        .collect()
}

impl Host for Stream {
    fn capabilities(&self) -> Capabilities {
        Capabilities::COMMON
    }

    fn header(&self, map: Map, name: &str, index: usize, f: &mut dyn FnMut(&[u8])) -> usize {
        let mut value = EnvoyBuffer::EMPTY;
        let mut count = 0;
        // SAFETY: the stream is valid (type invariant); the out-pointers are ours and live.
        let found = unsafe {
            (self.api.get_header)(
                self.envoy,
                map_type(map),
                name.into(),
                &mut value,
                index,
                &mut count,
            )
        };
        if found {
            let _view = self.views.look();
            // SAFETY: the value stays in Envoy's map until the map changes, and while the view
            // lives every method that could change it panics first.
            f(unsafe { value.as_slice() });
        }
        count
    }

    fn headers(&self, map: Map, f: &mut dyn FnMut(&[u8], &[u8])) -> bool {
        // SAFETY: the stream is valid (type invariant).
        let size = unsafe { (self.api.get_headers_size)(self.envoy, map_type(map)) };
        let empty = EnvoyHeader { name: EnvoyBuffer::EMPTY, value: EnvoyBuffer::EMPTY };
        let mut list = vec![empty; size];
        // SAFETY: as above; Envoy writes exactly `size` entries, and nothing has changed the map
        // since it said so.
        let exists =
            unsafe { (self.api.get_headers)(self.envoy, map_type(map), list.as_mut_ptr()) };
        if exists {
            let _view = self.views.look();
            for header in &list {
                // SAFETY: as in `header`.
                f(unsafe { header.name.as_slice() }, unsafe { header.value.as_slice() });
            }
        }
        exists
    }

    fn set_header(&self, map: Map, name: &str, value: &[u8]) -> bool {
        self.views.none();
        // SAFETY: the stream is valid (type invariant); Envoy copies both buffers.
        unsafe { (self.api.set_header)(self.envoy, map_type(map), name.into(), value.into()) }
    }

    fn append_header(&self, map: Map, name: &str, value: &[u8]) -> bool {
        self.views.none();
        // SAFETY: as in `set_header`.
        unsafe { (self.api.add_header)(self.envoy, map_type(map), name.into(), value.into()) }
    }

    fn remove_header(&self, map: Map, name: &str) -> bool {
        // An empty value removes.
        self.set_header(map, name, &[])
    }

    fn body_len(&self, direction: Direction, area: Area) -> usize {
        // SAFETY: the stream is valid (type invariant).
        unsafe { (self.api.get_body_size)(self.envoy, area_type(direction, area)) }
    }

    fn frame_is_buffer(&self, direction: Direction) -> bool {
        let ask = match direction {
            Direction::Request => self.api.received_buffered_request_body,
            Direction::Response => self.api.received_buffered_response_body,
        };
        // SAFETY: the stream is valid (type invariant).
        unsafe { ask(self.envoy) }
    }

    fn body(&self, direction: Direction, area: Area, f: &mut dyn FnMut(&[u8])) {
        let which = area_type(direction, area);
        // SAFETY: the stream is valid (type invariant).
        let count = unsafe { (self.api.get_body_chunks_size)(self.envoy, which) };
        let mut inline = [EnvoyBuffer::EMPTY; INLINE];
        let mut spilled = Vec::new();
        let slices: &mut [EnvoyBuffer] = if count <= INLINE {
            &mut inline[..count]
        } else {
            spilled.resize(count, EnvoyBuffer::EMPTY);
            &mut spilled
        };
        // SAFETY: as above; Envoy writes `count` entries, and nothing has changed the buffer since
        // it said so.
        if unsafe { (self.api.get_body_chunks)(self.envoy, which, slices.as_mut_ptr()) } {
            let _view = self.views.look();
            for slice in slices {
                // SAFETY: the bytes stay in Envoy's buffer until it changes, and while the view
                // lives every method that could change it panics first.
                f(unsafe { slice.as_slice() });
            }
        }
    }

    fn drain(&self, direction: Direction, area: Area, bytes: usize) {
        self.views.none();
        // SAFETY: the stream is valid (type invariant). It may run hooks of the stream, which the
        // engine expects.
        unsafe { (self.api.drain_body)(self.envoy, area_type(direction, area), bytes) };
    }

    fn append(&self, direction: Direction, area: Area, data: &[u8]) {
        self.views.none();
        // SAFETY: as in `drain`; Envoy copies the bytes.
        unsafe { (self.api.append_body)(self.envoy, area_type(direction, area), data.into()) };
    }

    fn buffer_limit(&self) -> u64 {
        // SAFETY: the stream is valid (type invariant).
        unsafe { (self.api.get_buffer_limit)(self.envoy) }
    }

    fn set_buffer_limit(&self, bytes: u64) {
        // SAFETY: the stream is valid (type invariant).
        unsafe { (self.api.set_buffer_limit)(self.envoy, bytes) }
    }

    fn keep_end(&self, direction: Direction, kept: bool) {
        // SAFETY: the stream is valid (type invariant); Envoy copies both texts.
        unsafe {
            (self.api.set_metadata_number)(
                self.envoy,
                METADATA_NAMESPACE.into(),
                end_kept_key(direction).into(),
                f64::from(u8::from(kept)),
            )
        }
    }

    fn end_is_kept(&self, direction: Direction) -> bool {
        let mut kept = 0.0;
        // SAFETY: the stream is valid (type invariant); the out-pointer is ours and live.
        let known = unsafe {
            (self.api.get_metadata_number)(
                self.envoy,
                metadata_source::DYNAMIC,
                METADATA_NAMESPACE.into(),
                end_kept_key(direction).into(),
                &mut kept,
            )
        };
        known && kept != 0.0
    }

    fn resume(&self, direction: Direction) {
        self.views.none();
        let resume = match direction {
            Direction::Request => self.api.continue_decoding,
            Direction::Response => self.api.continue_encoding,
        };
        // SAFETY: the stream is valid (type invariant). It runs other hooks and may end the
        // stream; nothing of ours is touched after it but `alive` flags in the engine's own memory.
        unsafe { resume(self.envoy) }
    }

    fn send_reply(&self, reply: &LocalReply<'_>) {
        self.views.none();
        let headers = module_headers(reply.headers);
        // SAFETY: as in `resume`. Envoy calls back for the headers during this call only.
        unsafe {
            (self.api.send_response)(
                self.envoy,
                u32::from(reply.status),
                headers.as_ptr(),
                headers.len(),
                reply.body.into(),
                reply.details.into(),
            )
        }
    }

    fn send_reply_headers(&self, headers: &[(&[u8], &[u8])], end_stream: bool) {
        self.views.none();
        let headers = module_headers(headers);
        // SAFETY: as in `resume`; Envoy copies the headers.
        unsafe {
            (self.api.send_response_headers)(
                self.envoy,
                headers.as_ptr(),
                headers.len(),
                end_stream,
            )
        }
    }

    fn send_reply_data(&self, data: &[u8], end_stream: bool) {
        self.views.none();
        // SAFETY: as in `resume`; Envoy copies the bytes.
        unsafe { (self.api.send_response_data)(self.envoy, data.into(), end_stream) }
    }

    fn send_reply_trailers(&self, trailers: &[(&[u8], &[u8])]) {
        self.views.none();
        let trailers = module_headers(trailers);
        // SAFETY: as in `resume`; Envoy copies the trailers.
        unsafe { (self.api.send_response_trailers)(self.envoy, trailers.as_ptr(), trailers.len()) }
    }

    fn reset(&self, details: &str) {
        self.reset_for(ResetReason::Local, details);
    }

    fn reset_for(&self, reason: ResetReason, details: &str) {
        self.views.none();
        let reason = match reason {
            ResetReason::Refused => reset_reason::LOCAL_REFUSED,
            _ => reset_reason::LOCAL,
        };
        // SAFETY: as in `resume`; Envoy copies the details.
        unsafe { (self.api.reset_stream)(self.envoy, reason, details.into()) }
    }

    fn facts(&self) -> &dyn Facts {
        self
    }

    fn start_call(&self, call: &CallStart<'_>) -> Result<u64, CallRefused> {
        // SAFETY: the stream is valid (type invariant).
        unsafe { callout::start(self.api, self.envoy, call) }
    }

    fn send_call_data(&self, call: u64, data: &[u8], end_stream: bool) -> bool {
        // SAFETY: the stream is valid (type invariant); Envoy copies the bytes. It may run the
        // call's own hooks, which the engine expects.
        unsafe { (self.api.stream_send_data)(self.envoy, call, data.into(), end_stream) }
    }

    fn send_call_trailers(&self, call: u64, trailers: &[(&[u8], &[u8])]) -> bool {
        let trailers = module_headers(trailers);
        // SAFETY: as in `send_call_data`.
        unsafe {
            (self.api.stream_send_trailers)(self.envoy, call, trailers.as_ptr(), trailers.len())
        }
    }

    fn reset_call(&self, call: u64) {
        // SAFETY: as in `send_call_data`.
        unsafe { (self.api.reset_http_stream)(self.envoy, call) }
    }

    fn span(&self) -> Option<Box<dyn HostSpan>> {
        // SAFETY: the stream is valid (type invariant), this is its worker, and the engine drops
        // spans in time.
        let span = unsafe { Span::of_stream(self.envoy, self.api) };
        span.map(|span| Box::new(span) as _)
    }

    fn notifier(&self) -> Box<dyn Notify> {
        Box::new(StreamNotify { scheduler: AtomicPtr::new(self.scheduler()), api: self.api })
    }

    fn bind(&self, notifier: &dyn Notify) {
        let notifier: &dyn Any = notifier;
        let notifier: &StreamNotify = notifier.downcast_ref().expect("made by this kind of host");
        notifier.scheduler.store(self.scheduler(), Ordering::Release);
    }

    fn route_configs(&self, look: &mut dyn FnMut(&[&LoadedRoute])) {
        // SAFETY: the stream is valid (type invariant).
        let config = unsafe { (self.api.get_most_specific_route_config)(self.envoy) };
        // SAFETY: it is null or a pointer that `RouteConfig::into_raw` gave to Envoy. Envoy frees
        // it with the route, which this stream holds while `look` runs: that calls nothing of ours.
        if let Some(config) = unsafe { RouteConfig::from_raw(config) } {
            look(&[&config.0]);
        }
    }

    fn stream_id(&self, out: &mut dyn Write) -> fmt::Result {
        let mut id = EnvoyBuffer::EMPTY;
        let mut connection = 0u64;
        // SAFETY: the stream is valid (type invariant); the out-pointer is ours and live.
        let connected = unsafe {
            (self.api.get_attribute_int)(self.envoy, ATTRIBUTE_CONNECTION_ID, &mut connection)
        };
        // SAFETY: as above.
        let named =
            unsafe { (self.api.get_attribute_string)(self.envoy, ATTRIBUTE_REQUEST_ID, &mut id) };
        // SAFETY: the text lives as long as the stream's info; it is read at once.
        let id = unsafe { id.as_slice() };
        write_stream_id(out, connected.then_some(connection), named.then_some(id))
    }
}

/// Wakes a stream.
struct StreamNotify {
    /// Null while it has no stream. Envoy's scheduler holds a weak reference to the stream, and a strong
    /// one during a commit; that is made for any thread, as long as Envoy is there, and deleting it
    /// touches nothing else.
    scheduler: AtomicPtr<c_void>,
    api: &'static Callbacks,
}

impl StreamNotify {
    fn delete(&self) {
        let scheduler = self.scheduler.swap(ptr::null_mut(), Ordering::AcqRel);
        if !scheduler.is_null() {
            // SAFETY: made by `scheduler_new`, deleted once. Nobody commits it any more: the contract
            // of `Notify::release`, or that this is dropped.
            unsafe { (self.api.scheduler_delete)(scheduler) }
        }
    }
}

impl Notify for StreamNotify {
    fn notify(&self) {
        let scheduler = self.scheduler.load(Ordering::Acquire);
        if !scheduler.is_null() {
            // SAFETY: the scheduler lives until `delete`, which does not run meanwhile (the contract of
            // `release`), and the stream at least as long as this call: the engine does not let it go
            // while somebody is in here.
            unsafe { (self.api.scheduler_commit)(scheduler, 0) }
        }
    }

    fn release(&self) {
        self.delete();
    }
}

impl Drop for StreamNotify {
    fn drop(&mut self) {
        self.delete();
    }
}

/// For a metric's labels.
pub(crate) fn module_buffers(list: &[&str]) -> Vec<ModuleBuffer> {
    list.iter().map(|text| (*text).into()).collect()
}
