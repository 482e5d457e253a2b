//! Envoy as a host, a stock one or one with the filters compiled in: one process per profile, started
//! when the first scenario needs it.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use attache_e2e::{Client, Envoy, Host, Modules, OutBody, Protocol, Upstream, response};
use futures_util::FutureExt;
use http::Response;

use crate::play;
use crate::profile::PACKAGE;
use crate::report::{Cell, Outcome};
use crate::scenario::{Case, Profile};

/// How long one cell may take, however much it moves.
const STUCK: Duration = Duration::from_secs(120);

/// An Envoy and what the client speaks to it.
pub type EnvoyHost = Host;

/// What filters call. The path says how it answers.
async fn service() -> Upstream {
    Upstream::start(async |request| {
        let path = request.uri().path().to_owned();
        match &*path {
            "/503" => response(503, "my own"),
            "/cut" => Err("cut".into()),
            "/never" => std::future::pending().await,
            "/echo" => Ok(Response::new(OutBody::other(request.into_body()))),
            _ => response(200, "yes"),
        }
    })
    .await
}

/// A running Envoy with an upstream behind it.
pub(crate) struct Running {
    pub(crate) envoy: Envoy,
    pub(crate) upstream: Upstream,
    /// What filters call.
    _service: Upstream,
    protocol: Protocol,
    window: Option<u32>,
}

impl Running {
    async fn start(host: &EnvoyHost, modules: &Modules, profile: Profile) -> Self {
        let upstream = Upstream::manual().await;
        let service = service().await;
        let config = profile.config(upstream.address(), service.address(), host.protocol);
        // A backtrace in a debug build takes a second, and scenarios panic often.
        let launch = host.launch().modules(modules).env("RUST_BACKTRACE", "0");
        let envoy = launch.start(&config).await;
        Running {
            envoy,
            upstream,
            _service: service,
            protocol: host.protocol,
            window: profile.window(),
        }
    }

    /// A new connection.
    pub(crate) async fn connect(&self) -> Client {
        let options = Client::options(self.envoy.address(), self.protocol);
        match self.window {
            Some(bytes) => options.window(bytes).connect().await,
            None => options.connect().await,
        }
    }

    /// The most memory that Envoy has held since [`reset_peak_memory`](Self::reset_peak_memory).
    pub(crate) fn peak_memory(&self) -> u64 {
        self.envoy.peak_resident_bytes()
    }

    /// Forgets the peak so far. Returns what Envoy holds now.
    pub(crate) fn reset_peak_memory(&self) -> u64 {
        self.envoy.forget_peak();
        self.envoy.peak_resident_bytes()
    }

    /// How far the last exchange has come, for whoever has to find out why it failed.
    async fn describe(&self) -> String {
        let mut text = String::new();
        if let Some(last) = self.upstream.count().checked_sub(1) {
            let seen = self.upstream.exchange(last).await.seen();
            text = format!(
                "the last request at the upstream: {} bytes, {:?}; its response: {:?}\n",
                seen.body.len(),
                seen.request,
                seen.response
            );
        }
        for (name, value) in self.stats().await {
            if name.contains("conformance.") || name.contains("flow_control") {
                text.push_str(&format!("{name} {value}\n"));
            }
        }
        text
    }

    /// All counters and gauges that have been used.
    pub(crate) async fn stats(&self) -> BTreeMap<String, u64> {
        let text = self.envoy.admin_get("/stats?usedonly").await;
        text.lines()
            .filter_map(|line| {
                let (name, value) = line.split_once(": ")?;
                Some((name.to_owned(), value.parse().ok()?))
            })
            .collect()
    }
}

/// Runs all cases that are for this host's protocol, one after the other, in a runtime of its own.
pub fn run(host: &EnvoyHost, cases: &[Case]) -> Vec<Cell> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(run_all(host, cases))
}

async fn run_all(host: &EnvoyHost, cases: &[Case]) -> Vec<Cell> {
    let compiled_in = host.version.is_compiled_in();
    let modules = if compiled_in { Modules::new() } else { Modules::new().package(PACKAGE) };
    // The names that `not_applicable` in the scenarios refers to.
    let kind = if compiled_in { "compiled-in" } else { "envoy" };
    let name = format!("{kind}-{}", host.version.name());
    let protocol = match host.protocol {
        Protocol::Http1 => "h1",
        Protocol::Http2 => "h2",
    };
    let column = format!("{name} {protocol}");
    let cell = |section: &str, case: String, outcome| Cell {
        section: section.to_owned(),
        case,
        host: column.clone(),
        outcome,
    };
    let mut running: BTreeMap<Profile, (Running, Option<Client>)> = BTreeMap::new();
    let mut cells = Vec::new();
    for (number, case) in cases.iter().filter(|case| case.runs_on(host.protocol)).enumerate() {
        let section = &case.scenario.section;
        if let Some(reason) = case.not_applicable(&name, host.protocol) {
            cells.push(cell(section, case.name(), Outcome::NotApplicable(reason.to_owned())));
            continue;
        }
        let profile = case.scenario.profile;
        let id = format!("{protocol}-{number}");
        let at = running.remove(&profile);
        let started = std::time::Instant::now();
        let (outcome, at) = run_case(host, &modules, case, &id, at).await;
        if std::env::var_os("CONFORMANCE_TIMES").is_some() {
            eprintln!("{:6} ms {column} {case}", started.elapsed().as_millis());
        }
        if let Outcome::Failed(how) = &outcome {
            eprintln!("FAILED {case} on {column}: {how}");
        }
        cells.push(cell(section, case.name(), outcome));
        running.extend(at.map(|at| (profile, at)));
    }
    for (profile, (running, client)) in running {
        drop(client);
        let outcome = match guarded(running.envoy.finish()).await {
            Ok(()) => Outcome::Ok,
            Err(how) => Outcome::Failed(how),
        };
        cells.push(cell("Afterwards", format!("Envoy ends cleanly: {profile:?}"), outcome));
    }
    cells
}

type At = (Running, Option<Client>);

/// Runs one case, on a new Envoy if there is none. After a failure the Envoy is given up, so that
/// the next case begins afresh.
async fn run_case(
    host: &EnvoyHost,
    modules: &Modules,
    case: &Case,
    id: &str,
    at: Option<At>,
) -> (Outcome, Option<At>) {
    let (running, client) = match at {
        Some(at) => at,
        None => (Running::start(host, modules, case.scenario.profile).await, None),
    };
    let played = guarded(async {
        let client = match client {
            Some(client) if !client.is_closed() => client,
            _ => running.connect().await,
        };
        play::play(&running, case, id, client).await
    })
    .await;
    match played {
        Ok(client) => (Outcome::Ok, Some((running, client))),
        Err(how) => {
            let log = running.envoy.log();
            let lines: Vec<_> = log.lines().filter(|line| !line.contains("[info]")).collect();
            let tail = lines[lines.len().saturating_sub(8)..].join("\n");
            let state = guarded(running.describe()).await.unwrap_or_default();
            let mut how = format!("{how}\n{state}Envoy's log ends in:\n{tail}");
            if let Err(end) = guarded(running.envoy.finish()).await {
                how = format!("{how}\n{end}");
            }
            (Outcome::Failed(how), None)
        }
    }
}

/// Runs something that panics when it fails, and for no longer than a cell may take.
async fn guarded<T>(future: impl Future<Output = T>) -> Result<T, String> {
    let caught = AssertUnwindSafe(tokio::time::timeout(STUCK, future)).catch_unwind().await;
    match caught {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(_)) => Err(format!("stuck for {STUCK:?}")),
        Err(payload) => Err(payload
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_else(|| "a panic without a message".into())),
    }
}
