#include "cc/filter/headers.h"

#include <utility>

#include "source/common/http/headers.h"

#include "absl/types/optional.h"
#include "cc/filter/text.h"

namespace Envoy {
namespace Attache {

namespace {

// Up to so many headers are searched one by one.
constexpr std::size_t FEW = 32;

struct Search {
  const absl::string_view name_;
  const std::size_t index_;
  // The value at that index, if there are so many.
  absl::string_view value_{};
  std::size_t count_{};
};

// Searches a map as it is. None if that might not find what Envoy would.
absl::optional<Search> search(const Http::HeaderMap& map, absl::string_view name,
                              std::size_t index = 0) {
  // Envoy takes "host" for ":authority".
  if (map.size() > FEW || name == Http::Headers::get().HostLegacy.get()) {
    return absl::nullopt;
  }
  Search search{name, index};
  // One reference: more than two words would be allocated.
  map.iterate([&search](const Http::HeaderEntry& entry) {
    if (entry.key().getStringView() == search.name_ && search.count_++ == search.index_) {
      search.value_ = entry.value().getStringView();
    }
    return Http::HeaderMap::Iterate::Continue;
  });
  return search;
}

} // namespace

std::size_t getHeader(const Http::HeaderMap& map, absl::string_view name, std::size_t index,
                      absl::string_view& value) {
  if (const absl::optional<Search> found = search(map, name, index); found.has_value()) {
    value = found->value_;
    return found->count_;
  }
  const auto values = map.get(Http::LowerCaseString(name));
  if (index < values.size()) {
    value = values[index]->value().getStringView();
  }
  return values.size();
}

void setHeader(Http::HeaderMap& map, absl::string_view name, absl::string_view value) {
  removeHeader(map, name);
  addHeader(map, name, value);
}

void addHeader(Http::HeaderMap& map, absl::string_view name, absl::string_view value) {
  Http::HeaderString key;
  key.setCopy(name);
  Http::HeaderString copy;
  copy.setCopy(value);
  map.addViaMove(std::move(key), std::move(copy));
}

void removeHeader(Http::HeaderMap& map, absl::string_view name) {
  const absl::optional<Search> found = search(map, name);
  if (!found.has_value() || found->count_ > 0) {
    map.remove(Http::LowerCaseString(name));
  }
}

void addHeaders(Http::HeaderMap& map, rust::Slice<const ::attache::bridge::HeaderView> headers) {
  for (const ::attache::bridge::HeaderView& header : headers) {
    addHeader(map, view(header.name), view(header.value));
  }
}

} // namespace Attache
} // namespace Envoy
