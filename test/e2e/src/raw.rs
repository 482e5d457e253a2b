//! Plain TCP, for what a well-behaved HTTP library refuses to do: malformed and slow messages,
//! half-closed connections, resets, the bytes of an upgraded connection.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::wait::within;

/// One TCP connection, read and written by hand.
#[derive(Debug)]
pub struct RawConn {
    stream: TcpStream,
    unread: Vec<u8>,
}

impl RawConn {
    /// Connects to an Envoy (or to anything).
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = within("a TCP connection", TcpStream::connect(address)).await;
        Self::new(stream.expect("a TCP connection"))
    }

    fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("a socket option");
        Self { stream, unread: Vec::new() }
    }

    /// Writes all of `bytes`; fails the test if the peer has gone.
    pub async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_write(bytes).await.expect("a peer that still reads");
    }

    /// Writes all of `bytes`, or says that the peer has gone.
    pub async fn try_write(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        within("a TCP write", self.stream.write_all(bytes.as_ref())).await
    }

    /// Reads up to and including `mark`, and returns that as text.
    pub async fn read_until(&mut self, mark: &str) -> String {
        loop {
            if let Some(at) = find(&self.unread, mark.as_bytes()) {
                let text: Vec<u8> = self.unread.drain(..at + mark.len()).collect();
                return String::from_utf8_lossy(&text).into_owned();
            }
            assert!(
                self.fill().await,
                "the connection ended before {mark:?}, after {:?}",
                String::from_utf8_lossy(&self.unread)
            );
        }
    }

    /// Reads an HTTP/1.1 message head, its blank line included.
    pub async fn read_head(&mut self) -> String {
        self.read_until("\r\n\r\n").await
    }

    /// Reads exactly `count` bytes.
    pub async fn read_exactly(&mut self, count: usize) -> Vec<u8> {
        while self.unread.len() < count {
            let more = self.fill().await;
            assert!(more, "the connection ended {} bytes short", count - self.unread.len());
        }
        self.unread.drain(..count).collect()
    }

    /// Reads until the peer ends or resets the connection.
    pub async fn read_to_end(&mut self) -> Vec<u8> {
        while self.fill().await {}
        std::mem::take(&mut self.unread)
    }

    /// Half-closes: nothing more will be written, reading goes on.
    pub async fn finish_writing(&mut self) {
        self.stream.shutdown().await.expect("a connection to half-close");
    }

    /// Ends the connection with a TCP reset instead of an orderly close.
    pub fn reset(self) {
        self.stream.set_zero_linger().expect("a socket option");
    }

    async fn fill(&mut self) -> bool {
        let mut chunk = [0; 16 * 1024];
        match within("bytes on a TCP connection", self.stream.read(&mut chunk)).await {
            // A reset ends a connection too, which is all that callers want to know.
            Ok(0) | Err(_) => false,
            Ok(count) => {
                self.unread.extend_from_slice(&chunk[..count]);
                true
            }
        }
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// A TCP listener that plays an upstream by hand.
#[derive(Debug)]
pub struct RawUpstream {
    listener: TcpListener,
}

impl RawUpstream {
    /// Listens on a free loopback port.
    pub async fn start() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").await.expect("a free port") }
    }

    /// Where to connect.
    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("a bound socket")
    }

    /// The next connection.
    pub async fn accept(&self) -> RawConn {
        let (stream, _) = within("a connection to the raw upstream", self.listener.accept())
            .await
            .expect("a connection");
        RawConn::new(stream)
    }
}
