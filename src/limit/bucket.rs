//! A key's tokens: the grants that this sidecar holds, the refusal that it remembers, and the
//! pod's own count. Request threads take tokens without a lock; the refill task alone places
//! them.
//!
//! Promise: a token is taken only before its own grant's expiry, which is tau after the moment
//! before the grant was asked for. Grants are never merged: each is one atomic word of count and
//! expiry, so that no token ever lives by another's clock.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};

use smallvec::SmallVec;
use tokio::sync::Notify;

use super::gcra::Gcra;
use super::plan::{Plan, Terms};

/// A grant's word: the count in the low bits, the expiry in the rest, in units of 2^15 ns. The
/// expiry is rounded down, and lasts for 18 years after boot.
const COUNT_BITS: u32 = 20;
const UNIT_BITS: u32 = 15;
/// The most tokens of one grant.
pub(super) const MOST: u32 = (1 << COUNT_BITS) - 1;

/// The lease by which an exhausted bucket is left alone although it may have tokens again, at most.
const LONGEST_PAUSE: u64 = 1_333_000_000;

/// A bucket that is fuller has enough for all: it fills up as fast as it is emptied.
const HALF: u16 = 500;

/// Needs that are fewer, per lease, come one by one.
const FEW: f64 = 8.0;

/// One key of one limit. What a request reads and writes is its first cache line.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct Bucket {
    grants: [AtomicU64; 4],
    /// Without enough tokens, requests are refused until then.
    refused_until: AtomicU64,
    /// The generation of the plan that the grants belong to, and above it which of its terms.
    plan: AtomicU64,
    /// A stock below this is refilled.
    low: AtomicU32,
    /// Tokens that requests did not find since the last ask.
    unmet: AtomicU32,
    /// Requests that cost less than this are not refused unasked.
    refused_cost: AtomicU32,
    /// A refill is queued or under way.
    pending: AtomicBool,
    /// Taken from since the table last looked.
    used: AtomicBool,
    /// The count of this pod alone.
    pub(super) local: Gcra,
    /// Tokens that requests wait for.
    waiting: AtomicU32,
    /// The most that one of the requests without tokens needs at once.
    least: AtomicU32,
    /// What lay in the grants after the last answer, and when that came; 0 for never.
    placed: AtomicU32,
    placed_at: AtomicU64,
    /// When there last was not enough for all who ask; 0 for never.
    short_at: AtomicU64,
    /// When the state began that the last grant came from, by Redis's clock; 0 for none.
    since: AtomicU64,
    /// How many sidecars ask for its limit and shard, as last told.
    pub(super) sidecars: AtomicU32,
    /// Woken when a refill has ended, well or badly.
    pub(super) refilled: Notify,
    /// The shard of Redis's keys that it lies in, and the key's name there.
    pub(super) shard: u8,
    pub(super) name: Box<str>,
}

/// Tokens of one grant, so that they can be given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lease {
    grant: u8,
    count: u32,
    expiry: u64,
}

/// What a request has taken: of one grant nearly always.
pub(super) type Taken = SmallVec<[Lease; 1]>;

/// What to ask Redis for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Want {
    pub(super) wanted: u32,
    /// With fewer no request that waits could pass.
    pub(super) least: u32,
}

/// What Redis said about one bucket.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grant {
    /// When the request was about to be sent, by [`clock::now`](super::clock::now).
    pub(super) sent: u64,
    pub(super) want: Want,
    pub(super) granted: u32,
    /// What the bucket had before, in thousandths of what it holds when full.
    pub(super) held: u16,
    /// Nanoseconds until the bucket has what is of use; 0 where it has it now.
    pub(super) wait: u64,
    /// How many sidecars ask for the limit.
    pub(super) sidecars: u32,
    /// How long the tokens live, in nanoseconds from `sent`, by the newest configuration.
    pub(super) tau: u64,
    /// When the state began that they come from, by Redis's clock.
    pub(super) since: u64,
}

const fn count(word: u64) -> u32 {
    (word & MOST as u64) as u32
}

/// In nanoseconds.
const fn expiry(word: u64) -> u64 {
    (word >> COUNT_BITS) << UNIT_BITS
}

/// Which plan, and which of its terms, in one word.
const fn plan_word(generation: u64, terms: u16) -> u64 {
    generation << 16 | terms as u64
}

impl Bucket {
    /// An empty-handed bucket, whose local count begins at `local`.
    pub(super) fn new(generation: u64, terms: u16, local: Gcra, shard: u8, name: Box<str>) -> Self {
        Self {
            grants: [const { AtomicU64::new(0) }; 4],
            refused_until: AtomicU64::new(0),
            plan: AtomicU64::new(plan_word(generation, terms)),
            low: AtomicU32::new(0),
            unmet: AtomicU32::new(0),
            refused_cost: AtomicU32::new(0),
            pending: AtomicBool::new(false),
            used: AtomicBool::new(true),
            local,
            waiting: AtomicU32::new(0),
            least: AtomicU32::new(0),
            placed: AtomicU32::new(0),
            placed_at: AtomicU64::new(0),
            short_at: AtomicU64::new(0),
            since: AtomicU64::new(0),
            sidecars: AtomicU32::new(0),
            refilled: Notify::new(),
            shard,
            name,
        }
    }

    /// Takes `cost` tokens, of the grants that expire first. Says also whether the stock has become
    /// low and Redis may be asked for more.
    pub(super) fn take(&self, now: u64, lead: u64, cost: u32) -> Option<(Taken, bool)> {
        let mut taken = Taken::new();
        let mut left = cost;
        loop {
            let mut first: Option<(usize, u64)> = None;
            let (mut stock, mut live) = (0u32, 0u32);
            for (i, grant) in self.grants.iter().enumerate() {
                let word = grant.load(Acquire);
                if count(word) == 0 || expiry(word) <= now {
                    continue;
                }
                live += count(word);
                if expiry(word) > now + lead {
                    stock += count(word);
                }
                if first.is_none_or(|(_, other)| expiry(word) < expiry(other)) {
                    first = Some((i, word));
                }
            }
            let Some((i, word)) = first.filter(|_| live >= left) else {
                taken.into_iter().for_each(|lease| self.give_back(lease));
                return None;
            };
            let part = count(word).min(left);
            if self.grants[i].compare_exchange(word, word - u64::from(part), AcqRel, Relaxed).is_err() {
                continue;
            }
            taken.push(Lease { grant: i as u8, count: part, expiry: expiry(word) });
            left -= part;
            if left == 0 {
                if expiry(word) > now + lead {
                    stock -= part;
                }
                let low = stock < self.low.load(Relaxed) && self.refused_until.load(Relaxed) <= now;
                return Some((taken, low));
            }
        }
    }

    /// Gives tokens back to their own grant; if that is gone, they are too.
    pub(super) fn give_back(&self, lease: Lease) {
        let back = |word| {
            let fits = expiry(word) == lease.expiry && count(word) <= MOST - lease.count;
            fits.then_some(word + u64::from(lease.count))
        };
        // The grant has been replaced.
        let _ = self.grants[usize::from(lease.grant)].fetch_update(AcqRel, Acquire, back);
    }

    /// The tokens that can be taken at `now`.
    pub(super) fn live(&self, now: u64) -> u32 {
        let live = |word: u64| if expiry(word) > now { count(word) } else { 0 };
        self.grants.iter().map(|grant| live(grant.load(Relaxed))).sum()
    }

    /// When the last token that can be taken at `now` dies.
    pub(super) fn expiry(&self, now: u64) -> Option<u64> {
        let words = self.grants.iter().map(|grant| grant.load(Relaxed));
        words.filter(|word| count(*word) > 0).map(expiry).max().filter(|expiry| *expiry > now)
    }

    /// The end of a remembered refusal, where one holds at `now` for a request of this cost.
    pub(super) fn refused_until(&self, now: u64, cost: u32) -> Option<u64> {
        let until = self.refused_until.load(Relaxed);
        (until > now && cost >= self.refused_cost.load(Relaxed) && self.live(now) < cost).then_some(until)
    }

    /// Counts a request that found too few tokens, so that the next ask knows of it.
    pub(super) fn missed(&self, now: u64, cost: u32) {
        self.unmet.fetch_add(cost, Relaxed);
        if cost > 1 {
            self.least.fetch_max(cost.saturating_sub(self.live(now)), Relaxed);
        }
    }

    /// The terms of a plan of this generation that hold for it; none where it has another plan's.
    pub(super) fn terms(&self, generation: u64) -> Option<usize> {
        let word = self.plan.load(Acquire);
        (word >> 16 == generation).then_some(usize::from(word as u16))
    }

    /// Are the grants of an older plan than `generation`?
    pub(super) fn older_than(&self, generation: u64) -> bool {
        self.plan.load(Acquire) >> 16 < generation
    }

    /// Takes the terms of a newer plan, and drops what an older one left.
    pub(super) fn renew(&self, generation: u64, terms: u16) {
        let newer = |word: u64| (word >> 16 < generation).then(|| plan_word(generation, terms));
        if self.plan.fetch_update(AcqRel, Acquire, newer).is_ok() {
            self.drop_grants();
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
    pub(super) fn is_busy(&self, terms: &Terms, now: u64) -> bool {
        self.needed(terms, now) >= FEW
    }

    /// How many tokens to ask for: what will be needed, less what is in stock.
    pub(super) fn want(&self, terms: &Terms, now: u64) -> Want {
        let mut needed = self.needed(terms, now);
        let short_at = self.short_at.load(Relaxed);
        if short_at != 0 && now.saturating_sub(short_at) < 4 * terms.tau {
            // There is not enough for all: no more than will be spent even if by chance few requests come.
            needed = (needed - 2.0 * needed.sqrt()).max(0.0);
        }
        let target = needed.ceil() as u32;
        self.unmet.store(0, Relaxed);
        self.low.store(target / 9 * 2 + u32::from((2..9).contains(&target)), Relaxed);
        // Of what is about to die, only what will be spent before that counts.
        let fresh = self.live(now + terms.lead);
        let dying = (self.live(now) - fresh).min(target / 7);
        self.wanted(terms, target.saturating_sub(fresh + dying).max(self.waiting.load(Relaxed)))
    }

    /// How many tokens to ask for where each request asks: what those that wait need.
    pub(super) fn want_exactly(&self, terms: &Terms) -> Want {
        self.unmet.store(0, Relaxed);
        self.wanted(terms, self.waiting.load(Relaxed))
    }

    /// A request begins to wait for `cost` tokens.
    pub(super) fn waits(&self, cost: u32) {
        self.waiting.fetch_add(cost, Relaxed);
    }

    /// It waits no more.
    pub(super) fn waits_no_more(&self, cost: u32) {
        self.waiting.fetch_sub(cost, Relaxed);
    }

    fn wanted(&self, terms: &Terms, wanted: u32) -> Want {
        let dearest = terms.of.dearest().min(MOST);
        let least = self.least.swap(0, Relaxed).clamp(1, dearest);
        Want { wanted: wanted.clamp(least, dearest), least }
    }

    /// Places a grant of the plan `plan`. Says when to look again, if the bucket had less than
    /// was wanted and tokens are kept.
    pub(super) fn granted(&self, plan: &Plan, grant: &Grant, now: u64) -> Option<u64> {
        let terms = &plan.terms[self.terms(plan.generation)?];
        if self.since.swap(grant.since, Relaxed) != grant.since {
            // Another state: that of a server which has been restarted, flushed, or taken the place of
            // one whose leases it may not know.
            self.drop_grants();
        }
        self.sidecars.store(grant.sidecars, Relaxed);
        let short = grant.granted < grant.want.wanted && !(plan.exact && grant.wait == 0);
        let again = short.then(|| now.saturating_add(pause(plan, terms, grant)));
        if short || grant.held < HALF {
            self.short_at.store(now, Relaxed);
        }
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

    /// Puts a grant in the place of the one that is dead, or has least.
    fn place(&self, generation: u64, granted: u32, until: u64, now: u64) {
        let live = |word: u64| if expiry(word) > now { count(word) } else { 0 };
        let Some(place) = self.grants.iter().min_by_key(|grant| live(grant.load(Relaxed))) else { return };
        place.store((until >> UNIT_BITS) << COUNT_BITS | u64::from(granted.min(MOST)), Release);
        if self.terms(generation).is_none() {
            // A new plan came in between, and may have cleared this place before.
            place.store(0, Release);
        }
    }

    fn drop_grants(&self) {
        for grant in &self.grants {
            grant.store(0, Release);
        }
    }

    /// Drops what came from a state of Redis other than the one that began at `since`.
    pub(super) fn forget_state_before(&self, since: u64) {
        if self.since.swap(since, Relaxed) != since {
            self.drop_grants();
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
    wait.max(tau / 20 * 13 + fastrand::u64(0..=tau / 5))
}

#[cfg(test)]
mod tests {
    use super::super::plan::tests;
    use super::*;

    const MS: u64 = 1_000_000;

    /// 1000 tokens a second, tau 100 ms, B' 100.
    fn plan() -> Plan {
        tests::plan("1000/s", 200)
    }

    fn bucket() -> Bucket {
        Bucket::new(1, 0, Gcra::default(), 0, "a".into())
    }

    fn grant(sent: u64, wanted: u32, granted: u32) -> Grant {
        let want = Want { wanted, least: 1 };
        let wait = if granted < wanted { MS } else { 0 };
        Grant { sent, want, granted, held: 1000, wait, sidecars: 1, tau: u64::MAX, since: 1 }
    }

    fn give_back(bucket: &Bucket, taken: Taken) {
        taken.into_iter().for_each(|lease| bucket.give_back(lease));
    }

    fn take_all(bucket: &Bucket, now: u64) -> usize {
        std::iter::from_fn(|| bucket.take(now, 0, 1)).count()
    }

    #[test]
    fn every_grant_dies_by_its_own_clock() {
        let (bucket, plan) = (bucket(), plan());
        bucket.granted(&plan, &grant(1000 * MS, 5, 5), 1001 * MS);
        bucket.granted(&plan, &grant(1050 * MS, 7, 7), 1051 * MS);
        assert_eq!(bucket.live(1099 * MS), 12);
        assert_eq!(bucket.live(1100 * MS), 7, "tau after it was asked for, not after it came");
        assert_eq!(take_all(&bucket, 1149 * MS), 7);
        assert_eq!(bucket.take(1149 * MS, 0, 1), None);
    }

    #[test]
    fn the_grant_that_expires_first_is_spent_first() {
        let (bucket, plan) = (bucket(), plan());
        bucket.granted(&plan, &grant(1050 * MS, 7, 7), 1051 * MS);
        bucket.granted(&plan, &grant(1000 * MS, 5, 5), 1052 * MS);
        for _ in 0..5 {
            bucket.take(1053 * MS, 0, 1).expect("a token");
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
        let (lease, _) = bucket.take(1002 * MS, 0, 1).expect("a token");
        give_back(&bucket, lease);
        assert_eq!(bucket.live(1002 * MS), 1);
        let (lease, _) = bucket.take(1002 * MS, 0, 1).expect("the same token");
        for i in 1..=4 {
            bucket.granted(&plan, &grant(1000 * MS + i * MS, 1, 1), 1010 * MS);
        }
        give_back(&bucket, lease);
        assert_eq!(bucket.live(1011 * MS), 4, "its grant has been replaced");
    }

    #[test]
    fn an_exhausted_bucket_is_remembered() {
        let (bucket, plan) = (bucket(), plan());
        let again = bucket.granted(&plan, &grant(1000 * MS, 5, 2), 1001 * MS).expect("less than was wanted");
        assert_eq!(bucket.refused_until(1002 * MS, 1), None, "there are tokens");
        assert_eq!(take_all(&bucket, 1002 * MS), 2);
        assert_eq!(bucket.refused_until(1002 * MS, 1), Some(again));
        assert!((1001 * MS + 45 * MS..=1001 * MS + 75 * MS).contains(&again), "about 0.6 tau: {again}");
        assert_eq!(bucket.refused_until(again, 1), None);
    }

    #[test]
    fn nonsense_from_redis_refuses_no_longer_than_one_token_takes() {
        let (bucket, plan) = (bucket(), tests::plan("1/m", 2));
        let nonsense = Grant { wait: u64::MAX, sidecars: u32::MAX, ..grant(MS, 1, 0) };
        assert_eq!(bucket.granted(&plan, &nonsense, 2 * MS), Some(2 * MS + plan.terms[0].interval));
    }

    #[test]
    fn a_new_plan_drops_old_grants_even_those_on_their_way() {
        let (bucket, plan) = (bucket(), plan());
        bucket.granted(&plan, &grant(1000 * MS, 5, 5), 1001 * MS);
        assert!(bucket.older_than(2));
        bucket.renew(2, 0);
        bucket.granted(&plan, &grant(1001 * MS, 5, 5), 1002 * MS);
        assert_eq!(bucket.live(1003 * MS), 0);
        bucket.renew(1, 0);
        assert!(!bucket.older_than(2), "an older plan changes nothing");
    }

    #[test]
    fn it_asks_for_what_was_demanded_and_no_more() {
        let (bucket, plan) = (bucket(), plan());
        bucket.missed(1000 * MS, 1);
        assert_eq!(bucket.want(&plan.terms[0], 1000 * MS).wanted, 1, "one request, one token");
        bucket.granted(&plan, &grant(1000 * MS, 1, 1), 1001 * MS);
        assert_eq!(take_all(&bucket, 1001 * MS), 1);
        bucket.missed(1000 * MS, 1);
        assert_eq!(bucket.want(&plan.terms[0], 1001 * MS).wanted, 4, "two requests in no time");
        // 60 requests in 60 ms are 90 in nine tenths of tau; 20 are in stock.
        let (steady, now) = (self::bucket(), 1061 * MS);
        steady.granted(&plan, &grant(1000 * MS, 80, 80), 1001 * MS);
        for _ in 0..60 {
            steady.take(now, plan.terms[0].lead, 1).expect("a token");
        }
        assert_eq!(steady.want(&plan.terms[0], now).wanted, 70);
    }

    #[test]
    fn a_low_stock_is_told_while_redis_may_be_asked() {
        let (bucket, plan) = (bucket(), plan());
        for _ in 0..10 {
            bucket.missed(1000 * MS, 1);
        }
        assert_eq!(bucket.want(&plan.terms[0], 1000 * MS).wanted, 10);
        bucket.granted(&plan, &grant(1000 * MS, 10, 10), 1001 * MS);
        let low: Vec<bool> = std::iter::from_fn(|| bucket.take(1002 * MS, plan.terms[0].lead, 1))
            .map(|(_, low)| low)
            .collect();
        assert_eq!(low.iter().position(|low| *low), Some(8), "one of ten is left: {low:?}");
        bucket.granted(&plan, &grant(1010 * MS, 10, 9), 1011 * MS);
        assert!(std::iter::from_fn(|| bucket.take(1012 * MS, plan.terms[0].lead, 1)).all(|(_, low)| !low));
    }

    #[test]
    fn tokens_are_taken_once_by_any_number_of_threads() {
        let (bucket, plan) = (bucket(), plan());
        bucket.granted(&plan, &grant(1000 * MS, 5000, 5000), 1001 * MS);
        let taken: usize = std::thread::scope(|scope| {
            let take =
                || (0..3000).filter(|_| bucket.take(1002 * MS, plan.terms[0].lead, 1).is_some()).count();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
        });
        assert_eq!(taken, 5000);
    }
}
