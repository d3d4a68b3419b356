//! What limits have done, for the operator: `/limits` and metrics. By limit, never by key: a key
//! may be a secret, and there may be a million.

use std::sync::atomic::Ordering::Relaxed;

use serde::Serialize;

use crate::config::model::{Direction, WithoutRedis};
use crate::config::units::{Rate, Time};

use super::Rule;
use super::refill::Link;

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
    /// Requests that waited for Redis.
    pub waited: u64,
    /// Requests that `without_redis` decided, part of the above.
    pub decided_without_redis: u64,
    /// Calls of the script for it.
    pub redis_calls: u64,
    /// Buckets whose refill failed.
    pub redis_errors: u64,
}

/// The conversation with Redis.
#[derive(Debug, Clone, Serialize)]
pub struct RedisReport {
    /// Does it answer within the budget?
    pub up: bool,
    /// Pipelines sent.
    pub round_trips: u64,
    /// Pipelines that failed.
    pub errors: u64,
}

impl LimitReport {
    pub(super) fn new(rule: &Rule, now: u64) -> Self {
        let Rule { limit, plan, .. } = rule;
        let time = |nanos| Time(std::time::Duration::from_nanos(nanos));
        let counters = &limit.counters;
        Self {
            name: limit.name.to_string(),
            direction: limit.direction,
            mesh: limit.leased,
            rate: plan.rate,
            burst: plan.burst,
            tau: limit.leased.then(|| time(plan.tau)),
            without_redis: limit.leased.then_some(plan.without_redis),
            sidecars: limit.sidecars.load(Relaxed),
            keys: limit.keys.load(Relaxed),
            tokens: limit.common.live(now),
            refused_for: limit.common.refused_until(now).map(|until| time(until - now)),
            admitted: counters.admitted.sum(),
            refused: counters.refused.sum(),
            waited: counters.waited.sum(),
            decided_without_redis: counters.without_redis.sum(),
            redis_calls: counters.redis_calls.load(Relaxed),
            redis_errors: counters.redis_errors.load(Relaxed),
        }
    }
}

impl RedisReport {
    pub(super) fn new(link: &Link) -> Self {
        Self {
            up: link.statuses().all(|status| status.down_since().is_none()),
            round_trips: link.statuses().map(|status| status.round_trips.load(Relaxed)).sum(),
            errors: link.statuses().map(|status| status.errors.load(Relaxed)).sum(),
        }
    }
}
