// Views of one language's texts and bytes in the other's types. Nothing is copied.
#pragma once

#include <cstdint>

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

// The text has to be UTF-8, or this throws: what protobuf calls a string is.
inline rust::Str str(absl::string_view text) { return {text.data(), text.size()}; }

} // namespace Attache
} // namespace Envoy
