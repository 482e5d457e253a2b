//! The filter that conformance scenarios steer. It does, step by step, what a [`Script`] in a
//! request header says, so that a scenario is data and one build serves them all.
//!
//! It also counts what its exchanges do (started, dropped, completed and how), which is how a
//! scenario sees from outside that a future was dropped once and nothing leaked; and it has gates,
//! which hold an exchange at a step until a second request (header `x-open`) opens them.

mod ask;
mod gate;
mod play;
mod script;

use attache::prelude::*;
use attache::{
    Attribute, AttributeValue, Counter, Gauge, Secret, SecretError, SecretSource, SharedCluster,
};
use serde::Deserialize;

pub use script::{Ask, Call, Edit, Flavour, Mapping, PipeStep, Reply, Script, Step, Whole};

/// The header that opens a gate; its value is the gate's name.
pub const OPEN_HEADER: &str = "x-open";

/// The config: `{script_header: x-script}`.
#[derive(Debug, Deserialize)]
pub struct Config {
    /// Where this instance finds its script; two instances in one chain have two headers.
    script_header: String,
    /// What it is called among the levels of a route.
    #[serde(default)]
    level: Option<String>,
    /// A secret to tell.
    #[serde(default)]
    secret: Option<SecretSource>,
    /// The runtime flags that it looks at while it is made.
    #[serde(default)]
    flags: Vec<String>,
}

/// What a level of a route is called; merged, all levels, the most general first.
#[derive(Debug, Deserialize)]
pub struct Levels {
    pub(crate) level: String,
}

/// See the [crate docs](crate).
#[derive(Debug)]
pub struct Conformance {
    script_header: String,
    level: Option<String>,
    pub(crate) stats: Stats,
    pub(crate) service: SharedCluster,
    pub(crate) secret: Option<std::result::Result<Secret, SecretError>>,
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
    merges: Counter,
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
            merges: counter("merges")?,
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

impl Conformance {
    /// The script, where the request is not at hand.
    fn script_of(&self, stream: &Stream) -> Option<Script> {
        let headers = stream.attribute_value(Attribute::RequestHeaders).ok()??;
        let AttributeValue::Map(headers) = headers else { return None };
        let script = headers.iter().find(|(name, _)| *name == self.script_header)?;
        serde_json::from_slice(script.1.as_bytes()).ok()
    }
}

impl Filter for Conformance {
    type Config = Config;
    type RouteConfig = Levels;

    fn new(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        if let Ok(runtime) = setup.runtime() {
            for flag in &config.flags {
                runtime.boolean(flag, false);
            }
        }
        Ok(Conformance {
            script_header: config.script_header,
            level: config.level,
            stats: Stats::new(setup)?,
            service: setup.cluster("service"),
            secret: config.secret.map(|secret| setup.secret(&secret)),
        })
    }

    fn merge_route(&self, levels: &[&Levels]) -> Option<Levels> {
        self.stats.merges.inc();
        let levels = levels.iter().map(|level| &*level.level);
        let all: Vec<_> = self.level.as_deref().into_iter().chain(levels).collect();
        Some(Levels { level: all.join(" ") })
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

    async fn handle_reply(&self, reply: Response) -> Result<Response> {
        match self.script_of(&reply.stream()) {
            Some(script) => play::play_reply(self, script, reply).await,
            None => Ok(reply),
        }
    }

    fn on_complete(&self, done: &Completion) {
        if let Some(script) = self.script_of(done.stream()) {
            for question in &script.complete {
                let answer = ask::ask(self, done.stream(), question);
                tracing::info!("on completion, {question:?}: {answer}");
            }
        }
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
