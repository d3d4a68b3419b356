//! What a limit's configuration means in tokens and nanoseconds.
//!
//! A mesh limit of rate R and burst B is granted by GCRA with the smaller burst B' = B - R·tau,
//! because a token may be spent up to tau after it was granted. With tau = B/(2R), B' = B/2.

use crate::config::model;
use crate::config::units::Rate;

/// The largest lifetime of a lease that is used, so that a stamp plus a lease never overflows.
const LONGEST_TAU: f64 = 86_400e9;

/// A limit's numbers. Immutable: a reload makes another, of a later generation.
#[derive(Debug)]
pub(super) struct Plan {
    /// Later than that of every plan which the limit had before.
    pub(super) generation: u64,
    pub(super) rate: Rate,
    /// B, in tokens.
    pub(super) burst: u32,
    pub(super) without_redis: model::WithoutRedis,
    /// Nanoseconds from one token to the next, rounded up; the pod's own GCRA.
    pub(super) interval: u64,
    /// The same in microseconds, as the script takes it.
    pub(super) interval_micros: f64,
    /// B', in tokens: the burst of the mesh's GCRA.
    pub(super) capacity: f64,
    /// How long a granted token may be spent, in nanoseconds from before it was asked for.
    pub(super) tau: u64,
    /// Tokens that die within this many nanoseconds no longer count as stock.
    pub(super) lead: u64,
}

impl Plan {
    /// Reads the numbers of a limit. `leased` limits have a burst of at least 2: with less, no
    /// token could outlive its grant.
    pub(super) fn new(limit: &model::Limit, leased: bool, generation: u64) -> Self {
        let rate = limit.rate;
        let per_second = rate.per_second();
        let default_burst = per_second.ceil().clamp(2.0, f64::from(u32::MAX)) as u32;
        let least = if leased { 2 } else { 1 };
        let burst = limit.burst.map_or(default_burst, |burst| burst.get()).max(least);
        let interval = 1e9 / per_second;
        let tau = (f64::from(burst) / 2.0 * interval).min(LONGEST_TAU).floor();
        Self {
            generation,
            rate,
            burst,
            without_redis: limit.without_redis,
            interval: (interval.ceil() as u64).max(1),
            interval_micros: interval / 1e3,
            capacity: f64::from(burst) - tau / interval,
            tau: tau as u64,
            lead: tau as u64 / 8,
        }
    }

    /// Does `other` say the same, whatever its generation?
    pub(super) fn same(&self, other: &Plan) -> bool {
        self.rate == other.rate && self.burst == other.burst && self.without_redis == other.without_redis
    }

    /// One sidecar's part of the rate among `sidecars`: the interval between its tokens, and
    /// the time that its burst is worth, in nanoseconds. A burst is never less than one token.
    pub(super) fn share(&self, sidecars: u32) -> (u64, u64) {
        let sidecars = sidecars.max(1);
        let interval = self.interval.saturating_mul(u64::from(sidecars));
        (interval, self.span().max(interval))
    }

    /// The time that the whole burst is worth, in nanoseconds.
    pub(super) fn span(&self) -> u64 {
        self.interval.saturating_mul(u64::from(self.burst))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A limit as it is written: its rate, and the rest by default.
    pub(in crate::limit) fn limit(name: &str, rate: &str, burst: u32) -> model::Limit {
        model::Limit {
            name: name.into(),
            direction: model::Direction::Outbound,
            host: None,
            path: None,
            method: None,
            key: Vec::new(),
            rate: rate.parse().expect("a rate"),
            burst: std::num::NonZeroU32::new(burst),
            scope: model::Scope::Mesh,
            without_redis: model::WithoutRedis::Closed,
        }
    }

    #[test]
    fn a_lease_and_the_burst_behind_it_never_exceed_the_limit() {
        for (rate, burst) in
            [("500/s", 100), ("10000/s", 10_000), ("3/m", 2), ("7/h", 3), ("1000/s", 0), ("1/d", 2)]
        {
            let plan = Plan::new(&limit("a", rate, burst), true, 1);
            let leased = plan.tau as f64 * plan.rate.per_second() / 1e9;
            assert!(plan.capacity + leased <= f64::from(plan.burst) + 1e-6, "{plan:?}");
            assert!(plan.capacity >= 1.0, "{plan:?}");
            assert!(leased <= f64::from(plan.burst) - 1.0, "tau <= (B - 1)/R: {plan:?}");
        }
    }

    #[test]
    fn a_burst_is_a_seconds_worth_and_leases_need_two() {
        assert_eq!(Plan::new(&limit("a", "500/s", 0), true, 1).burst, 500);
        assert_eq!(Plan::new(&limit("a", "5/m", 0), true, 1).burst, 2);
        assert_eq!(Plan::new(&limit("a", "5/s", 1), true, 1).burst, 2);
        assert_eq!(Plan::new(&limit("a", "5/s", 1), false, 1).burst, 1);
    }

    #[test]
    fn shares_add_up_to_the_rate() {
        let plan = Plan::new(&limit("a", "1000/s", 100), true, 1);
        assert_eq!(plan.share(4), (4_000_000, 100_000_000));
        assert_eq!(plan.share(0), plan.share(1));
        assert_eq!(plan.share(500).1, 500_000_000, "one token at least");
    }
}
