#include "cc/filter/cluster_call.h"

#include <algorithm>
#include <chrono>
#include <utility>
#include <vector>

#include "envoy/event/dispatcher.h"
#include "envoy/stream_info/stream_info.h"
#include "envoy/upstream/thread_local_cluster.h"

#include "source/common/buffer/buffer_impl.h"
#include "source/common/http/header_map_impl.h"
#include "source/common/http/utility.h"
#include "source/common/tracing/http_tracer_impl.h"
#include "source/common/tracing/tracer_impl.h"

#include "absl/container/inlined_vector.h"
#include "absl/strings/str_cat.h"
#include "cc/filter/headers.h"
#include "cc/filter/text.h"

namespace Envoy {
namespace Attache {

namespace bridge = ::attache::bridge;

using bridge::CallFailure;
using bridge::CallStart;

namespace {

// The most of Envoy's own answer that is kept.
constexpr std::size_t kTextLimit = 512;

using HeaderViews = absl::InlinedVector<bridge::HeaderView, 32>;
using Slices = absl::InlinedVector<bridge::Bytes, 16>;

HeaderViews views(const Http::HeaderMap& headers) {
  HeaderViews views;
  views.reserve(headers.size());
  headers.iterate([&views](const Http::HeaderEntry& entry) {
    bridge::HeaderView& header = views.emplace_back();
    header.name = bytes(entry.key().getStringView());
    header.value = bytes(entry.value().getStringView());
    return Http::HeaderMap::Iterate::Continue;
  });
  return views;
}

Slices slices(const Buffer::Instance& data) {
  Slices slices;
  for (const Buffer::RawSlice& slice : data.getRawSlices()) {
    slices.push_back(bytes({static_cast<const char*>(slice.mem_), slice.len_}));
  }
  return slices;
}

template <class T> rust::Slice<const typename T::value_type> all(const T& list) {
  return {list.data(), list.size()};
}

} // namespace

// ---- One call -------------------------------------------------------------------------------

CallStart ClusterCall::start(Upstream::ClusterManager& clusters, const Request& request,
                             std::uint64_t id, CallReceiver& receiver, Tracing::Span* parent,
                             ClusterCallSharedPtr& started) {
  Upstream::ThreadLocalCluster* cluster = clusters.getThreadLocalCluster(request.cluster_);
  if (cluster == nullptr) {
    return CallStart::UnknownCluster;
  }
  Http::AsyncClient& client = cluster->httpAsyncClient();
  const ClusterCallSharedPtr call(new ClusterCall(id, receiver, client.dispatcher()));
  call->headers_ =
      makeMap<Http::RequestHeaderMap>(Http::RequestHeaderMapImpl::create(), request.headers_);
  if (call->headers_->Method() == nullptr || call->headers_->Path() == nullptr ||
      call->headers_->Host() == nullptr) {
    return CallStart::InvalidRequest;
  }
  Http::AsyncClient::StreamOptions options;
  if (request.timeout_ms_ > 0) {
    options.setTimeout(std::chrono::milliseconds(request.timeout_ms_));
  }
  call->stream_ = client.start(*call, options);
  if (call->stream_ == nullptr) {
    return CallStart::Unavailable;
  }
  call->stream_->setDestructorCallback([call] {});
  call->sendRequest(request, *cluster->info(), parent);
  call->starting_ = false;
  if (call->failed_.has_value()) {
    call->cancel();
    switch (*call->failed_) {
    case CallFailure::Overflow:
      return CallStart::Overflow;
    case CallFailure::Unavailable:
      return CallStart::NoHealthyHost;
    default:
      return CallStart::Unavailable;
    }
  }
  started = call;
  return CallStart::Started;
}

void ClusterCall::sendRequest(const Request& request, const Upstream::ClusterInfo& cluster,
                              Tracing::Span* parent) {
  if (parent != nullptr) {
    span_ = parent->spawnChild(Tracing::EgressConfig::get(),
                               absl::StrCat("async ", cluster.observabilityName(), " egress"),
                               dispatcher_.timeSource().systemTime());
    Tracing::HttpTraceContext context(*headers_);
    span_->injectContext(
        context, Tracing::UpstreamContext(nullptr, &cluster, Tracing::ServiceType::Http, true));
  }
  if (!request.end_stream_) {
    stream_->setWatermarkCallbacks(*this);
  }
  const bool headers_only = request.end_stream_ && request.body_.empty();
  request_ended_ = request.end_stream_;
  stream_->sendHeaders(*headers_, headers_only);
  // Envoy may have answered for the service by now.
  if (!over_ && !request.body_.empty()) {
    Buffer::OwnedImpl body(request.body_);
    stream_->sendData(body, request.end_stream_);
  }
}

bool ClusterCall::sendData(absl::string_view data, bool end_stream) {
  if (over_ || request_ended_) {
    return false;
  }
  request_ended_ = end_stream;
  Buffer::OwnedImpl copy(data);
  stream_->sendData(copy, end_stream);
  return true;
}

bool ClusterCall::sendTrailers(rust::Slice<const bridge::HeaderView> trailers) {
  if (over_ || request_ended_) {
    return false;
  }
  request_ended_ = true;
  trailers_ = makeMap<Http::RequestTrailerMap>(Http::RequestTrailerMapImpl::create(), trailers);
  stream_->sendTrailers(*trailers_);
  return true;
}

bool ClusterCall::isFull() const { return !over_ && stream_->isAboveWriteBufferHighWatermark(); }

void ClusterCall::cancel() {
  silence();
  if (over_) {
    return;
  }
  if (span_ != nullptr) {
    span_->setTag(Tracing::Tags::get().Canceled, Tracing::Tags::get().True);
  }
  stream_->reset();
}

void ClusterCall::onHeaders(Http::ResponseHeaderMapPtr&& headers, bool end_stream) {
  // The router says so of all that a service has sent, before it passes it on.
  own_answer_ = stream_->streamInfo().responseCodeDetails() !=
                StreamInfo::ResponseCodeDetails::get().ViaUpstream;
  if (span_ != nullptr) {
    stream_->streamInfo().setResponseCode(Http::Utility::getResponseStatus(*headers));
    Tracing::HttpTracerUtility::onUpstreamResponseHeaders(*span_, headers.get());
  }
  if (own_answer_) {
    own_text_ = std::string(headers->getGrpcMessageValue().substr(0, kTextLimit));
  } else if (starting_) {
    // No service can answer within the start. If one did, there would be nobody to tell.
    failed_ = CallFailure::Reset;
  } else if (isReported()) {
    receiver_->onCallHeaders(id_, *headers, end_stream);
  }
}

void ClusterCall::onData(Buffer::Instance& data, bool end_stream) {
  if (own_answer_) {
    const std::uint64_t room = kTextLimit - own_text_.size();
    const std::uint64_t taken = std::min<std::uint64_t>(room, data.length());
    std::string text(taken, '\0');
    data.copyOut(0, taken, text.data());
    own_text_ += text;
    return;
  }
  if (isReported() && (data.length() > 0 || end_stream)) {
    receiver_->onCallData(id_, data, end_stream);
  }
}

void ClusterCall::onTrailers(Http::ResponseTrailerMapPtr&& trailers) {
  if (isReported() && !own_answer_) {
    receiver_->onCallTrailers(id_, *trailers);
  }
}

void ClusterCall::onComplete() {
  over_ = true;
  finishSpan();
  if (own_answer_) {
    fail(failure());
  } else if (isReported()) {
    std::exchange(receiver_, nullptr)->onCallComplete(id_);
  }
}

void ClusterCall::onReset() {
  over_ = true;
  finishSpan();
  // There is no stream if Envoy has not made one.
  const CallFailure failure = stream_ != nullptr ? this->failure() : CallFailure::Reset;
  if (!isReported()) {
    failed_ = failure;
    return;
  }
  dispatcher_.post([weak = weak_from_this(), failure] {
    if (const ClusterCallSharedPtr call = weak.lock(); call != nullptr) {
      call->fail(failure);
    }
  });
}

void ClusterCall::fail(CallFailure failure) {
  failed_ = failure;
  if (isReported()) {
    std::exchange(receiver_, nullptr)->onCallFailed(id_, failure, own_text_);
  }
}

void ClusterCall::onSidestreamBelowLowWatermark() {
  // There may be several reasons for being full, and this only takes away one of them.
  dispatcher_.post([weak = weak_from_this()] {
    const ClusterCallSharedPtr call = weak.lock();
    if (call != nullptr && call->isReported() && !call->over_ && !call->isFull()) {
      call->receiver_->onCallDrained(call->id_);
    }
  });
}

// Envoy notes in the stream's info why it answers for a service, or resets.
CallFailure ClusterCall::failure() const {
  using Flag = StreamInfo::CoreResponseFlag;
  const StreamInfo::StreamInfo& info = stream_->streamInfo();
  if (info.hasResponseFlag(Flag::UpstreamOverflow)) {
    return CallFailure::Overflow;
  }
  for (const Flag flag : {Flag::UpstreamRequestTimeout, Flag::UpstreamMaxStreamDurationReached}) {
    if (info.hasResponseFlag(flag)) {
      return CallFailure::Timeout;
    }
  }
  for (const Flag flag : {Flag::NoHealthyUpstream, Flag::NoClusterFound, Flag::DropOverLoad,
                          Flag::UnconditionalDropOverload}) {
    if (info.hasResponseFlag(flag)) {
      return CallFailure::Unavailable;
    }
  }
  return CallFailure::Reset;
}

void ClusterCall::finishSpan() {
  if (span_ != nullptr) {
    Tracing::HttpTracerUtility::finalizeUpstreamSpan(*span_, stream_->streamInfo(),
                                                     Tracing::EgressConfig::get());
    span_ = nullptr;
  }
}

// ---- Those of a stream ----------------------------------------------------------------------

// The end of one may be the end of another (of the same connection), so all fall silent first.
StreamCalls::~StreamCalls() {
  for (const auto& [id, call] : calls_) {
    call->silence();
  }
  for (const auto& [id, call] : calls_) {
    call->cancel();
  }
}

ClusterCallSharedPtr StreamCalls::find(std::uint64_t id) const {
  const auto found = calls_.find(id);
  return found == calls_.end() ? nullptr : found->second;
}

CallStart StreamCalls::start(const ClusterCall::Request& request, Tracing::Span& span,
                             std::uint64_t& id) {
  ClusterCallSharedPtr call;
  const CallStart started =
      ClusterCall::start(clusters_, request, last_id_ + 1, *this, &span, call);
  if (started == CallStart::Started) {
    id = ++last_id_;
    calls_.emplace(id, std::move(call));
  }
  return started;
}

bool StreamCalls::sendData(std::uint64_t id, absl::string_view data, bool end_stream) {
  const ClusterCallSharedPtr call = find(id);
  return call != nullptr && call->sendData(data, end_stream);
}

bool StreamCalls::sendTrailers(std::uint64_t id, rust::Slice<const bridge::HeaderView> trailers) {
  const ClusterCallSharedPtr call = find(id);
  return call != nullptr && call->sendTrailers(trailers);
}

bool StreamCalls::isFull(std::uint64_t id) const {
  const ClusterCallSharedPtr call = find(id);
  return call != nullptr && call->isFull();
}

void StreamCalls::reset(std::uint64_t id) {
  const ClusterCallSharedPtr call = find(id);
  if (call != nullptr) {
    calls_.erase(id);
    call->cancel();
  }
}

// What is told may destroy the stream, and this with it: so it comes last.

void StreamCalls::onCallHeaders(std::uint64_t id, const Http::ResponseHeaderMap& headers,
                                bool end_stream) {
  stream_.onCallHeaders(id, all(views(headers)), end_stream);
}

void StreamCalls::onCallData(std::uint64_t id, const Buffer::Instance& data, bool end_stream) {
  stream_.onCallData(id, all(slices(data)), end_stream);
}

void StreamCalls::onCallTrailers(std::uint64_t id, const Http::ResponseTrailerMap& trailers) {
  stream_.onCallTrailers(id, all(views(trailers)));
}

void StreamCalls::onCallComplete(std::uint64_t id) {
  const ClusterCallSharedPtr call = find(id);
  calls_.erase(id);
  stream_.onCallComplete(id);
}

void StreamCalls::onCallFailed(std::uint64_t id, CallFailure failure, absl::string_view why) {
  const ClusterCallSharedPtr call = find(id);
  calls_.erase(id);
  stream_.onCallFailed(id, failure, slice(why));
}

void StreamCalls::onCallDrained(std::uint64_t id) { stream_.onCallDrained(id); }

// ---- Those of a config ----------------------------------------------------------------------

namespace {

class ConfigCallsHandle : public bridge::ClusterCalls {
public:
  ConfigCallsHandle(std::weak_ptr<ConfigCalls> calls, WorkerLinkSharedPtr main_thread)
      : calls_(std::move(calls)), main_thread_(std::move(main_thread)) {}

  void start(rust::Box<bridge::SharedCall> call) const noexcept override {
    main_thread_->post([calls = calls_, call = std::move(call)]() mutable {
      if (const std::shared_ptr<ConfigCalls> alive = calls.lock(); alive != nullptr) {
        alive->start(std::move(call));
      }
    });
  }

  void cancel(std::uint64_t id) const noexcept override {
    main_thread_->post([calls = calls_, id] {
      if (const std::shared_ptr<ConfigCalls> alive = calls.lock(); alive != nullptr) {
        alive->cancel(id);
      }
    });
  }

private:
  const std::weak_ptr<ConfigCalls> calls_;
  const WorkerLinkSharedPtr main_thread_;
};

// Takes the request from Rust to Envoy.
class Starter : public bridge::CallStarter {
public:
  Starter(Upstream::ClusterManager& clusters, std::uint64_t id, CallReceiver& receiver)
      : clusters_(clusters), id_(id), receiver_(receiver) {}

  void startCall(rust::Str cluster, rust::Slice<const bridge::HeaderView> headers,
                 rust::Slice<const std::uint8_t> body, std::uint64_t timeout_ms) noexcept override {
    started_ = ClusterCall::start(clusters_, {view(cluster), headers, view(body), true, timeout_ms},
                                  id_, receiver_, nullptr, call_);
  }

  CallStart started_{CallStart::Unavailable};
  ClusterCallSharedPtr call_;

private:
  Upstream::ClusterManager& clusters_;
  const std::uint64_t id_;
  CallReceiver& receiver_;
};

} // namespace

std::unique_ptr<bridge::ClusterCalls> ConfigCalls::handle(const std::shared_ptr<ConfigCalls>& calls,
                                                          WorkerLinkSharedPtr main_thread) {
  return std::make_unique<ConfigCallsHandle>(calls, std::move(main_thread));
}

ConfigCalls::~ConfigCalls() {
  for (const auto& [id, open] : open_) {
    open.call_->silence();
  }
  for (const auto& [id, open] : open_) {
    open.call_->cancel();
  }
}

void ConfigCalls::start(rust::Box<bridge::SharedCall> call) {
  const std::uint64_t id = call->id();
  Starter starter(context_.clusterManager(), id, *this);
  call->send(starter);
  if (starter.started_ != CallStart::Started) {
    call->onRefused(starter.started_);
    return;
  }
  open_.emplace(id, Open{std::move(call), std::move(starter.call_)});
}

void ConfigCalls::cancel(std::uint64_t id) {
  const auto found = open_.find(id);
  if (found != open_.end()) {
    const ClusterCallSharedPtr call = found->second.call_;
    open_.erase(found);
    call->cancel();
  }
}

void ConfigCalls::onCallHeaders(std::uint64_t id, const Http::ResponseHeaderMap& headers,
                                bool end_stream) {
  if (!open_.at(id).told_->onHeaders(all(views(headers)), end_stream)) {
    cancel(id);
  }
}

void ConfigCalls::onCallData(std::uint64_t id, const Buffer::Instance& data, bool end_stream) {
  if (!open_.at(id).told_->onData(all(slices(data)), end_stream)) {
    cancel(id);
  }
}

void ConfigCalls::onCallTrailers(std::uint64_t id, const Http::ResponseTrailerMap&) {
  open_.at(id).told_->onTrailers();
}

void ConfigCalls::onCallComplete(std::uint64_t id) {
  open_.at(id).told_->onComplete();
  open_.erase(id);
}

void ConfigCalls::onCallFailed(std::uint64_t id, CallFailure failure, absl::string_view why) {
  open_.at(id).told_->onFailed(failure, slice(why));
  open_.erase(id);
}

} // namespace Attache
} // namespace Envoy
