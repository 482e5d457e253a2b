//! TestHost as a host: the same scenarios with no Envoy, on the strict model of it. A call that real
//! Envoy would punish fails the cell.
//!
//! There are no sockets, no protocol and only one filter, so what needs those is not applicable.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Duration;

use attache_conformance::{OPEN_HEADER, attache_registry};
use attache_test::{ClusterAnswer, TestExchange, TestHost, TestRequest, TestResponse};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::json;

use crate::check::{
    check_message, expect_that, grown, no_difference, script_with, wrong_line, wrong_stats,
};
use crate::content::Content;
use crate::play::{ClientStep, Play, UpstreamStep};
use crate::profile::{FLAGS, SCRIPT_HEADERS, envoy_options};
use crate::report::{Cell, Outcome};
use crate::scenario::{Case, ExpectClient, Profile, UpstreamSpec};

/// The name in the report.
const HOST: &str = "testhost";

/// The buffers of the profile that has small ones.
const SMALL: u64 = 64 * 1024;

/// Longer than a timer of the filter's.
const A_WHILE: Duration = Duration::from_millis(2);

/// How many of them may run out one after the other in one step.
const TIMERS: usize = 8;

/// In how many pieces a body may come: each is a step, after which everything comes to rest.
const PIECES: usize = 1000;

/// The metrics that scenarios look at.
const COUNTERS: [&str; 12] = [
    "conformance.started",
    "conformance.dropped",
    "conformance.marks",
    "conformance.read",
    "conformance.merges",
    "conformance.responded",
    "conformance.replied",
    "conformance.failed",
    "conformance.panicked",
    "conformance.cancelled",
    "attache.conformance.errors",
    "attache.conformance.panics",
];

/// Runs all cases, one after the other.
pub fn run(cases: &[Case]) -> Vec<Cell> {
    let mut hosts: BTreeMap<Profile, TestHost> = BTreeMap::new();
    cases
        .iter()
        .enumerate()
        .map(|(number, case)| {
            let outcome = match out_of_reach(case) {
                Some(reason) => Outcome::NotApplicable(reason),
                None => {
                    let profile = case.scenario.profile;
                    let host = hosts.remove(&profile).unwrap_or_else(|| load(profile));
                    let cell = format!("{HOST}-{number}");
                    match catch_unwind(AssertUnwindSafe(|| play(&host, case, &cell))) {
                        Ok(()) => {
                            hosts.insert(profile, host);
                            Outcome::Ok
                        }
                        Err(payload) => Outcome::Failed(message(&*payload)),
                    }
                }
            };
            if let Outcome::Failed(how) = &outcome {
                eprintln!("FAILED {case} on {HOST}: {how}");
            }
            Cell {
                section: case.scenario.section.clone(),
                case: case.name(),
                host: HOST.into(),
                outcome,
            }
        })
        .collect()
}

fn message(payload: &(dyn std::any::Any + Send)) -> String {
    payload
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "a panic without a message".into())
}

fn load(profile: Profile) -> TestHost {
    let mut config = json!({"script_header": SCRIPT_HEADERS[0]});
    match profile {
        Profile::FailOpen => config["attache"] = json!({"fail_open": true}),
        // A static secret has its name for a value here.
        Profile::Envoy => config = envoy_options(),
        _ => (),
    }
    let host = TestHost::from_registry(attache_registry(), "conformance", &config.to_string())
        .with_cluster("service", service);
    if profile == Profile::Envoy {
        FLAGS.iter().for_each(|(key, value)| host.set_runtime(key, *value));
    }
    if profile == Profile::Small { host.with_buffer_limit(SMALL) } else { host }
}

/// What filters call; the same as in a real Envoy.
fn service(request: &TestRequest) -> ClusterAnswer {
    match request.path() {
        "/503" => TestResponse::new(503).body("my own").into(),
        "/cut" => ClusterAnswer::reset(),
        "/never" => ClusterAnswer::never(),
        "/echo" => TestResponse::new(200).chunk(request.bytes()).into(),
        _ => TestResponse::new(200).body("yes").into(),
    }
}

/// Why this host cannot run a case, if it cannot.
fn out_of_reach(case: &Case) -> Option<String> {
    let needs = |what: &str| Some(format!("TestHost has no {what}"));
    let scenario = &case.scenario;
    if let Some(reason) = case.not_applicable_anywhere(HOST) {
        return Some(reason.to_owned());
    }
    match scenario.profile {
        Profile::Plain | Profile::Small | Profile::FailOpen | Profile::Envoy => (),
        Profile::Two | Profile::SmallTwo | Profile::Replies | Profile::State => {
            return needs("second filter");
        }
        Profile::Levels => return needs("routes"),
        Profile::Idle | Profile::RequestTimeout | Profile::RouteTimeout => {
            return needs("timeouts of Envoy's own");
        }
    }
    let upstream = scenario.upstream.iter().map(|upstream| &upstream.body);
    if upstream.chain([&scenario.request.body]).any(|body| body.chunks().len() > PIECES) {
        return Some(format!("TestHost takes no more than {PIECES} pieces of body"));
    }
    if scenario.times > 1 {
        return needs("worker threads to share");
    }
    let sockets = scenario.play.iter().any(|step| {
        matches!(
            step,
            Play::WatchMemory
                | Play::GrownBy(_)
                | Play::Client(
                    ClientStep::Flood(_)
                        | ClientStep::Held(_)
                        | ClientStep::Write(_)
                        | ClientStep::ReadUpgraded(_)
                        | ClientStep::Close
                )
                | Play::Upstream(
                    UpstreamStep::Flood(_)
                        | UpstreamStep::Held(_)
                        | UpstreamStep::Upgrade
                        | UpstreamStep::Write(_)
                        | UpstreamStep::ReadUpgraded(_)
                        | UpstreamStep::ReadClose
                )
        )
    });
    if sockets { needs("sockets, nor memory of its own") } else { None }
}

fn stats(host: &TestHost) -> BTreeMap<String, u64> {
    let mut stats: BTreeMap<String, u64> =
        COUNTERS.iter().map(|name| ((*name).to_owned(), host.counter(name))).collect();
    stats.insert("dynamicmodulescustom.conformance.live".into(), host.gauge("conformance.live"));
    stats
}

/// What has come to a place, in the terms that the checks use.
#[derive(Clone, Debug, Default)]
struct Got {
    line: [String; 2],
    headers: HeaderMap,
    body: Bytes,
    trailers: Option<HeaderMap>,
    complete: bool,
}

fn map(fields: &[(String, Bytes)]) -> HeaderMap {
    fields
        .iter()
        .filter(|(name, _)| !name.starts_with(':'))
        .map(|(name, value)| {
            let name: HeaderName = name.parse().expect("a header name");
            (name, HeaderValue::from_bytes(value).expect("a header value"))
        })
        .collect()
}

impl From<&TestRequest> for Got {
    fn from(seen: &TestRequest) -> Self {
        Got {
            line: [seen.method().to_owned(), seen.path().to_owned()],
            headers: map(seen.headers()),
            body: seen.bytes(),
            trailers: seen.trailers().map(map),
            complete: seen.is_complete(),
        }
    }
}

impl From<&TestResponse> for Got {
    fn from(seen: &TestResponse) -> Self {
        Got {
            line: [seen.status().to_string(), String::new()],
            headers: map(seen.headers()),
            body: seen.bytes(),
            trailers: seen.trailers().map(map),
            complete: seen.is_complete() && seen.status() != 0,
        }
    }
}

fn play(host: &TestHost, case: &Case, cell: &str) {
    let before = stats(host);
    let mut stage = Stage {
        host,
        case,
        cell,
        before: &before,
        exchange: None,
        at_upstream: Rc::default(),
        read: [0, 0],
        opened: 0,
    };
    let client = if case.scenario.play.is_empty() {
        stage.play_simple()
    } else {
        for (index, step) in case.scenario.play.iter().enumerate() {
            stage.step(step).unwrap_or_else(|trouble| panic!("step {index}, {step:?}: {trouble}"));
            // Timers of the filter's run out between any two steps.
            if let Some(exchange) = &stage.exchange {
                for _ in 0..TIMERS {
                    exchange.advance(A_WHILE);
                }
            }
        }
        stage.end()
    };
    stage.check_upstream();
    if let Some(client) = client {
        stage.check_client(&client);
    }
    let opened = stage.opened;
    drop(stage);
    let wrong = wrong_stats(&case.scenario.expect, &before, &stats(host), opened);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

struct Stage<'a> {
    host: &'a TestHost,
    case: &'a Case,
    cell: &'a str,
    before: &'a BTreeMap<String, u64>,
    exchange: Option<TestExchange>,
    /// What had reached the upstream when the exchange ended.
    at_upstream: Rc<RefCell<Option<Got>>>,
    /// How much of the request and of the response has been read by steps.
    read: [usize; 2],
    opened: u64,
}

fn response(spec: &UpstreamSpec) -> TestResponse {
    let mut response = TestResponse::new(spec.status);
    for (name, value) in &spec.headers {
        response = response.header(name, value.clone());
    }
    response
}

fn answer(spec: &UpstreamSpec, seen: &Got) -> TestResponse {
    let mut response = response(spec);
    let trailers: Vec<(String, String)> = if spec.echo {
        let seen = seen.trailers.iter().flat_map(|map| map.iter());
        seen.map(|(name, value)| (name.to_string(), value.to_str().expect("text").to_owned()))
            .collect()
    } else {
        spec.trailers.clone()
    };
    if spec.echo {
        if !seen.body.is_empty() {
            response = response.chunk(seen.body.clone());
        }
    } else if let (Content::Text(text), true) = (&spec.body, trailers.is_empty()) {
        if !text.is_empty() {
            response = response.body(text.clone());
        }
    } else {
        if spec.with_length {
            response = response.header("content-length", spec.body.bytes().len().to_string());
        }
        for chunk in spec.body.chunks() {
            response = response.chunk(chunk);
        }
    }
    for (name, value) in trailers {
        response = response.trailer(&name, value);
    }
    response
}

impl Stage<'_> {
    /// The request, without its body.
    fn request(&self) -> TestRequest {
        let scenario = &self.case.scenario;
        let method = scenario.request.method.parse().expect("a method");
        let steps = script_with(
            &scenario.filter,
            &scenario.replies,
            &scenario.complete,
            self.case.flavour,
            self.cell,
        );
        let mut request =
            TestRequest::new(method, &scenario.request.path).header(SCRIPT_HEADERS[0], steps);
        for (name, value) in &scenario.request.headers {
            request = request.header(name, value.clone());
        }
        request
    }

    /// The request with all that belongs to it.
    fn whole_request(&self) -> TestRequest {
        let spec = &self.case.scenario.request;
        let mut request = self.request();
        match &spec.body {
            Content::Text(text) if spec.trailers.is_empty() => {
                if !text.is_empty() {
                    request = request.body(text.clone());
                }
            }
            content => {
                if spec.with_length {
                    request = request.header("content-length", content.bytes().len().to_string());
                }
                for chunk in content.chunks() {
                    request = request.chunk(chunk);
                }
            }
        }
        for (name, value) in &spec.trailers {
            request = request.trailer(name, value.clone());
        }
        request
    }

    fn play_simple(&mut self) -> Option<Got> {
        let Some(spec) = self.case.scenario.upstream.clone() else {
            let response = self
                .host
                .request(self.whole_request())
                .upstream(|_| panic!("a request has arrived at the upstream"))
                .run();
            return Some(Got::from(&response));
        };
        let at_upstream = self.at_upstream.clone();
        let response = self
            .host
            .request(self.whole_request())
            .upstream(move |seen| {
                let seen = Got::from(seen);
                let answer = answer(&spec, &seen);
                *at_upstream.borrow_mut() = Some(seen);
                answer
            })
            .run();
        Some(Got::from(&response))
    }

    fn exchange(&self) -> Result<&TestExchange, String> {
        self.exchange.as_ref().ok_or_else(|| "there is no exchange".into())
    }

    fn seen(&self) -> Result<Got, String> {
        let seen = self.exchange()?.upstream();
        seen.as_ref().map(Got::from).ok_or_else(|| "nothing is at the upstream".into())
    }

    fn spec(&self) -> Result<UpstreamSpec, String> {
        self.case.scenario.upstream.clone().ok_or_else(|| "there is no upstream".into())
    }

    fn step(&mut self, step: &Play) -> Result<(), String> {
        match step {
            Play::Client(step) => self.client_step(step),
            Play::Upstream(step) => self.upstream_step(step),
            Play::Until(name, _) if name.starts_with("http.") => Ok(()),
            Play::Until(name, growth) => {
                let grown = grown(self.before, &stats(self.host), name);
                expect_that(grown >= *growth, || format!("it has grown by {grown}"))
            }
            Play::Open(gate) => {
                self.opened += 1;
                let name = format!("{gate}-{}", self.cell);
                let opened =
                    self.host.request(TestRequest::get("/").header(OPEN_HEADER, name)).run();
                expect_that(opened.text() == "open", || format!("the gate said {opened:?}"))
            }
            Play::WatchMemory | Play::GrownBy(_) => Err("TestHost has no memory of its own".into()),
        }
    }

    fn client_step(&mut self, step: &ClientStep) -> Result<(), String> {
        match step {
            ClientStep::Open => {
                self.exchange = Some(self.host.open(self.request().streaming()));
            }
            ClientStep::Send => self.exchange = Some(self.host.open(self.whole_request())),
            ClientStep::Data(content) => {
                for chunk in content.chunks() {
                    self.exchange()?.send(chunk);
                }
            }
            ClientStep::End => self.exchange()?.send_last(""),
            ClientStep::Trailers(trailers) => self.exchange()?.send_trailers(&borrowed(trailers)),
            ClientStep::Head => {
                let response = self.exchange()?.response();
                expect_that(response.is_some(), || "no response has begun".into())?;
            }
            ClientStep::Read(text) => {
                let response = self.exchange()?.response().ok_or("no response has begun")?;
                let got = response.bytes();
                let end = got.len().min(self.read[1] + text.len());
                no_difference(text.as_bytes(), &got[self.read[1]..end])?;
                self.read[1] = end;
            }
            ClientStep::Rest => (),
            ClientStep::Waiting => {
                let response = self.exchange()?.response();
                expect_that(response.is_none(), || "the response has come already".into())?;
            }
            ClientStep::Disconnect | ClientStep::Cancel => self.exchange()?.client_resets(),
            other => return Err(format!("TestHost cannot play {other:?}")),
        }
        Ok(())
    }

    fn upstream_step(&mut self, step: &UpstreamStep) -> Result<(), String> {
        match step {
            UpstreamStep::Accept => drop(self.seen()?),
            UpstreamStep::Read(text) => {
                let got = self.seen()?.body;
                let end = got.len().min(self.read[0] + text.len());
                no_difference(text.as_bytes(), &got[self.read[0]..end])?;
                self.read[0] = end;
            }
            UpstreamStep::ReadEnd => {
                let seen = self.seen()?;
                expect_that(seen.complete, || format!("the request is not over: {seen:?}"))?;
            }
            UpstreamStep::Answer => {
                let answer = answer(&self.spec()?, &self.seen()?);
                self.exchange()?.respond(answer);
            }
            UpstreamStep::Head => {
                let head = response(&self.spec()?).streaming();
                self.exchange()?.respond(head);
            }
            UpstreamStep::Data(content) => {
                for chunk in content.chunks() {
                    self.exchange()?.respond_chunk(chunk);
                }
            }
            UpstreamStep::End => self.exchange()?.respond_last(""),
            UpstreamStep::Trailers(trailers) => {
                self.exchange()?.respond_trailers(&borrowed(trailers));
            }
            UpstreamStep::Reset => self.exchange()?.upstream_resets(),
            other => return Err(format!("TestHost cannot play {other:?}")),
        }
        Ok(())
    }

    /// The play is over: what has reached the two ends.
    fn end(&mut self) -> Option<Got> {
        let exchange = self.exchange.take()?;
        *self.at_upstream.borrow_mut() = exchange.upstream().as_ref().map(Got::from);
        if exchange.is_over() {
            return Some(Got::from(&exchange.finish()));
        }
        exchange.response().as_ref().map(Got::from)
    }

    fn check_client(&self, got: &Got) {
        match &self.case.scenario.expect.client {
            None => (),
            Some(ExpectClient::Broken(_)) => {
                assert!(!got.complete, "the client should get no whole response, and got {got:?}");
            }
            Some(ExpectClient::Whole(expected)) => {
                assert!(got.complete, "the client should get a whole response, and got {got:?}");
                let status: u16 = got.line[0].parse().expect("a number");
                let line = expected
                    .status
                    .as_ref()
                    .filter(|expected| !expected.allows(status))
                    .map(|expected| format!("status {status}, expected {expected:?}"));
                check_message(
                    "at the client",
                    expected,
                    &got.headers,
                    &got.body[self.read[1]..],
                    got.trailers.as_ref(),
                    line,
                    self.case.scenario.request.method == "HEAD",
                );
            }
        }
    }

    fn check_upstream(&self) {
        let Some(expected) = &self.case.scenario.expect.upstream else { return };
        let seen = self.at_upstream.borrow();
        let seen = seen.as_ref().expect("no request has arrived at the upstream");
        assert!(seen.complete, "at the upstream: the request was cut");
        let line = wrong_line(expected, &seen.line[0], &seen.line[1]);
        check_message(
            "at the upstream",
            expected,
            &seen.headers,
            &seen.body,
            seen.trailers.as_ref(),
            line,
            false,
        );
    }
}

fn borrowed(pairs: &[(String, String)]) -> Vec<(&str, &str)> {
    pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}
