// What Rust reads and leaves in Envoy's filter state.
//
// Envoy takes it for a bug of the caller's if a key is set again that was set as read-only, or with
// another life span; and it does not tell which it was. So what can be set again is what was set from
// here.
#pragma once

#include "envoy/stream_info/filter_state.h"

#include "absl/strings/string_view.h"
#include "cc/bridge/bridge.h"

namespace Envoy {
namespace Attache {

// A value that somebody has set as a string; or, if `typed`, the text of whatever object is there.
void tellState(const StreamInfo::FilterState& state, absl::string_view key, bool typed,
               ::attache::bridge::FactSink& sink);

::attache::bridge::Changed setState(StreamInfo::FilterState& state, absl::string_view key,
                                    absl::string_view value,
                                    ::attache::bridge::LifeSpan life_span,
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
