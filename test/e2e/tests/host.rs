//! What a filter finds in a real Envoy beside the exchange itself: its route's config, Envoy's log
//! and stats, config updates and shutdown, other filters, other workers; and what a panic costs
//! there. The filters are in `test/e2e/filters`.

use attache_e2e::{
    Call, Cluster, Collected, Config, Envoy, ModuleFilter, Modules, Protocol, Route, Upstream,
    Version, disabled, eventually,
};
use serde_json::{Value, json};

const MODULE: &str = "attache_e2e_filters";

fn modules() -> Modules {
    Modules::new().package("attache-e2e-filters")
}

fn filter(name: &str) -> ModuleFilter {
    ModuleFilter::new(MODULE, name)
}

/// Answers what the filters let through.
fn serving(filters: impl IntoIterator<Item = ModuleFilter>) -> Config {
    let config = Config::new().route(Route::prefix("/").direct(200, "ok"));
    filters.into_iter().fold(config, Config::filter)
}

async fn get(envoy: &Envoy, path: &str) -> Collected {
    envoy.connect(Protocol::Http1).await.fetch(Call::get(path)).await
}

fn stat_of(filter: &str, what: &str) -> String {
    format!("dynamicmodulescustom.attache.{filter}.{what}")
}

// ---- routes ---------------------------------------------------------------------------------

fn marks(reply: &Collected) -> Vec<&str> {
    reply.headers.get_all("x-mark").iter().map(|mark| mark.to_str().unwrap()).collect()
}

fn mark(name: &str) -> ModuleFilter {
    filter("mark").config(json!({"name": name}))
}

#[tokio::test]
async fn the_most_specific_route_config_wins() {
    let modules = modules();
    for version in Version::all() {
        let upstream = Upstream::echo().await;
        let of = |name| mark(name).per_route();
        let weighted = |config: Value| [("cluster", 1, config)];
        let routes = [
            Route::prefix("/route").to("cluster").filter_config("mark", of("route")),
            Route::prefix("/cluster").weighted(&weighted(json!({"mark": of("cluster")}))),
            Route::prefix("/all")
                .weighted(&weighted(json!({"mark": of("cluster")})))
                .filter_config("mark", of("route")),
            Route::prefix("/off").to("cluster").filter_config("mark", disabled()),
            Route::prefix("/").to("cluster"),
        ];
        let config = Config::new()
            .filter(mark("chain"))
            .cluster(Cluster::new("cluster", upstream.address()));
        let config = routes.into_iter().fold(config, Config::route);

        let envoy = version.launch().modules(&modules).start(&config).await;
        for (path, expected) in [
            ("/", &["chain:none"][..]),
            ("/route", &["chain:route"]),
            ("/cluster", &["chain:cluster"]),
            ("/all", &["chain:cluster"]),
            ("/off", &[]),
        ] {
            assert_eq!(marks(&get(&envoy, path).await), expected, "{path}");
        }
        envoy.finish().await;

        let config = config.host_filter_config("mark", of("host"));
        let envoy = version.launch().modules(&modules).start(&config).await;
        for (path, expected) in [
            ("/", &["chain:host"][..]),
            ("/route", &["chain:route"]),
            ("/cluster", &["chain:cluster"]),
            ("/all", &["chain:cluster"]),
            ("/off", &[]),
        ] {
            assert_eq!(marks(&get(&envoy, path).await), expected, "{path} in the host");
        }
        envoy.finish().await;
    }
}

// ---- other filters --------------------------------------------------------------------------

#[tokio::test]
async fn a_filter_is_twice_in_a_chain_with_different_configs() {
    let modules = modules();
    for version in Version::all() {
        let upstream = Upstream::echo().await;
        let config = Config::new()
            .upstream(upstream.address())
            .filter(mark("a").instance("first"))
            .filter(filter("crowd"))
            .filter(mark("b").instance("second"))
            .route(Route::prefix("/one").filter_config("second", mark("route").per_route()))
            .route(Route::prefix("/off").filter_config("first", disabled()))
            .route(Route::prefix("/"));
        let envoy = version.launch().modules(&modules).start(&config).await;
        for (index, (path, expected)) in [
            ("/", &["a:none", "b:none"][..]),
            ("/one", &["a:none", "b:route"]),
            ("/off", &["b:none"]),
        ]
        .into_iter()
        .enumerate()
        {
            let reply = get(&envoy, path).await;
            // The response comes back the other way.
            let back: Vec<_> = expected.iter().rev().copied().collect();
            assert_eq!(marks(&reply), back, "{path}");
            assert_eq!(reply.header("x-sum"), Some("110"), "{path}");
            let seen = upstream.seen(index).await;
            let there: Vec<_> = seen.headers.get_all("x-mark").iter().collect();
            assert_eq!(there, expected, "{path}");
            assert_eq!(seen.header("x-sum"), Some("55"), "{path}");
        }
        envoy.finish().await;
    }
}

#[tokio::test]
async fn two_modules_are_in_one_envoy() {
    let modules = modules().package("attache-filter-hello");
    for version in Version::all() {
        let hello = ModuleFilter::new("hello", "hello").config(json!({"greeting": "hi"}));
        let config = serving([filter("crowd"), hello, mark("other"), filter("speaker")]);
        let envoy = version.launch().modules(&modules).start(&config).await;
        let reply = get(&envoy, "/").await;
        assert_eq!(reply.text(), "said");
        assert_eq!(reply.header("x-hello"), Some("hi"));
        assert_eq!(reply.header("x-sum"), Some("110"));
        assert_eq!(marks(&reply), ["other:none"]);
        envoy.wait_for_stat("dynamicmodulescustom.crowd_completed", 1).await;
        envoy.finish().await;
    }
}

// ---- log ------------------------------------------------------------------------------------

const LEVELS: [(&str, &str); 5] = [
    ("trace", "[trace]"),
    ("debug", "[debug]"),
    ("info", "[info]"),
    ("warn", "[warning]"),
    ("error", "[error]"),
];

/// Calls a path of a speaker, waits until all is said, and gives what has been said by this exchange.
async fn said(envoy: &Envoy, path: &str) -> (String, Vec<String>) {
    let reply = get(envoy, path).await;
    assert_eq!(reply.text(), "said");
    let line = envoy.wait_for_access_log(&[&format!("path={path} ")]).await;
    let id = line.split_once("id=").expect("our format").1.to_owned();
    envoy.wait_for_log(&[&id, "said in on_complete"]).await;
    let log = envoy.log();
    (id.clone(), log.lines().filter(|line| line.contains(&id)).map(str::to_owned).collect())
}

async fn speaker(version: &Version, modules: &Modules, level: &str) -> Envoy {
    let config = serving([filter("speaker")]).access_log("path=%PATH(NQ)% id=%STREAM_ID%");
    let launch = version.launch().modules(modules);
    launch.component_log_level("dynamic_modules", level).start(&config).await
}

#[tokio::test]
async fn events_reach_envoys_log_at_their_level_with_filter_and_stream() {
    let modules = modules();
    for version in Version::all() {
        let envoy = speaker(&version, &modules, "trace").await;
        envoy.wait_for_log(&["[info][dynamic_modules]", "said in new"]).await;
        let (id, lines) = said(&envoy, "/levels").await;
        for (level, tag) in LEVELS {
            let text = format!("said at {level}");
            let line = lines.iter().find(|line| line.ends_with(&text));
            let line = line.unwrap_or_else(|| panic!("no {text:?} in {lines:?}"));
            assert!(line.contains(&format!("{tag}[dynamic_modules]")), "{line}");
            assert!(line.contains("[speaker][C"), "{line}");
            assert!(line.ends_with(&format!("][{id}] {text}")), "{line}");
        }
        // After a wait, and at the end, it is still this exchange.
        let (id, lines) = said(&envoy, "/later").await;
        for text in ["said after a wait", "said in on_complete"] {
            let end = format!("][{id}] {text}");
            assert!(lines.iter().any(|line| line.ends_with(&end)), "{lines:?}");
        }
        envoy.finish().await;
    }
}

#[tokio::test]
async fn events_below_envoys_level_are_left_out() {
    let modules = modules();
    for version in Version::all() {
        let envoy = speaker(&version, &modules, "info").await;
        let levels = |lines: &[String]| -> Vec<&str> {
            let is_said =
                |level: &&str| lines.iter().any(|line| line.ends_with(&format!("said at {level}")));
            LEVELS.iter().map(|(level, _)| *level).filter(is_said).collect()
        };
        let (_, lines) = said(&envoy, "/levels").await;
        assert_eq!(levels(&lines), ["info", "warn", "error"]);
        envoy.finish().await;

        let envoy = speaker(&version, &modules, "error").await;
        get(&envoy, "/levels").await;
        envoy.wait_for_log(&["said at error"]).await;
        assert!(!envoy.log().contains("said at warn"));

        // Envoy's level can change while it runs.
        envoy.admin_post("/logging?dynamic_modules=debug").await;
        get(&envoy, "/levels").await;
        envoy.wait_for_log(&["[debug][dynamic_modules]", "said at debug"]).await;
        envoy.admin_post("/logging?dynamic_modules=error").await;
        let before = envoy.log().matches("said at error").count();
        let warnings = envoy.log().matches("said at warn").count();
        get(&envoy, "/levels").await;
        eventually("the last error", async || {
            envoy.log().matches("said at error").count() > before
        })
        .await;
        assert_eq!(envoy.log().matches("said at warn").count(), warnings);
        envoy.finish().await;
    }
}

#[tokio::test]
async fn events_from_other_threads_reach_envoys_log() {
    let modules = modules();
    for version in Version::all() {
        let envoy = speaker(&version, &modules, "info").await;
        said(&envoy, "/spawned").await;
        envoy.wait_for_log(&["[info][dynamic_modules]", "said in a task"]).await;
        envoy.wait_for_log(&["[warning][dynamic_modules]", "said on a thread"]).await;
        said(&envoy, "/background").await;
        envoy.wait_for_log(&["[info][dynamic_modules]", "said in the background word=psst"]).await;
        envoy.finish().await;
    }
}

#[tokio::test]
async fn no_text_of_an_event_is_lost() {
    let modules = modules();
    for version in Version::all() {
        let envoy = speaker(&version, &modules, "info").await;
        let (id, _) = said(&envoy, "/text").await;
        let log = envoy.log();
        let text = "first line\nsecond line: äöü → 漢字 🦀\nlast line number=7\n";
        assert!(log.contains(&format!("[{id}] outer: {text}")), "{log}");
        let (_, lines) = said(&envoy, "/long").await;
        let long = lines.iter().find(|line| line.ends_with("éEND")).expect("the long line");
        assert_eq!(long.matches('é').count(), 100_000);
        envoy.finish().await;
    }
}

// ---- metrics --------------------------------------------------------------------------------

const PLACES: [&str; 5] = ["new", "handle", "task", "thread", "background"];

/// The value of the one line of Prometheus text that starts with `name` and has all of `labels`.
fn prometheus_value(text: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let name = format!("envoy_dynamicmodulescustom_{name}{{");
    let mut found = text
        .lines()
        .filter(|line| line.starts_with(&name) && labels.iter().all(|label| line.contains(label)));
    let line = found.next()?;
    assert_eq!(found.next(), None, "{name} {labels:?} is not one");
    line.rsplit(' ').next()?.parse().ok()
}

async fn wait_for_prometheus(envoy: &Envoy, name: &str, labels: &[&str], value: f64) {
    let what = format!("{name}{labels:?} to be {value}");
    eventually(&what, async || {
        prometheus_value(&envoy.prometheus().await, name, labels) == Some(value)
    })
    .await;
}

#[tokio::test]
async fn metrics_of_every_kind_change_from_everywhere() {
    let modules = modules();
    for version in Version::all() {
        let config = serving([filter("meter")]);
        let envoy = version.launch().modules(&modules).start(&config).await;
        for place in &PLACES[1..] {
            assert_eq!(get(&envoy, &format!("/{place}")).await.text(), "metered");
        }
        let plain = |name: &str| format!("dynamicmodulescustom.meter_{name}");
        envoy.wait_for_stat(&plain("counter"), 5 * 3).await;
        envoy.wait_for_stat(&plain("gauge"), 5 * 4).await;
        envoy.wait_for_stat(&plain("completed"), 4).await;
        for place in PLACES {
            let by = |by: &str| plain(&format!("labelled_counter.place.{place}.by.{by}"));
            envoy.wait_for_stat(&by("one"), 1).await;
            envoy.wait_for_stat(&by("two"), 2).await;
            envoy.wait_for_stat(&plain(&format!("labelled_gauge.place.{place}")), 4).await;
        }
        envoy.wait_for_stat(&plain("labelled_gauge.place.on_complete"), 1).await;

        wait_for_prometheus(&envoy, "meter_counter", &[], 15.0).await;
        wait_for_prometheus(&envoy, "meter_gauge", &[], 20.0).await;
        wait_for_prometheus(&envoy, "meter_histogram_count", &[], 5.0).await;
        let sum = prometheus_value(&envoy.prometheus().await, "meter_histogram_sum", &[]);
        // Envoy keeps histograms in buckets: a sum is only about right.
        assert!(sum.is_some_and(|sum| (24.0..=26.0).contains(&sum)), "{sum:?}");
        for place in PLACES {
            let label = format!("place=\"{place}\"");
            let count = "meter_labelled_histogram_count";
            wait_for_prometheus(&envoy, count, &[&label], 1.0).await;
            let two = [label.as_str(), "by=\"two\""];
            wait_for_prometheus(&envoy, "meter_labelled_counter", &two, 2.0).await;
            wait_for_prometheus(&envoy, "meter_labelled_gauge", &[&label], 4.0).await;
        }
        assert!(envoy.admin_get("/stats").await.contains(&plain("histogram: P0(")));

        get(&envoy, "/set").await;
        envoy.wait_for_stat(&plain("gauge"), 1000).await;
        envoy.wait_for_stat(&plain("labelled_gauge.place.handle"), 2000).await;
        envoy.finish().await;
    }
}

#[tokio::test]
async fn a_wrong_number_of_label_values_is_a_panic_of_one_exchange() {
    let modules = modules();
    for version in Version::all() {
        let config = serving([filter("meter")]);
        let envoy = version.launch().modules(&modules).start(&config).await;
        for (count, path) in [(1, "/wrong"), (2, "/wrong-task")] {
            let reply = get(&envoy, path).await;
            assert_eq!((reply.status.as_u16(), reply.text()), (500, "Internal Server Error"));
            envoy.wait_for_stat(&stat_of("meter", "panics"), count).await;
        }
        envoy.wait_for_log(&["[meter]", "panicked", "defined with 2 labels, but 1 values"]).await;
        envoy.wait_for_log(&["[meter]", "panicked", "defined with 0 labels, but 1 values"]).await;

        assert_eq!(get(&envoy, "/error").await.status.as_u16(), 418);
        envoy.wait_for_stat(&stat_of("meter", "errors"), 1).await;
        envoy.wait_for_stat(&stat_of("meter", "panics"), 2).await;
        assert_eq!(get(&envoy, "/handle").await.status.as_u16(), 200);
        envoy.wait_for_stat("dynamicmodulescustom.meter_completed", 4).await;
        envoy.finish().await;
    }
}

#[tokio::test]
async fn a_poll_that_blocks_the_worker_is_counted_and_logged() {
    let modules = modules();
    for version in Version::all() {
        for (config, budget) in [
            (json!({"name": "slow", "block_ms": 50}), "budget_ms=10"),
            (json!({"name": "slow", "block_ms": 5, "attache": {"slow_poll_ms": 1}}), "budget_ms=1"),
        ] {
            let config = serving([filter("mark").config(config)]).access_log("id=%STREAM_ID%");
            let envoy = version.launch().modules(&modules).start(&config).await;
            assert_eq!(get(&envoy, "/").await.text(), "ok");
            let line = envoy.wait_for_access_log(&["id="]).await;
            let id = line.strip_prefix("id=").expect("our format");
            let parts = ["[warning]", "[mark][C", &format!("[{id}]"), "blocked the worker", budget];
            let line = envoy.wait_for_log(&parts).await;
            assert!(line.ends_with(budget) || line.contains(&format!("{budget}.0")), "{line}");
            let count = envoy.stat(&stat_of("mark", "slow_polls")).await;
            assert!(count.is_some_and(|count| count >= 1), "{count:?}");
            envoy.finish().await;
        }
    }
}
