//! Carries a body from where it arrives to where it goes, one frame at a time: what the sink does
//! not take is not read, so that a slow reader never grows the proxy's memory.
//!
//! Neither side may make the other wait for ever: what does not come, comes too slowly, or is not
//! taken, is given up. Time is looked at only while there is nothing to do but wait.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::body::Replay;
use super::deadline::{Deadline, within};
use super::h1::parse::may_not_trail;
use super::{Body, BodyError, Fields, Frame, Responder, h1};
use crate::config::units::Rate;

/// Where a body arrives.
pub trait Source {
    /// The next frame, or none at the end. More than `room` bytes need not be read for it.
    fn poll_frame(&mut self, cx: &mut Context<'_>, room: usize) -> Poll<Result<Option<Frame>, BodyError>>;
}

/// Where a body goes.
pub trait Sink {
    /// Ready when there is room for a piece: with how much of one would leave at once. A larger one
    /// is taken too, and waits.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>>;
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
    /// It came more slowly than it must.
    Slow,
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
    /// In memory of its own: only what is sent to us has a rate that it must keep.
    arrival: Option<Box<Arrival>>,
    /// Which side was waited for last.
    waiting: Side,
    ended: bool,
    /// What its trailers say in gRPC.
    grpc: Option<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Source,
    Sink,
}

/// Carries a whole body. `silence` is the longest that nothing may come, and that a piece may take
/// to be taken. Returns the status of gRPC in its trailers.
pub fn pump<'a, S: Source, K: Sink>(source: &'a mut S, sink: &'a mut K, silence: Duration) -> Pump<'a, S, K> {
    let patience = Deadline::new(silence);
    Pump { source, sink, patience, arrival: None, waiting: Side::Source, ended: false, grpc: None }
}

/// Waits until what was sent has been taken, no longer than `limit`.
pub async fn taken(work: impl Future<Output = io::Result<()>>, limit: Duration) -> Result<(), Broken> {
    match within(limit, work).await {
        Some(done) => done.map_err(Broken::Sink),
        None => Err(Broken::Stuck),
    }
}

impl<S: Source, K: Sink> Pump<'_, S, K> {
    /// `least` must come, in bytes, of all the time that is spent waiting for the body.
    #[must_use]
    pub fn at_least(mut self, least: Option<Rate>) -> Self {
        self.arrival =
            least.map(|least| Box::new(Arrival { least, waited: Duration::ZERO, came: 0, wait: None }));
        self
    }

    /// Ready when a side has been waited for too long.
    fn poll_patience(&mut self, side: Side, cx: &mut Context<'_>) -> Poll<Broken> {
        if self.waiting != side {
            self.waiting = side;
            self.patience.reset();
        }
        let over = self.patience.poll(cx).is_ready();
        match (side, &mut self.arrival) {
            (Side::Source, _) if over => Poll::Ready(Broken::Silent),
            (Side::Source, None) => Poll::Pending,
            (Side::Source, Some(arrival)) => arrival.poll_late(cx).map(|()| Broken::Slow),
            (Side::Sink, _) if over => Poll::Ready(Broken::Stuck),
            (Side::Sink, arrival) => {
                // The time that the reader takes is not the sender's.
                arrival.iter_mut().for_each(|arrival| arrival.pause());
                Poll::Pending
            }
        }
    }
}

impl<S: Source, K: Sink> Future for Pump<'_, S, K> {
    type Output = Result<Option<u8>, Broken>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        loop {
            let room =
                if this.ended { this.sink.poll_flush(cx).map_ok(|()| 0) } else { this.sink.poll_room(cx) };
            let Poll::Ready(room) = room else { return this.poll_patience(Side::Sink, cx).map(Err) };
            let room = room.map_err(Broken::Sink)?;
            if this.ended {
                return Poll::Ready(Ok(this.grpc));
            }
            let Poll::Ready(frame) = this.source.poll_frame(cx, room) else {
                // What was there already is gathered into one write; before waiting, all is sent.
                match this.sink.poll_flush(cx) {
                    Poll::Ready(sent) => sent.map_err(Broken::Sink)?,
                    Poll::Pending => return this.poll_patience(Side::Sink, cx).map(Err),
                }
                if this.sink.poll_gone(cx).is_ready() {
                    return Poll::Ready(Err(Broken::Sink(io::ErrorKind::BrokenPipe.into())));
                }
                return this.poll_patience(Side::Source, cx).map(Err);
            };
            this.patience.reset();
            if let Some(arrival) = &mut this.arrival {
                arrival.pause();
            }
            match frame.map_err(Broken::Source)? {
                Some(Frame::Data(data)) => {
                    if let Some(arrival) = &mut this.arrival {
                        arrival.came += data.len() as u64;
                    }
                    this.sink.data(data);
                }
                Some(Frame::Trailers(mut trailers)) => {
                    trailers.remove_where(may_not_trail);
                    this.grpc = trailers.grpc_status();
                    this.sink.end(Some(*trailers));
                    this.ended = true;
                }
                None => {
                    this.sink.end(None);
                    this.ended = true;
                }
            }
        }
    }
}

/// How a body comes.
#[derive(Debug)]
struct Arrival {
    least: Rate,
    /// How long it was waited for, and what came, since this was last judged.
    waited: Duration,
    came: u64,
    /// Since when it is waited for, and when that is too long.
    wait: Option<(Instant, Deadline)>,
}

impl Arrival {
    /// To be polled while it is waited for; ready when it comes too slowly.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Self { least, waited, came, wait } = self;
        let (_, late) = wait.get_or_insert_with(|| {
            if *waited >= least.per && *came >= least.count {
                (*waited, *came) = (Duration::ZERO, 0);
            }
            let left = if *came < least.count { least.per.saturating_sub(*waited) } else { Duration::MAX };
            (Instant::now(), Deadline::new(left))
        });
        late.poll(cx)
    }

    /// It is not waited for any more.
    fn pause(&mut self) {
        if let Some((begun, _)) = self.wait.take() {
            self.waited += begun.elapsed();
        }
    }
}

impl Source for Body<'_> {
    fn poll_frame(&mut self, cx: &mut Context<'_>, room: usize) -> Poll<Result<Option<Frame>, BodyError>> {
        Body::poll_frame(self, cx, room)
    }
}

impl Source for &Replay<'_, '_> {
    fn poll_frame(&mut self, cx: &mut Context<'_>, room: usize) -> Poll<Result<Option<Frame>, BodyError>> {
        Replay::poll_frame(self, cx, room)
    }
}

macro_rules! sinks {
    ($($type:ty),+) => {$(
        impl Sink for $type {
            fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
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

sinks!(h1::Writer, Responder<'_>);

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::task::ready;

    use tokio::time::{Sleep, sleep};

    use super::super::deadline::GAP;
    use super::*;

    /// Pieces, each after a pause.
    struct Pieces(VecDeque<(Duration, &'static [u8])>, Option<Pin<Box<Sleep>>>);

    impl Source for Pieces {
        fn poll_frame(&mut self, cx: &mut Context<'_>, _: usize) -> Poll<Result<Option<Frame>, BodyError>> {
            let Some(&(pause, piece)) = self.0.front() else { return Poll::Ready(Ok(None)) };
            ready!(self.1.get_or_insert_with(|| Box::pin(sleep(pause))).as_mut().poll(cx));
            self.1 = None;
            self.0.pop_front();
            Poll::Ready(Ok(Some(Frame::Data(Bytes::from_static(piece)))))
        }
    }

    /// Takes each piece in so much time.
    struct Slowly(Duration, Option<Pin<Box<Sleep>>>);

    impl Sink for Slowly {
        fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
            if let Some(taking) = &mut self.1 {
                ready!(taking.as_mut().poll(cx));
                self.1 = None;
            }
            Poll::Ready(Ok(usize::MAX))
        }

        fn data(&mut self, _: Bytes) {
            assert!(self.1.is_none(), "a piece before there was room");
            self.1 = (self.0 > Duration::ZERO).then(|| Box::pin(sleep(self.0)));
        }

        fn end(&mut self, _: Option<Fields>) {}

        fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.poll_room(cx).map_ok(|_| ())
        }

        fn poll_gone(&mut self, _: &mut Context<'_>) -> Poll<()> {
            Poll::Pending
        }
    }

    const SECOND: Duration = Duration::from_secs(1);
    const LEAST: Option<Rate> = Some(Rate { count: 100, per: Duration::from_secs(60) });

    async fn carried(
        pieces: Vec<(Duration, &'static [u8])>,
        takes: Duration,
        least: Option<Rate>,
    ) -> Result<Option<u8>, Broken> {
        let (mut source, mut sink) = (Pieces(pieces.into(), None), Slowly(takes, None));
        pump(&mut source, &mut sink, SECOND * 300).at_least(least).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_byte_now_and_then_is_too_slow() {
        let drops = vec![(SECOND * 10, &b"x"[..]); 100];
        let begun = Instant::now();
        let broken = carried(drops.clone(), Duration::ZERO, LEAST).await.unwrap_err();
        let late = begun.elapsed() - SECOND * 60;
        assert!(matches!(broken, Broken::Slow) && late < GAP * 2, "{broken:?}, {late:?}");
        carried(drops, Duration::ZERO, None).await.expect("not looked at");
        // What began well is not let off.
        let mut fades = vec![(SECOND, &[b'x'; 99][..]); 100];
        fades.extend(vec![(SECOND * 200, &b"x"[..]); 100]);
        let broken = carried(fades, Duration::ZERO, LEAST).await.unwrap_err();
        assert!(matches!(broken, Broken::Slow), "{broken:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_steady_stream_and_a_slow_reader_are_not() {
        let steady = vec![(SECOND * 10, &[b'x'; 20][..]); 1000];
        carried(steady, Duration::ZERO, LEAST).await.expect("as much as it must");
        // The time that the reader takes is not the sender's.
        let pieces = vec![(Duration::from_millis(100), &[b'x'; 20][..]); 100];
        carried(pieces, SECOND * 100, LEAST).await.expect("the reader is slow");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_and_a_stall_end_it() {
        let silent = carried(vec![(SECOND * 301, b"x")], Duration::ZERO, None).await.unwrap_err();
        assert!(matches!(silent, Broken::Silent), "{silent:?}");
        let stuck = carried(vec![(SECOND, b"x")], SECOND * 301, None).await.unwrap_err();
        assert!(matches!(stuck, Broken::Stuck), "{stuck:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_wait_for_one_side_does_not_shorten_that_for_the_other() {
        let each_in_time = vec![(SECOND * 200, &b"x"[..]); 3];
        carried(each_in_time, SECOND * 200, None).await.expect("neither is late");
    }
}
