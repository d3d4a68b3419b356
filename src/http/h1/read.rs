//! The reading half of an HTTP/1 connection: heads and bodies out of one buffer, which is given
//! back while nothing arrives.
//!
//! What comes in small pieces is read into memory that the whole thread shares, and only what was
//! read is kept; a body that comes fast gets a buffer of its own, which grows while reads fill it.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::Method;
use rustix::net::RecvFlags;
use tokio::io::{AsyncRead, AsyncReadExt, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;

use super::Writer;
use super::chunked::{Chunked, Decoded};
use super::parse::{self, ParsedRequest, ParsedResponse, Refused};
use crate::http::body::BodyError;
use crate::http::{Bounds, Frame, Length};

/// What is read at a time, and what a buffer may grow to while a body streams.
const SMALL_BUFFER: usize = 16 << 10;
const LARGE_BUFFER: usize = 128 << 10;

thread_local! {
    /// Where small reads go first.
    static SHARED: RefCell<Box<[u8]>> = RefCell::new(vec![0; SMALL_BUFFER].into());
}

/// The reading half, with what was read and not yet used.
#[derive(Debug)]
pub struct Reader {
    half: OwnedReadHalf,
    buf: BytesMut,
    /// How much of `buf` is known not to hold a whole head.
    seen: usize,
    /// How much the next read asks for: grows while reads come back full.
    ask: usize,
    /// Nothing has been read since it last rested.
    untouched: bool,
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
        Self { half, buf: BytesMut::new(), seen: 0, ask: SMALL_BUFFER, untouched: true }
    }

    /// Waits for the next byte without holding a buffer.
    pub fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.buf.is_empty() {
            self.buf = BytesMut::new();
            if ready!(self.poll_fill(cx, usize::MAX))? == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
        Poll::Ready(Ok(()))
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

    /// As [`Reader::is_quiet`], as far as the runtime knows, which costs nothing.
    pub fn seems_quiet(&self) -> bool {
        let stream: &TcpStream = self.half.as_ref();
        let peeked = stream.try_io(Interest::READABLE, || {
            Ok(rustix::net::recv(stream, &mut [0; 1][..], RecvFlags::PEEK | RecvFlags::DONTWAIT)?)
        });
        self.buf.is_empty() && peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Has `cx` woken when an idle connection is not any more as it should be; ready if it is not now.
    pub fn poll_disturbed(&self, cx: &mut Context<'_>) -> Poll<()> {
        let stream: &TcpStream = self.half.as_ref();
        while self.buf.is_empty() {
            match stream.poll_read_ready(cx) {
                Poll::Pending => return Poll::Pending,
                // What the runtime has heard may be of an answer that was read since.
                Poll::Ready(_) if self.seems_quiet() => {}
                Poll::Ready(_) => break,
            }
        }
        Poll::Ready(())
    }

    /// Whether the peer has ended an idle connection, rather than said something on it.
    pub fn is_ended(&self) -> bool {
        let stream: &TcpStream = self.half.as_ref();
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        !matches!(
            rustix::net::recv(stream, &mut [0; 1][..], flags),
            Ok((1.., _)) | Err(rustix::io::Errno::AGAIN)
        )
    }

    /// Whether nothing has been read since the connection last [rested](Self::rest).
    pub fn is_untouched(&self) -> bool {
        self.untouched
    }

    /// The connection.
    pub fn stream(&self) -> &TcpStream {
        self.half.as_ref()
    }

    /// Gives the buffer back, since nothing is expected for a while.
    pub fn rest(&mut self) {
        self.untouched = true;
        self.buf = BytesMut::new();
    }

    /// A request's head.
    pub fn poll_request(
        &mut self,
        cx: &mut Context<'_>,
        bounds: &Bounds,
    ) -> Poll<Result<ParsedRequest, HeadError>> {
        self.poll_head(cx, bounds, |buf| parse::request(buf, bounds.fields))
    }

    /// A response's head; interim ones included.
    pub fn poll_response(
        &mut self,
        cx: &mut Context<'_>,
        bounds: &Bounds,
        method: &Method,
    ) -> Poll<Result<ParsedResponse, HeadError>> {
        self.poll_head(cx, bounds, |buf| parse::response(buf, method, bounds.fields))
    }

    fn poll_head<T>(
        &mut self,
        cx: &mut Context<'_>,
        bounds: &Bounds,
        mut parse: impl FnMut(&mut BytesMut) -> Result<Option<T>, Refused>,
    ) -> Poll<Result<T, HeadError>> {
        loop {
            // Parsed again only when a line has ended, so that a head that arrives byte by byte
            // does not cost the square of its length.
            let news = &self.buf[self.seen..];
            if news.contains(&b'\n') || self.buf.len() >= bounds.head_bytes {
                let arrived = self.buf.len();
                if let Some(head) = parse(&mut self.buf).map_err(HeadError::Refused)? {
                    self.seen = 0;
                    // However it was cut into packets, a head is as large as it is.
                    if arrived - self.buf.len() > bounds.head_bytes {
                        return Poll::Ready(Err(HeadError::Refused(Refused::TooLarge)));
                    }
                    return Poll::Ready(Ok(head));
                }
                if arrived >= bounds.head_bytes {
                    return Poll::Ready(Err(HeadError::Refused(Refused::TooLarge)));
                }
            }
            self.seen = self.buf.len();
            match ready!(self.poll_fill(cx, usize::MAX)) {
                Ok(0) if self.seen == 0 => return Poll::Ready(Err(HeadError::Closed)),
                Ok(0) => return Poll::Ready(Err(HeadError::Lost(io::ErrorKind::UnexpectedEof.into()))),
                Ok(_) => {}
                Err(error) if self.seen == 0 && is_reset(&error) => {
                    return Poll::Ready(Err(HeadError::Closed));
                }
                Err(error) => return Poll::Ready(Err(HeadError::Lost(error))),
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
            match poll_fn(|cx| self.poll_fill(cx, usize::MAX)).await {
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
        let stream = self.half.reunite(writer.into_half()?).ok()?;
        Some((stream, self.buf.freeze()))
    }

    /// Reads once: no more than `most`, if that is much at all.
    fn poll_fill(&mut self, cx: &mut Context<'_>, most: usize) -> Poll<io::Result<usize>> {
        let ask = self.ask.min(most);
        let (read, room) = if ask <= SMALL_BUFFER {
            ready!(SHARED.with_borrow_mut(|shared| {
                let mut into = ReadBuf::new(shared);
                let read = Pin::new(&mut self.half).poll_read(cx, &mut into)?;
                self.buf.extend_from_slice(into.filled());
                read.map(|()| io::Result::Ok((into.filled().len(), SMALL_BUFFER)))
            }))?
        } else {
            // A body that has come to a halt holds no buffer.
            ready!(AsRef::<TcpStream>::as_ref(&self.half).poll_read_ready(cx))?;
            self.buf.reserve(if self.buf.is_empty() { ask } else { SMALL_BUFFER });
            let room = self.buf.capacity() - self.buf.len();
            // It keeps nothing between two polls but the buffer itself.
            (ready!(pin!(self.half.read_buf(&mut self.buf)).poll(cx))?, room)
        };
        self.untouched &= read == 0;
        self.ask = if read < room { SMALL_BUFFER } else { (self.ask * 2).min(LARGE_BUFFER) };
        Poll::Ready(Ok(read))
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

    pub(in crate::http) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
        room: usize,
    ) -> Poll<Result<Option<Frame>, BodyError>> {
        loop {
            let buf = &mut self.reader.buf;
            match &mut self.state {
                State::Done => return Poll::Ready(Ok(None)),
                State::Sized(left) if !buf.is_empty() => {
                    let take = usize::try_from(*left).unwrap_or(usize::MAX).min(buf.len());
                    *left -= take as u64;
                    if *left == 0 {
                        self.state = State::Done;
                    }
                    return Poll::Ready(Ok(Some(Frame::Data(buf.split_to(take).freeze()))));
                }
                State::UntilClose if !buf.is_empty() => {
                    return Poll::Ready(Ok(Some(Frame::Data(buf.split().freeze()))));
                }
                State::Chunked(chunked) => match chunked.decode(buf).map_err(BodyError::Malformed)? {
                    Decoded::Data(data) => return Poll::Ready(Ok(Some(Frame::Data(data)))),
                    Decoded::End(trailers) => {
                        self.state = State::Done;
                        return Poll::Ready(Ok(trailers.map(Frame::Trailers)));
                    }
                    Decoded::NeedMore => {}
                },
                State::Sized(_) | State::UntilClose => {}
            }
            if ready!(self.reader.poll_fill(cx, room)).map_err(BodyError::Gone)? == 0 {
                if matches!(self.state, State::UntilClose) {
                    self.state = State::Done;
                    return Poll::Ready(Ok(None));
                }
                return Poll::Ready(Err(BodyError::Gone(io::ErrorKind::UnexpectedEof.into())));
            }
        }
    }
}
