"""Which of Envoy's extensions are compiled into `//:envoy`.

A small set, so that it builds in reasonable time: what HTTP needs, and what our tests use. Add a line
from Envoy's source/extensions/extensions_build_config.bzl for each further one that you need.
"""

EXTENSIONS = {
    # HTTP
    "envoy.filters.network.http_connection_manager": "//source/extensions/filters/network/http_connection_manager:config",
    "envoy.filters.http.router": "//source/extensions/filters/http/router:config",
    "envoy.upstreams.http.http": "//source/extensions/upstreams/http/http:config",
    "envoy.route.early_data_policy.default": "//source/extensions/early_data:default_early_data_policy_lib",
    "envoy.http.original_ip_detection.xff": "//source/extensions/http/original_ip_detection/xff:config",
    "envoy.request_id.uuid": "//source/extensions/request_id/uuid:config",

    # Clusters, and how they find and choose hosts ("dns" is STRICT_DNS and LOGICAL_DNS)
    "envoy.clusters.dns": "//source/extensions/clusters/dns:dns_cluster_lib",
    "envoy.clusters.static": "//source/extensions/clusters/static:static_cluster_lib",
    "envoy.load_balancing_policies.cluster_provided": "//source/extensions/load_balancing_policies/cluster_provided:config",
    "envoy.load_balancing_policies.least_request": "//source/extensions/load_balancing_policies/least_request:config",
    "envoy.load_balancing_policies.random": "//source/extensions/load_balancing_policies/random:config",
    "envoy.load_balancing_policies.round_robin": "//source/extensions/load_balancing_policies/round_robin:config",
    "envoy.network.dns_resolver.cares": "//source/extensions/network/dns_resolver/cares:config",

    # Connections
    "envoy.transport_sockets.raw_buffer": "//source/extensions/transport_sockets/raw_buffer:config",
    "envoy.transport_sockets.tls": "//source/extensions/transport_sockets/tls:config",

    # Logs and configuration from files
    "envoy.access_loggers.file": "//source/extensions/access_loggers/file:config",
    "envoy.access_loggers.stderr": "//source/extensions/access_loggers/stream:config",
    "envoy.access_loggers.stdout": "//source/extensions/access_loggers/stream:config",
    "envoy.config_subscription.filesystem": "//source/extensions/config_subscription/filesystem:filesystem_subscription_lib",
    "envoy.config_subscription.filesystem_collection": "//source/extensions/config_subscription/filesystem:filesystem_subscription_lib",

    # Tracers: where the spans of a stream, and those of filters, go
    "envoy.tracers.opentelemetry": "//source/extensions/tracers/opentelemetry:config",
    "envoy.tracers.opentelemetry.resource_detectors.environment": "//source/extensions/tracers/opentelemetry/resource_detectors/environment:config",
    "envoy.tracers.opentelemetry.samplers.always_on": "//source/extensions/tracers/opentelemetry/samplers/always_on:config",
    "envoy.tracers.opentelemetry.samplers.parent_based": "//source/extensions/tracers/opentelemetry/samplers/parent_based:config",
    "envoy.tracers.opentelemetry.samplers.trace_id_ratio_based": "//source/extensions/tracers/opentelemetry/samplers/trace_id_ratio_based:config",
    "envoy.tracers.zipkin": "//source/extensions/tracers/zipkin:config",

    # Other filters, which the tests put before and behind ours
    "envoy.filters.http.buffer": "//source/extensions/filters/http/buffer:config",
    "envoy.filters.http.fault": "//source/extensions/filters/http/fault:config",
    "envoy.filters.http.header_mutation": "//source/extensions/filters/http/header_mutation:config",
    "envoy.filters.http.set_filter_state": "//source/extensions/filters/http/set_filter_state:config",
    "envoy.filters.http.set_metadata": "//source/extensions/filters/http/set_metadata:config",
}

# The rest of what Envoy expects in this file. Public, since our own targets use Envoy's extensions.
EXTENSION_CONFIG_VISIBILITY = ["//visibility:public"]
EXTENSION_PACKAGE_VISIBILITY = ["//visibility:public"]
CONTRIB_EXTENSION_PACKAGE_VISIBILITY = ["//:contrib_library"]
MOBILE_PACKAGE_VISIBILITY = ["//:mobile_library"]

LEGACY_ALWAYSLINK = 1
