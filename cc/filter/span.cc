#include "cc/filter/span.h"

#include <string>
#include <utility>

#include "source/common/http/header_map_impl.h"
#include "source/common/tracing/http_tracer_impl.h"
#include "source/common/tracing/null_span_impl.h"
#include "source/common/tracing/tracer_impl.h"

#include "cc/filter/text.h"

namespace Envoy {
namespace Attache {

namespace bridge = ::attache::bridge;

namespace {

class Span : public bridge::Span {
public:
  Span(Tracing::Span& span, TimeSource& time) : span_(span), time_(time) {}

  // attache::bridge::Span
  std::unique_ptr<bridge::Span> child(rust::Str name) noexcept override;
  void setTag(rust::Str key, rust::Str value) noexcept override {
    span_.setTag(view(key), view(value));
  }
  void setOperation(rust::Str name) noexcept override { span_.setOperation(view(name)); }
  void log(rust::Str event) noexcept override {
    span_.log(time_.systemTime(), std::string(view(event)));
  }
  void setSampled(bool sampled) noexcept override { span_.setSampled(sampled); }
  rust::String traceId() noexcept override { return rust::String::lossy(span_.getTraceId()); }
  rust::String spanId() noexcept override { return rust::String::lossy(span_.getSpanId()); }
  rust::Vec<rust::String> headers() noexcept override;
  rust::String baggage(rust::Str key) noexcept override {
    return rust::String::lossy(span_.getBaggage(view(key)));
  }
  void setBaggage(rust::Str key, rust::Str value) noexcept override {
    span_.setBaggage(view(key), view(value));
  }

private:
  Tracing::Span& span_;
  TimeSource& time_;
};

rust::Vec<rust::String> Span::headers() noexcept {
  const Http::RequestHeaderMapPtr headers = Http::RequestHeaderMapImpl::create();
  Tracing::HttpTraceContext context(*headers);
  span_.injectContext(context, Tracing::UpstreamContext());
  rust::Vec<rust::String> texts;
  headers->iterate([&texts](const Http::HeaderEntry& header) {
    // An empty `tracestate` is none.
    if (!header.value().empty()) {
      texts.push_back(rust::String::lossy(std::string(header.key().getStringView())));
      texts.push_back(rust::String::lossy(std::string(header.value().getStringView())));
    }
    return Http::HeaderMap::Iterate::Continue;
  });
  return texts;
}

// A span that Rust has made.
class Child : public Span {
public:
  Child(Tracing::SpanPtr span, TimeSource& time) : Span(*span, time), owned_(std::move(span)) {}
  ~Child() override { owned_->finishSpan(); }

private:
  const Tracing::SpanPtr owned_;
};

std::unique_ptr<bridge::Span> Span::child(rust::Str name) noexcept {
  Tracing::SpanPtr child =
      span_.spawnChild(Tracing::EgressConfig::get(), std::string(view(name)), time_.systemTime());
  return child == nullptr ? nullptr : std::make_unique<Child>(std::move(child), time_);
}

} // namespace

std::unique_ptr<bridge::Span> bridgeSpan(Tracing::Span& span, TimeSource& time) {
  if (dynamic_cast<Tracing::NullSpan*>(&span) != nullptr) {
    return nullptr;
  }
  return std::make_unique<Span>(span, time);
}

} // namespace Attache
} // namespace Envoy
