//! A key's tokens: the grants that this sidecar holds, the refusal that it remembers, and the
//! pod's own count. Request threads take tokens without a lock; the refill task alone places
//! them.
//!
//! Promise: a token is taken only before its own grant's expiry, which is tau after the moment
//! before the grant was asked for. Grants are never merged: each is one atomic word of count and
//! expiry, so that no token ever lives by another's clock.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};

use tokio::sync::Notify;

use super::gcra::Gcra;
use super::plan::Plan;

/// A grant's word: the count in the low bits, the expiry in the rest, in units of 2^15 ns. The
/// expiry is rounded down, and lasts for 18 years after boot.
const COUNT_BITS: u32 = 20;
const UNIT_BITS: u32 = 15;
/// The most tokens of one grant.
pub(super) const MOST: u32 = (1 << COUNT_BITS) - 1;

/// The longest that an exhausted bucket is left alone although it may have tokens again.
const LONGEST_PAUSE: u64 = 1_000_000_000;

/// One key of one limit. What a request reads and writes is its first cache line.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct Bucket {
    grants: [AtomicU64; 4],
    /// Without a token, requests are refused until then.
    refused_until: AtomicU64,
    /// The generation of the plan that the grants belong to.
    generation: AtomicU64,
    /// A stock below this is refilled.
    low: AtomicU32,
    /// Requests that found no token since the last ask.
    unmet: AtomicU32,
    /// A refill is queued or under way.
    pending: AtomicBool,
    /// Taken from since the table last looked.
    used: AtomicBool,
    /// The count of this pod alone.
    pub(super) local: Gcra,
    /// What lay in the grants after the last answer, and when that came; 0 for never.
    placed: AtomicU32,
    placed_at: AtomicU64,
    /// Woken when a refill has ended, well or badly.
    pub(super) refilled: Notify,
    /// The limit's shard in Redis, and the key's name there.
    pub(super) shard: u8,
    pub(super) name: Box<str>,
}

/// Where a token came from, so that it can be given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lease {
    grant: usize,
    expiry: u64,
}

/// What Redis said about one bucket.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grant {
    /// When the request was about to be sent, by [`clock::now`](super::clock::now).
    pub(super) sent: u64,
    pub(super) wanted: u32,
    pub(super) granted: u32,
    /// Nanoseconds until the bucket has another token; 0 where it has one now.
    pub(super) wait: u64,
    /// How many sidecars ask for the limit.
    pub(super) sidecars: u32,
}

const fn count(word: u64) -> u32 {
    (word & MOST as u64) as u32
}

/// In nanoseconds.
const fn expiry(word: u64) -> u64 {
    (word >> COUNT_BITS) << UNIT_BITS
}

impl Bucket {
    /// An empty-handed bucket, whose local count begins at `local`.
    pub(super) fn new(generation: u64, local: Gcra, shard: u8, name: Box<str>) -> Self {
        Self {
            grants: [const { AtomicU64::new(0) }; 4],
            refused_until: AtomicU64::new(0),
            generation: AtomicU64::new(generation),
            low: AtomicU32::new(0),
            unmet: AtomicU32::new(0),
            pending: AtomicBool::new(false),
            used: AtomicBool::new(true),
            local,
            placed: AtomicU32::new(0),
            placed_at: AtomicU64::new(0),
            refilled: Notify::new(),
            shard,
            name,
        }
    }

    /// Takes a token of the grant that expires first. Says also whether the stock has become low
    /// and Redis may be asked for more.
    pub(super) fn take(&self, now: u64, lead: u64) -> Option<(Lease, bool)> {
        loop {
            let mut first: Option<(usize, u64)> = None;
            let mut stock = 0u32;
            for (i, grant) in self.grants.iter().enumerate() {
                let word = grant.load(Acquire);
                if count(word) == 0 || expiry(word) <= now {
                    continue;
                }
                if expiry(word) > now + lead {
                    stock += count(word);
                }
                if first.is_none_or(|(_, other)| expiry(word) < expiry(other)) {
                    first = Some((i, word));
                }
            }
            let (i, word) = first?;
            if self.grants[i].compare_exchange(word, word - 1, AcqRel, Relaxed).is_ok() {
                stock -= u32::from(expiry(word) > now + lead);
                let low = stock < self.low.load(Relaxed) && self.refused_until.load(Relaxed) <= now;
                return Some((Lease { grant: i, expiry: expiry(word) }, low));
            }
        }
    }

    /// Gives a token back to its own grant; if that is gone, the token is too.
    pub(super) fn give_back(&self, lease: Lease) {
        let back = |word| (expiry(word) == lease.expiry && count(word) < MOST).then_some(word + 1);
        // The grant has been replaced.
        let _ = self.grants[lease.grant].fetch_update(AcqRel, Acquire, back);
    }

    /// The tokens that can be taken at `now`.
    pub(super) fn live(&self, now: u64) -> u32 {
        let live = |word: u64| if expiry(word) > now { count(word) } else { 0 };
        self.grants.iter().map(|grant| live(grant.load(Relaxed))).sum()
    }

    /// The time of a remembered refusal, where one holds at `now`.
    pub(super) fn refused_until(&self, now: u64) -> Option<u64> {
        let until = self.refused_until.load(Relaxed);
        (until > now && self.live(now) == 0).then_some(until)
    }

    /// Counts a request that found no token, so that the next ask knows of it.
    pub(super) fn missed(&self) {
        self.unmet.fetch_add(1, Relaxed);
    }

    /// Are the grants of an older plan than `generation`?
    pub(super) fn older_than(&self, generation: u64) -> bool {
        self.generation.load(Acquire) < generation
    }

    /// Drops what an older plan left.
    pub(super) fn renew(&self, generation: u64) {
        if self.generation.fetch_max(generation, AcqRel) < generation {
            for grant in &self.grants {
                grant.store(0, Release);
            }
            self.refused_until.store(0, Relaxed);
        }
    }

    /// Claims the bucket's one refill; false if one is under way.
    pub(super) fn begin_refill(&self) -> bool {
        !self.pending.load(Relaxed) && !self.pending.swap(true, AcqRel)
    }

    /// Ends the refill, and wakes who waits for it.
    pub(super) fn end_refill(&self) {
        self.pending.store(false, Release);
        self.refilled.notify_waiters();
    }

    /// How many requests came since the last grant was placed.
    fn demand(&self) -> u32 {
        let left: u32 = self.grants.iter().map(|grant| count(grant.load(Relaxed))).sum();
        self.placed.load(Relaxed).saturating_sub(left).saturating_add(self.unmet.load(Relaxed))
    }

    /// Has anyone asked since the last grant?
    pub(super) fn in_demand(&self) -> bool {
        self.demand() > 0
    }

    /// How many tokens to ask for: what nine tenths of tau will need at the rate of demand
    /// since the last answer, less what is in stock. It is never more than twice the requests
    /// that were seen, so that a key used once does not take what others need.
    pub(super) fn want(&self, plan: &Plan, now: u64) -> u32 {
        let demand = self.demand();
        let waiting = self.unmet.swap(0, Relaxed);
        let target = match self.placed_at.load(Relaxed) {
            0 => demand,
            at => {
                let elapsed = now.saturating_sub(at).max(plan.tau / 2).max(1);
                (f64::from(demand) * 0.9 * plan.tau as f64 / elapsed as f64).ceil() as u32
            }
        };
        self.low.store(target / 9 * 2 + u32::from((2..9).contains(&target)), Relaxed);
        // Of what is about to die, only what will be spent before that counts.
        let fresh = self.live(now + plan.lead);
        let dying = (self.live(now) - fresh).min(target / 7);
        target.saturating_sub(fresh + dying).max(waiting).clamp(1, MOST)
    }

    /// Places a grant of the plan `plan`. Says when to look again, if the bucket had less than
    /// was wanted.
    pub(super) fn granted(&self, plan: &Plan, grant: &Grant, now: u64) -> Option<u64> {
        let again = (grant.granted < grant.wanted).then(|| now.saturating_add(pause(plan, grant)));
        self.refused_until.store(again.unwrap_or(0), Relaxed);
        let expiry = grant.sent + plan.tau;
        if grant.granted > 0 && expiry > now {
            self.place(plan.generation, grant.granted, expiry, now);
        }
        let left = self.grants.iter().map(|grant| count(grant.load(Relaxed))).sum();
        self.placed.store(left, Relaxed);
        self.placed_at.store(now, Relaxed);
        again
    }

    /// Puts a grant in the place of the one that is dead, or has least.
    fn place(&self, generation: u64, granted: u32, until: u64, now: u64) {
        if self.generation.load(Acquire) != generation {
            return;
        }
        let live = |word: u64| if expiry(word) > now { count(word) } else { 0 };
        let Some(place) = self.grants.iter().min_by_key(|grant| live(grant.load(Relaxed))) else { return };
        place.store((until >> UNIT_BITS) << COUNT_BITS | u64::from(granted.min(MOST)), Release);
        if self.generation.load(Acquire) != generation {
            // A new plan came in between, and may have cleared this place before.
            place.store(0, Release);
        }
    }

    /// Marks it as in use, for the table.
    pub(super) fn touch(&self) {
        if !self.used.load(Relaxed) {
            self.used.store(true, Relaxed);
        }
    }

    /// Was it in use since this was last asked?
    pub(super) fn take_used(&self) -> bool {
        self.used.swap(false, Relaxed)
    }

    /// May it be forgotten at `now`? Then it is retired. What it holds of the mesh's tokens is
    /// lost, which only ever refuses more.
    pub(super) fn retire(&self, now: u64) -> bool {
        !self.pending.load(Relaxed) && self.local.retire(now)
    }
}

/// How long to leave alone a bucket that had less than was wanted: at least until it has a token
/// again, and as long as a lease feeds a sidecar, so that an exhausted limit costs Redis no more
/// than a busy one. Random, so that no sidecar always comes right after another.
fn pause(plan: &Plan, grant: &Grant) -> u64 {
    let share = if grant.wait == 0 { u64::from(grant.sidecars.max(1)) } else { 1 };
    let usual = (plan.tau / 5 * 3).min(LONGEST_PAUSE) / share;
    // No bucket is ever more than one token's time from its next.
    grant.wait.min(plan.interval).max(usual / 4 * 3 + fastrand::u64(0..=usual / 2))
}

#[cfg(test)]
mod tests {
    use super::super::plan::tests::limit;
    use super::*;

    const MS: u64 = 1_000_000;

    /// 1000 tokens a second, tau 100 ms, B' 100.
    fn plan() -> Plan {
        Plan::new(&limit("a", "1000/s", 200), true, 1)
    }

    fn bucket() -> Bucket {
        Bucket::new(1, Gcra::default(), 0, "a".into())
    }

    fn grant(sent: u64, wanted: u32, granted: u32) -> Grant {
        Grant { sent, wanted, granted, wait: if granted < wanted { MS } else { 0 }, sidecars: 1 }
    }

    fn take_all(bucket: &Bucket, now: u64) -> usize {
        std::iter::from_fn(|| bucket.take(now, 0)).count()
    }

    #[test]
    fn every_grant_dies_by_its_own_clock() {
        let (bucket, plan) = (bucket(), plan());
        bucket.granted(&plan, &grant(1000 * MS, 5, 5), 1001 * MS);
        bucket.granted(&plan, &grant(1050 * MS, 7, 7), 1051 * MS);
        assert_eq!(bucket.live(1099 * MS), 12);
        assert_eq!(bucket.live(1100 * MS), 7, "tau after it was asked for, not after it came");
        assert_eq!(take_all(&bucket, 1149 * MS), 7);
        assert_eq!(bucket.take(1149 * MS, 0), None);
    }

    #[test]
    fn the_grant_that_expires_first_is_spent_first() {
        let (bucket, plan) = (bucket(), plan());
        bucket.granted(&plan, &grant(1050 * MS, 7, 7), 1051 * MS);
        bucket.granted(&plan, &grant(1000 * MS, 5, 5), 1052 * MS);
        for _ in 0..5 {
            bucket.take(1053 * MS, 0).expect("a token");
        }
        assert_eq!(bucket.live(1100 * MS), 7);
    }

    #[test]
    fn a_grant_that_comes_after_its_tau_is_dropped() {
        let (bucket, plan) = (bucket(), plan());
        bucket.granted(&plan, &grant(1000 * MS, 5, 5), 1100 * MS);
        assert_eq!(bucket.live(1100 * MS), 0);
        assert_eq!(take_all(&bucket, 1099 * MS), 0);
    }

    #[test]
    fn a_token_goes_back_to_its_own_grant_or_nowhere() {
        let (bucket, plan) = (bucket(), plan());
        bucket.granted(&plan, &grant(1000 * MS, 1, 1), 1001 * MS);
        let (lease, _) = bucket.take(1002 * MS, 0).expect("a token");
        bucket.give_back(lease);
        assert_eq!(bucket.live(1002 * MS), 1);
        let (lease, _) = bucket.take(1002 * MS, 0).expect("the same token");
        for i in 1..=4 {
            bucket.granted(&plan, &grant(1000 * MS + i * MS, 1, 1), 1010 * MS);
        }
        bucket.give_back(lease);
        assert_eq!(bucket.live(1011 * MS), 4, "its grant has been replaced");
    }

    #[test]
    fn an_exhausted_bucket_is_remembered() {
        let (bucket, plan) = (bucket(), plan());
        let again = bucket.granted(&plan, &grant(1000 * MS, 5, 2), 1001 * MS).expect("less than was wanted");
        assert_eq!(bucket.refused_until(1002 * MS), None, "there are tokens");
        assert_eq!(take_all(&bucket, 1002 * MS), 2);
        assert_eq!(bucket.refused_until(1002 * MS), Some(again));
        assert!((1001 * MS + 45 * MS..=1001 * MS + 75 * MS).contains(&again), "about 0.6 tau: {again}");
        assert_eq!(bucket.refused_until(again), None);
    }

    #[test]
    fn nonsense_from_redis_refuses_no_longer_than_one_token_takes() {
        let (bucket, plan) = (bucket(), Plan::new(&limit("a", "1/m", 2), true, 1));
        let nonsense = Grant { sent: MS, wanted: 1, granted: 0, wait: u64::MAX, sidecars: u32::MAX };
        assert_eq!(bucket.granted(&plan, &nonsense, 2 * MS), Some(2 * MS + plan.interval));
    }

    #[test]
    fn a_new_plan_drops_old_grants_even_those_on_their_way() {
        let (bucket, plan) = (bucket(), plan());
        bucket.granted(&plan, &grant(1000 * MS, 5, 5), 1001 * MS);
        assert!(bucket.older_than(2));
        bucket.renew(2);
        bucket.granted(&plan, &grant(1001 * MS, 5, 5), 1002 * MS);
        assert_eq!(bucket.live(1003 * MS), 0);
        bucket.renew(1);
        assert!(!bucket.older_than(2), "an older plan changes nothing");
    }

    #[test]
    fn it_asks_for_what_was_demanded_and_no_more() {
        let (bucket, plan) = (bucket(), plan());
        bucket.missed();
        assert_eq!(bucket.want(&plan, 1000 * MS), 1, "one request, one token");
        bucket.granted(&plan, &grant(1000 * MS, 1, 1), 1001 * MS);
        assert_eq!(take_all(&bucket, 1001 * MS), 1);
        bucket.missed();
        assert_eq!(bucket.want(&plan, 1001 * MS), 4, "two requests in no time");
        // 60 requests in 60 ms are 90 in nine tenths of tau; 20 are in stock.
        let (steady, now) = (self::bucket(), 1061 * MS);
        steady.granted(&plan, &grant(1000 * MS, 80, 80), 1001 * MS);
        for _ in 0..60 {
            steady.take(now, plan.lead).expect("a token");
        }
        assert_eq!(steady.want(&plan, now), 70);
    }

    #[test]
    fn a_low_stock_is_told_while_redis_may_be_asked() {
        let (bucket, plan) = (bucket(), plan());
        for _ in 0..10 {
            bucket.missed();
        }
        assert_eq!(bucket.want(&plan, 1000 * MS), 10);
        bucket.granted(&plan, &grant(1000 * MS, 10, 10), 1001 * MS);
        let low: Vec<bool> =
            std::iter::from_fn(|| bucket.take(1002 * MS, plan.lead)).map(|(_, low)| low).collect();
        assert_eq!(low.iter().position(|low| *low), Some(8), "one of ten is left: {low:?}");
        bucket.granted(&plan, &grant(1010 * MS, 10, 9), 1011 * MS);
        assert!(std::iter::from_fn(|| bucket.take(1012 * MS, plan.lead)).all(|(_, low)| !low));
    }

    #[test]
    fn tokens_are_taken_once_by_any_number_of_threads() {
        let (bucket, plan) = (bucket(), plan());
        bucket.granted(&plan, &grant(1000 * MS, 5000, 5000), 1001 * MS);
        let taken: usize = std::thread::scope(|scope| {
            let take = || (0..3000).filter(|_| bucket.take(1002 * MS, plan.lead).is_some()).count();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
        });
        assert_eq!(taken, 5000);
    }
}
