// The filter's data path in a whole Envoy, beside what else holds, buffers and repeats there: the
// router's retries, other filters that hold their input, clients that read slowly, METADATA; and
// what becomes of streams that wait when Envoy ends.
//
// The filter is `test/conformance/filters`, which does what a script in a request header says.

#include <string>
#include <utility>
#include <vector>

#include "envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.pb.h"

#include "test/envoy/stats.h"
#include "test/integration/http_integration.h"
#include "test/test_common/utility.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "gtest/gtest.h"

namespace Envoy {
namespace Attache {
namespace {

using HttpConnectionManager =
    envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;

// A filter that takes its script from this header.
std::string conformance(const std::string& header) {
  return absl::StrReplaceAll(R"EOF(
name: HEADER
typed_config:
  "@type": type.googleapis.com/attache.v3alpha.Filter
  name: conformance
  config:
    "@type": type.googleapis.com/google.protobuf.Struct
    value: {script_header: HEADER}
)EOF",
                             {{"HEADER", header}});
}

constexpr absl::string_view kBuffer = R"EOF(
name: envoy.filters.http.buffer
typed_config:
  "@type": type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer
  max_request_bytes: 1048576
)EOF";

class FlowTest : public HttpIntegrationTest, public testing::TestWithParam<Http::CodecType> {
public:
  FlowTest() : HttpIntegrationTest(GetParam(), Network::Address::IpVersion::v4) {
    setUpstreamProtocol(GetParam());
  }

  bool isHttp1() const { return GetParam() == Http::CodecType::HTTP1; }

  // Filters in the order in which requests pass.
  void start(std::vector<std::string> filters = {conformance("x-script")}, bool downstream = true) {
    for (auto filter = filters.rbegin(); filter != filters.rend(); ++filter) {
      config_helper_.prependFilter(*filter, downstream);
    }
    if (isHttp1()) {
      config_helper_.addConfigModifier(setEnableDownstreamTrailersHttp1());
      config_helper_.addConfigModifier(setEnableUpstreamTrailersHttp1());
    }
    initialize();
    codec_client_ = makeHttpConnection(lookupPort("http"));
  }

  Http::TestRequestHeaderMapImpl request(const std::string& script,
                                         const std::string& second = "") {
    Http::TestRequestHeaderMapImpl headers{default_request_headers_};
    headers.setMethod("POST");
    headers.setCopy(Http::LowerCaseString("x-script"), script);
    if (!second.empty()) {
      headers.setCopy(Http::LowerCaseString("x-second"), second);
    }
    return headers;
  }

  // Envoy takes it from clients inside only.
  static void retryOn(Http::TestRequestHeaderMapImpl& headers, const std::string& what) {
    headers.setCopy(Http::LowerCaseString("x-forwarded-for"), "10.0.0.1");
    headers.setCopy(Http::LowerCaseString("x-envoy-retry-on"), what);
  }

  void open(const std::string& gate) {
    IntegrationCodecClientPtr client = makeHttpConnection(lookupPort("http"));
    Http::TestRequestHeaderMapImpl headers{default_request_headers_};
    headers.setCopy(Http::LowerCaseString("x-open"), gate);
    auto response = client->makeHeaderOnlyRequest(headers);
    ASSERT_TRUE(response->waitForEndStream());
    client->close();
  }

  // One that no other test of this process opens, nor this one when it runs again.
  std::string gate(int number = 0) const {
    const auto* test = testing::UnitTest::GetInstance()->current_test_info();
    return absl::StrCat(test->test_suite_name(), ".", test->name(), ".", run_, ".", number);
  }

  void send(Http::RequestEncoder& encoder, const std::string& text, bool end_stream) {
    Buffer::OwnedImpl data(text);
    codec_client_->sendData(encoder, data, end_stream);
  }

  // The next attempt of a request, after one that failed.
  void waitForNextAttempt() {
    if (isHttp1()) {
      ASSERT_TRUE(fake_upstream_connection_->waitForDisconnect());
      fake_upstream_connection_.reset();
    }
    waitForNextUpstreamRequest();
  }

  std::string atUpstream() { return upstream_request_->body().toString(); }

  std::string upstreamHeader(const std::string& name) {
    const auto values = upstream_request_->headers().get(Http::LowerCaseString(name));
    return values.empty() ? "" : std::string(values[0]->value().getStringView());
  }

private:
  static inline int runs_{};
  const int run_ = ++runs_;
};

INSTANTIATE_TEST_SUITE_P(Protocols, FlowTest,
                         testing::Values(Http::CodecType::HTTP1, Http::CodecType::HTTP2),
                         [](const testing::TestParamInfo<Http::CodecType>& info) {
                           return info.param == Http::CodecType::HTTP1 ? "Http1" : "Http2";
                         });

// ---- Retries --------------------------------------------------------------------------------
//
// The router keeps what it may have to send again in the buffer that all filters share. What a
// filter lets go while that has something in it must not bring it along.

struct Retried {
  const char* script;
  // What the upstream gets of "one two three".
  const char* body;
  // The body flows while the request comes in.
  bool flows;
};

constexpr Retried kRetried[] = {
    {R"({})", "one two three", true},
    {R"({"flavour": "thread", "steps": ["wait"]})", "one two three", true},
    {R"({"steps": [{"map": "upper"}]})", "ONE TWO THREE", true},
    {R"({"flavour": "thread", "steps": [{"pipe": ["copy"]}]})", "one two three", true},
    {R"({"flavour": "thread", "steps": [{"pipe": ["copy", "wait", {"trailers": []}]}]})",
     "one two three", true},
    {R"({"steps": [{"pipe": ["gather"]}]})", "one two three", false},
    {R"({"flavour": "thread", "steps": [{"buffer": 100}, "wait"]})", "one two three", false},
};

TEST_P(FlowTest, EachAttemptGetsEachByteOnce) {
  start();
  for (const Retried& retried : kRetried) {
    for (const bool trailers : {false, true}) {
      SCOPED_TRACE(absl::StrCat(retried.script, trailers ? " with trailers" : ""));
      auto headers = request(retried.script);
      retryOn(headers, "5xx");
      auto [encoder, response] = codec_client_->startRequest(headers);
      send(encoder, "one ", false);
      if (retried.flows) {
        fake_upstream_connection_.reset();
        ASSERT_TRUE(
            fake_upstreams_[0]->waitForHttpConnection(*dispatcher_, fake_upstream_connection_));
        ASSERT_TRUE(fake_upstream_connection_->waitForNewStream(*dispatcher_, upstream_request_));
        ASSERT_TRUE(upstream_request_->waitForData(*dispatcher_, 4));
      }
      send(encoder, "two ", false);
      if (retried.flows) {
        ASSERT_TRUE(upstream_request_->waitForData(*dispatcher_, 8));
      }
      send(encoder, "three", !trailers);
      if (trailers) {
        Http::TestRequestTrailerMapImpl last{{"x-last", "1"}};
        codec_client_->sendTrailers(encoder, last);
      }
      if (retried.flows) {
        ASSERT_TRUE(upstream_request_->waitForEndStream(*dispatcher_));
      } else {
        fake_upstream_connection_.reset();
        waitForNextUpstreamRequest();
      }
      EXPECT_EQ(retried.body, atUpstream());
      upstream_request_->encodeHeaders(Http::TestResponseHeaderMapImpl{{":status", "503"}}, false);
      if (!isHttp1()) {
        ASSERT_TRUE(upstream_request_->waitForReset());
      }
      waitForNextAttempt();
      EXPECT_EQ(retried.body, atUpstream());
      EXPECT_EQ(trailers, upstream_request_->trailers() != nullptr &&
                              !upstream_request_->trailers()->empty());
      upstream_request_->encodeHeaders(default_response_headers_, true);
      ASSERT_TRUE(response->waitForEndStream());
      EXPECT_EQ("200", response->headers().getStatusValue());
      // So that the next one has a connection of its own to wait for.
      ASSERT_TRUE(fake_upstream_connection_->close());
      ASSERT_TRUE(fake_upstream_connection_->waitForDisconnect());
      gaugeIs(*test_server_, "cluster.cluster_0.upstream_cx_active", 0);
    }
  }
}

// The filter waits, with a part of the request gone; meanwhile that attempt fails.
TEST_P(FlowTest, AnAttemptThatFailsWhileTheRequestWaitsIsMadeAgain) {
  start();
  auto headers = request(absl::StrCat(R"({"steps": [{"pipe": [{"copy_some": 4}, {"gate": ")",
                                      gate(), R"("}, "copy"]}]})"));
  retryOn(headers, "reset,5xx");
  auto [encoder, response] = codec_client_->startRequest(headers);
  send(encoder, "one ", false);
  ASSERT_TRUE(fake_upstreams_[0]->waitForHttpConnection(*dispatcher_, fake_upstream_connection_));
  ASSERT_TRUE(fake_upstream_connection_->waitForNewStream(*dispatcher_, upstream_request_));
  ASSERT_TRUE(upstream_request_->waitForData(*dispatcher_, 4));
  send(encoder, "two ", false);
  ASSERT_TRUE(fake_upstream_connection_->close());
  ASSERT_TRUE(fake_upstream_connection_->waitForDisconnect());
  fake_upstream_connection_.reset();
  ASSERT_TRUE(fake_upstreams_[0]->waitForHttpConnection(*dispatcher_, fake_upstream_connection_));
  ASSERT_TRUE(fake_upstream_connection_->waitForNewStream(*dispatcher_, upstream_request_));
  ASSERT_TRUE(upstream_request_->waitForData(*dispatcher_, 4));
  open(gate());
  send(encoder, "three", true);
  ASSERT_TRUE(upstream_request_->waitForEndStream(*dispatcher_));
  EXPECT_EQ("one two three", atUpstream());
  upstream_request_->encodeHeaders(default_response_headers_, true);
  ASSERT_TRUE(response->waitForEndStream());
}

// A filter of the cluster is made for each attempt.
TEST_P(FlowTest, AFilterOfAClusterSeesEachAttempt) {
  start({conformance("x-script")}, /*downstream=*/false);
  auto headers = request(R"({"flavour": "thread", "steps": ["wait", {"pipe": ["copy"]}]})");
  retryOn(headers, "5xx");
  auto [encoder, response] = codec_client_->startRequest(headers);
  send(encoder, "one ", false);
  send(encoder, "two", true);
  waitForNextUpstreamRequest();
  EXPECT_EQ("one two", atUpstream());
  upstream_request_->encodeHeaders(Http::TestResponseHeaderMapImpl{{":status", "503"}}, false);
  if (!isHttp1()) {
    ASSERT_TRUE(upstream_request_->waitForReset());
  }
  waitForNextAttempt();
  EXPECT_EQ("one two", atUpstream());
  upstream_request_->encodeHeaders(default_response_headers_, true);
  ASSERT_TRUE(response->waitForEndStream());
  gaugeIs(*test_server_, "cluster.cluster_0.conformance.live", 0);
}

// ---- Filters of clusters --------------------------------------------------------------------

TEST_P(FlowTest, AFilterOfAClusterRepliesPanicsAndFails) {
  start({conformance("x-script")}, /*downstream=*/false);
  for (const auto& [script, status] : std::vector<std::pair<std::string, std::string>>{
           {R"({"steps": [{"reply": {"status": 403, "body": "no"}}]})", "403"},
           {R"({"flavour": "thread", "steps": ["wait", {"reply": {"status": 403}}]})", "403"},
           {R"({"steps": ["panic"]})", "500"},
           {R"({"flavour": "thread", "steps": ["wait", {"error": 418}]})", "418"}}) {
    SCOPED_TRACE(script);
    auto response = codec_client_->makeHeaderOnlyRequest(request(script));
    ASSERT_TRUE(response->waitForEndStream());
    EXPECT_EQ(status, response->headers().getStatusValue());
  }
}

TEST_P(FlowTest, AFilterOfAClusterHoldsTheUpstream) {
  config_helper_.setBufferLimits(16 * 1024, 16 * 1024);
  start({conformance("x-script")}, /*downstream=*/false);
  auto response = codec_client_->makeHeaderOnlyRequest(
      request(absl::StrCat(R"({"steps": ["run", {"gate": ")", gate(), R"("}]})")));
  waitForNextUpstreamRequest();
  upstream_request_->encodeHeaders(default_response_headers_, false);
  Buffer::OwnedImpl data(std::string(1024 * 1024, 'x'));
  upstream_request_->encodeData(data, true);
  if (isHttp1()) {
    counterReaches(*test_server_, "cluster.cluster_0.upstream_flow_control_paused_reading_total",
                   1);
  }
  open(gate());
  ASSERT_TRUE(response->waitForEndStream());
  EXPECT_EQ(1024 * 1024, response->body().size());
}

// ---- Several filters that hold --------------------------------------------------------------

TEST_P(FlowTest, TwoFiltersThatAreFullLetGoOfEachOther) {
  constexpr uint64_t size = 1024 * 1024;
  config_helper_.setBufferLimits(16 * 1024, 16 * 1024);
  start({conformance("x-script"), conformance("x-second")});
  const auto script = [this](int number) {
    return absl::StrCat(R"({"flavour": "thread", "steps": [{"gate": ")", gate(number),
                        R"("}, {"pipe": ["copy"]}, "run", {"gate": ")", gate(number + 1),
                        R"("}, {"pipe": ["copy"]}]})");
  };
  auto [encoder, response] = codec_client_->startRequest(request(script(0), script(2)));
  send(encoder, std::string(size, 'x'), true);
  open(gate(0));
  open(gate(2));
  waitForNextUpstreamRequest();
  EXPECT_EQ(size, upstream_request_->bodyLength());
  upstream_request_->encodeHeaders(default_response_headers_, false);
  Buffer::OwnedImpl data(std::string(size, 'y'));
  upstream_request_->encodeData(data, true);
  open(gate(3));
  open(gate(1));
  ASSERT_TRUE(response->waitForEndStream());
  EXPECT_EQ(std::string(size, 'y'), response->body());
}

// A client that does not read for a while, and both filters in its way are full.
TEST_P(FlowTest, FiltersThatAreFullWaitForTheClient) {
  constexpr uint64_t size = 4 * 1024 * 1024;
  config_helper_.setBufferLimits(16 * 1024, 16 * 1024);
  start({conformance("x-script"), conformance("x-second")});
  const std::string copies = R"({"flavour": "thread", "steps": ["run", {"pipe": ["copy"]}]})";
  auto response = codec_client_->makeHeaderOnlyRequest(request(copies, copies));
  waitForNextUpstreamRequest();
  codec_client_->connection()->readDisable(true);
  upstream_request_->encodeHeaders(default_response_headers_, false);
  Buffer::OwnedImpl data(std::string(size, 'y'));
  upstream_request_->encodeData(data, true);
  if (isHttp1()) {
    counterReaches(*test_server_, "cluster.cluster_0.upstream_flow_control_paused_reading_total",
                   1);
  }
  codec_client_->connection()->readDisable(false);
  ASSERT_TRUE(response->waitForEndStream());
  EXPECT_EQ(size, response->body().size());
}

TEST_P(FlowTest, EnvoysBufferFilterGetsEachByteOnce) {
  const std::string waits_at_the_end =
      R"({"flavour": "thread", "steps": [{"pipe": ["copy", "wait", {"trailers": []}]}]})";
  start({conformance("x-script"), std::string(kBuffer)});
  for (const std::string& script : {std::string("{}"), waits_at_the_end}) {
    for (const bool trailers : {false, true}) {
      if (trailers && script == waits_at_the_end) {
        // Envoy shows that filter what it holds once more (docs/hosts.md).
        continue;
      }
      SCOPED_TRACE(absl::StrCat(script, trailers ? " with trailers" : ""));
      auto [encoder, response] = codec_client_->startRequest(request(script));
      send(encoder, "one ", false);
      send(encoder, "two ", false);
      send(encoder, "three", !trailers);
      if (trailers) {
        Http::TestRequestTrailerMapImpl last{{"x-last", "1"}};
        codec_client_->sendTrailers(encoder, last);
      }
      waitForNextUpstreamRequest();
      EXPECT_EQ("one two three", atUpstream());
      const std::string length = upstreamHeader("content-length");
      EXPECT_TRUE(length.empty() || length == "13") << length;
      upstream_request_->encodeHeaders(default_response_headers_, true);
      ASSERT_TRUE(response->waitForEndStream());
    }
  }
}

TEST_P(FlowTest, WhatEnvoysBufferFilterHeldIsHeldOnceMore) {
  start({std::string(kBuffer), conformance("x-script")});
  for (const std::string& script :
       {std::string("{}"),
        std::string(R"({"flavour": "thread", "steps": ["wait", {"pipe": ["copy"]}]})")}) {
    for (const bool trailers : {false, true}) {
      SCOPED_TRACE(absl::StrCat(script, trailers ? " with trailers" : ""));
      auto [encoder, response] = codec_client_->startRequest(request(script));
      send(encoder, "one ", false);
      send(encoder, "two", !trailers);
      if (trailers) {
        Http::TestRequestTrailerMapImpl last{{"x-last", "1"}};
        codec_client_->sendTrailers(encoder, last);
      }
      waitForNextUpstreamRequest();
      EXPECT_EQ("one two", atUpstream());
      upstream_request_->encodeHeaders(default_response_headers_, true);
      ASSERT_TRUE(response->waitForEndStream());
    }
  }
}

// ---- METADATA -------------------------------------------------------------------------------

// It passes a filter that holds headers, or waits with Envoy for them; and nothing else is lost.
TEST_P(FlowTest, MetadataGoesWithWhatIsHeld) {
  if (isHttp1()) {
    return;
  }
  config_helper_.addConfigModifier([](envoy::config::bootstrap::v3::Bootstrap& bootstrap) {
    ConfigHelper::HttpProtocolOptions options;
    options.mutable_explicit_http_config()->mutable_http2_protocol_options()->set_allow_metadata(
        true);
    ConfigHelper::setProtocolOptions(*bootstrap.mutable_static_resources()->mutable_clusters(0),
                                     options);
  });
  config_helper_.addConfigModifier([](HttpConnectionManager& manager) {
    manager.mutable_http2_protocol_options()->set_allow_metadata(true);
  });
  start();
  auto [encoder, response] = codec_client_->startRequest(request(absl::StrCat(
      R"({"steps": [{"gate": ")", gate(0), R"("}, "run", {"gate": ")", gate(1), R"("}]})")));
  codec_client_->sendMetadata(encoder, Http::MetadataMap{{"there", "1"}});
  send(encoder, "one ", false);
  codec_client_->sendMetadata(encoder, Http::MetadataMap{{"there", "2"}});
  send(encoder, "two", true);
  open(gate(0));
  waitForNextUpstreamRequest();
  EXPECT_EQ("one two", atUpstream());
  EXPECT_EQ(2, upstream_request_->duplicatedMetadataKeyCount().find("there")->second);
  upstream_request_->encodeHeaders(default_response_headers_, false);
  Http::MetadataMapVector back;
  back.push_back(std::make_unique<Http::MetadataMap>(Http::MetadataMap{{"back", "1"}}));
  upstream_request_->encodeMetadata(back);
  Buffer::OwnedImpl data("body");
  upstream_request_->encodeData(data, true);
  open(gate(1));
  ASSERT_TRUE(response->waitForEndStream());
  EXPECT_EQ("body", response->body());
  EXPECT_EQ(1, response->metadataMap().count("back"));
}

// ---- The end of Envoy -----------------------------------------------------------------------

TEST_P(FlowTest, EnvoyEndsWhileStreamsWait) {
  start();
  std::vector<IntegrationCodecClientPtr> clients;
  std::vector<IntegrationStreamDecoderPtr> responses;
  for (const char* script :
       {R"({"steps": ["mark", {"gate": "never"}]})", R"({"steps": ["mark", "forever"]})",
        R"({"steps": ["mark", {"reply": {"status": 200, "pipe": ["forever"]}}]})",
        R"({"flavour": "timer", "steps": ["mark", {"pipe": ["forever"]}]})"}) {
    clients.push_back(makeHttpConnection(lookupPort("http")));
    auto [encoder, response] = clients.back()->startRequest(request(script));
    responses.push_back(std::move(response));
    Buffer::OwnedImpl data("some of the body");
    clients.back()->sendData(encoder, data, false);
  }
  counterIs(*test_server_, "conformance.marks", 4);
  test_server_.reset();
  for (IntegrationCodecClientPtr& client : clients) {
    client->close();
  }
}

} // namespace
} // namespace Attache
} // namespace Envoy
