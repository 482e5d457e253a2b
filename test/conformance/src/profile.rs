//! The Envoy configs that scenarios run in. Each is one Envoy process, shared by all scenarios of
//! one host and protocol that name it.

use std::net::SocketAddr;
use std::time::Duration;

use attache_e2e::{Cluster, Config, ModuleFilter, Protocol, Route, envoy_filter};
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
fn lua_reply(instance: &str, header: &str) -> Value {
    let code = format!(
        "function envoy_on_request(handle)\n\
           if handle:headers():get('{header}') then\n\
             handle:respond({{[':status'] = '418', ['x-by'] = 'lua'}}, 'lua')\n\
           end\n\
         end"
    );
    let config = json!({"default_source_code": {"inline_string": code}});
    envoy_filter(instance, "filters.http.lua.v3.Lua", config)
}

/// Small buffers in Envoy and in the kernel, which would otherwise take tens of megabytes before
/// anybody is held back. The kernel lets those of a connection grow while it is read fast, so the
/// upstream gets a new connection for each request.
fn small(config: Config) -> Config {
    // SOL_SOCKET, SO_RCVBUF.
    let options = json!([{
        "level": 1, "name": 8, "int_value": 2 * SMALL, "state": "STATE_PREBIND",
    }]);
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
            _ => config.route(route),
        };
        match self {
            Profile::Plain | Profile::RouteTimeout => config.filter(filter(0, &none)),
            Profile::Two => config.filter(filter(0, &none)).filter(filter(1, &none)),
            Profile::Small => small(config.filter(filter(0, &none))),
            Profile::SmallTwo => small(config.filter(filter(0, &none)).filter(filter(1, &none))),
            Profile::Lua => config
                .filter(lua_reply("lua-before", "x-lua-before"))
                .filter(filter(0, &none))
                .filter(lua_reply("lua-behind", "x-lua-behind")),
            Profile::Idle => config.filter(filter(0, &none)).stream_idle_timeout(SHORT),
            Profile::RequestTimeout => config.filter(filter(0, &none)).request_timeout(SHORT),
            Profile::FailOpen => config.filter(filter(0, &json!({"fail_open": true}))),
        }
    }
}
