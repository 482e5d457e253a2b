//! The load generator: one thread, a fixed number of keep-alive connections, one request in flight
//! on each, and a fixed number of requests, so that CPU per request is a plain division.
//!
//! It never retries. A response that is not a 200 of the expected length, or a connection that
//! closes, fails the measurement: a number from a broken proxy must not reach a report.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::Result;
use crate::http1::{Kind, Message};

/// What every connection sends, and what has to come back.
#[derive(Debug)]
pub(crate) struct Exchange {
    /// The whole request, head and body.
    pub(crate) request: Vec<u8>,
    /// The length of the response body.
    pub(crate) response_len: u64,
}

/// What a run of requests looked like from outside.
#[derive(Debug)]
pub(crate) struct Run {
    /// From the first byte sent to the last one received.
    pub(crate) elapsed: Duration,
    /// One per request.
    pub(crate) latencies: Vec<Duration>,
}

/// A set of open connections.
pub(crate) struct Load<'a> {
    exchange: &'a Exchange,
    poll: Poll,
    connections: Vec<Connection>,
    buffer: Vec<u8>,
}

struct Connection {
    stream: TcpStream,
    response: Message,
    /// How much of the request has been written; `None` while idle.
    written: Option<usize>,
    started: Instant,
}

impl<'a> Load<'a> {
    /// Opens `connections` connections.
    pub(crate) fn connect(
        to: SocketAddr,
        connections: usize,
        exchange: &'a Exchange,
    ) -> Result<Self> {
        let poll = Poll::new()?;
        let mut open = Vec::with_capacity(connections);
        for token in 0..connections {
            // Connecting may block, so that no request has to wait for its connection.
            let stream = std::net::TcpStream::connect(to)?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            let mut stream = TcpStream::from_std(stream);
            let interest = Interest::READABLE | Interest::WRITABLE;
            poll.registry().register(&mut stream, Token(token), interest)?;
            open.push(Connection {
                stream,
                response: Message::new(Kind::Response),
                written: None,
                started: Instant::now(),
            });
        }
        Ok(Load { exchange, poll, connections: open, buffer: vec![0; 256 * 1024] })
    }

    /// Sends `requests` requests over the connections and waits for every response.
    pub(crate) fn run(&mut self, requests: usize, limit: Duration) -> Result<Run> {
        let start = Instant::now();
        let mut latencies = Vec::with_capacity(requests);
        let mut unsent = requests;
        for connection in &mut self.connections {
            if unsent > 0 {
                unsent -= 1;
                connection.start(self.exchange)?;
            }
        }
        let mut events = Events::with_capacity(self.connections.len());
        while latencies.len() < requests {
            if start.elapsed() > limit {
                let done = latencies.len();
                return Err(format!("{done} of {requests} responses after {limit:?}").into());
            }
            match self.poll.poll(&mut events, Some(Duration::from_secs(1))) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                polled => polled?,
            }
            for event in &events {
                let connection = &mut self.connections[event.token().0];
                if event.is_writable() {
                    connection.write(self.exchange)?;
                }
                if !(event.is_readable() && connection.read(&mut self.buffer)?) {
                    continue;
                }
                connection.check(self.exchange)?;
                latencies.push(connection.started.elapsed());
                connection.written = None;
                if unsent > 0 {
                    unsent -= 1;
                    connection.start(self.exchange)?;
                }
            }
        }
        Ok(Run { elapsed: start.elapsed(), latencies })
    }
}

impl Connection {
    fn start(&mut self, exchange: &Exchange) -> Result<()> {
        self.response.reset();
        self.written = Some(0);
        self.started = Instant::now();
        self.write(exchange)
    }

    fn write(&mut self, exchange: &Exchange) -> Result<()> {
        let Some(written) = &mut self.written else { return Ok(()) };
        while *written < exchange.request.len() {
            match self.stream.write(&exchange.request[*written..]) {
                Ok(0) => return Err("the connection takes no more bytes".into()),
                Ok(sent) => *written += sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Reads what has arrived. Returns whether the response is complete.
    fn read(&mut self, buffer: &mut [u8]) -> Result<bool> {
        // With the response complete there is nothing to read until the next one, so the last
        // read of a response, the one that would block, is not made.
        while self.written.is_some() && !self.response.is_done() {
            match self.stream.read(buffer) {
                Ok(0) => return Err("the connection was closed".into()),
                Ok(read) => self.response.feed(&buffer[..read])?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(self.written.is_some())
    }

    fn check(&self, exchange: &Exchange) -> Result<()> {
        let (status, len) = (self.response.status(), self.response.body_len());
        if status != Some(200) {
            return Err(format!("a response with status {status:?}").into());
        }
        if len != exchange.response_len {
            return Err(format!("a body of {len} bytes, not {}", exchange.response_len).into());
        }
        Ok(())
    }
}

/// Sends one request on a connection of its own and returns the whole response.
pub(crate) fn ask(to: SocketAddr, request: &[u8]) -> Result<Message> {
    let mut stream = std::net::TcpStream::connect(to)?;
    let limit = Some(Duration::from_secs(30));
    stream.set_read_timeout(limit)?;
    stream.set_write_timeout(limit)?;
    let mut reader = stream.try_clone()?;
    let mut response = Message::new(Kind::Response).keeping_body();
    // A large body is written while the response is read: an upstream that echoes, and an Envoy
    // that pushes back, would otherwise wait for each other.
    std::thread::scope(|scope| {
        let writer = scope.spawn(move || stream.write_all(request));
        let mut buffer = [0; 16 * 1024];
        while !response.is_done() {
            match reader.read(&mut buffer)? {
                0 => return Err("the connection was closed".into()),
                read => response.feed(&buffer[..read])?,
            }
        }
        writer.join().map_err(|_| "the writer panicked")??;
        Ok(response)
    })
}
