//! Envoy ends while threads of the filters are in the middle of its code.

use std::process::Command;

use attache_e2e::{Call, Config, ModuleFilter, Modules, Protocol, Route, Version};
use serde_json::json;
use tempfile::TempDir;

/// What makes such threads slow; see `slow-post.c`. Gives where it is, for `LD_PRELOAD`.
fn slow_post(directory: &TempDir) -> String {
    let library = directory.path().join("slow-post.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/slow-post.c");
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
        .args([library.as_os_str(), source.as_ref()])
        .args(["-ldl", "-lpthread"])
        .status()
        .expect("a C compiler");
    assert!(built.success(), "{source} does not compile");
    library.to_str().expect("a path in UTF-8").to_owned()
}

/// What it posts to is a stream, which has its answer and ends, and a config: another task of this
/// filter's counts a thousand times a second.
#[tokio::test]
async fn envoy_ends_cleanly_while_threads_post() {
    let modules = Modules::new().package("attache-e2e-filters");
    let directory = TempDir::new().expect("a directory");
    let slow_post = slow_post(&directory);
    for version in Version::all() {
        let filter = ModuleFilter::new("attache_e2e_filters", "chaos");
        let config = Config::new()
            .filter(filter.config(json!({"header": "x-chaos"})))
            .route(Route::prefix("/").direct(200, "ok"));
        let launch = version.launch().modules(&modules).env("LD_PRELOAD", &slow_post);
        let envoy = launch.start(&config).await;
        let mut client = envoy.connect(Protocol::Http1).await;
        // It waits for a timer, whose thread posts, and that is the last that it does.
        let call = Call::get("/").header("x-chaos", "|t");
        assert_eq!(client.fetch(call).await.status, 200);
        envoy.finish().await;
    }
}
