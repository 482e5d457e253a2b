// Envoy's runtime flags, for threads that Envoy knows nothing of and that may outlive it.
//
// Envoy's loader lives as long as the server. A look at it is made with the main thread's link held
// open: that closes when the server goes down, before the loader does, and then there is nothing to
// look at.
#pragma once

#include <memory>

#include "envoy/runtime/runtime.h"

#include "cc/bridge/bridge.h"
#include "cc/filter/worker_link.h"

namespace Envoy {
namespace Attache {

std::unique_ptr<::attache::bridge::RuntimeFlags> makeRuntimeFlags(Runtime::Loader& loader,
                                                                  WorkerLinkSharedPtr main_thread);

} // namespace Attache
} // namespace Envoy
