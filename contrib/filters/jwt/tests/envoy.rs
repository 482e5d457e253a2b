//! `jwt` in real Envoys, with the config that users paste.

mod issuer;

use std::sync::{Arc, Mutex};

use attache_e2e::{Call, Cluster, Config, Modules, Upstream, eventually, on_every_host, response};
use issuer::{claims, claims_with, ed, jwks, now, rsa};
use serde_json::json;

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/envoy.yaml");

#[tokio::test]
async fn the_example_lets_only_valid_tokens_through_and_follows_the_issuer_s_keys() {
    let modules = Modules::new().package("attache-filter-jwt");
    on_every_host(async |host| {
        let (old, new) = (rsa("old"), ed("new"));
        let keys = Arc::new(Mutex::new(jwks(&[old.jwk()])));
        let served = keys.clone();
        let issuer = Upstream::start(move |_| {
            let keys = served.lock().unwrap().clone();
            async move { response(200, keys) }
        })
        .await;
        let upstream = Upstream::fixed(200, "ok").await;
        let config = Config::example(EXAMPLE)
            .upstream(upstream.address())
            .cluster(Cluster::new("issuer", issuer.address()));
        let envoy = host.launch().modules(&modules).start(&config).await;
        let mut client = host.connect(&envoy).await;
        let call = |token: &str| Call::get("/").header("authorization", format!("Bearer {token}"));

        assert_eq!(client.fetch(Call::get("/")).await.status.as_u16(), 401);
        let expired = old.sign(&claims_with(json!({"exp": now() - 120})));
        let reply = client.fetch(call(&expired)).await;
        assert_eq!(reply.status.as_u16(), 401);
        let challenge = r#"Bearer realm="example", error="invalid_token""#;
        assert_eq!(reply.header("www-authenticate"), Some(challenge));
        assert_eq!(upstream.count(), 0, "a refused request reached the upstream");

        let good = call(&old.sign(&claims())).header("x-user", "root");
        assert_eq!(client.fetch(good).await.text(), "ok");
        let seen = upstream.seen(0).await;
        let users: Vec<_> = seen.headers.get_all("x-user").iter().collect();
        assert_eq!(users, ["alice"]);
        assert_eq!(issuer.seen(0).await.path(), "/.well-known/jwks.json");

        // The issuer changes its key; the example fetches at most once a second.
        assert_eq!(client.fetch(call(&new.sign(&claims()))).await.status.as_u16(), 401);
        *keys.lock().unwrap() = jwks(&[new.jwk()]);
        eventually("the new key", async || {
            client.fetch(call(&new.sign(&claims()))).await.status.as_u16() == 200
        })
        .await;
        assert_eq!(client.fetch(call(&old.sign(&claims()))).await.status.as_u16(), 401);
        assert_eq!(client.fetch(Call::get("/public")).await.text(), "ok");
        envoy.finish().await;
    })
    .await;
}
