//! Calls to clusters: what the filter under test sends, and what comes back as events of its stream.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use attache_core::exchange::Exchange;
use attache_core::host::{CallRefused, CallStart};
use bytes::Bytes;
use tokio::time::Instant;

use super::Fields;
use super::stream::Stream;
use crate::cluster::{CallEvent, pairs, request_of};
use crate::message::Message;

/// The calls of a stream that are under way.
#[derive(Default)]
pub(crate) struct Calls {
    last: Cell<u64>,
    open: RefCell<Vec<Call>>,
}

struct Call {
    id: u64,
    cluster: String,
    timeout: Option<std::time::Duration>,
    /// What has been sent, until it is whole.
    request: Option<Message>,
    events: VecDeque<(Instant, CallEvent)>,
}

impl Stream {
    pub(crate) fn start_call(&self, call: &CallStart<'_>) -> Result<u64, CallRefused> {
        let clusters = &self.options.clusters;
        for name in [":method", ":path", ":authority"] {
            if !call.headers.iter().any(|(n, _)| *n == name.as_bytes()) {
                return Err(CallRefused::InvalidRequest);
            }
        }
        if !clusters.has(call.cluster) {
            return Err(CallRefused::UnknownCluster);
        }
        let id = self.calls.last.get() + 1;
        let mut started = Call {
            id,
            cluster: call.cluster.to_owned(),
            timeout: call.timeout,
            request: Some(request_of(call)),
            events: VecDeque::new(),
        };
        if call.end_stream {
            started.send(clusters, self.is_compiled_in())?;
        }
        self.calls.last.set(id);
        self.calls.open.borrow_mut().push(started);
        Ok(id)
    }

    /// Sends more of a request. False if the call is over.
    fn send_more(&self, id: u64, end: bool, f: impl FnOnce(&mut Message)) -> bool {
        let mut open = self.calls.open.borrow_mut();
        let Some(index) = open.iter().position(|call| call.id == id) else { return false };
        let Some(request) = &mut open[index].request else {
            drop(open);
            self.violation("more of a call's request after its end: Envoy would drop it");
            return false;
        };
        f(request);
        if !end {
            return true;
        }
        request.open = false;
        // The test's closure runs; it may use anything but this call.
        let mut call = open.swap_remove(index);
        drop(open);
        let sent = call.send(&self.options.clusters, self.is_compiled_in());
        match sent {
            Ok(()) => self.calls.open.borrow_mut().push(call),
            Err(_) => {
                // What would have been refused at the start fails while it is sent.
                let why = attache_core::host::CallFailure::Reset;
                if let Some(exchange) = self.exchange() {
                    exchange.call_failed(id, Some(why));
                }
            }
        }
        true
    }

    pub(crate) fn send_call_data(&self, id: u64, data: &[u8], end: bool) -> bool {
        self.send_more(id, end, |request| {
            if !data.is_empty() {
                request.chunks.push(Bytes::copy_from_slice(data));
            }
        })
    }

    pub(crate) fn send_call_trailers(&self, id: u64, trailers: Fields) -> bool {
        self.send_more(id, true, |request| request.trailers = Some(trailers))
    }

    pub(crate) fn reset_call(&self, id: u64) {
        let mut open = self.calls.open.borrow_mut();
        let Some(index) = open.iter().position(|call| call.id == id) else { return };
        let call = open.swap_remove(index);
        drop(open);
        self.options.clusters.cancel(&call.cluster);
        // Envoy reports the reset before the call returns.
        if let Some(exchange) = self.exchange() {
            exchange.call_failed(id, None);
        }
    }

    /// When the next event of a call is due.
    pub(crate) fn next_call_event(&self) -> Option<Instant> {
        let open = self.calls.open.borrow();
        open.iter().filter_map(|call| call.events.front().map(|(at, _)| *at)).min()
    }

    /// Delivers one event of a call, if one is due.
    pub(crate) fn run_call(&self) -> bool {
        let now = Instant::now();
        let mut open = self.calls.open.borrow_mut();
        let due = |call: &Call| call.events.front().is_some_and(|(at, _)| *at <= now);
        let Some(index) = open.iter().position(due) else { return false };
        let (id, event) = (open[index].id, open[index].events.pop_front());
        let Some((_, event)) = event else { return false };
        if matches!(event, CallEvent::Complete | CallEvent::Failed(..)) {
            open.remove(index);
        }
        drop(open);
        if let Some(exchange) = self.exchange() {
            deliver(&exchange, id, event);
        }
        true
    }

    /// The stream goes, and its calls with it: nothing is reported any more.
    pub(crate) fn drop_calls(&self) {
        let open = self.calls.open.take();
        for call in open.iter().filter(|call| !call.is_answered()) {
            self.options.clusters.cancel(&call.cluster);
        }
    }

    /// How many calls are under way.
    pub(crate) fn open_calls(&self) -> usize {
        self.calls.open.borrow().iter().filter(|call| !call.is_answered()).count()
    }
}

impl Call {
    /// All of the answer has been reported.
    fn is_answered(&self) -> bool {
        matches!(self.events.front(), Some((_, CallEvent::Complete)))
    }

    /// The request is whole.
    fn send(
        &mut self,
        clusters: &crate::cluster::Clusters,
        reports: bool,
    ) -> Result<(), CallRefused> {
        let Some(request) = self.request.take() else { return Ok(()) };
        self.events = clusters.script(&self.cluster, request, self.timeout, reports)?.into();
        Ok(())
    }
}

fn deliver(exchange: &Exchange, id: u64, event: CallEvent) {
    match event {
        CallEvent::Headers(fields, end) => exchange.call_headers(id, end, pairs(&fields)),
        CallEvent::Data(data, end) => exchange.call_data(id, end, [&data[..]].into_iter()),
        CallEvent::Trailers(fields) => exchange.call_trailers(id, pairs(&fields)),
        CallEvent::Complete => exchange.call_complete(id),
        CallEvent::Failed(why, "") => exchange.call_failed(id, Some(why)),
        CallEvent::Failed(why, text) => exchange.call_failed_because(id, why, text.as_bytes()),
    }
}
