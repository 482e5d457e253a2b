//! `make bench`: what a filter costs inside a real Envoy.
//!
//! Each filter gets an Envoy of its own with one worker, pinned to one core; the load and the
//! upstream have the other. What is compared is Envoy's CPU time per request, read from `/proc`,
//! over a fixed number of requests: the hand-written C ABI modules in `../raw` say what the least
//! is, the filters in `../attache` do the same work on the runtime, and Envoy's own
//! `header_mutation` and Lua filters say what people would use otherwise. An Envoy that `ENVOY`
//! names may have the filters compiled in; then its own `header_mutation` is the yardstick.
//!
//! It prints a table, and writes `report.json` (the rows) and `machine.json` (the machine, the
//! memory and the goals) to `bench/` in Cargo's target directory, next to the config and the log
//! of every Envoy.

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use serde_json::json;

use crate::envoy::{Launcher, Spawner};
use crate::machine::Cores;
use crate::measure::Requests;
use crate::report::Report;
use crate::upstream::Upstream;
use crate::variant::{ATTACHE_LIBRARY, Host, Scenario, Variant};

mod envoy;
mod http1;
mod load;
mod machine;
mod measure;
mod memory;
mod report;
mod upstream;
mod variant;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const USAGE: &str = "\
usage: attache-bench [--rounds N] [--only VARIANT,..] [--quick]

  --rounds N          rounds to take the median of (default 5)
  --only VARIANT,..   measure these variants only; `none` and `none_body` are what the others
                      are compared with
  --quick             one round of few requests: shows that everything runs, and no more

environment: ENVOY is the Envoy binary (default .envoy/1.40.0/envoy in the repository); one with
the filters of test/bench/attache compiled in (//test/envoy:envoy) needs no library of them";

/// What only an Envoy has that our filters are compiled into.
const COMPILED_IN: &str = "attache.v3alpha.FilterPerRoute";

struct Options {
    rounds: usize,
    /// Those asked for; without, all that the Envoy has.
    only: Option<Vec<Variant>>,
    quick: bool,
}

fn main() -> ExitCode {
    match options(env::args().skip(1)) {
        Ok(options) => match bench(&options) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("attache-bench: {error}");
                ExitCode::FAILURE
            }
        },
        Err(error) => {
            eprintln!("attache-bench: {error}\n\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn options(mut arguments: impl Iterator<Item = String>) -> Result<Options> {
    let all = all_variants();
    let mut options = Options { rounds: 5, only: None, quick: false };
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--quick" => (options.quick, options.rounds) = (true, 1),
            "--rounds" => {
                options.rounds = value()?.parse()?;
                if options.rounds == 0 {
                    return Err("--rounds needs at least 1".into());
                }
            }
            "--only" => {
                let named = value()?
                    .split(',')
                    .map(|name| {
                        let named = all.iter().find(|variant| variant.name() == name);
                        named.copied().ok_or_else(|| format!("there is no variant `{name}`"))
                    })
                    .collect::<std::result::Result<_, _>>()?;
                options.only = Some(named);
            }
            _ => return Err(format!("`{argument}` is not understood").into()),
        }
    }
    Ok(options)
}

fn all_variants() -> Vec<Variant> {
    Scenario::ALL.into_iter().flat_map(Scenario::variants).copied().collect()
}

fn requests(scenario: Scenario, quick: bool) -> Requests {
    let (warm_up, counted) = match (scenario, quick) {
        (Scenario::Direct | Scenario::Upstream | Scenario::Callout, true) => (200, 2_000),
        (Scenario::Body, true) => (32, 64),
        (Scenario::Direct, false) => (10_000, 80_000),
        (Scenario::Upstream | Scenario::Callout, false) => (5_000, 40_000),
        (Scenario::Body, false) => (100, 1_000),
    };
    Requests { warm_up, counted }
}

fn bench(options: &Options) -> Result<()> {
    let cores = Cores::pick()?;
    if cores.are_shared() {
        eprintln!("attache-bench: only one core to run on; the load will disturb the numbers");
    }
    if cfg!(debug_assertions) && !options.quick {
        eprintln!(
            "attache-bench: this is a debug build, and so may the filters be; the numbers mean nothing"
        );
    }
    let (launcher, variants) = launcher(options, cores)?;
    let version = launcher.version()?;
    machine::pin(cores.load)?;
    let upstream = Upstream::start(cores.load)?;
    let stolen_before = machine::Stolen::now()?;

    let quick = options.quick;
    let all = measure::measure(&launcher, &upstream, options.rounds, &variants, |scenario| {
        requests(scenario, quick)
    })?;
    let ours = variants.iter().any(|variant| variant.library() == Some(ATTACHE_LIBRARY));
    let (suspended, chunks) = if ours {
        let (exchanges, posts) = if quick { (500, 5) } else { (10_000, 50) };
        (
            Some(memory::suspended(&launcher, &upstream, exchanges)?),
            Some(memory::chunks(&launcher, &upstream, posts)?),
        )
    } else {
        (None, None)
    };

    let mut machine = machine::describe(cores, &version);
    machine["rounds"] = json!(options.rounds);
    machine["connections"] = json!(measure::CONNECTIONS);
    // A core that the hypervisor lends to others while Envoy is on it counts as Envoy's time.
    machine["stolen_%"] = json!(machine::Stolen::now()?.percent_since(stolen_before));
    let report = Report::new(machine, launcher.host, &all, suspended, chunks, !quick);
    report.check()?;
    let (rows, rest) = (report.rows_json(), report.rest_json());
    fs::write(launcher.directory.join("report.json"), serde_json::to_vec_pretty(&rows)?)?;
    fs::write(launcher.directory.join("machine.json"), serde_json::to_vec_pretty(&rest)?)?;
    println!("{}", report.text());
    println!("rows: {}", launcher.directory.join("report.json").display());
    Ok(())
}

/// Finds Envoy, what can be measured in it, and the libraries for that, which Cargo builds into the
/// directory of this program.
fn launcher(options: &Options, cores: Cores) -> Result<(Launcher, Vec<Variant>)> {
    let binary = env::var_os("ENVOY").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../.envoy/1.40.0/envoy"),
        PathBuf::from,
    );
    if !binary.exists() {
        return Err(format!(
            "there is no Envoy at {}; put one there or name it in ENVOY",
            binary.display()
        )
        .into());
    }
    let compiled_in =
        Command::new("grep").args(["-qaF", COMPILED_IN]).arg(&binary).status()?.success();
    let host = if compiled_in { Host::CompiledIn } else { Host::Stock };
    let variants = match &options.only {
        None => all_variants().into_iter().filter(|&variant| host.has(variant)).collect(),
        Some(named) => {
            if let Some(missing) = named.iter().find(|&&variant| !host.has(variant)) {
                return Err(format!("{} has no `{}`", binary.display(), missing.name()).into());
            }
            named.clone()
        }
    };
    let program = env::current_exe()?;
    let modules = program.parent().ok_or("this program is in no directory")?.to_owned();
    let libraries = variants.iter().filter_map(|variant| variant.library());
    for library in libraries.filter(|_| host == Host::Stock) {
        if !modules.join(library).exists() {
            return Err(format!(
                "{library} is not in {}; `make bench` builds it, and test/bench/README.md says how",
                modules.display()
            )
            .into());
        }
    }
    let directory = modules.parent().unwrap_or(&modules).join("bench");
    fs::create_dir_all(&directory)?;
    let spawner = Spawner::start(cores.envoy)?;
    Ok((Launcher { binary, host, modules, directory, spawner }, variants))
}
