//! What has come of a response so far, whoever waits for it.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::error::{CalloutError, CalloutErrorKind};
use crate::host::CallFailure;

/// The header that Envoy adds to every response that a service has sent, once the request is
/// complete. What comes without it may be Envoy's own.
const SERVICE_TIME: &str = "x-envoy-upstream-service-time";

/// The header of Envoy's own answer when a circuit breaker is open.
const OVERLOADED: &str = "x-envoy-overloaded";

/// The most bytes of Envoy's own answer that are kept for the log.
const REASON_LIMIT: usize = 512;

/// The response to one call, as it arrives.
///
/// Envoy answers in a service's place with a status and a text, as it does to any client. Such an
/// answer is told by its headers, held back until its text is there, and made an error.
pub(crate) struct Answer {
    head: Option<(StatusCode, HeaderMap)>,
    /// The headers have come, and may have been taken.
    started: bool,
    chunks: VecDeque<Bytes>,
    unread: usize,
    trailers: Option<HeaderMap>,
    /// The most bytes that may wait unread.
    limit: usize,
    /// The host says what is Envoy's own; else it is told by its headers.
    reported: bool,
    /// Envoy answers by itself: with this kind of failure, and this text so far.
    own: Option<(CalloutErrorKind, Vec<u8>)>,
    failure: Option<(CalloutErrorKind, String)>,
    ended: bool,
}

/// How far the response is.
pub(crate) enum Progress {
    /// Nothing has changed for whoever waits.
    Nothing,
    /// There is something new.
    News,
    /// More has come than may wait: the call is to be reset.
    Overrun,
}

impl Answer {
    /// `reported`: as [`Capabilities::call_reports`](crate::host::Capabilities::call_reports).
    pub(crate) fn new(limit: usize, reported: bool) -> Self {
        Answer {
            head: None,
            started: false,
            chunks: VecDeque::new(),
            unread: 0,
            trailers: None,
            limit,
            reported,
            own: None,
            failure: None,
            ended: false,
        }
    }

    pub(crate) fn headers<'a>(
        &mut self,
        fields: impl Iterator<Item = (&'a [u8], &'a [u8])>,
        end_stream: bool,
    ) -> Progress {
        let mut status = StatusCode::OK;
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            if name == b":status" {
                status = StatusCode::from_bytes(value).unwrap_or(StatusCode::BAD_GATEWAY);
            } else {
                append(&mut headers, name, value);
            }
        }
        let own = if self.reported { None } else { envoys_own(status, &headers) };
        if let Some(kind) = own {
            let text = headers.get("grpc-message").map(|v| v.as_bytes().to_vec());
            let kind = if text.as_deref() == Some(b"upstream request timeout") {
                CalloutErrorKind::Timeout
            } else {
                kind
            };
            self.own = Some((kind, text.unwrap_or_default()));
        } else {
            self.started = true;
            self.head = Some((status, headers));
        }
        if end_stream { self.end() } else { self.news() }
    }

    pub(crate) fn data<'a>(
        &mut self,
        slices: impl Iterator<Item = &'a [u8]>,
        end_stream: bool,
    ) -> Progress {
        if let Some((_, text)) = &mut self.own {
            for slice in slices {
                let room = REASON_LIMIT.saturating_sub(text.len());
                text.extend_from_slice(&slice[..slice.len().min(room)]);
            }
            return if end_stream { self.end() } else { Progress::Nothing };
        }
        let mut chunk = BytesMut::new();
        for slice in slices {
            if self.unread + chunk.len() + slice.len() > self.limit {
                let limit = self.limit;
                let text = format!("more than {limit} bytes of its response were waiting");
                self.fail(CalloutErrorKind::TooLarge, text);
                return Progress::Overrun;
            }
            chunk.extend_from_slice(slice);
        }
        if !chunk.is_empty() {
            self.unread += chunk.len();
            self.chunks.push_back(chunk.freeze());
        }
        if end_stream { self.end() } else { Progress::News }
    }

    pub(crate) fn trailers<'a>(
        &mut self,
        fields: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Progress {
        let mut trailers = HeaderMap::new();
        for (name, value) in fields {
            append(&mut trailers, name, value);
        }
        self.trailers = Some(trailers);
        self.end()
    }

    /// The whole response has come.
    pub(crate) fn end(&mut self) -> Progress {
        if self.ended {
            return Progress::Nothing;
        }
        self.ended = true;
        if let Some((kind, text)) = self.own.take() {
            let text = String::from_utf8_lossy(&text).into_owned();
            let text = if text.is_empty() { "Envoy answered in its place".into() } else { text };
            self.fail(kind, text);
        } else if !self.started {
            self.fail(CalloutErrorKind::Reset, "it ended without a response".into());
        }
        Progress::News
    }

    /// The call has failed, and `why` is what Envoy says of it; it may be empty.
    pub(crate) fn failed(&mut self, failure: CallFailure, why: &[u8]) -> Progress {
        if self.ended {
            return Progress::Nothing;
        }
        let (kind, text) = match failure {
            CallFailure::Reset => (CalloutErrorKind::Reset, "it was reset"),
            CallFailure::Timeout => (CalloutErrorKind::Timeout, "it did not answer in time"),
            CallFailure::Overflow => (CalloutErrorKind::Overflow, "a circuit breaker is open"),
            CallFailure::Unavailable => (CalloutErrorKind::Unavailable, "it takes no request now"),
            CallFailure::TooLarge => (CalloutErrorKind::TooLarge, "its response is too large"),
        };
        let why = String::from_utf8_lossy(&why[..why.len().min(REASON_LIMIT)]);
        self.fail(kind, if why.is_empty() { text.into() } else { why.into_owned() });
        Progress::News
    }

    fn fail(&mut self, kind: CalloutErrorKind, text: String) {
        self.ended = true;
        self.failure.get_or_insert((kind, text));
    }

    fn news(&self) -> Progress {
        if self.own.is_some() { Progress::Nothing } else { Progress::News }
    }

    pub(crate) fn is_ended(&self) -> bool {
        self.ended
    }

    /// The failure, if there is one. It is told once.
    pub(crate) fn take_error(&mut self, cluster: &str) -> Option<CalloutError> {
        let (kind, text) = self.failure.take()?;
        Some(CalloutError::new(kind, cluster, text))
    }

    pub(crate) fn take_head(&mut self) -> Option<(StatusCode, HeaderMap)> {
        self.head.take()
    }

    pub(crate) fn take_chunk(&mut self) -> Option<Bytes> {
        let chunk = self.chunks.pop_front()?;
        self.unread -= chunk.len();
        Some(chunk)
    }

    pub(crate) fn take_trailers(&mut self) -> Option<HeaderMap> {
        self.trailers.take()
    }

    /// The whole response, once it has ended well.
    pub(crate) fn take_whole(&mut self) -> Option<http::Response<Bytes>> {
        let (status, headers) = self.head.take()?;
        let body = match self.chunks.len() {
            0 => Bytes::new(),
            1 => self.chunks.pop_front().unwrap_or_default(),
            _ => {
                let mut all = BytesMut::with_capacity(self.unread);
                self.chunks.drain(..).for_each(|chunk| all.extend_from_slice(&chunk));
                all.freeze()
            }
        };
        self.unread = 0;
        let mut response = http::Response::new(body);
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        Some(response)
    }
}

/// Whether this is what Envoy's router answers in a service's place, and for which failure.
///
/// Such an answer has a text and its length, and nothing else but marks of Envoy's own; what a
/// service sent to a complete request has the service time.
fn envoys_own(status: StatusCode, headers: &HeaderMap) -> Option<CalloutErrorKind> {
    let grpc = status == StatusCode::OK && headers.contains_key("grpc-status");
    let kind = match status {
        StatusCode::GATEWAY_TIMEOUT => CalloutErrorKind::Timeout,
        StatusCode::SERVICE_UNAVAILABLE if headers.contains_key(OVERLOADED) => {
            CalloutErrorKind::Overflow
        }
        StatusCode::SERVICE_UNAVAILABLE => CalloutErrorKind::Reset,
        _ if grpc => CalloutErrorKind::Reset,
        _ => return None,
    };
    if headers.contains_key(SERVICE_TIME) || !headers.contains_key("content-type") {
        return None;
    }
    let own = |name: &str, value: &HeaderValue| match name {
        "content-length" => true,
        "content-type" => value == if grpc { "application/grpc" } else { "text/plain" },
        "grpc-status" | "grpc-message" => grpc,
        _ => name.starts_with("x-envoy-"),
    };
    let own = headers.iter().all(|(name, value)| own(name.as_str(), value));
    own.then_some(kind)
}

fn append(headers: &mut HeaderMap, name: &[u8], value: &[u8]) {
    if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
        // More than a map can hold is more than Envoy lets through.
        let _ = headers.try_append(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Field = (&'static [u8], &'static [u8]);

    fn answer(fields: &[Field], body: &'static [u8]) -> Answer {
        let mut answer = Answer::new(1024, false);
        answer.headers(fields.iter().copied(), body.is_empty());
        if !body.is_empty() {
            answer.data([body].into_iter(), true);
        }
        answer
    }

    fn kind(answer: &mut Answer) -> Option<CalloutErrorKind> {
        answer.take_error("c").map(|error| error.kind())
    }

    const OWN: [Field; 2] = [(b"content-length", b"24"), (b"content-type", b"text/plain")];

    #[test]
    fn what_envoy_answers_in_a_service_s_place_is_an_error_that_says_so() {
        let fields = [(&b":status"[..], &b"504"[..]), OWN[0], OWN[1]];
        let error = answer(&fields, b"upstream request timeout").take_error("authz").unwrap();
        assert_eq!(error.kind(), CalloutErrorKind::Timeout);
        assert_eq!(error.to_string(), "cluster `authz`: upstream request timeout");
        let reset = [(&b":status"[..], &b"503"[..]), OWN[0], OWN[1]];
        assert_eq!(kind(&mut answer(&reset, b"upstream connect")), Some(CalloutErrorKind::Reset));
        let full = [reset[0], OWN[0], OWN[1], (b"x-envoy-overloaded", b"true")];
        assert_eq!(kind(&mut answer(&full, b"full")), Some(CalloutErrorKind::Overflow));
        let grpc: [Field; 4] = [
            (b":status", b"200"),
            (b"content-type", b"application/grpc"),
            (b"grpc-status", b"14"),
            (b"grpc-message", b"upstream request timeout"),
        ];
        assert_eq!(kind(&mut answer(&grpc, b"")), Some(CalloutErrorKind::Timeout));
    }

    #[test]
    fn what_a_service_answers_is_a_response_whatever_its_status() {
        let service: Field = (b"x-envoy-upstream-service-time", b"3");
        for status in [&b"503"[..], b"504", b"200"] {
            let fields = [(&b":status"[..], status), OWN[0], OWN[1], service];
            let mut answer = answer(&fields, b"upstream request timeout");
            assert_eq!(kind(&mut answer), None);
            assert_eq!(answer.take_whole().unwrap().body(), "upstream request timeout");
        }
        // A response that overtakes its request has no service time, but headers of its own.
        let early = [(&b":status"[..], &b"503"[..]), OWN[0], OWN[1], (b"server", b"nginx")];
        assert_eq!(kind(&mut answer(&early, b"no")), None);
    }

    #[test]
    fn where_the_host_reports_failures_no_response_is_taken_for_one() {
        let mut answer = Answer::new(1024, true);
        let fields = [(&b":status"[..], &b"503"[..]), OWN[0], OWN[1]];
        answer.headers(fields.into_iter(), true);
        assert_eq!(kind(&mut answer), None);
        assert_eq!(answer.take_whole().unwrap().status(), 503);

        for (failure, why, text) in [
            (CallFailure::Timeout, &b""[..], "it did not answer in time"),
            (CallFailure::Reset, b"upstream connect error", "upstream connect error"),
            (CallFailure::Unavailable, b"no healthy upstream", "no healthy upstream"),
        ] {
            let mut answer = Answer::new(1024, true);
            assert!(matches!(answer.failed(failure, why), Progress::News));
            assert_eq!(answer.take_error("c").unwrap().to_string(), format!("cluster `c`: {text}"));
            assert!(matches!(answer.failed(failure, why), Progress::Nothing));
        }
    }

    #[test]
    fn more_than_may_wait_is_an_error() {
        let mut answer = Answer::new(4, false);
        answer.headers([(&b":status"[..], &b"200"[..])].into_iter(), false);
        assert!(matches!(answer.data([&b"abc"[..]].into_iter(), false), Progress::News));
        assert_eq!(answer.take_chunk().unwrap(), "abc");
        assert!(matches!(answer.data([&b"abcd"[..]].into_iter(), false), Progress::News));
        assert!(matches!(answer.data([&b"e"[..]].into_iter(), false), Progress::Overrun));
        assert_eq!(kind(&mut answer), Some(CalloutErrorKind::TooLarge));
    }
}
