//! Runs real Envoys: one process per test, on free loopback ports, watched for crashes.

use std::fmt;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use http::{Method, Request, Uri};
use http_body_util::BodyExt;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::body::OutBody;
use crate::client::{Client, ClientOptions, Protocol};
use crate::config::{ACCESS_LOG_FILE, Config, LISTENERS_FILE};
use crate::module::{Modules, workspace_root};
use crate::wait::{LIMIT, eventually, within};

/// What is in a binary with our C++ filter, and in no other: the name of its config.
const COMPILED_IN: &str = "attache.v3alpha.FilterPerRoute";

/// What stands before the names of the metrics of modules.
const MODULE_STATS: &str = "dynamicmodulescustom.";

/// An Envoy binary.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Version {
    name: String,
    binary: PathBuf,
    compiled_in: bool,
}

impl Version {
    /// The versions to test with, oldest first: those pinned in `test/envoy.lock`, or the one
    /// binary that the environment variable `ENVOY` names.
    pub fn all() -> Vec<Self> {
        if let Some(binary) = std::env::var_os("ENVOY") {
            return vec![Self::of_binary(binary.into())];
        }
        let mut names: Vec<&str> = include_str!("../../envoy.lock")
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split_whitespace().next())
            .collect();
        names.dedup();
        names.into_iter().map(Self::pinned).collect()
    }

    /// The newest of [`all`](Self::all).
    pub fn newest() -> Self {
        Self::all().pop().expect("a pinned Envoy")
    }

    fn pinned(name: &str) -> Self {
        let binary = workspace_root().join(".envoy").join(name).join("envoy");
        assert!(
            binary.is_file(),
            "Envoy {name} is not there: run `test/fetch-envoy` (looked for {})",
            binary.display()
        );
        Self { name: name.to_owned(), binary, compiled_in: false }
    }

    /// Any binary; asks it for its version, and looks whether our filter is compiled in.
    pub fn of_binary(binary: PathBuf) -> Self {
        let output = Command::new(&binary).arg("--version").output();
        let output = output.unwrap_or_else(|error| panic!("{}: {error}", binary.display()));
        // `path/of/envoy  version: <commit>/<version>/<state>/<mode>/<ssl>`
        let text = String::from_utf8_lossy(&output.stdout);
        let version = text.split_once("version: ").map_or("", |(_, version)| version);
        let name = version.split('/').nth(1).unwrap_or("unknown").to_owned();
        let found = Command::new("grep").args(["-qaF", COMPILED_IN]).arg(&binary).status();
        let compiled_in = found.expect("grep runs").success();
        Self { name, binary, compiled_in }
    }

    /// Whether the filters are compiled into it. Such an Envoy needs no module: the configs of
    /// [`ModuleFilter`](crate::ModuleFilter)s are written as it wants them.
    pub fn is_compiled_in(&self) -> bool {
        self.compiled_in
    }

    /// What Envoy's log calls the filters: the component whose level is theirs.
    pub fn log_component(&self) -> &'static str {
        if self.compiled_in { "filter" } else { "dynamic_modules" }
    }

    /// How a log line of a filter begins, behind its time: `[error][dynamic_modules]`, say.
    pub fn log_tag(&self, level: &str) -> String {
        format!("[{level}][{}]", self.log_component())
    }

    /// `1.40.0`, say.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether filters can do what stock Envoy lets them from 1.40 on: an Envoy with the filters compiled
    /// in does, too.
    pub fn tells_as_1_40(&self) -> bool {
        self.compiled_in || self.name.starts_with("1.40.")
    }

    /// Where the binary is.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// An Envoy of this version, yet to be started.
    pub fn launch(&self) -> Launch {
        Launch {
            version: self.clone(),
            concurrency: 1,
            search_path: None,
            log_level: "info".into(),
            component_levels: Vec::new(),
            environment: Vec::new(),
            drain_seconds: 600,
            own_group: false,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Envoy {}", self.name)
    }
}

/// Where a scenario runs: an Envoy, and what the client speaks to it.
#[derive(Clone, Debug)]
pub struct Host {
    /// The Envoy.
    pub version: Version,
    /// What the client speaks.
    pub protocol: Protocol,
}

impl Host {
    /// Each version with each protocol.
    pub fn all() -> Vec<Self> {
        Version::all()
            .into_iter()
            .flat_map(|version| {
                Protocol::ALL.map(|protocol| Self { version: version.clone(), protocol })
            })
            .collect()
    }

    /// An Envoy of this host's version, yet to be started.
    pub fn launch(&self) -> Launch {
        self.version.launch()
    }

    /// A new connection to an Envoy, in this host's protocol.
    pub async fn connect(&self, envoy: &Envoy) -> Client {
        Client::connect(envoy.address(), self.protocol).await
    }

    /// A new connection with options.
    pub fn client(&self, envoy: &Envoy) -> ClientOptions {
        Client::options(envoy.address(), self.protocol)
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.version, self.protocol)
    }
}

/// Runs a scenario on every [`Host`], one after the other; a failing test's output names the one.
pub async fn on_every_host(mut scenario: impl AsyncFnMut(Host)) {
    for host in Host::all() {
        eprintln!("--- on {host}");
        scenario(host).await;
    }
}

/// An Envoy about to be started.
#[derive(Clone, Debug)]
pub struct Launch {
    version: Version,
    concurrency: u32,
    search_path: Option<PathBuf>,
    log_level: String,
    component_levels: Vec<String>,
    environment: Vec<(String, String)>,
    drain_seconds: u32,
    own_group: bool,
}

impl Launch {
    /// How many workers it has; 1 unless set.
    pub fn concurrency(mut self, workers: u32) -> Self {
        self.concurrency = workers;
        self
    }

    /// Where it finds modules. They must outlive it.
    pub fn modules(mut self, modules: &Modules) -> Self {
        self.search_path = Some(modules.directory().to_owned());
        self
    }

    /// The level of its log; `info` unless set.
    pub fn log_level(mut self, level: &str) -> Self {
        level.clone_into(&mut self.log_level);
        self
    }

    /// The level of what the filters log.
    pub fn filters_log_level(self, level: &str) -> Self {
        let component = self.version.log_component();
        self.component_log_level(component, level)
    }

    /// The level of one component's log.
    pub fn component_log_level(mut self, component: &str, level: &str) -> Self {
        self.component_levels.push(format!("{component}:{level}"));
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// How long the streams of a replaced listener config may go on before they are cut off; Envoy's
    /// own 600 seconds unless set.
    pub fn drain_seconds(mut self, seconds: u32) -> Self {
        self.drain_seconds = seconds;
        self
    }

    /// Keeps the terminal's Ctrl-C from it, for a program that ends its Envoy itself.
    pub fn shielded(mut self) -> Self {
        self.own_group = true;
        self
    }

    fn command(&self, directory: &Path, config: &Config) -> Command {
        let rendered = config.render(directory, self.version.compiled_in);
        let path = directory.join("envoy.yaml");
        fs::write(&path, rendered.main).expect("a file in the temporary directory");
        if let Some(listeners) = rendered.listeners {
            fs::write(directory.join(LISTENERS_FILE), listeners)
                .expect("a file in the temporary directory");
        }
        let mut command = Command::new(&self.version.binary);
        command
            .arg("--config-path")
            .arg(path)
            .args(["--disable-hot-restart", "--log-level", &self.log_level])
            .args(["--concurrency", &self.concurrency.to_string()])
            .args(["--drain-time-s", &self.drain_seconds.to_string()])
            // Tests read the access log: it should not lag by the default ten seconds.
            .args(["--file-flush-interval-msec", "10"])
            .stdin(Stdio::null());
        if !self.component_levels.is_empty() {
            command.args(["--component-log-level", &self.component_levels.join(",")]);
        }
        if let Some(path) = &self.search_path {
            command.env("ENVOY_DYNAMIC_MODULES_SEARCH_PATH", path);
        }
        if self.own_group {
            command.process_group(0);
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Starts it and waits until it serves; fails the test when it does not.
    pub async fn start(&self, config: &Config) -> Envoy {
        match self.try_start(config).await {
            Ok(envoy) => envoy,
            Err(refusal) => panic!("{} did not start: {refusal}", self.version),
        }
    }

    /// Starts it and waits until it serves, or until it has ended, as it does on a bad config.
    pub async fn try_start(&self, config: &Config) -> Result<Envoy, Refusal> {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let admin_path = directory.path().join("admin");
        let log_file =
            File::create(directory.path().join("log")).expect("a file in the temporary directory");
        let child = self
            .command(directory.path(), config)
            .arg("--admin-address-path")
            .arg(&admin_path)
            .stdout(log_file.try_clone().expect("a second handle"))
            .stderr(log_file)
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", self.version.binary.display()));
        let mut envoy = Envoy {
            version: self.version.clone(),
            child,
            directory,
            admin: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            over: false,
        };
        let start = Instant::now();
        loop {
            if let Some(status) = envoy.child.try_wait().expect("our own child") {
                envoy.over = true;
                return Err(Refusal { status, output: envoy.log() });
            }
            if envoy.look_for_ports(&admin_path).await {
                return Ok(envoy);
            }
            assert!(start.elapsed() < LIMIT, "{} did not get ready", self.version);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Runs `--mode validate` on a config.
    pub async fn validate(&self, config: &Config) -> Validation {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut command = self.command(directory.path(), config);
        command.args(["--mode", "validate"]);
        let output = tokio::task::spawn_blocking(move || command.output());
        let output = within("envoy --mode validate", output).await.expect("no panic");
        let output = output.unwrap_or_else(|error| panic!("{}: {error}", self.version));
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        Validation { status: output.status, output: text }
    }
}

/// An Envoy that ended instead of serving.
#[derive(Debug)]
pub struct Refusal {
    /// How it ended. A bad config is an exit code of 1, and no signal.
    pub status: ExitStatus,
    /// Its log.
    pub output: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; its log ends in:\n{}", self.status, tail(&self.output))
    }
}

/// What `--mode validate` said.
#[derive(Debug)]
pub struct Validation {
    /// Zero if the config is fine, 1 if not; a signal would be a crash.
    pub status: ExitStatus,
    /// Its log.
    pub output: String,
}

impl Validation {
    /// True if the config is fine.
    pub fn is_ok(&self) -> bool {
        self.status.success()
    }
}

/// How Envoy took an update.
#[derive(Debug, Eq, PartialEq)]
pub enum Update {
    /// It runs the new config.
    Accepted,
    /// It refused it, keeps the old one, and has logged why.
    Rejected,
}

/// A running Envoy. It ends with its value, and a crash fails the test: by [`finish`](Self::finish)
/// or, at the latest, when it is dropped.
#[derive(Debug)]
pub struct Envoy {
    version: Version,
    child: Child,
    directory: TempDir,
    admin: SocketAddr,
    address: SocketAddr,
    over: bool,
}

impl Envoy {
    /// Starts the newest version with one worker; [`Version::launch`] for anything else.
    pub async fn start(config: &Config) -> Self {
        Version::newest().launch().start(config).await
    }

    /// Where its listener is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where its admin page is.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Connects a client.
    pub async fn connect(&self, protocol: Protocol) -> Client {
        Client::connect(self.address, protocol).await
    }

    /// The body of a page of its admin interface.
    pub async fn admin_get(&self, path: &str) -> String {
        self.admin_call(Method::GET, path).await.expect("an answer from the admin page").1
    }

    /// Does something through its admin interface.
    pub async fn admin_post(&self, path: &str) -> String {
        self.admin_call(Method::POST, path).await.expect("an answer from the admin page").1
    }

    /// What a metric is called here that is called `name` in stock Envoy: where the filters are
    /// compiled in, their metrics go without the prefix that those of modules have.
    pub fn stat_name<'a>(&self, name: &'a str) -> &'a str {
        match name.strip_prefix(MODULE_STATS) {
            Some(plain) if self.version.compiled_in => plain,
            _ => name,
        }
    }

    /// The value of a counter or gauge by its full name in stock Envoy; `None` if there is none.
    pub async fn stat(&self, name: &str) -> Option<u64> {
        let name = self.stat_name(name);
        self.admin_get("/stats").await.lines().find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            (found == name).then(|| value.parse().ok())?
        })
    }

    /// Waits until a counter or gauge has this value: some change after the client has its answer.
    pub async fn wait_for_stat(&self, name: &str, value: u64) {
        let mut last = None;
        let reached = tokio::time::timeout(LIMIT, async {
            loop {
                last = self.stat(name).await;
                if last == Some(value) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        if reached.await.is_err() {
            panic!("{name} should become {value}, and is {last:?}");
        }
    }

    /// What Prometheus calls a filter's metric.
    pub fn prometheus_name(&self, name: &str) -> String {
        let modules = if self.version.compiled_in { "" } else { "dynamicmodulescustom_" };
        format!("envoy_{modules}{name}")
    }

    /// All metrics, as Prometheus reads them.
    pub async fn prometheus(&self) -> String {
        self.admin_get("/stats/prometheus").await
    }

    /// Resolves when it ends without having been told to.
    pub async fn ended(&mut self) {
        while self.child.try_wait().expect("our own child").is_none() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Where its log is.
    pub fn log_path(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    /// All that it has logged.
    pub fn log(&self) -> String {
        let log = fs::read(self.log_path()).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Waits until a line of its log contains all of `parts`, and returns that line.
    pub async fn wait_for_log(&self, parts: &[&str]) -> String {
        self.wait_for_line(parts, || self.log()).await
    }

    /// What the access log holds ([`Config::access_log`]).
    pub fn access_log(&self) -> String {
        let log = fs::read(self.directory.path().join(ACCESS_LOG_FILE)).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Waits until a line of the access log contains all of `parts`, and returns that line.
    pub async fn wait_for_access_log(&self, parts: &[&str]) -> String {
        self.wait_for_line(parts, || self.access_log()).await
    }

    async fn wait_for_line(&self, parts: &[&str], text: impl Fn() -> String) -> String {
        let mut found = None;
        eventually(&format!("a log line with {parts:?}"), async || {
            let text = text();
            let mut lines = text.lines();
            found = lines
                .find(|line| parts.iter().all(|part| line.contains(part)))
                .map(ToOwned::to_owned);
            found.is_some()
        })
        .await;
        found.expect("found above")
    }

    /// The bytes of memory it holds now.
    pub fn resident_bytes(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// The most bytes of memory that it has held since [`forget_peak`](Self::forget_peak).
    pub fn peak_resident_bytes(&self) -> u64 {
        self.memory("VmHWM:")
    }

    /// From now on, the peak is that of what follows.
    pub fn forget_peak(&self) {
        fs::write(format!("/proc/{}/clear_refs", self.pid()), "5").expect("a running Envoy");
    }

    fn memory(&self, name: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()));
        let status = status.expect("a running Envoy");
        let value = status.lines().find_map(|line| line.strip_prefix(name));
        let kilobytes =
            value.and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok());
        kilobytes.expect("a number of kB") * 1024
    }

    /// Gives it another listener config, and waits until it has taken or refused it. Both configs
    /// must be [`watched`](Config::watched); only what belongs to the listener changes.
    pub async fn update(&self, config: &Config) -> Update {
        const ACCEPTED: &str = "listener_manager.lds.update_success";
        const REJECTED: &str = "listener_manager.lds.update_rejected";
        let before = (self.stat(ACCEPTED).await, self.stat(REJECTED).await);
        let rendered = config.render(self.directory.path(), self.version.compiled_in);
        let new = self.directory.path().join("listeners.new");
        fs::write(&new, rendered.listeners.expect("a watched config")).expect("a file");
        // Envoy looks at the file when another is moved to its place, not when it is written to.
        fs::rename(new, self.directory.path().join(LISTENERS_FILE)).expect("a file");
        let mut update = Update::Rejected;
        eventually("Envoy to look at its new listener", async || {
            if self.stat(ACCEPTED).await > before.0 {
                update = Update::Accepted;
                return true;
            }
            self.stat(REJECTED).await > before.1
        })
        .await;
        update
    }

    /// Ends it by SIGTERM and fails the test unless it was still alive and now ends cleanly.
    pub async fn finish(mut self) {
        self.terminate();
        let start = Instant::now();
        while self.child.try_wait().expect("our own child").is_none() && start.elapsed() < LIMIT {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        self.assert_clean_end();
    }

    /// Ends it at once, and asks for nothing: for one whose worker is stuck.
    pub fn kill(mut self) {
        self.over = true;
        self.child.kill().expect("our own child");
        self.child.wait().expect("our own child");
    }

    fn terminate(&mut self) {
        if self.child.try_wait().expect("our own child").is_none() {
            // An error can only mean that it ended just now, which the next look finds.
            let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        } else {
            let status = self.child.wait().expect("our own child");
            self.over = true;
            panic!("{} ended by itself, {status}; its log ends in:\n{}", self.version, self.tail());
        }
    }

    fn assert_clean_end(&mut self) {
        self.over = true;
        let Some(status) = self.child.try_wait().expect("our own child") else {
            let _ = self.child.kill();
            let _ = self.child.wait();
            panic!("{} ignored SIGTERM; its log ends in:\n{}", self.version, self.tail());
        };
        assert!(
            status.success(),
            "{} did not end cleanly, {} (signal {:?}); its log ends in:\n{}",
            self.version,
            status,
            status.signal(),
            self.tail()
        );
    }

    fn tail(&self) -> String {
        tail(&self.log())
    }

    async fn admin_call(&self, method: Method, path: &str) -> std::io::Result<(u16, String)> {
        let call = async {
            let stream = TcpStream::connect(self.admin).await?;
            let (mut sender, connection) =
                http1::handshake(TokioIo::new(stream)).await.map_err(std::io::Error::other)?;
            let connection = tokio::spawn(connection);
            let request = Request::builder()
                .method(method)
                .uri(path.parse::<Uri>().expect("a path"))
                .header("host", "admin")
                .body(OutBody::empty())
                .expect("a valid request");
            let response = sender.send_request(request).await.map_err(std::io::Error::other)?;
            let status = response.status().as_u16();
            let body = response.into_body().collect().await.map_err(std::io::Error::other)?;
            connection.abort();
            Ok((status, String::from_utf8_lossy(&body.to_bytes()).into_owned()))
        };
        within("Envoy's admin page", call).await
    }

    /// True once the admin page says that it serves; notes its ports then.
    async fn look_for_ports(&mut self, admin_path: &Path) -> bool {
        let Ok(admin) = fs::read_to_string(admin_path) else { return false };
        let Ok(admin) = admin.parse() else { return false };
        self.admin = admin;
        let ready = self.admin_call(Method::GET, "/ready").await;
        if !ready.is_ok_and(|(status, _)| status == 200) {
            return false;
        }
        let Ok((_, listeners)) = self.admin_call(Method::GET, "/listeners?format=json").await
        else {
            return false;
        };
        let Ok(listeners) = serde_json::from_str::<Value>(&listeners) else { return false };
        let socket = &listeners["listener_statuses"][0]["local_address"]["socket_address"];
        let Some(port) = socket["port_value"].as_u64() else { return false };
        let port = u16::try_from(port).expect("a port");
        // An example may listen on all addresses; loopback is where tests knock.
        self.address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        true
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        if std::thread::panicking() {
            eprintln!("--- the log of {} ends in:\n{}", self.version, self.tail());
            let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
            self.wait_at_most(Duration::from_secs(5));
            let _ = self.child.kill();
            let _ = self.child.wait();
            return;
        }
        self.terminate();
        self.wait_at_most(LIMIT);
        self.assert_clean_end();
    }
}

impl Envoy {
    fn wait_at_most(&mut self, limit: Duration) {
        let start = Instant::now();
        while start.elapsed() < limit {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(2)),
                _ => return,
            }
        }
    }
}

fn tail(log: &str) -> String {
    // What it can do and its build fill pages at each start, and never explain a failure.
    let lines: Vec<_> = log.lines().filter(|line| !line.contains("[info][main]")).collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}
