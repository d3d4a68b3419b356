//! A request in flight, in the counts of its upstream and its endpoint, and what came of it.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::StatusCode;
use tokio::time::Instant;

use super::{Crowd, Endpoint, Now, Outcome, Taken, Upstream};
use crate::error::{Error, Reason};
use crate::http::Announcement;

/// A place in the upstream's count.
pub(super) struct Place {
    upstream: Arc<Upstream>,
    /// Requests that it had with this one.
    found: u32,
    /// There was no endpoint for it, so that it makes room for nobody who waits for one.
    forgone: bool,
}

impl Place {
    /// Counts a request; none, if the upstream has as many as there may be.
    pub(super) fn of(upstream: &Arc<Upstream>, most: u32) -> Option<Self> {
        // Counted first and given back if that was one too many: exact over all workers.
        let before = upstream.live.in_flight.fetch_add(1, Ordering::SeqCst);
        if before >= most {
            upstream.live.in_flight.fetch_sub(1, Ordering::SeqCst);
            return None;
        }
        Some(Self { upstream: upstream.clone(), found: before + 1, forgone: false })
    }

    /// Gives it back, as no endpoint had room: those who wait for one are not woken to find the same.
    pub(super) fn forgo(mut self) {
        self.forgone = true;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let live = &self.upstream.live;
        live.in_flight.fetch_sub(1, Ordering::SeqCst);
        if !self.forgone && !live.waiting.is_empty() {
            live.waiting.next();
        }
    }
}

/// A request in flight, counted at its endpoint and its upstream while this lives.
pub struct InFlight {
    // Before the place: who waits for one looks at the endpoints.
    taken: Taken,
    place: Place,
    /// Since when only the endpoint is waited for.
    since: Cell<Now>,
    /// When its answer is so late that this is the endpoint's failure.
    late: Cell<Option<Now>>,
    stage: Cell<Stage>,
}

/// How far a request in flight has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It has its place.
    Placed,
    /// Its endpoint has it.
    Sent,
    /// Its answer has begun.
    Answered,
    /// What came of it is known.
    Noted,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        // Given up by whoever waited for it: its time is over, or another try was answered first.
        if self.stage.get() != Stage::Noted {
            self.given_up(Now::at(Instant::now().into_std()));
        }
    }
}

impl InFlight {
    /// `since`: when it was given its place.
    pub(super) fn new(taken: Taken, place: Place, since: Now, late: Option<Now>) -> Self {
        Self { taken, place, since: Cell::new(since), late: Cell::new(late), stage: Cell::new(Stage::Placed) }
    }

    /// Notes when it was sent: what had to be waited for first is not the endpoint's time.
    pub fn sent(&self, at: Instant) {
        self.stage.set(Stage::Sent);
        self.since.set(Now::at(at.into_std()));
    }

    /// Notes that its answer has begun, and by when the whole of it is due, if that is known. Who gives it up now has not
    /// waited for an answer.
    pub fn answer_began(&self, due: Option<Instant>) {
        self.stage.set(Stage::Answered);
        let due = due.map(|due| Now::at(due.into_std()));
        self.late.set(due.and_then(|due| self.late.get().map(|late| late.max(due))));
        self.endpoint().answers();
    }

    /// Has whatever comes of it say nothing of its endpoint.
    pub fn excuse(&self) {
        self.stage.set(Stage::Noted);
    }

    /// The upstream.
    pub fn upstream(&self) -> &Arc<Upstream> {
        &self.place.upstream
    }

    /// Where it goes.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.taken.endpoint
    }

    /// Takes what the endpoint's sidecar says of how full it is.
    pub fn hear(&self, said: &Announcement, at: Instant) {
        self.crowd().hear(self.endpoint(), said, Now::at(at.into_std()));
    }

    /// Notes that it was answered at a time, and how: by its status, and that of gRPC if it has one.
    pub fn answered(&self, status: StatusCode, grpc: Option<u8>, at: Instant) {
        self.stage.set(Stage::Noted);
        let now = Now::at(at.into_std());
        let took = now.micros().saturating_sub(self.since.get().micros()) as f32;
        let wrong = Outcome::of(status, grpc);
        if !self.taken.chosen {
            return self.reached(wrong.is_none(), took, now);
        }
        if let Some(wrong) = wrong {
            return self.went_wrong(wrong, now);
        }
        self.crowd().answered(&self.taken, took, now);
    }

    /// It was answered after `took` microseconds, well or not, where nobody chose: what can be learned of that is what the application
    /// can do.
    fn reached(&self, well: bool, took: f32, now: Now) {
        self.endpoint().reached(false, now);
        let learned = &self.upstream().live.learned;
        if well && self.upstream().spec.is_application && !learned.is_up_to_date(now) {
            learned.answered(took, self.place.found, now.micros());
        }
    }

    /// Notes that it was not answered, and why.
    pub fn failed(&self, error: &Error) {
        let stage = self.stage.get();
        if stage == Stage::Noted {
            return;
        }
        match error.reason {
            // It has as many as it takes, and says so before it does anything.
            Reason::AdmitFull | Reason::UpstreamRefused => {
                self.crowd().refused(self.endpoint(), Now::read());
            }
            // As its sidecar says, which serves others of its pod.
            Reason::PoolConnect => self.unreached(),
            Reason::UpstreamReset => self.went_wrong(Outcome::Broken, Now::read()),
            Reason::UpstreamTimeout | Reason::UpstreamMalformed | Reason::UpstreamStatus => {
                self.went_wrong(Outcome::Lost, Now::read());
            }
            // Its caller has gone.
            Reason::HttpDownstreamGone if stage != Stage::Answered => self.given_up(Now::read()),
            _ => {}
        }
        self.stage.set(Stage::Noted);
    }

    /// It was given up: no failure, unless that was late, but a time that the endpoint took at least.
    fn given_up(&self, now: Now) {
        // Who waited for room among our own connections waited for nobody else.
        let for_room = self.stage.get() == Stage::Placed && self.upstream().is_waited_for();
        if for_room {
            return;
        }
        if self.late.get().is_some_and(|late| late <= now) {
            self.went_wrong(Outcome::Lost, now);
        } else if self.taken.chosen && self.stage.get() == Stage::Sent {
            let took = now.micros().saturating_sub(self.since.get().micros()) as f32;
            self.crowd().left(&self.taken, took, &self.upstream().spec.ejection, now);
        }
    }

    /// Notes that there was no connection for it.
    pub fn unreached(&self) {
        self.stage.set(Stage::Noted);
        self.endpoint().unreached(self.upstream().spec.ejection.longest, Now::read());
    }

    fn went_wrong(&self, outcome: Outcome, now: Now) {
        if !self.taken.chosen {
            return;
        }
        let upstream = self.upstream();
        let all = upstream.live.candidates.load();
        self.crowd().failed(&self.taken, outcome, &upstream.spec.ejection, &all.endpoints, now);
    }

    fn crowd(&self) -> &Crowd {
        &self.upstream().live.crowd
    }
}
