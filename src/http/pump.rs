//! Carries a body from where it arrives to where it goes, one frame at a time: what the sink does
//! not take is not read, so that a slow reader never grows the proxy's memory.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;

use super::body::Replay;
use super::deadline::Deadline;
use super::h1::parse::may_not_trail;
use super::{Body, BodyError, Fields, Frame, Responder, h1, h2, mesh};

/// Where a body arrives.
pub trait Source {
    /// The next frame, or none at the end.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, BodyError>>;
}

/// Where a body goes.
pub trait Sink {
    /// Ready when there is room for a piece.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// Takes a piece, if there is room; small ones may wait for company.
    fn data(&mut self, data: Bytes);
    /// Ends the body.
    fn end(&mut self, trailers: Option<Fields>);
    /// Sends all that waits.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// Ready when nobody wants the body any more.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()>;
}

/// Why a body did not come through.
#[derive(Debug)]
pub enum Broken {
    /// It ended before its end.
    Source(BodyError),
    /// Nothing came for longer than allowed.
    Silent,
    /// It could not be passed on.
    Sink(io::Error),
    /// Nothing was taken for longer than allowed.
    Stuck,
}

/// A body on its way; what [`pump`] returns.
#[derive(Debug)]
pub struct Pump<'a, S, K> {
    source: &'a mut S,
    sink: &'a mut K,
    patience: Deadline,
    ended: bool,
}

/// Carries a whole body. `silence` is the longest that nothing may come, or be taken.
pub fn pump<'a, S: Source, K: Sink>(source: &'a mut S, sink: &'a mut K, silence: Duration) -> Pump<'a, S, K> {
    Pump { source, sink, patience: Deadline::new(silence), ended: false }
}

impl<S: Source, K: Sink> Future for Pump<'_, S, K> {
    type Output = Result<(), Broken>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { source, sink, patience, ended } = &mut *self;
        loop {
            let room = if *ended { sink.poll_flush(cx) } else { sink.poll_room(cx) };
            match room {
                Poll::Ready(taken) => taken.map_err(Broken::Sink)?,
                Poll::Pending => return patience.poll(cx).map(|()| Err(Broken::Stuck)),
            }
            if *ended {
                return Poll::Ready(Ok(()));
            }
            let Poll::Ready(frame) = source.poll_frame(cx) else {
                // What was there already is gathered into one write; before waiting, all is sent.
                if let Poll::Ready(sent) = sink.poll_flush(cx) {
                    sent.map_err(Broken::Sink)?;
                    if sink.poll_gone(cx).is_ready() {
                        return Poll::Ready(Err(Broken::Sink(io::ErrorKind::BrokenPipe.into())));
                    }
                }
                ready!(patience.poll(cx));
                return Poll::Ready(Err(Broken::Silent));
            };
            patience.reset();
            match frame.map_err(Broken::Source)? {
                Some(Frame::Data(data)) => sink.data(data),
                Some(Frame::Trailers(mut trailers)) => {
                    trailers.remove_where(may_not_trail);
                    sink.end(Some(*trailers));
                    *ended = true;
                }
                None => {
                    sink.end(None);
                    *ended = true;
                }
            }
        }
    }
}

impl Source for Body<'_> {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, BodyError>> {
        Body::poll_frame(self, cx)
    }
}

impl Source for Replay<'_, '_> {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, BodyError>> {
        Replay::poll_frame(self, cx)
    }
}

macro_rules! sinks {
    ($($type:ty),+) => {$(
        impl Sink for $type {
            fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                <$type>::poll_room(self, cx)
            }

            fn data(&mut self, data: Bytes) {
                <$type>::data(self, data);
            }

            fn end(&mut self, trailers: Option<Fields>) {
                <$type>::end(self, trailers);
            }

            fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                <$type>::poll_flush(self, cx)
            }

            fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
                <$type>::poll_gone(self, cx)
            }
        }
    )+};
}

sinks!(h1::Writer, h2::Sink, mesh::Sink, Responder<'_>);
