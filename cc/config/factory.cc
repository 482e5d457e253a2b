#include "cc/config/factory.h"

#include <memory>
#include <utility>

#include "envoy/registry/registry.h"

#include "source/common/protobuf/utility.h"

#include "cc/config/envoy_log.h"
#include "cc/filter/filter.h"
#include "cc/filter/filter_config.h"
#include "cc/filter/text.h"

namespace Envoy {
namespace Attache {

namespace bridge = ::attache::bridge;

namespace {

// What Rust gets: as from stock Envoy, which hands the same forms to a dynamic module.
absl::StatusOr<std::string> configBytes(bool given, const Protobuf::Any& config) {
  return given ? MessageUtil::knownAnyToBytes(config) : std::string();
}

// Before the first use of anything in Rust: the names of the filters, and where log lines go.
absl::Status initialize() {
  try {
    bridge::init(std::make_unique<EnvoyLog>());
  } catch (const rust::Error& error) {
    return absl::FailedPreconditionError(error.what());
  }
  return absl::OkStatus();
}

absl::StatusOr<Http::FilterFactoryCb>
makeFactory(const ::attache::v3alpha::Filter& config, Stats::Scope& scope,
            Server::Configuration::ServerFactoryContext& context,
            OptRef<Init::Manager> init_manager) {
  RETURN_IF_NOT_OK(initialize());
  const absl::StatusOr<std::string> bytes = configBytes(config.has_config(), config.config());
  RETURN_IF_NOT_OK_REF(bytes.status());
  absl::StatusOr<FilterConfigSharedPtr> loaded =
      FilterConfig::load(config.name(), *bytes, config.fail_open(), scope, context, init_manager);
  RETURN_IF_NOT_OK_REF(loaded.status());
  return [config = std::move(*loaded)](Http::FilterChainFactoryCallbacks& callbacks) {
    callbacks.addStreamFilter(std::make_shared<Filter>(config));
  };
}

} // namespace

FilterFactory::FilterFactory() : DualFactoryBase("attache") {}

absl::StatusOr<Http::FilterFactoryCb> FilterFactory::createFilterFactoryFromProtoTyped(
    const ::attache::v3alpha::Filter& config, const std::string&, DualInfo info,
    Server::Configuration::ServerFactoryContext& context) {
  return makeFactory(config, info.scope, context, info.init_manager);
}

Http::FilterFactoryCb FilterFactory::createFilterFactoryFromProtoWithServerContextTyped(
    const ::attache::v3alpha::Filter& config, const std::string&,
    Server::Configuration::ServerFactoryContext& context) {
  absl::StatusOr<Http::FilterFactoryCb> factory =
      makeFactory(config, context.scope(), context, absl::nullopt);
  THROW_IF_NOT_OK_REF(factory.status());
  return *std::move(factory);
}

absl::StatusOr<Router::RouteSpecificFilterConfigConstSharedPtr>
FilterFactory::createRouteSpecificFilterConfigTyped(
    const ::attache::v3alpha::FilterPerRoute& config, Server::Configuration::ServerFactoryContext&,
    ProtobufMessage::ValidationVisitor&) {
  if (config.disabled()) {
    return std::make_shared<const RouteConfig>();
  }
  RETURN_IF_NOT_OK(initialize());
  const absl::StatusOr<std::string> bytes = configBytes(config.has_config(), config.config());
  RETURN_IF_NOT_OK_REF(bytes.status());
  try {
    return std::make_shared<const RouteConfig>(
        bridge::loadRouteConfig(str(config.name()), slice(*bytes)));
  } catch (const rust::Error& refused) {
    return absl::InvalidArgumentError(refused.what());
  }
}

REGISTER_FACTORY(FilterFactory, Server::Configuration::NamedHttpFilterConfigFactory);
REGISTER_FACTORY(UpstreamFilterFactory, Server::Configuration::UpstreamHttpFilterConfigFactory);

} // namespace Attache
} // namespace Envoy
