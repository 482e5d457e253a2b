//! All scenarios on all hosts, one test for each host and protocol. Each prints what failed and
//! how, and its number of cells; `target/conformance/report.json` has the cells of all that ran.

use std::sync::{Mutex, PoisonError};

use attache_e2e::{Protocol, Version, workspace_root};
use conformance_runner::{Cell, EnvoyHost, Report, load, run_on_envoy, run_on_test_host};

/// What came out so far, of all tests of this process.
static REPORT: Mutex<Option<Report>> = Mutex::new(None);

fn run(version: &str, protocol: Protocol) {
    // `ENVOY` may name a binary of another version: then that is what all is run on.
    let stock = |known: &Version| !known.is_compiled_in() && known.name().starts_with(version);
    let Some(version) = Version::all().into_iter().find(stock) else {
        println!("no Envoy {version} here: not run");
        return;
    };
    run_on(EnvoyHost { version, protocol });
}

/// Where `ENVOY` names a binary with the filters compiled in (`make build-envoy`).
fn run_compiled_in(protocol: Protocol) {
    let Some(version) = Version::all().into_iter().find(Version::is_compiled_in) else {
        println!("no Envoy with compiled-in filters here: not run");
        return;
    };
    run_on(EnvoyHost { version, protocol });
}

fn run_on(host: EnvoyHost) {
    judge(&host.to_string(), run_on_envoy(&host, &load()));
}

fn judge(host: &str, cells: Vec<Cell>) {
    let report = Report::new(cells.clone());
    let mut all = REPORT.lock().unwrap_or_else(PoisonError::into_inner);
    let all = all.get_or_insert_default();
    all.extend(cells);
    let path = workspace_root().join("target/conformance/report.json");
    all.write(&path).expect("a report that can be written");
    println!("{report}");
    println!("{host}: {}", report.counts());
    assert!(report.is_ok(), "{host}: {}", report.counts());
}

#[test]
fn test_host() {
    judge("TestHost", run_on_test_host(&load()));
}

#[test]
fn envoy_1_39_http1() {
    run("1.39.", Protocol::Http1);
}

#[test]
fn envoy_1_39_http2() {
    run("1.39.", Protocol::Http2);
}

#[test]
fn envoy_1_40_http1() {
    run("1.40.", Protocol::Http1);
}

#[test]
fn envoy_1_40_http2() {
    run("1.40.", Protocol::Http2);
}

#[test]
fn envoy_with_compiled_in_filters_http1() {
    run_compiled_in(Protocol::Http1);
}

#[test]
fn envoy_with_compiled_in_filters_http2() {
    run_compiled_in(Protocol::Http2);
}

#[test]
fn every_pinned_version_is_run() {
    for version in Version::all().into_iter().filter(|version| !version.is_compiled_in()) {
        let name = version.name();
        assert!(
            ["1.39.", "1.40."].iter().any(|run| name.starts_with(run)),
            "Envoy {name} has no tests here: add them beside the others"
        );
    }
}
