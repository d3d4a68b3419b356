//! Bytes on a connection, for what a well-behaved client or server would never send, or would not
//! let a test see.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Nothing that a test waits for takes longer.
const PATIENCE: Duration = Duration::from_secs(10);

/// One end of a connection. Whatever goes wrong with it fails the test.
pub(crate) struct Raw {
    stream: TcpStream,
    buf: Vec<u8>,
}

impl Raw {
    /// Connects.
    pub(crate) async fn connect(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).await.unwrap_or_else(|e| panic!("connecting to {to}: {e}"));
        Self::from(stream)
    }

    /// Sends all of `bytes`.
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let sent = tokio::time::timeout(PATIENCE, self.stream.write_all(bytes.as_ref())).await;
        sent.expect("the peer reads").expect("the peer is there");
    }

    /// The other end's address.
    pub(crate) fn peer(&self) -> SocketAddr {
        self.stream.peer_addr().expect("connected")
    }

    /// Sends `piece` again and again, until nothing more is taken for a while. How many bytes went.
    pub(crate) async fn send_until_stuck(&mut self, piece: &[u8], a_while: Duration) -> u64 {
        let mut sent = 0;
        while let Ok(n) = tokio::time::timeout(a_while, self.stream.write(&piece[sent % piece.len()..])).await
        {
            sent += n.expect("the peer is there");
        }
        sent as u64
    }

    /// Sends what the peer may no longer want.
    pub(crate) async fn offer(&mut self, bytes: impl AsRef<[u8]>) {
        self.offered(bytes).await;
    }

    /// The next head, with its empty line.
    pub(crate) async fn head(&mut self) -> String {
        self.until(b"\r\n\r\n").await
    }

    /// The next head, if the peer does not close before it.
    pub(crate) async fn next(&mut self) -> Option<String> {
        if self.buf.is_empty() && !self.more().await {
            return None;
        }
        Some(self.head().await)
    }

    /// The next line, if the peer does not close before it.
    pub(crate) async fn line(&mut self) -> Option<String> {
        if self.buf.is_empty() && !self.more().await {
            return None;
        }
        Some(self.until(b"\n").await)
    }

    /// The next head, however long it takes, or none if the peer goes before its end.
    pub(crate) async fn next_or_gone(&mut self) -> Option<String> {
        loop {
            if let Some(at) = self.buf.windows(4).position(|window| window == b"\r\n\r\n") {
                let rest = self.buf.split_off(at + 4);
                return Some(String::from_utf8_lossy(&std::mem::replace(&mut self.buf, rest)).into_owned());
            }
            match self.stream.read_buf(&mut self.buf).await {
                Ok(n) if n > 0 => {}
                _ => return None,
            }
        }
    }

    /// Waits until the peer has gone, however long that takes.
    pub(crate) async fn gone(&mut self) {
        while self.stream.read_buf(&mut self.buf).await.is_ok_and(|n| n > 0) {
            self.buf.clear();
        }
    }

    /// Waits until there is something that was not read.
    pub(crate) async fn has_unread(&mut self) {
        let _ = tokio::time::timeout(PATIENCE, self.stream.peek(&mut [0])).await;
    }

    /// Whether nothing comes for so long.
    pub(crate) async fn is_silent_for(&mut self, time: Duration) -> bool {
        self.buf.is_empty() && tokio::time::timeout(time, self.stream.read_buf(&mut self.buf)).await.is_err()
    }

    /// Sends what the peer may no longer want; false if it does not, or does not read.
    pub(crate) async fn offered(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        let sent = tokio::time::timeout(PATIENCE, self.stream.write_all(bytes.as_ref())).await;
        sent.is_ok_and(|sent| sent.is_ok())
    }

    /// All up to `end`, which is included.
    pub(crate) async fn until(&mut self, end: &[u8]) -> String {
        loop {
            if let Some(at) = self.buf.windows(end.len()).position(|window| window == end) {
                let rest = self.buf.split_off(at + end.len());
                let found = std::mem::replace(&mut self.buf, rest);
                return String::from_utf8_lossy(&found).into_owned();
            }
            assert!(self.more().await, "it ended after {:?}", String::from_utf8_lossy(&self.buf));
        }
    }

    /// The next `n` bytes.
    pub(crate) async fn take(&mut self, n: usize) -> Vec<u8> {
        while self.buf.len() < n {
            assert!(self.more().await, "it ended after {:?}", String::from_utf8_lossy(&self.buf));
        }
        let rest = self.buf.split_off(n);
        std::mem::replace(&mut self.buf, rest)
    }

    /// A chunked body, and the trailer section as it came.
    pub(crate) async fn chunked(&mut self) -> (Vec<u8>, String) {
        let mut body = Vec::new();
        loop {
            let size = self.until(b"\r\n").await;
            let size = usize::from_str_radix(size.trim_end(), 16).expect("a chunk's size");
            if size == 0 {
                break;
            }
            body.extend(self.take(size).await);
            assert_eq!(self.take(2).await, b"\r\n");
        }
        let mut trailers = String::new();
        loop {
            match self.until(b"\r\n").await.as_str() {
                "\r\n" => return (body, trailers),
                line => trailers.push_str(line),
            }
        }
    }

    /// Reads and drops a chunked body without trailers. How long it was.
    pub(crate) async fn skip_chunks(&mut self) -> u64 {
        let mut length = 0;
        loop {
            let size = self.until(b"\r\n").await;
            let size = u64::from_str_radix(size.trim_end(), 16).expect("a chunk's size");
            self.skip(size).await;
            assert_eq!(self.take(2).await, b"\r\n");
            length += size;
            if size == 0 {
                return length;
            }
        }
    }

    /// All that comes until the peer closes or resets.
    pub(crate) async fn rest(&mut self) -> String {
        while self.more().await {}
        String::from_utf8_lossy(&std::mem::take(&mut self.buf)).into_owned()
    }

    /// Whether the peer resets the connection, rather than ending it in order.
    pub(crate) async fn is_reset(&mut self) -> bool {
        loop {
            self.buf.clear();
            let read = tokio::time::timeout(PATIENCE, self.stream.read_buf(&mut self.buf)).await;
            match read.expect("it ends at all") {
                Ok(0) => return false,
                Ok(_) => {}
                Err(_) => return true,
            }
        }
    }

    /// Resets the connection.
    pub(crate) fn reset(self) {
        self.stream.set_zero_linger().expect("a socket");
    }

    /// Ends our side.
    pub(crate) async fn finish(&mut self) {
        self.stream.shutdown().await.expect("an open connection");
    }

    /// Reads and drops `n` bytes.
    pub(crate) async fn skip(&mut self, mut n: u64) {
        while n > 0 {
            if self.buf.is_empty() {
                assert!(self.more().await, "it ended {n} bytes early");
            }
            let now = self.buf.len().min(usize::try_from(n).unwrap_or(usize::MAX));
            self.buf.drain(..now);
            n -= now as u64;
        }
    }

    /// Waits for bytes; false where none will come.
    async fn more(&mut self) -> bool {
        self.buf.reserve(64 << 10);
        let read = tokio::time::timeout(PATIENCE, self.stream.read_buf(&mut self.buf)).await;
        let seen = || String::from_utf8_lossy(&self.buf).into_owned();
        read.unwrap_or_else(|_| panic!("nothing came in {PATIENCE:?} after {:?}", seen())).unwrap_or(0) > 0
    }
}

impl From<TcpStream> for Raw {
    fn from(stream: TcpStream) -> Self {
        let _ = stream.set_nodelay(true);
        Self { stream, buf: Vec::new() }
    }
}

/// Listens on a free port; each connection is served by `serve`, as long as the test's runtime
/// lives.
pub(crate) async fn listen<S, F>(serve: S) -> SocketAddr
where
    S: Fn(Raw) -> F + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(Raw::from(stream)));
        }
    });
    address
}

/// An application that notes every byte it is sent, and answers each head with 200 and `ok`.
#[derive(Clone, Default)]
pub(crate) struct Witness {
    seen: Arc<Mutex<Vec<u8>>>,
}

impl Witness {
    /// Starts it.
    pub(crate) async fn listen() -> (Self, SocketAddr) {
        let witness = Self::default();
        let seen = witness.clone();
        let address = listen(move |raw| seen.clone().serve(raw)).await;
        (witness, address)
    }

    async fn serve(self, mut raw: Raw) {
        let mut answered = 0;
        loop {
            let from = raw.buf.len();
            if raw.stream.read_buf(&mut raw.buf).await.unwrap_or(0) == 0 {
                return;
            }
            self.seen.lock().expect("not poisoned").extend_from_slice(&raw.buf[from..]);
            let heads = raw.buf.windows(4).filter(|window| window == b"\r\n\r\n").count();
            while answered < heads {
                answered += 1;
                let _ = raw.stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            }
        }
    }

    /// All that it was sent, in lower case.
    pub(crate) fn seen(&self) -> String {
        let seen = self.seen.lock().expect("not poisoned");
        String::from_utf8_lossy(&seen).to_ascii_lowercase()
    }
}
