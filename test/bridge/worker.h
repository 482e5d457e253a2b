// A worker of Envoy's, without Envoy: a thread with a queue.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <thread>

namespace attache {
namespace test {

using Task = std::function<void()>;

// What others have of a worker. It outlives the worker, and then does nothing.
class WorkerLink {
public:
  // Runs the task on the worker, later; never if the worker has ended.
  void post(Task task) const {
    // What is not wanted is dropped without the lock.
    std::unique_lock<std::mutex> lock(mutex_);
    if (!closed_) {
      tasks_.push_back(std::move(task));
      lock.unlock();
      wake_.notify_one();
    }
  }

private:
  friend class Worker;

  mutable std::mutex mutex_;
  mutable std::condition_variable wake_;
  mutable std::deque<Task> tasks_;
  bool closed_{};
};

class Worker {
public:
  Worker() : thread_([this] { loop(); }) {}

  // Does what is in its queue by now, drops what comes later, and ends.
  ~Worker() {
    run([this] {
      const std::lock_guard<std::mutex> lock(link_->mutex_);
      link_->closed_ = true;
    });
    thread_.join();
  }

  void post(Task task) const { link_->post(std::move(task)); }

  // Runs `f` on the worker and waits for what it returns.
  template <class F> auto run(F f) const -> decltype(f()) {
    std::packaged_task<decltype(f())()> task(std::move(f));
    post([&task] { task(); });
    return task.get_future().get();
  }

  std::shared_ptr<const WorkerLink> link() const { return link_; }
  std::thread::id id() const { return thread_.get_id(); }

private:
  void loop() const {
    for (;;) {
      std::deque<Task> tasks;
      {
        std::unique_lock<std::mutex> lock(link_->mutex_);
        link_->wake_.wait(lock, [this] { return !link_->tasks_.empty() || link_->closed_; });
        if (link_->tasks_.empty()) {
          return;
        }
        tasks.swap(link_->tasks_);
      }
      for (; !tasks.empty(); tasks.pop_front()) {
        tasks.front()();
      }
    }
  }

  const std::shared_ptr<WorkerLink> link_ = std::make_shared<WorkerLink>();
  // Last: it uses the others.
  std::thread thread_;
};

} // namespace test
} // namespace attache
