//! A key's tokens: the grants that this sidecar holds, the refusal that it remembers, and the
//! pod's own count. Request threads take tokens without a lock; the refill task alone places
//! them.
//!
//! Promise: a token is taken only before its own grant's expiry, which is tau after the moment
//! before the grant was asked for. Grants are never merged: each is one atomic word of count and
//! expiry, so that no token ever lives by another's clock.

mod demand;
#[cfg(test)]
mod tests;

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};

use smallvec::SmallVec;
use tokio::sync::Notify;

use super::gcra::Gcra;
use super::plan::{Plan, lead};

pub(super) use self::demand::{Back, Grant, Want};

/// A grant's word: the count in the low bits, the expiry in the rest, in units of 2^15 ns. The
/// expiry is rounded down, and lasts for 18 years after boot.
const COUNT_BITS: u32 = 20;
const UNIT_BITS: u32 = 15;
/// The most tokens of one grant.
pub(super) const MOST: u32 = (1 << COUNT_BITS) - 1;

/// One key of one limit. What a request reads and writes is its first cache line.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct Bucket {
    grants: [AtomicU64; 4],
    /// Without enough tokens, requests are refused until then.
    refused_until: AtomicU64,
    /// The generation of the plan that the grants belong to, and above it which of its terms.
    plan: AtomicU64,
    /// How long a token lives by that plan, in nanoseconds.
    tau: AtomicU64,
    /// A stock below this is refilled.
    low: AtomicU32,
    /// A refill is queued or under way.
    pending: AtomicBool,
    /// Taken from since the table last looked.
    used: AtomicBool,
    /// The count of this pod alone.
    pub(super) local: Gcra,
    /// What its whole burst is worth, in nanoseconds.
    span: AtomicU64,
    /// When each grant was made, in microseconds of Redis's clock; and the plan and terms by which they all were.
    granted_at: [AtomicU64; 4],
    granted_by: AtomicU64,
    /// Tokens that requests did not find since the last ask.
    unmet: AtomicU32,
    /// Requests that cost less than this are not refused unasked.
    refused_cost: AtomicU32,
    /// Tokens that requests wait for.
    waiting: AtomicU64,
    /// The least that one of them waits for; 0 where none waits.
    least: AtomicU32,
    /// What has lain in the grants since Redis was last asked, and when that was; 0 for never.
    placed: AtomicU32,
    asked_at: AtomicU64,
    /// How many tokens requests ask for in the time of a lease: the bits of an `f32`.
    mean: AtomicU32,
    /// Of how many leases that is the mean: the same.
    weight: AtomicU32,
    /// When the state began that the last grant came from, by Redis's clock; 0 for none.
    since: AtomicU64,
    /// When Redis last had less than was wanted, by this sidecar's clock; 0 for never.
    short_at: AtomicU64,
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
    /// An empty-handed bucket under one of a plan's terms, whose local count begins at `local`.
    pub(super) fn new(plan: &Plan, terms: u16, local: Gcra, shard: u8, name: Box<str>) -> Self {
        let numbers = &plan.terms[usize::from(terms)];
        Self {
            grants: [const { AtomicU64::new(0) }; 4],
            refused_until: AtomicU64::new(0),
            plan: AtomicU64::new(plan_word(plan.generation, terms)),
            tau: AtomicU64::new(numbers.tau),
            low: AtomicU32::new(0),
            pending: AtomicBool::new(false),
            used: AtomicBool::new(true),
            local,
            span: AtomicU64::new(numbers.span()),
            granted_at: [const { AtomicU64::new(0) }; 4],
            granted_by: AtomicU64::new(0),
            unmet: AtomicU32::new(0),
            refused_cost: AtomicU32::new(0),
            waiting: AtomicU64::new(0),
            least: AtomicU32::new(0),
            placed: AtomicU32::new(0),
            asked_at: AtomicU64::new(0),
            mean: AtomicU32::new(0),
            weight: AtomicU32::new(0),
            since: AtomicU64::new(0),
            short_at: AtomicU64::new(0),
            sidecars: AtomicU32::new(0),
            refilled: Notify::new(),
            shard,
            name,
        }
    }

    /// Takes `cost` tokens, of the grants that expire first. Says also whether the stock has become
    /// low and Redis may be asked for more.
    ///
    /// A grant that was asked for after `now` is none of this request's: its decision was then.
    pub(super) fn take(&self, now: u64, cost: u32) -> Option<(Taken, bool)> {
        let tau = self.tau.load(Relaxed);
        let (lead, latest) = (lead(tau), now.saturating_add(tau));
        let mut taken = Taken::new();
        let mut left = cost;
        loop {
            let mut first: Option<(usize, u64)> = None;
            let (mut stock, mut live) = (0u32, 0u32);
            for (i, grant) in self.grants.iter().enumerate() {
                let word = grant.load(Acquire);
                if count(word) == 0 || expiry(word) <= now || expiry(word) > latest {
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
    pub(super) fn missed(&self, cost: u32) {
        let _ = self.unmet.fetch_update(Relaxed, Relaxed, |unmet| Some(unmet.saturating_add(cost)));
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

    /// Takes the terms of a newer plan, and drops what an older one left. What the pod counts by itself stays
    /// as full as it was.
    pub(super) fn renew(&self, plan: &Plan, terms: u16, now: u64) {
        let word = plan_word(plan.generation, terms);
        let newer = |before: u64| (before >> 16 < plan.generation).then_some(word);
        if self.plan.fetch_update(AcqRel, Acquire, newer).is_ok() {
            let numbers = &plan.terms[usize::from(terms)];
            self.tau.store(numbers.tau, Relaxed);
            let span = numbers.span();
            self.local.rescale(now, self.span.swap(span, Relaxed), span);
            self.drop_grants();
            for time in [&self.refused_until, &self.short_at] {
                time.store(0, Relaxed);
            }
            for count in [&self.low, &self.unmet, &self.refused_cost] {
                count.store(0, Relaxed);
            }
            self.mean.store(0, Relaxed);
            self.weight.store(0, Relaxed);
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

    /// Puts a grant, made at `granted_at` by Redis's clock, in the place of the one that is dead, or has least.
    fn place(&self, plan: u64, granted: u32, granted_at: u64, until: u64, now: u64) {
        if self.granted_by.swap(plan, Relaxed) != plan {
            // Who took the new plan may not have come to that yet.
            self.drop_grants();
        }
        let live = |word: u64| if expiry(word) > now { count(word) } else { 0 };
        let places = self.grants.iter().zip(&self.granted_at);
        let Some((place, time)) = places.min_by_key(|(grant, _)| live(grant.load(Relaxed))) else { return };
        time.store(granted_at, Relaxed);
        let granted = granted.min(MOST);
        let lost = place.swap((until >> UNIT_BITS) << COUNT_BITS | u64::from(granted), AcqRel);
        // What is lost was not spent.
        self.placed.store(self.placed.load(Relaxed).wrapping_add(granted).wrapping_sub(count(lost)), Relaxed);
        if self.plan.load(Acquire) != plan {
            // A new plan came in between, and may have cleared this place before.
            place.store(0, Release);
        }
    }

    fn drop_grants(&self) {
        // What is dropped was not spent.
        self.placed.store(0, Relaxed);
        for grant in &self.grants {
            grant.store(0, Release);
        }
    }

    /// Drops what came from a state of Redis other than the one that began at `since`. The first grant of that
    /// finds a bucket that has none.
    pub(super) fn forget_state_before(&self, since: u64) {
        if self.since.load(Relaxed) != since {
            self.since.store(0, Relaxed);
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
        !self.pending.load(Relaxed) && self.waiting.load(Relaxed) == 0 && self.local.retire(now)
    }
}
