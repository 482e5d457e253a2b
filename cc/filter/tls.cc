#include "cc/filter/tls.h"

#include <string>

#include "absl/types/optional.h"
#include "absl/types/span.h"
#include "cc/filter/text.h"

namespace Envoy {
namespace Attache {

namespace bridge = ::attache::bridge;

using bridge::FactSink;
using bridge::TlsFact;

namespace {

void tellEach(absl::Span<const std::string> texts, FactSink& sink) {
  for (const std::string& text : texts) {
    sink.text(bytes(text));
  }
}

void tellTime(absl::optional<SystemTime> time, FactSink& sink) {
  if (time.has_value()) {
    sink.time(nanoseconds(*time));
  }
}

} // namespace

void tellTls(const Ssl::ConnectionInfo& tls, TlsFact fact, FactSink& sink) {
  switch (fact) {
  case TlsFact::Version:
    return sink.text(bytes(tls.tlsVersion()));
  case TlsFact::Cipher:
    return sink.text(bytes(tls.ciphersuiteString()));
  case TlsFact::SessionId:
    return sink.text(bytes(tls.sessionId()));
  case TlsFact::Alpn:
    return sink.text(bytes(tls.alpn()));
  case TlsFact::ServerName:
    return sink.text(bytes(tls.sni()));
  case TlsFact::PeerPresented:
    return sink.flag(tls.peerCertificatePresented());
  case TlsFact::PeerValidated:
    return sink.flag(tls.peerCertificateValidated());
  case TlsFact::PeerSubject:
    return sink.text(bytes(tls.subjectPeerCertificate()));
  case TlsFact::PeerIssuer:
    return sink.text(bytes(tls.issuerPeerCertificate()));
  case TlsFact::PeerSerial:
    return sink.text(bytes(tls.serialNumberPeerCertificate()));
  case TlsFact::PeerSha256:
    return sink.text(bytes(tls.sha256PeerCertificateDigest()));
  case TlsFact::PeerDnsSans:
    return tellEach(tls.dnsSansPeerCertificate(), sink);
  case TlsFact::PeerUriSans:
    return tellEach(tls.uriSanPeerCertificate(), sink);
  case TlsFact::PeerValidFrom:
    return tellTime(tls.validFromPeerCertificate(), sink);
  case TlsFact::PeerExpires:
    return tellTime(tls.expirationPeerCertificate(), sink);
  case TlsFact::PeerPem:
    return sink.text(bytes(tls.pemEncodedPeerCertificate()));
  case TlsFact::PeerChainPem: {
    std::string chain;
    for (const std::string& pem : tls.pemEncodedPeerCertificateChain()) {
      chain += pem;
    }
    return sink.text(bytes(chain));
  }
  case TlsFact::LocalSubject:
    return sink.text(bytes(tls.subjectLocalCertificate()));
  case TlsFact::LocalDnsSans:
    return tellEach(tls.dnsSansLocalCertificate(), sink);
  case TlsFact::LocalUriSans:
    return tellEach(tls.uriSanLocalCertificate(), sink);
  }
}

} // namespace Attache
} // namespace Envoy
