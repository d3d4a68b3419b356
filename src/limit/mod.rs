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
//! GCRA with the burst B' = B - R·tau grants at most R·(T + tau) + B' in that time. The conditions
//! are in `docs/limits.md`.
//!
//! Limits of scope `pod`, and all limits where no Redis is configured, run the same algorithm in
//! this process.
//!
//! A request takes no lock, but for the first of a thread for a key, and the one that finds a stock low.

mod bucket;
mod clock;
mod decide;
mod gcra;
mod key;
#[expect(clippy::module_inception, reason = "the module's main noun")]
mod limit;
mod matches;
mod plan;
mod queue;
mod redis;
mod refill;
mod report;
mod rule;
mod status;
mod table;
#[cfg(test)]
mod tests;
mod wait;

pub use decide::{Again, Decision, Refusal};
pub(crate) use redis::faults as redis_faults;
pub use report::{BucketReport, LimitReport, RedisReport};
pub use wait::Wait;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use http::StatusCode;

use crate::config::model::{self, Direction, KeyPart, Scope};
use crate::config::units::Rate;
use crate::error::Limited;

use self::bucket::Bucket;
use self::gcra::Gcra;
use self::limit::Limit;
use self::matches::{Matcher, Own};
use self::plan::{Plan, Terms};
use self::refill::Link;
use self::rule::Rule;
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
    /// Its fields and claims.
    pub said: &'a dyn Said,
}

/// What a request says of itself in fields and in a token.
pub trait Said {
    /// The value of a field that is there once, by its name in lower case.
    fn field(&self, name: &str) -> Option<&[u8]>;

    /// Whether any value of a field fits.
    fn any_field(&self, name: &str, fits: &dyn Fn(&[u8]) -> bool) -> bool {
        self.field(name).is_some_and(fits)
    }

    /// A claim of the one token that was verified.
    fn claim(&self, _name: &str) -> Option<&str> {
        None
    }

    /// Whether a claim of any token that was verified fits, or is a list of which a member does.
    fn any_claim(&self, _name: &str, _fits: &dyn Fn(&[u8]) -> bool) -> bool {
        false
    }
}

/// What outlives reloads: each limit with its leases and counts, and the connection to Redis.
#[derive(Debug)]
pub struct State {
    link: Option<Link>,
    /// How long a request may wait for Redis.
    budget: Duration,
    limits: Mutex<HashMap<Identity, Known>>,
    table: Arc<Table>,
    seeds: Arc<key::Seeds>,
    /// Tells this sidecar from others.
    sidecar: String,
    /// Tells this state from those before and after it.
    id: u64,
    /// When the configuration that is compiled next was written, in milliseconds of the Unix epoch.
    written: AtomicU64,
}

/// What makes a limit of a new configuration the same as one of the old.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Identity {
    name: String,
    direction: Direction,
    key: Vec<KeyPart>,
    pod: bool,
}

#[derive(Debug, Clone)]
struct Known {
    limit: Weak<Limit>,
    /// The plan that was compiled last.
    plan: Arc<Plan>,
}

impl State {
    /// A state without limits. The refill tasks, if there is a Redis, and the sweep run on
    /// `handle`, and end when the state is dropped. A Redis that does not answer is no error; a
    /// URL that is not one of Redis is, and the message says what is wrong with it.
    pub fn new(redis: Option<&model::Redis>, handle: &tokio::runtime::Handle) -> Result<Arc<Self>, String> {
        Self::after(None, redis, handle)
    }

    /// As [`new`](Self::new), in place of another: what a pod counts by itself goes on, and so do the counts of
    /// all limits. Leases of another Redis are worth nothing here.
    pub fn after(
        before: Option<&Self>,
        redis: Option<&model::Redis>,
        handle: &tokio::runtime::Handle,
    ) -> Result<Arc<Self>, String> {
        static STATES: AtomicU64 = AtomicU64::new(1);
        let table = before.map_or_else(Arc::default, |before| before.table.clone());
        let sidecar =
            before.map_or_else(|| format!("{:016x}", fastrand::u64(..)), |before| before.sidecar.clone());
        let id = STATES.fetch_add(1, Relaxed);
        let link = redis.map(|redis| Link::start(redis, &sidecar, id, &table, handle)).transpose()?;
        let known =
            |before: &Self| before.limits().iter().map(|(id, known)| (id.clone(), known.clone())).collect();
        let state = Arc::new(Self {
            link,
            budget: redis.map_or(Duration::ZERO, |redis| redis.budget.0),
            limits: Mutex::new(before.map_or_else(HashMap::new, known)),
            table,
            seeds: before.map_or_else(Arc::default, |before| before.seeds.clone()),
            sidecar,
            id,
            written: AtomicU64::new(0),
        });
        handle.spawn(sweep(Arc::downgrade(&state)));
        Ok(state)
    }

    /// Says when the configuration was written that is compiled next. Where sidecars disagree about a rate,
    /// which they do while a change reaches one after the other, the newest is right.
    pub fn written(&self, at: SystemTime) {
        let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.written.store(since.as_millis() as u64, Relaxed);
    }

    /// The state of the conversation with Redis, where one is configured.
    pub fn redis(&self) -> Option<RedisReport> {
        self.link.as_ref().map(RedisReport::new)
    }

    /// Finds or makes the limit that `written` describes, and what it says now.
    fn limit(&self, written: &model::Limit, direction: Direction) -> (Arc<Limit>, Arc<Plan>) {
        static LIMITS: AtomicU64 = AtomicU64::new(1);
        let plan = |generation| Plan::new(written, self.budget, self.written.load(Relaxed), generation);
        let identity = Identity {
            name: written.name.clone(),
            direction,
            key: written.key.clone(),
            pod: written.scope == Scope::Pod,
        };
        let leased = written.scope == Scope::Mesh && self.link.is_some();
        let mut limits = self.limits();
        limits.retain(|_, known| known.limit.strong_count() > 0);
        let known = limits.get_mut(&identity);
        let before = known.as_ref().and_then(|known| known.limit.upgrade());
        if let (Some(known), Some(limit)) = (known, &before)
            && limit.leased == leased
            && (!leased || limit.state == self.id)
        {
            let limit = limit.clone();
            let generation = known.plan.generation;
            let same = plan(generation);
            known.plan = Arc::new(if same.same(&known.plan) { same } else { plan(generation + 1) });
            return (limit, known.plan.clone());
        }
        let plan = Arc::new(plan(1));
        let (shard, redis_name) = key::limit_name(&written.name, direction, &written.key);
        let limit = Arc::new(Limit {
            id: LIMITS.fetch_add(1, Relaxed),
            name: written.name.as_str().into(),
            direction,
            leased,
            state: self.id,
            redis_name,
            plan: ArcSwap::new(plan.clone()),
            common: Arc::new(Bucket::new(&plan, 0, Gcra::default(), shard, "".into())),
            lost_at: AtomicU64::new(0),
            keys: AtomicU32::new(0),
            sidecars: Default::default(),
            counters: before.map_or_else(Arc::default, |before| before.counters.clone()),
        });
        self.table.add(&limit);
        limits.insert(identity, Known { limit: Arc::downgrade(&limit), plan: plan.clone() });
        (limit, plan)
    }

    fn limits(&self) -> MutexGuard<'_, HashMap<Identity, Known>> {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The rule that `written` describes.
    fn rule(&self, written: &model::Limit, direction: Direction) -> Rule {
        let (limit, plan) = self.limit(written, direction);
        let status = written.status.and_then(|status| StatusCode::from_u16(status).ok());
        let limited = |terms: &Terms| {
            let Rate { count, per } = terms.of.rate;
            let name = limit.name.clone();
            Arc::new(Limited { name, status, quota: count, window: per })
        };
        Rule {
            limited: plan.terms.iter().map(limited).collect(),
            limit,
            plan,
            matcher: Matcher::new(written),
            key: written.key.clone().into(),
            own: Own::new(&written.keys),
            cost: written.cost.clone(),
            observes: written.observe,
            counts_retries: written.count_retries,
        }
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
    /// In the order of the configuration.
    rules: Box<[Arc<Rule>]>,
    /// The order in which they are asked: first what this pod counts by itself, so that who is refused there asks Redis
    /// for nothing, and draws no token that others could have spent.
    in_turn: Box<[Arc<Rule>]>,
    /// Is any about a path?
    paths: bool,
    /// Is any about a claim?
    claims: bool,
    state: Arc<State>,
}

impl Limits {
    /// The limits of `direction`. A limit of the same name, key and scope as one in use keeps its
    /// buckets and counters. A new rate or burst applies to all of them, from the first request
    /// that meets it on; until then this changes nothing, so a configuration that is compiled and
    /// then refused leaves no trace.
    pub fn compile(limits: &[model::Limit], direction: Direction, state: &Arc<State>) -> Self {
        let mine = limits.iter().filter(|limit| limit.direction == direction);
        let keyed = |is: fn(&KeyPart) -> bool| mine.clone().any(|limit| limit.key.iter().any(is));
        let paths = mine.clone().any(|limit| limit.path.is_some()) || keyed(|part| *part == KeyPart::Path);
        let claims = mine.clone().any(|limit| !limit.claim.is_empty())
            || keyed(|part| matches!(part, KeyPart::Claim(_)));
        let rules: Box<[_]> = mine.map(|written| Arc::new(state.rule(written, direction))).collect();
        let mut in_turn = rules.clone();
        in_turn.sort_by_key(|rule| rule.limit.leased);
        Self { rules, in_turn, paths, claims, state: state.clone() }
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Is any of them about a path?
    pub fn has_paths(&self) -> bool {
        self.paths
    }

    /// Is any of them about a claim of the request's token?
    pub fn has_claims(&self) -> bool {
        self.claims
    }

    /// Decides whether a request is admitted by every limit that holds for it.
    pub fn admit(&self, facts: &Facts<'_>) -> Decision {
        decide::admit(&self.in_turn, &self.state, facts)
    }

    /// What each limit has done, in the order of the configuration.
    pub fn snapshot(&self) -> Vec<LimitReport> {
        let now = clock::now();
        self.rules.iter().map(|rule| LimitReport::new(rule, now)).collect()
    }

    /// The same, with the buckets that this sidecar holds for keys. Looks at all of them.
    pub fn snapshot_with_buckets(&self) -> Vec<LimitReport> {
        let mut reports = self.snapshot();
        report::add_buckets(&mut reports, &self.rules, &self.state.table, clock::now());
        reports
    }
}
