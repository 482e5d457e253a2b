//! Envoy's tracing spans, through the C ABI.

use std::ptr::NonNull;

use attache_core::host::HostSpan;

use crate::abi::{Callbacks, EnvoyBuffer, EnvoyFilter, EnvoySpan, ModuleBuffer};

/// A span of a stream of Envoy's.
///
/// # Invariant
/// `span` is the stream's own, which lives as long as the stream, or a child that Envoy has given to
/// us and that `drop` gives back. `envoy` is the stream. The engine uses and drops a span on the
/// stream's worker only, and before the destroy hook has returned: then both are valid.
pub(crate) struct Span {
    envoy: EnvoyFilter,
    span: NonNull<std::ffi::c_void>,
    api: &'static Callbacks,
    ours: bool,
}

impl Span {
    /// The span of a stream, if Envoy traces it.
    ///
    /// # Safety
    /// `envoy` must be valid, and stay so until its destroy hook has returned; until then the result
    /// must be dropped. This must be its worker.
    pub(crate) unsafe fn of_stream(envoy: EnvoyFilter, api: &'static Callbacks) -> Option<Self> {
        // SAFETY: the caller's promise.
        let span = unsafe { (api.get_active_span)(envoy) };
        NonNull::new(span).map(|span| Span { envoy, span, api, ours: false })
    }

    /// Asks for a text of the span.
    fn text(&self, ask: impl FnOnce(EnvoySpan, *mut EnvoyBuffer) -> bool) -> Option<String> {
        let mut text = EnvoyBuffer::EMPTY;
        ask(self.span.as_ptr(), &mut text).then(|| {
            // SAFETY: the text stays until the next such call on this thread; it is copied at once.
            String::from_utf8_lossy(unsafe { text.as_slice() }).into_owned()
        })
    }
}

impl HostSpan for Span {
    fn child(&self, name: &str) -> Option<Box<dyn HostSpan>> {
        // SAFETY: stream and span are valid (type invariant); Envoy copies the name.
        let span =
            unsafe { (self.api.span_spawn_child)(self.envoy, self.span.as_ptr(), name.into()) };
        let span = NonNull::new(span)?;
        Some(Box::new(Span { envoy: self.envoy, span, api: self.api, ours: true }))
    }

    fn set_tag(&self, key: &str, value: &str) {
        // SAFETY: the span is valid (type invariant); Envoy copies both texts.
        unsafe { (self.api.span_set_tag)(self.span.as_ptr(), key.into(), value.into()) }
    }

    fn set_operation(&self, name: &str) {
        // SAFETY: as above.
        unsafe { (self.api.span_set_operation)(self.span.as_ptr(), name.into()) }
    }

    fn log(&self, event: &str) {
        // SAFETY: stream and span are valid (type invariant); Envoy copies the text.
        unsafe { (self.api.span_log)(self.envoy, self.span.as_ptr(), event.into()) }
    }

    fn set_sampled(&self, sampled: bool) {
        // SAFETY: the span is valid (type invariant).
        unsafe { (self.api.span_set_sampled)(self.span.as_ptr(), sampled) }
    }

    fn trace_id(&self) -> Option<String> {
        // SAFETY: the span is valid (type invariant); the out-pointer is live.
        self.text(|span, text| unsafe { (self.api.span_get_trace_id)(span, text) })
    }

    fn span_id(&self) -> Option<String> {
        // SAFETY: as above.
        self.text(|span, text| unsafe { (self.api.span_get_span_id)(span, text) })
    }

    /// The ABI has no callback for it, nor one that tells a filter whether the span is sampled
    /// (`access_logger_is_trace_sampled` is for access loggers, and tells Envoy's own reason to trace).
    fn headers(&self) -> Option<Vec<(String, String)>> {
        None
    }

    fn baggage(&self, key: &str) -> Option<String> {
        let key = ModuleBuffer::from(key);
        // SAFETY: as above; Envoy reads the key during the call.
        self.text(|span, text| unsafe { (self.api.span_get_baggage)(span, key, text) })
    }

    fn set_baggage(&self, key: &str, value: &str) {
        // SAFETY: as in `set_tag`.
        unsafe { (self.api.span_set_baggage)(self.span.as_ptr(), key.into(), value.into()) }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if self.ours {
            // SAFETY: a child that is ours (type invariant), finished once.
            unsafe { (self.api.child_span_finish)(self.span.as_ptr()) }
        }
    }
}
