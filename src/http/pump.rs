//! Carries a body from where it arrives to where it goes, one frame at a time: what the sink does
//! not take is not read, so that a slow reader never grows the proxy's memory.

use std::future::Future;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::time::timeout;

use super::body::Replay;
use super::{Body, BodyError, Fields, Frame, Responder, h1, h2};

/// Where a body arrives.
pub trait Source {
    /// The next frame, or none at the end. Safe to cancel.
    fn frame(&mut self) -> impl Future<Output = Result<Option<Frame>, BodyError>>;
}

/// Where a body goes.
pub trait Sink {
    /// Takes a piece; small ones may wait for company.
    fn data(&mut self, data: Bytes) -> impl Future<Output = io::Result<()>>;
    /// Sends what waits.
    fn flush(&mut self) -> impl Future<Output = io::Result<()>>;
    /// Ends the body.
    fn end(&mut self, trailers: Option<Fields>) -> impl Future<Output = io::Result<()>>;
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
}

/// Carries a whole body. `silence` is the longest that nothing may come.
pub async fn pump(source: &mut impl Source, sink: &mut impl Sink, silence: Duration) -> Result<(), Broken> {
    loop {
        // What is there already is gathered into one write; before waiting, all is sent.
        let frame = match source.frame().now_or_never() {
            Some(frame) => frame,
            None => {
                sink.flush().await.map_err(Broken::Sink)?;
                timeout(silence, source.frame()).await.map_err(|_| Broken::Silent)?
            }
        };
        match frame.map_err(Broken::Source)? {
            Some(Frame::Data(data)) => sink.data(data).await.map_err(Broken::Sink)?,
            Some(Frame::Trailers(trailers)) => return sink.end(Some(*trailers)).await.map_err(Broken::Sink),
            None => return sink.end(None).await.map_err(Broken::Sink),
        }
    }
}

impl Source for Body<'_> {
    async fn frame(&mut self) -> Result<Option<Frame>, BodyError> {
        Body::frame(self).await
    }
}

impl Source for Replay<'_, '_> {
    async fn frame(&mut self) -> Result<Option<Frame>, BodyError> {
        Replay::frame(self).await
    }
}

macro_rules! sinks {
    ($($type:ty),+) => {$(
        impl Sink for $type {
            async fn data(&mut self, data: Bytes) -> io::Result<()> {
                <$type>::data(self, data).await
            }

            async fn flush(&mut self) -> io::Result<()> {
                <$type>::flush(self).await
            }

            async fn end(&mut self, trailers: Option<Fields>) -> io::Result<()> {
                <$type>::end(self, trailers).await
            }
        }
    )+};
}

sinks!(h1::Writer, h2::Sink, Responder<'_>);
