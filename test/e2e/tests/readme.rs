//! The README's own steps, run as they stand: `make run`, and a filter crate outside of this
//! repository. And the links of all documents.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use attache_e2e::{Call, Config, Modules, RawConn, on_every_host, within, workspace_root};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt, BufReader};

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

/// `make run` as a newcomer types it, on ports that are free here, and the Ctrl-C that ends it.
#[tokio::test]
#[cfg_attr(not(debug_assertions), ignore = "it builds without optimisation: run once, in debug")]
async fn make_run_serves_until_it_is_interrupted() {
    let [port, admin_port] = free_ports();
    let mut make = tokio::process::Command::new("make")
        .args(["run", &format!("PORT={port}"), &format!("ADMIN_PORT={admin_port}")])
        .current_dir(workspace_root())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .expect("make is there");
    let group = Pid::from_raw(make.id().expect("it runs") as i32).expect("a process has an id");
    let mut lines = BufReader::new(make.stdout.take().expect("a pipe")).lines();
    let mut said = String::new();
    while !said.contains("Ctrl-C ends it") {
        // Cargo may have to build first: the test runner's own limit holds here.
        let line = lines.next_line().await.expect("text").expect("it serves before it ends");
        said += &line;
        said.push('\n');
    }
    assert!(said.contains("serves the filter `hello`"), "{said}");

    let address = SocketAddr::from(([127, 0, 0, 1], port));
    assert!(said.contains(&format!("curl -i http://{address}/\n")), "{said}");
    let mut connection = RawConn::connect(address).await;
    connection.write("GET /some/path HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n").await;
    let reply = String::from_utf8_lossy(&connection.read_to_end().await).into_owned();
    assert!(reply.starts_with("HTTP/1.1 200 OK\r\n"), "{reply}");
    assert!(reply.contains("\r\nx-hello: "), "{reply}");
    assert!(reply.contains("The upstream got: GET /some/path"), "{reply}");

    // What a terminal does at Ctrl-C: everything that runs there is interrupted.
    kill_process_group(group, Signal::INT).expect("it still runs");
    let mut rest = String::new();
    while let Some(line) = within("make run to end", lines.next_line()).await.expect("text") {
        rest += &line;
    }
    assert!(rest.ends_with("stopped"), "{rest}");
    within("make to end", make.wait()).await.expect("it ends");
    for port in [port, admin_port] {
        TcpListener::bind(("127.0.0.1", port)).expect("nothing is left behind");
    }
}

/// Two ports that nobody listens on, and that nobody is given by chance soon.
fn free_ports() -> [u16; 2] {
    let held = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("a free port"));
    held.map(|listener| listener.local_addr().expect("bound").port())
}

/// The documents below a folder; what was built or fetched has none of ours.
fn documents(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry")) {
        let (path, kind) = (entry.path(), entry.file_type().expect("a kind"));
        let name = entry.file_name();
        if kind.is_dir() && name != "target" && name != ".envoy" && name != ".git" {
            documents(&path, found);
        } else if kind.is_file() && path.extension().is_some_and(|kind| kind == "md") {
            found.push(path);
        }
    }
}

/// Where the links of a document lead, those in code left out.
fn links(text: &str) -> Vec<&str> {
    let mut fenced = false;
    let prose = text.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fence && !fenced
    });
    prose
        .flat_map(|line| line.split("](").skip(1))
        .filter_map(|rest| Some(rest.split_once(')')?.0))
        .collect()
}

/// What a heading is called in a link.
fn anchors(text: &str) -> Vec<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            title
                .chars()
                .filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c))
                .map(|c| if c == ' ' { '-' } else { c })
                .collect()
        })
        .collect()
}

#[test]
fn every_link_of_every_document_leads_somewhere() {
    let mut all = Vec::new();
    documents(workspace_root(), &mut all);
    assert!(all.len() > 20, "{all:?}");
    let mut followed = 0;
    for document in &all {
        let text = fs::read_to_string(document).expect("a text");
        for link in links(&text) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            followed += 1;
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let folder = document.parent().expect("a file is in a folder");
            let target = if path.is_empty() { document.clone() } else { folder.join(path) };
            assert!(target.exists(), "{}: {link} leads nowhere", document.display());
            if !anchor.is_empty() {
                let text = fs::read_to_string(&target).expect("a text");
                let known = anchors(&text).iter().any(|known| known == anchor);
                assert!(known, "{}: {link} has no such heading", document.display());
            }
        }
    }
    assert!(followed > 20, "only {followed} links were found");
}
