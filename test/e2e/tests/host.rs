//! What a filter finds in a real Envoy beside the exchange itself: its route's config, Envoy's log
//! and stats, config updates and shutdown, other filters, other workers; and what a panic costs
//! there. The filters are in `test/e2e/filters`.

use std::collections::BTreeSet;

use attache_e2e::{
    Call, Client, Cluster, Collected, Config, Envoy, ModuleFilter, Modules, Pending, Protocol,
    Route, Update, Upstream, Version, disabled, eventually,
};
use http::Method;
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

/// As `tracing` calls them, and as Envoy does.
const LEVELS: [(&str, &str); 5] = [
    ("trace", "trace"),
    ("debug", "debug"),
    ("info", "info"),
    ("warn", "warning"),
    ("error", "error"),
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
    launch.filters_log_level(level).start(&config).await
}

#[tokio::test]
async fn events_reach_envoys_log_at_their_level_with_filter_and_stream() {
    let modules = modules();
    for version in Version::all() {
        let envoy = speaker(&version, &modules, "trace").await;
        envoy.wait_for_log(&[&version.log_tag("info"), "[speaker] said in new"]).await;
        let (id, lines) = said(&envoy, "/levels").await;
        for (level, envoys) in LEVELS {
            let text = format!("said at {level}");
            let line = lines.iter().find(|line| line.ends_with(&text));
            let line = line.unwrap_or_else(|| panic!("no {text:?} in {lines:?}"));
            assert!(line.contains(&version.log_tag(envoys)), "{line}");
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
        let component = version.log_component();
        envoy.admin_post(&format!("/logging?{component}=debug")).await;
        get(&envoy, "/levels").await;
        envoy.wait_for_log(&[&version.log_tag("debug"), "said at debug"]).await;
        envoy.admin_post(&format!("/logging?{component}=error")).await;
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
        // With the filter and the stream in front, as the exchange's own have.
        let (id, lines) = said(&envoy, "/spawned").await;
        for (level, text) in [
            ("info", "said in a task"),
            ("info", "said in a task's task"),
            ("warning", "said on a thread"),
        ] {
            let line = lines.iter().find(|line| line.ends_with(text));
            let line = line.unwrap_or_else(|| panic!("no {text:?} in {lines:?}"));
            assert!(line.contains(&version.log_tag(level)), "{line}");
            assert!(line.contains("[speaker][C"), "{line}");
            assert!(line.ends_with(&format!("][{id}] {text}")), "{line}");
        }
        let (id, _) = said(&envoy, "/detached").await;
        envoy.wait_for_log(&["[speaker][C", &format!("][{id}] said after the end")]).await;
        said(&envoy, "/background").await;
        envoy
            .wait_for_log(&[&version.log_tag("info"), "[speaker] said in the background word=psst"])
            .await;
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

/// The value of the one line of Prometheus text that starts with a metric's name and has all of
/// `labels`.
async fn prometheus_value(envoy: &Envoy, name: &str, labels: &[&str]) -> Option<f64> {
    let text = envoy.prometheus().await;
    let name = format!("{}{{", envoy.prometheus_name(name));
    let mut found = text
        .lines()
        .filter(|line| line.starts_with(&name) && labels.iter().all(|label| line.contains(label)));
    let line = found.next()?;
    assert_eq!(found.next(), None, "{name} {labels:?} is not one");
    line.rsplit(' ').next()?.parse().ok()
}

async fn wait_for_prometheus(envoy: &Envoy, name: &str, labels: &[&str], value: f64) {
    let what = format!("{name}{labels:?} to be {value}");
    eventually(&what, async || prometheus_value(envoy, name, labels).await == Some(value)).await;
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
        let sum = prometheus_value(&envoy, "meter_histogram_sum", &[]).await;
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
        let histogram = plain("histogram: P0(");
        assert!(envoy.admin_get("/stats").await.contains(envoy.stat_name(&histogram)));

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

// ---- life and death -------------------------------------------------------------------------

fn keeper(name: &str) -> ModuleFilter {
    filter("keeper").config(json!({"name": name}))
}

/// Waits until new connections are served by this keeper: workers take an update a little after
/// Envoy has accepted it.
async fn serves(envoy: &Envoy, name: &str) {
    eventually("the new config to serve", async || {
        get(envoy, "/").await.header("x-keeper") == Some(name)
    })
    .await;
}

const HELD: &str = "dynamicmodulescustom.keeper_held";

/// Starts calls that are held, on so many connections.
async fn hold(envoy: &Envoy, path: &str, clients: u64, each: u64) -> Vec<(Client, Vec<Pending>)> {
    let mut all = Vec::new();
    for _ in 0..clients {
        let mut client = envoy.connect(Protocol::Http2).await;
        let mut calls = Vec::new();
        for _ in 0..each {
            calls.push(client.start(Call::get(path)).await);
        }
        all.push((client, calls));
    }
    all
}

#[tokio::test]
async fn exchanges_end_with_the_filter_they_began_with() {
    let modules = modules();
    for version in Version::all() {
        let config = serving([keeper("old")]).watched();
        let envoy = version.launch().modules(&modules).start(&config).await;
        let held = hold(&envoy, "/hold", 2, 5).await;
        envoy.wait_for_stat(HELD, 10).await;

        assert_eq!(envoy.update(&serving([keeper("new")]).watched()).await, Update::Accepted);
        serves(&envoy, "new").await;
        let mut client = envoy.connect(Protocol::Http1).await;
        let new = client.start(Call::get("/hold")).await;
        envoy.wait_for_stat(HELD, 11).await;
        assert_eq!(get(&envoy, "/open").await.text(), "open");
        assert_eq!(new.await.unwrap().collect().await.unwrap().text(), "new");
        for (_, calls) in held {
            for call in calls {
                assert_eq!(call.await.unwrap().collect().await.unwrap().text(), "old");
            }
        }
        eventually("each to have ended with its own", async || {
            let events = get(&envoy, "/events").await;
            let replied = |line: &&str| *line == "old: Replied";
            events.text().lines().filter(replied).count() == 10
                && events.text().contains("new: Replied")
        })
        .await;
        envoy.finish().await;
    }
}

#[tokio::test]
async fn a_replaced_filter_is_dropped_with_its_exchanges_and_its_tasks() {
    let modules = modules();
    for version in Version::all() {
        let config = serving([keeper("old")]).watched();
        let launch = version.launch().modules(&modules).drain_seconds(1);
        let envoy = launch.start(&config).await;
        let held = hold(&envoy, "/hold", 1, 3).await;
        envoy.wait_for_stat(HELD, 3).await;

        assert_eq!(envoy.update(&serving([keeper("new")]).watched()).await, Update::Accepted);
        serves(&envoy, "new").await;
        for event in ["old: Cancelled", "old: dropped", "old: task stopped"] {
            envoy.wait_for_log(&[event]).await;
        }
        let events = get(&envoy, "/events").await;
        let count = |event: &str| events.text().lines().filter(|line| *line == event).count();
        assert_eq!(count("old: Cancelled"), 3);
        assert_eq!(count("old: dropped"), 1);
        assert_eq!(count("old: task stopped"), 1);
        assert!(!events.text().contains("new: dropped"));
        drop(held);
        envoy.finish().await;
    }
}

/// As a user writes it who has not read about `do_not_close`. (Compiled in, there is nothing to
/// close, and a config like any other.)
fn closable(filter: ModuleFilter) -> Value {
    let mut filter = Value::from(filter);
    filter["typed_config"]["dynamic_module_config"]["do_not_close"] = json!(false);
    filter
}

#[tokio::test]
async fn the_filters_code_stays_in_memory_when_its_last_config_goes() {
    let modules = modules();
    for version in Version::all() {
        let direct = Route::prefix("/").direct(200, "ok");
        let with = Config::new().filter(closable(keeper("only"))).route(direct.clone()).watched();
        let without = Config::new().route(direct).watched();
        let envoy = version.launch().modules(&modules).drain_seconds(1).start(&with).await;
        assert_eq!(get(&envoy, "/outlive").await.text(), "it goes on");

        assert_eq!(envoy.update(&without).await, Update::Accepted);
        envoy.wait_for_log(&["only: dropped"]).await;
        envoy.wait_for_log(&["only: task stopped"]).await;
        // Code of the module still runs: a task that was let go.
        let beats = |log: &str| log.matches("outlived beat").count();
        let before = beats(&envoy.log());
        eventually("further beats", async || beats(&envoy.log()) > before + 10).await;
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", envoy.pid())).unwrap();
        assert_eq!(maps.contains("libattache_e2e_filters.so"), !version.is_compiled_in());
        assert_eq!(get(&envoy, "/").await.text(), "ok");

        // And the filter can come back.
        assert_eq!(envoy.update(&with).await, Update::Accepted);
        serves(&envoy, "only").await;
        let events = get(&envoy, "/events").await;
        assert!(events.text().contains("only: dropped"), "{}", events.text());
        envoy.finish().await;
    }
}

#[tokio::test]
async fn envoy_ends_cleanly_while_exchanges_wait() {
    let modules = modules();
    for version in Version::all() {
        for path in ["/hold", "/restless"] {
            for filter in [Value::from(keeper("last")), closable(keeper("last"))] {
                let config =
                    Config::new().filter(filter).route(Route::prefix("/").direct(200, "ok"));
                let envoy = version.launch().modules(&modules).concurrency(2).start(&config).await;
                get(&envoy, "/outlive").await;
                let held = hold(&envoy, path, 10, 10).await;
                eventually("100 exchanges", async || {
                    // The task that outlives sets the gauge, so it does not tell.
                    envoy.stat("http.ingress.downstream_rq_active").await == Some(100)
                })
                .await;
                envoy.finish().await;
                drop(held);
            }
        }
    }
}

// ---- panics ---------------------------------------------------------------------------------

fn fault(place: &str) -> ModuleFilter {
    filter("fault").config(json!({"place": place}))
}

#[tokio::test]
async fn a_panic_costs_one_exchange() {
    let modules = modules();
    for version in Version::all() {
        let upstream = Upstream::fixed(200, "ok").await;
        let config = Config::new().filter(fault("")).upstream(upstream.address());
        let envoy = version.launch().modules(&modules).start(&config).await;
        let mut panics = 0;
        for (path, said) in [
            ("/handle", "a panic in handle"),
            ("/payload", "panicked"),
            ("/local", "a bomb in a local"),
            ("/task", "a panic in a task"),
            ("/task-payload", "a spawned task panicked"),
            ("/display", "a panic in Display"),
            ("/error", "an explosive error"),
            ("/cause", "describing its error panicked: a panic in Display"),
            ("/event", "a panic in Display"),
        ] {
            let reply = get(&envoy, path).await;
            let answer = (reply.status.as_u16(), reply.text());
            assert_eq!(answer, (500, "Internal Server Error"), "{path}");
            envoy.wait_for_log(&[&version.log_tag("error"), "[fault][C", said]).await;
            panics += 1;
            envoy.wait_for_stat(&stat_of("fault", "panics"), panics).await;
            assert_eq!(get(&envoy, "/").await.text(), "ok", "after {path}");
        }

        // Not the exchange's concern, but the operator's.
        assert_eq!(get(&envoy, "/detached").await.text(), "unharmed");
        let said = "a spawned task panicked: a panic that nobody waits for";
        envoy.wait_for_log(&[&version.log_tag("error"), "[fault][C", said]).await;
        panics += 1;
        envoy.wait_for_stat(&stat_of("fault", "panics"), panics).await;

        // The reply is whole: what goes wrong after it is not the client's concern.
        for method in [Method::GET, Method::HEAD] {
            let body = if method == Method::GET { "x" } else { "" };
            let mut client = envoy.connect(Protocol::Http1).await;
            let reply = client.fetch(Call::new(method, "/reply")).await;
            assert_eq!((reply.status.as_u16(), reply.text()), (200, body));
            panics += 1;
            envoy.wait_for_stat(&stat_of("fault", "panics"), panics).await;
        }
        envoy.wait_for_log(&["[fault][C", "while it was dropped: a bomb in a reply"]).await;

        // The response's headers are on their way: whatever comes of it, it comes to an end.
        let mut client = envoy.connect(Protocol::Http1).await;
        match client.send(Call::get("/pump")).await {
            Ok(reply) => drop(reply.collect().await),
            Err(broken) => drop(broken),
        }
        envoy.wait_for_log(&["[fault][C", "a bomb in a body"]).await;
        envoy.wait_for_stat(&stat_of("fault", "panics"), panics + 1).await;
        assert_eq!(get(&envoy, "/").await.text(), "ok");

        // The client goes, and takes the future along.
        let mut client = envoy.connect(Protocol::Http1).await;
        let held = client.start(Call::get("/held")).await;
        envoy.wait_for_log(&["holding a bomb"]).await;
        held.cancel();
        client.disconnect();
        envoy.wait_for_log(&["[fault][C", "while it was dropped: a bomb in a held future"]).await;
        envoy.wait_for_stat(&stat_of("fault", "panics"), panics + 2).await;
        assert_eq!(get(&envoy, "/").await.text(), "ok");

        let log = envoy.log();
        assert!(!log.contains("a bug in Attaché"), "{log}");
        // Those of `/cause` and `/error` were errors, too.
        assert_eq!(envoy.stat(&stat_of("fault", "errors")).await, Some(2));
        envoy.finish().await;
    }
}

// ---- blocking -------------------------------------------------------------------------------

/// Tokio sees no difference between a worker and any other thread, so its `block_on` blocks it.
#[tokio::test]
async fn block_on_in_a_filter_blocks_its_worker_perhaps_for_ever() {
    let modules = modules();
    for version in Version::all() {
        let watchdog = json!({"worker_watchdog": {"megamiss_timeout": "0.2s"}});
        let config =
            serving([fault("")]).patch(move |bootstrap| bootstrap["watchdogs"] = watchdog.clone());
        let envoy = version.launch().modules(&modules).start(&config).await;
        // What Tokio's own threads bring comes.
        assert_eq!(get(&envoy, "/blocks").await.text(), "unharmed");
        envoy.wait_for_stat(&stat_of("fault", "slow_polls"), 1).await;

        // What the worker itself would have to bring does not. Envoy tells so.
        const MISSES: &str = "server.worker_0.watchdog_mega_miss";
        let misses = envoy.stat(MISSES).await;
        let (mut request, call) = Call::post("/blocks-for-ever").stream();
        let mut stuck = envoy.connect(Protocol::Http1).await.start(call).await;
        envoy.wait_for_log(&["[fault][C", "blocking for ever"]).await;
        request.data("what it waits for").await.expect("a connection");
        let mut waits = envoy.connect(Protocol::Http1).await.start(Call::get("/")).await;
        eventually("the watchdog to tell", async || envoy.stat(MISSES).await > misses).await;
        assert!(stuck.is_waiting() && waits.is_waiting());
        assert_eq!(envoy.stat(&stat_of("fault", "slow_polls")).await, Some(1));
        envoy.kill();
    }
}

#[tokio::test]
async fn a_panic_in_on_complete_is_counted() {
    let modules = modules();
    for version in Version::all() {
        let config = serving([fault("on_complete")]);
        let envoy = version.launch().modules(&modules).start(&config).await;
        for count in 1..=3 {
            assert_eq!(get(&envoy, "/").await.text(), "ok");
            envoy.wait_for_stat(&stat_of("fault", "panics"), count).await;
        }
        let parts = ["[error]", "[fault][C", "panicked in on_complete: a panic in on_complete"];
        envoy.wait_for_log(&parts).await;
        envoy.finish().await;
    }
}

#[tokio::test]
async fn a_panic_in_a_background_task_is_counted_and_logged() {
    let modules = modules();
    for version in Version::all() {
        let config = serving([fault("background")]);
        let envoy = version.launch().modules(&modules).start(&config).await;
        let said = "[fault] a background task panicked: a panic in the background";
        envoy.wait_for_log(&[&version.log_tag("error"), said]).await;
        envoy.wait_for_stat(&stat_of("fault", "panics"), 1).await;
        assert_eq!(get(&envoy, "/").await.text(), "ok");
        envoy.finish().await;
    }
}

#[tokio::test]
async fn a_panic_in_new_refuses_the_config() {
    let modules = modules();
    for version in Version::all() {
        let config = serving([fault("")]).watched();
        let envoy = version.launch().modules(&modules).start(&config).await;
        let update = envoy.update(&serving([fault("new")]).watched()).await;
        assert_eq!(update, Update::Rejected);
        envoy.wait_for_log(&["filter `fault`: `Filter::new` panicked: a panic in new"]).await;
        envoy.wait_for_log(&["the task of a refused config has stopped"]).await;
        assert_eq!(get(&envoy, "/").await.text(), "ok");
        envoy.finish().await;
    }
}

#[tokio::test]
async fn a_panic_in_the_drop_of_a_filter_is_logged() {
    let modules = modules();
    for version in Version::all() {
        let config = serving([fault("drop")]).watched();
        let launch = version.launch().modules(&modules).drain_seconds(1);
        let envoy = launch.start(&config).await;
        assert_eq!(get(&envoy, "/").await.text(), "ok");
        assert_eq!(envoy.update(&serving([fault("")]).watched()).await, Update::Accepted);
        envoy
            .wait_for_log(&["[error]", "filter `fault`", "dropped", "a panic in the filter's Drop"])
            .await;
        assert_eq!(get(&envoy, "/").await.text(), "ok");
        assert!(!envoy.log().contains("a bug in Attaché"), "{}", envoy.log());
        envoy.finish().await;

        // It may as well come at the very end.
        let envoy = launch.start(&config).await;
        assert_eq!(get(&envoy, "/").await.text(), "ok");
        envoy.finish().await;
    }
}

// ---- many at once ---------------------------------------------------------------------------

#[tokio::test]
async fn many_exchanges_wait_on_several_workers() {
    const CLIENTS: u64 = 20;
    const EACH: u64 = 15;
    let modules = modules();
    for version in Version::all() {
        let upstream = Upstream::echo().await;
        let config = Config::new().filter(filter("crowd")).upstream(upstream.address());
        let envoy = version.launch().modules(&modules).concurrency(2).start(&config).await;
        let mut calls = Vec::new();
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            let mut client = envoy.connect(Protocol::Http2).await;
            for number in 0..EACH {
                let call = Call::post("/").body(format!("body {number}"));
                calls.push((number, client.start(call).await));
            }
            clients.push(client);
        }
        let mut workers = BTreeSet::new();
        for (number, call) in calls {
            let reply = call.await.expect("a response").collect().await.expect("all of it");
            assert_eq!((reply.status.as_u16(), reply.text()), (200, &*format!("body {number}")));
            assert_eq!(reply.header("x-sum"), Some("110"));
            workers.insert(reply.header("x-worker").expect("set by the filter").to_owned());
        }
        assert_eq!(workers.len(), 2, "{workers:?}");
        for what in ["started", "completed", "responded"] {
            let stat = format!("dynamicmodulescustom.crowd_{what}");
            envoy.wait_for_stat(&stat, CLIENTS * EACH).await;
        }
        for what in ["errors", "panics"] {
            assert_eq!(envoy.stat(&stat_of("crowd", what)).await, Some(0), "{what}");
        }
        assert_eq!(upstream.count() as u64, CLIENTS * EACH);
        envoy.finish().await;
    }
}
