//! Runs all conformance scenarios on all hosts, shows the table and writes
//! `target/conformance/report.json`. Arguments are parts of scenario names, to run only those.

use std::process::ExitCode;

use conformance_runner::{EnvoyHost, Report, load, run_on_envoy, run_on_test_host};

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let mut cases = load();
    cases.retain(|case| {
        wanted.is_empty() || wanted.iter().any(|part| case.name().contains(part.as_str()))
    });
    // Two at a time: a host's Envoys, its client and its upstream keep more than one core busy.
    let mut report = Report::new(run_on_test_host(&cases));
    for pair in EnvoyHost::all().chunks(2) {
        std::thread::scope(|scope| {
            let cases = &cases;
            let runs: Vec<_> =
                pair.iter().map(|host| scope.spawn(move || run_on_envoy(host, cases))).collect();
            for run in runs {
                report.extend(run.join().expect("a host that ran to its end"));
            }
        });
    }
    let path = attache_e2e::workspace_root().join("target/conformance/report.json");
    report.write(&path).expect("a report that can be written");
    println!("{report}");
    if report.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
