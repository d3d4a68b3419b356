//! A latency histogram in log-linear buckets: cheap to write, exact where it is exported.
//!
//! From 10 µs to 1000 s every decade has the same 70 buckets, in three runs of even width: 1 to 2
//! by 0.05, 2 to 5 by 0.1, 5 to 10 by 0.25. No bucket is wider than 5 % of its lower bound, so a
//! quantile read from its middle is within [`Latency::ERROR`] of the true one. Below 10 µs the
//! buckets are 1 µs wide; above 1000 s there is one.
//!
//! Decimal bounds, rather than powers of two, let the exported `le` bounds (1 ms, 2.5 ms, ...)
//! be bucket bounds too: their counts are exact, not interpolated.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::add;

const NANOS_PER_SECOND: f64 = 1e9;

/// Buckets below the first decade, 1 µs each.
const LINEAR: usize = 10;
const PER_DECADE: usize = 70;
/// The first decade begins at 10^4 ns.
const FIRST_DECADE: u32 = 4;
/// The last decade ends at 10^12 ns.
const END_DECADE: u32 = 12;
/// All that are bounded; the one after them takes the rest.
const BOUNDED: usize = LINEAR + (END_DECADE - FIRST_DECADE) as usize * PER_DECADE;

/// The upper bounds that are exported as `le`, in nanoseconds. Each is a bucket's upper bound.
const EXPORTED: [u64; 18] = {
    const US: u64 = 1_000;
    const MS: u64 = 1_000_000;
    const S: u64 = 1_000_000_000;
    [
        100 * US,
        250 * US,
        500 * US,
        MS,
        2_500 * US,
        5 * MS,
        10 * MS,
        25 * MS,
        50 * MS,
        100 * MS,
        250 * MS,
        500 * MS,
        S,
        2_500 * MS,
        5 * S,
        10 * S,
        30 * S,
        60 * S,
    ]
};

/// The bucket of a duration. A bucket holds what is above its lower bound, and its upper bound
/// itself, as `le` wants it.
fn bucket(nanos: u64) -> usize {
    let below = nanos.saturating_sub(1);
    if below < 10u64.pow(FIRST_DECADE) {
        return (below / 1_000) as usize;
    }
    let decade = below.ilog10();
    if decade >= END_DECADE {
        return BOUNDED;
    }
    let twentieths = (below / (10u64.pow(decade) / 20)) as usize;
    let within = match twentieths {
        ..40 => twentieths - 20,
        40..100 => 20 + (twentieths - 40) / 2,
        100.. => 50 + (twentieths - 100) / 5,
    };
    LINEAR + (decade - FIRST_DECADE) as usize * PER_DECADE + within
}

/// The lower bound of a bucket in nanoseconds; `BOUNDED` is where the bounded ones end.
fn lower(bucket: usize) -> u64 {
    if bucket < LINEAR {
        return bucket as u64 * 1_000;
    }
    let decade = FIRST_DECADE + ((bucket - LINEAR) / PER_DECADE) as u32;
    let within = ((bucket - LINEAR) % PER_DECADE) as u64;
    let twentieths = match within {
        ..20 => 20 + within,
        20..50 => 40 + (within - 20) * 2,
        50.. => 100 + (within - 50) * 5,
    };
    10u64.pow(decade) / 20 * twentieths
}

/// What one worker writes: its thread is the only writer.
#[derive(Debug)]
pub(super) struct Recorder {
    nanos: AtomicU64,
    buckets: [AtomicU64; BOUNDED + 1],
}

impl Recorder {
    pub(super) const fn new() -> Self {
        Self { nanos: AtomicU64::new(0), buckets: [const { AtomicU64::new(0) }; BOUNDED + 1] }
    }

    pub(super) fn record(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        add(&self.nanos, nanos);
        add(&self.buckets[bucket(nanos)], 1);
    }
}

/// Latencies as they were when they were read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Latency {
    nanos: u64,
    buckets: Box<[u64; BOUNDED + 1]>,
}

impl Default for Latency {
    fn default() -> Self {
        Self { nanos: 0, buckets: Box::new([0; BOUNDED + 1]) }
    }
}

impl Latency {
    /// How far a quantile may be from the true one, as a share of it. Below 10 µs it is half a
    /// microsecond instead; above 1000 s, quantiles read 1000 s.
    pub const ERROR: f64 = 0.025;

    /// How many were recorded.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// What they add up to.
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.nanos)
    }

    /// The latency that a share `q` of all requests did not exceed: 0.5 is the median, 1 the
    /// longest. None when nothing was recorded.
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let rank = ((q.clamp(0.0, 1.0) * count as f64).ceil() as u64).clamp(1, count);
        let mut seen = 0;
        let bucket = self.buckets.iter().position(|n| {
            seen += n;
            seen >= rank
        })?;
        let nanos =
            if bucket == BOUNDED { lower(BOUNDED) } else { lower(bucket).midpoint(lower(bucket + 1)) };
        Some(Duration::from_nanos(nanos))
    }

    /// Adds another's counts.
    pub fn merge(&mut self, other: &Latency) {
        self.nanos = self.nanos.wrapping_add(other.nanos);
        for (mine, theirs) in self.buckets.iter_mut().zip(other.buckets.iter()) {
            *mine += theirs;
        }
    }

    /// What was recorded since `before`, which was read of the same.
    #[must_use]
    pub fn since(&self, before: &Latency) -> Self {
        let mut since = self.clone();
        since.nanos = since.nanos.wrapping_sub(before.nanos);
        for (now, then) in since.buckets.iter_mut().zip(before.buckets.iter()) {
            *now = now.saturating_sub(*then);
        }
        since
    }

    pub(super) fn add(&mut self, recorder: &Recorder) {
        self.nanos = self.nanos.wrapping_add(recorder.nanos.load(Relaxed));
        for (mine, theirs) in self.buckets.iter_mut().zip(&recorder.buckets) {
            *mine += theirs.load(Relaxed);
        }
    }

    pub(super) fn sum_seconds(&self) -> f64 {
        self.nanos as f64 / NANOS_PER_SECOND
    }

    /// The exported buckets: upper bound in seconds, the last one infinite, and how many are in
    /// it alone (not cumulated).
    pub(super) fn exported(&self) -> Vec<(f64, u64)> {
        let mut from = 0;
        let mut buckets: Vec<(f64, u64)> = EXPORTED
            .iter()
            .map(|&bound| {
                let end = bucket(bound) + 1;
                let count = self.buckets[from..end].iter().sum();
                from = end;
                (bound as f64 / NANOS_PER_SECOND, count)
            })
            .collect();
        buckets.push((f64::INFINITY, self.buckets[from..].iter().sum()));
        buckets
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn recorded(durations: &[u64]) -> Latency {
        let recorder = Recorder::new();
        for &nanos in durations {
            recorder.record(Duration::from_nanos(nanos));
        }
        let mut latency = Latency::default();
        latency.add(&recorder);
        latency
    }

    /// Spread over the magnitudes, as latencies are.
    fn nanos() -> impl Strategy<Value = u64> {
        (0u32..13, 1u64..100_000).prop_map(|(decade, mantissa)| 10u64.pow(decade) * mantissa / 10_000)
    }

    #[test]
    fn buckets_meet_without_gap_and_hold_their_upper_bound() {
        for i in 0..BOUNDED {
            let (low, high) = (lower(i), lower(i + 1));
            assert!(low < high, "bucket {i}");
            assert_eq!(bucket(low + 1), i, "just above {low}");
            assert_eq!(bucket(high), i, "{high} itself");
            if low >= 10_000 {
                assert!((high - low) as f64 <= 2.0 * Latency::ERROR * low as f64, "bucket {i} is too wide");
            }
        }
        assert_eq!(bucket(0), 0);
        assert_eq!(bucket(lower(BOUNDED) + 1), BOUNDED);
        assert_eq!(bucket(u64::MAX), BOUNDED);
    }

    #[test]
    fn exported_bounds_are_exact() {
        for bound in EXPORTED {
            assert_eq!(lower(bucket(bound) + 1), bound);
        }
        let latency = recorded(&[100_000, 100_001, 1_000_000, 60_000_000_000, 60_000_000_001]);
        let of = |le: f64| latency.exported().iter().find(|(bound, _)| *bound == le).expect("a bound").1;
        assert_eq!((of(0.0001), of(0.00025), of(0.001)), (1, 1, 1));
        assert_eq!((of(60.0), of(f64::INFINITY)), (1, 1));
    }

    #[test]
    fn an_empty_one_has_no_quantile() {
        assert_eq!(Latency::default().quantile(0.5), None);
    }

    #[test]
    fn what_takes_forever_reads_as_the_last_bound() {
        let latency = recorded(&[u64::MAX]);
        assert_eq!(latency.quantile(1.0), Some(Duration::from_secs(1000)));
        assert_eq!(latency.exported().last().expect("infinity").1, 1);
    }

    proptest! {
        #[test]
        fn quantiles_are_within_the_stated_error(
            mut durations in prop::collection::vec(nanos(), 1..400),
            q in prop_oneof![Just(0.0), Just(0.5), Just(0.99), Just(1.0), 0.0..=1.0f64],
        ) {
            let read = recorded(&durations).quantile(q).expect("not empty").as_nanos() as f64;
            durations.sort_unstable();
            let rank = ((q * durations.len() as f64).ceil() as usize).max(1);
            let truth = durations[rank - 1] as f64;
            let allowed = if truth <= 10_000.0 { 500.0 } else { truth * Latency::ERROR };
            if truth <= 1e12 {
                prop_assert!((read - truth).abs() <= allowed, "read {read}, true {truth}");
            } else {
                prop_assert_eq!(read, 1e12);
            }
        }

        #[test]
        fn exported_buckets_count_what_le_says(durations in prop::collection::vec(nanos(), 0..200)) {
            let mut seen = 0;
            for (bound, count) in recorded(&durations).exported() {
                seen += count;
                let truth = durations.iter().filter(|&&n| n as f64 / NANOS_PER_SECOND <= bound).count();
                prop_assert_eq!(seen, truth as u64, "le {}", bound);
            }
            prop_assert_eq!(seen, durations.len() as u64);
        }

        #[test]
        fn since_is_what_came_later(
            before in prop::collection::vec(nanos(), 0..50),
            later in prop::collection::vec(nanos(), 0..50),
        ) {
            let all = recorded(&[&before[..], &later].concat());
            prop_assert_eq!(all.since(&recorded(&before)), recorded(&later));
        }

        #[test]
        fn merging_is_recording_both(
            a in prop::collection::vec(nanos(), 0..50),
            b in prop::collection::vec(nanos(), 0..50),
        ) {
            let mut merged = recorded(&a);
            merged.merge(&recorded(&b));
            prop_assert_eq!(merged, recorded(&[a, b].concat()));
        }
    }
}
