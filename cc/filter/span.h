// Envoy's tracing spans, for Rust.
#pragma once

#include <memory>

#include "envoy/common/time.h"
#include "envoy/tracing/trace_driver.h"

#include "cc/bridge/bridge.h"

namespace Envoy {
namespace Attache {

// The stream's own span, which Envoy finishes; null if it is not traced. `time` has to outlive it.
std::unique_ptr<::attache::bridge::Span> bridgeSpan(Tracing::Span& span, TimeSource& time);

} // namespace Attache
} // namespace Envoy
