//! The Envoy configs that scenarios run in. Each is one Envoy process, shared by all scenarios of
//! one host and protocol that name it.

use std::net::SocketAddr;
use std::time::Duration;

use attache_e2e::{Cluster, Config, ModuleFilter, Protocol, Route, UPSTREAM, envoy_filter};
use serde_json::{Value, json};

use crate::scenario::Profile;

/// The module with the filter.
pub(crate) const PACKAGE: &str = "attache-conformance-filters";
const MODULE: &str = "attache_conformance";

/// Where the two filters of a chain find their scripts.
pub(crate) const SCRIPT_HEADERS: [&str; 2] = ["x-script", "x-script-2"];

/// The buffers of the profiles that have small ones.
const SMALL: u32 = 64 * 1024;

/// How long the profiles with a timeout wait.
const SHORT: Duration = Duration::from_millis(100);

fn filter(index: usize, options: &Value) -> ModuleFilter {
    let mut config = json!({"script_header": SCRIPT_HEADERS[index]});
    if !options.is_null() {
        config["attache"] = options.clone();
    }
    ModuleFilter::new(MODULE, "conformance")
        .instance(["conformance", "conformance-2"][index])
        .config(config)
}

/// Answers 418 when the request has the header.
fn reply(instance: &str, header: &str) -> Value {
    let config = json!({
        "abort": {"http_status": 418, "percentage": {"numerator": 100}},
        "headers": [{"name": header, "present_match": true}],
    });
    envoy_filter(instance, "filters.http.fault.v3.HTTPFault", config)
}

/// Small buffers in Envoy and in the kernel, which would otherwise take tens of megabytes before
/// anybody is held back: how many is up to the machine (`tcp_rmem`, `tcp_wmem`), and it lets them
/// grow with what a connection has carried before. Those that are set here do not grow. The
/// upstream's own do, so it gets a new connection for each request.
fn small(config: Config) -> Config {
    // SOL_SOCKET; SO_SNDBUF and SO_RCVBUF.
    let options = json!([7, 8].map(|name| json!({
        "level": 1, "name": name, "int_value": 2 * SMALL, "state": "STATE_PREBIND",
    })));
    config.buffer_limit(SMALL).patch(move |bootstrap| {
        let resources = &mut bootstrap["static_resources"];
        resources["listeners"][0]["socket_options"] = options.clone();
        let cluster = &mut resources["clusters"][0];
        cluster["upstream_bind_config"]["socket_options"] = options.clone();
        cluster["typed_extension_protocol_options"]
            ["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"]
            ["common_http_protocol_options"] = json!({"max_requests_per_connection": 1});
    })
}

/// What the access log says of each exchange in the profile with metadata.
const ACCESS_LOG: &str = "cell=%REQ(X-CELL)% key=%DYNAMIC_METADATA(com.example:key)% \
     late=%DYNAMIC_METADATA(com.example:late)% nested=%DYNAMIC_METADATA(com.example:nested)% \
     state=%FILTER_STATE(com.example.state:PLAIN)% flags=%CUSTOM_FLAGS% code=%RESPONSE_CODE% \
     details=%RESPONSE_CODE_DETAILS% route=%ROUTE_NAME% end";

/// Metadata on everything, and several routes.
fn state(config: Config) -> Config {
    let named = |name: &str, prefix: &str| {
        let name = name.to_owned();
        Route::prefix(prefix).timeout(Duration::ZERO).patch(move |route| {
            route["metadata"] = json!({"filter_metadata": {"com.example.route": {
                "name": name, "weight": 2, "paid": true, "tags": ["a", "b"],
                "mixed": ["a", 1, true], "nested": {"x": 1},
            }}});
            route["name"] = json!(name);
        })
    };
    let writes = envoy_filter(
        "writes-before",
        "filters.http.set_metadata.v3.Config",
        json!({"metadata": [{
            "metadata_namespace": "com.example.before",
            "value": {"text": "hello", "number": 7, "flag": true, "nested": {"a": "b"}},
        }]}),
    );
    let reads = envoy_filter(
        "reads-behind",
        "filters.http.header_mutation.v3.HeaderMutation",
        json!({"mutations": {"request_mutations": [{"append": {"header": {
            "key": "x-read-behind", "value": "%DYNAMIC_METADATA(com.example:key)%",
        }}}]}}),
    );
    let by_header = |name: &'static str| {
        named(name, "/").patch(move |route| {
            route["match"]["headers"] =
                json!([{"name": "x-route", "string_match": {"exact": name}}]);
        })
    };
    config
        .filter(writes)
        .filter(filter(0, &Value::Null))
        .filter(filter(1, &Value::Null))
        .filter(reads)
        .route(by_header("two"))
        .route(named("other", "/other"))
        .route(named("one", "/"))
        .access_log(ACCESS_LOG)
        .patch_manager(|manager| {
            let of_route = json!({"filter_metadata": {"com.example.route": {"name": "host"}}});
            manager["route_config"]["virtual_hosts"][0]["metadata"] = of_route;
            manager["route_config"]["virtual_hosts"][0]["virtual_clusters"] = json!([{
                "name": "posts",
                "headers": [{"name": ":method", "string_match": {"exact": "POST"}}],
            }]);
        })
        .patch(|bootstrap| {
            let metadata = |whose: &str| json!({"filter_metadata": {"com.example": {"of": whose}}});
            let listener = &mut bootstrap["static_resources"]["listeners"][0];
            listener["filter_chains"][0]["name"] = json!("one chain");
            let cluster = &mut bootstrap["static_resources"]["clusters"][0];
            cluster["metadata"] = metadata("cluster");
            let locality = &mut cluster["load_assignment"]["endpoints"][0];
            locality["metadata"] = metadata("locality");
            locality["lb_endpoints"][0]["metadata"] = metadata("host");
        })
}

/// A config for the filter itself, in the route table, in the virtual host, and on some routes and
/// weighted clusters.
fn levels(config: Config) -> Config {
    let level = |name: &str| filter(0, &Value::Null).config(json!({"level": name})).per_route();
    let route = |prefix: &str| Route::prefix(prefix).timeout(Duration::ZERO);
    let weighted = json!({"conformance": level("cluster")});
    let weighted = [(UPSTREAM, 1, weighted)];
    let own = filter(0, &Value::Null);
    config
        .filter(own.config(json!({"script_header": SCRIPT_HEADERS[0], "level": "filter"})))
        .table_filter_config("conformance", level("table"))
        .host_filter_config("conformance", level("host"))
        .route(route("/route").filter_config("conformance", level("route")))
        .route(route("/cluster").weighted(&weighted))
        .route(route("/all").filter_config("conformance", level("route")).weighted(&weighted))
        .route(route("/"))
}

/// The runtime flags of the profile that has some: JSON, or a text.
pub(crate) const FLAGS: [(&str, &str); 4] = [
    ("conformance.on", "100"),
    ("conformance.no", "false"),
    ("conformance.part", "0.25"),
    ("conformance.text", "neither"),
];

/// What its filter is made with.
pub(crate) fn envoy_options() -> Value {
    let flags = FLAGS.map(|(key, _)| key);
    json!({"script_header": SCRIPT_HEADERS[0], "secret": {"sds": "key"}, "flags": flags})
}

/// A secret and runtime flags of Envoy's own.
fn envoy(config: Config) -> Config {
    config.filter(filter(0, &Value::Null).config(envoy_options())).patch(|bootstrap| {
        bootstrap["static_resources"]["secrets"] =
            json!([{"name": "key", "generic_secret": {"secret": {"inline_string": "key"}}}]);
        let value = |text| serde_json::from_str(text).unwrap_or_else(|_| json!(text));
        let flags: serde_json::Map<_, _> =
            FLAGS.iter().map(|(key, text)| (key.to_string(), value(text))).collect();
        bootstrap["layered_runtime"] =
            json!({"layers": [{"name": "static", "static_layer": flags}]});
    })
}

impl Profile {
    /// How far the client reads ahead; as far as it likes if `None`.
    pub(crate) fn window(self) -> Option<u32> {
        matches!(self, Profile::Small | Profile::SmallTwo).then_some(2 * SMALL)
    }

    /// The config, in front of an upstream and of the service that filters call.
    pub(crate) fn config(
        self,
        upstream: SocketAddr,
        service: SocketAddr,
        protocol: Protocol,
    ) -> Config {
        let service = Cluster::new("service", service);
        let config = match protocol {
            Protocol::Http1 => Config::new().upstream(upstream).cluster(service),
            Protocol::Http2 => Config::new().upstream_http2(upstream).cluster(service.http2()),
        };
        let none = Value::Null;
        let config = config.upgrade("websocket");
        // Scenarios hold exchanges for as long as they need to; a stuck one is ended by its own
        // limit, and must not look as if Envoy had answered.
        let route = Route::prefix("/").timeout(Duration::ZERO);
        let config = match self {
            Profile::RouteTimeout => config.route(route.timeout(SHORT)),
            // It has routes of its own.
            Profile::State | Profile::Levels => config,
            _ => config.route(route),
        };
        match self {
            Profile::Plain | Profile::RouteTimeout => config.filter(filter(0, &none)),
            Profile::Two => config.filter(filter(0, &none)).filter(filter(1, &none)),
            Profile::Small => small(config.filter(filter(0, &none))),
            Profile::SmallTwo => small(config.filter(filter(0, &none)).filter(filter(1, &none))),
            Profile::Replies => config
                .filter(reply("reply-before", "x-reply-before"))
                .filter(filter(0, &none))
                .filter(reply("reply-behind", "x-reply-behind")),
            Profile::Idle => config.filter(filter(0, &none)).stream_idle_timeout(SHORT),
            Profile::RequestTimeout => config.filter(filter(0, &none)).request_timeout(SHORT),
            Profile::FailOpen => config.filter(filter(0, &json!({"fail_open": true}))),
            Profile::State => state(config),
            Profile::Levels => levels(config),
            Profile::Envoy => envoy(config),
        }
    }
}
