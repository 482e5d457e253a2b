//! What the host of a compiled-in filter does, and how Envoy's filter manager takes it.

use std::cell::Cell;
use std::rc::Rc;

use attache_core::host::{DataVerdict, Direction};
use bytes::Bytes;

use super::buffer::Buffer;
use super::stream::{DataStatus, Kind, Part, ReplyState, Stream};

/// One direction of such a host.
#[derive(Default)]
pub(crate) struct Own {
    /// Input that the filter holds.
    pub(crate) buffer: Rc<Buffer>,
    /// The filter's headers hook has run.
    hooked: Cell<bool>,
    /// The running hook, or the last, brings the end of the message without trailers.
    brings_end: Cell<bool>,
    /// The hook that brought the end.
    ended_in: Cell<Option<Part>>,
    /// The end has gone past this filter.
    pub(crate) end_gone: Cell<bool>,
    /// The running hook has added trailers, to go with what it lets go (`true`) or later.
    added: Cell<Option<bool>>,
}

impl Own {
    pub(crate) fn hook(&self, part: Part, end: bool) {
        self.hooked.set(true);
        self.brings_end.set(end && part != Part::Trailers);
        if end {
            self.ended_in.set(Some(part));
        }
        self.added.set(None);
    }
}

impl Stream {
    pub(crate) fn is_compiled_in(&self) -> bool {
        self.options.kind == Kind::CompiledIn
    }

    /// The host carries out what a data hook of the filter has answered.
    pub(crate) fn own_data_verdict(
        self: &Rc<Self>,
        direction: Direction,
        frame: &Rc<Buffer>,
        end: bool,
        verdict: DataVerdict,
    ) -> DataStatus {
        let way = self.way(direction);
        let goes_on = verdict == DataVerdict::Continue;
        // Of a stream that was reset, nothing goes anywhere.
        if goes_on && self.our_leg(direction).stopped.get() && !way.aborted.get() {
            self.overtakes_nothing("an answer of Continue", direction);
        }
        *way.frame.borrow_mut() = None;
        self.our_hook_is_over(direction, goes_on, end, |frame, _| frame && !goes_on);
        match verdict {
            DataVerdict::Continue => {
                frame.put_in_front(&way.own.buffer);
                self.check_own_watermark(direction);
                DataStatus::Continue
            }
            DataVerdict::StopAndWatermark => {
                way.own.buffer.take_over(frame, self.ours);
                self.check_watermark(direction);
                self.check_own_watermark(direction);
                DataStatus::StopNoBuffer
            }
            DataVerdict::StopNoBuffer => {
                frame.take();
                self.check_watermark(direction);
                DataStatus::StopNoBuffer
            }
        }
    }

    /// After a hook of the filter: what its answer says about the end.
    pub(crate) fn check_own_answer(&self, direction: Direction, goes_on: bool) {
        if !self.is_compiled_in() {
            return;
        }
        let own = &self.way(direction).own;
        if goes_on && own.end_gone.get() {
            self.violation(format!("the {direction:?} goes on after its end was injected"));
        }
        if let Some(now) = own.added.get()
            && now != goes_on
        {
            self.violation(format!(
                "trailers were added to the {direction:?} to go {}, but the hook {}",
                if now { "now" } else { "later" },
                if goes_on { "continues" } else { "stops" },
            ));
        }
        if goes_on && own.ended_in.get() == Some(Part::Trailers) && own.buffer.len() > 0 {
            self.violation(format!("{direction:?} trailers go on before what is held"));
        }
        if goes_on && own.ended_in.get().is_some() {
            own.end_gone.set(true);
        }
    }

    /// A full private buffer pauses the sender. Its own filter does not count that as a full next
    /// hop.
    pub(crate) fn check_own_watermark(&self, direction: Direction) {
        let way = self.way(direction);
        let buffer = &way.own.buffer;
        let limit = self.buffer_limit.get() as usize;
        let above = buffer.above.get();
        let now = match above {
            false => limit != 0 && buffer.len() > limit,
            true => limit != 0 && buffer.len() > limit / 2,
        };
        if now != above {
            buffer.above.set(now);
            self.count_pause(direction, now);
        }
    }

    pub(crate) fn others_hold(&self, direction: Direction) -> bool {
        let way = self.way(direction);
        let frame = way.frame.borrow().clone();
        way.buffer.borrow().as_ref().is_some_and(|buffer| {
            buffer.len() > 0 && !frame.is_some_and(|frame| Rc::ptr_eq(&frame, buffer))
        })
    }

    /// Whether a continue would carry along what other filters have.
    fn overtakes_nothing(&self, call: &str, direction: Direction) {
        if self.others_hold(direction) {
            self.violation(format!("{call} sends {direction:?} bytes along that others hold"));
        }
        let seen = self.way(direction).own.ended_in.get().is_some();
        if !seen && self.way(direction).trailers.borrow().is_some() {
            self.violation(format!("{call} sends {direction:?} trailers along before their hook"));
        }
    }

    pub(crate) fn may_emit(&self, call: &str, direction: Direction) {
        let way = self.way(direction);
        if [Direction::Request, Direction::Response]
            .into_iter()
            .any(|direction| self.way(direction).hook.get().is_some())
        {
            self.violation(format!("{call} of the {direction:?} inside a hook of the filter's"));
        }
        if !way.own.hooked.get() {
            self.violation(format!("{call} of the {direction:?} before its headers"));
        }
        if way.own.end_gone.get() {
            self.violation(format!("{call} of the {direction:?} after its end"));
        }
        if direction == Direction::Request && self.reply.get() != ReplyState::None {
            self.violation(format!("{call} of the Request after the filter has begun a reply"));
        }
    }

    pub(crate) fn inject(self: &Rc<Self>, direction: Direction, data: Vec<Bytes>, end: bool) {
        let way = self.way(direction);
        let data = Rc::new(Buffer::from_chunks(data));
        way.own.end_gone.set(end);
        if end && way.trailers.borrow().is_some() {
            self.violation(format!("an injected end of a {direction:?} that has trailers"));
        }
        if !self.our_leg(direction).headers_continued.replace(true) {
            self.headers(direction, Some(self.ours), false);
        }
        if self.destroyed.get() {
            return;
        }
        way.observed_end.set(end);
        self.data(direction, Some(self.ours), &data, end);
    }

    /// Injects what the private buffer holds.
    pub(crate) fn inject_own(self: &Rc<Self>, direction: Direction, end: bool) {
        let data = self.way(direction).own.buffer.take();
        self.check_own_watermark(direction);
        self.inject(direction, data, end);
    }

    pub(crate) fn resume_own(self: &Rc<Self>, direction: Direction) {
        self.may_emit("resume", direction);
        let way = self.way(direction);
        let own = &way.own;
        let leg = self.our_leg(direction);
        if !leg.stopped.get() {
            self.violation(format!("resume of the {direction:?}, which is not stopped"));
        }
        let has_trailers = way.trailers.borrow().is_some();
        match own.ended_in.get() {
            None => {
                self.overtakes_nothing("a resume", direction);
                if way.observed_end.get() {
                    self.violation(format!(
                        "a resume ends the {direction:?}, whose end an earlier filter holds"
                    ));
                }
                self.continue_from(direction, self.ours);
                if own.buffer.len() > 0 && !self.destroyed.get() {
                    self.inject_own(direction, false);
                }
                return;
            }
            Some(Part::Headers) if own.buffer.len() > 0 => {
                self.violation(format!("a {direction:?} without a body has one"));
            }
            Some(Part::Headers) if !has_trailers && leg.headers_continued.get() => {
                self.violation(format!(
                    "resume of a {direction:?} without a body whose headers have gone"
                ));
            }
            Some(Part::Data) if !has_trailers => return self.inject_own(direction, true),
            Some(_) => (),
        }
        if own.buffer.len() > 0 {
            self.inject_own(direction, false);
        }
        if self.destroyed.get() {
            return;
        }
        own.end_gone.set(true);
        self.continue_from(direction, self.ours);
    }

    pub(crate) fn add_trailers(&self, direction: Direction, now: bool) -> bool {
        let way = self.way(direction);
        let Some(hook) = way.hook.get().filter(|_| way.own.brings_end.get()) else {
            self.violation(format!(
                "trailers are added to the {direction:?} outside of the hook that brings its end"
            ));
            return false;
        };
        if way.trailers.borrow().is_some() {
            self.violation(format!("trailers are added to a {direction:?} that has some"));
        }
        let request_data = hook == Part::Data && direction == Direction::Request;
        if now && (!request_data || self.our_leg(direction).stopped.get()) {
            self.violation(format!("trailers of the {direction:?} would go twice, or never"));
        }
        if !now && request_data {
            return false;
        }
        *way.trailers.borrow_mut() = Some(Vec::new());
        way.own.added.set(Some(now));
        true
    }
}
