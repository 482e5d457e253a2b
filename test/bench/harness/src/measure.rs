//! The measurements: rounds in which every variant gets an Envoy of its own, and turns in which each
//! of these Envoys gets its requests.
//!
//! All Envoys of a round are up at once, and only one of them is at work. They take short turns, in
//! an order that rotates, so that a machine that slows down or is busy with something else treats
//! all alike; differences are taken inside a turn, and only their median is reported.

use std::time::Duration;

use crate::Result;
use crate::envoy::{Envoy, Launcher};
use crate::load::{self, Exchange, Load};
use crate::upstream::{ANSWER, Upstream};
use crate::variant::{self, Listener, Scenario, Variant};

/// Connections of the load generator.
pub(crate) const CONNECTIONS: usize = 32;

/// No phase of a measurement takes longer than this on a machine that works.
const PHASE_LIMIT: Duration = Duration::from_secs(120);

/// How often each Envoy of a round has its turn.
const TURNS: usize = 10;

/// How many requests of one scenario an Envoy gets in a round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Requests {
    /// Before the counting.
    pub(crate) warm_up: usize,
    /// Counted, in [`TURNS`] equal parts.
    pub(crate) counted: usize,
}

/// What one Envoy did in a round.
#[derive(Debug)]
pub(crate) struct Sample {
    /// Envoy's CPU time per request in each turn, in microseconds.
    pub(crate) cpu_us: Vec<f64>,
    /// Requests per second.
    pub(crate) rps: f64,
    /// The median latency in microseconds.
    pub(crate) p50_us: f64,
    /// The latency that one in a hundred requests exceeds, in microseconds.
    pub(crate) p99_us: f64,
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
    for number in 0..rounds {
        for scenario in Scenario::ALL {
            let mut of_scenario: Vec<&mut Series> =
                all.iter_mut().filter(|series| series.scenario == scenario).collect();
            if of_scenario.is_empty() {
                continue;
            }
            let variants: Vec<Variant> = of_scenario.iter().map(|series| series.variant).collect();
            let requests = requests(scenario);
            let samples = round(launcher, upstream, scenario, &variants, requests, number)?;
            for (series, sample) in of_scenario.iter_mut().zip(samples) {
                let (variant, cpu) = (series.variant.name(), median(sample.cpu_us.clone()));
                eprintln!(
                    "round {}/{rounds}  {:<9} {variant:<23} {cpu:>9.2} us/request",
                    number + 1,
                    scenario.name(),
                );
                series.samples.push(sample);
            }
        }
    }
    Ok(all)
}

/// An Envoy that waits for its turn.
struct Contender<'a> {
    variant: Variant,
    envoy: Envoy,
    load: Load<'a>,
    cpu_us: Vec<f64>,
    elapsed: Duration,
    latencies: Vec<Duration>,
}

fn round(
    launcher: &Launcher,
    upstream: &Upstream,
    scenario: Scenario,
    variants: &[Variant],
    requests: Requests,
    number: usize,
) -> Result<Vec<Sample>> {
    let exchange = scenario.exchange();
    let mut contenders = Vec::with_capacity(variants.len());
    for &variant in variants {
        let failed = |error| format!("{} with {}: {error}", variant.name(), scenario.name());
        let mut contender =
            Contender::enter(launcher, upstream, scenario, variant, &exchange).map_err(failed)?;
        contender.load.run(requests.warm_up, PHASE_LIMIT).map_err(failed)?;
        contenders.push(contender);
    }
    let slice = requests.counted / TURNS;
    for turn in 0..TURNS {
        for place in 0..contenders.len() {
            let at = (number + turn + place) % contenders.len();
            let contender = &mut contenders[at];
            contender.turn(slice).map_err(|error| {
                format!("{} with {}: {error}", contender.variant.name(), scenario.name())
            })?;
        }
    }
    contenders.into_iter().map(Contender::leave).collect()
}

impl<'a> Contender<'a> {
    fn enter(
        launcher: &Launcher,
        upstream: &Upstream,
        scenario: Scenario,
        variant: Variant,
        exchange: &'a Exchange,
    ) -> Result<Self> {
        let listener = Listener {
            name: "bench",
            filters: variant.filters(launcher.host),
            answer: matches!(scenario, Scenario::Direct | Scenario::Callout).then_some(ANSWER),
        };
        let config = variant::config(vec![listener], upstream.address());
        let envoy = launcher.start(&format!("{}.{}", scenario.name(), variant.name()), &config)?;
        let address = envoy.listener("bench")?;
        variant.verify(scenario, &load::ask(address, &exchange.request)?)?;
        Ok(Contender {
            variant,
            envoy,
            load: Load::connect(address, CONNECTIONS, exchange)?,
            cpu_us: Vec::new(),
            elapsed: Duration::ZERO,
            latencies: Vec::new(),
        })
    }

    fn turn(&mut self, requests: usize) -> Result<()> {
        // The caches belong to whoever was at work before; getting them back is not counted.
        self.load.run(requests.div_ceil(10), PHASE_LIMIT)?;
        let before = self.envoy.cpu()?;
        let run = self.load.run(requests, PHASE_LIMIT)?;
        let spent = self.envoy.cpu()?.saturating_sub(before);
        self.cpu_us.push(spent.as_secs_f64() * 1e6 / requests as f64);
        self.elapsed += run.elapsed;
        self.latencies.extend(run.latencies);
        Ok(())
    }

    fn leave(mut self) -> Result<Sample> {
        self.latencies.sort_unstable();
        let quantile = |share: f64| {
            let at = (self.latencies.len().saturating_sub(1) as f64 * share).round() as usize;
            self.latencies.get(at).map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e6)
        };
        Ok(Sample {
            rps: self.latencies.len() as f64 / self.elapsed.as_secs_f64(),
            p50_us: quantile(0.50),
            p99_us: quantile(0.99),
            rss_mb: self.envoy.rss()? as f64 / f64::from(1 << 20),
            cpu_us: self.cpu_us,
        })
    }
}

/// The middle of the values.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        even if even % 2 == 0 => (values[half - 1] + values[half]) / 2.0,
        _ => values[half],
    }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
