// Clusters in place of Envoy's, and a service behind them that answers by the path of a request.
//
// It is as asynchronous as Envoy is: each piece of an answer is a task of its own in the queue of
// the worker that made the call. And it is late: what is in the queue when a call is reset is
// reported all the same, as long as there is somebody to report to, since Rust has to ignore it.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "test/bridge/worker.h"

#include "cc/bridge/bridge.h"

namespace attache {
namespace test {

using HeaderList = std::vector<std::pair<std::string, std::string>>;

// Whom a call reports to.
class CallReceiver {
public:
  virtual ~CallReceiver() = default;
  virtual void callHeaders(std::uint64_t id, const HeaderList& headers) = 0;
  virtual void callData(std::uint64_t id, const std::string& data, bool end_stream) = 0;
  virtual void callTrailers(std::uint64_t id, const HeaderList& trailers) = 0;
  virtual void callComplete(std::uint64_t id) = 0;
  virtual void callFailed(std::uint64_t id, bridge::CallFailure failure,
                          const std::string& why) = 0;
  virtual void callDrained(std::uint64_t id) = 0;
};

class Call : public std::enable_shared_from_this<Call> {
public:
  // How many there are; how many were reset before their end; the most that one service had not
  // read.
  static inline std::atomic<int> alive{0};
  static inline std::atomic<int> cancelled{0};
  static inline std::atomic<std::size_t> most_unread{0};

  // What a cluster of this name answers to a start.
  static bridge::CallStart startOf(const std::string& cluster) {
    static const std::map<std::string, bridge::CallStart> known = {
        {"service", bridge::CallStart::Started},
        {"sick", bridge::CallStart::NoHealthyHost},
        {"busy", bridge::CallStart::Overflow},
        {"shut", bridge::CallStart::Unavailable}};
    const auto found = known.find(cluster);
    return found == known.end() ? bridge::CallStart::UnknownCluster : found->second;
  }

  Call(std::uint64_t id, std::string path, std::shared_ptr<const WorkerLink> worker,
       std::weak_ptr<CallReceiver> receiver)
      : id_(id), path_(std::move(path)), worker_(std::move(worker)),
        receiver_(std::move(receiver)) {
    ++alive;
  }
  ~Call() { --alive; }

  // False once it is over.
  bool send(const std::string& data, bool end_stream) {
    if (over_ || sent_) {
      return false;
    }
    if (!data.empty()) {
      // It reads each piece in a turn of its own, and has room for one.
      body_ += data;
      unread_ += data.size();
      std::size_t most = most_unread;
      while (most < unread_ && !most_unread.compare_exchange_weak(most, unread_)) {
      }
      later([size = data.size()](Call& call, CallReceiver& receiver) {
        call.unread_ -= size;
        receiver.callDrained(call.id_);
      });
    }
    if (end_stream) {
      sent_ = true;
      answer();
    }
    return true;
  }

  bool sendTrailers(HeaderList trailers) {
    trailers_ = std::move(trailers);
    return send("", true);
  }

  bool isFull() const { return unread_ > 0; }

  void reset() {
    if (!over_) {
      over_ = true;
      ++cancelled;
    }
  }

private:
  template <class F> void later(F f) {
    // Its owner may have let go of it; the queue keeps it, and its receiver only if it is there.
    worker_->post([call = shared_from_this(), f] {
      if (const std::shared_ptr<CallReceiver> receiver = call->receiver_.lock()) {
        f(*call, *receiver);
      }
    });
  }

  void answer() {
    if (path_ == "/never") {
      return;
    }
    if (path_ == "/late") {
      later([](Call& call, CallReceiver& receiver) {
        call.over_ = true;
        receiver.callFailed(call.id_, bridge::CallFailure::Timeout, "upstream request timeout");
      });
      return;
    }
    later([](Call& call, CallReceiver& receiver) {
      receiver.callHeaders(call.id_, {{":status", "200"}, {"x-path", call.path_}});
    });
    if (path_ == "/cut") {
      later([](Call& call, CallReceiver& receiver) { receiver.callData(call.id_, "ha", false); });
      later([](Call& call, CallReceiver& receiver) {
        call.over_ = true;
        receiver.callFailed(call.id_, bridge::CallFailure::Reset, "");
      });
      return;
    }
    const std::string body = path_ == "/echo" ? body_ : "yes";
    later([body](Call& call, CallReceiver& receiver) {
      receiver.callData(call.id_, body, call.trailers_.empty());
    });
    later([](Call& call, CallReceiver& receiver) {
      if (!call.trailers_.empty()) {
        receiver.callTrailers(call.id_, call.trailers_);
      }
    });
    later([](Call& call, CallReceiver& receiver) {
      call.over_ = true;
      receiver.callComplete(call.id_);
    });
  }

  const std::uint64_t id_;
  const std::string path_;
  const std::shared_ptr<const WorkerLink> worker_;
  const std::weak_ptr<CallReceiver> receiver_;
  std::string body_;
  HeaderList trailers_;
  std::size_t unread_{};
  bool sent_{};
  bool over_{};
};

// The calls of one owner, by number.
class Calls {
public:
  ~Calls() {
    for (const auto& [id, call] : calls_) {
      call->reset();
    }
  }

  void add(std::uint64_t id, std::shared_ptr<Call> call) { calls_.emplace(id, std::move(call)); }
  std::shared_ptr<Call> find(std::uint64_t id) const {
    const auto found = calls_.find(id);
    return found == calls_.end() ? nullptr : found->second;
  }
  void erase(std::uint64_t id) { calls_.erase(id); }
  void reset(std::uint64_t id) {
    if (const std::shared_ptr<Call> call = find(id)) {
      calls_.erase(id);
      call->reset();
    }
  }

private:
  std::map<std::uint64_t, std::shared_ptr<Call>> calls_;
};

// A list as Rust is given it. The views are those of `headers`.
inline std::vector<bridge::HeaderView> views(const HeaderList& headers) {
  const auto bytes = [](const std::string& text) -> bridge::Bytes {
    return {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()};
  };
  std::vector<bridge::HeaderView> views;
  for (const auto& [name, value] : headers) {
    views.push_back({bytes(name), bytes(value)});
  }
  return views;
}

inline rust::Slice<const std::uint8_t> bytesOf(const std::string& text) {
  return {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()};
}

inline std::string pathOf(rust::Slice<const bridge::HeaderView> headers) {
  for (const bridge::HeaderView& header : headers) {
    const std::string name(reinterpret_cast<const char*>(header.name.data), header.name.size);
    if (name == ":path") {
      return {reinterpret_cast<const char*>(header.value.data), header.value.size};
    }
  }
  return "";
}

// The calls of a config. Used and destroyed on the main thread, as Envoy's are.
class ConfigCalls : public CallReceiver, public std::enable_shared_from_this<ConfigCalls> {
public:
  explicit ConfigCalls(std::shared_ptr<const WorkerLink> main) : main_(std::move(main)) {}

  void start(rust::Box<bridge::SharedCall> told) {
    Starter starter(*this, told->id());
    told->send(starter);
    if (starter.started != bridge::CallStart::Started) {
      told->onRefused(starter.started);
      return;
    }
    const std::uint64_t id = told->id();
    told_.emplace(id, std::move(told));
    calls_.add(id, starter.call);
    starter.call->send(starter.body, true);
  }

  void cancel(std::uint64_t id) {
    told_.erase(id);
    calls_.reset(id);
  }

  void callHeaders(std::uint64_t id, const HeaderList& headers) override {
    const std::vector<bridge::HeaderView> list = views(headers);
    tell(id, [&](bridge::SharedCall& told) {
      return told.onHeaders({list.data(), list.size()}, false);
    });
  }
  void callData(std::uint64_t id, const std::string& data, bool end_stream) override {
    const bridge::Bytes slice{reinterpret_cast<const std::uint8_t*>(data.data()), data.size()};
    tell(id, [&](bridge::SharedCall& told) { return told.onData({&slice, 1}, end_stream); });
  }
  void callTrailers(std::uint64_t id, const HeaderList&) override {
    tell(id, [](bridge::SharedCall& told) { return told.onTrailers(), true; });
  }
  void callComplete(std::uint64_t id) override {
    tell(id, [](bridge::SharedCall& told) { return told.onComplete(), true; });
    told_.erase(id);
    calls_.erase(id);
  }
  void callFailed(std::uint64_t id, bridge::CallFailure failure, const std::string& why) override {
    tell(id, [&](bridge::SharedCall& told) { return told.onFailed(failure, bytesOf(why)), true; });
    told_.erase(id);
    calls_.erase(id);
  }
  void callDrained(std::uint64_t) override {}

  // What Rust has of it.
  class Handle : public bridge::ClusterCalls {
  public:
    Handle(std::weak_ptr<ConfigCalls> calls, std::shared_ptr<const WorkerLink> main)
        : calls_(std::move(calls)), main_(std::move(main)) {}

    void start(rust::Box<bridge::SharedCall> call) const noexcept override {
      // A task is copied, and a call cannot be.
      const auto shared = std::make_shared<std::vector<rust::Box<bridge::SharedCall>>>();
      shared->push_back(std::move(call));
      main_->post([calls = calls_, shared] {
        if (const std::shared_ptr<ConfigCalls> alive = calls.lock()) {
          alive->start(std::move(shared->front()));
          shared->clear();
        }
      });
    }
    void cancel(std::uint64_t id) const noexcept override {
      main_->post([calls = calls_, id] {
        if (const std::shared_ptr<ConfigCalls> alive = calls.lock()) {
          alive->cancel(id);
        }
      });
    }

  private:
    const std::weak_ptr<ConfigCalls> calls_;
    const std::shared_ptr<const WorkerLink> main_;
  };

private:
  struct Starter : public bridge::CallStarter {
    Starter(ConfigCalls& calls, std::uint64_t id) : calls(calls), id(id) {}
    void startCall(rust::Str cluster, rust::Slice<const bridge::HeaderView> headers,
                   rust::Slice<const std::uint8_t> bytes, std::uint64_t) noexcept override {
      started = Call::startOf(std::string(cluster));
      body = {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
      call = std::make_shared<Call>(id, pathOf(headers), calls.main_, calls.weak_from_this());
    }

    ConfigCalls& calls;
    const std::uint64_t id;
    bridge::CallStart started{bridge::CallStart::Unavailable};
    std::string body;
    std::shared_ptr<Call> call;
  };

  template <class F> void tell(std::uint64_t id, F f) {
    const auto found = told_.find(id);
    if (found != told_.end() && !f(*found->second)) {
      cancel(id);
    }
  }

  const std::shared_ptr<const WorkerLink> main_;
  Calls calls_;
  std::map<std::uint64_t, rust::Box<bridge::SharedCall>> told_;
};

} // namespace test
} // namespace attache
