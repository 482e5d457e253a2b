// A filter config of Envoy's, as Rust sees it: its metrics, calls to clusters, secrets and
// runtime flags.
//
// The host owns it, and keeps it until the `FilterConfig` that was loaded with it is dropped, which
// is after the last stream of that config has been destroyed. If loading fails, Rust has let go of
// it when `loadConfig` throws; notifiers and calls that it made may be called later all the same.
//
// * All but `updateMetric` is called on the main thread, during `loadConfig`.
// * `updateMetric` is called on worker threads, from within an event of a stream of this config,
//   and on the main thread, from within `FilterConfig::onScheduled`: at the same time, so it is
//   `const` and thread-safe. What other threads record waits for the main thread.
// * The notifier asks the main thread for `FilterConfig::onScheduled`.
//
// Texts and slices are valid during the call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "cc/bridge/cluster_calls.h"
#include "cc/bridge/notifier.h"
#include "cc/bridge/runtime_flags.h"
#include "rust/cxx.h"

namespace attache {
namespace bridge {

enum class MetricKind : std::uint8_t;
enum class MetricOp : std::uint8_t;
struct SecretSlot;

class ConfigHost {
public:
  virtual ~ConfigHost() = default;

  // Defines a metric, with the names of its labels. Returns true and the host's own number for it,
  // among those of its kind; or false and the reason, for the user.
  virtual bool defineMetric(MetricKind kind, rust::Str name, rust::Slice<const rust::Str> labels,
                            std::size_t& id, rust::String& error) noexcept = 0;

  // Updates a metric. `labels` are the values, as many as were defined.
  virtual void updateMetric(MetricKind kind, std::size_t id, MetricOp op, std::uint64_t value,
                            rust::Slice<const rust::Str> labels) const noexcept = 0;

  // Called at most once.
  virtual std::unique_ptr<Notifier> makeNotifier() noexcept = 0;

  // Called at most once, if the filter wants to call clusters from other threads.
  virtual std::unique_ptr<ClusterCalls> makeClusterCalls() noexcept = 0;

  // Tells `slot` of the values of a generic secret until the config goes: of a static one of
  // Envoy's, or of one of its secret discovery if there is a `sds_config` (a ConfigSource as JSON).
  // What is known is told before this returns. False if there is no such secret, with the reason
  // for the user.
  virtual bool watchSecret(rust::Str name, rust::Str sds_config, rust::Box<SecretSlot> slot,
                           rust::String& error) noexcept = 0;

  virtual std::unique_ptr<RuntimeFlags> makeRuntimeFlags() const noexcept = 0;
};

} // namespace bridge
} // namespace attache
