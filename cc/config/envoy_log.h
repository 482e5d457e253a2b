// Rust's log lines in Envoy's log, as lines of its `filter` component.
#pragma once

#include "source/common/common/logger.h"

#include "cc/bridge/bridge.h"

namespace Envoy {
namespace Attache {

class EnvoyLog : public ::attache::bridge::LogSink, Logger::Loggable<Logger::Id::filter> {
public:
  bool enabled(::attache::bridge::LogLevel level) const noexcept override;
  void log(::attache::bridge::LogLevel level, rust::Str line) const noexcept override;
};

} // namespace Attache
} // namespace Envoy
