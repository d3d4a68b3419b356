//! Carries a body from where it arrives to where it goes, one frame at a time: what the sink does
//! not take is not read, so that a slow reader never grows the proxy's memory.
//!
//! Neither side may make the other wait for ever: what does not come, comes too slowly, or is not
//! taken, is given up. Time is looked at only while there is nothing to do but wait.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::time::{Instant, timeout};

use super::body::Replay;
use super::h1::parse::may_not_trail;
use super::{Body, BodyError, Fields, Frame, Responder, h1, h2};
use crate::config::units::Rate;

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

/// How long a body may make wait.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// The longest that nothing may come, and that a piece may take to be taken.
    pub silence: Duration,
    /// The least that must come, in bytes, of all the time that is spent waiting for it.
    pub least: Option<Rate>,
}

/// Why a body did not come through.
#[derive(Debug)]
pub enum Broken {
    /// It ended before its end.
    Source(BodyError),
    /// Nothing came for longer than allowed.
    Silent,
    /// It came more slowly than it must.
    Slow,
    /// Nothing was taken for longer than allowed.
    Stalled,
    /// It could not be passed on.
    Sink(io::Error),
}

/// Carries a whole body.
pub async fn pump(source: &mut impl Source, sink: &mut impl Sink, pace: Pace) -> Result<(), Broken> {
    let mut arrival = Arrival { pace, waited: Duration::ZERO, came: 0 };
    loop {
        // What is there already is gathered into one write; before waiting, all is sent.
        let frame = match source.frame().now_or_never() {
            Some(frame) => frame,
            None => {
                taken(sink.flush(), pace.silence).await?;
                arrival.of(source.frame()).await?
            }
        };
        match frame.map_err(Broken::Source)? {
            Some(Frame::Data(data)) => {
                arrival.came += data.len() as u64;
                taken(sink.data(data), pace.silence).await?;
            }
            Some(Frame::Trailers(mut trailers)) => {
                trailers.remove_where(may_not_trail);
                return taken(sink.end(Some(*trailers)), pace.silence).await;
            }
            None => return taken(sink.end(None), pace.silence).await,
        }
    }
}

/// Waits until a piece has been taken, no longer than `limit`.
pub async fn taken(work: impl Future<Output = io::Result<()>>, limit: Duration) -> Result<(), Broken> {
    let mut work = pin!(work);
    let done = match work.as_mut().now_or_never() {
        Some(done) => done,
        None => timeout(limit, work).await.map_err(|_| Broken::Stalled)?,
    };
    done.map_err(Broken::Sink)
}

/// How a body comes.
struct Arrival {
    pace: Pace,
    /// How long it was waited for, and what came, since this was last judged.
    waited: Duration,
    came: u64,
}

impl Arrival {
    async fn of<T>(&mut self, frame: impl Future<Output = T>) -> Result<T, Broken> {
        let Pace { silence, least } = self.pace;
        let Some(least) = least else { return timeout(silence, frame).await.map_err(|_| Broken::Silent) };
        if self.waited >= least.per && self.came >= least.count {
            (self.waited, self.came) = (Duration::ZERO, 0);
        }
        let left = least.per.saturating_sub(self.waited);
        let slow = self.came < least.count && left < silence;
        let begun = Instant::now();
        let arrived = timeout(if slow { left } else { silence }, frame).await;
        self.waited += begun.elapsed();
        arrived.map_err(|_| if slow { Broken::Slow } else { Broken::Silent })
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Pieces, each after a pause.
    struct Pieces(Vec<(Duration, &'static [u8])>);

    impl Source for Pieces {
        async fn frame(&mut self) -> Result<Option<Frame>, BodyError> {
            let Some((pause, _)) = self.0.first() else { return Ok(None) };
            tokio::time::sleep(*pause).await;
            Ok(Some(Frame::Data(Bytes::from_static(self.0.remove(0).1))))
        }
    }

    /// Takes each piece in so much time.
    struct Slowly(Duration);

    impl Sink for Slowly {
        async fn data(&mut self, _: Bytes) -> io::Result<()> {
            tokio::time::sleep(self.0).await;
            Ok(())
        }

        async fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }

        async fn end(&mut self, _: Option<Fields>) -> io::Result<()> {
            Ok(())
        }
    }

    const SECOND: Duration = Duration::from_secs(1);
    const PACE: Pace = Pace {
        silence: Duration::from_secs(300),
        least: Some(Rate { count: 100, per: Duration::from_secs(60) }),
    };

    async fn carried(
        pieces: Vec<(Duration, &'static [u8])>,
        takes: Duration,
        pace: Pace,
    ) -> Result<(), Broken> {
        pump(&mut Pieces(pieces), &mut Slowly(takes), pace).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_byte_now_and_then_is_too_slow() {
        let drops = vec![(SECOND * 10, &b"x"[..]); 100];
        let begun = Instant::now();
        let broken = carried(drops.clone(), Duration::ZERO, PACE).await.unwrap_err();
        assert!(matches!(broken, Broken::Slow) && begun.elapsed() == SECOND * 60, "{broken:?}");
        carried(drops, Duration::ZERO, Pace { least: None, ..PACE }).await.expect("not looked at");
        // What began well is not let off.
        let mut fades = vec![(SECOND, &[b'x'; 99][..]); 100];
        fades.extend(vec![(SECOND * 200, &b"x"[..]); 100]);
        let broken = carried(fades, Duration::ZERO, PACE).await.unwrap_err();
        assert!(matches!(broken, Broken::Slow), "{broken:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_steady_stream_and_a_slow_reader_are_not() {
        let steady = vec![(SECOND * 10, &[b'x'; 20][..]); 1000];
        carried(steady, Duration::ZERO, PACE).await.expect("as much as it must");
        // The time that the reader takes is not the sender's.
        let pieces = vec![(Duration::from_millis(100), &[b'x'; 20][..]); 100];
        carried(pieces, SECOND * 100, PACE).await.expect("the reader is slow");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_and_a_stall_end_it() {
        let pace = Pace { least: None, ..PACE };
        let silent = carried(vec![(SECOND * 301, b"x")], Duration::ZERO, pace).await.unwrap_err();
        assert!(matches!(silent, Broken::Silent), "{silent:?}");
        let stalled = carried(vec![(SECOND, b"x")], SECOND * 301, pace).await.unwrap_err();
        assert!(matches!(stalled, Broken::Stalled), "{stalled:?}");
    }
}
