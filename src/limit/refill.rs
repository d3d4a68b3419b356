//! The background tasks that keep leases live: each gathers the buckets that want tokens, asks
//! Redis for all of them in one round trip, and places what is granted. One round trip of a task is
//! under way at a time; what becomes due meanwhile rides in the next. One task serves all shards,
//! or each its own where shards lie on servers of their own: then one that hangs is in nobody's way.
//!
//! A task is also the breaker of its lane: Redis counts as down from the moment that an answer takes
//! longer than a request may wait, or that a call fails, until an answer comes within that time. While
//! it is down no request waits, and the task alone tries again, with growing pauses.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use redis::{Cmd, RedisResult, Value};
use tokio::time::{Instant, sleep, timeout};

use crate::config::model::{self, OnNewState};

use super::bucket::{Bucket, Grant, Want};
use super::clock;
use super::key::SHARDS;
use super::limit::Limit;
use super::plan::Plan;
use super::queue::{PATIENCE, Receiver, Sender, queue};
use super::redis::{Answers, Call, Caller, Group, Redis, read, read_greeting};
use super::rule::Rule;
use super::status::Status;
use super::table::Table;

/// Buckets of one round trip.
const BATCH: usize = 512;
/// A bucket that is exhausted for longer is not watched: its next request asks.
const WATCHED: u64 = 2_000_000_000;
/// What is left of a grant that lives longer is not given back unless a request comes.
const LEFT: u64 = 60_000_000_000;
/// So many wait to be looked at again at most, of all lanes: of what is beyond, nothing goes back until a request comes.
const LATER: usize = 1 << 16;
/// Pauses between attempts while Redis is down.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// How often a server is asked what it is, though no bucket wants anything.
const GREETED: Duration = Duration::from_secs(60);

/// A bucket that wants tokens.
#[derive(Debug, Clone)]
pub(super) struct Due {
    limit: Arc<Limit>,
    plan: Arc<Plan>,
    bucket: Arc<Bucket>,
}

impl Due {
    #[cfg(test)]
    pub(super) fn new(limit: Arc<Limit>, plan: Arc<Plan>, bucket: Arc<Bucket>) -> Self {
        Self { limit, plan, bucket }
    }
}

/// What request threads see of the tasks.
#[derive(Debug)]
pub(super) struct Link {
    /// A queue for each lane; a shard's is its number modulo theirs.
    queues: Box<[Sender]>,
    status: Arc<Status>,
    /// How long a request may wait.
    pub(super) budget: Duration,
}

impl Link {
    /// Starts the tasks on `handle`. They end when the link is dropped. Fails if `written` is not how
    /// a Redis can be reached.
    pub(super) fn start(
        written: &model::Redis,
        sidecar: &str,
        state: u64,
        table: &Arc<Table>,
        handle: &tokio::runtime::Handle,
    ) -> Result<Self, String> {
        let redis = Redis::new(written)?;
        let caller = Arc::new(Caller::new(
            redis.script(),
            sidecar,
            &written.prefix,
            written.on_new_state == OnNewState::Full,
        ));
        let lanes = redis.lanes();
        let status = Arc::new(Status::new(redis.address().to_owned(), lanes));
        let start = |lane| {
            let (queue, due) = queue();
            let task = Refill {
                redis: redis.clone(),
                caller: caller.clone(),
                lane,
                lanes,
                due,
                status: status.clone(),
                table: table.clone(),
                state,
                budget: written.budget.0,
                later: BinaryHeap::new(),
                greet: Greet::All,
                turn: 0,
                greeted_at: Instant::now(),
                way: 0,
                failed: None,
            };
            handle.spawn(task.run());
            queue
        };
        Ok(Self { queues: (0..lanes).map(start).collect(), status: status.clone(), budget: written.budget.0 })
    }

    /// Asks for a refill of the bucket, unless one is under way; at once, if a request waits for it. At most
    /// one entry of a bucket is in a queue, so the table's bound is the queues'.
    pub(super) fn request(&self, rule: &Rule, bucket: &Arc<Bucket>, at_once: bool) {
        let queue = &self.queues[self.lane(bucket.shard)];
        if bucket.begin_refill() {
            let due = Due { limit: rule.limit.clone(), plan: rule.plan.clone(), bucket: bucket.clone() };
            queue.send(due, at_once);
        } else if at_once {
            // It may lie in the queue of a task that has not been told.
            queue.wake();
        }
    }

    /// Since when Redis has not answered in time for this shard.
    pub(super) fn down_since(&self, shard: u8) -> Option<u64> {
        self.status.down_since(self.lane(shard))
    }

    pub(super) fn status(&self) -> &Status {
        &self.status
    }

    fn lane(&self, shard: u8) -> usize {
        usize::from(shard) % self.queues.len()
    }
}

struct Refill {
    redis: Redis,
    caller: Arc<Caller>,
    lane: usize,
    lanes: usize,
    due: Receiver,
    status: Arc<Status>,
    table: Arc<Table>,
    /// Whose limits it asks for.
    state: u64,
    budget: Duration,
    /// Exhausted buckets, by when they may have tokens again; others, by when what they hold is dead.
    later: BinaryHeap<Reverse<Later>>,
    /// Which servers the next round trip asks what they are.
    greet: Greet,
    /// The shard that was asked last in its turn, and when.
    turn: u8,
    greeted_at: Instant,
    /// What an answer takes lately, in nanoseconds.
    way: u64,
    /// A bucket whose call failed: it is asked for until one succeeds. That a server says what it is does not mean
    /// that it grants.
    failed: Option<Due>,
}

/// Which shards' servers are asked what they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Greet {
    None,
    /// One after the other: a state that was lost is found though no bucket wants anything.
    Next,
    All,
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
            return self.due.take(batch, BATCH);
        }
        while batch.is_empty() && self.greet == Greet::None {
            let next = self.later.peek().map_or(u64::MAX, |Reverse(later)| later.at);
            let wait = Duration::from_nanos(next.saturating_sub(clock::now())).min(GREETED);
            // Either the queue has some, or the time of the first in `later` has come.
            if let Ok(false) = timeout(wait, self.due.wait(batch, BATCH)).await {
                return false;
            }
            self.look_again(batch);
            self.greet_in_turn();
        }
        true
    }

    fn greet_in_turn(&mut self) {
        if self.greet == Greet::None && self.greeted_at.elapsed() >= GREETED {
            self.greet = Greet::Next;
        }
    }

    /// Takes what was exhausted and may have tokens now, if it is still wanted, and what nobody came for: of all that
    /// fell due while Redis was down, as much as one round trip may have.
    fn look_again(&mut self, batch: &mut Vec<Due>) {
        let now = clock::now();
        let most = batch.len() + BATCH;
        while batch.len() < most
            && let Some(first) = self.later.peek_mut().filter(|first| first.0.at <= now)
        {
            let Reverse(Later { at, due }) = PeekMut::pop(first);
            let Due { plan, bucket, .. } = &due;
            let wanted = bucket.terms(plan.generation).is_some_and(|terms| {
                let terms = &plan.terms[terms];
                bucket.is_left(terms, now) || bucket.is_refused_until(at) && bucket.is_busy(terms, now)
            });
            if wanted && bucket.begin_refill() {
                batch.push(due);
            }
        }
    }

    /// One round trip; `paused` is the pause before it. Answers the pause before the next.
    async fn ask(&mut self, batch: &mut Vec<Due>, paused: Duration) -> Duration {
        self.greet_in_turn();
        batch.extend(self.failed.take().filter(|due| due.bucket.begin_refill()));
        // Beside the time for an answer it takes the queue's, where nobody waits.
        let way = 2 * self.way + PATIENCE.as_nanos() as u64;
        let mut asks = asks(batch, way);
        let calls = calls(&asks);
        let greeted = self.greeted();
        let greetings = greeted.iter().map(|shard| self.caller.greeting(*shard));
        let commands: Vec<Cmd> =
            greetings.chain(calls.iter().map(|call| self.caller.command(call))).collect();
        if commands.is_empty() {
            return Duration::ZERO;
        }
        let answer = self.redis.run(&commands);
        let (answer, in_time) = watched(answer, self.budget, self.lane, &self.status).await;
        self.status.round_trips.fetch_add(1, Relaxed);
        self.status.calls.fetch_add(commands.len() as u64, Relaxed);
        let failed = match answer {
            Ok(Answers { sent, values }) => {
                let took = clock::now().saturating_sub(sent);
                self.way = self.way - self.way / 8 + took / 8;
                let (greetings, values) = values.split_at(greeted.len().min(values.len()));
                let greeted = self.meet(&greeted, greetings);
                let grants: Vec<RedisResult<Vec<Grant>>> = calls
                    .iter()
                    .zip(values)
                    .map(|(call, value)| read(sent, call, value.as_ref().map_err(Clone::clone)?))
                    .collect();
                let sizes: Vec<usize> = calls.iter().map(Call::buckets).collect();
                drop(calls);
                greeted.err().or(self.place(&mut asks, &sizes, grants).err())
            }
            Err(error) => {
                asks.iter().for_each(Ask::failed);
                Some(error)
            }
        };
        let pause = match failed {
            None if in_time => {
                self.status.up(self.lane);
                Duration::ZERO
            }
            None => {
                // Whether it has become faster, an answer says.
                self.greet = Greet::Next;
                longer(paused)
            }
            Some(error) => {
                self.status.errors.fetch_add(1, Relaxed);
                self.status.down(self.lane, &error);
                // Whoever answers next may be another.
                self.greet = Greet::Next;
                longer(paused)
            }
        };
        // Who is woken finds Redis as it is.
        self.end(asks);
        pause
    }

    /// The shards whose servers are to be greeted now.
    fn greeted(&mut self) -> Vec<u8> {
        let shards: Vec<u8> = (self.lane as u8..SHARDS).step_by(self.lanes).collect();
        if self.greet != Greet::None {
            self.greeted_at = Instant::now();
        }
        match std::mem::replace(&mut self.greet, Greet::None) {
            Greet::None => Vec::new(),
            Greet::Next => {
                self.turn = self.turn.wrapping_add(1);
                vec![shards[usize::from(self.turn) % shards.len()]]
            }
            Greet::All => shards,
        }
    }

    /// Reads what the servers of the shards say of themselves.
    fn meet(&mut self, shards: &[u8], answers: &[RedisResult<Value>]) -> RedisResult<()> {
        for (shard, answer) in shards.iter().zip(answers) {
            let greeting = read_greeting(answer.as_ref().map_err(Clone::clone)?)?;
            self.state_of(*shard, greeting.since, shards.len() == 1);
            self.status.warn(self.lane, greeting.warnings);
        }
        Ok(())
    }

    /// Takes note of when a shard's state began. If it is another than it was, its leases are dropped; what
    /// befell one shard has befallen others, so they are asked too, if they were not just now.
    fn state_of(&mut self, shard: u8, since: u64, ask_others: bool) {
        if self.status.state(shard, since) {
            self.table.forget_state_before(self.state, shard, since);
            if ask_others {
                self.greet = Greet::All;
            }
        }
    }

    /// Places what was granted to the asks of each call, of which `sizes` says how many there are. Fails with
    /// the first error of a call.
    fn place(
        &mut self,
        asks: &mut [Ask],
        sizes: &[usize],
        grants: Vec<RedisResult<Vec<Grant>>>,
    ) -> RedisResult<()> {
        let now = clock::now();
        let (mut asks, mut result) = (asks, Ok(()));
        for (size, grants) in sizes.iter().zip(grants) {
            let (mine, rest) = asks.split_at_mut(*size);
            asks = rest;
            match grants {
                Ok(grants) => {
                    if let (Some(ask), Some(grant)) = (mine.first(), grants.first()) {
                        self.state_of(ask.due.bucket.shard, grant.since, true);
                    }
                    mine.iter_mut().zip(grants).for_each(|(ask, grant)| ask.place(&grant, now));
                }
                Err(error) => {
                    mine.iter().for_each(Ask::failed);
                    self.failed = mine.first().map(|ask| ask.due.clone());
                    result = Err(error);
                }
            }
        }
        // An answer without its call is none.
        asks.iter().for_each(Ask::failed);
        result
    }

    /// Ends the refills, and wakes who waits for them.
    fn end(&mut self, asks: Vec<Ask>) {
        let now = clock::now();
        for Ask { due, again, dead, .. } in asks {
            due.bucket.end_refill();
            let again = again.filter(|at| *at < now + WATCHED);
            let dead = dead.filter(|at| *at < now + LEFT);
            let dead = dead.filter(|_| self.later.len() < LATER / self.lanes);
            let later = again.into_iter().chain(dead);
            self.later.extend(later.map(|at| Reverse(Later { at, due: due.clone() })));
        }
    }
}

/// A bucket that asks in this round trip.
struct Ask {
    due: Due,
    /// The bucket's plan, and which of its terms.
    plan: Arc<Plan>,
    terms: usize,
    want: Want,
    /// When to look again, if it had less than was wanted, and for what nobody came for.
    again: Option<u64>,
    dead: Option<u64>,
}

impl Ask {
    /// Gives it back where the bucket has yet to meet the plan that holds, or needs nothing any more.
    fn new(due: Due, way: u64) -> Result<Self, Due> {
        let newest = due.limit.plan.load_full();
        let found = [&due.plan, &newest].into_iter().find_map(|plan| {
            let terms = due.bucket.terms(plan.generation)?;
            Some((plan.clone(), terms))
        });
        let Some((plan, terms)) = found else { return Err(due) };
        let numbers = &plan.terms[terms];
        let want = match plan.exact {
            true => due.bucket.want_exactly(numbers, clock::now()),
            false => Some(due.bucket.want(&plan, terms, clock::now(), way)),
        };
        let Some(want) = want else { return Err(due) };
        due.limit.counters.tokens_asked.fetch_add(u64::from(want.wanted), Relaxed);
        Ok(Self { due, plan, terms, want, again: None, dead: None })
    }

    fn place(&mut self, grant: &Grant, now: u64) {
        let Due { limit, bucket, .. } = &self.due;
        limit.counters.tokens_granted.fetch_add(u64::from(grant.granted), Relaxed);
        limit.told_of_sidecars(bucket.shard, grant.sidecars);
        self.again = bucket.granted(&self.plan, grant, now);
        let terms = &self.plan.terms[self.terms];
        self.dead = bucket.dies(terms, grant, now).filter(|_| !self.plan.exact);
    }

    fn failed(&self) {
        self.due.limit.counters.redis_errors.fetch_add(1, Relaxed);
    }

    /// What one call of the script is for, and what one group of it.
    fn place_in_calls(&self) -> (u8, u64, u64, usize) {
        (self.due.bucket.shard, self.due.limit.id, self.plan.generation, self.terms)
    }
}

/// What the buckets that are due ask for, in the order of the calls.
fn asks(batch: &mut Vec<Due>, way: u64) -> Vec<Ask> {
    let ask = |due: Due| Ask::new(due, way).map_err(|due| due.bucket.end_refill()).ok();
    let mut asks: Vec<Ask> = batch.drain(..).filter_map(ask).collect();
    asks.sort_unstable_by_key(Ask::place_in_calls);
    asks
}

/// The calls for asks in their order: one for each shard, with a group for each limit and terms.
fn calls(asks: &[Ask]) -> Vec<Call<'_>> {
    let mut calls: Vec<Call<'_>> = Vec::new();
    for (i, ask) in asks.iter().enumerate() {
        let before = i.checked_sub(1).map(|i| asks[i].place_in_calls());
        let here = ask.place_in_calls();
        if before.is_none_or(|before| before.0 != here.0) {
            calls.push(Call { shard: here.0, groups: Vec::new() });
        }
        let groups = &mut calls.last_mut().expect("the first ask began a call").groups;
        if before != Some(here) {
            let Ask { due, plan, terms, .. } = ask;
            groups.push(Group { limit: &due.limit, plan, terms: *terms, wants: Vec::new() });
        }
        groups.last_mut().expect("it began a group too").wants.push((&ask.due.bucket, ask.want));
    }
    calls
}

/// Waits for an answer, and says that Redis is down when the budget of requests is over. True if
/// the answer came before.
async fn watched<T>(
    answer: impl Future<Output = T>,
    budget: Duration,
    lane: usize,
    status: &Status,
) -> (T, bool) {
    let mut answer = std::pin::pin!(answer);
    match timeout(budget, &mut answer).await {
        Ok(answer) => (answer, true),
        Err(_) => {
            status.down(lane, &"it takes longer than `redis.budget`");
            (answer.await, false)
        }
    }
}

/// The pause after one more failure: twice the last, with a quarter of it by chance.
fn longer(pause: Duration) -> Duration {
    let next = (2 * pause).clamp(PAUSE.0, PAUSE.1);
    next.mul_f64(0.75 + fastrand::f64() / 4.0)
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
