//! `echo` in real Envoys, with the config that users paste.

use attache_e2e::{Call, Config, Modules, Protocol, Upstream, header_map, on_every_host};

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/envoy.yaml");

#[tokio::test]
async fn the_example_echoes_one_path() {
    let modules = Modules::new().package("attache-filter-echo");
    on_every_host(async |host| {
        let upstream = Upstream::fixed(200, "from the upstream").await;
        let config = Config::example(EXAMPLE).upstream(upstream.address());
        let envoy = host.launch().modules(&modules).start(&config).await;
        // A connection each: an answer that begins before its request has ended is, in HTTP/1.1, the
        // last on its connection, by Envoy's own rule.
        let fetch = async |call| host.connect(&envoy).await.fetch(call).await;

        let call = Call::post("/echo?loud=1")
            .header("content-type", "text/plain")
            .header("x-twice", "1")
            .header("x-twice", "2");
        let reply = fetch(call.body("hello, hello")).await;
        assert_eq!((reply.status.as_u16(), reply.text()), (200, "hello, hello"));
        assert_eq!(reply.header("content-type"), Some("text/plain"));
        assert_eq!(reply.header("x-echo-method"), Some("POST"));
        assert_eq!(reply.header("x-echo-path"), Some("/echo?loud=1"));
        assert_eq!(reply.header("x-echo-content-length"), Some("12"));
        let twice: Vec<_> = reply.headers.get_all("x-echo-x-twice").iter().collect();
        assert_eq!(twice, ["1", "2"]);

        let reply = fetch(Call::post("/echo")).await;
        assert_eq!((reply.status.as_u16(), reply.text()), (200, ""));

        let reply = fetch(Call::get("/echo")).await;
        assert_eq!((reply.status.as_u16(), reply.header("allow")), (405, Some("POST")));
        assert_eq!(upstream.count(), 0);

        let reply = fetch(Call::post("/echoes").body("x")).await;
        assert_eq!((reply.status.as_u16(), reply.text()), (200, "from the upstream"));
        envoy.finish().await;
    })
    .await;
}

#[tokio::test]
async fn the_body_comes_back_while_it_still_goes_out() {
    let modules = Modules::new().package("attache-filter-echo");
    on_every_host(async |host| {
        let config = Config::example(EXAMPLE);
        let envoy = host.launch().modules(&modules).start(&config).await;
        let mut client = host.connect(&envoy).await;

        let (mut request, call) = Call::post("/echo").stream();
        let pending = client.start(call).await;
        request.data("one").await.unwrap();
        let mut reply = pending.await.unwrap();
        assert_eq!(reply.read(3).await.unwrap(), "one");
        request.data("two").await.unwrap();
        assert_eq!(reply.read(3).await.unwrap(), "two");
        request.data("three").await.unwrap();
        // Envoy lets HTTP/1.1 trailers go unless it is told otherwise, and the example is not.
        if host.protocol == Protocol::Http2 {
            request.trailers(header_map([("x-end", "now")])).await.unwrap();
        } else {
            request.finish().await.unwrap();
        }
        let rest = reply.collect().await.unwrap();
        assert_eq!(rest.text(), "three");
        let wanted = (host.protocol == Protocol::Http2).then_some("now");
        assert_eq!(rest.trailer("x-end"), wanted);

        let body = vec![b'x'; 4 << 20];
        let mut client = host.connect(&envoy).await;
        let reply = client.fetch(Call::post("/echo").body(body.clone())).await;
        assert!(reply.body == body, "{} of {} bytes came back", reply.body.len(), body.len());
        envoy.finish().await;
    })
    .await;
}
