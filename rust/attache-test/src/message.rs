//! Requests and responses as a test writes and reads them.

use bytes::Bytes;
use http::Method;

use crate::model::{Fields, Received};

/// A request: what the client sends, or what has reached the upstream.
#[derive(Clone, Debug)]
pub struct TestRequest(pub(crate) Message);

/// A response: what the upstream sends, or what has reached the client.
#[derive(Clone, Debug)]
pub struct TestResponse(pub(crate) Message);

#[derive(Clone, Debug, Default)]
pub(crate) struct Message {
    pub(crate) headers: Fields,
    pub(crate) chunks: Vec<Bytes>,
    pub(crate) trailers: Option<Fields>,
    /// More is to come, step by step.
    pub(crate) open: bool,
    pub(crate) reset: bool,
}

impl Message {
    pub(crate) fn seen(received: Received) -> Option<Self> {
        Some(Message {
            headers: received.headers?,
            chunks: received.chunks,
            trailers: received.trailers,
            open: !received.ended && !received.reset,
            reset: received.reset,
        })
    }

    /// The message ends with its headers.
    pub(crate) fn is_bare(&self) -> bool {
        self.chunks.is_empty() && self.trailers.is_none() && !self.open
    }
}

fn first<'a>(fields: &'a Fields, name: &str) -> Option<&'a str> {
    let name = name.to_ascii_lowercase();
    let (_, value) = fields.iter().find(|(n, _)| *n == name)?;
    std::str::from_utf8(value).ok()
}

fn all<'a>(fields: &'a Fields, name: &str) -> Vec<&'a str> {
    let name = name.to_ascii_lowercase();
    let values = fields.iter().filter(|(n, _)| *n == name);
    values.filter_map(|(_, value)| std::str::from_utf8(value).ok()).collect()
}

fn field(name: &str, value: impl Into<Bytes>) -> (String, Bytes) {
    (name.to_ascii_lowercase(), value.into())
}

macro_rules! message_methods {
    () => {
        /// Adds a header. Pseudo headers (`:authority`) are replaced.
        pub fn header(mut self, name: &str, value: impl Into<Bytes>) -> Self {
            if name.starts_with(':') {
                self.0.headers.retain(|(n, _)| n != name);
            }
            self.0.headers.push(field(name, value));
            self
        }

        /// Sets the whole body, and its `content-length`.
        pub fn body(mut self, body: impl Into<Bytes>) -> Self {
            let body = body.into();
            self.0.headers.retain(|(n, _)| n != "content-length");
            self.0.headers.push(field("content-length", body.len().to_string()));
            self.0.chunks = vec![body];
            self
        }

        /// Adds a piece of body, without `content-length`. Each piece is a frame of its own.
        pub fn chunk(mut self, chunk: impl Into<Bytes>) -> Self {
            self.0.chunks.push(chunk.into());
            self
        }

        /// Adds a trailer.
        pub fn trailer(mut self, name: &str, value: impl Into<Bytes>) -> Self {
            self.0.trailers.get_or_insert_default().push(field(name, value));
            self
        }

        /// Leaves the message open: the rest is sent step by step on the
        /// [`TestExchange`](crate::TestExchange).
        pub fn streaming(mut self) -> Self {
            self.0.open = true;
            self
        }

        /// The first value of a header, if it is there and is text.
        pub fn header_text(&self, name: &str) -> Option<&str> {
            first(&self.0.headers, name)
        }

        /// All values of a header, in order.
        pub fn header_texts(&self, name: &str) -> Vec<&str> {
            all(&self.0.headers, name)
        }

        /// All headers, in order, pseudo headers included.
        pub fn headers(&self) -> &[(String, Bytes)] {
            &self.0.headers
        }

        /// The first value of a trailer, if it is there and is text.
        pub fn trailer_text(&self, name: &str) -> Option<&str> {
            first(self.0.trailers.as_ref()?, name)
        }

        /// The trailers, if there are any.
        pub fn trailers(&self) -> Option<&[(String, Bytes)]> {
            self.0.trailers.as_deref()
        }

        /// The body, as far as it is there.
        pub fn bytes(&self) -> Bytes {
            self.0.chunks.concat().into()
        }

        /// The body as text.
        ///
        /// # Panics
        /// When it is not UTF-8.
        pub fn text(&self) -> String {
            String::from_utf8(self.0.chunks.concat()).expect("the body is not UTF-8")
        }

        /// The body, as it was cut into frames.
        pub fn chunks(&self) -> &[Bytes] {
            &self.0.chunks
        }

        /// Whether the end has come, and not by a reset.
        pub fn is_complete(&self) -> bool {
            !self.0.open && !self.0.reset
        }

        /// Whether it was cut off.
        pub fn is_reset(&self) -> bool {
            self.0.reset
        }
    };
}

impl TestRequest {
    /// A request with no body, to `http://test/path`.
    pub fn new(method: Method, path: &str) -> Self {
        let headers = vec![
            field(":method", method.as_str().to_owned()),
            field(":scheme", "http"),
            field(":authority", "test"),
            field(":path", path.to_owned()),
        ];
        TestRequest(Message { headers, ..Message::default() })
    }

    /// A GET request.
    pub fn get(path: &str) -> Self {
        TestRequest::new(Method::GET, path)
    }

    /// A POST request.
    pub fn post(path: &str) -> Self {
        TestRequest::new(Method::POST, path)
    }

    /// The method.
    pub fn method(&self) -> &str {
        self.header_text(":method").unwrap_or_default()
    }

    /// The path, query included.
    pub fn path(&self) -> &str {
        self.header_text(":path").unwrap_or_default()
    }

    message_methods!();
}

impl TestResponse {
    /// A response with no body.
    pub fn new(status: u16) -> Self {
        let headers = vec![field(":status", status.to_string())];
        TestResponse(Message { headers, ..Message::default() })
    }

    /// Of a [cluster's](crate::ClusterAnswer) answer: it breaks off after what there is of it.
    pub fn cut_off(mut self) -> Self {
        self.0.reset = true;
        self
    }

    /// The status; 0 if no headers have come, which only a reset explains.
    pub fn status(&self) -> u16 {
        self.header_text(":status").and_then(|status| status.parse().ok()).unwrap_or(0)
    }

    message_methods!();
}
