// A filter config, as Envoy would have it: metrics, calls to clusters, and a main thread that
// serves it.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

#include "test/bridge/cluster.h"
#include "test/bridge/worker.h"

#include "cc/bridge/bridge.h"

namespace attache {
namespace test {

// How many notifiers there are, wherever.
inline std::atomic<int> notifiers{0};

// Runs `f` on `worker`, later, if what `alive` points to is still there.
template <class T, class F> class PostingNotifier : public bridge::Notifier {
public:
  PostingNotifier(std::weak_ptr<T> alive, std::shared_ptr<const WorkerLink> worker, F f)
      : alive_(std::move(alive)), worker_(std::move(worker)), f_(std::move(f)) {
    ++notifiers;
  }
  ~PostingNotifier() override { --notifiers; }

  void notify() const noexcept override {
    worker_->post([alive = alive_, f = f_] {
      if (const std::shared_ptr<T> here = alive.lock()) {
        f(*here);
      }
    });
  }

private:
  const std::weak_ptr<T> alive_;
  const std::shared_ptr<const WorkerLink> worker_;
  const F f_;
};

template <class T, class F>
std::unique_ptr<bridge::Notifier> postingNotifier(std::weak_ptr<T> alive,
                                                  std::shared_ptr<const WorkerLink> worker, F f) {
  return std::make_unique<PostingNotifier<T, F>>(std::move(alive), std::move(worker), std::move(f));
}

class Config : public bridge::ConfigHost, public std::enable_shared_from_this<Config> {
public:
  // Loads a filter, on the main thread. Throws rust::Error.
  static std::shared_ptr<Config> load(const Worker& main, const std::string& name,
                                      const std::string& config = "", bool fail_open = false) {
    std::shared_ptr<Config> made(new Config(main));
    main.run([&] {
      const rust::Slice<const std::uint8_t> bytes(
          reinterpret_cast<const std::uint8_t*>(config.data()), config.size());
      made->loaded_.emplace_back(bridge::loadConfig(name, bytes, fail_open, made.get()));
    });
    return made;
  }

  // On any thread, while it calls or not: its calls go to the main thread, and end there.
  ~Config() override {
    loaded_.clear();
    if (calls_ != nullptr) {
      link_->post([calls = std::move(calls_)]() mutable { calls.reset(); });
    }
  }

  const bridge::FilterConfig& loaded() const { return *loaded_.front(); }

  // What a metric stands at, for certain values of its labels ("a,b").
  std::int64_t metric(const std::string& name, const std::string& labels = "") const {
    // What other threads have recorded arrives with the main thread's next turn.
    main_.run([] {});
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = values_.find({name, labels});
    return found == values_.end() ? 0 : found->second;
  }

  // Refuses the definition of this metric.
  static inline std::string refuse;

  bool defineMetric(bridge::MetricKind kind, rust::Str name, rust::Slice<const rust::Str> labels,
                    std::size_t& id, rust::String& error) noexcept override {
    if (std::string(name) == refuse) {
      error = "refused by the test";
      return false;
    }
    auto& names = names_[static_cast<std::size_t>(kind)];
    id = names.size();
    names.emplace_back(std::string(name), labels.size());
    return true;
  }

  void updateMetric(bridge::MetricKind kind, std::size_t id, bridge::MetricOp op,
                    std::uint64_t value,
                    rust::Slice<const rust::Str> labels) const noexcept override {
    const auto& [name, length] = names_[static_cast<std::size_t>(kind)].at(id);
    std::string joined;
    for (const rust::Str label : labels) {
      joined += (joined.empty() ? "" : ",") + std::string(label);
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    if (length != labels.size()) {
      ++wrong_;
    }
    std::int64_t& now = values_[{name, joined}];
    switch (op) {
    case bridge::MetricOp::Add:
    case bridge::MetricOp::Record:
      now += static_cast<std::int64_t>(value);
      break;
    case bridge::MetricOp::Sub:
      now -= static_cast<std::int64_t>(value);
      break;
    case bridge::MetricOp::Set:
      now = static_cast<std::int64_t>(value);
      break;
    }
  }

  std::unique_ptr<bridge::Notifier> makeNotifier() noexcept override {
    return postingNotifier(weak_from_this(), main_.link(),
                           [](const Config& config) { config.loaded().onScheduled(); });
  }

  std::unique_ptr<bridge::ClusterCalls> makeClusterCalls() noexcept override {
    calls_ = std::make_shared<ConfigCalls>(main_.link());
    return std::make_unique<ConfigCalls::Handle>(calls_, main_.link());
  }

  // One secret, and no discovery.
  bool watchSecret(rust::Str name, rust::Str sds_config, rust::Box<bridge::SecretSlot> slot,
                   rust::String& error) noexcept override {
    if (std::string(name) != "key" || sds_config.size() > 0) {
      error = "there is no such secret";
      return false;
    }
    slot->set(bytesOf("first"));
    slots_.push_back(std::move(slot));
    return true;
  }

  // The secret changes. On the main thread, as Envoy does it.
  void rotate(const std::string& value) const {
    main_.run([&] {
      for (const rust::Box<bridge::SecretSlot>& slot : slots_) {
        slot->set(bytesOf(value));
      }
    });
  }

  std::unique_ptr<bridge::RuntimeFlags> makeRuntimeFlags() const noexcept override {
    return std::make_unique<Flags>();
  }

  // Updates with another number of labels than were defined.
  int wrong() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return wrong_;
  }

private:
  // What each kind of flag is, when its key is "set".
  struct Flags : public bridge::RuntimeFlags {
    static bool isSet(rust::Str key) { return std::string(key) == "set"; }
    bool featureEnabled(rust::Str key, std::uint64_t percent) const noexcept override {
      return isSet(key) || percent >= 100;
    }
    bool boolean(rust::Str key, bool value) const noexcept override { return isSet(key) || value; }
    std::uint64_t integer(rust::Str key, std::uint64_t value) const noexcept override {
      return isSet(key) ? 9 : value;
    }
    double number(rust::Str key, double value) const noexcept override {
      return isSet(key) ? 2.5 : value;
    }
    bool text(rust::Str key, rust::String& value) const noexcept override {
      if (isSet(key)) {
        value = "text";
      }
      return isSet(key);
    }
  };

  explicit Config(const Worker& main) : main_(main), link_(main.link()) {}

  const Worker& main_;
  const std::shared_ptr<const WorkerLink> link_;
  std::vector<rust::Box<bridge::SecretSlot>> slots_;
  // Null if the filter has asked for no cluster.
  std::shared_ptr<ConfigCalls> calls_;
  std::vector<std::pair<std::string, std::size_t>> names_[3];
  mutable std::mutex mutex_;
  mutable std::map<std::pair<std::string, std::string>, std::int64_t> values_;
  mutable int wrong_{};
  // None or one. The last, so that it goes first.
  std::vector<rust::Box<bridge::FilterConfig>> loaded_;
};

} // namespace test
} // namespace attache
