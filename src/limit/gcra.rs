//! One bucket in this process: the generic cell rate algorithm on one atomic word, the
//! theoretical arrival time (TAT). It counts limits of scope `pod`, mesh limits where no Redis
//! is configured, and this sidecar's share while Redis cannot be asked.
//!
//! Promise: with interval I and span S (the burst times I), any window of T nanoseconds admits
//! at most (T + S)/I requests, over all threads.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The word of a bucket that the table has let go: nothing may be counted on it.
const RETIRED: u64 = u64::MAX;

/// A bucket's TAT, in nanoseconds of [`clock::now`](super::clock::now); 0 is full.
#[derive(Debug, Default)]
pub(super) struct Gcra(AtomicU64);

/// Why no token was had.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Denied {
    /// There is none before this time.
    Until(u64),
    /// The bucket is retired: look the key up again.
    Retired,
}

impl Gcra {
    /// A bucket that is full from `tat` on.
    pub(super) fn full_at(tat: u64) -> Self {
        Self(AtomicU64::new(tat))
    }

    /// Takes what is worth `interval`; more than the span only of a full bucket. `floor` is a TAT that the
    /// bucket has at least: what is lost or must start empty is counted as if it had been spent. No request
    /// is worth more than `most`.
    pub(super) fn take(
        &self,
        now: u64,
        floor: u64,
        interval: u64,
        span: u64,
        most: u64,
    ) -> Result<(), Denied> {
        let span = span.max(interval);
        // What is beyond all time is no count, and never that of a retired bucket.
        let full = now.saturating_add(span).min(RETIRED - 1);
        let emptiest = now.saturating_add(span.max(most)).min(RETIRED - 1);
        let mut seen = self.0.load(Relaxed);
        loop {
            if seen == RETIRED {
                return Err(Denied::Retired);
            }
            // Beyond that lies only what an earlier, slower rate left: the bucket is empty, and fills from
            // now on.
            let next = seen.max(now).max(floor).min(emptiest).saturating_add(interval);
            let until = next.saturating_sub(span).max(now);
            let (word, result) = match next {
                _ if next <= full => (next, Ok(())),
                _ if seen <= emptiest => return Err(Denied::Until(until)),
                _ => (emptiest, Err(Denied::Until(until))),
            };
            match self.0.compare_exchange_weak(seen, word, Relaxed, Relaxed) {
                Ok(_) => return result,
                Err(newer) => seen = newer,
            }
        }
    }

    /// Gives one token back.
    pub(super) fn give_back(&self, interval: u64) {
        let back = |tat: u64| (tat != RETIRED).then(|| tat.saturating_sub(interval));
        // A retired bucket has nothing to give back to.
        let _ = self.0.fetch_update(Relaxed, Relaxed, back);
    }

    /// Makes it as full of a burst that is worth `to` nanoseconds as it is of one worth `from`.
    pub(super) fn rescale(&self, now: u64, from: u64, to: u64) {
        let scaled = |tat: u64| {
            let missing = u128::from(tat.saturating_sub(now)) * u128::from(to) / u128::from(from.max(1));
            let tat = now.saturating_add(u64::try_from(missing).unwrap_or(u64::MAX)).min(RETIRED - 1);
            (missing > 0).then_some(tat)
        };
        let _ = self.0.fetch_update(Relaxed, Relaxed, |tat| if tat == RETIRED { None } else { scaled(tat) });
    }

    /// Is it as good as new at `now`, so that it may be forgotten? Then it is, for good.
    pub(super) fn retire(&self, now: u64) -> bool {
        let tat = self.0.load(Relaxed);
        tat <= now && self.0.compare_exchange(tat, RETIRED, Relaxed, Relaxed).is_ok()
    }

    /// Has the table let it go?
    pub(super) fn retired(&self) -> bool {
        self.0.load(Relaxed) == RETIRED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn a_burst_then_the_rate() {
        let bucket = Gcra::default();
        for _ in 0..5 {
            assert_eq!(bucket.take(1000 * MS, 0, 10 * MS, 50 * MS, 0), Ok(()));
        }
        assert_eq!(bucket.take(1000 * MS, 0, 10 * MS, 50 * MS, 0), Err(Denied::Until(1010 * MS)));
        assert_eq!(bucket.take(1010 * MS, 0, 10 * MS, 50 * MS, 0), Ok(()));
        assert_eq!(bucket.take(1019 * MS, 0, 10 * MS, 50 * MS, 0), Err(Denied::Until(1020 * MS)));
    }

    #[test]
    fn a_floor_starts_it_empty() {
        let bucket = Gcra::default();
        let began = 1000 * MS;
        let floor = began + 50 * MS;
        assert_eq!(bucket.take(began, floor, 10 * MS, 50 * MS, 0), Err(Denied::Until(began + 10 * MS)));
        assert_eq!(bucket.take(began + 10 * MS, floor, 10 * MS, 50 * MS, 0), Ok(()));
        assert!(bucket.take(began + 11 * MS, floor, 10 * MS, 50 * MS, 0).is_err());
    }

    #[test]
    fn what_is_given_back_can_be_taken() {
        let bucket = Gcra::default();
        assert_eq!(bucket.take(MS, 0, 10 * MS, 10 * MS, 0), Ok(()));
        bucket.give_back(10 * MS);
        assert_eq!(bucket.take(MS, 0, 10 * MS, 10 * MS, 0), Ok(()));
    }

    #[test]
    fn a_slower_rate_before_leaves_it_empty_and_no_emptier() {
        let bucket = Gcra::default();
        assert_eq!(bucket.take(MS, 0, 3_600_000 * MS, 3_600_000 * MS, 0), Ok(()));
        assert_eq!(bucket.take(2 * MS, 0, MS, 10 * MS, 0), Err(Denied::Until(3 * MS)));
        assert_eq!(bucket.take(3 * MS, 0, MS, 10 * MS, 0), Ok(()));
    }

    #[test]
    fn another_burst_leaves_it_as_full_as_it_was() {
        for (to, left) in [(50 * MS, 3), (500 * MS, 3), (5 * MS, 3)] {
            let bucket = Gcra::default();
            (0..2).for_each(|_| assert_eq!(bucket.take(MS, 0, 10 * MS, 50 * MS, 0), Ok(())));
            bucket.rescale(MS, 50 * MS, to);
            let taken = std::iter::from_fn(|| bucket.take(MS, 0, to / 5, to, 0).ok()).count();
            assert_eq!(taken, left, "a burst of 5 in {to}");
        }
        let full = Gcra::default();
        full.rescale(9 * MS, 50 * MS, 500 * MS);
        assert!(full.retire(9 * MS));
        full.rescale(9 * MS, 50 * MS, 500 * MS);
        assert!(full.retired());
    }

    #[test]
    fn a_part_of_the_rate_that_never_comes_refuses_and_retires_nothing() {
        let bucket = Gcra::default();
        for now in [MS, 2 * MS] {
            assert!(matches!(bucket.take(now, 0, u64::MAX, u64::MAX, u64::MAX), Err(Denied::Until(_))));
        }
        assert!(!bucket.retired());
    }

    #[test]
    fn only_a_full_bucket_retires() {
        let bucket = Gcra::default();
        assert_eq!(bucket.take(MS, 0, 10 * MS, 50 * MS, 0), Ok(()));
        assert!(!bucket.retire(2 * MS));
        assert!(bucket.retire(11 * MS));
        assert!(bucket.retired());
        assert_eq!(bucket.take(12 * MS, 0, 10 * MS, 50 * MS, 0), Err(Denied::Retired));
        bucket.give_back(10 * MS);
        assert!(bucket.retired());
    }

    #[test]
    fn threads_share_one_count() {
        let bucket = Gcra::default();
        let taken: usize = std::thread::scope(|scope| {
            let take = || (0..1000).filter(|_| bucket.take(MS, 0, MS, 100 * MS, 0).is_ok()).count();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
        });
        assert_eq!(taken, 100);
    }
}
