//! A key's tokens: the grants that this sidecar holds, the refusal that it remembers, and the
//! pod's own count. Request threads take tokens without a lock; the refill task alone places
//! them.
//!
//! Promise: a token is taken only before its own grant's expiry, which is tau after the moment
//! before the grant was asked for. Grants are never merged: each is one atomic word of count and
//! expiry, so that no token ever lives by another's clock.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::AcqRel, Ordering::Acquire};
use std::sync::atomic::{Ordering::Relaxed, Ordering::Release};

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

/// One key of one limit.
#[derive(Debug)]
#[repr(align(64))]
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
    /// What lay in the grants after the last was placed, and when that was.
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
    /// since the last grant, less what is in stock. A grant is never more than twice the requests
    /// that were seen, so that a key used once does not take what others need.
    pub(super) fn want(&self, plan: &Plan, now: u64) -> u32 {
        let demand = f64::from(self.demand());
        let waiting = self.unmet.swap(0, Relaxed);
        let elapsed = now.saturating_sub(self.placed_at.load(Relaxed)).max(plan.tau / 2).max(1);
        let target = (demand * 0.9 * plan.tau as f64 / elapsed as f64).ceil().min(f64::from(MOST)) as u32;
        self.low.store(target / 9 * 2 + u32::from((2..9).contains(&target)), Relaxed);
        // Of what is about to die, only what will be spent before that counts.
        let fresh = self.live(now + plan.lead);
        let dying = (self.live(now) - fresh).min(target / 7);
        target.saturating_sub(fresh + dying).max(waiting).clamp(1, MOST)
    }

    /// Places a grant of the plan `plan`. Says when to look again, if the bucket had less than
    /// was wanted.
    pub(super) fn granted(&self, plan: &Plan, grant: &Grant, now: u64) -> Option<u64> {
        let again = (grant.granted < grant.wanted).then(|| now + pause(plan, grant));
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
    grant.wait.max(usual / 4 * 3 + fastrand::u64(0..=usual / 2))
}
