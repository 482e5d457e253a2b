//! From samples to the report: medians, the table for people, the JSON for programs, and the goals
//! that the project holds itself to.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::Result;
use crate::measure::{Sample, Series, median};
use crate::memory::{Chunks, Suspended};
use crate::variant::{Host, Scenario, Variant};

/// One line of the report: medians over the rounds.
#[derive(Clone, Copy, Debug)]
struct Row {
    scenario: Scenario,
    variant: Variant,
    cpu_us: f64,
    /// What the filter adds; none without the variant to compare with.
    added: Option<Difference>,
    /// The distance between the rounds that found the most and the least CPU time.
    spread: f64,
    rps: f64,
    p50_us: f64,
    p99_us: f64,
    rss_mb: f64,
}

/// How much more CPU time one variant takes than another, in microseconds per request.
#[derive(Clone, Copy, Debug)]
struct Difference {
    /// The median of the differences, each taken inside one turn.
    us: f64,
    /// How far off that may be: the true median is closer than this in 19 of 20 benches.
    error: f64,
}

/// A promise about performance, and what came of it.
#[derive(Debug)]
pub(crate) struct Goal {
    promise: &'static str,
    measured: String,
    met: bool,
}

/// Everything that was measured.
#[derive(Debug)]
pub(crate) struct Report {
    machine: Value,
    rows: Vec<Row>,
    suspended: Option<Suspended>,
    chunks: Option<Chunks>,
    goals: Vec<Goal>,
}

fn series(all: &[Series], scenario: Scenario, variant: Variant) -> Option<&Series> {
    all.iter().find(|series| series.scenario == scenario && series.variant == variant)
}

fn difference(of: &Series, from: &Series) -> Difference {
    let turns = |series: &Series| -> Vec<f64> {
        series.samples.iter().flat_map(|sample| sample.cpu_us.iter().copied()).collect()
    };
    let pairs = turns(of).into_iter().zip(turns(from));
    let mut differences: Vec<f64> = pairs.map(|(of, from)| of - from).collect();
    differences.sort_by(f64::total_cmp);
    let count = differences.len();
    // The standard error of a median is 1.25 standard deviations by the root of the count, and the
    // quartiles of a normal distribution are 1.35 standard deviations apart. The quartiles are
    // used because a disturbed turn is far out, and the standard deviation would follow it there.
    let quartiles = differences[count * 3 / 4] - differences[count / 4];
    let error = 1.96 * 1.25 / 1.35 * quartiles / (count as f64).sqrt();
    Difference { us: median(differences), error }
}

fn row(all: &[Series], of: &Series) -> Row {
    let over = |field: fn(&Sample) -> f64| median(of.samples.iter().map(field).collect());
    let cpu = of.samples.iter().map(|sample| median(sample.cpu_us.clone()));
    let base = series(all, of.scenario, of.scenario.variants()[0]);
    Row {
        scenario: of.scenario,
        variant: of.variant,
        cpu_us: median(cpu.clone().collect()),
        added: base.map(|base| difference(of, base)),
        spread: cpu.clone().fold(f64::MIN, f64::max) - cpu.fold(f64::MAX, f64::min),
        rps: over(|sample| sample.rps),
        p50_us: over(|sample| sample.p50_us),
        p99_us: over(|sample| sample.p99_us),
        rss_mb: over(|sample| sample.rss_mb),
    }
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2} ± {:.2} us", self.us, self.error)
    }
}

impl Report {
    /// Sums up the measurements. The goals are left out unless they are to be `judged`.
    pub(crate) fn new(
        machine: Value,
        host: Host,
        all: &[Series],
        suspended: Option<Suspended>,
        chunks: Option<Chunks>,
        judged: bool,
    ) -> Report {
        let rows: Vec<Row> = all.iter().map(|of| row(all, of)).collect();
        let mut report = Report { machine, rows, suspended, chunks, goals: Vec::new() };
        if judged {
            report.judge(host, all);
        }
        report
    }

    /// Refuses numbers that cannot be: a harness that has stopped measuring must not go unnoticed.
    pub(crate) fn check(&self) -> Result<()> {
        for row in &self.rows {
            let numbers = [row.cpu_us, row.rps, row.p50_us, row.p99_us, row.rss_mb];
            if !numbers.iter().all(|&number| number.is_finite() && number > 0.0) {
                return Err(format!("nothing was measured: {row:?}").into());
            }
        }
        Ok(())
    }

    fn added(&self, variant: Variant) -> Option<Difference> {
        let row = |row: &&Row| row.scenario == Scenario::Direct && row.variant == variant;
        self.rows.iter().find(row)?.added
    }

    fn judge(&mut self, host: Host, all: &[Series]) {
        let goals = [
            self.goal_pass(all),
            self.goal_headers(),
            self.goal_compiled_in().filter(|_| host == Host::CompiledIn),
            self.goal_hop(),
            self.goal_body(all),
            self.goal_callout(),
            self.goal_chunks(),
            self.goal_suspended(),
        ];
        self.goals.extend(goals.into_iter().flatten());
    }

    fn goal_pass(&self, all: &[Series]) -> Option<Goal> {
        let ours = series(all, Scenario::Direct, Variant::AttachePass)?;
        let raw = series(all, Scenario::Direct, Variant::RawPass)?;
        let more = difference(ours, raw);
        Some(Goal {
            promise: "attache_pass adds at most 0.3 us more than raw_pass",
            measured: format!("{more} more"),
            met: more.us <= 0.3,
        })
    }

    fn goal_headers(&self) -> Option<Goal> {
        let ours = self.added(Variant::AttacheHeaders)?;
        let raw = self.added(Variant::RawHeaders)?;
        let lua = self.added(Variant::LuaHeaders)?;
        Some(Goal {
            promise: "attache_headers adds at most 1.15 times what raw_headers adds, and less than lua_headers",
            measured: format!("{ours} against {raw} ({:.2} times), Lua {lua}", ours.us / raw.us),
            met: ours.us <= 1.15 * raw.us && ours.us < lua.us,
        })
    }

    fn goal_compiled_in(&self) -> Option<Goal> {
        let ours = self.added(Variant::AttacheHeaders)?;
        let envoys = self.added(Variant::HeaderMutation)?;
        Some(Goal {
            promise: "attache_headers, compiled in, adds at most 1.1 times what header_mutation adds",
            measured: format!("{ours} against {envoys} ({:.2} times)", ours.us / envoys.us),
            met: ours.us <= 1.1 * envoys.us,
        })
    }

    fn goal_hop(&self) -> Option<Goal> {
        let ours = self.added(Variant::AttacheHop)?;
        let raw = self.added(Variant::RawHop)?;
        Some(Goal {
            promise: "attache_hop adds at most 1.1 times what raw_hop adds",
            measured: format!("{ours} against {raw} ({:.2} times)", ours.us / raw.us),
            met: ours.us <= 1.1 * raw.us,
        })
    }

    fn goal_body(&self, all: &[Series]) -> Option<Goal> {
        let ours = series(all, Scenario::Body, Variant::AttacheBodyUntouched)?;
        let none = series(all, Scenario::Body, Variant::NoneBody)?;
        let more = difference(ours, none);
        // With few rounds the spread says little, and the turns have to say it.
        let noise = row(all, none).spread.max(more.error);
        Some(Goal {
            promise: "attache_body_untouched is not above none_body beyond noise",
            measured: format!("{more} more; the noise of none_body is {noise:.1} us"),
            met: more.us <= noise,
        })
    }

    fn goal_callout(&self) -> Option<Goal> {
        let added = |variant| {
            let row = |row: &&Row| row.scenario == Scenario::Callout && row.variant == variant;
            self.rows.iter().find(row)?.added
        };
        let (ours, theirs) = (added(Variant::AttacheCallout)?, added(Variant::ExtAuthz)?);
        Some(Goal {
            promise: "attache_callout adds at most 1.1 times what ext_authz adds",
            measured: format!("{ours} against {theirs} ({:.2} times)", ours.us / theirs.us),
            met: ours.us <= 1.1 * theirs.us,
        })
    }

    fn goal_chunks(&self) -> Option<Goal> {
        let Chunks { small, large } = self.chunks?;
        Some(Goal {
            promise: "attache_body_untouched allocates nothing per body chunk",
            measured: format!("{small:.2} allocations with 1 KiB bodies, {large:.2} with 1 MiB"),
            // A chunk is at most a few tens of KiB: one allocation for each would be dozens.
            met: large - small < 1.0,
        })
    }

    fn goal_suspended(&self) -> Option<Goal> {
        let each = self.suspended?.heap_each;
        Some(Goal {
            promise: "a suspended exchange takes at most 2048 bytes of the runtime's heap",
            measured: format!("{each:.0} bytes"),
            met: each <= 2048.0,
        })
    }

    /// The rows, for `report.json`.
    pub(crate) fn rows_json(&self) -> Value {
        let rounded = |value: f64| (value * 1000.0).round() / 1000.0;
        self.rows
            .iter()
            .map(|row| {
                json!({
                    "variant": row.variant.name(),
                    "scenario": row.scenario.name(),
                    "cpu_us": rounded(row.cpu_us),
                    "added_cpu_us": row.added.map(|added| rounded(added.us)),
                    "rps": rounded(row.rps),
                    "p50_us": rounded(row.p50_us),
                    "p99_us": rounded(row.p99_us),
                    "rss_mb": rounded(row.rss_mb),
                })
            })
            .collect()
    }

    /// Everything that is not a row, for `machine.json`.
    pub(crate) fn rest_json(&self) -> Value {
        json!({
            "machine": self.machine,
            "suspended": self.suspended.map(|suspended| json!({
                "exchanges": suspended.exchanges,
                "heap_bytes_each": suspended.heap_each,
                "heap_bytes_left_each": suspended.left_each,
                "envoy_rss_mb": suspended.rss_mb,
                "envoy_rss_bytes_each": suspended.rss_each,
            })),
            "allocations_per_exchange": self.chunks.map(|chunks| json!({
                "body_1kib": chunks.small,
                "body_1mib": chunks.large,
            })),
            "goals": self.goals.iter().map(|goal| json!({
                "promise": goal.promise,
                "measured": goal.measured,
                "met": goal.met,
            })).collect::<Value>(),
        })
    }

    /// The report for people.
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        self.write(&mut out).expect("a string takes everything");
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        if let Some(machine) = self.machine.as_object() {
            for (key, value) in machine {
                let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                writeln!(out, "{key:<10} {value}")?;
            }
        }
        for scenario in Scenario::ALL {
            let rows = || self.rows.iter().filter(|row| row.scenario == scenario);
            if rows().next().is_none() {
                continue;
            }
            writeln!(
                out,
                "\n{:<23} {:>9} {:>9} {:>7} {:>9} {:>9} {:>9} {:>9} {:>8}",
                scenario.name(),
                "cpu us",
                "added us",
                "±",
                "spread us",
                "req/s",
                "p50 us",
                "p99 us",
                "rss MiB"
            )?;
            for row in rows() {
                let (added, error) = row.added.map_or(("-".into(), "-".into()), |added| {
                    (format!("{:.2}", added.us), format!("{:.2}", added.error))
                });
                writeln!(
                    out,
                    "{:<23} {:>9.2} {added:>9} {error:>7} {:>9.2} {:>9.0} {:>9.0} {:>9.0} {:>8.1}",
                    row.variant.name(),
                    row.cpu_us,
                    row.spread,
                    row.rps,
                    row.p50_us,
                    row.p99_us,
                    row.rss_mb
                )?;
            }
        }
        if let Some(it) = self.suspended {
            writeln!(
                out,
                "\nsuspended: {} exchanges at once take {:.0} bytes each of the runtime's heap \
                 ({:.0} are kept afterwards);\nEnvoy's memory is {:.0} MiB then, {:.0} bytes more \
                 for each",
                it.exchanges, it.heap_each, it.left_each, it.rss_mb, it.rss_each
            )?;
        }
        if !self.goals.is_empty() {
            writeln!(out, "\ngoals")?;
        }
        for goal in &self.goals {
            let verdict = if goal.met { "met   " } else { "MISSED" };
            writeln!(out, "{verdict}  {}: {}", goal.promise, goal.measured)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::Report;
    use crate::measure::{Sample, Series};
    use crate::variant::{Host, Scenario, Variant};

    fn of(variant: Variant, cpu: &[f64]) -> Series {
        let sample = |&cpu_us: &f64| Sample {
            cpu_us: vec![cpu_us],
            rps: 1.0,
            p50_us: 1.0,
            p99_us: 1.0,
            rss_mb: 1.0,
        };
        let samples = cpu.iter().map(sample).collect();
        Series { scenario: Scenario::Direct, variant, samples }
    }

    #[test]
    fn differences_are_taken_inside_a_turn() {
        // The machine was twice as slow in the second turn; the filter added 1 us all the same.
        let all = [
            of(Variant::None, &[10.0, 20.0, 10.0]),
            of(Variant::RawPass, &[11.0, 21.0, 11.0]),
            of(Variant::AttachePass, &[11.5, 21.5, 11.1]),
        ];
        let report = Report::new(Value::Null, Host::Stock, &all, None, None, true);
        assert_eq!(report.rows_json()[1]["added_cpu_us"], 1.0);
        assert_eq!(report.rows_json()[1]["cpu_us"], 11.0);
        let [goal] = &report.goals[..] else { panic!("{:?}", report.goals) };
        assert!(!goal.met, "{goal:?}");
    }
}
