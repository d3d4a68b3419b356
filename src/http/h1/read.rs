//! The reading half of an HTTP/1 connection: heads and bodies out of one buffer that is given
//! back while nothing arrives.

use std::io;

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use http::Method;
use rustix::net::RecvFlags;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;

use super::Writer;

use super::chunked::{Chunked, Decoded};
use super::parse::{self, ParsedRequest, ParsedResponse, Refused};
use crate::http::body::BodyError;
use crate::http::{Bounds, Frame, Length};

/// What a buffer begins with, and what it may grow to while a body streams.
const SMALL_BUFFER: usize = 16 << 10;
const LARGE_BUFFER: usize = 128 << 10;

/// The reading half, with what was read and not yet used.
#[derive(Debug)]
pub struct Reader {
    half: OwnedReadHalf,
    buf: BytesMut,
    /// How much the next read asks for: grows while reads come back full.
    ask: usize,
}

/// Why no head could be read.
#[derive(Debug)]
pub enum HeadError {
    /// The peer closed before the first byte of it.
    Closed,
    /// The connection was lost within it, or could not be read.
    Lost(io::Error),
    /// It is no head that may pass.
    Refused(Refused),
}

impl Reader {
    pub(super) fn new(half: OwnedReadHalf) -> Self {
        Self { half, buf: BytesMut::new(), ask: SMALL_BUFFER }
    }

    /// Waits for the next byte without holding a buffer.
    pub async fn idle(&mut self) -> io::Result<()> {
        while self.buf.is_empty() {
            self.buf = BytesMut::new();
            self.half.readable().await?;
            // Ready may only have meant that nobody had looked since the last read.
            match self.fill().now_or_never() {
                Some(Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Some(Ok(_)) | None => {}
                Some(Err(error)) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether nothing has been read but empty lines.
    pub(super) fn is_blank(&self) -> bool {
        self.buf.iter().all(|b| matches!(b, b'\r' | b'\n'))
    }

    /// Whether an idle connection is still as it should be: open, and silent.
    pub fn is_quiet(&self) -> bool {
        // The kernel is asked: what the runtime knows may be as old as its last look.
        let stream: &TcpStream = self.half.as_ref();
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        self.buf.is_empty()
            && matches!(rustix::net::recv(stream, &mut [0; 1][..], flags), Err(rustix::io::Errno::AGAIN))
    }

    /// A request's head.
    pub async fn request(&mut self, bounds: &Bounds) -> Result<ParsedRequest, HeadError> {
        self.head(bounds, |buf| parse::request(buf, bounds.fields)).await
    }

    /// A response's head; interim ones included.
    pub async fn response(&mut self, bounds: &Bounds, method: &Method) -> Result<ParsedResponse, HeadError> {
        self.head(bounds, |buf| parse::response(buf, method, bounds.fields)).await
    }

    async fn head<T>(
        &mut self,
        bounds: &Bounds,
        mut parse: impl FnMut(&mut BytesMut) -> Result<Option<T>, Refused>,
    ) -> Result<T, HeadError> {
        // Parsed again only when a line has ended, so that a head that arrives byte by byte does
        // not cost the square of its length.
        let mut worth_parsing = true;
        loop {
            if worth_parsing && !self.buf.is_empty() {
                let arrived = self.buf.len();
                if let Some(head) = parse(&mut self.buf).map_err(HeadError::Refused)? {
                    // However it was cut into packets, a head is as large as it is.
                    if arrived - self.buf.len() > bounds.head_bytes {
                        return Err(HeadError::Refused(Refused::TooLarge));
                    }
                    return Ok(head);
                }
                if self.buf.len() >= bounds.head_bytes {
                    return Err(HeadError::Refused(Refused::TooLarge));
                }
            }
            let before = self.buf.len();
            match self.fill().await {
                Ok(0) if before == 0 => return Err(HeadError::Closed),
                Ok(0) => return Err(HeadError::Lost(io::ErrorKind::UnexpectedEof.into())),
                Ok(_) => {
                    worth_parsing = self.buf[before..].contains(&b'\n') || self.buf.len() >= bounds.head_bytes
                }
                Err(error) if before == 0 && is_reset(&error) => return Err(HeadError::Closed),
                Err(error) => return Err(HeadError::Lost(error)),
            }
        }
    }

    /// The body that follows a head.
    pub fn body(&mut self, length: Length, chunked: bool) -> Incoming<'_> {
        let state = match length {
            Length::None | Length::Sized(0) => State::Done,
            Length::Sized(left) => State::Sized(left),
            Length::Stream if chunked => State::Chunked(Chunked::default()),
            Length::Stream => State::UntilClose,
        };
        Incoming { reader: self, state }
    }

    /// Whether bytes are there that nobody has asked for.
    pub fn has_leftover(&self) -> bool {
        !self.buf.is_empty()
    }

    /// Reads and drops up to `room` bytes, or to the end.
    pub(super) async fn discard(&mut self, mut room: usize) {
        while room > 0 {
            self.buf.clear();
            match self.fill().await {
                Ok(n) if n > 0 => room = room.saturating_sub(n),
                _ => return,
            }
        }
    }

    /// Makes the coming close a reset.
    pub(super) fn reset_on_close(&self) {
        let stream: &TcpStream = self.half.as_ref();
        let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
    }

    /// The connection as it was before it was split, with what was read and not used.
    pub fn reunite(self, writer: Writer) -> Option<(TcpStream, Bytes)> {
        let stream = self.half.reunite(writer.into_half()).ok()?;
        Some((stream, self.buf.freeze()))
    }

    async fn fill(&mut self) -> io::Result<usize> {
        self.buf.reserve(if self.buf.is_empty() { self.ask } else { 1024 });
        let room = self.buf.capacity() - self.buf.len();
        let read = self.half.read_buf(&mut self.buf).await?;
        self.ask = if read == room { (self.ask * 2).min(LARGE_BUFFER) } else { SMALL_BUFFER };
        Ok(read)
    }
}

fn is_reset(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

/// A body that arrives on an HTTP/1 connection.
#[derive(Debug)]
pub struct Incoming<'a> {
    reader: &'a mut Reader,
    state: State,
}

#[derive(Debug)]
enum State {
    Sized(u64),
    Chunked(Chunked),
    UntilClose,
    Done,
}

impl Incoming<'_> {
    /// Whether its end has been reached.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    pub(in crate::http) async fn frame(&mut self) -> Result<Option<Frame>, BodyError> {
        loop {
            let buf = &mut self.reader.buf;
            match &mut self.state {
                State::Done => return Ok(None),
                State::Sized(left) if !buf.is_empty() => {
                    let take = usize::try_from(*left).unwrap_or(usize::MAX).min(buf.len());
                    *left -= take as u64;
                    if *left == 0 {
                        self.state = State::Done;
                    }
                    return Ok(Some(Frame::Data(buf.split_to(take).freeze())));
                }
                State::UntilClose if !buf.is_empty() => return Ok(Some(Frame::Data(buf.split().freeze()))),
                State::Chunked(chunked) => match chunked.decode(buf).map_err(BodyError::Malformed)? {
                    Decoded::Data(data) => return Ok(Some(Frame::Data(data))),
                    Decoded::End(trailers) => {
                        self.state = State::Done;
                        return Ok(trailers.map(Frame::Trailers));
                    }
                    Decoded::NeedMore => {}
                },
                State::Sized(_) | State::UntilClose => {}
            }
            if self.reader.fill().await.map_err(BodyError::Gone)? == 0 {
                if matches!(self.state, State::UntilClose) {
                    self.state = State::Done;
                    return Ok(None);
                }
                return Err(BodyError::Gone(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }
}
