// Calls to clusters between Envoy's mocks and a receiver that is watched.

#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "source/common/buffer/buffer_impl.h"

#include "test/mocks/http/mocks.h"
#include "test/mocks/stream_info/mocks.h"
#include "test/mocks/tracing/mocks.h"
#include "test/mocks/upstream/cluster_manager.h"
#include "test/test_common/utility.h"

#include "cc/filter/cluster_call.h"
#include "cc/filter/text.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace Envoy {
namespace Attache {
namespace {

using ::attache::bridge::CallFailure;
using ::attache::bridge::CallStart;
using ::attache::bridge::HeaderView;
using testing::_;
using testing::Eq;
using testing::InSequence;
using testing::Invoke;
using testing::NiceMock;
using testing::Return;
using testing::ReturnRef;
using testing::StrictMock;
using Flag = StreamInfo::CoreResponseFlag;

class MockReceiver : public CallReceiver {
public:
  MOCK_METHOD(void, onCallHeaders,
              (std::uint64_t id, const Http::ResponseHeaderMap& headers, bool end_stream));
  void onCallData(std::uint64_t id, const Buffer::Instance& data, bool end_stream) override {
    onCallText(id, data.toString(), end_stream);
  }
  MOCK_METHOD(void, onCallText, (std::uint64_t id, const std::string& text, bool end_stream));
  MOCK_METHOD(void, onCallTrailers, (std::uint64_t id, const Http::ResponseTrailerMap& trailers));
  MOCK_METHOD(void, onCallComplete, (std::uint64_t id));
  MOCK_METHOD(void, onCallFailed, (std::uint64_t id, CallFailure failure, absl::string_view why));
  MOCK_METHOD(void, onCallDrained, (std::uint64_t id));
};

class ClusterCallTest : public testing::Test {
public:
  ClusterCallTest() {
    clusters_.initializeThreadLocalClusters({"service"});
    auto& client = clusters_.thread_local_cluster_.async_client_;
    ON_CALL(client, start(_, _))
        .WillByDefault(Invoke(
            [this](Http::AsyncClient::StreamCallbacks& callbacks,
                   const Http::AsyncClient::StreamOptions& options) -> Http::AsyncClient::Stream* {
              callbacks_ = &callbacks;
              options_ = options;
              return stream_.get();
            }));
    ON_CALL(client.dispatcher_, post(_)).WillByDefault(Invoke([this](Event::PostCb callback) {
      posted_.push_back(std::move(callback));
    }));
    ON_CALL(*stream_, streamInfo()).WillByDefault(ReturnRef(info_));
    ON_CALL(testing::Const(*stream_), streamInfo()).WillByDefault(ReturnRef(info_));
    ON_CALL(info_, responseCodeDetails()).WillByDefault(ReturnRef(details_));
    ON_CALL(info_, hasResponseFlag(_)).WillByDefault(Invoke([this](StreamInfo::ResponseFlag flag) {
      return flag_.has_value() && flag == StreamInfo::ResponseFlag(*flag_);
    }));
    // As Envoy's: a reset is reported before it returns.
    ON_CALL(*stream_, reset()).WillByDefault(Invoke([this] { callbacks_->onReset(); }));
  }

  CallStart start(const std::string& cluster = "service", bool end_stream = true,
                  std::uint64_t timeout_ms = 100) {
    std::vector<HeaderView> headers;
    for (const auto& [name, value] : headers_) {
      headers.push_back({bytes(name), bytes(value)});
    }
    return ClusterCall::start(
        clusters_, {cluster, {headers.data(), headers.size()}, body_, end_stream, timeout_ms}, 7,
        receiver_, nullptr, call_);
  }

  // What a service answers; then what Envoy does in its place.
  void serviceAnswers(bool end_stream = false) {
    details_ = StreamInfo::ResponseCodeDetails::get().ViaUpstream;
    callbacks_->onHeaders(std::make_unique<Http::TestResponseHeaderMapImpl>(
                              Http::TestResponseHeaderMapImpl{{":status", "503"}}),
                          end_stream);
  }
  void data(const std::string& text, bool end_stream) {
    Buffer::OwnedImpl data(text);
    callbacks_->onData(data, end_stream);
  }
  void envoyAnswers(Flag flag, const std::string& text) {
    flag_ = flag;
    details_ = "in_its_place";
    callbacks_->onHeaders(std::make_unique<Http::TestResponseHeaderMapImpl>(
                              Http::TestResponseHeaderMapImpl{{":status", "503"}}),
                          false);
    data(text, true);
    callbacks_->onComplete();
  }

  void runPosted() {
    while (!posted_.empty()) {
      Event::PostCb callback = std::move(posted_.front());
      posted_.pop_front();
      callback();
    }
  }

  std::vector<std::pair<std::string, std::string>> headers_{
      {":method", "GET"}, {":path", "/"}, {":authority", "service"}};
  std::string body_;
  NiceMock<Upstream::MockClusterManager> clusters_;
  NiceMock<StreamInfo::MockStreamInfo> info_;
  std::unique_ptr<NiceMock<Http::MockAsyncClientStream>> stream_ =
      std::make_unique<NiceMock<Http::MockAsyncClientStream>>();
  absl::optional<std::string> details_;
  absl::optional<Flag> flag_;
  Http::AsyncClient::StreamCallbacks* callbacks_{};
  Http::AsyncClient::StreamOptions options_;
  std::deque<Event::PostCb> posted_;
  // It fails the test if it is told what is not expected.
  StrictMock<MockReceiver> receiver_;
  ClusterCallSharedPtr call_;
};

TEST_F(ClusterCallTest, WhatCannotBeStartedSaysWhy) {
  EXPECT_EQ(CallStart::UnknownCluster, start("nobody"));
  headers_.pop_back();
  EXPECT_EQ(CallStart::InvalidRequest, start());
  headers_.emplace_back(":authority", "service");
  stream_.reset();
  EXPECT_EQ(CallStart::Unavailable, start());
  EXPECT_EQ(nullptr, call_);
}

TEST_F(ClusterCallTest, WhatFailsWithinTheStartIsItsAnswer) {
  const std::vector<std::pair<Flag, CallStart>> cases = {
      {Flag::UpstreamOverflow, CallStart::Overflow},
      {Flag::NoHealthyUpstream, CallStart::NoHealthyHost},
      {Flag::UpstreamConnectionFailure, CallStart::Unavailable}};
  for (const auto& [flag, expected] : cases) {
    EXPECT_CALL(*stream_, sendHeaders(_, true)).WillOnce(Invoke([&, flag = flag](auto&, bool) {
      envoyAnswers(flag, "not now");
    }));
    EXPECT_EQ(expected, start());
    EXPECT_EQ(nullptr, call_);
  }
}

TEST_F(ClusterCallTest, ABodyIsNotSentToACallThatHasFailed) {
  body_ = "body";
  EXPECT_CALL(*stream_, sendHeaders(_, false)).WillOnce(Invoke([this](auto&, bool) {
    callbacks_->onReset();
  }));
  EXPECT_CALL(*stream_, sendData(_, _)).Times(0);
  EXPECT_EQ(CallStart::Unavailable, start());
}

TEST_F(ClusterCallTest, AWholeRequestIsSentAndItsAnswerReported) {
  body_ = "body";
  EXPECT_CALL(*stream_, sendHeaders(_, false));
  EXPECT_CALL(*stream_, sendData(_, true)).WillOnce(Invoke([](Buffer::Instance& data, bool) {
    EXPECT_EQ("body", data.toString());
  }));
  EXPECT_CALL(*stream_, setWatermarkCallbacks(_)).Times(0);
  ASSERT_EQ(CallStart::Started, start());
  EXPECT_EQ(std::chrono::milliseconds(100), options_.timeout);
  EXPECT_FALSE(call_->sendData("more", false)) << "it has ended";
  InSequence order;
  // Whatever its status: a service has sent it.
  EXPECT_CALL(receiver_, onCallHeaders(7, _, false));
  EXPECT_CALL(receiver_, onCallText(7, "no", false));
  EXPECT_CALL(receiver_, onCallTrailers(7, _));
  EXPECT_CALL(receiver_, onCallComplete(7));
  serviceAnswers();
  data("no", false);
  data("", false);
  callbacks_->onTrailers(std::make_unique<Http::TestResponseTrailerMapImpl>());
  callbacks_->onComplete();
  EXPECT_FALSE(call_->isFull());
  call_->cancel();
}

TEST_F(ClusterCallTest, NoTimeoutIsNone) {
  ASSERT_EQ(CallStart::Started, start("service", true, 0));
  EXPECT_FALSE(options_.timeout.has_value());
  call_->cancel();
}

TEST_F(ClusterCallTest, WhatEnvoyAnswersInAServicesPlaceIsAFailure) {
  const std::vector<std::pair<Flag, CallFailure>> cases = {
      {Flag::UpstreamRequestTimeout, CallFailure::Timeout},
      {Flag::UpstreamMaxStreamDurationReached, CallFailure::Timeout},
      {Flag::UpstreamOverflow, CallFailure::Overflow},
      {Flag::NoHealthyUpstream, CallFailure::Unavailable},
      {Flag::DropOverLoad, CallFailure::Unavailable},
      {Flag::UpstreamRemoteReset, CallFailure::Reset}};
  for (const auto& [flag, expected] : cases) {
    ASSERT_EQ(CallStart::Started, start());
    EXPECT_CALL(receiver_, onCallFailed(7, expected, Eq("what Envoy says")));
    envoyAnswers(flag, "what Envoy says");
  }
}

TEST_F(ClusterCallTest, AResetIsReportedInTheNextTurn) {
  ASSERT_EQ(CallStart::Started, start());
  EXPECT_CALL(receiver_, onCallHeaders(7, _, false));
  serviceAnswers();
  flag_ = Flag::UpstreamRequestTimeout;
  callbacks_->onReset();
  testing::Mock::VerifyAndClearExpectations(&receiver_);
  EXPECT_CALL(receiver_, onCallFailed(7, CallFailure::Timeout, Eq("")));
  runPosted();
}

TEST_F(ClusterCallTest, AResetOfWhatNobodyWantsAnyMoreIsNotReported) {
  ASSERT_EQ(CallStart::Started, start());
  callbacks_->onReset();
  // Between the reset and the turn in which it would have been told.
  call_->cancel();
  call_.reset();
  runPosted();
}

TEST_F(ClusterCallTest, ACancelledCallReportsNothing) {
  ASSERT_EQ(CallStart::Started, start());
  EXPECT_CALL(*stream_, reset());
  call_->cancel();
  runPosted();
  EXPECT_FALSE(call_->sendData("more", true));
  call_->cancel();
}

TEST_F(ClusterCallTest, ACallMayBeCancelledByWhatIsTold) {
  ASSERT_EQ(CallStart::Started, start());
  EXPECT_CALL(receiver_, onCallHeaders(7, _, false)).WillOnce(Invoke([this](auto&&...) {
    call_->cancel();
    // Its owner forgets it, too.
    call_.reset();
  }));
  EXPECT_CALL(*stream_, reset());
  serviceAnswers();
  data("late", false);
  runPosted();
}

TEST_F(ClusterCallTest, EnvoysStreamKeepsWhatItRefersTo) {
  Http::RequestHeaderMap* headers = nullptr;
  EXPECT_CALL(*stream_, sendHeaders(_, true)).WillOnce(Invoke([&](auto& map, bool) {
    headers = &map;
  }));
  ASSERT_EQ(CallStart::Started, start());
  const std::weak_ptr<ClusterCall> weak = call_;
  call_->cancel();
  call_.reset();
  ASSERT_FALSE(weak.expired());
  EXPECT_EQ("/", headers->getPathValue());
  stream_.reset();
  EXPECT_TRUE(weak.expired());
}

TEST_F(ClusterCallTest, AStreamedRequestIsHeldBackByASlowService) {
  Http::SidestreamWatermarkCallbacks* watermarks = nullptr;
  EXPECT_CALL(*stream_, setWatermarkCallbacks(_)).WillOnce(Invoke([&](auto& callbacks) {
    watermarks = &callbacks;
  }));
  EXPECT_CALL(*stream_, sendHeaders(_, false));
  ASSERT_EQ(CallStart::Started, start("service", false));
  EXPECT_CALL(*stream_, sendData(_, false));
  EXPECT_TRUE(call_->sendData("more", false));
  bool full = true;
  ON_CALL(*stream_, isAboveWriteBufferHighWatermark()).WillByDefault(Invoke([&] { return full; }));
  EXPECT_TRUE(call_->isFull());
  watermarks->onSidestreamAboveHighWatermark();
  // Only one of two reasons is gone.
  watermarks->onSidestreamBelowLowWatermark();
  runPosted();
  full = false;
  watermarks->onSidestreamBelowLowWatermark();
  testing::Mock::VerifyAndClearExpectations(&receiver_);
  EXPECT_CALL(receiver_, onCallDrained(7));
  runPosted();
  EXPECT_CALL(*stream_, sendTrailers(_));
  EXPECT_TRUE(call_->sendTrailers({}));
  EXPECT_FALSE(call_->sendTrailers({})) << "it has ended";
  // What comes when all is over is for nobody.
  watermarks->onSidestreamBelowLowWatermark();
  call_->cancel();
  runPosted();
}

TEST_F(ClusterCallTest, ACallIsAChildOfTheActiveSpan) {
  NiceMock<Tracing::MockSpan> active;
  auto* child = new NiceMock<Tracing::MockSpan>();
  EXPECT_CALL(active, spawnChild_(_, "async observability_name egress", _)).WillOnce(Return(child));
  EXPECT_CALL(*child, injectContext(_, _))
      .WillOnce(Invoke([](Tracing::TraceContext& context, auto&) { context.set("x-trace", "1"); }));
  EXPECT_CALL(*stream_, sendHeaders(_, true)).WillOnce(Invoke([](auto& headers, bool) {
    EXPECT_EQ("1", headers.get(Http::LowerCaseString("x-trace"))[0]->value().getStringView());
  }));
  const std::vector<HeaderView> headers = {{bytes(":method"), bytes("GET")},
                                           {bytes(":path"), bytes("/")},
                                           {bytes(":authority"), bytes("service")}};
  ASSERT_EQ(CallStart::Started,
            ClusterCall::start(clusters_,
                               {"service", {headers.data(), headers.size()}, "", true, 0}, 7,
                               receiver_, &active, call_));
  EXPECT_CALL(*child, setTag(_, _)).Times(testing::AnyNumber());
  EXPECT_CALL(*child, setTag(Eq("canceled"), Eq("true")));
  EXPECT_CALL(*child, finishSpan());
  call_->cancel();
}

} // namespace
} // namespace Attache
} // namespace Envoy
