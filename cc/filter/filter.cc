#include "cc/filter/filter.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "envoy/registry/registry.h"
#include "envoy/server/filter_config.h"

#include "source/common/buffer/buffer_impl.h"
#include "source/common/common/macros.h"
#include "source/common/http/header_map_impl.h"
#include "source/common/http/utility.h"

#include "cc/filter/headers.h"
#include "cc/filter/span.h"
#include "cc/filter/text.h"

namespace Envoy {
namespace Attache {

namespace bridge = ::attache::bridge;

using bridge::Area;
using bridge::DataVerdict;
using bridge::Direction;
using bridge::HeaderMapType;
using bridge::Verdict;

namespace {

// Wakes a stream.
class StreamNotifier : public bridge::Notifier {
public:
  StreamNotifier(std::weak_ptr<Filter> filter, WorkerLinkSharedPtr worker)
      : filter_(std::move(filter)), worker_(std::move(worker)) {}

  void notify() const noexcept override {
    // The filter is held only while it runs, and on its own worker.
    worker_->post([filter = filter_] {
      if (const std::shared_ptr<Filter> alive = filter.lock(); alive != nullptr) {
        alive->onScheduled();
      }
    });
  }

private:
  const std::weak_ptr<Filter> filter_;
  const WorkerLinkSharedPtr worker_;
};

// A filter that holds more of a response than it may. Envoy tells that to everybody who watches the
// client's side, whether it is upstream or downstream of the filter. To us it means something only
// if the filter is downstream: what we send would make it worse. Otherwise two filters that hold
// their input until their output is taken could wait for each other.
struct Full {
  const void* chain_;
  std::uint64_t place_;
};

// The filters of this worker that are full. Almost always empty.
std::vector<Full>& fullFilters() {
  static thread_local std::vector<Full> full;
  return full;
}

// The filter that is telling Envoy so.
thread_local const Full* telling = nullptr;

std::uint64_t nextPlace() {
  // A chain's filters are made in the order of its config, on its worker.
  static thread_local std::uint64_t last = 0;
  return ++last;
}

// Whether there may be filters of stock modules in the same chain.
bool hasModules() {
  static const bool has =
      Registry::FactoryRegistry<Server::Configuration::NamedHttpFilterConfigFactory>::getFactory(
          "envoy.filters.http.dynamic_modules") != nullptr;
  return has;
}

} // namespace

Filter::Filter(FilterConfigSharedPtr config) : config_(std::move(config)), place_(nextPlace()) {}

Filter::~Filter() {
  // Envoy destroys a filter without telling it only when its chain was never finished.
  if (stream_.has_value() && !destroyed_) {
    stream().onDestroy();
  }
}

Filter::Side& Filter::side(Direction direction) {
  return direction == Direction::Request ? request_ : response_;
}

const Filter::Side& Filter::side(Direction direction) const {
  return direction == Direction::Request ? request_ : response_;
}

Filter::Side& Filter::opposite(Direction direction) {
  return direction == Direction::Request ? response_ : request_;
}

// ---- From Envoy -----------------------------------------------------------------------------

void Filter::begin() {
  const auto* route =
      Http::Utility::resolveMostSpecificPerFilterConfig<RouteConfig>(decoder_callbacks_);
  if (route == nullptr || !route->disabled()) {
    stream_.emplace(bridge::newStream(config_->loaded(), this));
  }
}

Http::FilterHeadersStatus Filter::decodeHeaders(Http::RequestHeaderMap&, bool end_stream) {
  saw_request_ = true;
  if (!stream_.has_value()) {
    begin();
  }
  return stream_.has_value() ? onHeaders(Direction::Request, end_stream)
                             : Http::FilterHeadersStatus::Continue;
}

Http::FilterDataStatus Filter::decodeData(Buffer::Instance& data, bool end_stream) {
  return stream_.has_value() ? onData(Direction::Request, data, end_stream)
                             : Http::FilterDataStatus::Continue;
}

Http::FilterTrailersStatus Filter::decodeTrailers(Http::RequestTrailerMap&) {
  return stream_.has_value() ? onTrailers(Direction::Request)
                             : Http::FilterTrailersStatus::Continue;
}

Http::FilterHeadersStatus Filter::encodeHeaders(Http::ResponseHeaderMap&, bool end_stream) {
  // An earlier filter has answered.
  if (!saw_request_) {
    begin();
  }
  return passesResponse() ? Http::FilterHeadersStatus::Continue
                          : onHeaders(Direction::Response, end_stream);
}

Http::FilterDataStatus Filter::encodeData(Buffer::Instance& data, bool end_stream) {
  return passesResponse() ? Http::FilterDataStatus::Continue
                          : onData(Direction::Response, data, end_stream);
}

Http::FilterTrailersStatus Filter::encodeTrailers(Http::ResponseTrailerMap&) {
  return passesResponse() ? Http::FilterTrailersStatus::Continue : onTrailers(Direction::Response);
}

Http::FilterHeadersStatus Filter::onHeaders(Direction direction, bool end_stream) {
  Side& side = this->side(direction);
  side.ended_ = end_stream;
  side.headers_only_ = end_stream;
  side.in_hook_ = true;
  const Verdict verdict = stream().onHeaders(direction, end_stream);
  side.in_hook_ = false;
  if (destroyed_ || verdict == Verdict::Stop) {
    return Http::FilterHeadersStatus::StopIteration;
  }
  side.released_ = true;
  // A body for a message that came without one: Envoy sends what is in its own buffer after the
  // headers.
  if (end_stream && side.holds()) {
    addToSharedBuffer(direction, std::move(side.held_));
  }
  return Http::FilterHeadersStatus::Continue;
}

Http::FilterDataStatus Filter::onData(Direction direction, Buffer::Instance& data,
                                      bool end_stream) {
  Side& side = this->side(direction);
  side.ended_ |= end_stream;
  side.frame_ = &data;
  side.in_hook_ = true;
  const DataVerdict verdict = stream().onData(direction, end_stream);
  side.in_hook_ = false;
  side.frame_ = nullptr;
  if (!destroyed_) {
    switch (verdict) {
    case DataVerdict::Continue:
      if (side.holds()) {
        const Buffer::InstancePtr before = std::move(side.held_);
        data.prepend(*before);
      }
      side.released_ = true;
      return Http::FilterDataStatus::Continue;
    case DataVerdict::StopAndWatermark:
      held(side, direction).move(data);
      break;
    case DataVerdict::StopNoBuffer:
      // The frame may be Envoy's own buffer, which it would keep for later.
      data.drain(data.length());
      break;
    }
    if (direction == Direction::Response) {
      watchDownstream();
    }
  }
  return Http::FilterDataStatus::StopIterationNoBuffer;
}

Http::FilterTrailersStatus Filter::onTrailers(Direction direction) {
  Side& side = this->side(direction);
  side.ended_ = true;
  side.in_hook_ = true;
  const Verdict verdict = stream().onTrailers(direction);
  side.in_hook_ = false;
  if (destroyed_ || verdict == Verdict::Stop) {
    return Http::FilterTrailersStatus::StopIteration;
  }
  if (side.holds()) {
    addToSharedBuffer(direction, std::move(side.held_));
  }
  side.released_ = true;
  return Http::FilterTrailersStatus::Continue;
}

Http::LocalErrorStatus Filter::onLocalReply(const LocalReplyData&) {
  if (stream_.has_value()) {
    stream().onLocalReply();
  }
  return Http::LocalErrorStatus::Continue;
}

void Filter::onScheduled() {
  if (stream_.has_value() && !destroyed_) {
    stream().onScheduled();
  }
}

void Filter::onStreamComplete() {
  if (stream_.has_value()) {
    stream().onComplete();
  }
}

void Filter::onDestroy() {
  if (stream_.has_value()) {
    stream().onDestroy();
  }
  calls_.reset();
  if (watching_downstream_) {
    decoder_callbacks_->removeDownstreamWatermarkCallbacks(*this);
  }
  // What held a sender back does so no more.
  for (Side* side : {&request_, &response_}) {
    if (side->held_ != nullptr) {
      side->held_->drain(side->held_->length());
    }
  }
  destroyed_ = true;
}

// ---- Back-pressure --------------------------------------------------------------------------

// Sees to it that Rust knows when the client takes no more. Costs a little, so it is done for those
// that hold or make a response's body only.
void Filter::watchDownstream() {
  if (watching_downstream_) {
    return;
  }
  watching_downstream_ = true;
  // Envoy begins with a call for each time that it has been told so already.
  const std::vector<Full>& full = fullFilters();
  not_ours_ = std::count_if(full.begin(), full.end(), [&](const Full& filter) {
    return isNotOurs(filter.chain_, filter.place_);
  });
  decoder_callbacks_->addDownstreamWatermarkCallbacks(*this);
  not_ours_ = 0;
}

// Whether a filter that is full is this one, or one that is upstream of it.
bool Filter::isNotOurs(const void* chain, std::uint64_t place) const {
  return chain == &encoder_callbacks_->streamInfo() && place >= place_;
}

void Filter::onAboveWriteBufferHighWatermark() {
  if (not_ours_ > 0) {
    --not_ours_;
    return;
  }
  if (telling != nullptr && isNotOurs(telling->chain_, telling->place_)) {
    return;
  }
  if (++downstream_full_ == 1 && stream_.has_value() && !destroyed_) {
    stream().onDownstreamWatermark(true);
  }
}

void Filter::onBelowWriteBufferLowWatermark() {
  if (telling != nullptr && isNotOurs(telling->chain_, telling->place_)) {
    return;
  }
  if (--downstream_full_ == 0 && stream_.has_value() && !destroyed_) {
    stream().onDownstreamWatermark(false);
  }
}

// A buffer of ours has gone over the stream's limit, or below half of it. Strictly by turns.
void Filter::holdIsFull(Direction direction, bool full) {
  if (direction == Direction::Request) {
    if (destroyed_) {
      return;
    }
    if (full) {
      decoder_callbacks_->onDecoderFilterAboveWriteBufferHighWatermark();
    } else {
      decoder_callbacks_->onDecoderFilterBelowWriteBufferLowWatermark();
    }
    return;
  }
  if (!full) {
    std::erase_if(fullFilters(), [this](const Full& filter) { return filter.place_ == place_; });
  }
  if (destroyed_) {
    return;
  }
  const Full here{&encoder_callbacks_->streamInfo(), place_};
  const Full* const before = std::exchange(telling, &here);
  if (full) {
    fullFilters().push_back(here);
    encoder_callbacks_->onEncoderFilterAboveWriteBufferHighWatermark();
  } else {
    encoder_callbacks_->onEncoderFilterBelowWriteBufferLowWatermark();
  }
  telling = before;
}

Buffer::Instance& Filter::held(Side& side, Direction direction) {
  if (side.held_ == nullptr) {
    side.held_ = decoder_callbacks_->dispatcher().getWatermarkFactory().createBuffer(
        [this, direction] { holdIsFull(direction, false); },
        [this, direction] { holdIsFull(direction, true); }, [] {});
    side.held_->setWatermarks(decoder_callbacks_->bufferLimit());
  }
  return *side.held_;
}

// ---- To the next filter ---------------------------------------------------------------------
//
// What goes on is taken out of `held_` with the buffer around it, so that the sender is let go on
// when the bytes have arrived behind us: what it sends then cannot come before them.

bool Filter::trailersExist(Direction direction) const {
  return direction == Direction::Request ? decoder_callbacks_->requestTrailers().has_value()
                                         : encoder_callbacks_->responseTrailers().has_value();
}

// What Envoy holds of a direction, for all filters of the stream together.
const Buffer::Instance* Filter::sharedBuffer(Direction direction) const {
  return direction == Direction::Request ? decoder_callbacks_->decodingBuffer()
                                         : encoder_callbacks_->encodingBuffer();
}

void Filter::addToSharedBuffer(Direction direction, Buffer::InstancePtr data) {
  if (direction == Direction::Request) {
    decoder_callbacks_->addDecodedData(*data, true);
  } else {
    encoder_callbacks_->addEncodedData(*data, true);
  }
  // In a trailers hook Envoy hands it to the next filters at once: what nobody has taken goes, as
  // in injectHeld.
  data->drain(data->length());
}

void Filter::continueIteration(Side& side, Direction direction) {
  side.released_ = true;
  if (direction == Direction::Request) {
    decoder_callbacks_->continueDecoding();
  } else {
    encoder_callbacks_->continueEncoding();
  }
}

// Envoy shows the next filters, before the trailers, what the shared buffer holds: what the router
// keeps there for a retry would be sent once more. So that is put aside. Before the router has seen
// the headers, what is there is another filter's, which wants to find it.
//
// `modifyDecodingBuffer` is for the last filter that the data has reached. Here nothing changes for
// that one: all is back before Envoy looks.
void Filter::continueWithTrailers(Side& side, Direction direction) {
  Buffer::OwnedImpl aside;
  const auto kept = [this] {
    return const_cast<Buffer::Instance*>(decoder_callbacks_->decodingBuffer());
  };
  if (direction == Direction::Request && side.released_ && kept() != nullptr &&
      decoder_callbacks_->streamInfo().upstreamInfo() != nullptr && !hasModules()) {
    aside.move(*kept());
  }
  continueIteration(side, direction);
  if (aside.length() > 0 && !destroyed_ && kept() != nullptr) {
    kept()->prepend(aside);
  }
}

// Envoy sends the headers first, if they are still held, and does not ask whether the direction is
// stopped. It must not happen while a hook of the direction runs.
void Filter::injectData(Side& side, Direction direction, Buffer::Instance& data, bool end_stream) {
  side.released_ = true;
  if (direction == Direction::Request) {
    decoder_callbacks_->injectDecodedDataToFilterChain(data, end_stream);
  } else {
    encoder_callbacks_->injectEncodedDataToFilterChain(data, end_stream);
  }
}

void Filter::injectHeld(Side& side, Direction direction, bool end_stream) {
  const Buffer::InstancePtr data =
      side.held_ != nullptr ? std::move(side.held_) : std::make_unique<Buffer::OwnedImpl>();
  injectData(side, direction, *data, end_stream);
  // What nobody has taken, so that the sender is not held back for it.
  data->drain(data->length());
}

// ---- From Rust: what goes on ----------------------------------------------------------------

bool Filter::othersHold(Direction direction) const noexcept {
  const Buffer::Instance* buffer = sharedBuffer(direction);
  return buffer != nullptr && buffer != side(direction).frame_ && buffer->length() > 0;
}

void Filter::resume(Direction direction) noexcept {
  Side& side = this->side(direction);
  if (!side.ended_) {
    // First, while Envoy holds nothing that it would send once more. What a later filter then keeps
    // of the bytes is no matter.
    continueIteration(side, direction);
    if (side.holds() && !destroyed_) {
      injectHeld(side, direction, false);
    }
    return;
  }
  if (!trailersExist(direction)) {
    if (side.headers_only_ && !side.released_ && !side.holds()) {
      continueIteration(side, direction);
    } else {
      injectHeld(side, direction, true);
    }
    return;
  }
  if (side.holds()) {
    // As long as the headers are held, Envoy's buffer is the better way: it sends all in one go.
    // But within a hook of the other direction Envoy takes nothing into it.
    if (!side.released_ && !opposite(direction).in_hook_) {
      addToSharedBuffer(direction, std::move(side.held_));
    } else {
      injectHeld(side, direction, false);
    }
  }
  if (!destroyed_) {
    continueWithTrailers(side, direction);
  }
}

void Filter::inject(Direction direction, rust::Slice<const bridge::Bytes> data,
                    bool end_stream) noexcept {
  if (direction == Direction::Response) {
    watchDownstream();
  }
  Buffer::OwnedImpl copy;
  for (const bridge::Bytes& piece : data) {
    copy.add(view(piece));
  }
  injectData(side(direction), direction, copy, end_stream);
}

void Filter::release(Direction direction) noexcept {
  injectHeld(side(direction), direction, false);
}

// Envoy makes trailers only within the hook that brings the end. Those of a response then wait if
// the hook stops; those of a request do so only in the headers hook, and otherwise leave as soon as
// the data hook returns.
bool Filter::addTrailers(Direction direction, bool now) noexcept {
  if (direction == Direction::Response) {
    encoder_callbacks_->addEncodedTrailers();
    return true;
  }
  if (!now && side(direction).frame_ != nullptr) {
    return false;
  }
  decoder_callbacks_->addDecodedTrailers();
  return true;
}

// ---- Filters of stock modules in the same chain ---------------------------------------------
//
// They tell each other through dynamic metadata that the end of a message is kept back: a number
// that is not 0. We count from 2 on, so that we know their 1 from what filters like this one have
// said.

namespace {

const std::string& metadataNamespace() { CONSTRUCT_ON_FIRST_USE(std::string, "attache"); }

const char* endKeptKey(Direction direction) {
  return direction == Direction::Request ? "request_end_kept" : "response_end_kept";
}

} // namespace

double Filter::endKept(Direction direction) const {
  const auto& all = decoder_callbacks_->streamInfo().dynamicMetadata().filter_metadata();
  const auto ours = all.find(metadataNamespace());
  if (ours == all.end()) {
    return 0;
  }
  const auto value = ours->second.fields().find(endKeptKey(direction));
  return value == ours->second.fields().end() ? 0 : value->second.number_value();
}

void Filter::keepEnd(Direction direction, bool kept) noexcept {
  if (!hasModules()) {
    return;
  }
  double value = endKept(direction);
  if (value == 1 || (!kept && value == 0)) {
    return;
  }
  if (kept) {
    value = value == 0 ? 2 : value + 1;
  } else {
    value = value == 2 ? 0 : value - 1;
  }
  Protobuf::Struct metadata;
  (*metadata.mutable_fields())[endKeptKey(direction)].set_number_value(value);
  decoder_callbacks_->streamInfo().setDynamicMetadata(metadataNamespace(), metadata);
}

bool Filter::endIsKept(Direction direction) const noexcept {
  return hasModules() && endKept(direction) == 1;
}

// ---- From Rust: replies ---------------------------------------------------------------------

void Filter::sendReply(std::uint16_t status, rust::Slice<const bridge::HeaderView> headers,
                       rust::Slice<const std::uint8_t> body, rust::Str details) noexcept {
  // Without a gRPC status, Envoy takes the one that goes with the HTTP status.
  decoder_callbacks_->sendLocalReply(
      static_cast<Http::Code>(status), view(body),
      [headers](Http::ResponseHeaderMap& map) { addHeaders(map, headers); }, absl::nullopt,
      view(details));
}

void Filter::sendReplyHeaders(rust::Slice<const bridge::HeaderView> headers,
                              bool end_stream) noexcept {
  if (!end_stream) {
    watchDownstream();
  }
  decoder_callbacks_->encodeHeaders(
      makeMap<Http::ResponseHeaderMap>(Http::ResponseHeaderMapImpl::create(), headers), end_stream,
      "attache.streamed_reply");
}

void Filter::sendReplyData(rust::Slice<const std::uint8_t> data, bool end_stream) noexcept {
  Buffer::OwnedImpl copy(view(data));
  decoder_callbacks_->encodeData(copy, end_stream);
}

void Filter::sendReplyTrailers(rust::Slice<const bridge::HeaderView> trailers) noexcept {
  decoder_callbacks_->encodeTrailers(
      makeMap<Http::ResponseTrailerMap>(Http::ResponseTrailerMapImpl::create(), trailers));
}

void Filter::reset(bridge::ResetReason reason, rust::Str details) noexcept {
  decoder_callbacks_->streamInfo().setResponseCodeDetails(view(details));
  decoder_callbacks_->resetStream(reason == bridge::ResetReason::Refused
                                      ? Http::StreamResetReason::LocalRefusedStreamReset
                                      : Http::StreamResetReason::LocalReset,
                                  view(details));
}

// ---- From Rust: what is around the messages -------------------------------------------------

bridge::StreamFacts* Filter::facts() noexcept {
  if (facts_ == nullptr) {
    facts_ = std::make_unique<Facts>(*decoder_callbacks_, *config_, [this] { return recreate(); });
  }
  return facts_.get();
}

std::unique_ptr<bridge::Span> Filter::span() noexcept {
  return bridgeSpan(decoder_callbacks_->activeSpan(),
                    decoder_callbacks_->dispatcher().timeSource());
}

// Envoy takes the body of the new stream from its own buffer.
bool Filter::recreate() {
  const std::uint64_t others =
      sharedBuffer(Direction::Request) != nullptr ? sharedBuffer(Direction::Request)->length() : 0;
  if (request_.holds()) {
    addToSharedBuffer(Direction::Request, std::move(request_.held_));
  }
  if (decoder_callbacks_->recreateStream(nullptr)) {
    return true;
  }
  if (sharedBuffer(Direction::Request) != nullptr) {
    decoder_callbacks_->modifyDecodingBuffer([this, others](Buffer::Instance& buffer) {
      Buffer::OwnedImpl front;
      front.move(buffer, others);
      if (buffer.length() > 0) {
        held(request_, Direction::Request).move(buffer);
      }
      buffer.move(front);
    });
  }
  return false;
}

// ---- From Rust: calls to clusters -----------------------------------------------------------

bridge::CallStart Filter::startCall(rust::Str cluster,
                                    rust::Slice<const bridge::HeaderView> headers,
                                    rust::Slice<const std::uint8_t> body, bool end_stream,
                                    std::uint64_t timeout_ms, std::uint64_t& id) noexcept {
  if (calls_ == nullptr) {
    calls_ = std::make_unique<StreamCalls>(stream(), config_->clusterManager());
  }
  return calls_->start({view(cluster), headers, view(body), end_stream, timeout_ms},
                       decoder_callbacks_->activeSpan(), id);
}

bool Filter::sendCallData(std::uint64_t id, rust::Slice<const std::uint8_t> data,
                          bool end_stream) noexcept {
  return calls_ != nullptr && calls_->sendData(id, view(data), end_stream);
}

bool Filter::sendCallTrailers(std::uint64_t id,
                              rust::Slice<const bridge::HeaderView> trailers) noexcept {
  return calls_ != nullptr && calls_->sendTrailers(id, trailers);
}

bool Filter::callIsFull(std::uint64_t id) const noexcept {
  return calls_ != nullptr && calls_->isFull(id);
}

void Filter::resetCall(std::uint64_t id) noexcept {
  if (calls_ != nullptr) {
    calls_->reset(id);
  }
}

// ---- From Rust: headers ---------------------------------------------------------------------

Http::HeaderMap* Filter::find(HeaderMapType map) const {
  switch (map) {
  case HeaderMapType::RequestHeaders:
    return decoder_callbacks_->requestHeaders().ptr();
  case HeaderMapType::RequestTrailers:
    return decoder_callbacks_->requestTrailers().ptr();
  case HeaderMapType::ResponseHeaders:
    return encoder_callbacks_->responseHeaders().ptr();
  case HeaderMapType::ResponseTrailers:
    break;
  }
  return encoder_callbacks_->responseTrailers().ptr();
}

std::size_t Filter::header(HeaderMapType map, rust::Str name, std::size_t index,
                           bridge::Bytes& value) const noexcept {
  const Http::HeaderMap* found = find(map);
  if (found == nullptr) {
    return 0;
  }
  absl::string_view text;
  const std::size_t count = getHeader(*found, view(name), index, text);
  if (index < count) {
    value = bytes(text);
  }
  return count;
}

bool Filter::headers(HeaderMapType map, rust::Slice<bridge::HeaderView> out,
                     std::size_t& count) const noexcept {
  const Http::HeaderMap* found = find(map);
  if (found == nullptr) {
    count = 0;
    return false;
  }
  count = found->size();
  std::size_t next = 0;
  found->iterate([&out, &next](const Http::HeaderEntry& entry) {
    if (next == out.size()) {
      return Http::HeaderMap::Iterate::Break;
    }
    out[next].name = bytes(entry.key().getStringView());
    out[next].value = bytes(entry.value().getStringView());
    ++next;
    return Http::HeaderMap::Iterate::Continue;
  });
  return true;
}

bool Filter::setHeader(HeaderMapType map, rust::Str name,
                       rust::Slice<const std::uint8_t> value) noexcept {
  Http::HeaderMap* found = find(map);
  if (found != nullptr) {
    Attache::setHeader(*found, view(name), view(value));
  }
  return found != nullptr;
}

bool Filter::appendHeader(HeaderMapType map, rust::Str name,
                          rust::Slice<const std::uint8_t> value) noexcept {
  Http::HeaderMap* found = find(map);
  if (found != nullptr) {
    addHeader(*found, view(name), view(value));
  }
  return found != nullptr;
}

bool Filter::removeHeader(HeaderMapType map, rust::Str name) noexcept {
  Http::HeaderMap* found = find(map);
  if (found != nullptr) {
    Attache::removeHeader(*found, view(name));
  }
  return found != nullptr;
}

// ---- From Rust: body ------------------------------------------------------------------------

Buffer::Instance* Filter::area(Direction direction, Area area) const {
  const Side& side = this->side(direction);
  return area == Area::Frame ? side.frame_ : side.held_.get();
}

std::size_t Filter::bodyLength(Direction direction, Area area) const noexcept {
  const Buffer::Instance* buffer = this->area(direction, area);
  return buffer == nullptr ? 0 : buffer->length();
}

std::size_t Filter::bodySlices(Direction direction, Area area,
                               rust::Slice<bridge::Bytes> out) const noexcept {
  const Buffer::Instance* buffer = this->area(direction, area);
  if (buffer == nullptr) {
    return 0;
  }
  const Buffer::RawSliceVector slices = buffer->getRawSlices();
  for (std::size_t i = 0; i < std::min(slices.size(), out.size()); ++i) {
    out[i] = bytes({static_cast<const char*>(slices[i].mem_), slices[i].len_});
  }
  return slices.size();
}

void Filter::drainBody(Direction direction, Area area, std::size_t bytes) noexcept {
  Buffer::Instance* buffer = this->area(direction, area);
  if (buffer != nullptr) {
    buffer->drain(std::min<std::uint64_t>(bytes, buffer->length()));
  }
}

void Filter::appendBody(Direction direction, Area area,
                        rust::Slice<const std::uint8_t> data) noexcept {
  Side& side = this->side(direction);
  if (area == Area::Buffer) {
    held(side, direction).add(view(data));
  } else if (side.frame_ != nullptr) {
    side.frame_->add(view(data));
  }
}

std::uint64_t Filter::bufferLimit() const noexcept { return decoder_callbacks_->bufferLimit(); }

void Filter::setBufferLimit(std::uint64_t bytes) noexcept {
  decoder_callbacks_->setBufferLimit(bytes);
  for (Side* side : {&request_, &response_}) {
    if (side->held_ != nullptr) {
      side->held_->setWatermarks(bytes);
    }
  }
}

// ---- From Rust: the rest --------------------------------------------------------------------

std::unique_ptr<bridge::Notifier> Filter::makeNotifier() noexcept {
  return std::make_unique<StreamNotifier>(weak_from_this(), config_->currentWorker());
}

void Filter::routeConfigs(bridge::RouteLevels& levels) const noexcept {
  for (const RouteConfig& route :
       Http::Utility::getAllPerFilterConfig<RouteConfig>(decoder_callbacks_)) {
    // A more specific level has switched the filter on again.
    if (!route.disabled()) {
      levels.add(route.config());
    }
  }
}

void Filter::streamId(bridge::StreamId& id) const noexcept {
  const OptRef<const Network::Connection> connection = decoder_callbacks_->connection();
  id.has_connection = connection.has_value();
  id.connection = connection.has_value() ? connection->id() : 0;
  const auto headers = decoder_callbacks_->requestHeaders();
  id.request = bytes(headers.has_value() ? headers->getRequestIdValue() : absl::string_view());
}

} // namespace Attache
} // namespace Envoy
