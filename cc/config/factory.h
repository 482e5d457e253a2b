// Makes the filter known to Envoy: `type.googleapis.com/attache.v3alpha.Filter`, in the filter
// chain of a listener or of a cluster, and `attache.v3alpha.FilterPerRoute` on routes.
#pragma once

#include <string>

#include "source/extensions/filters/http/common/factory_base.h"

#include "contrib/api/attache/v3alpha/attache.pb.h"
#include "contrib/api/attache/v3alpha/attache.pb.validate.h"

namespace Envoy {
namespace Attache {

class FilterFactory
    : public Extensions::HttpFilters::Common::DualFactoryBase<::attache::v3alpha::Filter,
                                                              ::attache::v3alpha::FilterPerRoute> {
public:
  FilterFactory();

private:
  absl::StatusOr<Http::FilterFactoryCb>
  createFilterFactoryFromProtoTyped(const ::attache::v3alpha::Filter& config,
                                    const std::string& stats_prefix, DualInfo info,
                                    Server::Configuration::ServerFactoryContext& context) override;
  Http::FilterFactoryCb createFilterFactoryFromProtoWithServerContextTyped(
      const ::attache::v3alpha::Filter& config, const std::string& stats_prefix,
      Server::Configuration::ServerFactoryContext& context) override;
  absl::StatusOr<Router::RouteSpecificFilterConfigConstSharedPtr>
  createRouteSpecificFilterConfigTyped(const ::attache::v3alpha::FilterPerRoute& config,
                                       Server::Configuration::ServerFactoryContext& context,
                                       ProtobufMessage::ValidationVisitor& validator) override;
};

// The same, in the registry of filters of clusters.
class UpstreamFilterFactory : public FilterFactory {};

} // namespace Attache
} // namespace Envoy
