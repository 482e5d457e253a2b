#include "cc/filter/filter_config.h"

#include <utility>

#include "cc/filter/runtime_flags.h"
#include "cc/filter/text.h"

namespace Envoy {
namespace Attache {

namespace bridge = ::attache::bridge;

namespace {

// Asks the main thread to serve a config.
class ConfigNotifier : public bridge::Notifier {
public:
  ConfigNotifier(std::weak_ptr<FilterConfig> config, WorkerLinkSharedPtr main_thread)
      : config_(std::move(config)), main_thread_(std::move(main_thread)) {}

  void notify() const noexcept override {
    main_thread_->post([config = config_] {
      if (const FilterConfigSharedPtr alive = config.lock(); alive != nullptr) {
        alive->onScheduled();
      }
    });
  }

private:
  const std::weak_ptr<FilterConfig> config_;
  const WorkerLinkSharedPtr main_thread_;
};

} // namespace

FilterConfig::FilterConfig(Stats::Scope& scope,
                           Server::Configuration::ServerFactoryContext& context)
    : server_(context), workers_(WorkerLinks::get(context)), main_thread_(workers_->current()),
      scope_(scope.createScope("")), names_(scope.symbolTable()) {}

FilterConfig::~FilterConfig() {
  // Before what it uses goes; and it may be the last to refer to the calls that follow.
  loaded_.reset();
  if (calls_ != nullptr || secrets_ != nullptr) {
    main_thread_->post([calls = std::move(calls_), secrets = std::move(secrets_)] {});
  }
}

absl::StatusOr<FilterConfigSharedPtr>
FilterConfig::load(absl::string_view name, absl::string_view config, bool fail_open,
                   Stats::Scope& scope, Server::Configuration::ServerFactoryContext& context,
                   OptRef<Init::Manager> init_manager) {
  FilterConfigSharedPtr made(new FilterConfig(scope, context));
  made->init_manager_ = init_manager;
  try {
    made->loaded_.emplace(bridge::loadConfig(str(name), slice(config), fail_open, made.get()));
  } catch (const rust::Error& refused) {
    return absl::InvalidArgumentError(refused.what());
  }
  made->init_manager_.reset();
  return made;
}

template <class Stat, class Lookup>
std::size_t FilterConfig::define(std::vector<Metric<Stat>>& metrics, rust::Str name,
                                 rust::Slice<const rust::Str> labels, Lookup lookup) {
  Metric<Stat>& metric = metrics.emplace_back();
  metric.name_ = names_.add(view(name));
  for (const rust::Str label : labels) {
    metric.labels_.push_back(names_.add(view(label)));
  }
  if (metric.labels_.empty()) {
    metric.plain_ = &lookup(metric.name_, absl::nullopt);
  }
  return metrics.size() - 1;
}

template <class Stat, class Lookup, class Update>
void FilterConfig::update(const std::vector<Metric<Stat>>& metrics, std::size_t id,
                          rust::Slice<const rust::Str> values, Lookup lookup, Update update) const {
  const Metric<Stat>& metric = metrics[id];
  if (metric.plain_ != nullptr) {
    update(*metric.plain_);
    return;
  }
  Stats::StatNameDynamicPool pool(scope_->symbolTable());
  Stats::StatNameTagVector tags;
  tags.reserve(metric.labels_.size());
  for (std::size_t i = 0; i < metric.labels_.size(); ++i) {
    tags.emplace_back(metric.labels_[i], pool.add(view(values[i])));
  }
  update(lookup(metric.name_, std::cref(tags)));
}

bool FilterConfig::defineMetric(bridge::MetricKind kind, rust::Str name,
                                rust::Slice<const rust::Str> labels, std::size_t& id,
                                rust::String&) noexcept {
  switch (kind) {
  case bridge::MetricKind::Counter:
    id =
        define(counters_, name, labels, [this](Stats::StatName name, auto tags) -> Stats::Counter& {
          return Stats::Utility::counterFromStatNames(*scope_, {name}, tags);
        });
    return true;
  case bridge::MetricKind::Gauge:
    id = define(gauges_, name, labels, [this](Stats::StatName name, auto tags) -> Stats::Gauge& {
      return Stats::Utility::gaugeFromStatNames(*scope_, {name},
                                                Stats::Gauge::ImportMode::Accumulate, tags);
    });
    return true;
  case bridge::MetricKind::Histogram:
    break;
  }
  id = define(histograms_, name, labels,
              [this](Stats::StatName name, auto tags) -> Stats::Histogram& {
                return Stats::Utility::histogramFromStatNames(
                    *scope_, {name}, Stats::Histogram::Unit::Unspecified, tags);
              });
  return true;
}

void FilterConfig::updateMetric(bridge::MetricKind kind, std::size_t id, bridge::MetricOp op,
                                std::uint64_t value,
                                rust::Slice<const rust::Str> labels) const noexcept {
  switch (kind) {
  case bridge::MetricKind::Counter:
    update(
        counters_, id, labels,
        [this](Stats::StatName name, auto tags) -> Stats::Counter& {
          return Stats::Utility::counterFromStatNames(*scope_, {name}, tags);
        },
        [value](Stats::Counter& counter) { counter.add(value); });
    return;
  case bridge::MetricKind::Gauge:
    update(
        gauges_, id, labels,
        [this](Stats::StatName name, auto tags) -> Stats::Gauge& {
          return Stats::Utility::gaugeFromStatNames(*scope_, {name},
                                                    Stats::Gauge::ImportMode::Accumulate, tags);
        },
        [op, value](Stats::Gauge& gauge) {
          switch (op) {
          case bridge::MetricOp::Sub:
            gauge.sub(value);
            return;
          case bridge::MetricOp::Set:
            gauge.set(value);
            return;
          case bridge::MetricOp::Add:
          case bridge::MetricOp::Record:
            gauge.add(value);
            return;
          }
        });
    return;
  case bridge::MetricKind::Histogram:
    update(
        histograms_, id, labels,
        [this](Stats::StatName name, auto tags) -> Stats::Histogram& {
          return Stats::Utility::histogramFromStatNames(*scope_, {name},
                                                        Stats::Histogram::Unit::Unspecified, tags);
        },
        [value](Stats::Histogram& histogram) { histogram.recordValue(value); });
    return;
  }
}

std::unique_ptr<bridge::Notifier> FilterConfig::makeNotifier() noexcept {
  return std::make_unique<ConfigNotifier>(weak_from_this(), main_thread_);
}

std::unique_ptr<bridge::ClusterCalls> FilterConfig::makeClusterCalls() noexcept {
  calls_ = std::make_shared<ConfigCalls>(server_);
  return ConfigCalls::handle(calls_, main_thread_);
}

bool FilterConfig::watchSecret(rust::Str name, rust::Str sds_config,
                               rust::Box<bridge::SecretSlot> slot, rust::String& error) noexcept {
  if (secrets_ == nullptr) {
    secrets_ = std::make_unique<Secrets>(server_);
  }
  const absl::Status watched =
      secrets_->watch(std::string(name), view(sds_config), std::move(slot), init_manager_);
  if (!watched.ok()) {
    error = rust::String::lossy(std::string(watched.message()));
  }
  return watched.ok();
}

std::unique_ptr<bridge::RuntimeFlags> FilterConfig::makeRuntimeFlags() const noexcept {
  return Attache::makeRuntimeFlags(server_.runtime(), main_thread_);
}

} // namespace Attache
} // namespace Envoy
