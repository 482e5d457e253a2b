// The HTTP filter that hosts one Rust filter on one stream, downstream or upstream.
//
// It is the `StreamHost` of a Rust `Stream`: Envoy's callbacks become events of the stream, and
// what the stream asks for becomes calls of Envoy. What there is to know of Envoy is in filter.cc,
// beside the code that depends on it.
//
// Life
// * Envoy owns the filter, and destroys it some time after `onDestroy`, when none of its callbacks
//   is on the stack. What others keep is a `weak_ptr`: a wake-up finds the filter or does nothing.
// * Everything runs on the stream's worker thread. The one exception is `Notifier::notify`.
//
// Bytes
// * A frame that is held moves, without a copy, into a buffer of this filter's own, one for each
//   direction, which pushes back on its sender when it is over the stream's limit. Bytes that Envoy
//   holds for the filters of a chain together are left alone.
#pragma once

#include <cstdint>
#include <memory>

#include "envoy/buffer/buffer.h"
#include "envoy/http/filter.h"

#include "source/extensions/filters/http/common/pass_through_filter.h"

#include "absl/types/optional.h"
#include "cc/bridge/bridge.h"
#include "cc/filter/cluster_call.h"
#include "cc/filter/facts.h"
#include "cc/filter/filter_config.h"
#include "cc/filter/worker_link.h"

namespace Envoy {
namespace Attache {

class Filter : public Http::PassThroughFilter,
               public Http::DownstreamWatermarkCallbacks,
               public ::attache::bridge::StreamHost,
               public std::enable_shared_from_this<Filter> {
public:
  explicit Filter(FilterConfigSharedPtr config);
  ~Filter() override;

  // Http::StreamFilterBase
  void onStreamComplete() override;
  void onDestroy() override;
  Http::LocalErrorStatus onLocalReply(const LocalReplyData& data) override;

  // Http::StreamDecoderFilter
  Http::FilterHeadersStatus decodeHeaders(Http::RequestHeaderMap& headers,
                                          bool end_stream) override;
  Http::FilterDataStatus decodeData(Buffer::Instance& data, bool end_stream) override;
  Http::FilterTrailersStatus decodeTrailers(Http::RequestTrailerMap& trailers) override;

  // Http::StreamEncoderFilter
  Http::FilterHeadersStatus encodeHeaders(Http::ResponseHeaderMap& headers,
                                          bool end_stream) override;
  Http::FilterDataStatus encodeData(Buffer::Instance& data, bool end_stream) override;
  Http::FilterTrailersStatus encodeTrailers(Http::ResponseTrailerMap& trailers) override;

  // Http::DownstreamWatermarkCallbacks
  void onAboveWriteBufferHighWatermark() override;
  void onBelowWriteBufferLowWatermark() override;

  // A wake-up that was posted to the worker.
  void onScheduled();

  // attache::bridge::StreamHost
  std::size_t header(::attache::bridge::HeaderMapType map, rust::Str name, std::size_t index,
                     ::attache::bridge::Bytes& value) const noexcept override;
  bool headers(::attache::bridge::HeaderMapType map, rust::Slice<::attache::bridge::HeaderView> out,
               std::size_t& count) const noexcept override;
  bool setHeader(::attache::bridge::HeaderMapType map, rust::Str name,
                 rust::Slice<const std::uint8_t> value) noexcept override;
  bool appendHeader(::attache::bridge::HeaderMapType map, rust::Str name,
                    rust::Slice<const std::uint8_t> value) noexcept override;
  bool removeHeader(::attache::bridge::HeaderMapType map, rust::Str name) noexcept override;
  std::size_t bodyLength(::attache::bridge::Direction direction,
                         ::attache::bridge::Area area) const noexcept override;
  std::size_t bodySlices(::attache::bridge::Direction direction, ::attache::bridge::Area area,
                         rust::Slice<::attache::bridge::Bytes> out) const noexcept override;
  void drainBody(::attache::bridge::Direction direction, ::attache::bridge::Area area,
                 std::size_t bytes) noexcept override;
  void appendBody(::attache::bridge::Direction direction, ::attache::bridge::Area area,
                  rust::Slice<const std::uint8_t> data) noexcept override;
  std::uint64_t bufferLimit() const noexcept override;
  void setBufferLimit(std::uint64_t bytes) noexcept override;
  bool othersHold(::attache::bridge::Direction direction) const noexcept override;
  void keepEnd(::attache::bridge::Direction direction, bool kept) noexcept override;
  bool endIsKept(::attache::bridge::Direction direction) const noexcept override;
  bool addTrailers(::attache::bridge::Direction direction, bool now) noexcept override;
  void resume(::attache::bridge::Direction direction) noexcept override;
  void inject(::attache::bridge::Direction direction,
              rust::Slice<const ::attache::bridge::Bytes> data, bool end_stream) noexcept override;
  void release(::attache::bridge::Direction direction) noexcept override;
  void sendReply(std::uint16_t status, rust::Slice<const ::attache::bridge::HeaderView> headers,
                 rust::Slice<const std::uint8_t> body, rust::Str details) noexcept override;
  void sendReplyHeaders(rust::Slice<const ::attache::bridge::HeaderView> headers,
                        bool end_stream) noexcept override;
  void sendReplyData(rust::Slice<const std::uint8_t> data, bool end_stream) noexcept override;
  void
  sendReplyTrailers(rust::Slice<const ::attache::bridge::HeaderView> trailers) noexcept override;
  void reset(::attache::bridge::ResetReason reason, rust::Str details) noexcept override;
  ::attache::bridge::StreamFacts* facts() noexcept override;
  std::unique_ptr<::attache::bridge::Span> span() noexcept override;
  ::attache::bridge::CallStart startCall(rust::Str cluster,
                                         rust::Slice<const ::attache::bridge::HeaderView> headers,
                                         rust::Slice<const std::uint8_t> body, bool end_stream,
                                         std::uint64_t timeout_ms,
                                         std::uint64_t& id) noexcept override;
  bool sendCallData(std::uint64_t id, rust::Slice<const std::uint8_t> data,
                    bool end_stream) noexcept override;
  bool
  sendCallTrailers(std::uint64_t id,
                   rust::Slice<const ::attache::bridge::HeaderView> trailers) noexcept override;
  bool callIsFull(std::uint64_t id) const noexcept override;
  void resetCall(std::uint64_t id) noexcept override;
  std::unique_ptr<::attache::bridge::Notifier> makeNotifier() noexcept override;
  void routeConfigs(::attache::bridge::RouteLevels& levels) const noexcept override;
  void streamId(::attache::bridge::StreamId& id) const noexcept override;

private:
  // How far one direction has come, and what is held of it.
  struct Side {
    // The frame of the data hook that is running.
    Buffer::Instance* frame_{};
    // `Area::Buffer`. Made when something is held for the first time.
    Buffer::InstancePtr held_;
    // The end of the message has arrived, with its headers, a frame or its trailers.
    bool ended_{};
    // It has arrived with the headers.
    bool headers_only_{};
    // The headers have gone to the next filter.
    bool released_{};
    // A hook of this direction is running.
    bool in_hook_{};

    bool holds() const { return held_ != nullptr && held_->length() > 0; }
  };

  ::attache::bridge::Stream& stream() { return **stream_; }
  Side& side(::attache::bridge::Direction direction);
  const Side& side(::attache::bridge::Direction direction) const;
  Side& opposite(::attache::bridge::Direction direction);
  Buffer::Instance* area(::attache::bridge::Direction direction,
                         ::attache::bridge::Area area) const;
  // The map, or null.
  Http::HeaderMap* find(::attache::bridge::HeaderMapType map) const;

  // Begins, unless the route says that the filter does nothing there.
  void begin();
  // Whether Rust has nothing to do with this response. It has with a reply of its own: that may get
  // its body when its headers come by.
  bool passesResponse() const { return !stream_.has_value(); }

  Http::FilterHeadersStatus onHeaders(::attache::bridge::Direction direction, bool end_stream);
  Http::FilterDataStatus onData(::attache::bridge::Direction direction, Buffer::Instance& data,
                                bool end_stream);
  Http::FilterTrailersStatus onTrailers(::attache::bridge::Direction direction);

  Buffer::Instance& held(Side& side, ::attache::bridge::Direction direction);
  void addToSharedBuffer(::attache::bridge::Direction direction, Buffer::InstancePtr data);
  // Starts the stream again, with the request's body, if there is one, as it is held. False if
  // Envoy refuses: then nothing has changed.
  bool recreate();
  void continueIteration(Side& side, ::attache::bridge::Direction direction);
  void continueWithTrailers(Side& side, ::attache::bridge::Direction direction);
  void injectData(Side& side, ::attache::bridge::Direction direction, Buffer::Instance& data,
                  bool end_stream);
  void injectHeld(Side& side, ::attache::bridge::Direction direction, bool end_stream);

  bool trailersExist(::attache::bridge::Direction direction) const;
  const Buffer::Instance* sharedBuffer(::attache::bridge::Direction direction) const;
  double endKept(::attache::bridge::Direction direction) const;

  void watchDownstream();
  bool isNotOurs(const void* chain, std::uint64_t place) const;
  void holdIsFull(::attache::bridge::Direction direction, bool full);

  const FilterConfigSharedPtr config_;
  // There from the request's headers on; of a filter that sees none, from those of the response on.
  absl::optional<rust::Box<::attache::bridge::Stream>> stream_;
  // Made when it is asked for.
  std::unique_ptr<Facts> facts_;
  // Made with the first call.
  std::unique_ptr<StreamCalls> calls_;
  Side request_;
  Side response_;
  // Among the filters of one chain: a filter that is nearer to the upstream has a higher number.
  const std::uint64_t place_;
  // How often the client's side has said that it takes no more, without having taken it back.
  std::uint32_t downstream_full_{};
  // How many of the next such calls repeat what is not meant for us; see `watchDownstream`.
  std::uint32_t not_ours_{};
  bool watching_downstream_{};
  bool saw_request_{};
  bool destroyed_{};
};

} // namespace Attache
} // namespace Envoy
