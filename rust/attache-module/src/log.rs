//! Envoy's log, through the C ABI.

use attache_core::log::LogSink;
use tracing::Level;

use crate::abi::{Callbacks, log_level};

impl LogSink for Callbacks {
    fn enabled(&self, level: &Level) -> bool {
        // SAFETY: takes a plain number; any thread.
        unsafe { (self.log_enabled)(log_level(level)) }
    }

    fn write(&self, level: &Level, line: &str) {
        write(self, log_level(level), line);
    }
}

fn log_level(level: &Level) -> u32 {
    match *level {
        Level::TRACE => log_level::TRACE,
        Level::DEBUG => log_level::DEBUG,
        Level::INFO => log_level::INFO,
        Level::WARN => log_level::WARN,
        Level::ERROR => log_level::ERROR,
    }
}

/// Writes a line to Envoy's log.
pub(crate) fn write(api: &Callbacks, level: u32, line: &str) {
    // SAFETY: Envoy copies the bytes; any thread.
    unsafe { (api.log)(level, line.into()) }
}
