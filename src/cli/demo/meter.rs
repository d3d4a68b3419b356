//! Rates, from counters that only grow.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::traffic::{Tally, Traffic};

/// How long is counted for one rate.
const SPAN: Duration = Duration::from_secs(1);

/// Counts what happens in each second.
pub(super) struct Meter {
    since: Instant,
    before: Tally,
    rates: Rates,
}

/// What happened in the last whole second, per second.
#[derive(Debug, Clone, Default)]
pub(super) struct Rates {
    /// Reads and writes that have an outcome.
    pub(super) requests: f64,
    /// Writes that were answered.
    pub(super) writes: f64,
    /// Writes that the limit refused.
    pub(super) refused: f64,
    /// Answers of each pod.
    pub(super) pods: BTreeMap<String, f64>,
    /// The median latency of reads.
    pub(super) p50: Option<Duration>,
    /// The latency that one read in a hundred exceeds.
    pub(super) p99: Option<Duration>,
}

impl Meter {
    /// Begins to count.
    pub(super) fn new() -> Self {
        Self { since: Instant::now(), before: Tally::default(), rates: Rates::default() }
    }

    /// The rates of the last second, and what there is in all. Says whether a second has passed
    /// since they were others.
    pub(super) fn read(&mut self, traffic: &Traffic) -> (Rates, Tally, bool) {
        let (now, tally) = (Instant::now(), traffic.tally());
        let span = now - self.since;
        let passed = span >= SPAN;
        if passed {
            let recent = traffic.recent();
            self.rates = Rates {
                p50: percentile(&recent, 0.5),
                p99: percentile(&recent, 0.99),
                ..rates(&self.before, &tally, span)
            };
            self.since = now;
            self.before = tally.clone();
        }
        (self.rates.clone(), tally, passed)
    }
}

fn rates(before: &Tally, now: &Tally, span: Duration) -> Rates {
    let per_second = |before: u64, now: u64| (now - before) as f64 / span.as_secs_f64();
    let pod = |(pod, count): (&String, &u64)| {
        (pod.clone(), per_second(before.pods.get(pod).copied().unwrap_or(0), *count))
    };
    Rates {
        requests: per_second(before.sent(), now.sent()),
        writes: per_second(before.writes, now.writes),
        refused: per_second(before.refused, now.refused),
        pods: now.pods.iter().map(pod).collect(),
        ..Rates::default()
    }
}

/// The value that a share `q` of them does not exceed. `sorted` are microseconds.
fn percentile(sorted: &[u32], q: f64) -> Option<Duration> {
    let rank = (q * sorted.len() as f64).ceil() as usize;
    let micros = sorted.get(rank.saturating_sub(1))?;
    Some(Duration::from_micros((*micros).into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let micros = |n| Some(Duration::from_micros(n));
        let hundred: Vec<u32> = (1..=100).collect();
        for (q, expected) in [(0.0, 1), (0.5, 50), (0.99, 99), (0.991, 100), (1.0, 100)] {
            assert_eq!(percentile(&hundred, q), micros(expected), "{q}");
        }
        assert_eq!(percentile(&[7], 0.99), micros(7));
        assert_eq!(percentile(&[], 0.5), None);
    }

    #[test]
    fn rates_are_differences_over_time() {
        let pods = |a, b| BTreeMap::from([("a".to_owned(), a), ("b".to_owned(), b)]);
        let before = Tally { reads: 100, pods: BTreeMap::from([("a".into(), 100)]), ..Tally::default() };
        let now = Tally { reads: 300, writes: 10, refused: 90, pods: pods(250, 60), ..Tally::default() };
        let rates = rates(&before, &now, Duration::from_secs(2));
        assert_eq!((rates.requests, rates.writes, rates.refused), (150.0, 5.0, 45.0));
        assert_eq!(rates.pods, BTreeMap::from([("a".to_owned(), 75.0), ("b".to_owned(), 30.0)]));
    }
}
