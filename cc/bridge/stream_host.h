// One HTTP stream of Envoy, as Rust sees it.
//
// The host (a filter of Envoy's, or a test) implements this class, makes a `Stream` for it with
// `newStream`, and hands it the stream's events.
//
// Ownership and life
// * The host owns both. The `StreamHost` outlives the `Stream`.
// * Every method is called on the worker thread that owns the stream, and only from within an event
//   of the `Stream` (`on..`); none after `onDestroy` was called.
// * The `Stream` is dropped on that thread, and never while an event of it is further up the stack.
//   `onDestroy` may come there.
//
// Re-entrancy
// * The methods under "What runs other events", `drainBody` and `appendBody` may hand events to the
//   same `Stream` before they return. Rust holds no borrow while it calls them.
// * `notify` never does.
//
// Memory
// * What Rust passes (texts, slices, views) is valid during the call: copy it.
// * Views that are given to Rust stay valid until the event that asked ends, or until a non-const
//   method is called. `facts` and `resetCall` leave them valid.
//
// Nothing throws.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "cc/bridge/notifier.h"
#include "cc/bridge/span.h"
#include "cc/bridge/stream_facts.h"
#include "rust/cxx.h"

namespace attache {
namespace bridge {

enum class Area : std::uint8_t;
enum class CallStart : std::uint8_t;
enum class Direction : std::uint8_t;
enum class HeaderMapType : std::uint8_t;
enum class ResetReason : std::uint8_t;
struct Bytes;
struct HeaderView;
struct RouteLevels;
struct StreamId;

class StreamHost {
public:
  virtual ~StreamHost() = default;

  // ---- Headers. Names are lower case; ":method" and its like are headers too. -----------------

  // Gives the index-th value of a name, if there is one. Returns how many values there are.
  virtual std::size_t header(HeaderMapType map, rust::Str name, std::size_t index,
                             Bytes& value) const noexcept = 0;

  // Gives all headers in order, or as many as `out` has room for. `count` is how many there are.
  // Returns whether the map exists.
  virtual bool headers(HeaderMapType map, rust::Slice<HeaderView> out,
                       std::size_t& count) const noexcept = 0;

  // Replaces all values of a name; the value may be empty. Returns whether the map exists.
  virtual bool setHeader(HeaderMapType map, rust::Str name,
                         rust::Slice<const std::uint8_t> value) noexcept = 0;

  // Adds a value, as setHeader. Returns whether it was added.
  virtual bool appendHeader(HeaderMapType map, rust::Str name,
                            rust::Slice<const std::uint8_t> value) noexcept = 0;

  // Removes all values of a name. Returns whether the map exists.
  virtual bool removeHeader(HeaderMapType map, rust::Str name) noexcept = 0;

  // ---- Body ------------------------------------------------------------------------------------

  virtual std::size_t bodyLength(Direction direction, Area area) const noexcept = 0;

  // Gives the slices of an area in order, or as many as `out` has room for. Returns how many there
  // are.
  virtual std::size_t bodySlices(Direction direction, Area area,
                                 rust::Slice<Bytes> out) const noexcept = 0;

  // Drops bytes from the front of an area. A sender that was paused for what is held goes on when
  // enough of it has gone.
  virtual void drainBody(Direction direction, Area area, std::size_t bytes) noexcept = 0;

  // Adds bytes to the end of an area.
  virtual void appendBody(Direction direction, Area area,
                          rust::Slice<const std::uint8_t> data) noexcept = 0;

  // Envoy's buffer limit for this stream in bytes; 0 means none. It holds for Area::Buffer.
  virtual std::uint64_t bufferLimit() const noexcept = 0;
  virtual void setBufferLimit(std::uint64_t bytes) noexcept = 0;

  // Whether other filters have bytes in Envoy's own buffer of a direction, apart from the frame of
  // the running onData. A continue would send those past the filters that are to see them first.
  virtual bool othersHold(Direction direction) const noexcept = 0;

  // Tells the later filters of this stream that the end of a message is kept back here, or not any
  // more: in the dynamic metadata, where filters of a stock module look (namespace "attache",
  // number "request_end_kept" or "response_end_kept").
  virtual void keepEnd(Direction direction, bool kept) noexcept = 0;

  // Whether an earlier filter of a stock module has said so; what a filter of this host has said
  // does not count.
  virtual bool endIsKept(Direction direction) const noexcept = 0;

  // Gives a message that has come without trailers an empty map of them, to be filled before it
  // goes. Returns whether it is there now. Called once, within the event that brings the end of the
  // message. `now`: the event is onData, will answer Continue in a direction that is not stopped,
  // and has the whole output in its frame. Otherwise it will answer Stop, and the trailers go with
  // a later resume; where Envoy has no way for that (a request in onData) the answer is false.
  virtual bool addTrailers(Direction direction, bool now) noexcept = 0;

  // ---- What runs other events ------------------------------------------------------------------

  // Lets a stopped direction go on: held headers first, then the buffer, then the end or the
  // trailers if they have come. Never within an event of the same direction, once for each stop,
  // and not after the end was injected. With headers held and the end in them, this continues; with
  // the end in data, it injects the buffer with the end and does not continue; otherwise it injects
  // the buffer, if it has any bytes, and then continues if the stream is still there.
  virtual void resume(Direction direction) noexcept = 0;

  // Sends body bytes to the next filter, past the buffer, which is input and stays. Held headers go
  // first; no bytes and no end release held headers alone. A stopped direction stays stopped. With
  // `end_stream` the message ends here. Never within onHeaders, onData or onTrailers.
  virtual void inject(Direction direction, rust::Slice<const Bytes> data,
                      bool end_stream) noexcept = 0;

  // Injects the buffer, without an end, and leaves the direction stopped. Called when inject is.
  virtual void release(Direction direction) noexcept = 0;

  // Sends a complete reply in place of whatever would come. No ":status" or "content-length" among
  // the headers. `details` is for %RESPONSE_CODE_DETAILS% and never for the client.
  virtual void sendReply(std::uint16_t status, rust::Slice<const HeaderView> headers,
                         rust::Slice<const std::uint8_t> body, rust::Str details) noexcept = 0;

  // A reply in pieces. The headers have ":status".
  virtual void sendReplyHeaders(rust::Slice<const HeaderView> headers,
                                bool end_stream) noexcept = 0;
  virtual void sendReplyData(rust::Slice<const std::uint8_t> data, bool end_stream) noexcept = 0;
  virtual void sendReplyTrailers(rust::Slice<const HeaderView> trailers) noexcept = 0;

  // Resets the stream, both ways.
  virtual void reset(ResetReason reason, rust::Str details) noexcept = 0;

  // ---- What is around the messages -------------------------------------------------------------

  // Made when it is first asked for; it stays until `onDestroy`. Null: there is nothing of the
  // kind. Views stay valid.
  virtual StreamFacts* facts() noexcept { return nullptr; }

  // The stream's own tracing span; null if it is not traced. Called at most once.
  virtual std::unique_ptr<Span> span() noexcept { return nullptr; }

  // ---- Calls to clusters -----------------------------------------------------------------------
  //
  // What comes of a call is reported by `Stream::onCall..`, after startCall has returned and until
  // the call is over or reset; a call that fails within startCall is not reported at all. Calls end
  // with the stream: after onDestroy nothing is reported.

  // Starts a call; `headers` are all of them. `timeout_ms` is how long the response may take once
  // the request has ended; 0 means for ever. Gives the call an id if it answers Started.
  virtual CallStart startCall(rust::Str cluster, rust::Slice<const HeaderView> headers,
                              rust::Slice<const std::uint8_t> body, bool end_stream,
                              std::uint64_t timeout_ms, std::uint64_t& id) noexcept = 0;

  // Sends more of the request. False if the call is over. It may report events of the call.
  virtual bool sendCallData(std::uint64_t id, rust::Slice<const std::uint8_t> data,
                            bool end_stream) noexcept = 0;
  virtual bool sendCallTrailers(std::uint64_t id,
                                rust::Slice<const HeaderView> trailers) noexcept = 0;

  // Whether the service is slow to read, so that no more should be sent for now; onCallDrained then
  // says when to go on. False if the call is over.
  virtual bool callIsFull(std::uint64_t id) const noexcept = 0;

  // Cancels a call: nothing is reported of it any more. Does nothing if it is over. Also called
  // within onComplete.
  virtual void resetCall(std::uint64_t id) noexcept = 0;

  // ---- The rest --------------------------------------------------------------------------------

  // A handle that wakes this stream. Called at most once.
  virtual std::unique_ptr<Notifier> makeNotifier() noexcept = 0;

  // Adds the per-route configs of this filter: those of all levels, the most general first. They
  // stay until the host is called again.
  virtual void routeConfigs(RouteLevels& levels) const noexcept = 0;

  // What Envoy's log calls this stream.
  virtual void streamId(StreamId& id) const noexcept = 0;
};

} // namespace bridge
} // namespace attache
