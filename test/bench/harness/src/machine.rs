//! The machine: which cores there are, and what it is called in the report.

use std::fs;
use std::io;
use std::mem;

use serde_json::{Value, json};

/// One core for Envoy, one for everything that is not measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cores {
    /// Envoy runs here, alone.
    pub(crate) envoy: usize,
    /// The load generator and the upstream run here.
    pub(crate) load: usize,
    /// How many there are to use.
    pub(crate) count: usize,
}

impl Cores {
    /// Picks two of the cores that this process may use. On a machine with one core both are the
    /// same, and the numbers say little.
    pub(crate) fn pick() -> io::Result<Cores> {
        let allowed = allowed()?;
        let load = *allowed.first().ok_or_else(|| io::Error::other("no core to run on"))?;
        let envoy = *allowed.last().unwrap_or(&load);
        Ok(Cores { envoy, load, count: allowed.len() })
    }

    /// Whether Envoy has to share its core with the load.
    pub(crate) fn are_shared(&self) -> bool {
        self.envoy == self.load
    }
}

fn allowed() -> io::Result<Vec<usize>> {
    // SAFETY: `cpu_set_t` is a plain bit set; all zeroes is the empty one.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: `set` is valid for writes of the size that is passed; 0 names the calling thread.
    let failed = unsafe { libc::sched_getaffinity(0, mem::size_of_val(&set), &mut set) } != 0;
    if failed {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: every index is below the number of bits in the set.
    let is_set = |cpu: &usize| unsafe { libc::CPU_ISSET(*cpu, &set) };
    Ok((0..libc::CPU_SETSIZE as usize).filter(is_set).collect())
}

/// Moves the calling thread to one core. Threads and processes that it starts stay there too.
pub(crate) fn pin(core: usize) -> io::Result<()> {
    // SAFETY: `cpu_set_t` is a plain bit set; all zeroes is the empty one.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: `core` came out of a set of the same size.
    unsafe { libc::CPU_SET(core, &mut set) };
    // SAFETY: `set` is valid for reads of the size that is passed; 0 names the calling thread.
    let failed = unsafe { libc::sched_setaffinity(0, mem::size_of_val(&set), &set) } != 0;
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What identifies the machine in a report.
pub(crate) fn describe(cores: Cores, envoy_version: &str) -> Value {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == "model name")
        .map_or("unknown", |(_, value)| value.trim());
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    json!({
        "cpu": model,
        "cores": cores.count,
        "kernel": kernel.trim(),
        "envoy": envoy_version,
    })
}

/// How much of the cores' time the hypervisor has given to others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stolen {
    stolen: u64,
    total: u64,
}

impl Stolen {
    /// Since the machine started.
    pub(crate) fn now() -> io::Result<Stolen> {
        let stat = fs::read_to_string("/proc/stat")?;
        let fields: Vec<u64> = stat
            .lines()
            .next()
            .unwrap_or_default()
            .split_ascii_whitespace()
            .filter_map(|field| field.parse().ok())
            .collect();
        // user, nice, system, idle, iowait, irq, softirq, steal; what follows is part of these.
        let counted = fields.get(..8).ok_or_else(|| io::Error::other("/proc/stat is too short"))?;
        Ok(Stolen { stolen: counted[7], total: counted.iter().sum() })
    }

    /// In percent of the time since then, to one decimal.
    pub(crate) fn percent_since(self, before: Stolen) -> f64 {
        let total = (self.total - before.total).max(1) as f64;
        ((self.stolen - before.stolen) as f64 / total * 1000.0).round() / 10.0
    }
}
