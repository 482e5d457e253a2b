//! What must not compile does not, and says why in words that help; what the docs promise to be
//! enough is enough.
//!
//! The messages (`ui/fail/*.stderr`) are those of the compiler named below. With another one the
//! same files must fail to compile as well, but how it says so is not compared. After a change,
//! `TRYBUILD=overwrite cargo test -p attache --test ui` writes them anew.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The compiler that the messages are from: CI's.
const MESSAGES_OF: &str = "1.95";

/// Set where the messages do not count, which go to copies of the cases then.
const COPIES: &str = "ATTACHE_UI_COPIES";

#[test]
fn what_must_not_compile_says_why() {
    let compiler = compiler();
    if compiler.starts_with(&format!("rustc {MESSAGES_OF}.")) {
        let cases = trybuild::TestCases::new();
        cases.pass("tests/ui/pass/*.rs");
        cases.compile_fail("tests/ui/fail/*.rs");
    } else if std::env::var_os(COPIES).is_some() {
        let cases = trybuild::TestCases::new();
        cases.pass("tests/ui/pass/*.rs");
        cases.compile_fail(without_messages().join("*.rs"));
    } else {
        eprintln!("{compiler}: messages are not compared, for they are those of {MESSAGES_OF}");
        // Once more, as trybuild wants it: told by the environment to take any message.
        let again = Command::new(std::env::current_exe().expect("the path of this test"))
            .args(["what_must_not_compile_says_why", "--exact", "--nocapture"])
            .envs([("TRYBUILD", "overwrite"), (COPIES, "1")])
            .status();
        assert!(again.expect("this test runs again").success());
    }
}

fn compiler() -> String {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("--version").output().expect("rustc runs");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// The same cases in a directory of their own, without messages to compare with.
fn without_messages() -> PathBuf {
    let copies = Path::new(env!("CARGO_TARGET_TMPDIR")).join("ui");
    std::fs::create_dir_all(&copies).expect("a directory under target");
    for entry in std::fs::read_dir("tests/ui/fail").expect("the cases") {
        let case = entry.expect("a file").path();
        if case.extension().is_some_and(|extension| extension == "rs") {
            let copy = copies.join(case.file_name().expect("a name"));
            std::fs::copy(&case, copy).expect("a copy under target");
        }
    }
    copies
}
