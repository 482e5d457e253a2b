//! The README's own steps, run as they stand: a filter crate outside of this repository.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use attache_e2e::{Call, Config, Modules, on_every_host, workspace_root};

/// The code blocks of one language, in order, from a heading on.
fn blocks<'a>(text: &'a str, heading: &str, language: &str) -> Vec<&'a str> {
    let (_, section) = text.split_once(heading).unwrap_or_else(|| panic!("no {heading:?}"));
    section
        .split("\n```")
        .filter_map(|block| block.strip_prefix(language)?.strip_prefix('\n'))
        .collect()
}

fn shell(script: &str, directory: &Path) {
    let output = Command::new("bash")
        .args(["-euc", script])
        .current_dir(directory)
        // As in a newcomer's shell, not as in this test run.
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("RUSTFLAGS")
        .output()
        .expect("bash runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}\nfailed:\n{said}");
}

#[tokio::test]
#[cfg_attr(
    debug_assertions,
    ignore = "its build is optimised either way: run once, with --release"
)]
async fn a_filter_crate_of_ones_own() {
    let readme = fs::read_to_string(workspace_root().join("README.md")).unwrap();
    let steps = blocks(&readme, "## Your own filter", "sh");
    let [create, build] = steps[..] else { panic!("expected two shell blocks, got {steps:?}") };

    let beside = tempfile::tempdir().unwrap();
    symlink(workspace_root(), beside.path().join("attache")).unwrap();
    shell(create, beside.path());
    let own = beside.path().join("my-filter");
    fs::write(own.join("src/lib.rs"), blocks(&readme, "# Attaché", "rust")[0]).unwrap();
    fs::write(own.join("envoy.yaml"), blocks(&readme, "## Your own filter", "yaml")[0]).unwrap();
    // The versions that everything else was tested with; what of them is built need not be again.
    fs::copy(workspace_root().join("Cargo.lock"), own.join("Cargo.lock")).unwrap();
    symlink(workspace_root().join("target"), own.join("target")).unwrap();

    // The last line starts Envoy in the foreground: everything but that is run as it stands.
    let (build, start) = build.trim_end().rsplit_once('\n').expect("two commands");
    shell(build, &own);
    let start: Vec<_> = start.split(' ').collect();
    let [path, envoy, "-c", config] = start[..] else { panic!("unexpected: {start:?}") };
    let search = path.strip_prefix("ENVOY_DYNAMIC_MODULES_SEARCH_PATH=").expect("the search path");
    let binary = beside.path().join(envoy.strip_prefix("../").expect("beside the crate"));
    assert!(binary.exists() || std::env::var_os("ENVOY").is_some(), "{binary:?} is missing");

    let library = own.join(search).join("libmy_filter.so");
    let modules = Modules::new().file("my_filter", &library);
    on_every_host(async |host| {
        let envoy = host.launch().modules(&modules).start(&Config::example(own.join(config))).await;
        let mut client = host.connect(&envoy).await;
        let reply = client.fetch(Call::get("/")).await;
        assert_eq!((reply.status.as_u16(), reply.text()), (200, "hi\n"));
        assert_eq!(reply.header("x-hello"), Some("world"));
        envoy.finish().await;
    })
    .await;
}
