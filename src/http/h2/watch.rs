//! Watches the frames of an HTTP/2 connection go by, for what the `h2` crate has no bound for: frames
//! that neither ask for nor bring anything, requests that are cancelled as fast as they are made, and
//! field blocks that never end.
//!
//! Only the nine bytes of each frame's head are looked at (RFC 9113 section 4.1). A clock is read only
//! where a bound is near, and a timer set only where a head is incomplete.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::error::{Error, Reason};
use crate::http::Bounds;

/// Frames that carry nothing of a request (PING, SETTINGS, PRIORITY, WINDOW_UPDATE, empty DATA,
/// unknown types) that a peer may send at once, and how many more each second.
const IDLE_FRAMES: u32 = 10_000;
const IDLE_FRAMES_A_SECOND: u32 = 1_000;

/// Such frames that a request may bring along, that each frame of its body may, and that each frame
/// of an answer's body may call forth: a window for the stream, one for the connection, a PING that
/// measures the path, and one to spare.
const PER_REQUEST: u32 = 10;
const PER_BODY_FRAME: u32 = 1;
const PER_ANSWER_FRAME: u32 = 4;

/// How many of these may be saved up: a peer answers late what was sent ahead of it.
const MOST_EARNED: u32 = 1_000_000;

/// What cancelled requests cost: so much may be spent at once, so much more each second. A
/// cancelled request takes two, and each request brings one: of those that come faster than that,
/// half may be cancelled.
const CANCELS: u32 = 4_000;
const CANCELS_A_SECOND: u32 = 1_000;

/// The connection preface, which is no frame.
const PREFACE: u32 = 24;

const HEAD: usize = 9;
/// A frame's head, and the code of a reset.
const WITH_CODE: usize = HEAD + 4;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;

/// Codes of resets that say that the peer broke the protocol: PROTOCOL_ERROR, FLOW_CONTROL_ERROR,
/// STREAM_CLOSED, FRAME_SIZE_ERROR.
const BROKEN: [u32; 4] = [1, 3, 5, 6];

/// What the watch has to say.
#[derive(Debug)]
pub(super) enum Verdict {
    /// The connection is to be closed.
    Refused(Error),
    /// A stream was reset, since what came on it is not HTTP/2.
    Malformed,
    /// No request was open for as long as a connection may idle.
    Idle,
}

/// What has been seen of one connection.
#[derive(Debug)]
pub(super) struct Seen {
    idle_frames: Bucket,
    cancels: Bucket,
    /// Why the connection is to be closed.
    refused: Cell<Option<(Reason, &'static str)>>,
    begun: Cell<bool>,
    /// Streams that were reset for breaking the protocol, and are not counted yet.
    malformed: Cell<u32>,
    /// Since when a field block is incomplete.
    incomplete: Cell<Option<Instant>>,
    /// Requests that are being served, and since when there are none.
    open: Cell<usize>,
    since: Cell<Instant>,
}

/// So many at once, so many more each second, and up to so many by what they come with.
#[derive(Debug)]
struct Bucket {
    left: Cell<u32>,
    at_once: u32,
    a_second: u32,
    most: u32,
    filled: Cell<Instant>,
}

impl Bucket {
    fn new(at_once: u32, a_second: u32, most: u32) -> Self {
        Self { left: Cell::new(at_once), at_once, a_second, most, filled: Cell::new(Instant::now()) }
    }

    fn earn(&self, n: u32) {
        self.left.set((self.left.get() + n).min(self.most));
    }

    /// Takes `n`; false if there are not so many.
    fn spend(&self, n: u32) -> bool {
        if self.left.get() < n {
            let now = Instant::now();
            let earned = (now - self.filled.replace(now)).as_secs_f64() * f64::from(self.a_second);
            // Saturates, and the rest of a frame is nobody's.
            self.earn((earned as u32).min(self.at_once));
        }
        let left = self.left.get().checked_sub(n);
        self.left.set(left.unwrap_or(0));
        left.is_some()
    }
}

impl Seen {
    /// `clients` is how many may be behind the connection: one, or those of a whole sidecar.
    pub(super) fn new(clients: u32) -> Rc<Self> {
        Rc::new(Self {
            idle_frames: Bucket::new(IDLE_FRAMES * clients, IDLE_FRAMES_A_SECOND * clients, MOST_EARNED),
            cancels: Bucket::new(CANCELS * clients, CANCELS_A_SECOND * clients, CANCELS * clients),
            refused: Cell::new(None),
            begun: Cell::new(false),
            malformed: Cell::new(0),
            incomplete: Cell::new(None),
            open: Cell::new(0),
            since: Cell::new(Instant::now()),
        })
    }

    /// Counts a request as open as long as what is returned lives.
    pub(super) fn open(self: &Rc<Self>) -> Open {
        self.open.set(self.open.get() + 1);
        Open(self.clone())
    }

    fn received(&self, frame: Frame) {
        if !self.begun.replace(true) && frame.kind != SETTINGS {
            // RFC 9113 section 3.4.
            self.refused.set(Some((Reason::HttpMalformed, "the first frame is not SETTINGS")));
        }
        let calm = match frame.kind {
            HEADERS => {
                self.cancels.earn(1);
                self.idle_frames.earn(PER_REQUEST);
                true
            }
            DATA if frame.length > 0 => {
                self.idle_frames.earn(PER_BODY_FRAME);
                true
            }
            DATA if frame.flags & END_STREAM != 0 => true,
            RST_STREAM if !self.cancels.spend(2) => {
                self.flooded("requests are cancelled as fast as they are made");
                true
            }
            _ => self.idle_frames.spend(1),
        };
        if !calm {
            self.flooded("frames come that neither ask for nor bring anything");
        }
    }

    fn flooded(&self, why: &'static str) {
        self.refused.set(Some((Reason::HttpFlood, why)));
    }

    fn sent(&self, frame: Frame) {
        match frame.kind {
            DATA if frame.length > 0 => self.idle_frames.earn(PER_ANSWER_FRAME),
            RST_STREAM if BROKEN.contains(&frame.code) => self.malformed.set(self.malformed.get() + 1),
            _ => {}
        }
    }

    /// Notes whether a field block is incomplete after all that has arrived.
    fn in_block(&self, incomplete: bool) {
        if !incomplete {
            self.incomplete.set(None);
        } else if self.incomplete.get().is_none() {
            self.incomplete.set(Some(Instant::now()));
        }
    }
}

/// A request that is being served.
#[derive(Debug)]
pub(super) struct Open(Rc<Seen>);

impl Drop for Open {
    fn drop(&mut self) {
        let Seen { open, since, .. } = &*self.0;
        open.set(open.get() - 1);
        if open.get() == 0 {
            since.set(Instant::now());
        }
    }
}

/// Tells whoever serves the connection what has been seen on it.
#[derive(Debug)]
pub(super) struct Watch {
    seen: Rc<Seen>,
    head_timeout: Duration,
    idle_timeout: Duration,
    /// When an incomplete field block has taken too long, where there is one.
    late: Option<Pin<Box<Sleep>>>,
    idle: Pin<Box<Sleep>>,
}

impl Watch {
    pub(super) fn new(seen: Rc<Seen>, bounds: &Bounds) -> Self {
        let idle = Box::pin(sleep_until(seen.since.get() + bounds.idle_timeout));
        let (head_timeout, idle_timeout) = (bounds.head_timeout, bounds.idle_timeout);
        Self { seen, head_timeout, idle_timeout, late: None, idle }
    }

    /// To be polled by the task that reads the connection, after it.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Verdict> {
        let seen = &self.seen;
        if let Some((reason, why)) = seen.refused.get() {
            return Poll::Ready(Verdict::Refused(Error::new(reason, why)));
        }
        if let Some(left) = seen.malformed.get().checked_sub(1) {
            seen.malformed.set(left);
            return Poll::Ready(Verdict::Malformed);
        }
        match seen.incomplete.get() {
            None => self.late = None,
            Some(since) => {
                let late = self.late.get_or_insert_with(|| Box::pin(sleep_until(since + self.head_timeout)));
                if late.as_mut().poll(cx).is_ready() {
                    let why = "a request's field block did not arrive in time";
                    return Poll::Ready(Verdict::Refused(Error::new(Reason::HttpHeadTimeout, why)));
                }
            }
        }
        while self.idle.as_mut().poll(cx).is_ready() {
            let begin = if seen.open.get() == 0 { seen.since.get() } else { Instant::now() };
            let ended = begin.elapsed() >= self.idle_timeout;
            self.idle.as_mut().reset(if ended { Instant::now() } else { begin } + self.idle_timeout);
            if ended {
                return Poll::Ready(Verdict::Idle);
            }
        }
        Poll::Pending
    }
}

/// A frame's head.
#[derive(Debug, Clone, Copy)]
struct Frame {
    length: u32,
    kind: u8,
    flags: u8,
    /// Of a reset.
    code: u32,
}

/// Finds the frames in a stream of bytes, however it is cut.
#[derive(Debug)]
struct Scanner {
    head: [u8; WITH_CODE],
    have: usize,
    /// Bytes until the next frame.
    skip: u32,
    /// The last frame of a field block was not its last.
    block_open: bool,
    kind: u8,
}

impl Scanner {
    fn new(skip: u32) -> Self {
        Self { head: [0; WITH_CODE], have: 0, skip, block_open: false, kind: DATA }
    }

    fn feed(&mut self, mut bytes: &[u8], mut each: impl FnMut(Frame)) {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let n = bytes.len().min(self.skip as usize);
                self.skip -= n as u32;
                bytes = &bytes[n..];
                continue;
            }
            let want = if self.have < HEAD { HEAD } else { WITH_CODE };
            let n = bytes.len().min(want - self.have);
            self.head[self.have..self.have + n].copy_from_slice(&bytes[..n]);
            self.have += n;
            bytes = &bytes[n..];
            if self.have < want {
                return;
            }
            let [a, b, c, kind, flags, _, _, _, _, code @ ..] = self.head;
            let length = u32::from_be_bytes([0, a, b, c]);
            let has_code = kind == RST_STREAM && length == 4;
            if has_code && self.have < WITH_CODE {
                continue;
            }
            self.skip = if has_code { 0 } else { length };
            let code = if has_code { u32::from_be_bytes(code) } else { 0 };
            self.have = 0;
            self.kind = kind;
            if matches!(kind, HEADERS | CONTINUATION) {
                self.block_open = flags & END_HEADERS == 0;
            }
            each(Frame { length, kind, flags, code });
        }
    }

    /// Whether a field block has begun and not ended.
    fn in_block(&self) -> bool {
        self.block_open || (self.skip > 0 && matches!(self.kind, HEADERS | CONTINUATION))
    }
}

/// A connection whose frames are seen as they pass.
#[derive(Debug)]
pub(super) struct Watched<IO> {
    io: IO,
    seen: Rc<Seen>,
    read: Scanner,
    written: Scanner,
}

impl<IO> Watched<IO> {
    /// The server's end of a connection from its preface on.
    pub(super) fn new(io: IO, seen: Rc<Seen>) -> Self {
        Self { io, seen, read: Scanner::new(PREFACE), written: Scanner::new(0) }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Watched<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.seen.refused.get().is_some() {
            // Nothing more is taken in; whoever serves the connection ends it.
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut this.io).poll_read(cx, buf);
        this.read.feed(&buf.filled()[before..], |frame| this.seen.received(frame));
        this.seen.in_block(this.read.in_block());
        read
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Watched<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.io).poll_write_vectored(cx, bufs);
        if let Poll::Ready(Ok(mut n)) = written {
            for buf in bufs {
                let of_this = n.min(buf.len());
                this.written.feed(&buf[..of_this], |frame| this.seen.sent(frame));
                n -= of_this;
            }
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u32).to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    proptest! {
        /// However the stream is cut, the same frames are seen.
        #[test]
        fn frames_are_found_in_any_cut(
            frames in prop::collection::vec((0u8..12, any::<u8>(), prop::collection::vec(any::<u8>(), 0..20)), 0..20),
            step in 1usize..50,
        ) {
            let mut bytes = vec![b'P'; PREFACE as usize];
            for (kind, flags, payload) in &frames {
                bytes.extend(frame(*kind, *flags, payload));
            }
            let (mut scanner, mut found) = (Scanner::new(PREFACE), Vec::new());
            for piece in bytes.chunks(step) {
                scanner.feed(piece, |f| found.push((f.kind, f.flags, f.length)));
            }
            let sent: Vec<_> = frames.iter().map(|(k, f, p)| (*k, *f, p.len() as u32)).collect();
            prop_assert_eq!(found, sent);
        }

        #[test]
        fn any_bytes_are_taken(bytes: Vec<u8>) {
            Scanner::new(0).feed(&bytes, |_| {});
        }
    }

    #[test]
    fn a_block_ends_with_its_last_byte() {
        let mut scanner = Scanner::new(0);
        let mut after = |bytes: &[u8]| {
            scanner.feed(bytes, |_| {});
            scanner.in_block()
        };
        let headers = frame(HEADERS, 0, b"abc");
        assert!(!after(&headers[..8]) && after(&headers[8..11]) && after(&headers[11..]));
        assert!(after(&frame(CONTINUATION, 0, b"")));
        let last = frame(CONTINUATION, END_HEADERS, b"x");
        assert!(after(&last[..9]) && !after(&last[9..]));
        assert!(!after(&frame(DATA, 0, b"x")[..9]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_bucket_fills_with_time() {
        let bucket = Bucket::new(10, 2, 10);
        assert!((0..10).all(|_| bucket.spend(1)) && !bucket.spend(1));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(bucket.spend(1) && bucket.spend(1) && !bucket.spend(1));
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert!((0..10).all(|_| bucket.spend(1)) && !bucket.spend(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_of_small_answers_may_be_acknowledged_one_by_one() {
        let seen = Seen::new(1);
        seen.received(Frame { length: 0, kind: SETTINGS, flags: 0, code: 0 });
        let answer = Frame { length: 20, kind: DATA, flags: 0, code: 0 };
        let window = Frame { length: 4, kind: 8, flags: 0, code: 0 };
        for _ in 0..1_000 {
            // In time, or late.
            for _ in 0..10_000 {
                seen.sent(answer);
            }
            for _ in 0..20_000 {
                seen.received(window);
            }
        }
        assert_eq!(seen.refused.get(), None);
        (0..=MOST_EARNED).for_each(|_| seen.received(window));
        assert!(seen.refused.get().is_some());
    }
}
