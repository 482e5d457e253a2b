//! What Envoy's own tracer reports of the spans that a filter makes: a real Envoy, with its Zipkin
//! tracer, and a collector on a real socket. The filter is `test/e2e/filters/src/traced.rs`.

use attache_e2e::{
    Call, Cluster, Config, ModuleFilter, Modules, Protocol, Route, Upstream, Version,
};
use serde_json::{Value, json};

fn modules() -> Modules {
    Modules::new().package("attache-e2e-filters")
}

/// On a busy machine a poll may count as slow, and the warning would be noted in the span.
fn filter() -> ModuleFilter {
    let config = json!({"attache": {"slow_poll_ms": 60_000}});
    ModuleFilter::new("attache_e2e_filters", "traced").config(config)
}

fn serving() -> Config {
    Config::new().route(Route::prefix("/").direct(200, "ok")).filter(filter())
}

/// Reports every span, at once.
fn traced(config: Config, collector: &Upstream, tracer: &'static str, options: Value) -> Config {
    let provider = json!({"name": format!("envoy.tracers.{tracer}"), "typed_config": options});
    config
        .cluster(Cluster::new("collector", collector.address()))
        .manager("tracing", json!({"provider": provider}))
        .patch(move |bootstrap| {
            let layer = json!({format!("tracing.{tracer}.min_flush_spans"): 1});
            bootstrap["layered_runtime"] =
                json!({"layers": [{"name": "static", "static_layer": layer}]});
        })
}

fn zipkin(collector: &Upstream) -> Config {
    let options = json!({
        "@type": "type.googleapis.com/envoy.config.trace.v3.ZipkinConfig",
        "collector_cluster": "collector",
        "collector_endpoint": "/api/v2/spans",
        "collector_endpoint_version": "HTTP_JSON",
        "trace_id_128bit": true,
    });
    traced(serving(), collector, "zipkin", options)
}

fn opentelemetry(config: Config, collector: &Upstream) -> Config {
    let uri = json!({
        "uri": "http://collector.test/v1/traces", "cluster": "collector", "timeout": "5s",
    });
    let options = json!({
        "@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig",
        "http_service": {"http_uri": uri},
        "service_name": "attache-test",
    });
    traced(config, collector, "opentelemetry", options)
}

/// All spans that have been reported once `name` is among them.
async fn spans_until(collector: &Upstream, name: &str) -> Vec<Value> {
    let mut spans = Vec::new();
    // Each report has one span at least, and an exchange has few.
    for index in 0..20 {
        let report = collector.seen(index).await;
        assert_eq!(report.path(), "/api/v2/spans");
        let report: Vec<Value> = serde_json::from_slice(&report.body).expect("JSON");
        spans.extend(report);
        if spans.iter().any(|span| span["name"] == name) {
            return spans;
        }
    }
    panic!("there is no span {name} in {spans:#?}");
}

fn named<'a>(spans: &'a [Value], name: &str) -> &'a Value {
    let mut found = spans.iter().filter(|span| span["name"] == name);
    let span = found.next().unwrap_or_else(|| panic!("no span {name} in {spans:#?}"));
    assert!(found.next().is_none(), "two spans {name} in {spans:#?}");
    span
}

/// Without Zipkin's own marks of what was sent and received when.
fn logs(span: &Value) -> Vec<&str> {
    let list = span["annotations"].as_array().map(Vec::as_slice).unwrap_or_default();
    let texts = list.iter().map(|annotation| annotation["value"].as_str().expect("a text"));
    texts.filter(|text| !["cs", "cr", "ss", "sr"].contains(text)).collect()
}

#[tokio::test]
async fn spans_and_events_of_a_filter_are_reported_by_envoy_s_tracer() {
    let modules = modules();
    for version in Version::all() {
        let collector = Upstream::fixed(202, "").await;
        let launch = version.launch().modules(&modules);
        let envoy = launch.start(&zipkin(&collector)).await;
        let mut client = envoy.connect(Protocol::Http1).await;
        let reply = client.fetch(Call::get("/a").authority("traced.test")).await;
        assert_eq!(reply.text(), "ok");
        // Envoy names its span after the authority. It is finished before the stream goes, and with
        // that the span that was left open.
        let mut spans = spans_until(&collector, "left open").await;
        if !spans.iter().any(|span| span["name"] == "traced.test") {
            spans = spans_until(&collector, "traced.test").await;
        }

        let stream = named(&spans, "traced.test");
        let look_up = named(&spans, "look up");
        let query = named(&spans, "query");
        let left = named(&spans, "left open");
        assert_eq!(spans.len(), 4, "and no others: {spans:#?}");

        // Who is whose child.
        assert_eq!(stream["parentId"], Value::Null);
        assert_eq!(look_up["parentId"], stream["id"]);
        assert_eq!(query["parentId"], look_up["id"]);
        assert_eq!(left["parentId"], stream["id"]);
        for span in &spans {
            assert_eq!(span["traceId"], stream["traceId"]);
            assert!(span["duration"].is_u64(), "it was finished: {span:#}");
        }

        // Fields are tags.
        assert_eq!(look_up["tags"]["user"], "ann");
        assert_eq!(look_up["tags"]["outcome"], "Some(1)");
        assert_eq!(look_up["tags"]["tries"], "3", "recorded later");
        assert_eq!(stream["tags"]["tenant"], "acme");

        // Events are logs of the innermost span, and still lines of Envoy's log.
        assert_eq!(
            logs(query),
            ["info: said in a query", "info: said after a wait row=\"äöü 漢字\""]
        );
        assert_eq!(logs(look_up), [""; 0]);
        assert_eq!(logs(stream), ["warn: said outside of spans number=7"]);
        envoy.wait_for_log(&["[traced][C", "look up:query: said in a query"]).await;
        envoy.wait_for_log(&["said outside of spans"]).await;

        // The filter knows them, and what it would tell others.
        let header = |name| reply.header(name).expect("set by the filter");
        assert_eq!(header("x-on"), "true");
        assert_eq!(stream["traceId"], header("x-trace-id"));
        // This tracer tells nobody the id of a span.
        assert_eq!(header("x-span-id"), "none");
        assert_eq!(header("x-query"), "none");
        // With the filters compiled in, it says itself what it would tell others.
        let mut call: Vec<_> = header("x-call").split(',').collect();
        call.sort();
        let id = |span: &Value, name: &str| span[name].as_str().expect("a text").to_owned();
        let wanted = [
            format!("x-b3-parentspanid={}", id(look_up, "id")),
            "x-b3-sampled=1".to_owned(),
            format!("x-b3-spanid={}", id(query, "id")),
            format!("x-b3-traceid={}", id(stream, "traceId")),
        ];
        if version.is_compiled_in() {
            assert_eq!(call, wanted);
        } else {
            assert_eq!(call, ["none"]);
        }
        envoy.finish().await;
    }
}

fn hex(text: &str) -> Vec<u8> {
    let byte = |index| u8::from_str_radix(&text[index..index + 2], 16).expect("hex digits");
    (0..text.len()).step_by(2).map(byte).collect()
}

#[tokio::test]
async fn a_filter_hands_on_the_id_of_its_innermost_span() {
    let modules = modules();
    for version in Version::all() {
        let collector = Upstream::fixed(200, "").await;
        let launch = version.launch().modules(&modules);
        let envoy = launch.start(&opentelemetry(serving(), &collector)).await;
        let reply = envoy.connect(Protocol::Http1).await.fetch(Call::get("/a")).await;
        let header = |name| reply.header(name).expect("set by the filter");
        let parts: Vec<_> = header("x-query").split('-').collect();
        let ["00", trace, query, "01"] = parts[..] else { panic!("no traceparent: {parts:?}") };
        assert_eq!((trace.len(), query.len()), (32, 16));
        assert_eq!(trace, header("x-trace-id"));
        assert_eq!(header("x-call"), format!("traceparent={}", header("x-query")));
        let look_up = header("x-look-up");
        let stream = header("x-span-id");

        // As OTLP has a span in protobuf: its trace's id (1), its own (2), its parent's (4), its name (5).
        let span = |id: &str, parent: &str, name: &str| {
            let (trace, id, parent) = (hex(trace), hex(id), hex(parent));
            let length = u8::try_from(name.len()).expect("a short name");
            [
                &[10, 16][..],
                &trace,
                &[18, 8],
                &id,
                &[34, 8],
                &parent,
                &[42, length],
                name.as_bytes(),
            ]
            .concat()
        };
        let mut wanted = vec![span(query, look_up, "query"), span(look_up, stream, "look up")];
        for index in 0.. {
            assert!(index < 20, "these spans are not there: {wanted:?}");
            let report = collector.seen(index).await.body;
            wanted.retain(|span| !report.windows(span.len()).any(|part| part == span));
            if wanted.is_empty() {
                break;
            }
        }
        envoy.finish().await;
    }
}

#[tokio::test]
async fn a_stream_joins_the_trace_of_its_client() {
    let modules = modules();
    for version in Version::all() {
        let collector = Upstream::fixed(202, "").await;
        let launch = version.launch().modules(&modules);
        let envoy = launch.start(&zipkin(&collector)).await;
        let mut client = envoy.connect(Protocol::Http1).await;
        let call = Call::get("/a")
            .header("x-b3-traceid", "463ac35c9f6413ad48485a3953bb6124")
            .header("x-b3-spanid", "a2fb4a1d1a96d312")
            .header("x-b3-sampled", "1");
        let reply = client.fetch(call).await;
        assert_eq!(reply.header("x-trace-id"), Some("463ac35c9f6413ad48485a3953bb6124"));
        let spans = spans_until(&collector, "query").await;
        assert_eq!(named(&spans, "query")["traceId"], "463ac35c9f6413ad48485a3953bb6124");
        envoy.finish().await;
    }
}

/// What a filter would tell others of a stream that is not sampled.
#[tokio::test]
async fn a_stream_that_is_not_sampled_says_so_where_envoy_tells_it() {
    let modules = modules();
    for version in Version::all() {
        let collector = Upstream::fixed(200, "").await;
        let launch = version.launch().modules(&modules);
        let config = opentelemetry(serving(), &collector).patch_manager(|manager| {
            manager["tracing"]["random_sampling"] = json!({"value": 0});
        });
        let envoy = launch.start(&config).await;
        let reply = envoy.connect(Protocol::Http1).await.fetch(Call::get("/a")).await;
        let header = |name| reply.header(name).expect("set by the filter");
        assert_eq!(header("x-on"), "true");
        // Stock Envoy does not tell modules: what is made of the ids says that it is.
        let flags = if version.is_compiled_in() { "-00" } else { "-01" };
        assert!(header("x-query").ends_with(flags), "{}", header("x-query"));
        assert_eq!(header("x-call"), format!("traceparent={}", header("x-query")));
        envoy.finish().await;
    }
}

/// A request carries what its client says of the trace, and what Envoy says once it has gone on.
#[tokio::test]
async fn a_stream_that_the_request_says_is_not_sampled_is_not_in_any_host() {
    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    let flags_of = |traceparent: &str| traceparent.rsplit('-').next().map(str::to_owned);
    let modules = modules();
    for (version, sampling) in Version::all().into_iter().flat_map(|v| [(v.clone(), 0), (v, 100)]) {
        let collector = Upstream::fixed(200, "").await;
        let upstream = Upstream::fixed(200, "ok").await;
        let launch = version.launch().modules(&modules);
        let config = Config::new().upstream(upstream.address()).filter(filter());
        let config = opentelemetry(config, &collector).patch_manager(move |manager| {
            manager["tracing"]["random_sampling"] = json!({"value": sampling});
        });
        let envoy = launch.start(&config).await;
        let mut client = envoy.connect(Protocol::Http1).await;
        for (index, flags) in [Some("00"), Some("01"), None].into_iter().enumerate() {
            let mut call = Call::get("/a");
            if let Some(flags) = flags {
                let parent = format!("00-{TRACE}-b7ad6b7169203331-{flags}");
                call = call.header("traceparent", parent);
            }
            let reply = client.fetch(call).await;
            let header = |name| reply.header(name).expect("set by the filter");
            let seen = upstream.seen(index).await;
            let sent = seen.header("traceparent").expect("Envoy's own");
            assert!(sent.contains(header("x-trace-id")), "{sent}");
            // Envoy samples nothing that the client does not, but may be the one that does not.
            let decided = if sampling == 0 { "00" } else { flags.unwrap_or("01") };
            assert_eq!(flags_of(sent).as_deref(), Some(decided), "{flags:?}");
            assert_eq!(flags_of(header("x-later")), flags_of(sent), "{flags:?}");
            let early = if version.is_compiled_in() { decided } else { flags.unwrap_or("01") };
            assert_eq!(flags_of(header("x-query")).as_deref(), Some(early), "{flags:?}");
        }
        envoy.finish().await;
    }
}

#[tokio::test]
async fn without_a_tracer_spans_lead_nowhere() {
    let modules = modules();
    for version in Version::all() {
        let envoy = version.launch().modules(&modules).start(&serving()).await;
        let reply = envoy.connect(Protocol::Http1).await.fetch(Call::get("/a")).await;
        assert_eq!(reply.text(), "ok");
        assert_eq!(reply.header("x-on"), Some("false"));
        for name in ["x-trace-id", "x-span-id", "x-look-up", "x-query", "x-call", "x-later"] {
            assert_eq!(reply.header(name), Some("none"), "{name}");
        }
        envoy.wait_for_log(&["[traced][C", "look up:query: said in a query"]).await;
        envoy.finish().await;
    }
}
