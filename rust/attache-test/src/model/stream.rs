//! The filter manager: how headers, bodies and trailers travel along the chain.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use attache_core::exchange::{Exchange, Inner};
use attache_core::host::{DataVerdict, Direction, LocalReply, Map, Verdict};
use attache_core::registry::{Loaded, LoadedRoute};
use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::buffer::{Buffer, Place};
use super::callout::Calls;
use super::compiled_in::Own;
use super::{Fields, ModelHost, ModelViolation};
use crate::cluster::Clusters;

/// Which kind of host the filter runs in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Stock Envoy, through its C ABI: what every host can do.
    #[default]
    Stock,
    /// An Envoy that the filter is compiled into: it emits at any time, from a private buffer for
    /// each direction, and can add trailers.
    CompiledIn,
}
use crate::known::{Around, Done, Surroundings};

/// What the chain around the filter looks like, and how the stream behaves.
#[derive(Clone)]
pub struct Options {
    /// The host of the filter under test.
    pub kind: Kind,
    /// A filter nearer to the client.
    pub before: Option<Neighbour>,
    /// A filter nearer to the upstream.
    pub after: Option<Neighbour>,
    /// The most bytes that a direction's buffer holds before the sender is paused; 0 is unlimited.
    pub buffer_limit: u64,
    /// What the upstream does when the request's headers reach it.
    pub upstream: Upstream,
    /// The stream ends some time after its last byte or its reset, when [`Model::flush`] is called;
    /// otherwise at once, inside of whatever call that was.
    pub late_end: bool,
    /// What is around the messages.
    pub surroundings: Surroundings,
    /// The per-route configs of the filter under test, by where the route has them. A stock Envoy tells
    /// of the most specific only.
    pub route_configs: BTreeMap<Level, LoadedRoute>,
    /// The clusters that the filter under test can call.
    pub clusters: Clusters,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            kind: Kind::Stock,
            before: None,
            after: None,
            buffer_limit: 1 << 20,
            upstream: Upstream::Waits,
            late_end: false,
            surroundings: Surroundings::default(),
            route_configs: BTreeMap::new(),
            clusters: Clusters::default(),
        }
    }
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("kind", &self.kind)
            .field("before", &self.before)
            .field("after", &self.after)
            .field("buffer_limit", &self.buffer_limit)
            .field("upstream", &self.upstream)
            .field("late_end", &self.late_end)
            .finish_non_exhaustive()
    }
}

/// Where a route has a config for a filter. The later is the more specific.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The route table: Envoy's `RouteConfiguration`.
    RouteTable,
    /// The virtual host.
    VirtualHost,
    /// The route itself.
    Route,
    /// The cluster that was drawn, of those that have weights.
    WeightedCluster,
}

/// Another filter of the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Neighbour {
    /// Lets everything pass, but can be told to [hold](Model::hold) a direction and to
    /// [release](Model::release) it.
    Passes,
    /// Collects whole bodies, as Envoy's buffer filter does: a body over the limit is answered with
    /// 413 (request) or 500 (response).
    Buffers,
    /// Answers requests with a local reply of its own, at once.
    Replies,
}

/// What the upstream does when it gets the request's headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upstream {
    /// Waits for the test.
    Waits,
    /// Cannot be reached: Envoy replies with 503 before the call returns.
    Refuses,
    /// Sends response headers before the call returns; the rest is up to the test.
    AnswersAtOnce,
}

/// What has come out of one end of the chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// The headers, when they came.
    pub headers: Option<Fields>,
    /// The body, as it was cut into frames.
    pub chunks: Vec<Bytes>,
    /// The trailers, if they came.
    pub trailers: Option<Fields>,
    /// The message is complete.
    pub ended: bool,
    /// The message was cut off.
    pub reset: bool,
}

impl Received {
    /// All bytes of the body.
    pub fn body(&self) -> Bytes {
        self.chunks.concat().into()
    }

    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<Bytes> {
        let headers = self.headers.as_ref()?;
        headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone())
    }

    /// The status of a response.
    pub fn status(&self) -> Option<u16> {
        std::str::from_utf8(&self.header(":status")?).ok()?.parse().ok()
    }
}

#[derive(Clone, Copy)]
enum Filter {
    UnderTest,
    Neighbour(Neighbour),
    Router,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Headers,
    Data,
    Trailers,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum DataStatus {
    Continue,
    StopAndBuffer,
    StopAndWatermark,
    StopNoBuffer,
}

/// Where one filter stands in one direction.
#[derive(Default)]
pub(crate) struct Leg {
    pub(crate) stopped: Cell<bool>,
    pub(crate) headers_continued: Cell<bool>,
    /// The filter has seen the end of the message.
    pub(crate) ended: Cell<bool>,
    /// A neighbour that was told to hold.
    holding: Cell<bool>,
}

/// One direction of the stream.
#[derive(Default)]
pub(crate) struct Way {
    pub(crate) headers: RefCell<Option<Fields>>,
    pub(crate) trailers: RefCell<Option<Fields>>,
    pub(crate) buffer: RefCell<Option<Rc<Buffer>>>,
    /// The frame that a hook of the filter under test was called with.
    pub(crate) frame: RefCell<Option<Rc<Buffer>>>,
    /// The running hook of the filter under test.
    pub(crate) hook: Cell<Option<Part>>,
    /// Which hooks run, of any filter.
    running: Cell<u8>,
    /// Nothing of this direction travels any more.
    pub(crate) aborted: Cell<bool>,
    pub(crate) observed_end: Cell<bool>,
    /// How a full buffer is dealt with: pause the sender, or give up.
    streaming: Cell<bool>,
    /// How many buffers want the sender paused.
    paused: Cell<u32>,
    /// What the host remembers: the last hook of the filter under test continued.
    pub(crate) in_continue: Cell<bool>,
    /// What the running hook has appended to the frame, and to the buffer.
    pub(crate) appended: Cell<(bool, bool)>,
    /// What only a compiled-in host has.
    pub(crate) own: Own,
}

pub(crate) struct Stream {
    chain: Vec<Filter>,
    pub(crate) ours: Place,
    legs: [Vec<Leg>; 2],
    ways: [Way; 2],
    pub(crate) options: Options,
    pub(crate) buffer_limit: Cell<u64>,
    exchange: RefCell<Option<Exchange>>,
    loaded: Loaded,
    client: RefCell<Received>,
    upstream: RefCell<Received>,
    /// When the request's headers came.
    started: Cell<Option<Instant>>,
    /// How many bytes of body the client has sent.
    sent_by_client: Cell<u64>,
    client_gone: Cell<bool>,
    upstream_gone: Cell<bool>,
    is_grpc: Cell<bool>,
    is_head: Cell<bool>,
    pub(crate) response_encoded: Cell<bool>,
    response_complete: Cell<bool>,
    /// The upstream has sent response headers.
    upstream_answered: Cell<bool>,
    prepared: RefCell<Option<Reply>>,
    pub(crate) in_local_reply: Cell<bool>,
    /// The filter under test has replied, and how far it is.
    pub(crate) replied: Cell<bool>,
    pub(crate) reply: Cell<ReplyState>,
    /// The end is due.
    ending: Cell<bool>,
    pub(crate) completed: Cell<bool>,
    pub(crate) destroyed: Cell<bool>,
    /// How many callbacks look at a map or a buffer.
    pub(crate) looking: Cell<u32>,
    pub(crate) notifiers: Cell<u32>,
    /// Wakes arrive here from any thread.
    pub(crate) posts: (mpsc::Sender<()>, mpsc::Receiver<()>),
    posted: Cell<usize>,
    pub(crate) woken: Arc<Notify>,
    violations: RefCell<Vec<ModelViolation>>,
    /// What tells it from the others of its thread.
    pub(crate) number: u64,
    /// What has become of the exchange.
    exchange_left: RefCell<Left>,
    next_hop_above: [Cell<u32>; 2],
    pub(crate) in_watermark: Cell<bool>,
    details: RefCell<Vec<String>>,
    pub(crate) calls: Calls,
    pub(crate) around: Around,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReplyState {
    None,
    Started,
    Ended,
}

#[derive(Clone)]
struct Reply {
    headers: Fields,
    body: Bytes,
}

/// What is left of an exchange when its stream has gone.
#[derive(Default)]
enum Left {
    #[default]
    Nothing,
    /// Somebody held it then, and may hold it still.
    Held(Weak<Inner>),
}

thread_local!(static NUMBERS: Cell<u64> = const { Cell::new(0) });

const LOST: &str = "bytes after the end of the";

fn index(direction: Direction) -> usize {
    match direction {
        Direction::Request => 0,
        Direction::Response => 1,
    }
}

const BOTH: [Direction; 2] = [Direction::Request, Direction::Response];

impl Way {
    fn new() -> Self {
        Way { streaming: Cell::new(true), ..Way::default() }
    }
}

impl Stream {
    pub(crate) fn way(&self, direction: Direction) -> &Way {
        &self.ways[index(direction)]
    }

    pub(crate) fn map(&self, map: Map) -> &RefCell<Option<Fields>> {
        match map {
            Map::RequestHeaders => &self.way(Direction::Request).headers,
            Map::RequestTrailers => &self.way(Direction::Request).trailers,
            Map::ResponseHeaders => &self.way(Direction::Response).headers,
            Map::ResponseTrailers => &self.way(Direction::Response).trailers,
        }
    }

    pub(crate) fn leg(&self, direction: Direction, place: Place) -> &Leg {
        &self.legs[index(direction)][place]
    }

    pub(crate) fn our_leg(&self, direction: Direction) -> &Leg {
        self.leg(direction, self.ours)
    }

    /// Records a violation and panics, unless a panic is already on its way.
    pub(crate) fn violation(&self, what: impl Into<String>) {
        let violation = ModelViolation(what.into());
        self.violations.borrow_mut().push(violation.clone());
        if !std::thread::panicking() {
            panic!("{violation}");
        }
    }

    fn ways_on(&self, direction: Direction) -> Vec<Place> {
        match direction {
            Direction::Request => (0..self.chain.len()).collect(),
            // The router makes responses; it does not get them.
            Direction::Response => (0..self.chain.len() - 1).rev().collect(),
        }
    }

    fn after(&self, direction: Direction, place: Option<Place>) -> Vec<Place> {
        let places = self.ways_on(direction);
        match place {
            None => places,
            Some(place) => places.into_iter().skip_while(|p| *p != place).skip(1).collect(),
        }
    }

    pub(crate) fn hooks_running(&self) -> bool {
        self.ways.iter().any(|way| way.running.get() != 0)
    }

    pub(crate) fn hook_running(&self, direction: Direction, part: Part) -> bool {
        self.way(direction).running.get() & (1 << part as u8) != 0
    }

    fn enter(&self, direction: Direction, part: Part) {
        if self.hook_running(direction, part) {
            self.violation(format!("a {direction:?} hook runs inside another of its kind"));
        }
        let running = &self.way(direction).running;
        running.set(running.get() | 1 << part as u8);
    }

    fn leave(&self, direction: Direction, part: Part) {
        let running = &self.way(direction).running;
        running.set(running.get() & !(1 << part as u8));
    }

    pub(crate) fn exchange(&self) -> Option<Exchange> {
        self.exchange.borrow().clone()
    }

    // ---- the chain --------------------------------------------------------------------------

    pub(crate) fn headers(self: &Rc<Self>, direction: Direction, from: Option<Place>, end: bool) {
        let request = direction == Direction::Request;
        let way = self.way(direction);
        if self.destroyed.get() || (request && way.aborted.get()) {
            return;
        }
        if from.is_none() && !request && end {
            self.response_has_ended();
        }
        let mut body_added_by = None;
        let places = self.after(direction, from);
        for &place in &places {
            let leg = self.leg(direction, place);
            let end_here = end && body_added_by.is_none();
            leg.ended.set(end_here);
            self.enter(direction, Part::Headers);
            let mut verdict = self.headers_hook(direction, place, end_here);
            self.leave(direction, Part::Headers);
            if self.destroyed.get() {
                return;
            }
            if way.aborted.get() {
                if request {
                    self.send_prepared();
                }
                verdict = Verdict::Stop;
            }
            match verdict {
                Verdict::Continue => leg.headers_continued.set(true),
                Verdict::Stop => leg.stopped.set(true),
            }
            let last = request && Some(&place) == places.last();
            if !last && (verdict == Verdict::Stop || (request && way.aborted.get())) {
                if request || !leg.ended.get() {
                    self.flush_added_body(direction, body_added_by);
                }
                return;
            }
            if end && way.buffer.borrow().is_some() && body_added_by.is_none() {
                body_added_by = Some(place);
            }
        }
        if request {
            return self.flush_added_body(direction, body_added_by);
        }
        let end = end && body_added_by.is_none();
        self.encode_headers(end);
        if !end && !self.destroyed.get() {
            self.flush_added_body(direction, body_added_by);
        }
    }

    fn flush_added_body(self: &Rc<Self>, direction: Direction, place: Option<Place>) {
        if let Some(place) = place {
            self.leg(direction, place).stopped.set(true);
            self.continue_from(direction, place);
        }
    }

    pub(crate) fn data(
        self: &Rc<Self>,
        direction: Direction,
        from: Option<Place>,
        data: &Rc<Buffer>,
        end: bool,
    ) {
        let request = direction == Direction::Request;
        let way = self.way(direction);
        if self.destroyed.get() || (request && way.aborted.get()) {
            return;
        }
        if from.is_none() && !request && end {
            self.response_has_ended();
        }
        let places = self.after(direction, from);
        let had_trailers = way.trailers.borrow().is_some();
        let mut trailers_added_by = None;
        for &place in &places {
            let leg = self.leg(direction, place);
            if leg.ended.get() {
                // The buffer comes by twice when a filter has added a body to a message without one:
                // it is held, not lost.
                let buffer = way.buffer.borrow();
                let held = buffer.as_ref().is_some_and(|b| Rc::ptr_eq(b, data));
                drop(buffer);
                if data.len() > 0 && !held {
                    self.violation(format!("{LOST} {direction:?} are lost"));
                }
                return;
            }
            self.enter(direction, Part::Data);
            let end_here = end && way.trailers.borrow().is_none();
            leg.ended.set(end_here);
            let mut status = self.data_hook(direction, place, data, end_here);
            self.leave(direction, Part::Data);
            if self.destroyed.get() {
                return;
            }
            if way.aborted.get() {
                if request {
                    return self.send_prepared();
                }
                status = DataStatus::StopNoBuffer;
            }
            if !had_trailers && way.trailers.borrow().is_some() {
                trailers_added_by.get_or_insert(place);
            }
            let last = request && Some(&place) == places.last();
            if !self.after_data(direction, place, data, status) && !last {
                if trailers_added_by == Some(place) && request {
                    self.violation("trailers were added to a request that stops: they go at once");
                }
                if request {
                    break;
                }
                return;
            }
        }
        if !request {
            self.encode_data(data, end && way.trailers.borrow().is_none());
        }
        // A later filter that has stopped a request sees them nevertheless, and one that has stopped a
        // response does not.
        if trailers_added_by.is_some() {
            self.trailers(direction, trailers_added_by);
        }
    }

    fn after_data(
        self: &Rc<Self>,
        direction: Direction,
        place: Place,
        data: &Rc<Buffer>,
        status: DataStatus,
    ) -> bool {
        let way = self.way(direction);
        let leg = self.leg(direction, place);
        match status {
            DataStatus::Continue if leg.stopped.get() => {
                self.into_buffer(direction, place, data);
                self.continue_from(direction, place);
                false
            }
            DataStatus::Continue => {
                if !leg.headers_continued.get() {
                    self.violation(format!("{direction:?} data goes on before its headers"));
                }
                true
            }
            DataStatus::StopNoBuffer => {
                leg.stopped.set(true);
                let at_end = way.observed_end.get() && way.trailers.borrow().is_none();
                if at_end && way.buffer.borrow().is_none() {
                    *way.buffer.borrow_mut() = Some(Rc::default());
                }
                false
            }
            DataStatus::StopAndBuffer | DataStatus::StopAndWatermark => {
                leg.stopped.set(true);
                way.streaming.set(status == DataStatus::StopAndWatermark);
                self.into_buffer(direction, place, data);
                false
            }
        }
    }

    /// Moves a frame into the direction's buffer, unless it is that buffer.
    pub(crate) fn into_buffer(
        self: &Rc<Self>,
        direction: Direction,
        place: Place,
        data: &Rc<Buffer>,
    ) {
        let buffer = self.way(direction).buffer.borrow_mut().get_or_insert_default().clone();
        if Rc::ptr_eq(&buffer, data) {
            buffer.hold(place);
        } else {
            buffer.take_over(data, place);
        }
        self.check_watermark(direction);
    }

    pub(crate) fn trailers(self: &Rc<Self>, direction: Direction, from: Option<Place>) {
        let request = direction == Direction::Request;
        let way = self.way(direction);
        if self.destroyed.get() || (request && way.aborted.get()) {
            return;
        }
        if from.is_none() && !request {
            self.response_has_ended();
        }
        let places = self.after(direction, from);
        for &place in &places {
            let leg = self.leg(direction, place);
            self.enter(direction, Part::Trailers);
            let mut verdict = self.trailers_hook(direction, place);
            leg.ended.set(true);
            self.leave(direction, Part::Trailers);
            if self.destroyed.get() {
                return;
            }
            if request && way.aborted.get() {
                self.send_prepared();
                verdict = Verdict::Stop;
            }
            let last = request && Some(&place) == places.last();
            let go_on = match verdict {
                Verdict::Continue if leg.stopped.get() => {
                    self.continue_from(direction, place);
                    false
                }
                Verdict::Continue => {
                    if !leg.headers_continued.get() {
                        self.violation(format!("{direction:?} trailers go on before the headers"));
                    }
                    true
                }
                Verdict::Stop => {
                    leg.stopped.set(true);
                    false
                }
            };
            if !go_on && !last {
                return;
            }
        }
        if !request {
            self.encode_trailers();
        }
    }

    fn can_continue(&self, direction: Direction) -> bool {
        let complete = direction == Direction::Response && self.response_complete.get();
        !self.destroyed.get() && !complete && !self.way(direction).aborted.get()
    }

    /// A filter lets what it stopped go on: headers, the buffer, trailers.
    pub(crate) fn continue_from(self: &Rc<Self>, direction: Direction, place: Place) {
        if !self.can_continue(direction) {
            return;
        }
        let way = self.way(direction);
        let leg = self.leg(direction, place);
        if !leg.stopped.replace(false) {
            self.violation(format!("{direction:?} goes on, but nothing had stopped it"));
        }
        let trailers = || way.trailers.borrow().is_some();
        let buffered = || way.buffer.borrow().clone();
        if !leg.headers_continued.replace(true) {
            let end = way.observed_end.get() && buffered().is_none() && !trailers();
            self.headers(direction, Some(place), end);
        }
        if !self.can_continue(direction) {
            return;
        }
        let had_trailers = trailers();
        if let Some(buffer) = buffered() {
            let earlier = |holder: &Option<Place>| {
                holder
                    .is_some_and(|h| h != place && !self.after(direction, Some(place)).contains(&h))
            };
            if buffer.holders().iter().any(earlier) {
                self.violation(format!(
                    "{direction:?} goes on while an earlier filter still holds bytes: they slip by"
                ));
            }
            self.data(direction, Some(place), &buffer, way.observed_end.get() && !had_trailers);
        }
        if had_trailers && self.can_continue(direction) {
            self.trailers(direction, Some(place));
        }
    }

    fn response_has_ended(&self) {
        self.way(Direction::Response).observed_end.set(true);
        // Without half-close, the end of the response stops the request.
        self.way(Direction::Request).aborted.set(true);
    }

    // ---- hooks ------------------------------------------------------------------------------

    fn headers_hook(self: &Rc<Self>, direction: Direction, place: Place, end: bool) -> Verdict {
        match self.chain[place] {
            Filter::Router => {
                self.router_headers(end);
                Verdict::Stop
            }
            Filter::Neighbour(Neighbour::Replies) if direction == Direction::Request => {
                let body = Bytes::from_static(b"from a neighbour");
                self.send_local_reply(401, &Vec::new(), body, "neighbour");
                Verdict::Stop
            }
            Filter::Neighbour(neighbour) => {
                let holding = self.leg(direction, place).holding.get();
                let collect = neighbour == Neighbour::Buffers && !end;
                if holding || collect { Verdict::Stop } else { Verdict::Continue }
            }
            Filter::UnderTest => {
                if self.passes_us_by(direction) {
                    return Verdict::Continue;
                }
                let Some(exchange) = self.exchange() else { return Verdict::Continue };
                self.our_hook(direction, Part::Headers, end);
                let verdict = exchange.headers(direction, end);
                self.our_hook_is_over(
                    direction,
                    verdict == Verdict::Continue,
                    end,
                    |frame, buffer| {
                        debug_assert!(!frame);
                        buffer && verdict == Verdict::Continue && !end
                    },
                );
                verdict
            }
        }
    }

    fn data_hook(
        self: &Rc<Self>,
        direction: Direction,
        place: Place,
        data: &Rc<Buffer>,
        end: bool,
    ) -> DataStatus {
        match self.chain[place] {
            Filter::Router => {
                let chunks = data.take();
                self.check_watermark(direction);
                self.receive_data(&self.upstream, direction, chunks, end);
                DataStatus::StopNoBuffer
            }
            Filter::Neighbour(neighbour) => {
                let buffers = neighbour == Neighbour::Buffers && !end;
                match self.leg(direction, place).holding.get() {
                    _ if buffers => DataStatus::StopAndBuffer,
                    true => DataStatus::StopAndWatermark,
                    false => DataStatus::Continue,
                }
            }
            Filter::UnderTest => {
                if self.passes_us_by(direction) {
                    return DataStatus::Continue;
                }
                let Some(exchange) = self.exchange() else { return DataStatus::Continue };
                let way = self.way(direction);
                *way.frame.borrow_mut() = Some(data.clone());
                self.our_hook(direction, Part::Data, end);
                let verdict = exchange.data(direction, end);
                if self.is_compiled_in() {
                    return self.own_data_verdict(direction, data, end, verdict);
                }
                *way.frame.borrow_mut() = None;
                let was_stopped = self.our_leg(direction).stopped.get();
                let goes_on = verdict == DataVerdict::Continue;
                self.our_hook_is_over(direction, goes_on, end, |frame, buffer| {
                    (frame && verdict == DataVerdict::StopNoBuffer)
                        || (buffer && goes_on && !was_stopped)
                });
                match verdict {
                    DataVerdict::Continue => DataStatus::Continue,
                    DataVerdict::StopAndWatermark => DataStatus::StopAndWatermark,
                    DataVerdict::StopNoBuffer => DataStatus::StopNoBuffer,
                }
            }
        }
    }

    fn trailers_hook(self: &Rc<Self>, direction: Direction, place: Place) -> Verdict {
        match self.chain[place] {
            Filter::Router => {
                let trailers = self.way(direction).trailers.borrow().clone().unwrap_or_default();
                self.receive_trailers(&self.upstream, direction, trailers);
                Verdict::Stop
            }
            Filter::Neighbour(_) => {
                let holding = self.leg(direction, place).holding.get();
                if holding { Verdict::Stop } else { Verdict::Continue }
            }
            Filter::UnderTest => {
                if self.passes_us_by(direction) {
                    return Verdict::Continue;
                }
                let Some(exchange) = self.exchange() else { return Verdict::Continue };
                self.our_hook(direction, Part::Trailers, true);
                let verdict = exchange.trailers(direction);
                let goes_on = verdict == Verdict::Continue;
                let was_stopped = self.our_leg(direction).stopped.get();
                self.our_hook_is_over(direction, goes_on, true, |_, buffer| {
                    buffer && goes_on && !was_stopped
                });
                verdict
            }
        }
    }

    /// In stock Envoy, the filter's hooks are not called for a reply of its own.
    fn passes_us_by(&self, direction: Direction) -> bool {
        !self.is_compiled_in() && direction == Direction::Response && self.replied.get()
    }

    fn our_hook(&self, direction: Direction, part: Part, end: bool) {
        let way = self.way(direction);
        way.hook.set(Some(part));
        way.appended.set((false, false));
        way.own.hook(part, end);
    }

    /// `unsent` says whether what the hook has appended (to the frame, to the buffer) stays behind.
    pub(crate) fn our_hook_is_over(
        &self,
        direction: Direction,
        goes_on: bool,
        end: bool,
        unsent: impl Fn(bool, bool) -> bool,
    ) {
        let way = self.way(direction);
        way.hook.set(None);
        if self.destroyed.get() || way.aborted.get() {
            return;
        }
        way.in_continue.set(goes_on);
        self.check_own_answer(direction, goes_on);
        let (frame, buffer) = way.appended.get();
        if unsent(frame, buffer) {
            self.violation(format!(
                "{direction:?} bytes were appended in a hook whose answer leaves them unsent \
                 (end of the message: {end})"
            ));
        }
        if goes_on && direction == Direction::Request && self.reply.get() != ReplyState::None {
            self.violation("the request goes on after the filter has begun a reply");
        }
    }

    // ---- the ends of the chain --------------------------------------------------------------

    fn router_headers(self: &Rc<Self>, end: bool) {
        let headers = self.way(Direction::Request).headers.borrow().clone().unwrap_or_default();
        self.receive_headers(&self.upstream, Direction::Request, headers, end);
        match self.options.upstream {
            Upstream::Waits => (),
            Upstream::Refuses => {
                self.upstream_gone.set(true);
                let body = Bytes::from_static(b"no healthy upstream");
                self.send_local_reply(503, &Vec::new(), body, "no_healthy_upstream");
            }
            Upstream::AnswersAtOnce => {
                self.from_upstream(vec![(":status".into(), "200".into())], false);
            }
        }
    }

    fn from_upstream(self: &Rc<Self>, headers: Fields, end: bool) {
        self.upstream_answered.set(true);
        if self.way(Direction::Response).headers.borrow().is_some() {
            self.violation("the upstream's response meets another on the same stream");
        }
        *self.way(Direction::Response).headers.borrow_mut() = Some(headers);
        self.headers(Direction::Response, None, end);
    }

    fn encode_headers(self: &Rc<Self>, end: bool) {
        let headers = self.way(Direction::Response).headers.borrow().clone().unwrap_or_default();
        self.response_encoded.set(true);
        self.receive_headers(&self.client, Direction::Response, headers, end);
        self.maybe_end_response(end);
    }

    fn encode_data(self: &Rc<Self>, data: &Rc<Buffer>, end: bool) {
        let chunks = data.take();
        self.check_watermark(Direction::Response);
        self.receive_data(&self.client, Direction::Response, chunks, end);
        self.maybe_end_response(end);
    }

    fn encode_trailers(self: &Rc<Self>) {
        let trailers = self.way(Direction::Response).trailers.borrow().clone().unwrap_or_default();
        self.receive_trailers(&self.client, Direction::Response, trailers);
        self.maybe_end_response(true);
    }

    fn maybe_end_response(self: &Rc<Self>, end: bool) {
        if end {
            if self.response_complete.replace(true) {
                self.violation("the response ends twice");
            }
            self.end_stream();
        }
    }

    fn receive_headers(
        &self,
        at: &RefCell<Received>,
        direction: Direction,
        headers: Fields,
        end: bool,
    ) {
        if at.borrow().headers.is_some() {
            self.violation(format!("{direction:?} headers arrive twice at the end of the chain"));
        }
        let mut at = at.borrow_mut();
        at.headers = Some(headers);
        at.ended = end;
    }

    fn receive_data(
        &self,
        at: &RefCell<Received>,
        direction: Direction,
        chunks: Vec<Bytes>,
        end: bool,
    ) {
        if at.borrow().headers.is_none() || at.borrow().ended {
            self.violation(format!(
                "{direction:?} data arrives before the headers or after the end"
            ));
        }
        let mut at = at.borrow_mut();
        at.chunks.extend(chunks);
        at.ended = end;
    }

    fn receive_trailers(&self, at: &RefCell<Received>, direction: Direction, trailers: Fields) {
        if at.borrow().headers.is_none() || at.borrow().ended {
            self.violation(format!("{direction:?} trailers arrive in the wrong place"));
        }
        let mut at = at.borrow_mut();
        at.trailers = Some(trailers);
        at.ended = true;
    }

    // ---- watermarks -------------------------------------------------------------------------

    pub(crate) fn check_watermark(self: &Rc<Self>, direction: Direction) {
        let Some(buffer) = self.way(direction).buffer.borrow().clone() else { return };
        let limit = self.buffer_limit.get() as usize;
        let len = buffer.len();
        if limit != 0 && len > limit && !buffer.above.get() {
            buffer.above.set(true);
            if self.way(direction).streaming.get() {
                buffer.paused.set(true);
                self.pause(direction, true);
            } else {
                let (status, text) = match direction {
                    Direction::Request => (413, "Payload Too Large"),
                    Direction::Response => (500, "Internal Server Error"),
                };
                self.send_local_reply(status, &Vec::new(), text.into(), "too_large");
            }
        } else if buffer.above.get() && len <= limit / 2 {
            buffer.above.set(false);
            if buffer.paused.replace(false) {
                self.pause(direction, false);
            }
        }
    }

    pub(crate) fn count_pause(&self, direction: Direction, above: bool) {
        let paused = &self.way(direction).paused;
        paused.set(if above { paused.get() + 1 } else { paused.get() - 1 });
    }

    fn pause(self: &Rc<Self>, direction: Direction, above: bool) {
        self.count_pause(direction, above);
        // A full response buffer counts as a full downstream, for all who asked to be told; a full
        // request buffer as a full upstream, which stock Envoy tells nobody.
        if direction == Direction::Response || self.is_compiled_in() {
            self.tell_watermark(direction, above);
        }
    }

    fn tell_watermark(&self, direction: Direction, above: bool) {
        let count = &self.next_hop_above[index(direction)];
        count.set(if above { count.get() + 1 } else { count.get() - 1 });
        if let Some(exchange) = self.exchange()
            && !self.completed.get()
        {
            let outer = self.in_watermark.replace(true);
            match direction {
                Direction::Request => exchange.upstream_watermark(above),
                Direction::Response => exchange.downstream_watermark(above),
            }
            self.in_watermark.set(outer);
        }
    }

    /// Bytes are added outside of a data hook: a full buffer pauses the sender.
    pub(crate) fn add_streaming(&self, direction: Direction) {
        self.way(direction).streaming.set(true);
    }

    /// Sends bytes to the later filters at once.
    pub(crate) fn pass_on(self: &Rc<Self>, direction: Direction, data: &Rc<Buffer>) {
        self.data(direction, Some(self.ours), data, false);
    }

    pub(crate) fn set_buffer_limit(self: &Rc<Self>, bytes: u64) {
        self.buffer_limit.set(bytes);
        for direction in BOTH {
            self.check_watermark(direction);
            self.check_own_watermark(direction);
        }
    }

    // ---- local replies and the end ----------------------------------------------------------

    fn abort_running(&self) {
        // As Envoy does: the direction whose hook runs, the request first.
        for way in &self.ways {
            if way.running.get() != 0 {
                return way.aborted.set(true);
            }
        }
    }

    /// A complete reply of Envoy, of a neighbour or of the filter under test.
    pub(crate) fn send_local_reply(
        self: &Rc<Self>,
        status: u16,
        headers: &Fields,
        body: Bytes,
        details: &str,
    ) {
        if self.in_local_reply.get() {
            self.violation("a local reply from within the local-reply hook");
        }
        if self.destroyed.get() || self.ending.get() {
            return;
        }
        self.details.borrow_mut().push(details.to_owned());
        self.abort_running();
        self.in_local_reply.set(true);
        if let Some(exchange) = self.exchange() {
            exchange.local_reply();
        }
        self.in_local_reply.set(false);
        if self.destroyed.get() {
            return;
        }
        let reply = self.make_reply(status, headers.clone(), body);
        if self.way(Direction::Response).headers.borrow().is_none() {
            let request = self.way(Direction::Request);
            if request.running.get() != 0 {
                self.prepared.borrow_mut().get_or_insert(reply);
            } else {
                self.reply_through_chain(reply);
            }
        } else if !self.response_encoded.get() {
            *self.way(Direction::Response).headers.borrow_mut() = Some(reply.headers);
            self.encode_headers(reply.body.is_empty());
            if !reply.body.is_empty() && !self.destroyed.get() {
                self.encode_data(&Rc::new(Buffer::of(reply.body)), true);
            }
        } else {
            self.reset_stream();
        }
    }

    fn make_reply(&self, status: u16, added: Fields, body: Bytes) -> Reply {
        let has = |name: &str| added.iter().any(|(n, _)| n == name);
        let field = |name: &str, value: String| (name.to_owned(), Bytes::from(value));
        let mut headers = vec![field(":status", status.to_string())];
        let mut body = body;
        if self.is_grpc.get() {
            headers = vec![field(":status", "200".into())];
            headers.push(field("content-type", "application/grpc".into()));
            headers.extend(added.iter().filter(|(n, _)| n != "content-type").cloned());
            if !has("grpc-status") {
                headers.push(field("grpc-status", "2".into()));
            }
            if !body.is_empty() {
                headers.push(("grpc-message".into(), body));
            }
            body = Bytes::new();
        } else {
            headers.extend(added.iter().cloned());
            if !body.is_empty() {
                headers.push(field("content-length", body.len().to_string()));
                if !has("content-type") {
                    headers.push(field("content-type", "text/plain".into()));
                }
            }
        }
        if self.is_head.get() {
            body = Bytes::new();
        }
        Reply { headers, body }
    }

    fn send_prepared(self: &Rc<Self>) {
        let prepared = self.prepared.borrow_mut().take();
        if let Some(reply) = prepared {
            self.reply_through_chain(reply);
        }
    }

    fn reply_through_chain(self: &Rc<Self>, reply: Reply) {
        self.upstream_gone.set(true);
        *self.way(Direction::Response).headers.borrow_mut() = Some(reply.headers);
        self.headers(Direction::Response, None, reply.body.is_empty());
        if !reply.body.is_empty() && !self.destroyed.get() {
            let body = Rc::new(Buffer::of(reply.body));
            self.data(Direction::Response, None, &body, true);
        }
    }

    /// The filter under test replies, all at once.
    pub(crate) fn our_reply(self: &Rc<Self>, reply: &LocalReply<'_>) {
        self.replied.set(true);
        self.reply.set(ReplyState::Ended);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let headers = reply
            .headers
            .iter()
            .map(|(name, value)| (text(name), Bytes::copy_from_slice(value)))
            .collect();
        let body = Bytes::copy_from_slice(reply.body);
        self.send_local_reply(reply.status, &headers, body, reply.details);
    }

    /// The filter under test starts a streamed reply.
    pub(crate) fn our_reply_headers(self: &Rc<Self>, headers: Fields, end: bool) {
        self.replied.set(true);
        self.reply.set(if end { ReplyState::Ended } else { ReplyState::Started });
        if end {
            self.way(Direction::Request).aborted.set(true);
        }
        *self.way(Direction::Response).headers.borrow_mut() = Some(headers);
        self.headers(Direction::Response, None, end);
    }

    pub(crate) fn our_reply_data(self: &Rc<Self>, data: Bytes, end: bool) {
        if end {
            self.reply.set(ReplyState::Ended);
            self.way(Direction::Request).aborted.set(true);
        }
        self.data(Direction::Response, None, &Rc::new(Buffer::of(data)), end);
    }

    pub(crate) fn our_reply_trailers(self: &Rc<Self>, trailers: Fields) {
        self.reply.set(ReplyState::Ended);
        self.way(Direction::Request).aborted.set(true);
        *self.way(Direction::Response).trailers.borrow_mut() = Some(trailers);
        self.trailers(Direction::Response, None);
    }

    /// A reset by the filter under test cuts off what the codec still has.
    pub(crate) fn check_reset(&self) {
        if self.response_complete.get() {
            self.violation("reset of a stream whose response is complete, and perhaps on its way");
        }
    }

    pub(crate) fn reset_stream(self: &Rc<Self>) {
        self.ways.iter().for_each(|way| way.aborted.set(true));
        self.client.borrow_mut().reset = true;
        self.end_stream();
    }

    /// What the client has been told.
    pub(crate) fn bytes_received(&self) -> u64 {
        self.sent_by_client.get()
    }

    pub(crate) fn bytes_sent(&self) -> u64 {
        self.client.borrow().chunks.iter().map(|chunk| chunk.len() as u64).sum()
    }

    /// How long the stream took, once it is over.
    pub(crate) fn duration(&self) -> Option<Duration> {
        let started = self.started.get().filter(|_| self.completed.get())?;
        Some(started.elapsed())
    }

    pub(crate) fn client_status(&self) -> Option<u16> {
        self.client.borrow().status()
    }

    /// Envoy has the whole request.
    pub(crate) fn request_is_complete(&self) -> bool {
        self.way(Direction::Request).observed_end.get()
    }

    /// The stream is started again: to this one, that is its end, inside of the call.
    pub(crate) fn end_by_recreation(self: &Rc<Self>) {
        self.ways.iter().for_each(|way| way.aborted.set(true));
        self.ending.set(true);
        self.finish();
    }

    fn end_stream(self: &Rc<Self>) {
        self.ending.set(true);
        if !self.options.late_end {
            self.finish();
        }
    }

    fn finish(self: &Rc<Self>) {
        if self.completed.replace(true) {
            return;
        }
        if let Some(exchange) = self.exchange() {
            exchange.complete();
            self.destroyed.set(true);
            exchange.destroy();
        }
        self.drop_calls();
        self.destroyed.set(true);
        let exchange = self.exchange.borrow_mut().take();
        if let Some(exchange) = exchange {
            let shared = exchange.into_shared();
            let held = Rc::strong_count(&shared) > 1;
            let left = if held { Left::Held(Rc::downgrade(&shared)) } else { Left::Nothing };
            *self.exchange_left.borrow_mut() = left;
            Exchange::from(shared).retire();
        }
        self.is_destroyed();
        self.around.forget();
        let mut upstream = self.upstream.borrow_mut();
        if upstream.headers.is_some() && !(upstream.ended && self.response_complete.get()) {
            upstream.reset = !upstream.ended;
        }
    }
}

/// One stream, from the test's side: the client, the upstream, the event loop.
///
/// Events that can no longer happen (the stream has ended, the sender has been cut off) do nothing.
#[derive(Clone)]
pub struct Model(Rc<Stream>);

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model")
            .field("client", &self.0.client.borrow())
            .field("upstream", &self.0.upstream.borrow())
            .field("destroyed", &self.0.destroyed.get())
            .finish_non_exhaustive()
    }
}

impl Model {
    /// A stream on which nothing has happened yet.
    pub fn new(filter: &Loaded, options: Options) -> Self {
        let mut chain = Vec::new();
        chain.extend(options.before.map(Filter::Neighbour));
        let ours = chain.len();
        chain.push(Filter::UnderTest);
        chain.extend(options.after.map(Filter::Neighbour));
        chain.push(Filter::Router);
        let legs = || chain.iter().map(|_| Leg::default()).collect::<Vec<_>>();
        let (sender, receiver) = mpsc::channel();
        let around = Around::new(options.surroundings.clone());
        Model(Rc::new(Stream {
            legs: [legs(), legs()],
            chain,
            ours,
            ways: [Way::new(), Way::new()],
            buffer_limit: Cell::new(options.buffer_limit),
            options,
            exchange: RefCell::new(None),
            loaded: filter.clone(),
            client: RefCell::default(),
            upstream: RefCell::default(),
            started: Cell::new(None),
            sent_by_client: Cell::new(0),
            client_gone: Cell::new(false),
            upstream_gone: Cell::new(false),
            is_grpc: Cell::new(false),
            is_head: Cell::new(false),
            response_encoded: Cell::new(false),
            response_complete: Cell::new(false),
            upstream_answered: Cell::new(false),
            prepared: RefCell::new(None),
            in_local_reply: Cell::new(false),
            replied: Cell::new(false),
            reply: Cell::new(ReplyState::None),
            ending: Cell::new(false),
            completed: Cell::new(false),
            destroyed: Cell::new(false),
            looking: Cell::new(0),
            notifiers: Cell::new(0),
            posts: (sender, receiver),
            posted: Cell::new(0),
            woken: Arc::default(),
            violations: RefCell::default(),
            number: NUMBERS.replace(NUMBERS.get() + 1),
            exchange_left: RefCell::default(),
            next_hop_above: Default::default(),
            in_watermark: Cell::new(false),
            details: RefCell::default(),
            calls: Calls::default(),
            around,
        }))
    }

    /// What is around the messages, to look at and to change.
    pub fn surroundings<R>(&self, f: impl FnOnce(&mut Surroundings) -> R) -> R {
        f(&mut self.0.around.given.borrow_mut())
    }

    /// What the filter has done to the stream, beside its messages.
    pub fn done(&self) -> Done {
        self.0.around.done.borrow().clone()
    }

    pub(crate) fn around(&self) -> &Around {
        &self.0.around
    }

    /// The host side alone, to call by hand: no exchange hears of what happens. For tests of the
    /// model itself.
    pub fn host(&self) -> ModelHost {
        ModelHost::new(&self.0)
    }

    fn over(&self) -> bool {
        self.0.ending.get() || self.0.completed.get()
    }

    // ---- the client -------------------------------------------------------------------------

    /// The client sends its request's headers. The stream, and the exchange, start here.
    pub fn client_headers(&self, headers: Fields, end: bool) {
        let stream = &self.0;
        if self.over() || stream.way(Direction::Request).headers.borrow().is_some() {
            return;
        }
        stream.started.set(Some(Instant::now()));
        let value = |name: &str| headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
        stream
            .is_grpc
            .set(value("content-type").is_some_and(|v| v.starts_with(b"application/grpc")));
        stream.is_head.set(value(":method").is_some_and(|v| v == "HEAD"));
        let exchange = Exchange::new(&stream.loaded, self.host());
        *stream.exchange.borrow_mut() = Some(exchange);
        let way = stream.way(Direction::Request);
        *way.headers.borrow_mut() = Some(headers);
        way.observed_end.set(end);
        stream.headers(Direction::Request, None, end);
    }

    fn client_may_send(&self) -> bool {
        let way = self.0.way(Direction::Request);
        !self.over() && way.headers.borrow().is_some() && !way.observed_end.get()
    }

    /// The client sends a piece of its body.
    pub fn client_data(&self, data: impl Into<Bytes>, end: bool) {
        if self.client_may_send() {
            self.0.way(Direction::Request).observed_end.set(end);
            let data = data.into();
            self.0.sent_by_client.set(self.0.sent_by_client.get() + data.len() as u64);
            let data = Rc::new(Buffer::of(data));
            self.0.data(Direction::Request, None, &data, end);
        }
    }

    /// The client ends its request with trailers.
    pub fn client_trailers(&self, trailers: Fields) {
        if self.client_may_send() {
            let way = self.0.way(Direction::Request);
            way.observed_end.set(true);
            *way.trailers.borrow_mut() = Some(trailers);
            self.0.trailers(Direction::Request, None);
        }
    }

    /// The client leaves.
    pub fn client_reset(&self) {
        if !self.0.completed.get() && !self.0.client_gone.replace(true) {
            self.0.client.borrow_mut().reset = true;
            self.0.ending.set(true);
            self.0.finish();
        }
    }

    /// The client's connection is full, or takes more again. Calls are balanced by the test.
    pub fn client_watermark(&self, above: bool) {
        if !self.over() {
            self.0.tell_watermark(Direction::Response, above);
        }
    }

    /// The upstream's connection is full, or takes more again: Envoy pauses the client, and tells a
    /// compiled-in filter. Calls are balanced by the test.
    pub fn upstream_watermark(&self, above: bool) {
        if !self.over() {
            self.0.pause(Direction::Request, above);
        }
    }

    /// What the client has got.
    pub fn client(&self) -> Received {
        self.0.client.borrow().clone()
    }

    // ---- the upstream -----------------------------------------------------------------------

    fn upstream_may_send(&self) -> bool {
        let stream = &self.0;
        let reached = stream.upstream.borrow().headers.is_some();
        reached
            && !self.over()
            && !stream.upstream_gone.get()
            && !stream.way(Direction::Response).observed_end.get()
    }

    /// The upstream sends its response's headers.
    pub fn upstream_headers(&self, headers: Fields, end: bool) {
        if self.upstream_may_send() && !self.0.upstream_answered.get() {
            self.0.from_upstream(headers, end);
        }
    }

    /// The upstream sends a piece of its body.
    pub fn upstream_data(&self, data: impl Into<Bytes>, end: bool) {
        if self.upstream_may_send() && self.0.upstream_answered.get() {
            let data = Rc::new(Buffer::of(data.into()));
            self.0.data(Direction::Response, None, &data, end);
        }
    }

    /// The upstream ends its response with trailers.
    pub fn upstream_trailers(&self, trailers: Fields) {
        if self.upstream_may_send() && self.0.upstream_answered.get() {
            *self.0.way(Direction::Response).trailers.borrow_mut() = Some(trailers);
            self.0.trailers(Direction::Response, None);
        }
    }

    /// The upstream breaks off: Envoy replies with 503, or resets the stream if a response has come.
    pub fn upstream_reset(&self) {
        if !self.upstream_may_send() {
            return;
        }
        self.0.upstream_gone.set(true);
        if self.0.upstream_answered.get() {
            self.0.reset_stream();
        } else {
            self.0.send_local_reply(503, &Vec::new(), "upstream reset".into(), "upstream_reset");
        }
    }

    /// What the upstream has got.
    pub fn upstream(&self) -> Received {
        self.0.upstream.borrow().clone()
    }

    // ---- everything else --------------------------------------------------------------------

    /// Envoy itself answers: a timeout, an overload.
    pub fn local_reply(&self, status: u16, body: impl Into<Bytes>) {
        if !self.over() && self.0.way(Direction::Request).headers.borrow().is_some() {
            self.0.send_local_reply(status, &Vec::new(), body.into(), "elsewhere");
        }
    }

    /// From now on, the neighbour before (`true`) or after the filter holds what comes.
    pub fn hold(&self, before: bool, direction: Direction) {
        if let Some(place) = self.neighbour(before) {
            self.0.leg(direction, place).holding.set(true);
        }
    }

    /// The neighbour lets go what it holds.
    ///
    /// Not while an earlier filter holds a message whose headers it has let go: Envoy would send that
    /// filter's bytes, or the message's end, together with the neighbour's. No filter can help that,
    /// so the model does not go there, and returns false. (What a compiled-in filter holds is not in
    /// Envoy's buffer: there it is only about trailers, and an end that Envoy has on record.)
    pub fn release(&self, before: bool, direction: Direction) -> bool {
        let Some(place) = self.neighbour(before) else { return true };
        let leg = self.0.leg(direction, place);
        let legs = self.0.ways_on(direction).into_iter().take_while(|p| *p != place);
        let way = self.0.way(direction);
        let end_is_known = way.observed_end.get() || way.trailers.borrow().is_some();
        let holds_midway = |p: Place| {
            let leg = self.0.leg(direction, p);
            let in_envoy = p != self.0.ours || !self.0.is_compiled_in();
            leg.stopped.get() && leg.headers_continued.get() && (in_envoy || end_is_known)
        };
        if legs.into_iter().any(holds_midway) {
            return !leg.holding.get();
        }
        let was_holding = leg.holding.replace(false);
        if was_holding && leg.stopped.get() && !self.over() {
            self.0.continue_from(direction, place);
        }
        true
    }

    fn neighbour(&self, before: bool) -> Option<Place> {
        let place = if before { self.0.ours.checked_sub(1)? } else { self.0.ours + 1 };
        let changeable = matches!(self.0.chain[place], Filter::Neighbour(Neighbour::Passes));
        changeable.then_some(place)
    }

    /// Whether a wake was posted and not yet delivered.
    pub fn has_scheduled(&self) -> bool {
        let posts = &self.0.posted;
        posts.set(posts.get() + self.0.posts.1.try_iter().count());
        posts.get() > 0
    }

    /// Waits until a wake is posted, or an event of a call is due.
    pub async fn woken(&self) {
        while !self.has_scheduled() {
            let Some(due) = self.0.next_call_event() else {
                self.0.woken.notified().await;
                continue;
            };
            if tokio::time::timeout_at(due, self.0.woken.notified()).await.is_err() {
                return;
            }
        }
    }

    /// Delivers one event of a call to a cluster, if one is due.
    pub fn run_call(&self) -> bool {
        self.0.run_call()
    }

    /// How many calls to clusters are under way.
    pub fn open_calls(&self) -> usize {
        self.0.open_calls()
    }

    /// Delivers one wake, if one was posted.
    pub fn run_scheduled(&self) -> bool {
        let posted = self.has_scheduled();
        if posted {
            self.0.posted.set(self.0.posted.get() - 1);
        }
        if posted && let Some(exchange) = self.0.exchange() {
            exchange.scheduled();
        }
        posted
    }

    /// Ends the stream, if its end was due and [late](Options::late_end).
    pub fn flush(&self) {
        if self.0.ending.get() {
            self.0.finish();
        }
    }

    /// Whether a direction's sender has been asked to pause.
    pub fn paused(&self, direction: Direction) -> bool {
        self.0.way(direction).paused.get() > 0
    }

    /// How many bytes Envoy holds of a direction, the private buffer of a compiled-in host included.
    pub fn buffered(&self, direction: Direction) -> usize {
        let way = self.0.way(direction);
        way.own.buffer.len() + way.buffer.borrow().as_ref().map_or(0, |b| b.len())
    }

    /// Whether the last byte, or a reset, has gone to the client.
    pub fn is_over(&self) -> bool {
        self.over()
    }

    /// Whether the stream is gone.
    pub fn is_destroyed(&self) -> bool {
        self.0.destroyed.get()
    }

    /// Whether the exchange, and all that it owned, has been freed.
    pub fn is_freed(&self) -> bool {
        match &*self.0.exchange_left.borrow() {
            Left::Nothing => self.0.exchange.borrow().is_none(),
            Left::Held(exchange) => exchange.strong_count() == 0,
        }
    }

    /// Tells exchanges apart, while there is one: one that has ended may serve another stream of its
    /// thread, and is then the same.
    pub fn exchange_address(&self) -> Option<usize> {
        self.0.exchange().map(|exchange| Rc::as_ptr(&exchange.into_shared()).addr())
    }

    /// The response-code details of the local replies so far.
    pub fn reply_details(&self) -> Vec<String> {
        self.0.details.borrow().clone()
    }

    /// What Envoy would have punished.
    pub fn violations(&self) -> Vec<ModelViolation> {
        self.0.violations.borrow().clone()
    }

    /// The buffer limit, which the filter may have raised.
    pub fn buffer_limit(&self) -> u64 {
        self.0.buffer_limit.get()
    }
}
