//! A place in an endpoint's count, and what came of the request that had it.

use std::sync::Arc;

use super::load::Condition;
use super::{Crowd, Ejection, Endpoint, Now, Outcome};

/// A place of an endpoint, counted while this lives.
#[derive(Debug)]
pub struct Taken {
    /// Which.
    pub endpoint: Arc<Endpoint>,
    /// Requests that it had of this sidecar with this one.
    found: u32,
    /// It tries whether the endpoint still fails.
    tries_out: bool,
    /// It was chosen, so that what comes of it is of use to the next choice.
    pub(super) chosen: bool,
}

impl Taken {
    /// A place of an endpoint that was chosen, unless there is none any more.
    pub fn of(endpoint: &Arc<Endpoint>, now: Now) -> Option<Self> {
        let found = endpoint.load.begin()?;
        let tries_out = !endpoint.load.is_sound() && endpoint.load.try_out(now.millis());
        Some(Self { endpoint: endpoint.clone(), found, tries_out, chosen: true })
    }

    /// A place of an endpoint that was not chosen, whatever it has.
    pub(super) fn anyway(endpoint: &Arc<Endpoint>) -> Self {
        let found = endpoint.load.begin_anyway();
        Self { endpoint: endpoint.clone(), found, tries_out: false, chosen: false }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.endpoint.load.end();
        if self.tries_out {
            self.endpoint.load.tried_out();
        }
    }
}

impl Crowd {
    /// A request was answered, after so many microseconds.
    pub fn answered(&self, taken: &Taken, took_micros: f32, now: Now) {
        self.count(false);
        taken.endpoint.reached(taken.tries_out, now);
        self.learn(taken, took_micros, now);
    }

    /// The caller of a request left, after so many microseconds without an answer. It would have taken longer:
    /// what is shorter than usual says nothing.
    pub(super) fn left(&self, taken: &Taken, took_micros: f32, now: Now) {
        let learned = taken.endpoint.learned();
        if learned.alone(took_micros, taken.found) > learned.latency() {
            self.learn(taken, took_micros, now);
        }
    }

    fn learn(&self, taken: &Taken, took_micros: f32, now: Now) {
        let endpoint = &taken.endpoint;
        if endpoint.learned().is_up_to_date(now) {
            return;
        }
        endpoint.learn(took_micros, taken.found, now);
        self.learn_of(endpoint);
    }

    /// A request went wrong at one of `all` endpoints.
    pub fn failed(
        &self,
        taken: &Taken,
        outcome: Outcome,
        ejection: &Ejection,
        all: &[Arc<Endpoint>],
        now: Now,
    ) {
        self.count(true);
        let has_room = || {
            let out = |e: &&Arc<Endpoint>| e.condition(now.millis()) == Condition::PassedOver;
            let most = (all.len() as f32 * ejection.most).max(1.0);
            (all.iter().filter(out).count() + 1) as f32 <= most
        };
        taken.endpoint.failed(outcome, ejection, self.errors(), now, has_room);
    }

    /// An endpoint refused a request unread, since it has as many as it takes.
    pub fn refused(&self, endpoint: &Endpoint, now: Now) {
        endpoint.load.refused(now.micros());
    }
}
