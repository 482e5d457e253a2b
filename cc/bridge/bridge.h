// All of the bridge: the classes that C++ implements for Rust, and the functions and types of
// Rust's (generated from rust/attache-cxx/src/bridge.rs, where each is explained).
#pragma once

#include "cc/bridge/cluster_calls.h"
#include "cc/bridge/config_host.h"
#include "cc/bridge/log_sink.h"
#include "cc/bridge/notifier.h"
#include "cc/bridge/runtime_flags.h"
#include "cc/bridge/span.h"
#include "cc/bridge/stream_facts.h"
#include "cc/bridge/stream_host.h"
#include "rust/attache-cxx/src/bridge.rs.h"
