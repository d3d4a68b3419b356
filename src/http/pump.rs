//! Carries a body from where it arrives to where it goes, one frame at a time: what the sink does
//! not take is not read, so that a slow reader never grows the proxy's memory.

use std::future::Future;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::time::timeout;

use super::body::Replay;
use super::h1::parse::may_not_trail;
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
    /// Resolves when nobody takes anything any more. Where whoever awaits the other way notices it, it
    /// is not noticed here.
    fn gone(&mut self) -> impl Future<Output = ()> {
        std::future::pending()
    }
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
                tokio::select! {
                    biased;
                    frame = timeout(silence, source.frame()) => frame.map_err(|_| Broken::Silent)?,
                    () = sink.gone() => return Err(gone()),
                }
            }
        };
        match frame.map_err(Broken::Source)? {
            Some(Frame::Data(data)) => sink.data(data).await.map_err(Broken::Sink)?,
            Some(Frame::Trailers(mut trailers)) => {
                trailers.remove_where(may_not_trail);
                return sink.end(Some(*trailers)).await.map_err(Broken::Sink);
            }
            None => return sink.end(None).await.map_err(Broken::Sink),
        }
    }
}

/// That nobody takes a body any more.
pub fn gone() -> Broken {
    Broken::Sink(io::ErrorKind::BrokenPipe.into())
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
    ($($type:ty $({ $($more:tt)* })?),+) => {$(
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

            $($($more)*)?
        }
    )+};
}

sinks!(h1::Writer, h2::Sink, Responder<'_> {
    async fn gone(&mut self) {
        Responder::gone(self).await;
    }
});
