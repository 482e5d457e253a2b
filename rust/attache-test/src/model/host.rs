//! The host half of the model: what the exchange calls, with the manners of Envoy's C ABI.

use std::any::Any;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::mem::ManuallyDrop;
use std::rc::{Rc, Weak};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use attache_core::facts::{Facts, ResetReason};
use attache_core::host::{
    Area, CallRefused, CallStart, Capabilities, Direction, Host, LocalReply, Map, Notify,
};
use attache_core::registry::LoadedRoute;
use bytes::Bytes;

use super::Fields;
use super::buffer::Buffer;
use super::stream::{Part, ReplyState, Stream};

/// The filter's side of a [`Model`](super::Model).
///
/// As stock Envoy's, it has nothing to drop, so that an exchange that has ended serves another stream:
/// it knows its stream by a number.
#[derive(Debug)]
pub struct ModelHost {
    stream: u64,
}

enum Place {
    /// Its events are still to come: it stays.
    Open(Rc<Stream>),
    /// It has been destroyed; whoever calls it all the same is told, if the test still has it.
    Over(Weak<Stream>),
}

thread_local! {
    /// The streams of this thread. What a test leaves open stays so: it is not dropped.
    static STREAMS: ManuallyDrop<RefCell<BTreeMap<u64, Place>>> = ManuallyDrop::default();
}

impl Stream {
    pub(crate) fn is_destroyed(self: &Rc<Self>) {
        let over = Place::Over(Rc::downgrade(self));
        let open = STREAMS.with(|all| all.borrow_mut().insert(self.number, over));
        drop(open);
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        STREAMS.with(|all| all.borrow_mut().remove(&self.number));
    }
}

/// Where the wakes of a stream go.
type Posts = (mpsc::Sender<()>, Arc<tokio::sync::Notify>);

/// Those of the stream that it serves now.
struct Post(Mutex<Option<Posts>>);

impl Post {
    fn posts(&self) -> MutexGuard<'_, Option<Posts>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Notify for Post {
    fn notify(&self) {
        let posts = self.posts().clone();
        let (sender, woken) = posts.expect("nobody posts once the stream is let go of");
        // The stream may be gone; Envoy ignores that too.
        let _ = sender.send(());
        woken.notify_one();
    }

    fn release(&self) {
        *self.posts() = None;
    }
}

/// Counts a callback that looks at a map or a buffer, for as long as it runs.
struct Look(Rc<Stream>);

impl Look {
    fn start(stream: Rc<Stream>) -> Self {
        stream.looking.set(stream.looking.get() + 1);
        Look(stream)
    }
}

impl Drop for Look {
    fn drop(&mut self) {
        self.0.looking.set(self.0.looking.get() - 1);
    }
}

fn fields(list: &[(&[u8], &[u8])]) -> Fields {
    list.iter()
        .map(|(n, v)| (String::from_utf8_lossy(n).into_owned(), Bytes::copy_from_slice(v)))
        .collect()
}

impl ModelHost {
    pub(crate) fn new(stream: &Rc<Stream>) -> Self {
        let number = stream.number;
        STREAMS.with(|all| all.borrow_mut().insert(number, Place::Open(stream.clone())));
        ModelHost { stream: number }
    }

    pub(crate) fn stream(&self) -> Rc<Stream> {
        let stream = STREAMS.with(|all| match all.borrow().get(&self.stream) {
            Some(Place::Open(stream)) => Some(stream.clone()),
            Some(Place::Over(stream)) => stream.upgrade(),
            None => None,
        });
        stream.expect("ModelViolation: a call after the stream has gone")
    }

    /// Where the one notifier of the stream posts to.
    fn posts(&self, call: &str) -> Posts {
        self.reads(call);
        let count = &self.stream().notifiers;
        count.set(count.get() + 1);
        if count.get() > 1 {
            self.stream().violation("a second notifier for one stream");
        }
        (self.stream().posts.0.clone(), self.stream().woken.clone())
    }

    /// A call that only looks.
    pub(crate) fn reads(&self, call: &str) {
        if self.stream().destroyed.get() {
            self.stream().violation(format!("{call} after destroy"));
        }
    }

    /// A call that changes something.
    pub(crate) fn writes(&self, call: &str) {
        self.reads(call);
        if self.stream().completed.get() {
            self.stream().violation(format!("{call} after the stream has completed"));
        }
        if self.stream().in_watermark.get() {
            self.stream().violation(format!(
                "{call} from within a watermark callback: Envoy may be in the middle of sending"
            ));
        }
        if self.stream().looking.get() > 0 {
            self.stream().violation(format!("{call} from within a callback that looks at a view"));
        }
    }

    fn write_map<R>(&self, call: &str, map: Map, f: impl FnOnce(&mut Fields) -> R) -> Option<R> {
        self.writes(call);
        let stream = self.stream();
        let (direction, headers) = match map {
            Map::RequestHeaders => (Direction::Request, true),
            Map::RequestTrailers => (Direction::Request, false),
            Map::ResponseHeaders => (Direction::Response, true),
            Map::ResponseTrailers => (Direction::Response, false),
        };
        let leg = stream.our_leg(direction);
        if headers && leg.headers_continued.get() {
            stream.violation(format!("{call}: the {direction:?} headers have gone"));
        }
        if !headers && stream.way(direction).own.end_gone.get() {
            stream.violation(format!("{call}: the {direction:?} trailers have gone"));
        }
        stream.map(map).borrow_mut().as_mut().map(f)
    }

    fn area(&self, direction: Direction, area: Area) -> Option<Rc<Buffer>> {
        let stream = self.stream();
        let way = stream.way(direction);
        if area == Area::Buffer && self.stream().is_compiled_in() {
            return Some(way.own.buffer.clone());
        }
        let place: &RefCell<Option<Rc<Buffer>>> = match area {
            Area::Frame => &way.frame,
            Area::Buffer => &way.buffer,
        };
        place.borrow().clone()
    }

    fn may_reply(&self, call: &str) {
        self.writes(call);
        let stream = self.stream();
        if stream.in_local_reply.get() {
            stream.violation(format!("{call} from within the local-reply hook"));
        }
        if stream.reply.get() != ReplyState::None {
            stream.violation(format!("{call}, but the filter has already replied"));
        }
        if stream.response_encoded.get() {
            stream.violation(format!("{call}, but response headers have gone to the client"));
        }
    }

    fn may_go_on_replying(&self, call: &str) {
        self.writes(call);
        match self.stream().reply.get() {
            ReplyState::Started => (),
            ReplyState::None => {
                self.stream().violation(format!("{call} before the reply's headers"))
            }
            ReplyState::Ended => self.stream().violation(format!("{call} after the reply's end")),
        }
    }
}

impl Host for ModelHost {
    fn capabilities(&self) -> Capabilities {
        self.reads("capabilities");
        match self.stream().is_compiled_in() {
            true => Capabilities::COMPILED_IN,
            false => Capabilities::COMMON,
        }
    }

    fn header(&self, map: Map, name: &str, index: usize, f: &mut dyn FnMut(&[u8])) -> usize {
        self.reads("header");
        let all: Vec<Bytes> = match &*self.stream().map(map).borrow() {
            Some(fields) => {
                fields.iter().filter(|(n, _)| n == name).map(|(_, v)| v.clone()).collect()
            }
            None => return 0,
        };
        if let Some(value) = all.get(index) {
            let _look = Look::start(self.stream());
            f(value);
        }
        all.len()
    }

    fn headers(&self, map: Map, f: &mut dyn FnMut(&[u8], &[u8])) -> bool {
        self.reads("headers");
        let Some(fields) = self.stream().map(map).borrow().clone() else { return false };
        let _look = Look::start(self.stream());
        for (name, value) in &fields {
            f(name.as_bytes(), value);
        }
        true
    }

    fn set_header(&self, map: Map, name: &str, value: &[u8]) -> bool {
        let value = Bytes::copy_from_slice(value);
        let empty_values = self.stream().is_compiled_in();
        self.write_map("set_header", map, |fields| {
            if value.is_empty() && !empty_values {
                return fields.retain(|(n, _)| n != name);
            }
            let mut first = true;
            fields.retain_mut(|(n, v)| {
                if n != name {
                    return true;
                }
                *v = value.clone();
                std::mem::take(&mut first)
            });
            if first {
                fields.push((name.to_owned(), value));
            }
        })
        .is_some()
    }

    fn append_header(&self, map: Map, name: &str, value: &[u8]) -> bool {
        let value = Bytes::copy_from_slice(value);
        let empty_values = self.stream().is_compiled_in();
        self.write_map("append_header", map, |fields| {
            let adds = empty_values || !value.is_empty();
            if adds {
                fields.push((name.to_owned(), value));
            }
            adds
        })
        .unwrap_or(false)
    }

    fn remove_header(&self, map: Map, name: &str) -> bool {
        self.write_map("remove_header", map, |fields| fields.retain(|(n, _)| n != name)).is_some()
    }

    fn body_len(&self, direction: Direction, area: Area) -> usize {
        self.reads("body_len");
        self.area(direction, area).map_or(0, |b| b.len())
    }

    fn frame_is_buffer(&self, direction: Direction) -> bool {
        self.reads("frame_is_buffer");
        if self.stream().is_compiled_in() {
            return false;
        }
        match (self.area(direction, Area::Frame), self.area(direction, Area::Buffer)) {
            (Some(frame), Some(buffer)) => Rc::ptr_eq(&frame, &buffer),
            _ => false,
        }
    }

    fn body(&self, direction: Direction, area: Area, f: &mut dyn FnMut(&[u8])) {
        self.reads("body");
        let slices = self.area(direction, area).map(|b| b.slices()).unwrap_or_default();
        let _look = Look::start(self.stream());
        for slice in slices {
            f(&slice);
        }
    }

    fn drain(&self, direction: Direction, area: Area, bytes: usize) {
        self.writes("drain");
        let stream = self.stream();
        let Some(buffer) = self.area(direction, area) else {
            return stream
                .violation(format!("drain of a {direction:?} {area:?} that is not there"));
        };
        if bytes > buffer.len() {
            stream.violation(format!(
                "drain of {bytes} bytes, but the {direction:?} {area:?} has {}",
                buffer.len()
            ));
        }
        let in_frame = area == Area::Frame || self.frame_is_buffer(direction);
        let holders = buffer.drain(bytes);
        if !in_frame && holders.iter().any(|holder| *holder != Some(stream.ours)) {
            stream.violation(format!("drain of {direction:?} bytes that another filter holds"));
        }
        stream.check_watermark(direction);
        stream.check_own_watermark(direction);
    }

    fn append(&self, direction: Direction, area: Area, data: &[u8]) {
        self.writes("append");
        let stream = self.stream();
        let way = stream.way(direction);
        let leg = stream.our_leg(direction);
        let data = Bytes::copy_from_slice(data);
        let (in_frame, in_buffer) = way.appended.get();
        if area == Area::Frame {
            let Some(frame) = self.area(direction, Area::Frame) else {
                return stream
                    .violation(format!("append to a {direction:?} frame outside its hook"));
            };
            way.appended.set((true, in_buffer));
            frame.add(data, Some(stream.ours));
            return stream.check_watermark(direction);
        }
        if stream.is_compiled_in() {
            return stream.violation("append to the private buffer, which is for input");
        }
        let hook = way.hook.get();
        if hook.is_none() && !leg.stopped.get() {
            stream.violation(format!(
                "append to the {direction:?} buffer while nothing is stopped: it would sit unsent"
            ));
        }
        if let Some(buffer) = self.area(direction, Area::Buffer) {
            way.appended.set((in_frame, true));
            buffer.add(data, Some(stream.ours));
            return stream.check_watermark(direction);
        }
        // There is no buffer yet: Envoy lets data be added in some places only.
        let own = [Part::Headers, Part::Data].iter().any(|p| stream.hook_running(direction, *p));
        let trailers = stream.hook_running(direction, Part::Trailers);
        let added = Rc::new(Buffer::of(data));
        if !stream.hooks_running() || own || (trailers && leg.stopped.get()) {
            way.appended.set((in_frame, true));
            stream.add_streaming(direction);
            stream.into_buffer(direction, stream.ours, &added);
        } else if trailers {
            stream.pass_on(direction, &added);
        } else {
            stream.violation(format!(
                "append to a {direction:?} buffer that does not exist yet, from a hook of the other \
                 direction: Envoy answers with 502"
            ));
        }
    }

    fn buffer_limit(&self) -> u64 {
        self.reads("buffer_limit");
        self.stream().buffer_limit.get()
    }

    fn set_buffer_limit(&self, bytes: u64) {
        self.writes("set_buffer_limit");
        self.stream().set_buffer_limit(bytes);
    }

    fn inject(
        &self,
        direction: Direction,
        data: &mut dyn Iterator<Item = Bytes>,
        end_stream: bool,
    ) {
        self.writes("inject");
        self.stream().may_emit("inject", direction);
        self.stream().inject(direction, data.collect(), end_stream);
    }

    fn release(&self, direction: Direction) {
        self.writes("release");
        self.stream().may_emit("release", direction);
        if !self.stream().our_leg(direction).stopped.get() {
            self.stream().violation(format!("release of the {direction:?}, which is not stopped"));
        }
        self.stream().inject_own(direction, false);
    }

    fn others_hold(&self, direction: Direction) -> bool {
        self.reads("others_hold");
        self.stream().others_hold(direction)
    }

    fn add_trailers(&self, direction: Direction, now: bool) -> bool {
        self.writes("add_trailers");
        self.stream().add_trailers(direction, now)
    }

    fn resume(&self, direction: Direction) {
        self.writes("resume");
        let stream = self.stream();
        if stream.is_compiled_in() {
            return stream.resume_own(direction);
        }
        let way = stream.way(direction);
        if way.hook.get().is_some() {
            stream.violation(format!("resume of the {direction:?} inside its own hook"));
        }
        if way.headers.borrow().is_none() {
            stream.violation(format!("resume of the {direction:?} before its headers"));
        }
        if direction == Direction::Request && stream.reply.get() != ReplyState::None {
            stream.violation("resume of the Request after the filter has begun a reply");
        }
        if way.in_continue.get() || !stream.our_leg(direction).stopped.get() {
            stream.violation(format!("resume of the {direction:?}, which is not stopped"));
        }
        stream.continue_from(direction, stream.ours);
        way.in_continue.set(true);
    }

    fn send_reply(&self, reply: &LocalReply<'_>) {
        self.may_reply("send_reply");
        self.stream().our_reply(reply);
    }

    fn send_reply_headers(&self, headers: &[(&[u8], &[u8])], end_stream: bool) {
        self.may_reply("send_reply_headers");
        let stream = self.stream();
        if !end_stream && stream.our_leg(Direction::Request).headers_continued.get() {
            stream.violation(
                "a streamed reply, but the request has gone on: a response would meet it",
            );
        }
        if stream.way(Direction::Response).headers.borrow().is_some() {
            stream.violation("a streamed reply over a response that has arrived");
        }
        stream.our_reply_headers(fields(headers), end_stream);
    }

    fn send_reply_data(&self, data: &[u8], end_stream: bool) {
        self.may_go_on_replying("send_reply_data");
        self.stream().our_reply_data(Bytes::copy_from_slice(data), end_stream);
    }

    fn send_reply_trailers(&self, trailers: &[(&[u8], &[u8])]) {
        self.may_go_on_replying("send_reply_trailers");
        self.stream().our_reply_trailers(fields(trailers));
    }

    fn reset(&self, details: &str) {
        self.reset_for(ResetReason::Local, details);
    }

    fn facts(&self) -> &dyn Facts {
        self
    }

    fn reset_for(&self, reason: ResetReason, details: &str) {
        self.writes("reset");
        self.stream().around.done.borrow_mut().reset = Some((reason, details.to_owned()));
        self.stream().check_reset();
        self.stream().reset_stream();
    }

    fn start_call(&self, call: &CallStart<'_>) -> Result<u64, CallRefused> {
        self.writes("start_call");
        self.stream().start_call(call)
    }

    fn send_call_data(&self, call: u64, data: &[u8], end_stream: bool) -> bool {
        self.writes("send_call_data");
        self.stream().send_call_data(call, data, end_stream)
    }

    fn send_call_trailers(&self, call: u64, trailers: &[(&[u8], &[u8])]) -> bool {
        self.writes("send_call_trailers");
        self.stream().send_call_trailers(call, fields(trailers))
    }

    fn reset_call(&self, call: u64) {
        // Also while the stream completes: its futures are dropped then.
        self.reads("reset_call");
        self.stream().reset_call(call);
    }

    fn notifier(&self) -> Box<dyn Notify> {
        Box::new(Post(Mutex::new(Some(self.posts("notifier")))))
    }

    fn bind(&self, notifier: &dyn Notify) {
        let post: &Post = (notifier as &dyn Any).downcast_ref().expect("made by a host like this");
        *post.posts() = Some(self.posts("bind"));
    }

    fn route_configs(&self, look: &mut dyn FnMut(&[&LoadedRoute])) {
        self.reads("route_configs");
        let stream = self.stream();
        let levels: Vec<_> = stream.options.route_configs.values().collect();
        let known = match self.capabilities().route_levels {
            true => 0,
            false => levels.len().saturating_sub(1),
        };
        if !levels.is_empty() {
            look(&levels[known..]);
        }
    }

    fn stream_id(&self, out: &mut dyn std::fmt::Write) -> std::fmt::Result {
        self.reads("stream_id");
        out.write_str("[test]")
    }
}
