//! Bodies: a stream of frames from either protocol, read as fast as the other side takes them.

use std::future::poll_fn;
use std::io;

use bytes::Bytes;

use super::{Fields, Length, h1};

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
}

impl Body<'_> {
    /// The next frame, or none at the end. Safe to cancel: what has arrived stays.
    pub async fn frame(&mut self) -> Result<Option<Frame>, BodyError> {
        match self {
            Body::Empty => Ok(None),
            Body::H1(incoming) => incoming.frame().await,
            Body::H2(stream) => h2_frame(stream).await,
        }
    }

    /// Whether its end has been reached.
    pub fn is_done(&self) -> bool {
        match self {
            Body::Empty => true,
            Body::H1(incoming) => incoming.is_done(),
            Body::H2(stream) => stream.is_end_stream(),
        }
    }
}

async fn h2_frame(stream: &mut ::h2::RecvStream) -> Result<Option<Frame>, BodyError> {
    loop {
        if let Some(data) = poll_fn(|cx| stream.poll_data(cx)).await {
            let data = data.map_err(BodyError::Reset)?;
            // Credit returns as the consumer takes the bytes: the next frame is asked for only
            // once this one has been passed on.
            let _ = stream.flow_control().release_capacity(data.len());
            if !data.is_empty() {
                return Ok(Some(Frame::Data(data)));
            }
        } else {
            let trailers = poll_fn(|cx| stream.poll_trailers(cx)).await.map_err(BodyError::Reset)?;
            return Ok(trailers.map(|map| Frame::Trailers(Box::new(map.into()))));
        }
    }
}

/// Keeps the beginning of a request's body, so that it can be sent again on another connection.
#[derive(Debug)]
pub struct Replay<'a, 'b> {
    body: &'a mut Body<'b>,
    kept: Vec<Bytes>,
    /// Bytes that may still be kept. None: too much has passed to begin again.
    room: Option<usize>,
    next: usize,
    ended: Option<Option<Box<Fields>>>,
}

impl<'a, 'b> Replay<'a, 'b> {
    /// A body of which up to `room` bytes are kept.
    pub fn new(body: &'a mut Body<'b>, room: usize) -> Self {
        Self { body, kept: Vec::new(), room: Some(room), next: 0, ended: None }
    }

    /// As [`Body::frame`].
    pub async fn frame(&mut self) -> Result<Option<Frame>, BodyError> {
        if let Some(data) = self.kept.get(self.next) {
            self.next += 1;
            return Ok(Some(Frame::Data(data.clone())));
        }
        if let Some(trailers) = &self.ended {
            return Ok(trailers.clone().map(Frame::Trailers));
        }
        match self.body.frame().await? {
            Some(Frame::Data(data)) => {
                self.keep(&data);
                Ok(Some(Frame::Data(data)))
            }
            Some(Frame::Trailers(trailers)) => {
                self.ended = Some(Some(trailers.clone()));
                Ok(Some(Frame::Trailers(trailers)))
            }
            None => {
                self.ended = Some(None);
                Ok(None)
            }
        }
    }

    fn keep(&mut self, data: &Bytes) {
        self.room = self.room.and_then(|room| room.checked_sub(data.len()));
        if self.room.is_some() {
            self.kept.push(data.clone());
            self.next += 1;
        } else {
            self.kept.clear();
            self.next = 0;
        }
    }

    /// Begins again from the first byte; false if that has already been let go.
    pub fn rewind(&mut self) -> bool {
        self.next = 0;
        self.room.is_some()
    }

    /// Whether there is no body at all.
    pub fn is_empty(&self) -> bool {
        matches!(self.body, Body::Empty)
    }
}

impl Length {
    /// The framing of a body of which nothing but the length is known.
    pub fn is_empty(self) -> bool {
        matches!(self, Length::None | Length::Sized(0))
    }
}
