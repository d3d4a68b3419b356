//! HTTP/2 in frames of our own, which no library has looked at.

use std::convert::Infallible;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;

use crate::support::loopback::{HOST, Loopback};

/// Nothing that a test waits for takes longer.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PUSH_PROMISE: u8 = 5;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 0x1;
pub(crate) const ACK: u8 = 0x1;
pub(crate) const END_HEADERS: u8 = 0x4;
pub(crate) const PADDED: u8 = 0x8;
pub(crate) const WITH_PRIORITY: u8 = 0x20;
/// A whole request in one frame.
pub(crate) const WHOLE: u8 = END_STREAM | END_HEADERS;

pub(crate) const ENHANCE_YOUR_CALM: u32 = 11;

/// `:status` of 200 and 400, by their places in the static table (RFC 7541 appendix A).
pub(crate) const OK: u8 = 0x80 | 8;
pub(crate) const BAD_REQUEST: u8 = 0x80 | 12;

/// A frame (RFC 9113 section 4.1).
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A field block of literals (RFC 7541 section 6.2.2), which no encoder has looked at.
pub(crate) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let text = |text: &str| [length(text.len()), text.as_bytes().to_vec()].concat();
    fields.iter().flat_map(|(name, value)| [vec![0], text(name), text(value)].concat()).collect()
}

/// A string's length, not Huffman coded (RFC 7541 section 5.2).
fn length(mut n: usize) -> Vec<u8> {
    if n < 127 {
        return vec![n as u8];
    }
    n -= 127;
    let mut out = vec![127];
    while n >= 128 {
        out.push((n % 128) as u8 | 0x80);
        n /= 128;
    }
    out.push(n as u8);
    out
}

/// The pseudo-fields of a request that is as it should be.
pub(crate) const REQUEST: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":path", "/clean"), (":authority", HOST)];

/// The block of [`REQUEST`] with more fields.
pub(crate) fn request(more: &[(&str, &str)]) -> Vec<u8> {
    block(&[&REQUEST[..], more].concat())
}

/// The block of a POST with more fields.
pub(crate) fn post(more: &[(&str, &str)]) -> Vec<u8> {
    let fields = [(":method", "POST"), REQUEST[1], REQUEST[2], REQUEST[3]];
    block(&[&fields[..], more].concat())
}

/// A frame that came.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// The code of a RST_STREAM or GOAWAY.
    pub(crate) fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().expect("a code"))
    }

    /// The byte of the status in a field block. A change of the table's size may stand first.
    pub(crate) fn status(&self) -> Option<u8> {
        self.payload.iter().copied().find(|byte| byte & 0xe0 != 0x20)
    }
}

/// How something ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// By an answer with this byte for its status.
    Answer(u8),
    /// The stream was reset with this code.
    Reset(u32),
    /// The connection was ended with this code.
    GoAway(u32),
    /// It was closed without a word.
    Closed,
}

/// One end of an HTTP/2 connection.
pub(crate) struct Frames<IO> {
    read: ReadHalf<IO>,
    write: WriteHalf<IO>,
}

/// The next frame; none if the connection has ended.
async fn next(read: &mut (impl AsyncRead + Unpin)) -> Option<Frame> {
    let frame = async {
        let mut head = [0; 9];
        read.read_exact(&mut head).await.ok()?;
        let [a, b, c, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        read.read_exact(&mut payload).await.ok()?;
        Some(Frame { kind, flags, stream: u32::from_be_bytes(stream), payload })
    };
    tokio::time::timeout(PATIENCE, frame).await.expect("a frame, or the end, in time")
}

/// What becomes of a stream, or of the whole connection before it.
async fn end_of(read: &mut (impl AsyncRead + Unpin), stream: u32) -> End {
    while let Some(frame) = next(read).await {
        match frame.kind {
            HEADERS if frame.stream == stream => return End::Answer(frame.status().expect("a status")),
            RST_STREAM if frame.stream == stream => return End::Reset(frame.code()),
            GOAWAY if frame.code() != 0 => return End::GoAway(frame.code()),
            _ => {}
        }
    }
    End::Closed
}

impl Frames<TcpStream> {
    /// A connection to a sidecar's outbound listener, with the preface and empty settings sent.
    pub(crate) async fn connect(sidecar: &Loopback) -> Self {
        let stream = TcpStream::connect(sidecar.outbound()).await.expect("connected");
        let _ = stream.set_nodelay(true);
        Self::over(stream).await
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Frames<IO> {
    /// The same over an open connection.
    pub(crate) async fn over(io: IO) -> Self {
        let (read, write) = tokio::io::split(io);
        let mut frames = Self { read, write };
        // Whether anybody is there, the answer will tell.
        frames.offer([PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await;
        frames
    }

    /// Sends what the peer is there for.
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        assert!(self.offer(bytes).await, "the connection has ended");
    }

    /// Sends what the peer may no longer want; false if it does not.
    pub(crate) async fn offer(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        let sent = tokio::time::timeout(PATIENCE, self.write.write_all(bytes.as_ref())).await;
        sent.is_ok_and(|sent| sent.is_ok())
    }

    /// Sends pieces without end while it reads what comes back, and gives how the connection ended.
    pub(crate) async fn flood(&mut self, pieces: impl Iterator<Item = Vec<u8>>) -> End {
        let Self { read, write } = self;
        let flood = async {
            for piece in pieces {
                if write.write_all(&piece).await.is_err() {
                    break;
                }
            }
            std::future::pending::<Infallible>().await
        };
        tokio::select! {
            end = end_of(read, u32::MAX) => end,
            never = flood => match never {},
        }
    }

    /// The next frame; none if the connection has ended.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        next(&mut self.read).await
    }

    /// What becomes of a stream, or of the whole connection before it.
    pub(crate) async fn end_of(&mut self, stream: u32) -> End {
        end_of(&mut self.read, stream).await
    }

    /// How the connection ends.
    pub(crate) async fn end(&mut self) -> End {
        self.end_of(u32::MAX).await
    }

    /// Waits for the answer to a PING: all that was sent before it has been looked at.
    pub(crate) async fn settle(&mut self) {
        self.send(frame(PING, 0, 0, b"settled?")).await;
        loop {
            let frame = self.next().await.expect("the connection goes on");
            assert!(frame.kind != GOAWAY, "{frame:?}");
            if frame.kind == PING && frame.flags & ACK != 0 && frame.payload == b"settled?" {
                return;
            }
        }
    }

    /// Sends one request, and gives what becomes of it.
    pub(crate) async fn asked(&mut self, stream: u32, block: &[u8]) -> End {
        self.offer(frame(HEADERS, WHOLE, stream, block)).await;
        self.end_of(stream).await
    }
}
