#include "cc/filter/runtime_flags.h"

#include <cstdint>
#include <string>
#include <utility>

#include "cc/filter/text.h"

namespace Envoy {
namespace Attache {

namespace {

class EnvoyRuntimeFlags : public ::attache::bridge::RuntimeFlags {
public:
  EnvoyRuntimeFlags(Runtime::Loader& loader, WorkerLinkSharedPtr main_thread)
      : loader_(loader), main_thread_(std::move(main_thread)) {}

  bool featureEnabled(rust::Str key, std::uint64_t default_percent) const noexcept override {
    return look(false, [&](const Runtime::Snapshot& flags) {
      return flags.featureEnabled(view(key), default_percent);
    });
  }

  bool boolean(rust::Str key, bool default_value) const noexcept override {
    return look(default_value, [&](const Runtime::Snapshot& flags) {
      return flags.getBoolean(view(key), default_value);
    });
  }

  std::uint64_t integer(rust::Str key, std::uint64_t default_value) const noexcept override {
    return look(default_value, [&](const Runtime::Snapshot& flags) {
      return flags.getInteger(view(key), default_value);
    });
  }

  double number(rust::Str key, double default_value) const noexcept override {
    return look(default_value, [&](const Runtime::Snapshot& flags) {
      return flags.getDouble(view(key), default_value);
    });
  }

  bool text(rust::Str key, rust::String& value) const noexcept override {
    return look(false, [&](const Runtime::Snapshot& flags) {
      const auto text = flags.get(view(key));
      if (text.has_value()) {
        // A flag may come from a file, which may have anything in it.
        value = rust::String::lossy(text->get());
      }
      return text.has_value();
    });
  }

private:
  // What `f` says of the flags, or `otherwise` once Envoy ends.
  template <class T, class F> T look(T otherwise, F f) const {
    main_thread_->whileOpen([&] { otherwise = f(*loader_.threadsafeSnapshot()); });
    return otherwise;
  }

  Runtime::Loader& loader_;
  const WorkerLinkSharedPtr main_thread_;
};

} // namespace

std::unique_ptr<::attache::bridge::RuntimeFlags> makeRuntimeFlags(Runtime::Loader& loader,
                                                                  WorkerLinkSharedPtr main_thread) {
  return std::make_unique<EnvoyRuntimeFlags>(loader, std::move(main_thread));
}

} // namespace Attache
} // namespace Envoy
