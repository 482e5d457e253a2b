#include "cc/config/envoy_log.h"

#include "cc/filter/text.h"

namespace Envoy {
namespace Attache {

namespace {

spdlog::level::level_enum envoyLevel(::attache::bridge::LogLevel level) {
  switch (level) {
  case ::attache::bridge::LogLevel::Trace:
    return spdlog::level::trace;
  case ::attache::bridge::LogLevel::Debug:
    return spdlog::level::debug;
  case ::attache::bridge::LogLevel::Info:
    return spdlog::level::info;
  case ::attache::bridge::LogLevel::Warn:
    return spdlog::level::warn;
  case ::attache::bridge::LogLevel::Error:
    return spdlog::level::err;
  case ::attache::bridge::LogLevel::Critical:
    break;
  }
  return spdlog::level::critical;
}

} // namespace

bool EnvoyLog::enabled(::attache::bridge::LogLevel level) const noexcept {
  return ENVOY_LOGGER().should_log(envoyLevel(level));
}

void EnvoyLog::log(::attache::bridge::LogLevel level, rust::Str line) const noexcept {
  // As an argument: the line may have braces in it.
  ENVOY_LOGGER().log(envoyLevel(level), "{}", view(line));
}

} // namespace Attache
} // namespace Envoy
