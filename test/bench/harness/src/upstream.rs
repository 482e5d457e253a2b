//! The upstream behind Envoy: one thread that answers requests over keep-alive connections.
//!
//! It echoes a body, answers `ok` to a request without one, and reports what it saw in response
//! headers, so that the bench can prove that a filter did the work it is measured for:
//!
//! * `x-saw-out`: the request's `x-bench-out`
//! * `x-saw-first`: the first byte of the body, as a number

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::thread::{self, JoinHandle};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};

use crate::Result;
use crate::http1::{Kind, Message};
use crate::machine;

/// What a request without a body is answered with.
pub(crate) const ANSWER: &str = "ok";

const LISTENER: Token = Token(usize::MAX);
const STOP: Token = Token(usize::MAX - 1);

/// A running upstream; dropping it stops it.
pub(crate) struct Upstream {
    address: SocketAddr,
    stop: Waker,
    thread: Option<JoinHandle<()>>,
}

impl Upstream {
    /// Starts an upstream on a free port, pinned to `core`.
    pub(crate) fn start(core: usize) -> Result<Upstream> {
        let poll = Poll::new()?;
        let mut listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0).into())?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let address = listener.local_addr()?;
        let stop = Waker::new(poll.registry(), STOP)?;
        let thread = thread::Builder::new().name("upstream".into()).spawn(move || {
            let served = machine::pin(core).and_then(|()| serve(poll, &listener));
            if let Err(error) = served {
                eprintln!("the upstream failed: {error}");
            }
        })?;
        Ok(Upstream { address, stop, thread: Some(thread) })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        if self.stop.wake().is_ok()
            && let Some(thread) = self.thread.take()
        {
            // Its failure has been printed.
            let _ = thread.join();
        }
    }
}

struct Connection {
    stream: TcpStream,
    request: Message,
    response: Vec<u8>,
    written: usize,
}

fn serve(mut poll: Poll, listener: &TcpListener) -> io::Result<()> {
    let mut events = Events::with_capacity(128);
    let mut connections: Vec<Option<Connection>> = Vec::new();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            polled => polled?,
        }
        for event in &events {
            match event.token() {
                STOP => return Ok(()),
                LISTENER => accept(&poll, listener, &mut connections)?,
                Token(at) => {
                    let slot = &mut connections[at];
                    if let Some(connection) = slot
                        && !connection.progress(&mut buffer)
                    {
                        *slot = None;
                    }
                }
            }
        }
    }
}

fn accept(
    poll: &Poll,
    listener: &TcpListener,
    connections: &mut Vec<Option<Connection>>,
) -> io::Result<()> {
    loop {
        let mut stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        stream.set_nodelay(true)?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        poll.registry().register(&mut stream, Token(connections.len()), interest)?;
        connections.push(Some(Connection {
            stream,
            request: Message::new(Kind::Request).keeping_body(),
            response: Vec::new(),
            written: 0,
        }));
    }
}

impl Connection {
    /// Writes and reads until both would block. Returns whether the connection is still of use.
    fn progress(&mut self, buffer: &mut [u8]) -> bool {
        loop {
            while self.written < self.response.len() {
                match self.stream.write(&self.response[self.written..]) {
                    Ok(sent) => self.written += sent,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => return false,
                }
            }
            match self.stream.read(buffer) {
                Ok(0) => return false,
                Ok(read) => {
                    if self.request.feed(&buffer[..read]).is_err() {
                        return false;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
            if self.request.is_done() {
                self.answer();
            }
        }
    }

    fn answer(&mut self) {
        let body = match self.request.body() {
            [] => ANSWER.as_bytes(),
            body => body,
        };
        let out = self.request.header("x-bench-out").unwrap_or("-");
        let first = self.request.body().first().map_or(0, |&byte| u32::from(byte));
        self.response.clear();
        self.response.extend_from_slice(
            format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nx-saw-out: {out}\r\n\
                 x-saw-first: {first}\r\n\r\n",
                body.len()
            )
            .as_bytes(),
        );
        self.response.extend_from_slice(body);
        self.written = 0;
        self.request.reset();
    }
}
