//! How many tokens a bucket asks for, and what it makes of the answer. The refill task alone is here.

use std::sync::atomic::Ordering::Relaxed;

use super::{Bucket, MOST, count};
use crate::limit::plan::{Plan, Terms, lead};

/// The lease by which an exhausted bucket is left alone although it may have tokens again, at most.
const LONGEST_PAUSE: u64 = 1_333_000_000;

/// A bucket that had to begin empty is asked again for what it has so soon.
const SOON: u64 = 2_000_000;

/// By how many deviations what is asked for is less than what will be needed by the mean: what nobody needs
/// before it dies, others lack. Where there is enough for all a second round trip costs more than that.
const SPARING: f64 = 2.0;
const EASY: f64 = 0.5;

/// Needs that are fewer, per lease, come one by one.
const FEW: f64 = 8.0;

/// What to ask Redis for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::limit) struct Want {
    pub(in crate::limit) wanted: u32,
    /// With fewer no request that waits could pass.
    pub(in crate::limit) least: u32,
}

/// What Redis said about one bucket.
#[derive(Debug, Clone, Copy)]
pub(in crate::limit) struct Grant {
    /// When the request was about to be sent, by [`clock::now`](super::clock::now).
    pub(in crate::limit) sent: u64,
    pub(in crate::limit) want: Want,
    pub(in crate::limit) granted: u32,
    /// Somebody lately wanted more than the bucket had.
    pub(in crate::limit) scarce: bool,
    /// Nanoseconds until the bucket has what is of use; 0 where it has it now.
    pub(in crate::limit) wait: u64,
    /// How many sidecars ask for the limit.
    pub(in crate::limit) sidecars: u32,
    /// How long the tokens live, in nanoseconds from `sent`, by the newest configuration.
    pub(in crate::limit) tau: u64,
    /// When the state began that they come from, by Redis's clock.
    pub(in crate::limit) since: u64,
    /// Which was so lately, within tau, that the bucket may be empty for that alone.
    pub(in crate::limit) young: bool,
}

impl Bucket {
    /// How many tokens requests asked for since the last grant was placed.
    fn demand(&self) -> u32 {
        let left: u32 = self.grants.iter().map(|grant| count(grant.load(Relaxed))).sum();
        self.placed.load(Relaxed).saturating_sub(left).saturating_add(self.unmet.load(Relaxed))
    }

    /// What nine tenths of tau will need at the rate of demand since the last answer; never more than twice
    /// what requests asked for, so that a key used once does not take what others need.
    fn needed(&self, terms: &Terms, now: u64) -> f64 {
        let demand = f64::from(self.demand());
        match self.placed_at.load(Relaxed) {
            0 => demand,
            at => {
                let elapsed = now.saturating_sub(at).max(terms.tau / 2).max(1);
                demand * 0.9 * terms.tau as f64 / elapsed as f64
            }
        }
    }

    /// Is it worth asking again though no request waits? Where few come, what was got ahead might die before
    /// the next, and others lack it.
    pub(in crate::limit) fn is_busy(&self, terms: &Terms, now: u64) -> bool {
        self.needed(terms, now) >= FEW
    }

    /// Is `at` the end of the refusal that it remembers? Else it has been asked for since.
    pub(in crate::limit) fn is_refused_until(&self, at: u64) -> bool {
        self.refused_until.load(Relaxed) == at
    }

    /// Whether it asks once more right after it was given what it asked for, as often as that takes to be no
    /// chance: what is spent so fast is too little.
    fn is_in_a_hurry(&self, terms: &Terms, now: u64) -> bool {
        let fast = now.saturating_sub(self.placed_at.load(Relaxed)) < terms.tau / 16;
        let times = if fast { self.hurried.load(Relaxed).saturating_add(1) } else { 0 };
        self.hurried.store(times, Relaxed);
        times > 1
    }

    /// How many tokens to ask for: what will be needed, less what is in stock. They are asked for again when
    /// what is left is needed for the `way` to Redis and back, in nanoseconds.
    pub(in crate::limit) fn want(&self, terms: &Terms, now: u64, way: u64) -> Want {
        let mut needed = self.needed(terms, now);
        let scarce_at = self.scarce_at.load(Relaxed);
        let scarce = scarce_at != 0 && now.saturating_sub(scarce_at) < 4 * terms.tau;
        if self.placed_at.load(Relaxed) != 0 {
            needed = (needed - if scarce { SPARING } else { EASY } * needed.sqrt()).max(0.0);
        }
        if scarce && self.is_in_a_hurry(terms, now) {
            needed = needed.max(2.0 * f64::from(self.demand()));
        }
        let target = needed.ceil() as u32;
        self.unmet.store(0, Relaxed);
        let way = way.clamp(terms.tau / 50, terms.tau / 5) as f64 / (0.9 * terms.tau as f64);
        // One alone was asked for by who waited for it.
        let low = if target < 2 { 0 } else { (f64::from(target) * way).ceil() as u32 };
        self.low.store(low, Relaxed);
        // Of what is about to die, only what will be spent before that counts.
        let fresh = self.live(now + lead(terms.tau));
        let dying = (self.live(now) - fresh).min(target / 7);
        self.wanted(terms, target.saturating_sub(fresh + dying).max(self.waiting()), now)
    }

    /// How many tokens to ask for where each request asks: what those that wait need.
    /// None: nobody waits.
    pub(in crate::limit) fn want_exactly(&self, terms: &Terms, now: u64) -> Option<Want> {
        self.unmet.store(0, Relaxed);
        let waiting = self.waiting();
        (waiting > 0).then(|| self.wanted(terms, waiting, now))
    }

    /// What those that wait need, as far as it can be asked for at once.
    fn waiting(&self) -> u32 {
        u32::try_from(self.waiting.load(Relaxed)).unwrap_or(u32::MAX)
    }

    /// A request begins to wait for `cost` tokens.
    pub(in crate::limit) fn waits(&self, cost: u32) {
        self.waiting.fetch_add(u64::from(cost), Relaxed);
        // With fewer tokens none of those that wait could pass.
        let _ = self
            .least
            .fetch_update(Relaxed, Relaxed, |least| Some(if least == 0 { cost } else { least.min(cost) }));
    }

    /// It waits no more.
    pub(in crate::limit) fn waits_no_more(&self, cost: u32) {
        if self.waiting.fetch_sub(u64::from(cost), Relaxed) == u64::from(cost) {
            self.least.store(0, Relaxed);
        }
    }

    fn wanted(&self, terms: &Terms, wanted: u32, now: u64) -> Want {
        let dearest = terms.of.dearest().min(MOST);
        let least = self.least.load(Relaxed).saturating_sub(self.live(now)).clamp(1, dearest);
        Want { wanted: wanted.clamp(least, dearest), least }
    }

    /// Places a grant of the plan `plan`. Says when to look again, if the bucket had less than
    /// was wanted and tokens are kept.
    pub(in crate::limit) fn granted(&self, plan: &Plan, grant: &Grant, now: u64) -> Option<u64> {
        let terms = &plan.terms[self.terms(plan.generation)?];
        let new_state = self.since.swap(grant.since, Relaxed) != grant.since;
        if new_state {
            // Another state: that of a server which has been restarted, flushed, or taken the place of
            // one whose leases it may not know.
            self.drop_grants();
        }
        self.sidecars.store(grant.sidecars, Relaxed);
        let short = grant.granted < grant.want.wanted && !(plan.exact && grant.wait == 0);
        // Who came first to a bucket that had to begin empty asks again at once for what is there by then.
        let short = short && !(grant.young && new_state && grant.wait < SOON);
        let again = short.then(|| now.saturating_add(pause(plan, terms, grant)));
        self.scarce_at.store(if short || grant.scarce { now } else { 0 }, Relaxed);
        self.refused_cost.store(if grant.granted == 0 { grant.want.least } else { 0 }, Relaxed);
        self.refused_until.store(again.unwrap_or(0), Relaxed);
        let expiry = grant.sent + grant.tau.min(terms.tau);
        if grant.granted > 0 && expiry > now {
            self.place(plan.generation, grant.granted, expiry, now);
        }
        let left = self.grants.iter().map(|grant| count(grant.load(Relaxed))).sum();
        self.placed.store(left, Relaxed);
        self.placed_at.store(now, Relaxed);
        again.filter(|_| !plan.exact)
    }
}

/// How long to leave alone a bucket that had less than was wanted: at least until it has a token
/// again, and for three quarters of a lease's time, so that an exhausted limit costs Redis no more
/// than a busy one, and yet its bucket never fills up meanwhile. Random, so that no sidecar always comes
/// right after another: each then finds what has accrued since any asked, and takes what it needs of that.
/// Where each request asks, a refusal ends when it can.
fn pause(plan: &Plan, terms: &Terms, grant: &Grant) -> u64 {
    // No bucket is ever further than that from what is of use.
    let wait = grant.wait.min(terms.interval.saturating_mul(u64::from(grant.want.least)));
    if plan.exact {
        return wait;
    }
    let tau = terms.tau.min(LONGEST_PAUSE);
    if grant.young {
        // One that had to begin empty is no sign of too many requests.
        return wait.max(tau / 20);
    }
    wait.max(tau / 20 * 13 + fastrand::u64(0..=tau / 5))
}
