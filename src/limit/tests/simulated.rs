//! The bound as a property: the script itself, in a real Redis, on a clock that the test sets,
//! and buckets whose refills are delayed, lost, or die with their sidecar.

mod given_back;
mod utilised;

use std::cell::RefCell;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::*;
use crate::limit::bucket::{Back, Grant, Want};
use crate::limit::redis::{Call, Caller, Group, SCRIPT, read, read_greeting};

const SIDECARS: usize = 4;

/// The script on a clock of the test's own: `MGET` of two keys in the place of `TIME`; and on a server that is
/// who the test says: `GET` of a key in the place of `INFO`. Keys expire by the server's clock, which the test
/// does not set, so they are kept much longer.
struct Clocked {
    _server: Server,
    connection: ::redis::Connection,
    script: String,
    /// Makes each simulation's keys its own.
    simulations: u32,
    /// Which server it is, and whose replica it was last.
    run: u32,
    replicated: u32,
    /// Its clock less that of the simulation.
    skew: i64,
}

impl Clocked {
    fn start() -> Self {
        Self::start_with(&[])
    }

    /// With a script that is changed: what is there, and what is in its place.
    fn start_with(changes: &[(&str, &str)]) -> Self {
        let server = Server::start();
        let mut script = SCRIPT.to_owned();
        let clocked = [
            ("redis.call('TIME')", "redis.call('MGET', 'seconds', 'micros')"),
            ("redis.call('INFO', 'server', 'replication')", "redis.call('GET', 'info')"),
            ("'PX'", "'EX'"),
        ];
        for (real, ours) in clocked.iter().chain(changes) {
            assert!(script.contains(real), "{real}");
            script = script.replace(real, ours);
        }
        let mut connection = server.connect();
        let script = ::redis::Script::new(&script);
        let script = script.prepare_invoke().load(&mut connection).expect("the script loads");
        let mut this =
            Self { _server: server, connection, script, simulations: 0, run: 0, replicated: 0, skew: 0 };
        this.begin();
        this
    }

    /// A simulation with keys of its own, on a server whose state is older than any burst.
    fn begin(&mut self) {
        self.simulations += 1;
        self.run += 1;
        self.skew = 0;
        self.greet(DAY - 1_000_000 * S);
    }

    fn caller(&self, sidecar: &str) -> Caller {
        Caller::new(&self.script, sidecar, &format!("test{}", self.simulations), false)
    }

    /// Sets the server's clock and who it is, and runs a command.
    fn run(&mut self, at: u64, command: &::redis::Cmd) -> ::redis::Value {
        let at = at.saturating_add_signed(self.skew);
        let (seconds, micros) = (at / 1_000_000_000, at / 1_000 % 1_000_000);
        let Self { run, replicated, .. } = self;
        let info =
            format!("run_id:{run:x}\nredis_version:7\nmaster_replid:{replicated:x}\nconnected_slaves:0\n");
        let mut commands = ::redis::pipe();
        commands
            .cmd("MSET")
            .arg("seconds")
            .arg(seconds)
            .arg("micros")
            .arg(micros)
            .arg("info")
            .arg(info)
            .ignore();
        commands.add_command(command.clone());
        let (answer,): (::redis::Value,) = commands.query(&mut self.connection).expect("an answer");
        answer
    }

    /// When the server's state began.
    fn greet(&mut self, at: u64) -> u64 {
        let greeting = self.caller("x").greeting(0);
        read_greeting(&self.run(at, &greeting)).expect("a greeting").since
    }

    /// Runs the script at a time of the server's clock, in nanoseconds, for buckets of one limit.
    fn ask(&mut self, at: u64, plan: &Arc<Plan>, who: &str, wants: &[(&str, Want)], sent: u64) -> Vec<Grant> {
        let (limit, _) = limit_of("1/s", 2);
        let buckets: Vec<Bucket> = wants.iter().map(|(name, _)| bucket_of(plan, name)).collect();
        let wants = buckets.iter().zip(wants).map(|(bucket, (_, want))| (bucket, *want)).collect();
        let call = Call { shard: 0, groups: vec![Group { limit: &limit, plan, terms: 0, wants }] };
        let command = self.caller(who).command(&call);
        read(sent, &call, &self.run(at, &command)).expect("grants")
    }

    fn ask_one(&mut self, at: u64, plan: &Arc<Plan>, who: &str, wanted: u32) -> Grant {
        self.ask(at, plan, who, &[("a", want(wanted))], at)[0]
    }

    /// What a bucket's key holds.
    fn stored(&mut self) -> Option<String> {
        let key = self.bucket();
        ::redis::cmd("GET").arg(key).query(&mut self.connection).expect("an answer")
    }

    /// Another server takes its place, which knows of the bucket what is `stored`.
    fn another(&mut self, stored: Option<&str>, skew: i64) {
        self.run += 1;
        self.skew = skew;
        self.holds(stored);
    }

    /// It was a replica for a while, of who knows of the bucket what is `stored`.
    fn was_replica(&mut self, stored: Option<&str>) {
        self.replicated += 1;
        self.holds(stored);
    }

    /// It is told to forget everything, by which it is no other server.
    fn forgets(&mut self) {
        ::redis::cmd("FLUSHALL").exec(&mut self.connection).expect("an answer");
    }

    fn holds(&mut self, stored: Option<&str>) {
        let key = self.bucket();
        match stored {
            Some(text) => ::redis::cmd("SET").arg(key).arg(text).exec(&mut self.connection),
            None => ::redis::cmd("DEL").arg(key).exec(&mut self.connection),
        }
        .expect("an answer");
    }

    fn bucket(&self) -> String {
        format!("test{}:{{0}}:b:{}a", self.simulations, limit_of("1/s", 2).0.redis_name)
    }
}

/// The plan of a limit of this rate and burst, whose configuration was written at a time.
fn plan_of(rate: &str, burst: u32, written: u64) -> Arc<Plan> {
    Arc::new(Plan { written, ..plan(rate, burst) })
}

fn want(wanted: u32) -> Want {
    Want { wanted, least: 1, back: Back::default() }
}

const S: u64 = 1_000_000_000;
const MS: u64 = 1_000_000;
/// The server's clock when a simulation begins: that of a day in 2026.
const DAY: u64 = 1_790_000_000 * S;

#[test]
fn the_script_grants_by_gcra() {
    // 100 tokens a second, B' = 10.
    let plan = plan_of("100/s", 20, 0);
    let redis = &mut Clocked::start();
    let first = redis.ask_one(DAY, &plan, "x", 4);
    assert_eq!((first.granted, first.wait, first.sidecars), (4, 0, 1));
    let rest = redis.ask_one(DAY, &plan, "x", 100);
    assert_eq!((rest.granted, rest.wait), (6, 10 * MS));
    let none = redis.ask_one(DAY + 4 * MS, &plan, "x", 1);
    assert_eq!((none.granted, none.wait), (0, 6 * MS));
    assert_eq!(redis.ask_one(DAY + 35 * MS, &plan, "x", 100).granted, 3);
    assert_eq!(redis.ask_one(DAY + 100 * S, &plan, "x", 100).granted, 10, "no more than B' when idle");
}

#[test]
fn sidecars_are_counted() {
    let plan = plan_of("100/s", 24, 0);
    let redis = &mut Clocked::start();
    for (i, sidecar) in ["x", "y", "z"].into_iter().enumerate() {
        assert_eq!(redis.ask_one(DAY, &plan, sidecar, 0).sidecars as usize, i + 1);
    }
    let grant = redis.ask_one(DAY, &plan, "x", 100);
    assert_eq!((grant.granted, grant.wait), (12, 10 * MS));
    assert_eq!(redis.ask_one(DAY + 5 * S, &plan, "x", 100).sidecars, 3);
    assert_eq!(redis.ask_one(DAY + 11 * S, &plan, "x", 100).sidecars, 1, "y and z are gone");
}

#[test]
fn a_call_serves_many_buckets() {
    let plan = plan_of("100/s", 20, 0);
    let redis = &mut Clocked::start();
    let grants = redis.ask(DAY, &plan, "x", &[("a", want(3)), ("b", want(100)), ("c", want(1))], DAY);
    assert_eq!(grants.iter().map(|grant| grant.granted).collect::<Vec<_>>(), [3, 10, 1]);
}

#[test]
fn a_clock_set_back_or_a_slower_plan_leaves_a_bucket_empty_and_no_emptier() {
    let plan = plan_of("100/s", 20, 0);
    let redis = &mut Clocked::start();
    assert_eq!(redis.ask_one(DAY, &plan, "x", 100).granted, 10);
    let back = redis.ask_one(DAY - 3600 * S, &plan, "x", 100);
    assert_eq!((back.granted, back.wait, back.sidecars), (0, 10 * MS, 1));
    assert_eq!(redis.ask_one(DAY - 3600 * S + 50 * MS, &plan, "x", 100).granted, 5);

    let slow = plan_of("1/h", 20, 0);
    assert_eq!(redis.ask(DAY, &slow, "x", &[("b", want(100))], DAY)[0].granted, 10);
    let quick = plan_of("100/s", 20, 1);
    assert_eq!(redis.ask(DAY + 60 * S, &quick, "x", &[("b", want(100))], DAY)[0].granted, 0);
    assert_eq!(redis.ask(DAY + 61 * S, &quick, "x", &[("b", want(100))], DAY)[0].granted, 10);
}

#[derive(Debug, Clone)]
enum Step {
    /// Time passes, in thousandths of tau.
    Pass(u64),
    /// So many requests come to a sidecar.
    Requests(usize, u32),
    /// As many requests as can be come to every sidecar.
    Rush,
    /// A request takes a token and gives it back.
    Returned(usize),
    /// The sidecar is about to send an ask, for as much as it would or for any number. In the first case it gives back
    /// what it would, too.
    Ask(usize, Option<u32>),
    /// Redis runs it.
    Run(usize),
    /// Its answer arrives.
    Arrive(usize),
    /// It, or its answer, is lost.
    Lose(usize),
    /// The sidecar is killed, and another takes its place.
    Kill(usize),
    /// What the bucket holds is copied to a replica.
    Replicate,
    /// The replica takes the place of the server, with a clock of its own.
    Failover(i64),
    /// The server is made a replica of the replica, and a master again.
    Swap,
    /// The server is started anew, or flushed while it runs: it has forgotten everything.
    Restart,
    Flush,
}

fn step() -> impl Strategy<Value = Step> {
    let one = 0..SIDECARS;
    let want = prop_oneof![Just(None), (1u32..10).prop_map(Some), (1u32..3000).prop_map(Some)];
    prop_oneof![
        8 => prop_oneof![0u64..20, 0u64..400, 300u64..1100].prop_map(Step::Pass),
        2 => (one.clone(), prop_oneof![1u32..5, 1u32..300]).prop_map(|(who, n)| Step::Requests(who, n)),
        1 => Just(Step::Rush),
        1 => one.clone().prop_map(Step::Returned),
        16 => (one.clone(), want).prop_map(|(who, want)| Step::Ask(who, want)),
        24 => one.clone().prop_map(Step::Run),
        24 => one.clone().prop_map(Step::Arrive),
        1 => one.clone().prop_map(Step::Lose),
        1 => one.prop_map(Step::Kill),
        1 => Just(Step::Replicate),
        1 => (-3_600i64..3_600).prop_map(|seconds| Step::Failover(seconds * S as i64)),
        1 => prop_oneof![Just(Step::Swap), Just(Step::Restart), Just(Step::Flush)],
    ]
}

struct Sidecar {
    bucket: Bucket,
    /// Its boot clock less that of the simulation.
    offset: u64,
    asked: Option<Asked>,
}

struct Asked {
    sent: u64,
    want: Want,
    answer: Option<Grant>,
}

/// Plays the steps, and gives the times of all admissions.
fn play(redis: &mut Clocked, plan: &Arc<Plan>, steps: &[Step]) -> Vec<u64> {
    redis.begin();
    let terms = &plan.terms[0];
    let mut replica = None;
    let mut log = Vec::new();
    let mut time = S;
    let mut sidecars: Vec<Sidecar> = (0..SIDECARS as u64)
        .map(|i| Sidecar { bucket: bucket_of(plan, "a"), offset: i * 77 * S + 13 * i, asked: None })
        .collect();
    for step in steps {
        match *step {
            Step::Pass(thousandths) => time += terms.tau / 1000 * thousandths + 1,
            Step::Requests(who, requests) => {
                let sidecar = &sidecars[who];
                for _ in 0..requests {
                    match sidecar.bucket.take(time + sidecar.offset, 1) {
                        Some(_) => log.push(time),
                        None => sidecar.bucket.missed(1),
                    }
                }
            }
            Step::Rush => {
                for sidecar in &sidecars {
                    while sidecar.bucket.take(time + sidecar.offset, 1).is_some() {
                        log.push(time);
                    }
                }
            }
            Step::Returned(who) => {
                let sidecar = &sidecars[who];
                if let Some((taken, _)) = sidecar.bucket.take(time + sidecar.offset, 1) {
                    taken.into_iter().for_each(|lease| sidecar.bucket.give_back(lease));
                }
            }
            Step::Ask(who, want) => {
                let Sidecar { bucket, offset, asked } = &mut sidecars[who];
                asked.get_or_insert_with(|| {
                    let sent = time + *offset;
                    let would = || bucket.want(plan, 0, sent, terms.tau / 10);
                    let want = want.map_or_else(would, self::want);
                    Asked { sent, want, answer: None }
                });
            }
            Step::Run(who) => {
                let name = who.to_string();
                if let Some(asked @ Asked { answer: None, .. }) = &mut sidecars[who].asked {
                    let grants = redis.ask(DAY + time, plan, &name, &[("a", asked.want)], asked.sent);
                    asked.answer = grants.into_iter().next();
                }
            }
            Step::Arrive(who) => {
                let Sidecar { bucket, offset, asked } = &mut sidecars[who];
                if let Some(Asked { answer: Some(grant), .. }) = asked.take_if(|asked| asked.answer.is_some())
                {
                    bucket.granted(plan, &grant, time + *offset);
                }
            }
            Step::Replicate => replica = redis.stored(),
            Step::Failover(skew) => redis.another(replica.as_deref(), skew),
            Step::Swap => redis.was_replica(replica.as_deref()),
            Step::Restart => redis.another(None, redis.skew),
            Step::Flush => redis.forgets(),
            Step::Lose(who) => sidecars[who].asked = None,
            Step::Kill(who) => {
                sidecars[who].asked = None;
                sidecars[who].bucket = bucket_of(plan, "a");
            }
        }
    }
    log
}

#[test]
fn no_window_admits_more_than_the_bound() {
    let limits = [("1000/s", 1000), ("1000/s", 50), ("7/s", 3), ("30/m", 30), ("10000/s", 2000)];
    let limits = prop::sample::select(limits.to_vec());
    let runs = (limits, prop::collection::vec(step(), 50..400));
    let redis = RefCell::new(Clocked::start());
    let config = ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() };
    let result = TestRunner::new(config).run(&runs, |((rate, burst), steps)| {
        let plan = plan_of(rate, burst, 0);
        let mut log = play(&mut redis.borrow_mut(), &plan, &steps);
        prop_assert_eq!(tokens_over(&mut log, plan.terms[0].of.rate, plan.terms[0].of.burst), 0.0);
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn the_bound_is_reached_and_so_can_be_broken() {
    let plan = plan_of("1000/s", 100, 0);
    let redis = &mut Clocked::start();
    let ask = |who| [Step::Ask(who, Some(1000)), Step::Run(who)];
    // Granted early and spent late, then all that can be had at once.
    let mut steps: Vec<Step> = (0..SIDECARS).flat_map(ask).collect();
    steps.push(Step::Pass(990));
    steps.extend((0..SIDECARS).map(Step::Arrive));
    steps.push(Step::Rush);
    for who in 0..SIDECARS {
        steps.extend(ask(who).into_iter().chain([Step::Arrive(who), Step::Rush]));
    }
    let mut log = play(redis, &plan, &steps);
    assert!(log.len() >= 95, "{}", log.len());
    assert_bound(&mut log, plan.terms[0].of.rate, plan.terms[0].of.burst);

    let mut careless = self::plan("1000/s", 100);
    let of = &mut careless.terms[0].of;
    of.capacity = f64::from(of.burst);
    let (rate, burst) = (of.rate, of.burst);
    let mut log = play(redis, &Arc::new(careless), &steps);
    let over = tokens_over(&mut log, rate, burst);
    assert!(over > 40.0, "with B in the place of B' the same steps break the bound: {over}");
}

#[test]
fn a_grant_that_was_long_on_its_way_lives_no_longer() {
    let plan = plan_of("1000/s", 100, 0);
    let mut steps = vec![Step::Ask(0, Some(1000)), Step::Run(0)];
    for wait in [940, 940] {
        steps.push(Step::Pass(wait));
        for who in (1..SIDECARS).chain(1..SIDECARS).chain(1..SIDECARS) {
            steps.extend([Step::Ask(who, Some(1000)), Step::Run(who), Step::Arrive(who)]);
        }
        steps.push(Step::Arrive(0));
    }
    steps.push(Step::Rush);
    let mut log = play(&mut Clocked::start(), &plan, &steps);
    assert!(log.len() >= 80, "what two asks were granted within tau: {}", log.len());
    assert_bound(&mut log, plan.terms[0].of.rate, plan.terms[0].of.burst);
}

#[test]
fn a_server_that_lost_its_state_grants_what_has_accrued_since() {
    let plan = plan_of("100/s", 20, 0);
    let redis = &mut Clocked::start();
    assert_eq!(redis.ask_one(DAY, &plan, "x", 4).granted, 4);
    let stale = redis.stored();
    assert_eq!(redis.ask_one(DAY, &plan, "x", 100).granted, 6);
    // A replica that had not heard of the last six, with a clock that is an hour behind.
    redis.another(stale.as_deref(), -3_600 * S as i64);
    let first = redis.ask_one(DAY, &plan, "x", 100);
    assert_eq!((first.granted, first.wait), (0, 10 * MS), "empty");
    assert_eq!(redis.ask_one(DAY + 35 * MS, &plan, "x", 100).granted, 3);
    let again = redis.ask_one(DAY + 1_000 * S, &plan, "x", 100);
    assert_eq!((again.granted, again.since), (10, first.since), "and full in time");
    // One that was started anew, was a replica in between, or was flushed.
    redis.another(None, 0);
    assert_eq!(redis.ask_one(DAY + 2_000 * S, &plan, "x", 100).granted, 0);
    redis.was_replica(stale.as_deref());
    assert_eq!(redis.ask_one(DAY + 2_300 * S, &plan, "x", 100).granted, 0);
    redis.forgets();
    assert_eq!(redis.ask_one(DAY + 2_600 * S, &plan, "x", 100).granted, 0);
    // Where that is wanted, what is not known is full.
    let (limit, _) = limit_of("1/s", 2);
    redis.another(None, 0);
    let careless = Caller::new(&redis.script, "x", &format!("test{}", redis.simulations), true);
    let (bucket, wants) = (bucket_of(&plan, "a"), want(100));
    let group = Group { limit: &limit, plan: &plan, terms: 0, wants: vec![(&bucket, wants)] };
    let call = Call { shard: 0, groups: vec![group] };
    let answer = redis.run(DAY + 3_000 * S, &careless.command(&call));
    assert_eq!(read(DAY, &call, &answer).expect("grants")[0].granted, 10);
}

#[test]
fn a_request_of_several_tokens_has_them_all_or_none() {
    let plan = plan_of("100/s", 20, 0);
    let redis = &mut Clocked::start();
    for sidecar in ["x", "y", "z"] {
        redis.ask_one(DAY, &plan, sidecar, 0);
    }
    let dear = |wanted| [("a", Want { least: 8, ..want(wanted) })];
    assert_eq!(redis.ask(DAY, &plan, "x", &dear(8), DAY)[0].granted, 8);
    let none = redis.ask(DAY, &plan, "y", &dear(8), DAY)[0];
    assert_eq!((none.granted, none.wait), (0, 60 * MS), "two are left");
    assert_eq!(redis.ask(DAY + 60 * MS, &plan, "y", &dear(8), DAY)[0].granted, 8);
}

#[test]
fn the_newest_configuration_holds_for_all_sidecars() {
    let (old, new) = (plan_of("1000/s", 200, 1), plan_of("10/s", 20, 2));
    let redis = &mut Clocked::start();
    assert_eq!(redis.ask_one(DAY, &old, "x", 10).granted, 10);
    assert_eq!(redis.ask_one(DAY + S, &new, "y", 3).granted, 3, "of ten");
    let held = redis.ask_one(DAY + S, &old, "x", 100);
    assert_eq!((held.granted, held.tau), (7, 1000 * MS), "what the newest leaves");
    let back = plan_of("1000/s", 200, 3);
    assert_eq!(redis.ask_one(DAY + 2 * S, &back, "x", 70).granted, 70, "of a hundred");
    assert_eq!(redis.ask_one(DAY + 2 * S, &new, "y", 100).granted, 30, "who is behind has the newest too");
}

#[test]
fn another_rate_leaves_a_bucket_as_full_as_it_was() {
    let (quick, slow) = (plan_of("1000/s", 200, 1), plan_of("10/s", 200, 2));
    let redis = &mut Clocked::start();
    assert_eq!(redis.ask_one(DAY, &quick, "x", 70).granted, 70);
    assert_eq!(redis.ask_one(DAY, &slow, "x", 100).granted, 30, "what was spent is spent");
    assert_eq!(redis.ask_one(DAY + S, &slow, "x", 100).granted, 10);
    let quick = plan_of("1000/s", 20, 3);
    assert_eq!(redis.ask_one(DAY + S, &quick, "x", 100).granted, 0);
    assert_eq!(redis.ask_one(DAY + S + 5 * MS, &quick, "x", 100).granted, 5);
}

#[test]
fn of_configurations_of_one_time_the_stricter_holds_for_all() {
    let (wide, narrow) = (plan_of("100/s", 1000, 7), plan_of("100/s", 100, 7));
    let redis = &mut Clocked::start();
    let mut granted = 0;
    for i in 0..6 {
        granted += redis.ask_one(DAY + i * S / 2, &wide, "a", 500).granted;
        granted += redis.ask_one(DAY + i * S / 2, &narrow, "b", 1).granted;
    }
    // The first before anyone knew of the other's; then the rate, and the smaller bucket.
    assert!(granted <= 500 + 250 + 50, "{granted}");
}

#[test]
fn the_newest_configuration_holds_while_others_lag() {
    let (new, old) = (plan_of("1/s", 10, 2), plan_of("1000/s", 10_000, 1));
    let redis = &mut Clocked::start();
    redis.ask_one(DAY, &new, "x", 5);
    for i in 1..=20 {
        let granted = redis.ask_one(DAY + i * 10 * S, &old, "y", 10_000).granted;
        assert!(granted <= 5, "{granted} after {i} times 10 s");
    }
}

#[test]
fn a_value_that_no_script_of_ours_wrote_is_an_empty_bucket() {
    let plan = plan_of("100/s", 20, 0);
    let redis = &mut Clocked::start();
    let since = redis.ask_one(DAY, &plan, "x", 1).since;
    let key = redis.bucket();
    for value in ["", "x", "2 3 4 5", "-1 5", "1e9 7", "2 3 i", "2 3 i5", "2 3 i5 x", "2 3 i5 -1 -1"] {
        ::redis::cmd("SET").arg(&key).arg(value).exec(&mut redis.connection).expect("an answer");
        let grant = redis.ask_one(DAY + S, &plan, "x", 100);
        assert_eq!((grant.granted, grant.since), (0, since), "{value:?}");
    }
}
