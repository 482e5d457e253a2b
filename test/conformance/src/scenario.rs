//! Scenarios as they are written down, and the cases that they expand into.
//!
//! ```json
//! {"name": "what it shows", "section": "Basics",
//!  "async": true,                     // at once, on a timer, from another thread
//!  "profile": "plain",                // which Envoy config, see profile.rs; "plain" if absent
//!  "filter": ["wait", {"headers": [{"set": ["x-a", "1"]}]}],    // Step in the filter crate
//!  "second": [..],                    // the same for the chain's second filter
//!  "replies": [..],                   // what the first does to a reply made elsewhere
//!  "complete": [..],                  // what the first asks on completion
//!  "request": {"method": "POST", "path": "/", "headers": [["a", "b"]], "body": "text",
//!              "trailers": [["t", "1"]]},
//!  "upstream": {"status": 200, "headers": [], "body": ["in", "chunks"], "trailers": []},
//!  "expect": {"upstream": {..} | null, "client": {..} | "broken",
//!             "outcome": "responded", "stats": {"attache.conformance.panics": 1}},
//!  "play": [..]}                      // step by step instead, see play.rs
//! ```
//!
//! `matrix` is a list of dimensions, each a list of named patches; a case is made of each
//! combination. Objects are merged, lists joined, anything else replaced.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::content::Content;
use crate::play::Play;
use attache_conformance::Step;
use attache_e2e::Protocol;

pub use attache_conformance::Flavour;

type Pairs = Vec<(String, String)>;

/// One scenario, after its matrix was expanded.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    pub(crate) name: String,
    pub(crate) section: String,
    #[serde(default)]
    pub(crate) profile: Profile,
    /// Expands into all flavours.
    #[serde(default, rename = "async")]
    asynchronous: bool,
    #[serde(default)]
    pub(crate) filter: Vec<Value>,
    #[serde(default)]
    pub(crate) second: Option<Vec<Value>>,
    /// What the filter does to a reply that was made elsewhere.
    #[serde(default)]
    pub(crate) replies: Vec<Value>,
    /// What the filter asks the stream when the exchange is complete; the answers are in the log.
    #[serde(default)]
    pub(crate) complete: Vec<Value>,
    #[serde(default)]
    pub(crate) request: RequestSpec,
    #[serde(default)]
    pub(crate) upstream: Option<UpstreamSpec>,
    #[serde(default)]
    pub(crate) expect: Expect,
    #[serde(default)]
    pub(crate) play: Vec<Play>,
    /// How often the exchange is made, all at once.
    #[serde(default = "one")]
    pub(crate) times: usize,
    /// Afterwards, the next request on the same connection must be served.
    #[serde(default)]
    pub(crate) then_next: bool,
    #[serde(default = "both")]
    protocols: Vec<ProtocolName>,
    #[serde(default)]
    not_applicable: Vec<NotApplicable>,
    /// What the scenario is about, for readers.
    #[serde(default, rename = "note")]
    _note: String,
}

fn one() -> usize {
    1
}

fn both() -> Vec<ProtocolName> {
    vec![ProtocolName::H1, ProtocolName::H2]
}

/// Which config the host has.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Profile {
    /// One filter.
    #[default]
    Plain,
    /// Two of them.
    Two,
    /// One, with buffers of 64 KiB.
    Small,
    /// Two, with buffers of 64 KiB.
    SmallTwo,
    /// A filter of Envoy's before it and one behind it, which answer when a header asks them to.
    Replies,
    /// One, and streams may be silent for 100 ms only.
    Idle,
    /// One, and a request must arrive within 100 ms.
    RequestTimeout,
    /// One, and the upstream must answer within 100 ms.
    RouteTimeout,
    /// One, with fail_open.
    FailOpen,
    /// Two, with a filter of Envoy's before them that writes metadata and one behind that reads it,
    /// several routes, metadata on everything, and an access log.
    State,
    /// One, with a config for it at every level of some routes.
    Levels,
    /// One, which has a secret of Envoy's and knows runtime flags.
    Envoy,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "snake_case")]
enum ProtocolName {
    H1,
    H2,
}

impl From<ProtocolName> for Protocol {
    fn from(name: ProtocolName) -> Self {
        match name {
            ProtocolName::H1 => Protocol::Http1,
            ProtocolName::H2 => Protocol::Http2,
        }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NotApplicable {
    /// The beginning of the host's name.
    host: String,
    #[serde(default)]
    protocol: Option<ProtocolName>,
    #[serde(default)]
    flavours: Option<Vec<Flavour>>,
    reason: String,
}

/// What the client sends.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RequestSpec {
    #[serde(default = "post")]
    pub(crate) method: String,
    #[serde(default = "root")]
    pub(crate) path: String,
    #[serde(default)]
    pub(crate) headers: Pairs,
    #[serde(default)]
    pub(crate) body: Content,
    #[serde(default)]
    pub(crate) trailers: Pairs,
    /// Sends a `content-length` even where the body goes in pieces.
    #[serde(default)]
    pub(crate) with_length: bool,
}

fn post() -> String {
    "POST".into()
}

fn root() -> String {
    "/".into()
}

impl Default for RequestSpec {
    fn default() -> Self {
        RequestSpec {
            method: post(),
            path: root(),
            headers: Vec::new(),
            body: Content::default(),
            trailers: Vec::new(),
            with_length: false,
        }
    }
}

/// What the upstream answers.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct UpstreamSpec {
    #[serde(default = "ok")]
    pub(crate) status: u16,
    #[serde(default)]
    pub(crate) headers: Pairs,
    #[serde(default)]
    pub(crate) body: Content,
    /// The request's body and trailers come back.
    #[serde(default)]
    pub(crate) echo: bool,
    #[serde(default)]
    pub(crate) trailers: Pairs,
    /// It cuts the exchange where its answer would have begun.
    #[serde(default)]
    pub(crate) cut: bool,
    /// Sends a `content-length` even where the body goes in pieces.
    #[serde(default)]
    pub(crate) with_length: bool,
}

fn ok() -> u16 {
    200
}

/// What must come out.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Expect {
    /// At the upstream; absent if nothing may arrive there.
    #[serde(default)]
    pub(crate) upstream: Option<ExpectMessage>,
    /// At the client.
    #[serde(default)]
    pub(crate) client: Option<ExpectClient>,
    /// How `on_complete` says that each exchange ended.
    #[serde(default)]
    pub(crate) outcome: Option<Outcomes>,
    /// How much counters have grown: ours by what follows `dynamicmodulescustom.`, any other by
    /// its full name.
    #[serde(default)]
    pub(crate) stats: BTreeMap<String, u64>,
    /// Lines of the log: the parts that one line must have.
    #[serde(default)]
    pub(crate) log: Vec<Vec<String>>,
    /// What the exchange's line in the access log must have.
    #[serde(default)]
    pub(crate) access_log: Vec<String>,
}

/// One outcome for all exchanges, or one for each, in any order.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Outcomes {
    One(String),
    Each(Vec<String>),
}

/// What the client must get.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum ExpectClient {
    /// `"broken"`: no whole response.
    Broken(BrokenWord),
    /// A whole response.
    Whole(ExpectMessage),
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum BrokenWord {
    Broken,
}

/// What a message must be. What is absent is not looked at.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ExpectMessage {
    #[serde(default)]
    pub(crate) status: Option<Status>,
    #[serde(default)]
    pub(crate) method: Option<String>,
    #[serde(default)]
    pub(crate) path: Option<String>,
    #[serde(default)]
    pub(crate) headers: BTreeMap<String, ExpectValue>,
    #[serde(default)]
    pub(crate) body: Option<Content>,
    #[serde(default)]
    pub(crate) trailers: BTreeMap<String, ExpectValue>,
}

/// A status, or one of several where that is up to Envoy and the protocol.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Status {
    One(u16),
    Any(Vec<u16>),
}

impl Status {
    pub(crate) fn allows(&self, status: u16) -> bool {
        match self {
            Status::One(one) => *one == status,
            Status::Any(any) => any.contains(&status),
        }
    }
}

/// `null`: absent; a text: exactly this; a list: exactly these, in order; `true`: there, whatever
/// it is.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum ExpectValue {
    One(String),
    All(Vec<String>),
    There(bool),
    Absent(()),
}

/// One scenario in one flavour.
#[derive(Clone, Debug)]
pub struct Case {
    pub(crate) scenario: Scenario,
    pub(crate) flavour: Flavour,
}

impl Case {
    /// How it is called in the report.
    pub fn name(&self) -> String {
        self.to_string()
    }

    pub(crate) fn runs_on(&self, protocol: Protocol) -> bool {
        self.scenario.protocols.iter().any(|name| Protocol::from(*name) == protocol)
    }

    /// Why it cannot be run there, if it cannot.
    pub(crate) fn not_applicable(&self, host: &str, protocol: Protocol) -> Option<&str> {
        let limit = self.scenario.not_applicable.iter().find(|limit| {
            host.starts_with(&limit.host)
                && limit.protocol.is_none_or(|name| Protocol::from(name) == protocol)
                && limit.flavours.as_ref().is_none_or(|list| list.contains(&self.flavour))
        })?;
        Some(&limit.reason)
    }
}

impl Case {
    /// As `not_applicable`, on a host that has no protocol.
    pub(crate) fn not_applicable_anywhere(&self, host: &str) -> Option<&str> {
        self.not_applicable(host, Protocol::Http2)
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.scenario.name)?;
        if self.scenario.asynchronous {
            f.write_str(match self.flavour {
                Flavour::AtOnce => ", at once",
                Flavour::Timer => ", on a timer",
                Flavour::Thread => ", from a thread",
            })?;
        }
        Ok(())
    }
}

/// All cases of `scenarios/*.json`, in the order of the files and of what is in them.
///
/// # Panics
/// When a file cannot be read or says something that has no meaning; the message says where.
pub fn load() -> Vec<Case> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let mut files: Vec<_> = std::fs::read_dir(&directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
        .map(|entry| entry.expect("a directory entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .collect();
    files.sort();
    let mut cases: Vec<Case> = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).expect("a readable scenario file");
        let list: Vec<Value> = serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        for value in list {
            for scenario in expand(value) {
                let name = scenario["name"].clone();
                let scenario: Scenario = serde_json::from_value(scenario)
                    .unwrap_or_else(|error| panic!("{}: {name}: {error}", file.display()));
                check_script(&scenario);
                assert!(
                    cases.iter().all(|case| case.scenario.name != scenario.name),
                    "{}: two scenarios are called {name}",
                    file.display()
                );
                let flavours: &[_] = if scenario.asynchronous {
                    &[Flavour::AtOnce, Flavour::Timer, Flavour::Thread]
                } else {
                    &[Flavour::AtOnce]
                };
                cases.extend(
                    flavours
                        .iter()
                        .map(|flavour| Case { scenario: scenario.clone(), flavour: *flavour }),
                );
            }
        }
    }
    cases
}

/// A script with a mistake would show as a mere 400 otherwise.
fn check_script(scenario: &Scenario) {
    let steps = scenario.filter.iter().chain(scenario.second.iter().flatten());
    for step in steps.chain(&scenario.replies) {
        if let Err(error) = serde_json::from_value::<Step>(step.clone()) {
            panic!("{}: the step {step}: {error}", scenario.name);
        }
    }
}

/// One value for each combination of the matrix.
fn expand(mut scenario: Value) -> Vec<Value> {
    let matrix = scenario.as_object_mut().and_then(|fields| fields.remove("matrix"));
    let mut all = vec![scenario];
    for dimension in matrix.iter().flat_map(|matrix| matrix.as_array().into_iter().flatten()) {
        let patches = dimension.as_array().expect("a dimension is a list of patches");
        all = all
            .iter()
            .flat_map(|value| patches.iter().map(move |patch| patched(value, patch)))
            .collect();
    }
    all
}

fn patched(value: &Value, patch: &Value) -> Value {
    let mut value = value.clone();
    let mut patch = patch.clone();
    let named = patch.as_object_mut().and_then(|fields| fields.remove("name"));
    if let Some(name) = named.as_ref().and_then(Value::as_str) {
        let joined = format!("{}: {name}", value["name"].as_str().unwrap_or_default());
        value["name"] = Value::String(joined);
    }
    merge(&mut value, patch);
    value
}

fn merge(value: &mut Value, patch: Value) {
    match (value, patch) {
        (Value::Object(value), Value::Object(patch)) => {
            for (key, patch) in patch {
                merge(value.entry(key).or_insert(Value::Null), patch);
            }
        }
        (Value::Array(value), Value::Array(patch)) => value.extend(patch),
        (value, patch) => *value = patch,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_matrix_makes_each_combination() {
        let all = expand(json!({
            "name": "n", "play": ["a"],
            "matrix": [
                [{"name": "1", "play": ["b"]}, {"name": "2"}],
                [{"name": "x", "expect": {"client": "broken"}}],
            ],
        }));
        assert_eq!(
            all,
            [
                json!({"name": "n: 1: x", "play": ["a", "b"], "expect": {"client": "broken"}}),
                json!({"name": "n: 2: x", "play": ["a"], "expect": {"client": "broken"}}),
            ]
        );
    }

    #[test]
    fn every_scenario_can_be_read() {
        assert!(!load().is_empty());
    }
}
