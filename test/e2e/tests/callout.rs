//! Calls to Envoy's clusters, in a real Envoy: what comes back, what fails and how it says so, and
//! that nothing of a call is left when nobody waits for it any more. The filter is
//! `test/e2e/filters/src/caller.rs`.

use attache_e2e::{
    Call, Cluster, Collected, Config, Envoy, Host, ModuleFilter, Modules, OutBody, Progress,
    Protocol, RawUpstream, Route, Seen, Update, Upstream, Version, eventually, on_every_host,
    response, within,
};
use http::Method;
use serde_json::{Value, json};

const STATS: &str = "cluster.service";

fn modules() -> Modules {
    Modules::new().package("attache-e2e-filters")
}

fn caller(config: Value) -> ModuleFilter {
    ModuleFilter::new("attache_e2e_filters", "caller").config(config)
}

fn calling(service: Cluster, config: Value) -> Config {
    let direct = Route::prefix("/").direct(200, "direct");
    Config::new().filter(caller(config)).cluster(service).route(direct)
}

async fn start(host: &Host, modules: &Modules, upstream: &Upstream, config: Value) -> Envoy {
    let service = Cluster::new("service", upstream.address());
    host.launch().modules(modules).start(&calling(service, config)).await
}

async fn get(host: &Host, envoy: &Envoy, path: &str) -> Collected {
    host.connect(envoy).await.fetch(Call::get(path)).await
}

/// No call is under way any more, at Envoy.
async fn idle(envoy: &Envoy) {
    envoy.wait_for_stat(&format!("{STATS}.upstream_rq_active"), 0).await;
}

fn was_cut(seen: &Seen) -> bool {
    matches!(seen.response, Progress::Cut)
}

#[tokio::test]
async fn a_call_is_answered() {
    let modules = modules();
    on_every_host(async |host| {
        let upstream = Upstream::fixed(418, "short and stout").await;
        let envoy = start(&host, &modules, &upstream, json!({})).await;
        assert_eq!(get(&host, &envoy, "/answer").await.text(), "418 short and stout");
        let seen = upstream.seen(0).await;
        assert_eq!((seen.method.clone(), seen.path()), (Method::GET, "/up"));
        assert_eq!(seen.header("host"), Some("service"));
        assert_eq!(seen.header("x-in"), Some("1"));

        assert_eq!(get(&host, &envoy, "/post").await.text(), "418 short and stout");
        let seen = upstream.seen(1).await;
        assert_eq!((seen.method.clone(), seen.text()), (Method::POST, "a body"));
        assert_eq!(seen.header("content-length"), Some("6"));

        // After `next.run`, too.
        let reply = get(&host, &envoy, "/after").await;
        assert_eq!((reply.text(), reply.header("x-answer")), ("direct", Some("short and stout")));
        idle(&envoy).await;
        envoy.finish().await;
    })
    .await;
}

#[tokio::test]
async fn an_error_status_of_the_service_is_an_answer() {
    let modules = modules();
    on_every_host(async |host| {
        for status in [500, 503, 504] {
            let upstream = Upstream::fixed(status, "upstream request timeout").await;
            let envoy = start(&host, &modules, &upstream, json!({})).await;
            let reply = get(&host, &envoy, "/answer").await;
            assert_eq!(reply.text(), format!("{status} upstream request timeout"));
            envoy.finish().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_call_that_is_not_answered_in_time_is_a_timeout() {
    let modules = modules();
    on_every_host(async |host| {
        let upstream = Upstream::manual().await;
        let envoy = start(&host, &modules, &upstream, json!({"timeout_ms": 100})).await;
        let text = get(&host, &envoy, "/answer").await;
        assert_eq!(text.text(), "Timeout cluster `service`: upstream request timeout");
        let reply = get(&host, &envoy, "/question-mark").await;
        assert_eq!((reply.status.as_u16(), reply.text()), (504, "Gateway Timeout"));

        envoy.finish().await;

        // In the middle of an answer, only the clock tells.
        let upstream = Upstream::manual().await;
        let envoy = start(&host, &modules, &upstream, json!({"timeout_ms": 2000})).await;
        let mut client = host.connect(&envoy).await;
        let pending = client.start(Call::get("/read")).await;
        let mut body = upstream.accept().await.stream(http::Response::new(()));
        body.data("half").await.unwrap();
        let reply = pending.await.unwrap().collect().await.unwrap();
        assert_eq!(reply.text(), "4: cluster `service`: it did not answer in time");
        idle(&envoy).await;
        envoy.finish().await;
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_breaks_is_a_reset() {
    let modules = modules();
    on_every_host(async |host| {
        // Before the answer.
        let upstream = Upstream::start(async |_| Err("no".into())).await;
        let envoy = start(&host, &modules, &upstream, json!({})).await;
        let reply = get(&host, &envoy, "/answer").await;
        let expected = "Reset cluster `service`: upstream connect error or disconnect/reset before";
        assert!(reply.text().starts_with(expected), "{}", reply.text());
        assert_eq!(get(&host, &envoy, "/question-mark").await.status.as_u16(), 502);
        envoy.finish().await;

        // In its middle.
        let upstream = Upstream::manual().await;
        let envoy = start(&host, &modules, &upstream, json!({})).await;
        let mut client = host.connect(&envoy).await;
        let pending = client.start(Call::get("/read")).await;
        let mut body = upstream.accept().await.stream(http::Response::new(()));
        body.data("half").await.unwrap();
        envoy.wait_for_stat("dynamicmodulescustom.caller_read", 4).await;
        body.abort();
        let reply = pending.await.unwrap().collect().await.unwrap();
        assert_eq!(reply.text(), "4: cluster `service`: it was reset");
        idle(&envoy).await;
        envoy.finish().await;

        // Where nobody listens.
        let nobody = RawUpstream::start().await.address();
        let config = calling(Cluster::new("service", nobody), json!({}));
        let envoy = host.launch().modules(&modules).start(&config).await;
        let reply = get(&host, &envoy, "/answer").await;
        assert!(reply.text().starts_with("Reset "), "{}", reply.text());
        envoy.finish().await;
    })
    .await;
}

#[tokio::test]
async fn a_cluster_that_cannot_be_called_says_so_at_once() {
    let modules = modules();
    on_every_host(async |host| {
        let upstream = Upstream::fixed(200, "up").await;
        let service = Cluster::new("service", upstream.address());
        let config = calling(service, json!({})).patch(|bootstrap| {
            bootstrap["static_resources"]["clusters"][0]["circuit_breakers"] =
                json!({"thresholds": [{"max_requests": 0, "max_pending_requests": 0}]});
        });
        let envoy = host.launch().modules(&modules).start(&config).await;
        let expected = "UnknownCluster cluster `nobody`: Envoy has no cluster of this name";
        assert_eq!(get(&host, &envoy, "/unknown").await.text(), expected);
        // Stock Envoy has one answer for this and the next.
        let kind = if host.version.is_compiled_in() { "Overflow " } else { "Unavailable " };
        let reply = get(&host, &envoy, "/answer").await;
        assert!(reply.text().starts_with(kind), "{}", reply.text());
        assert_eq!(get(&host, &envoy, "/question-mark").await.status.as_u16(), 503);
        let reply = get(&host, &envoy, "/shared").await;
        assert!(reply.text().starts_with(kind), "{}", reply.text());
        assert_eq!(upstream.count(), 0);
        envoy.finish().await;

        let nobody = Cluster::new("service", upstream.address());
        let config = calling(nobody, json!({})).patch(|bootstrap| {
            bootstrap["static_resources"]["clusters"][0]["load_assignment"]["endpoints"] =
                json!([]);
        });
        let envoy = host.launch().modules(&modules).start(&config).await;
        for path in ["/answer", "/shared"] {
            let reply = get(&host, &envoy, path).await;
            assert!(reply.text().starts_with("Unavailable "), "{}", reply.text());
        }
        envoy.finish().await;
    })
    .await;
}

#[tokio::test]
async fn an_answer_over_the_limit_is_cut_off() {
    let modules = modules();
    on_every_host(async |host| {
        let upstream = Upstream::fixed(200, "12345").await;
        let envoy = start(&host, &modules, &upstream, json!({})).await;
        let reply = get(&host, &envoy, "/limit").await;
        assert!(reply.text().starts_with("TooLarge "), "{}", reply.text());
        assert_eq!(get(&host, &envoy, "/answer").await.text(), "200 12345");
        idle(&envoy).await;
        envoy.finish().await;
    })
    .await;
}

#[tokio::test]
async fn a_request_streams_through_a_cluster_both_ways_at_once() {
    let modules = modules();
    on_every_host(async |host| {
        let upstream = Upstream::manual().await;
        let envoy = start(&host, &modules, &upstream, json!({})).await;
        let mut client = host.connect(&envoy).await;
        let (mut out, call) = Call::post("/stream").stream();
        let pending = client.start(call).await;
        out.data("one ").await.unwrap();
        let mut turn = upstream.accept().await;
        assert_eq!(turn.read(4).await, "one ");
        // The answer begins, and goes on, before the request has ended.
        let mut answer = turn.stream(response(201, OutBody::empty()).unwrap().map(|_| ()));
        answer.data("un ").await.unwrap();
        let mut reply = pending.await.unwrap();
        assert_eq!(reply.status().as_u16(), 201);
        assert_eq!(within("the answer", reply.chunk()).await.unwrap().unwrap(), "un ");
        out.data("two").await.unwrap();
        assert_eq!(turn.read(3).await, "two");
        out.finish().await.unwrap();
        turn.read_to_end().await;
        answer.data("deux").await.unwrap();
        answer.finish().await.unwrap();
        assert_eq!(reply.collect().await.unwrap().text(), "deux");
        idle(&envoy).await;
        envoy.finish().await;
    })
    .await;
}

#[tokio::test]
async fn large_bodies_and_trailers_go_through_a_cluster() {
    let modules = modules();
    on_every_host(async |host| {
        let upstream = Upstream::echo().await;
        let service = Cluster::new("service", upstream.address()).http2();
        let envoy = host.launch().modules(&modules).start(&calling(service, json!({}))).await;
        let mut client = host.connect(&envoy).await;
        let large = "0123456789abcdef".repeat(64 * 1024);
        let reply = client.fetch(Call::post("/stream").body(large.clone())).await;
        assert_eq!(reply.text().len(), large.len());
        assert!(reply.text() == large);
        let call = Call::post("/frames").chunks_and_trailers(["a", "b"], &[("x-t", "1")]);
        assert_eq!(client.fetch(call).await.text(), r#"ab {"x-t": "1"}"#);
        idle(&envoy).await;
        envoy.finish().await;
    })
    .await;
}

#[tokio::test]
async fn a_service_that_is_slow_to_read_holds_the_request_back() {
    let modules = modules();
    on_every_host(async |host| {
        // Stock Envoy does not tell; there, what is sent is bounded instead.
        if !host.version.is_compiled_in() {
            return;
        }
        let upstream = Upstream::manual().await;
        let config = calling(Cluster::new("service", upstream.address()), json!({}));
        let config = config.buffer_limit(64 * 1024);
        let envoy = host.launch().modules(&modules).start(&config).await;
        let mut client = host.connect(&envoy).await;
        // More than a streamed request may have where nothing holds it back.
        let large = vec![b'x'; 18 << 20];
        let pending = client.start(Call::post("/stream").body(large.clone())).await;
        let mut turn = upstream.accept().await;
        eventually("the service's connection to be full", async || {
            let full = envoy.stat(&format!("{STATS}.upstream_flow_control_backed_up_total")).await;
            full.is_some_and(|times| times > 0)
        })
        .await;
        assert_eq!(turn.read_to_end().await.body.len(), large.len());
        turn.reply(200, "all of it");
        assert_eq!(pending.await.unwrap().collect().await.unwrap().text(), "all of it");
        idle(&envoy).await;
        envoy.finish().await;
    })
    .await;
}

#[tokio::test]
async fn a_stream_that_dies_cancels_its_call() {
    let modules = modules();
    on_every_host(async |host| {
        for path in ["/answer", "/read", "/stream"] {
            let upstream = Upstream::manual().await;
            let envoy = start(&host, &modules, &upstream, json!({})).await;
            let mut client = host.connect(&envoy).await;
            let (_out, call) = Call::post(path).stream();
            let pending = client.start(call).await;
            let mut turn = upstream.accept().await;
            let exchange = turn.exchange();
            let body = (path == "/read").then(|| turn.stream(http::Response::new(())));
            pending.cancel();
            client.disconnect();
            idle(&envoy).await;
            match body {
                Some(body) => {
                    within("the service to see it", body.closed()).await;
                    assert!(was_cut(&exchange.response_over().await), "{path}");
                }
                None => drop(turn),
            }
            assert_eq!(get(&host, &envoy, "/").await.text(), "direct");
            envoy.finish().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_dropped_future_or_body_cancels_its_call() {
    let modules = modules();
    on_every_host(async |host| {
        for path in ["/early", "/shared-early"] {
            let upstream = Upstream::manual().await;
            let envoy = start(&host, &modules, &upstream, json!({})).await;
            assert_eq!(get(&host, &envoy, path).await.text(), "dropped", "{path}");
            let _turn = upstream.accept().await;
            idle(&envoy).await;
            assert_eq!(envoy.stat(&format!("{STATS}.upstream_rq_total")).await, Some(1));
            envoy.finish().await;
        }
        let upstream = Upstream::manual().await;
        let envoy = start(&host, &modules, &upstream, json!({})).await;
        let mut client = host.connect(&envoy).await;
        let pending = client.start(Call::get("/early-body")).await;
        let mut turn = upstream.accept().await;
        let exchange = turn.exchange();
        let _body = turn.stream(http::Response::new(()));
        let reply = pending.await.unwrap().collect().await.unwrap();
        assert_eq!(reply.text(), "dropped 200 OK");
        assert!(was_cut(&exchange.response_over().await));
        idle(&envoy).await;
        envoy.finish().await;
    })
    .await;
}

#[tokio::test]
async fn a_panic_while_a_call_is_out_costs_that_exchange() {
    let modules = modules();
    on_every_host(async |host| {
        let upstream = Upstream::manual().await;
        let envoy = start(&host, &modules, &upstream, json!({})).await;
        let mut client = host.connect(&envoy).await;
        let pending = client.start(Call::get("/panic")).await;
        let mut turn = upstream.accept().await;
        let exchange = turn.exchange();
        let _body = turn.stream(http::Response::new(()));
        let reply = pending.await.unwrap().collect().await.unwrap();
        assert_eq!(reply.status.as_u16(), 500);
        assert!(was_cut(&exchange.response_over().await));
        idle(&envoy).await;
        envoy.wait_for_stat("dynamicmodulescustom.attache.caller.panics", 1).await;
        assert_eq!(client.fetch(Call::get("/")).await.text(), "direct");
        assert!(!envoy.log().contains("a bug in Attaché"));
        envoy.finish().await;
    })
    .await;
}

#[tokio::test]
async fn a_thousand_calls_at_once_all_come_back() {
    let modules = modules();
    on_every_host(async |host| {
        let upstream = Upstream::fixed(200, "up").await;
        let service = Cluster::new("service", upstream.address()).http2();
        let config = calling(service, json!({})).patch(|bootstrap| {
            let cluster = &mut bootstrap["static_resources"]["clusters"][0];
            cluster["circuit_breakers"] =
                json!({"thresholds": [{"max_requests": 5000, "max_pending_requests": 5000}]});
            // Envoy learns of the service's own limit only when it is over it.
            let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
            let options = &mut cluster["typed_extension_protocol_options"][options];
            options["explicit_http_config"]["http2_protocol_options"]["max_concurrent_streams"] =
                json!(100);
        });
        let envoy = host.launch().modules(&modules).start(&config).await;
        assert_eq!(get(&host, &envoy, "/thousand").await.text(), "1000");
        assert_eq!(get(&host, &envoy, "/shared-thousand").await.text(), "1000");
        assert_eq!(upstream.count(), 2000);
        idle(&envoy).await;
        envoy.finish().await;
    })
    .await;
}

#[tokio::test]
async fn a_shared_cluster_is_called_from_any_thread() {
    let modules = modules();
    on_every_host(async |host| {
        let upstream = Upstream::fixed(200, "up").await;
        let envoy = start(&host, &modules, &upstream, json!({})).await;
        assert_eq!(get(&host, &envoy, "/shared").await.text(), "200 up");
        assert_eq!(upstream.seen(0).await.text(), "shared");
        assert_eq!(get(&host, &envoy, "/shared-task").await.text(), "200 up");
        envoy.finish().await;

        let upstream = Upstream::manual().await;
        let envoy = start(&host, &modules, &upstream, json!({"timeout_ms": 100})).await;
        let reply = get(&host, &envoy, "/shared-task").await;
        assert_eq!(reply.text(), "Timeout cluster `service`: upstream request timeout");
        envoy.finish().await;
    })
    .await;
}

#[tokio::test]
async fn calls_of_a_config_end_with_it() {
    let modules = modules();
    for version in Version::all() {
        let upstream = Upstream::manual().await;
        let config = calling(Cluster::new("service", upstream.address()), json!({})).watched();
        let launch = version.launch().modules(&modules).concurrency(2).drain_seconds(1);
        let envoy = launch.start(&config).await;
        let mut client = envoy.connect(Protocol::Http1).await;
        assert_eq!(client.fetch(Call::get("/shared-outlives")).await.text(), "out");
        let _turn = upstream.accept().await;
        let new = calling(Cluster::new("service", upstream.address()), json!({"timeout_ms": 1}));
        assert_eq!(envoy.update(&new.watched()).await, Update::Accepted);
        envoy.wait_for_log(&["outlived: Err(", "Gone"]).await;
        idle(&envoy).await;
        envoy.finish().await;
    }
}

#[tokio::test]
async fn a_background_task_calls_while_configs_come_and_go() {
    let modules = modules();
    for version in Version::all() {
        let upstream = Upstream::fixed(200, "up").await;
        let config = |timeout: u64| {
            let service = Cluster::new("service", upstream.address());
            calling(service, json!({"beat_ms": 1, "timeout_ms": timeout})).watched()
        };
        let launch = version.launch().modules(&modules).concurrency(2).drain_seconds(1);
        let envoy = launch.start(&config(1000)).await;
        envoy.wait_for_log(&["beat: 200 OK"]).await;
        for round in 1..=3 {
            assert_eq!(envoy.update(&config(1000 + round)).await, Update::Accepted);
            let before = upstream.count();
            eventually("further beats", async || upstream.count() > before + 5).await;
        }
        envoy.finish().await;
    }
}
