//! What is around the messages, in a real Envoy: what the conformance scenarios cannot show, because it
//! needs TLS, several upstreams, several modules or addresses that only the test knows. The filter is
//! that of the scenarios, which asks what a script in a request header says.

use attache_e2e::{
    Call, Client, Cluster, Collected, Config, Envoy, ModuleFilter, Modules, Protocol, Route,
    Upstream, Version, envoy_filter, on_every_host, typed,
};
use serde_json::{Value, json};

const MODULE: &str = "attache_conformance";
const KEY: &str = include_str!("tls/key.pem");
const CERT: &str = include_str!("tls/cert.pem");
/// SHA-256 of the certificate, as Envoy writes it.
const DIGEST: &str = "20fc47ff1b809e73be0519f153798faf";

fn modules() -> Modules {
    Modules::new().package("attache-conformance-filters")
}

fn filter(script_header: &str) -> ModuleFilter {
    ModuleFilter::new(MODULE, "conformance")
        .instance(script_header)
        .config(json!({"script_header": script_header}))
}

/// The steps: questions, the request going on, questions.
fn script(before: &[Value], after: &[Value]) -> String {
    let ask = |question: &Value| json!({"ask": question});
    let mut steps: Vec<Value> = before.iter().map(ask).collect();
    steps.push(json!("run"));
    steps.extend(after.iter().map(ask));
    json!({"steps": steps}).to_string()
}

fn saw(reply: &Collected) -> Vec<&str> {
    let saw = reply.headers.get_all("x-saw").iter();
    saw.map(|value| value.to_str().expect("text")).collect()
}

async fn get(envoy: &Envoy, script: String) -> Collected {
    let mut client = envoy.connect(Protocol::Http1).await;
    client.fetch(Call::get("/").header("x-script", script)).await
}

#[tokio::test]
async fn addresses_protocol_and_ids_are_those_of_the_connections() {
    let modules = modules();
    on_every_host(async |host| {
        let upstream = Upstream::echo().await;
        let config = Config::new().upstream(upstream.address()).filter(filter("x-script"));
        let envoy = host.launch().modules(&modules).start(&config).await;
        let before = [
            json!(["protocol"]),
            json!(["remote"]),
            json!(["attribute", "source.port"]),
            json!(["local"]),
            json!(["attribute", "destination.port"]),
            json!(["attribute", "connection.id"]),
            json!(["upstream"]),
            json!(["upstream_connection"]),
            json!(["request_id"]),
            json!(["direct_remote"]),
        ];
        let after = [
            json!(["upstream"]),
            json!(["attribute", "upstream.port"]),
            json!(["upstream_local"]),
            json!(["upstream_connection"]),
            json!(["upstream_remote"]),
            json!(["all"]),
        ];
        let mut client = host.connect(&envoy).await;
        let call = Call::get("/").header("x-script", script(&before, &after));
        let reply = client.fetch(call).await;
        let saw = saw(&reply);
        assert_eq!(
            saw[0],
            if client.protocol() == Protocol::Http1 { "HTTP/1.1" } else { "HTTP/2" }
        );
        let remote: std::net::SocketAddr = saw[1].parse().expect("an address");
        assert!(remote.ip().is_loopback());
        assert_eq!(saw[2], remote.port().to_string());
        assert_eq!(saw[3], envoy.address().to_string());
        assert_eq!(saw[4], envoy.address().port().to_string());
        assert!(saw[5].parse::<u64>().is_ok(), "{saw:?}");
        assert_eq!(saw[6..8], ["none", "none"]);
        assert_eq!(saw[8].len(), 36, "{saw:?}");
        assert_eq!(saw[8], upstream.seen(0).await.header("x-request-id").expect("an id"));
        assert_eq!(saw[10], upstream.address().to_string());
        assert_eq!(saw[11], upstream.address().port().to_string());
        assert!(saw[12].starts_with("127.0.0.1:"), "{saw:?}");
        assert!(saw[13].parse::<u64>().is_ok(), "{saw:?}");
        if host.version.tells_as_1_40() {
            assert_eq!((saw[9], saw[14]), (saw[1], saw[10]));
        } else {
            assert_eq!((saw[9], saw[14]), ("Unsupported", "Unsupported"));
        }
        // The whole list can be asked for, and nothing but these three answers comes of it.
        let all: Vec<u32> =
            saw[15].split(", ").map(|n| n.split(' ').next().unwrap().parse().unwrap()).collect();
        assert_eq!(all.iter().sum::<u32>(), 68, "{saw:?}");
        assert!(all[0] >= 20, "{saw:?}");
        assert_eq!(all[2] == 0, host.version.is_compiled_in(), "{saw:?}");
        envoy.finish().await;
    })
    .await;
}

/// A front that speaks TLS to a back in the same Envoy; the filter is in both, and each side presents
/// the same certificate.
///
/// Stock Envoy knows the name that was asked for where a TLS inspector has looked.
fn over_tls(upstream: std::net::SocketAddr, back: std::net::SocketAddr, inspected: bool) -> Config {
    let secret = json!({"certificate_chain": {"inline_string": CERT},
                        "private_key": {"inline_string": KEY}});
    let common = json!({
        "tls_certificates": [secret],
        "validation_context": {"trusted_ca": {"inline_string": CERT}},
    });
    let to = typed(
        "transport_sockets.tls.v3.UpstreamTlsContext",
        json!({"common_tls_context": common, "sni": "asked.example"}),
    );
    let from = typed(
        "transport_sockets.tls.v3.DownstreamTlsContext",
        json!({"common_tls_context": common, "require_client_certificate": true}),
    );
    let socket =
        |context: &Value| json!({"name": "envoy.transport_sockets.tls", "typed_config": context});
    let (to, from) = (socket(&to), socket(&from));
    Config::new()
        .filter(filter("x-script"))
        .route(Route::prefix("/").to("back"))
        .cluster(Cluster::new("back", back))
        .cluster(Cluster::new("end", upstream))
        .patch(move |bootstrap| {
            let resources = &mut bootstrap["static_resources"];
            resources["clusters"][0]["transport_socket"] = to.clone();
            let mut listener = resources["listeners"][0].clone();
            listener["name"] = json!("back");
            if inspected {
                let config = typed("filters.listener.tls_inspector.v3.TlsInspector", json!({}));
                listener["listener_filters"] = json!([{
                    "name": "envoy.filters.listener.tls_inspector", "typed_config": config,
                }]);
            }
            listener["address"]["socket_address"]["port_value"] = json!(back.port());
            let chain = &mut listener["filter_chains"][0];
            chain["transport_socket"] = from.clone();
            let manager = &mut chain["filters"][0]["typed_config"];
            manager["route_config"]["virtual_hosts"][0]["routes"][0]["route"]["cluster"] =
                json!("end");
            manager["http_filters"][0] = filter("x-script-back").into();
            resources["listeners"].as_array_mut().expect("a list").push(listener);
        })
}

#[tokio::test]
async fn tls_of_both_connections_is_told() {
    let modules = modules();
    for version in Version::all() {
        let upstream = Upstream::echo().await;
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let back = free.local_addr().expect("an address");
        drop(free);
        let compiled_in = version.is_compiled_in();
        let config = over_tls(upstream.address(), back, !compiled_in);
        let envoy = version.launch().modules(&modules).start(&config).await;
        let questions = |of: &str| -> Vec<Value> {
            [
                "version",
                "presented",
                "sni",
                "subject",
                "digest",
                "dns_sans",
                "uri_sans",
                "local_subject",
                "local_dns_sans",
                "cipher",
                "validated",
                "issuer",
                "serial",
                "expires",
                "pem",
            ]
            .iter()
            .map(|what| json!([of, what]))
            .collect()
        };
        let call = Call::get("/")
            .header("x-script", script(&questions("tls"), &questions("upstream_tls")))
            .header("x-script-back", script(&questions("tls"), &questions("upstream_tls")));
        let reply = envoy.connect(Protocol::Http1).await.fetch(call).await;
        let saw = saw(&reply);
        assert_eq!(saw.len(), 60, "{saw:?}");
        let (back, front) = saw.split_at(30);
        let mut plain = ["none"; 15];
        let mut plain_upstream = plain;
        if !compiled_in {
            plain[9..].fill("Unsupported");
            plain_upstream = plain;
            plain_upstream[1..3].fill("Unsupported");
        }
        let certificate = |tls: &[&str]| {
            assert_eq!(tls[3], "CN=attache test");
            assert_eq!(tls[4].len(), 64, "{tls:?}");
            assert!(tls[4].starts_with(&DIGEST[..16]), "{tls:?}");
            // Stock Envoy tells the first.
            let names = if compiled_in { "first.example,second.example" } else { "first.example" };
            assert_eq!(tls[5..9], [names, "spiffe://example/test", "CN=attache test", names]);
            if !compiled_in {
                assert_eq!(tls[9..15], ["Unsupported"; 6]);
                return;
            }
            assert!(tls[9].starts_with("ECDHE-"), "{tls:?}");
            // The certificate is its own issuer, and its own authority.
            assert_eq!(tls[10..12], ["true", "CN=attache test"]);
            assert!(tls[12].bytes().all(|digit| digit.is_ascii_hexdigit()), "{tls:?}");
            assert!(tls[13].parse::<u64>().is_ok(), "{tls:?}");
            // Lines are no part of a header's value.
            assert_eq!(tls[14].replace(' ', ""), CERT.replace([' ', '\n'], ""));
        };
        // The back: its client has a certificate, its upstream is plain.
        assert_eq!(back[..3], ["TLSv1.2", "true", "asked.example"]);
        certificate(&back[..15]);
        assert_eq!(back[15..], plain_upstream);
        // The front: the other way round.
        assert_eq!(front[..15], plain);
        let told = if compiled_in { ["true", "asked.example"] } else { ["Unsupported"; 2] };
        assert_eq!(front[15], "TLSv1.2");
        assert_eq!(front[16..18], told);
        certificate(&front[15..]);
        envoy.finish().await;
    }
}

#[tokio::test]
async fn the_upstream_host_that_is_chosen_gets_the_request() {
    let modules = modules();
    for version in Version::all() {
        let hosts = [Upstream::fixed(200, "first").await, Upstream::fixed(200, "second").await];
        let second = hosts[1].address().port();
        let config = Config::new().upstream(hosts[0].address()).filter(filter("x-script")).patch(
            move |bootstrap| {
                let cluster = &mut bootstrap["static_resources"]["clusters"][0];
                let endpoints = &mut cluster["load_assignment"]["endpoints"][0]["lb_endpoints"];
                let mut other = endpoints[0].clone();
                other["endpoint"]["address"]["socket_address"]["port_value"] = json!(second);
                endpoints.as_array_mut().expect("a list").push(other);
            },
        );
        let envoy = version.launch().modules(&modules).start(&config).await;
        for strict in [true, false] {
            for (host, name) in hosts.iter().zip(["first", "second"]).cycle().take(6) {
                let choose = json!(["override_host", host.address().to_string(), strict]);
                let reply = get(&envoy, script(&[choose], &[json!(["upstream"])])).await;
                assert_eq!(reply.text(), name);
                assert_eq!(saw(&reply), ["ok", &*host.address().to_string()]);
            }
        }
        envoy.finish().await;
    }
}

#[tokio::test]
async fn errors_say_what_was_wrong_and_what_it_takes() {
    let modules = modules();
    for version in Version::all() {
        let config =
            Config::new().filter(filter("x-script")).route(Route::prefix("/").direct(200, "ok"));
        let envoy = version.launch().modules(&modules).start(&config).await;
        let why = |question: Value| json!(["why", question]);
        let reply = get(
            &envoy,
            script(
                &[
                    why(json!(["attribute", "source.adress"])),
                    why(json!(["attribute", "request.size"])),
                    why(json!(["tls", "serial"])),
                    why(json!(["set_metadata", "attache", "key", 1])),
                    json!(["set_metadata", "com.example", "key", 1]),
                    why(json!(["metadata", "dynamic", "com.example", "key", "text"])),
                    why(json!(["override_host", "example.com", true])),
                    why(json!(["set_typed_state", "com.example.unknown", "x"])),
                    why(json!(["set_metadata", "com.example", "nested", {"a": 1}])),
                    why(json!(["set_state_for", "com.example.state", "x", "request", "none"])),
                ],
                &[],
            ),
        )
        .await;
        let saw = saw(&reply);
        let says = |index: usize, parts: &[&str]| {
            for part in parts {
                assert!(saw[index].contains(part), "{index}: {part:?} is not in {:?}", saw[index]);
            }
        };
        says(0, &["UnknownAttribute", "`source.adress`", "`source.address`"]);
        if version.tells_as_1_40() {
            assert_eq!(saw[1], "0");
        } else {
            says(1, &["Unsupported", "`request.size`", "needs Envoy 1.40"]);
        }
        if version.is_compiled_in() {
            assert_eq!(saw[2], "none");
        } else {
            says(2, &["Unsupported", "PeerSerial", "docs/hosts.md"]);
        }
        says(3, &["Refused", "`attache`", "com.example"]);
        says(5, &["WrongType", "`key`", "`com.example`", "Text"]);
        says(6, &["Refused", "`example.com`", "ip:port"]);
        says(7, &["Refused", "`com.example.unknown`"]);
        if version.tells_as_1_40() {
            assert_eq!(saw[8..], ["ok", "ok"]);
        } else {
            says(8, &["Unsupported", "struct", "needs Envoy 1.40"]);
            says(9, &["Unsupported", "needs Envoy 1.40"]);
        }
        envoy.finish().await;
    }
}

#[tokio::test]
async fn typed_filter_state_is_envoys_own_object() {
    let modules = modules();
    for version in Version::all() {
        let upstream = Upstream::echo().await;
        let config = Config::new().upstream(upstream.address()).filter(filter("x-script"));
        let envoy = version.launch().modules(&modules).start(&config).await;
        const KEY: &str = "envoy.network.upstream_server_name";
        let reply = get(
            &envoy,
            script(
                &[
                    json!(["set_typed_state", KEY, "name.example"]),
                    json!(["typed_state", KEY]),
                    // It is not a plain text.
                    json!(["state", KEY]),
                ],
                &[json!(["typed_state", KEY])],
            ),
        )
        .await;
        assert_eq!(saw(&reply), ["ok", "name.example", "none", "name.example"]);
        envoy.finish().await;
    }
}

#[tokio::test]
async fn an_object_lives_as_long_as_its_connection() {
    let modules = modules();
    on_every_host(async |host| {
        let config =
            Config::new().filter(filter("x-script")).route(Route::prefix("/").direct(200, "ok"));
        let envoy = host.launch().modules(&modules).start(&config).await;
        let ask = async |client: &mut Client, questions: &[Value]| {
            let reply =
                client.fetch(Call::get("/").header("x-script", script(questions, &[]))).await;
            saw(&reply).join(" ")
        };
        let mut client = host.connect(&envoy).await;
        let object = json!(["object", "of-connection"]);
        let set = json!(["set_object", "of-connection", "kept", "connection"]);
        assert_eq!(ask(&mut client, &[object.clone(), set.clone()]).await, "none ok");
        // Another exchange of the same connection finds it, and can replace it.
        assert_eq!(ask(&mut client, &[object.clone(), set, object.clone()]).await, "kept ok kept");
        // Another connection does not.
        let mut other = host.connect(&envoy).await;
        assert_eq!(ask(&mut other, &[object]).await, "none");
        envoy.finish().await;
    })
    .await;
}

#[tokio::test]
async fn filters_of_two_modules_share_metadata_but_not_values() {
    // The same module under another name is another module, with types of its own.
    let modules = modules();
    let library = modules.directory().join(format!("lib{MODULE}.so"));
    let library = std::fs::canonicalize(library).expect("the module is built");
    let copy = tempfile::tempdir().expect("a temporary directory");
    let path = copy.path().join("libother_module.so");
    std::fs::copy(&library, &path).expect("a copy of the module");
    let modules = modules.file("other_module", &path);
    // Compiled in, there is one list of filters.
    for version in Version::all().into_iter().filter(|version| !version.is_compiled_in()) {
        let config = Config::new()
            .filter(filter("x-script"))
            .filter(
                ModuleFilter::new("other_module", "conformance")
                    .instance("x-script-other")
                    .config(json!({"script_header": "x-script-other"})),
            )
            .filter(filter("x-script-third"))
            .route(Route::prefix("/").direct(200, "ok"));
        let envoy = version.launch().modules(&modules).start(&config).await;
        let looks = script(
            &[
                json!(["shared"]),
                json!(["object", "o"]),
                json!(["metadata", "dynamic", "com.example", "key", "text"]),
                json!(["state", "com.example.state"]),
            ],
            &[],
        );
        let leaves = script(
            &[
                json!(["share", "left"]),
                json!(["set_object", "o", "left", "filter_chain"]),
                json!(["set_metadata", "com.example", "key", "left"]),
                json!(["set_state", "com.example.state", "left"]),
            ],
            &[],
        );
        let call = Call::get("/")
            .header("x-script", leaves)
            .header("x-script-other", &looks)
            .header("x-script-third", &looks);
        let reply = envoy.connect(Protocol::Http1).await.fetch(call).await;
        let saw = saw(&reply);
        assert_eq!(saw[..4], ["left", "left", "left", "left"], "the same module");
        assert_eq!(saw[4..8], ["none", "none", "left", "left"], "another module");
        envoy.finish().await;
    }
}

#[tokio::test]
async fn a_connection_that_drains_in_http2_ends_with_goaway() {
    let modules = modules();
    for version in Version::all() {
        let config = Config::new()
            .filter(filter("x-script"))
            .route(Route::prefix("/").direct(200, "ok"))
            .manager("drain_timeout", json!("0.1s"));
        let envoy = version.launch().modules(&modules).start(&config).await;
        let mut client = envoy.connect(Protocol::Http2).await;
        let steps = json!({"steps": ["drain_connection", "run"]}).to_string();
        let reply = client.fetch(Call::get("/").header("x-script", steps)).await;
        assert_eq!(reply.text(), "ok");
        attache_e2e::eventually("the connection to end", async || client.is_closed()).await;
        // The worker serves the next one.
        assert_eq!(get(&envoy, script(&[], &[])).await.text(), "ok");
        envoy.finish().await;
    }
}

#[tokio::test]
async fn a_reply_by_one_of_envoys_own_filters_is_changed() {
    let modules = modules();
    on_every_host(async |host| {
        // Not every Envoy of one's own has that filter.
        if host.version.is_compiled_in() {
            return;
        }
        // RBAC denies everything, before our filter sees it.
        let rbac = envoy_filter(
            "envoy.filters.http.rbac",
            "filters.http.rbac.v3.RBAC",
            json!({"rules": {"action": "ALLOW", "policies": {}}}),
        );
        let upstream = Upstream::echo().await;
        let config =
            Config::new().upstream(upstream.address()).filter(rbac).filter(filter("x-script"));
        let envoy = host.launch().modules(&modules).start(&config).await;
        let script = json!({"steps": ["panic"], "replies": [
            {"ask": ["details"]}, {"headers": [{"set": ["x-changed", "1"]}]},
            {"whole": {"limit": 1000, "prefix": "<", "suffix": ">"}},
        ]});
        let mut client = host.connect(&envoy).await;
        for method in ["/", "/again"] {
            let call = Call::get(method).header("x-script", script.to_string());
            let reply = client.fetch(call).await;
            assert_eq!(reply.status, 403);
            assert_eq!(reply.text(), "<RBAC: access denied>");
            assert_eq!(reply.header("x-changed"), Some("1"));
            assert!(saw(&reply)[0].starts_with("rbac_access_denied"), "{:?}", saw(&reply));
        }
        assert_eq!(upstream.count(), 0);
        envoy.finish().await;
    })
    .await;
}
