//! How many tokens a bucket asks for, and what it makes of the answer. The refill task alone is here.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use super::{Bucket, MOST, count, expiry, plan_word};
use crate::limit::plan::{LEAD_DIVISOR, Plan, Terms, lead};

/// The lease by which an exhausted bucket is left alone although it may have tokens again, at most.
const LONGEST_PAUSE: u64 = 1_333_000_000;

/// A bucket that had to begin empty is asked again for what it has so soon.
const SOON: u64 = 2_000_000;

/// So many leases count for what the next will need.
const MEMORY: f64 = 4.0;

/// For so many leases after Redis had less than was wanted, tokens are scarce: what lies here unspent, others lack.
const SCARCE: u64 = 4;

/// While they are, so many fewer are asked for than a lease will need; where that is none, one as a request comes.
const SPARED: f64 = 2.5;

/// Else so many standard deviations more, which saves calls.
const AHEAD: f64 = 0.25;

/// Fewer tokens are not worth a call by themselves, unless they are scarce.
const WORTH: u32 = 4;

/// With fewer needs, per lease, it does not ask ahead.
const FEW: f64 = 8.0;

/// What to ask Redis for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::limit) struct Want {
    pub(in crate::limit) wanted: u32,
    /// With fewer no request that waits could pass.
    pub(in crate::limit) least: u32,
    pub(in crate::limit) back: Back,
}

/// Tokens that nobody will spend, given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::limit) struct Back {
    pub(in crate::limit) count: u32,
    /// When the first of them was granted, and when the state began that they are of, in microseconds of Redis's
    /// clock.
    pub(in crate::limit) granted_at: u64,
    pub(in crate::limit) since: u64,
}

/// What Redis said about one bucket.
#[derive(Debug, Clone, Copy)]
pub(in crate::limit) struct Grant {
    /// When the request was about to be sent, by [`clock::now`](super::clock::now).
    pub(in crate::limit) sent: u64,
    pub(in crate::limit) want: Want,
    pub(in crate::limit) granted: u32,
    /// Nanoseconds until the bucket has what is of use; 0 where it has it now.
    pub(in crate::limit) wait: u64,
    /// How many sidecars ask for the limit.
    pub(in crate::limit) sidecars: u32,
    /// How long the tokens live, in nanoseconds from `sent`, by the newest configuration.
    pub(in crate::limit) tau: u64,
    /// When they were granted, in microseconds of Redis's clock.
    pub(in crate::limit) at: u64,
    /// When the state began that they come from, by Redis's clock.
    pub(in crate::limit) since: u64,
    /// Which was so lately, within tau, that the bucket may be empty for that alone.
    pub(in crate::limit) young: bool,
}

impl Bucket {
    /// How many tokens requests asked for since it last asked Redis.
    fn demand(&self) -> u32 {
        let spent = self.placed.load(Relaxed).wrapping_sub(self.left()).cast_signed().max(0).cast_unsigned();
        spent.saturating_add(self.unmet.load(Relaxed))
    }

    /// What lies in the grants, dead or not.
    fn left(&self) -> u32 {
        self.grants.iter().map(|grant| count(grant.load(Relaxed))).sum()
    }

    /// How many tokens requests ask for in the time of a lease: the mean of the last leases.
    fn mean(&self, terms: &Terms, now: u64) -> f64 {
        let (mean, weight) = self.known();
        (mean * weight + f64::from(self.demand())) / (weight + self.leases(terms, now))
    }

    /// What was the mean when it last asked Redis, and of how many leases.
    fn known(&self) -> (f64, f64) {
        let number = |bits: &AtomicU32| f64::from(f32::from_bits(bits.load(Relaxed)));
        (number(&self.mean), number(&self.weight).max(1.0))
    }

    /// The time since it last asked Redis, in leases.
    fn leases(&self, terms: &Terms, now: u64) -> f64 {
        now.saturating_sub(self.asked_at.load(Relaxed)) as f64 / terms.tau as f64
    }

    /// What a lease will need: by the mean, or where requests surely are more than that by now, by those since
    /// Redis was last asked.
    fn needed(&self, terms: &Terms, now: u64) -> f64 {
        let demand = f64::from(self.demand());
        let surely = (demand - 2.0 * demand.sqrt()) / self.leases(terms, now).max(0.5);
        self.mean(terms, now).max(surely)
    }

    /// Did Redis have less than was wanted lately?
    fn is_scarce(&self, terms: &Terms, now: u64) -> bool {
        let short_at = self.short_at.load(Relaxed);
        short_at > 0 && now < short_at.saturating_add(SCARCE * terms.tau.min(LONGEST_PAUSE))
    }

    /// How many tokens it should hold for the next lease.
    fn target(&self, terms: &Terms, now: u64) -> u32 {
        let needed = self.needed(terms, now);
        let target = match self.is_scarce(terms, now) {
            true => needed - SPARED,
            false => needed + AHEAD * needed.sqrt(),
        };
        target.round() as u32
    }

    /// Is it worth asking again though no request waits? Where few come, what was got ahead might die before
    /// the next, and others lack it.
    pub(in crate::limit) fn is_busy(&self, terms: &Terms, now: u64) -> bool {
        self.demand() > 0 && self.needed(terms, now) >= FEW
    }

    /// Is `at` the end of the refusal that it remembers? Else it has been asked for since.
    pub(in crate::limit) fn is_refused_until(&self, at: u64) -> bool {
        self.refused_until.load(Relaxed) == at
    }

    /// How many tokens to ask for: what will be needed, less what is in stock. They are asked for again when
    /// what is left is needed for the `way` to Redis and back, in nanoseconds.
    pub(in crate::limit) fn want(&self, plan: &Plan, terms: usize, now: u64, way: u64) -> Want {
        let by = plan_word(plan.generation, terms as u16);
        let terms = &plan.terms[terms];
        let target = if self.is_left(terms, now) { 0 } else { self.target(terms, now) };
        let weight = match self.leases(terms, now) {
            long if long > MEMORY => 1.0,
            leases => (self.known().1 + leases).min(MEMORY),
        };
        self.mean.store((self.mean(terms, now) as f32).to_bits(), Relaxed);
        self.weight.store((weight as f32).to_bits(), Relaxed);
        self.asked_at.store(now, Relaxed);
        let unmet = self.unmet.swap(0, Relaxed);
        let way = way.clamp(terms.tau / 50, terms.tau / 5) as f64 / terms.tau as f64;
        // One alone was asked for by who waited for it.
        let low = if target < 2 { 0 } else { (f64::from(target) * way).ceil() as u32 };
        self.low.store(low, Relaxed);
        // Of what is about to die, only what will be spent before that counts.
        let fresh = self.live(now + lead(terms.tau));
        let dying = self.live(now).saturating_sub(fresh).min(target / LEAD_DIVISOR);
        let back = match self.granted_by.load(Relaxed) == by {
            true => self.give_up(now, now + lead(terms.tau), dying),
            false => Back::default(),
        };
        // What waits for tokens has been counted.
        self.placed.store(self.left().wrapping_sub(self.waiting()), Relaxed);
        if target == 0 && back.count > 0 && unmet == 0 && self.waiting() == 0 {
            return Want { wanted: 0, least: 1, back };
        }
        Want { back, ..self.wanted(terms, target.saturating_sub(fresh + dying).max(self.waiting()), now) }
    }

    /// Have tokens died here that nobody came for, and nobody is there now?
    pub(in crate::limit) fn is_left(&self, terms: &Terms, now: u64) -> bool {
        self.live(now) == 0
            && self.waiting() == 0
            && self.unmet.load(Relaxed) == 0
            && self.refused_until.load(Relaxed) <= now
            && self.left() >= self.worth(terms, now)
    }

    /// So many tokens are worth giving back by a call of their own.
    fn worth(&self, terms: &Terms, now: u64) -> u32 {
        if self.is_scarce(terms, now) { 1 } else { WORTH }
    }

    /// When a grant is dead that has been placed, if what may be left of it then is worth a call.
    pub(in crate::limit) fn dies(&self, terms: &Terms, grant: &Grant, now: u64) -> Option<u64> {
        (grant.granted >= self.worth(terms, now)).then_some(grant.sent + grant.tau.min(terms.tau) + 1)
    }

    /// Takes what dies until `until`, but for `keep`, out of reach of requests.
    fn give_up(&self, now: u64, until: u64, mut keep: u32) -> Back {
        let mut back = Back { since: self.since.load(Relaxed), ..Back::default() };
        for (grant, granted_at) in self.grants.iter().zip(&self.granted_at) {
            let kept = |word| if expiry(word) > now { count(word).min(keep) } else { 0 };
            let dies =
                |word: u64| (expiry(word) <= until).then(|| word - u64::from(count(word) - kept(word)));
            let Ok(word) = grant.fetch_update(AcqRel, Acquire, dies) else { continue };
            let (kept, at) = (kept(word), granted_at.load(Relaxed));
            keep -= kept;
            if count(word) > kept {
                back.granted_at = if back.count == 0 { at } else { at.min(back.granted_at) };
                back.count += count(word) - kept;
            }
        }
        back
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
        Want { wanted: wanted.clamp(least, dearest), least, back: Back::default() }
    }

    /// Places a grant of the plan `plan`. Says when to look again, if the bucket had less than was wanted and
    /// tokens are kept.
    pub(in crate::limit) fn granted(&self, plan: &Plan, grant: &Grant, now: u64) -> Option<u64> {
        let index = self.terms(plan.generation)?;
        let terms = &plan.terms[index];
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
        if short {
            self.short_at.store(now, Relaxed);
        }
        let again = short.then(|| now.saturating_add(pause(plan, terms, grant)));
        self.refused_cost.store(if grant.granted == 0 { grant.want.least } else { 0 }, Relaxed);
        self.refused_until.store(again.unwrap_or(0), Relaxed);
        let expiry = grant.sent + grant.tau.min(terms.tau);
        if grant.granted > 0 && expiry > now {
            let by = plan_word(plan.generation, index as u16);
            self.place(by, grant.granted, grant.at, expiry, now);
        }
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
