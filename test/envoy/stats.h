// Waits until an Envoy under test has counted something, in the words of the release that it is
// built from: since 1.39 Envoy takes a matcher, before it has a function for each comparison.
#pragma once

#include <cstdint>
#include <string>

#include "gmock/gmock.h"

namespace Envoy {
namespace Attache {

template <class Server>
void counterIs(Server& server, const std::string& name, std::uint64_t value) {
  if constexpr (requires { server.waitForCounter(name, testing::Eq(value)); }) {
    server.waitForCounter(name, testing::Eq(value));
  } else {
    server.waitForCounterEq(name, value);
  }
}

template <class Server>
void counterReaches(Server& server, const std::string& name, std::uint64_t value) {
  if constexpr (requires { server.waitForCounter(name, testing::Ge(value)); }) {
    server.waitForCounter(name, testing::Ge(value));
  } else {
    server.waitForCounterGe(name, value);
  }
}

template <class Server> void gaugeIs(Server& server, const std::string& name, std::uint64_t value) {
  if constexpr (requires { server.waitForGauge(name, testing::Eq(value)); }) {
    server.waitForGauge(name, testing::Eq(value));
  } else {
    server.waitForGaugeEq(name, value);
  }
}

} // namespace Attache
} // namespace Envoy
