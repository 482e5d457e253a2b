// Where Rust's log lines go: Envoy's log.
//
// Rust owns it from `init` until the process ends, and calls it from any thread, also while static
// objects are being destroyed.
#pragma once

#include <cstdint>

#include "rust/cxx.h"

namespace attache {
namespace bridge {

enum class LogLevel : std::uint8_t;

class LogSink {
public:
  virtual ~LogSink() = default;

  // Asked before each line is put together, since the level can change at any time.
  virtual bool enabled(LogLevel level) const noexcept = 0;

  // One line, without its end. `line` is valid during the call.
  virtual void log(LogLevel level, rust::Str line) const noexcept = 0;
};

} // namespace bridge
} // namespace attache
