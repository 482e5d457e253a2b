//! The engine on hosts that emit at any time: what is different in the hooks, and what is moved
//! between them.

use std::rc::Rc;

use super::{BOTH, Inner, no_new_trailers};
use crate::error::Result;
use crate::flow::{Around, Flow, Hook, Input, Mode, Move, OUTPUT_LIMIT};
use crate::host::{Area, DataVerdict, Direction};

impl Inner {
    /// The rest of a data hook, after the poll.
    pub(super) fn on_data_any_time(
        self: &Rc<Self>,
        direction: Direction,
        end: bool,
    ) -> DataVerdict {
        let trailers_now = end && self.prepare_end(direction, Hook::Data);
        if !self.alive.get() {
            self.end_hook(direction);
            return DataVerdict::StopNoBuffer;
        }
        let stopped = self.state.borrow_mut().flow(direction).stopped;
        let overtakes = stopped && self.around(direction) != Around::default();
        let frame = self.host.body_len(direction, Area::Frame);
        let step = self.state.borrow_mut().flow(direction).data_any_time(frame, overtakes);
        self.deal_with_input(direction, step.input);
        if step.emit {
            self.append_output(direction, Area::Frame);
        }
        if trailers_now && !self.finish_trailers(direction) {
            self.settle();
        }
        if end && step.verdict != DataVerdict::Continue {
            self.keep_end(direction);
        }
        if self.end_hook(direction) { step.verdict } else { DataVerdict::StopNoBuffer }
    }

    /// The end of a message has come without trailers, and the hook that brings it is the one place
    /// where some can be added. Returns whether they were, to go with what the hook lets go.
    pub(super) fn prepare_end(self: &Rc<Self>, direction: Direction, hook: Hook) -> bool {
        match self.make_place_for_trailers(direction, hook) {
            Ok(now) => now,
            Err(error) => {
                self.fail(error);
                self.settle();
                false
            }
        }
    }

    fn make_place_for_trailers(&self, direction: Direction, hook: Hook) -> Result<bool> {
        let mut state = self.state.borrow_mut();
        let side = state.side(direction);
        let made = side.rare.out_trailers.as_ref().is_some_and(|t| !t.is_empty());
        let done = side.flow.out_done;
        let wanted = match side.flow.mode {
            // As long as the pump runs, nobody can say whether it ends with some.
            Mode::Pump => !side.flow.finished && (made || !done),
            // Nor what the filter will make of what it holds.
            Mode::Hold => direction == Direction::Response && hook == Hook::Data,
            Mode::Pass | Mode::Discard => false,
        };
        if !wanted {
            return Ok(false);
        }
        let at_data = hook == Hook::Data && direction == Direction::Request;
        let now = made && done && at_data && !side.flow.stopped;
        drop(state);
        let added = self
            .read(|host| host.capabilities().new_trailers && host.add_trailers(direction, now))
            == Some(true);
        if made && !added {
            return Err(no_new_trailers());
        }
        self.state.borrow_mut().flow(direction).added = added && !now;
        Ok(added && now)
    }

    /// Whether a response that replaces the upstream's may end with trailers: there are some, or a
    /// hook is still to come that can add them.
    pub(super) fn may_end_with_trailers(&self) -> bool {
        let mut state = self.state.borrow_mut();
        let side = &mut state.response;
        let place = side.flow.trailers || side.flow.added;
        let comes = place || !side.flow.ended || side.flow.hook.is_some();
        self.any_time && comes && self.read(|host| host.capabilities().new_trailers) == Some(true)
    }

    /// What else is on the way in a direction.
    pub(super) fn around(&self, direction: Direction) -> Around {
        self.around_flow(direction, self.state.borrow_mut().flow(direction))
    }

    fn around_flow(&self, direction: Direction, flow: &Flow) -> Around {
        self.read(|host| {
            let others = host.others_hold(direction);
            let seen = flow.trailers || flow.added;
            let overtakes = others || (!seen && host.headers(direction.trailers(), &mut |_, _| ()));
            // Before the headers have gone, only earlier filters can hold anything.
            let earlier = others && !flow.released;
            Around { overtakes, blocked: !flow.ended && (earlier || host.end_is_kept(direction)) }
        })
        .unwrap_or_default()
    }

    fn plan(&self, direction: Direction) -> Move {
        let mut state = self.state.borrow_mut();
        let flow = &*state.flow(direction);
        if !flow.is_movable() {
            return Move::Nothing;
        }
        flow.plan(|| self.around_flow(direction, flow))
    }

    /// What a hook has left to be done is done after it. Envoy has no place for that but a post.
    pub(super) fn wake_to_move(&self) {
        if self.alive.get()
            && !self.state.borrow().completed
            && BOTH.into_iter().any(|direction| self.plan(direction) != Move::Nothing)
        {
            self.wake.wake();
        }
    }

    /// Does what can be done for a direction, if no hook is running.
    pub(super) fn move_on(self: &Rc<Self>, direction: Direction) {
        self.state.borrow_mut().flow(direction).off_record = false;
        loop {
            {
                let mut state = self.state.borrow_mut();
                let in_hook = BOTH.into_iter().any(|d| state.flow(d).hook.is_some());
                if in_hook || state.completed || !self.alive.get() {
                    return;
                }
            }
            let step = self.plan(direction);
            if step == Move::Nothing || !self.take_step(direction, step) {
                return;
            }
        }
    }

    /// Returns whether there may be another step.
    fn take_step(self: &Rc<Self>, direction: Direction, step: Move) -> bool {
        let mut state = self.state.borrow_mut();
        let side = state.side(direction);
        side.flow.moved(&step);
        let last = side.flow.finished;
        let with_trailers = side.flow.trailers || side.flow.added;
        let end_kept = last && std::mem::take(&mut side.flow.end_kept);
        drop(state);
        if end_kept {
            self.read(|host| host.keep_end(direction, false));
        }
        match step {
            Move::Nothing => false,
            Move::Drop => {
                self.deal_with_input(direction, Input::Drop);
                true
            }
            Move::Release => {
                self.read(|host| host.release(direction));
                true
            }
            Move::Resume { input } => {
                if last && with_trailers && !self.finish_trailers(direction) {
                    return false;
                }
                self.deal_with_input(direction, input);
                if self.is_wanted(direction) {
                    self.read(|host| host.resume(direction));
                }
                true
            }
            Move::Inject { input, end } => {
                self.deal_with_input(direction, input);
                if self.is_wanted(direction) {
                    self.inject(direction, end);
                }
                true
            }
        }
    }

    fn inject(&self, direction: Direction, end: bool) {
        let out = {
            let mut state = self.state.borrow_mut();
            let side = state.side(direction);
            if !side.flow.out_done && side.flow.out.len() >= OUTPUT_LIMIT {
                // The pump was held back; it may go on.
                self.wake.wake();
            }
            std::mem::take(&mut side.flow.out)
        };
        self.read(|host| host.inject(direction, &mut out.into_chunks(), end));
    }
}
