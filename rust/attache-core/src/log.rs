//! `tracing` events go to the host's log, at the host's level, with the filter and the stream in
//! front.

use std::fmt;
use std::io::{self, Write};

use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Layer, filter, registry};

use crate::write_current;

/// The log of a host. Called on any thread.
pub trait LogSink: Send + Sync {
    /// Whether lines of this level are wanted. Asked for each event anew: Envoy's level can change
    /// while it runs.
    fn enabled(&self, level: &Level) -> bool;
    /// Writes a line, which comes without its end.
    fn write(&self, level: &Level, line: &str);
}

/// Makes a host's log the place where events go, and its tracer that for spans. A subscriber that the filters' author has already
/// set stays.
pub fn install(sink: &'static dyn LogSink) {
    let layer = tracing_subscriber::fmt::layer()
        .event_format(Format)
        .with_ansi(false)
        .with_writer(Lines(sink))
        .with_filter(filter::dynamic_filter_fn(move |metadata, _| {
            metadata.is_span() || sink.enabled(metadata.level())
        }));
    let spans = crate::span::layer(sink);
    let _ = tracing::subscriber::set_global_default(registry().with(layer).with(spans));
}

/// Writes `[C1][request id]`, for [`Host::stream_id`](crate::host::Host::stream_id).
///
/// # Errors
/// Only those of `out`.
pub fn write_stream_id(
    out: &mut dyn fmt::Write,
    connection: Option<u64>,
    request: Option<&[u8]>,
) -> fmt::Result {
    // Piece by piece: every task that is spawned in an exchange keeps it, and `write!` costs several
    // times as much.
    if let Some(connection) = connection {
        let mut digits = [0; 20];
        let mut at = digits.len();
        let mut rest = connection;
        loop {
            at -= 1;
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        out.write_str("[C")?;
        out.write_str(std::str::from_utf8(&digits[at..]).unwrap_or_default())?;
        out.write_char(']')?;
    }
    if let Some(request) = request {
        out.write_char('[')?;
        out.write_str(&String::from_utf8_lossy(request))?;
        out.write_char(']')?;
    }
    Ok(())
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
        write_current(&mut writer)?;
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

#[derive(Clone, Copy)]
struct Lines(&'static dyn LogSink);

struct Line {
    sink: &'static dyn LogSink,
    level: Level,
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // The formatter writes each event in one piece.
        self.sink.write(&self.level, String::from_utf8_lossy(bytes).trim_end());
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { sink: self.0, level: Level::INFO }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Line {
        Line { sink: self.0, level: *metadata.level() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_named_by_what_is_known_of_it() {
        let named = |connection, request| {
            let mut name = String::new();
            write_stream_id(&mut name, connection, request).unwrap();
            name
        };
        assert_eq!(named(None, None), "");
        assert_eq!(named(Some(0), None), "[C0]");
        assert_eq!(named(Some(12_340), Some(b"abc")), "[C12340][abc]");
        assert_eq!(named(Some(u64::MAX), Some(b"\xff")), "[C18446744073709551615][\u{fffd}]");
    }
}
