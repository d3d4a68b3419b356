//! The writing half of an HTTP/1 connection. A head and the first bytes of its body leave in one
//! write; large bodies are written from where they were read.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::FutureExt;
use rustix::net::{SendFlags, Shutdown};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;

use crate::http::deadline::Deadline;
use crate::http::fields::put_line;
use crate::http::out::Out;
use crate::http::{Fields, Length, RequestHead, ResponseHead};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};

/// Bytes that wait for company before they are written: in all, and in small pieces.
const GATHER: usize = 48 << 10;
const GATHER_SMALL: usize = 8 << 10;

/// How a body is framed on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// As it is: its length is known, or the connection ends it.
    Plain,
    /// In chunks.
    Chunked,
    /// There is none, whatever is sent.
    Bodyless,
}

/// What becomes of a connection after an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeps {
    /// It is closed.
    Not,
    /// It is kept for so many seconds at least; 0: that is not said.
    For(u32),
}

/// How long a peer that has ended its side has to wait for its answer before it is found out whether it still
/// does: what is answered at once is answered as ever. Under overload whoever has gone is to cost little.
const ASK_AFTER: Duration = Duration::from_millis(20);

/// How often it is looked whether a peer has ended its side that has sent on before.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Watches a connection on which the peer has spoken on, or ended its side.
struct Loss {
    /// Ready when the connection is lost.
    lost: Pin<Box<dyn Future<Output = ()>>>,
    /// Whether the peer has ended its side, as far as has been seen.
    has_ended: bool,
    /// When to look at that again, or to find out whether anybody is left; none: that has been done.
    ask: Option<Deadline>,
}

/// Whether the peer has ended its side of a connection.
fn has_ended(half: &OwnedWriteHalf) -> bool {
    let ready = half.ready(Interest::READABLE).now_or_never();
    ready.is_some_and(|ready| ready.is_ok_and(|ready| ready.is_read_closed()))
}

/// The writing half, with what is still to be written.
pub struct Writer {
    half: Rc<OwnedWriteHalf>,
    loss: Option<Box<Loss>>,
    out: Out,
    /// What is being written had to wait: nothing is added to it, so that a slow reader holds little.
    waits: bool,
    framing: Framing,
    /// What had been written when the last head was begun.
    begun_at: u64,
    /// Bytes that have been written, for whoever watches while a body is being sent.
    written: Rc<Cell<u64>>,
}

thread_local! {
    /// Buffers that wait for the next head of any connection.
    static SPARE: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
}

/// How many of them are kept, and up to which size.
const SPARES: usize = 16;
const SPARE_SIZE: usize = 16 << 10;

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("half", &self.half).finish_non_exhaustive()
    }
}

impl Writer {
    pub(super) fn new(half: OwnedWriteHalf, written: u64) -> Self {
        Self {
            half: Rc::new(half),
            loss: None,
            out: Out::default(),
            waits: false,
            framing: Framing::Plain,
            begun_at: written,
            written: Rc::new(Cell::new(written)),
        }
    }

    /// The buffer, with room for a head.
    fn begin(&mut self) -> &mut BytesMut {
        self.begun_at = self.written.get();
        let tail = &mut self.out.tail;
        if tail.capacity() == 0 {
            let spare = SPARE.with_borrow_mut(Vec::pop);
            *tail = spare.unwrap_or_else(|| BytesMut::with_capacity(1024));
        }
        tail
    }

    /// Takes the last head back, with what follows it, if nothing of it has left.
    pub fn take_back(&mut self) -> bool {
        let unsent = self.written.get() == self.begun_at;
        if unsent {
            self.out = Out::default();
            self.waits = false;
        }
        unsent
    }

    /// Puts a request's head into the buffer, with fields that this hop adds. `host` stands in where the
    /// request names nobody.
    pub fn request(&mut self, head: &RequestHead, host: &str, own: Option<&HeaderMap>) {
        let out = self.begin();
        out.put_slice(head.method.as_str().as_bytes());
        out.put_u8(b' ');
        match &head.authority {
            Some(authority) if head.method == Method::CONNECT => {
                out.put_slice(authority.as_str().as_bytes());
            }
            _ => out.put_slice(head.path.as_str().as_bytes()),
        }
        out.put_slice(b" HTTP/1.1\r\n");
        if head.fields.get("host").is_none() {
            out.put_slice(b"host: ");
            out.put_slice(head.authority.as_ref().map_or(host, |a| a.as_str()).as_bytes());
            out.put_slice(b"\r\n");
        }
        head.fields.write_h1(out);
        for (name, value) in own.into_iter().flatten() {
            put_line(out, name.as_str().as_bytes(), value.as_bytes());
        }
        put_upgrade(out, head.upgrade.as_deref());
        let framing = match head.length {
            Length::None => Framing::Bodyless,
            Length::Sized(_) => Framing::Plain,
            Length::Stream => Framing::Chunked,
        };
        put_length(out, head.length, framing);
        out.put_slice(b"\r\n");
        self.framing = framing;
    }

    /// Puts a response's head into the buffer, as an answer to `method` from a client that speaks
    /// `version`. Says what becomes of the connection.
    pub fn response(&mut self, head: &ResponseHead, method: &Method, version: Version, keeps: Keeps) {
        let framing = match head.length {
            _ if !head.may_have_body(method) => Framing::Bodyless,
            Length::None | Length::Sized(_) => Framing::Plain,
            Length::Stream if version == Version::HTTP_11 => Framing::Chunked,
            Length::Stream => Framing::Plain,
        };
        self.framing = framing;
        let out = self.begin();
        put_status(out, head.status);
        head.fields.write_h1(out);
        put_upgrade(out, head.upgrade.as_deref());
        let length = match head.length {
            // What can have a body and has none says so.
            Length::None if head.may_have_body(method) => Length::Sized(0),
            length => length,
        };
        put_length(out, length, framing);
        match keeps {
            Keeps::Not => out.put_slice(b"connection: close\r\n"),
            Keeps::For(0) if version == Version::HTTP_10 => out.put_slice(b"connection: keep-alive\r\n"),
            Keeps::For(0) => {}
            Keeps::For(seconds) => {
                out.put_slice(b"connection: keep-alive\r\nkeep-alive: timeout=");
                put_number(out, seconds.into());
                out.put_slice(b"\r\n");
            }
        }
        out.put_slice(b"\r\n");
    }

    /// Puts an interim response (1xx) into the buffer.
    pub fn interim(&mut self, status: StatusCode, fields: &Fields) {
        let out = self.begin();
        put_status(out, status);
        fields.write_h1(out);
        out.put_slice(b"\r\n");
    }

    /// Puts the head into the buffer after which the connection is a tunnel. It has no body, and no
    /// field that says so.
    pub fn tunnel(&mut self, head: &ResponseHead) {
        let out = self.begin();
        put_status(out, head.status);
        head.fields.write_h1(out);
        put_upgrade(out, head.upgrade.as_deref());
        out.put_slice(b"\r\n");
    }

    /// A piece of the body. It waits for company as long as there is [room](Writer::poll_room), or for
    /// [`Writer::poll_flush`].
    pub fn data(&mut self, data: Bytes) {
        match self.framing {
            Framing::Bodyless => {}
            Framing::Plain => self.out.piece(data),
            Framing::Chunked => {
                put_hex(&mut self.out.tail, data.len() as u64);
                self.out.piece(data);
                self.out.tail.put_slice(b"\r\n");
            }
        }
    }

    /// Puts the body's end into the buffer.
    pub fn end(&mut self, trailers: Option<Fields>) {
        if self.framing == Framing::Chunked {
            let out = &mut self.out.tail;
            out.put_slice(b"0\r\n");
            if let Some(trailers) = trailers {
                trailers.write_h1(out);
            }
            out.put_slice(b"\r\n");
        }
    }

    /// Ready when there is room for another piece. How much leaves at once, only the kernel knows.
    pub fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let out = &self.out;
        if self.waits || out.len() >= GATHER || out.tail.len() > GATHER_SMALL {
            ready!(self.poll_all(cx))?;
        }
        Poll::Ready(Ok(usize::MAX))
    }

    fn poll_all(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            let Poll::Ready(written) = self.poll_write(cx) else {
                self.waits = true;
                return Poll::Pending;
            };
            let n = written?;
            self.written.set(self.written.get() + n as u64);
            self.out.advance(n);
        }
        self.waits = false;
        Poll::Ready(Ok(()))
    }

    /// Writes once. The half itself would have to be ours alone for that, and it is not while its
    /// loss is listened for.
    fn poll_write(&self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let stream = self.stream();
        loop {
            ready!(stream.poll_write_ready(cx))?;
            let mut written = 0;
            let tried = stream.try_io(Interest::WRITABLE, || {
                let asked;
                if let Some(only) = self.out.only() {
                    asked = only.len();
                    written = rustix::net::send(stream, only, SendFlags::NOSIGNAL)?;
                } else {
                    let slices = self.out.slices();
                    asked = slices.iter().map(|slice| slice.len()).sum();
                    written =
                        rustix::net::sendmsg(stream, &slices, &mut Default::default(), SendFlags::NOSIGNAL)?;
                }
                // Less than all means that there is no room for more: nobody needs to try.
                if written < asked { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
            });
            match tried {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Poll::Ready(Err(error)),
                Err(_) if written == 0 => {}
                _ => return Poll::Ready(Ok(written)),
            }
        }
    }

    /// Writes all that waits.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_all(cx))?;
        // An idle connection holds no buffer.
        let mut buf = std::mem::take(&mut self.out.tail);
        if buf.try_reclaim(1024) && buf.capacity() <= SPARE_SIZE {
            SPARE.with_borrow_mut(|spare| {
                if spare.len() < SPARES {
                    spare.push(buf);
                }
            });
        }
        self.out.shrink(0);
        Poll::Ready(Ok(()))
    }

    /// Ready when nobody wants the body any more, which HTTP/1 tells only by its answer.
    pub fn poll_gone(&mut self, _cx: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }

    /// Writes all that waits.
    pub async fn flush(&mut self) -> io::Result<()> {
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// Ready when the connection is lost. What the peer sends on stays where it is. One that has ended its
    /// side may still read, or be gone: where it takes interim answers (`interim`) and none has come for a
    /// while, it is sent 100 (Continue), which who still reads passes over (RFC 9110 section 15.2.1), and
    /// the kernel of who does not answers with a reset.
    pub fn poll_lost(&mut self, cx: &mut Context<'_>, interim: bool) -> Poll<()> {
        // While the peer is silent, its loss is the next that is heard of it.
        if self.loss.is_none() && self.stream().poll_read_ready(cx).is_pending() {
            return Poll::Pending;
        }
        let loss = self.loss.get_or_insert_with(|| {
            let half = self.half.clone();
            let has_ended = has_ended(&half);
            let lost = Box::pin(async move {
                // Costs no system call: the runtime hears of errors whether it reads or not.
                if half.ready(Interest::ERROR).await.is_err() {
                    std::future::pending().await
                }
            });
            let after = if has_ended { ASK_AFTER } else { LOOK_EVERY };
            Box::new(Loss { lost, has_ended, ask: interim.then(|| Deadline::new(after)) })
        });
        if loss.lost.as_mut().poll(cx).is_ready() {
            self.loss = None;
            return Poll::Ready(());
        }
        if !interim {
            loss.ask = None;
        }
        let Some(ask) = &mut loss.ask else { return Poll::Pending };
        ready!(ask.poll(cx));
        if !loss.has_ended {
            // Nobody is woken by an end behind what was sent on.
            loss.has_ended = has_ended(&self.half);
            *ask = Deadline::new(if loss.has_ended { ASK_AFTER } else { LOOK_EVERY });
            return ask.poll(cx);
        }
        if !self.out.is_empty() {
            // What came before it has not left yet.
            *ask = Deadline::new(LOOK_EVERY);
            return ask.poll(cx);
        }
        loss.ask = None;
        self.interim(StatusCode::CONTINUE, &Fields::default());
        match self.poll_flush(cx) {
            Poll::Ready(sent) => sent.map_or(Poll::Ready(()), |()| Poll::Pending),
            // No room: an answer before this one is still being read, or will not be. It is asked again, unless
            // a part has left; then the rest goes before what follows.
            Poll::Pending => match (self.take_back(), &mut self.loss) {
                (true, Some(loss)) => loss.ask.insert(Deadline::new(LOOK_EVERY)).poll(cx),
                _ => Poll::Pending,
            },
        }
    }

    /// Gives back what only a message that is under way needs.
    pub fn rest(&mut self) {
        self.loss = None;
    }

    /// Bytes that have been written on the connection, as they are.
    pub fn written(&self) -> Rc<Cell<u64>> {
        self.written.clone()
    }

    fn stream(&self) -> &TcpStream {
        (*self.half).as_ref()
    }

    pub(super) fn into_half(self) -> Option<OwnedWriteHalf> {
        drop(self.loss);
        Rc::into_inner(self.half)
    }

    /// Ends our side of the connection.
    pub fn shutdown(&self) -> io::Result<()> {
        Ok(rustix::net::shutdown(self.stream(), Shutdown::Write)?)
    }
}

fn put_status(out: &mut BytesMut, status: StatusCode) {
    out.put_slice(b"HTTP/1.1 ");
    out.put_slice(status.as_str().as_bytes());
    out.put_u8(b' ');
    out.put_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    out.put_slice(b"\r\n");
}

/// The fields of an upgrade, which are this hop's own.
fn put_upgrade(out: &mut BytesMut, protocols: Option<&HeaderValue>) {
    if let Some(protocols) = protocols {
        out.reserve(protocols.len() + 32);
        out.put_slice(b"connection: upgrade\r\nupgrade: ");
        out.put_slice(protocols.as_bytes());
        out.put_slice(b"\r\n");
    }
}

fn put_length(out: &mut BytesMut, length: Length, framing: Framing) {
    match length {
        Length::Sized(n) => {
            out.put_slice(b"content-length: ");
            put_number(out, n);
            out.put_slice(b"\r\n");
        }
        Length::Stream if framing == Framing::Chunked => out.put_slice(b"transfer-encoding: chunked\r\n"),
        Length::Stream | Length::None => {}
    }
}

fn put_number(out: &mut BytesMut, mut n: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            break;
        }
    }
    out.put_slice(&digits[at..]);
}

/// A chunk's size line (RFC 9112 section 7.1).
fn put_hex(out: &mut BytesMut, n: u64) {
    let digits = (u64::BITS - n.leading_zeros()).div_ceil(4).max(1);
    for digit in (0..digits).rev() {
        out.put_u8(b"0123456789abcdef"[(n >> (4 * digit)) as usize & 15]);
    }
    out.put_slice(b"\r\n");
}
