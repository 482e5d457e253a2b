// What is around the messages of a stream, for Rust. A filter makes one when it is asked for it.
//
// Everything is read afresh, and handed over while Envoy's own values stand still.
#pragma once

#include <functional>
#include <memory>

#include "envoy/http/filter.h"

#include "cc/bridge/bridge.h"
#include "cc/filter/filter_config.h"

namespace Envoy {
namespace Attache {

class Facts : public ::attache::bridge::StreamFacts {
public:
  // `recreate` starts the stream again; false if Envoy refuses.
  Facts(Http::StreamDecoderFilterCallbacks& callbacks, const FilterConfig& config,
        std::function<bool()> recreate)
      : callbacks_(callbacks), config_(config), recreate_(std::move(recreate)) {}

  // attache::bridge::StreamFacts
  bool fact(::attache::bridge::FactId id,
            ::attache::bridge::FactSink& sink) const noexcept override;
  bool tls(bool upstream, ::attache::bridge::TlsFact fact,
           ::attache::bridge::FactSink& sink) const noexcept override;
  void metadata(::attache::bridge::MetadataSource source, rust::Str name_space, rust::Str key,
                ::attache::bridge::FactSink& sink) const noexcept override;
  void metadataNamespaces(::attache::bridge::MetadataSource source,
                          ::attache::bridge::FactSink& sink) const noexcept override;
  void metadataKeys(::attache::bridge::MetadataSource source, rust::Str name_space,
                    ::attache::bridge::FactSink& sink) const noexcept override;
  ::attache::bridge::Changed setMetadata(rust::Str name_space, rust::Str key,
                                         rust::Slice<const std::uint8_t> value) noexcept override;
  ::attache::bridge::Changed
  appendMetadata(rust::Str name_space, rust::Str key,
                 rust::Slice<const std::uint8_t> value) noexcept override;
  void filterState(rust::Str key, bool typed,
                   ::attache::bridge::FactSink& sink) const noexcept override;
  ::attache::bridge::Changed setFilterState(rust::Str key, rust::Slice<const std::uint8_t> value,
                                            ::attache::bridge::LifeSpan life_span,
                                            ::attache::bridge::Sharing sharing) noexcept override;
  ::attache::bridge::Changed
  setTypedFilterState(rust::Str key, rust::Slice<const std::uint8_t> value) noexcept override;
  const ::attache::bridge::KeptObject* object(rust::Str key) const noexcept override;
  bool setObject(rust::Str key, rust::Box<::attache::bridge::KeptObject> object,
                 ::attache::bridge::LifeSpan life_span) noexcept override;
  ::attache::bridge::Changed control(::attache::bridge::Control what,
                                     rust::Str text) noexcept override;

private:
  StreamInfo::StreamInfo& info() const { return callbacks_.streamInfo(); }
  void hosts(::attache::bridge::FactId which, ::attache::bridge::FactSink& sink) const;
  // The metadata of something, if there is any, and the object that it belongs to.
  void withMetadata(::attache::bridge::MetadataSource source,
                    const std::function<void(const envoy::config::core::v3::Metadata&)>& use) const;

  Http::StreamDecoderFilterCallbacks& callbacks_;
  const FilterConfig& config_;
  const std::function<bool()> recreate_;
};

} // namespace Attache
} // namespace Envoy
