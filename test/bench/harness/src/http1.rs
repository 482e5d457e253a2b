//! Reads HTTP/1.1 messages as they arrive, in pieces of any size: what the load generator and the
//! upstream have in common.
//!
//! It is strict where a lenient reader would hide a broken proxy: a response must say where it
//! ends, by `content-length` or by chunks, and bytes after the end are an error.

use std::io;

/// How far a message has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Head,
    /// This much of a body with a `content-length` is missing.
    Length(u64),
    ChunkSize,
    /// This much of the current chunk, and its line end, is missing.
    Chunk(u64),
    ChunkEnd,
    Trailers,
    Done,
}

/// Which end of the exchange sent the message: a response has to be framed, a request without
/// framing has no body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Sent by the client.
    Request,
    /// Sent by the server.
    Response,
}

/// One message, read piece by piece; reused for the next one, so that it stops allocating.
#[derive(Debug)]
pub(crate) struct Message {
    kind: Kind,
    state: State,
    head: String,
    /// The line being read, between the chunks.
    line: Vec<u8>,
    raw_head: Vec<u8>,
    body_len: u64,
    body: Option<Vec<u8>>,
}

impl Message {
    /// A message that counts its body, but does not keep it.
    pub(crate) fn new(kind: Kind) -> Self {
        Message {
            kind,
            state: State::Head,
            head: String::new(),
            line: Vec::new(),
            raw_head: Vec::new(),
            body_len: 0,
            body: None,
        }
    }

    /// Keeps the body, for [`Message::body`].
    pub(crate) fn keeping_body(mut self) -> Self {
        self.body = Some(Vec::new());
        self
    }

    /// Starts over with the next message of the connection.
    pub(crate) fn reset(&mut self) {
        self.state = State::Head;
        self.head.clear();
        self.line.clear();
        self.raw_head.clear();
        self.body_len = 0;
        if let Some(body) = &mut self.body {
            body.clear();
        }
    }

    /// Whether the message is complete.
    pub(crate) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// The number of body bytes so far.
    pub(crate) fn body_len(&self) -> u64 {
        self.body_len
    }

    /// The body so far; empty unless it is kept.
    pub(crate) fn body(&self) -> &[u8] {
        self.body.as_deref().unwrap_or_default()
    }

    /// The status of a response whose head is complete.
    pub(crate) fn status(&self) -> Option<u16> {
        self.head.split(' ').nth(1)?.parse().ok()
    }

    /// The first value of a header, once the head is complete. `name` in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// Takes in bytes from the connection.
    pub(crate) fn feed(&mut self, mut input: &[u8]) -> io::Result<()> {
        while !input.is_empty() {
            input = match self.state {
                State::Head => self.feed_head(input)?,
                State::Length(missing) => {
                    let (missing, rest) = self.feed_body(missing, input);
                    self.state = if missing == 0 { State::Done } else { State::Length(missing) };
                    rest
                }
                State::Chunk(missing) => {
                    let (missing, rest) = self.feed_body(missing, input);
                    self.state = if missing == 0 { State::ChunkEnd } else { State::Chunk(missing) };
                    rest
                }
                State::ChunkSize | State::ChunkEnd | State::Trailers => self.feed_line(input)?,
                State::Done => return Err(malformed("bytes after the end of the message")),
            };
        }
        Ok(())
    }

    fn feed_body<'a>(&mut self, missing: u64, input: &'a [u8]) -> (u64, &'a [u8]) {
        let here = usize::try_from(missing).unwrap_or(usize::MAX).min(input.len());
        let (body, rest) = input.split_at(here);
        self.body_len += here as u64;
        if let Some(kept) = &mut self.body {
            kept.extend_from_slice(body);
        }
        (missing - here as u64, rest)
    }

    fn feed_head<'a>(&mut self, input: &'a [u8]) -> io::Result<&'a [u8]> {
        let seen = self.raw_head.len();
        self.raw_head.extend_from_slice(input);
        // The blank line may have begun in the piece before.
        let from = seen.saturating_sub(3);
        let Some(at) = self.raw_head[from..].windows(4).position(|four| four == b"\r\n\r\n") else {
            return Ok(&[]);
        };
        let end = from + at + 4;
        let head = std::str::from_utf8(&self.raw_head[..end])
            .map_err(|_| malformed("a head that is not text"))?;
        self.head.push_str(head);
        self.state = self.framing()?;
        Ok(&input[end - seen..])
    }

    fn framing(&self) -> io::Result<State> {
        if let Some(coding) = self.header("transfer-encoding") {
            return match coding {
                "chunked" => Ok(State::ChunkSize),
                _ => Err(malformed("an unknown transfer-encoding")),
            };
        }
        match self.header("content-length") {
            Some(len) => match len.parse().map_err(|_| malformed("a bad content-length"))? {
                0 => Ok(State::Done),
                len => Ok(State::Length(len)),
            },
            None if self.kind == Kind::Request => Ok(State::Done),
            None => Err(malformed("a response that does not say where it ends")),
        }
    }

    fn feed_line<'a>(&mut self, input: &'a [u8]) -> io::Result<&'a [u8]> {
        let Some(end) = input.iter().position(|&byte| byte == b'\n') else {
            self.line.extend_from_slice(input);
            return Ok(&[]);
        };
        self.line.extend_from_slice(&input[..end]);
        let line = self.line.strip_suffix(b"\r").ok_or_else(|| malformed("a bare line feed"))?;
        self.state = match self.state {
            State::ChunkEnd if line.is_empty() => State::ChunkSize,
            State::ChunkEnd => return Err(malformed("a chunk longer than its size")),
            State::Trailers if line.is_empty() => State::Done,
            State::Trailers => State::Trailers,
            _ => {
                let size = std::str::from_utf8(line).ok();
                match size.and_then(|size| u64::from_str_radix(size, 16).ok()) {
                    Some(0) => State::Trailers,
                    Some(size) => State::Chunk(size),
                    None => return Err(malformed("a bad chunk size")),
                }
            }
        };
        self.line.clear();
        Ok(&input[end + 1..])
    }
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::{Kind, Message};

    const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
                           5\r\nhello\r\nA\r\n0123456789\r\n0\r\nx-last: 1\r\n\r\n";

    #[test]
    fn a_message_may_arrive_in_pieces_of_any_size() {
        for size in 1..CHUNKED.len() {
            let mut message = Message::new(Kind::Response).keeping_body();
            for piece in CHUNKED.as_bytes().chunks(size) {
                assert!(!message.is_done());
                message.feed(piece).unwrap();
            }
            assert!(message.is_done());
            assert_eq!(message.status(), Some(200));
            assert_eq!(message.body(), b"hello0123456789");
        }
    }

    #[test]
    fn a_length_ends_the_message_and_reset_starts_the_next() {
        let mut message = Message::new(Kind::Response);
        for _ in 0..2 {
            message.feed(b"HTTP/1.1 503 x\r\ncontent-length: 2\r\n\r\nok").unwrap();
            assert!(message.is_done());
            assert_eq!((message.status(), message.body_len()), (Some(503), 2));
            message.reset();
        }
    }

    #[test]
    fn a_request_without_framing_has_no_body() {
        let mut message = Message::new(Kind::Request);
        message.feed(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        assert!(message.is_done());
        assert_eq!((message.body_len(), message.header("host")), (0, Some("a")));
    }

    #[test]
    fn broken_framing_is_refused() {
        for bad in [
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nab",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nz\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nab\r\n",
        ] {
            assert!(Message::new(Kind::Response).feed(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }
}
