//! `api-key` in real Envoys, with the config that users paste; and with its keys in a file.

use std::fs;
use std::path::Path;

use attache_e2e::{Call, Config, ModuleFilter, Modules, Upstream, eventually, on_every_host};
use serde_json::json;

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/envoy.yaml");

#[tokio::test]
async fn the_example_lets_only_known_keys_through() {
    let modules = Modules::new().package("attache-filter-api-key");
    on_every_host(async |host| {
        let upstream = Upstream::fixed(200, "ok").await;
        let config = Config::example(EXAMPLE).upstream(upstream.address());
        let envoy = host.launch().modules(&modules).start(&config).await;
        let mut client = host.connect(&envoy).await;
        let key = |path: &str, key: &str| Call::get(path).header("x-api-key", key);

        let reply = client.fetch(Call::get("/")).await;
        assert_eq!(reply.status.as_u16(), 401);
        let challenge = r#"ApiKey realm="example", header="x-api-key""#;
        assert_eq!(reply.header("www-authenticate"), Some(challenge));
        for refused in [
            key("/", "mallory-key"),
            key("/", ""),
            key("/", "alice-key").header("x-api-key", "bob-key"),
        ] {
            assert_eq!(client.fetch(refused).await.status.as_u16(), 401);
        }
        assert_eq!(client.fetch(key("/admin", "bob-key")).await.status.as_u16(), 403);
        assert_eq!(upstream.count(), 0, "a refused request reached the upstream");

        let spoofed = key("/", "bob-key").header("x-consumer", "alice").body("a body");
        assert_eq!(client.fetch(spoofed).await.text(), "ok");
        let seen = upstream.seen(0).await;
        let consumers: Vec<_> = seen.headers.get_all("x-consumer").iter().collect();
        assert_eq!(consumers, ["bob"]);
        assert_eq!(seen.header("x-api-key"), None);
        assert_eq!(seen.text(), "a body");

        assert_eq!(client.fetch(key("/admin", "alice-key")).await.text(), "ok");
        assert_eq!(upstream.seen(1).await.header("x-consumer"), Some("alice"));

        let public = Call::get("/public").header("x-consumer", "alice");
        assert_eq!(client.fetch(public).await.text(), "ok");
        assert_eq!(upstream.seen(2).await.header("x-consumer"), None);

        let prometheus = envoy.prometheus().await;
        for (result, count) in
            [("missing", 3), ("unknown", 1), ("forbidden", 1), ("allowed", 2), ("skipped", 1)]
        {
            let label = format!("result=\"{result}\"");
            let line = prometheus.lines().find(|line| line.contains(&label)).unwrap_or_default();
            assert!(line.contains("api_key_requests"), "{result}: {line}");
            assert!(line.ends_with(&format!(" {count}")), "{line}");
        }
        envoy.finish().await;
    })
    .await;
}

/// Puts the file there in one step, as an editor or a mounted secret does.
fn write_keys(file: &Path, text: &str) {
    let new = file.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, file).unwrap();
}

#[tokio::test]
async fn keys_in_a_file_change_while_envoy_runs() {
    // SHA-256 of `one` and of `two`.
    const ONE: &str = "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed";
    const TWO: &str = "3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3";
    let modules = Modules::new().package("attache-filter-api-key");
    on_every_host(async |host| {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("keys.json");
        let upstream = Upstream::fixed(200, "ok").await;
        let filter = ModuleFilter::new("api_key", "api-key").config(json!({
            "keys_file": file, "reload_ms": 5, "lookup_timeout_ms": 200,
        }));
        let config = Config::new().upstream(upstream.address()).filter(filter);
        let envoy = host.launch().modules(&modules).start(&config).await;
        let mut client = host.connect(&envoy).await;
        let mut status =
            async |key: &str| client.fetch(Call::get("/").header("x-api-key", key)).await.status;

        // Nothing is known of any key yet: nobody gets through.
        assert_eq!(status("one").await.as_u16(), 503);
        envoy.wait_for_log(&["no keys were read", "keys.json"]).await;

        write_keys(&file, &json!([{"consumer": "a", "sha256": ONE}]).to_string());
        eventually("the first keys", async || status("one").await.as_u16() == 200).await;
        assert_eq!(status("two").await.as_u16(), 401);

        // What cannot be used changes nothing, and is told.
        write_keys(&file, &json!([{"consumer": "a", "sha256": "two"}]).to_string());
        envoy.wait_for_log(&["no keys were read", "64 hexadecimal digits"]).await;
        assert_eq!(status("one").await.as_u16(), 200);

        write_keys(&file, &json!([{"consumer": "b", "sha256": TWO}]).to_string());
        eventually("the second keys", async || status("two").await.as_u16() == 200).await;
        assert_eq!(status("one").await.as_u16(), 401);
        envoy.finish().await;
    })
    .await;
}
