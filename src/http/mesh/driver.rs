//! The task of a connection: reads what arrives and hands it to the streams, and writes what they
//! have left, after all that were ready have run.

use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use super::frame::Violation;
use super::link::Shared;
use crate::http::Announcement;
use crate::http::deadline::Deadline;
use crate::http::out::Out;

/// What is read at a time, and what the buffer may grow to while bodies stream.
const SMALL_BUFFER: usize = 16 << 10;
const LARGE_BUFFER: usize = 64 << 10;

/// Reads before others have their turn.
const READS: usize = 8;

/// What may wait to be written before no more is read: a peer that only asks must also listen. Should
/// both sides wait so for each other, the kernel ends it (see `pool::never_pauses`).
const CHOKED: usize = 1 << 20;

/// What the buffer for writing may have grown to and still be kept.
const KEEP: usize = 16 << 10;

/// How long credit is kept back before it is looked again whether the budget is still spent: what
/// other connections give back of it wakes nobody here.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A connection with its state.
pub(super) struct Driver<IO> {
    io: IO,
    shared: Rc<Shared>,
    buf: BytesMut,
    ask: usize,
    /// Whether something was given to the writer below, and not yet all sent.
    unflushed: bool,
    look_again: Deadline,
    announces: Announces,
}

/// Says how full we are.
pub(super) type Announces = Box<dyn Fn() -> Option<Announcement>>;

impl<IO: AsyncRead + AsyncWrite + Unpin> Driver<IO> {
    pub(super) fn new(io: IO, shared: Rc<Shared>, announces: Announces) -> Self {
        let look_again = Deadline::new(LOOK_AGAIN);
        Self { io, shared, buf: BytesMut::new(), ask: SMALL_BUFFER, unflushed: false, look_again, announces }
    }

    /// Whether nobody is left who could send or receive on the connection.
    pub(super) fn is_forsaken(&self) -> bool {
        Rc::strong_count(&self.shared) == 1
    }

    /// Does what can be done now. Ready when the connection has ended, with why.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Arc<str>> {
        self.shared.runs(cx);
        match self.poll_io(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(why) => {
                self.shared.within(|state| state.fail(why.clone()));
                Poll::Ready(why)
            }
        }
    }

    fn poll_io(&mut self, cx: &mut Context<'_>) -> Poll<Arc<str>> {
        if let Some(why) = self.shared.within(|state| state.ended()) {
            return Poll::Ready(why);
        }
        let mut choked = false;
        for read in 0.. {
            choked = self.shared.within(|state| state.out.len()) > CHOKED;
            if choked {
                break;
            }
            if read == READS {
                cx.waker().wake_by_ref();
                break;
            }
            match self.poll_read(cx) {
                Poll::Pending => break,
                Poll::Ready(Ok(0)) => return Poll::Ready("the peer has closed it".into()),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(error.to_string().into()),
            }
            let Self { shared, buf, announces, .. } = self;
            let taken = shared.within(|state| {
                state.hears();
                let taken = state.take_frames(buf, &shared.bounds);
                state.answer_pings(announces);
                taken
            });
            if let Err(violation) = taken {
                return self.break_off(cx, violation);
            }
        }
        let Self { io, shared, unflushed, look_again, .. } = self;
        shared.within(|state| {
            while state.keeps_credit && look_again.poll(cx).is_ready() {
                look_again.reset();
                state.return_connection_credit();
            }
            let written = poll_write(&mut state.out, io, unflushed, cx);
            state.note_blocked(written.is_pending());
            if choked && state.out.len() <= CHOKED {
                // What was not read for its sake is read now: nobody else would say so.
                cx.waker().wake_by_ref();
            }
            match written {
                Poll::Ready(Err(error)) => Poll::Ready(error.to_string().into()),
                Poll::Ready(Ok(())) | Poll::Pending => {
                    state.wake_waiting();
                    Poll::Pending
                }
            }
        })
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Self { io, buf, ask, .. } = self;
        if buf.capacity() - buf.len() < *ask / 2 {
            buf.reserve(*ask);
        }
        let room = buf.capacity() - buf.len();
        // It keeps nothing between two polls but the buffer itself.
        let read = pin!(io.read_buf(buf)).poll(cx);
        match &read {
            // An idle connection holds no buffer.
            Poll::Pending if buf.is_empty() => *buf = BytesMut::new(),
            Poll::Ready(Ok(n)) => *ask = if *n == room { (*ask * 2).min(LARGE_BUFFER) } else { SMALL_BUFFER },
            _ => {}
        }
        read
    }

    /// Ends the connection because of what the peer did, and tells it.
    fn break_off(&mut self, cx: &mut Context<'_>, Violation(code, why): Violation) -> Poll<Arc<str>> {
        let Self { io, shared, unflushed, .. } = self;
        shared.within(|state| {
            // Whatever has been taken may have been processed.
            state.break_off(code);
            // As far as it can be said at once: the connection ends either way.
            let _ = poll_write(&mut state.out, io, unflushed, cx);
        });
        Poll::Ready(format!("the peer broke the protocol: {why}").into())
    }

    /// Sends what waits, and ends the connection in order.
    pub(super) fn poll_leave(&mut self, cx: &mut Context<'_>) -> Poll<Arc<str>> {
        let Self { io, shared, unflushed, .. } = self;
        let written = ready!(shared.within(|state| poll_write(&mut state.out, io, unflushed, cx)));
        if written.is_ok() {
            let _ = ready!(Pin::new(&mut *io).poll_shutdown(cx));
        }
        Poll::Ready("it is not needed any more".into())
    }
}

/// Writes all that waits.
fn poll_write(
    out: &mut Out,
    io: &mut (impl AsyncWrite + Unpin),
    unflushed: &mut bool,
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    while !out.is_empty() {
        let written = match out.only() {
            Some(only) => Pin::new(&mut *io).poll_write(cx, only),
            None => Pin::new(&mut *io).poll_write_vectored(cx, &out.slices()),
        };
        let n = ready!(written)?;
        if n == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        *unflushed = true;
        out.advance(n);
    }
    if *unflushed {
        ready!(Pin::new(io).poll_flush(cx))?;
        *unflushed = false;
    }
    out.shrink(KEEP);
    Poll::Ready(Ok(()))
}
