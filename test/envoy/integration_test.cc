// A whole Envoy around the filter: real connections, real workers, Envoy's own fake upstream.
//
// The filter is `test/conformance/filters`, which does what a script in a request header says. Its
// threads really wake the worker.

#include <memory>
#include <string>

#include "envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.pb.h"

#include "test/integration/http_integration.h"
#include "test/test_common/utility.h"

#include "absl/strings/str_cat.h"
#include "contrib/api/attache/v3alpha/attache.pb.h"
#include "gtest/gtest.h"

namespace Envoy {
namespace Attache {
namespace {

using HttpConnectionManager =
    envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;

constexpr absl::string_view kConformance = R"EOF(
name: conformance
typed_config:
  "@type": type.googleapis.com/attache.v3alpha.Filter
  name: conformance
  config:
    "@type": type.googleapis.com/google.protobuf.Struct
    value: {script_header: x-script}
)EOF";

class IntegrationTest : public HttpIntegrationTest, public testing::TestWithParam<Http::CodecType> {
public:
  IntegrationTest() : HttpIntegrationTest(GetParam(), Network::Address::IpVersion::v4) {
    setUpstreamProtocol(GetParam());
  }

  void start(bool downstream = true) {
    config_helper_.prependFilter(std::string(kConformance), downstream);
    if (GetParam() == Http::CodecType::HTTP1) {
      config_helper_.addConfigModifier(setEnableDownstreamTrailersHttp1());
      config_helper_.addConfigModifier(setEnableUpstreamTrailersHttp1());
    }
    initialize();
    codec_client_ = makeHttpConnection(lookupPort("http"));
  }

  Http::TestRequestHeaderMapImpl request(const std::string& script) {
    Http::TestRequestHeaderMapImpl headers{default_request_headers_};
    headers.setCopy(Http::LowerCaseString("x-script"), script);
    return headers;
  }

  // Sends a request without a body, and gives what the upstream answers.
  IntegrationStreamDecoderPtr exchange(const std::string& script, const std::string& body = "") {
    auto response = codec_client_->makeHeaderOnlyRequest(request(script));
    waitForNextUpstreamRequest();
    upstream_request_->encodeHeaders(default_response_headers_, body.empty());
    if (!body.empty()) {
      Buffer::OwnedImpl data(body);
      upstream_request_->encodeData(data, true);
    }
    EXPECT_TRUE(response->waitForEndStream());
    return response;
  }

  IntegrationStreamDecoderPtr answered(const std::string& script) {
    auto response = codec_client_->makeHeaderOnlyRequest(request(script));
    EXPECT_TRUE(response->waitForEndStream());
    return response;
  }

  // Opens a gate, on a connection of its own.
  void open(const std::string& gate) {
    IntegrationCodecClientPtr client = makeHttpConnection(lookupPort("http"));
    Http::TestRequestHeaderMapImpl headers{default_request_headers_};
    headers.setCopy(Http::LowerCaseString("x-open"), gate);
    auto response = client->makeHeaderOnlyRequest(headers);
    ASSERT_TRUE(response->waitForEndStream());
    client->close();
  }

  // One that no other test of this process opens.
  std::string gate() {
    const auto* test = testing::UnitTest::GetInstance()->current_test_info();
    return absl::StrCat(test->test_suite_name(), ".", test->name());
  }
};

INSTANTIATE_TEST_SUITE_P(Protocols, IntegrationTest,
                         testing::Values(Http::CodecType::HTTP1, Http::CodecType::HTTP2),
                         [](const testing::TestParamInfo<Http::CodecType>& info) {
                           return info.param == Http::CodecType::HTTP1 ? "Http1" : "Http2";
                         });

TEST_P(IntegrationTest, PassesWhatItDoesNotTouch) {
  start();
  EXPECT_EQ("body", exchange("{}", "body")->body());
}

TEST_P(IntegrationTest, HeadersChangeBothWays) {
  start();
  auto response = exchange(R"({"steps": [{"headers": [{"set": ["x-up", "1"]}]}, "run", )"
                           R"({"headers": [{"set": ["x-down", "2"]}]}]})");
  EXPECT_EQ(
      "1",
      upstream_request_->headers().get(Http::LowerCaseString("x-up"))[0]->value().getStringView());
  EXPECT_EQ("2",
            response->headers().get(Http::LowerCaseString("x-down"))[0]->value().getStringView());
}

TEST_P(IntegrationTest, WaitsForThreads) {
  start();
  EXPECT_EQ("200", exchange(R"({"flavour": "thread", "steps": ["wait", "run", "wait"]})", "body")
                       ->headers()
                       .getStatusValue());
}

TEST_P(IntegrationTest, MapsBodies) {
  start();
  EXPECT_EQ("BODY", exchange(R"({"steps": ["run", {"map": "upper"}]})", "body")->body());
}

TEST_P(IntegrationTest, HoldsASenderAndLosesNothing) {
  config_helper_.setBufferLimits(16 * 1024, 16 * 1024);
  start();
  const std::string mine = gate();
  auto [encoder, response] = codec_client_->startRequest(
      request(absl::StrCat(R"({"steps": [{"gate": ")", mine, R"("}]})")));
  codec_client_->sendData(encoder, std::string(1024 * 1024, 'x'), true);
  if (GetParam() == Http::CodecType::HTTP1) {
    // In HTTP/2 the stream's window holds the client back, which nothing counts.
    test_server_->waitForCounterGe("http.config_test.downstream_flow_control_paused_reading_total",
                                   1);
  }
  open(mine);
  waitForNextUpstreamRequest();
  EXPECT_EQ(1024 * 1024, upstream_request_->bodyLength());
  upstream_request_->encodeHeaders(default_response_headers_, true);
  ASSERT_TRUE(response->waitForEndStream());
}

TEST_P(IntegrationTest, RepliesByItself) {
  start();
  auto response = answered(
      R"({"steps": [{"reply": {"status": 403, "body": "no", "headers": [["x-by", "us"]]}}]})");
  EXPECT_EQ("403", response->headers().getStatusValue());
  EXPECT_EQ("no", response->body());
  EXPECT_FALSE(response->headers().get(Http::LowerCaseString("x-by")).empty());
}

TEST_P(IntegrationTest, MapsItsReplyForGrpc) {
  start();
  auto headers = request(R"({"steps": [{"reply": {"status": 403}}]})");
  headers.setCopy(Http::Headers::get().ContentType, "application/grpc");
  auto response = codec_client_->makeHeaderOnlyRequest(headers);
  ASSERT_TRUE(response->waitForEndStream());
  EXPECT_EQ("200", response->headers().getStatusValue());
  EXPECT_EQ("7", response->headers().getGrpcStatusValue());
}

TEST_P(IntegrationTest, APanicCostsOneExchange) {
  start();
  EXPECT_EQ("500", answered(R"({"steps": ["panic"]})")->headers().getStatusValue());
  EXPECT_EQ("200", exchange("{}")->headers().getStatusValue());
}

TEST_P(IntegrationTest, AClientThatLeavesEndsTheWait) {
  start();
  auto response =
      codec_client_->makeHeaderOnlyRequest(request(R"({"steps": ["mark", "forever"]})"));
  test_server_->waitForCounterEq("conformance.marks", 1);
  codec_client_->close();
  test_server_->waitForGaugeEq("conformance.live", 0);
  test_server_->waitForCounterEq("conformance.cancelled", 1);
}

TEST_P(IntegrationTest, AddsTrailersToAResponse) {
  start();
  auto response = exchange(
      R"({"steps": ["run", {"pipe": ["copy", {"send_trailers": [["x-sum", "7"]]}]}]})", "body");
  EXPECT_EQ("body", response->body());
  ASSERT_NE(nullptr, response->trailers());
  EXPECT_EQ("7",
            response->trailers()->get(Http::LowerCaseString("x-sum"))[0]->value().getStringView());
}

TEST_P(IntegrationTest, ARouteTurnsItOff) {
  config_helper_.addConfigModifier([](HttpConnectionManager& manager) {
    ::attache::v3alpha::FilterPerRoute off;
    off.set_disabled(true);
    auto* route = manager.mutable_route_config()->mutable_virtual_hosts(0)->mutable_routes(0);
    (*route->mutable_typed_per_filter_config())["conformance"].PackFrom(off);
  });
  start();
  EXPECT_EQ("200", exchange(R"({"steps": ["panic"]})")->headers().getStatusValue());
}

TEST_P(IntegrationTest, IsAFilterOfAClusterToo) {
  start(/*downstream=*/false);
  auto response = exchange(R"({"flavour": "thread", "steps": ["wait", {"headers": )"
                           R"([{"set": ["x-up", "1"]}]}, "run", "wait", {"map": "upper"}]})",
                           "body");
  EXPECT_FALSE(upstream_request_->headers().get(Http::LowerCaseString("x-up")).empty());
  EXPECT_EQ("BODY", response->body());
}

TEST_P(IntegrationTest, InformationalHeadersPass) {
  config_helper_.addConfigModifier(
      [](HttpConnectionManager& manager) { manager.set_proxy_100_continue(true); });
  start();
  auto response = codec_client_->makeHeaderOnlyRequest(request("{}"));
  waitForNextUpstreamRequest();
  upstream_request_->encode1xxHeaders(Http::TestResponseHeaderMapImpl{{":status", "100"}});
  response->waitFor1xxHeaders();
  upstream_request_->encodeHeaders(default_response_headers_, true);
  ASSERT_TRUE(response->waitForEndStream());
}

} // namespace
} // namespace Attache
} // namespace Envoy
