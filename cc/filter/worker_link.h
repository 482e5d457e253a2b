// A way to a thread of Envoy's that outlasts it.
//
// Rust keeps wakers for as long as it likes, on any thread: past the end of the stream, of its
// config, and of the worker itself. A `WorkerLink` is what they hold. It has the worker's
// dispatcher while the worker lives, and nothing afterwards: a post to a worker that has gone does
// nothing.
#pragma once

#include <memory>

#include "envoy/event/dispatcher.h"
#include "envoy/server/factory_context.h"
#include "envoy/singleton/instance.h"
#include "envoy/thread_local/thread_local.h"
#include "envoy/thread_local/thread_local_object.h"

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/synchronization/mutex.h"

namespace Envoy {
namespace Attache {

class WorkerLink {
public:
  explicit WorkerLink(Event::Dispatcher& dispatcher) : dispatcher_(&dispatcher) {}

  // Runs `callback` on the worker, later; never if the worker is gone. Any thread. The callback
  // must own nothing that may not be destroyed on another thread: a worker that ends drops what is
  // still in its queue.
  void post(Event::PostCb callback) const;

  // Runs `f` here and now, while the worker is kept from going; not if it has gone. Any thread. `f`
  // is short, and uses no link.
  void whileOpen(absl::FunctionRef<void()> f) const;

  // The worker goes. Called on its thread.
  void close();

private:
  // Taken only to post or for a short look at what goes with the worker, so no request that does
  // not wait ever takes it; and never held while anything of ours runs that could take another
  // lock.
  mutable absl::Mutex mutex_;
  Event::Dispatcher* dispatcher_ ABSL_GUARDED_BY(mutex_);
};

using WorkerLinkSharedPtr = std::shared_ptr<const WorkerLink>;

// Each thread's link. One for the whole server, and for as long as it runs.
class WorkerLinks : public Singleton::Instance {
public:
  explicit WorkerLinks(ThreadLocal::SlotAllocator& tls);

  static std::shared_ptr<WorkerLinks> get(Server::Configuration::ServerFactoryContext& context);

  // The link of the calling thread, which is one of Envoy's.
  WorkerLinkSharedPtr current();

private:
  // Closes the link when the thread's slots go: before its dispatcher does.
  struct Local : public ThreadLocal::ThreadLocalObject {
    explicit Local(Event::Dispatcher& dispatcher)
        : link_(std::make_shared<WorkerLink>(dispatcher)) {}
    ~Local() override { link_->close(); }

    const std::shared_ptr<WorkerLink> link_;
  };

  ThreadLocal::TypedSlot<Local> slot_;
};

} // namespace Attache
} // namespace Envoy
