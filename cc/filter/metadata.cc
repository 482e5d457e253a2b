#include "cc/filter/metadata.h"

#include <string>
#include <utility>

#include "source/common/protobuf/protobuf.h"

#include "cc/filter/text.h"

namespace Envoy {
namespace Attache {

namespace bridge = ::attache::bridge;

using bridge::Changed;
using bridge::FactSink;
using envoy::config::core::v3::Metadata;

namespace {

const Protobuf::Struct* find(const Metadata& metadata, absl::string_view name_space) {
  const auto found = metadata.filter_metadata().find(name_space);
  return found == metadata.filter_metadata().end() ? nullptr : &found->second;
}

const Protobuf::Value* find(const Metadata& metadata, absl::string_view name_space,
                            absl::string_view key) {
  const Protobuf::Struct* fields = find(metadata, name_space);
  if (fields == nullptr) {
    return nullptr;
  }
  const auto found = fields->fields().find(key);
  return found == fields->fields().end() ? nullptr : &found->second;
}

void set(StreamInfo::StreamInfo& info, absl::string_view name_space, absl::string_view key,
         Protobuf::Value value) {
  Protobuf::Struct one;
  (*one.mutable_fields())[key] = std::move(value);
  // Envoy puts each field in the place of the one before.
  info.setDynamicMetadata(std::string(name_space), one);
}

} // namespace

void tellMetadata(const Metadata& metadata, absl::string_view name_space, absl::string_view key,
                  FactSink& sink) {
  if (const Protobuf::Value* value = find(metadata, name_space, key); value != nullptr) {
    sink.text(bytes(value->SerializeAsString()));
  }
}

void tellNamespaces(const Metadata& metadata, FactSink& sink) {
  for (const auto& [name, fields] : metadata.filter_metadata()) {
    sink.text(bytes(name));
  }
}

void tellKeys(const Metadata& metadata, absl::string_view name_space, FactSink& sink) {
  if (const Protobuf::Struct* fields = find(metadata, name_space); fields != nullptr) {
    for (const auto& [name, value] : fields->fields()) {
      sink.text(bytes(name));
    }
  }
}

Changed setMetadata(StreamInfo::StreamInfo& info, absl::string_view name_space,
                    absl::string_view key, absl::string_view value) {
  Protobuf::Value parsed;
  if (!parsed.ParseFromString(value)) {
    return Changed::Refused;
  }
  set(info, name_space, key, std::move(parsed));
  return Changed::Done;
}

Changed appendMetadata(StreamInfo::StreamInfo& info, absl::string_view name_space,
                       absl::string_view key, absl::string_view value) {
  Protobuf::Value list;
  if (const Protobuf::Value* there = find(info.dynamicMetadata(), name_space, key);
      there != nullptr) {
    if (there->kind_case() != Protobuf::Value::kListValue) {
      return Changed::WrongType;
    }
    list = *there;
  }
  if (!list.mutable_list_value()->add_values()->ParseFromString(value)) {
    return Changed::Refused;
  }
  set(info, name_space, key, std::move(list));
  return Changed::Done;
}

} // namespace Attache
} // namespace Envoy
