//! What is measured: the filters, the traffic, and the Envoy config that puts them together.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::Result;
use crate::http1::Message;
use crate::load::Exchange;
use crate::upstream::ANSWER;

/// The file name of the hand-written modules.
pub(crate) const RAW_LIBRARY: &str = "libattache_bench_raw.so";
/// The file name of the filters written on the runtime.
pub(crate) const ATTACHE_LIBRARY: &str = "libattache_bench_filters.so";

/// The size of a body, each way.
pub(crate) const BODY: usize = 1 << 20;

/// What `x-bench-in` carries.
const HEADER_VALUE: &str = "some-value";

/// How filters get into the Envoy that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    /// A stock Envoy loads them from libraries.
    Stock,
    /// They are compiled into it.
    CompiledIn,
}

impl Host {
    /// Whether the variant can be measured there. Modules and what else is not compiled in cannot.
    pub(crate) fn has(self, variant: Variant) -> bool {
        use Variant::*;
        let hand_written = variant.library() == Some(RAW_LIBRARY);
        let beside_what_is_left_out =
            matches!(variant, LuaHeaders | NoneCallout | ExtAuthz | AttacheCallout);
        self == Host::Stock || !hand_written && !beside_what_is_left_out
    }
}

/// Traffic that is measured on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scenario {
    /// Envoy answers by itself: the least that an exchange can cost.
    Direct,
    /// A real upstream answers.
    Upstream,
    /// A real upstream echoes a body of [`BODY`] bytes.
    Body,
    /// As [`Direct`](Scenario::Direct), once a service behind a cluster has consented.
    Callout,
}

impl Scenario {
    /// All of them, in the order of the report.
    pub(crate) const ALL: [Scenario; 4] =
        [Scenario::Direct, Scenario::Upstream, Scenario::Body, Scenario::Callout];

    /// The name in the report.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Scenario::Direct => "direct",
            Scenario::Upstream => "upstream",
            Scenario::Body => "body",
            Scenario::Callout => "callout",
        }
    }

    /// The variants that this traffic is measured with; the first is the one without a filter.
    pub(crate) fn variants(self) -> &'static [Variant] {
        use Variant::*;
        match self {
            Scenario::Direct | Scenario::Upstream => &[
                None,
                RawPass,
                AttachePass,
                RawHeaders,
                HeaderMutation,
                AttacheHeaders,
                LuaHeaders,
                RawHop,
                AttacheHop,
            ],
            Scenario::Body => {
                &[NoneBody, RawBodyUntouched, AttacheBodyUntouched, AttacheBodyMapped]
            }
            Scenario::Callout => &[NoneCallout, ExtAuthz, AttacheCallout],
        }
    }

    /// The request that is sent and the response that is expected.
    pub(crate) fn exchange(self) -> Exchange {
        match self {
            Scenario::Direct | Scenario::Upstream | Scenario::Callout => Exchange {
                request: format!(
                    "GET /bench HTTP/1.1\r\nhost: bench\r\nx-bench-in: {HEADER_VALUE}\r\n\r\n"
                )
                .into_bytes(),
                response_len: ANSWER.len() as u64,
            },
            Scenario::Body => post(BODY),
        }
    }
}

/// A request with a body, to the upstream that echoes it.
pub(crate) fn post(body: usize) -> Exchange {
    let head = format!("POST /bench HTTP/1.1\r\nhost: bench\r\ncontent-length: {body}\r\n\r\n");
    let mut request = head.into_bytes();
    request.extend(body_bytes(body));
    Exchange { request, response_len: body as u64 }
}

/// Bytes without a short period, so that a piece that is lost, doubled or swapped is noticed.
fn body_bytes(len: usize) -> impl Iterator<Item = u8> {
    (0..len).map(|at| (at % 251) as u8)
}

/// A way to filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Variant {
    /// No filter.
    None,
    /// A hand-written module that does nothing.
    RawPass,
    /// A hand-written module that does the header work.
    RawHeaders,
    /// A hand-written module that waits for another thread.
    RawHop,
    /// Envoy's C++ filter, doing the header work.
    HeaderMutation,
    /// Envoy's Lua filter, doing the header work.
    LuaHeaders,
    /// A filter on the runtime that does nothing.
    AttachePass,
    /// A filter on the runtime that does the header work.
    AttacheHeaders,
    /// A filter on the runtime that waits for another thread.
    AttacheHop,
    /// No filter, with bodies.
    NoneBody,
    /// A hand-written module that lets bodies pass.
    RawBodyUntouched,
    /// A filter on the runtime that lets bodies pass.
    AttacheBodyUntouched,
    /// A filter on the runtime that changes each byte of both bodies.
    AttacheBodyMapped,
    /// No filter, and no call.
    NoneCallout,
    /// Envoy's C++ filter, which calls a service.
    ExtAuthz,
    /// A filter on the runtime that calls a service.
    AttacheCallout,
}

impl Variant {
    /// The name in the report, and for the filters of ours the `filter_name`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Variant::None => "none",
            Variant::RawPass => "raw_pass",
            Variant::RawHeaders => "raw_headers",
            Variant::RawHop => "raw_hop",
            Variant::HeaderMutation => "header_mutation",
            Variant::LuaHeaders => "lua_headers",
            Variant::AttachePass => "attache_pass",
            Variant::AttacheHeaders => "attache_headers",
            Variant::AttacheHop => "attache_hop",
            Variant::NoneBody => "none_body",
            Variant::RawBodyUntouched => "raw_body_untouched",
            Variant::AttacheBodyUntouched => "attache_body_untouched",
            Variant::AttacheBodyMapped => "attache_body_mapped",
            Variant::NoneCallout => "none_callout",
            Variant::ExtAuthz => "ext_authz",
            Variant::AttacheCallout => "attache_callout",
        }
    }

    /// The library that the variant needs.
    pub(crate) fn library(self) -> Option<&'static str> {
        match self {
            Variant::RawPass
            | Variant::RawHeaders
            | Variant::RawHop
            | Variant::RawBodyUntouched => Some(RAW_LIBRARY),
            Variant::AttachePass
            | Variant::AttacheHeaders
            | Variant::AttacheHop
            | Variant::AttacheBodyUntouched
            | Variant::AttacheBodyMapped
            | Variant::AttacheCallout => Some(ATTACHE_LIBRARY),
            Variant::None
            | Variant::NoneBody
            | Variant::NoneCallout
            | Variant::HeaderMutation
            | Variant::LuaHeaders
            | Variant::ExtAuthz => Option::None,
        }
    }

    fn does_headers(self) -> bool {
        matches!(
            self,
            Variant::RawHeaders
                | Variant::HeaderMutation
                | Variant::LuaHeaders
                | Variant::AttacheHeaders
        )
    }

    /// The filters that go before the router.
    pub(crate) fn filters(self, host: Host) -> Vec<Value> {
        match self {
            Variant::None | Variant::NoneBody | Variant::NoneCallout => vec![],
            Variant::ExtAuthz => vec![ext_authz()],
            Variant::HeaderMutation => vec![header_mutation()],
            Variant::LuaHeaders => vec![lua()],
            ours => match ours.library() {
                Some(library) => vec![ours_in(host, library, ours.name())],
                Option::None => vec![],
            },
        }
    }

    /// Checks on one response that the filter does its work, so that no variant wins by not
    /// doing it.
    pub(crate) fn verify(self, scenario: Scenario, response: &Message) -> Result<()> {
        let expect = |what: &str, found: Option<&str>, wanted: Option<&str>| {
            if found == wanted {
                return Ok(());
            }
            let (variant, scenario) = (self.name(), scenario.name());
            Err(format!("{variant}/{scenario}: {what} is {found:?}, not {wanted:?}"))
        };
        let worked = self.does_headers();
        expect("x-bench", response.header("x-bench"), worked.then_some("1"))?;
        match scenario {
            Scenario::Direct => {}
            Scenario::Callout => {
                // What the service saw of the call comes back to the client.
                let wanted = (self != Variant::NoneCallout).then_some(HEADER_VALUE);
                expect("x-saw-out", response.header("x-saw-out"), wanted)?;
            }
            Scenario::Upstream => {
                let wanted = if worked { HEADER_VALUE } else { "-" };
                expect("x-bench-out", response.header("x-saw-out"), Some(wanted))?;
            }
            Scenario::Body => {
                // Mapped both ways, a byte comes back as it was; on the way it is another one.
                let first = if self == Variant::AttacheBodyMapped { "255" } else { "0" };
                expect("the first byte", response.header("x-saw-first"), Some(first))?;
                if !response.body().iter().copied().eq(body_bytes(BODY)) {
                    return Err(format!("{}: the body came back changed", self.name()).into());
                }
            }
        }
        Ok(())
    }
}

/// A filter of ours: of a dynamic module, or compiled in.
pub(crate) fn ours_in(host: Host, library: &str, filter: &str) -> Value {
    if host == Host::CompiledIn {
        return json!({
            "name": filter,
            "typed_config": {
                "@type": "type.googleapis.com/attache.v3alpha.Filter",
                "name": filter,
            },
        });
    }
    let name = library.trim_start_matches("lib").trim_end_matches(".so");
    json!({
        "name": filter,
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.dynamic_modules.v3.DynamicModuleFilter",
            "dynamic_module_config": {"name": name, "do_not_close": true},
            "filter_name": filter,
            "filter_config": {
                "@type": "type.googleapis.com/google.protobuf.Struct",
                "value": {},
            },
        },
    })
}

fn header_mutation() -> Value {
    let set = |key: &str, value: &str| {
        json!({"append": {
            "header": {"key": key, "value": value},
            "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
        }})
    };
    json!({
        "name": "header_mutation",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation",
            "mutations": {
                "request_mutations": [set("x-bench-out", "%REQ(x-bench-in)%")],
                "response_mutations": [set("x-bench", "1")],
            },
        },
    })
}

fn ext_authz() -> Value {
    let only = |name: &str| json!({"patterns": [{"exact": name}]});
    json!({
        "name": "ext_authz",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz",
            "http_service": {
                "server_uri": {"uri": "http://upstream", "cluster": "upstream", "timeout": "5s"},
                "path_prefix": "/check",
                "authorization_request": {
                    "headers_to_add": [{"key": "x-bench-out", "value": HEADER_VALUE}],
                },
                "authorization_response": {
                    "allowed_client_headers_on_success": only("x-saw-out"),
                },
            },
        },
    })
}

fn lua() -> Value {
    json!({
        "name": "lua",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua",
            "default_source_code": {"inline_string": "\
                function envoy_on_request(handle)\n\
                  local headers = handle:headers()\n\
                  headers:replace(\"x-bench-out\", headers:get(\"x-bench-in\"))\n\
                end\n\
                function envoy_on_response(handle)\n\
                  handle:headers():replace(\"x-bench\", \"1\")\n\
                end\n"},
        },
    })
}

/// A listener with its filters and where its requests go.
#[derive(Debug)]
pub(crate) struct Listener {
    /// Its name, to look up its port.
    pub(crate) name: &'static str,
    /// What goes before the router.
    pub(crate) filters: Vec<Value>,
    /// What Envoy answers by itself; without it, requests go to the upstream.
    pub(crate) answer: Option<&'static str>,
}

/// The config of an Envoy with these listeners, each on a free port.
pub(crate) fn config(listeners: Vec<Listener>, upstream: SocketAddr) -> Value {
    let socket = |address: SocketAddr| {
        json!({"socket_address": {
            "address": address.ip().to_string(),
            "port_value": address.port(),
        }})
    };
    let any_port = || socket(SocketAddr::from(([127, 0, 0, 1], 0)));
    let listeners: Vec<Value> = listeners
        .into_iter()
        .map(|listener| {
            json!({
                "name": listener.name,
                "address": any_port(),
                "filter_chains": [{"filters": [connection_manager(listener)]}],
            })
        })
        .collect();
    json!({
        "admin": {"address": any_port()},
        "static_resources": {
            "listeners": listeners,
            "clusters": [{
                "name": "upstream",
                "type": "STATIC",
                "load_assignment": {
                    "cluster_name": "upstream",
                    "endpoints": [{"lb_endpoints": [{
                        "endpoint": {"address": socket(upstream)},
                    }]}],
                },
            }],
        },
    })
}

fn connection_manager(listener: Listener) -> Value {
    let mut filters = listener.filters;
    filters.push(json!({
        "name": "router",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
        },
    }));
    let mut route = json!({"match": {"prefix": "/"}});
    match listener.answer {
        None => route["route"] = json!({"cluster": "upstream"}),
        Some("") => route["direct_response"] = json!({"status": 200}),
        Some(body) => {
            route["direct_response"] = json!({"status": 200, "body": {"inline_string": body}});
        }
    }
    json!({
        "name": "http",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "bench",
            "http_filters": filters,
            "http2_protocol_options": {"max_concurrent_streams": 1000},
            "route_config": {"virtual_hosts": [{
                "name": "bench",
                "domains": ["*"],
                "routes": [route],
            }]},
        },
    })
}
