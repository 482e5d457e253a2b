//! The thread that hands on what was counted (`stats.rs`), now and then.
//!
//! A timer of the runtime could do that. But while one is set, no thread of the runtime sleeps without a
//! time limit; and while exchanges wait for one task after another, such a thread sleeps after each: a
//! tenth of what a task costs there would go into setting that limit.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::runtime::{enter, guarded};
use crate::stats::Stats;

struct Flushed {
    stats: Weak<Stats>,
    interval: Duration,
    due: Instant,
}

struct Flusher {
    list: Vec<Flushed>,
    /// There is a thread.
    runs: bool,
}

static FLUSHER: Mutex<Flusher> = Mutex::new(Flusher { list: Vec::new(), runs: false });
static ADDED: Condvar = Condvar::new();

fn lock() -> MutexGuard<'static, Flusher> {
    FLUSHER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Hands on what `stats` counts, every `interval`, for as long as somebody else holds it.
///
/// # Errors
/// The system refuses a thread.
pub(crate) fn keep_flushing(stats: &Arc<Stats>, interval: Duration) -> io::Result<()> {
    let mut flusher = lock();
    if !flusher.runs {
        std::thread::Builder::new().name("attache-stats".into()).spawn(run)?;
        flusher.runs = true;
    }
    let due = Instant::now() + interval;
    flusher.list.push(Flushed { stats: Arc::downgrade(stats), interval, due });
    ADDED.notify_one();
    Ok(())
}

fn run() {
    // A config may end while its counts are handed on: its filter, which may use the runtime, then goes
    // on this thread.
    enter();
    let mut flusher = lock();
    loop {
        let now = Instant::now();
        let due = flusher.due(now);
        if due.is_empty() {
            flusher = wait(flusher, now);
            continue;
        }
        drop(flusher);
        for stats in due {
            let _ = guarded(move || stats.hand_on());
        }
        flusher = lock();
    }
}

impl Flusher {
    /// Those whose time has come. Forgets those that are gone.
    fn due(&mut self, now: Instant) -> Vec<Arc<Stats>> {
        self.list.retain(|flushed| flushed.stats.strong_count() > 0);
        let due = self.list.iter_mut().filter(|flushed| flushed.due <= now);
        due.filter_map(|flushed| {
            flushed.due = now + flushed.interval;
            flushed.stats.upgrade()
        })
        .collect()
    }
}

/// Until the next is due, or there is another.
fn wait(flusher: MutexGuard<'static, Flusher>, now: Instant) -> MutexGuard<'static, Flusher> {
    match flusher.list.iter().map(|flushed| flushed.due).min() {
        None => ADDED.wait(flusher).unwrap_or_else(PoisonError::into_inner),
        Some(due) => {
            let waited = ADDED.wait_timeout(flusher, due.saturating_duration_since(now));
            waited.unwrap_or_else(PoisonError::into_inner).0
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::filter::ConfigHost;
    use crate::metric_queue::tests::Plain;
    use crate::metrics::{MetricId, MetricKind, MetricOp, MetricSink};
    use crate::registry::Registry;
    use crate::stats::Count;

    /// Tells of each change. It is the config's: once nobody can be told anything, the config is gone.
    #[derive(Clone)]
    struct Told(mpsc::Sender<(MetricId, u64)>);

    impl ConfigHost for Told {
        fn define(&mut self, kind: MetricKind, name: &str, _: &[&str]) -> Result<MetricId, String> {
            // The number of exchanges, and the others.
            Ok(MetricId { kind, id: usize::from(name.ends_with(".exchanges")) })
        }

        fn sink(&self) -> Arc<dyn MetricSink> {
            Arc::new(self.clone())
        }
    }

    impl MetricSink for Told {
        fn update(&self, metric: MetricId, _: MetricOp, value: u64, _: &[&str]) {
            self.0.send((metric, value)).unwrap();
        }
    }

    /// Until the config has gone, or a minute has passed.
    fn all(told: &mpsc::Receiver<(MetricId, u64)>) -> impl Iterator<Item = (MetricId, u64)> + '_ {
        std::iter::from_fn(|| told.recv_timeout(Duration::from_secs(60)).ok())
    }

    #[test]
    fn what_was_counted_is_handed_on_until_the_config_goes() {
        let exchanges = MetricId { kind: MetricKind::Counter, id: 1 };
        let options = br#"{"attache": {"stats": {"interval_ms": 10}}}"#;
        let registry = Registry::new().with::<Plain>("plain");
        let load = || {
            let (sender, told) = mpsc::channel();
            (registry.load("plain", options, Box::new(Told(sender))).unwrap(), told)
        };
        let (first, first_told) = load();
        let (second, second_told) = load();
        for _ in 0..3 {
            for (config, told) in [(&first, &first_told), (&second, &second_told)] {
                config.0.meta.stats.count(0, Count::Started);
                assert!(all(told).any(|what| what == (exchanges, 1)));
            }
        }
        drop(first);
        assert!(all(&first_told).all(|(metric, _)| metric != exchanges));
        second.0.meta.stats.count(0, Count::Started);
        assert!(all(&second_told).any(|what| what == (exchanges, 1)), "the other one goes on");
    }
}
