//! Hedging: where a route asks for it, a request that may be run twice and is not answered soon is sent to
//! another endpoint too, and the first answer is taken.
//!
//! Promises: the other try is cancelled then, and its place given back; nothing of its interim answers
//! goes on; a second request is taken from the upstream's budget.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use smallvec::SmallVec;
use tokio::time::Instant;

use super::forward::{Answered, Asked, Try, once};
use super::tunnel::Switched;
use crate::balance::InFlight;
use crate::config::model::{self, HedgeAfter};
use crate::error::Result;
use crate::http::claim::Race;
use crate::http::deadline::Deadline;
use crate::http::{Body, Responder};
use crate::telemetry::{Latency, Traffic};

/// How often a route's latency is looked at, and for how long it is remembered, at least.
const LOOK: Duration = Duration::from_secs(1);
const REMEMBERED: Duration = Duration::from_secs(10);

/// So many requests say what is usual.
const ENOUGH: u64 = 20;

/// When a route's requests are sent a second time.
#[derive(Debug)]
pub(super) enum Hedge {
    /// After so long.
    After(Duration),
    /// After as long as this share of them takes.
    Usual(Usual),
}

/// What a share of a route's requests lately took at most.
#[derive(Debug)]
pub(super) struct Usual {
    share: f64,
    begun: Instant,
    /// When it is to be looked at next, in milliseconds since `begun`.
    next: AtomicU64,
    /// In nanoseconds; 0: it is not known.
    took: AtomicU64,
    /// What had been counted before what is remembered, and some time later, and when that was.
    counted: Mutex<(Latency, Latency, Duration)>,
}

impl Hedge {
    /// What the configuration says.
    pub(super) fn new(config: &model::Hedge) -> Self {
        match config.after {
            HedgeAfter::Time(time) => Hedge::After(time.0),
            HedgeAfter::Percentile(percent) => Hedge::Usual(Usual::new(f64::from(percent) / 100.0)),
        }
    }

    /// How long an answer is waited for at `now`; none while that is not known.
    pub(super) fn after(&self, traffic: &Traffic, now: Instant) -> Option<Duration> {
        match self {
            Hedge::After(time) => Some(*time),
            Hedge::Usual(usual) => usual.now(|| traffic.snapshot().latency, now),
        }
    }
}

impl Usual {
    fn new(share: f64) -> Self {
        Self {
            share,
            begun: Instant::now(),
            next: AtomicU64::new(0),
            took: AtomicU64::new(0),
            counted: Mutex::default(),
        }
    }

    fn now(&self, count: impl FnOnce() -> Latency, now: Instant) -> Option<Duration> {
        let age = now.saturating_duration_since(self.begun);
        let millis = age.as_millis() as u64;
        if millis >= self.next.load(Relaxed)
            // Whoever else looks at it does so for all.
            && let Ok(mut counted) = self.counted.try_lock()
        {
            self.next.store(millis + LOOK.as_millis() as u64, Relaxed);
            let (before, later, since) = &mut *counted;
            let all = count();
            let lately = all.since(before);
            let took = lately.quantile(self.share).filter(|_| lately.count() >= ENOUGH);
            let nanos = took.map_or(0, |took| u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
            self.took.store(nanos, Relaxed);
            if age >= *since + REMEMBERED {
                *before = std::mem::replace(later, all);
                *since = age;
            }
        }
        let nanos = self.took.load(Relaxed);
        (nanos != 0).then(|| Duration::from_nanos(nanos))
    }
}

type Running<'a> = Pin<Box<dyn Future<Output = Result<Answered<Box<Switched>>>> + 'a>>;

/// Tries a request at `place`, and if no answer has come for `after` at another endpoint too, which is then
/// among `tried`. An error is that of the try that failed last.
pub(super) async fn hedged(
    asked: &Asked<'_, '_, '_>,
    place: InFlight,
    this: &Try,
    after: Duration,
    respond: &mut Responder<'_>,
    tried: &mut SmallVec<[u64; 4]>,
) -> Result<Answered<Box<Switched>>> {
    let race = Race::new(respond);
    let here = place.endpoint().id;
    let mut first: Running<'_> = Box::pin(async {
        // Its place is given back with it.
        let place = place;
        let mut respond = race.runner(FIRST);
        once(asked, &place, this, &mut respond).await
    });
    let mut soon = Deadline::since(this.begun, after);
    let early = poll_fn(|cx| match first.as_mut().poll(cx) {
        Poll::Ready(done) => Poll::Ready(Some(done)),
        Poll::Pending => soon.poll(cx).map(|()| None),
    });
    if let Some(done) = early.await {
        return done;
    }
    let mut none = Body::Empty;
    let body = asked.body.copy(&mut none).filter(|_| race.winner().is_none() && !this.answered.get());
    let Some(body) = body else { return first.await };
    let Some(place) = elsewhere(asked, here).await else { return first.await };
    tracing::debug!(endpoint = %place.endpoint().address, "tried too, since the first is slow");
    tried.push(place.endpoint().id);
    let asked_too = Asked { body: &body, ..*asked };
    let that = Try::new(this.need, Instant::now());
    let second: Running<'_> = Box::pin(async {
        let place = place;
        let mut respond = race.runner(SECOND);
        once(&asked_too, &place, &that, &mut respond).await
    });
    let (done, last) = faster(&race, [Some(first), Some(second)]).await;
    if race.winner() == Some(SECOND) {
        asked.route().budget.won();
    }
    if last == SECOND {
        that.pass_to(this);
    }
    done
}

const FIRST: u8 = 0;
const SECOND: u8 = 1;

/// A place with another endpoint that has not just failed, if the budget has one for it.
async fn elsewhere(asked: &Asked<'_, '_, '_>, here: u64) -> Option<InFlight> {
    let route = asked.route();
    // While there is no room, it is not the slow one that is to be helped.
    let upstream = &route.upstream;
    let tried = [here];
    let place = upstream.pick_now(&asked.want(&tried, Instant::now()), &**asked.worker).await?;
    if place.endpoint().is_paused() {
        return None;
    }
    asked.worker.shared.leads_away(route.direction, place.endpoint().address).ok()?;
    asked.tries.hedge().then_some(place)
}

/// Waits for the first of both that is answered; the other is dropped as soon as that is known. Of two that
/// fail, for the one that fails last. With its number.
async fn faster(
    race: &Race<'_, '_>,
    mut both: [Option<Running<'_>>; 2],
) -> (Result<Answered<Box<Switched>>>, u8) {
    poll_fn(|cx: &mut Context<'_>| {
        for number in [FIRST, SECOND] {
            let [first, second] = &mut both;
            let (one, other) = if number == FIRST { (first, second) } else { (second, first) };
            let Some(running) = one else { continue };
            let done = running.as_mut().poll(cx);
            if race.winner() == Some(number) {
                *other = None;
            }
            match done {
                Poll::Ready(Err(_)) if other.is_some() => *one = None,
                Poll::Ready(done) => return Poll::Ready((done, number)),
                Poll::Pending => {}
            }
        }
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::sync::Arc;

    use crate::config::model::Direction;
    use crate::telemetry::Metrics;

    #[tokio::test(start_paused = true)]
    async fn what_is_usual_is_what_was_lately() {
        let traffic = Metrics::new(1).traffic(Direction::Outbound, &Arc::from("orders"), "route");
        let hedge = Hedge::Usual(Usual::new(0.95));
        let after = || hedge.after(&traffic, Instant::now());
        let (fast, slow) = (Duration::from_millis(10), Duration::from_millis(500));
        let near = |expected: Duration| {
            let after = after().expect("known").as_secs_f64();
            assert!((after / expected.as_secs_f64() - 1.0).abs() <= Latency::ERROR, "{after}");
        };
        assert_eq!(after(), None, "nothing is known yet");
        (0..19).for_each(|_| traffic.finished(0, 200, fast));
        tokio::time::advance(LOOK).await;
        assert_eq!(after(), None, "too little");
        (0..100).for_each(|_| traffic.finished(0, 200, fast));
        assert_eq!(after(), None, "it is not looked at all the time");
        tokio::time::advance(LOOK).await;
        near(fast);
        // More than one in twenty is slow.
        (0..20).for_each(|_| traffic.finished(0, 200, slow));
        tokio::time::advance(LOOK).await;
        near(slow);
        for _ in 0..30 {
            (0..10).for_each(|_| traffic.finished(0, 200, fast));
            tokio::time::advance(LOOK).await;
            after();
        }
        near(fast);
        tokio::time::advance(REMEMBERED * 3).await;
        after();
        tokio::time::advance(REMEMBERED).await;
        after();
        tokio::time::advance(REMEMBERED).await;
        assert_eq!(after(), None, "of what nobody asks for nothing is usual");
    }
}
