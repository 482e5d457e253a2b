// What is known of a TLS connection.
#pragma once

#include "envoy/ssl/connection.h"

#include "cc/bridge/bridge.h"

namespace Envoy {
namespace Attache {

void tellTls(const Ssl::ConnectionInfo& tls, ::attache::bridge::TlsFact fact,
             ::attache::bridge::FactSink& sink);

} // namespace Attache
} // namespace Envoy
