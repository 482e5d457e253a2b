//! The filter that conformance scenarios steer. It does, step by step, what a [`Script`] in a
//! request header says, so that a scenario is data and one build serves them all.
//!
//! It also counts what its exchanges do (started, dropped, completed and how), which is how a
//! scenario sees from outside that a future was dropped once and nothing leaked; and it has gates,
//! which hold an exchange at a step until a second request (header `x-open`) opens them.

mod gate;
mod play;
mod script;

use attache::prelude::*;
use attache::{Counter, Gauge, SharedCluster};
use serde::Deserialize;

pub use script::{Call, Edit, Flavour, Mapping, PipeStep, Reply, Script, Step, Whole};

/// The header that opens a gate; its value is the gate's name.
pub const OPEN_HEADER: &str = "x-open";

/// The config: `{script_header: x-script}`.
#[derive(Debug, Deserialize)]
pub struct Config {
    /// Where this instance finds its script; two instances in one chain have two headers.
    script_header: String,
}

/// See the [crate docs](crate).
#[derive(Debug)]
pub struct Conformance {
    script_header: String,
    pub(crate) stats: Stats,
    pub(crate) service: SharedCluster,
}

/// What the scenarios look at. Each metric's name is `conformance.<field>`.
#[derive(Debug)]
pub(crate) struct Stats {
    started: Counter,
    dropped: Counter,
    live: Gauge,
    /// How many `mark` steps were reached.
    pub(crate) marks: Counter,
    /// How many bytes the filter has read.
    pub(crate) read: Counter,
    responded: Counter,
    replied: Counter,
    failed: Counter,
    panicked: Counter,
    cancelled: Counter,
}

impl Stats {
    fn new(setup: &mut Setup) -> Result<Self, ConfigError> {
        let mut counter = |name| setup.counter(&format!("conformance.{name}"));
        Ok(Stats {
            started: counter("started")?,
            dropped: counter("dropped")?,
            marks: counter("marks")?,
            read: counter("read")?,
            responded: counter("responded")?,
            replied: counter("replied")?,
            failed: counter("failed")?,
            panicked: counter("panicked")?,
            cancelled: counter("cancelled")?,
            live: setup.gauge("conformance.live")?,
        })
    }
}

/// Lives as long as the future of one exchange, by whatever way that ends.
struct Alive<'a>(&'a Stats);

impl<'a> Alive<'a> {
    fn new(stats: &'a Stats) -> Self {
        stats.started.inc();
        stats.live.add(1);
        Alive(stats)
    }
}

impl Drop for Alive<'_> {
    fn drop(&mut self) {
        self.0.dropped.inc();
        self.0.live.sub(1);
    }
}

impl Filter for Conformance {
    type Config = Config;
    type RouteConfig = ();

    fn new(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Conformance {
            script_header: config.script_header,
            stats: Stats::new(setup)?,
            service: setup.cluster("service"),
        })
    }

    async fn handle(&self, req: Request, next: Next) -> Result<Response> {
        let _alive = Alive::new(&self.stats);
        if let Some(name) = req.headers().get_str(OPEN_HEADER) {
            gate::open(&name);
            return Ok(Response::text(StatusCode::OK, "open"));
        }
        let script = match req.headers().get_str(&self.script_header) {
            Some(text) => serde_json::from_str(&text).status(StatusCode::BAD_REQUEST)?,
            None => Script::default(),
        };
        play::play(self, script, req, next).await
    }

    fn on_complete(&self, done: &Completion) {
        match done.outcome() {
            Outcome::Responded => self.stats.responded.inc(),
            Outcome::Replied => self.stats.replied.inc(),
            Outcome::Failed => self.stats.failed.inc(),
            Outcome::Panicked => self.stats.panicked.inc(),
            _ => self.stats.cancelled.inc(),
        }
    }
}

attache::filters! { "conformance" => Conformance }
