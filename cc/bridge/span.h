// A span of Envoy's tracer: the one of a stream, or a child that was made of it.
//
// Rust owns it. It uses and deletes it on the stream's worker, before `onDestroy` has returned; a
// child is finished when it is deleted. Texts that are passed are valid during the call. What is
// asked for is empty where the tracer has none. Nothing throws.
#pragma once

#include <memory>

#include "rust/cxx.h"

namespace attache {
namespace bridge {

class Span {
public:
  virtual ~Span() = default;

  // Starts a child; null if the tracer makes none.
  virtual std::unique_ptr<Span> child(rust::Str name) noexcept = 0;
  virtual void setTag(rust::Str key, rust::Str value) noexcept = 0;
  virtual void setOperation(rust::Str name) noexcept = 0;
  // Notes an event, at the present time.
  virtual void log(rust::Str event) noexcept = 0;
  virtual void setSampled(bool sampled) noexcept = 0;
  // The trace's id and its own, in hex.
  virtual rust::String traceId() noexcept = 0;
  virtual rust::String spanId() noexcept = 0;
  // The headers that the tracer gives to a request which is a part of this span: names, each with
  // its value behind it.
  virtual rust::Vec<rust::String> headers() noexcept = 0;
  // A value that travels with the trace.
  virtual rust::String baggage(rust::Str key) noexcept = 0;
  virtual void setBaggage(rust::Str key, rust::Str value) noexcept = 0;
};

} // namespace bridge
} // namespace attache
