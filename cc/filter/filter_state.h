// What Rust reads and leaves in Envoy's filter state.
//
// Envoy takes it for a bug of the caller's if a key is set again that was set as read-only (up
// to 1.38), or with another life span; and it does not tell which it was. So what can be set again
// is what was set from here.
#pragma once

#include <memory>
#include <utility>

#include "envoy/stream_info/filter_state.h"

#include "absl/strings/string_view.h"
#include "cc/bridge/bridge.h"

namespace Envoy {
namespace Attache {

// Puts an object in, one that can be changed. Up to Envoy 1.38 that has to be said; since 1.39 all
// of them can.
template <class State>
void putState(State& state, absl::string_view key, std::shared_ptr<typename State::Object> object,
              typename State::LifeSpan life_span = State::LifeSpan::FilterChain,
              StreamInfo::StreamSharingMayImpactPooling sharing =
                  StreamInfo::StreamSharingMayImpactPooling::None) {
  if constexpr (requires { State::StateType::Mutable; }) {
    state.setData(key, std::move(object), State::StateType::Mutable, life_span, sharing);
  } else {
    state.setData(key, std::move(object), life_span, sharing);
  }
}

// A value that somebody has set as a string; or, if `typed`, the text of whatever object is there.
void tellState(const StreamInfo::FilterState& state, absl::string_view key, bool typed,
               ::attache::bridge::FactSink& sink);

::attache::bridge::Changed setState(StreamInfo::FilterState& state, absl::string_view key,
                                    absl::string_view value, ::attache::bridge::LifeSpan life_span,
                                    ::attache::bridge::Sharing sharing);

// Through the factory that Envoy has for the key.
::attache::bridge::Changed setTypedState(StreamInfo::FilterState& state, absl::string_view key,
                                         absl::string_view value);

// Objects of Rust's, under keys of their own.
const ::attache::bridge::KeptObject* findObject(const StreamInfo::FilterState& state,
                                                absl::string_view key);
bool setObject(StreamInfo::FilterState& state, absl::string_view key,
               rust::Box<::attache::bridge::KeptObject> object,
               ::attache::bridge::LifeSpan life_span);

} // namespace Attache
} // namespace Envoy
