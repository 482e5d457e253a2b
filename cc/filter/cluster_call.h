// Calls to Envoy's clusters, by its asynchronous HTTP client: those of one stream, and those of a
// filter config.
//
// Life
// * A `ClusterCall` is what Envoy reports one call to. Envoy's stream of the call owns it (through
//   the stream's destructor callback), since it refers to the call's headers and callbacks until it
//   is destroyed, some time after its end. Whoever made the call owns it as well, until it is over.
// * A call that nobody wants any more is first cut off from its receiver, and then reset. So
// nothing
//   is ever reported to a stream or a config that has gone.
// * Calls of a stream (`StreamCalls`) live on its worker, and the filter ends them in `onDestroy`.
// * Calls of a config (`ConfigCalls`) live on the main thread, which makes them: all of it is used
//   and destroyed there. Other threads have a `weak_ptr` to it, which is locked on the main thread
//   only, and a link to that thread; so a config may go on any thread, at any time, while it calls
//   or is just being called for, and nobody waits for anybody. `FilterConfig` hands its own
//   reference to the main thread when it goes. Once the main thread takes no more, its cluster
//   manager is gone and has reset all calls, and no other thread of Envoy's is left.
//
// Re-entrancy
// * What a receiver is told may make it end the call, or be destroyed with all its calls, before it
//   returns. Nothing of the receiver's is used after that.
// * Envoy reports a reset, and that a service reads again, from places where a new call or the end
// of
//   this one would disturb it (while a cluster is being removed, in the midst of a request's
//   clean-up). Those two are passed on in the dispatcher's next turn.
// * What fails while it is started is the start's own answer, and is not reported.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "envoy/buffer/buffer.h"
#include "envoy/http/async_client.h"
#include "envoy/http/header_map.h"
#include "envoy/server/factory_context.h"
#include "envoy/tracing/tracer.h"
#include "envoy/upstream/cluster_manager.h"

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"
#include "absl/types/optional.h"
#include "cc/bridge/bridge.h"
#include "cc/filter/worker_link.h"

namespace Envoy {
namespace Attache {

// Whom a call reports to. The events come in Envoy's order; the last one is `onCallComplete` or
// `onCallFailed`, and none comes after `ClusterCall::cancel`.
class CallReceiver {
public:
  virtual ~CallReceiver() = default;

  virtual void onCallHeaders(std::uint64_t id, const Http::ResponseHeaderMap& headers,
                             bool end_stream) PURE;
  virtual void onCallData(std::uint64_t id, const Buffer::Instance& data, bool end_stream) PURE;
  virtual void onCallTrailers(std::uint64_t id, const Http::ResponseTrailerMap& trailers) PURE;
  virtual void onCallComplete(std::uint64_t id) PURE;
  // `why` is Envoy's own text for it, or empty.
  virtual void onCallFailed(std::uint64_t id, ::attache::bridge::CallFailure failure,
                            absl::string_view why) PURE;
  virtual void onCallDrained(std::uint64_t id) PURE;
};

class ClusterCall : public Http::AsyncClient::StreamCallbacks,
                    public Http::SidestreamWatermarkCallbacks,
                    public std::enable_shared_from_this<ClusterCall> {
public:
  struct Request {
    absl::string_view cluster_;
    rust::Slice<const ::attache::bridge::HeaderView> headers_;
    absl::string_view body_;
    bool end_stream_;
    std::uint64_t timeout_ms_;
  };

  // Starts a call. Gives it if it answers Started. With a span, the call is a child of it.
  static ::attache::bridge::CallStart start(Upstream::ClusterManager& clusters,
                                            const Request& request, std::uint64_t id,
                                            CallReceiver& receiver, Tracing::Span* parent,
                                            std::shared_ptr<ClusterCall>& started);

  // Sends more of the request. False if the call is over. It may report.
  bool sendData(absl::string_view data, bool end_stream);
  bool sendTrailers(rust::Slice<const ::attache::bridge::HeaderView> trailers);
  // The service is slow to read.
  bool isFull() const;
  // Nothing is reported any more.
  void silence() { receiver_ = nullptr; }
  // The same, and ends it if it is not over.
  void cancel();

  // Http::AsyncClient::StreamCallbacks
  void onHeaders(Http::ResponseHeaderMapPtr&& headers, bool end_stream) override;
  void onData(Buffer::Instance& data, bool end_stream) override;
  void onTrailers(Http::ResponseTrailerMapPtr&& trailers) override;
  void onComplete() override;
  void onReset() override;

  // Http::SidestreamWatermarkCallbacks
  void onSidestreamAboveHighWatermark() override {}
  void onSidestreamBelowLowWatermark() override;
  // Envoy's client does not slow a service down.
  void addDownstreamWatermarkCallbacks(Http::DownstreamWatermarkCallbacks&) override {}
  void removeDownstreamWatermarkCallbacks(Http::DownstreamWatermarkCallbacks&) override {}

private:
  ClusterCall(std::uint64_t id, CallReceiver& receiver, Event::Dispatcher& dispatcher)
      : id_(id), receiver_(&receiver), dispatcher_(dispatcher) {}

  void sendRequest(const Request& request, const Upstream::ClusterInfo& cluster,
                   Tracing::Span* parent);
  bool isReported() const { return receiver_ != nullptr && !starting_; }
  ::attache::bridge::CallFailure failure() const;
  void fail(::attache::bridge::CallFailure failure);
  void finishSpan();

  const std::uint64_t id_;
  // Null once nothing is to be reported any more.
  CallReceiver* receiver_;
  Event::Dispatcher& dispatcher_;
  // Valid until the call is over, and a little longer.
  Http::AsyncClient::Stream* stream_{};
  // Envoy's stream refers to them.
  Http::RequestHeaderMapPtr headers_;
  Http::RequestTrailerMapPtr trailers_;
  Tracing::SpanPtr span_;
  // The text of what Envoy answers in the service's place.
  std::string own_text_;
  // Why it failed, once it has.
  absl::optional<::attache::bridge::CallFailure> failed_;
  bool starting_{true};
  bool request_ended_{};
  // Envoy answers in the service's place.
  bool own_answer_{};
  // Envoy's stream has ended.
  bool over_{};
};

using ClusterCallSharedPtr = std::shared_ptr<ClusterCall>;

// The calls of one stream, which reports them to Rust. They end with it.
class StreamCalls : public CallReceiver {
public:
  StreamCalls(const ::attache::bridge::Stream& stream, Upstream::ClusterManager& clusters)
      : stream_(stream), clusters_(clusters) {}
  ~StreamCalls() override;

  // As the methods of attache::bridge::StreamHost.
  ::attache::bridge::CallStart start(const ClusterCall::Request& request, Tracing::Span& span,
                                     std::uint64_t& id);
  bool sendData(std::uint64_t id, absl::string_view data, bool end_stream);
  bool sendTrailers(std::uint64_t id, rust::Slice<const ::attache::bridge::HeaderView> trailers);
  bool isFull(std::uint64_t id) const;
  void reset(std::uint64_t id);

  // CallReceiver
  void onCallHeaders(std::uint64_t id, const Http::ResponseHeaderMap& headers,
                     bool end_stream) override;
  void onCallData(std::uint64_t id, const Buffer::Instance& data, bool end_stream) override;
  void onCallTrailers(std::uint64_t id, const Http::ResponseTrailerMap& trailers) override;
  void onCallComplete(std::uint64_t id) override;
  void onCallFailed(std::uint64_t id, ::attache::bridge::CallFailure failure,
                    absl::string_view why) override;
  void onCallDrained(std::uint64_t id) override;

private:
  ClusterCallSharedPtr find(std::uint64_t id) const;

  const ::attache::bridge::Stream& stream_;
  Upstream::ClusterManager& clusters_;
  std::uint64_t last_id_{};
  absl::flat_hash_map<std::uint64_t, ClusterCallSharedPtr> calls_;
};

// The calls of one filter config, on the main thread.
class ConfigCalls : public CallReceiver, public std::enable_shared_from_this<ConfigCalls> {
public:
  // The cluster manager is asked for when there is a call: it may not be there yet.
  explicit ConfigCalls(Server::Configuration::ServerFactoryContext& context) : context_(context) {}
  ~ConfigCalls() override;

  // What Rust calls from any thread.
  static std::unique_ptr<::attache::bridge::ClusterCalls>
  handle(const std::shared_ptr<ConfigCalls>& calls, WorkerLinkSharedPtr main_thread);

  void start(rust::Box<::attache::bridge::SharedCall> call);
  void cancel(std::uint64_t id);

  // CallReceiver
  void onCallHeaders(std::uint64_t id, const Http::ResponseHeaderMap& headers,
                     bool end_stream) override;
  void onCallData(std::uint64_t id, const Buffer::Instance& data, bool end_stream) override;
  void onCallTrailers(std::uint64_t id, const Http::ResponseTrailerMap& trailers) override;
  void onCallComplete(std::uint64_t id) override;
  void onCallFailed(std::uint64_t id, ::attache::bridge::CallFailure failure,
                    absl::string_view why) override;
  // A whole request: there is nothing more to send.
  void onCallDrained(std::uint64_t) override {}

private:
  struct Open {
    rust::Box<::attache::bridge::SharedCall> told_;
    ClusterCallSharedPtr call_;
  };

  Server::Configuration::ServerFactoryContext& context_;
  absl::flat_hash_map<std::uint64_t, Open> open_;
};

} // namespace Attache
} // namespace Envoy
