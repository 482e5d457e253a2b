//! Tracing: the spans that a filter makes with `tracing` become children of Envoy's span of the
//! stream, and [`Trace`] is that span itself.
//!
//! A layer of the subscriber looks which exchange this thread is working for. Only within the events
//! of an exchange is there one, and only on its worker: what other threads do is not bridged. Spans
//! that are still open when the exchange ends are finished then, for Envoy's memory goes.

use std::fmt::{self, Write};
use std::rc::Rc;

use http::{HeaderMap, HeaderName, HeaderValue};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Layer, filter};

use crate::current;
use crate::exchange::Inner;
use crate::host::Map;
use crate::log::LogSink;

/// A span of the host's tracer: the stream's own, or a child that was made of it.
///
/// A child is finished when it is dropped. The engine uses and drops spans on the stream's worker,
/// before [`Exchange::destroy`](crate::exchange::Exchange::destroy) has returned.
pub trait HostSpan {
    /// Starts a child; `None` if the tracer makes none.
    fn child(&self, name: &str) -> Option<Box<dyn HostSpan>>;
    /// Sets a tag.
    fn set_tag(&self, key: &str, value: &str);
    /// Renames it.
    fn set_operation(&self, name: &str);
    /// Notes an event, at the present time.
    fn log(&self, event: &str);
    /// Overrules whether it is sampled.
    fn set_sampled(&self, sampled: bool);
    /// Its trace's id, in hex; `None` if the tracer has none.
    fn trace_id(&self) -> Option<String>;
    /// Its own id, in hex.
    fn span_id(&self) -> Option<String>;
    /// The headers that its tracer gives to a request which is a part of it, by name and value; `None`
    /// if the host has no way to the tracer for that.
    fn headers(&self) -> Option<Vec<(String, String)>>;
    /// A value that travels with the trace.
    fn baggage(&self, key: &str) -> Option<String>;
    /// Sets such a value.
    fn set_baggage(&self, key: &str, value: &str);
}

/// The spans of one exchange, made when somebody asks for them.
pub(crate) struct Open {
    /// Envoy's own.
    stream: Box<dyn HostSpan>,
    /// Those of the filter, by their ids in the subscriber.
    children: Vec<(Id, Box<dyn HostSpan>)>,
}

impl Open {
    fn child(&self, id: &Id) -> Option<&dyn HostSpan> {
        self.children.iter().find(|(own, _)| own == id).map(|(_, span)| &**span)
    }

    /// The innermost of these ids that is a span here, or the stream's own.
    fn innermost(&self, ids: impl IntoIterator<Item = Id>) -> &dyn HostSpan {
        ids.into_iter().find_map(|id| self.child(&id)).unwrap_or(&*self.stream)
    }
}

impl Inner {
    fn with_spans<R>(&self, f: impl FnOnce(&mut Open) -> R) -> Option<R> {
        // A span that is closed while another is used here is finished at the end.
        let mut spans = self.spans.try_borrow_mut().ok()?;
        if self.spans_over.get() {
            return None;
        }
        if !spans.is_there() {
            let Some(stream) = self.read(|host| host.span())? else {
                // Envoy does not trace this stream.
                self.spans_over.set(true);
                return None;
            };
            spans.get_or_make(|| Open { stream, children: Vec::new() });
        }
        spans.get_mut().map(f)
    }

    /// Finishes all that is open, for good.
    #[inline]
    pub(crate) fn end_spans(&self) {
        if !self.spans_over.replace(true) {
            let spans = self.spans.borrow_mut().take();
            drop(spans);
        }
    }
}

/// The trace that an exchange is part of: Envoy's span of the stream, and its context for calls that
/// the filter makes elsewhere. From [`Request::trace`](crate::Request::trace).
///
/// It is a handle like the request itself, but may be kept after the request has gone on. It stays on
/// the exchange's worker. Where Envoy has no tracer, or does not trace this stream, and after the
/// exchange has ended, all of it does nothing and gives `None`.
///
/// ```
/// use attache_core::{Filter, Next, Request, Response, Result};
/// # use attache_core::{ConfigError, Setup};
/// # struct Auth;
/// # async fn look_up(_: http::HeaderMap) -> Result<()> { Ok(()) }
/// # impl Filter for Auth {
/// #     type Config = ();
/// #     type RouteConfig = ();
/// #     fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> { Ok(Auth) }
/// async fn handle(&self, req: Request, next: Next) -> Result<Response> {
///     let trace = req.trace();
///     trace.set_tag("tenant", "acme");
///     // The headers of a call that is to be part of the trace.
///     look_up(trace.headers()).await?;
///     next.run(req).await
/// }
/// # }
/// ```
///
/// Spans made with `tracing` (`#[instrument]`, `info_span!`) need no handle: within `handle` and what
/// it awaits on the worker they become children of Envoy's span, their fields tags, events logs.
#[derive(Clone)]
pub struct Trace(Option<Rc<Inner>>);

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trace").field("trace_id", &self.trace_id()).finish_non_exhaustive()
    }
}

impl Trace {
    pub(crate) fn new(exchange: Option<Rc<Inner>>) -> Self {
        Trace(exchange)
    }

    fn stream<R>(&self, f: impl FnOnce(&dyn HostSpan) -> R) -> Option<R> {
        self.0.as_ref()?.with_spans(|open| f(&*open.stream))
    }

    /// The span that a call made now is a part of.
    fn innermost<R>(&self, f: impl FnOnce(&dyn HostSpan) -> R) -> Option<R> {
        let current = tracing::Span::current().id();
        self.0.as_ref()?.with_spans(|open| f(open.innermost(current)))
    }

    /// Whether Envoy traces this stream. It may still not be sampled.
    pub fn is_on(&self) -> bool {
        self.stream(|_| ()).is_some()
    }

    /// The id of the trace, in hex, as the tracer writes it: 32 digits, or 16 of some.
    pub fn trace_id(&self) -> Option<String> {
        self.stream(|span| span.trace_id()).flatten()
    }

    /// The id of the innermost span, in hex: of the current `tracing` span if that is one of Envoy's
    /// too, otherwise of Envoy's span of the stream. Envoy's OpenTelemetry tracer tells it, that of
    /// Zipkin does not.
    pub fn span_id(&self) -> Option<String> {
        self.innermost(|span| span.span_id()).flatten()
    }

    /// The headers that make a call of the filter's own a child of the innermost span
    /// ([`span_id`](Trace::span_id)): to be set in its request.
    ///
    /// With the filters compiled in, they are what Envoy's tracer gives to a request that Envoy sends
    /// upstream, in the format that the tracer is configured for (`traceparent` and `tracestate`,
    /// `b3`, ..), and they say whether the stream is sampled.
    ///
    /// Stock Envoy has no way to that for a module. There, it is a W3C `traceparent` made of the ids,
    /// if the tracer tells both. Envoy does not tell modules whether the stream is sampled: so it says
    /// what the request's own `traceparent` says of the same trace. That is the client's, which Envoy
    /// follows if it says that the trace is not sampled; and once the request has gone on, Envoy's own.
    /// Where there is none, the stream counts as sampled. So with a sampling rate below 100 %, a service
    /// that is called before reports spans of traces that nobody else reports.
    pub fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in self.told() {
            if let (Ok(name), Ok(value)) =
                (name.parse::<HeaderName>(), HeaderValue::try_from(value))
            {
                headers.insert(name, value);
            }
        }
        headers
    }

    /// The `traceparent` of [`headers`](Trace::headers), if it is among them.
    pub fn traceparent(&self) -> Option<String> {
        self.told().into_iter().find(|(name, _)| name == TRACEPARENT).map(|(_, value)| value)
    }

    /// The headers as the tracer gives them, or as they are made of what it tells.
    fn told(&self) -> Vec<(String, String)> {
        let told = self.innermost(|span| {
            let made = || self.made_traceparent(span).map(|made| (TRACEPARENT.into(), made));
            span.headers().unwrap_or_else(|| made().into_iter().collect())
        });
        told.unwrap_or_default()
    }

    fn made_traceparent(&self, span: &dyn HostSpan) -> Option<String> {
        let (trace, span) = (span.trace_id()?, span.span_id()?);
        let mut sampled = None;
        let mut look = |value: &[u8]| sampled = says_sampled(value, &trace);
        self.0.as_ref()?.read(|host| host.header(Map::RequestHeaders, TRACEPARENT, 0, &mut look));
        traceparent(&trace, &span, sampled.unwrap_or(true))
    }

    /// A value that travels with the trace, where the tracer has such.
    pub fn baggage(&self, key: &str) -> Option<String> {
        self.stream(|span| span.baggage(key)).flatten()
    }

    /// Sets a value that travels with the trace, where the tracer has such.
    pub fn set_baggage(&self, key: &str, value: &str) {
        self.stream(|span| span.set_baggage(key, value));
    }

    /// Sets a tag of Envoy's span of the stream.
    pub fn set_tag(&self, key: &str, value: &str) {
        self.stream(|span| span.set_tag(key, value));
    }

    /// Renames Envoy's span of the stream.
    pub fn set_operation(&self, name: &str) {
        self.stream(|span| span.set_operation(name));
    }

    /// Notes an event in Envoy's span of the stream. `tracing` events are noted by themselves.
    pub fn log(&self, event: &str) {
        self.stream(|span| span.log(event));
    }

    /// Overrules whether the stream, and the calls that it leads to, are sampled.
    pub fn set_sampled(&self, sampled: bool) {
        self.stream(|span| span.set_sampled(sampled));
    }
}

const TRACEPARENT: &str = "traceparent";

/// What a `traceparent` says of this trace, if it is of this one.
fn says_sampled(traceparent: &[u8], trace: &str) -> Option<bool> {
    let text = std::str::from_utf8(traceparent).ok()?;
    // Later versions may have more behind it.
    let mut parts = text.splitn(5, '-');
    let [_version, of, _span, flags] = std::array::from_fn(|_| parts.next());
    let hex =
        |flags: &&str| flags.len() == 2 && flags.bytes().all(|digit| digit.is_ascii_hexdigit());
    let flags = u8::from_str_radix(flags.filter(hex)?, 16).ok()?;
    of?.eq_ignore_ascii_case(trace).then_some(flags & 1 == 1)
}

/// As the standard has it; `None` if the ids are not of its form.
fn traceparent(trace: &str, span: &str, sampled: bool) -> Option<String> {
    let hex = |id: &str, most: usize| {
        let digits = id.bytes().all(|digit| digit.is_ascii_hexdigit());
        let set = id.bytes().any(|digit| digit != b'0');
        (digits && set && id.len() <= most).then(|| id.to_ascii_lowercase())
    };
    let (trace, span) = (hex(trace, 32)?, hex(span, 16)?);
    Some(format!("00-{trace:0>32}-{span:0>16}-0{}", u8::from(sampled)))
}

/// The layer that makes Envoy's spans of `tracing`'s.
///
/// Spans and events are taken at the levels that the log wants, and from `info` up whatever it wants.
pub(crate) fn layer<S>(log: &'static dyn LogSink) -> impl Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let wanted = move |metadata: &Metadata<'_>| {
        *metadata.level() <= Level::INFO || log.enabled(metadata.level())
    };
    Bridge.with_filter(filter::dynamic_filter_fn(move |metadata, _| {
        current::is_there() && wanted(metadata)
    }))
}

struct Bridge;

/// Whether Envoy traces the stream that this thread is working for.
fn is_traced() -> bool {
    current::with(|exchange| exchange.with_spans(|_| ())).is_some()
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Bridge {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, ctx: Context<'_, S>) {
        if !is_traced() {
            return;
        }
        let spans = ctx.span_scope(id).into_iter().flatten();
        let parents: Vec<Id> = spans.skip(1).map(|span| span.id()).collect();
        // The values' own code runs before anything is borrowed.
        let mut tags = Tags::default();
        attributes.record(&mut tags);
        current::with(|exchange| {
            exchange.with_spans(|open| {
                let Some(child) = open.innermost(parents).child(attributes.metadata().name())
                else {
                    return;
                };
                tags.set(&*child);
                // Ids are used again, and a span may have been closed where nobody saw it.
                open.children.retain(|(own, _)| own != id);
                open.children.push((id.clone(), child));
            })
        });
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, _: Context<'_, S>) {
        let mut tags = Tags::default();
        values.record(&mut tags);
        current::with(|exchange| {
            exchange.with_spans(|open| {
                if let Some(span) = open.child(id) {
                    tags.set(span);
                }
            })
        });
    }

    fn on_event(&self, event: &Event<'_>, ctx: Context<'_, S>) {
        if !is_traced() {
            return;
        }
        let scope = ctx.event_scope(event).into_iter().flatten();
        let spans: Vec<Id> = scope.map(|span| span.id()).collect();
        let mut line = Line::default();
        event.record(&mut line);
        let line = line.text(event.metadata());
        current::with(|exchange| exchange.with_spans(|open| open.innermost(spans).log(&line)));
    }

    fn on_close(&self, id: Id, _: Context<'_, S>) {
        let closed = current::with(|exchange| {
            exchange.with_spans(|open| {
                let index = open.children.iter().position(|(own, _)| *own == id)?;
                Some(open.children.swap_remove(index))
            })
        });
        drop(closed);
    }
}

/// Fields as tags.
#[derive(Default)]
struct Tags(Vec<(&'static str, String)>);

impl Tags {
    fn set(&self, span: &dyn HostSpan) {
        for (key, value) in &self.0 {
            span.set_tag(key, value);
        }
    }
}

impl Visit for Tags {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.push((field.name(), format!("{value:?}")));
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.push((field.name(), value.to_owned()));
    }
}

/// An event in one line: `info: message field=value`.
#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Line {
    fn text(self, metadata: &Metadata<'_>) -> String {
        let level = metadata.level().as_str().to_ascii_lowercase();
        format!("{level}: {}{}", self.message, self.fields)
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_has_the_standard_s_form_or_is_none() {
        let made = |trace, span| traceparent(trace, span, true);
        let long = "0af7651916cd43dd8448eb211c80319c";
        assert_eq!(
            made(long, "b7ad6b7169203331").as_deref(),
            Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        );
        assert_eq!(
            made("8448EB211C80319C", "1").as_deref(),
            Some("00-00000000000000008448eb211c80319c-0000000000000001-01")
        );
        assert_eq!(made("", "1"), None);
        assert_eq!(made("0000", "1"), None);
        assert_eq!(made("1-2", "1"), None);
        assert_eq!(made("1", "b7ad6b7169203331f"), None);
        assert!(traceparent(long, "1", false).is_some_and(|made| made.ends_with("-00")));
    }

    #[test]
    fn a_traceparent_says_of_its_own_trace_whether_it_is_sampled() {
        let says = |text: &str| says_sampled(text.as_bytes(), "0af7651916cd43dd8448eb211c80319c");
        let with = |flags| format!("00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-{flags}");
        for (flags, sampled) in [("00", false), ("01", true), ("02", false), ("ff-more", true)] {
            assert_eq!(says(&with(flags)), Some(sampled), "{flags}");
        }
        for flags in ["", "0", "1", "+1", "xx", "001"] {
            assert_eq!(says(&with(flags)), None, "{flags}");
        }
        assert_eq!(says("00-0af7651916cd43dd8448eb211c80319d-b7ad6b7169203331-00"), None);
        for text in ["", "-", "00-0af7651916cd43dd8448eb211c80319c", "\u{e4}-b-c-00"] {
            assert_eq!(says(text), None, "{text}");
        }
    }
}
