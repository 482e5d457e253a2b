// Wakes something of Envoy's from any thread.
//
// A host makes one; from then on Rust owns it, calls it from any thread and deletes it on any
// thread. It may outlive what it wakes, the worker thread and all but the process, so:
//
// * `notify` asks the thread that owns the stream (or the main thread, for a config) to call
//   `onScheduled` there: later, never before `notify` has returned. One call of `onScheduled` for
//   each `notify` is not needed: those that have not been served yet may be served together.
// * It does nothing when the stream or the config is gone. It holds neither of them alive: whatever
//   it posts has a weak reference, and the last strong one is never dropped on a foreign thread.
// * It may be called with locks of Rust's held: it does not call back.
#pragma once

namespace attache {
namespace bridge {

class Notifier {
public:
  virtual ~Notifier() = default;

  virtual void notify() const noexcept = 0;
};

} // namespace bridge
} // namespace attache
