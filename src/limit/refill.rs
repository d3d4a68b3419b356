//! The background task that keeps leases live: it gathers the buckets that want tokens, asks
//! Redis for all of them in one round trip, and places what is granted. One round trip is under
//! way at a time; what becomes due meanwhile rides in the next.
//!
//! The task is also the breaker: Redis counts as down from the moment that an answer takes longer
//! than a request may wait, or that a call fails, until an answer comes within that time. While
//! it is down no request waits, and this task alone tries again, with growing pauses.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use ::redis::{Cmd, RedisResult, from_redis_value};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{sleep, timeout};

use super::bucket::{Bucket, Grant};
use super::clock;
use super::limit::Limit;
use super::plan::Plan;
use super::redis::{Answers, Call, Grants, Redis, pipeline, read};

/// Buckets of one round trip.
const BATCH: usize = 512;
/// A bucket that is exhausted for longer is not watched: its next request asks.
const WATCHED: u64 = 2_000_000_000;
/// Pauses between attempts while Redis is down.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// A bucket that wants tokens.
#[derive(Debug)]
pub(super) struct Due {
    pub(super) limit: Arc<Limit>,
    pub(super) bucket: Arc<Bucket>,
}

/// What request threads see of the task.
#[derive(Debug)]
pub(super) struct Link {
    redis: Redis,
    lanes: Vec<Lane>,
    /// How long a request may wait.
    pub(super) budget: Duration,
}

/// What is asked apart from the rest.
#[derive(Debug)]
struct Lane {
    queue: UnboundedSender<Due>,
    status: Arc<Status>,
}

/// Whether Redis answers, and what it was asked.
#[derive(Debug)]
pub(super) struct Status {
    /// Of Redis, for the log.
    address: String,
    /// Since when Redis has not answered in time; 0 while it does.
    down_since: AtomicU64,
    pub(super) round_trips: AtomicU64,
    pub(super) errors: AtomicU64,
}

impl Link {
    /// Starts a task for each lane on `handle`. They end when the link is dropped.
    pub(super) fn start(redis: Redis, budget: Duration, handle: &tokio::runtime::Handle) -> Self {
        let sidecar = format!("{:016x}", fastrand::u64(..));
        let lane = |_| {
            let (queue, due) = unbounded_channel();
            let status = Arc::new(Status {
                address: redis.address().into(),
                down_since: AtomicU64::new(0),
                round_trips: AtomicU64::new(0),
                errors: AtomicU64::new(0),
            });
            let (redis, sidecar, later) = (redis.clone(), sidecar.clone(), BinaryHeap::new());
            handle.spawn(Refill { redis, sidecar, due, status: status.clone(), budget, later }.run());
            Lane { queue, status }
        };
        let lanes = (0..redis.lanes()).map(lane).collect();
        Self { redis, lanes, budget }
    }

    /// Asks for a refill of the bucket, unless one is under way. At most one entry of a bucket is
    /// in the queue, so the table's bound is the queue's.
    pub(super) fn request(&self, limit: &Arc<Limit>, bucket: &Arc<Bucket>) {
        if bucket.begin_refill() {
            let due = Due { limit: limit.clone(), bucket: bucket.clone() };
            // The task ends only with the link, or with its runtime when the process stops.
            let _ = self.lane(limit, bucket).queue.send(due);
        }
    }

    /// Since when Redis has not answered in time for the bucket's lane.
    pub(super) fn down_since(&self, limit: &Limit, bucket: &Bucket) -> Option<u64> {
        self.lane(limit, bucket).status.down_since()
    }

    fn lane(&self, limit: &Limit, bucket: &Bucket) -> &Lane {
        &self.lanes[self.redis.lane(&limit.redis_prefix(bucket.shard))]
    }

    /// Of every lane.
    pub(super) fn statuses(&self) -> impl Iterator<Item = &Status> {
        self.lanes.iter().map(|lane| &*lane.status)
    }
}

impl Status {
    pub(super) fn down_since(&self) -> Option<u64> {
        Some(self.down_since.load(Relaxed)).filter(|since| *since != 0)
    }

    fn down(&self, why: &dyn std::fmt::Display) {
        if self.down_since.load(Relaxed) == 0 {
            self.down_since.store(clock::now(), Relaxed);
            let redis = &self.address;
            tracing::warn!(%why, redis, "limits: Redis does not answer; each limit does as its `without_redis` says");
        }
    }

    fn up(&self) {
        if self.down_since.swap(0, Relaxed) != 0 {
            tracing::info!(redis = self.address, "limits: Redis answers again");
        }
    }
}

struct Refill {
    redis: Redis,
    /// Tells this sidecar from others.
    sidecar: String,
    due: UnboundedReceiver<Due>,
    status: Arc<Status>,
    budget: Duration,
    /// Exhausted buckets, by when they may have tokens again.
    later: BinaryHeap<Reverse<Later>>,
}

struct Later {
    at: u64,
    due: Due,
}

impl Refill {
    async fn run(mut self) {
        let mut batch = Vec::new();
        // Connects and loads the script before the first request needs them.
        let mut pause = self.ask(&mut batch, Duration::ZERO).await;
        while self.gather(&mut batch, pause).await {
            pause = self.ask(&mut batch, pause).await;
        }
    }

    /// Waits for buckets that are due; with a pause, for its end, whether any is due or not.
    /// False when there will be none any more.
    async fn gather(&mut self, batch: &mut Vec<Due>, pause: Duration) -> bool {
        if !pause.is_zero() {
            sleep(pause).await;
            while batch.len() < BATCH
                && let Ok(due) = self.due.try_recv()
            {
                batch.push(due);
            }
            return !self.due.is_closed() || !batch.is_empty();
        }
        while batch.is_empty() {
            let next = self.later.peek().map_or(u64::MAX, |Reverse(later)| later.at);
            let wait = Duration::from_nanos(next.saturating_sub(clock::now()));
            // Either the queue has some, or the time of the first in `later` has come.
            if let Ok(0) = timeout(wait, self.due.recv_many(batch, BATCH)).await {
                return false;
            }
            self.look_again(batch);
        }
        true
    }

    /// Takes what was exhausted and may have tokens now, if it is still wanted.
    fn look_again(&mut self, batch: &mut Vec<Due>) {
        let now = clock::now();
        while let Some(first) = self.later.peek_mut().filter(|first| first.0.at <= now) {
            let Reverse(Later { due, .. }) = std::collections::binary_heap::PeekMut::pop(first);
            if due.bucket.in_demand() && due.bucket.begin_refill() {
                batch.push(due);
            }
        }
    }

    /// One round trip; `paused` is the pause before it. Answers the pause before the next.
    async fn ask(&mut self, batch: &mut Vec<Due>, paused: Duration) -> Duration {
        batch.sort_unstable_by_key(Due::slot);
        let plans: Vec<Arc<Plan>> = batch.iter().map(|due| due.limit.plan.load_full()).collect();
        let calls = calls(batch, &plans);
        let asked = ask(&self.redis, &self.sidecar, &calls);
        let (answer, in_time) = watched(asked, self.budget, &self.status).await;
        drop(calls);
        self.status.round_trips.fetch_add(1, Relaxed);
        let failed = |answer: &[RedisResult<_>]| answer.iter().find_map(|one| one.as_ref().err().cloned());
        match answer {
            Ok(grants) => {
                let failed = failed(&grants);
                self.place(batch, &plans, grants);
                if let Some(error) = failed {
                    self.status.errors.fetch_add(1, Relaxed);
                    self.status.down(&error);
                    return longer(paused);
                }
                if in_time {
                    self.status.up();
                    return Duration::ZERO;
                }
                PAUSE.0
            }
            Err(error) => {
                self.status.errors.fetch_add(1, Relaxed);
                self.status.down(&error);
                for due in batch.drain(..) {
                    due.limit.counters.redis_errors.fetch_add(1, Relaxed);
                    due.bucket.end_refill();
                }
                longer(paused)
            }
        }
    }

    /// Places what was granted, and wakes who waits for it.
    fn place(&mut self, batch: &mut Vec<Due>, plans: &[Arc<Plan>], grants: Vec<RedisResult<Option<Grant>>>) {
        let now = clock::now();
        for ((due, plan), grant) in batch.drain(..).zip(plans).zip(grants) {
            let Ok(Some(grant)) = grant else {
                due.limit.counters.redis_errors.fetch_add(1, Relaxed);
                due.bucket.end_refill();
                continue;
            };
            due.limit.sidecars.store(grant.sidecars, Relaxed);
            let again = due.bucket.granted(plan, &grant, now);
            due.bucket.end_refill();
            if let Some(at) = again.filter(|at| *at < now + WATCHED) {
                self.later.push(Reverse(Later { at, due }));
            }
        }
    }
}

/// The calls for a batch that is sorted by slot: one for each limit and shard.
fn calls<'a>(batch: &'a [Due], plans: &'a [Arc<Plan>]) -> Vec<Call<'a>> {
    let now = clock::now();
    let mut calls: Vec<Call<'a>> = Vec::new();
    for (i, (due, plan)) in batch.iter().zip(plans).enumerate() {
        let limit = &due.limit;
        if i == 0 || batch[i - 1].slot() != due.slot() {
            limit.counters.redis_calls.fetch_add(1, Relaxed);
            let prefix = limit.redis_prefix(due.bucket.shard);
            calls.push(Call { plan, prefix, wants: Vec::new() });
        }
        let want = due.bucket.want(plan, now).min(plan.capacity as u32).max(1);
        calls.last_mut().expect("the first bucket began a call").wants.push((&due.bucket.name, want));
    }
    calls
}

/// Makes the calls, and gives what came of each of their wants. Without a call, only finds out whether
/// the script can be run.
async fn ask(
    redis: &Redis,
    sidecar: &str,
    calls: &[Call<'_>],
) -> RedisResult<Vec<RedisResult<Option<Grant>>>> {
    let commands: Vec<Cmd> = pipeline(redis.script(), sidecar, calls).cmd_iter().cloned().collect();
    let Answers { sent, values } = redis.run(&commands).await?;
    if calls.is_empty() {
        return Ok(values.into_iter().map(|value| value.map(|_| None)).collect());
    }
    let grants = |(call, value): (&Call<'_>, RedisResult<_>)| -> Vec<RedisResult<Option<Grant>>> {
        let grants: RedisResult<Grants> =
            value.and_then(|value| read(sent, call, &from_redis_value::<Vec<u64>>(value)?));
        match grants {
            Ok(grants) => grants.into_iter().map(|grant| Ok(Some(grant))).collect(),
            Err(error) => call.wants.iter().map(|_| Err(error.clone())).collect(),
        }
    };
    Ok(calls.iter().zip(values).flat_map(grants).collect())
}

/// Waits for an answer, and says that Redis is down when the budget of requests is over. True if
/// the answer came before.
async fn watched<T>(answer: impl Future<Output = T>, budget: Duration, status: &Status) -> (T, bool) {
    let mut answer = std::pin::pin!(answer);
    match timeout(budget, &mut answer).await {
        Ok(answer) => (answer, true),
        Err(_) => {
            status.down(&"it takes longer than `redis.budget`");
            (answer.await, false)
        }
    }
}

/// The pause after one more failure: twice the last, with a quarter of it by chance.
fn longer(pause: Duration) -> Duration {
    let next = (2 * pause).clamp(PAUSE.0, PAUSE.1);
    next.mul_f64(0.75 + fastrand::f64() / 4.0)
}

impl Due {
    /// What one call of the script is for.
    fn slot(&self) -> (u64, u8) {
        (self.limit.id, self.bucket.shard)
    }
}

impl PartialEq for Later {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}

impl Eq for Later {}

impl PartialOrd for Later {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Later {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.at.cmp(&other.at)
    }
}
