//! What became of the pod's queries, counted.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// The counts, which only grow.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) mesh: Count,
    pub(super) hits: Count,
    pub(super) misses: Count,
    pub(super) stale: Count,
    pub(super) failed: Count,
    pub(super) forwarded: Count,
    pub(super) prefetches: Count,
}

/// One count.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The pod's queries as an operator sees them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CaptureSnapshot {
    /// Queries that the pod was answered: the sum of the next five.
    pub queries: u64,
    /// Names of the mesh, from what the resolver keeps.
    pub mesh: u64,
    /// From the cache, within the TTL.
    pub hits: u64,
    /// By a server, which was asked for this query or for another client's at the same time.
    pub misses: u64,
    /// From the cache, past the TTL, because no server answered in time.
    pub stale: u64,
    /// With no more than a code: no server had an answer, or the query could not be one.
    pub failed: u64,
    /// What servers were asked, whatever the number of clients that waited for it.
    pub forwarded: u64,
    /// Of these, what was asked for before its TTL ended, because it is in use.
    pub prefetches: u64,
    /// Answers and failures in the cache.
    pub entries: usize,
    /// What they take, in bytes.
    pub bytes: usize,
}

impl CaptureSnapshot {
    /// How many queries were answered in which way, by the words of the metric's label.
    pub fn by_answer(&self) -> [(&'static str, u64); 5] {
        [
            ("mesh", self.mesh),
            ("hit", self.hits),
            ("miss", self.misses),
            ("stale", self.stale),
            ("failed", self.failed),
        ]
    }
}

impl Counters {
    pub(super) fn snapshot(&self, entries: usize, bytes: usize) -> CaptureSnapshot {
        let mut snapshot = CaptureSnapshot {
            queries: 0,
            mesh: self.mesh.get(),
            hits: self.hits.get(),
            misses: self.misses.get(),
            stale: self.stale.get(),
            failed: self.failed.get(),
            forwarded: self.forwarded.get(),
            prefetches: self.prefetches.get(),
            entries,
            bytes,
        };
        snapshot.queries = snapshot.by_answer().iter().map(|(_, count)| count).sum();
        snapshot
    }
}
