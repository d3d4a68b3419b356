//! The two bodies of a stream: one that leaves, one that arrives.

use std::fmt;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;

use super::link::{Shared, State};
use super::{Code, Lost, frame};
use crate::http::outgoing::{Outgoing, Stream};
use crate::http::{BodyError, Fields, Frame, Length};

/// A hold on one stream. When the last is dropped, what has not ended of the stream is reset.
pub struct Hold {
    pub(super) link: Rc<Shared>,
    pub(super) id: u32,
}

/// Of the connection there is nothing to print.
impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stream {}", self.id)
    }
}

impl Hold {
    /// A first hold on a stream.
    pub(super) fn new(link: Rc<Shared>, id: u32) -> Self {
        link.within(|state| state.hold(id));
        Self { link, id }
    }

    /// Does something with the connection, for this stream.
    pub(super) fn with<T>(&self, act: impl FnOnce(&mut State, u32) -> T) -> T {
        self.link.with(|state| act(state, self.id))
    }

    /// Ready when the peer, or the connection's end, has ended the stream before its time.
    pub(super) fn poll_gone(&self, cx: &Context<'_>) -> Poll<()> {
        self.link.within(|state| match state.stream(self.id) {
            Some(stream) if stream.lost.is_none() => {
                stream.wait(cx);
                Poll::Pending
            }
            _ => Poll::Ready(()),
        })
    }
}

impl Clone for Hold {
    fn clone(&self) -> Self {
        Self::new(self.link.clone(), self.id)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.with(State::release);
        // The last to leave, or one of those whom an end waits for: the task is to see.
        if Rc::strong_count(&self.link) == 2 || self.link.within(|state| state.has_parted()) {
            self.link.wake();
        }
    }
}

/// A body that leaves.
pub type Sink = Outgoing<Hold>;

/// The body that leaves on a stream; with `ended`, its head was all.
pub(super) fn leaving(hold: Hold, ended: bool) -> Sink {
    if ended {
        hold.link.within(|state| {
            if let Some(stream) = state.stream(hold.id) {
                stream.left = true;
            }
        });
    }
    Outgoing::new(hold, ended)
}

impl Stream for Hold {
    fn poll_send(&mut self, cx: &mut Context<'_>, piece: &mut Bytes, ends: bool) -> Poll<io::Result<()>> {
        self.with(|state, id| state.poll_send(cx, id, piece, ends)).map_err(io::Error::other)
    }

    fn room(&mut self) -> usize {
        self.link.within(|state| state.stream(self.id).map_or(0, |stream| stream.room()))
    }

    fn end(&mut self, trailers: Option<Fields>) -> io::Result<()> {
        self.with(|state, id| match trailers {
            Some(trailers) => {
                if let Some(stream) = state.stream(id)
                    && stream.lost.is_none()
                {
                    stream.left = true;
                    frame::put_trailers(&mut state.out.tail, id, &trailers);
                }
            }
            None => state.end(id),
        });
        Ok(())
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        Hold::poll_gone(self, cx)
    }
}

/// A body that arrives.
#[derive(Debug)]
pub struct Incoming {
    hold: Hold,
    /// What is still to come of an announced length.
    left: Option<u64>,
    done: bool,
}

impl Incoming {
    pub(super) fn new(hold: Hold, length: Length) -> Self {
        let left = match length {
            Length::Sized(n) => Some(n),
            Length::None => Some(0),
            Length::Stream => None,
        };
        Self { hold, left, done: false }
    }

    /// Whether its end has been reached.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// The next frame, or none at the end.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, BodyError>> {
        if self.done {
            return Poll::Ready(Ok(None));
        }
        let arrived = self.hold.with(|state, id| {
            let Some(stream) = state.stream(id) else { return Poll::Ready(Err(Lost::Reset(Code::CANCEL))) };
            if let Some(piece) = stream.pieces.pop_front() {
                state.took(id, piece.len());
                return Poll::Ready(Ok(Some(piece)));
            }
            if stream.arrived {
                return Poll::Ready(Ok(None));
            }
            if let Some(lost) = &stream.lost {
                return Poll::Ready(Err(lost.clone()));
            }
            stream.wait(cx);
            Poll::Pending
        });
        match ready!(arrived) {
            Ok(Some(piece)) => Poll::Ready(self.count(piece).map(|piece| Some(Frame::Data(piece)))),
            Ok(None) => {
                self.done = true;
                Poll::Ready(self.trailers())
            }
            Err(Lost::Malformed(why)) => Poll::Ready(Err(BodyError::Malformed(why))),
            Err(lost) => Poll::Ready(Err(BodyError::Gone(io::Error::other(lost)))),
        }
    }

    /// Holds what comes against what was announced: a body of another length would be read by the
    /// next hop as the beginning of another message.
    fn count(&mut self, piece: Bytes) -> Result<Bytes, BodyError> {
        let Some(left) = self.left else { return Ok(piece) };
        let left = left.checked_sub(piece.len() as u64);
        self.left = Some(left.ok_or_else(|| self.broken("a body longer than announced"))?);
        Ok(piece)
    }

    fn trailers(&mut self) -> Result<Option<Frame>, BodyError> {
        if self.left.is_some_and(|left| left > 0) {
            return Err(self.broken("a body shorter than announced"));
        }
        let trailers = self.hold.with(|state, id| state.stream(id).and_then(|stream| stream.trailers.take()));
        let Some(trailers) = trailers else { return Ok(None) };
        match frame::trailers(trailers, &self.hold.link.bounds) {
            Ok(trailers) => Ok(Some(Frame::Trailers(Box::new(trailers)))),
            Err(_) => Err(self.broken("trailers that are no fields")),
        }
    }

    fn broken(&self, why: &'static str) -> BodyError {
        self.hold.with(|state, id| state.reset(id, Code::PROTOCOL_ERROR));
        BodyError::Malformed(why)
    }
}
