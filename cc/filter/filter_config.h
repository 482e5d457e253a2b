// A filter's config in Envoy: the Rust filter that was loaded from it, its metrics, calls to
// clusters, secrets and runtime flags. And what a route says about that filter.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "envoy/router/router.h"
#include "envoy/server/factory_context.h"
#include "envoy/stats/scope.h"
#include "envoy/stats/stats.h"

#include "source/common/stats/symbol_table.h"
#include "source/common/stats/utility.h"

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/optional.h"
#include "cc/bridge/bridge.h"
#include "cc/filter/cluster_call.h"
#include "cc/filter/secrets.h"
#include "cc/filter/worker_link.h"

namespace Envoy {
namespace Attache {

class FilterConfig;
using FilterConfigSharedPtr = std::shared_ptr<FilterConfig>;

// Owned by the filter factory and by every stream, so the last one may drop it on any thread.
class FilterConfig : public ::attache::bridge::ConfigHost,
                     public std::enable_shared_from_this<FilterConfig> {
public:
  // Loads the filter. The error is a text for the user, made by Rust.
  static absl::StatusOr<FilterConfigSharedPtr>
  load(absl::string_view name, absl::string_view config, bool fail_open, Stats::Scope& scope,
       Server::Configuration::ServerFactoryContext& context, OptRef<Init::Manager> init_manager);

  ~FilterConfig() override;

  const ::attache::bridge::FilterConfig& loaded() const { return **loaded_; }
  // The server, for what is known there of more than one stream. It outlives all of them.
  Server::Configuration::ServerFactoryContext& server() const { return server_; }
  // The link of the calling worker.
  WorkerLinkSharedPtr currentWorker() const { return workers_->current(); }

  // Not before there is one: filters of clusters are loaded while it is made.
  Upstream::ClusterManager& clusterManager() const { return server_.clusterManager(); }

  // A wake-up that was posted to the main thread.
  void onScheduled() { loaded().onScheduled(); }

  // attache::bridge::ConfigHost
  bool defineMetric(::attache::bridge::MetricKind kind, rust::Str name,
                    rust::Slice<const rust::Str> labels, std::size_t& id,
                    rust::String& error) noexcept override;
  void updateMetric(::attache::bridge::MetricKind kind, std::size_t id,
                    ::attache::bridge::MetricOp op, std::uint64_t value,
                    rust::Slice<const rust::Str> labels) const noexcept override;
  std::unique_ptr<::attache::bridge::Notifier> makeNotifier() noexcept override;
  std::unique_ptr<::attache::bridge::ClusterCalls> makeClusterCalls() noexcept override;
  bool watchSecret(rust::Str name, rust::Str sds_config,
                   rust::Box<::attache::bridge::SecretSlot> slot,
                   rust::String& error) noexcept override;
  std::unique_ptr<::attache::bridge::RuntimeFlags> makeRuntimeFlags() const noexcept override;

private:
  // A metric as it was defined. One without labels is looked up once, one with labels for each
  // update: its values make it another metric of Envoy's.
  template <class Stat> struct Metric {
    Stats::StatName name_;
    Stats::StatNameVec labels_;
    Stat* plain_{};
  };

  FilterConfig(Stats::Scope& scope, Server::Configuration::ServerFactoryContext& context);

  template <class Stat, class Lookup>
  std::size_t define(std::vector<Metric<Stat>>& metrics, rust::Str name,
                     rust::Slice<const rust::Str> labels, Lookup lookup);
  template <class Stat, class Lookup, class Update>
  void update(const std::vector<Metric<Stat>>& metrics, std::size_t id,
              rust::Slice<const rust::Str> values, Lookup lookup, Update update) const;

  Server::Configuration::ServerFactoryContext& server_;
  const std::shared_ptr<WorkerLinks> workers_;
  const WorkerLinkSharedPtr main_thread_;
  // Used on the main thread only. Null if the filter calls none.
  std::shared_ptr<ConfigCalls> calls_;
  // The same. Null if it watches none.
  std::unique_ptr<Secrets> secrets_;
  // While the config is loaded.
  OptRef<Init::Manager> init_manager_;
  const Stats::ScopeSharedPtr scope_;
  Stats::StatNamePool names_;
  std::vector<Metric<Stats::Counter>> counters_;
  std::vector<Metric<Stats::Gauge>> gauges_;
  std::vector<Metric<Stats::Histogram>> histograms_;
  // Last: it uses all of the above until it is gone.
  absl::optional<rust::Box<::attache::bridge::FilterConfig>> loaded_;
};

// What a route, a virtual host or a weighted cluster says about a filter.
class RouteConfig : public Router::RouteSpecificFilterConfig {
public:
  // The filter does nothing there.
  RouteConfig() = default;
  explicit RouteConfig(rust::Box<::attache::bridge::RouteConfig> config)
      : config_(std::move(config)) {}

  bool disabled() const { return !config_.has_value(); }
  const ::attache::bridge::RouteConfig& config() const { return **config_; }

private:
  absl::optional<rust::Box<::attache::bridge::RouteConfig>> config_;
};

} // namespace Attache
} // namespace Envoy
