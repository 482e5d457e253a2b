//! `redact` in real Envoys, with the config that users paste.

use attache_e2e::{Call, Config, Modules, OutBody, Upstream, header_map, on_every_host};
use http::Response;

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/envoy.yaml");

#[tokio::test]
async fn the_example_redacts_both_ways_across_borders() {
    let modules = Modules::new().package("attache-filter-redact");
    on_every_host(async |host| {
        let upstream = Upstream::manual().await;
        let config = Config::example(EXAMPLE).upstream(upstream.address());
        let envoy = host.launch().modules(&modules).start(&config).await;
        let mut client = host.connect(&envoy).await;

        let call = Call::post("/")
            .header("content-type", "text/plain; charset=utf-8")
            .header("accept-encoding", "gzip")
            .header("range", "bytes=3-9");
        let (mut request, call) = call.stream();
        let pending = client.start(call).await;
        let mut turn = upstream.accept().await;
        request.data("it is hunt").await.unwrap();
        assert_eq!(turn.read(6).await, "it is ");
        request.data("er2, or sk-live-0123456789").await.unwrap();
        request.data(" or hunter").await.unwrap();
        request.finish().await.unwrap();
        let seen = turn.read_to_end().await;
        assert_eq!(seen.text(), "it is [redacted], or [redacted] or hunter");
        assert_eq!(seen.header("accept-encoding"), Some("identity"));
        assert_eq!(seen.header("range"), None);

        let head = Response::builder().header("content-type", "application/json");
        let mut answer = turn.stream(head.body(()).unwrap());
        answer.data(r#"{"password": "hun"#).await.unwrap();
        let mut reply = pending.await.unwrap();
        assert_eq!(reply.read(14).await.unwrap(), r#"{"password": ""#);
        answer.data(r#"ter2"}"#).await.unwrap();
        answer.finish().await.unwrap();
        assert_eq!(reply.collect().await.unwrap().text(), r#"[redacted]"}"#);

        let prometheus = envoy.prometheus().await;
        for (direction, count) in [("request", 2), ("response", 1)] {
            let label = format!("direction=\"{direction}\"");
            let line = prometheus.lines().find(|line| line.contains(&label)).unwrap_or_default();
            assert!(line.contains("redact_replaced"), "{line}");
            assert!(line.ends_with(&format!(" {count}")), "{line}");
        }
        envoy.finish().await;
    })
    .await;
}

#[tokio::test]
async fn a_long_body_is_redacted_in_its_stream() {
    let modules = Modules::new().package("attache-filter-redact");
    on_every_host(async |host| {
        let upstream = Upstream::echo().await;
        let config = Config::example(EXAMPLE).upstream(upstream.address());
        let envoy = host.launch().modules(&modules).start(&config).await;
        let mut client = host.connect(&envoy).await;

        // 4 MiB, in chunks whose length has nothing to do with that of the text.
        let text = "some words, then hunter2; ".repeat((4 << 20) / 26);
        let chunks = text.as_bytes().chunks(10_007).map(<[u8]>::to_vec);
        let call = Call::post("/").header("content-type", "text/plain");
        let reply =
            client.fetch(call.body(OutBody::frames(chunks, header_map([("", ""); 0])))).await;
        let expected = text.replace("hunter2", "[redacted]");
        assert_eq!(upstream.seen(0).await.body.len(), expected.len());
        assert!(upstream.seen(0).await.body == expected.as_bytes(), "the upstream saw a secret");
        assert!(reply.body == expected.as_bytes(), "the client got something else");

        // Known in its length, which changes. On another connection: an answer that begins before
        // its request has ended is, in HTTP/1.1, the last on its own, by Envoy's own rule.
        let mut client = host.connect(&envoy).await;
        let call = Call::post("/").header("content-type", "text/plain").body("a hunter2 b");
        assert_eq!(client.fetch(call).await.text(), "a [redacted] b");
        assert_eq!(upstream.seen(1).await.header("content-length"), None);
        envoy.finish().await;
    })
    .await;
}

#[tokio::test]
async fn other_types_pass_and_encoded_bodies_are_refused() {
    let modules = Modules::new().package("attache-filter-redact");
    on_every_host(async |host| {
        let upstream = Upstream::start(async |request| {
            let head = Response::builder().header("content-type", "text/plain");
            let head = match request.uri().path() {
                "/encoded" => head.header("content-encoding", "gzip"),
                "/image" => Response::builder().header("content-type", "image/png"),
                _ => head,
            };
            Ok(head.body(OutBody::from("hunter2"))?)
        })
        .await;
        let config = Config::example(EXAMPLE).upstream(upstream.address());
        let envoy = host.launch().modules(&modules).start(&config).await;
        let mut client = host.connect(&envoy).await;

        let reply = client.fetch(Call::get("/image")).await;
        assert_eq!((reply.status.as_u16(), reply.text()), (200, "hunter2"));
        let reply = client.fetch(Call::get("/encoded")).await;
        assert_eq!((reply.status.as_u16(), reply.text()), (502, "Bad Gateway"));
        let call = Call::post("/").header("content-type", "text/plain").body("hunter2");
        let reply = client.fetch(call.header("content-encoding", "gzip")).await;
        assert_eq!(reply.status.as_u16(), 415);
        assert_eq!(upstream.count(), 2);
        let mut client = host.connect(&envoy).await;
        let reply = client.fetch(Call::get("/")).await;
        assert_eq!((reply.status.as_u16(), reply.text()), (200, "[redacted]"));
        envoy.finish().await;
    })
    .await;
}
