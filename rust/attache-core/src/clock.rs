//! How long a poll took, at a price that every poll can pay.
//!
//! Reading the precise clock twice costs about as much as the rest of a poll that does nothing. For
//! the budgets that are usual, the kernel's coarse clock, which moves with its ticks, is enough.

use std::time::Duration;

use rustix::time::{ClockId, clock_getres, clock_gettime};

/// Measures polls against a budget. All in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PollClock {
    clock: ClockId,
    budget: u64,
    /// Shorter ones are not told of.
    least: u64,
}

/// When a poll began.
#[derive(Clone, Copy)]
pub(crate) struct Started(u64);

impl PollClock {
    /// `all` says that every poll's time is wanted, not only of those over the budget.
    pub(crate) fn new(budget: Duration, all: bool) -> Self {
        let budget = u64::try_from(budget.as_nanos()).unwrap_or(u64::MAX);
        let tick = nanos(clock_getres(ClockId::MonotonicCoarse));
        // A poll over the budget then reads as at least half of it over.
        let coarse = !all && budget >= tick * 2;
        PollClock {
            clock: if coarse { ClockId::MonotonicCoarse } else { ClockId::Monotonic },
            budget,
            least: if all { 0 } else { budget.saturating_add(1) },
        }
    }

    #[inline]
    pub(crate) fn start(&self) -> Started {
        Started(self.now())
    }

    /// How long it took, if that was over the budget or all times are wanted. Coarse times are right
    /// to a tick of the kernel.
    #[inline]
    pub(crate) fn worth_telling(&self, started: Started) -> Option<Duration> {
        let took = self.now().saturating_sub(started.0);
        (took >= self.least).then(|| Duration::from_nanos(took))
    }

    pub(crate) fn budget(&self) -> Duration {
        Duration::from_nanos(self.budget)
    }

    #[inline]
    fn now(&self) -> u64 {
        nanos(clock_gettime(self.clock))
    }
}

/// A clock that counts from when the machine was started: no more than 64 bits of nanoseconds.
#[inline]
fn nanos(time: rustix::time::Timespec) -> u64 {
    (time.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec as u64)
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
                let precise = matches!(clock.clock, ClockId::Monotonic);
                assert_eq!(precise, all || budget.is_zero());
                let took = clock.worth_telling(started);
                assert!(if all { took.is_some() } else { took.is_none_or(|took| took > budget) });
                std::thread::sleep(budget + Duration::from_millis(20));
                assert!(clock.worth_telling(started).is_some_and(|took| took > clock.budget()));
            }
        }
    }
}
