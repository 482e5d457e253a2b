//! [`Flow`] on hosts that emit at any time.
//!
//! What is held is in a private buffer of the host's, and output is injected between hooks. So a stop
//! buys nothing here that is not there without it, and the rules are about two other things.
//!
//! *Cost.* A data hook that has output for the whole of its frame answers Continue, with the output
//! in the frame's place: no post to the worker, and the direction is not stopped. Everything else
//! stops, and is moved right after the hook.
//!
//! *The other filters.* Where a hook answers Continue in a stopped direction, or a direction is
//! resumed, Envoy sends along whatever it has: bytes that others hold in Envoy's own buffer, and
//! trailers whose hook here has not run. An injection carries nothing along. So as long as anything
//! would be [overtaken](Around::overtakes), a direction stays stopped, and what is to go is injected.
//!
//! *Envoy's record of the end.* A continue also ends the message if Envoy has recorded that its end has
//! come, even if a filter before the one that continues still holds that. An injection without the
//! end takes the record back. So an end that is held here is taken off the record, for the sake of the
//! later filters; and before a direction is resumed whose end has not come by, something is injected,
//! nothing if need be: the end may be held by an earlier filter.

use super::{DataStep, Flow, Input, Mode, Move, Step};
use crate::host::{DataVerdict, Verdict};

/// What else is on the way in a direction. Only looked at before its end has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Around {
    /// A continue would carry along what is not ours.
    pub(crate) overtakes: bool,
    /// An earlier filter keeps the end of the message (or bytes, and so perhaps the end) and relies on
    /// Envoy's own record of it, which an injection without the end would change.
    pub(crate) blocked: bool,
}

impl Flow {
    pub(super) fn headers_any_time(&mut self) -> Step {
        let goes_on = match self.mode {
            Mode::Hold | Mode::Discard => false,
            Mode::Pass => true,
            // The end of a message without a body goes with the headers, or not with a hook at all.
            Mode::Pump => !self.ended || (self.out_done && self.out.is_empty() && !self.added),
        };
        let verdict = if goes_on {
            self.let_go(self.ended);
            Verdict::Continue
        } else {
            self.stopped = true;
            Verdict::Stop
        };
        Step { verdict, emit: false, again: false }
    }

    /// `frame`: the unread bytes of the frame. `overtakes`: only looked at while stopped.
    pub(crate) fn data_any_time(&mut self, frame: usize, overtakes: bool) -> DataStep {
        self.off_record = false;
        let step = self.data_step(frame, overtakes);
        let held = step.verdict != DataVerdict::Continue && !self.finished;
        self.end_recorded = held && self.ended && !self.trailers;
        step
    }

    fn data_step(&mut self, frame: usize, overtakes: bool) -> DataStep {
        let end = self.ended && !self.trailers;
        let through = !(self.stopped && overtakes);
        let go_on = |input, emit| DataStep { verdict: DataVerdict::Continue, input, emit };
        match self.mode {
            _ if self.finished => self.stop_dropping(),
            Mode::Discard => self.stop_dropping(),
            Mode::Hold => self.hold_privately(frame),
            Mode::Pass if !through => self.hold_privately(frame),
            Mode::Pass => {
                self.let_go(end);
                self.held = 0;
                go_on(Input::Leave, false)
            }
            Mode::Pump if end && self.out_done => {
                let input = self.left_over();
                // Added trailers go with a resume.
                if through && !self.added {
                    self.let_go(true);
                    return go_on(input, true);
                }
                self.stopped = true;
                DataStep { verdict: DataVerdict::StopNoBuffer, input, emit: false }
            }
            Mode::Pump => {
                // The frame's place is free when all that came with it, and before it, has been read.
                let free = !self.reader || self.held + frame == 0;
                // To keep going, a frame may go on empty.
                let worth = !self.out.is_empty() || (self.keeps_going && !self.stopped);
                match self.reader {
                    reader if free && worth && through && !end => {
                        self.let_go(false);
                        go_on(if reader { Input::Leave } else { Input::Drop }, true)
                    }
                    true => self.hold_privately(frame),
                    false => self.stop_dropping(),
                }
            }
        }
    }

    /// `overtakes`: only looked at while stopped.
    pub(crate) fn trailers_any_time(&mut self, overtakes: bool) -> Step {
        let nothing_before = match self.mode {
            Mode::Pass => self.held == 0,
            Mode::Pump => self.out_done && self.out.is_empty(),
            Mode::Hold | Mode::Discard => false,
        };
        if nothing_before && !self.finished && !(self.stopped && overtakes) {
            self.let_go(true);
            return Step {
                verdict: Verdict::Continue,
                emit: self.mode == Mode::Pump,
                again: false,
            };
        }
        self.stopped = true;
        Step { verdict: Verdict::Stop, emit: false, again: false }
    }

    /// What can be done while no hook is running. It changes nothing: whoever does it
    /// [says so](Flow::moved).
    pub(crate) fn plan(&self, around: impl FnOnce() -> Around) -> Move {
        match self.mode {
            _ if !self.started => Move::Nothing,
            Mode::Hold => Move::Nothing,
            Mode::Discard if self.held > 0 => Move::Drop,
            Mode::Discard => Move::Nothing,
            _ if self.finished => Move::Nothing,
            Mode::Pass if !self.stopped => Move::Nothing,
            Mode::Pass if self.ended => Move::Resume { input: Input::Leave },
            Mode::Pass => match around() {
                Around { blocked: true, .. } => Move::Nothing,
                Around { overtakes: false, .. } => self.plan_to_resume(),
                _ if self.held > 0 || !self.released => Move::Release,
                _ => Move::Nothing,
            },
            Mode::Pump if self.out_done && (self.ended || self.ends_early) => self.plan_the_end(),
            Mode::Pump if self.out.is_empty() && self.released => {
                if !self.reader && self.held > 0 {
                    return Move::Drop;
                }
                if self.end_recorded {
                    return Move::Inject { input: Input::Leave, end: false };
                }
                // Only in the wake of an injection: it is not worth one of its own.
                let may = self.keeps_going && self.off_record && self.stopped;
                if may && self.held == 0 && !self.ended && around() == Around::default() {
                    return self.plan_to_resume();
                }
                Move::Nothing
            }
            Mode::Pump if !self.ended && around().blocked => Move::Nothing,
            Mode::Pump => Move::Inject { input: Input::Leave, end: false },
        }
    }

    /// Before the end has come.
    fn plan_to_resume(&self) -> Move {
        match self.off_record {
            true => Move::Resume { input: Input::Leave },
            false => Move::Inject { input: Input::Leave, end: false },
        }
    }

    fn plan_the_end(&self) -> Move {
        let input = self.left_over();
        let trailers = self.ended && (self.trailers || self.added);
        match self.out.is_empty() {
            // A message that turns out to have no body keeps its form if its headers are still here.
            true if trailers || (self.ended && !self.released) => Move::Resume { input },
            false if trailers => Move::Inject { input: Input::Leave, end: false },
            _ => Move::Inject { input, end: true },
        }
    }

    /// A step is about to be done.
    pub(crate) fn moved(&mut self, step: &Move) {
        match *step {
            Move::Nothing | Move::Drop => (),
            Move::Resume { .. } => {
                let end = self.ended;
                self.let_go(end);
                if self.mode == Mode::Pass {
                    self.held = 0;
                }
            }
            Move::Release => {
                self.off_record = true;
                self.released = true;
                self.held = 0;
            }
            Move::Inject { end, .. } => {
                self.off_record = !end;
                self.end_recorded = false;
                self.released = true;
                self.finished |= end;
            }
        }
    }

    fn hold_privately(&mut self, frame: usize) -> DataStep {
        self.stopped = true;
        self.held += frame;
        DataStep { verdict: DataVerdict::StopAndWatermark, input: Input::Leave, emit: false }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const QUIET: Around = Around { overtakes: false, blocked: false };
    const OTHERS: Around = Around { overtakes: true, blocked: false };
    const BLOCKED: Around = Around { overtakes: false, blocked: true };

    const RELEASE_OUTPUT: Move = Move::Inject { input: Input::Leave, end: false };

    fn flow(mode: Mode) -> Flow {
        Flow { any_time: true, started: true, mode, ..Flow::new() }
    }

    /// A pump whose headers have gone.
    fn pump() -> Flow {
        let mut flow = flow(Mode::Pump);
        assert_eq!(flow.on_headers().verdict, Verdict::Continue);
        flow
    }

    fn output(flow: &mut Flow) {
        flow.out.push(Bytes::from_static(b"out"));
    }

    fn ended(flow: &mut Flow) {
        flow.ended = true;
    }

    #[test]
    fn output_needs_no_stop_and_no_input() {
        let mut flow = pump();
        assert_eq!(flow.plan(|| QUIET), Move::Nothing);
        output(&mut flow);
        assert!(!flow.stopped);
        assert_eq!(flow.plan(|| QUIET), RELEASE_OUTPUT);
        // It carries nothing along, whatever others hold.
        assert_eq!(flow.plan(|| OTHERS), RELEASE_OUTPUT);
    }

    #[test]
    fn output_for_all_of_a_frame_takes_its_place() {
        let mut flow = pump();
        output(&mut flow);
        let step = flow.data_any_time(0, false);
        assert_eq!((step.verdict, step.emit), (DataVerdict::Continue, true));
        assert!(!flow.stopped);
    }

    #[test]
    fn output_does_not_flush_input_that_is_still_to_be_read() {
        let mut flow = pump();
        output(&mut flow);
        let step = flow.data_any_time(4, false);
        assert_eq!((step.verdict, step.emit), (DataVerdict::StopAndWatermark, false));
        assert_eq!(flow.held, 4);
        assert_eq!(flow.plan(|| QUIET), RELEASE_OUTPUT);
        flow.moved(&RELEASE_OUTPUT);
        assert_eq!((flow.held, flow.stopped), (4, true));
    }

    #[test]
    fn a_stopped_direction_does_not_continue_past_what_others_hold() {
        let mut flow = pump();
        flow.stopped = true;
        output(&mut flow);
        assert_eq!(flow.data_any_time(0, true).verdict, DataVerdict::StopAndWatermark);
        assert_eq!(flow.data_any_time(0, false).verdict, DataVerdict::Continue);

        let mut flow = self::flow(Mode::Pass);
        flow.stopped = true;
        assert_eq!(flow.data_any_time(3, true).verdict, DataVerdict::StopAndWatermark);
        assert_eq!(flow.held, 3);
        assert_eq!(flow.plan(|| OTHERS), Move::Release);
        flow.moved(&Move::Release);
        assert_eq!((flow.held, flow.stopped, flow.released), (0, true, true));
        assert_eq!(flow.plan(|| OTHERS), Move::Nothing);
        assert_eq!(flow.plan(|| QUIET), Move::Resume { input: Input::Leave });
    }

    /// An earlier filter may hold the end that Envoy has on record.
    #[test]
    fn what_is_resumed_before_its_end_is_off_envoy_s_record() {
        let mut flow = flow(Mode::Pass);
        (flow.stopped, flow.released) = (true, true);
        assert_eq!(flow.plan(|| QUIET), RELEASE_OUTPUT);
        flow.moved(&RELEASE_OUTPUT);
        assert_eq!(flow.plan(|| QUIET), Move::Resume { input: Input::Leave });
        // Its own end is no other filter's.
        flow.off_record = false;
        ended(&mut flow);
        assert_eq!(flow.plan(|| QUIET), Move::Resume { input: Input::Leave });
    }

    #[test]
    fn a_passed_message_is_resumed_and_then_out_of_the_way() {
        let mut flow = flow(Mode::Hold);
        assert_eq!(flow.on_headers().verdict, Verdict::Stop);
        assert_eq!(flow.data_any_time(3, false).verdict, DataVerdict::StopAndWatermark);
        assert_eq!(flow.plan(|| QUIET), Move::Nothing);
        flow.mode = Mode::Pass;
        assert_eq!(flow.plan(|| QUIET), RELEASE_OUTPUT, "the headers");
        flow.moved(&RELEASE_OUTPUT);
        let resume = Move::Resume { input: Input::Leave };
        assert_eq!(flow.plan(|| QUIET), resume);
        flow.moved(&resume);
        assert_eq!(flow.plan(|| QUIET), Move::Nothing);
        assert_eq!(flow.held, 0);
    }

    #[test]
    fn nothing_is_injected_while_an_earlier_filter_relies_on_envoy_s_record_of_the_end() {
        let mut flow = pump();
        output(&mut flow);
        assert_eq!(flow.plan(|| BLOCKED), Move::Nothing);
        let mut flow = self::flow(Mode::Pass);
        flow.stopped = true;
        assert_eq!(flow.plan(|| BLOCKED), Move::Nothing);
    }

    #[test]
    fn the_end_goes_with_the_last_output() {
        let mut flow = pump();
        ended(&mut flow);
        assert_eq!(flow.data_any_time(3, false).verdict, DataVerdict::StopAndWatermark);
        output(&mut flow);
        assert_eq!(flow.plan(|| QUIET), RELEASE_OUTPUT, "more may come");
        flow.out_done = true;
        flow.reader = false;
        let end = Move::Inject { input: Input::Drop, end: true };
        assert_eq!(flow.plan(|| QUIET), end);
        flow.moved(&end);
        assert!(flow.finished);
        assert_eq!(flow.plan(|| QUIET), Move::Nothing);
    }

    #[test]
    fn the_end_goes_with_the_last_frame_if_all_is_done() {
        let mut flow = pump();
        ended(&mut flow);
        output(&mut flow);
        flow.out_done = true;
        let step = flow.data_any_time(0, false);
        assert_eq!((step.verdict, step.emit), (DataVerdict::Continue, true));
        assert!(flow.finished);
    }

    #[test]
    fn an_end_that_is_held_is_taken_off_envoy_s_record() {
        let mut flow = pump();
        ended(&mut flow);
        flow.data_any_time(0, false);
        assert_eq!(flow.plan(|| QUIET), RELEASE_OUTPUT);
        flow.moved(&RELEASE_OUTPUT);
        assert_eq!(flow.plan(|| QUIET), Move::Nothing);
    }

    #[test]
    fn trailers_go_with_a_resume_after_the_output() {
        let mut flow = pump();
        ended(&mut flow);
        flow.trailers = true;
        output(&mut flow);
        flow.out_done = true;
        assert_eq!(flow.trailers_any_time(false).verdict, Verdict::Stop);
        assert_eq!(flow.plan(|| QUIET), RELEASE_OUTPUT);
        flow.out.clear();
        assert_eq!(flow.plan(|| QUIET), Move::Resume { input: Input::Take });
    }

    #[test]
    fn trailers_with_nothing_before_them_go_at_once() {
        let mut flow = pump();
        ended(&mut flow);
        flow.trailers = true;
        flow.out_done = true;
        assert_eq!(flow.trailers_any_time(true).verdict, Verdict::Continue);
        assert!(flow.finished);

        let mut flow = self::flow(Mode::Pass);
        (flow.stopped, flow.held, flow.trailers) = (true, 3, true);
        ended(&mut flow);
        assert_eq!(flow.trailers_any_time(false).verdict, Verdict::Stop, "bytes are held");
        assert_eq!(flow.plan(|| QUIET), Move::Resume { input: Input::Leave });
    }

    #[test]
    fn added_trailers_go_with_a_resume() {
        let mut flow = pump();
        ended(&mut flow);
        output(&mut flow);
        (flow.out_done, flow.added) = (true, true);
        assert_eq!(flow.data_any_time(0, false).verdict, DataVerdict::StopNoBuffer);
        assert_eq!(flow.plan(|| QUIET), RELEASE_OUTPUT);
        flow.out.clear();
        flow.moved(&RELEASE_OUTPUT);
        assert_eq!(flow.plan(|| QUIET), Move::Resume { input: Input::Take });
    }

    #[test]
    fn a_message_that_gets_no_body_keeps_its_form() {
        let mut flow = flow(Mode::Hold);
        ended(&mut flow);
        assert_eq!(flow.on_headers().verdict, Verdict::Stop);
        (flow.mode, flow.out_done, flow.reader) = (Mode::Pump, true, false);
        assert_eq!(flow.plan(|| QUIET), Move::Resume { input: Input::Drop });
    }

    #[test]
    fn headers_do_not_wait_for_the_output() {
        let mut flow = flow(Mode::Pump);
        ended(&mut flow);
        assert_eq!(flow.on_headers().verdict, Verdict::Stop, "a body follows");
        assert_eq!(flow.plan(|| QUIET), RELEASE_OUTPUT);
    }

    #[test]
    fn a_replacement_ends_before_what_it_replaces() {
        let mut flow = pump();
        (flow.ends_early, flow.reader) = (true, false);
        output(&mut flow);
        flow.out_done = true;
        let end = Move::Inject { input: Input::Drop, end: true };
        assert_eq!(flow.plan(|| QUIET), end);
        flow.moved(&end);
        assert_eq!(flow.data_any_time(3, false).verdict, DataVerdict::StopNoBuffer);
        ended(&mut flow);
        assert_eq!(flow.trailers_any_time(false).verdict, Verdict::Stop);
    }

    #[test]
    fn what_may_get_trailers_is_not_stopped_without_need() {
        let mut flow = pump();
        flow.keeps_going = true;
        assert_eq!(flow.data_any_time(0, false).verdict, DataVerdict::Continue, "it was read");
        assert!(!flow.stopped);
        assert_eq!(flow.data_any_time(3, false).verdict, DataVerdict::StopAndWatermark);
        output(&mut flow);
        flow.moved(&RELEASE_OUTPUT);
        (flow.held, flow.out) = (0, Default::default());
        assert_eq!(flow.plan(|| OTHERS), Move::Nothing);
        let resume = Move::Resume { input: Input::Leave };
        assert_eq!(flow.plan(|| QUIET), resume);
        flow.moved(&resume);
        assert!(!flow.stopped);
        flow.reader = false;
        let step = flow.data_any_time(3, false);
        assert_eq!((step.verdict, step.input), (DataVerdict::Continue, Input::Drop));
    }

    #[test]
    fn input_that_nobody_reads_is_dropped() {
        let mut flow = pump();
        flow.data_any_time(3, false);
        flow.reader = false;
        assert_eq!(flow.plan(|| QUIET), Move::Drop);
        assert_eq!(flow.data_any_time(3, false).input, Input::Drop);
        flow.mode = Mode::Discard;
        assert_eq!(flow.data_any_time(3, false).input, Input::Drop);
    }

    #[test]
    fn output_is_bounded_at_any_time() {
        let mut flow = pump();
        ended(&mut flow);
        flow.out.push(Bytes::from(vec![0; super::super::OUTPUT_LIMIT]));
        assert!(!flow.wants_output());
    }
}
