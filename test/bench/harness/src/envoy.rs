//! One Envoy process: started fresh for a measurement, pinned to one core, and gone afterwards.

use std::fs::{self, File};
use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::Result;
use crate::load;
use crate::machine;
use crate::variant::Host;

const START_LIMIT: Duration = Duration::from_secs(20);
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// What it takes to start an Envoy.
#[derive(Debug)]
pub(crate) struct Launcher {
    /// The Envoy binary.
    pub(crate) binary: PathBuf,
    /// How it gets our filters.
    pub(crate) host: Host,
    /// Where the modules are searched.
    pub(crate) modules: PathBuf,
    /// Where configs and logs go.
    pub(crate) directory: PathBuf,
    /// The thread that starts Envoys.
    pub(crate) spawner: Spawner,
}

/// A thread that starts processes on one core, and lives as long as this program.
///
/// A child inherits the core of the thread that starts it, before it has any thread of its own to
/// move. And a child can be told to end with the thread that started it, so that no Envoy stays
/// behind when this program is killed.
#[derive(Debug)]
pub(crate) struct Spawner(Sender<(Command, Sender<io::Result<Child>>)>);

impl Spawner {
    /// Starts the thread.
    pub(crate) fn start(core: usize) -> Result<Spawner> {
        let (sender, commands) = mpsc::channel::<(Command, Sender<io::Result<Child>>)>();
        thread::Builder::new().name("spawner".into()).spawn(move || {
            for (mut command, started) in commands {
                // SAFETY: prctl is a plain system call, which is all that may run between fork and
                // exec.
                unsafe {
                    command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                        0 => Ok(()),
                        _ => Err(io::Error::last_os_error()),
                    });
                }
                let child = machine::pin(core).and_then(|()| command.spawn());
                // Nobody waits for the answer when the program is about to end.
                let _ = started.send(child);
            }
        })?;
        Ok(Spawner(sender))
    }

    fn spawn(&self, command: Command) -> Result<Child> {
        let (started, child) = mpsc::channel();
        self.0.send((command, started))?;
        Ok(child.recv()??)
    }
}

/// A running Envoy; dropping it kills it.
#[derive(Debug)]
pub(crate) struct Envoy {
    child: Child,
    admin: SocketAddr,
}

impl Launcher {
    /// What the binary says about itself: `commit/version/..`.
    pub(crate) fn version(&self) -> Result<String> {
        let output = Command::new(&self.binary)
            .arg("--version")
            .output()
            .map_err(|error| format!("{} cannot be started: {error}", self.binary.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = text.split_once("version:").map_or(text.trim(), |(_, rest)| rest.trim());
        Ok(version.to_owned())
    }

    /// Starts an Envoy with one worker. `name` names its config and log files.
    pub(crate) fn start(&self, name: &str, config: &Value) -> Result<Envoy> {
        let config_path = self.directory.join(format!("{name}.envoy.json"));
        let log_path = self.directory.join(format!("{name}.envoy.log"));
        let admin_path = self.directory.join("admin-address");
        fs::write(&config_path, serde_json::to_vec_pretty(config)?)?;
        if admin_path.exists() {
            fs::remove_file(&admin_path)?;
        }
        let log = File::create(&log_path)?;
        let mut command = Command::new(&self.binary);
        command
            .arg("--config-path")
            .arg(&config_path)
            .arg("--admin-address-path")
            .arg(&admin_path)
            .args(["--concurrency", "1", "--log-level", "warn", "--disable-hot-restart"])
            .env("ENVOY_DYNAMIC_MODULES_SEARCH_PATH", &self.modules)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let unready = Unready { child: Some(self.spawner.spawn(command)?) };
        unready.wait(&admin_path).map_err(|error| {
            let mut log = String::new();
            let _ = File::open(&log_path).and_then(|mut file| file.read_to_string(&mut log));
            format!("Envoy did not start for `{name}`: {error}\n{}", tail(&log)).into()
        })
    }
}

/// A child that is killed unless it becomes an [`Envoy`].
struct Unready {
    child: Option<Child>,
}

impl Unready {
    fn wait(mut self, admin_path: &Path) -> Result<Envoy> {
        let start = Instant::now();
        loop {
            let child = self.child.as_mut().ok_or("Envoy is gone")?;
            if let Some(status) = child.try_wait()? {
                return Err(format!("it ended with {status}").into());
            }
            if let Some(admin) = ready(admin_path) {
                let child = self.child.take().ok_or("Envoy is gone")?;
                return Ok(Envoy { child, admin });
            }
            if start.elapsed() > START_LIMIT {
                return Err(format!("it was not ready after {START_LIMIT:?}").into());
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Unready {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            stop(child);
        }
    }
}

/// The admin address, once Envoy says that it is ready.
fn ready(admin_path: &Path) -> Option<SocketAddr> {
    let admin = fs::read_to_string(admin_path).ok()?.trim().parse().ok()?;
    let response = load::ask(admin, b"GET /ready HTTP/1.1\r\nhost: admin\r\n\r\n").ok()?;
    (response.status() == Some(200)).then_some(admin)
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

fn stop(child: &mut Child) {
    // Nothing of an Envoy that has been measured is worth a graceful end.
    let _ = child.kill();
    let start = Instant::now();
    while let Ok(None) = child.try_wait() {
        if start.elapsed() > STOP_LIMIT {
            eprintln!("Envoy (pid {}) does not end", child.id());
            return;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

impl Envoy {
    /// The address of a listener that was configured with port 0.
    pub(crate) fn listener(&self, name: &str) -> Result<SocketAddr> {
        let response = load::ask(self.admin, b"GET /listeners HTTP/1.1\r\nhost: admin\r\n\r\n")?;
        let text = String::from_utf8_lossy(response.body());
        text.lines()
            .filter_map(|line| line.split_once("::"))
            .find(|(listener, _)| *listener == name)
            .and_then(|(_, address)| address.trim().parse().ok())
            .ok_or_else(|| format!("Envoy has no listener `{name}`:\n{text}").into())
    }

    /// The CPU time of all threads so far.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let mut total = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let path = task?.path().join("schedstat");
            // A thread may end between the listing and the reading.
            let Ok(text) = fs::read_to_string(&path) else { continue };
            let on_cpu = text.split(' ').next().and_then(|field| field.parse::<u64>().ok());
            total += on_cpu.ok_or_else(|| format!("{} is not understood", path.display()))?;
        }
        Ok(Duration::from_nanos(total))
    }

    /// The resident memory in bytes.
    pub(crate) fn rss(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let kib = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok())
            .ok_or("no VmRSS")?;
        Ok(kib * 1024)
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        stop(&mut self.child);
    }
}
