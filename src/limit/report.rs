//! What limits have done, for the operator: `/limits` and metrics. By limit, never by key: a key
//! may be a secret, and there may be a million.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use serde::Serialize;

use crate::config::model::{Direction, WithoutRedis};
use crate::config::units::{Rate, Time};

use super::bucket::Bucket;
use super::refill::Link;
use super::rule::Rule;
use super::table::Table;

/// One limit.
#[derive(Debug, Clone, Serialize)]
pub struct LimitReport {
    /// Its name.
    pub name: String,
    /// Which direction it holds for.
    pub direction: Direction,
    /// Counted in Redis, with the other sidecars; else in this process.
    pub mesh: bool,
    /// R.
    pub rate: Rate,
    /// B.
    pub burst: u32,
    /// How long a token of a mesh limit may be spent after it was granted.
    pub tau: Option<Time>,
    /// What it does while Redis cannot be asked.
    pub without_redis: Option<WithoutRedis>,
    /// Sidecars that share it, as Redis last said; for a limit with a key, in the key's shard.
    pub sidecars: u32,
    /// Keys with a bucket here, beside the common one.
    pub keys: u32,
    /// Live tokens of the limit itself where it has no key.
    pub tokens: u32,
    /// How long the limit itself, where it has no key, still refuses without asking.
    pub refused_for: Option<Time>,
    /// Requests that it admitted, and no other limit refused.
    pub admitted: u64,
    /// Requests that it refused.
    pub refused: u64,
    /// Does it only count?
    pub observe: bool,
    /// Requests that it would have refused, part of the admitted.
    pub would_refuse: u64,
    /// Requests that waited for Redis.
    pub waited: u64,
    /// Requests that `without_redis` decided, part of the above.
    pub decided_without_redis: u64,
    /// Tokens that Redis was asked for, and that it granted.
    pub tokens_asked: u64,
    /// See `tokens_asked`.
    pub tokens_granted: u64,
    /// Buckets whose refill failed.
    pub redis_errors: u64,
    /// The buckets that this sidecar holds for its keys, those with the most tokens first: at most
    /// [`MOST_BUCKETS`].
    pub buckets: Vec<BucketReport>,
}

/// One key's bucket.
#[derive(Debug, Clone, Serialize)]
pub struct BucketReport {
    /// The key as Redis has it, which no value can be read from.
    pub key: String,
    /// R of its own, where it has one.
    pub rate: Rate,
    /// Tokens that can be spent here.
    pub tokens: u32,
    /// When the last of them dies.
    pub expires_in: Option<Time>,
    /// How long it refuses without asking.
    pub refused_for: Option<Time>,
    /// Sidecars that ask for it and its neighbours, as Redis last said.
    pub sidecars: u32,
}

/// The buckets of a limit that are shown.
const MOST_BUCKETS: usize = 100;

/// The conversation with Redis.
#[derive(Debug, Clone, Serialize)]
pub struct RedisReport {
    /// Does it answer within the budget?
    pub up: bool,
    /// Pipelines sent.
    pub round_trips: u64,
    /// Pipelines that failed.
    pub errors: u64,
    /// Calls of the script.
    pub calls: u64,
    /// What was last wrong.
    pub last_error: Option<String>,
    /// What is wrong with how it is set up: the bound may not hold.
    pub warnings: Vec<String>,
    /// How often it began anew, so that buckets did too.
    pub new_states: u64,
}

impl LimitReport {
    pub(super) fn new(rule: &Rule, now: u64) -> Self {
        let Rule { limit, plan, .. } = rule;
        let terms = &plan.terms[0];
        let time = |nanos| Time(Duration::from_nanos(nanos));
        let counters = &limit.counters;
        Self {
            name: limit.name.to_string(),
            direction: limit.direction,
            mesh: limit.leased,
            rate: terms.of.rate,
            burst: terms.of.burst,
            tau: limit.leased.then(|| time(terms.tau)),
            without_redis: limit.leased.then_some(plan.without_redis),
            sidecars: limit.most_sidecars(),
            keys: limit.keys.load(Relaxed),
            tokens: limit.common.live(now),
            refused_for: limit.common.refused_until(now, 1).map(|until| time(until - now)),
            admitted: counters.admitted.sum(),
            refused: counters.refused.sum(),
            observe: rule.observes,
            would_refuse: counters.observed.sum(),
            waited: counters.waited.sum(),
            decided_without_redis: counters.without_redis.sum(),
            tokens_asked: counters.tokens_asked.load(Relaxed),
            tokens_granted: counters.tokens_granted.load(Relaxed),
            redis_errors: counters.redis_errors.load(Relaxed),
            buckets: Vec::new(),
        }
    }
}

impl BucketReport {
    fn new(rule: &Rule, bucket: &Bucket, now: u64) -> Self {
        let time = |nanos| Time(Duration::from_nanos(nanos));
        let terms = bucket.terms(rule.plan.generation).unwrap_or(0);
        Self {
            key: bucket.name.to_string(),
            rate: rule.plan.terms[terms].of.rate,
            tokens: bucket.live(now),
            expires_in: bucket.expiry(now).map(|expiry| time(expiry - now)),
            refused_for: bucket.refused_until(now, 1).map(|until| time(until - now)),
            sidecars: bucket.sidecars.load(Relaxed),
        }
    }
}

/// Adds what this sidecar holds for the keys of each rule to its report.
pub(super) fn add_buckets(reports: &mut [LimitReport], rules: &[Arc<Rule>], table: &Table, now: u64) {
    let places: HashMap<u64, usize> = rules.iter().enumerate().map(|(i, rule)| (rule.limit.id, i)).collect();
    table.each(|limit, bucket| {
        let Some(&place) = places.get(&limit.id).filter(|_| limit.leased) else { return };
        let buckets = &mut reports[place].buckets;
        let at = buckets.partition_point(|shown| shown.tokens >= bucket.live(now));
        if at < MOST_BUCKETS {
            buckets.insert(at, BucketReport::new(&rules[place], bucket, now));
            buckets.truncate(MOST_BUCKETS);
        }
    });
}

impl RedisReport {
    pub(super) fn new(link: &Link) -> Self {
        let status = link.status();
        Self {
            up: link.status().is_up(),
            round_trips: status.round_trips.load(Relaxed),
            errors: status.errors.load(Relaxed),
            calls: status.calls.load(Relaxed),
            last_error: status.last_error(),
            warnings: status.warnings(),
            new_states: status.new_states.load(Relaxed),
        }
    }
}
