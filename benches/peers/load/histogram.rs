//! Latencies, counted in buckets that are narrower than 1 % of what they hold, from a nanosecond
//! to centuries, in memory that never grows.

/// Buckets for each power of two: 128 of them are each 0.8 % wide at most.
const BITS: u32 = 7;
const STEPS: usize = 1 << BITS;

/// Counts of latencies.
pub(crate) struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max: u64,
}

impl Histogram {
    pub(crate) fn new() -> Self {
        Self { counts: vec![0; STEPS * (u64::BITS - BITS + 1) as usize], total: 0, max: 0 }
    }

    /// Counts one latency.
    pub(crate) fn record(&mut self, nanoseconds: u64) {
        self.counts[bucket(nanoseconds)] += 1;
        self.total += 1;
        self.max = self.max.max(nanoseconds);
    }

    /// How many were recorded.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// The largest, in nanoseconds.
    pub(crate) fn max(&self) -> u64 {
        self.max
    }

    /// The latency that this share of all did not exceed, in nanoseconds; 0 of none. The bucket's
    /// upper end, so that no quantile is flattered.
    pub(crate) fn quantile(&self, share: f64) -> u64 {
        let rank = ((self.total as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return upper(index).min(self.max);
            }
        }
        0
    }
}

/// Up to 2 * STEPS a bucket is one value; beyond, it halves its precision with each power of two.
fn bucket(value: u64) -> usize {
    let shift = (u64::BITS - value.leading_zeros()).saturating_sub(BITS + 1);
    shift as usize * STEPS + (value >> shift) as usize
}

/// The largest value in a bucket.
fn upper(bucket: usize) -> u64 {
    let shift = (bucket / STEPS).saturating_sub(1);
    let first = (bucket - shift * STEPS) as u64;
    (first << shift) + ((1 << shift) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_narrow_and_follow_each_other() {
        let mut value = 1;
        while value < u64::MAX / 3 {
            let (index, end) = (bucket(value), upper(bucket(value)));
            assert!(end >= value && end - value <= value / 100, "{value} is in a bucket up to {end}");
            assert_eq!(bucket(end), index);
            assert_eq!(bucket(end + 1), index + 1);
            value += value / 50 + 1;
        }
        assert!(bucket(u64::MAX) < Histogram::new().counts.len());
    }

    #[test]
    fn quantiles_of_a_thousand() {
        let mut histogram = Histogram::new();
        assert_eq!(histogram.quantile(0.5), 0);
        for value in 1..=1000 {
            histogram.record(value * 1000);
        }
        for (share, exact) in [(0.5, 500_000), (0.99, 990_000), (0.999, 999_000), (1.0, 1_000_000)] {
            let found = histogram.quantile(share);
            assert!((exact..exact + exact / 100).contains(&found), "{share}: {found} instead of {exact}");
        }
        assert_eq!((histogram.total(), histogram.max()), (1000, 1_000_000));
    }
}
