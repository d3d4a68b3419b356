//! What is known of the conversation with Redis: whether it answers, what it was asked, and whether it is the
//! one that it was.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::clock;
use super::key::SHARDS;

/// For so long, in nanoseconds, a state that is new again belongs to the same event.
const QUIET: u64 = 60_000_000_000;

/// Shared by the tasks that ask and all who look.
#[derive(Debug)]
pub(super) struct Status {
    /// Of Redis, for the log.
    address: String,
    /// Since when each lane has had no answer in time; 0 while it has.
    down_since: Box<[AtomicU64]>,
    /// How many lanes have none.
    down: AtomicU32,
    pub(super) round_trips: AtomicU64,
    pub(super) calls: AtomicU64,
    pub(super) errors: AtomicU64,
    /// How often a shard's state was found to be another than before.
    pub(super) new_states: AtomicU64,
    /// When that was last logged, by [`clock::now`]; 0 for never.
    new_state_logged: AtomicU64,
    /// When each shard's state began, by Redis's clock; 0 where nobody has said yet.
    since: Box<[AtomicU64]>,
    words: Mutex<Words>,
}

#[derive(Debug, Default)]
struct Words {
    last_error: Option<String>,
    /// By lane.
    warnings: Vec<Vec<String>>,
}

impl Status {
    pub(super) fn new(address: String, lanes: usize) -> Self {
        let zeros = |count| (0..count).map(|_| AtomicU64::new(0)).collect();
        Self {
            address,
            down_since: zeros(lanes),
            down: AtomicU32::new(0),
            round_trips: AtomicU64::new(0),
            calls: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            new_states: AtomicU64::new(0),
            new_state_logged: AtomicU64::new(0),
            since: zeros(usize::from(SHARDS)),
            words: Mutex::default(),
        }
    }

    /// Since when the lane has had no answer in time.
    pub(super) fn down_since(&self, lane: usize) -> Option<u64> {
        Some(self.down_since[lane].load(Relaxed)).filter(|since| *since != 0)
    }

    /// Does every lane have answers in time?
    pub(super) fn is_up(&self) -> bool {
        self.down.load(Relaxed) == 0
    }

    /// A lane has no answer, or not in time.
    pub(super) fn down(&self, lane: usize, why: &dyn std::fmt::Display) {
        let said = why.to_string();
        let news = self.words().last_error.replace(said.clone()).is_none_or(|before| before != said);
        // The moment at which it was lost: each share of the rate begins then, and only then.
        let lost = self.down_since[lane].compare_exchange(0, clock::now(), Relaxed, Relaxed).is_ok();
        if lost && self.down.fetch_add(1, Relaxed) == 0 {
            let redis = &self.address;
            tracing::warn!(%why, redis, "limits: Redis does not answer; each limit does as its `without_redis` says");
        } else if news {
            tracing::warn!(%why, redis = self.address, "limits: Redis does not answer either way");
        }
    }

    /// A lane had its answers in time.
    pub(super) fn up(&self, lane: usize) {
        if self.down_since[lane].swap(0, Relaxed) != 0 && self.down.fetch_sub(1, Relaxed) == 1 {
            tracing::info!(redis = self.address, "limits: Redis answers again");
        }
    }

    /// Takes note of when a shard's state began. True if it is another than it was.
    pub(super) fn state(&self, shard: u8, since: u64) -> bool {
        let before = self.since[usize::from(shard)].swap(since, Relaxed);
        let new = before != 0 && before != since;
        if !new {
            return false;
        }
        self.new_states.fetch_add(1, Relaxed);
        // All shards find it out, one after the other.
        let logged = self.new_state_logged.swap(clock::now(), Relaxed);
        if logged == 0 || clock::now().saturating_sub(logged) > QUIET {
            let redis = &self.address;
            tracing::warn!(redis, "limits: Redis has lost what it knew, or is another; buckets begin anew");
        }
        true
    }

    /// Takes note of what is wrong with how Redis is set up.
    pub(super) fn warn(&self, lane: usize, warnings: Vec<String>) {
        let mut words = self.words();
        words.warnings.resize(self.down_since.len(), Vec::new());
        for warning in
            warnings.iter().filter(|warning| !words.warnings.iter().flatten().any(|w| w == *warning))
        {
            tracing::warn!(redis = self.address, "limits: Redis may break the bound: {warning}");
        }
        words.warnings[lane] = warnings;
    }

    /// What was last wrong.
    pub(super) fn last_error(&self) -> Option<String> {
        self.words().last_error.clone()
    }

    /// What is wrong with how Redis is set up.
    pub(super) fn warnings(&self) -> Vec<String> {
        let mut all: Vec<String> = self.words().warnings.iter().flatten().cloned().collect();
        all.sort();
        all.dedup();
        all
    }

    fn words(&self) -> MutexGuard<'_, Words> {
        self.words.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
