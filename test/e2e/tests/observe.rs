//! What an operator sees of a filter in a real Envoy: what the runtime counts, tasks that it starts
//! again, secrets that change; and state that is one per config or one per worker. The filters are in `test/e2e/filters`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use attache_e2e::{
    Call, Collected, Config, Envoy, Launch, ModuleFilter, Modules, Protocol, Route, Update,
    Version, envoy_filter, eventually,
};
use serde_json::{Value, json};

const MODULE: &str = "attache_e2e_filters";

fn modules() -> Modules {
    Modules::new().package("attache-e2e-filters")
}

fn filter(name: &str) -> ModuleFilter {
    ModuleFilter::new(MODULE, name)
}

/// Answers what the filter lets through.
fn serving(config: Value) -> Config {
    let filter = filter("observed").config(config);
    Config::new().route(Route::prefix("/").direct(200, "ok")).filter(filter)
}

async fn get(envoy: &Envoy, path: &str) -> Collected {
    envoy.connect(Protocol::Http1).await.fetch(Call::get(path)).await
}

fn stat(what: &str) -> String {
    format!("dynamicmodulescustom.attache.observed.{what}")
}

/// The value of a metric without labels, as Prometheus reads it.
async fn prometheus(envoy: &Envoy, what: &str) -> Option<u64> {
    let name = envoy.prometheus_name(&format!("attache_observed_{what}"));
    let page = envoy.prometheus().await;
    page.lines().find_map(|line| line.strip_prefix(&name)?.strip_prefix("{} ")?.parse().ok())
}

// ---- counts ---------------------------------------------------------------------------------

#[tokio::test]
async fn built_in_stats_tell_how_exchanges_end_and_what_is_under_way() {
    let modules = modules();
    for version in Version::all() {
        // Writing a panic's backtrace takes its time: no poll counts as slow here.
        let options = json!({"stats": {"interval_ms": 10}, "slow_poll_ms": 60_000});
        let config = serving(json!({"attache": options}));
        let envoy = version.launch().modules(&modules).start(&config).await;
        for path in ["/", "/", "/reply", "/error", "/panic"] {
            get(&envoy, path).await;
        }
        let mut holder = envoy.connect(Protocol::Http1).await;
        let held = holder.start(Call::get("/hold")).await;
        let mut leaver = envoy.connect(Protocol::Http1).await;
        let left = leaver.start(Call::get("/hold")).await;
        envoy.wait_for_stat(&stat("suspended"), 2).await;
        envoy.wait_for_stat(&stat("active"), 2).await;
        left.cancel();
        leaver.disconnect();
        envoy.wait_for_stat(&stat("cancelled"), 1).await;
        envoy.wait_for_stat(&stat("suspended"), 1).await;
        get(&envoy, "/release").await;
        assert_eq!(held.await.unwrap().collect().await.unwrap().text(), "ok");

        for (what, value) in [
            ("active", 0),
            ("suspended", 0),
            ("exchanges", 8),
            ("local_replies", 1),
            ("errors", 1),
            ("panics", 1),
            ("cancelled", 1),
            ("wakes", 1),
            ("slow_polls", 0),
        ] {
            envoy.wait_for_stat(&stat(what), value).await;
            assert_eq!(prometheus(&envoy, what).await, Some(value), "{what}");
        }
        // Only on request.
        assert!(!envoy.prometheus().await.contains("poll_time"));
        envoy.finish().await;
    }
}

#[tokio::test]
async fn replies_made_elsewhere_are_counted_and_are_no_exchanges() {
    let modules = modules();
    for version in Version::all() {
        let fault = json!({
            "abort": {"http_status": 418, "percentage": {"numerator": 100}},
            "headers": [{"name": ":path", "string_match": {"exact": "/elsewhere"}}],
        });
        let config = Config::new()
            .route(Route::prefix("/").direct(200, "ok"))
            .filter(envoy_filter("fault", "filters.http.fault.v3.HTTPFault", fault))
            .filter(filter("observed").config(json!({"attache": {"stats": {"interval_ms": 10}}})));
        let envoy = version.launch().modules(&modules).start(&config).await;
        for (path, status) in [("/elsewhere", 418), ("/elsewhere", 418), ("/", 200)] {
            assert_eq!(get(&envoy, path).await.status, status, "{path}");
        }
        envoy.wait_for_stat(&stat("handled_replies"), 2).await;
        envoy.wait_for_stat(&stat("exchanges"), 1).await;
        envoy.wait_for_stat(&stat("active"), 0).await;
        assert_eq!(envoy.stat(&stat("cancelled")).await.unwrap_or(0), 0);
        assert_eq!(envoy.stat(&stat("local_replies")).await.unwrap_or(0), 0);
        envoy.finish().await;
    }
}

#[tokio::test]
async fn poll_times_are_a_histogram_where_the_config_asks_for_them() {
    let modules = modules();
    for version in Version::all() {
        let config = serving(json!({"attache": {"stats": {"poll_time": true}}}));
        let envoy = version.launch().modules(&modules).start(&config).await;
        get(&envoy, "/reply").await;
        eventually("the histogram", async || {
            prometheus(&envoy, "poll_time_us_count").await == Some(1)
        })
        .await;
        envoy.finish().await;
    }
}

#[tokio::test]
async fn nothing_counted_is_lost_when_a_config_goes() {
    let modules = modules();
    for version in Version::all() {
        // The config never hands its counts on by itself.
        let config = |panics| {
            serving(json!({
                "panics": panics, "attache": {"stats": {"interval_ms": 1e9}},
            }))
            .watched()
        };
        let launch = version.launch().modules(&modules).drain_seconds(1);
        let envoy = launch.start(&config(0)).await;
        for path in ["/", "/reply", "/reply"] {
            get(&envoy, path).await;
        }
        assert_eq!(envoy.stat(&stat("exchanges")).await, Some(0));
        assert_eq!(envoy.update(&config(1)).await, Update::Accepted);
        envoy.wait_for_stat(&stat("exchanges"), 3).await;
        envoy.wait_for_stat(&stat("local_replies"), 2).await;
        assert_eq!(envoy.stat(&stat("active")).await, Some(0));
        envoy.finish().await;
    }
}

// ---- background tasks -----------------------------------------------------------------------

#[tokio::test]
async fn a_background_task_that_panics_is_started_again_and_counted() {
    let modules = modules();
    for version in Version::all() {
        let launch = version.launch().modules(&modules);
        let envoy = launch.start(&serving(json!({"panics": 2}))).await;
        envoy.wait_for_stat("dynamicmodulescustom.observed_recovered", 1).await;
        envoy.wait_for_stat(&stat("task_restarts"), 2).await;
        envoy.wait_for_stat(&stat("panics"), 2).await;
        let what = "[observed] background task `unsteady` panicked: on purpose";
        envoy.wait_for_log(&["[error]", what, "it is started again in 100ms"]).await;
        envoy.wait_for_log(&["[error]", what, "it is started again in 200ms"]).await;
        assert_eq!(get(&envoy, "/reply").await.text(), "mine");
        envoy.finish().await;
    }
}

// ---- state ----------------------------------------------------------------------------------

#[tokio::test]
async fn workers_have_state_of_their_own_beside_what_they_share() {
    let modules = modules();
    for version in Version::all() {
        let launch = version.launch().modules(&modules).concurrency(2);
        let envoy = launch.start(&serving(json!({}))).await;
        let number = |reply: &Collected, name: &str| -> u64 {
            reply.header(name).expect("set by the filter").parse().expect("a number")
        };
        let mut served = BTreeMap::<String, u64>::new();
        let mut all = 0;
        // The kernel gives each connection to either worker.
        while served.len() < 2 {
            assert!(all < 200, "all connections went to one worker");
            let reply = get(&envoy, "/served").await;
            all += 1;
            assert_eq!(number(&reply, "x-all"), all);
            let mine = served.entry(reply.header("x-worker").unwrap().to_owned()).or_default();
            *mine += 1;
            assert_eq!(number(&reply, "x-mine"), *mine);
        }
        assert_eq!(served.values().sum::<u64>(), all);
        envoy.finish().await;
    }
}

// ---- secrets --------------------------------------------------------------------------------

#[tokio::test]
async fn a_secret_in_a_file_is_rotated_while_envoy_runs() {
    let modules = modules();
    for version in Version::all() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("key");
        std::fs::write(&path, "first\n").expect("a file");
        let keyed = |key: Value| {
            let filter = filter("keyed").config(json!({"key": key}));
            Config::new().route(Route::prefix("/").direct(200, "ok")).filter(filter)
        };
        let launch = version.launch().modules(&modules);
        let envoy = launch.start(&keyed(json!({"filename": path}))).await;
        assert_eq!(get(&envoy, "/").await.text(), "first");
        let new = directory.path().join("new");
        std::fs::write(&new, "second\n").expect("a file");
        std::fs::rename(new, &path).expect("a file");
        eventually("the new secret", async || get(&envoy, "/").await.text() == "second").await;
        envoy.finish().await;

        let none = directory.path().join("none");
        let refusal = launch.try_start(&keyed(json!({"filename": none}))).await.unwrap_err();
        assert_eq!(refusal.status.code(), Some(1));
        let reason = "filter `keyed`: config refused: field `key`: the secret is missing: ";
        assert!(refusal.output.contains(&format!("{reason}{}", none.display())), "{refusal}");
    }
}

/// The file of a secret discovery, in a directory that Envoy watches.
struct Discovery(tempfile::TempDir);

impl Discovery {
    fn new() -> Self {
        Discovery(tempfile::tempdir().expect("a temporary directory"))
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("sds.yaml")
    }

    /// Moves a new file in the place of the old one, as those do who rotate secrets.
    fn write(&self, text: &str) {
        let new = self.0.path().join("new.yaml");
        std::fs::write(&new, text).expect("a file");
        std::fs::rename(new, self.path()).expect("a file");
    }

    fn tell(&self, value: &str) {
        let secret = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
        self.write(&format!(
            "resources:\n- \"@type\": {secret}\n  name: found\n  \
             generic_secret: {{secret: {{inline_string: {value:?}}}}}\n"
        ));
    }

    /// As a filter's config has it.
    fn key(&self, path: &Path) -> Value {
        let watched = json!({"path": path, "watched_directory": {"path": self.0.path()}});
        json!({"sds_secret_config": {"name": "found", "sds_config": {
            "path_config_source": watched, "resource_api_version": "V3",
            "initial_fetch_timeout": "0.5s",
        }}})
    }
}

/// A filter that answers with its secret, in an Envoy that has a static one.
fn keyed(key: Value) -> Config {
    let filter = filter("keyed").config(json!({"key": key}));
    let config = Config::new().route(Route::prefix("/").direct(200, "ok")).filter(filter);
    config.patch(|bootstrap| {
        bootstrap["static_resources"]["secrets"] = json!([
            {"name": "key", "generic_secret": {"secret": {"inline_string": "static"}}},
            {"name": "empty", "generic_secret": {"secret": {"inline_string": ""}}},
            {"name": "tls", "tls_certificate": {"certificate_chain": {"inline_string": "no"}}},
        ]);
    })
}

async fn refused(launch: &Launch, key: Value, reason: &str) {
    let refusal = launch.try_start(&keyed(key)).await.unwrap_err();
    let reason = format!("filter `keyed`: config refused: field `key`: {reason}");
    assert!(refusal.output.contains(&reason), "{refusal}");
}

#[tokio::test]
async fn a_secret_of_envoy_s_own_is_there_and_rotated_where_filters_can_have_it() {
    let modules = modules();
    for version in Version::all() {
        let discovery = Discovery::new();
        discovery.tell("first");
        let found = discovery.key(&discovery.path());
        let launch = version.launch().modules(&modules).concurrency(2);
        if !version.tells_as_1_40() {
            let reason =
                "filters cannot get secrets of Envoy's secret discovery; have it in a file";
            refused(&launch, json!({"sds": "key"}), reason).await;
            refused(&launch, found, reason).await;
            continue;
        }
        let envoy = launch.start(&keyed(json!({"sds": "key"}))).await;
        assert_eq!(get(&envoy, "/").await.text(), "static");
        envoy.finish().await;

        let envoy = launch.start(&keyed(found)).await;
        assert_eq!(get(&envoy, "/").await.text(), "first", "Envoy waits for it before it serves");
        for value in ["second", "third"] {
            discovery.tell(value);
            eventually("the new secret", async || get(&envoy, "/").await.text() == value).await;
        }
        // What Envoy refuses, and what is empty, leaves the last one in place.
        discovery.write("resources: nothing of the kind");
        envoy.wait_for_log(&["[warning]", "Filesystem config update"]).await;
        assert_eq!(get(&envoy, "/").await.text(), "third");
        discovery.tell("");
        let last = "filter `keyed`: the secret `found`: it is empty; the last value stays";
        envoy.wait_for_log(&["[warning]", last]).await;
        assert_eq!(get(&envoy, "/").await.text(), "third");
        discovery.tell("fourth");
        eventually("the new secret", async || get(&envoy, "/").await.text() == "fourth").await;
        envoy.finish().await;
    }
}

#[tokio::test]
async fn a_secret_of_envoy_s_own_may_come_late() {
    let modules = modules();
    for version in Version::all().into_iter().filter(Version::tells_as_1_40) {
        let discovery = Discovery::new();
        discovery.write("resources: nothing of the kind");
        let launch = version.launch().modules(&modules);
        let envoy = launch.start(&keyed(discovery.key(&discovery.path()))).await;
        let early = get(&envoy, "/").await;
        assert_eq!(early.status, 503);
        assert_eq!(early.text(), "Envoy has not got the secret `found` yet");
        discovery.tell("late");
        eventually("the secret", async || get(&envoy, "/").await.text() == "late").await;
        envoy.finish().await;
    }
}

#[tokio::test]
async fn a_secret_that_envoy_has_not_is_refused() {
    let modules = modules();
    for version in Version::all().into_iter().filter(Version::tells_as_1_40) {
        let launch = version.launch().modules(&modules);
        for name in ["none", "tls"] {
            let none = "there is no generic secret of this name in Envoy's bootstrap";
            refused(&launch, json!({"sds": name}), &format!("the secret `{name}`: {none}")).await;
        }
        refused(&launch, json!({"sds": "empty"}), "the secret is empty: `empty`").await;
        let discovery = Discovery::new();
        let missing = discovery.key(&discovery.path());
        refused(&launch, missing, "the secret `found`: its `sds_config`: ").await;
        for wrong in [json!({}), json!({"path": 1}), json!({"typo": 1})] {
            let wrong = json!({"sds_secret_config": {"name": "key", "sds_config": wrong}});
            refused(&launch, wrong, "the secret `key`: its `sds_config`: ").await;
        }
    }
}

#[tokio::test]
async fn secrets_are_let_go_of_with_their_config() {
    let modules = modules();
    for version in Version::all().into_iter().filter(Version::tells_as_1_40) {
        let discovery = Discovery::new();
        discovery.tell("first");
        let launch = version.launch().modules(&modules).drain_seconds(1);
        let envoy = launch.start(&keyed(discovery.key(&discovery.path())).watched()).await;
        for value in ["second", "third", "fourth"] {
            // Another config, with another secret first.
            assert_eq!(
                envoy.update(&keyed(json!({"sds": "key"})).watched()).await,
                Update::Accepted
            );
            eventually("the config", async || get(&envoy, "/").await.text() == "static").await;
            discovery.tell(value);
            let found = keyed(discovery.key(&discovery.path())).watched();
            assert_eq!(envoy.update(&found).await, Update::Accepted);
            eventually("the secret", async || get(&envoy, "/").await.text() == value).await;
        }
        envoy.finish().await;
    }
}

// ---- runtime flags --------------------------------------------------------------------------

#[tokio::test]
async fn runtime_flags_are_seen_as_they_change_where_filters_can_see_them() {
    let modules = modules();
    for version in Version::all() {
        let config = |config: Value| {
            let route = Route::prefix("/").direct(200, "ok");
            let filter = filter("flagged").config(config);
            Config::new().route(route).filter(filter).patch(|bootstrap| {
                bootstrap["layered_runtime"] = json!({"layers": [
                    {"name": "static", "static_layer": {"test.integer": 8, "test.boolean": "neither"}},
                    {"name": "admin", "admin_layer": {}},
                ]});
            })
        };
        let late = config(json!({"early": false}));
        let config = config(json!({}));
        let launch = version.launch().modules(&modules);
        if !version.tells_as_1_40() {
            let refusal = launch.try_start(&config).await.unwrap_err();
            let reason = "filters cannot see Envoy's runtime flags in this host";
            assert!(refusal.output.contains(reason), "{refusal}");
            let envoy = launch.start(&late).await;
            let answer = get(&envoy, "/").await;
            assert!(
                answer.text().starts_with(&format!("Unsupported: {reason}")),
                "{}",
                answer.text()
            );
            envoy.finish().await;
            continue;
        }
        let (none, text) = match version.is_compiled_in() {
            true => ("None", r#"Some("text")"#),
            false => ("untold", "untold"),
        };
        let first = format!("false true 8 0.5 {none}");
        let envoy = launch.start(&late).await;
        eventually("the flags to be known", async || get(&envoy, "/").await.text() == first).await;
        envoy.finish().await;
        let envoy = launch.start(&config).await;
        assert_eq!(get(&envoy, "/").await.text(), first);
        let flags = "test.feature=100&test.boolean=false&test.integer=9&test.double=2.5";
        envoy.admin_post(&format!("/runtime_modify?{flags}&test.string=text")).await;
        let changed = format!("true false 9 2.5 {text}");
        eventually("the flags to change", async || get(&envoy, "/").await.text() == changed).await;
        envoy
            .admin_post("/runtime_modify?test.integer=&test.boolean=&test.feature=&test.double=")
            .await;
        eventually("the flags to change back", async || {
            get(&envoy, "/").await.text() == format!("false true 8 0.5 {text}")
        })
        .await;
        envoy.finish().await;
    }
}
