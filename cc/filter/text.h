// Views of one language's texts and bytes in the other's types (nothing is copied), and times.
#pragma once

#include <chrono>
#include <cstdint>

#include "envoy/common/time.h"

#include "absl/strings/string_view.h"
#include "cc/bridge/bridge.h"

namespace Envoy {
namespace Attache {

inline absl::string_view view(rust::Str text) { return {text.data(), text.size()}; }

inline absl::string_view view(rust::Slice<const std::uint8_t> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

inline absl::string_view view(const ::attache::bridge::Bytes& bytes) {
  return {reinterpret_cast<const char*>(bytes.data), bytes.size};
}

inline rust::Slice<const std::uint8_t> slice(absl::string_view text) {
  return {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()};
}

inline ::attache::bridge::Bytes bytes(absl::string_view text) {
  ::attache::bridge::Bytes bytes;
  bytes.data = reinterpret_cast<const std::uint8_t*>(text.data());
  bytes.size = text.size();
  return bytes;
}

// Since 1970; nothing is before that.
inline std::uint64_t nanoseconds(SystemTime time) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(time.time_since_epoch()).count();
}

// The text has to be UTF-8, or this throws: what protobuf calls a string is.
inline rust::Str str(absl::string_view text) { return {text.data(), text.size()}; }

} // namespace Attache
} // namespace Envoy
