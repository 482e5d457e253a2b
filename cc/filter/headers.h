// Envoy's header maps, read and changed by names that are in lower case already.
//
// To look for a header that has no place of its own, Envoy's maps first index all that they hold,
// and keep that index up to date from then on. That pays for many looks at many headers, and not
// for the two or three that a filter takes: a map that holds few headers is searched here as it is,
// and no index is made.
#pragma once

#include <cstddef>
#include <memory>

#include "envoy/http/header_map.h"

#include "absl/strings/string_view.h"
#include "cc/bridge/bridge.h"

namespace Envoy {
namespace Attache {

// Gives the index-th value of a name, if there is one. Returns how many values there are.
std::size_t getHeader(const Http::HeaderMap& map, absl::string_view name, std::size_t index,
                      absl::string_view& value);

// Replaces all values of a name.
void setHeader(Http::HeaderMap& map, absl::string_view name, absl::string_view value);

// Adds a value. Where Envoy has but one entry for a name, its values are joined.
void addHeader(Http::HeaderMap& map, absl::string_view name, absl::string_view value);

// Removes all values of a name.
void removeHeader(Http::HeaderMap& map, absl::string_view name);

// Adds what Rust gives.
void addHeaders(Http::HeaderMap& map, rust::Slice<const ::attache::bridge::HeaderView> headers);

// Fills a new map with what Rust gives.
template <class Map>
std::unique_ptr<Map> makeMap(std::unique_ptr<Map> map,
                             rust::Slice<const ::attache::bridge::HeaderView> headers) {
  addHeaders(*map, headers);
  return map;
}

} // namespace Attache
} // namespace Envoy
