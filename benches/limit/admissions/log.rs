//! What became of the requests.

/// A request that was admitted, somewhere between two readings of the clock, in nanoseconds from the start.
#[derive(Clone, Copy)]
pub(crate) struct Admitted {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) key: u32,
    pub(crate) sidecar: u32,
}

/// All requests of a run, or of one of its threads.
#[derive(Default)]
pub(crate) struct Log {
    /// When each came, and its key.
    pub(crate) offered: Vec<(u64, u32)>,
    pub(crate) admitted: Vec<Admitted>,
    /// Refused, because the limit was.
    pub(crate) exhausted: u64,
    /// Refused, because Redis could not be asked.
    pub(crate) unavailable: u64,
    /// How much later than meant each came, in nanoseconds.
    pub(crate) late: Vec<u64>,
    /// How long those took that waited for Redis, in nanoseconds.
    pub(crate) waits: Vec<u64>,
}

impl Log {
    /// Adds what another thread has logged.
    pub(crate) fn add(&mut self, other: Self) {
        self.offered.extend(other.offered);
        self.admitted.extend(other.admitted);
        self.exhausted += other.exhausted;
        self.unavailable += other.unavailable;
        self.late.extend(other.late);
        self.waits.extend(other.waits);
    }

    /// The times of what was admitted, for each key.
    pub(crate) fn by_key(&self, keys: usize) -> Vec<Vec<(u64, u64)>> {
        let mut found = vec![Vec::new(); keys];
        for one in &self.admitted {
            found[one.key as usize].push((one.from, one.to));
        }
        found
    }
}

/// The value that this share of all does not exceed; 0 of none.
pub(crate) fn quantile(values: &mut [u64], share: f64) -> u64 {
    values.sort_unstable();
    let rank = (values.len() as f64 * share).ceil() as usize;
    values.get(rank.saturating_sub(1)).copied().unwrap_or(0)
}
