// Envoy's runtime flags.
//
// A host makes one when a filter asks for it; from then on Rust owns it, calls it from any thread
// and deletes it on any thread. It may outlive the config and all but the process: when Envoy ends,
// every flag has its default. A call waits for nothing but a short lock, and does not call back.
//
// Texts are valid during the call. A flag that is not set, or set to something of another kind, has
// the default.
#pragma once

#include <cstdint>

#include "rust/cxx.h"

namespace attache {
namespace bridge {

class RuntimeFlags {
public:
  virtual ~RuntimeFlags() = default;

  // So many times in a hundred, at random.
  virtual bool featureEnabled(rust::Str key, std::uint64_t default_percent) const noexcept = 0;
  virtual bool boolean(rust::Str key, bool default_value) const noexcept = 0;
  virtual std::uint64_t integer(rust::Str key, std::uint64_t default_value) const noexcept = 0;
  virtual double number(rust::Str key, double default_value) const noexcept = 0;
  // Gives the text of a flag, of whatever kind. False if it is not set.
  virtual bool text(rust::Str key, rust::String& value) const noexcept = 0;
};

} // namespace bridge
} // namespace attache
