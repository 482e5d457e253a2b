// The filter and its factory between Envoy's mocks and the real Rust runtime.
//
// The Rust side is `test/conformance/filters`: it does what a script in the request header
// `x-script` says. Where an exchange waits, it waits at a gate, which another exchange opens:
// nothing here depends on time. What is posted to the worker, by any thread, is kept in a queue,
// which the test runs when it likes.

#include <deque>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "envoy/config/core/v3/config_source.pb.h"
#include "envoy/extensions/transport_sockets/tls/v3/secret.pb.h"

#include "source/common/buffer/buffer_impl.h"
#include "source/common/common/callback_impl.h"
#include "source/common/protobuf/utility.h"
#include "source/common/router/string_accessor_impl.h"

#include "test/mocks/http/mocks.h"
#include "test/mocks/runtime/mocks.h"
#include "test/mocks/secret/mocks.h"
#include "test/mocks/server/factory_context.h"
#include "test/mocks/ssl/mocks.h"
#include "test/mocks/stream_info/mocks.h"
#include "test/mocks/tracing/mocks.h"
#include "test/test_common/utility.h"

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "cc/config/factory.h"
#include "cc/filter/filter.h"
#include "cc/filter/filter_state.h"
#include "cc/filter/runtime_flags.h"
#include "cc/filter/worker_link.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace Envoy {
namespace Attache {
namespace {

using testing::_;
using testing::HasSubstr;
using testing::Invoke;
using testing::NiceMock;
using testing::Return;
using testing::ReturnRef;

// Envoy's side of one stream: its headers, and what the filter does to it.
class Stream {
public:
  Stream(const Http::FilterFactoryCb& factory, Event::Dispatcher& dispatcher) {
    ON_CALL(decoder_, dispatcher()).WillByDefault(ReturnRef(dispatcher));
    ON_CALL(decoder_, bufferLimit()).WillByDefault(Invoke([this] { return limit_; }));
    ON_CALL(decoder_, requestHeaders()).WillByDefault(Invoke([this] {
      return Http::RequestHeaderMapOptRef(request_);
    }));
    ON_CALL(decoder_, requestTrailers()).WillByDefault(Invoke([this] {
      return has_request_trailers_ ? Http::RequestTrailerMapOptRef(request_trailers_)
                                   : Http::RequestTrailerMapOptRef();
    }));
    ON_CALL(decoder_, addDecodedTrailers()).WillByDefault(Invoke([this]() -> auto& {
      has_request_trailers_ = true;
      return request_trailers_;
    }));
    ON_CALL(decoder_, injectDecodedDataToFilterChain(_, _))
        .WillByDefault(Invoke([this](Buffer::Instance& data, bool end) {
          upstream_ += data.toString();
          data.drain(data.length());
          upstream_ended_ |= end;
        }));
    ON_CALL(decoder_, addDecodedData(_, _))
        .WillByDefault(Invoke([this](Buffer::Instance& data, bool) {
          upstream_ += data.toString();
          data.drain(data.length());
        }));
    ON_CALL(encoder_, streamInfo()).WillByDefault(ReturnRef(decoder_.stream_info_));
    ON_CALL(encoder_, responseHeaders()).WillByDefault(Invoke([this] {
      return has_response_ ? Http::ResponseHeaderMapOptRef(response_)
                           : Http::ResponseHeaderMapOptRef();
    }));
    ON_CALL(encoder_, responseTrailers()).WillByDefault(Invoke([this] {
      return has_response_trailers_ ? Http::ResponseTrailerMapOptRef(response_trailers_)
                                    : Http::ResponseTrailerMapOptRef();
    }));
    ON_CALL(encoder_, addEncodedTrailers()).WillByDefault(Invoke([this]() -> auto& {
      has_response_trailers_ = true;
      return response_trailers_;
    }));
    ON_CALL(encoder_, injectEncodedDataToFilterChain(_, _))
        .WillByDefault(Invoke([this](Buffer::Instance& data, bool end) {
          client_ += data.toString();
          data.drain(data.length());
          client_ended_ |= end;
        }));
    ON_CALL(encoder_, addEncodedData(_, _))
        .WillByDefault(Invoke([this](Buffer::Instance& data, bool) {
          client_ += data.toString();
          data.drain(data.length());
        }));

    ON_CALL(decoder_.stream_info_, setDynamicMetadata(_, _))
        .WillByDefault(Invoke([this](const std::string& name, const Protobuf::Struct& value) {
          (*decoder_.stream_info_.metadata_.mutable_filter_metadata())[name].MergeFrom(value);
        }));

    NiceMock<Http::MockFilterChainFactoryCallbacks> chain;
    EXPECT_CALL(chain, addStreamFilter(_))
        .WillOnce(Invoke([this](Http::StreamFilterSharedPtr filter) { filter_ = filter; }));
    factory(chain);
    filter_->setDecoderFilterCallbacks(decoder_);
    filter_->setEncoderFilterCallbacks(encoder_);
  }

  ~Stream() { destroy(); }

  void destroy() {
    if (filter_ != nullptr) {
      end();
      filter_.reset();
    }
  }

  // The stream ends, as it may within any call of the filter's.
  void end() {
    filter_->onStreamComplete();
    filter_->onDestroy();
  }

  Http::FilterHeadersStatus request(const std::string& script, bool end_stream = false) {
    // Long scripts are written over several lines, which a header cannot be.
    request_.setCopy(Http::LowerCaseString("x-script"), absl::StrReplaceAll(script, {{"\n", " "}}));
    return filter_->decodeHeaders(request_, end_stream);
  }

  Http::FilterDataStatus requestData(const std::string& text, bool end_stream = false) {
    Buffer::OwnedImpl frame(text);
    const Http::FilterDataStatus status = filter_->decodeData(frame, end_stream);
    if (status == Http::FilterDataStatus::Continue) {
      upstream_ += frame.toString();
      upstream_ended_ |= end_stream;
    } else {
      EXPECT_EQ(0, frame.length()) << "what is left of a held frame is Envoy's no more";
    }
    return status;
  }

  Http::FilterTrailersStatus requestTrailers() {
    has_request_trailers_ = true;
    return filter_->decodeTrailers(request_trailers_);
  }

  Http::FilterHeadersStatus response(bool end_stream = false) {
    has_response_ = true;
    return filter_->encodeHeaders(response_, end_stream);
  }

  Http::FilterDataStatus responseData(const std::string& text, bool end_stream = false) {
    Buffer::OwnedImpl frame(text);
    const Http::FilterDataStatus status = filter_->encodeData(frame, end_stream);
    if (status == Http::FilterDataStatus::Continue) {
      client_ += frame.toString();
      client_ended_ |= end_stream;
    }
    return status;
  }

  Http::FilterTrailersStatus responseTrailers() {
    has_response_trailers_ = true;
    return filter_->encodeTrailers(response_trailers_);
  }

  // What the filter has found out.
  std::vector<std::string> saw() {
    std::vector<std::string> answers;
    const auto values = response_.get(Http::LowerCaseString("x-saw"));
    for (std::size_t i = 0; i < values.size(); ++i) {
      answers.emplace_back(values[i]->value().getStringView());
    }
    return answers;
  }

  uint64_t limit_{1024 * 1024};
  Http::TestRequestHeaderMapImpl request_{
      {":method", "POST"}, {":path", "/"}, {":scheme", "http"}, {":authority", "host"}};
  Http::TestRequestTrailerMapImpl request_trailers_;
  bool has_request_trailers_{};
  Http::TestResponseHeaderMapImpl response_{{":status", "200"}};
  bool has_response_{};
  Http::TestResponseTrailerMapImpl response_trailers_;
  bool has_response_trailers_{};
  // What has got past the filter.
  std::string upstream_;
  bool upstream_ended_{};
  std::string client_;
  bool client_ended_{};

  NiceMock<Http::MockStreamDecoderFilterCallbacks> decoder_;
  NiceMock<Http::MockStreamEncoderFilterCallbacks> encoder_;
  Http::StreamFilterSharedPtr filter_;
};

// What was posted to a dispatcher.
class Posted {
public:
  void add(Event::PostCb callback) {
    absl::MutexLock lock(&mutex_);
    callbacks_.push_back(std::move(callback));
  }

  size_t size() const {
    absl::MutexLock lock(&mutex_);
    return callbacks_.size();
  }
  bool empty() const { return size() == 0; }

  // Runs what is there, and what comes of it on this thread.
  void run() {
    while (runNext(absl::ZeroDuration())) {
    }
  }

  // Runs the next one, also if it is still to come from another thread. False if none does.
  bool runNext(absl::Duration patience = absl::Seconds(60)) {
    Event::PostCb callback;
    {
      absl::MutexLock lock(&mutex_);
      if (!mutex_.AwaitWithTimeout(absl::Condition(this, &Posted::any), patience)) {
        return false;
      }
      callback = std::move(callbacks_.front());
      callbacks_.pop_front();
    }
    callback();
    return true;
  }

private:
  bool any() const ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return !callbacks_.empty(); }

  mutable absl::Mutex mutex_;
  std::deque<Event::PostCb> callbacks_ ABSL_GUARDED_BY(mutex_);
};

// Of its own accord a config posts, too: its counts, from time to time, and what it finds slow. Not
// in a test's life.
constexpr absl::string_view kConformance = R"({"script_header": "x-script",
    "attache": {"slow_poll_ms": 1e9, "stats": {"interval_ms": 1e9}}})";

class FilterTest : public testing::Test {
public:
  FilterTest() {
    ON_CALL(worker(), post(_)).WillByDefault(Invoke([this](Event::PostCb callback) {
      posted_.add(std::move(callback));
    }));
    factory_ = load("conformance", kConformance).value();
  }

  // Rust's threads may hold wakers for longer than the test lives: from here on they do nothing.
  ~FilterTest() override { endWorker(); }

  Event::MockDispatcher& worker() {
    return context_.server_factory_context_.thread_local_.dispatcher_;
  }

  // The worker's thread goes.
  void endWorker() { context_.server_factory_context_.thread_local_.shutdownThread_(); }

  absl::StatusOr<Http::FilterFactoryCb> load(const std::string& name, absl::string_view json,
                                             bool fail_open = false) {
    ::attache::v3alpha::Filter config;
    config.set_name(name);
    config.set_fail_open(fail_open);
    Protobuf::StringValue text;
    text.set_value(std::string(json));
    EXPECT_TRUE(config.mutable_config()->PackFrom(text));
    return filter_factory_.createFilterFactoryFromProto(config, "", context_);
  }

  absl::StatusOr<Router::RouteSpecificFilterConfigConstSharedPtr>
  loadRoute(const ::attache::v3alpha::FilterPerRoute& config) {
    return filter_factory_.createRouteSpecificFilterConfig(
        config, context_.server_factory_context_, ProtobufMessage::getStrictValidationVisitor());
  }

  // A filter's config for a route; `value` is YAML.
  ::attache::v3alpha::FilterPerRoute routeOf(const std::string& name, const std::string& value) {
    ::attache::v3alpha::FilterPerRoute route;
    route.set_name(name);
    Protobuf::Struct fields;
    TestUtility::loadFromYaml(value, fields);
    EXPECT_TRUE(route.mutable_config()->PackFrom(fields));
    return route;
  }

  std::unique_ptr<Stream> stream() { return stream(factory_); }
  std::unique_ptr<Stream> stream(const Http::FilterFactoryCb& factory) {
    return std::make_unique<Stream>(factory, worker());
  }

  // A gate of this test's own, also if it is run again: gates live as long as the process.
  std::string gate() const {
    return absl::StrCat(testing::UnitTest::GetInstance()->current_test_info()->name(), " ", run_);
  }

  // Opens a gate, as another exchange on the same worker.
  void open(const std::string& gate) {
    auto other = stream();
    other->request_.setCopy(Http::LowerCaseString("x-open"), gate);
    EXPECT_CALL(other->decoder_, sendLocalReply(Http::Code::OK, _, _, _, _));
    EXPECT_EQ(Http::FilterHeadersStatus::StopIteration, other->request("", true));
  }

  // What a filter replies to a request, be it at once or when a thread of its own has come back.
  std::string replyOf(const Http::FilterFactoryCb& factory) {
    auto s = stream(factory);
    std::string reply;
    ON_CALL(s->decoder_, sendLocalReply(_, _, _, _, _))
        .WillByDefault(
            Invoke([&](Http::Code code, absl::string_view body, auto, auto, absl::string_view) {
              reply = absl::StrCat(static_cast<int>(code), " ", body);
            }));
    s->request("", true);
    while (reply.empty() && posted_.runNext()) {
    }
    return reply;
  }

  // Runs what was posted to the worker, and what comes of it.
  void runPosted() { posted_.run(); }

  uint64_t counter(const std::string& name) {
    return context_.store_.counterFromString(name).value();
  }

  NiceMock<Server::Configuration::MockFactoryContext> context_;
  Posted posted_;
  const int run_ = ++runs_;
  FilterFactory filter_factory_;
  Http::FilterFactoryCb factory_;

private:
  static inline int runs_{};
};

// ---- Headers --------------------------------------------------------------------------------

TEST_F(FilterTest, WhatTheFilterDoesNotTouchPassesWithoutAStop) {
  auto s = stream();
  EXPECT_EQ(Http::FilterHeadersStatus::Continue, s->request("{}"));
  EXPECT_EQ(Http::FilterDataStatus::Continue, s->requestData("good"));
  EXPECT_EQ(Http::FilterDataStatus::Continue, s->requestData("bye", true));
  EXPECT_EQ("goodbye", s->upstream_);
  EXPECT_EQ(Http::FilterHeadersStatus::Continue, s->response());
  EXPECT_EQ(Http::FilterDataStatus::Continue, s->responseData("hi"));
  EXPECT_EQ(Http::FilterTrailersStatus::Continue, s->responseTrailers());
  EXPECT_TRUE(posted_.empty()) << "a filter that does not wait wakes nobody";
}

TEST_F(FilterTest, HeadersChangeInPlace) {
  auto s = stream();
  s->request_.addCopy(Http::LowerCaseString("x-old"), "1");
  EXPECT_EQ(Http::FilterHeadersStatus::Continue,
            s->request(R"({"steps": [{"headers": [{"set": ["x-new", "a"]},
                {"append": ["x-new", "b"]}, {"remove": "x-old"}]}, "run",
                {"headers": [{"set": ["x-by", "us"]}]}]})",
                       true));
  EXPECT_EQ(2, s->request_.get(Http::LowerCaseString("x-new")).size());
  EXPECT_TRUE(s->request_.get(Http::LowerCaseString("x-old")).empty());
  EXPECT_EQ(Http::FilterHeadersStatus::Continue, s->response(true));
  EXPECT_EQ("us", s->response_.get_("x-by"));
}

// Few headers are searched one by one, many with Envoy's index: both have to find the same.
TEST_F(FilterTest, HeadersAreFoundAmongFewAndAmongMany) {
  for (const int others : {0, 100}) {
    auto s = stream();
    for (int i = 0; i < others; ++i) {
      s->request_.addCopy(Http::LowerCaseString(absl::StrCat("x-other-", i)), "0");
    }
    s->request_.addCopy(Http::LowerCaseString("x-old"), "1");
    s->request_.addCopy(Http::LowerCaseString("x-set"), "1");
    s->request_.addCopy(Http::LowerCaseString("x-set"), "2");
    s->request_.setForwardedProto("http");
    s->request_.setHost("before");
    EXPECT_EQ(Http::FilterHeadersStatus::Continue, s->request(R"({"steps": [
                  {"headers": [{"remove": "x-old"}, {"remove": "x-none"}, {"set": ["x-set", "3"]},
                               {"set": ["x-forwarded-proto", "https"]}, {"set": ["host", "after"]},
                               {"append": ["x-new", "a"]}, {"append": ["x-new", "b"]},
                               {"append": ["x-forwarded-proto", "wss"]}]},
                  {"carry": ["x-set", "x-saw-set"]}, {"carry": ["host", "x-saw-host"]}, "run"]})",
                                                              true));
    EXPECT_TRUE(s->request_.get(Http::LowerCaseString("x-old")).empty());
    const auto set = s->request_.get(Http::LowerCaseString("x-set"));
    ASSERT_EQ(1, set.size());
    EXPECT_EQ("3", set[0]->value().getStringView());
    EXPECT_EQ("https,wss", s->request_.getForwardedProtoValue());
    EXPECT_EQ("after", s->request_.getHostValue());
    EXPECT_EQ(2, s->request_.get(Http::LowerCaseString("x-new")).size());
    EXPECT_EQ(Http::FilterHeadersStatus::Continue, s->response(true));
    EXPECT_EQ("3", s->response_.get_("x-saw-set"));
    EXPECT_EQ("after", s->response_.get_("x-saw-host"));
  }
}

TEST_F(FilterTest, AHeaderMayBeEmpty) {
  auto s = stream();
  s->request(R"({"steps": [{"headers": [{"set": ["x-empty", ""]}]}]})", true);
  const auto values = s->request_.get(Http::LowerCaseString("x-empty"));
  ASSERT_EQ(1, values.size());
  EXPECT_EQ("", values[0]->value().getStringView());
}

TEST_F(FilterTest, InformationalHeadersAndMetadataPass) {
  auto s = stream();
  s->request(absl::StrCat(R"({"steps": [{"gate": ")", gate(), R"("}]})"));
  Http::TestResponseHeaderMapImpl early_hints{{":status", "103"}};
  EXPECT_EQ(Http::Filter1xxHeadersStatus::Continue, s->filter_->encode1xxHeaders(early_hints));
  Http::MetadataMap metadata{{"a", "b"}};
  EXPECT_EQ(Http::FilterMetadataStatus::Continue, s->filter_->decodeMetadata(metadata));
  EXPECT_EQ(Http::FilterMetadataStatus::Continue, s->filter_->encodeMetadata(metadata));
}

// ---- Waiting --------------------------------------------------------------------------------

TEST_F(FilterTest, AWaitHoldsTheRequestAndAWakeLetsItGo) {
  auto s = stream();
  EXPECT_EQ(Http::FilterHeadersStatus::StopIteration,
            s->request(absl::StrCat(R"({"steps": [{"gate": ")", gate(), R"("}]})")));
  EXPECT_EQ(Http::FilterDataStatus::StopIterationNoBuffer, s->requestData("good"));
  EXPECT_CALL(s->decoder_, continueDecoding()).Times(0);
  open(gate());
  EXPECT_EQ(1, posted_.size()) << "a wake is posted, once, and never served at once";
  testing::Mock::VerifyAndClearExpectations(&s->decoder_);
  EXPECT_CALL(s->decoder_, continueDecoding());
  runPosted();
  EXPECT_EQ("good", s->upstream_);
  EXPECT_EQ(Http::FilterDataStatus::Continue, s->requestData("bye", true));
  EXPECT_EQ("goodbye", s->upstream_);
}

TEST_F(FilterTest, AMessageThatEndedWhileItWaitedGoesOnWithItsEnd) {
  auto s = stream();
  s->request(absl::StrCat(R"({"steps": [{"gate": ")", gate(), R"("}]})"));
  EXPECT_EQ(Http::FilterDataStatus::StopIterationNoBuffer, s->requestData("all", true));
  open(gate());
  EXPECT_CALL(s->decoder_, continueDecoding()).Times(0);
  runPosted();
  EXPECT_EQ("all", s->upstream_);
  EXPECT_TRUE(s->upstream_ended_);
}

TEST_F(FilterTest, HeadersAloneStayHeadersAlone) {
  auto s = stream();
  s->request(absl::StrCat(R"({"steps": [{"gate": ")", gate(), R"("}]})"), true);
  open(gate());
  EXPECT_CALL(s->decoder_, continueDecoding());
  EXPECT_CALL(s->decoder_, injectDecodedDataToFilterChain(_, _)).Times(0);
  runPosted();
}

TEST_F(FilterTest, TrailersEndAMessageThatWasHeld) {
  auto s = stream();
  s->request(absl::StrCat(R"({"steps": [{"gate": ")", gate(), R"("}]})"));
  s->requestData("body");
  EXPECT_EQ(Http::FilterTrailersStatus::StopIteration, s->requestTrailers());
  open(gate());
  EXPECT_CALL(s->decoder_, continueDecoding());
  runPosted();
  EXPECT_EQ("body", s->upstream_);
  EXPECT_FALSE(s->upstream_ended_) << "the trailers are its end";
}

TEST_F(FilterTest, AStreamThatGoesWhileItWaitsIsGoneForItsWakes) {
  auto s = stream();
  s->request(absl::StrCat(R"({"steps": [{"gate": ")", gate(), R"("}]})"));
  const std::weak_ptr<Http::StreamFilter> filter = s->filter_;
  open(gate());
  s->destroy();
  EXPECT_TRUE(filter.expired()) << "a wake that is on its way holds no filter";
  runPosted();
  EXPECT_EQ(
      0, context_.store_.gaugeFromString("conformance.live", Stats::Gauge::ImportMode::Accumulate)
             .value());
}

TEST_F(FilterTest, AWakeAfterTheWorkerHasGoneDoesNothing) {
  auto s = stream();
  s->request(absl::StrCat(R"({"steps": [{"gate": ")", gate(), R"("}]})"));
  endWorker();
  // The exchange that opens it cannot wait either, and does not have to.
  open(gate());
  EXPECT_TRUE(posted_.empty());
}

TEST_F(FilterTest, ThreadsWakeAStreamThroughItsWorkerOnly) {
  auto s = stream();
  const std::thread::id worker = std::this_thread::get_id();
  int continued = 0;
  ON_CALL(s->decoder_, continueDecoding()).WillByDefault(Invoke([&] {
    EXPECT_EQ(worker, std::this_thread::get_id());
    ++continued;
  }));
  // Woken by a task and by a blocking thread, one after the other. If both are done before the
  // filter looks, it does not wait at all.
  const bool waits = s->request(R"({"flavour": "thread", "steps": ["wait"]})", true) ==
                     Http::FilterHeadersStatus::StopIteration;
  while (waits && continued == 0) {
    ASSERT_TRUE(posted_.runNext());
  }
  runPosted();
  EXPECT_EQ(waits ? 1 : 0, continued);
}

TEST_F(FilterTest, AWakeThatComesAfterItsStreamDoesNothing) {
  auto s = stream();
  s->request(absl::StrCat(R"({"steps": [{"gate": ")", gate(), R"("}]})"), true);
  open(gate());
  ASSERT_EQ(1, posted_.size());
  s->destroy();
  runPosted();
}

TEST_F(FilterTest, AResponseThatWasHeldWhenItEndedGetsTrailers) {
  auto s = stream();
  s->request(absl::StrCat(R"({"steps": ["run", {"gate": ")", gate(),
                          R"("}, {"pipe": ["copy", {"send_trailers": [["x-sum", "7"]]}]}]})"),
             true);
  EXPECT_EQ(Http::FilterHeadersStatus::StopIteration, s->response());
  EXPECT_CALL(s->encoder_, addEncodedTrailers());
  EXPECT_EQ(Http::FilterDataStatus::StopIterationNoBuffer, s->responseData("body", true));
  EXPECT_CALL(s->encoder_, continueEncoding());
  open(gate());
  runPosted();
  EXPECT_EQ("7", s->response_trailers_.get_("x-sum"));
  EXPECT_EQ("body", s->client_);
  EXPECT_FALSE(s->client_ended_);
}

// ---- Bodies ---------------------------------------------------------------------------------

TEST_F(FilterTest, OutputLeavesWhenItIsThereAndNotWithTheNextInput) {
  auto s = stream();
  s->request(absl::StrCat(R"({"steps": ["run", {"pipe": [{"write": "a"}, {"gate": ")", gate(),
                          R"("}, {"write": "b"}, "copy"]}]})"),
             true);
  s->response();
  s->responseData("1");
  runPosted();
  EXPECT_EQ("a", s->client_);
  open(gate());
  runPosted();
  EXPECT_EQ("ab1", s->client_);
  s->responseData("2", true);
  runPosted();
  EXPECT_EQ("ab12", s->client_);
  EXPECT_TRUE(s->client_ended_);
}

TEST_F(FilterTest, AMappedBodyTakesTheFramesPlace) {
  auto s = stream();
  s->request(R"({"steps": [{"map": "upper"}, "run", {"map": "double"}]})");
  EXPECT_EQ(Http::FilterDataStatus::Continue, s->requestData("good"));
  EXPECT_EQ(Http::FilterDataStatus::Continue, s->requestData("bye", true));
  EXPECT_EQ("GOODBYE", s->upstream_);
  s->response();
  EXPECT_EQ(Http::FilterDataStatus::Continue, s->responseData("ab", true));
  EXPECT_EQ("aabb", s->client_);
}

TEST_F(FilterTest, WhatIsHeldPushesBackOnceAndByTurns) {
  auto s = stream();
  s->limit_ = 10;
  s->request(absl::StrCat(R"({"steps": [{"gate": ")", gate(), R"("}]})"));
  {
    testing::InSequence by_turns;
    EXPECT_CALL(s->decoder_, onDecoderFilterAboveWriteBufferHighWatermark());
    EXPECT_CALL(s->decoder_, continueDecoding());
    EXPECT_CALL(s->decoder_, onDecoderFilterBelowWriteBufferLowWatermark());
  }
  s->requestData("more than ten bytes");
  s->requestData("and more");
  open(gate());
  runPosted();
  EXPECT_EQ("more than ten bytesand more", s->upstream_);
}

TEST_F(FilterTest, AStreamThatGoesTakesItsPushBack) {
  auto s = stream();
  s->limit_ = 10;
  s->request(absl::StrCat(R"({"steps": [{"gate": ")", gate(), R"("}]})"));
  {
    testing::InSequence by_turns;
    EXPECT_CALL(s->decoder_, onDecoderFilterAboveWriteBufferHighWatermark());
    EXPECT_CALL(s->decoder_, onDecoderFilterBelowWriteBufferLowWatermark());
  }
  s->requestData("more than ten bytes");
  s->destroy();
}

TEST_F(FilterTest, AStreamThatGoesTakesThePushBackOfItsResponse) {
  auto s = stream();
  s->limit_ = 10;
  s->request(absl::StrCat(R"({"steps": ["run", {"gate": ")", gate(), R"("}]})"), true);
  s->response();
  {
    testing::InSequence by_turns;
    EXPECT_CALL(s->encoder_, onEncoderFilterAboveWriteBufferHighWatermark());
    EXPECT_CALL(s->encoder_, onEncoderFilterBelowWriteBufferLowWatermark());
  }
  s->responseData("more than ten bytes");
  s->destroy();
}

TEST_F(FilterTest, AResponseThatIsHeldPushesBackOnTheUpstream) {
  auto s = stream();
  s->limit_ = 10;
  s->request(absl::StrCat(R"({"steps": ["run", {"gate": ")", gate(), R"("}]})"), true);
  s->response();
  {
    testing::InSequence by_turns;
    // Envoy tells everybody who watches, the filter too.
    EXPECT_CALL(s->encoder_, onEncoderFilterAboveWriteBufferHighWatermark()).WillOnce(Invoke([&s] {
      for (auto* callbacks : s->decoder_.callbacks_) {
        callbacks->onAboveWriteBufferHighWatermark();
      }
    }));
    EXPECT_CALL(s->encoder_, continueEncoding());
    EXPECT_CALL(s->encoder_, onEncoderFilterBelowWriteBufferLowWatermark()).WillOnce(Invoke([&s] {
      for (auto* callbacks : s->decoder_.callbacks_) {
        callbacks->onBelowWriteBufferLowWatermark();
      }
    }));
  }
  s->responseData("a first frame: from here on the filter watches the client");
  open(gate());
  runPosted();
  EXPECT_EQ("a first frame: from here on the filter watches the client", s->client_);
}

TEST_F(FilterTest, AClientThatTakesNoMoreHoldsAStreamedReply) {
  auto s = stream();
  EXPECT_CALL(s->decoder_, encodeHeaders_(_, false));
  EXPECT_EQ(Http::FilterHeadersStatus::StopIteration,
            s->request(R"({"steps": [{"reply": {"status": 200, "chunks": ["a", "b"]}}]})", true));
  ASSERT_EQ(1, s->decoder_.callbacks_.size());
  s->decoder_.callbacks_.front()->onAboveWriteBufferHighWatermark();
  EXPECT_CALL(s->decoder_, encodeData(_, _)).Times(0);
  runPosted();
  testing::Mock::VerifyAndClearExpectations(&s->decoder_);
  std::string sent;
  ON_CALL(s->decoder_, encodeData(_, _)).WillByDefault(Invoke([&](Buffer::Instance& data, bool) {
    sent += data.toString();
  }));
  s->decoder_.callbacks_.front()->onBelowWriteBufferLowWatermark();
  runPosted();
  EXPECT_EQ("ab", sent);
  EXPECT_CALL(s->decoder_, removeDownstreamWatermarkCallbacks(_));
  s->destroy();
}

TEST_F(FilterTest, TrailersAreAddedToAResponse) {
  auto s = stream();
  s->request(R"({"steps": ["run", {"pipe": ["copy", {"send_trailers": [["x-sum", "7"]]}]}]})",
             true);
  s->response();
  s->responseData("body");
  EXPECT_CALL(s->encoder_, addEncodedTrailers());
  s->responseData("", true);
  runPosted();
  EXPECT_EQ("7", s->response_trailers_.get_("x-sum"));
  EXPECT_EQ("body", s->client_);
}

TEST_F(FilterTest, TrailersAreAddedToAResponseLongAfterItsEnd) {
  auto s = stream();
  s->request(absl::StrCat(R"({"steps": ["run", {"pipe": ["copy", {"gate": ")", gate(),
                          R"("}, {"send_trailers": [["x-sum", "7"]]}]}]})"),
             true);
  s->response();
  EXPECT_CALL(s->encoder_, addEncodedTrailers());
  EXPECT_EQ(Http::FilterDataStatus::StopIterationNoBuffer, s->responseData("body", true));
  runPosted();
  EXPECT_CALL(s->encoder_, continueEncoding());
  open(gate());
  runPosted();
  EXPECT_EQ("7", s->response_trailers_.get_("x-sum"));
  EXPECT_EQ("body", s->client_);
  EXPECT_FALSE(s->client_ended_) << "the trailers are its end";
}

TEST_F(FilterTest, TrailersAreAddedToARequest) {
  auto s = stream();
  s->request(R"({"steps": [{"pipe": ["copy", {"send_trailers": [["x-sum", "7"]]}]}]})");
  EXPECT_EQ(Http::FilterDataStatus::Continue, s->requestData("body"));
  EXPECT_CALL(s->decoder_, addDecodedTrailers());
  EXPECT_EQ(Http::FilterDataStatus::Continue, s->requestData("", true));
  EXPECT_EQ("7", s->request_trailers_.get_("x-sum"));
}

// ---- Replies and failures -------------------------------------------------------------------

TEST_F(FilterTest, AReplyLeavesTheGrpcStatusToEnvoy) {
  auto s = stream();
  EXPECT_CALL(s->decoder_, sendLocalReply(Http::Code::Forbidden, "no", _,
                                          absl::optional<Grpc::Status::GrpcStatus>(), _))
      .WillOnce(Invoke([](Http::Code, absl::string_view,
                          std::function<void(Http::ResponseHeaderMap&)> modify, auto,
                          absl::string_view details) {
        Http::TestResponseHeaderMapImpl headers;
        modify(headers);
        EXPECT_EQ("us", headers.get_("x-by"));
        EXPECT_EQ("attache.conformance.reply", details);
      }));
  EXPECT_EQ(Http::FilterHeadersStatus::StopIteration,
            s->request(R"({"steps": [{"reply": {"status": 403, "body": "no",
                "headers": [["x-by", "us"]]}}]})",
                       true));
  // It is not for the filter that has sent it.
  EXPECT_EQ(Http::FilterHeadersStatus::Continue, s->response());
  EXPECT_EQ(Http::FilterDataStatus::Continue, s->responseData("no", true));
}

TEST_F(FilterTest, AReplyIsStreamedWithTrailers) {
  auto s = stream();
  std::string sent;
  ON_CALL(s->decoder_, encodeData(_, _)).WillByDefault(Invoke([&](Buffer::Instance& data, bool) {
    sent += data.toString();
  }));
  testing::InSequence in_order;
  EXPECT_CALL(s->decoder_, encodeHeaders_(_, false));
  EXPECT_CALL(s->decoder_, encodeData(_, false)).Times(testing::AtLeast(1));
  EXPECT_CALL(s->decoder_, encodeTrailers_(_)).WillOnce(Invoke([](Http::ResponseTrailerMap& map) {
    EXPECT_EQ(1, map.size());
  }));
  s->request(R"({"steps": [{"reply": {"status": 200, "chunks": ["a", "b"],
      "trailers": [["x-sum", "7"]]}}]})",
             true);
  runPosted();
  EXPECT_EQ("ab", sent);
}

TEST_F(FilterTest, APanicCostsOneExchange) {
  auto s = stream();
  EXPECT_CALL(s->decoder_, sendLocalReply(Http::Code::InternalServerError, _, _, _, _));
  EXPECT_EQ(Http::FilterHeadersStatus::StopIteration, s->request(R"({"steps": ["panic"]})", true));
  EXPECT_EQ(1, counter("attache.conformance.panics"));
  s = stream();
  EXPECT_EQ(Http::FilterHeadersStatus::Continue, s->request("{}", true));
}

TEST_F(FilterTest, AnErrorAfterTheHeadersHaveGoneResetsTheStream) {
  auto s = stream();
  s->request(R"({"steps": ["run", {"pipe": [{"copy_some": 1}, {"error": 500}]}]})", true);
  EXPECT_CALL(s->decoder_, resetStream(Http::StreamResetReason::LocalReset, _))
      .WillOnce(Invoke([&] { s->end(); }));
  s->response();
  EXPECT_EQ(Http::FilterDataStatus::StopIterationNoBuffer, s->responseData("body"));
  s->filter_.reset();
}

TEST_F(FilterTest, AReplyMayEndTheStreamWithinItsCall) {
  auto s = stream();
  EXPECT_CALL(s->decoder_, sendLocalReply(Http::Code::Forbidden, _, _, _, _)).WillOnce(Invoke([&] {
    s->end();
  }));
  EXPECT_EQ(Http::FilterHeadersStatus::StopIteration,
            s->request(R"({"steps": [{"reply": {"status": 403}}]})"));
  s->filter_.reset();
}

TEST_F(FilterTest, AStreamThatEndsWithinAContinueGetsNoBody) {
  auto s = stream();
  s->request(absl::StrCat(R"({"steps": [{"gate": ")", gate(), R"("}]})"));
  s->requestData("body");
  // Headers that go ahead by themselves are an injection of nothing.
  EXPECT_CALL(s->decoder_, injectDecodedDataToFilterChain(_, false))
      .WillRepeatedly(Invoke([&](Buffer::Instance& data, bool) {
        EXPECT_NE(nullptr, s->filter_);
        EXPECT_EQ(0, data.length());
      }));
  EXPECT_CALL(s->decoder_, continueDecoding()).WillOnce(Invoke([&] { s->destroy(); }));
  open(gate());
  runPosted();
  EXPECT_EQ(nullptr, s->filter_);
}

TEST_F(FilterTest, AStreamThatEndsWithinAnInjectionGetsNoTrailers) {
  auto s = stream();
  s->request(absl::StrCat(R"({"steps": ["run", {"pipe": ["copy", {"gate": ")", gate(),
                          R"("}, {"write": "more"}]}]})"),
             true);
  s->response();
  s->responseData("body");
  EXPECT_EQ(Http::FilterTrailersStatus::StopIteration, s->responseTrailers());
  EXPECT_CALL(s->encoder_, injectEncodedDataToFilterChain(_, false)).WillOnce(Invoke([&] {
    s->destroy();
  }));
  EXPECT_CALL(s->encoder_, continueEncoding()).Times(0);
  open(gate());
  runPosted();
  EXPECT_EQ(nullptr, s->filter_);
}

TEST_F(FilterTest, AStreamThatEndsWithinAStreamedReplyGetsNoMoreOfIt) {
  auto s = stream();
  EXPECT_CALL(s->decoder_, encodeHeaders_(_, false)).WillOnce(Invoke([&] { s->end(); }));
  EXPECT_CALL(s->decoder_, encodeData(_, _)).Times(0);
  EXPECT_EQ(Http::FilterHeadersStatus::StopIteration,
            s->request(R"({"steps": [{"reply": {"status": 200, "chunks": ["a", "b"]}}]})", true));
  runPosted();
  s->filter_.reset();
}

TEST_F(FilterTest, AReplyOfSomebodyElseEndsTheWait) {
  auto s = stream();
  s->request(absl::StrCat(R"({"steps": [{"gate": ")", gate(), R"("}]})"), true);
  EXPECT_EQ(
      Http::LocalErrorStatus::Continue,
      s->filter_->onLocalReply({Http::Code::GatewayTimeout, absl::nullopt, "timeout", false}));
  EXPECT_EQ(Http::FilterHeadersStatus::Continue, s->response(true));
  EXPECT_EQ(
      0, context_.store_.gaugeFromString("conformance.live", Stats::Gauge::ImportMode::Accumulate)
             .value());
}

TEST_F(FilterTest, AResponseToARequestThatNeverCamePasses) {
  auto s = stream();
  EXPECT_EQ(Http::FilterHeadersStatus::Continue, s->response());
  EXPECT_EQ(Http::FilterDataStatus::Continue, s->responseData("body"));
  EXPECT_EQ(Http::FilterTrailersStatus::Continue, s->responseTrailers());
}

TEST_F(FilterTest, AFilterThatFailsOpenLetsTheExchangePass) {
  factory_ = load("conformance", kConformance, /*fail_open=*/true).value();
  auto s = stream();
  EXPECT_EQ(Http::FilterHeadersStatus::Continue, s->request(R"({"steps": ["panic"]})", true));
  EXPECT_EQ(1, counter("attache.conformance.panics"));
}

// ---- What is around the messages ------------------------------------------------------------

TEST_F(FilterTest, FactsAreReadFromTheStream) {
  auto s = stream();
  auto& info = s->decoder_.stream_info_;
  info.route_name_ = "a route";
  info.response_code_details_ = "because";
  info.virtual_cluster_name_ = "posts";
  info.bytes_sent_ = 7;
  info.attempt_count_ = 2;
  info.response_flags_ = {StreamInfo::CoreResponseFlag::NoHealthyUpstream};
  info.downstream_connection_info_provider_->setConnectionID(5);
  s->request_.setPath("/a?b=c#d");
  s->request(R"({"steps": [{"ask": ["route"]}, {"ask": ["details"]}, {"ask": ["virtual_cluster"]},
      {"ask": ["attempts"]}, {"ask": ["bytes_sent"]}, {"ask": ["flags"]}, {"ask": ["code"]},
      {"ask": ["direct_remote"]}, {"ask": ["attribute", "request.url_path"]},
      {"ask": ["attribute", "request.query"]}, {"ask": ["attribute", "connection.id"]},
      {"ask": ["worker"]}, {"ask": ["tls", "version"]}, {"ask": ["upstream_connection"]}, "run"]})",
             true);
  s->response(true);
  EXPECT_THAT(s->saw(),
              testing::ElementsAre("a route", "because", "posts", "2", "7 bytes", "UH", "none",
                                   "127.0.0.3:63443", "/a", "b=c", "5", "none", "none", "none"));
}

TEST_F(FilterTest, EveryAttributeIsAnswered) {
  auto s = stream();
  s->request(R"({"steps": [{"ask": ["all"]}, "run"]})", true);
  s->response(true);
  EXPECT_THAT(s->saw(), testing::ElementsAre(testing::EndsWith(" 0 unsupported")));
}

TEST_F(FilterTest, TlsIsToldInFull) {
  auto s = stream();
  auto tls = std::make_shared<NiceMock<Ssl::MockConnectionInfo>>();
  const std::string serial = "1f";
  const std::string pem = "-----BEGIN";
  const std::vector<std::string> names{"a.example", "b.example"};
  ON_CALL(*tls, peerCertificateValidated()).WillByDefault(Return(true));
  ON_CALL(*tls, serialNumberPeerCertificate()).WillByDefault(ReturnRef(serial));
  ON_CALL(*tls, pemEncodedPeerCertificate()).WillByDefault(ReturnRef(pem));
  ON_CALL(*tls, ciphersuiteString()).WillByDefault(Return("AES"));
  ON_CALL(*tls, dnsSansPeerCertificate())
      .WillByDefault(Return(absl::Span<const std::string>(names)));
  ON_CALL(*tls, expirationPeerCertificate())
      .WillByDefault(Return(SystemTime(std::chrono::milliseconds(1500))));
  s->decoder_.stream_info_.downstream_connection_info_provider_->setSslConnection(tls);
  s->request(R"({"steps": [{"ask": ["tls", "validated"]}, {"ask": ["tls", "serial"]},
      {"ask": ["tls", "pem"]}, {"ask": ["tls", "cipher"]}, {"ask": ["tls", "dns_sans"]},
      {"ask": ["tls", "expires"]}, {"ask": ["tls", "valid_from"]},
      {"ask": ["upstream_tls", "serial"]}, "run"]})",
             true);
  s->response(true);
  EXPECT_THAT(s->saw(), testing::ElementsAre("true", "1f", "-----BEGIN", "AES",
                                             "a.example,b.example", "1500", "none", "none"));
}

TEST_F(FilterTest, MetadataIsWrittenWholeAndReadWhole) {
  auto s = stream();
  auto& metadata = *s->decoder_.stream_info_.metadata_.mutable_filter_metadata();
  (*metadata["other"].mutable_fields())["bad"].set_string_value("\xff");
  s->request(R"({"steps": [{"ask": ["set_metadata", "a", "k", {"x": [1, null, {"y": true}]}]},
      {"ask": ["append_metadata", "a", "list", "one"]}, {"ask": ["append_metadata", "a", "list", []]},
      {"ask": ["append_metadata", "a", "k", 1]}, {"ask": ["metadata", "dynamic", "a", "k"]},
      {"ask": ["metadata", "dynamic", "a", "list"]}, {"ask": ["keys", "dynamic", "a"]},
      {"ask": ["metadata", "dynamic", "a", "k", "number"]},
      {"ask": ["metadata", "dynamic", "nobody", "k"]},
      {"ask": ["metadata", "dynamic", "other", "bad", "text"]}, "run"]})",
             true);
  s->response(true);
  EXPECT_THAT(s->saw(),
              testing::ElementsAre("ok", "ok", "ok", "WrongType", R"({"x":[1.0,null,{"y":true}]})",
                                   R"(["one",[]])", "k,list", "WrongType", "none", "\xef\xbf\xbd"));
  EXPECT_TRUE(metadata["a"].fields().at("k").struct_value().fields().contains("x"));
}

// Envoy takes it for a bug, and in this build for a reason to end, if somebody sets what cannot be
// set again.
TEST_F(FilterTest, FilterStateThatIsTakenIsRefused) {
  auto s = stream();
  const auto& state = s->decoder_.stream_info_.filter_state_;
  putState(*state, "theirs", std::make_shared<Router::StringAccessorImpl>("another's"));
  s->request(R"({"steps": [{"ask": ["state", "theirs"]}, {"ask": ["set_state", "theirs", "x"]},
      {"ask": ["set_state", "ours", "a"]}, {"ask": ["set_state", "ours", "b"]},
      {"ask": ["set_state_for", "ours", "c", "request", "none"]},
      {"ask": ["set_state_for", "long", "d", "connection", "upstream"]},
      {"ask": ["set_state_for", "long", "e", "connection", "upstream"]},
      {"ask": ["set_state", "long", "f"]}, {"ask": ["typed_state", "long"]},
      {"ask": ["set_typed_state", "nobody.knows", "x"]},
      {"ask": ["set_object", "o", "mine", "request"]}, {"ask": ["set_object", "o", "x", "connection"]},
      {"ask": ["object", "o"]}, {"ask": ["share", "us"]}, {"ask": ["shared"]}, "run"]})",
             true);
  s->response(true);
  EXPECT_THAT(s->saw(), testing::ElementsAre("another's", "Refused", "ok", "ok", "Refused", "ok",
                                             "ok", "Refused", "e", "Refused", "ok", "Refused",
                                             "mine", "none", "us"));
  EXPECT_EQ("b", state->getDataReadOnly<Router::StringAccessor>("ours")->asString());
  EXPECT_EQ(1, state->objectsSharedWithUpstreamConnection()->size());
}

TEST_F(FilterTest, TheRouteAndTheUpstreamAreChosenAgain) {
  auto s = stream();
  EXPECT_CALL(s->decoder_.downstream_callbacks_, clearRouteCache());
  EXPECT_CALL(s->decoder_.downstream_callbacks_, refreshRouteCluster());
  EXPECT_CALL(s->decoder_, setUpstreamOverrideHost(_))
      .WillOnce(Invoke([](Upstream::LoadBalancerContext::OverrideHost chosen) {
        EXPECT_EQ("10.0.0.1:80", chosen.host);
        EXPECT_TRUE(chosen.strict);
      }));
  EXPECT_CALL(s->decoder_.stream_info_, addCustomFlag(absl::string_view("MINE")));
  s->request(R"({"steps": [{"ask": ["clear_route"]}, {"ask": ["refresh_cluster"]},
      {"ask": ["override_host", "10.0.0.1:80", true]}, {"ask": ["override_host", "a.name:80", true]},
      {"ask": ["flag", "MINE"]}, {"ask": ["flag", "UH"]}, "run"]})",
             true);
  s->response(true);
  EXPECT_THAT(s->saw(), testing::ElementsAre("ok", "ok", "ok", "Refused", "ok", "Refused"));
}

TEST_F(FilterTest, AResetHasItsReason) {
  auto s = stream();
  EXPECT_CALL(s->decoder_, resetStream(Http::StreamResetReason::LocalRefusedStreamReset,
                                       absl::string_view("attache.conformance.no_more")));
  s->request(R"({"steps": [{"reset": {"details": "no_more", "refused": true}}]})", true);
  EXPECT_EQ("attache.conformance.no_more", s->decoder_.stream_info_.response_code_details_.value());
}

TEST_F(FilterTest, AStreamStartsAgainWithTheBodyThatIsHeld) {
  auto s = stream();
  s->request(R"({"steps": [{"buffer": 100}, {"recreate": "x-again"}, "run"]})");
  EXPECT_EQ(Http::FilterDataStatus::StopIterationNoBuffer, s->requestData("body", true));
  EXPECT_CALL(s->decoder_, recreateStream(nullptr)).WillOnce(Invoke([&] {
    EXPECT_EQ("body", s->upstream_) << "Envoy has it";
    EXPECT_EQ("1", s->request_.get_("x-again"));
    s->destroy();
    return true;
  }));
  runPosted();
  EXPECT_EQ(nullptr, s->filter_);
}

TEST_F(FilterTest, AStreamThatEnvoyDoesNotStartAgainGoesOnWithItsBody) {
  auto s = stream();
  Buffer::OwnedImpl shared("others' ");
  ON_CALL(s->decoder_, decodingBuffer()).WillByDefault(Return(&shared));
  ON_CALL(s->decoder_, addDecodedData(_, _))
      .WillByDefault(Invoke([&](Buffer::Instance& data, bool) { shared.move(data); }));
  ON_CALL(s->decoder_, modifyDecodingBuffer(_))
      .WillByDefault(Invoke([&](std::function<void(Buffer::Instance&)> use) { use(shared); }));
  EXPECT_CALL(s->decoder_, recreateStream(nullptr)).WillOnce(Return(false));
  s->request(absl::StrCat(R"({"steps": [{"buffer": 100}, {"recreate": "x-again"}, {"gate": ")",
                          gate(), R"("}, "run"]})"));
  EXPECT_EQ(Http::FilterDataStatus::StopIterationNoBuffer, s->requestData("body", true));
  runPosted();
  EXPECT_EQ("others' ", shared.toString());
  shared.drain(shared.length());
  open(gate());
  runPosted();
  EXPECT_EQ("body", s->upstream_);
  EXPECT_TRUE(s->upstream_ended_);
}

TEST_F(FilterTest, AReplyByAnEarlierFilterIsChangedByOneThatNeverSawTheRequest) {
  auto s = stream();
  s->request_.setCopy(Http::LowerCaseString("x-script"),
                      R"({"replies": [{"headers": [{"set": ["x-by", "us"]}]}]})");
  EXPECT_EQ(Http::LocalErrorStatus::Continue,
            s->filter_->onLocalReply({Http::Code::Forbidden, absl::nullopt, "denied", false}));
  EXPECT_EQ(Http::FilterHeadersStatus::Continue, s->response(true));
  EXPECT_EQ("us", s->response_.get_("x-by"));
}

// The filter waits for a timer and for other threads between its spans.
TEST_F(FilterTest, SpansOfRustAreChildrenOfTheStreams) {
  // What it finds slow, the runtime would log to the span.
  auto s = stream(load("traced", R"({"attache": {"slow_poll_ms": 1e9}})").value());
  auto& of_stream = s->decoder_.active_span_;
  auto* look_up = new NiceMock<Tracing::MockSpan>();
  auto* query = new NiceMock<Tracing::MockSpan>();
  auto* left_open = new NiceMock<Tracing::MockSpan>();
  bool over = false;
  EXPECT_CALL(of_stream, setTag(absl::string_view("tenant"), absl::string_view("acme")));
  EXPECT_CALL(of_stream, spawnChild_(_, "look up", _)).WillOnce(Return(look_up));
  EXPECT_CALL(*look_up, spawnChild_(_, "query", _)).WillOnce(Return(query));
  EXPECT_CALL(*query, log(_, HasSubstr("said after a wait")));
  EXPECT_CALL(*query, log(_, HasSubstr("said in a query")));
  EXPECT_CALL(of_stream, log(_, HasSubstr("said outside of spans")));
  EXPECT_CALL(of_stream, spawnChild_(_, "left open", _)).WillOnce(Return(left_open));
  {
    testing::InSequence inside_out;
    EXPECT_CALL(*query, finishSpan());
    EXPECT_CALL(*look_up, finishSpan());
    EXPECT_CALL(*left_open, finishSpan()).WillOnce(Invoke([&] { EXPECT_TRUE(over); }));
  }
  bool gone_on = false;
  ON_CALL(s->decoder_, continueDecoding()).WillByDefault(Invoke([&] { gone_on = true; }));
  gone_on = s->request("", true) == Http::FilterHeadersStatus::Continue;
  while (!gone_on) {
    ASSERT_TRUE(posted_.runNext());
  }
  over = true;
  s->destroy();
  testing::Mock::VerifyAndClearExpectations(&of_stream);
}

// ---- Configs --------------------------------------------------------------------------------

TEST_F(FilterTest, AConfigIsRefusedWithTheFieldAndTheReason) {
  EXPECT_EQ(load("hello", R"({"greeting": 3})").status().message(),
            "filter `hello`: config refused: field `greeting`: invalid type: integer `3`, expected "
            "a string");
  EXPECT_THAT(std::string(load("hello", R"({"greeting": "hi", "x": 1})").status().message()),
              HasSubstr("field `x`: there is no such field"));
  EXPECT_THAT(std::string(load("nobody", "{}").status().message()),
              HasSubstr("filter `nobody`: config refused: there is no filter of this name"));
  EXPECT_THAT(std::string(load("hello", "{").status().message()), HasSubstr("it is not JSON"));
}

TEST_F(FilterTest, AConfigThatEnvoyItselfRefuses) {
  ::attache::v3alpha::Filter nameless;
  EXPECT_THROW_WITH_REGEX(
      { auto _ = filter_factory_.createFilterFactoryFromProto(nameless, "", context_); },
      EnvoyException, "Name: value length must be at least 1");
  EXPECT_THROW({ auto _ = loadRoute(::attache::v3alpha::FilterPerRoute()); }, EnvoyException);
}

TEST_F(FilterTest, AStructIsJson) {
  ::attache::v3alpha::Filter config;
  TestUtility::loadFromYaml(R"EOF(
    name: hello
    config:
      "@type": type.googleapis.com/google.protobuf.Struct
      value: {greeting: hi}
  )EOF",
                            config);
  ASSERT_TRUE(filter_factory_.createFilterFactoryFromProto(config, "", context_).ok());
}

TEST_F(FilterTest, ItIsAFilterOfClustersToo) {
  NiceMock<Server::Configuration::MockUpstreamFactoryContext> upstream;
  ::attache::v3alpha::Filter config;
  config.set_name("conformance");
  Protobuf::StringValue text;
  text.set_value(std::string(kConformance));
  EXPECT_TRUE(config.mutable_config()->PackFrom(text));
  UpstreamFilterFactory factory;
  EXPECT_TRUE(factory.createFilterFactoryFromProto(config, "", upstream).ok());
}

TEST_F(FilterTest, ARouteTurnsTheFilterOff) {
  ::attache::v3alpha::FilterPerRoute route;
  route.set_disabled(true);
  const auto off = loadRoute(route).value();
  auto s = stream();
  ON_CALL(s->decoder_, mostSpecificPerFilterConfig()).WillByDefault(Return(off.get()));
  EXPECT_EQ(Http::FilterHeadersStatus::Continue, s->request(R"({"steps": ["panic"]})"));
  EXPECT_EQ(Http::FilterDataStatus::Continue, s->requestData("body", true));
  EXPECT_EQ(Http::FilterHeadersStatus::Continue, s->response());
  EXPECT_EQ(0, counter("attache.conformance.panics"));
}

TEST_F(FilterTest, ARouteHasItsOwnConfig) {
  const auto here = loadRoute(routeOf("mark", "{name: here}")).value();
  auto s = stream(load("mark", R"({"name": "m"})").value());
  ON_CALL(s->decoder_, perFilterConfigs())
      .WillByDefault(Return(Router::RouteSpecificFilterConfigs{here.get()}));
  s->request("", true);
  EXPECT_EQ("m:here", s->request_.get_("x-mark"));
}

TEST_F(FilterTest, TheConfigsOfAllLevelsAreMerged) {
  ::attache::v3alpha::FilterPerRoute disabled;
  disabled.set_disabled(true);
  const auto table = loadRoute(routeOf("conformance", "{level: table}")).value();
  const auto off = loadRoute(disabled).value();
  const auto of_another = loadRoute(routeOf("mark", "{name: mark}")).value();
  const auto route = loadRoute(routeOf("conformance", "{level: route}")).value();
  for (int i = 0; i < 3; ++i) {
    auto s = stream();
    ON_CALL(s->decoder_, mostSpecificPerFilterConfig()).WillByDefault(Return(route.get()));
    ON_CALL(s->decoder_, perFilterConfigs())
        .WillByDefault(Return(Router::RouteSpecificFilterConfigs{table.get(), off.get(),
                                                                 of_another.get(), route.get()}));
    s->request(R"({"steps": [{"ask": ["route_config"]}, "run"]})", true);
    s->response();
    EXPECT_EQ("table route", s->response_.get_("x-saw"));
  }
  EXPECT_EQ(1, counter("conformance.merges"));
}

TEST_F(FilterTest, ARouteConfigIsRefusedWithTheFieldAndTheReason) {
  ::attache::v3alpha::FilterPerRoute route = routeOf("mark", "{name: 3}");
  EXPECT_THAT(std::string(loadRoute(route).status().message()),
              HasSubstr("filter `mark`: per-route config refused: field `name`"));
  route.set_name("nobody");
  EXPECT_THAT(std::string(loadRoute(route).status().message()),
              HasSubstr("there is no filter of this name"));
}

// ---- Secrets and runtime flags --------------------------------------------------------------

// A secret that Envoy's discovery brings.
class Discovered {
public:
  // What is asked for it, from now on.
  explicit Discovered(Server::Configuration::MockServerFactoryContext& server) {
    ON_CALL(*provider_, secret()).WillByDefault(Invoke([this] { return secret_.get(); }));
    ON_CALL(*provider_, addUpdateCallback(_))
        .WillByDefault(Invoke([this](std::function<absl::Status()> callback) {
          return on_update_.add(std::move(callback));
        }));
    auto manager = std::make_unique<NiceMock<Secret::MockSecretManager>>();
    manager_ = manager.get();
    ON_CALL(*manager_, findOrCreateGenericSecretProvider(_, "token", _, _))
        .WillByDefault(Return(provider_));
    server.secret_manager_ = std::move(manager);
  }

  // It is there, or another one is.
  void bring(const std::string& value) {
    made().set_inline_string(value);
    tell();
  }
  void bringFile(const std::string& path) {
    made().set_filename(path);
    tell();
  }
  // It is gone.
  void take() {
    secret_.reset();
    tell();
  }

  size_t watchers() const { return on_update_.size(); }

  const std::shared_ptr<NiceMock<Secret::MockGenericSecretConfigProvider>> provider_{
      std::make_shared<NiceMock<Secret::MockGenericSecretConfigProvider>>()};
  NiceMock<Secret::MockSecretManager>* manager_;

private:
  envoy::config::core::v3::DataSource& made() {
    secret_ = std::make_unique<envoy::extensions::transport_sockets::tls::v3::GenericSecret>();
    return *secret_->mutable_secret();
  }
  void tell() { EXPECT_TRUE(on_update_.runCallbacks().ok()); }

  std::unique_ptr<envoy::extensions::transport_sockets::tls::v3::GenericSecret> secret_;
  Common::CallbackManager<absl::Status> on_update_;
};

constexpr absl::string_view kDiscovered = R"({"key": {"sds_secret_config": {"name": "token",
    "sds_config": {"path_config_source": {"path": "/sds.yaml"}}}}})";

TEST_F(FilterTest, ASecretOfTheBootstrapIsRead) {
  envoy::extensions::transport_sockets::tls::v3::Secret secret;
  TestUtility::loadFromYaml("{name: token, generic_secret: {secret: {inline_string: hush}}}",
                            secret);
  ASSERT_TRUE(context_.server_factory_context_.secret_manager_->addStaticSecret(secret).ok());
  EXPECT_EQ("200 hush", replyOf(load("keyed", R"({"key": {"sds": "token"}})").value()));
  EXPECT_THAT(
      std::string(load("keyed", R"({"key": {"sds": "none"}})").status().message()),
      HasSubstr("field `key`: the secret `none`: there is no generic secret of this name in "
                "Envoy's bootstrap"));
}

TEST_F(FilterTest, ADiscoveredSecretIsWatched) {
  Discovered token(context_.server_factory_context_);
  EXPECT_CALL(*token.manager_, findOrCreateGenericSecretProvider(_, "token", _, _))
      .WillOnce(Invoke([&](const envoy::config::core::v3::ConfigSource& source, auto&&...) {
        EXPECT_EQ("/sds.yaml", source.path_config_source().path());
        return token.provider_;
      }));
  Http::FilterFactoryCb keyed = load("keyed", kDiscovered).value();
  EXPECT_THAT(replyOf(keyed), HasSubstr("503 ")) << "it has not come yet";
  token.bring("first");
  EXPECT_EQ("200 first", replyOf(keyed));
  token.bring("second");
  EXPECT_EQ("200 second", replyOf(keyed));
  // The last one stays where a new one cannot be had.
  token.bringFile("/nowhere/to/be/found");
  EXPECT_EQ("200 second", replyOf(keyed));
  token.take();
  EXPECT_EQ("200 second", replyOf(keyed));
  token.bring("");
  EXPECT_EQ("200 second", replyOf(keyed));
  EXPECT_EQ(1, token.watchers());
  keyed = nullptr;
  EXPECT_EQ(1, token.watchers()) << "providers are for the main thread";
  runPosted();
  EXPECT_EQ(0, token.watchers());
}

TEST_F(FilterTest, ADiscoveryThatEnvoyRefusesIsNamed) {
  Discovered token(context_.server_factory_context_);
  ON_CALL(*token.manager_, findOrCreateGenericSecretProvider(_, "token", _, _))
      .WillByDefault(testing::Throw(EnvoyException("no such place")));
  EXPECT_THAT(std::string(load("keyed", kDiscovered).status().message()),
              HasSubstr("field `key`: the secret `token`: its `sds_config`: no such place"));
  EXPECT_THAT(std::string(load("keyed", R"({"key": {"sds_secret_config": {"name": "token",
                  "sds_config": {"pass": 1}}}})")
                              .status()
                              .message()),
              HasSubstr("its `sds_config`: "));
}

TEST_F(FilterTest, RuntimeFlagsAreReadOnAnyThread) {
  const std::string text = "caf\xC3";
  auto flags = std::make_shared<NiceMock<Runtime::MockSnapshot>>();
  ON_CALL(*flags, featureEnabled("test.feature", testing::TypedEq<uint64_t>(0)))
      .WillByDefault(Return(true));
  ON_CALL(*flags, getBoolean("test.boolean", true)).WillByDefault(Return(false));
  ON_CALL(*flags, getInteger("test.integer", 7)).WillByDefault(Return(8));
  ON_CALL(*flags, getDouble("test.double", 0.5)).WillByDefault(Return(1.5));
  ON_CALL(*flags, get("test.string")).WillByDefault(Return(std::cref(text)));
  Runtime::MockLoader& loader = context_.server_factory_context_.runtime_loader_;
  ON_CALL(loader, threadsafeSnapshot()).WillByDefault(Return(flags));
  // The filter compares what it sees on the worker with what a thread of its own sees.
  EXPECT_EQ("200 true false 8 1.5 Some(\"caf\xEF\xBF\xBD\")",
            replyOf(load("flagged", "{}").value()));
}

TEST_F(FilterTest, RuntimeFlagsHaveTheirDefaultsWhenEnvoyEnds) {
  NiceMock<Runtime::MockLoader> loader;
  auto links = WorkerLinks::get(context_.server_factory_context_);
  const auto flags = makeRuntimeFlags(loader, links->current());
  endWorker();
  EXPECT_CALL(loader, threadsafeSnapshot()).Times(0);
  EXPECT_FALSE(flags->featureEnabled("test.feature", 100));
  EXPECT_TRUE(flags->boolean("test.boolean", true));
  EXPECT_EQ(7, flags->integer("test.integer", 7));
  EXPECT_EQ(0.5, flags->number("test.double", 0.5));
  rust::String text = "as it was";
  EXPECT_FALSE(flags->text("test.string", text));
  EXPECT_EQ("as it was", std::string(text));
}

} // namespace
} // namespace Attache
} // namespace Envoy
