// The bridge under test without Envoy: this program plays the workers, the client and the upstream,
// against the real Rust static library with the filter of test/bridge/filters/src/bridge.rs.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "test/bridge/config.h"
#include "test/bridge/stream.h"
#include "test/bridge/worker.h"

#include "cc/bridge/bridge.h"
#include "gtest/gtest.h"

namespace attache {
namespace test {
namespace {

// ---- The log --------------------------------------------------------------------------------

std::mutex log_mutex;
std::vector<std::string> log_lines;

class Log : public bridge::LogSink {
public:
  bool enabled(bridge::LogLevel level) const noexcept override {
    return level >= bridge::LogLevel::Info;
  }
  void log(bridge::LogLevel level, rust::Str line) const noexcept override {
    const std::lock_guard<std::mutex> lock(log_mutex);
    log_lines.push_back(std::to_string(static_cast<int>(level)) + " " + std::string(line));
  }
};

int logged(const std::string& part) {
  const std::lock_guard<std::mutex> lock(log_mutex);
  return static_cast<int>(
      std::count_if(log_lines.begin(), log_lines.end(), [&part](const std::string& line) {
        return line.find(part) != std::string::npos;
      }));
}

// ---- Playing --------------------------------------------------------------------------------

// Far more than any of this takes, under any sanitizer on any machine.
constexpr std::chrono::minutes PATIENCE(5);

template <class T> T in_time(std::future<T> future) {
  if (future.wait_for(PATIENCE) != std::future_status::ready) {
    std::fprintf(stderr, "an exchange hangs\n");
    std::abort();
  }
  return future.get();
}

bool eventually(const std::function<bool()>& is) {
  const auto deadline = std::chrono::steady_clock::now() + PATIENCE;
  while (!is()) {
    if (std::chrono::steady_clock::now() > deadline) {
      return false;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

Script script(const std::string& path, std::vector<std::string> body = {}) {
  Script script;
  script.request.headers = {{":method", body.empty() ? "GET" : "POST"},
                            {":path", path},
                            {":scheme", "http"},
                            {":authority", "test"}};
  script.request.body = std::move(body);
  script.response.headers = {{":status", "200"}};
  script.response.body = {"Hello, ", "World"};
  return script;
}

Report play(const Worker& worker, const std::shared_ptr<Config>& config, Script script) {
  std::promise<Report> promise;
  std::future<Report> report = promise.get_future();
  worker.post([&] {
    Stream::start(worker, config, std::move(script),
                  [&promise](const Report& report) { promise.set_value(report); });
  });
  return in_time(std::move(report));
}

std::string thrown(const std::function<void()>& f) {
  try {
    f();
  } catch (const rust::Error& error) {
    return error.what();
  }
  return "";
}

rust::Slice<const std::uint8_t> slice(const std::string& text) {
  return {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()};
}

class BridgeTest : public testing::Test {
protected:
  ~BridgeTest() override {
    config_.reset();
    // What is still in a worker's queue, or a task of Rust's that is just ending, keeps them for a
    // moment longer.
    EXPECT_TRUE(eventually([] { return Stream::alive == 0; })) << Stream::alive << " are left";
    EXPECT_TRUE(eventually([] { return notifiers == 0; })) << notifiers << " notifiers are left";
    EXPECT_TRUE(eventually([] { return Call::alive == 0; })) << Call::alive << " calls are left";
  }

  Report play(Script script) { return test::play(worker_, config_, std::move(script)); }

  // Everything that began has ended.
  void expectNothingLeft(std::int64_t exchanges) {
    EXPECT_EQ(config_->metric("live"), 0);
    EXPECT_EQ(config_->metric("dropped"), exchanges);
    EXPECT_EQ(config_->wrong(), 0);
  }

  const Worker main_;
  const Worker worker_;
  std::shared_ptr<Config> config_ = Config::load(main_, "bridge");
};

// ---- Configs --------------------------------------------------------------------------------

TEST_F(BridgeTest, TheFiltersOfTheListAreThere) {
  const rust::Vec<rust::String> names = bridge::filterNames();
  for (const char* name : {"api-key", "bridge", "conformance", "echo", "hello", "redact"}) {
    EXPECT_EQ(std::count(names.begin(), names.end(), rust::String(name)), 1) << name;
  }
}

TEST_F(BridgeTest, ABadConfigIsRefusedWithTheReason) {
  const auto load = [this](const std::string& name, const std::string& config) {
    return thrown([&] { Config::load(main_, name, config); });
  };
  EXPECT_EQ(load("brigde", "")
                .rfind("filter `brigde`: config refused: there is no filter of this "
                       "name; the module has `api-key`, ",
                       0),
            0);
  EXPECT_EQ(load("hello", R"({"greting": "hi"})"),
            "filter `hello`: config refused: missing field `greeting`");
  EXPECT_EQ(load("hello", R"({"greeting": "hi", "greting": "hi"})"),
            "filter `hello`: config refused: field `greting`: there is no such field; correct its "
            "name or remove it");
  EXPECT_EQ(load("misbehave", "mode: fine")
                .rfind("filter `misbehave`: config refused: it is not "
                       "JSON",
                       0),
            0);
  EXPECT_EQ(load("misbehave", R"({"mode": "panics"})"),
            "filter `misbehave`: `Filter::new` panicked: a panic in new");
  EXPECT_EQ(load("bridge", std::string("\0\xff", 2)).rfind("filter `bridge`: config refused", 0),
            0);
}

TEST_F(BridgeTest, ABadRouteConfigIsRefusedWithTheReason) {
  EXPECT_EQ(
      thrown([] { bridge::loadRouteConfig("bridge", slice(R"({"greeting": 3})")); }),
      "filter `bridge`: per-route config refused: field `greeting`: invalid type: integer `3`, "
      "expected a string");
  EXPECT_NE(thrown([] { bridge::loadRouteConfig("nobody", slice("")); }), "");
}

TEST_F(BridgeTest, AMetricThatIsRefusedRefusesTheConfig) {
  Config::refuse = "elsewhere";
  EXPECT_EQ(thrown([this] { Config::load(main_, "bridge"); }),
            "filter `bridge`: config refused: metric `elsewhere` cannot be defined: refused by the "
            "test");
  Config::refuse.clear();
}

TEST_F(BridgeTest, TheRouteConfigsReachTheFilter) {
  const rust::Box<bridge::RouteConfig> host =
      bridge::loadRouteConfig("bridge", slice(R"({"greeting": "hi"})"));
  const rust::Box<bridge::RouteConfig> route =
      bridge::loadRouteConfig("bridge", slice(R"({"greeting": "you"})"));
  Script greeted = script("/route");
  greeted.routes = {&*host};
  EXPECT_EQ(play(greeted).client.text(), "hi");
  greeted.routes = {&*host, &*route};
  EXPECT_EQ(play(greeted).client.text(), "hi, you");
  EXPECT_EQ(play(script("/route")).client.header(":status"), "500");
}

// ---- What is around the messages ------------------------------------------------------------

TEST_F(BridgeTest, WhatIsAroundARequestCrossesOver) {
  const Report report = play(script("/around"));
  EXPECT_EQ(report.client.text(), R"(Some("1.2.3.4:5")
Some(7)
Some(true)
Some(Some(1.5s))
Some(25ms)
None
["a.example", "b.example"]
[]
Some("{\"id\":\"node\"}")
Unsupported
Some("{\"a\":[1.0,null,{\"b\":\"c\"}]}")
["nested"]
WrongType
Some(b"\xff\0")
Refused
Refused
Some(7)
Refused
Unsupported
Some("abc") None Some("�b")
{"x-span": "stream", "x-sampled": "0"} None)");
  // What Rust logs is noted in the span as well.
  std::vector<std::string> done = report.done;
  done.erase(std::remove_if(done.begin(), done.end(),
                            [](const std::string& what) {
                              return what.rfind("stream: error: ", 0) == 0 ||
                                     what.rfind("stream: warn: ", 0) == 0;
                            }),
             done.end());
  EXPECT_EQ(done, (std::vector<std::string>{"route cleared", "flag MINE", "stream: key=value",
                                            "stream: an event"}));
  // Of the three objects, each has gone once, whatever its drop does.
  EXPECT_TRUE(eventually([] { return logged("a kept object's drop") == 3; }));
  expectNothingLeft(1);
}

TEST_F(BridgeTest, AResetHasItsReason) {
  const Report report = play(script("/refused"));
  EXPECT_TRUE(report.reset);
  EXPECT_EQ(report.done, (std::vector<std::string>{"reset as refused"}));
  expectNothingLeft(1);
}

// ---- Exchanges ------------------------------------------------------------------------------

TEST_F(BridgeTest, AnExchangePassesAsItIs) {
  Script whole = script("/pass", {"some ", "body"});
  whole.request.headers.emplace_back("x-empty", "");
  whole.request.has_trailers = whole.response.has_trailers = true;
  whole.request.trailers = {{"x-request", "1"}};
  whole.response.trailers = {{"x-response", "2"}};
  const Report report = play(whole);
  EXPECT_EQ(report.upstream.headers, whole.request.headers);
  EXPECT_EQ(report.upstream.body, whole.request.body);
  EXPECT_EQ(report.upstream.trailers, whole.request.trailers);
  EXPECT_EQ(report.client.headers, whole.response.headers);
  EXPECT_EQ(report.client.body, whole.response.body);
  EXPECT_EQ(report.client.trailers, whole.response.trailers);
  EXPECT_TRUE(report.client.ended);
  EXPECT_FALSE(report.local_reply || report.reset);
  EXPECT_EQ(report.scheduled, 0) << "nothing waited";
  expectNothingLeft(1);
}

TEST_F(BridgeTest, HeadersAreReadAndChanged) {
  Script many = script("/headers");
  std::size_t sum = 0;
  // More than the bridge has room for on the stack.
  for (int i = 0; i < 100; ++i) {
    many.request.headers.emplace_back("x-" + std::to_string(i), std::to_string(i));
  }
  many.request.headers.emplace_back("x-unwanted", "1");
  for (const auto& [name, value] : many.request.headers) {
    sum += value.size();
  }
  const Report report = play(many);
  EXPECT_EQ(report.upstream.header("x-count"), "105");
  EXPECT_EQ(report.upstream.header("x-sum"), std::to_string(sum));
  HeaderList end(report.upstream.headers.end() - 3, report.upstream.headers.end());
  EXPECT_EQ(end, (HeaderList{{"x-twice", "1"}, {"x-twice", "2"}, {"x-empty", ""}}));
  EXPECT_EQ(std::count(report.upstream.headers.begin(), report.upstream.headers.end(),
                       HeaderList::value_type("x-unwanted", "1")),
            0);
}

TEST_F(BridgeTest, AnotherThreadResumesAnExchange) {
  for (int round = 0; round < 100; ++round) {
    Script hop = script("/hop", {"a", "b", "c"});
    hop.inline_upstream = round % 2 == 0;
    hop.request.has_trailers = round % 3 == 0;
    const Report report = play(hop);
    EXPECT_EQ(report.upstream.text(), "abc");
    EXPECT_EQ(report.upstream.has_trailers, round % 3 == 0);
    EXPECT_EQ(report.client.text(), "Hello, World");
    EXPECT_EQ(report.client.header("x-hopped"), "twice");
  }
  expectNothingLeft(100);
}

TEST_F(BridgeTest, AResponseComesWhileItsRequestIsResumed) {
  for (int round = 0; round < 50; ++round) {
    Script hop = script("/hop", std::vector<std::string>(round, "piece "));
    hop.inline_upstream = hop.early_upstream = true;
    EXPECT_EQ(play(hop).client.text(), "Hello, World");
    hop = script("/pipe", std::vector<std::string>(round, "piece "));
    hop.inline_upstream = hop.early_upstream = true;
    EXPECT_EQ(play(hop).client.text(), "hello, world");
  }
  expectNothingLeft(100);
}

TEST_F(BridgeTest, ATimerResumesAnExchange) {
  EXPECT_EQ(play(script("/timer")).client.text(), "Hello, World");
}

TEST_F(BridgeTest, AnExchangeThatIsWokenAgainAndAgainGoesOnOnce) {
  for (int round = 0; round < 20; ++round) {
    EXPECT_EQ(play(script("/storm", {"x"})).client.text(), "Hello, World");
  }
  expectNothingLeft(20);
}

TEST_F(BridgeTest, ABufferedBodyGoesOnInPlace) {
  const Report report = play(script("/buffer", {"12345", "6789"}));
  EXPECT_EQ(report.upstream.header("x-length"), "9");
  EXPECT_EQ(report.upstream.text(), "123456789");
}

TEST_F(BridgeTest, BothBodiesAreChangedAsTheyGoBy) {
  for (const bool inline_upstream : {false, true}) {
    for (const bool early : {false, true}) {
      Script pipe = script("/pipe", {"a", "bc", "def", "ghij"});
      pipe.inline_upstream = inline_upstream;
      pipe.early_upstream = early;
      pipe.response.body = {"UP", "STREAM"};
      const Report report = play(pipe);
      EXPECT_EQ(report.client.text(), "upstream");
      if (!early) {
        EXPECT_EQ(report.upstream.text(), "ABCDEFGHIJ");
      }
    }
  }
}

TEST_F(BridgeTest, TrailersAreAddedToABodyThatCameWithout) {
  const Report report = play(script("/trailers"));
  EXPECT_EQ(report.client.text(), "Hello, World");
  EXPECT_EQ(report.client.trailers, (HeaderList{{"x-length", "12"}}));
}

// ---- The end --------------------------------------------------------------------------------

TEST_F(BridgeTest, AClientGoesWhileItsExchangeWaits) {
  for (int round = 0; round < 100; ++round) {
    Script wait = script("/wait", {"body"});
    wait.client_goes = true;
    const Report report = play(wait);
    EXPECT_TRUE(report.reset);
    EXPECT_FALSE(report.upstream.has_headers);
  }
  expectNothingLeft(100);
}

TEST_F(BridgeTest, AClientGoesWhileItsExchangeIsResumed) {
  // The wake-up and the end race for the worker's queue.
  for (int round = 0; round < 500; ++round) {
    Script hop = script("/hop");
    hop.client_goes = true;
    play(hop);
  }
  expectNothingLeft(500);
}

TEST_F(BridgeTest, AWakeAfterTheEndDoesNothing) {
  for (int round = 0; round < 20; ++round) {
    Script leave = script("/leave-waker");
    leave.client_goes = true;
    play(leave);
  }
  EXPECT_EQ(notifiers, 20 + 1) << "the wakers keep theirs, and the config has one";
  EXPECT_TRUE(eventually([] { return Stream::alive == 0; })) << "but not the streams";
  EXPECT_EQ(play(script("/wake")).client.text(), "20");
  expectNothingLeft(21);
}

TEST_F(BridgeTest, AWakeAfterTheWorkerDoesNothing) {
  for (int round = 0; round < 20; ++round) {
    const Worker short_lived;
    Script leave = script("/leave-waker");
    leave.client_goes = true;
    test::play(short_lived, config_, leave);
  }
  EXPECT_EQ(play(script("/wake")).client.text(), "20");
}

TEST_F(BridgeTest, AWakeAfterTheConfigDoesNothing) {
  {
    const std::shared_ptr<Config> replaced = Config::load(main_, "bridge");
    Script leave = script("/leave-waker");
    leave.client_goes = true;
    test::play(worker_, replaced, leave);
  }
  EXPECT_EQ(play(script("/wake")).client.text(), "1");
}

TEST_F(BridgeTest, AStreamKeepsAConfigThatWasReplaced) {
  std::promise<Report> promise;
  std::shared_ptr<Stream> stream;
  worker_.run([&] {
    stream = Stream::start(worker_, config_, script("/wait"),
                           [&promise](const Report& report) { promise.set_value(report); });
  });
  const std::weak_ptr<Config> replaced = config_;
  config_ = Config::load(main_, "bridge");
  EXPECT_FALSE(replaced.expired());
  worker_.run([&stream] { stream->cancel(); });
  EXPECT_TRUE(in_time(promise.get_future()).reset);
  // Its last reference goes on the worker, or here.
  worker_.run([] {});
  stream.reset();
  EXPECT_TRUE(eventually([&replaced] { return replaced.expired(); }));
}

// ---- Failures -------------------------------------------------------------------------------

TEST_F(BridgeTest, APanicCostsItsExchangeOnly) {
  const int before = logged("[bridge][C7][a-request]");
  for (const char* path : {"/panic", "/panic-later", "/panic-response"}) {
    for (const bool inline_upstream : {false, true}) {
      Script panic = script(path, {"body"});
      panic.inline_upstream = inline_upstream;
      const Report report = play(panic);
      EXPECT_EQ(report.client.header(":status"), "500") << path;
      EXPECT_EQ(report.client.text().find("panic"), std::string::npos) << "nothing for the client";
    }
  }
  EXPECT_EQ(config_->metric("attache.bridge.panics"), 6);
  EXPECT_GE(logged("[bridge][C7][a-request]"), before + 6);
  EXPECT_GE(logged("a panic with the response in hand"), 2);
  EXPECT_EQ(play(script("/pass")).client.text(), "Hello, World");
  expectNothingLeft(7);
}

// It is a fault of the runtime's, and not of the filter's: nothing of the filter has run.
TEST_F(BridgeTest, AnExchangeThatCannotBeMadeIsRefused) {
  Script lost = script("/pass", {"some ", "body"});
  lost.request.has_trailers = true;
  play(script("/lose-next"));
  const Report report = play(lost);
  EXPECT_EQ(report.client.header(":status"), "500");
  EXPECT_EQ(report.client.text(), "Internal Server Error");
  EXPECT_EQ(report.details, "attache.runtime.panic");
  EXPECT_FALSE(report.upstream.has_headers);
  EXPECT_EQ(config_->metric("attache.bridge.panics"), 1);
  EXPECT_GE(logged("the runtime panicked in new_stream"), 1);
  EXPECT_EQ(play(script("/pass")).client.text(), "Hello, World");
}

TEST_F(BridgeTest, AnExchangeThatCannotBeMadePassesAFilterThatFailsOpen) {
  config_ = Config::load(main_, "bridge", "", /*fail_open=*/true);
  Script lost = script("/pass", {"some ", "body"});
  lost.request.has_trailers = lost.response.has_trailers = true;
  play(script("/lose-next"));
  const Report report = play(lost);
  EXPECT_EQ(report.upstream.text(), "some body");
  EXPECT_TRUE(report.upstream.has_trailers);
  EXPECT_EQ(report.client.text(), "Hello, World");
  EXPECT_TRUE(report.client.has_trailers);
  EXPECT_EQ(config_->metric("attache.bridge.panics"), 1);
}

TEST_F(BridgeTest, AnErrorIsAReplyOfItsStatus) {
  EXPECT_EQ(play(script("/error")).client.header(":status"), "418");
}

TEST_F(BridgeTest, AFilterThatFailsOpenLetsTheExchangeGoOn) {
  config_ = Config::load(main_, "bridge", "", /*fail_open=*/true);
  EXPECT_EQ(play(script("/panic", {"body"})).client.text(), "Hello, World");
  config_ = Config::load(main_, "bridge", R"({"attache": {"fail_open": false}})", true);
  EXPECT_EQ(play(script("/panic", {"body"})).client.header(":status"), "500");
}

// ---- Replies --------------------------------------------------------------------------------

TEST_F(BridgeTest, AReplyEndsTheExchangeInsideTheCallThatSendsIt) {
  const Report report = play(script("/reply", {"body"}));
  EXPECT_EQ(report.client.text(), "at once");
  EXPECT_TRUE(report.local_reply);
  const Report later = play(script("/reply-later"));
  EXPECT_EQ(later.client.text(), "later");
  EXPECT_FALSE(later.upstream.has_headers);
  EXPECT_EQ(std::count(later.client.headers.begin(), later.client.headers.end(),
                       HeaderList::value_type("x-empty", "")),
            1)
      << "an empty value is a value";
  expectNothingLeft(2);
}

// It is sent without a body, comes by as a response, and gets its body there.
TEST_F(BridgeTest, AReplyIsStreamedAfterTheRequestHasGone) {
  for (int round = 0; round < 50; ++round) {
    Script silent = script("/give-up", round % 2 == 0 ? std::vector<std::string>{}
                                                      : std::vector<std::string>{"some ", "body"});
    silent.silent_upstream = true;
    silent.inline_upstream = round % 3 == 0;
    const Report report = play(silent);
    EXPECT_TRUE(report.local_reply);
    EXPECT_TRUE(report.upstream.has_headers);
    EXPECT_EQ(report.client.text(), "not the upstream");
    EXPECT_EQ(report.client.trailers, (HeaderList{{"x-pieces", "3"}}));
  }
  expectNothingLeft(50);
}

TEST_F(BridgeTest, AStreamedReplyWaitsForItsClient) {
  Script streamed = script("/streamed-reply");
  streamed.client_window = 4 * 1024;
  const Report report = play(streamed);
  EXPECT_EQ(report.client.text(), std::string(64 * 1024, 'r'));
  // At least once: all that is ready within one poll goes to the client together.
  EXPECT_GE(report.times_full, 1);
  expectNothingLeft(1);
}

TEST_F(BridgeTest, AClientGoesInTheMiddleOfAStreamedReply) {
  for (int round = 0; round < 50; ++round) {
    std::promise<Report> promise;
    std::shared_ptr<Stream> stream;
    worker_.run([&] {
      stream = Stream::start(worker_, config_, script("/streamed-reply"),
                             [&promise](const Report& report) { promise.set_value(report); });
    });
    for (int turn = 0; turn < round; ++turn) {
      worker_.run([] {});
    }
    worker_.run([&stream] {
      stream->cancel();
      stream.reset();
    });
    in_time(promise.get_future());
  }
  expectNothingLeft(50);
}

// ---- Calls to clusters ----------------------------------------------------------------------

TEST_F(BridgeTest, ACallIsAnsweredOrFailsWithTheReason) {
  for (const std::string how : {"/call/", "/call-shared/"}) {
    const auto told = [&](const std::string& what) {
      return play(script(how + what)).client.text();
    };
    EXPECT_EQ(told("service/yes"), "200 yes");
    EXPECT_EQ(told("service/late"), "Timeout cluster `service`: upstream request timeout");
    EXPECT_EQ(told("service/cut"), "Reset cluster `service`: it was reset");
    EXPECT_EQ(told("nobody/yes"),
              "UnknownCluster cluster `nobody`: Envoy has no cluster of this name");
    EXPECT_EQ(told("sick/yes"), "Unavailable cluster `sick`: no host of it is healthy");
    EXPECT_EQ(told("busy/yes"), "Overflow cluster `busy`: a circuit breaker is open");
    EXPECT_EQ(told("shut/yes").rfind("Unavailable ", 0), 0);
  }
  expectNothingLeft(14);
}

TEST_F(BridgeTest, ARequestStreamsThroughAClusterAsFastAsItIsRead) {
  constexpr std::size_t piece = 1024;
  Call::most_unread = 0;
  Script stream = script("/call-stream", std::vector<std::string>(64, std::string(piece, 's')));
  stream.request.trailers = {{"x-end", "1"}};
  stream.request.has_trailers = true;
  const Report report = play(stream);
  EXPECT_EQ(report.client.text(), std::string(64 * piece, 's'));
  EXPECT_EQ(report.client.trailers, stream.request.trailers);
  // It may take in one go what has come meanwhile; but it waits for the service to have read that.
  EXPECT_LE(Call::most_unread, 32 * piece);
  expectNothingLeft(1);
}

TEST_F(BridgeTest, ACallThatIsDroppedIsResetAndItsAnswerIgnored) {
  Call::cancelled = 0;
  for (int round = 0; round < 50; ++round) {
    EXPECT_EQ(play(script("/call-drop")).client.text(), "Hello, World");
    EXPECT_EQ(play(script("/call-shared-drop")).client.text(), "Hello, World");
  }
  // A shared one may be answered before the main thread hears that nobody wants it.
  EXPECT_GE(Call::cancelled, 50);
  expectNothingLeft(100);
}

TEST_F(BridgeTest, APanicThatDropsACallWhileHeadersAreLookedAtIsSurvived) {
  Call::cancelled = 0;
  EXPECT_EQ(play(script("/call-look")).client.header(":status"), "500");
  EXPECT_EQ(Call::cancelled, 1);
  expectNothingLeft(1);
}

TEST_F(BridgeTest, AClientGoesWhileItsExchangeCalls) {
  Call::cancelled = 0;
  for (int round = 0; round < 100; ++round) {
    // The answer and the end race for the worker's queue.
    for (const char* path : {"/call/service/never", "/call/service/yes", "/call/service/cut",
                             "/call-shared/service/never", "/call-shared/service/yes"}) {
      Script goes = script(path);
      goes.client_goes = true;
      play(goes);
    }
  }
  EXPECT_TRUE(eventually([] { return Call::cancelled >= 200; })) << Call::cancelled;
  expectNothingLeft(500);
}

TEST_F(BridgeTest, AConfigGoesWhileItCalls) {
  for (int round = 0; round < 50; ++round) {
    std::shared_ptr<Config> replaced = Config::load(main_, "bridge");
    EXPECT_EQ(test::play(worker_, replaced, script("/call-outlives")).client.text(), "out");
    if (round % 2 == 0) {
      // On a worker, as with the last stream of a config that was replaced.
      worker_.run([&replaced] { replaced.reset(); });
    }
  }
  // Each was told of the call that was under way, and of one that it made after that.
  EXPECT_TRUE(eventually([this] {
    const std::string outcomes = play(script("/call-outcomes")).client.text();
    return outcomes == "Gone Gone 50";
  })) << play(script("/call-outcomes")).client.text();
}

TEST_F(BridgeTest, TheMainThreadGoesWhileAConfigCalls) {
  {
    const Worker main;
    std::shared_ptr<Config> doomed = Config::load(main, "bridge");
    EXPECT_EQ(test::play(worker_, doomed, script("/call-outlives")).client.text(), "out");
    main.run([&doomed] { doomed.reset(); });
  }
  EXPECT_TRUE(eventually([this] {
    const std::string outcomes = play(script("/call-outcomes")).client.text();
    return outcomes == "Gone Gone 51";
  })) << play(script("/call-outcomes")).client.text();
}

// ---- Secrets and flags ----------------------------------------------------------------------

TEST_F(BridgeTest, ASecretChangesAndFlagsAreRead) {
  const std::string flags = " true true 9 2.5 Some(\"text\") false false 1 1.5 None";
  EXPECT_EQ(play(script("/envoy")).client.text(), "first" + flags);
  config_->rotate("second");
  EXPECT_EQ(play(script("/envoy")).client.text(), "second" + flags);
  config_->rotate("");
  EXPECT_EQ(play(script("/envoy")).client.text(), "second" + flags) << "an empty one is none";
}

// ---- Back-pressure --------------------------------------------------------------------------

TEST_F(BridgeTest, ASenderWaitsForAFilterThatReadsSlowly) {
  constexpr std::size_t piece = 1024;
  constexpr std::size_t limit = 16 * piece;
  Script upload = script("/upload", std::vector<std::string>(1024, std::string(piece, 'u')));
  upload.limit = limit;
  const Report report = play(upload);
  EXPECT_EQ(report.client.text(), std::to_string(1024 * piece));
  EXPECT_LE(report.most_held, limit + piece);
  EXPECT_EQ(config_->metric("lengths"), 1024 * piece);
}

TEST_F(BridgeTest, ABodyThatIsChangedSlowlyIsNotHeld) {
  constexpr std::size_t piece = 1024;
  constexpr std::size_t limit = 16 * piece;
  Script pipe = script("/pipe", std::vector<std::string>(256, std::string(piece, 'p')));
  pipe.limit = limit;
  pipe.echo = true;
  const Report report = play(pipe);
  EXPECT_EQ(report.upstream.text(), std::string(256 * piece, 'P'));
  EXPECT_EQ(report.client.text(), std::string(256 * piece, 'p'));
  EXPECT_LE(report.most_held, limit + piece);
}

// ---- Metrics --------------------------------------------------------------------------------

TEST_F(BridgeTest, MetricsAreUpdatedFromAnyThread) {
  for (int round = 0; round < 10; ++round) {
    play(script("/count-elsewhere"));
  }
  EXPECT_TRUE(eventually([this] { return config_->metric("elsewhere") == 1000; }));
  EXPECT_EQ(config_->metric("paths", "/count-elsewhere"), 10);
  expectNothingLeft(10);
}

TEST_F(BridgeTest, MetricsOfAConfigThatHasGoneGoNowhere) {
  // The wakers that these leave keep nothing of the config; the counter that they used is gone.
  for (int round = 0; round < 50; ++round) {
    std::shared_ptr<Config> replaced = Config::load(main_, "bridge");
    Script count = script("/count-elsewhere");
    count.client_goes = true;
    test::play(worker_, replaced, count);
    replaced.reset();
  }
}

// ---- All at once ----------------------------------------------------------------------------

// Exchanges of all kinds on several workers, so many at a time.
TEST_F(BridgeTest, AHundredThousandExchanges) {
  constexpr int WORKERS = 4;
  constexpr int EACH = 25000;
  constexpr int AT_A_TIME = 16;

  struct Player {
    Worker worker;
    int started = 0;
    int ended = 0;
    int replies = 0;
    std::int64_t bytes = 0;
    std::promise<void> done;
  };
  std::vector<std::unique_ptr<Player>> players;
  std::function<void(Player&)> next = [&](Player& player) {
    static const char* const PATHS[] = {"/pass", "/hop",  "/reply", "/upload", "/wait",
                                        "/pipe", "/pass", "/panic", "/storm",  "/hop"};
    const int number = player.started++;
    std::string path = PATHS[number % 10];
    if (path == "/panic" && number % 1000 != 7) {
      // Not too many: each is written to the log.
      path = "/error";
    }
    Script one = script(path);
    if (number % 3 != 0) {
      one.request.body = {"some", "body", "once", "told"};
    }
    one.inline_upstream = number % 2 == 0;
    one.client_goes = path == "/wait";
    Stream::start(player.worker, config_, std::move(one), [&](const Report& report) {
      ++player.ended;
      player.replies += report.client.ended ? 1 : 0;
      player.bytes += static_cast<std::int64_t>(report.client.text().size());
      if (player.started < EACH) {
        next(player);
      } else if (player.ended == EACH) {
        player.done.set_value();
      }
    });
  };
  for (int i = 0; i < WORKERS; ++i) {
    players.push_back(std::make_unique<Player>());
  }
  for (const auto& player : players) {
    player->worker.post([&next, &player] {
      for (int i = 0; i < AT_A_TIME; ++i) {
        next(*player);
      }
    });
  }
  for (const auto& player : players) {
    in_time(player->done.get_future());
    EXPECT_EQ(player->ended, EACH);
    EXPECT_EQ(player->replies, EACH - EACH / 10) << "all but those whose client went";
  }
  players.clear();
  expectNothingLeft(WORKERS * EACH);
}

// ---- The line of counts ---------------------------------------------------------------------

class Counts : public testing::EmptyTestEventListener {
  void OnTestProgramEnd(const testing::UnitTest& all) override {
    std::printf("test result: %s. %d passed; %d failed; 0 ignored\n",
                all.Failed() ? "FAILED" : "ok", all.successful_test_count(),
                all.failed_test_count());
  }
};

} // namespace
} // namespace test
} // namespace attache

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  testing::UnitTest::GetInstance()->listeners().Append(new attache::test::Counts);
  attache::bridge::init(std::make_unique<attache::test::Log>());
  // Once more does no harm.
  attache::bridge::init(std::make_unique<attache::test::Log>());
  return RUN_ALL_TESTS();
}
