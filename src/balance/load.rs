//! How full an endpoint is, as far as this sidecar knows: its own requests, exact over all workers, and
//! those of others, as the endpoint's sidecar has announced.
//!
//! Promises: an announcement only ever raises what we know ourselves; what is old counts as no more than
//! what is usual; all that a choice reads is in one cache line, and nobody waits to read or write it.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

use super::Learned;
use super::standing::Share;
use crate::http::Announcement;

/// A number that all workers read and write, and that may lose one of two writes at once.
#[derive(Debug, Default)]
pub(super) struct Rough(AtomicU32);

impl Rough {
    pub(super) const fn new(value: f32) -> Self {
        Self(AtomicU32::new(value.to_bits()))
    }

    pub(super) fn get(&self) -> f32 {
        f32::from_bits(self.0.load(Relaxed))
    }

    pub(super) fn set(&self, value: f32) {
        self.0.store(value.to_bits(), Relaxed);
    }

    /// Moves it towards `sample` by a share of the distance.
    pub(super) fn follow(&self, sample: f32, share: f32) {
        let now = self.get();
        self.set(now + (sample - now) * share);
    }
}

/// Where an endpoint's capacity comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The configuration says it.
    Configured,
    /// The endpoint's own sidecar says it.
    Announced,
    /// It is learned from how long answers take.
    Learned,
}

/// How full an endpoint is.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Load {
    /// Ours, of all workers.
    in_flight: AtomicU32,
    /// Requests that it takes at once; what comes beyond is refused.
    most: AtomicU32,
    /// Requests that it has from others, when it last said so.
    others: Rough,
    /// How long it takes for a request while it is not crowded, in microseconds; 0: not known.
    latency: Rough,
    /// The part of its capacity that one request takes; 0: not known.
    part: Rough,
    /// What the configuration says of its capacity; 0: nothing.
    configured: AtomicU32,
    /// When it last said anything, in microseconds of the endpoints' clock; 0: never.
    heard: AtomicU64,
    /// Whether it has said how long it takes.
    announces: AtomicBool,
    /// Until when it is passed over, in milliseconds of that clock. 0: it is not; [`DOUBTED`]: one request
    /// at a time may try it.
    passed_over: AtomicU64,
    /// When a request began to try it, in milliseconds as they fit; 0: none does.
    trial: AtomicU32,
}

/// Of an endpoint that has just failed: see [`Load`].
pub(super) const DOUBTED: u64 = 1;

/// Of one that has left.
const FOR_GOOD: u64 = u64::MAX;

/// How long a request may take to try an endpoint before another one may, in milliseconds.
const PATIENCE: u32 = 1_000;

/// How long announcements keep the local view of an endpoint's capacity from being used.
const ANNOUNCES: u64 = 10_000_000;

/// What an endpoint is taken to serve at once of which nothing is known.
pub(super) const UNKNOWN_CAPACITY: f32 = 16.0;

/// Latencies below this one, in microseconds, are alike: what they differ in is the network's and the
/// scheduler's.
pub(super) const SHORT: f32 = 1_000.0;

/// Values that differ from what is usual by less than this factor are taken to be that.
const ALIKE: f32 = 1.2;

/// What is known of endpoints together, for what is not known of one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Usual {
    /// Requests of others, for one of capacity.
    pub others: f32,
    /// In microseconds.
    pub latency: f32,
    /// The part of its capacity that one request takes.
    pub part: f32,
    /// One over the time, in microseconds, after which an announcement says nothing any more.
    pub fades: f32,
}

/// One endpoint as a choice sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct View {
    /// How long it takes for a request while it is not crowded, in microseconds.
    latency: f32,
    /// What all its requests add to each other's time, with one more, in microseconds.
    demand: f32,
    /// What one request more may expect: the endpoint of the least is answered by first.
    pub order: u64,
    /// How much what was announced still counts, from 0 to 1.
    pub fresh: f32,
    /// Whether it has as many as it takes.
    pub full: bool,
}

impl View {
    /// In flight over capacity, with one request more.
    pub(super) fn saturation(&self) -> f32 {
        self.demand / self.latency
    }
}

impl Load {
    /// `configured`: requests that it serves at once, if the configuration says so.
    pub(super) fn new(configured: Option<u32>) -> Self {
        let load = Self {
            in_flight: AtomicU32::new(0),
            most: AtomicU32::new(u32::MAX),
            others: Rough::default(),
            latency: Rough::default(),
            part: Rough::default(),
            configured: AtomicU32::new(0),
            heard: AtomicU64::new(0),
            announces: AtomicBool::new(false),
            passed_over: AtomicU64::new(0),
            trial: AtomicU32::new(0),
        };
        load.configure(configured);
        load
    }

    /// Takes what the configuration says now.
    pub(super) fn configure(&self, capacity: Option<u32>) {
        let said = capacity.unwrap_or(0);
        if self.configured.swap(said, Relaxed) != said {
            self.most.store(capacity.unwrap_or(u32::MAX), Relaxed);
            self.part.set(0.0);
        }
    }

    /// Requests of this sidecar.
    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// Requests that it takes at once, if that is bounded.
    pub(super) fn most(&self) -> Option<u32> {
        Some(self.most.load(Relaxed)).filter(|most| *most != u32::MAX)
    }

    /// Counts a request and says how many there are with it; none, if it has as many as it takes.
    pub(super) fn begin(&self) -> Option<u32> {
        // Counted first and given back if that was one too many: exact over all workers.
        let before = self.in_flight.fetch_add(1, Relaxed);
        if before < self.most.load(Relaxed) {
            return Some(before + 1);
        }
        self.end();
        None
    }

    /// As [`begin`](Self::begin), whatever there is.
    pub(super) fn begin_anyway(&self) -> u32 {
        self.in_flight.fetch_add(1, Relaxed) + 1
    }

    pub(super) fn end(&self) {
        self.in_flight.fetch_sub(1, Relaxed);
    }

    /// Takes what its sidecar says, at `now` in microseconds.
    pub(super) fn hear(&self, said: &Announcement, now: u64) {
        let others = said.in_flight.saturating_sub(self.in_flight());
        self.others.set(others as f32);
        self.heard.store(now, Relaxed);
        let is_configured = self.configured.load(Relaxed) != 0;
        if !is_configured {
            self.most.store(if said.most == 0 { u32::MAX } else { said.most }, Relaxed);
        }
        if said.latency == 0 {
            return;
        }
        self.announces.store(true, Relaxed);
        self.latency.set((said.latency as f32).max(SHORT));
        if !is_configured {
            self.part.set(if said.capacity == 0 { 0.0 } else { 1.0 / said.capacity as f32 });
        }
    }

    /// It refused a request, since it has as many as it takes: so many that there is no room for ours.
    pub(super) fn refused(&self, now: u64) {
        let (_, capacity) = self.capacity();
        self.others.set(self.others.get().max(2.0 * capacity));
        self.heard.store(now, Relaxed);
    }

    /// Whether its sidecar has said how fast it is.
    pub(super) fn announces(&self) -> bool {
        self.announces.load(Relaxed)
    }

    /// Takes what has been learned here, unless its sidecar knows better.
    pub(super) fn learn(&self, learned: &Learned, now: u64) {
        let knows_better = self.announces() && now < self.heard.load(Relaxed) + ANNOUNCES;
        if knows_better || !learned.is_known() {
            return;
        }
        self.latency.set(learned.shortest_latency().max(SHORT));
        if self.configured.load(Relaxed) == 0 {
            self.part.set(1.0 / learned.capacity());
        }
    }

    /// Requests that it serves at once before they wait for each other, and who says so.
    pub(super) fn capacity(&self) -> (Source, f32) {
        match self.configured.load(Relaxed) {
            0 => {
                let part = self.part.get();
                let capacity = if part > 0.0 { 1.0 / part } else { UNKNOWN_CAPACITY };
                let source = if self.announces() { Source::Announced } else { Source::Learned };
                (source, capacity)
            }
            capacity => (Source::Configured, capacity as f32),
        }
    }

    /// How long it takes for a request while it is not crowded, in microseconds; 0: not known.
    pub(super) fn latency(&self) -> f32 {
        self.latency.get()
    }

    /// Requests of others, as far as it has said lately, at `now` in microseconds.
    pub(super) fn others(&self, usual: &Usual, now: u64) -> f32 {
        let fresh = self.fresh(usual, now);
        let (_, capacity) = self.capacity();
        fresh * self.others.get() + (1.0 - fresh) * usual.others * capacity
    }

    /// When its sidecar last said anything, in microseconds; 0: never.
    pub(super) fn heard(&self) -> u64 {
        self.heard.load(Relaxed)
    }

    /// How much what was announced still says at `now`, from 0 to 1.
    pub(super) fn fresh(&self, usual: &Usual, now: u64) -> f32 {
        // Of signed numbers this takes no branch.
        let age = now.saturating_sub(self.heard.load(Relaxed)).cast_signed() as f32;
        (1.0 - age * usual.fades).max(0.0)
    }

    /// What a choice needs to know. `doubt`: how many times its latency is added where nothing was heard of
    /// it lately.
    #[inline(always)]
    pub(super) fn view(&self, usual: &Usual, now: u64, share: Share, doubt: f32) -> View {
        let in_flight = self.in_flight.load(Relaxed);
        let heard = self.heard.load(Relaxed);
        let configured = self.configured.load(Relaxed);
        let mut latency = unless_alike(self.latency.get(), usual.latency);
        let part = match configured {
            0 => unless_alike(self.part.get(), usual.part),
            capacity => 1.0 / capacity as f32,
        };
        let mut pace = latency * part;
        let (mut fresh, mut warm) = (0.0, share.warm);
        if heard != 0 {
            fresh = self.fresh(usual, now);
            // One that has only refused a request says no more than that.
            let announces = self.announces.load(Relaxed);
            if fresh < 1.0 && announces && configured == 0 {
                // What is good about it fades, lest all who have heard go there; what is bad, it says itself
                // when that is over.
                latency += (usual.latency - latency).max(0.0) * (1.0 - fresh);
                pace += (usual.latency * usual.part - pace).max(0.0) * (1.0 - fresh);
            }
            // Whoever says how fast it is needs no slow start.
            if announces {
                warm = 1.0;
            }
        }
        // Others' requests, each with what it costs: usual ones of what is not known.
        let others = fresh * self.others.get() * pace + (1.0 - fresh) * (usual.others + doubt) * latency;
        let all = in_flight as f32 * pace + others;
        let mut crowd = all + share.one * pace;
        if warm < 1.0 {
            crowd /= warm;
        }
        if share.weighted {
            // A weight says what its share is: one that is given little has not been seen to take much. But one that
            // is crowded is given no more for a high weight.
            let alike = if configured == 0 { latency * usual.part / pace } else { 1.0 };
            let shared = crowd * alike / share.weight;
            crowd = if all + pace > latency && share.weight > 1.0 { shared.max(crowd) } else { shared };
        }
        // Where that is too close to be told apart, what of it is due to other requests decides. The bits of numbers
        // that are not negative are in their order (IEEE 754), and one number is compared faster than two.
        let cost = latency * latency + crowd * crowd;
        let order = (u64::from(cost.to_bits()) << 32) | u64::from(crowd.to_bits());
        View { latency, demand: all + pace, order, fresh, full: in_flight >= self.most.load(Relaxed) }
    }

    /// Whether nothing was found wrong with it.
    #[inline]
    pub(super) fn is_sound(&self) -> bool {
        self.passed_over.load(Relaxed) == 0
    }

    /// How it stands at `now`, in milliseconds.
    pub(super) fn condition(&self, now_millis: u64) -> Condition {
        match self.passed_over.load(Relaxed) {
            0 => Condition::Sound,
            until if now_millis < until => Condition::PassedOver,
            _ if self.is_tried_out(now_millis) => Condition::TriedOut,
            _ => Condition::Doubted,
        }
    }

    /// It has left, or come back.
    pub(super) fn leave(&self, for_good: bool) {
        self.passed_over.store(if for_good { FOR_GOOD } else { 0 }, Relaxed);
    }

    /// It answers again.
    pub(super) fn is_well(&self, until: u64) {
        if until != FOR_GOOD {
            self.pass_over(until, 0);
        }
    }

    /// Until when it is passed over, in milliseconds: 0: it is sound.
    pub(super) fn passed_over_until(&self) -> u64 {
        self.passed_over.load(Relaxed)
    }

    /// Has it passed over until another time than `before`; false if somebody was faster.
    pub(super) fn pass_over(&self, before: u64, until: u64) -> bool {
        self.passed_over.compare_exchange(before, until, Relaxed, Relaxed).is_ok()
    }

    /// Takes a request that tries whether an endpoint that has failed still does: one at a time, unless
    /// that takes too long.
    pub(super) fn try_out(&self, now_millis: u64) -> bool {
        let before = self.trial.load(Relaxed);
        (before == 0 || !lately(before, now_millis))
            && self.trial.compare_exchange(before, brief(now_millis), Relaxed, Relaxed).is_ok()
    }

    /// That request has ended.
    pub(super) fn tried_out(&self) {
        self.trial.store(0, Relaxed);
    }

    fn is_tried_out(&self, now_millis: u64) -> bool {
        match self.trial.load(Relaxed) {
            0 => false,
            began => lately(began, now_millis),
        }
    }
}

/// How an endpoint stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Condition {
    /// Nothing is wrong with it.
    Sound,
    /// It has failed; one request may try whether it still does.
    Doubted,
    /// One does.
    TriedOut,
    /// It is to get none for a while.
    PassedOver,
}

impl Condition {
    /// Whether a request may go there although others could take it.
    pub(super) fn takes_requests(self) -> bool {
        matches!(self, Self::Sound | Self::Doubted)
    }
}

/// Milliseconds in fewer bits, and not 0.
fn brief(millis: u64) -> u32 {
    (millis as u32).max(1)
}

fn lately(began: u32, now_millis: u64) -> bool {
    brief(now_millis).wrapping_sub(began) < PATIENCE
}

/// What is usual, as far as a value allows that is known only to within [`ALIKE`]: preferring whoever was lucky
/// would only crowd it. 0 stands for what is not known. Without branches, as this is most of what a choice costs.
#[inline]
fn unless_alike(value: f32, usual: f32) -> f32 {
    let value = if value > 0.0 { value } else { usual };
    let (least, most) = (value * (1.0 / ALIKE), value * ALIKE);
    let at_least = if usual > least { usual } else { least };
    if at_least < most { at_least } else { most }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USUAL: Usual = Usual { others: 0.25, latency: 1024.0, part: 0.1, fades: 1e-5 };

    fn said(in_flight: u32, capacity: u32) -> Announcement {
        Announcement { in_flight, capacity, latency: 1024, most: 0 }
    }

    #[test]
    fn a_request_is_counted_up_to_what_the_endpoint_takes() {
        let load = Load::new(Some(2));
        assert_eq!((load.begin(), load.begin(), load.begin()), (Some(1), Some(2), None));
        assert_eq!(load.in_flight(), 2);
        load.end();
        assert!(load.begin().is_some());
    }

    #[test]
    fn what_is_announced_raises_what_we_know_and_lowers_nothing() {
        let load = Load::new(None);
        let saturation = || (load.view(&USUAL, 1, Share::WHOLE, 0.0).saturation() * 1e3).round() / 1e3;
        (0..5).for_each(|_| assert!(load.begin_anyway() > 0));
        load.hear(&said(0, 10), 1);
        assert_eq!(saturation(), 0.6, "five of ours, and one more");
        load.hear(&said(8, 10), 1);
        assert_eq!(saturation(), 0.9);
        // Ours that end and begin are known at once.
        load.end();
        assert_eq!(saturation(), 0.8);
    }

    #[test]
    fn what_is_old_counts_as_what_is_usual() {
        let load = Load::new(None);
        load.hear(&said(10, 10), 1);
        let at = |now| load.view(&USUAL, now, Share::WHOLE, 0.0).saturation();
        assert!((at(1) - 1.1).abs() < 1e-3);
        assert!((at(50_001) - (0.1 + 0.5 + 0.125)).abs() < 1e-3);
        assert!((at(10_000_001) - 0.35).abs() < 1e-3);
    }

    #[test]
    fn a_slow_endpoint_costs_more_than_a_fast_one() {
        let (slow, fast) = (Load::new(None), Load::new(None));
        slow.hear(&Announcement { latency: 10_000, ..said(0, 10) }, 1);
        fast.hear(&said(9, 10), 1);
        let order = |load: &Load| load.view(&USUAL, 1, Share::WHOLE, 0.0).order;
        assert!(order(&fast) < order(&slow));
    }

    #[test]
    fn one_that_refuses_a_request_and_says_no_more_is_as_fast_as_before() {
        let (load, other) = (Load::new(None), Load::new(None));
        for (load, latency) in [(&load, 2_000.0), (&other, 2_000.0)] {
            load.latency.set(latency);
            load.part.set(0.05);
        }
        let usual = Usual { latency: 20_000.0, others: 0.0, ..USUAL };
        load.refused(1);
        let order = |load: &Load, now| load.view(&usual, now, Share::WHOLE, 0.0).order;
        assert!(order(&load, 1) > order(&other, 1), "it has no room");
        assert_eq!(order(&load, 10_000_000), order(&other, 10_000_000));
    }

    #[test]
    fn one_request_at_a_time_tries_what_has_failed() {
        let load = Load::new(None);
        assert!(load.pass_over(0, 500));
        assert_eq!(load.condition(499), Condition::PassedOver);
        assert_eq!(load.condition(500), Condition::Doubted);
        assert!(load.try_out(500));
        assert_eq!(load.condition(501), Condition::TriedOut);
        assert!(!load.try_out(501));
        assert!(load.try_out(1500), "the other one takes too long");
        load.tried_out();
        assert_eq!(load.condition(1501), Condition::Doubted);
    }
}
