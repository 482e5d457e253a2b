//! Changes metrics of every kind, from every place where a filter's code may run.

use attache::prelude::*;
use attache::{Counter, Gauge, Histogram};
use tokio::sync::{mpsc, oneshot};

/// The path says where its metrics change; the path `/wrong` gives too few label values.
pub(crate) struct Meter {
    metrics: Metrics,
    background: mpsc::UnboundedSender<oneshot::Sender<()>>,
}

#[derive(Clone)]
struct Metrics {
    counter: Counter,
    labelled_counter: Counter,
    gauge: Gauge,
    labelled_gauge: Gauge,
    histogram: Histogram,
    labelled_histogram: Histogram,
    completed: Counter,
}

impl Metrics {
    /// Each call adds 3 to a counter, 4 to a gauge and 5 to a histogram.
    fn change(&self, place: &str) {
        self.counter.inc();
        self.counter.add(2);
        self.gauge.add(10);
        self.gauge.sub(6);
        self.histogram.record(5);
        self.labelled_counter.inc_with(&[place, "one"]);
        self.labelled_counter.add_with(&[place, "two"], 2);
        self.labelled_gauge.add_with(&[place], 10);
        self.labelled_gauge.sub_with(&[place], 6);
        self.labelled_histogram.record_with(&[place], 5);
    }
}

impl Filter for Meter {
    type Config = ();
    type RouteConfig = ();

    fn new(_: (), setup: &mut Setup) -> Result<Self, ConfigError> {
        let metrics = Metrics {
            counter: setup.counter("meter_counter")?,
            labelled_counter: setup.counter_with("meter_labelled_counter", &["place", "by"])?,
            gauge: setup.gauge("meter_gauge")?,
            labelled_gauge: setup.gauge_with("meter_labelled_gauge", &["place"])?,
            histogram: setup.histogram("meter_histogram")?,
            labelled_histogram: setup.histogram_with("meter_labelled_histogram", &["place"])?,
            completed: setup.counter("meter_completed")?,
        };
        metrics.change("new");
        let (background, mut jobs) = mpsc::unbounded_channel::<oneshot::Sender<()>>();
        let theirs = metrics.clone();
        setup.spawn(async move {
            while let Some(done) = jobs.recv().await {
                theirs.change("background");
                let _ = done.send(());
            }
        });
        Ok(Meter { metrics, background })
    }

    async fn handle(&self, req: Request, _: Next) -> Result<Response> {
        let metrics = self.metrics.clone();
        match req.path().as_str() {
            "/handle" => metrics.change("handle"),
            "/task" => attache::spawn(async move { metrics.change("task") }).await?,
            "/thread" => attache::spawn_blocking(move || metrics.change("thread")).await?,
            "/background" => {
                let (done, waiting) = oneshot::channel();
                self.background.send(done)?;
                waiting.await?;
            }
            "/set" => {
                metrics.gauge.set(1000);
                metrics.labelled_gauge.set_with(&["handle"], 2000);
            }
            "/wrong" => metrics.labelled_counter.inc_with(&["one is missing"]),
            "/wrong-task" => {
                attache::spawn(async move { metrics.gauge.add_with(&["too many"], 1) }).await?;
            }
            "/error" => return Err(Error::status(StatusCode::IM_A_TEAPOT, "no")),
            _ => (),
        }
        Ok(Response::text(StatusCode::OK, "metered"))
    }

    fn on_complete(&self, _: &Completion) {
        self.metrics.completed.inc();
        self.metrics.labelled_gauge.set_with(&["on_complete"], 1);
    }
}
