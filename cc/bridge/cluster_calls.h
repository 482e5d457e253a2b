// Calls to clusters that belong to a filter's config and not to a stream, made from any thread.
//
// A host makes one `ClusterCalls` for a config; from then on Rust owns it, calls it from any thread
// and deletes it on any thread. It may outlive the config and all but the process, so:
//
// * Neither method waits. Both are carried out later, in order, on the thread where the host makes
//   these calls, which never is before they have returned.
// * When the config is gone, or that thread is, `start` drops the call it is given, which tells
//   whoever waits for it, and `cancel` does nothing. It holds neither of them alive.
// * They may be called with locks of Rust's held: they do not call back. A `SharedCall` may be
// dropped
//   there all the same.
//
// The host keeps a `SharedCall` until it is over or cancelled, or the config goes. It reports to it
// on the one thread that makes the calls, and what it reports runs nothing of the host's.
#pragma once

#include <cstdint>
#include <memory>

#include "rust/cxx.h"

namespace attache {
namespace bridge {

struct HeaderView;
struct SharedCall;

class ClusterCalls {
public:
  virtual ~ClusterCalls() = default;

  // Starts a call. What comes of it is reported by `SharedCall::on..`.
  virtual void start(rust::Box<SharedCall> call) const noexcept = 0;

  // Nobody waits for a call any more: it is reset and dropped. Does nothing if it is over.
  virtual void cancel(std::uint64_t id) const noexcept = 0;
};

// What `SharedCall::send` gives the request to: all headers, a whole body, and how long the
// response may take in milliseconds (0: for ever). Valid during the call.
class CallStarter {
public:
  virtual ~CallStarter() = default;

  virtual void startCall(rust::Str cluster, rust::Slice<const HeaderView> headers,
                         rust::Slice<const std::uint8_t> body,
                         std::uint64_t timeout_ms) noexcept = 0;
};

} // namespace bridge
} // namespace attache
