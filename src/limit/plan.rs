//! What a limit's configuration means in tokens and nanoseconds: the terms of its keys, one set for all and
//! one for each kind of key that has a rate of its own.

use std::iter;
use std::time::Duration;

use crate::config::LimitTerms;
use crate::config::model;

use super::key;

/// A limit's numbers. Immutable: a reload makes another, of a later generation.
#[derive(Debug)]
pub(super) struct Plan {
    /// Later than that of every plan which the limit had before; 48 bits.
    pub(super) generation: u64,
    /// When its configuration was written, in milliseconds of the Unix epoch; 0 where nobody knows. Among
    /// sidecars that disagree the newest is right.
    pub(super) written: u64,
    /// The terms of every key, and then those of `keys`.
    pub(super) terms: Box<[Terms]>,
    pub(super) without_redis: model::WithoutRedis,
    /// Each request asks Redis, and no token is kept for another.
    pub(super) exact: bool,
}

/// By what a bucket is granted tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Terms {
    pub(super) of: LimitTerms,
    /// Tells the keys that have them from others, in every sidecar alike; 0 for those without a rate of
    /// their own.
    pub(super) id: u32,
    /// Nanoseconds from one token to the next, rounded up; the pod's own GCRA.
    pub(super) interval: u64,
    /// How long a granted token may be spent, in nanoseconds from before it was asked for.
    pub(super) tau: u64,
}

/// In the last tenth of its life a token no longer counts as stock.
pub(super) const LEAD_DIVISOR: u32 = 10;

/// That tenth of `tau`, in nanoseconds.
pub(super) const fn lead(tau: u64) -> u64 {
    tau / LEAD_DIVISOR as u64
}

impl Plan {
    /// Reads the numbers of a limit. `budget` is how long a request may wait for Redis.
    pub(super) fn new(limit: &model::Limit, budget: Duration, written: u64, generation: u64) -> Self {
        let own = limit.keys.iter().map(|own| key::fingerprint(own.is.as_slice()));
        Self {
            generation,
            written,
            terms: limit.terms(budget).zip(iter::once(0).chain(own)).map(Terms::new).collect(),
            without_redis: limit.without_redis,
            exact: limit.exact,
        }
    }

    /// Does `other` say the same, whatever its generation, and whenever it was written?
    pub(super) fn same(&self, other: &Plan) -> bool {
        self.terms == other.terms && self.without_redis == other.without_redis && self.exact == other.exact
    }

    /// Is it to be used in place of `other`?
    pub(super) fn newer_than(&self, other: &Plan) -> bool {
        (self.generation, self.written) > (other.generation, other.written)
    }
}

impl Terms {
    fn new((of, id): (LimitTerms, u32)) -> Self {
        let tau = of.lease as u64;
        Self { of, id, interval: (of.interval.ceil() as u64).max(1), tau }
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
        self.interval.saturating_mul(u64::from(self.of.burst))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A limit as it is written: its rate, and the rest by default.
    pub(in crate::limit) fn limit(name: &str, rate: &str, burst: u32) -> model::Limit {
        let text = format!("limits: [{{ name: {name}, rate: {rate}, without_redis: closed }}]");
        let mut model = crate::config::parse(&text, "test").expect("a limit");
        let limit = model.limits.pop().expect("one limit");
        model::Limit { burst: std::num::NonZeroU32::new(burst), ..limit }
    }

    /// The plan of a limit of this rate and burst.
    pub(in crate::limit) fn plan(rate: &str, burst: u32) -> Plan {
        Plan::new(&limit("a", rate, burst), Duration::from_millis(20), 0, 1)
    }

    fn terms(rate: &str, burst: u32) -> Terms {
        plan(rate, burst).terms[0]
    }

    #[test]
    fn a_lease_and_the_burst_behind_it_never_exceed_the_limit() {
        for (rate, burst) in
            [("500/s", 100), ("10000/s", 10_000), ("3/m", 2), ("7/h", 3), ("1000/s", 0), ("1/d", 2)]
        {
            for lease in [None, Some(Duration::from_millis(1)), Some(Duration::from_secs(1 << 30))] {
                let limit =
                    model::Limit { lease: lease.map(crate::config::units::Time), ..limit("a", rate, burst) };
                let Terms { of, tau, .. } = Plan::new(&limit, Duration::ZERO, 0, 1).terms[0];
                let leased = tau as f64 * of.rate.per_second() / 1e9;
                assert!(of.capacity + leased <= f64::from(of.burst) + 1e-6, "{of:?}");
                assert!(of.capacity >= 1.0, "{of:?}");
                assert!(leased <= f64::from(of.burst) - 1.0, "tau <= (B - 1)/R: {of:?}");
            }
        }
    }

    #[test]
    fn a_burst_is_a_seconds_worth_and_a_lease_half_of_it() {
        assert_eq!((terms("500/s", 0).of.burst, terms("500/s", 0).tau), (500, 500_000_000));
        assert_eq!((terms("5/m", 0).of.burst, terms("5/m", 0).of.capacity), (2, 1.0));
    }

    #[test]
    fn who_asks_for_each_request_keeps_a_grant_no_longer_than_a_request_waits() {
        let limit = model::Limit { exact: true, ..limit("a", "5/s", 1) };
        let terms = Plan::new(&limit, Duration::from_millis(20), 0, 1).terms[0];
        assert_eq!((terms.tau, terms.of.capacity), (20_000_000, 1.0));
        let limit = model::Limit { exact: true, ..tests::limit("a", "100/s", 10) };
        assert_eq!(Plan::new(&limit, Duration::from_millis(20), 0, 1).terms[0].of.capacity, 8.0);
    }

    #[test]
    fn shares_add_up_to_the_rate() {
        let terms = terms("1000/s", 100);
        assert_eq!(terms.share(4), (4_000_000, 100_000_000));
        assert_eq!(terms.share(0), terms.share(1));
        assert_eq!(terms.share(500).1, 500_000_000, "one token at least");
    }
}
