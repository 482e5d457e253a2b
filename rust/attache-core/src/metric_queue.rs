//! Metric updates from threads that are not the host's, on their way to its main thread.
//!
//! Envoy's stats can be touched only on Envoy's threads, and only while the config lives. A stream
//! of the config proves both ([`is_serving`](crate::is_serving)); from anywhere else the update goes
//! through a queue.

use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Receiver, Sender};

use crate::metrics::{EachUpdate, MetricId, MetricOp};
use crate::registry::Loaded;

/// How many updates may wait for the main thread.
const LENGTH: usize = 64 * 1024;

struct Update {
    metric: MetricId,
    op: MetricOp,
    value: u64,
    labels: Vec<String>,
}

/// The queue of one filter config. Most never hold an update, so it takes no room before it does.
#[derive(Debug)]
pub struct MetricQueue {
    updates: (Sender<Update>, Receiver<Update>),
    scheduled: AtomicBool,
    closed: AtomicBool,
    dropped: AtomicBool,
}

impl MetricQueue {
    /// An empty queue.
    #[expect(clippy::new_without_default, reason = "a queue belongs to a config")]
    pub fn new() -> Self {
        MetricQueue {
            updates: crossbeam_channel::unbounded(),
            scheduled: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            dropped: AtomicBool::new(false),
        }
    }

    /// Leaves an update for the main thread, unless the config has gone. Returns whether the main
    /// thread has to be asked to [`take`](MetricQueue::take) it.
    pub fn leave(&self, metric: MetricId, op: MetricOp, value: u64, labels: &[&str]) -> bool {
        if self.closed.load(Ordering::SeqCst) {
            return false;
        }
        let labels = labels.iter().map(|&label| label.to_owned()).collect();
        // Threads that leave one at once may go over it, by one each.
        let full = self.updates.0.len() >= LENGTH;
        if !full && self.updates.0.send(Update { metric, op, value, labels }).is_ok() {
            return !self.scheduled.swap(true, Ordering::SeqCst);
        }
        if !self.dropped.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "{LENGTH} metric updates from threads outside Envoy are waiting for the main \
                 thread; further ones are dropped until it catches up"
            );
        }
        false
    }

    /// As [`leave`](MetricQueue::leave), for all that `updates` gives out.
    pub fn leave_all(&self, updates: &mut dyn FnMut(&mut EachUpdate<'_>)) -> bool {
        let mut ask = false;
        updates(&mut |metric, op, value| ask |= self.leave(metric, op, value, &[]));
        ask
    }

    /// The main thread takes what was left.
    pub fn take(&self, mut apply: impl FnMut(MetricId, MetricOp, u64, &[&str])) {
        // Cleared first: an update that comes now either is seen below or asks again.
        self.scheduled.store(false, Ordering::SeqCst);
        for update in self.updates.1.try_iter() {
            let labels: Vec<_> = update.labels.iter().map(String::as_str).collect();
            apply(update.metric, update.op, update.value, &labels);
        }
    }

    /// The config goes: later updates have nowhere to go.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    /// The config goes, and this is its last metrics: those that were left, and then what the runtime
    /// has counted and not yet left ([`Loaded::take_stats`]). Later updates have nowhere to go.
    ///
    /// In this order, and the counts are read first: a gauge that is raised by what was left, at
    /// whatever moment, is never lowered before that.
    pub fn end(&self, loaded: &Loaded, mut apply: impl FnMut(MetricId, MetricOp, u64, &[&str])) {
        let mut last = Vec::new();
        loaded.take_stats(|metric, op, value| last.push((metric, op, value)));
        self.close();
        self.take(&mut apply);
        for (metric, op, value) in last {
            apply(metric, op, value, &[]);
        }
    }
}

impl std::fmt::Debug for Update {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {:?} {}", self.metric, self.op, self.value)
    }
}

#[cfg(all(test, not(loom)))]
pub(crate) mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::registry::Registry;
    use crate::stats::Count;
    use crate::{
        ConfigError, ConfigHost, Filter, MetricKind, MetricSink, Next, Request, Response, Setup,
    };

    const METRIC: MetricId = MetricId { kind: MetricKind::Counter, id: 0 };

    fn taken(queue: &MetricQueue) -> Vec<(u64, Vec<String>)> {
        let mut all = Vec::new();
        queue.take(|_, _, value, labels| {
            all.push((value, labels.iter().map(|&label| label.to_owned()).collect()));
        });
        all
    }

    #[test]
    fn the_main_thread_is_asked_once_until_it_takes() {
        let queue = MetricQueue::new();
        assert!(queue.leave(METRIC, MetricOp::Add, 1, &[]));
        assert!(!queue.leave(METRIC, MetricOp::Add, 2, &["a"]));
        assert_eq!(taken(&queue), [(1, vec![]), (2, vec!["a".to_owned()])]);
        assert!(queue.leave(METRIC, MetricOp::Add, 3, &[]));
    }

    #[test]
    fn a_closed_queue_takes_nothing() {
        let queue = MetricQueue::new();
        queue.close();
        assert!(!queue.leave(METRIC, MetricOp::Add, 1, &[]));
        assert!(taken(&queue).is_empty());
    }

    pub(crate) struct Plain;

    impl Filter for Plain {
        type Config = ();
        type RouteConfig = ();

        fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> {
            Ok(Plain)
        }

        async fn handle(&self, request: Request, next: Next) -> crate::Result<Response> {
            next.run(request).await
        }
    }

    /// Where no thread is the host's: all waits in the queue. A config that is put here ends while its
    /// thread is asked for.
    #[derive(Clone)]
    struct Waiting(Arc<MetricQueue>, Arc<Mutex<Option<Loaded>>>);

    impl Waiting {
        fn new() -> Self {
            Waiting(Arc::new(MetricQueue::new()), Arc::default())
        }

        fn load(&self) -> Loaded {
            let registry = Registry::new().with::<Plain>("plain");
            registry.load("plain", b"", Box::new(self.clone())).unwrap()
        }
    }

    impl ConfigHost for Waiting {
        fn define(&mut self, kind: MetricKind, name: &str, _: &[&str]) -> Result<MetricId, String> {
            // A gauge by its name.
            Ok(MetricId { kind, id: usize::from(name.ends_with(".active")) })
        }

        fn sink(&self) -> Arc<dyn MetricSink> {
            Arc::new(self.clone())
        }

        fn wants_stats(&self) -> bool {
            false
        }
    }

    impl MetricSink for Waiting {
        fn update(&self, metric: MetricId, op: MetricOp, value: u64, labels: &[&str]) {
            self.0.leave(metric, op, value, labels);
        }

        fn update_all(&self, updates: &mut dyn FnMut(&mut EachUpdate<'_>)) {
            if self.0.leave_all(updates)
                && let Some(loaded) = self.1.lock().unwrap().take()
            {
                self.0.end(&loaded, |_, _, _, _| ());
            }
        }
    }

    #[test]
    fn a_config_may_end_while_its_thread_is_asked_for() {
        let host = Waiting::new();
        let loaded = host.load();
        *host.1.lock().unwrap() = Some(loaded.clone());
        loaded.0.meta.stats.count(0, Count::Started);
        loaded.0.meta.stats.hand_on();
        assert!(host.1.lock().unwrap().is_none(), "it has not ended");
        assert!(taken(&host.0).is_empty());
    }

    #[test]
    fn the_last_counts_of_a_config_go_behind_those_that_wait() {
        let host = Waiting::new();
        let (queue, loaded) = (&host.0, host.load());
        let stats = &loaded.0.meta.stats;
        // An exchange begins, the runtime hands that on, and the exchange ends.
        stats.count(0, Count::Started);
        stats.hand_on();
        stats.count(0, Count::Handled);
        stats.count(0, Count::Ended);

        let (mut active, mut seen) = (0_u64, Vec::new());
        queue.end(&loaded, |metric, op, value, _| {
            if metric == (MetricId { kind: MetricKind::Gauge, id: 1 }) {
                match op {
                    MetricOp::Add => active += value,
                    MetricOp::Sub => active = active.checked_sub(value).expect("not below zero"),
                    other => panic!("{other:?}"),
                }
                seen.push(active);
            }
        });
        assert_eq!(seen, [1, 0]);
        stats.count(0, Count::Started);
        stats.hand_on();
        assert!(taken(queue).is_empty(), "later ones have nowhere to go");
    }

    #[test]
    fn a_full_queue_drops_what_comes_after() {
        let queue = MetricQueue::new();
        for _ in 0..LENGTH + 10 {
            queue.leave(METRIC, MetricOp::Add, 1, &[]);
        }
        assert_eq!(taken(&queue).len(), LENGTH);
    }
}
