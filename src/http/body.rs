//! Bodies: a stream of frames from either protocol, read as fast as the other side takes them.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};

use super::{Fields, Length, h1, mesh};

/// A piece of a body.
#[derive(Debug)]
pub enum Frame {
    /// Bytes; never empty.
    Data(Bytes),
    /// Trailing fields: the last frame.
    Trailers(Box<Fields>),
}

/// Why a body ended before its end. Whose side that is, the caller knows.
#[derive(Debug)]
pub enum BodyError {
    /// The framing cannot be read.
    Malformed(&'static str),
    /// The connection or stream was lost.
    Gone(io::Error),
    /// The peer reset the stream.
    Reset(::h2::Error),
}

/// A body that arrives.
#[derive(Debug)]
pub enum Body<'a> {
    /// No body.
    Empty,
    /// From an HTTP/1 connection.
    H1(h1::Incoming<'a>),
    /// From an HTTP/2 stream.
    H2(::h2::RecvStream),
    /// From a stream between sidecars.
    Mesh(mesh::Incoming),
}

impl Body<'_> {
    /// The next frame, or none at the end. More than `room` bytes need not be read for it.
    pub fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
        room: usize,
    ) -> Poll<Result<Option<Frame>, BodyError>> {
        match self {
            Body::Empty => Poll::Ready(Ok(None)),
            Body::H1(incoming) => incoming.poll_frame(cx, room),
            Body::H2(stream) => poll_h2_frame(stream, cx),
            Body::Mesh(incoming) => incoming.poll_frame(cx),
        }
    }

    /// The next frame, or none at the end. Safe to cancel: what has arrived stays.
    pub async fn frame(&mut self) -> Result<Option<Frame>, BodyError> {
        poll_fn(|cx| self.poll_frame(cx, usize::MAX)).await
    }

    /// Whether its end has been reached.
    pub fn is_done(&self) -> bool {
        match self {
            Body::Empty => true,
            Body::H1(incoming) => incoming.is_done(),
            Body::H2(stream) => stream.is_end_stream(),
            Body::Mesh(incoming) => incoming.is_done(),
        }
    }
}

fn poll_h2_frame(
    stream: &mut ::h2::RecvStream,
    cx: &mut Context<'_>,
) -> Poll<Result<Option<Frame>, BodyError>> {
    while let Some(data) = ready!(stream.poll_data(cx)) {
        let data = data.map_err(BodyError::Reset)?;
        // Credit returns as the consumer takes the bytes: the next frame is asked for only once
        // this one has been passed on.
        let _ = stream.flow_control().release_capacity(data.len());
        if !data.is_empty() {
            return Poll::Ready(Ok(Some(Frame::Data(data))));
        }
    }
    let trailers = ready!(stream.poll_trailers(cx)).map_err(BodyError::Reset)?;
    Poll::Ready(Ok(trailers.map(|map| Frame::Trailers(Box::new(map.into())))))
}

/// Keeps the beginning of a request's body, so that it can be sent again on another connection. It is
/// shared by who sends it and who wants to know how far it has come.
#[derive(Debug)]
pub struct Replay<'a, 'b>(RefCell<Kept<'a, 'b>>);

#[derive(Debug)]
struct Kept<'a, 'b> {
    body: &'a mut Body<'b>,
    /// A copy: the pieces themselves would hold on to the buffers that they were read into.
    kept: BytesMut,
    /// Bytes that may still be kept. None: too much has passed to begin again.
    room: Option<usize>,
    /// Whether what is kept is to be sent again first.
    again: bool,
    /// Whether more of it was asked for than has come.
    awaited: bool,
    ended: Option<Option<Box<Fields>>>,
}

impl<'a, 'b> Replay<'a, 'b> {
    /// A body of which up to `room` bytes are kept.
    pub fn new(body: &'a mut Body<'b>, room: usize) -> Self {
        let kept =
            Kept { body, kept: BytesMut::new(), room: Some(room), again: false, awaited: false, ended: None };
        Self(RefCell::new(kept))
    }

    /// As [`Body::poll_frame`].
    pub fn poll_frame(&self, cx: &mut Context<'_>, room: usize) -> Poll<Result<Option<Frame>, BodyError>> {
        self.0.borrow_mut().poll_frame(cx, room)
    }

    /// The same body once more, beside this one, if it has come to its end and is kept. `none` is what the
    /// copy has to come.
    pub fn copy<'c, 'd>(&self, none: &'c mut Body<'d>) -> Option<Replay<'c, 'd>> {
        let Kept { body, kept, room, ended, .. } = &*self.0.borrow();
        let ended = if matches!(body, Body::Empty) { Some(None) } else { ended.clone() };
        (room.is_some() && ended.is_some()).then(|| {
            let (kept, room) = (kept.clone(), *room);
            Replay(RefCell::new(Kept { body: none, kept, room, again: true, awaited: false, ended }))
        })
    }

    /// Begins again from the first byte, if that [is kept](Self::is_kept).
    pub fn rewind(&self) {
        self.0.borrow_mut().again = true;
    }

    /// Whether its first byte has not been let go.
    pub fn is_kept(&self) -> bool {
        self.0.borrow().room.is_some()
    }

    /// Whether more of it is waited for.
    pub fn is_awaited(&self) -> bool {
        self.0.borrow().awaited
    }

    /// Whether there is no body at all.
    pub fn is_empty(&self) -> bool {
        matches!(self.0.borrow().body, Body::Empty)
    }
}

impl Kept<'_, '_> {
    fn poll_frame(&mut self, cx: &mut Context<'_>, room: usize) -> Poll<Result<Option<Frame>, BodyError>> {
        if std::mem::take(&mut self.again) && !self.kept.is_empty() {
            return Poll::Ready(Ok(Some(Frame::Data(Bytes::copy_from_slice(&self.kept)))));
        }
        if let Some(trailers) = &self.ended {
            return Poll::Ready(Ok(trailers.clone().map(Frame::Trailers)));
        }
        let frame = self.body.poll_frame(cx, room);
        self.awaited = frame.is_pending();
        let frame = ready!(frame)?;
        match &frame {
            Some(Frame::Data(data)) => self.keep(data),
            Some(Frame::Trailers(trailers)) => self.ended = Some(Some(trailers.clone())),
            None => self.ended = Some(None),
        }
        Poll::Ready(Ok(frame))
    }

    fn keep(&mut self, data: &Bytes) {
        self.room = self.room.and_then(|room| room.checked_sub(data.len()));
        if self.room.is_some() {
            self.kept.extend_from_slice(data);
        } else {
            self.kept = BytesMut::new();
        }
    }
}

impl Length {
    /// The framing of a body of which nothing but the length is known.
    pub fn is_empty(self) -> bool {
        matches!(self, Length::None | Length::Sized(0))
    }
}
