//! One exchange in a test, at once or step by step.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use attache_core::host::Direction;
use attache_core::{LifeSpan, MetadataValue, Sharing, Store};
use bytes::Bytes;

use crate::TestHost;
use crate::known::{Done, Surroundings};
use crate::message::{Message, TestRequest, TestResponse};
use crate::model::{Fields, Model};

/// How often spawned tasks get a turn before the exchange is taken to wait for something else.
const TURNS: usize = 64;

/// How much (virtual) time a whole exchange may take before it counts as stuck.
const STUCK: Duration = Duration::from_secs(24 * 3600);

type Answer = Box<dyn FnOnce(&TestRequest) -> TestResponse>;

/// A whole request, made by [`TestHost::request`].
#[must_use = "nothing happens until it is `run`"]
pub struct OneShot {
    host: TestHost,
    request: TestRequest,
    upstream: Option<Answer>,
    early: bool,
}

impl fmt::Debug for OneShot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OneShot").field("request", &self.request).finish_non_exhaustive()
    }
}

impl OneShot {
    pub(crate) fn new(host: TestHost, request: TestRequest) -> Self {
        OneShot { host, request, upstream: None, early: false }
    }

    /// What the upstream answers, once the whole request has reached it. Without this, the upstream
    /// answers 200 with no body.
    pub fn upstream(mut self, answer: impl FnOnce(&TestRequest) -> TestResponse + 'static) -> Self {
        self.upstream = Some(Box::new(answer));
        self
    }

    /// The upstream answers as soon as it has the request's headers, even if the end of the request
    /// never reaches it.
    pub fn answers_early(mut self) -> Self {
        self.early = true;
        self
    }

    /// Runs the exchange to its end, and returns what the client got. Time passes as needed.
    ///
    /// # Panics
    /// When the exchange never ends, or did something that Envoy would punish.
    pub fn run(self) -> TestResponse {
        let OneShot { host, mut request, upstream, early } = self;
        request.0.open = false;
        let exchange = host.open(request);
        let mut upstream = Some(upstream.unwrap_or_else(|| Box::new(|_| TestResponse::new(200))));
        loop {
            if exchange.is_over() {
                return exchange.finish();
            }
            if let Some(seen) = exchange.upstream()
                && (early || seen.is_complete())
                && let Some(answer) = upstream.take()
            {
                let mut answer = answer(&seen);
                answer.0.open = false;
                exchange.respond(answer);
                continue;
            }
            exchange.wait();
        }
    }
}

/// An exchange that a test leads step by step, made by [`TestHost::open`].
///
/// Each step delivers one event, then all wakes and spawned tasks that it causes. Only
/// [`advance`](TestExchange::advance) makes time pass.
///
/// When it is dropped before its end, the client leaves.
pub struct TestExchange {
    host: TestHost,
    model: Model,
    checked: RefCell<bool>,
}

impl fmt::Debug for TestExchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.model.fmt(f)
    }
}

fn owned(fields: &[(&str, &str)]) -> Fields {
    fields.iter().map(|(n, v)| (n.to_ascii_lowercase(), Bytes::from((*v).to_owned()))).collect()
}

impl TestExchange {
    pub(crate) fn open(host: TestHost, request: TestRequest) -> Self {
        let model = Model::new(&host.0.loaded, host.0.options.clone());
        let exchange = TestExchange { host, model, checked: RefCell::new(false) };
        let bare = request.0.is_bare();
        let Message { headers, chunks, trailers, open, .. } = request.0;
        exchange.step(|model| model.client_headers(headers, bare));
        let last = chunks.len();
        for (i, chunk) in chunks.into_iter().enumerate() {
            let end = i + 1 == last && trailers.is_none() && !open;
            exchange.step(|model| model.client_data(chunk, end));
        }
        if let Some(trailers) = trailers {
            exchange.step(|model| model.client_trailers(trailers));
        }
        exchange
    }

    /// One event and what follows from it.
    fn step(&self, event: impl FnOnce(&Model)) {
        {
            let _runtime = self.host.0.runtime.enter();
            event(&self.model);
        }
        self.settle();
    }

    /// Delivers wakes and runs spawned tasks until nothing moves.
    fn settle(&self) {
        loop {
            self.host.0.runtime.block_on(async {
                // One thread for blocking closures: when this one has run, so have those before it.
                let _ = tokio::task::spawn_blocking(|| ()).await;
                for _ in 0..TURNS {
                    tokio::task::yield_now().await;
                }
            });
            let mut moved = false;
            let runtime = self.host.0.runtime.enter();
            while self.model.run_scheduled() || self.model.run_call() {
                moved = true;
            }
            drop(runtime);
            if !moved {
                return self.check();
            }
        }
    }

    /// Lets time pass until the exchange moves.
    fn wait(&self) {
        let woken = self
            .host
            .0
            .runtime
            .block_on(async { tokio::time::timeout(STUCK, self.model.woken()).await.is_ok() });
        self.settle();
        assert!(
            woken || self.is_over(),
            "the exchange is stuck: the filter waits for something that never comes\n{self:?}"
        );
    }

    fn check(&self) {
        let violations = self.model.violations();
        if let Some(first) = violations.first()
            && !self.checked.replace(true)
        {
            panic!("{first}\n(Envoy would have crashed, hung or lost bytes; {self:?})");
        }
    }

    // ---- the client -------------------------------------------------------------------------

    /// The client sends a piece of its body.
    pub fn send(&self, chunk: impl Into<Bytes>) {
        self.step(|model| model.client_data(chunk, false));
    }

    /// The client sends the last piece of its body; it may be empty.
    pub fn send_last(&self, chunk: impl Into<Bytes>) {
        self.step(|model| model.client_data(chunk, true));
    }

    /// The client ends its request with trailers.
    pub fn send_trailers(&self, trailers: &[(&str, &str)]) {
        self.step(|model| model.client_trailers(owned(trailers)));
    }

    /// The client leaves.
    pub fn client_resets(&self) {
        self.step(Model::client_reset);
    }

    /// The client's connection is full (`true`), or takes more again.
    pub fn client_watermark(&self, above: bool) {
        self.step(|model| model.client_watermark(above));
    }

    /// What has reached the client so far, if anything has.
    pub fn response(&self) -> Option<TestResponse> {
        Message::seen(self.model.client()).map(TestResponse)
    }

    /// Whether the client is asked to pause, because what it sent is not read.
    pub fn client_is_paused(&self) -> bool {
        self.model.paused(Direction::Request)
    }

    // ---- the upstream -----------------------------------------------------------------------

    /// What has reached the upstream so far, if anything has.
    pub fn upstream(&self) -> Option<TestRequest> {
        Message::seen(self.model.upstream()).map(TestRequest)
    }

    /// The upstream sends what the response has so far.
    pub fn respond(&self, response: TestResponse) {
        let bare = response.0.is_bare();
        let Message { headers, chunks, trailers, open, .. } = response.0;
        self.step(|model| model.upstream_headers(headers, bare));
        let last = chunks.len();
        for (i, chunk) in chunks.into_iter().enumerate() {
            let end = i + 1 == last && trailers.is_none() && !open;
            self.step(|model| model.upstream_data(chunk, end));
        }
        if let Some(trailers) = trailers {
            self.step(|model| model.upstream_trailers(trailers));
        }
    }

    /// The upstream sends a piece of its body.
    pub fn respond_chunk(&self, chunk: impl Into<Bytes>) {
        self.step(|model| model.upstream_data(chunk, false));
    }

    /// The upstream sends the last piece of its body; it may be empty.
    pub fn respond_last(&self, chunk: impl Into<Bytes>) {
        self.step(|model| model.upstream_data(chunk, true));
    }

    /// The upstream ends its response with trailers.
    pub fn respond_trailers(&self, trailers: &[(&str, &str)]) {
        self.step(|model| model.upstream_trailers(owned(trailers)));
    }

    /// The upstream breaks off.
    pub fn upstream_resets(&self) {
        self.step(Model::upstream_reset);
    }

    /// The upstream's connection is full (`true`), or takes more again. The client is then paused, and
    /// so is what a compiled-in filter sends of its own accord.
    pub fn upstream_watermark(&self, above: bool) {
        self.step(|model| model.upstream_watermark(above));
    }

    /// Whether the upstream is asked to pause, because what it sent is not read.
    pub fn upstream_is_paused(&self) -> bool {
        self.model.paused(Direction::Response)
    }

    // ---- everything else --------------------------------------------------------------------

    /// Envoy itself, or another filter, answers the request.
    pub fn local_reply(&self, status: u16, body: impl Into<Bytes>) {
        self.step(|model| model.local_reply(status, body));
    }

    /// Lets time pass.
    pub fn advance(&self, time: Duration) {
        self.host.advance(time);
        self.settle();
    }

    /// Whether the exchange has ended, well or not.
    pub fn is_over(&self) -> bool {
        self.model.is_over()
    }

    /// How many bytes of a direction Envoy holds for the filter.
    pub fn buffered(&self, direction: Direction) -> usize {
        self.model.buffered(direction)
    }

    /// The `%RESPONSE_CODE_DETAILS%` of the local replies so far, in order.
    pub fn reply_details(&self) -> Vec<String> {
        self.model.reply_details()
    }

    /// Changes what the filter finds around the messages from now on.
    pub fn surroundings(&self, change: impl FnOnce(&mut Surroundings)) {
        self.model.surroundings(change);
    }

    /// A value of the stream's dynamic metadata.
    pub fn metadata(&self, namespace: &str, key: &str) -> Option<MetadataValue> {
        self.model.around().metadata(namespace, key)
    }

    /// A value of the filter state that was set as bytes or typed, how long it lives, and whom it is
    /// shared with.
    pub fn filter_state(&self, key: &str) -> Option<(Bytes, LifeSpan, Sharing)> {
        self.model.around().filter_state(key)
    }

    /// What the filters of the exchange share: to leave something there as another filter would, and
    /// to look. Empty once the exchange is over.
    pub fn extensions(&self) -> Rc<Store> {
        self.model.around().extensions()
    }

    /// What the filter has done to the stream, beside its messages.
    pub fn done(&self) -> Done {
        self.model.done()
    }

    /// The model underneath, for events that are not here. What they cause happens at the next step;
    /// [`advance`](Self::advance) by nothing is one.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// What the client got in the end.
    ///
    /// # Panics
    /// When the exchange has not ended.
    pub fn finish(self) -> TestResponse {
        assert!(self.is_over(), "the exchange has not ended: {self:?}");
        self.step(Model::flush);
        let received = self.model.client();
        let reset = Message { reset: true, ..Message::default() };
        TestResponse(Message::seen(received).unwrap_or(reset))
    }
}

impl Drop for TestExchange {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        {
            let _runtime = self.host.0.runtime.enter();
            self.model.client_reset();
            self.model.flush();
        }
        self.check();
    }
}
