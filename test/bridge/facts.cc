#include "test/bridge/facts.h"

namespace attache {
namespace test {

using bridge::Changed;
using bridge::FactId;
using bridge::FactSink;
using bridge::MetadataSource;

namespace {

std::string text(rust::Slice<const std::uint8_t> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// Gives a text that is gone when this returns: Rust must have taken what it needs by then.
void give(FactSink& sink, std::string text) {
  sink.text({reinterpret_cast<const std::uint8_t*>(text.data()), text.size()});
}

class Span : public bridge::Span {
public:
  Span(std::string name, bool child, std::vector<std::string>& done)
      : name_(std::move(name)), child_(child), done_(done) {}
  ~Span() override {
    if (child_) {
      note("finished");
    }
  }

  std::unique_ptr<bridge::Span> child(rust::Str name) noexcept override {
    return std::make_unique<Span>(name_ + "/" + std::string(name), true, done_);
  }
  void setTag(rust::Str key, rust::Str value) noexcept override {
    note(std::string(key) + "=" + std::string(value));
  }
  void setOperation(rust::Str name) noexcept override { note("is " + std::string(name)); }
  void log(rust::Str event) noexcept override { note(std::string(event)); }
  void setSampled(bool sampled) noexcept override { note(sampled ? "sampled" : "not sampled"); }
  rust::String traceId() noexcept override { return "abc"; }
  rust::String spanId() noexcept override { return rust::String(); }
  rust::Vec<rust::String> headers() noexcept override {
    rust::Vec<rust::String> texts;
    for (const char* text : {"x-span", name_.c_str(), "no name", "x", "x-sampled", "0"}) {
      texts.push_back(text);
    }
    return texts;
  }
  rust::String baggage(rust::Str key) noexcept override {
    return rust::String::lossy("\xff" + std::string(key));
  }
  void setBaggage(rust::Str key, rust::Str value) noexcept override { setTag(key, value); }

private:
  void note(const std::string& what) { done_.push_back(name_ + ": " + what); }

  const std::string name_;
  const bool child_;
  std::vector<std::string>& done_;
};

} // namespace

bool Facts::fact(FactId id, FactSink& sink) const noexcept {
  switch (id) {
  case FactId::SourceAddress:
    give(sink, "1.2.3.4:5");
    return true;
  case FactId::ConnectionId:
    sink.number(7);
    return true;
  case FactId::HealthCheck:
    sink.flag(true);
    return true;
  case FactId::RequestTime:
    sink.time(1500000000);
    return true;
  case FactId::FirstUpstreamTx:
    sink.duration(25000000);
    return true;
  case FactId::XdsNode: {
    const std::string json = R"({"id":"node"})";
    sink.message({reinterpret_cast<const std::uint8_t*>(json.data()), json.size()});
    return true;
  }
  case FactId::XdsRouteName:
    return true;
  default:
    return false;
  }
}

bool Facts::tls(bool upstream, bridge::TlsFact fact, FactSink& sink) const noexcept {
  if (!upstream && fact == bridge::TlsFact::PeerDnsSans) {
    give(sink, "a.example");
    give(sink, "b.example");
  }
  return true;
}

void Facts::metadata(MetadataSource source, rust::Str name_space, rust::Str key,
                     FactSink& sink) const noexcept {
  const auto found = metadata_.find({std::string(name_space), std::string(key)});
  if (source == MetadataSource::Dynamic && found != metadata_.end()) {
    give(sink, found->second);
  }
}

void Facts::metadataNamespaces(MetadataSource, FactSink& sink) const noexcept {
  for (const auto& [key, value] : metadata_) {
    give(sink, key.first);
  }
}

void Facts::metadataKeys(MetadataSource, rust::Str name_space, FactSink& sink) const noexcept {
  for (const auto& [key, value] : metadata_) {
    if (key.first == std::string(name_space)) {
      give(sink, key.second);
    }
  }
}

Changed Facts::setMetadata(rust::Str name_space, rust::Str key,
                           rust::Slice<const std::uint8_t> value) noexcept {
  metadata_[{std::string(name_space), std::string(key)}] = text(value);
  return Changed::Done;
}

Changed Facts::appendMetadata(rust::Str, rust::Str, rust::Slice<const std::uint8_t>) noexcept {
  return Changed::WrongType;
}

void Facts::filterState(rust::Str key, bool, FactSink& sink) const noexcept {
  const auto found = state_.find(std::string(key));
  if (found != state_.end()) {
    give(sink, found->second);
  }
}

Changed Facts::setFilterState(rust::Str key, rust::Slice<const std::uint8_t> value,
                              bridge::LifeSpan life_span, bridge::Sharing) noexcept {
  if (life_span != bridge::LifeSpan::FilterChain) {
    return Changed::Refused;
  }
  state_[std::string(key)] = text(value);
  return Changed::Done;
}

Changed Facts::setTypedFilterState(rust::Str, rust::Slice<const std::uint8_t>) noexcept {
  return Changed::WrongType;
}

const bridge::KeptObject* Facts::object(rust::Str key) const noexcept {
  const auto found = objects_.find(std::string(key));
  return found == objects_.end() ? nullptr : &*found->second.second;
}

bool Facts::setObject(rust::Str key, rust::Box<bridge::KeptObject> object,
                      bridge::LifeSpan life_span) noexcept {
  const std::string name(key);
  const auto found = objects_.find(name);
  if (found != objects_.end() && found->second.first != life_span) {
    return false;
  }
  objects_.erase(name);
  objects_.emplace(name, std::make_pair(life_span, std::move(object)));
  return true;
}

Changed Facts::control(bridge::Control what, rust::Str text) noexcept {
  switch (what) {
  case bridge::Control::ClearRouteCache:
    done_.push_back("route cleared");
    return Changed::Done;
  case bridge::Control::AddCustomFlag:
    done_.push_back("flag " + std::string(text));
    return Changed::Done;
  case bridge::Control::OverrideUpstreamHostStrictly:
    return Changed::Refused;
  default:
    return Changed::Unsupported;
  }
}

std::unique_ptr<bridge::Span> makeSpan(std::string name, std::vector<std::string>& done) {
  return std::make_unique<Span>(std::move(name), false, done);
}

} // namespace test
} // namespace attache
