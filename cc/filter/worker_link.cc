#include "cc/filter/worker_link.h"

#include <utility>

#include "envoy/singleton/manager.h"

namespace Envoy {
namespace Attache {

SINGLETON_MANAGER_REGISTRATION(attache_worker_links);

void WorkerLink::post(Event::PostCb callback) const {
  absl::MutexLock lock(&mutex_);
  if (dispatcher_ != nullptr) {
    dispatcher_->post(std::move(callback));
  }
}

void WorkerLink::whileOpen(absl::FunctionRef<void()> f) const {
  absl::MutexLock lock(&mutex_);
  if (dispatcher_ != nullptr) {
    f();
  }
}

void WorkerLink::close() {
  absl::MutexLock lock(&mutex_);
  dispatcher_ = nullptr;
}

WorkerLinks::WorkerLinks(ThreadLocal::SlotAllocator& tls) : slot_(tls) {
  slot_.set([](Event::Dispatcher& dispatcher) { return std::make_shared<Local>(dispatcher); });
}

std::shared_ptr<WorkerLinks>
WorkerLinks::get(Server::Configuration::ServerFactoryContext& context) {
  return context.singletonManager().getTyped<WorkerLinks>(
      SINGLETON_MANAGER_REGISTERED_NAME(attache_worker_links),
      [&context] { return std::make_shared<WorkerLinks>(context.threadLocal()); }, /*pin=*/true);
}

WorkerLinkSharedPtr WorkerLinks::current() { return slot_->link_; }

} // namespace Attache
} // namespace Envoy
