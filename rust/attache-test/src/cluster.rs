//! Clusters that a filter under test can call.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use attache_core::host::{CallFailure, CallRefused, CallStart};
use attache_core::{PendingCall, SharedCalls, SharedRequest};
use bytes::Bytes;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::message::{Message, TestRequest, TestResponse};
use crate::model::Fields;

/// What a cluster does with a call: a [`TestResponse`], or one of the ways in which there is none.
///
/// As in Envoy, a call that is not answered ends by its timeout, in virtual time.
#[derive(Clone, Debug)]
pub struct ClusterAnswer {
    after: Duration,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    Respond(TestResponse),
    Never,
    Reset,
    Refuse(CallRefused),
}

impl From<TestResponse> for ClusterAnswer {
    fn from(response: TestResponse) -> Self {
        ClusterAnswer { after: Duration::ZERO, what: What::Respond(response) }
    }
}

impl ClusterAnswer {
    fn of(what: What) -> Self {
        ClusterAnswer { after: Duration::ZERO, what }
    }

    /// The service never answers.
    pub fn never() -> Self {
        ClusterAnswer::of(What::Never)
    }

    /// The connection breaks before there is a response.
    pub fn reset() -> Self {
        ClusterAnswer::of(What::Reset)
    }

    /// No host of the cluster is healthy.
    pub fn unavailable() -> Self {
        ClusterAnswer::of(What::Refuse(CallRefused::Unavailable))
    }

    /// A circuit breaker of the cluster is open.
    pub fn overflow() -> Self {
        ClusterAnswer::of(What::Refuse(CallRefused::Overflow))
    }

    /// The same, some (virtual) time after the whole request has come.
    pub fn after(mut self, time: Duration) -> Self {
        self.after = time;
        self
    }
}

/// How a response ends that is cut off in its middle: see [`TestResponse::cut_off`].
pub(crate) const CUT_OFF: CallFailure = CallFailure::Reset;

type Answer = Arc<dyn Fn(&TestRequest) -> ClusterAnswer + Send + Sync>;

/// The clusters of a test, by name. Clones are the same clusters.
#[derive(Clone, Default)]
pub struct Clusters(Arc<Mutex<HashMap<String, Fake>>>);

struct Fake {
    answer: Answer,
    calls: Vec<TestRequest>,
    cancelled: usize,
}

impl fmt::Debug for Clusters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.lock().keys()).finish()
    }
}

impl Clusters {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Fake>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a cluster, or replaces what it answers. `answer` is asked once a whole request has come.
    pub fn set(
        &self,
        name: &str,
        answer: impl Fn(&TestRequest) -> ClusterAnswer + Send + Sync + 'static,
    ) {
        let mut all = self.lock();
        let fake = Fake { answer: Arc::new(answer), calls: Vec::new(), cancelled: 0 };
        let calls = all.remove(name).map(|old| (old.calls, old.cancelled));
        let (calls, cancelled) = calls.unwrap_or_default();
        all.insert(name.to_owned(), Fake { calls, cancelled, ..fake });
    }

    /// The whole requests that a cluster has got, in order.
    pub fn calls(&self, name: &str) -> Vec<TestRequest> {
        self.lock().get(name).map(|fake| fake.calls.clone()).unwrap_or_default()
    }

    /// How many calls to a cluster were cancelled before their end.
    pub fn cancelled(&self, name: &str) -> usize {
        self.lock().get(name).map_or(0, |fake| fake.cancelled)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.lock().contains_key(name)
    }

    pub(crate) fn cancel(&self, name: &str) {
        if let Some(fake) = self.lock().get_mut(name) {
            fake.cancelled += 1;
        }
    }

    /// Asks a cluster. Without a lock: the closure is the test's.
    fn ask(&self, name: &str, request: Message) -> ClusterAnswer {
        let request = TestRequest(request);
        let answer = {
            let mut all = self.lock();
            let Some(fake) = all.get_mut(name) else { return ClusterAnswer::reset() };
            fake.calls.push(request.clone());
            fake.answer.clone()
        };
        answer(&request)
    }

    /// What comes of a whole request, and when. With `reports`, what Envoy would answer in the
    /// service's place is told as the failure that it is
    /// ([`Capabilities::call_reports`](attache_core::host::Capabilities::call_reports)).
    ///
    /// # Errors
    /// It is refused at once.
    pub(crate) fn script(
        &self,
        name: &str,
        request: Message,
        timeout: Option<Duration>,
        reports: bool,
    ) -> Result<Vec<(Instant, CallEvent)>, CallRefused> {
        let now = Instant::now();
        let ClusterAnswer { after, what } = self.ask(name, request);
        let deadline = timeout.map(|timeout| now + timeout);
        let at = now + after;
        let timed_out = |headers_sent: bool| -> Vec<(Instant, CallEvent)> {
            let Some(deadline) = deadline else { return Vec::new() };
            if headers_sent {
                return vec![(deadline, CallEvent::Failed(CallFailure::Timeout, ""))];
            }
            let failed = CallFailure::Timeout;
            in_its_place(504, "upstream request timeout", reports.then_some(failed), deadline)
        };
        if matches!(what, What::Never) || deadline.is_some_and(|deadline| at >= deadline) {
            return Ok(timed_out(false));
        }
        let response = match what {
            What::Refuse(why) => return Err(why),
            What::Reset | What::Never => {
                let text = "upstream connect error or disconnect/reset before headers. \
                            reset reason: connection termination";
                return Ok(in_its_place(503, text, reports.then_some(CallFailure::Reset), at));
            }
            What::Respond(response) => response.0,
        };
        let Message { mut headers, chunks, trailers, open, reset } = response;
        // As Envoy marks what a service has sent.
        headers.push(("x-envoy-upstream-service-time".into(), "0".into()));
        let bare = chunks.is_empty() && trailers.is_none() && !open && !reset;
        let mut events = vec![(at, CallEvent::Headers(headers, bare))];
        let last = chunks.len();
        for (i, chunk) in chunks.into_iter().enumerate() {
            let end = i + 1 == last && trailers.is_none() && !open && !reset;
            events.push((at, CallEvent::Data(chunk, end)));
        }
        if reset {
            events.push((at, CallEvent::Failed(CUT_OFF, "")));
        } else if open {
            events.extend(timed_out(true));
        } else {
            events.extend(trailers.map(|trailers| (at, CallEvent::Trailers(trailers))));
            events.push((at, CallEvent::Complete));
        }
        Ok(events)
    }
}

/// What Envoy reports of a call.
pub(crate) enum CallEvent {
    Headers(Fields, bool),
    Data(Bytes, bool),
    Trailers(Fields),
    Complete,
    /// With what Envoy says of it, if anything.
    Failed(CallFailure, &'static str),
}

/// What Envoy does in a service's place: it fails, if the host tells of it, or answers.
fn in_its_place(
    status: u16,
    text: &'static str,
    reported: Option<CallFailure>,
    at: Instant,
) -> Vec<(Instant, CallEvent)> {
    match reported {
        Some(failure) => vec![(at, CallEvent::Failed(failure, text))],
        None => envoys_own(status, text).map(|event| (at, event)).into(),
    }
}

/// What Envoy answers in a service's place.
fn envoys_own(status: u16, text: &'static str) -> [CallEvent; 3] {
    let field = |name: &str, value: String| (name.to_owned(), Bytes::from(value));
    let headers = vec![
        field(":status", status.to_string()),
        field("content-length", text.len().to_string()),
        field("content-type", "text/plain".to_owned()),
    ];
    [CallEvent::Headers(headers, false), CallEvent::Data(text.into(), true), CallEvent::Complete]
}

pub(crate) fn pairs(fields: &Fields) -> impl Iterator<Item = (&[u8], &[u8])> {
    fields.iter().map(|(name, value)| (name.as_bytes(), &value[..]))
}

/// A request as a host is given it.
pub(crate) fn request_of(call: &CallStart<'_>) -> Message {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let headers = call.headers.iter();
    let headers = headers.map(|(name, value)| (text(name), Bytes::copy_from_slice(value)));
    let body = Bytes::copy_from_slice(call.body);
    Message {
        headers: headers.collect(),
        chunks: if body.is_empty() { Vec::new() } else { vec![body] },
        open: !call.end_stream,
        ..Message::default()
    }
}

/// Calls from the filter's background tasks, as tasks beside them.
pub(crate) struct TestCalls {
    pub(crate) clusters: Clusters,
    tasks: Mutex<HashMap<u64, (String, AbortHandle)>>,
}

impl TestCalls {
    pub(crate) fn new(clusters: Clusters) -> Self {
        TestCalls { clusters, tasks: Mutex::default() }
    }

    fn tasks(&self) -> MutexGuard<'_, HashMap<u64, (String, AbortHandle)>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SharedCalls for TestCalls {
    fn start(&self, request: SharedRequest, mut pending: PendingCall) -> u64 {
        let (cluster, message, timeout) =
            request.with(|call| (call.cluster.to_owned(), request_of(call), call.timeout));
        let ticket = self.tasks().keys().max().map_or(0, |last| last + 1);
        if !self.clusters.has(&cluster) {
            pending.refused(CallRefused::UnknownCluster);
            return ticket;
        }
        let clusters = self.clusters.clone();
        let name = cluster.clone();
        let task = tokio::spawn(async move {
            match clusters.script(&name, message, timeout, false) {
                Err(why) => pending.refused(why),
                Ok(events) => {
                    for (at, event) in events {
                        tokio::time::sleep_until(at).await;
                        let goes_on = match event {
                            CallEvent::Headers(fields, end) => pending.headers(end, pairs(&fields)),
                            CallEvent::Data(data, end) => {
                                pending.data(end, [&data[..]].into_iter())
                            }
                            CallEvent::Trailers(_) => {
                                pending.trailers();
                                true
                            }
                            CallEvent::Complete => {
                                pending.complete();
                                true
                            }
                            CallEvent::Failed(why, _) => {
                                pending.failed(why);
                                true
                            }
                        };
                        if !goes_on {
                            clusters.cancel(&name);
                            return;
                        }
                    }
                    if !pending.is_over() {
                        // Neither an answer nor a timeout.
                        std::future::pending::<()>().await;
                    }
                }
            }
        });
        self.tasks().insert(ticket, (cluster, task.abort_handle()));
        ticket
    }

    fn cancel(&self, ticket: u64) {
        if let Some((cluster, task)) = self.tasks().remove(&ticket)
            && !task.is_finished()
        {
            task.abort();
            self.clusters.cancel(&cluster);
        }
    }
}
