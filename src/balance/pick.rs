//! Taking a place for a request: choose, ask if need be, wait while there is no room.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};

use super::place::{InFlight, Place};
use super::waiting::Turn;
use super::{Asked, Endpoint, None, Now, Question, Taken, Upstream};
use crate::error::{Error, Reason, Result, Retry};

const MAX_IN_FLIGHT: &str = "max_in_flight requests are in flight";

/// What a request wants of an upstream.
#[derive(Debug, Clone, Copy)]
pub struct Want<'a> {
    /// Endpoints that it has been to.
    pub tried: &'a [u64],
    /// When this try began.
    pub begun: Instant,
    /// When its answer is of no use any more.
    pub deadline: Option<Instant>,
    /// How long an answer may take before that is the endpoint's failure.
    pub patience: Option<Duration>,
    /// What it is kept to one endpoint by.
    pub key: Option<u64>,
}

/// Asks endpoints how full they are.
pub trait Asks {
    /// Asks each that can be asked at once, and has the upstream [`hear`](Upstream::hear) what they say;
    /// ready when all have.
    fn ask(&self, upstream: &Arc<Upstream>, endpoints: Asked) -> impl Future<Output = ()>;
}

/// Whether there is a place.
enum Seat {
    Taken(Taken),
    /// These endpoints are to be asked first, and no longer than that.
    Ask(Asked, Duration),
    None(None),
}

/// Why a request has no place at once, and what it has until then.
pub struct Wait(Why);

enum Why {
    /// These endpoints are to be asked first, and no longer than that.
    Ask(Place, Asked, Duration),
    None(None),
}

impl Upstream {
    /// Takes a place with the endpoint that a request is answered by first, of those that it was not tried
    /// at. While there is no room, it waits for some, as long as the upstream's queue and its own deadline
    /// allow.
    pub async fn pick(self: &Arc<Self>, want: &Want<'_>, asks: &impl Asks) -> Result<InFlight> {
        match self.pick_at_once(want) {
            Ok(in_flight) => Ok(in_flight),
            Err(wait) => Box::pin(self.pick_after(wait, want, asks)).await,
        }
    }

    /// As [`pick`](Self::pick), as far as nothing has to be waited for, which is nearly always.
    pub fn pick_at_once(self: &Arc<Self>, want: &Want<'_>) -> std::result::Result<InFlight, Wait> {
        self.seat(want, Now::at(want.begun.into_std()), Option::None)
    }

    /// The rest of [`pick`](Self::pick).
    pub async fn pick_after(
        self: &Arc<Self>,
        wait: Wait,
        want: &Want<'_>,
        asks: &impl Asks,
    ) -> Result<InFlight> {
        let why = match self.ask(wait, want, asks).await {
            Ok(in_flight) => return Ok(in_flight),
            // Whoever waits takes any room that there is: a turn is of use to all who wait, or to none.
            Err(None::Full) if !want.tried.is_empty() => Err(None::Full),
            Err(None::Full) => self.queue(want, asks).await,
            Err(None::Empty) if want.tried.is_empty() => {
                self.first_resolution().await?;
                self.seat_or_ask(want, Now::read(), asks, Option::None).await
            }
            Err(None::Empty) => Err(None::Empty),
        };
        why.map_err(|none| match none {
            None::Full if self.in_flight() >= self.spec.max_in_flight => self.no_room(MAX_IN_FLIGHT),
            None::Full => self.no_room("every endpoint has as many requests as it takes"),
            None::Empty if want.tried.is_empty() => {
                self.error(Reason::BalanceNoEndpoint, "its source gives no endpoint")
            }
            None::Empty => self.error(Reason::BalanceNoEndpoint, "every endpoint was tried"),
        })
    }

    /// Takes a place, if there is one at `now`. `turn`: whose it is; without one, those who wait come first.
    fn seat(
        self: &Arc<Self>,
        want: &Want<'_>,
        now: Now,
        turn: Option<Turn>,
    ) -> std::result::Result<InFlight, Wait> {
        if turn.is_none() && !self.live.waiting.is_empty() {
            return Err(Wait(Why::None(None::Full)));
        }
        let place = Place::of(self, self.most());
        if let Some(turn) = turn {
            turn.used();
        }
        let Some(place) = place else { return Err(Wait(Why::None(None::Full))) };
        match self.take(want, now, true) {
            Seat::Ask(some, worth) => Err(Wait(Why::Ask(place, some, worth))),
            seat => seated(seat, place, want, now).map_err(|none| Wait(Why::None(none))),
        }
    }

    async fn seat_or_ask(
        self: &Arc<Self>,
        want: &Want<'_>,
        now: Now,
        asks: &impl Asks,
        turn: Option<Turn>,
    ) -> std::result::Result<InFlight, None> {
        match self.seat(want, now, turn) {
            Ok(in_flight) => Ok(in_flight),
            Err(wait) => self.ask(wait, want, asks).await,
        }
    }

    /// Asks, if that is what is waited for, and takes a place then, if there is one.
    async fn ask(
        self: &Arc<Self>,
        wait: Wait,
        want: &Want<'_>,
        asks: &impl Asks,
    ) -> std::result::Result<InFlight, None> {
        match wait.0 {
            Why::None(none) => Err(none),
            Why::Ask(place, some, worth) => {
                // Whether all have answered in time or not, what is known then decides.
                let _ = timeout(worth, asks.ask(self, some)).await;
                let now = Now::read();
                seated(self.take(want, now, false), place, want, now)
            }
        }
    }

    /// Takes a place of the endpoint that is best now. It takes no lock, and allocates nothing.
    fn take(&self, want: &Want<'_>, now: Now, may_ask: bool) -> Seat {
        let candidates = self.live.candidates.load();
        let (endpoints, uneven) = (&candidates.endpoints, self.uneven(&candidates, now));
        loop {
            let question = Question { tried: want.tried, now, asked: !may_ask, uneven };
            let chosen = match want.key {
                Some(key) => self.live.crowd.stick(endpoints, &question, key),
                Option::None => self.live.crowd.choose(endpoints, &question),
            };
            let chosen = match chosen {
                Ok(chosen) => chosen,
                Err(none) => return Seat::None(none),
            };
            if may_ask
                && want.key.is_none()
                && let Some((some, worth)) = self.live.crowd.to_ask(endpoints, &chosen, &question)
            {
                return Seat::Ask(some, worth);
            }
            if let Some(taken) = Taken::of(chosen.endpoint, now) {
                return Seat::Taken(taken);
            }
            // Somebody took its last place since it was looked at.
        }
    }

    /// Waits for room.
    async fn queue(
        self: &Arc<Self>,
        want: &Want<'_>,
        asks: &impl Asks,
    ) -> std::result::Result<InFlight, None> {
        let queue = self.spec.queue;
        let since = Instant::now();
        let own = since + queue.time;
        let deadline = want.deadline.map_or(own, |deadline| deadline.min(own));
        let mut most = queue.most;
        loop {
            let waiter = self.live.waiting.join(since, deadline, most).ok_or(None::Full)?;
            // Who has waited, and found that somebody was faster, is not sent away for those behind him.
            most = usize::MAX;
            // What became free before we stood in the queue was given to nobody.
            if self.has_room() {
                self.live.waiting.next();
            }
            let Ok(Some(turn)) = timeout_at(deadline, waiter.turn()).await else { return Err(None::Full) };
            match self.seat_or_ask(want, Now::read(), asks, Some(turn)).await {
                Err(None::Full) => {}
                seated => return seated,
            }
        }
    }

    /// Whether one that waits would not have to any more.
    fn has_room(&self) -> bool {
        self.in_flight() < self.most() && !matches!(self.choose(&[]), Err(None::Full))
    }

    /// As [`pick`](Self::pick), for one who does without a place if there is none now.
    pub async fn pick_now(self: &Arc<Self>, want: &Want<'_>, asks: &impl Asks) -> Option<InFlight> {
        self.seat_or_ask(want, Now::at(want.begun.into_std()), asks, Option::None).await.ok()
    }

    /// Takes a place with one endpoint at `now`, whatever its saturation. `always`: whatever else there is in
    /// flight.
    pub fn place_at(
        self: &Arc<Self>,
        endpoint: &Arc<Endpoint>,
        now: Instant,
        always: bool,
    ) -> Result<InFlight> {
        let most = if always { u32::MAX } else { self.most() };
        let place = Place::of(self, most).ok_or_else(|| {
            if self.spec.learns_most {
                self.live.learned.refused();
            }
            self.no_room(MAX_IN_FLIGHT)
        })?;
        Ok(InFlight::new(Taken::anyway(endpoint), place, Now::at(now.into_std()), Option::None))
    }

    fn no_room(&self, why: &'static str) -> Error {
        let error = match self.spec.is_application {
            // Nobody has read it: its caller may send it elsewhere.
            true => self
                .error(Reason::AdmitFull, "the application has as many requests as it is given")
                .retry(Retry::Unprocessed),
            false => self.error(Reason::BalanceFull, why),
        };
        error.retry_after(Duration::from_secs(1))
    }
}

/// What becomes of a place in the upstream's count, by what there was at its endpoints.
fn seated(seat: Seat, place: Place, want: &Want<'_>, now: Now) -> std::result::Result<InFlight, None> {
    match seat {
        Seat::Taken(taken) => {
            // Who waited for his place, and had less than half of his time left, blames nobody for it.
            let begun = Now::at(want.begun.into_std());
            let late = want.patience.map(|patience| begun.after(patience).max(now.after(patience / 2)));
            Ok(InFlight::new(taken, place, now, late))
        }
        Seat::None(none) => {
            if want.tried.is_empty() {
                place.forgo();
            }
            Err(none)
        }
        // Nobody is asked twice.
        Seat::Ask(..) => Err(None::Full),
    }
}
