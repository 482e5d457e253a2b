//! The engine: one [`Exchange`] per stream, driven by the host with the stream's events.
//!
//! An event goes through three steps. The *state* learns what happened. The *future* is polled, if
//! somebody has asked for it, with no borrow held. Then the *effects* are carried out: a reply or a
//! reset first, then what can move between hooks, then this hook's verdict. Effects come last
//! because each may run other hooks of the same stream before it returns, or end the stream.

mod any_time;
mod kept;
mod reply;

use std::cell::{Cell, OnceCell, RefCell, RefMut};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode, header};

use crate::body::{Body, Disposition, FrameStream, too_large};
use crate::cluster::Calls;
use crate::error::{Error, ErrorKind, Result};
use crate::facts::{Control, ResetReason};
use crate::filter::Outcome;
use crate::flow::{Flow, Hook, Input, Mode, Move, OUTPUT_LIMIT, Queue, Seen};
use crate::foreign::Foreign;
use crate::headers::{HeaderError, Headers};
use crate::hint::rarely;
use crate::host::{Area, DataVerdict, Direction, Host, LocalReply, Map, Verdict};
use crate::lazy::{Lazy, Rarely, Unused};
use crate::message::{CONTENT_LENGTH, Message, TrailersHook, not_its_own, pairs};
use crate::registry::{HandleFuture, Loaded, LoadedFilter, Start};
use crate::runtime::guarded;
use crate::span::Open;
use crate::stats::Count;
use crate::stream::{Deferrable, Deferred, refused};
use crate::wake::OwnWaker;
pub use crate::worker::ThisWorker;
use crate::worker::Worker;
use crate::{Request, Response, current};

/// The most bytes that are taken out of Envoy ahead of the filter to make room for output, when
/// Envoy's own limit is unlimited.
const DEFAULT_LIMIT: usize = 1 << 20;

/// The largest future, in bytes, that rests with an exchange that is kept.
const RESTING: usize = 1 << 10;

/// One exchange: a request, its response, and the filter between them.
///
/// The host makes one per stream, reports the stream's events in order, and ends with
/// [`complete`](Exchange::complete) and [`destroy`](Exchange::destroy).
#[derive(Clone, Debug)]
pub struct Exchange(Rc<Inner>);

/// What an [`Exchange`] is a reference to. A host that hands it through a foreign language as one
/// plain pointer gets it from [`Exchange::into_shared`].
///
/// What every event looks at comes first, as it is written here: it is then in few cache lines, and
/// near enough to the start for short instructions. What most exchanges never need is made when it is.
#[repr(C)]
pub struct Inner {
    /// The future, while it is not being polled. Also one that rests.
    task: Cell<Option<HandleFuture>>,
    /// There until the exchange has ended; see `exchange/kept.rs`.
    filter: Option<Arc<LoadedFilter>>,
    worker: Rc<Worker>,
    /// How many events are on the stack.
    depth: Cell<u32>,
    /// A poll of this exchange was asked for by an event.
    due: Cell<bool>,
    /// The future is being polled or dropped, further down the stack.
    busy: Cell<bool>,
    /// `handle` was started, and has not yet returned.
    handling: Cell<bool>,
    /// The future has done its work, and can do the same for another exchange of the filter's.
    resting: Cell<bool>,
    /// The host may be called.
    alive: Cell<bool>,
    /// The host emits at any time.
    any_time: bool,
    /// The filter has written the response's status.
    status_changed: Cell<bool>,
    /// The spans have been ended.
    pub(crate) spans_over: Cell<bool>,
    /// It may serve another stream after this one.
    may_be_kept: Cell<bool>,
    state: RefCell<State>,
    wake: OwnWaker,
    host: Box<dyn Host>,
    /// What has made the future, if that may rest.
    started_by: Cell<Option<Start>>,
    /// Made by the first call to a cluster.
    pub(crate) calls: OnceCell<Box<Calls>>,
    /// Made when somebody asks for them.
    pub(crate) spans: RefCell<Rarely<Open>>,
}

/// First what every event looks at, as in [`Inner`].
#[repr(C)]
struct State {
    /// `handle` or `handle_reply` was started.
    started: bool,
    /// `handle` was started: there is an exchange to complete.
    handled: bool,
    next: NextState,
    /// Somebody else has answered, and nothing of that has come by here.
    answered: bool,
    /// The filter (or the engine for it) has answered: what comes from elsewhere is not for us.
    replied: bool,
    outcome: Option<Outcome>,
    completed: bool,
    request: Side,
    response: Side,
    response_waiter: Waiter,
    rare: Lazy<Rare>,
}

/// What only some exchanges have.
#[derive(Default)]
struct Rare {
    /// Decided, not yet carried out.
    effect: Option<Box<Effect>>,
    /// To be done when no hook is running.
    deferred: Option<Rc<Deferred>>,
    /// A streamed reply of the filter's own.
    reply: Option<Box<ReplyStream>>,
    /// The body of a reply of the filter's own that is to come by as a response.
    reply_to_come: Option<Box<ReplyStream>>,
    invalid: Option<Box<HeaderError>>,
}

impl Unused for Rare {
    const UNUSED: &'static Self =
        &Rare { effect: None, deferred: None, reply: None, reply_to_come: None, invalid: None };
}

struct Side {
    flow: Flow,
    waiter: Waiter,
    rare: Lazy<RareOfSide>,
}

/// What only some messages have.
#[derive(Default)]
struct RareOfSide {
    pump: Option<FrameStream>,
    on_trailers: Option<TrailersHook>,
    /// Trailers that the pump made.
    out_trailers: Option<Box<HeaderMap>>,
}

impl Unused for RareOfSide {
    const UNUSED: &'static Self = &RareOfSide { pump: None, on_trailers: None, out_trailers: None };
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum NextState {
    NotCalled,
    Called,
}

enum Effect {
    Reply {
        status: StatusCode,
        headers: HeaderMap,
        body: Bytes,
        details: String,
    },
    StartReply {
        status: StatusCode,
        headers: HeaderMap,
        reply: Box<ReplyStream>,
    },
    /// As a response that comes by here, when the request has gone; see `exchange/reply.rs`.
    ReplyAsResponse {
        status: StatusCode,
        headers: HeaderMap,
        reply: Box<ReplyStream>,
    },
    Reset {
        reason: ResetReason,
        details: String,
    },
}

struct ReplyStream {
    body: FrameStream,
    trailers: Option<Box<HeaderMap>>,
    /// Ready to be sent.
    ready: Queue,
    ended: bool,
    /// How many bytes have been sent.
    sent: usize,
    /// The end of a long one waits for the request's.
    outlasts: bool,
}

/// Who waits for an event. The exchange's own waker is not cloned: it only means that a poll is due.
#[derive(Default)]
pub(crate) enum Waiter {
    #[default]
    Nobody,
    Exchange,
    Other(Foreign),
}

impl State {
    fn side(&mut self, direction: Direction) -> &mut Side {
        match direction {
            Direction::Request => &mut self.request,
            Direction::Response => &mut self.response,
        }
    }
    fn flow(&mut self, direction: Direction) -> &mut Flow {
        &mut self.side(direction).flow
    }
    /// The response that comes is the one that `handle` waits for, or will.
    fn is_awaited(&self) -> bool {
        let has_gone_on = self.next == NextState::Called || self.request.flow.mode == Mode::Pass;
        self.started && !self.completed && !self.replied && has_gone_on
    }
    /// The headers of the response are there.
    fn response_comes(&mut self, end: bool) {
        let flow = &mut self.response.flow;
        flow.hook = Some(Hook::Headers);
        flow.started = true;
        flow.ended |= end;
    }
    /// All that is rare has never been used.
    fn is_plain(&self) -> bool {
        self.rare.is_unused() && self.request.rare.is_unused() && self.response.rare.is_unused()
    }
    fn is_movable(&self) -> bool {
        self.request.flow.is_movable() || self.response.flow.is_movable()
    }
    /// There is nothing to be moved between hooks, and nothing rare to be looked at.
    fn is_settled(&self) -> bool {
        self.rare.is_unused() && !self.is_movable()
    }
    /// Nothing of the filter runs beside `handle`.
    fn is_quiet(&self) -> bool {
        self.request.rare.pump.is_none()
            && self.response.rare.pump.is_none()
            && self.rare.reply.is_none()
            && self.rare.reply_to_come.is_none()
    }
    /// Lets the headers of a hook go, where that is all there is to do, as in most.
    #[inline(always)]
    fn pass_headers(&mut self, direction: Direction) -> bool {
        let others_rest = !self.flow(direction.other()).is_movable();
        if self.completed || !self.rare.is_unused() || !others_rest {
            return false;
        }
        self.flow(direction).pass_headers()
    }
}

/// Whom a response is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// `handle`, which waits for it or will.
    Handles,
    /// `handle_reply`: it was made elsewhere, for a request that `handle` never let go.
    Elsewhere,
    /// It is the filter's own, or the filter is done: it passes.
    Nobodys,
}

const BOTH: [Direction; 2] = [Direction::Request, Direction::Response];

impl From<Rc<Inner>> for Exchange {
    fn from(shared: Rc<Inner>) -> Self {
        Exchange(shared)
    }
}

impl Exchange {
    /// For a host that hands it through a foreign language as one plain pointer: what it is a
    /// reference to. [`From`] makes an exchange of that again.
    pub fn into_shared(self) -> Rc<Inner> {
        self.0
    }

    /// Whether this is the last reference to it.
    pub fn is_last(&self) -> bool {
        Rc::strong_count(&self.0) == 1
    }

    pub(crate) fn inner(&self) -> &Rc<Inner> {
        &self.0
    }

    /// Headers have arrived.
    #[inline]
    pub fn headers(&self, direction: Direction, end_stream: bool) -> Verdict {
        match direction {
            Direction::Request => self.0.on_request_headers(end_stream),
            Direction::Response => self.0.on_response_headers(end_stream),
        }
    }

    /// A frame of body has arrived; `end_stream` also when it is empty.
    #[inline]
    pub fn data(&self, direction: Direction, end_stream: bool) -> DataVerdict {
        if self.0.data_passes(direction, end_stream) {
            return DataVerdict::Continue;
        }
        self.0.on_data(direction, end_stream)
    }

    /// Trailers have arrived.
    pub fn trailers(&self, direction: Direction) -> Verdict {
        self.0.on_trailers(direction)
    }

    /// The worker runs what [`Notify::notify`](crate::host::Notify::notify) asked for.
    pub fn scheduled(&self) {
        self.0.count(Count::Woken);
        self.0.on_scheduled();
    }

    /// Somebody (Envoy, another filter, this one) sends a local reply.
    #[inline]
    pub fn local_reply(&self) {
        if !self.0.local_reply_passes() {
            self.0.on_local_reply();
        }
    }

    /// The next hop of the response (later filters, the client's connection) is full, or one of the
    /// reasons for that is gone. Calls are balanced: it is full while there were more with `above`
    /// than without.
    ///
    /// Envoy tells this for every buffer on the response's way, private ones included. A host that has
    /// one leaves out what it has caused itself, and what filters of its own kind have caused that
    /// are nearer to the upstream: their buffers drain through this one.
    pub fn downstream_watermark(&self, above: bool) {
        self.0.on_watermark(Direction::Response, above);
    }

    /// The next hop of the request (later filters, the upstream's connection) is full, or one of the
    /// reasons for that is gone. Balanced, and with the same reasons left out, as
    /// [`downstream_watermark`](Exchange::downstream_watermark). A host that does not learn of it
    /// does not call this.
    pub fn upstream_watermark(&self, above: bool) {
        self.0.on_watermark(Direction::Request, above);
    }

    /// The stream has ended; the host may still be called. The future is dropped here, and
    /// `on_complete` runs.
    pub fn complete(&self) {
        self.0.complete();
    }

    /// The stream goes. From now on the host is not called.
    pub fn destroy(&self) {
        self.0.alive.set(false);
        self.0.wake.kill();
        if !self.0.state.borrow_mut().completed {
            rarely();
            self.0.complete_at_last();
        }
        // Also if the filter is on the stack, and its end has to wait for that.
        self.0.end_spans();
    }
}

impl Exchange {
    /// The runtime itself has failed in an event of this exchange: nothing of it can be trusted, so
    /// the stream is reset.
    pub fn abort(&self) {
        let inner = &self.0;
        inner.may_be_kept.set(false);
        if let Ok(mut state) = inner.state.try_borrow_mut() {
            state.request.flow.mode = Mode::Discard;
            state.response.flow.mode = Mode::Discard;
            state.replied = true;
            state.outcome = Some(Outcome::Panicked);
        }
        inner.read(|host| host.reset("attache.runtime.panic"));
    }
}

impl Inner {
    /// Only while the exchange is somebody's.
    #[inline]
    pub(crate) fn filter(&self) -> &LoadedFilter {
        self.filter_handle()
    }

    pub(crate) fn worker(&self) -> &Worker {
        &self.worker
    }

    #[inline]
    fn count(&self, what: Count) {
        self.filter().meta.stats.count(self.worker.number, what);
    }

    pub(crate) fn filter_handle(&self) -> &Arc<LoadedFilter> {
        self.filter.as_ref().expect("an exchange has its filter until nobody holds it")
    }

    /// The stream has ended, or is about to: nothing new may be started.
    pub(crate) fn is_over(&self) -> bool {
        !self.alive.get() || self.state.borrow().completed
    }

    /// Something has happened that somebody waits for, in an event of its own.
    pub(crate) fn wake_for(self: &Rc<Self>, waiter: Waiter) {
        if matches!(waiter, Waiter::Nobody) {
            return;
        }
        self.begin();
        self.wake_waiter(waiter);
        self.poll_and_settle();
        self.end();
    }

    /// Calls the host, if the stream is still there.
    pub(crate) fn read<R>(&self, f: impl FnOnce(&dyn Host) -> R) -> Option<R> {
        self.alive.get().then(|| f(&*self.host))
    }

    /// The filter has written a pseudo header of the response: its status.
    pub(crate) fn status_changed(&self) {
        self.status_changed.set(true);
    }

    #[cold]
    pub(crate) fn poison(&self, error: HeaderError) {
        self.state.borrow_mut().rare.invalid.get_or_insert_with(|| Box::new(error));
    }

    fn take_invalid(&self) -> Result<()> {
        match self.state.borrow_mut().rare.used().and_then(|rare| rare.invalid.take()) {
            Some(error) => Err(invalid(*error)),
            None => Ok(()),
        }
    }

    // ---- events -----------------------------------------------------------------------------

    fn on_request_headers(self: &Rc<Self>, end: bool) -> Verdict {
        self.begin();
        let first = {
            let state = &mut *self.state.borrow_mut();
            let flow = &mut state.request.flow;
            flow.hook = Some(Hook::Headers);
            flow.started = true;
            flow.ended |= end;
            let first = !state.started;
            state.started = true;
            state.handled |= first;
            first
        };
        if first {
            self.handling.set(true);
            self.due.set(true);
            self.worker.enter_runtime();
            self.count(Count::Started);
            let start = self.filter().start;
            let rests = self.resting.take()
                && self.started_by.get().is_some_and(|by| std::ptr::fn_addr_eq(by, start));
            if !rests {
                rarely();
                self.make_task(start);
            }
        }
        let polled = self.poll_if_due();
        self.end_headers(Direction::Request, end, polled)
    }

    fn on_response_headers(self: &Rc<Self>, end: bool) -> Verdict {
        let waiter = {
            let mut state = self.state.borrow_mut();
            if !state.is_awaited() {
                rarely();
                drop(state);
                return self.on_other_response_headers(end);
            }
            state.response_comes(end);
            std::mem::take(&mut state.response_waiter)
        };
        self.begin();
        self.wake_waiter(waiter);
        let polled = self.poll_if_due();
        self.end_headers(Direction::Response, end, polled)
    }

    /// Those of a response that `handle` does not wait for.
    #[inline(never)]
    fn on_other_response_headers(self: &Rc<Self>, end: bool) -> Verdict {
        let whose = self.whose_response();
        if whose == Whose::Nobodys {
            return Verdict::Continue;
        }
        self.begin();
        let waiter = {
            let state = &mut *self.state.borrow_mut();
            state.response_comes(end);
            if whose == Whose::Handles {
                std::mem::take(&mut state.response_waiter)
            } else {
                self.start_reply(state);
                Waiter::Nobody
            }
        };
        self.wake_waiter(waiter);
        let polled = self.poll_if_due();
        self.end_other_headers(Direction::Response, end, polled)
    }

    #[cold]
    fn start_reply(self: &Rc<Self>, state: &mut State) {
        state.response.flow.mode = Mode::Hold;
        // Whoever has answered, nothing of the request is to go on.
        state.request.flow.mode = Mode::Discard;
        state.started = true;
        state.replied = false;
        self.count(Count::HandledReply);
        self.due.set(true);
        self.worker.enter_runtime();
        self.resting.set(false);
        self.set_task((self.filter().start_reply)(self.clone()));
    }

    /// The end of a headers hook, after its poll.
    #[inline(always)]
    fn end_headers(self: &Rc<Self>, direction: Direction, end: bool, polled: bool) -> Verdict {
        let mut state = self.state.borrow_mut();
        if self.alive.get() && state.pass_headers(direction) {
            drop(state);
            self.end_inline();
            return Verdict::Continue;
        }
        rarely();
        drop(state);
        self.end_other_headers(direction, end, polled)
    }

    /// The end of a headers hook that has more to do than to let the headers go.
    #[inline(never)]
    fn end_other_headers(
        self: &Rc<Self>,
        direction: Direction,
        end: bool,
        polled: bool,
    ) -> Verdict {
        self.settle_after(polled);
        if self.any_time && end {
            self.prepare_end(direction, Hook::Headers);
        }
        let step = self.state.borrow_mut().flow(direction).on_headers();
        if step.emit {
            self.append_output(direction, Area::Buffer);
        }
        if self.end_hook(direction) { step.verdict } else { Verdict::Stop }
    }

    /// Whether a direction may still go on: what was moved may have ended the stream, or brought an
    /// event that the filter has answered with a reply.
    fn is_wanted(&self, direction: Direction) -> bool {
        self.alive.get() && self.state.borrow_mut().flow(direction).mode != Mode::Discard
    }

    /// Whose a response is whose headers arrive.
    fn whose_response(self: &Rc<Self>) -> Whose {
        let mut state = self.state.borrow_mut();
        if state.is_awaited() {
            return Whose::Handles;
        }
        if state.started && !state.completed && !state.replied {
            drop(state);
            if self.busy.get() {
                return Whose::Handles;
            }
            self.cancel();
            return Whose::Elsewhere;
        }
        if state.completed {
            state.response.flow.mode = Mode::Pass;
            return Whose::Nobodys;
        }
        if !state.started {
            return Whose::Elsewhere;
        }
        let held = state.next == NextState::NotCalled && !state.response.flow.started;
        if state.answered && held {
            return Whose::Elsewhere;
        }
        state.response.flow.mode = Mode::Pass;
        let reply = state.rare.used().and_then(|rare| rare.reply_to_come.take());
        let Some(reply) = reply else { return Whose::Nobodys };
        drop(state);
        let passes = self.reply_comes(reply);
        if passes { Whose::Nobodys } else { Whose::Handles }
    }

    #[cold]
    fn cancel(self: &Rc<Self>) {
        self.drop_futures();
        let mut state = self.state.borrow_mut();
        state.outcome.get_or_insert(Outcome::Cancelled);
        // What the filter was to change does not go on without the change.
        if state.request.flow.mode != Mode::Pass {
            state.request.flow.mode = Mode::Discard;
        }
        let left_behind = state.response.flow.started;
        state.response.flow.mode = if left_behind { Mode::Discard } else { Mode::Pass };
        state.replied = true;
    }

    /// Whether the filter is out of the data path: there is nothing to look at, and nothing to wake.
    /// It may be asked before [`Exchange::data`], which does.
    #[inline]
    pub fn data_passes(&self, direction: Direction, end: bool) -> bool {
        let Ok(mut state) = self.state.try_borrow_mut() else { return false };
        let flow = state.flow(direction);
        let passes = flow.mode == Mode::Pass && !flow.stopped;
        flow.ended |= passes && end;
        passes
    }

    /// Whether a local reply that somebody sends is nothing to the filter. It may be asked before
    /// [`Exchange::local_reply`], which does.
    #[inline]
    pub fn local_reply_passes(&self) -> bool {
        // As a rule: it comes by as the response that `handle` waits for.
        let Ok(mut state) = self.state.try_borrow_mut() else { return false };
        let passes = state.started
            && !state.replied
            && state.next == NextState::Called
            && !state.response.flow.started;
        state.answered |= passes;
        passes
    }

    fn on_data(self: &Rc<Self>, direction: Direction, end: bool) -> DataVerdict {
        self.in_hook(direction, Hook::Data, |state| {
            let side = state.side(direction);
            side.flow.ended |= end;
            if end {
                self.go_on_pumping(side);
            }
            std::mem::take(&mut side.waiter)
        });
        if self.any_time {
            return self.on_data_any_time(direction, end);
        }
        if end && let Err(error) = self.check_new_trailers(direction) {
            self.fail(error);
            self.settle();
        }
        if !self.alive.get() {
            self.end_hook(direction);
            return DataVerdict::StopNoBuffer;
        }
        let host = &*self.host;
        let (pump, stopped) = {
            let mut state = self.state.borrow_mut();
            let flow = state.flow(direction);
            (flow.mode == Mode::Pump, flow.mode != Mode::Hold && flow.stopped)
        };
        let seen = Seen {
            frame: host.body_len(direction, Area::Frame),
            frame_is_buffer: host.frame_is_buffer(direction),
            buffer: host.body_len(direction, Area::Buffer),
            limit: if pump { self.limit() } else { 0 },
            trailers_follow: stopped && self.trailers_exist(direction),
        };
        let step = self.state.borrow_mut().flow(direction).on_data(seen);
        self.deal_with_input(direction, step.input);
        if step.emit {
            self.append_output(direction, Area::Frame);
        }
        if end && step.verdict != DataVerdict::Continue {
            self.keep_end(direction);
        }
        if self.end_hook(direction) { step.verdict } else { DataVerdict::StopNoBuffer }
    }

    fn on_trailers(self: &Rc<Self>, direction: Direction) -> Verdict {
        self.in_hook(direction, Hook::Trailers, |state| {
            let side = state.side(direction);
            side.flow.ended = true;
            side.flow.trailers = true;
            self.go_on_pumping(side);
            std::mem::take(&mut side.waiter)
        });
        if !self.alive.get() {
            self.end_hook(direction);
            return Verdict::Stop;
        }
        let step = if self.any_time {
            let overtakes = self.around(direction).overtakes;
            self.state.borrow_mut().flow(direction).trailers_any_time(overtakes)
        } else {
            self.state.borrow_mut().flow(direction).on_trailers()
        };
        if step.verdict == Verdict::Continue && !self.finish_trailers(direction) {
            self.settle();
            self.end_hook(direction);
            return Verdict::Stop;
        }
        if step.emit {
            let left_over = self.state.borrow_mut().flow(direction).left_over();
            self.deal_with_input(direction, left_over);
            self.append_output(direction, Area::Buffer);
        }
        if step.again {
            self.wake.wake();
        }
        if self.end_hook(direction) { step.verdict } else { Verdict::Stop }
    }

    fn on_local_reply(self: &Rc<Self>) {
        let mut state = self.state.borrow_mut();
        let here = state.response.flow.started;
        let ours_streams = here && state.response.flow.mode == Mode::Pump;
        if (state.replied && !ours_streams) || !state.started {
            return;
        }
        if here && self.any_time {
            // The client gets all of the other one, whatever is still injected.
            state.response.flow.finished = true;
        }
        if !here {
            // It comes as a response, if it comes by here at all. Either way, it comes first.
            state.answered = true;
        }
        // A response that has come by here is left behind.
        let for_us = state.next == NextState::Called && !here;
        drop(state);
        if !for_us && !self.busy.get() {
            self.cancel();
        }
    }

    fn on_watermark(&self, direction: Direction, above: bool) {
        let mut state = self.state.borrow_mut();
        let side = state.side(direction);
        let flow = &mut side.flow;
        flow.full = if above { flow.full + 1 } else { flow.full.saturating_sub(1) };
        let goes_on = !above && flow.full == 0;
        let pumps = self.any_time && side.rare.pump.is_some();
        let waited = pumps || (direction == Direction::Response && state.rare.reply.is_some());
        drop(state);
        if goes_on && waited {
            // Envoy may be in the middle of sending what made room: our turn comes later.
            self.begin();
            self.wake.wake();
            self.end();
        }
    }

    /// The end has come and is not let go. Later filters, once the headers have reached them, must
    /// not let it go either.
    fn keep_end(&self, direction: Direction) {
        let mut state = self.state.borrow_mut();
        let flow = state.flow(direction);
        if !flow.released {
            return;
        }
        flow.end_kept = true;
        drop(state);
        self.read(|host| host.keep_end(direction, true));
    }

    /// A pump that was held back because its output could not leave waits for nobody. At the end
    /// all of it is wanted, to go together.
    fn go_on_pumping(&self, side: &Side) {
        if side.rare.pump.is_some() && side.flow.wants_output() {
            self.due.set(true);
        }
    }

    /// Runs everything of a hook but its verdict.
    fn in_hook(
        self: &Rc<Self>,
        direction: Direction,
        hook: Hook,
        f: impl FnOnce(&mut State) -> Waiter,
    ) {
        self.begin();
        let waiter = {
            let mut state = self.state.borrow_mut();
            state.flow(direction).hook = Some(hook);
            f(&mut state)
        };
        self.wake_waiter(waiter);
        self.poll_and_settle();
    }

    /// The verdict is there, but Envoy has not got it yet: the hook counts as over.
    ///
    /// Returns whether the direction may still go on: what was moved may have ended the stream, or
    /// brought an event that the filter has answered with a reply.
    fn end_hook(&self, direction: Direction) -> bool {
        let mut state = self.state.borrow_mut();
        let flow = state.flow(direction);
        flow.hook = None;
        let wanted = flow.mode != Mode::Discard;
        drop(state);
        if self.any_time {
            self.wake_to_move();
        }
        self.end();
        wanted && self.alive.get()
    }

    /// An event that is not a hook of a direction.
    fn on_scheduled(self: &Rc<Self>) {
        self.begin();
        if self.state.borrow().rare.deferred.is_some() {
            self.do_deferred();
            self.due.set(true);
        }
        if self.alive.get() {
            self.poll_and_settle();
        }
        self.end();
    }

    #[inline]
    fn begin(&self) {
        let depth = self.depth.get();
        self.depth.set(depth + 1);
        let woken = if depth == 0 { self.wake.enter() } else { self.wake.take_wake() };
        if woken {
            self.due.set(true);
        }
    }

    fn end(&self) {
        self.end_inline();
    }

    /// As `end`, for where every exchange comes by.
    #[inline(always)]
    fn end_inline(&self) {
        let depth = self.depth.get() - 1;
        self.depth.set(depth);
        if depth == 0 {
            self.wake.leave(self.alive.get(), || &*self.host);
        }
    }

    #[inline(never)]
    fn poll_and_settle(self: &Rc<Self>) {
        let polled = self.poll_if_due();
        self.settle_after(polled);
    }

    #[inline(always)]
    fn poll_if_due(self: &Rc<Self>) -> bool {
        let due = self.due.take();
        if self.busy.get() {
            rarely();
            // Further down the stack, a poll is running: it will see what has happened.
            if due {
                self.wake.wake();
            }
            return false;
        }
        if due {
            self.poll();
        }
        due
    }

    fn settle_after(self: &Rc<Self>, polled: bool) {
        if self.busy.get() {
            return;
        }
        let state = self.state.borrow();
        let over = state.completed || !self.alive.get();
        let settled = state.is_settled();
        drop(state);
        if over || !settled {
            self.settle_unusual(polled);
        }
    }

    #[inline(never)]
    fn settle_unusual(self: &Rc<Self>, polled: bool) {
        if polled {
            let state = self.state.borrow();
            // The stream ended while the filter was running.
            if state.completed || !self.alive.get() {
                drop(state);
                self.finish();
            } else if state.rare.deferred.is_some() {
                // What woke this poll may have been the post that it waits for.
                self.wake.wake();
            }
        }
        if !self.resume_whole_request() {
            self.settle();
        }
    }

    /// Does what there is to do when a filter has waited with a request that had no body, or had come
    /// in full, and nothing but its headers was touched. False if it is not that.
    fn resume_whole_request(&self) -> bool {
        let mut state = self.state.borrow_mut();
        let only = state.rare.is_unused() && !state.response.flow.is_movable() && !self.any_time;
        let flow = &mut state.request.flow;
        let whole = flow.mode == Mode::Pass && flow.ended && !flow.trailers && !flow.end_kept;
        if !(only && whole && flow.is_movable() && flow.is_empty() && self.alive.get()) {
            return false;
        }
        let step = flow.between_hooks(0);
        drop(state);
        if step == (Move::Resume { input: Input::Leave }) {
            self.host.resume(Direction::Request);
        }
        true
    }

    /// No borrow may be held: a waker of somebody else's may do anything.
    #[inline]
    fn wake_waiter(self: &Rc<Self>, waiter: Waiter) {
        match waiter {
            Waiter::Exchange => self.due.set(true),
            Waiter::Nobody => (),
            Waiter::Other(waker) => {
                rarely();
                self.wake_other(waker);
            }
        }
    }

    #[inline(never)]
    fn wake_other(self: &Rc<Self>, waker: Foreign) {
        let woken = current::within(self, || waker.wake());
        // If that was, in the end, our own waker, the poll need not wait for a post. If it failed,
        // nobody else asks for the poll.
        if self.wake.take_wake() || !woken {
            self.due.set(true);
        }
    }

    pub(crate) fn waiter(&self, cx: &Context<'_>) -> Waiter {
        if cx.waker().will_wake(self.wake.waker()) {
            Waiter::Exchange
        } else {
            Waiter::Other(Foreign::new(cx.waker()))
        }
    }

    // ---- polling ----------------------------------------------------------------------------

    #[inline(always)]
    fn poll(self: &Rc<Self>) {
        current::within(self, || {
            let meta = &self.filter().meta;
            let started = meta.clock.start();
            self.busy.set(true);
            let polled = guarded(|| self.poll_all());
            self.busy.set(false);
            if !matches!(polled, Ok(None)) {
                rarely();
                self.has_failed(polled);
            }
            if let Some(took) = meta.clock.worth_telling(started) {
                self.has_taken(took);
            }
        });
    }

    #[inline(never)]
    fn has_failed(self: &Rc<Self>, polled: Result<Option<Error>, String>) {
        match polled {
            Ok(None) => (),
            Ok(Some(error)) => self.fail(error),
            Err(message) => {
                self.handle_is_over();
                self.fail(Error::panicked(message));
            }
        }
    }

    #[inline(never)]
    fn make_task(&self, start: Start) {
        let task = start(self.worker.clone());
        self.started_by.set((size_of_val(&*task) <= RESTING).then_some(start));
        self.set_task(task);
    }

    /// As a rule, there is no other.
    #[inline]
    fn set_task(&self, task: HandleFuture) {
        if let Some(before) = self.task.replace(Some(task)) {
            rarely();
            drop(before);
        }
    }

    /// `handle` has returned, and the future that has run it may run it again. Gives back what is
    /// still to be looked at; then it may not.
    #[inline(always)]
    pub(crate) fn rest_after(
        self: &Rc<Self>,
        returned: Result<Response>,
    ) -> Option<Result<Response>> {
        match returned {
            Ok(response) if self.goes_on_as_it_came(&response) => {
                response.let_go();
                self.resting.set(true);
                self.handle_is_over();
                None
            }
            returned => {
                rarely();
                Some(returned)
            }
        }
    }

    /// `handle` has returned, or was dropped.
    #[inline]
    fn handle_is_over(&self) {
        if self.handling.take() {
            self.count(Count::Handled);
        }
    }

    #[cold]
    fn has_taken(&self, took: Duration) {
        let meta = &self.filter().meta;
        if let Some(poll_time) = &meta.poll_time {
            poll_time.record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        }
        if took <= meta.clock.budget() {
            return;
        }
        meta.slow_polls.inc();
        tracing::warn!(
            took_ms = took.as_micros() as f64 / 1e3,
            budget_ms = meta.clock.budget().as_secs_f64() * 1e3,
            "the filter blocked the worker; use an async client, or attache::spawn_blocking"
        );
    }

    fn poll_all(self: &Rc<Self>) -> Option<Error> {
        let mut cx = Context::from_waker(self.wake.waker());
        if !self.resting.get()
            && let Some(mut task) = self.task.take()
        {
            match task.as_mut().poll(&mut cx) {
                Poll::Pending => self.set_task(task),
                Poll::Ready(result) => {
                    rarely();
                    // The future goes before its response is looked at: what it held is free.
                    drop(task);
                    if let Err(error) = self.has_returned(result) {
                        return Some(error);
                    }
                }
            }
        }
        if self.state.borrow_mut().is_plain() {
            return None;
        }
        rarely();
        self.poll_beside(&mut cx)
    }

    /// The future has ended.
    #[inline(never)]
    fn has_returned(self: &Rc<Self>, result: Result<Response>) -> Result<()> {
        let released = result.and_then(|response| {
            if self.goes_on_as_it_came(&response) {
                return Ok(());
            }
            self.release_changed_response(response)
        });
        match self.task.take() {
            // It is not over: what it answered is being gathered.
            Some(next) => self.set_task(next),
            None => self.handle_is_over(),
        }
        released
    }

    /// What of the filter runs beside `handle`.
    #[inline(never)]
    fn poll_beside(self: &Rc<Self>, cx: &mut Context<'_>) -> Option<Error> {
        if self.state.borrow().is_quiet() {
            return None;
        }
        for direction in BOTH {
            if let Err(error) = self.poll_pump(direction, cx) {
                return Some(error);
            }
        }
        self.poll_reply(cx).err()
    }

    fn poll_pump(&self, direction: Direction, cx: &mut Context<'_>) -> Result<()> {
        loop {
            let mut state = self.state.borrow_mut();
            let side = state.side(direction);
            if !side.flow.wants_output() || (self.any_time && side.flow.full > 0) {
                return Ok(());
            }
            let pump = side.rare.used().and_then(|rare| rare.pump.take());
            let Some(mut pump) = pump else { return Ok(()) };
            drop(state);
            let item = pump.as_mut().poll_next(cx);
            let mut state = self.state.borrow_mut();
            let side = state.side(direction);
            match item {
                Poll::Pending => {
                    side.rare.pump = Some(pump);
                    return Ok(());
                }
                Poll::Ready(Some(Ok(frame))) => {
                    side.rare.pump = Some(pump);
                    match frame.into_data() {
                        Ok(data) => side.flow.out.push(data),
                        Err(frame) => {
                            side.rare.out_trailers = frame.into_trailers().ok().map(Box::new)
                        }
                    }
                    let limit = self.filter().meta.options.gather_limit_bytes;
                    if side.flow.ended && !self.any_time && side.flow.out.len() > limit {
                        return Err(Error::make(
                            ErrorKind::BodyTooLarge,
                            StatusCode::INTERNAL_SERVER_ERROR,
                            format!(
                                "more than {limit} bytes were written after the message had ended; \
                                 this Envoy host sends those together, so they are limited by \
                                 `attache.gather_limit_bytes`"
                            ),
                        ));
                    }
                }
                Poll::Ready(done) => {
                    side.flow.out_done = true;
                    drop(state);
                    // May drop the reader of the input.
                    drop(pump);
                    if let Some(Err(error)) = done {
                        return Err(error);
                    }
                    return self.check_new_trailers(direction);
                }
            }
        }
    }

    /// Trailers that the pump made need a map to go to.
    fn check_new_trailers(&self, direction: Direction) -> Result<()> {
        let mut state = self.state.borrow_mut();
        let side = state.side(direction);
        let possible = side.flow.trailers
            || side.flow.added
            || !side.flow.ended
            // The hook that brings the end decides.
            || (self.any_time && side.flow.hook.is_some());
        if possible {
            return Ok(());
        }
        // They are refused once.
        match side.rare.used().and_then(|rare| rare.out_trailers.take()) {
            Some(trailers) if !trailers.is_empty() => Err(no_new_trailers()),
            _ => Ok(()),
        }
    }

    fn poll_reply(&self, cx: &mut Context<'_>) -> Result<()> {
        let mut state = self.state.borrow_mut();
        let full = state.response.flow.full > 0;
        let Some(rare) = state.rare.used() else { return Ok(()) };
        let polled = |reply: &mut Box<ReplyStream>| {
            !full && !reply.ended && reply.ready.len() < OUTPUT_LIMIT
        };
        let Some(mut reply) = rare.reply.take_if(polled) else { return Ok(()) };
        drop(state);
        let result = loop {
            match reply.body.as_mut().poll_next(cx) {
                Poll::Pending => break Ok(()),
                Poll::Ready(None) => {
                    reply.ended = true;
                    break Ok(());
                }
                Poll::Ready(Some(Err(error))) => break Err(error),
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => {
                        reply.ready.push(data);
                        if reply.ready.len() >= OUTPUT_LIMIT {
                            break Ok(());
                        }
                    }
                    Err(frame) => reply.trailers = frame.into_trailers().ok().map(Box::new),
                },
            }
        };
        self.state.borrow_mut().rare.reply = Some(reply);
        result
    }

    // ---- what the filter asks for -----------------------------------------------------------

    /// `next.run`: the request goes on.
    #[inline(always)]
    pub(crate) fn release_request(self: &Rc<Self>, req: Request) -> Result<()> {
        let Request { message } = req;
        let mut state = self.state.borrow_mut();
        if self.alive.get() && state.goes_on_as_it_is(self, Direction::Request, &message) {
            state.next = NextState::Called;
            drop(state);
            message.let_go();
            return Ok(());
        }
        rarely();
        drop(state);
        self.release_changed_request(message)
    }

    /// Waits for the headers of the response.
    #[inline(always)]
    pub(crate) fn poll_response(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.borrow_mut();
        if state.response.flow.started {
            return Poll::Ready(());
        }
        let other = matches!(state.response_waiter, Waiter::Other(_));
        if !other && cx.waker().will_wake(self.wake.waker()) {
            state.response_waiter = Waiter::Exchange;
            return Poll::Pending;
        }
        rarely();
        let before = std::mem::replace(&mut state.response_waiter, self.waiter(cx));
        drop(state);
        drop(before);
        Poll::Pending
    }

    /// `handle` has returned the response that it got: it goes on. False if it is another, or changed
    /// in more than its headers.
    #[inline]
    fn goes_on_as_it_came(self: &Rc<Self>, response: &Response) -> bool {
        if self.status_changed.get() {
            return false;
        }
        let mut state = self.state.borrow_mut();
        let goes_on = state.goes_on_as_it_is(self, Direction::Response, &response.message);
        if goes_on {
            // A `handle` that was cut short is not mended by what became of the reply.
            state.outcome.get_or_insert(Outcome::Responded);
        }
        goes_on
    }

    #[inline(never)]
    fn release_changed_request(self: &Rc<Self>, message: Message) -> Result<()> {
        if !message.headers.is_live(self, Map::RequestHeaders) {
            return Err(not_its_own());
        }
        self.take_invalid()?;
        if !self.alive.get() {
            return Err(Error::gone());
        }
        self.state.borrow_mut().next = NextState::Called;
        self.release(Direction::Request, message, false);
        Ok(())
    }

    /// Sets a direction going with the body that the message now has.
    fn release(self: &Rc<Self>, direction: Direction, message: Message, bodyless: bool) {
        let Message { body, on_trailers, headers } = message;
        drop(headers);
        let mut state = self.state.borrow_mut();
        let side = state.side(direction);
        // What had to be taken out of Envoy goes on through us; all else that nobody has touched does
        // not concern us any more.
        if !bodyless && body.is_live_of(self, direction) && side.flow.pending.is_empty() {
            if on_trailers.is_some() {
                side.rare.on_trailers = on_trailers;
            }
            side.flow.mode = Mode::Pass;
            let taken = side.flow.taken;
            drop(state);
            drop(body);
            if taken {
                self.set_content_length(direction, None);
            }
            return;
        }
        drop(state);
        self.release_changed(direction, body, on_trailers, bodyless);
    }

    fn release_changed(
        self: &Rc<Self>,
        direction: Direction,
        body: Body,
        on_trailers: Option<TrailersHook>,
        bodyless: bool,
    ) {
        let disposition = if self.state.borrow_mut().flow(direction).pending.is_empty() {
            body.disposition(self, direction)
        } else {
            Disposition::Stream(body.into_frames())
        };
        let mut state = self.state.borrow_mut();
        let side = state.side(direction);
        if on_trailers.is_some() {
            side.rare.on_trailers = on_trailers;
        }
        let length = match disposition {
            Disposition::Full(bytes) if !bodyless => {
                let length = bytes.len();
                side.flow.mode = Mode::Pump;
                side.flow.out.push(bytes);
                side.flow.out_done = true;
                // In HTTP/1.1 a length leaves no place for trailers.
                let trailers =
                    side.flow.trailers || (!side.flow.ended && !self.declares_length(direction));
                (!trailers).then_some(length)
            }
            Disposition::Stream(pump) if !bodyless => {
                side.flow.mode = Mode::Pump;
                side.flow.keeps_going = self.any_time && direction == Direction::Request;
                side.rare.pump = Some(pump);
                None
            }
            rest => {
                side.flow.mode = Mode::Pump;
                side.flow.out_done = true;
                drop(state);
                drop(rest);
                self.set_content_length(direction, None);
                return;
            }
        };
        drop(state);
        self.set_content_length(direction, length);
    }

    fn declares_length(&self, direction: Direction) -> bool {
        self.read(|host| host.header(direction.headers(), CONTENT_LENGTH, 0, &mut |_| ()))
            .is_some_and(|values| values > 0)
    }

    fn set_content_length(&self, direction: Direction, length: Option<usize>) {
        self.read(|host| match length {
            Some(length) => {
                host.set_header(direction.headers(), CONTENT_LENGTH, length.to_string().as_bytes())
            }
            None => host.remove_header(direction.headers(), CONTENT_LENGTH),
        });
    }

    #[inline(never)]
    fn release_changed_response(self: &Rc<Self>, response: Response) -> Result<()> {
        self.take_invalid()?;
        let arrived = self.state.borrow().response.flow.started;
        if response.message.headers.is_live(self, Map::ResponseHeaders) {
            self.state.borrow_mut().outcome.get_or_insert(Outcome::Responded);
            let untouched = response.message.body.is_live_of(self, Direction::Response)
                && !self.state.borrow().response.flow.taken;
            // What came without a body may go on without one; anything else would break framing.
            let bodyless = if untouched {
                self.status_changed.get()
                    && has_no_body(response.status())
                    && !self.is_drained(Direction::Response)
            } else {
                has_no_body(response.status()) || self.is_head()
            };
            self.release(Direction::Response, response.message, bodyless);
            return Ok(());
        }
        self.reply(response, arrived)
    }

    fn is_head(&self) -> bool {
        self.method_is(b"HEAD")
    }

    fn method_is(&self, method: &[u8]) -> bool {
        let mut is = false;
        self.read(|host| host.header(Map::RequestHeaders, ":method", 0, &mut |v| is = v == method));
        is
    }

    /// A response of the filter's own.
    fn reply(self: &Rc<Self>, response: Response, arrived: bool) -> Result<()> {
        let Response { message, status, trailers } = response;
        if message.headers.exchange().is_some() {
            return Err(Error::make(
                ErrorKind::InvalidMessage,
                StatusCode::INTERNAL_SERVER_ERROR,
                "the filter returned the response of another exchange",
            ));
        }
        if !(200..600).contains(&status.as_u16()) {
            return Err(Error::make(
                ErrorKind::InvalidMessage,
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("a response of the filter cannot have status {}", status.as_u16()),
            ));
        }
        let headers = message.headers.into_owned().map_err(invalid)?;
        let body = if has_no_body(status) { Body::empty() } else { message.body };
        let grpc_error = status != StatusCode::OK && self.is_grpc();
        let details = self.details("reply");
        let effect = match body.disposition(self, Direction::Response) {
            Disposition::Full(body) if trailers.is_none() && self.has_to_outlast(body.len()) => {
                self.start_whole_reply(status, headers, body)
            }
            Disposition::Full(body) if trailers.is_none() || grpc_error => {
                Effect::Reply { status, headers, body, details }
            }
            // An error to gRPC is trailers only.
            _ if grpc_error => Effect::Reply { status, headers, body: Bytes::new(), details },
            // The upstream's body under a new head.
            Disposition::Untouched => return self.replace(status, headers, None, trailers),
            Disposition::Stream(body) if arrived => {
                return self.replace(status, headers, Some(body), trailers);
            }
            Disposition::Full(body) if arrived => {
                let body = Body::from(body).into_frames();
                return self.replace(status, headers, Some(body), trailers);
            }
            body @ (Disposition::Full(_) | Disposition::Stream(_))
                if self.may_reply_as_response() =>
            {
                let body = match body {
                    Disposition::Stream(body) => body,
                    Disposition::Full(body) => Body::from(body).into_frames(),
                    Disposition::Untouched => unreachable!("see above"),
                };
                let reply = Box::new(ReplyStream::new(body, trailers));
                Effect::ReplyAsResponse { status, headers, reply }
            }
            // Trailers take a streamed reply.
            Disposition::Full(_) if self.state.borrow().request.flow.released => {
                return Err(no_new_trailers());
            }
            Disposition::Full(body) => {
                let body = Body::from(body).into_frames();
                Effect::StartReply { status, headers, reply: self.streamed(body, trailers) }
            }
            // Later filters may be about to answer: only a whole reply can come before them.
            Disposition::Stream(body) if self.state.borrow().request.flow.released => {
                if trailers.is_some() {
                    return Err(no_new_trailers());
                }
                self.gather(status, headers, body);
                return Ok(());
            }
            Disposition::Stream(body) => {
                Effect::StartReply { status, headers, reply: self.streamed(body, trailers) }
            }
        };
        let mut state = self.state.borrow_mut();
        state.outcome = Some(Outcome::Replied);
        state.rare.effect = Some(Box::new(effect));
        Ok(())
    }

    /// Goes on as if the filter had read the stream and returned a response with all of it.
    fn gather(self: &Rc<Self>, status: StatusCode, headers: HeaderMap, body: FrameStream) {
        let limit = self.filter().meta.options.gather_limit_bytes;
        let mut body = Body::from_frames(body);
        self.set_task(Box::pin(async move {
            let all = body.collect(limit).await?;
            let mut response = Response::new(status).with_body(all);
            response.message.headers = Headers::owned(headers);
            Ok(response)
        }));
        self.wake.wake();
    }

    /// Puts a new response in the place of the upstream's, which has arrived and is held.
    fn replace(
        self: &Rc<Self>,
        status: StatusCode,
        headers: HeaderMap,
        body: Option<FrameStream>,
        trailers: Option<Box<HeaderMap>>,
    ) -> Result<()> {
        let trailers = trailers.filter(|t| !t.is_empty());
        if trailers.is_some() && !(body.is_some() && self.may_end_with_trailers()) {
            return Err(no_new_trailers());
        }
        let map = Map::ResponseHeaders;
        let mut old = Vec::new();
        self.read(|host| {
            host.headers(map, &mut |name, _| {
                if let Ok(name) = std::str::from_utf8(name)
                    && !name.starts_with(':')
                {
                    old.push(name.to_owned());
                }
            });
            for name in &old {
                host.remove_header(map, name);
            }
            host.set_header(map, ":status", status.as_str().as_bytes());
            for (name, value) in &headers {
                if name != header::CONTENT_LENGTH {
                    host.append_header(map, name.as_str(), value.as_bytes());
                }
            }
        });
        let bodyless = self.is_head();
        let trailers = trailers.filter(|_| !bodyless);
        let mut state = self.state.borrow_mut();
        state.outcome = Some(Outcome::Replied);
        let side = &mut state.response;
        if trailers.is_none() {
            side.rare.on_trailers = Some(Box::new(Box::new(clear)));
            side.flow.ends_early = self.any_time && body.is_some();
        }
        side.rare.out_trailers = trailers;
        match body {
            None => side.flow.mode = Mode::Pass,
            Some(_) if bodyless => {
                side.flow.mode = Mode::Pump;
                side.flow.out_done = true;
            }
            Some(body) => {
                side.flow.mode = Mode::Pump;
                side.rare.pump = Some(body);
            }
        }
        Ok(())
    }

    fn is_grpc(&self) -> bool {
        let mut grpc = false;
        self.read(|host| {
            host.header(Map::RequestHeaders, "content-type", 0, &mut |v| {
                grpc = v
                    .strip_prefix(b"application/grpc")
                    .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')));
            })
        });
        grpc
    }

    fn details(&self, what: &str) -> String {
        format!("attache.{}.{what}", self.filter().meta.name.replace(char::is_whitespace, "_"))
    }

    /// Logs an error, whose texts may be the filter's own code.
    fn log(self: &Rc<Self>, f: impl FnOnce()) {
        if let Err(message) = guarded(f) {
            self.filter().meta.panics.inc();
            tracing::error!("the filter failed, and describing its error panicked: {message}");
        }
    }

    /// The filter has failed.
    #[cold]
    fn fail(self: &Rc<Self>, error: Error) {
        current::within(self, || self.decide_failure(error));
    }

    fn decide_failure(self: &Rc<Self>, error: Error) {
        let meta = &self.filter().meta;
        let panicked = error.is_panic();
        let reset = match error.kind() {
            ErrorKind::Reset(reason) => Some(reason),
            _ => None,
        };
        let details = match reset {
            Some(_) => self.details(&error.to_string().replace(char::is_whitespace, "_")),
            None => self.details(if panicked { "panic" } else { "error" }),
        };
        if reset.is_some() {
            self.log(|| tracing::debug!("the filter resets the stream: {error}"));
        } else if panicked {
            meta.panics.inc();
            self.log(|| tracing::error!("the filter panicked: {error:?}"));
        } else {
            meta.errors.inc();
            let status = error.status_code().as_u16();
            self.log(|| tracing::error!(status, "the filter failed: {error:?}"));
        }
        let status = error.status_code();
        let may_pass =
            reset.is_none() && meta.options.fail_open && self.state.borrow().may_let_pass();
        self.drop_safely(Some(error));
        self.drop_futures();
        let undone = self.state.borrow_mut().take_effect();
        self.drop_safely(undone);
        let mut state = self.state.borrow_mut();
        let outcome = match reset {
            Some(_) => Outcome::Reset,
            None if panicked => Outcome::Panicked,
            None => Outcome::Failed,
        };
        state.outcome = Some(outcome);
        if may_pass && state.let_pass() {
            return;
        }
        if state.response.flow.has_gone() {
            // All that the client is to get has gone; a reset could only cut it off. What is left of
            // the request must not pass for the whole.
            state.request.flow.mode = Mode::Discard;
            return;
        }
        let effect = if reset.is_some() || state.response.flow.released || state.replied {
            Effect::Reset { reason: reset.unwrap_or_default(), details }
        } else {
            let status = if (400..600).contains(&status.as_u16()) {
                status
            } else {
                StatusCode::INTERNAL_SERVER_ERROR
            };
            let body = status.canonical_reason().unwrap_or_default();
            Effect::Reply { status, headers: HeaderMap::new(), body: body.into(), details }
        };
        state.rare.effect = Some(Box::new(effect));
    }

    // ---- effects ----------------------------------------------------------------------------

    #[inline]
    fn settle(self: &Rc<Self>) {
        let settled = self.state.borrow().is_settled();
        if !settled {
            self.settle_all();
        }
    }

    #[inline(never)]
    fn settle_all(self: &Rc<Self>) {
        loop {
            if !self.alive.get() {
                return;
            }
            let mut state = self.state.borrow_mut();
            let effect = state.take_effect();
            let movable = state.is_movable();
            if effect.is_none() && state.rare.reply.is_none() && !movable {
                return;
            }
            drop(state);
            if let Some(effect) = effect {
                self.apply(*effect);
            }
            self.send_reply_frames();
            for direction in BOTH {
                self.advance(direction);
            }
            // An error in dropping or replying may have decided something new.
            if self.state.borrow().rare.effect.is_none() {
                return;
            }
        }
    }

    /// The request has been let go.
    pub(crate) fn has_gone_on(&self) -> bool {
        let state = self.state.borrow();
        state.next == NextState::Called || state.replied
    }

    /// Has something done as soon as no hook of Envoy's is running.
    pub(crate) fn defer(&self, asked: Rc<Deferred>) -> Result<()> {
        self.take_invalid()?;
        if !self.alive.get() {
            return Err(Error::gone());
        }
        let mut state = self.state.borrow_mut();
        if state.rare.deferred.is_some() {
            return Err(refused("the stream is about to be drained or started again already"));
        }
        if asked.what == Deferrable::Recreate
            && let Some(why) = state.why_not_recreate()
        {
            return Err(refused(why));
        }
        state.rare.deferred = Some(asked);
        drop(state);
        self.wake.wake();
        Ok(())
    }

    /// Does what must not be done from within a hook of Envoy's.
    fn do_deferred(&self) {
        let asked = {
            let mut state = self.state.borrow_mut();
            let asked = state.rare.used().and_then(|rare| rare.deferred.take());
            let Some(asked) = asked else { return };
            if asked.what == Deferrable::Recreate {
                if state.answered || state.replied {
                    drop(state);
                    return asked.done(Err(None));
                }
                // On success, the stream is gone when the host returns.
                state.outcome = Some(Outcome::Recreated);
            }
            asked
        };
        let control = match asked.what {
            Deferrable::Recreate => Control::Recreate,
            Deferrable::DrainConnection => Control::DrainConnection,
        };
        let Some(done) = self.read(|host| host.facts().control(control)) else { return };
        if asked.what == Deferrable::Recreate && done.is_err() {
            self.state.borrow_mut().outcome = None;
        }
        asked.done(done.map_err(Some));
    }

    fn apply(self: &Rc<Self>, effect: Effect) {
        {
            let mut state = self.state.borrow_mut();
            if state.answered && !state.response.flow.started {
                // Envoy would cut off what is on its way to the client.
                drop(state);
                self.drop_safely(Some(effect));
                return self.cancel();
            }
            state.replied = true;
            let reply_reads_request =
                matches!(effect, Effect::StartReply { .. }) && state.request.flow.reader;
            let request = if reply_reads_request { Mode::Hold } else { Mode::Discard };
            state.request.flow.mode = request;
            state.response.flow.mode = Mode::Discard;
        }
        match effect {
            Effect::Reset { reason, details } => {
                self.drop_futures();
                self.read(|host| host.reset_for(reason, &details));
            }
            Effect::Reply { status, headers, body, details } => {
                self.drop_futures();
                let grpc_status = grpc_status(status);
                let mut list: Vec<(&[u8], &[u8])> =
                    pairs(&headers, |name| name != header::CONTENT_LENGTH).collect();
                if self.is_grpc() && !headers.contains_key("grpc-status") {
                    list.push((b"grpc-status", grpc_status.as_bytes()));
                }
                let reply = LocalReply {
                    status: status.as_u16(),
                    headers: &list,
                    body: &body,
                    details: &details,
                };
                self.read(|host| host.send_reply(&reply));
            }
            Effect::ReplyAsResponse { status, headers, reply } => {
                self.reply_as_response(status, &headers, reply);
            }
            Effect::StartReply { status, headers, reply } => {
                let mut list: Vec<(&[u8], &[u8])> = vec![(b":status", status.as_str().as_bytes())];
                list.extend(pairs(&headers, |_| true));
                if self.is_head() {
                    self.state.borrow_mut().request.flow.mode = Mode::Discard;
                    self.drop_safely(Some(reply));
                    self.read(|host| host.send_reply_headers(&list, true));
                    return;
                }
                self.state.borrow_mut().rare.reply = Some(reply);
                self.read(|host| host.send_reply_headers(&list, false));
                // Its first poll.
                self.wake.wake();
            }
        }
    }

    fn send_reply_frames(self: &Rc<Self>) {
        let mut borrowed = self.state.borrow_mut();
        let state = &mut *borrowed;
        let full = state.response.flow.full > 0;
        let Some(rare) = state.rare.used() else { return };
        let Some(reply) = rare.reply.as_mut().filter(|_| !full) else { return };
        let ready = reply.ready.split_to(OUTPUT_LIMIT);
        reply.sent += ready.len();
        let more = !reply.ready.is_empty();
        let held_back = more || (ready.len() >= OUTPUT_LIMIT && !reply.ended);
        let ends = reply.ended && !more && (state.request.flow.ended || !reply.waits_for_request());
        let trailers = ends.then(|| reply.trailers.take());
        let mut over = None;
        if ends {
            over = rare.reply.take();
            state.request.flow.mode = Mode::Discard;
        }
        drop(borrowed);
        self.drop_safely(over);
        ready.for_each(|data| {
            self.read(|host| host.send_reply_data(data, false));
        });
        if held_back {
            // There may be more; first the client gets its turn.
            self.wake.wake();
        }
        match trailers {
            None => (),
            Some(None) => {
                self.read(|host| host.send_reply_data(&[], true));
            }
            Some(Some(trailers)) => {
                let list: Vec<(&[u8], &[u8])> = pairs(&trailers, |_| true).collect();
                self.read(|host| host.send_reply_trailers(&list));
            }
        }
    }

    /// Does what can be done for a direction that no hook is running for.
    fn advance(self: &Rc<Self>, direction: Direction) {
        if self.any_time {
            return self.move_on(direction);
        }
        let pumps = {
            let mut state = self.state.borrow_mut();
            let flow = state.flow(direction);
            if !flow.is_movable() || !self.alive.get() {
                return;
            }
            let goes_on = matches!(flow.mode, Mode::Pass | Mode::Pump);
            let emits = goes_on && !flow.out.is_empty();
            if emits && state.flow(direction.opposite()).hook.is_some() {
                // In a hook of the other direction, Envoy refuses bytes for a buffer that it has
                // not made yet.
                self.wake.wake();
                return;
            }
            let flow = state.flow(direction);
            if goes_on
                && !flow.ended
                && (self.host.end_is_kept(direction)
                    || flow.would_overtake(
                        self.host.body_len(direction, Area::Buffer),
                        self.trailers_exist(direction),
                    ))
            {
                return;
            }
            flow.mode == Mode::Pump
        };
        let limit = if pumps { self.limit() } else { 0 };
        let mut state = self.state.borrow_mut();
        let side = state.side(direction);
        let ended_with_trailers = side.flow.trailers;
        let step = side.flow.between_hooks(limit);
        let last = side.flow.finished;
        let end_kept = last && std::mem::take(&mut side.flow.end_kept);
        drop(state);
        if end_kept {
            self.read(|host| host.keep_end(direction, false));
        }
        match step {
            Move::Nothing => (),
            Move::Drop => self.deal_with_input(direction, Input::Drop),
            Move::Resume { input } => {
                if last && ended_with_trailers && !self.finish_trailers(direction) {
                    return;
                }
                self.deal_with_input(direction, input);
                self.append_output(direction, Area::Buffer);
                if self.is_wanted(direction) {
                    self.read(|host| host.resume(direction));
                }
            }
            Move::Inject { .. } | Move::Release => unreachable!("only where emitted at any time"),
        }
    }

    fn trailers_exist(&self, direction: Direction) -> bool {
        self.read(|host| host.headers(direction.trailers(), &mut |_, _| ())) == Some(true)
    }

    fn deal_with_input(&self, direction: Direction, input: Input) {
        match input {
            Input::Leave => (),
            Input::Take => {
                let taken = self.take_unread(direction);
                self.state.borrow_mut().flow(direction).pending.push(taken);
            }
            Input::Drop => {
                let (held, frame) = self.claim_unread(direction);
                self.state.borrow_mut().flow(direction).pending.clear();
                self.drain(direction, held, frame);
            }
        }
    }

    /// Moves the output to where Envoy picks it up.
    fn append_output(&self, direction: Direction, area: Area) {
        let out = {
            let mut state = self.state.borrow_mut();
            let side = state.side(direction);
            if !side.flow.out_done && side.flow.out.len() >= OUTPUT_LIMIT {
                // The pump was held back; it may go on.
                self.wake.wake();
            }
            std::mem::take(&mut side.flow.out)
        };
        out.for_each(|chunk| {
            self.read(|host| host.append(direction, area, chunk));
        });
    }

    /// The trailers go on: the last moment to change them. False if the filter has failed at that.
    fn finish_trailers(self: &Rc<Self>, direction: Direction) -> bool {
        let (hook, made, added) = {
            let mut state = self.state.borrow_mut();
            let side = state.side(direction);
            let Some(rare) = side.rare.used() else { return true };
            (rare.on_trailers.take(), rare.out_trailers.take(), side.flow.added)
        };
        if made.is_none() && (hook.is_none() || added) {
            self.drop_safely(hook);
            return true;
        }
        let mut trailers = Headers::live(self.clone(), direction.trailers());
        if let Some(made) = made {
            clear(&mut trailers);
            for (name, value) in &*made {
                trailers.append(name.as_str(), value);
            }
        }
        if let Some(hook) = hook
            && let Err(message) = current::within(self, || guarded(|| hook(&mut trailers)))
        {
            return self.fail_at_trailers(direction, Error::panicked(message));
        }
        match self.take_invalid() {
            Ok(()) => true,
            Err(error) => self.fail_at_trailers(direction, error),
        }
    }

    /// The end counts as let go already, but is still here.
    fn fail_at_trailers(self: &Rc<Self>, direction: Direction, error: Error) -> bool {
        self.state.borrow_mut().flow(direction).finished = false;
        self.fail(error);
        false
    }

    // ---- body -------------------------------------------------------------------------------

    fn limit(&self) -> usize {
        match self.read(|host| host.buffer_limit()) {
            None | Some(0) => DEFAULT_LIMIT,
            Some(limit) => usize::try_from(limit).unwrap_or(DEFAULT_LIMIT),
        }
    }

    /// How many unread bytes are in Envoy's buffer and in the frame. They count as taken from now
    /// on, so that a hook that runs while they are drained does not count them again.
    fn claim_unread(&self, direction: Direction) -> (usize, usize) {
        let mut state = self.state.borrow_mut();
        let flow = state.flow(direction);
        let in_data = flow.hook == Some(Hook::Data);
        let held = std::mem::take(&mut flow.held);
        drop(state);
        if !in_data || !self.alive.get() {
            return (held, 0);
        }
        let frame = self.host.body_len(direction, Area::Frame);
        if self.host.frame_is_buffer(direction) { (0, frame) } else { (held, frame) }
    }

    fn drain(&self, direction: Direction, held: usize, frame: usize) {
        if held > 0 {
            self.read(|host| host.drain(direction, Area::Buffer, held));
        }
        if frame > 0 {
            self.read(|host| host.drain(direction, Area::Frame, frame));
        }
    }

    /// Shows the first bytes of an area: what follows them is not ours.
    fn each_slice(&self, direction: Direction, area: Area, bytes: usize, f: &mut dyn FnMut(&[u8])) {
        if bytes == 0 {
            return;
        }
        let mut left = bytes;
        self.read(|host| {
            host.body(direction, area, &mut |slice| {
                let part = left.min(slice.len());
                left -= part;
                if part > 0 {
                    f(&slice[..part]);
                }
            })
        });
    }

    /// Copies all unread bytes out of Envoy.
    fn take_unread(&self, direction: Direction) -> Bytes {
        let (held, frame) = self.claim_unread(direction);
        if held + frame == 0 {
            return Bytes::new();
        }
        let mut all = BytesMut::with_capacity(held + frame);
        self.each_slice(direction, Area::Buffer, held, &mut |slice| all.extend_from_slice(slice));
        self.each_slice(direction, Area::Frame, frame, &mut |slice| all.extend_from_slice(slice));
        self.drain(direction, held, frame);
        all.freeze()
    }

    pub(crate) fn poll_read(
        &self,
        direction: Direction,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>>> {
        if !self.alive.get() {
            return Poll::Ready(Err(Error::gone()));
        }
        let pending = self.state.borrow_mut().flow(direction).pending.pop();
        let chunk = pending.unwrap_or_else(|| self.take_unread(direction));
        let mut state = self.state.borrow_mut();
        let side = state.side(direction);
        if !chunk.is_empty() {
            side.flow.taken = true;
            return Poll::Ready(Ok(Some(chunk)));
        }
        if side.flow.ended {
            return Poll::Ready(Ok(None));
        }
        let before = std::mem::replace(&mut side.waiter, self.waiter(cx));
        drop(state);
        drop(before);
        Poll::Pending
    }

    fn unread(&self, direction: Direction) -> usize {
        let mut state = self.state.borrow_mut();
        let flow = state.flow(direction);
        let (held, pending) = (flow.held, flow.pending.len());
        let in_data = flow.hook == Some(Hook::Data);
        drop(state);
        if !in_data || !self.alive.get() {
            return pending + held;
        }
        let frame = self.host.body_len(direction, Area::Frame);
        pending + if self.host.frame_is_buffer(direction) { frame } else { held + frame }
    }

    pub(crate) fn poll_buffered(
        &self,
        direction: Direction,
        limit: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Result<()>> {
        if !self.alive.get() {
            return Poll::Ready(Err(Error::gone()));
        }
        if self.unread(direction) > limit {
            let status = match direction {
                Direction::Request => StatusCode::PAYLOAD_TOO_LARGE,
                Direction::Response => StatusCode::INTERNAL_SERVER_ERROR,
            };
            return Poll::Ready(Err(too_large(status, limit)));
        }
        let waiter = self.waiter(cx);
        let mut state = self.state.borrow_mut();
        let side = state.side(direction);
        if side.flow.ended {
            return Poll::Ready(Ok(()));
        }
        let before = std::mem::replace(&mut side.waiter, waiter);
        drop(state);
        drop(before);
        // Envoy must be willing to hold as much as the filter wants to see. A sender that it has
        // paused already goes on only below half of the limit.
        let enough = (limit as u64).saturating_mul(2);
        self.read(|host| {
            let now = host.buffer_limit();
            if now != 0 && now < enough {
                host.set_buffer_limit(enough);
            }
        });
        Poll::Pending
    }

    /// Shows the unread bytes.
    pub(crate) fn look(&self, direction: Direction, f: &mut dyn FnMut(&[u8])) {
        let mut state = self.state.borrow_mut();
        let flow = state.flow(direction);
        let held = flow.held;
        let in_data = flow.hook == Some(Hook::Data);
        let pending = std::mem::take(&mut flow.pending);
        drop(state);
        pending.for_each(&mut *f);
        self.state.borrow_mut().flow(direction).pending = pending;
        let frame_is_buffer =
            in_data && self.read(|host| host.frame_is_buffer(direction)).unwrap_or(false);
        if !frame_is_buffer {
            self.each_slice(direction, Area::Buffer, held, f);
        }
        if in_data {
            self.read(|host| host.body(direction, Area::Frame, f));
        }
    }

    pub(crate) fn is_drained(&self, direction: Direction) -> bool {
        self.state.borrow_mut().flow(direction).ended && self.unread(direction) == 0
    }

    pub(crate) fn has_trailers(&self, direction: Direction) -> bool {
        self.state.borrow_mut().flow(direction).trailers
    }

    /// The trailers as a frame of an `http_body::Body`.
    pub(crate) fn trailers_frame(self: &Rc<Self>, direction: Direction) -> Option<HeaderMap> {
        if !self.has_trailers(direction) {
            return None;
        }
        Some(Headers::live(self.clone(), direction.trailers()).to_map())
    }

    /// The reader of a direction's bytes has gone.
    pub(crate) fn reader_dropped(&self, direction: Direction) {
        // Dropped while the state is in use only if the engine itself drops it; it knows then.
        if let Ok(mut state) = self.state.try_borrow_mut() {
            state.flow(direction).reader = false;
        }
    }

    // ---- the end ----------------------------------------------------------------------------

    /// Drops whatever of the filter still runs. Its own `Drop`s may panic.
    fn drop_futures(self: &Rc<Self>) {
        let task = if self.resting.get() { None } else { self.task.take() };
        if task.is_some() || !self.state.borrow().is_plain() {
            self.drop_these_futures(task);
        }
    }

    #[cold]
    fn drop_these_futures(self: &Rc<Self>, task: Option<HandleFuture>) {
        if task.is_some() {
            self.handle_is_over();
        }
        let mut state = self.state.borrow_mut();
        let request = state.request.rare.used().map(|r| (r.pump.take(), r.on_trailers.take()));
        let response = state.response.rare.used().map(|r| (r.pump.take(), r.on_trailers.take()));
        let rare = state.rare.used();
        let rare = rare.map(|r| (r.deferred.take(), r.reply.take(), r.reply_to_come.take()));
        drop(state);
        self.worker.enter_runtime();
        self.drop_safely(task);
        let (request, request_trailers) = request.unwrap_or_default();
        let (response, response_trailers) = response.unwrap_or_default();
        let (deferred, reply, to_come) = rare.unwrap_or_default();
        self.drop_safely(deferred);
        self.drop_safely(request);
        self.drop_safely(response);
        self.drop_safely(reply);
        self.drop_safely(to_come);
        self.drop_safely(request_trailers);
        self.drop_safely(response_trailers);
    }

    /// Drops what is the filter's own: its `Drop` may panic, or use the exchange. No borrow may be
    /// held.
    #[inline]
    fn drop_safely<T>(self: &Rc<Self>, value: Option<T>) {
        if let Some(value) = value {
            self.drop_it_safely(value);
        }
    }

    #[inline(never)]
    fn drop_it_safely<T>(self: &Rc<Self>, value: T) {
        let was_busy = self.busy.replace(true);
        current::within(self, || {
            if let Err(message) = guarded(|| drop(value)) {
                self.filter().meta.panics.inc();
                tracing::error!("the filter panicked while it was dropped: {message}");
            }
        });
        self.busy.set(was_busy);
    }

    #[inline(always)]
    fn complete(self: &Rc<Self>) {
        let mut state = self.state.borrow_mut();
        if !state.completed {
            state.completed = true;
            if !self.busy.get() {
                self.finish_from(state);
            }
        }
    }

    /// As `complete`, where that should have been before.
    #[inline(never)]
    fn complete_at_last(self: &Rc<Self>) {
        self.complete();
    }

    /// Runs once, when nothing of the filter is on the stack.
    fn finish(self: &Rc<Self>) {
        self.finish_from(self.state.borrow_mut());
    }

    #[inline(always)]
    fn finish_from<'a>(self: &'a Rc<Self>, mut state: RefMut<'a, State>) {
        if !(self.resting.get() && state.is_plain()) {
            rarely();
            drop(state);
            self.drop_futures();
            state = self.state.borrow_mut();
        }
        self.wake.kill();
        if !state.started {
            return;
        }
        // `handle` has run; from here on it has not, so that this is done once.
        state.started = false;
        state.replied = true;
        let handled = std::mem::take(&mut state.handled);
        let outcome = state.outcome.unwrap_or(Outcome::Cancelled);
        let undone = state.take_effect();
        drop(state);
        self.drop_safely(undone);
        if !handled {
            return;
        }
        self.count(match outcome {
            Outcome::Responded => Count::Ended,
            other => other.into(),
        });
        if self.filter().listens_for_the_end() {
            rarely();
            if let Err(message) = (self.filter().complete)(self, outcome) {
                self.panicked_in_on_complete(&message);
            }
        }
        self.end_spans();
    }

    #[cold]
    fn panicked_in_on_complete(self: &Rc<Self>, message: &str) {
        current::within(self, || {
            self.filter().meta.panics.inc();
            tracing::error!("the filter panicked in on_complete: {message}");
        });
    }
}

impl State {
    /// Lets a message go on that nothing was done to but its headers, as most are. False if it is
    /// none.
    #[inline(always)]
    fn goes_on_as_it_is(
        &mut self,
        exchange: &Rc<Inner>,
        direction: Direction,
        message: &Message,
    ) -> bool {
        let plain = self.rare.is_unused() && message.is_whole(exchange, direction);
        let flow = self.flow(direction);
        let as_it_is = plain && !flow.taken && flow.pending.is_unused();
        if as_it_is {
            flow.mode = Mode::Pass;
        }
        as_it_is
    }

    fn take_effect(&mut self) -> Option<Box<Effect>> {
        self.rare.used()?.effect.take()
    }

    fn why_not_recreate(&self) -> Option<&'static str> {
        let request = &self.request.flow;
        if self.next == NextState::Called || self.replied {
            Some("the request has gone on already")
        } else if !request.ended {
            Some("the request is not complete; await `req.body_mut().buffer(limit)` first")
        } else if request.taken || !request.pending.is_empty() {
            Some("the filter has taken bytes of the request's body")
        } else if request.trailers {
            Some("the request has trailers, which Envoy would lose")
        } else {
            None
        }
    }

    /// A request that has gone on with a change that is still to be made cannot do without it.
    fn may_let_pass(&self) -> bool {
        let request = &self.request;
        let unchanged = request.flow.mode == Mode::Pass && request.rare.on_trailers.is_none();
        !self.response.flow.started || request.flow.finished || unchanged
    }

    /// Fail open: what was not touched goes on. Returns whether that was possible.
    fn let_pass(&mut self) -> bool {
        if self.replied {
            return false;
        }
        let flow = if self.response.flow.started {
            &mut self.response.flow
        } else {
            &mut self.request.flow
        };
        if flow.mode != Mode::Hold || flow.taken || flow.released {
            return false;
        }
        flow.mode = Mode::Pass;
        if !self.response.flow.started {
            self.response.flow.mode = Mode::Pass;
            self.replied = true;
        }
        true
    }
}

fn clear(trailers: &mut Headers) {
    for (name, _) in trailers.to_vec() {
        trailers.remove(&name);
    }
}

fn has_no_body(status: StatusCode) -> bool {
    status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED
        || (status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS)
}

fn invalid(error: HeaderError) -> Error {
    let status = StatusCode::INTERNAL_SERVER_ERROR;
    Error::make(ErrorKind::InvalidMessage, status, format!("the filter changed a header: {error}"))
}

fn no_new_trailers() -> Error {
    Error::make(
        ErrorKind::Unsupported,
        StatusCode::INTERNAL_SERVER_ERROR,
        "the message came without trailers, and none can be added in this host, or none any more \
         (Capabilities::new_trailers)",
    )
}

/// The gRPC status for an HTTP status, by the mapping that gRPC clients use.
fn grpc_status(status: StatusCode) -> &'static str {
    match status.as_u16() {
        200 => "0",
        400 => "13",
        401 => "16",
        403 => "7",
        404 => "12",
        429 | 502 | 503 | 504 => "14",
        _ => "2",
    }
}
