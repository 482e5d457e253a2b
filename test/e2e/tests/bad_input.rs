//! Bad input, in real Envoys: configs that cannot be, and filters that do what a filter must not do
//! (`test/e2e/filters`). A config is refused with its reason in the log, and the old one stays. An
//! exchange comes to a defined end, the next one on the same connection is served, and Envoy ends
//! cleanly.

use attache_e2e::{
    Call, Client, Config, Envoy, Host, ModuleFilter, Modules, Protocol, Route, Update, Upstream,
    Version, on_every_host,
};
use http::Method;
use serde_json::{Value, json};

const MODULE: &str = "attache_e2e_filters";

fn modules() -> Modules {
    Modules::new().package("attache-e2e-filters").package("attache-e2e-no-filters")
}

fn misbehave(config: Value) -> ModuleFilter {
    ModuleFilter::new(MODULE, "misbehave").config(config)
}

fn fine() -> ModuleFilter {
    misbehave(json!({"mode": "fine", "attache": {"gather_limit_bytes": 1024}}))
}

fn serving(filter: impl Into<Value>) -> Config {
    Config::new().filter(filter).route(Route::prefix("/").direct(200, "ok"))
}

/// Configs, and what Envoy's log must say about each.
fn refused_configs() -> Vec<(Config, &'static [&'static str])> {
    let with = |config| serving(misbehave(config));
    let route = |config| {
        let route = Route::prefix("/").direct(200, "ok");
        let config = misbehave(config).per_route();
        Config::new().filter(fine()).route(route.filter_config("misbehave", config))
    };
    vec![
        (
            serving(ModuleFilter::new(MODULE, "no-such").config(json!({"mode": "fine"}))),
            &["filter `no-such`", "no filter of this name", "the module has `misbehave`"],
        ),
        (
            with(json!({"mode": "fine", "moed": 1})),
            &["filter `misbehave`: config refused: field `moed`", "no such field"],
        ),
        (
            with(json!({"mode": 3})),
            &["filter `misbehave`: config refused: field `mode`", "expected a string"],
        ),
        (
            with(json!({"mode": "fine", "limits": [{"bytes": 1}, {"bytes": "x"}]})),
            &["filter `misbehave`: config refused: field `limits[1].bytes`", "expected u32"],
        ),
        (
            with(json!({"mode": "fine", "limits": [{}]})),
            &["filter `misbehave`: config refused: field `limits[0]`: missing field `bytes`"],
        ),
        (with(json!({})), &["filter `misbehave`: config refused: missing field `mode`"]),
        (
            serving(ModuleFilter::new(MODULE, "misbehave")),
            &["filter `misbehave`: config refused: missing field `mode`"],
        ),
        (
            serving(ModuleFilter::new(MODULE, "misbehave").config_text("mode: fine")),
            &["filter `misbehave`: config refused: it is not JSON"],
        ),
        (
            with(json!({"mode": "refused"})),
            &["filter `misbehave`: config refused: field `mode`: is refused by `new`"],
        ),
        (
            with(json!({"mode": "panics"})),
            &["filter `misbehave`: `Filter::new` panicked: a panic in new"],
        ),
        (
            with(json!({"mode": "fine", "attache": {"fail_opne": true}})),
            &["filter `misbehave`: config refused: field `attache.fail_opne`"],
        ),
        (
            route(json!({"level": 300})),
            &["filter `misbehave`: per-route config refused: field `level`", "300"],
        ),
        (
            route(json!({})),
            &["filter `misbehave`: per-route config refused: missing field `level`"],
        ),
        (
            serving(ModuleFilter::new("attache_e2e_no_filters", "unnamed")),
            &["it has no filters; name them with `attache::filters!`"],
        ),
        (serving(ModuleFilter::new("no_such_module", "unnamed")), &["libno_such_module.so"]),
    ]
}

fn assert_says(output: &str, parts: &[&str]) {
    let said = output.lines().any(|line| parts.iter().all(|part| line.contains(part)));
    let critical: Vec<_> = output.lines().filter(|line| !line.contains("[info]")).collect();
    assert!(said, "no line with {parts:?} in:\n{}", critical.join("\n"));
}

#[tokio::test]
async fn a_bad_config_is_refused_when_it_is_validated() {
    let modules = modules();
    for version in Version::all() {
        let launch = version.launch().modules(&modules);
        assert!(launch.validate(&serving(fine())).await.is_ok());
        for (config, parts) in refused_configs() {
            let validation = launch.validate(&config).await;
            assert_says(&validation.output, parts);
            assert_eq!(validation.status.code(), Some(1), "{parts:?}: {}", validation.output);
        }
    }
}

#[tokio::test]
async fn a_bad_config_is_refused_at_load() {
    let modules = modules();
    for version in Version::all() {
        let launch = version.launch().modules(&modules);
        for (config, parts) in refused_configs() {
            let refusal = launch.try_start(&config).await.unwrap_err();
            assert_says(&refusal.output, parts);
            assert_eq!(refusal.status.code(), Some(1), "{parts:?}: {refusal}");
        }
    }
}

#[tokio::test]
async fn after_a_bad_update_envoy_keeps_its_old_config() {
    let modules = modules();
    for version in Version::all() {
        let envoy = version.launch().modules(&modules).start(&serving(fine()).watched()).await;
        for (config, parts) in refused_configs() {
            assert_eq!(envoy.update(&config.watched()).await, Update::Rejected, "{parts:?}");
            envoy.wait_for_log(parts).await;
            let mut client = envoy.connect(Protocol::Http1).await;
            assert_eq!(client.fetch(Call::get("/")).await.text(), "ok");
        }
        assert_eq!(envoy.update(&serving(fine()).watched()).await, Update::Accepted);
        envoy.finish().await;
    }
}

struct Scene {
    envoy: Envoy,
    client: Client,
    upstream: Upstream,
}

async fn scene(host: &Host, modules: &Modules) -> Scene {
    let upstream = Upstream::fixed(200, "from the upstream").await;
    let config = Config::new().filter(fine()).upstream(upstream.address());
    let envoy = host.launch().modules(modules).start(&config).await;
    let client = host.connect(&envoy).await;
    Scene { envoy, client, upstream }
}

impl Scene {
    /// Makes a call, and then an ordinary one on the same connection.
    async fn call(&mut self, call: Call) -> (u16, String) {
        let what = format!("{call:?}");
        let reply = self.client.fetch(call).await;
        self.is_fine(&what).await;
        (reply.status.as_u16(), reply.text().to_owned())
    }

    async fn is_fine(&mut self, after: &str) {
        let reply = self.client.fetch(Call::get("/fine")).await;
        assert_eq!(reply.text(), "from the upstream", "after {after}");
    }

    async fn get(&mut self, path: &str) -> (u16, String) {
        self.call(Call::get(path)).await
    }

    /// The client learns nothing of the reason; the log has it.
    async fn fails(&mut self, path: &str, parts: &[&str]) {
        let (status, text) = self.get(path).await;
        assert_eq!((status, text.as_str()), (500, "Internal Server Error"), "{path}");
        self.envoy.wait_for_log(parts).await;
    }
}

#[tokio::test]
async fn headers_that_are_none_fail_their_exchange() {
    let modules = modules();
    on_every_host(async |host| {
        let mut scene = scene(&host, &modules).await;
        scene.fails("/request-header-name", &["[misbehave]", r#"header name "bad name""#]).await;
        scene.fails("/request-header-value", &[r#"value for header "x-bad""#]).await;
        scene.fails("/request-pseudo-header", &[r#"pseudo header ":status""#]).await;
        scene.fails("/request-header-removed", &[r#"pseudo header ":path""#]).await;
        let count = scene.upstream.count();
        assert_eq!(count, 4, "only the ordinary calls reach the upstream");
        scene.fails("/response-header-name", &[r#"header name """#]).await;
        scene.fails("/response-header-value", &[r#"value for header "x-bad""#]).await;
        scene.fails("/reply-header-name", &[r#"header name "bad:name""#]).await;
        scene.fails("/reply-header-value", &[r#"value for header "x-bad""#]).await;
        let (status, text) = scene.get("/try-set").await;
        assert_eq!(status, 200);
        assert!(text.starts_with(r#"invalid value for header "x-bad""#), "{text}");
        let errors = "dynamicmodulescustom.attache.misbehave.errors";
        scene.envoy.wait_for_stat(errors, 8).await;
        scene.envoy.finish().await;
    })
    .await;
}

#[tokio::test]
async fn a_status_that_cannot_be_becomes_a_500() {
    let modules = modules();
    on_every_host(async |host| {
        let mut scene = scene(&host, &modules).await;
        scene.fails("/reply-101", &["cannot have status 101"]).await;
        scene.fails("/reply-199", &["cannot have status 199"]).await;
        scene.fails("/reply-700", &["cannot have status 700"]).await;
        scene.fails("/replace-700", &["cannot have status 700"]).await;
        scene.fails("/response-700", &["invalid status"]).await;
        scene.fails("/response-101", &["invalid status"]).await;
        scene.fails("/error-200", &["an error that is none"]).await;
        scene.envoy.finish().await;
    })
    .await;
}

#[tokio::test]
async fn where_there_can_be_no_body_there_is_none() {
    let modules = modules();
    on_every_host(async |host| {
        let mut scene = scene(&host, &modules).await;
        for (path, status) in [
            ("/reply-204", 204),
            ("/reply-304", 304),
            ("/reply-204-streamed", 204),
            ("/response-204", 204),
            ("/response-304-with-body", 304),
            ("/replace-204", 204),
        ] {
            assert_eq!(scene.get(path).await, (status, String::new()), "{path}");
        }
        for path in ["/reply", "/reply-streamed", "/response-body", "/replace-body"] {
            let call = Call::new(Method::HEAD, path);
            assert_eq!(scene.call(call).await, (200, String::new()), "HEAD {path}");
            assert_eq!(scene.get(path).await.0, 200, "{path}");
        }
        scene.envoy.finish().await;
    })
    .await;
}

#[tokio::test]
async fn a_body_over_a_limit_is_refused() {
    let modules = modules();
    on_every_host(async |host| {
        let mut scene = scene(&host, &modules).await;
        let long = "longer than eight bytes";
        for path in ["/collect", "/buffer"] {
            let reply = scene.client.fetch(Call::post(path).body(long)).await;
            assert_eq!((reply.status.as_u16(), reply.text()), (413, "Payload Too Large"), "{path}");
            scene.envoy.wait_for_log(&["over the limit of 8 bytes", "status=413"]).await;
            // An HTTP/1.1 connection on which the rest of a request may still come is closed.
            if host.protocol == Protocol::Http1 {
                scene.client = host.connect(&scene.envoy).await;
            }
            scene.is_fine(path).await;

            let (status, _) = scene.call(Call::post(path).body("short")).await;
            assert_eq!(status, 200, "{path}");
        }
        scene.fails("/collect-response", &["over the limit of 8 bytes", "status=500"]).await;
        scene.fails("/buffer-response", &["over the limit of 8 bytes", "status=500"]).await;
        let (status, _) = scene.call(Call::post("/gather").body("x")).await;
        assert_eq!(status, 500);
        scene.envoy.wait_for_log(&["more than 1024 bytes", "attache.gather_limit_bytes"]).await;
        scene.envoy.finish().await;
    })
    .await;
}

#[tokio::test]
async fn a_finished_exchange_does_nothing_any_more() {
    let modules = modules();
    on_every_host(async |host| {
        let mut scene = scene(&host, &modules).await;
        let stash = async |scene: &mut Scene, what: &str| {
            let call = Call::post(&format!("/stash-{what}")).body("a body");
            let reply = scene.client.fetch(call).await;
            assert_eq!(reply.text(), "stashed");
            if host.protocol == Protocol::Http1 {
                scene.client = host.connect(&scene.envoy).await;
            }
        };

        stash(&mut scene, "request").await;
        let (status, report) = scene.get("/use-request").await;
        let gone = r#"0 "" Err(Gone) false Err(Gone) Err(Gone) Err(Gone)"#;
        assert_eq!((status, report.as_str()), (200, gone));

        stash(&mut scene, "request").await;
        scene.fails("/run-request", &["the request of another exchange"]).await;

        stash(&mut scene, "response").await;
        scene.fails("/use-response", &["the response of another exchange"]).await;

        // As the body of something else it is one that breaks off.
        stash(&mut scene, "request").await;
        scene.fails("/send-body", &["the exchange has ended"]).await;
        stash(&mut scene, "request").await;
        let broken = match scene.client.send(Call::get("/use-body")).await {
            Ok(reply) => reply.collect().await.is_err(),
            Err(_) => true,
        };
        assert!(broken, "the reply looks complete");
        if host.protocol == Protocol::Http1 {
            scene.client = host.connect(&scene.envoy).await;
        }
        scene.is_fine("/use-body").await;

        // What is left behind at the end must not disturb Envoy's own.
        stash(&mut scene, "request").await;
        stash(&mut scene, "response").await;
        scene.envoy.finish().await;
    })
    .await;
}
