//! `tracing` events go to Envoy's log, at Envoy's level, with the filter and the stream in front.

use std::fmt;
use std::io::{self, Write};

use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Layer, filter, registry};

use crate::abi::{Callbacks, log_level};

/// Makes Envoy's log the place where this module's events go. A subscriber that the module's author
/// has already set stays.
pub(crate) fn install(api: &'static Callbacks) {
    let layer = tracing_subscriber::fmt::layer()
        .event_format(Format)
        .with_ansi(false)
        .with_writer(EnvoyLog { api })
        // Asked anew for each event: Envoy's level can change while it runs.
        .with_filter(filter::dynamic_filter_fn(move |metadata, _| {
            metadata.is_span() || enabled(api, metadata.level())
        }));
    let _ = tracing::subscriber::set_global_default(registry().with(layer));
}

fn level(level: &Level) -> u32 {
    match *level {
        Level::TRACE => log_level::TRACE,
        Level::DEBUG => log_level::DEBUG,
        Level::INFO => log_level::INFO,
        Level::WARN => log_level::WARN,
        Level::ERROR => log_level::ERROR,
    }
}

fn enabled(api: &Callbacks, of: &Level) -> bool {
    // SAFETY: takes a plain number; any thread.
    unsafe { (api.log_enabled)(level(of)) }
}

/// Writes a line to Envoy's log.
pub(crate) fn write(api: &Callbacks, level: u32, line: &str) {
    // SAFETY: Envoy copies the bytes; any thread.
    unsafe { (api.log)(level, line.into()) }
}

/// `[filter][C1][request id] spans: message fields`.
struct Format;

impl<S, N> FormatEvent<S, N> for Format
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        attache_core::write_current(&mut writer)?;
        let mut any = false;
        for span in ctx.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            if any {
                writer.write_char(':')?;
            }
            any = true;
            writer.write_str(span.name())?;
        }
        if any {
            writer.write_str(": ")?;
        }
        ctx.format_fields(writer, event)
    }
}

#[derive(Clone)]
struct EnvoyLog {
    api: &'static Callbacks,
}

struct Line {
    api: &'static Callbacks,
    level: u32,
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // The formatter writes each event in one piece.
        write(self.api, self.level, String::from_utf8_lossy(bytes).trim_end());
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for EnvoyLog {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { api: self.api, level: log_level::INFO }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Line {
        Line { api: self.api, level: level(metadata.level()) }
    }
}
