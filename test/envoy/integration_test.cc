// A whole Envoy around the filter: real connections, real workers, Envoy's own fake upstream.
//
// The filter is `test/conformance/filters`, which does what a script in a request header says. Its
// threads really wake the worker.

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.pb.h"

#include "test/envoy/stats.h"
#include "test/integration/http_integration.h"
#include "test/test_common/utility.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
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
    openOn(*client, gate);
    client->close();
  }

  void openOn(IntegrationCodecClient& client, const std::string& gate) {
    Http::TestRequestHeaderMapImpl headers{default_request_headers_};
    headers.setCopy(Http::LowerCaseString("x-open"), gate);
    auto response = client.makeHeaderOnlyRequest(headers);
    ASSERT_TRUE(response->waitForEndStream());
  }

  // One that no other test of this process opens, nor this one when it runs again.
  std::string gate() const {
    const auto* test = testing::UnitTest::GetInstance()->current_test_info();
    return absl::StrCat(test->test_suite_name(), ".", test->name(), ".", run_);
  }

  // Responses that have no body, whatever the filter makes of it; the connection goes on.
  void answersWithoutABody(bool downstream);
  // Both ways at once, once the upstream has agreed.
  void tunnel(Http::TestRequestHeaderMapImpl headers, Http::TestResponseHeaderMapImpl answer);
  void allowConnect();
  void websocket(bool downstream);
  void informational(bool downstream);

  // A request that waits in the filter while `drain` runs, and that goes on then.
  void goesOnAfter(const std::function<void()>& drain, IntegrationStreamDecoderPtr& response);
  // By the admin page.
  void drainListeners(absl::string_view path);
  // By LDS.
  void removeListeners() {
    ConfigHelper without(version_, config_helper_.bootstrap());
    without.addConfigModifier([](envoy::config::bootstrap::v3::Bootstrap& bootstrap) {
      bootstrap.mutable_static_resources()->clear_listeners();
    });
    without.setLds("1");
    counterIs(*test_server_, "listener_manager.listener_removed", 1);
  }

private:
  static inline int runs_{};
  const int run_ = ++runs_;
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
    counterReaches(*test_server_, "http.config_test.downstream_flow_control_paused_reading_total",
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
  counterIs(*test_server_, "conformance.marks", 1);
  codec_client_->close();
  gaugeIs(*test_server_, "conformance.live", 0);
  counterIs(*test_server_, "conformance.cancelled", 1);
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
    EXPECT_TRUE((*route->mutable_typed_per_filter_config())["conformance"].PackFrom(off));
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

// ---- Messages of other shapes ---------------------------------------------------------------

void IntegrationTest::answersWithoutABody(bool downstream) {
  start(downstream);
  struct Case {
    const char* method;
    const char* status;
    const char* script;
  };
  for (const auto& [method, status, script] : {
           Case{"HEAD", "200", "{}"},
           Case{"HEAD", "200", R"({"steps": ["run", {"map": "double"}]})"},
           Case{"HEAD", "200", R"({"flavour": "thread", "steps": ["run", "wait", {"body": "n"}]})"},
           Case{"GET", "204", R"({"steps": ["run", {"map": "double"}]})"},
           Case{"GET", "204", R"({"flavour": "thread", "steps": ["run", "wait", {"body": "n"}]})"},
           Case{"GET", "304", R"({"steps": ["run", {"map": "double"}]})"},
           Case{"GET", "304", R"({"flavour": "thread", "steps": ["run", "wait", {"body": "n"}]})"},
       }) {
    SCOPED_TRACE(absl::StrCat(method, " ", status, " ", script));
    auto headers = request(script);
    headers.setMethod(method);
    auto response = codec_client_->makeHeaderOnlyRequest(headers);
    waitForNextUpstreamRequest();
    EXPECT_EQ(method, upstream_request_->headers().getMethodValue());
    Http::TestResponseHeaderMapImpl answer{{":status", status}};
    if (headers.getMethodValue() == "HEAD") {
      answer.setContentLength(7);
    }
    upstream_request_->encodeHeaders(answer, true);
    ASSERT_TRUE(response->waitForEndStream());
    EXPECT_TRUE(response->complete());
    EXPECT_EQ(status, response->headers().getStatusValue());
    EXPECT_EQ("", response->body());
  }
  EXPECT_TRUE(codec_client_->connected());
}

TEST_P(IntegrationTest, AnswersWithoutABody) { answersWithoutABody(/*downstream=*/true); }

TEST_P(IntegrationTest, AnswersWithoutABodyAsAFilterOfACluster) {
  answersWithoutABody(/*downstream=*/false);
}

void IntegrationTest::allowConnect() {
  if (GetParam() != Http::CodecType::HTTP2) {
    return;
  }
  config_helper_.addConfigModifier([](envoy::config::bootstrap::v3::Bootstrap& bootstrap) {
    ConfigHelper::HttpProtocolOptions options;
    options.mutable_explicit_http_config()->mutable_http2_protocol_options()->set_allow_connect(
        true);
    ConfigHelper::setProtocolOptions(*bootstrap.mutable_static_resources()->mutable_clusters(0),
                                     options);
  });
  config_helper_.addConfigModifier([](HttpConnectionManager& manager) {
    manager.mutable_http2_protocol_options()->set_allow_connect(true);
  });
}

void IntegrationTest::tunnel(Http::TestRequestHeaderMapImpl headers,
                             Http::TestResponseHeaderMapImpl answer) {
  headers.setCopy(Http::LowerCaseString("x-script"),
                  R"({"flavour": "thread", "steps": ["wait", {"headers": [{"set": ["x-up", )"
                  R"("1"]}]}, {"map": "upper"}, "run", "wait", {"map": "double"}]})");
  auto [encoder, response] = codec_client_->startRequest(headers);
  ASSERT_TRUE(fake_upstreams_[0]->waitForHttpConnection(*dispatcher_, fake_upstream_connection_));
  ASSERT_TRUE(fake_upstream_connection_->waitForNewStream(*dispatcher_, upstream_request_));
  ASSERT_TRUE(upstream_request_->waitForHeadersComplete());
  EXPECT_FALSE(upstream_request_->headers().get(Http::LowerCaseString("x-up")).empty());
  upstream_request_->encodeHeaders(answer, false);
  response->waitForHeaders();
  EXPECT_EQ(answer.getStatusValue(), response->headers().getStatusValue());
  for (int turn = 1; turn <= 3; ++turn) {
    codec_client_->sendData(encoder, "ping", false);
    ASSERT_TRUE(upstream_request_->waitForData(*dispatcher_, 4 * turn));
    Buffer::OwnedImpl pong("pong");
    upstream_request_->encodeData(pong, false);
    response->waitForBodyData(8 * turn);
  }
  EXPECT_EQ("PINGPINGPING", upstream_request_->body().toString());
  EXPECT_EQ("ppoonnggppoonnggppoonngg", response->body());
  codec_client_->close();
  if (GetParam() == Http::CodecType::HTTP1) {
    ASSERT_TRUE(fake_upstream_connection_->waitForDisconnect());
  } else {
    ASSERT_TRUE(upstream_request_->waitForReset());
  }
}

TEST_P(IntegrationTest, ATunnelGoesBothWays) {
  config_helper_.addConfigModifier([](HttpConnectionManager& manager) {
    ConfigHelper::setConnectConfig(manager, false, false);
  });
  allowConnect();
  start();
  tunnel({{":method", "CONNECT"}, {":authority", "host.example:80"}}, default_response_headers_);
  gaugeIs(*test_server_, "conformance.live", 0);
}

void IntegrationTest::websocket(bool downstream) {
  config_helper_.addConfigModifier([](HttpConnectionManager& manager) {
    manager.add_upgrade_configs()->set_upgrade_type("websocket");
  });
  allowConnect();
  start(downstream);
  tunnel({{":method", "GET"},
          {":path", "/chat"},
          {":scheme", "http"},
          {":authority", "host.example"},
          {"connection", "upgrade"},
          {"upgrade", "websocket"}},
         {{":status", "101"}, {"connection", "upgrade"}, {"upgrade", "websocket"}});
}

TEST_P(IntegrationTest, AWebsocketGoesBothWays) { websocket(/*downstream=*/true); }

TEST_P(IntegrationTest, AWebsocketGoesBothWaysThroughAFilterOfACluster) {
  websocket(/*downstream=*/false);
}

// While the filter waits for the response.
void IntegrationTest::informational(bool downstream) {
  config_helper_.addConfigModifier(
      [](HttpConnectionManager& manager) { manager.set_proxy_100_continue(true); });
  start(downstream);
  for (const char* script :
       {"{}", R"({"flavour": "thread", "steps": ["wait", "run", "wait", {"map": "upper"}]})"}) {
    auto response = codec_client_->makeHeaderOnlyRequest(request(script));
    waitForNextUpstreamRequest();
    upstream_request_->encode1xxHeaders(Http::TestResponseHeaderMapImpl{{":status", "100"}});
    response->waitFor1xxHeaders();
    upstream_request_->encodeHeaders(default_response_headers_, true);
    ASSERT_TRUE(response->waitForEndStream());
    EXPECT_EQ("200", response->headers().getStatusValue());
  }
}

TEST_P(IntegrationTest, InformationalHeadersPass) { informational(/*downstream=*/true); }

TEST_P(IntegrationTest, InformationalHeadersPassAFilterOfACluster) {
  informational(/*downstream=*/false);
}

// ---- The end of a stream within a call of the filter's -----------------------------------------

TEST_P(IntegrationTest, AResetMayComeAtAnyPlace) {
  start();
  const std::string reset = R"({"reset": {"details": "no_more"}})";
  for (const std::string& steps :
       {reset, R"("wait", )" + reset, R"("run", )" + reset, R"("run", "wait", )" + reset,
        std::string(R"("run", {"pipe": [{"copy_some": 1}, {"error": 500}]})"),
        std::string(R"("run", {"pipe": ["wait", {"copy_some": 1}, {"error": 500}]})")}) {
    SCOPED_TRACE(steps);
    IntegrationCodecClientPtr client = makeHttpConnection(lookupPort("http"));
    auto response = client->makeHeaderOnlyRequest(
        request(absl::StrCat(R"({"flavour": "thread", "steps": [)", steps, "]}")));
    if (absl::StrContains(steps, "run")) {
      waitForNextUpstreamRequest();
      upstream_request_->encodeHeaders(default_response_headers_, false);
      Buffer::OwnedImpl data("body");
      upstream_request_->encodeData(data, false);
    }
    ASSERT_TRUE(response->waitForAnyTermination());
    EXPECT_FALSE(response->complete() && response->headers().getStatusValue() == "200");
    client->close();
    if (fake_upstream_connection_ != nullptr) {
      ASSERT_TRUE(fake_upstream_connection_->close());
      ASSERT_TRUE(fake_upstream_connection_->waitForDisconnect());
      fake_upstream_connection_.reset();
    }
    gaugeIs(*test_server_, "cluster.cluster_0.upstream_cx_active", 0);
    gaugeIs(*test_server_, "conformance.live", 0);
  }
  EXPECT_EQ("200", exchange("{}")->headers().getStatusValue());
}

// ---- Listeners that go ----------------------------------------------------------------------

TEST_P(IntegrationTest, AListenerThatIsRemovedEndsWhatStillWaits) {
  start();
  auto response =
      codec_client_->makeHeaderOnlyRequest(request(R"({"steps": ["mark", "forever"]})"));
  counterIs(*test_server_, "conformance.marks", 1);
  removeListeners();
  ASSERT_TRUE(codec_client_->waitForDisconnect());
  // With the filter and its config.
  gaugeIs(*test_server_, "listener_manager.total_listeners_draining", 0);
}

void IntegrationTest::goesOnAfter(const std::function<void()>& drain,
                                  IntegrationStreamDecoderPtr& response) {
  const std::string mine = gate();
  response = codec_client_->makeHeaderOnlyRequest(
      request(absl::StrCat(R"({"steps": ["mark", {"gate": ")", mine, R"("}]})")));
  IntegrationCodecClientPtr other = makeHttpConnection(lookupPort("http"));
  counterIs(*test_server_, "conformance.marks", 1);
  drain();
  openOn(*other, mine);
  waitForNextUpstreamRequest();
  upstream_request_->encodeHeaders(default_response_headers_, true);
  ASSERT_TRUE(response->waitForEndStream());
  EXPECT_EQ("200", response->headers().getStatusValue());
  other->close();
}

void IntegrationTest::drainListeners(absl::string_view path) {
  const BufferingStreamDecoderPtr drained = IntegrationUtil::makeSingleRequest(
      lookupPort("admin"), "POST", std::string(path), "", GetParam(), version_);
  EXPECT_EQ("200", drained->headers().getStatusValue());
}

TEST_P(IntegrationTest, AListenerThatDrainsLetsWhatWaitsGoOn) {
  drain_time_ = std::chrono::hours(1);
  start();
  IntegrationStreamDecoderPtr response;
  goesOnAfter([this] { removeListeners(); }, response);
}

TEST_P(IntegrationTest, AnEnvoyThatDrainsLetsWhatWaitsGoOn) {
  drain_time_ = std::chrono::hours(1);
  drain_strategy_ = Server::DrainStrategy::Immediate;
  start();
  IntegrationStreamDecoderPtr response;
  ASSERT_NO_FATAL_FAILURE(
      goesOnAfter([this] { drainListeners("/drain_listeners?graceful"); }, response));
  if (GetParam() == Http::CodecType::HTTP1) {
    EXPECT_EQ("close", response->headers().getConnectionValue()) << "Envoy is to drain";
  }
}

TEST_P(IntegrationTest, AnEnvoyThatListensNoMoreLetsWhatWaitsGoOn) {
  start();
  IntegrationStreamDecoderPtr response;
  goesOnAfter(
      [this] {
        drainListeners("/drain_listeners");
        counterIs(*test_server_, "listener_manager.listener_stopped", 1);
      },
      response);
}

} // namespace
} // namespace Attache
} // namespace Envoy
