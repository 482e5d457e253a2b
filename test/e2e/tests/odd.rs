//! What is allowed on the wire and seldom seen: bytes that are no text, answers before the answer,
//! tunnels. The filter is `chaos`, which also reads what is odd.

use attache_e2e::{Config, ModuleFilter, Modules, RawConn, RawUpstream, Route, Version};
use serde_json::json;

/// What the filter does: nothing, or something with each part of both messages.
const LETTERS: [&str; 6] = ["|", "yhT|yhT", "tmh|tmh", "php|php", "ob|ob", "tl|tl"];

fn modules() -> Modules {
    Modules::new().package("attache-e2e-filters")
}

fn config(upstream: &RawUpstream) -> Config {
    let config = json!({"header": "x-chaos"});
    Config::new()
        .filter(ModuleFilter::new("attache_e2e_filters", "chaos").config(config))
        .upstream(upstream.address())
        .route(Route::prefix("/").to("upstream"))
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// Reads a message head as it is.
async fn head(connection: &mut RawConn) -> Vec<u8> {
    let mut all = Vec::new();
    while !all.ends_with(b"\r\n\r\n") {
        all.extend(connection.read_exactly(1).await);
    }
    all
}

#[tokio::test]
async fn bytes_that_are_no_text_go_through_as_they_are() {
    let modules = modules();
    for version in Version::all() {
        let upstream = RawUpstream::start().await;
        let envoy = version.launch().modules(&modules).start(&config(&upstream)).await;
        for letters in LETTERS {
            let odd: [&[u8]; 6] = [
                b"x-latin: caf\xe9 \xff\xfe\r\n",
                "x-utf8: \u{2603}\r\n".as_bytes(),
                b"x-tab: a\tb\r\n",
                b"x-twice: 1\r\n",
                b"x-twice: 2\r\n",
                b"x!#$%&'*+-.^_`|~: name\r\n",
            ];
            let long = format!("x-long: {}\r\n", "l".repeat(50_000));
            let odd: Vec<u8> = [odd.concat(), long.into_bytes()].concat();
            let mut client = RawConn::connect(envoy.address()).await;
            let first = format!("POST /odd?q=%ff HTTP/1.1\r\nhost: t\r\nx-chaos: {letters}\r\n");
            let rest = b"content-length: 4\r\n\r\nbody";
            client.write([first.as_bytes(), &odd, rest].concat()).await;
            let mut served = upstream.accept().await;
            let seen = head(&mut served).await;
            for line in odd.split_inclusive(|byte| *byte == b'\n') {
                assert!(contains(&seen, line), "{letters}: {:?}", String::from_utf8_lossy(line));
            }
            let first = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 6\r\n";
            served.write([&first[..], &odd, b"\r\nanswer"].concat()).await;
            let seen = head(&mut client).await;
            for line in odd.split_inclusive(|byte| *byte == b'\n') {
                assert!(contains(&seen, line), "{letters}: {:?}", String::from_utf8_lossy(line));
            }
        }
        envoy.finish().await;
    }
}

/// Interim answers go by the filter, whatever that is at.
#[tokio::test]
async fn answers_before_the_answer_are_no_answer() {
    let modules = modules();
    for version in Version::all() {
        let upstream = RawUpstream::start().await;
        let config = config(&upstream).manager("proxy_100_continue", json!(true));
        let envoy = version.launch().modules(&modules).start(&config).await;
        for letters in LETTERS {
            for interim in ["100 Continue", "102 Processing", "103 Early Hints"] {
                let mut client = RawConn::connect(envoy.address()).await;
                let request = format!(
                    "POST / HTTP/1.1\r\nhost: t\r\nx-chaos: {letters}\r\nexpect: 100-continue\r\n\
                     content-length: 4\r\n\r\nbody"
                );
                client.write(request).await;
                let mut served = upstream.accept().await;
                served.read_until("body").await;
                served.write(format!("HTTP/1.1 {interim}\r\nx-hint: 1\r\n\r\n")).await;
                let answer =
                    "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 6\r\n\r\nanswer";
                served.write(answer).await;
                let mut head = client.read_head().await;
                while head.starts_with("HTTP/1.1 1") {
                    head = client.read_head().await;
                }
                assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{letters}: {head}");
                client.read_until("answer").await;
            }
        }
        envoy.finish().await;
    }
}

/// A message that is cut short is never taken for a whole one.
#[tokio::test]
async fn what_is_cut_short_does_not_look_whole() {
    let modules = modules();
    for version in Version::all() {
        let upstream = RawUpstream::start().await;
        let envoy = version.launch().modules(&modules).start(&config(&upstream)).await;
        for letters in LETTERS {
            for framing in
                ["content-length: 9\r\n\r\nsome", "transfer-encoding: chunked\r\n\r\n4\r\nsome\r\n"]
            {
                // The upstream's.
                let mut client = RawConn::connect(envoy.address()).await;
                client
                    .write(format!("GET / HTTP/1.1\r\nhost: t\r\nconnection: close\r\nx-chaos: {letters}\r\n\r\n"))
                    .await;
                let mut served = upstream.accept().await;
                served.read_head().await;
                served.write(format!("HTTP/1.1 200 OK\r\n{framing}")).await;
                drop(served);
                let got = String::from_utf8(client.read_to_end().await).expect("text");
                assert!(!got.ends_with("0\r\n\r\n"), "{letters}: {got}");
                if let Some((_, length)) = got.split_once("content-length: ") {
                    let (length, rest) = length.split_once("\r\n").expect("a line");
                    let length: usize = length.parse().expect("a number");
                    let body = rest.split_once("\r\n\r\n").map_or(rest, |(_, body)| body);
                    let answered = got.starts_with("HTTP/1.1 5");
                    assert!(answered || body.len() < length, "{letters}: {got}");
                }
                // The client's.
                let mut client = RawConn::connect(envoy.address()).await;
                client
                    .write(format!("POST / HTTP/1.1\r\nhost: t\r\nx-chaos: {letters}\r\n{framing}"))
                    .await;
                if letters.contains(['b', 'l']) {
                    // Nothing of it may get there.
                    drop(client);
                } else {
                    let mut served = upstream.accept().await;
                    served.read_until("some").await;
                    client.reset();
                    let rest = String::from_utf8(served.read_to_end().await).expect("text");
                    assert!(!rest.ends_with("0\r\n\r\n"), "{letters}: {rest}");
                }
            }
        }
        envoy.finish().await;
    }
}

/// A tunnel has no messages, but bytes that go through a filter all the same.
#[tokio::test]
async fn a_tunnel_by_connect() {
    let modules = modules();
    for version in Version::all() {
        let upstream = RawUpstream::start().await;
        let connect = json!([{"upgrade_type": "CONNECT", "connect_config": {}}]);
        let config = Config::new()
            .filter(
                ModuleFilter::new("attache_e2e_filters", "chaos")
                    .config(json!({"header": "x-chaos"})),
            )
            .upstream(upstream.address())
            .manager("upgrade_configs", json!([{"upgrade_type": "CONNECT"}]))
            .route(Route::prefix("/").to("upstream").patch(|route| {
                route["match"] = json!({"connect_matcher": {}});
                route["route"]["upgrade_configs"] = connect.clone();
            }));
        let envoy = version.launch().modules(&modules).start(&config).await;
        for letters in ["|", "yhT|yhT", "tmh|tmh", "php|php", "Zz|"] {
            let mut client = RawConn::connect(envoy.address()).await;
            client
                .write(format!("CONNECT t:1 HTTP/1.1\r\nhost: t:1\r\nx-chaos: {letters}\r\n\r\n"))
                .await;
            if letters.starts_with('Z') {
                // It cannot start again: it never ends.
                continue;
            }
            let mut served = upstream.accept().await;
            let head = client.read_head().await;
            assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{letters}: {head}");
            for header in ["content-length", "transfer-encoding"] {
                assert!(!head.contains(header), "{letters}: {head}");
            }
            for (to, back) in [("hello", "world"), ("once", "more")] {
                client.write(to).await;
                assert_eq!(served.read_exactly(to.len()).await, to.as_bytes(), "{letters}");
                served.write(back).await;
                assert_eq!(client.read_exactly(back.len()).await, back.as_bytes(), "{letters}");
            }
            drop(client);
            assert_eq!(served.read_to_end().await, b"", "{letters}");
        }
        envoy.finish().await;
    }
}
