//! The scripts behind `make`: what they say when something is missing or wrong, and that the line
//! of counts can be trusted.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use attache_e2e::workspace_root;
use tempfile::TempDir;

fn script(name: &str) -> PathBuf {
    workspace_root().join("test").join(name)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn tally(commands: &[&str]) -> (bool, String) {
    let output = Command::new(script("tally")).args(commands).output().expect("python3 runs");
    let last = text(&output.stdout).lines().last().unwrap_or_default().to_owned();
    (output.status.success(), last)
}

fn result_line(passed: u32, failed: u32) -> String {
    format!("echo 'test result: ok. {passed} passed; {failed} failed; 0 ignored'")
}

#[test]
fn the_tally_sums_over_all_commands() {
    let sums = tally(&[&result_line(3, 0), &result_line(4, 0)]);
    assert_eq!(sums, (true, "7 passed, 0 failed".into()));
}

#[test]
fn the_tally_fails_when_a_test_failed() {
    let (two, one) = (result_line(2, 1), result_line(1, 0));
    assert_eq!(tally(&[&two, &one]), (false, "3 passed, 1 failed".into()));
}

#[test]
fn the_tally_fails_when_a_command_failed_without_a_count() {
    let sums = tally(&[&result_line(2, 0), "false"]);
    assert_eq!(sums, (false, "2 passed, 1 failed".into()));
    let sums = tally(&[&result_line(2, 0), "/no/such/command"]);
    assert_eq!(sums, (false, "2 passed, 1 failed".into()));
}

#[test]
fn the_tally_fails_when_nothing_ran() {
    assert_eq!(tally(&["true"]), (false, "0 passed, 0 failed".into()));
}

#[test]
fn a_missing_tool_is_named() {
    let output = Command::new(script("need")).args(["sh", "no-such-tool"]).output().unwrap();
    assert!(!output.status.success());
    assert_eq!(text(&output.stderr).lines().count(), 1);
    assert!(text(&output.stderr).starts_with("no-such-tool is missing: "));
}

#[test]
fn only_what_is_a_filter_is_run() {
    // `all` is a crate beside the filters.
    for name in ["all", "no-such-filter"] {
        let output = Command::new("make")
            .args(["run", &format!("FILTER={name}")])
            .current_dir(workspace_root())
            .output()
            .expect("make runs");
        assert!(!output.status.success());
        let errors = text(&output.stderr);
        assert!(errors.contains(&format!("there is no filter contrib/filters/{name}")), "{errors}");
    }
}

/// Makes a file that is to be run, in another process: a file that this one has open for writing can
/// be kept open for a moment by what another test starts, and is then too busy to be run.
fn elsewhere(command: &str, arguments: &[&Path]) {
    let status = Command::new("sh").args(["-euc", command, "sh"]).args(arguments).status();
    assert!(status.expect("sh runs").success());
}

/// A copy of the fetching script in a checkout of its own, on a machine whose commands are chosen.
struct Fetch {
    root: TempDir,
}

impl Fetch {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("test")).unwrap();
        fs::create_dir_all(root.path().join("bin")).unwrap();
        let copy = "cp \"$@\"";
        let into = root.path().join("test");
        elsewhere(copy, &[&script("fetch-envoy"), &script("envoy.lock"), &into]);
        let tools =
            "bash env uname dirname awk grep mkdir mktemp rm tail find cut sha256sum chmod mv";
        for tool in tools.split(' ') {
            let path = std::env::var("PATH").unwrap();
            let found = path.split(':').map(|directory| Path::new(directory).join(tool));
            let found = found.into_iter().find(|path| path.exists()).expect(tool);
            symlink(found, root.path().join("bin").join(tool)).unwrap();
        }
        Self { root }
    }

    /// Puts a shell script in a tool's place.
    fn with(self, tool: &str, script: &str) -> Self {
        let path = self.root.path().join("bin").join(tool);
        let text = format!("#!/usr/bin/env bash\n{script}\n");
        let write = "rm -f \"$1\" && printf %s \"$2\" > \"$1\" && chmod +x \"$1\"";
        elsewhere(write, &[&path, Path::new(&text)]);
        self
    }

    fn run(&self) -> Output {
        Command::new(self.root.path().join("test/fetch-envoy"))
            .env("PATH", self.root.path().join("bin"))
            .output()
            .unwrap()
    }

    /// Runs it, sees it fail with one line and nothing left behind, and returns that line.
    fn fails(&self) -> String {
        let output = self.run();
        assert!(!output.status.success());
        let errors = text(&output.stderr);
        assert_eq!(errors.lines().count(), 1, "{errors}");
        if let Ok(left) = fs::read_dir(self.root.path().join(".envoy")) {
            assert_eq!(left.count(), 0);
        }
        errors
    }
}

/// A pip that "downloads" what `action` makes of the destination `$to`.
fn python(action: &str) -> String {
    format!(
        r#"case "$*" in
            *--version*) exit 0 ;;
            *download*)
                while [ "$1" != --dest ]; do shift; done
                to=$2
                {action} ;;
        esac"#
    )
}

#[test]
fn fetching_without_python_says_so() {
    assert!(Fetch::new().fails().contains("python3 is missing"));
}

#[test]
fn fetching_without_pip_says_so() {
    assert!(Fetch::new().with("python3", "exit 1").fails().contains("pip is missing"));
}

#[test]
fn fetching_without_a_network_says_so() {
    let action = "echo 'WARNING: Retrying: NewConnectionError(..)'; echo more; exit 1";
    let error = Fetch::new().with("python3", &python(action)).fails();
    assert!(error.contains("is there a network"), "{error}");
    assert!(error.contains("NewConnectionError"), "{error}");
}

#[test]
fn a_wrong_checksum_is_refused() {
    let error = Fetch::new().with("python3", &python("echo other > $to/a.whl")).fails();
    assert!(error.contains("checksum mismatch"), "{error}");
}

#[test]
fn a_machine_without_builds_is_named() {
    let riscv = r#"[ "$1" = -s ] && echo Linux || echo riscv64"#;
    let error = Fetch::new().with("uname", riscv).fails();
    assert!(error.contains("no Envoy is pinned for riscv64"), "{error}");
    let mac = "echo Darwin";
    let error = Fetch::new().with("uname", mac).fails();
    assert!(error.contains("Linux only, and this is Darwin"), "{error}");
}
