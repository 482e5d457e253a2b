#include "cc/filter/facts.h"

#include <chrono>
#include <string>
#include <utility>

#include "envoy/router/router.h"
#include "envoy/upstream/cluster_manager.h"

#include "source/common/http/headers.h"
#include "source/common/http/utility.h"
#include "source/common/protobuf/utility.h"
#include "source/common/stream_info/utility.h"

#include "absl/strings/numbers.h"
#include "cc/filter/filter_state.h"
#include "cc/filter/metadata.h"
#include "cc/filter/text.h"
#include "cc/filter/tls.h"

namespace Envoy {
namespace Attache {

namespace bridge = ::attache::bridge;

using bridge::Changed;
using bridge::Control;
using bridge::FactId;
using bridge::FactSink;
using bridge::MetadataSource;
using bridge::TlsFact;

namespace {

using OptDuration = absl::optional<std::chrono::nanoseconds>;

// The name of a worker's dispatcher has its number.
constexpr absl::string_view WorkerPrefix = "worker_";

void tell(const Http::HeaderEntry* header, FactSink& sink) {
  if (header != nullptr) {
    sink.text(bytes(header->value().getStringView()));
  }
}

void tell(const Http::HeaderMap::GetResult& header, FactSink& sink) {
  tell(header.empty() ? nullptr : header[0], sink);
}

void tell(const absl::optional<std::string>& text, FactSink& sink) {
  if (text.has_value()) {
    sink.text(bytes(*text));
  }
}

// What Envoy has as an empty text if there is none.
void tellText(absl::string_view text, FactSink& sink) {
  if (!text.empty()) {
    sink.text(bytes(text));
  }
}

void tellAddress(const Network::Address::InstanceConstSharedPtr& address, FactSink& sink) {
  if (address != nullptr) {
    sink.text(bytes(address->asStringView()));
  }
}

void tellPort(const Network::Address::InstanceConstSharedPtr& address, FactSink& sink) {
  if (address != nullptr && address->ip() != nullptr) {
    sink.number(address->ip()->port());
  }
}

void tell(OptDuration duration, FactSink& sink) {
  if (duration.has_value()) {
    sink.duration(duration->count());
  }
}

void tellMessage(const Protobuf::Message& message, FactSink& sink) {
  const absl::StatusOr<std::string> json = MessageUtil::getJsonStringFromMessage(message);
  if (json.ok()) {
    sink.message(bytes(*json));
  }
}

template <class Map> std::uint64_t sizeOf(OptRef<Map> map) {
  return map.has_value() ? map->byteSize() : 0;
}

// Of the request's line and headers. False if the fact is none of these.
bool tellRequest(const Http::RequestHeaderMap& headers, FactId id, FactSink& sink) {
  const absl::string_view path = headers.getPathValue();
  const std::size_t query = path.find('?');
  switch (id) {
  case FactId::RequestPath:
    tell(headers.Path(), sink);
    return true;
  case FactId::RequestUrlPath:
    sink.text(bytes(path.substr(0, query)));
    return true;
  case FactId::RequestQuery:
    if (query != absl::string_view::npos) {
      const absl::string_view rest = path.substr(query + 1);
      sink.text(bytes(rest.substr(0, rest.find('#'))));
    }
    return true;
  case FactId::RequestHost:
    tell(headers.Host(), sink);
    return true;
  case FactId::RequestScheme:
    tell(headers.Scheme(), sink);
    return true;
  case FactId::RequestMethod:
    tell(headers.Method(), sink);
    return true;
  case FactId::RequestReferer:
    tell(headers.get(Http::CustomHeaders::get().Referer), sink);
    return true;
  case FactId::RequestUserAgent:
    tell(headers.UserAgent(), sink);
    return true;
  default:
    return false;
  }
}

// Of the upstream, once there is one. False if the fact is none of these.
bool tellUpstream(OptRef<const StreamInfo::UpstreamInfo> upstream, FactId id, FactSink& sink) {
  const auto with = [&](auto use) {
    if (upstream.has_value()) {
      use(*upstream);
    }
    return true;
  };
  const auto with_host = [&](auto use) {
    if (upstream.has_value() && upstream->upstreamHost() != nullptr) {
      use(*upstream->upstreamHost());
    }
    return true;
  };
  switch (id) {
  case FactId::UpstreamAddress:
    return with_host([&](const auto& host) { tellAddress(host.address(), sink); });
  case FactId::UpstreamPort:
    return with_host([&](const auto& host) { tellPort(host.address(), sink); });
  case FactId::UpstreamLocality:
    return with_host([&](const auto& host) { tellMessage(host.locality(), sink); });
  case FactId::XdsUpstreamHostMetadata:
    return with_host([&](const auto& host) {
      if (host.metadata() != nullptr) {
        tellMessage(*host.metadata(), sink);
      }
    });
  case FactId::UpstreamLocalAddress:
    return with([&](const auto& info) { tellAddress(info.upstreamLocalAddress(), sink); });
  case FactId::UpstreamRemoteAddress:
    return with([&](const auto& info) { tellAddress(info.upstreamRemoteAddress(), sink); });
  case FactId::UpstreamTransportFailureReason:
    return with([&](const auto& info) { tellText(info.upstreamTransportFailureReason(), sink); });
  case FactId::UpstreamCxPoolReadyDuration:
    return with([&](const auto& info) {
      tell(info.upstreamTiming().connectionPoolCallbackLatency(), sink);
    });
  case FactId::UpstreamConnectionId:
    return with([&](const auto& info) {
      if (info.upstreamConnectionId().has_value()) {
        sink.number(*info.upstreamConnectionId());
      }
    });
  default:
    return false;
  }
}

// What happened when. False if the fact is none of these.
bool tellTiming(const StreamInfo::StreamInfo& info, FactId id, FactSink& sink) {
  StreamInfo::TimingUtility timing(info);
  switch (id) {
  case FactId::LastDownstreamRx:
    tell(timing.lastDownstreamRxByteReceived(), sink);
    return true;
  case FactId::FirstUpstreamTx:
    tell(timing.firstUpstreamTxByteSent(), sink);
    return true;
  case FactId::LastUpstreamTx:
    tell(timing.lastUpstreamTxByteSent(), sink);
    return true;
  case FactId::FirstUpstreamRx:
    tell(timing.firstUpstreamRxByteReceived(), sink);
    return true;
  case FactId::LastUpstreamRx:
    tell(timing.lastUpstreamRxByteReceived(), sink);
    return true;
  case FactId::FirstDownstreamTx:
    tell(timing.firstDownstreamTxByteSent(), sink);
    return true;
  case FactId::LastDownstreamTx:
    tell(timing.lastDownstreamTxByteSent(), sink);
    return true;
  case FactId::ResponseBackendLatency: {
    const OptDuration begin = timing.firstUpstreamTxByteSent();
    const OptDuration end = timing.lastUpstreamRxByteReceived();
    if (begin.has_value() && end.has_value()) {
      sink.duration((*end - *begin).count());
    }
    return true;
  }
  default:
    return false;
  }
}

// An attribute that is a fact of TLS. Of several names, an attribute is the first.
struct TlsAttribute {
  FactId downstream_;
  FactId upstream_;
  TlsFact fact_;
};

constexpr TlsAttribute TlsAttributes[] = {
    {FactId::ConnectionTlsVersion, FactId::UpstreamTlsVersion, TlsFact::Version},
    {FactId::ConnectionSubjectLocalCertificate, FactId::UpstreamSubjectLocalCertificate,
     TlsFact::LocalSubject},
    {FactId::ConnectionSubjectPeerCertificate, FactId::UpstreamSubjectPeerCertificate,
     TlsFact::PeerSubject},
    {FactId::ConnectionDnsSanLocalCertificate, FactId::UpstreamDnsSanLocalCertificate,
     TlsFact::LocalDnsSans},
    {FactId::ConnectionDnsSanPeerCertificate, FactId::UpstreamDnsSanPeerCertificate,
     TlsFact::PeerDnsSans},
    {FactId::ConnectionUriSanLocalCertificate, FactId::UpstreamUriSanLocalCertificate,
     TlsFact::LocalUriSans},
    {FactId::ConnectionUriSanPeerCertificate, FactId::UpstreamUriSanPeerCertificate,
     TlsFact::PeerUriSans},
    {FactId::ConnectionSha256PeerCertificateDigest, FactId::UpstreamSha256PeerCertificateDigest,
     TlsFact::PeerSha256},
    // Envoy has it of the client's only. What it calls so is whether a certificate was presented.
    {FactId::ConnectionMtls, FactId::ConnectionMtls, TlsFact::PeerPresented},
    {FactId::ConnectionRequestedServerName, FactId::ConnectionRequestedServerName,
     TlsFact::ServerName},
};

} // namespace

void Facts::hosts(FactId which, FactSink& sink) const {
  const auto cluster = callbacks_.clusterInfo();
  if (!cluster.has_value()) {
    return;
  }
  Upstream::ThreadLocalCluster* here =
      config_.server().clusterManager().getThreadLocalCluster(cluster->name());
  if (here == nullptr || here->prioritySet().hostSetsPerPriority().empty()) {
    return;
  }
  const Upstream::HostSet& highest = *here->prioritySet().hostSetsPerPriority()[0];
  if (which == FactId::HealthyClusterHosts) {
    sink.number(highest.healthyHosts().size());
  } else if (which == FactId::DegradedClusterHosts) {
    sink.number(highest.degradedHosts().size());
  } else {
    sink.number(highest.hosts().size());
  }
}

bool Facts::fact(FactId id, FactSink& sink) const noexcept {
  for (const TlsAttribute& attribute : TlsAttributes) {
    if (id == attribute.downstream_ || id == attribute.upstream_) {
      return tls(id != attribute.downstream_, attribute.fact_, sink);
    }
  }
  const StreamInfo::StreamInfo& info = this->info();
  const Http::RequestHeaderMapOptRef headers = callbacks_.requestHeaders();
  if (headers.has_value() ? tellRequest(*headers, id, sink)
                          : id <= FactId::RequestMethod || id == FactId::RequestQuery) {
    return true;
  }
  if (tellUpstream(info.upstreamInfo(), id, sink) || tellTiming(info, id, sink)) {
    return true;
  }
  const Network::ConnectionInfoProvider& downstream = info.downstreamAddressProvider();
  switch (id) {
  case FactId::RequestTime:
    sink.time(nanoseconds(info.startTime()));
    return true;
  case FactId::RequestId: {
    const auto provider = info.getStreamIdProvider();
    if (const auto text = provider.has_value() ? provider->toStringView() : absl::nullopt;
        text.has_value()) {
      sink.text(bytes(*text));
    }
    return true;
  }
  case FactId::RequestProtocol:
    if (info.protocol().has_value()) {
      sink.text(bytes(Http::Utility::getProtocolString(*info.protocol())));
    }
    return true;
  case FactId::RequestDuration:
    tell(info.requestComplete(), sink);
    return true;
  case FactId::RequestSize: {
    std::uint64_t size = info.bytesReceived();
    if (!headers.has_value() || headers->ContentLength() == nullptr ||
        absl::SimpleAtoi(headers->getContentLengthValue(), &size)) {
      sink.number(size);
    }
    return true;
  }
  case FactId::BytesReceived:
    sink.number(info.bytesReceived());
    return true;
  case FactId::RequestTotalSize:
    sink.number(info.bytesReceived() + sizeOf(headers));
    return true;
  case FactId::ResponseCode:
    if (info.responseCode().has_value()) {
      sink.number(*info.responseCode());
    }
    return true;
  case FactId::ResponseCodeDetails:
    tell(info.responseCodeDetails(), sink);
    return true;
  case FactId::ResponseFlags:
    sink.number(info.legacyResponseFlags());
    return true;
  case FactId::ResponseSize:
    sink.number(info.bytesSent());
    return true;
  case FactId::ResponseTotalSize:
    sink.number(info.bytesSent() + sizeOf(callbacks_.responseHeaders()) +
                sizeOf(callbacks_.responseTrailers()));
    return true;
  case FactId::SourceAddress:
    tellAddress(downstream.remoteAddress(), sink);
    return true;
  case FactId::SourcePort:
    tellPort(downstream.remoteAddress(), sink);
    return true;
  case FactId::DestinationAddress:
    tellAddress(downstream.localAddress(), sink);
    return true;
  case FactId::DestinationPort:
    tellPort(downstream.localAddress(), sink);
    return true;
  case FactId::DownstreamDirectRemoteAddress:
    tellAddress(downstream.directRemoteAddress(), sink);
    return true;
  case FactId::ConnectionId:
    if (const auto connection = downstream.connectionID(); connection.has_value()) {
      sink.number(*connection);
    }
    return true;
  case FactId::ConnectionTransportFailureReason:
    tellText(info.downstreamTransportFailureReason(), sink);
    return true;
  case FactId::ConnectionTerminationDetails:
    tell(info.connectionTerminationDetails(), sink);
    return true;
  case FactId::UpstreamRequestAttemptCount:
    sink.number(info.attemptCount().value_or(0));
    return true;
  case FactId::XdsNode:
    tellMessage(config_.server().localInfo().node(), sink);
    return true;
  case FactId::XdsClusterName:
    if (const auto cluster = callbacks_.clusterInfo(); cluster.has_value()) {
      sink.text(bytes(cluster->name()));
    }
    return true;
  case FactId::XdsClusterMetadata:
    withMetadata(MetadataSource::Cluster, [&sink](const auto& all) { tellMessage(all, sink); });
    return true;
  case FactId::ClusterHosts:
  case FactId::HealthyClusterHosts:
  case FactId::DegradedClusterHosts:
    hosts(id, sink);
    return true;
  case FactId::XdsRouteName:
    tellText(info.getRouteName(), sink);
    return true;
  case FactId::XdsRouteMetadata:
    withMetadata(MetadataSource::Route, [&sink](const auto& all) { tellMessage(all, sink); });
    return true;
  case FactId::XdsVirtualHostName:
    if (const auto host = info.virtualHost(); host.has_value()) {
      sink.text(bytes(host->name()));
    }
    return true;
  case FactId::XdsVirtualHostMetadata:
    withMetadata(MetadataSource::VirtualHost, [&sink](const auto& all) { tellMessage(all, sink); });
    return true;
  case FactId::VirtualCluster:
    tell(info.virtualClusterName(), sink);
    return true;
  case FactId::XdsFilterChainName:
    if (const auto chain = downstream.filterChainInfo(); chain.has_value()) {
      tellText(chain->name(), sink);
    }
    return true;
  case FactId::XdsListenerDirection:
    if (const auto listener = downstream.listenerInfo(); listener.has_value()) {
      sink.number(listener->direction());
    }
    return true;
  case FactId::XdsListenerMetadata:
    if (const auto listener = downstream.listenerInfo(); listener.has_value()) {
      tellMessage(listener->metadata(), sink);
    }
    return true;
  case FactId::HealthCheck:
    sink.flag(info.healthCheck());
    return true;
  case FactId::WorkerIndex: {
    const absl::string_view name = callbacks_.dispatcher().name();
    std::uint64_t index;
    if (absl::StartsWith(name, WorkerPrefix) &&
        absl::SimpleAtoi(name.substr(WorkerPrefix.size()), &index)) {
      sink.number(index);
    }
    return true;
  }
  default:
    // Headers and trailers, which Rust reads as such.
    return false;
  }
}

bool Facts::tls(bool upstream, TlsFact fact, FactSink& sink) const noexcept {
  Ssl::ConnectionInfoConstSharedPtr connection;
  if (!upstream) {
    const Network::ConnectionInfoProvider& downstream = info().downstreamAddressProvider();
    connection = downstream.sslConnection();
    // What a listener filter has read of it, also if TLS ends elsewhere.
    if (fact == TlsFact::ServerName && !downstream.requestedServerName().empty()) {
      sink.text(bytes(downstream.requestedServerName()));
      return true;
    }
  } else if (const auto up = std::as_const(info()).upstreamInfo(); up.has_value()) {
    connection = up->upstreamSslConnection();
  }
  if (connection != nullptr) {
    tellTls(*connection, fact, sink);
  }
  return true;
}

void Facts::withMetadata(
    MetadataSource source,
    const std::function<void(const envoy::config::core::v3::Metadata&)>& use) const {
  const StreamInfo::StreamInfo& info = this->info();
  switch (source) {
  case MetadataSource::Dynamic:
    return use(info.dynamicMetadata());
  case MetadataSource::Route:
    if (const auto route = info.route(); route.has_value()) {
      use(route->metadata());
    }
    return;
  case MetadataSource::VirtualHost:
    if (const auto host = info.virtualHost(); host.has_value()) {
      use(host->metadata());
    }
    return;
  case MetadataSource::Cluster:
    if (const auto cluster = callbacks_.clusterInfo(); cluster.has_value()) {
      use(cluster->metadata());
    }
    return;
  case MetadataSource::Host:
  case MetadataSource::HostLocality:
    break;
  }
  const auto upstream = info.upstreamInfo();
  const Upstream::HostDescriptionConstSharedPtr host =
      upstream.has_value() ? upstream->upstreamHost() : nullptr;
  if (host == nullptr) {
    return;
  }
  const Upstream::MetadataConstSharedPtr found =
      source == MetadataSource::Host ? host->metadata() : host->localityMetadata();
  if (found != nullptr) {
    use(*found);
  }
}

void Facts::metadata(MetadataSource source, rust::Str name_space, rust::Str key,
                     FactSink& sink) const noexcept {
  withMetadata(source,
               [&](const auto& all) { tellMetadata(all, view(name_space), view(key), sink); });
}

void Facts::metadataNamespaces(MetadataSource source, FactSink& sink) const noexcept {
  withMetadata(source, [&](const auto& all) { tellNamespaces(all, sink); });
}

void Facts::metadataKeys(MetadataSource source, rust::Str name_space,
                         FactSink& sink) const noexcept {
  withMetadata(source, [&](const auto& all) { tellKeys(all, view(name_space), sink); });
}

Changed Facts::setMetadata(rust::Str name_space, rust::Str key,
                           rust::Slice<const std::uint8_t> value) noexcept {
  return Attache::setMetadata(info(), view(name_space), view(key), view(value));
}

Changed Facts::appendMetadata(rust::Str name_space, rust::Str key,
                              rust::Slice<const std::uint8_t> value) noexcept {
  return Attache::appendMetadata(info(), view(name_space), view(key), view(value));
}

void Facts::filterState(rust::Str key, bool typed, FactSink& sink) const noexcept {
  tellState(*info().filterState(), view(key), typed, sink);
}

Changed Facts::setFilterState(rust::Str key, rust::Slice<const std::uint8_t> value,
                              bridge::LifeSpan life_span, bridge::Sharing sharing) noexcept {
  return setState(*info().filterState(), view(key), view(value), life_span, sharing);
}

Changed Facts::setTypedFilterState(rust::Str key, rust::Slice<const std::uint8_t> value) noexcept {
  return setTypedState(*info().filterState(), view(key), view(value));
}

const bridge::KeptObject* Facts::object(rust::Str key) const noexcept {
  return findObject(*info().filterState(), view(key));
}

bool Facts::setObject(rust::Str key, rust::Box<bridge::KeptObject> object,
                      bridge::LifeSpan life_span) noexcept {
  return Attache::setObject(*info().filterState(), view(key), std::move(object), life_span);
}

Changed Facts::control(Control what, rust::Str text) noexcept {
  const auto downstream = callbacks_.downstreamCallbacks();
  switch (what) {
  case Control::ClearRouteCache:
    if (!downstream.has_value()) {
      return Changed::Unsupported;
    }
    downstream->clearRouteCache();
    return Changed::Done;
  case Control::RefreshRouteCluster:
    if (!downstream.has_value()) {
      return Changed::Unsupported;
    }
    downstream->refreshRouteCluster();
    return Changed::Done;
  case Control::DrainConnection:
    callbacks_.sendGoAwayAndClose(/*graceful=*/true);
    return Changed::Done;
  case Control::AddCustomFlag:
    if (StreamInfo::ResponseFlagUtils::responseFlagsMap().contains(view(text))) {
      return Changed::Refused;
    }
    info().addCustomFlag(view(text));
    return Changed::Done;
  case Control::OverrideUpstreamHost:
  case Control::OverrideUpstreamHostStrictly:
    if (!Http::Utility::parseAuthority(view(text)).is_ip_address_) {
      return Changed::Refused;
    }
    callbacks_.setUpstreamOverrideHost(
        {std::string(view(text)), what == Control::OverrideUpstreamHostStrictly});
    return Changed::Done;
  case Control::Recreate:
    break;
  }
  return recreate_() ? Changed::Done : Changed::Refused;
}

} // namespace Attache
} // namespace Envoy
