//! The measurements: rounds in which every variant gets an Envoy of its own.
//!
//! Rounds are interleaved and the order of the variants rotates, so that a machine that slows down
//! or warms up does not favour anyone; differences are taken inside a round, and only their median
//! is reported.

use std::time::Duration;

use crate::Result;
use crate::envoy::Launcher;
use crate::load::{self, Load};
use crate::upstream::Upstream;
use crate::variant::{self, Listener, Scenario, Variant};

/// Connections of the load generator.
pub(crate) const CONNECTIONS: usize = 32;

/// No phase of a measurement takes longer than this on a machine that works.
const PHASE_LIMIT: Duration = Duration::from_secs(120);

/// How many requests of one scenario a measurement sends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Requests {
    /// Before the counting.
    pub(crate) warm_up: usize,
    /// Counted.
    pub(crate) counted: usize,
}

/// What one measurement found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// Envoy's CPU time per request, in microseconds.
    pub(crate) cpu_us: f64,
    /// Requests per second.
    pub(crate) rps: f64,
    /// The median latency in microseconds.
    pub p50_us: f64,
    /// The latency that one in a hundred requests exceeds, in microseconds.
    pub p99_us: f64,
    /// Envoy's resident memory in MiB.
    pub(crate) rss_mb: f64,
}

/// All samples of one variant under one traffic, a sample per round.
#[derive(Debug)]
pub(crate) struct Series {
    /// The traffic.
    pub(crate) scenario: Scenario,
    /// The variant.
    pub(crate) variant: Variant,
    /// One per round, in the order of the rounds.
    pub(crate) samples: Vec<Sample>,
}

/// Measures `variants` in each scenario, `rounds` times.
pub(crate) fn measure(
    launcher: &Launcher,
    upstream: &Upstream,
    rounds: usize,
    wanted: &[Variant],
    requests: impl Fn(Scenario) -> Requests,
) -> Result<Vec<Series>> {
    let mut all: Vec<Series> = Vec::new();
    for scenario in Scenario::ALL {
        let variants = scenario.variants().iter().filter(|variant| wanted.contains(variant));
        all.extend(variants.map(|&variant| Series { scenario, variant, samples: vec![] }));
    }
    for round in 0..rounds {
        for scenario in Scenario::ALL {
            let mut of_scenario: Vec<&mut Series> =
                all.iter_mut().filter(|series| series.scenario == scenario).collect();
            if of_scenario.is_empty() {
                continue;
            }
            let first = round % of_scenario.len();
            of_scenario.rotate_left(first);
            for series in of_scenario {
                let variant = series.variant;
                let sample = once(launcher, upstream, variant, scenario, requests(scenario))
                    .map_err(|error| {
                        format!("{} with {}: {error}", variant.name(), scenario.name())
                    })?;
                eprintln!(
                    "round {}/{rounds}  {:<9} {:<23} {:>9.2} us/request",
                    round + 1,
                    scenario.name(),
                    variant.name(),
                    sample.cpu_us
                );
                series.samples.push(sample);
            }
        }
    }
    Ok(all)
}

fn once(
    launcher: &Launcher,
    upstream: &Upstream,
    variant: Variant,
    scenario: Scenario,
    requests: Requests,
) -> Result<Sample> {
    let listener = Listener {
        name: "bench",
        filters: variant.filters(),
        to_upstream: scenario != Scenario::Direct,
    };
    let config = variant::config(vec![listener], upstream.address());
    let envoy = launcher.start(&format!("{}.{}", scenario.name(), variant.name()), &config)?;
    let address = envoy.listener("bench")?;
    let exchange = scenario.exchange();
    variant.verify(scenario, &load::ask(address, &exchange.request)?)?;

    let mut load = Load::connect(address, CONNECTIONS, &exchange)?;
    load.run(requests.warm_up, PHASE_LIMIT)?;
    let before = envoy.cpu()?;
    let run = load.run(requests.counted, PHASE_LIMIT)?;
    let spent = envoy.cpu()?.saturating_sub(before);
    Ok(Sample {
        cpu_us: spent.as_secs_f64() * 1e6 / requests.counted as f64,
        rps: requests.counted as f64 / run.elapsed.as_secs_f64(),
        p50_us: run.quantile(0.50).as_secs_f64() * 1e6,
        p99_us: run.quantile(0.99).as_secs_f64() * 1e6,
        rss_mb: envoy.rss()? as f64 / f64::from(1 << 20),
    })
}
