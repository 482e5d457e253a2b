// The generic secrets that a filter's config watches.
//
// Envoy's providers are for the main thread: all of this is made, told and destroyed there.
// `FilterConfig`, which may go on any thread, hands it over to the main thread when it does.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "envoy/common/callback.h"
#include "envoy/common/optref.h"
#include "envoy/init/manager.h"
#include "envoy/secret/secret_provider.h"
#include "envoy/server/factory_context.h"

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "cc/bridge/bridge.h"

namespace Envoy {
namespace Attache {

class Secrets {
public:
  explicit Secrets(Server::Configuration::ServerFactoryContext& context) : context_(context) {}

  // As attache::bridge::ConfigHost::watchSecret. With an init manager, Envoy waits for a secret of
  // its discovery before whatever is initialized by it.
  absl::Status watch(const std::string& name, absl::string_view sds_config,
                     rust::Box<::attache::bridge::SecretSlot> slot,
                     OptRef<Init::Manager> init_manager);

private:
  struct Watched {
    explicit Watched(rust::Box<::attache::bridge::SecretSlot> slot) : slot_(std::move(slot)) {}

    Secret::GenericSecretConfigProviderSharedPtr provider_;
    const rust::Box<::attache::bridge::SecretSlot> slot_;
    // Last: it refers to the others.
    Common::CallbackHandlePtr on_update_;
  };

  void tell(const Watched& watched);

  Server::Configuration::ServerFactoryContext& context_;
  std::vector<std::unique_ptr<Watched>> watched_;
};

} // namespace Attache
} // namespace Envoy
