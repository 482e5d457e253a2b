//! Envoy configs for tests: one listener, one HTTP connection manager, some filters, some routes,
//! some clusters, and a way to change any of it as JSON.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};

/// The cluster that [`Config::upstream`] makes, and that routes lead to unless they say otherwise.
pub const UPSTREAM: &str = "upstream";

const EXTENSIONS: &str = "type.googleapis.com/envoy.extensions";

fn duration(duration: Duration) -> Value {
    json!(format!("{}.{:09}s", duration.as_secs(), duration.subsec_nanos()))
}

fn socket_address(address: SocketAddr) -> Value {
    let (ip, port) = (address.ip().to_string(), address.port());
    json!({"socket_address": {"address": ip, "port_value": port}})
}

/// A value as the `Any` that extension fields take: `type_name` is what follows
/// `envoy.extensions.`.
pub fn typed(type_name: &str, value: Value) -> Value {
    let mut fields = Map::new();
    fields.insert("@type".into(), json!(format!("{EXTENSIONS}.{type_name}")));
    match value {
        Value::Object(value) => fields.extend(value),
        Value::Null => {}
        other => panic!("the config of {type_name} is no object: {other}"),
    }
    Value::Object(fields)
}

fn any_struct(value: Value) -> Value {
    json!({"@type": "type.googleapis.com/google.protobuf.Struct", "value": value})
}

fn any_string(value: &str) -> Value {
    json!({"@type": "type.googleapis.com/google.protobuf.StringValue", "value": value})
}

/// One of Envoy's own HTTP filters, say
/// `envoy_filter("envoy.filters.http.fault", "filters.http.fault.v3.HTTPFault", json!({..}))`.
pub fn envoy_filter(name: &str, type_name: &str, config: Value) -> Value {
    json!({"name": name, "typed_config": typed(type_name, config)})
}

/// A filter of one of our modules.
#[derive(Clone, Debug)]
pub struct ModuleFilter {
    instance: String,
    module: String,
    filter: String,
    config: Option<Value>,
}

impl ModuleFilter {
    /// The filter `filter` of the module `module`; its instance in the chain is named `filter` too.
    pub fn new(module: &str, filter: &str) -> Self {
        Self {
            instance: filter.to_owned(),
            module: module.to_owned(),
            filter: filter.to_owned(),
            config: None,
        }
    }

    /// The name that routes refer to, where a filter is twice in one chain.
    pub fn instance(mut self, name: &str) -> Self {
        name.clone_into(&mut self.instance);
        self
    }

    /// Its config, as a `Struct`.
    pub fn config(mut self, config: Value) -> Self {
        self.config = Some(any_struct(config));
        self
    }

    /// Its config, as a `StringValue`: for text that is no JSON at all.
    pub fn config_text(mut self, config: &str) -> Self {
        self.config = Some(any_string(config));
        self
    }

    fn module_config(&self) -> Value {
        json!({"name": self.module, "do_not_close": true})
    }

    /// As a value of `typed_per_filter_config`.
    pub fn per_route(&self) -> Value {
        let mut config = json!({
            "dynamic_module_config": self.module_config(),
            "per_route_config_name": self.filter,
        });
        if let Some(value) = &self.config {
            config["filter_config"] = value.clone();
        }
        typed("filters.http.dynamic_modules.v3.DynamicModuleFilterPerRoute", config)
    }
}

impl From<ModuleFilter> for Value {
    fn from(filter: ModuleFilter) -> Self {
        let mut config = json!({
            "dynamic_module_config": filter.module_config(),
            "filter_name": filter.filter,
        });
        if let Some(value) = &filter.config {
            config["filter_config"] = value.clone();
        }
        json!({
            "name": filter.instance,
            "typed_config":
                typed("filters.http.dynamic_modules.v3.DynamicModuleFilter", config),
        })
    }
}

/// A value of `typed_per_filter_config` that turns the filter off there.
pub fn disabled() -> Value {
    json!({
        "@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig",
        "config": {},
        "disabled": true,
    })
}

/// A route, by path prefix.
#[derive(Clone, Debug)]
pub struct Route(Value);

impl Route {
    /// To the cluster named [`UPSTREAM`].
    pub fn prefix(prefix: &str) -> Self {
        Self(json!({"match": {"prefix": prefix}, "route": {"cluster": UPSTREAM}}))
    }

    /// To another cluster.
    pub fn to(mut self, cluster: &str) -> Self {
        self.0["route"]["cluster"] = json!(cluster);
        self
    }

    /// To one of several: cluster, weight, and its `typed_per_filter_config` (`json!({})` for none).
    pub fn weighted(mut self, clusters: &[(&str, u32, Value)]) -> Self {
        let clusters: Vec<_> = clusters
            .iter()
            .map(|(name, weight, per_filter)| {
                json!({"name": name, "weight": weight, "typed_per_filter_config": per_filter})
            })
            .collect();
        let route = self.0["route"].as_object_mut().expect("a forwarding route");
        route.remove("cluster");
        route.insert("weighted_clusters".into(), json!({"clusters": clusters}));
        self
    }

    /// To nowhere: Envoy answers itself.
    pub fn direct(mut self, status: u16, body: &str) -> Self {
        let route = self.0.as_object_mut().expect("a route");
        route.remove("route");
        let answer = json!({"status": status, "body": {"inline_string": body}});
        route.insert("direct_response".into(), answer);
        self
    }

    /// How long the upstream may take to answer in full; zero is for ever. Envoy's default is 15
    /// seconds.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.0["route"]["timeout"] = duration(timeout);
        self
    }

    /// What an instance of a filter does on this route: [`ModuleFilter::per_route`],
    /// [`disabled`].
    pub fn filter_config(mut self, instance: &str, config: Value) -> Self {
        self.0["typed_per_filter_config"][instance] = config;
        self
    }

    /// Any other change.
    pub fn patch(mut self, change: impl FnOnce(&mut Value)) -> Self {
        change(&mut self.0);
        self
    }
}

/// A cluster with one address.
#[derive(Clone, Debug)]
pub struct Cluster {
    name: String,
    address: SocketAddr,
    http2: bool,
}

impl Cluster {
    /// Spoken to in HTTP/1.1.
    pub fn new(name: &str, address: SocketAddr) -> Self {
        Self { name: name.to_owned(), address, http2: false }
    }

    /// Spoken to in HTTP/2.
    pub fn http2(mut self) -> Self {
        self.http2 = true;
        self
    }

    fn render(&self, buffer_limit: Option<u32>) -> Value {
        let protocol = if self.http2 {
            json!({"http2_protocol_options": http2_options(buffer_limit)})
        } else {
            json!({"http_protocol_options": {"enable_trailers": true}})
        };
        let options = typed(
            "upstreams.http.v3.HttpProtocolOptions",
            json!({"explicit_http_config": protocol}),
        );
        let mut cluster = json!({
            "name": self.name,
            "type": "STATIC",
            "connect_timeout": "5s",
            "load_assignment": {
                "cluster_name": self.name,
                "endpoints": [{
                    "lb_endpoints": [{"endpoint": {"address": socket_address(self.address)}}],
                }],
            },
            "typed_extension_protocol_options":
                {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
        });
        if let Some(limit) = buffer_limit {
            cluster["per_connection_buffer_limit_bytes"] = json!(limit);
        }
        cluster
    }
}

/// The HTTP/2 windows are sized with the buffers, or they would let in what the buffers should
/// hold out.
fn http2_options(buffer_limit: Option<u32>) -> Value {
    let mut options = json!({"allow_connect": true});
    if let Some(limit) = buffer_limit {
        let window = limit.max(65_535);
        options["initial_stream_window_size"] = json!(window);
        options["initial_connection_window_size"] = json!(window);
    }
    options
}

type Patch = Arc<dyn Fn(&mut Value) + Send + Sync>;

/// A config for one Envoy. Without any route, everything goes to the cluster [`UPSTREAM`].
#[derive(Clone, Default)]
pub struct Config {
    filters: Vec<Value>,
    routes: Vec<Route>,
    clusters: Vec<Cluster>,
    host_filter_config: Map<String, Value>,
    table_filter_config: Map<String, Value>,
    manager: Map<String, Value>,
    buffer_limit: Option<u32>,
    access_log: Option<String>,
    listen: Option<SocketAddr>,
    admin: Option<SocketAddr>,
    watched: bool,
    example: Option<String>,
    manager_patches: Vec<Patch>,
    patches: Vec<Patch>,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(Path::new("TEMP"), false).main)
    }
}

/// The files of a config.
pub(crate) struct Rendered {
    pub(crate) main: String,
    pub(crate) listeners: Option<String>,
}

/// Files that a rendered config refers to, in the directory of its Envoy.
pub(crate) const LISTENERS_FILE: &str = "listeners.json";
pub(crate) const ACCESS_LOG_FILE: &str = "access.log";

impl Config {
    /// No filter, no cluster.
    pub fn new() -> Self {
        Self::default()
    }

    /// The YAML of an example, as users would paste it. Its ports are replaced: `10000` (listener)
    /// and `9901` (admin) by free ones, `10001` (upstream) by that of [`Config::upstream`], `10002`
    /// by that of a second cluster.
    pub fn example(path: impl AsRef<Path>) -> Self {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self { example: Some(text), ..Self::default() }
    }

    /// The cluster [`UPSTREAM`], spoken to in HTTP/1.1.
    pub fn upstream(self, address: SocketAddr) -> Self {
        self.cluster(Cluster::new(UPSTREAM, address))
    }

    /// The cluster [`UPSTREAM`], spoken to in HTTP/2.
    pub fn upstream_http2(self, address: SocketAddr) -> Self {
        self.cluster(Cluster::new(UPSTREAM, address).http2())
    }

    /// One more cluster.
    pub fn cluster(mut self, cluster: Cluster) -> Self {
        self.clusters.push(cluster);
        self
    }

    /// One more filter, after those given before: a [`ModuleFilter`], or JSON
    /// ([`envoy_filter`]).
    pub fn filter(mut self, filter: impl Into<Value>) -> Self {
        self.filters.push(filter.into());
        self
    }

    /// One more route, after those given before.
    pub fn route(mut self, route: Route) -> Self {
        self.routes.push(route);
        self
    }

    /// What an instance of a filter does in the virtual host.
    pub fn host_filter_config(mut self, instance: &str, config: Value) -> Self {
        self.host_filter_config.insert(instance.to_owned(), config);
        self
    }

    /// What an instance of a filter does in the whole route table.
    pub fn table_filter_config(mut self, instance: &str, config: Value) -> Self {
        self.table_filter_config.insert(instance.to_owned(), config);
        self
    }

    /// How much Envoy buffers per connection and stream, downstream and upstream.
    pub fn buffer_limit(mut self, bytes: u32) -> Self {
        self.buffer_limit = Some(bytes);
        self
    }

    /// Writes an access log in this format, one line per exchange; see
    /// [`Envoy::access_log`](crate::Envoy::access_log).
    pub fn access_log(mut self, format: &str) -> Self {
        self.access_log = Some(format!("{format}\n"));
        self
    }

    /// How long a stream may be silent.
    pub fn stream_idle_timeout(self, timeout: Duration) -> Self {
        self.manager("stream_idle_timeout", duration(timeout))
    }

    /// How long a request may take to arrive in full.
    pub fn request_timeout(self, timeout: Duration) -> Self {
        self.manager("request_timeout", duration(timeout))
    }

    /// Allows upgrades to this protocol, `websocket` for one.
    pub fn upgrade(self, protocol: &str) -> Self {
        self.manager("upgrade_configs", json!([{"upgrade_type": protocol}]))
    }

    /// Any field of the HTTP connection manager.
    pub fn manager(mut self, field: &str, value: Value) -> Self {
        self.manager.insert(field.to_owned(), value);
        self
    }

    /// Reads the listener from a file that Envoy watches, so that
    /// [`Envoy::update`](crate::Envoy::update) can change it.
    pub fn watched(mut self) -> Self {
        self.watched = true;
        self
    }

    /// Listens there instead of on a free port.
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.listen = Some(address);
        self
    }

    /// Has its admin page there instead of on a free port.
    pub fn admin(mut self, address: SocketAddr) -> Self {
        self.admin = Some(address);
        self
    }

    /// Any change to the HTTP connection manager, made last.
    pub fn patch_manager(mut self, change: impl Fn(&mut Value) + Send + Sync + 'static) -> Self {
        self.manager_patches.push(Arc::new(change));
        self
    }

    /// Any change to the whole bootstrap, made last.
    pub fn patch(mut self, change: impl Fn(&mut Value) + Send + Sync + 'static) -> Self {
        self.patches.push(Arc::new(change));
        self
    }

    /// `compiled_in`: for an Envoy with our filters in it, which wants them configured in its own way.
    pub(crate) fn render(&self, directory: &Path, compiled_in: bool) -> Rendered {
        if let Some(text) = &self.example {
            let text = self.render_example(text);
            let main = if compiled_in { example_for_compiled_in(&text) } else { text };
            return Rendered { main, listeners: None };
        }
        let mut listener = self.render_listener(directory);
        if compiled_in {
            to_compiled_in(&mut listener);
        }
        let mut bootstrap = json!({
            "node": {"id": "attache-test", "cluster": "attache-test"},
            "admin": {"address": socket_address(self.admin.unwrap_or(free_port()))},
            // Histograms show up in the stats only after a flush.
            "stats_flush_interval": "0.05s",
            "static_resources": {
                "clusters": self
                    .clusters
                    .iter()
                    .map(|cluster| cluster.render(self.buffer_limit))
                    .collect::<Vec<_>>(),
            },
        });
        let mut listeners = None;
        if self.watched {
            let path = directory.join(LISTENERS_FILE);
            bootstrap["dynamic_resources"] = json!({"lds_config": {
                "resource_api_version": "V3",
                "path_config_source": {"path": path},
            }});
            let mut resource = listener;
            resource["@type"] = json!("type.googleapis.com/envoy.config.listener.v3.Listener");
            listeners = Some(json!({"version_info": "", "resources": [resource]}).to_string());
        } else {
            bootstrap["static_resources"]["listeners"] = json!([listener]);
        }
        for patch in &self.patches {
            patch(&mut bootstrap);
        }
        if compiled_in {
            to_compiled_in(&mut bootstrap);
        }
        Rendered { main: bootstrap.to_string(), listeners }
    }

    fn render_example(&self, text: &str) -> String {
        let port = |address: Option<SocketAddr>| address.map_or(0, |address| address.port());
        let cluster = |index, port| {
            self.clusters.get(index).map_or(port, |cluster: &Cluster| cluster.address.port())
        };
        let (upstream, second) = (cluster(0, 10001), cluster(1, 10002));
        // In two steps, for a port put in may be one that is still to be replaced.
        text.replace("port_value: 10000", "port_value: LISTENER")
            .replace("port_value: 9901", "port_value: ADMIN")
            .replace("port_value: 10001", "port_value: UPSTREAM")
            .replace("port_value: 10002", "port_value: SECOND")
            .replace("port_value: LISTENER", &format!("port_value: {}", port(self.listen)))
            .replace("port_value: ADMIN", &format!("port_value: {}", port(self.admin)))
            .replace("port_value: UPSTREAM", &format!("port_value: {upstream}"))
            .replace("port_value: SECOND", &format!("port_value: {second}"))
    }

    fn render_listener(&self, directory: &Path) -> Value {
        let default_route = [Route::prefix("/")];
        let routes = if self.routes.is_empty() { &default_route[..] } else { &self.routes };
        let mut filters = self.filters.clone();
        filters.push(envoy_filter(
            "envoy.filters.http.router",
            "filters.http.router.v3.Router",
            json!({}),
        ));
        let mut manager = json!({
            "stat_prefix": "ingress",
            "codec_type": "AUTO",
            "http_protocol_options": {"enable_trailers": true},
            "http2_protocol_options": http2_options(self.buffer_limit),
            "http_filters": filters,
            "route_config": {
                "name": "routes",
                "typed_per_filter_config": self.table_filter_config,
                "virtual_hosts": [{
                    "name": "host",
                    "domains": ["*"],
                    "typed_per_filter_config": self.host_filter_config,
                    "routes": routes.iter().map(|route| &route.0).collect::<Vec<_>>(),
                }],
            },
        });
        if let Some(format) = &self.access_log {
            let log = typed(
                "access_loggers.file.v3.FileAccessLog",
                json!({
                    "path": directory.join(ACCESS_LOG_FILE),
                    "log_format": {"text_format_source": {"inline_string": format}},
                }),
            );
            manager["access_log"] =
                json!([{"name": "envoy.access_loggers.file", "typed_config": log}]);
        }
        for (field, value) in &self.manager {
            manager[field] = value.clone();
        }
        for patch in &self.manager_patches {
            patch(&mut manager);
        }
        let manager = envoy_filter(
            "envoy.filters.network.http_connection_manager",
            "filters.network.http_connection_manager.v3.HttpConnectionManager",
            manager,
        );
        let mut listener = json!({
            "name": "listener",
            "address": socket_address(self.listen.unwrap_or(free_port())),
            "filter_chains": [{"filters": [manager]}],
        });
        if let Some(limit) = self.buffer_limit {
            listener["per_connection_buffer_limit_bytes"] = json!(limit);
        }
        listener
    }
}

/// Turns the configs of modules' filters into those of compiled-in ones, wherever they are.
fn to_compiled_in(value: &mut Value) {
    const MODULE: &str = "filters.http.dynamic_modules.v3.DynamicModuleFilter";
    match value {
        Value::Array(list) => list.iter_mut().for_each(to_compiled_in),
        Value::Object(fields) => {
            let kind = fields.get("@type").and_then(Value::as_str);
            let kind = kind.and_then(|kind| kind.strip_prefix(EXTENSIONS)?.strip_prefix('.'));
            let per_route = match kind.and_then(|kind| kind.strip_prefix(MODULE)) {
                Some("") => false,
                Some("PerRoute") => true,
                _ => return fields.values_mut().for_each(to_compiled_in),
            };
            let name = if per_route { "per_route_config_name" } else { "filter_name" };
            let kind = if per_route { "FilterPerRoute" } else { "Filter" };
            let mut ours = json!({
                "@type": format!("type.googleapis.com/attache.v3alpha.{kind}"),
                "name": fields[name],
            });
            match fields.remove("filter_config") {
                Some(config) => ours["config"] = config,
                None if per_route => ours["config"] = any_struct(json!({})),
                None => {}
            }
            *value = ours;
        }
        _ => {}
    }
}

/// As [`to_compiled_in`], for an example's YAML: its keys are changed where they stand.
fn example_for_compiled_in(text: &str) -> String {
    const MODULE: &str = ".filters.http.dynamic_modules.v3.DynamicModuleFilter";
    const KEYS: [(&str, &str); 3] = [
        (" per_route_config_name:", " name:"),
        (" filter_name:", " name:"),
        (" filter_config:", " config:"),
    ];
    let lines = text.lines().filter(|line| !line.trim().starts_with("dynamic_module_config:"));
    let text = lines.fold(String::new(), |all, line| all + line + "\n");
    let kind = format!("{EXTENSIONS}{MODULE}");
    let text = text.replace(&kind, "type.googleapis.com/attache.v3alpha.Filter");
    KEYS.iter().fold(text, |text, (from, to)| text.replace(from, to))
}

fn free_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}
