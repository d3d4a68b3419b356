//! Rate limits, of this pod or of the whole mesh.
//!
//! A mesh limit is granted by Redis and spent here. One Lua script, on Redis's own clock, grants
//! this sidecar a few tokens by GCRA; they are debited when granted, spent by requests without
//! asking anyone, and die after tau. The refill task asks again before they run out. So a request
//! waits for Redis only when its key has no live lease, and never longer than `redis.budget`.
//!
//! The promise, with `without_redis: closed`, for any number of sidecars, under any delay, loss,
//! pause or kill of sidecars and network: **in any window T the mesh admits at most R·T + B
//! requests.** A window's admissions used tokens that were granted at most tau before it, and
//! GCRA with the burst B' = B - R·tau grants at most R·(T + tau) + B' in that time. The condition
//! is that Redis keeps its data and its clock; what it loses it may grant again, at most B'.
//!
//! Limits of scope `pod`, and all limits where no Redis is configured, run the same algorithm in
//! this process.
//!
//! Nothing on the request path takes a lock, but the first request of a thread for a key.

mod bucket;
mod clock;
mod decide;
mod gcra;
mod key;
#[expect(clippy::module_inception, reason = "the module's main noun")]
mod limit;
mod matches;
mod plan;
mod redis;
mod refill;
mod report;
mod table;
#[cfg(test)]
mod tests;

pub use decide::{Decision, Refusal, Wait};
pub(crate) use redis::faults as redis_faults;
pub use report::{LimitReport, RedisReport};

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::config::model::{self, Direction, KeyPart, Scope};

use self::bucket::Bucket;
use self::gcra::Gcra;
use self::limit::{Counters, Limit};
use self::matches::Matcher;
use self::plan::Plan;
use self::refill::Link;
use self::table::Table;

/// How often keys that nobody used are forgotten.
const SWEEP: Duration = Duration::from_secs(30);

/// What a limit may ask about a request.
#[derive(Clone, Copy)]
pub struct Facts<'a> {
    /// The host that the request names, in lower case, without a port.
    pub host: &'a str,
    /// The port that the request names.
    pub port: Option<u16>,
    /// The path, without the query.
    pub path: &'a str,
    /// The method.
    pub method: &'a str,
    /// The caller's SPIFFE id; empty if it has none.
    pub caller: &'a str,
    /// A field's value, by its name in lower case.
    pub field: &'a dyn Fn(&str) -> Option<&'a [u8]>,
}

/// What outlives reloads: each limit with its leases and counts, and the connection to Redis.
#[derive(Debug)]
pub struct State {
    link: Option<Link>,
    redis_prefix: String,
    limits: Mutex<HashMap<Identity, Known>>,
    table: Table,
    seeds: key::Seeds,
}

/// What makes a limit of a new configuration the same as one of the old.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Identity {
    name: String,
    direction: Direction,
    key: Vec<KeyPart>,
    pod: bool,
}

#[derive(Debug)]
struct Known {
    limit: Weak<Limit>,
    /// The plan that was compiled last.
    plan: Arc<Plan>,
}

impl State {
    /// A state without limits. The refill task, if there is a Redis, and the sweep run on
    /// `handle`, and end when the state is dropped. A Redis that does not answer is no error; a
    /// URL that is not one of Redis is, and the message says what is wrong with it.
    pub fn new(redis: Option<&model::Redis>, handle: &tokio::runtime::Handle) -> Result<Arc<Self>, String> {
        let link = redis.map(|redis| {
            let budget = redis.budget.0;
            Ok::<_, String>(Link::start(redis::Redis::new(redis)?, budget, handle))
        });
        let state = Arc::new(Self {
            link: link.transpose()?,
            redis_prefix: redis.map_or_else(String::new, |redis| redis.prefix.clone()),
            limits: Mutex::default(),
            table: Table::default(),
            seeds: key::Seeds::default(),
        });
        handle.spawn(sweep(Arc::downgrade(&state)));
        Ok(state)
    }

    /// The state of the conversation with Redis, where one is configured.
    pub fn redis(&self) -> Option<RedisReport> {
        self.link.as_ref().map(RedisReport::new)
    }

    /// Finds or makes the limit that `written` describes, and what it says now.
    fn limit(&self, written: &model::Limit, direction: Direction) -> (Arc<Limit>, Arc<Plan>) {
        static LIMITS: AtomicU64 = AtomicU64::new(1);
        let leased = written.scope == Scope::Mesh && self.link.is_some();
        let identity = Identity {
            name: written.name.clone(),
            direction,
            key: written.key.clone(),
            pod: written.scope == Scope::Pod,
        };
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        limits.retain(|_, known| known.limit.strong_count() > 0);
        if let Some(known) = limits.get_mut(&identity)
            && let Some(limit) = known.limit.upgrade()
        {
            let plan = Plan::new(written, leased, known.plan.generation + 1);
            if !plan.same(&known.plan) {
                known.plan = Arc::new(plan);
            }
            return (limit, known.plan.clone());
        }
        let plan = Arc::new(Plan::new(written, leased, 1));
        let name = key::limit_name(&written.name, direction, &written.key);
        let limit = Arc::new(Limit {
            id: LIMITS.fetch_add(1, Relaxed),
            name: written.name.as_str().into(),
            direction,
            leased,
            redis_name: format!("{}:l:{{{name}", self.redis_prefix),
            plan: ArcSwap::new(plan.clone()),
            common: Arc::new(Bucket::new(plan.generation, Gcra::default(), 0, "common".into())),
            lost_at: AtomicU64::new(0),
            keys: AtomicU32::new(0),
            sidecars: AtomicU32::new(1),
            counters: Counters::default(),
        });
        limits.insert(identity, Known { limit: Arc::downgrade(&limit), plan: plan.clone() });
        (limit, plan)
    }
}

/// Forgets unused keys, for as long as the state lives.
async fn sweep(state: Weak<State>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        let Some(state) = state.upgrade() else { return };
        state.table.sweep(clock::now());
    }
}

/// The limits of one direction in one configuration.
#[derive(Debug)]
pub struct Limits {
    rules: Box<[Rule]>,
    /// Is any about a path?
    paths: bool,
    state: Arc<State>,
}

/// A limit as one configuration has it.
#[derive(Debug)]
struct Rule {
    limit: Arc<Limit>,
    plan: Arc<Plan>,
    matcher: Matcher,
    key: Box<[KeyPart]>,
}

impl Limits {
    /// The limits of `direction`. A limit of the same name, key and scope as one in use keeps its
    /// buckets and counters. A new rate or burst applies to all of them, from the first request
    /// that meets it on; until then this changes nothing, so a configuration that is compiled and
    /// then refused leaves no trace.
    pub fn compile(limits: &[model::Limit], direction: Direction, state: &Arc<State>) -> Self {
        let rule = |written: &model::Limit| {
            let (limit, plan) = state.limit(written, direction);
            Rule { limit, plan, matcher: Matcher::new(written), key: written.key.clone().into() }
        };
        let mine = limits.iter().filter(|limit| limit.direction == direction);
        let paths = mine.clone().any(|limit| limit.path.is_some());
        Self { rules: mine.map(rule).collect(), paths, state: state.clone() }
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Is any of them about a path?
    pub fn has_paths(&self) -> bool {
        self.paths
    }

    /// Decides whether a request is admitted by every limit that holds for it.
    pub fn admit(&self, facts: &Facts<'_>) -> Decision {
        decide::admit(&self.rules, &self.state, facts)
    }

    /// What each limit has done, in the order of the configuration.
    pub fn snapshot(&self) -> Vec<LimitReport> {
        let now = clock::now();
        self.rules.iter().map(|rule| LimitReport::new(rule, now)).collect()
    }
}
