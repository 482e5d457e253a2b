// What is known of a stream beside its messages, and what can be done to it there: the part of a
// `StreamHost` that most filters never use. The host makes it when it is asked for.
//
// The rules of stream_host.h hold here too: which thread, how long what Rust passes is valid, that
// nothing throws. `control` may run other events of the same stream before it returns.
//
// What is asked for goes into a `FactSink`, of Rust's: one call, or one for each where there are
// several, or none where there is nothing (yet). The sink takes what it needs during that call.
#pragma once

#include <cstdint>

#include "rust/cxx.h"

namespace attache {
namespace bridge {

enum class Changed : std::uint8_t;
enum class Control : std::uint8_t;
enum class FactId : std::uint8_t;
enum class LifeSpan : std::uint8_t;
enum class MetadataSource : std::uint8_t;
enum class Sharing : std::uint8_t;
enum class TlsFact : std::uint8_t;
struct FactSink;
struct KeptObject;

class StreamFacts {
public:
  virtual ~StreamFacts() = default;

  // ---- What is known ---------------------------------------------------------------------------

  // Returns whether this host tells such things.
  virtual bool fact(FactId id, FactSink& sink) const noexcept = 0;

  // Of the TLS of the client's connection, or of the upstream's.
  virtual bool tls(bool upstream, TlsFact fact, FactSink& sink) const noexcept = 0;

  // ---- Metadata. Values are `google.protobuf.Value`s, in the wire format. ----------------------

  virtual void metadata(MetadataSource source, rust::Str name_space, rust::Str key,
                        FactSink& sink) const noexcept = 0;
  virtual void metadataNamespaces(MetadataSource source, FactSink& sink) const noexcept = 0;
  virtual void metadataKeys(MetadataSource source, rust::Str name_space,
                            FactSink& sink) const noexcept = 0;

  // Sets a value of the stream's own metadata, in place of the one before.
  virtual Changed setMetadata(rust::Str name_space, rust::Str key,
                              rust::Slice<const std::uint8_t> value) noexcept = 0;

  // Appends to a list there, and makes it if there is nothing.
  virtual Changed appendMetadata(rust::Str name_space, rust::Str key,
                                 rust::Slice<const std::uint8_t> value) noexcept = 0;

  // ---- Filter state ----------------------------------------------------------------------------

  // A value that was set as bytes; or, `typed`, the text of whatever object is there.
  virtual void filterState(rust::Str key, bool typed, FactSink& sink) const noexcept = 0;

  virtual Changed setFilterState(rust::Str key, rust::Slice<const std::uint8_t> value,
                                 LifeSpan life_span, Sharing sharing) noexcept = 0;

  // Sets the object that Envoy makes for this key from a text.
  virtual Changed setTypedFilterState(rust::Str key,
                                      rust::Slice<const std::uint8_t> value) noexcept = 0;

  // An object of Rust's, or null. It stays until the key is set again. Keys are apart from those of
  // everything else.
  virtual const KeptObject* object(rust::Str key) const noexcept = 0;

  // Sets it; false if the key is taken with another life span. An object that goes is not dropped
  // within anything that must not be entered again: Rust keeps what could run.
  virtual bool setObject(rust::Str key, rust::Box<KeptObject> object,
                         LifeSpan life_span) noexcept = 0;

  // ---- The stream ------------------------------------------------------------------------------

  virtual Changed control(Control what, rust::Str text) noexcept = 0;
};

} // namespace bridge
} // namespace attache
