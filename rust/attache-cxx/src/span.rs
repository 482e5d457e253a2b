//! Envoy's tracing spans, through the bridge.

use std::cell::RefCell;
use std::pin::Pin;

use attache_core::host::HostSpan;
use cxx::UniquePtr;

use crate::bridge::ffi;

/// A span of a stream of Envoy's. The engine uses and drops it on the stream's worker, in time.
pub(crate) struct Span(RefCell<UniquePtr<ffi::Span>>);

impl Span {
    pub(crate) fn new(span: UniquePtr<ffi::Span>) -> Option<Self> {
        (!span.is_null()).then(|| Span(RefCell::new(span)))
    }

    /// C++ calls nothing back from here: there is never another borrow.
    fn with<R>(&self, f: impl FnOnce(Pin<&mut ffi::Span>) -> R) -> R {
        f(self.0.borrow_mut().pin_mut())
    }
}

fn filled(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

impl HostSpan for Span {
    fn child(&self, name: &str) -> Option<Box<dyn HostSpan>> {
        let child = Span::new(self.with(|span| span.child(name)))?;
        Some(Box::new(child))
    }

    fn set_tag(&self, key: &str, value: &str) {
        self.with(|span| span.set_tag(key, value));
    }

    fn set_operation(&self, name: &str) {
        self.with(|span| span.set_operation(name));
    }

    fn log(&self, event: &str) {
        self.with(|span| span.log(event));
    }

    fn set_sampled(&self, sampled: bool) {
        self.with(|span| span.set_sampled(sampled));
    }

    fn trace_id(&self) -> Option<String> {
        filled(self.with(|span| span.trace_id()))
    }

    fn span_id(&self) -> Option<String> {
        filled(self.with(|span| span.span_id()))
    }

    fn headers(&self) -> Option<Vec<(String, String)>> {
        let mut texts = self.with(|span| span.headers()).into_iter();
        Some(std::iter::from_fn(|| Some((texts.next()?, texts.next()?))).collect())
    }

    fn baggage(&self, key: &str) -> Option<String> {
        filled(self.with(|span| span.baggage(key)))
    }

    fn set_baggage(&self, key: &str, value: &str) {
        self.with(|span| span.set_baggage(key, value));
    }
}
