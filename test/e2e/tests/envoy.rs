//! The harness itself, on stock Envoys with no module: if one of these fails, nothing that the
//! other tests say about filters can be trusted.

use std::time::Duration;

use attache_e2e::{
    Call, Cluster, Config, Envoy, Launch, OutBody, Progress, Protocol, RawConn, RawUpstream, Route,
    Update, Upstream, Version, disabled, envoy_filter, header_map, on_every_host, response, typed,
    within,
};
use http::{Method, Response};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn requests_and_responses_pass_whole() {
    on_every_host(async |host| {
        for http2 in [false, true] {
            let upstream = Upstream::echo().await;
            let config = if http2 {
                Config::new().upstream_http2(upstream.address())
            } else {
                Config::new().upstream(upstream.address())
            };
            let envoy = host.launch().start(&config).await;
            let mut client = host.connect(&envoy).await;

            let call = Call::post("/a?b=c").header("x-twice", "1").header("x-twice", "2");
            let reply =
                client.fetch(call.chunks_and_trailers(["go", "od"], &[("x-t", "end")])).await;
            assert_eq!((reply.status.as_u16(), reply.text()), (200, "good"));
            assert_eq!(reply.trailer("x-t"), Some("end"));

            let seen = upstream.seen(0).await;
            assert_eq!(
                (seen.method.as_str(), seen.path(), seen.text()),
                ("POST", "/a?b=c", "good")
            );
            let twice: Vec<_> = seen.headers.get_all("x-twice").iter().collect();
            assert_eq!(twice, ["1", "2"]);
            assert_eq!(seen.header("content-length"), None);
            assert_eq!(seen.trailers, Some(header_map([("x-t", "end")])));
            assert_eq!(seen.request, Progress::Complete);
            let over = upstream.exchange(0).await.response_over().await;
            assert_eq!(over.response, Progress::Complete);

            let reply = client.fetch(Call::post("/").body("whole")).await;
            assert_eq!(reply.text(), "whole");
            let seen = upstream.seen(1).await;
            assert_eq!(seen.header("content-length"), Some("5"));

            let reply = client.fetch(Call::new(Method::HEAD, "/")).await;
            assert_eq!((reply.status.as_u16(), reply.body.len()), (200, 0));

            envoy.wait_for_stat("http.ingress.downstream_rq_2xx", 3).await;
            assert_eq!(envoy.stat("no.such.stat").await, None);
            assert!(envoy.prometheus().await.contains("envoy_http_downstream_rq_xx"));
            assert!(envoy.resident_bytes() > 1 << 20);
            envoy.finish().await;
        }
    })
    .await;
}

#[tokio::test]
async fn routes_lead_where_they_say() {
    on_every_host(async |host| {
        let one = Upstream::fixed(200, "one").await;
        let two = Upstream::start(async |_| response(418, "two")).await;
        let header = |value: &str| {
            let header = json!({"header": {"key": "x-added", "value": value}});
            json!({"mutations": {"response_mutations": [{"append": header}]}})
        };
        let mutation = "filters.http.header_mutation.v3.HeaderMutation";
        let per_route =
            typed("filters.http.header_mutation.v3.HeaderMutationPerRoute", header("route"));
        let config = Config::new()
            .filter(envoy_filter("mutation", mutation, header("chain")))
            .upstream(one.address())
            .cluster(Cluster::new("two", two.address()).http2())
            .route(Route::prefix("/direct").direct(403, "no"))
            .route(Route::prefix("/off").filter_config("mutation", disabled()))
            .route(Route::prefix("/two").to("two").filter_config("mutation", per_route))
            .route(Route::prefix("/weighted").weighted(&[("two", 1, json!({}))]))
            .route(Route::prefix("/").timeout(Duration::from_secs(30)))
            .access_log("%REQ(:path)% %RESPONSE_CODE%");
        let envoy = host.launch().concurrency(2).start(&config).await;
        let mut client = host.connect(&envoy).await;

        for (path, status, body, added) in [
            ("/", 200, "one", &["chain"][..]),
            ("/off", 200, "one", &[]),
            ("/two", 418, "two", &["chain", "route"]),
            ("/weighted", 418, "two", &["chain"]),
            ("/direct", 403, "no", &["chain"]),
        ] {
            let reply = client.fetch(Call::get(path)).await;
            assert_eq!((reply.status.as_u16(), reply.text()), (status, body), "{path}");
            let values: Vec<_> = reply.headers.get_all("x-added").iter().collect();
            assert_eq!(values, added, "{path}");
            envoy.wait_for_access_log(&[&format!("{path} {status}")]).await;
        }
        envoy.finish().await;
    })
    .await;
}

#[tokio::test]
async fn a_test_can_hold_every_step_in_its_hand() {
    on_every_host(async |host| {
        let upstream = Upstream::manual().await;
        let config = Config::new().upstream_http2(upstream.address());
        let envoy = host.launch().start(&config).await;
        let mut client = host.connect(&envoy).await;

        let (mut request, call) = Call::post("/").stream();
        let mut pending = client.start(call).await;
        request.data("ping").await.unwrap();
        let mut turn = upstream.accept().await;
        assert_eq!(turn.read(4).await, "ping");
        assert!(pending.is_waiting());

        // The response begins while the request is still open.
        let mut answer = turn.stream(Response::builder().status(201).body(()).unwrap());
        let mut reply = pending.await.unwrap();
        assert_eq!(reply.status().as_u16(), 201);
        answer.data("pong").await.unwrap();
        assert_eq!(reply.read(4).await.unwrap(), "pong");
        request.data("more").await.unwrap();
        assert_eq!(turn.read(4).await, "more");
        request.finish().await.unwrap();
        assert_eq!(turn.read_to_end().await.text(), "pingmore");
        answer.trailers(header_map([("x-t", "1")])).await.unwrap();
        let rest = reply.collect().await.unwrap();
        assert_eq!((rest.text(), rest.trailer("x-t")), ("", Some("1")));
        envoy.finish().await;
    })
    .await;
}

#[tokio::test]
async fn broken_exchanges_are_seen_by_the_other_side() {
    on_every_host(async |host| {
        let upstream = Upstream::manual().await;
        let config = Config::new().upstream_http2(upstream.address());
        let envoy = host.launch().start(&config).await;

        // The client goes while it waits.
        let mut client = host.connect(&envoy).await;
        let pending = client.start(Call::get("/")).await;
        let turn = upstream.accept().await;
        pending.cancel();
        assert_eq!(turn.exchange().response_over().await.response, Progress::Cut);

        // The connection goes while a request is under way.
        let mut client = host.connect(&envoy).await;
        let (mut request, call) = Call::post("/").stream();
        let pending = client.start(call).await;
        request.data("part").await.unwrap();
        let mut turn = upstream.accept().await;
        assert_eq!(turn.read(4).await, "part");
        client.disconnect();
        assert!(pending.await.is_err());
        assert!(turn.chunk().await.unwrap().is_err());
        assert_eq!(turn.exchange().request_over().await.request, Progress::Cut);

        // The request is broken off.
        let mut client = host.connect(&envoy).await;
        let (request, call) = Call::post("/").stream();
        let _pending = client.start(call).await;
        let turn = upstream.accept().await;
        request.abort();
        assert_eq!(turn.exchange().response_over().await.response, Progress::Cut);

        // The upstream does not answer at all.
        let mut client = host.connect(&envoy).await;
        let pending = client.start(Call::get("/")).await;
        upstream.accept().await.hang_up();
        assert_eq!(pending.await.unwrap().status().as_u16(), 503);

        // The upstream breaks off what it began.
        let mut client = host.connect(&envoy).await;
        let pending = client.start(Call::get("/")).await;
        let mut turn = upstream.accept().await;
        let mut answer = turn.stream(Response::new(()));
        answer.data("part").await.unwrap();
        let mut reply = pending.await.unwrap();
        assert_eq!(reply.read(4).await.unwrap(), "part");
        answer.abort();
        let broken = reply.collect().await.unwrap_err();
        let reason = broken.h2_reason();
        assert_eq!(reason.is_some(), host.protocol == Protocol::Http2, "{broken}");
        assert_eq!(turn.exchange().response_over().await.response, Progress::Cut);
        envoy.finish().await;
    })
    .await;
}

#[tokio::test]
async fn upgraded_streams_carry_bytes_both_ways() {
    on_every_host(async |host| {
        let upstream = Upstream::manual().await;
        let config = Config::new().upstream(upstream.address()).upgrade("websocket");
        let envoy = host.launch().start(&config).await;
        let mut client = host.connect(&envoy).await;
        let (near, far) = tokio::join!(client.upgrade("/ws", "websocket"), async {
            upstream.accept().await.upgrade("websocket").await
        });
        let (mut near, mut far) = (near.unwrap(), far);
        let mut four = [0; 4];
        within("a round trip", async {
            near.write_all(b"ping").await.unwrap();
            far.read_exact(&mut four).await.unwrap();
            assert_eq!(&four, b"ping");
            far.write_all(b"pong").await.unwrap();
            near.read_exact(&mut four).await.unwrap();
            assert_eq!(&four, b"pong");
        })
        .await;
        let refused = host.connect(&envoy).await.upgrade("/ws", "other").await.unwrap_err();
        assert_eq!(refused.status.as_u16(), 403);
        envoy.finish().await;
    })
    .await;
}

#[tokio::test]
async fn raw_connections_reach_both_ends() {
    let upstream = RawUpstream::start().await;
    let envoy = Envoy::start(&Config::new().upstream(upstream.address())).await;

    let mut client = RawConn::connect(envoy.address()).await;
    client.write("POST /raw HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\n").await;
    client.write("content-length: 2\r\n\r\n").await;
    assert!(client.read_head().await.starts_with("HTTP/1.1 100 Continue"));
    client.write("ab").await;
    let mut server = upstream.accept().await;
    assert!(server.read_head().await.starts_with("POST /raw HTTP/1.1\r\n"));
    assert_eq!(server.read_exactly(2).await, b"ab");
    server.write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nc").await;
    assert!(client.read_head().await.starts_with("HTTP/1.1 200 OK\r\n"));
    assert_eq!(client.read_exactly(1).await, b"c");
    server.reset();
    assert_eq!(client.read_to_end().await, b"");

    let mut client = RawConn::connect(envoy.address()).await;
    client.write("nonsense\r\n\r\n").await;
    let answer = String::from_utf8(client.read_to_end().await).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 Bad Request"), "{answer}");
    envoy.finish().await;
}

#[tokio::test]
async fn slow_readers_hold_senders_up() {
    on_every_host(async |host| {
        let upstream = Upstream::manual().await;
        let config = Config::new().upstream_http2(upstream.address()).buffer_limit(32 * 1024);
        let envoy = host.launch().start(&config).await;
        let mut client = host.client(&envoy).window(64 * 1024).connect().await;
        let pending = client.start(Call::get("/")).await;
        let mut turn = upstream.accept().await;
        let mut answer = turn.stream(Response::new(()));
        let total = 16 << 20;
        let sent = tokio::spawn(async move {
            for _ in 0..total / 65_536 {
                answer.data(vec![7; 65_536]).await.unwrap();
            }
            answer.finish().await.unwrap();
        });
        let reply = pending.await.unwrap();
        assert!(!sent.is_finished(), "nothing held the sender up");
        let whole = reply.collect().await.unwrap();
        assert_eq!(whole.body.len(), total);
        within("the sender", sent).await.unwrap();
        envoy.finish().await;
    })
    .await;
}

#[tokio::test]
async fn bad_configs_are_refused() {
    for version in Version::all() {
        let good = Config::new().route(Route::prefix("/").direct(200, "ok"));
        let bad = good.clone().filter(json!({"name": "no-such-filter", "typed_config": {}}));
        let launch = version.launch();
        let validation = launch.validate(&good).await;
        assert!(validation.is_ok(), "{}", validation.output);
        let validation = launch.validate(&bad).await;
        assert!(!validation.is_ok());
        assert_eq!(validation.status.code(), Some(1), "{}", validation.output);
        assert!(validation.output.contains("no-such-filter"), "{}", validation.output);
        let refusal = launch.try_start(&bad).await.unwrap_err();
        assert_eq!(refusal.status.code(), Some(1));
        assert!(refusal.output.contains("no-such-filter"), "{}", refusal.output);
    }
}

#[tokio::test]
async fn listeners_can_be_changed_while_envoy_runs() {
    for version in Version::all() {
        let config =
            |body: &str| Config::new().watched().route(Route::prefix("/").direct(200, body));
        let envoy = version.launch().start(&config("old")).await;
        let mut client = envoy.connect(Protocol::Http1).await;
        assert_eq!(client.fetch(Call::get("/")).await.text(), "old");

        let bad = config("new").filter(json!({"name": "no-such-filter", "typed_config": {}}));
        assert_eq!(envoy.update(&bad).await, Update::Rejected);
        envoy.wait_for_log(&["no-such-filter"]).await;
        assert_eq!(client.fetch(Call::get("/")).await.text(), "old");

        assert_eq!(envoy.update(&config("new")).await, Update::Accepted);
        let mut client = envoy.connect(Protocol::Http1).await;
        assert_eq!(client.fetch(Call::get("/")).await.text(), "new");
        envoy.finish().await;
    }
}

#[tokio::test]
async fn a_crash_fails_the_test() {
    let config = Config::new().route(Route::prefix("/").direct(200, "ok"));
    let launch: Launch = Version::newest().launch();
    for signal in [Signal::ABORT, Signal::KILL] {
        let envoy = launch.start(&config).await;
        kill_process(Pid::from_raw(envoy.pid().cast_signed()).unwrap(), signal).unwrap();
        let ended = tokio::spawn(envoy.finish());
        let panic = ended.await.unwrap_err().into_panic();
        let message = panic.downcast_ref::<String>().unwrap();
        assert!(message.contains("signal"), "{message}");
    }
}

#[tokio::test]
async fn bodies_can_be_anything() {
    let upstream = Upstream::fixed(200, "").await;
    let envoy = Envoy::start(&Config::new().upstream(upstream.address())).await;
    let mut client = envoy.connect(Protocol::Http2).await;
    let body = OutBody::frames(vec![vec![1_u8; 3]; 5], header_map([("a", "b"); 0]));
    assert_eq!(client.fetch(Call::post("/").body(body)).await.status.as_u16(), 200);
    assert_eq!(upstream.seen(0).await.body, [1_u8; 15][..]);
    assert_eq!(upstream.count(), 1);
    envoy.finish().await;
}

#[tokio::test]
async fn examples_run_on_free_ports() {
    const EXAMPLE: &str = r#"
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 9901}}}
static_resources:
  listeners:
    - address: {socket_address: {address: 127.0.0.1, port_value: 10000}}
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
                stat_prefix: ingress
                route_config:
                  virtual_hosts:
                    - name: all
                      domains: ["*"]
                      routes: [{match: {prefix: /}, route: {cluster: upstream}}]
                http_filters:
                  - name: envoy.filters.http.router
                    typed_config:
                      "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
  clusters:
    - name: upstream
      load_assignment:
        cluster_name: upstream
        endpoints:
          - lb_endpoints:
              - endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 10001}}}
"#;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), EXAMPLE).unwrap();
    let upstream = Upstream::fixed(200, "from the upstream").await;
    let config = Config::example(file.path()).upstream(upstream.address());
    let envoy = Envoy::start(&config).await;
    let mut client = envoy.connect(Protocol::Http1).await;
    assert_eq!(client.fetch(Call::get("/")).await.text(), "from the upstream");
    envoy.finish().await;
}
