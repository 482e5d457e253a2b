//! Counters, gauges and histograms that show up in Envoy's stats.

use std::fmt;
use std::sync::Arc;

/// What kind of metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MetricKind {
    /// Only goes up.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A distribution of values.
    Histogram,
}

/// How a metric changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricOp {
    /// Counter or gauge: plus.
    Add,
    /// Gauge: minus.
    Sub,
    /// Gauge: exactly.
    Set,
    /// Histogram: one value.
    Record,
}

/// A metric, as the host that made it knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MetricId {
    /// Its kind.
    pub kind: MetricKind,
    /// The host's own number for it, among those of its kind.
    pub id: usize,
}

/// Takes updates of metrics without labels, one after the other.
pub type EachUpdate<'a> = dyn FnMut(MetricId, MetricOp, u64) + 'a;

/// Where the updates of one filter config's metrics go. Implemented by the host.
pub trait MetricSink: Send + Sync {
    /// Applies an update now, or hands it to a thread that can. Any thread.
    fn update(&self, metric: MetricId, op: MetricOp, value: u64, labels: &[&str]);

    /// Applies what `updates` gives out, or hands it to a thread that can. Any thread, but from within no
    /// exchange.
    ///
    /// `updates` holds a lock that the end of the config takes, too. So a host in which asking for that
    /// thread may end the config asks after `updates` has returned.
    fn update_all(&self, updates: &mut dyn FnMut(&mut EachUpdate<'_>)) {
        updates(&mut |metric, op, value| self.update(metric, op, value, &[]));
    }
}

#[derive(Clone)]
struct Metric {
    sink: Arc<dyn MetricSink>,
    id: MetricId,
    labels: usize,
}

impl Metric {
    fn update(&self, op: MetricOp, value: u64, labels: &[&str]) {
        assert_eq!(
            labels.len(),
            self.labels,
            "the metric was defined with {} labels, but {} values were given",
            self.labels,
            labels.len()
        );
        self.sink.update(self.id, op, value, labels);
    }
}

impl fmt::Debug for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.id.fmt(f)
    }
}

macro_rules! metric {
    ($(#[$doc:meta])* $name:ident { $($(#[$method_doc:meta])* $method:ident, $with:ident => $op:ident;)* }) => {
        $(#[$doc])*
        ///
        /// Cheap to clone, and usable from any thread: on the worker that serves an exchange of the
        /// same filter config the update is immediate, from elsewhere Envoy's main thread makes it
        /// shortly after.
        ///
        /// # Panics
        /// When the number of label values is not the number of labels that it was defined with.
        #[derive(Clone, Debug)]
        pub struct $name(Metric);

        impl $name {
            pub(crate) fn new(sink: Arc<dyn MetricSink>, id: MetricId, labels: usize) -> Self {
                $name(Metric { sink, id, labels })
            }
            $(
                $(#[$method_doc])*
                pub fn $method(&self, value: u64) {
                    self.0.update(MetricOp::$op, value, &[]);
                }
                #[doc = concat!("As [`", stringify!($method), "`](Self::", stringify!($method), "), for these label values.")]
                pub fn $with(&self, labels: &[&str], value: u64) {
                    self.0.update(MetricOp::$op, value, labels);
                }
            )*
        }
    };
}

metric! {
    /// A count that only goes up.
    Counter {
        /// Adds to the count.
        add, add_with => Add;
    }
}

impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }
    /// Whether updates go to this very sink.
    pub(crate) fn goes_to(&self, sink: &dyn MetricSink) -> bool {
        std::ptr::addr_eq(Arc::as_ptr(&self.0.sink), sink)
    }
    /// Adds one, for these label values.
    pub fn inc_with(&self, labels: &[&str]) {
        self.add_with(labels, 1);
    }
}

metric! {
    /// A value that goes up and down.
    Gauge {
        /// Adds to the value.
        add, add_with => Add;
        /// Takes from the value.
        sub, sub_with => Sub;
        /// Replaces the value.
        set, set_with => Set;
    }
}

metric! {
    /// A distribution of values.
    Histogram {
        /// Records a value.
        record, record_with => Record;
    }
}
