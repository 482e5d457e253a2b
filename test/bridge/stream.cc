#include "test/bridge/stream.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

namespace attache {
namespace test {

using bridge::Area;
using bridge::DataVerdict;
using bridge::Direction;
using bridge::HeaderMapType;
using bridge::Verdict;

std::atomic<int> Stream::alive{0};

namespace {

std::string text(rust::Slice<const std::uint8_t> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

std::string text(const bridge::Bytes& bytes) {
  return {reinterpret_cast<const char*>(bytes.data), bytes.size};
}

bridge::Bytes bytes(const std::string& text) {
  return {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()};
}

HeaderList list(rust::Slice<const bridge::HeaderView> headers) {
  HeaderList result;
  for (const bridge::HeaderView& header : headers) {
    result.emplace_back(text(header.name), text(header.value));
  }
  return result;
}

std::size_t length(const std::deque<std::string>& pieces) {
  std::size_t sum = 0;
  for (const std::string& piece : pieces) {
    sum += piece.size();
  }
  return sum;
}

} // namespace

// An event of the Rust stream is running.
struct Event {
  explicit Event(Stream& stream) : stream_(stream) { ++stream.events_; }
  ~Event() { --stream_.events_; }
  Stream& stream_;
};

std::string Message::text() const {
  std::string all;
  for (const std::string& piece : body) {
    all += piece;
  }
  return all;
}

std::string Message::header(const std::string& name) const {
  for (const auto& [key, value] : headers) {
    if (key == name) {
      return value;
    }
  }
  return "";
}

std::shared_ptr<Stream> Stream::start(const Worker& worker, std::shared_ptr<Config> config,
                                      Script script, Done done) {
  std::shared_ptr<Stream> stream(
      new Stream(worker, std::move(config), std::move(script), std::move(done)));
  stream->begin();
  return stream;
}

Stream::Stream(const Worker& worker, std::shared_ptr<Config> config, Script script, Done done)
    : worker_(worker), config_(std::move(config)), script_(std::move(script)),
      done_(std::move(done)) {
  ++alive;
  request_.direction = Direction::Request;
  request_.message = script_.request;
  request_.to = &report_.upstream;
  response_.direction = Direction::Response;
  response_.to = &report_.client;
}

Stream::~Stream() {
  check(destroyed_, "a stream goes that was never destroyed");
  check(events_ == 0, "a stream goes within an event of its own");
  --alive;
}

void Stream::begin() {
  self_ = shared_from_this();
  stream_.emplace_back(bridge::newStream(config_->loaded(), this));
  sendRequest();
}

// Runs a step later, if the exchange is still there then.
void Stream::post(void (Stream::*step)()) {
  worker_.post([self = shared_from_this(), step] {
    if (!self->destroyed_) {
      ((*self).*step)();
    }
  });
}

void Stream::check(bool right, const char* what) const {
  if (!right) {
    std::fprintf(stderr, "the bridge was misused: %s\n", what);
    std::abort();
  }
}

Stream::Side& Stream::side(Direction direction) {
  return direction == Direction::Request ? request_ : response_;
}

const Stream::Side& Stream::side(Direction direction) const {
  return direction == Direction::Request ? request_ : response_;
}

// ---- Senders --------------------------------------------------------------------------------

void Stream::sendRequest() {
  const std::shared_ptr<Stream> self = shared_from_this();
  send(request_, &Stream::sendRequest);
  if (script_.client_goes && request_.ended && !destroyed_) {
    post(&Stream::cancel);
  }
}

void Stream::sendResponse() { send(response_, &Stream::sendResponse); }

void Stream::send(Side& side, void (Stream::*again)()) {
  if (side.paused || side.ended || (&side == &response_ && replied_)) {
    return;
  }
  Message& message = side.message;
  const bool last = side.next == message.body.size() && !message.has_trailers;
  if (!side.started) {
    side.started = true;
    onHeaders(side, last);
  } else if (side.next < message.body.size()) {
    std::string piece = message.body[side.next++];
    onData(side, std::move(piece), side.next == message.body.size() && !message.has_trailers);
  } else {
    onTrailers(side);
  }
  if (!destroyed_ && !side.ended && !side.paused) {
    post(again);
  }
}

void Stream::onHeaders(Side& side, bool end_stream) {
  side.message.has_headers = true;
  side.ended = side.headers_only = end_stream;
  side.in_hook = true;
  Verdict verdict;
  {
    const Event event(*this);
    verdict = stream_.front()->onHeaders(side.direction, end_stream);
  }
  side.in_hook = false;
  if (destroyed_ || replyTakesOver(side)) {
    return;
  }
  if (verdict == Verdict::Stop) {
    side.stopped = !side.released;
    return;
  }
  std::deque<std::string> held = std::exchange(side.held, {});
  const bool more = !held.empty() || side.trailers_added;
  passHeaders(side, end_stream && !more);
  if (end_stream && !held.empty() && !destroyed_) {
    passData(side, std::move(held), !side.trailers_added);
  }
  if (end_stream && side.trailers_added && !destroyed_) {
    passTrailers(side);
  }
}

void Stream::onData(Side& side, std::string data, bool end_stream) {
  side.ended |= end_stream;
  side.frame = {std::move(data)};
  side.in_hook = side.in_data_hook = true;
  DataVerdict verdict;
  {
    const Event event(*this);
    verdict = stream_.front()->onData(side.direction, end_stream);
  }
  side.in_hook = side.in_data_hook = false;
  std::deque<std::string> frame = std::exchange(side.frame, {});
  if (destroyed_ || replyTakesOver(side)) {
    return;
  }
  switch (verdict) {
  case DataVerdict::Continue: {
    side.stopped = false;
    std::deque<std::string> all = std::exchange(side.held, {});
    all.insert(all.end(), frame.begin(), frame.end());
    if (!side.released) {
      passHeaders(side, false);
    }
    if (!destroyed_) {
      passData(side, std::move(all), end_stream && !side.trailers_added);
    }
    if (side.trailers_added && !destroyed_) {
      passTrailers(side);
    }
    return;
  }
  case DataVerdict::StopAndWatermark:
    side.stopped = true;
    side.held.insert(side.held.end(), frame.begin(), frame.end());
    watch(side);
    return;
  case DataVerdict::StopNoBuffer:
    side.stopped = true;
    return;
  }
}

void Stream::onTrailers(Side& side) {
  side.ended = side.trailers_came = true;
  side.in_hook = true;
  Verdict verdict;
  {
    const Event event(*this);
    verdict = stream_.front()->onTrailers(side.direction);
  }
  side.in_hook = false;
  if (destroyed_ || replyTakesOver(side)) {
    return;
  }
  if (verdict == Verdict::Stop) {
    side.stopped = true;
    return;
  }
  side.stopped = false;
  if (!side.released) {
    passHeaders(side, false);
  }
  if (!side.held.empty() && !destroyed_) {
    passData(side, std::exchange(side.held, {}), false);
  }
  if (!destroyed_) {
    passTrailers(side);
  }
}

// A reply that was sent within a hook of the request comes after it, and nothing else does.
bool Stream::replyTakesOver(const Side& side) {
  const bool comes = reply_waits_ && &side == &request_;
  if (comes) {
    replyComes();
  }
  return comes;
}

// The sender pauses when too much is held, and goes on at half of that. It does so later: what it
// sends then comes with an event of its own.
void Stream::watch(Side& side) {
  const std::size_t held = length(side.held);
  report_.most_held = std::max(report_.most_held, held);
  if (script_.limit == 0) {
    return;
  }
  if (!side.paused && held > script_.limit) {
    side.paused = true;
  } else if (side.paused && held <= script_.limit / 2) {
    side.paused = false;
    post(&side == &request_ ? &Stream::sendRequest : &Stream::sendResponse);
  }
}

// ---- The next hop ---------------------------------------------------------------------------

void Stream::passHeaders(Side& side, bool end_stream) {
  check(!side.released, "headers go twice");
  side.released = true;
  side.to->has_headers = true;
  side.to->headers = side.message.headers;
  side.to->ended = end_stream;
  arrived(side);
}

void Stream::passData(Side& side, std::deque<std::string> data, bool end_stream) {
  check(side.released, "data goes before its headers");
  check(!side.to->ended, "data goes after the end");
  const std::size_t bytes = length(data);
  for (std::string& piece : data) {
    if (!piece.empty()) {
      side.to->body.push_back(std::move(piece));
    }
  }
  side.to->ended = end_stream;
  if (&side == &response_) {
    toClient(bytes);
  }
  if (!destroyed_) {
    watch(side);
    arrived(side);
  }
}

void Stream::passTrailers(Side& side) {
  check(side.released && !side.to->ended, "trailers go where there is no place for them");
  side.to->has_trailers = true;
  side.to->trailers = side.message.trailers;
  side.to->ended = true;
  arrived(side);
}

void Stream::arrived(Side& side) {
  if (&side == &response_) {
    if (side.to->ended) {
      replyEnds();
    }
    return;
  }
  const bool answers = side.to->ended ? !script_.silent_upstream : script_.early_upstream;
  if (answering_ || replied_ || !answers) {
    return;
  }
  answering_ = true;
  if (script_.inline_upstream) {
    answer();
  } else {
    post(&Stream::answer);
  }
}

void Stream::answer() {
  if (replied_) {
    return;
  }
  response_.message = script_.response;
  if (script_.echo) {
    response_.message.body = report_.upstream.body;
  }
  sendResponse();
}

// ---- The client -----------------------------------------------------------------------------

void Stream::toClient(std::size_t bytes) {
  client_holds_ += bytes;
  if (script_.client_window == 0 || client_full_ || client_holds_ <= script_.client_window) {
    return;
  }
  client_full_ = true;
  ++report_.times_full;
  post(&Stream::clientReads);
  const Event event(*this);
  stream_.front()->onDownstreamWatermark(true);
}

void Stream::clientReads() {
  client_holds_ = 0;
  client_full_ = false;
  const Event event(*this);
  stream_.front()->onDownstreamWatermark(false);
}

void Stream::replyEnds() { finish(); }

void Stream::cancel() {
  if (!destroyed_) {
    report_.reset = true;
    finish();
  }
}

// All is over, now, whatever is further up the stack. The memory stays until nothing is.
void Stream::finish() {
  if (destroyed_) {
    return;
  }
  {
    const Event event(*this);
    stream_.front()->onComplete();
    stream_.front()->onDestroy();
  }
  destroyed_ = true;
  // The `Stream` first, and then, in most cases, its host with this last reference to it.
  worker_.post([self = std::move(self_)]() mutable {
    self->stream_.clear();
    const Done done = std::move(self->done_);
    const Report report = std::move(self->report_);
    self.reset();
    done(report);
  });
}

// ---- What Rust asks for: headers ------------------------------------------------------------

HeaderList* Stream::find(HeaderMapType map) const {
  check(std::this_thread::get_id() == worker_.id(), "a call from a wrong thread");
  check(!destroyed_, "a call after destroy");
  switch (map) {
  case HeaderMapType::RequestHeaders:
    return request_.message.has_headers ? &request_.message.headers : nullptr;
  case HeaderMapType::RequestTrailers:
    return request_.trailers_came || request_.trailers_added ? &request_.message.trailers : nullptr;
  case HeaderMapType::ResponseHeaders:
    return response_.message.has_headers ? &response_.message.headers : nullptr;
  case HeaderMapType::ResponseTrailers:
    break;
  }
  return response_.trailers_came || response_.trailers_added ? &response_.message.trailers
                                                             : nullptr;
}

std::size_t Stream::header(HeaderMapType map, rust::Str name, std::size_t index,
                           bridge::Bytes& value) const noexcept {
  const HeaderList* found = find(map);
  std::size_t count = 0;
  if (found != nullptr) {
    for (const auto& [key, text] : *found) {
      if (key == std::string(name) && count++ == index) {
        value = bytes(text);
      }
    }
  }
  return count;
}

bool Stream::headers(HeaderMapType map, rust::Slice<bridge::HeaderView> out,
                     std::size_t& count) const noexcept {
  const HeaderList* found = find(map);
  count = found == nullptr ? 0 : found->size();
  for (std::size_t i = 0; i < std::min(count, out.size()); ++i) {
    out[i] = {bytes((*found)[i].first), bytes((*found)[i].second)};
  }
  return found != nullptr;
}

bool Stream::setHeader(HeaderMapType map, rust::Str name,
                       rust::Slice<const std::uint8_t> value) noexcept {
  return removeHeader(map, name) && appendHeader(map, name, value);
}

bool Stream::appendHeader(HeaderMapType map, rust::Str name,
                          rust::Slice<const std::uint8_t> value) noexcept {
  HeaderList* found = find(map);
  if (found != nullptr) {
    found->emplace_back(std::string(name), text(value));
  }
  return found != nullptr;
}

bool Stream::removeHeader(HeaderMapType map, rust::Str name) noexcept {
  HeaderList* found = find(map);
  if (found != nullptr) {
    const std::string key(name);
    found->erase(std::remove_if(found->begin(), found->end(),
                                [&key](const auto& header) { return header.first == key; }),
                 found->end());
  }
  return found != nullptr;
}

// ---- What Rust asks for: body ---------------------------------------------------------------

std::deque<std::string>* Stream::area(Direction direction, Area area) const {
  check(std::this_thread::get_id() == worker_.id(), "a call from a wrong thread");
  check(!destroyed_, "a call after destroy");
  Side& side = direction == Direction::Request ? request_ : response_;
  return area == Area::Frame ? &side.frame : &side.held;
}

std::size_t Stream::bodyLength(Direction direction, Area area) const noexcept {
  return length(*this->area(direction, area));
}

std::size_t Stream::bodySlices(Direction direction, Area area,
                               rust::Slice<bridge::Bytes> out) const noexcept {
  const std::deque<std::string>& pieces = *this->area(direction, area);
  for (std::size_t i = 0; i < std::min(pieces.size(), out.size()); ++i) {
    out[i] = bytes(pieces[i]);
  }
  return pieces.size();
}

void Stream::drainBody(Direction direction, Area area, std::size_t bytes) noexcept {
  std::deque<std::string>& pieces = *this->area(direction, area);
  check(bytes <= length(pieces), "more is drained than there is");
  while (bytes > 0) {
    const std::size_t part = std::min(bytes, pieces.front().size());
    pieces.front().erase(0, part);
    bytes -= part;
    if (pieces.front().empty()) {
      pieces.pop_front();
    }
  }
  if (area == Area::Buffer) {
    watch(side(direction));
  }
}

void Stream::appendBody(Direction direction, Area area,
                        rust::Slice<const std::uint8_t> data) noexcept {
  check(area == Area::Buffer || side(direction).in_data_hook, "there is no frame to append to");
  this->area(direction, area)->push_back(text(data));
}

std::uint64_t Stream::bufferLimit() const noexcept { return script_.limit; }

void Stream::setBufferLimit(std::uint64_t bytes) noexcept {
  check(!destroyed_, "a call after destroy");
  script_.limit = bytes;
}

// There is no other filter.
bool Stream::othersHold(Direction) const noexcept { return false; }
void Stream::keepEnd(Direction, bool) noexcept { check(!destroyed_, "a call after destroy"); }
bool Stream::endIsKept(Direction) const noexcept { return false; }

bool Stream::addTrailers(Direction direction, bool now) noexcept {
  Side& side = this->side(direction);
  check(!destroyed_ && side.in_hook && side.ended, "trailers are added where they cannot be");
  check(!side.trailers_came && !side.trailers_added, "trailers are added to trailers");
  if (direction == Direction::Request && side.in_data_hook && !now) {
    return false;
  }
  side.trailers_added = true;
  return true;
}

// ---- What Rust asks for: that something goes on ---------------------------------------------

void Stream::resume(Direction direction) noexcept {
  const std::shared_ptr<Stream> self = shared_from_this();
  Side& side = this->side(direction);
  check(std::this_thread::get_id() == worker_.id(), "a call from a wrong thread");
  check(!destroyed_, "resumed after destroy");
  check(!side.in_hook, "resumed within a hook of the same direction");
  check(side.stopped && !side.to->ended, "resumed without a stop");
  side.stopped = false;
  if (!side.ended) {
    // What is held stays until the headers have gone: their receiver may make this filter read it.
    if (!side.released) {
      passHeaders(side, false);
    }
    if (!side.held.empty() && !destroyed_) {
      injectHeld(side, false);
    }
    return;
  }
  if (!side.trailers_came && !side.trailers_added) {
    if (side.headers_only && !side.released && side.held.empty()) {
      passHeaders(side, true);
    } else {
      injectHeld(side, true);
    }
    return;
  }
  if (!side.held.empty()) {
    injectHeld(side, false);
  }
  if (!side.released && !destroyed_) {
    passHeaders(side, false);
  }
  if (!destroyed_) {
    passTrailers(side);
  }
}

// The sender may go on when what was held has arrived behind the filter.
void Stream::injectHeld(Side& side, bool end_stream) {
  std::deque<std::string> held = std::exchange(side.held, {});
  if (!side.released) {
    passHeaders(side, false);
  }
  if (!destroyed_) {
    passData(side, std::move(held), end_stream);
  }
}

void Stream::inject(Direction direction, rust::Slice<const bridge::Bytes> data,
                    bool end_stream) noexcept {
  const std::shared_ptr<Stream> self = shared_from_this();
  Side& side = this->side(direction);
  check(std::this_thread::get_id() == worker_.id(), "a call from a wrong thread");
  check(!destroyed_, "injected after destroy");
  check(!request_.in_hook && !response_.in_hook, "injected within a hook");
  check(side.started && !side.to->ended, "injected outside of the message");
  if (!side.released) {
    passHeaders(side, false);
  }
  std::deque<std::string> pieces;
  for (const bridge::Bytes& piece : data) {
    pieces.push_back(text(piece));
  }
  if (!destroyed_ && (end_stream || length(pieces) > 0)) {
    passData(side, std::move(pieces), end_stream);
  }
}

void Stream::release(Direction direction) noexcept {
  const std::shared_ptr<Stream> self = shared_from_this();
  Side& side = this->side(direction);
  check(!destroyed_ && !request_.in_hook && !response_.in_hook, "released within a hook");
  injectHeld(side, false);
}

// ---- What Rust asks for: replies ------------------------------------------------------------

void Stream::sendReply(std::uint16_t status, rust::Slice<const bridge::HeaderView> headers,
                       rust::Slice<const std::uint8_t> body, rust::Str details) noexcept {
  const std::shared_ptr<Stream> self = shared_from_this();
  check(std::this_thread::get_id() == worker_.id(), "a call from a wrong thread");
  check(!destroyed_, "a reply after destroy");
  check(!report_.client.has_headers && !replied_, "a reply after a reply");
  replied_ = true;
  report_.local_reply = true;
  report_.details = std::string(details);
  Message reply;
  reply.headers = list(headers);
  reply.headers.emplace_back(":status", std::to_string(status));
  if (body.size() > 0) {
    reply.body.push_back(text(body));
  }
  {
    const Event event(*this);
    stream_.front()->onLocalReply();
  }
  if (destroyed_) {
    return;
  }
  if (response_.message.has_headers) {
    // A response is on its way already: this one goes past the filters.
    report_.client = std::move(reply);
    report_.client.has_headers = report_.client.ended = true;
    replyEnds();
    return;
  }
  response_.message = std::move(reply);
  reply_waits_ = true;
  if (!request_.in_hook) {
    replyComes();
  }
}

// A reply comes by as any response does, the filter's own too.
void Stream::replyComes() {
  reply_waits_ = false;
  response_.started = true;
  const std::vector<std::string> body = response_.message.body;
  onHeaders(response_, body.empty());
  if (!body.empty() && !destroyed_) {
    onData(response_, body.front(), true);
  }
}

void Stream::sendReplyHeaders(rust::Slice<const bridge::HeaderView> headers,
                              bool end_stream) noexcept {
  const std::shared_ptr<Stream> self = shared_from_this();
  check(!destroyed_, "a reply after destroy");
  check(!report_.client.has_headers && !replied_, "a reply after a reply");
  replied_ = true;
  report_.local_reply = true;
  response_.started = true;
  response_.message = Message();
  response_.message.headers = list(headers);
  onHeaders(response_, end_stream);
}

void Stream::sendReplyData(rust::Slice<const std::uint8_t> data, bool end_stream) noexcept {
  const std::shared_ptr<Stream> self = shared_from_this();
  check(!destroyed_, "a reply's data after destroy");
  check(replied_ && response_.started && !response_.ended, "data of no reply");
  onData(response_, text(data), end_stream);
}

void Stream::sendReplyTrailers(rust::Slice<const bridge::HeaderView> trailers) noexcept {
  const std::shared_ptr<Stream> self = shared_from_this();
  check(!destroyed_, "a reply's trailers after destroy");
  check(replied_ && response_.started && !response_.ended, "trailers of no reply");
  response_.message.trailers = list(trailers);
  onTrailers(response_);
}

void Stream::reset(bridge::ResetReason reason, rust::Str details) noexcept {
  const std::shared_ptr<Stream> self = shared_from_this();
  check(!destroyed_, "a reset after destroy");
  report_.reset = true;
  report_.done.push_back(reason == bridge::ResetReason::Refused ? "reset as refused" : "reset");
  report_.details = std::string(details);
  finish();
}

bridge::StreamFacts* Stream::facts() noexcept {
  check(!destroyed_, "facts of a stream that was destroyed");
  if (facts_ == nullptr) {
    facts_ = std::make_unique<Facts>(report_.done);
  }
  return facts_.get();
}

std::unique_ptr<bridge::Span> Stream::span() noexcept {
  check(!destroyed_, "the span of a stream that was destroyed");
  return makeSpan("stream", report_.done);
}

// ---- What Rust asks for: the rest -----------------------------------------------------------

// ---- Calls to clusters ----------------------------------------------------------------------

bridge::CallStart Stream::startCall(rust::Str cluster,
                                    rust::Slice<const bridge::HeaderView> headers,
                                    rust::Slice<const std::uint8_t> body, bool end_stream,
                                    std::uint64_t, std::uint64_t& id) noexcept {
  check(!destroyed_, "a call to a cluster after destroy");
  const bridge::CallStart started = Call::startOf(std::string(cluster));
  if (started == bridge::CallStart::Started) {
    id = ++last_call_;
    const auto call = std::make_shared<Call>(id, pathOf(headers), worker_.link(), weak_from_this());
    calls_.add(id, call);
    if (end_stream || body.size() > 0) {
      call->send(text(body), end_stream);
    }
  }
  return started;
}

bool Stream::sendCallData(std::uint64_t id, rust::Slice<const std::uint8_t> data,
                          bool end_stream) noexcept {
  check(!destroyed_, "more of a call after destroy");
  const std::shared_ptr<Call> call = calls_.find(id);
  return call != nullptr && call->send(text(data), end_stream);
}

bool Stream::sendCallTrailers(std::uint64_t id,
                              rust::Slice<const bridge::HeaderView> trailers) noexcept {
  check(!destroyed_, "more of a call after destroy");
  const std::shared_ptr<Call> call = calls_.find(id);
  return call != nullptr && call->sendTrailers(list(trailers));
}

bool Stream::callIsFull(std::uint64_t id) const noexcept {
  check(!destroyed_, "a question about a call after destroy");
  const std::shared_ptr<Call> call = calls_.find(id);
  return call != nullptr && call->isFull();
}

void Stream::resetCall(std::uint64_t id) noexcept {
  check(!destroyed_, "a call is reset after destroy");
  calls_.reset(id);
}

template <class F> void Stream::callEvent(F f) {
  if (!destroyed_) {
    // What is told may end the exchange.
    const std::shared_ptr<Stream> self = shared_from_this();
    const Event event(*this);
    f(*stream_.front());
  }
}

void Stream::callHeaders(std::uint64_t id, const HeaderList& headers) {
  const std::vector<bridge::HeaderView> list = views(headers);
  callEvent([&](const bridge::Stream& stream) {
    stream.onCallHeaders(id, {list.data(), list.size()}, false);
  });
}

void Stream::callData(std::uint64_t id, const std::string& data, bool end_stream) {
  const bridge::Bytes slice = bytes(data);
  callEvent([&](const bridge::Stream& stream) { stream.onCallData(id, {&slice, 1}, end_stream); });
}

void Stream::callTrailers(std::uint64_t id, const HeaderList& trailers) {
  const std::vector<bridge::HeaderView> list = views(trailers);
  callEvent(
      [&](const bridge::Stream& stream) { stream.onCallTrailers(id, {list.data(), list.size()}); });
}

void Stream::callComplete(std::uint64_t id) {
  calls_.erase(id);
  callEvent([&](const bridge::Stream& stream) { stream.onCallComplete(id); });
}

void Stream::callFailed(std::uint64_t id, bridge::CallFailure failure, const std::string& why) {
  calls_.erase(id);
  callEvent([&](const bridge::Stream& stream) { stream.onCallFailed(id, failure, bytesOf(why)); });
}

void Stream::callDrained(std::uint64_t id) {
  callEvent([&](const bridge::Stream& stream) { stream.onCallDrained(id); });
}

std::unique_ptr<bridge::Notifier> Stream::makeNotifier() noexcept {
  check(!destroyed_, "a notifier after destroy");
  return postingNotifier(weak_from_this(), worker_.link(), [](Stream& stream) {
    if (!stream.destroyed_) {
      ++stream.report_.scheduled;
      const Event event(stream);
      stream.stream_.front()->onScheduled();
    }
  });
}

void Stream::routeConfigs(bridge::RouteLevels& levels) const noexcept {
  check(!destroyed_, "a call after destroy");
  for (const bridge::RouteConfig* config : script_.routes) {
    levels.add(*config);
  }
}

void Stream::streamId(bridge::StreamId& id) const noexcept {
  static const std::string request = "a-request";
  check(!destroyed_, "a call after destroy");
  id.has_connection = true;
  id.connection = 7;
  id.request = bytes(request);
}

} // namespace test
} // namespace attache
