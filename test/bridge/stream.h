// One exchange, played as Envoy plays it: a client, this filter, an upstream; all on one worker.
//
// It is strict. What would harm a real Envoy ends the test program, with a message: a call from a
// wrong thread, after destroy, or where Envoy has no place for it.
//
// It is as re-entrant as Envoy is. What the filter lets go reaches the upstream inside the filter's
// call, and an upstream that answers at once does so in there; a reply that ends the exchange
// destroys the filter before `sendReply` has returned.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "test/bridge/cluster.h"
#include "test/bridge/config.h"
#include "test/bridge/facts.h"
#include "test/bridge/worker.h"

#include "cc/bridge/bridge.h"

namespace attache {
namespace test {

// A message, or what has come of one.
struct Message {
  HeaderList headers;
  std::vector<std::string> body;
  HeaderList trailers;
  bool has_headers{};
  bool has_trailers{};
  bool ended{};

  std::string text() const;
  std::string header(const std::string& name) const;
};

struct Script {
  Message request;
  Message response;
  // The upstream answers inside the call that brings it the request's end (or its headers).
  bool inline_upstream{};
  // It answers before the request has ended.
  bool early_upstream{};
  // It never answers.
  bool silent_upstream{};
  // It echoes the request's body.
  bool echo{};
  // The client resets when the request has been sent.
  bool client_goes{};
  // Envoy's buffer limit.
  std::uint64_t limit{1024 * 1024};
  // The client's connection is full after so many bytes, and empty again a while later. 0: never.
  std::size_t client_window{};
  // The most general first.
  std::vector<const bridge::RouteConfig*> routes;
};

// What came of it.
struct Report {
  Message upstream;
  Message client;
  std::string details;
  bool reset{};
  bool local_reply{};
  // The most that was held of either message.
  std::size_t most_held{};
  // How often the client's connection was full.
  int times_full{};
  // How often Rust was scheduled.
  int scheduled{};
  // What was done beside the messages.
  std::vector<std::string> done;
};

class Stream : public bridge::StreamHost,
               public CallReceiver,
               public std::enable_shared_from_this<Stream> {
public:
  using Done = std::function<void(const Report&)>;

  // Plays a script. On the worker's thread; `done` is called there, when all is over.
  static std::shared_ptr<Stream> start(const Worker& worker, std::shared_ptr<Config> config,
                                       Script script, Done done);
  ~Stream() override;

  // The client goes.
  void cancel();

  // How many there are.
  static std::atomic<int> alive;

  // bridge::StreamHost
  std::size_t header(bridge::HeaderMapType map, rust::Str name, std::size_t index,
                     bridge::Bytes& value) const noexcept override;
  bool headers(bridge::HeaderMapType map, rust::Slice<bridge::HeaderView> out,
               std::size_t& count) const noexcept override;
  bool setHeader(bridge::HeaderMapType map, rust::Str name,
                 rust::Slice<const std::uint8_t> value) noexcept override;
  bool appendHeader(bridge::HeaderMapType map, rust::Str name,
                    rust::Slice<const std::uint8_t> value) noexcept override;
  bool removeHeader(bridge::HeaderMapType map, rust::Str name) noexcept override;
  std::size_t bodyLength(bridge::Direction direction, bridge::Area area) const noexcept override;
  std::size_t bodySlices(bridge::Direction direction, bridge::Area area,
                         rust::Slice<bridge::Bytes> out) const noexcept override;
  void drainBody(bridge::Direction direction, bridge::Area area,
                 std::size_t bytes) noexcept override;
  void appendBody(bridge::Direction direction, bridge::Area area,
                  rust::Slice<const std::uint8_t> data) noexcept override;
  std::uint64_t bufferLimit() const noexcept override;
  void setBufferLimit(std::uint64_t bytes) noexcept override;
  bool othersHold(bridge::Direction direction) const noexcept override;
  void keepEnd(bridge::Direction direction, bool kept) noexcept override;
  bool endIsKept(bridge::Direction direction) const noexcept override;
  bool addTrailers(bridge::Direction direction, bool now) noexcept override;
  void resume(bridge::Direction direction) noexcept override;
  void inject(bridge::Direction direction, rust::Slice<const bridge::Bytes> data,
              bool end_stream) noexcept override;
  void release(bridge::Direction direction) noexcept override;
  void sendReply(std::uint16_t status, rust::Slice<const bridge::HeaderView> headers,
                 rust::Slice<const std::uint8_t> body, rust::Str details) noexcept override;
  void sendReplyHeaders(rust::Slice<const bridge::HeaderView> headers,
                        bool end_stream) noexcept override;
  void sendReplyData(rust::Slice<const std::uint8_t> data, bool end_stream) noexcept override;
  void sendReplyTrailers(rust::Slice<const bridge::HeaderView> trailers) noexcept override;
  void reset(bridge::ResetReason reason, rust::Str details) noexcept override;
  bridge::StreamFacts* facts() noexcept override;
  std::unique_ptr<bridge::Span> span() noexcept override;
  bridge::CallStart startCall(rust::Str cluster, rust::Slice<const bridge::HeaderView> headers,
                              rust::Slice<const std::uint8_t> body, bool end_stream,
                              std::uint64_t timeout_ms, std::uint64_t& id) noexcept override;
  bool sendCallData(std::uint64_t id, rust::Slice<const std::uint8_t> data,
                    bool end_stream) noexcept override;
  bool sendCallTrailers(std::uint64_t id,
                        rust::Slice<const bridge::HeaderView> trailers) noexcept override;
  bool callIsFull(std::uint64_t id) const noexcept override;
  void resetCall(std::uint64_t id) noexcept override;
  std::unique_ptr<bridge::Notifier> makeNotifier() noexcept override;
  void routeConfigs(bridge::RouteLevels& levels) const noexcept override;
  void streamId(bridge::StreamId& id) const noexcept override;

  // CallReceiver
  void callHeaders(std::uint64_t id, const HeaderList& headers) override;
  void callData(std::uint64_t id, const std::string& data, bool end_stream) override;
  void callTrailers(std::uint64_t id, const HeaderList& trailers) override;
  void callComplete(std::uint64_t id) override;
  void callFailed(std::uint64_t id, bridge::CallFailure failure, const std::string& why) override;
  void callDrained(std::uint64_t id) override;

private:
  // One direction: what the sender has still to send, what the filter has of it, and whom it goes
  // to.
  struct Side {
    bridge::Direction direction;
    // What is still to come; the headers stay here as the map that the filter sees.
    Message message;
    std::size_t next{};
    Message* to{};
    std::deque<std::string> frame;
    std::deque<std::string> held;
    bool in_hook{};
    bool in_data_hook{};
    bool started{};
    bool stopped{};
    // The headers have gone on.
    bool released{};
    // The end has come.
    bool ended{};
    // It has come with the headers.
    bool headers_only{};
    bool trailers_came{};
    bool trailers_added{};
    // The sender was asked to pause.
    bool paused{};
  };

  Stream(const Worker& worker, std::shared_ptr<Config> config, Script script, Done done);

  void begin();
  void post(void (Stream::*step)());
  void check(bool right, const char* what) const;
  Side& side(bridge::Direction direction);
  const Side& side(bridge::Direction direction) const;
  HeaderList* find(bridge::HeaderMapType map) const;
  std::deque<std::string>* area(bridge::Direction direction, bridge::Area area) const;

  // The sender of a direction takes its next step.
  void sendRequest();
  void sendResponse();
  void send(Side& side, void (Stream::*again)());
  void onHeaders(Side& side, bool end_stream);
  void onData(Side& side, std::string data, bool end_stream);
  void onTrailers(Side& side);
  void watch(Side& side);
  bool replyTakesOver(const Side& side);

  // What reaches the next hop.
  void passHeaders(Side& side, bool end_stream);
  void passData(Side& side, std::deque<std::string> data, bool end_stream);
  void passTrailers(Side& side);
  void injectHeld(Side& side, bool end_stream);
  void arrived(Side& side);
  void answer();

  // What reaches the client.
  void toClient(std::size_t bytes);
  void clientReads();
  void replyComes();
  void replyEnds();
  // An event of a call, unless the exchange is over.
  template <class F> void callEvent(F f);
  void finish();

  const Worker& worker_;
  const std::shared_ptr<Config> config_;
  Script script_;
  Done done_;
  Report report_;
  mutable Side request_;
  mutable Side response_;
  // While the exchange goes on, it keeps itself.
  std::shared_ptr<Stream> self_;
  // None or one.
  std::vector<rust::Box<bridge::Stream>> stream_;
  Calls calls_;
  std::uint64_t last_call_{};
  // Made when it is asked for.
  std::unique_ptr<Facts> facts_;
  std::size_t client_holds_{};
  bool client_full_{};
  bool answering_{};
  bool replied_{};
  // A reply was sent within a hook of the request.
  bool reply_waits_{};
  bool destroyed_{};
  int events_{};

  friend struct Event;
};

} // namespace test
} // namespace attache
