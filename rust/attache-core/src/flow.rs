//! One direction of an exchange, as a state machine without effects.
//!
//! [`Flow`] knows what has arrived, what the filter has let go, and what is waiting to go out. From
//! that it says what a hook must answer ([`Flow::on_headers`], [`Flow::on_data`],
//! [`Flow::on_trailers`]) and what can be done between hooks ([`Flow::between_hooks`]). It touches
//! nothing: `exchange.rs` carries its steps out.
//!
//! # The rules it encodes
//!
//! Envoy's filter manager stops a direction when a hook says so, and a stop buys exactly one
//! `resume`. After a resume, nothing can be emitted until a later hook of that direction has stopped
//! again. So output leaves in one of three ways: appended to the frame of a data hook that answers
//! Continue; appended to Envoy's buffer before a resume; or, once the input has ended, all together
//! with the one resume that is left.
//!
//! Envoy's buffer is shared by all filters of the chain. `held` counts the bytes in it that are
//! ours to read. When another filter's bytes are in it too, ours must not join them: the frame is
//! taken into `pending` instead, and the other filter's watermark keeps the sender back.
//!
//! That is the common kind of host. The rules for one that emits at any time are in `any_time.rs`.

mod any_time;

use std::collections::VecDeque;
use std::fmt;

use bytes::Bytes;

use crate::host::{DataVerdict, Verdict};
use crate::lazy::Rarely;

pub(crate) use any_time::Around;

/// Output that is ready is no longer asked for beyond this many bytes.
pub(crate) const OUTPUT_LIMIT: usize = 64 * 1024;

/// What happens to a direction's message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The filter has not let it go.
    Hold,
    /// It goes on as it comes.
    Pass,
    /// The filter's output goes on in place of the input.
    Pump,
    /// Nobody wants it any more.
    Discard,
}

/// The hook that is on the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    Headers,
    Data,
    Trailers,
}

/// First what every event looks at: it is then near the start of the exchange.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Flow {
    pub(crate) mode: Mode,
    pub(crate) hook: Option<Hook>,
    /// The headers hook has run.
    pub(crate) started: bool,
    /// The input has ended: no hook of this direction will come any more.
    pub(crate) ended: bool,
    pub(crate) trailers: bool,
    /// The headers have been let go.
    pub(crate) released: bool,
    /// The message's end has been let go.
    pub(crate) finished: bool,
    /// A resume would work.
    pub(crate) stopped: bool,
    /// The host emits at any time.
    pub(crate) any_time: bool,
    /// Somebody may still read the input.
    pub(crate) reader: bool,
    /// The filter has taken bytes: the declared length is no longer right.
    pub(crate) taken: bool,
    /// Later filters have been told that the end is kept back here.
    pub(crate) end_kept: bool,
    /// There will be no more output.
    pub(crate) out_done: bool,
    /// There is a map for trailers that the message came without.
    pub(crate) added: bool,
    /// The message ends with the output, whatever is still to come of the input.
    pub(crate) ends_early: bool,
    /// Envoy's record says that the message has ended, and the end is held here.
    pub(crate) end_recorded: bool,
    /// The last thing that was moved has taken the end off Envoy's record, in this event.
    pub(crate) off_record: bool,
    /// It is not stopped without need, so that trailers can still be added.
    pub(crate) keeps_going: bool,
    /// For how many reasons the next hop is full.
    pub(crate) full: u32,
    /// Bytes in Envoy's buffer that are ours.
    pub(crate) held: usize,
    /// Input that was taken out of Envoy to make room for output.
    pub(crate) pending: Queue,
    /// Output that is ready to go.
    pub(crate) out: Queue,
}

/// A queue of chunks that knows its length in bytes. Most never hold one: those cost nothing.
pub(crate) struct Queue(Rarely<Chunks>);

impl Default for Queue {
    fn default() -> Self {
        Queue(Rarely::NOT)
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.get().fmt(f)
    }
}

#[derive(Debug, Default)]
struct Chunks {
    chunks: VecDeque<Bytes>,
    len: usize,
}

impl Queue {
    pub(crate) fn push(&mut self, chunk: Bytes) {
        if !chunk.is_empty() {
            let queue = self.0.get_or_make(Chunks::default);
            queue.len += chunk.len();
            queue.chunks.push_back(chunk);
        }
    }
    pub(crate) fn pop(&mut self) -> Option<Bytes> {
        let queue = self.0.get_mut()?;
        let chunk = queue.chunks.pop_front()?;
        queue.len -= chunk.len();
        Some(chunk)
    }
    /// Takes out the first bytes: no more than this many.
    pub(crate) fn split_to(&mut self, limit: usize) -> Queue {
        if self.len() <= limit {
            return std::mem::take(self);
        }
        let mut first = Queue::default();
        while first.len() < limit
            && let Some(mut chunk) = self.pop()
        {
            let part = chunk.split_to(chunk.len().min(limit - first.len()));
            first.push(part);
            self.push_front(chunk);
        }
        first
    }
    fn push_front(&mut self, chunk: Bytes) {
        if !chunk.is_empty() {
            let queue = self.0.get_or_make(Chunks::default);
            queue.len += chunk.len();
            queue.chunks.push_front(chunk);
        }
    }
    pub(crate) fn len(&self) -> usize {
        self.0.get().map_or(0, |queue| queue.len)
    }
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Whether there was never anything in it.
    pub(crate) fn is_unused(&self) -> bool {
        !self.0.is_there()
    }
    pub(crate) fn clear(&mut self) {
        *self = Queue::default();
    }
    pub(crate) fn into_chunks(mut self) -> impl Iterator<Item = Bytes> {
        self.0.take().into_iter().flat_map(|queue| queue.chunks)
    }
    pub(crate) fn for_each(&self, mut f: impl FnMut(&[u8])) {
        self.0.get().into_iter().flat_map(|queue| &queue.chunks).for_each(|chunk| f(chunk));
    }
}

/// What the data hook sees of Envoy's buffers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    /// Unread bytes of the frame.
    pub(crate) frame: usize,
    /// The frame is Envoy's buffer itself.
    pub(crate) frame_is_buffer: bool,
    /// All bytes in Envoy's buffer, whoever they belong to.
    pub(crate) buffer: usize,
    /// The most bytes to take out of Envoy to make room for output. Only looked at in `Pump`.
    pub(crate) limit: usize,
    /// The message's trailers are there, though their hook has not run. Only looked at while
    /// stopped.
    pub(crate) trailers_follow: bool,
}

/// What to do with unread input before output goes to the same place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// Leave it where it is.
    Leave,
    /// Take it into `pending`.
    Take,
    /// Drop it.
    Drop,
}

/// A step of a headers or trailers hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) verdict: Verdict,
    /// Append the output to Envoy's buffer first.
    pub(crate) emit: bool,
    /// Ask to be scheduled, to go on outside of the hook.
    pub(crate) again: bool,
}

/// A step of a data hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DataStep {
    pub(crate) verdict: DataVerdict,
    pub(crate) input: Input,
    /// Append the output to the frame.
    pub(crate) emit: bool,
}

/// A step between hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Move {
    Nothing,
    /// Deal with the input, append the output to Envoy's buffer, and resume.
    Resume {
        input: Input,
    },
    /// Drop the input that is held.
    Drop,
    /// Deal with the input, and inject the output. Where output may be emitted at any time, so are
    /// the next two.
    Inject {
        input: Input,
        end: bool,
    },
    /// Let the held headers and input go, and stay stopped.
    Release,
}

impl Flow {
    pub(crate) fn new() -> Self {
        Flow {
            mode: Mode::Hold,
            hook: None,
            started: false,
            ended: false,
            trailers: false,
            released: false,
            finished: false,
            stopped: false,
            end_kept: false,
            held: 0,
            pending: Queue::default(),
            out: Queue::default(),
            out_done: false,
            reader: true,
            taken: false,
            any_time: false,
            added: false,
            ends_early: false,
            end_recorded: false,
            off_record: false,
            keeps_going: false,
            full: 0,
        }
    }

    /// Nothing has ever been queued.
    pub(crate) fn is_empty(&self) -> bool {
        self.pending.is_unused() && self.out.is_unused()
    }

    /// Whether something can be moved between hooks: only what a hook has stopped, or where output is
    /// injected, and not while a hook runs.
    pub(crate) fn is_movable(&self) -> bool {
        self.hook.is_none() && (self.stopped || (self.any_time && self.mode == Mode::Pump))
    }

    /// Whether all of the message has been let go. Data that passes by is not noted one by one.
    pub(crate) fn has_gone(&self) -> bool {
        let passes = self.mode == Mode::Pass && self.hook.is_none() && !self.stopped;
        let ends_with_data = self.ended && !self.trailers && !self.added;
        self.finished || (passes && ends_with_data && self.released)
    }

    /// Whether the pump should be asked for more.
    pub(crate) fn wants_output(&self) -> bool {
        let together = self.ended && !self.any_time;
        self.mode == Mode::Pump && !self.out_done && (together || self.out.len() < OUTPUT_LIMIT)
    }

    fn let_go(&mut self, end: bool) {
        self.stopped = false;
        self.released = true;
        self.finished |= end;
    }

    /// Lets the headers go and ends their hook, where that is all there is to do, as in most: a
    /// message that passes leaves nothing to be moved after the hook, on any host.
    #[inline(always)]
    pub(crate) fn pass_headers(&mut self) -> bool {
        let passes = self.mode == Mode::Pass;
        if passes {
            self.let_go(self.ended);
            self.hook = None;
        }
        passes
    }

    pub(crate) fn on_headers(&mut self) -> Step {
        if self.any_time {
            return self.headers_any_time();
        }
        let (verdict, emit) = match self.mode {
            Mode::Hold | Mode::Discard => (Verdict::Stop, false),
            Mode::Pass => (Verdict::Continue, false),
            // More will come: the headers go now, the output with the frames.
            Mode::Pump if !self.ended => (Verdict::Continue, false),
            Mode::Pump if self.out_done => (Verdict::Continue, true),
            Mode::Pump => (Verdict::Stop, false),
        };
        match verdict {
            Verdict::Continue => self.let_go(self.ended),
            Verdict::Stop => self.stopped = true,
        }
        Step { verdict, emit, again: false }
    }

    pub(crate) fn on_data(&mut self, seen: Seen) -> DataStep {
        // Ended with trailers means that the trailers hook brings the end.
        let end = self.ended && !self.trailers;
        match self.mode {
            // An earlier filter lets go a whole message at once. Were we to continue now, Envoy
            // would send the trailers with the data, and then once more after their own hook. That
            // hook is next, and can let everything go.
            Mode::Pass | Mode::Pump if self.stopped && seen.trailers_follow => self.hold(seen),
            Mode::Pass => {
                self.let_go(end);
                self.held = 0;
                DataStep { verdict: DataVerdict::Continue, input: Input::Leave, emit: false }
            }
            Mode::Hold => self.hold(seen),
            Mode::Discard => self.stop_dropping(),
            Mode::Pump if end && self.out_done => {
                self.let_go(true);
                DataStep { verdict: DataVerdict::Continue, input: self.left_over(), emit: true }
            }
            Mode::Pump if end && !self.reader => self.stop_dropping(),
            Mode::Pump if end => self.hold(seen),
            Mode::Pump => {
                if self.out.is_empty() && self.released {
                    return if self.reader { self.hold(seen) } else { self.stop_dropping() };
                }
                let input = self.make_room(self.unread(seen), seen.limit);
                if input == Input::Leave {
                    return self.hold(seen);
                }
                self.let_go(false);
                DataStep { verdict: DataVerdict::Continue, input, emit: true }
            }
        }
    }

    pub(crate) fn on_trailers(&mut self) -> Step {
        let stop = Step { verdict: Verdict::Stop, emit: false, again: false };
        match self.mode {
            Mode::Hold | Mode::Discard => {
                self.stopped = true;
                stop
            }
            Mode::Pass => {
                self.let_go(true);
                self.held = 0;
                Step { verdict: Verdict::Continue, emit: false, again: false }
            }
            // Nothing is stopped, so Envoy would leave in its buffer what we put there now. After
            // a stop, a resume sends it.
            Mode::Pump if self.out_done && !self.stopped && !self.out.is_empty() => {
                self.stopped = true;
                Step { again: true, ..stop }
            }
            Mode::Pump if self.out_done => {
                self.let_go(true);
                Step { verdict: Verdict::Continue, emit: true, again: false }
            }
            Mode::Pump => {
                self.stopped = true;
                stop
            }
        }
    }

    /// Whether a resume before the message's end would carry along what an earlier filter holds:
    /// bytes in the shared buffer, or trailers. The hook that brings them to us is still to come.
    pub(crate) fn would_overtake(&self, buffer: usize, trailers: bool) -> bool {
        trailers || buffer > self.held
    }

    /// Between hooks. The caller has to carry the step out before it calls again. `limit` is only looked
    /// at in `Pump`.
    pub(crate) fn between_hooks(&mut self, limit: usize) -> Move {
        match self.mode {
            Mode::Hold => Move::Nothing,
            Mode::Discard if self.held > 0 => Move::Drop,
            Mode::Discard => Move::Nothing,
            _ if !self.stopped || self.finished => Move::Nothing,
            Mode::Pass => {
                self.let_go(self.ended);
                self.held = 0;
                Move::Resume { input: Input::Leave }
            }
            Mode::Pump if self.ended => {
                if !self.out_done {
                    return Move::Nothing;
                }
                self.let_go(true);
                Move::Resume { input: self.left_over() }
            }
            Mode::Pump => {
                if self.out.is_empty() && self.released {
                    return if !self.reader && self.held > 0 { Move::Drop } else { Move::Nothing };
                }
                let input = self.make_room(self.held, limit);
                if input == Input::Leave {
                    return Move::Nothing;
                }
                self.let_go(false);
                Move::Resume { input }
            }
        }
    }

    /// Where unread input goes when output takes its place. `Leave`: it cannot go, try later.
    fn make_room(&self, unread: usize, limit: usize) -> Input {
        if !self.reader {
            Input::Drop
        } else if self.pending.is_empty() || self.pending.len() + unread <= limit {
            Input::Take
        } else {
            Input::Leave
        }
    }

    /// What becomes of unread input when the message's end goes.
    pub(crate) fn left_over(&self) -> Input {
        if self.reader { Input::Take } else { Input::Drop }
    }

    fn unread(&self, seen: Seen) -> usize {
        if seen.frame_is_buffer { seen.frame } else { self.held + seen.frame }
    }

    fn hold(&mut self, seen: Seen) -> DataStep {
        self.stopped = true;
        if !seen.frame_is_buffer && seen.buffer > self.held {
            // Another filter's bytes are in Envoy's buffer.
            return DataStep {
                verdict: DataVerdict::StopNoBuffer,
                input: Input::Take,
                emit: false,
            };
        }
        self.held = self.unread(seen);
        DataStep { verdict: DataVerdict::StopAndWatermark, input: Input::Leave, emit: false }
    }

    fn stop_dropping(&mut self) -> DataStep {
        self.stopped = true;
        DataStep { verdict: DataVerdict::StopNoBuffer, input: Input::Drop, emit: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 100;

    fn frame(len: usize) -> Seen {
        Seen { frame: len, frame_is_buffer: false, buffer: 0, limit: LIMIT, trailers_follow: false }
    }

    fn pump() -> Flow {
        let mut flow = Flow::new();
        flow.mode = Mode::Pump;
        flow
    }

    #[test]
    fn a_held_message_stays_in_envoy_under_its_watermarks() {
        let mut flow = Flow::new();
        assert_eq!(flow.on_headers().verdict, Verdict::Stop);
        let step = flow.on_data(frame(10));
        assert_eq!(step.verdict, DataVerdict::StopAndWatermark);
        assert_eq!(flow.held, 10);
        assert_eq!(flow.between_hooks(LIMIT), Move::Nothing);
    }

    #[test]
    fn a_passed_message_is_resumed_once() {
        let mut flow = Flow::new();
        flow.on_headers();
        flow.mode = Mode::Pass;
        assert_eq!(flow.between_hooks(LIMIT), Move::Resume { input: Input::Leave });
        assert_eq!(flow.between_hooks(LIMIT), Move::Nothing);
        assert_eq!(flow.on_data(frame(1)).verdict, DataVerdict::Continue);
    }

    #[test]
    fn output_in_a_data_hook_takes_the_frame_s_place() {
        let mut flow = pump();
        assert_eq!(flow.on_headers().verdict, Verdict::Continue);
        flow.out.push(Bytes::from_static(b"out"));
        let step = flow.on_data(frame(4));
        assert_eq!(
            step,
            DataStep { verdict: DataVerdict::Continue, input: Input::Take, emit: true }
        );
    }

    #[test]
    fn after_the_end_one_resume_sends_everything() {
        let mut flow = pump();
        flow.on_headers();
        flow.ended = true;
        assert_eq!(flow.on_data(frame(4)).verdict, DataVerdict::StopAndWatermark);
        flow.held = 0;
        flow.out.push(Bytes::from_static(b"part"));
        assert_eq!(flow.between_hooks(LIMIT), Move::Nothing, "more may come");
        flow.out_done = true;
        flow.reader = false;
        assert_eq!(flow.between_hooks(LIMIT), Move::Resume { input: Input::Drop });
        assert!(flow.finished);
        assert_eq!(flow.between_hooks(LIMIT), Move::Nothing);
    }

    #[test]
    fn without_a_stop_output_waits_for_the_next_frame() {
        let mut flow = pump();
        flow.on_headers();
        flow.out.push(Bytes::from_static(b"out"));
        assert_eq!(flow.between_hooks(LIMIT), Move::Nothing);
    }

    #[test]
    fn input_that_makes_room_for_output_is_bounded() {
        let mut flow = pump();
        flow.on_headers();
        flow.pending.push(Bytes::from(vec![0; LIMIT]));
        flow.out.push(Bytes::from_static(b"out"));
        let step = flow.on_data(frame(1));
        assert_eq!(step.verdict, DataVerdict::StopAndWatermark);
        assert!(!step.emit);
    }

    #[test]
    fn bytes_of_another_filter_are_never_joined() {
        let mut flow = pump();
        flow.on_headers();
        let step = flow.on_data(Seen { buffer: 7, ..frame(4) });
        assert_eq!(step.verdict, DataVerdict::StopNoBuffer);
        assert_eq!(step.input, Input::Take);
        assert_eq!(flow.held, 0);
    }

    #[test]
    fn a_queue_gives_its_first_bytes_away_in_order() {
        let mut queue = Queue::default();
        for chunk in ["abc", "d", "efghij"] {
            queue.push(Bytes::from_static(chunk.as_bytes()));
        }
        let mut taken = Vec::new();
        while !queue.is_empty() {
            let first = queue.split_to(4);
            let mut bytes = Vec::new();
            first.for_each(|chunk| bytes.extend_from_slice(chunk));
            assert_eq!(bytes.len(), first.len());
            taken.push(bytes);
        }
        assert_eq!(taken, [b"abcd".as_slice(), b"efgh", b"ij"]);
        assert!(queue.split_to(4).is_empty());
    }

    #[test]
    fn a_bodyless_message_gets_its_output_with_the_headers() {
        let mut flow = pump();
        flow.ended = true;
        flow.out_done = true;
        flow.out.push(Bytes::from_static(b"new"));
        assert_eq!(
            flow.on_headers(),
            Step { verdict: Verdict::Continue, emit: true, again: false }
        );
        assert!(flow.finished);
    }

    #[test]
    fn trailers_wait_for_the_output_before_them() {
        let mut flow = pump();
        flow.on_headers();
        flow.on_data(frame(4));
        flow.ended = true;
        flow.trailers = true;
        assert_eq!(flow.on_trailers().verdict, Verdict::Stop);
        flow.out_done = true;
        assert_eq!(flow.between_hooks(LIMIT), Move::Resume { input: Input::Take });
    }

    #[test]
    fn input_that_somebody_may_still_read_is_never_dropped() {
        let mut flow = pump();
        flow.out_done = true;
        flow.on_headers();
        assert_eq!(flow.on_data(frame(4)).verdict, DataVerdict::StopAndWatermark);
        flow.ended = true;
        assert_eq!(flow.on_data(frame(4)).input, Input::Take);
    }
}
