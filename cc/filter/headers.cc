#include "cc/filter/headers.h"

#include <utility>

#include "source/common/http/headers.h"

#include "cc/filter/text.h"

namespace Envoy {
namespace Attache {

namespace {

// Up to so many headers are searched one by one.
constexpr std::size_t Few = 32;

struct Search {
  const absl::string_view name_;
  const std::size_t index_{};
  // The value at that index, if there are so many.
  absl::string_view value_{};
  std::size_t count_{};
};

// Searches a map as it is. False if that might not find what Envoy would.
inline bool find(const Http::HeaderMap& map, Search& search) {
  // Envoy takes "host" for ":authority".
  if (map.size() > Few || search.name_ == Http::Headers::get().HostLegacy.get()) {
    return false;
  }
  // One reference: more than two words would be allocated.
  map.iterate([&search](const Http::HeaderEntry& entry) {
    if (entry.key().getStringView() == search.name_ && search.count_++ == search.index_) {
      search.value_ = entry.value().getStringView();
    }
    return Http::HeaderMap::Iterate::Continue;
  });
  return true;
}

// This one and the next are apart from what others call, so that they are inlined into all of it.
inline void add(Http::HeaderMap& map, absl::string_view name, absl::string_view value) {
  Http::HeaderString key;
  key.setCopy(name);
  Http::HeaderString copy;
  copy.setCopy(value);
  map.addViaMove(std::move(key), std::move(copy));
}

inline void remove(Http::HeaderMap& map, absl::string_view name) {
  Search search{name};
  if (!find(map, search) || search.count_ > 0) {
    map.remove(Http::LowerCaseString(name));
  }
}

} // namespace

std::size_t getHeader(const Http::HeaderMap& map, absl::string_view name, std::size_t index,
                      absl::string_view& value) {
  Search search{name, index};
  if (find(map, search)) {
    value = search.value_;
    return search.count_;
  }
  const auto values = map.get(Http::LowerCaseString(name));
  if (index < values.size()) {
    value = values[index]->value().getStringView();
  }
  return values.size();
}

void setHeader(Http::HeaderMap& map, absl::string_view name, absl::string_view value) {
  remove(map, name);
  add(map, name, value);
}

void addHeader(Http::HeaderMap& map, absl::string_view name, absl::string_view value) {
  add(map, name, value);
}

void removeHeader(Http::HeaderMap& map, absl::string_view name) { remove(map, name); }

void addHeaders(Http::HeaderMap& map, rust::Slice<const ::attache::bridge::HeaderView> headers) {
  for (const ::attache::bridge::HeaderView& header : headers) {
    add(map, view(header.name), view(header.value));
  }
}

} // namespace Attache
} // namespace Envoy
