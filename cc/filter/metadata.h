// Metadata values, as Rust reads and writes them: in protobuf's wire format.
#pragma once

#include "envoy/config/core/v3/base.pb.h"
#include "envoy/stream_info/stream_info.h"

#include "absl/strings/string_view.h"
#include "cc/bridge/bridge.h"

namespace Envoy {
namespace Attache {

void tellMetadata(const envoy::config::core::v3::Metadata& metadata, absl::string_view name_space,
                  absl::string_view key, ::attache::bridge::FactSink& sink);
void tellNamespaces(const envoy::config::core::v3::Metadata& metadata,
                    ::attache::bridge::FactSink& sink);
void tellKeys(const envoy::config::core::v3::Metadata& metadata, absl::string_view name_space,
              ::attache::bridge::FactSink& sink);

::attache::bridge::Changed setMetadata(StreamInfo::StreamInfo& info, absl::string_view name_space,
                                       absl::string_view key, absl::string_view value);
::attache::bridge::Changed appendMetadata(StreamInfo::StreamInfo& info,
                                          absl::string_view name_space, absl::string_view key,
                                          absl::string_view value);

} // namespace Attache
} // namespace Envoy
