//! One limit as it lives across reloads: its current numbers, its common bucket, its counters.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use arc_swap::ArcSwap;

use crate::config::model::Direction;

use super::bucket::Bucket;
use super::key::SHARDS;
use super::plan::Plan;

/// A limit that is kept while any configuration has one of the same name, direction, key and
/// scope.
#[derive(Debug)]
pub(super) struct Limit {
    /// Unique in the process.
    pub(super) id: u64,
    pub(super) name: Arc<str>,
    pub(super) direction: Direction,
    /// Counted in Redis; else in this process.
    pub(super) leased: bool,
    /// The state that its leases are of.
    pub(super) state: u64,
    /// What it is called in Redis's keys.
    pub(super) redis_name: Box<str>,
    /// The newest plan that a request has met.
    pub(super) plan: ArcSwap<Plan>,
    /// The bucket of a limit without a key; else that of keys for which there was no room.
    pub(super) common: Arc<Bucket>,
    /// When a key last found no room, 0 for never: keys made later may have been counted on the
    /// common bucket before, so they hold at most what has accrued since.
    pub(super) lost_at: AtomicU64,
    /// Keys in the table.
    pub(super) keys: AtomicU32,
    /// How many sidecars ask Redis for it, this one included, as last told of any key of each shard.
    pub(super) sidecars: [AtomicU32; SHARDS as usize],
    pub(super) counters: Arc<Counters>,
}

/// What happened to requests under one limit, and what it cost.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) admitted: Sharded,
    pub(super) refused: Sharded,
    /// Would have been refused, but the limit only observes.
    pub(super) observed: Sharded,
    pub(super) waited: Sharded,
    pub(super) without_redis: Sharded,
    pub(super) redis_errors: AtomicU64,
    pub(super) tokens_asked: AtomicU64,
    pub(super) tokens_granted: AtomicU64,
}

impl Limit {
    /// Takes note of how many sidecars ask for its keys of a shard.
    pub(super) fn told_of_sidecars(&self, shard: u8, sidecars: u32) {
        self.sidecars[usize::from(shard)].store(sidecars, Relaxed);
    }

    /// How many sidecars ask for it: where most do, as a key that nobody has asked for yet may be anywhere.
    pub(super) fn most_sidecars(&self) -> u32 {
        self.sidecars.iter().map(|known| known.load(Relaxed)).max().unwrap_or(0).max(1)
    }

    /// Takes a newer plan; an older one changes nothing.
    pub(super) fn adopt(&self, plan: &Arc<Plan>) {
        self.plan.rcu(|current| if plan.newer_than(current) { plan.clone() } else { current.clone() });
    }
}

/// A count that threads add to without meeting.
#[derive(Debug, Default)]
pub(super) struct Sharded([Cell; 8]);

#[derive(Debug, Default)]
#[repr(align(64))]
struct Cell(AtomicU64);

thread_local! {
    static CELL: usize = {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        NEXT.fetch_add(1, Relaxed) as usize
    };
}

impl Sharded {
    pub(super) fn add(&self) {
        let Self(cells) = self;
        cells[CELL.with(|cell| *cell) % cells.len()].0.fetch_add(1, Relaxed);
    }

    pub(super) fn sum(&self) -> u64 {
        self.0.iter().map(|cell| cell.0.load(Relaxed)).sum()
    }
}
