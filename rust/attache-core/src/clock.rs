//! How long a poll took, at a price that every poll can pay.
//!
//! Reading the precise clock twice costs about as much as the rest of a poll that does nothing. For
//! the budgets that are usual, the kernel's coarse clock, which moves with its ticks, is enough.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_getres, clock_gettime};

/// Measures polls against a budget.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PollClock {
    budget: Duration,
    coarse: bool,
    all: bool,
}

/// When a poll began.
#[derive(Clone, Copy)]
pub(crate) enum Started {
    Coarse(Duration),
    Precise(Instant),
}

impl PollClock {
    /// `all` says that every poll's time is wanted, not only of those over the budget.
    pub(crate) fn new(budget: Duration, all: bool) -> Self {
        let tick = duration(clock_getres(ClockId::MonotonicCoarse));
        // A poll over the budget then reads as at least half of it over.
        PollClock { budget, coarse: !all && budget >= tick * 2, all }
    }

    pub(crate) fn start(&self) -> Started {
        if self.coarse { Started::Coarse(coarse()) } else { Started::Precise(Instant::now()) }
    }

    /// How long it took, if that was over the budget or all times are wanted. Coarse times are right
    /// to a tick of the kernel.
    pub(crate) fn worth_telling(&self, started: Started) -> Option<Duration> {
        let took = match started {
            Started::Coarse(then) => coarse().saturating_sub(then),
            Started::Precise(then) => then.elapsed(),
        };
        (took > self.budget || self.all).then_some(took)
    }

    pub(crate) fn budget(&self) -> Duration {
        self.budget
    }
}

fn coarse() -> Duration {
    duration(clock_gettime(ClockId::MonotonicCoarse))
}

fn duration(time: rustix::time::Timespec) -> Duration {
    Duration::try_from(time).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_poll_over_the_budget_is_told_by_either_clock() {
        for budget in [Duration::ZERO, Duration::from_millis(20)] {
            for all in [false, true] {
                let clock = PollClock::new(budget, all);
                let started = clock.start();
                assert_eq!(matches!(started, Started::Precise(_)), all || budget.is_zero());
                let took = clock.worth_telling(started);
                assert!(if all { took.is_some() } else { took.is_none_or(|took| took > budget) });
                std::thread::sleep(budget + Duration::from_millis(20));
                assert!(clock.worth_telling(started).is_some_and(|took| took > clock.budget()));
            }
        }
    }
}
