//! What is known of an upstream's endpoints together, and which of them were heard last.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::learned::OFTEN;
use super::load::{Rough, SHORT, UNKNOWN_CAPACITY, Usual};
use super::{Endpoint, Now, Source, health};
use crate::http::Announcement;

/// Endpoints that were heard last, as many as a choice among very many looks at.
pub(super) const RECENT: usize = 12;

/// How much of the distance one announcement moves what is usual.
const SHARE: f32 = 1.0 / 32.0;

/// More requests of others, for one of capacity, are not usual, whatever one endpoint says.
const MOST_OTHERS: f32 = 4.0;

/// An announcement says something for so many times the usual latency: until then, about, those requests
/// have ended that it was made of. And its bounds, in microseconds.
const FADES_AFTER: f32 = 2.0;
const SHORTEST: f32 = 2_000.0;
const LONGEST: f32 = 2_000_000.0;

/// What is known of endpoints together.
/// All of it is 0 while nothing is known.
#[derive(Debug, Default)]
pub struct Crowd {
    others: Rough,
    latency: Rough,
    capacity: Rough,
    /// The part of all answers that are errors.
    errors: Rough,
    /// Places of the endpoints that were heard last, plus one; 0: none.
    recent: [AtomicU32; RECENT],
    turn: AtomicU32,
    /// How often endpoints were asked before any had said anything.
    in_vain: AtomicU32,
}

/// Endpoints that have said nothing when they were asked so often will say nothing.
const IN_VAIN: u32 = 64;

impl Crowd {
    /// Takes what an endpoint's sidecar says.
    pub fn hear(&self, endpoint: &Endpoint, said: &Announcement, now: Now) {
        if now.micros() < endpoint.load.heard() + OFTEN {
            return;
        }
        if said.capacity > 0 {
            follow(&self.capacity, said.capacity as f32);
        }
        endpoint.load.hear(said, now.micros());
        let others = said.in_flight.saturating_sub(endpoint.in_flight());
        let capacity = if said.capacity == 0 { self.capacity.get() } else { said.capacity as f32 };
        self.others.follow((others as f32 / capacity.max(1.0)).min(MOST_OTHERS), SHARE);
        if said.latency > 0 {
            follow(&self.latency, (said.latency as f32).max(SHORT));
        }
        let turn = self.turn.load(Relaxed);
        self.turn.store(turn.wrapping_add(1).max(1), Relaxed);
        self.recent[turn as usize % RECENT].store(endpoint.place() + 1, Relaxed);
    }

    /// Takes what is learned here of an endpoint. Where some say themselves how many requests they serve at once,
    /// that is what others are compared with.
    pub(super) fn learn_of(&self, endpoint: &Endpoint) {
        if endpoint.load.latency() > 0.0 {
            follow(&self.latency, endpoint.load.latency());
        }
        if let (Source::Learned, capacity) = endpoint.capacity()
            && endpoint.learned().is_known()
            && !self.has_heard()
        {
            follow(&self.capacity, capacity);
        }
    }

    /// How full an endpoint is at `now`.
    pub fn saturation(&self, endpoint: &Endpoint, now: Now) -> f64 {
        let others = endpoint.load.others(&self.usual(), now.micros());
        let (_, capacity) = endpoint.capacity();
        f64::from((endpoint.in_flight() as f32 + others) / capacity.max(1.0))
    }

    /// Counts an answer, or that there was none.
    pub(super) fn count(&self, is_error: bool) {
        if is_error || self.errors.get() > 0.0 {
            self.errors.follow(if is_error { 1.0 } else { 0.0 }, health::SHARE);
        }
    }

    /// Whether any endpoint has ever said anything.
    pub(super) fn has_heard(&self) -> bool {
        self.turn.load(Relaxed) > 0
    }

    /// Whether they have been asked often enough without a word. Counts this time.
    pub(super) fn is_asked_in_vain(&self) -> bool {
        !self.has_heard() && self.in_vain.fetch_add(1, Relaxed) >= IN_VAIN
    }

    /// The part of all answers that are errors.
    pub(super) fn errors(&self) -> f32 {
        self.errors.get()
    }

    /// Places of the endpoints that were heard last.
    pub(super) fn recent(&self) -> impl Iterator<Item = usize> {
        self.recent.iter().filter_map(|place| (place.load(Relaxed) as usize).checked_sub(1))
    }

    pub(super) fn usual(&self) -> Usual {
        let latency = self.latency.get().max(1.0);
        let lasts = (latency * FADES_AFTER).clamp(SHORTEST, LONGEST);
        let capacity = self.capacity.get();
        let part = 1.0 / if capacity > 0.0 { capacity } else { UNKNOWN_CAPACITY };
        Usual { others: self.others.get(), latency, part, fades: 1.0 / lasts }
    }
}

/// Takes one endpoint's value for what is usual.
fn follow(usual: &Rough, value: f32) {
    match usual.get() {
        0.0 => usual.set(value),
        // What all workers read is not written for nothing.
        same if same == value => {}
        _ => usual.follow(value, SHARE / 4.0),
    }
}
