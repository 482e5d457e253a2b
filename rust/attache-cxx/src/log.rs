//! Envoy's log, through the bridge.

use attache_core::log::LogSink;
use cxx::UniquePtr;
use tracing::Level;

use crate::bridge::ffi::{self, LogLevel};

/// Envoy's log.
pub(crate) struct Log(pub(crate) UniquePtr<ffi::LogSink>);

// SAFETY: `cc/bridge/log_sink.h` makes its methods callable from any thread. It is never deleted.
unsafe impl Send for Log {}
// SAFETY: as above.
unsafe impl Sync for Log {}

impl Log {
    /// A fault of the runtime's own.
    pub(crate) fn critical(&self, line: &str) {
        self.0.log(LogLevel::Critical, line);
    }
}

impl LogSink for Log {
    fn enabled(&self, level: &Level) -> bool {
        self.0.enabled(log_level(level))
    }

    fn write(&self, level: &Level, line: &str) {
        self.0.log(log_level(level), line);
    }
}

fn log_level(level: &Level) -> LogLevel {
    match *level {
        Level::TRACE => LogLevel::Trace,
        Level::DEBUG => LogLevel::Debug,
        Level::INFO => LogLevel::Info,
        Level::WARN => LogLevel::Warn,
        Level::ERROR => LogLevel::Error,
    }
}
