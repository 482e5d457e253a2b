// What the test's stream knows beside its messages: a little of each kind.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "cc/bridge/bridge.h"

namespace attache {
namespace test {

class Facts : public bridge::StreamFacts {
public:
  // What was done to the stream goes into `done`.
  explicit Facts(std::vector<std::string>& done) : done_(done) {}

  // bridge::StreamFacts
  bool fact(bridge::FactId id, bridge::FactSink& sink) const noexcept override;
  bool tls(bool upstream, bridge::TlsFact fact, bridge::FactSink& sink) const noexcept override;
  void metadata(bridge::MetadataSource source, rust::Str name_space, rust::Str key,
                bridge::FactSink& sink) const noexcept override;
  void metadataNamespaces(bridge::MetadataSource source,
                          bridge::FactSink& sink) const noexcept override;
  void metadataKeys(bridge::MetadataSource source, rust::Str name_space,
                    bridge::FactSink& sink) const noexcept override;
  bridge::Changed setMetadata(rust::Str name_space, rust::Str key,
                              rust::Slice<const std::uint8_t> value) noexcept override;
  bridge::Changed appendMetadata(rust::Str name_space, rust::Str key,
                                 rust::Slice<const std::uint8_t> value) noexcept override;
  void filterState(rust::Str key, bool typed, bridge::FactSink& sink) const noexcept override;
  bridge::Changed setFilterState(rust::Str key, rust::Slice<const std::uint8_t> value,
                                 bridge::LifeSpan life_span,
                                 bridge::Sharing sharing) noexcept override;
  bridge::Changed setTypedFilterState(rust::Str key,
                                      rust::Slice<const std::uint8_t> value) noexcept override;
  const bridge::KeptObject* object(rust::Str key) const noexcept override;
  bool setObject(rust::Str key, rust::Box<bridge::KeptObject> object,
                 bridge::LifeSpan life_span) noexcept override;
  bridge::Changed control(bridge::Control what, rust::Str text) noexcept override;

private:
  using Key = std::pair<std::string, std::string>;

  std::vector<std::string>& done_;
  std::map<Key, std::string> metadata_;
  std::map<std::string, std::string> state_;
  std::map<std::string, std::pair<bridge::LifeSpan, rust::Box<bridge::KeptObject>>> objects_;
};

// A span that notes what happens to it.
std::unique_ptr<bridge::Span> makeSpan(std::string name, std::vector<std::string>& done);

} // namespace test
} // namespace attache
