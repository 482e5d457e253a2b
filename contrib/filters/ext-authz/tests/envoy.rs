//! `ext-authz` in real Envoys, with the config that users paste.

use attache_e2e::{
    Call, Client, Cluster, Config, Modules, OutBody, Upstream, on_every_host, response,
};

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/envoy.yaml");

/// Lets those pass who say that they are alice or bob.
async fn service() -> Upstream {
    Upstream::start(async |request| {
        let name = request.headers().get("authorization").and_then(|value| value.to_str().ok());
        let mut answer = match name {
            Some(name @ ("alice" | "bob")) => {
                let mut answer = response(200, OutBody::empty())?;
                answer.headers_mut().insert("x-user", name.parse()?);
                answer
            }
            _ => response(401, "who are you?")?,
        };
        answer.headers_mut().insert("www-authenticate", "Basic".parse()?);
        Ok(answer)
    })
    .await
}

#[tokio::test]
async fn the_example_asks_and_remembers_and_fails_closed() {
    let modules = Modules::new().package("attache-filter-ext-authz");
    on_every_host(async |host| {
        let upstream = Upstream::fixed(200, "ok").await;
        let service = service().await;
        let config = Config::example(EXAMPLE)
            .upstream(upstream.address())
            .cluster(Cluster::new("authz", service.address()));
        let envoy = host.launch().modules(&modules).start(&config).await;
        let mut client: Client = host.connect(&envoy).await;

        let reply = client.fetch(Call::get("/")).await;
        assert_eq!((reply.status.as_u16(), reply.text()), (401, "who are you?"));
        assert_eq!(reply.header("www-authenticate"), Some("Basic"));
        assert_eq!(upstream.count(), 0, "a refused request reached the upstream");

        let call = || Call::post("/a?b").header("authorization", "alice").header("x-user", "root");
        for _ in 0..3 {
            assert_eq!(client.fetch(call().body("a body")).await.text(), "ok");
        }
        let seen = upstream.seen(2).await;
        let users: Vec<_> = seen.headers.get_all("x-user").iter().collect();
        assert_eq!(users, ["alice"]);
        assert_eq!(seen.text(), "a body");
        assert_eq!(service.count(), 2, "an equal question was asked again");
        let asked = service.seen(1).await;
        assert_eq!((asked.path(), asked.header("authorization")), ("/check/a?b", Some("alice")));

        // The service goes: what is known stays, nobody else gets through.
        drop(service);
        let bob = Call::get("/").header("authorization", "bob");
        assert_eq!(client.fetch(bob).await.status.as_u16(), 403);
        assert_eq!(client.fetch(Call::get("/public")).await.text(), "ok");
        let prometheus = envoy.prometheus().await;
        for (result, count) in
            [("denied", 1), ("allowed", 1), ("allowed_cached", 2), ("failed", 1), ("skipped", 1)]
        {
            let label = format!("result=\"{result}\"");
            let line = prometheus.lines().find(|line| line.contains(&label)).unwrap_or_default();
            assert!(line.ends_with(&format!(" {count}")), "{result}: {line}");
        }
        envoy.finish().await;
    })
    .await;
}
