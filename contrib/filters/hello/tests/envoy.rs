//! `hello` in real Envoys, with the config that users paste.

use attache_e2e::{Call, Config, Modules, Upstream, on_every_host};

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/envoy.yaml");

#[tokio::test]
async fn the_example_greets() {
    let modules = Modules::new().package("attache-filter-hello");
    on_every_host(async |host| {
        let upstream = Upstream::echo().await;
        let config = Config::example(EXAMPLE).upstream(upstream.address());
        let envoy = host.launch().modules(&modules).start(&config).await;

        let mut client = host.connect(&envoy).await;
        let reply = client.fetch(Call::post("/a?b=c").chunks(["go", "od"])).await;
        assert_eq!((reply.status.as_u16(), reply.text()), (200, "good"));
        assert_eq!(reply.header("x-hello"), Some("hi"));
        assert_eq!(upstream.seen(0).await.path(), "/a?b=c");

        envoy.finish().await;
    })
    .await;
}
