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
//! And when a later filter continues on its own, Envoy ends the message if it has recorded its end,
//! even if that is still held here. An injection without the end takes that record back.

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
            Mode::Pump if !self.reader => {
                if end || self.out.is_empty() || !through {
                    return self.stop_dropping();
                }
                self.let_go(false);
                go_on(Input::Drop, true)
            }
            // The frame's place is free when all that came with it, and before it, has been read.
            Mode::Pump if !end && !self.out.is_empty() && through && self.held + frame == 0 => {
                self.let_go(false);
                go_on(Input::Leave, true)
            }
            Mode::Pump => self.hold_privately(frame),
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
                Around { overtakes: false, .. } => Move::Resume { input: Input::Leave },
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
                let may = self.goes_back && self.stopped && self.held == 0 && !self.ended;
                if may && around() == Around::default() {
                    return Move::Resume { input: Input::Leave };
                }
                Move::Nothing
            }
            Mode::Pump if !self.ended && around().blocked => Move::Nothing,
            Mode::Pump => Move::Inject { input: Input::Leave, end: false },
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
                self.released = true;
                self.held = 0;
            }
            Move::Inject { end, .. } => {
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
