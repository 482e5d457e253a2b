#include "cc/filter/secrets.h"

#include <utility>

#include "envoy/common/exception.h"
#include "envoy/config/core/v3/config_source.pb.h"
#include "envoy/secret/secret_manager.h"

#include "source/common/config/datasource.h"
#include "source/common/protobuf/utility.h"

#include "absl/strings/str_cat.h"
#include "cc/filter/text.h"

namespace Envoy {
namespace Attache {

absl::Status Secrets::watch(const std::string& name, absl::string_view sds_config,
                            rust::Box<::attache::bridge::SecretSlot> slot,
                            OptRef<Init::Manager> init_manager) {
  auto watched = std::make_unique<Watched>(std::move(slot));
  if (sds_config.empty()) {
    watched->provider_ = context_.secretManager().findStaticGenericSecretProvider(name);
    if (watched->provider_ == nullptr) {
      return absl::NotFoundError("there is no generic secret of this name in Envoy's bootstrap");
    }
  } else {
    envoy::config::core::v3::ConfigSource source;
    TRY_ASSERT_MAIN_THREAD {
      MessageUtil::loadFromJson(sds_config, source, context_.messageValidationVisitor());
      watched->provider_ = context_.secretManager().findOrCreateGenericSecretProvider(
          source, name, context_, init_manager);
    }
    END_TRY
    CATCH(const EnvoyException& refused, {
      return absl::InvalidArgumentError(absl::StrCat("its `sds_config`: ", refused.what()));
    });
  }
  Watched& kept = *watched_.emplace_back(std::move(watched));
  kept.on_update_ = kept.provider_->addUpdateCallback([this, &kept] {
    tell(kept);
    return absl::OkStatus();
  });
  if (kept.provider_->secret() != nullptr) {
    tell(kept);
  }
  return absl::OkStatus();
}

void Secrets::tell(const Watched& watched) {
  const auto* secret = watched.provider_->secret();
  if (secret == nullptr) {
    watched.slot_->failed(slice("it is gone"));
    return;
  }
  const absl::StatusOr<std::string> value =
      Config::DataSource::read(secret->secret(), /*allow_empty=*/true, context_.api());
  if (value.ok()) {
    watched.slot_->set(slice(*value));
  } else {
    watched.slot_->failed(slice(value.status().message()));
  }
}

} // namespace Attache
} // namespace Envoy
