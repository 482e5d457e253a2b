//! Bodies of 64 MiB, made, changed and passed on by a filter: they arrive whole and in order, and Envoy
//! does not grow by them unless the filter does. The filter is `bulk` in `test/e2e/filters`.

use attache_e2e::{
    Call, Config, Envoy, Host, ModuleFilter, Modules, Reply, Upstream, on_every_host,
};
use bytes::Bytes;
use serde_json::json;

const LEN: usize = 64 << 20;

/// What the filter makes, too.
fn body() -> Bytes {
    let piece: Vec<u8> = (0..=250).cycle().take(64 << 10).collect();
    piece.repeat(LEN / piece.len()).into()
}

async fn start(host: &Host, upstream: &Upstream) -> Envoy {
    let modules = Modules::new().package("attache-e2e-filters");
    // Nothing here is about how long a poll takes.
    let slow = json!({"attache": {"slow_poll_ms": 60_000}});
    let filter = ModuleFilter::new("attache_e2e_filters", "bulk").config(slow);
    let config = Config::new().upstream(upstream.address()).buffer_limit(1 << 20).filter(filter);
    host.launch().modules(&modules).start(&config).await
}

/// Reads the whole of a body, and compares it.
async fn read(reply: &mut Reply, body: &[u8]) {
    let mut left = body;
    while !left.is_empty() {
        let at = body.len() - left.len();
        let chunk = reply.chunk().await.unwrap_or_else(|broken| panic!("{broken}, at {at}"));
        let chunk = chunk.unwrap_or_else(|| panic!("it ended at {at}"));
        assert!(left.starts_with(&chunk), "other bytes than were sent, from {at} on");
        left = &left[chunk.len()..];
    }
}

async fn ended(reply: Reply) {
    let rest = reply.collect().await.unwrap_or_else(|broken| panic!("no end: {broken}"));
    assert_eq!(rest.body, "", "more bytes than were sent");
}

#[tokio::test]
async fn bodies_on_their_way_take_no_memory() {
    let body = body();
    on_every_host(async |host| {
        let upstream = Upstream::echo().await;
        let envoy = start(&host, &upstream).await;
        for path in ["/mapped", "/piped", "/echo", "/streamed"] {
            envoy.forget_peak();
            let before = envoy.resident_bytes();
            let mut client = host.connect(&envoy).await;
            let call = Call::post(path).body(body.clone());
            let mut reply = client.send(call).await.expect("a response");
            read(&mut reply, &body).await;
            ended(reply).await;
            let grown = envoy.peak_resident_bytes() - before;
            assert!(grown < LEN as u64 / 2, "{path}: Envoy has grown by {} MiB", grown >> 20);
        }
        envoy.finish().await;
    })
    .await;
}

#[tokio::test]
async fn a_long_reply_reaches_a_client_that_still_sends() {
    let body = body();
    on_every_host(async |host| {
        let upstream = Upstream::echo().await;
        let envoy = start(&host, &upstream).await;
        for path in ["/whole", "/streamed"] {
            let mut client = host.connect(&envoy).await;
            let (mut request, call) = Call::post(path).stream();
            let pending = client.start(call).await;
            request.data("the beginning").await.expect("a connection");
            let mut reply = pending.await.expect("a response");
            read(&mut reply, &body).await;
            // An answer that is complete closes a connection of HTTP/1.1, whatever is on its way.
            let _ = request.finish().await;
            ended(reply).await;
        }
        // The headers are those of a reply that goes at once.
        let mut client = host.connect(&envoy).await;
        let mut headers = Vec::new();
        for call in [Call::get("/whole"), Call::post("/whole").body("x")] {
            let reply = client.fetch(call).await;
            assert!(reply.body == body);
            let mut all = reply.headers;
            all.remove("date");
            all.remove("connection");
            headers.push(all);
        }
        assert_eq!(headers[0], headers[1]);
        assert_eq!(upstream.count(), 0);
        envoy.finish().await;
    })
    .await;
}
