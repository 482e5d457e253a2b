//! What the runtime counts by itself for every filter: `attache.<filter>.*` in Envoy's stats.
//!
//! Envoy's own metrics cost a call, a look-up and an atomic operation per change, too much for what
//! happens in every exchange. So each worker counts in cells that only it writes to, and somebody
//! (`flush.rs`, or the host) now and then hands the sums on.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::ConfigError;
use crate::filter::{Outcome, Setup};
use crate::metrics::{MetricId, MetricKind, MetricOp, MetricSink};

/// What is counted where exchanges run.
#[derive(Clone, Copy)]
pub(crate) enum Count {
    /// `handle` was started.
    Started,
    /// `handle` has returned, or was dropped.
    Handled,
    /// Something outside of Envoy woke the exchange.
    Woken,
    /// An exchange has ended in another way than the two below.
    Ended,
    Replied,
    Cancelled,
    /// `handle_reply` was started.
    HandledReply,
}

impl From<Outcome> for Count {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Replied => Count::Replied,
            Outcome::Cancelled => Count::Cancelled,
            // Errors and panics are counted where they happen.
            Outcome::Responded
            | Outcome::Failed
            | Outcome::Panicked
            | Outcome::Reset
            | Outcome::Recreated => Count::Ended,
        }
    }
}

/// How many there are: one cache line of cells.
const COUNTS: usize = 8;

#[derive(Default)]
#[repr(align(64))]
struct Cells([AtomicU64; COUNTS]);

/// How many threads have cells of their own: 8 KiB for each config. Envoys with more workers than this
/// count the others' exchanges in cells that those share.
const THREADS: usize = 128;

/// A number for a thread that counts.
pub(crate) fn next_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Cells for each thread that counts.
struct Counts {
    own: [Cells; THREADS],
    shared: Cells,
}

impl Counts {
    fn new() -> Self {
        Counts { own: std::array::from_fn(|_| Cells::default()), shared: Cells::default() }
    }

    #[inline]
    fn add(&self, thread: usize, what: Count) {
        match self.own.get(thread) {
            // No other thread writes to it: a load and a store are enough.
            Some(own) => {
                let cell = &own.0[what as usize];
                cell.store(cell.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            }
            None => {
                self.shared.0[what as usize].fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn sums(&self) -> [u64; COUNTS] {
        let mut sums = [0; COUNTS];
        for cells in self.own.iter().chain([&self.shared]) {
            for (sum, cell) in sums.iter_mut().zip(&cells.0) {
                *sum += cell.load(Ordering::Relaxed);
            }
        }
        sums
    }
}

/// What the metrics are called, and of which kind they are: in the order of [`values`].
const METRICS: [(&str, MetricKind); 7] = [
    ("exchanges", MetricKind::Counter),
    ("local_replies", MetricKind::Counter),
    ("cancelled", MetricKind::Counter),
    ("wakes", MetricKind::Counter),
    ("handled_replies", MetricKind::Counter),
    ("active", MetricKind::Gauge),
    ("suspended", MetricKind::Gauge),
];

/// Their values.
type Values = [u64; METRICS.len()];

fn values(sums: [u64; COUNTS]) -> Values {
    let of = |what: Count| sums[what as usize];
    let ended: u64 = [Count::Ended, Count::Replied, Count::Cancelled].into_iter().map(of).sum();
    [
        of(Count::Started),
        of(Count::Replied),
        of(Count::Cancelled),
        of(Count::Woken),
        of(Count::HandledReply),
        // The cells are read one after the other, while exchanges go on.
        of(Count::Started).saturating_sub(ended),
        of(Count::Started).saturating_sub(of(Count::Handled)),
    ]
}

/// The counts of one loaded filter.
pub(crate) struct Stats {
    counts: Counts,
    ids: [MetricId; METRICS.len()],
    sink: Arc<dyn MetricSink>,
    /// What the host has been told so far.
    told: Mutex<Values>,
}

impl Stats {
    pub(crate) fn new(setup: &mut Setup) -> Result<Self, ConfigError> {
        let mut ids = Vec::with_capacity(METRICS.len());
        for (name, kind) in METRICS {
            let name = format!("attache.{}.{name}", setup.filter_name());
            ids.push(setup.define(kind, &name, &[])?);
        }
        Ok(Stats {
            counts: Counts::new(),
            ids: std::array::from_fn(|index| ids[index]),
            sink: setup.host.sink(),
            told: Mutex::default(),
        })
    }

    /// Counts one, on the thread that has this number.
    #[inline]
    pub(crate) fn count(&self, thread: usize, what: Count) {
        self.counts.add(thread, what);
    }

    /// Gives out what has changed since the last time. Any thread.
    pub(crate) fn take(&self, mut tell: impl FnMut(MetricId, MetricOp, u64)) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let now = values(self.counts.sums());
        let before = std::mem::replace(&mut *told, now);
        // Differences, not values: other configs of the same filter share the gauges.
        for ((id, before), now) in self.ids.into_iter().zip(before).zip(now) {
            if now > before {
                tell(id, MetricOp::Add, now - before);
            } else if now < before {
                tell(id, MetricOp::Sub, before - now);
            }
        }
    }

    /// Hands on what has changed since the last time. Any thread.
    pub(crate) fn hand_on(&self) {
        self.sink.update_all(&mut |tell| self.take(tell));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_between_threads_with_and_without_cells_of_their_own() {
        let counts = Counts::new();
        let each = 100;
        // More threads than cells: some share.
        for _ in 0..4 {
            std::thread::scope(|scope| {
                for _ in 0..THREADS / 2 {
                    scope.spawn(|| {
                        let thread = next_number();
                        (0..each).for_each(|_| counts.add(thread, Count::Woken));
                    });
                }
            });
        }
        let sums = counts.sums();
        assert_eq!(sums[Count::Woken as usize], each * 2 * THREADS as u64);
        assert_eq!(sums.iter().sum::<u64>(), sums[Count::Woken as usize]);
        assert!(counts.shared.0[Count::Woken as usize].load(Ordering::Relaxed) > 0);
    }

    #[test]
    fn a_gauge_never_goes_below_zero() {
        let mut sums = [0; COUNTS];
        sums[Count::Cancelled as usize] = 2;
        sums[Count::Started as usize] = 1;
        sums[Count::Handled as usize] = 3;
        assert_eq!(values(sums), [1, 0, 2, 0, 0, 0, 0]);
    }
}
