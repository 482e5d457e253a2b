#include "cc/filter/filter_state.h"

#include <exception>
#include <memory>
#include <string>
#include <utility>

#include "envoy/registry/registry.h"

#include "source/common/router/string_accessor_impl.h"

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/types/optional.h"
#include "cc/filter/text.h"

namespace Envoy {
namespace Attache {

namespace bridge = ::attache::bridge;

using bridge::Changed;
using StreamInfo::FilterState;

namespace {

// Our own objects know how long they live.
class Lived {
public:
  explicit Lived(bridge::LifeSpan life_span) : life_span_(life_span) {}
  virtual ~Lived() = default;

  bool livesFor(bridge::LifeSpan life_span) const { return life_span_ == life_span; }

private:
  const bridge::LifeSpan life_span_;
};

class Text : public Router::StringAccessorImpl, public Lived {
public:
  Text(absl::string_view value, bridge::LifeSpan life_span)
      : StringAccessorImpl(value), Lived(life_span) {}
};

class RustObject : public FilterState::Object, public Lived {
public:
  RustObject(rust::Box<bridge::KeptObject> object, bridge::LifeSpan life_span)
      : Lived(life_span), object_(std::move(object)) {}

  const bridge::KeptObject& object() const { return *object_; }

private:
  const rust::Box<bridge::KeptObject> object_;
};

// The keys whose objects were made here by factories of Envoy's.
class TypedKeys : public FilterState::Object {
public:
  absl::flat_hash_set<std::string> keys_;
};

constexpr absl::string_view TypedKeysKey = "attache.typed_keys";

std::string objectKey(absl::string_view key) { return absl::StrCat("attache.kept.", key); }

FilterState::LifeSpan lifeSpan(bridge::LifeSpan life_span) {
  switch (life_span) {
  case bridge::LifeSpan::FilterChain:
    return FilterState::LifeSpan::FilterChain;
  case bridge::LifeSpan::Request:
    return FilterState::LifeSpan::Request;
  case bridge::LifeSpan::Connection:
    break;
  }
  return FilterState::LifeSpan::Connection;
}

StreamInfo::StreamSharingMayImpactPooling sharedWith(bridge::Sharing sharing) {
  switch (sharing) {
  case bridge::Sharing::None:
    return StreamInfo::StreamSharingMayImpactPooling::None;
  case bridge::Sharing::UpstreamConnection:
    return StreamInfo::StreamSharingMayImpactPooling::SharedWithUpstreamConnection;
  case bridge::Sharing::UpstreamConnectionOnce:
    break;
  }
  return StreamInfo::StreamSharingMayImpactPooling::SharedWithUpstreamConnectionOnce;
}

// Whether there is nothing, or something of ours with the same life span.
bool isFree(const FilterState& state, absl::string_view key, bridge::LifeSpan life_span) {
  const FilterState::Object* there = state.getDataReadOnlyGeneric(key);
  if (there == nullptr) {
    return true;
  }
  const auto* ours = dynamic_cast<const Lived*>(there);
  return ours != nullptr && ours->livesFor(life_span);
}

} // namespace

void tellState(const FilterState& state, absl::string_view key, bool typed,
               bridge::FactSink& sink) {
  if (!typed) {
    if (const auto* text = state.getDataReadOnly<Router::StringAccessor>(key); text != nullptr) {
      sink.text(bytes(text->asString()));
    }
    return;
  }
  if (const FilterState::Object* object = state.getDataReadOnlyGeneric(key); object != nullptr) {
    if (const absl::optional<std::string> text = object->serializeAsString(); text.has_value()) {
      sink.text(bytes(*text));
    }
  }
}

Changed setState(FilterState& state, absl::string_view key, absl::string_view value,
                 bridge::LifeSpan life_span, bridge::Sharing sharing) {
  if (!isFree(state, key, life_span)) {
    return Changed::Refused;
  }
  putState(state, key, std::make_shared<Text>(value, life_span), lifeSpan(life_span),
           sharedWith(sharing));
  return Changed::Done;
}

Changed setTypedState(FilterState& state, absl::string_view key, absl::string_view value) {
  const auto* factory = Registry::FactoryRegistry<FilterState::ObjectFactory>::getFactory(key);
  if (factory == nullptr) {
    return Changed::WrongType;
  }
  auto* typed = state.getDataMutable<TypedKeys>(TypedKeysKey);
  const bool ours = typed != nullptr && typed->keys_.contains(key);
  if (state.hasDataWithName(key) && !ours) {
    return Changed::Refused;
  }
  std::shared_ptr<FilterState::Object> object;
  try {
    object = factory->createFromBytes(value);
  } catch (const std::exception&) {
    // Some of them throw at what is no such text.
  }
  if (object == nullptr) {
    return Changed::WrongType;
  }
  if (typed == nullptr) {
    auto made = std::make_shared<TypedKeys>();
    typed = made.get();
    putState(state, TypedKeysKey, std::move(made));
  }
  typed->keys_.emplace(key);
  putState(state, key, std::move(object));
  return Changed::Done;
}

const bridge::KeptObject* findObject(const FilterState& state, absl::string_view key) {
  const auto* there = state.getDataReadOnly<RustObject>(objectKey(key));
  return there == nullptr ? nullptr : &there->object();
}

bool setObject(FilterState& state, absl::string_view key, rust::Box<bridge::KeptObject> object,
               bridge::LifeSpan life_span) {
  const std::string name = objectKey(key);
  if (!isFree(state, name, life_span)) {
    return false;
  }
  putState(state, name, std::make_shared<RustObject>(std::move(object), life_span),
           lifeSpan(life_span));
  return true;
}

} // namespace Attache
} // namespace Envoy
