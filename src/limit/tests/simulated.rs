//! The bound as a property: the script itself, in a real Redis, on a clock that the test sets,
//! and buckets whose refills are delayed, lost, or die with their sidecar.

use std::cell::RefCell;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::*;
use crate::limit::bucket::Grant;
use crate::limit::redis::{Call, SCRIPT, pipeline, read};

const SIDECARS: usize = 4;

/// The script on a clock of the test's own: `MGET` of two keys in the place of `TIME`. Keys
/// expire by the server's clock, which the test does not set, so they are kept much longer.
struct Clocked {
    _server: Server,
    connection: ::redis::Connection,
    script: String,
    /// Makes each simulation's keys its own.
    simulations: u32,
}

impl Clocked {
    fn start() -> Self {
        let server = Server::start();
        let script = SCRIPT.replace("redis.call('TIME')", "redis.call('MGET', 'seconds', 'micros')");
        assert_ne!(script, SCRIPT);
        let script = ::redis::Script::new(&script.replace("'PX'", "'EX'"));
        let mut connection = server.connect();
        let script = script.prepare_invoke().load(&mut connection).expect("the script loads");
        Self { _server: server, connection, script, simulations: 0 }
    }

    /// Runs the script at a time of the server's clock, in nanoseconds.
    fn ask(&mut self, at: u64, plan: &Plan, sidecar: &str, wants: &[(&str, u32)], sent: u64) -> Vec<Grant> {
        let (seconds, micros) = (at / 1_000_000_000, at / 1_000 % 1_000_000);
        let call = Call { plan, prefix: format!("test:l:{{{}}}:", self.simulations), wants: wants.to_vec() };
        let calls = [call];
        let mut commands = ::redis::pipe();
        commands.cmd("MSET").arg("seconds").arg(seconds).arg("micros").arg(micros).ignore();
        for command in pipeline(&self.script, sidecar, &calls).cmd_iter() {
            commands.add_command(command.clone());
        }
        let (answer,): (Vec<u64>,) = commands.query(&mut self.connection).expect("an answer");
        read(sent, &calls[0], &answer).expect("grants")
    }

    fn ask_one(&mut self, at: u64, plan: &Plan, sidecar: &str, want: u32) -> Grant {
        self.ask(at, plan, sidecar, &[("a", want)], at)[0]
    }
}

const S: u64 = 1_000_000_000;
const MS: u64 = 1_000_000;
/// The server's clock when a simulation begins: that of a day in 2026.
const DAY: u64 = 1_790_000_000 * S;

#[test]
fn the_script_grants_by_gcra() {
    // 100 tokens a second, B' = 10.
    let plan = Plan::new(&limit("a", "100/s", 20), true, 1);
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
fn sidecars_are_counted_and_leave_each_other_a_part() {
    let plan = Plan::new(&limit("a", "100/s", 24), true, 1);
    let redis = &mut Clocked::start();
    for (i, sidecar) in ["x", "y", "z"].into_iter().enumerate() {
        assert_eq!(redis.ask_one(DAY, &plan, sidecar, 0).sidecars as usize, i + 1);
    }
    let grant = redis.ask_one(DAY, &plan, "x", 100);
    assert_eq!((grant.granted, grant.wait), (4, 0), "a third of 12");
    assert_eq!(redis.ask_one(DAY + 5 * S, &plan, "x", 100).sidecars, 3);
    assert_eq!(redis.ask_one(DAY + 11 * S, &plan, "x", 100).sidecars, 1, "y and z are gone");
}

#[test]
fn a_call_serves_many_buckets() {
    let plan = Plan::new(&limit("a", "100/s", 20), true, 1);
    let redis = &mut Clocked::start();
    let grants = redis.ask(DAY, &plan, "x", &[("a", 3), ("b", 100), ("c", 1)], DAY);
    assert_eq!(grants.iter().map(|grant| grant.granted).collect::<Vec<_>>(), [3, 10, 1]);
}

#[test]
fn a_clock_set_back_or_a_slower_plan_leaves_a_bucket_empty_and_no_emptier() {
    let plan = Plan::new(&limit("a", "100/s", 20), true, 1);
    let redis = &mut Clocked::start();
    assert_eq!(redis.ask_one(DAY, &plan, "x", 100).granted, 10);
    let back = redis.ask_one(DAY - 3600 * S, &plan, "x", 100);
    assert_eq!((back.granted, back.wait, back.sidecars), (0, 10 * MS, 1));
    assert_eq!(redis.ask_one(DAY - 3600 * S + 50 * MS, &plan, "x", 100).granted, 5);

    let slow = Plan::new(&limit("a", "1/h", 20), true, 1);
    assert_eq!(redis.ask(DAY, &slow, "x", &[("b", 100)], DAY)[0].granted, 10);
    assert_eq!(redis.ask(DAY + 60 * S, &plan, "x", &[("b", 100)], DAY)[0].granted, 0);
    assert_eq!(redis.ask(DAY + 61 * S, &plan, "x", &[("b", 100)], DAY)[0].granted, 10);
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
    /// The sidecar is about to send an ask, for as much as it would or for any number.
    Ask(usize, Option<u32>),
    /// Redis runs it.
    Run(usize),
    /// Its answer arrives.
    Arrive(usize),
    /// It, or its answer, is lost.
    Lose(usize),
    /// The sidecar is killed, and another takes its place.
    Kill(usize),
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
    wanted: u32,
    answer: Option<Grant>,
}

fn bucket() -> Bucket {
    Bucket::new(1, Gcra::default(), 0, "a".into())
}

/// Plays the steps, and gives the times of all admissions.
fn play(redis: &mut Clocked, plan: &Plan, steps: &[Step]) -> Vec<u64> {
    redis.simulations += 1;
    let mut log = Vec::new();
    let mut time = S;
    let mut sidecars: Vec<Sidecar> = (0..SIDECARS as u64)
        .map(|i| Sidecar { bucket: bucket(), offset: i * 77 * S + 13 * i, asked: None })
        .collect();
    for step in steps {
        match *step {
            Step::Pass(thousandths) => time += plan.tau / 1000 * thousandths + 1,
            Step::Requests(who, requests) => {
                let sidecar = &sidecars[who];
                for _ in 0..requests {
                    match sidecar.bucket.take(time + sidecar.offset, plan.lead) {
                        Some(_) => log.push(time),
                        None => sidecar.bucket.missed(),
                    }
                }
            }
            Step::Rush => {
                for sidecar in &sidecars {
                    while sidecar.bucket.take(time + sidecar.offset, plan.lead).is_some() {
                        log.push(time);
                    }
                }
            }
            Step::Returned(who) => {
                let sidecar = &sidecars[who];
                if let Some((lease, _)) = sidecar.bucket.take(time + sidecar.offset, plan.lead) {
                    sidecar.bucket.give_back(lease);
                }
            }
            Step::Ask(who, want) => {
                let Sidecar { bucket, offset, asked } = &mut sidecars[who];
                asked.get_or_insert_with(|| {
                    let sent = time + *offset;
                    Asked { sent, wanted: want.unwrap_or_else(|| bucket.want(plan, sent)), answer: None }
                });
            }
            Step::Run(who) => {
                let name = who.to_string();
                if let Some(asked @ Asked { answer: None, .. }) = &mut sidecars[who].asked {
                    let grants = redis.ask(DAY + time, plan, &name, &[("a", asked.wanted)], asked.sent);
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
            Step::Lose(who) => sidecars[who].asked = None,
            Step::Kill(who) => {
                sidecars[who].asked = None;
                sidecars[who].bucket = bucket();
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
        let plan = Plan::new(&limit("a", rate, burst), true, 1);
        let mut log = play(&mut redis.borrow_mut(), &plan, &steps);
        prop_assert_eq!(tokens_over(&mut log, plan.rate, plan.burst), 0.0);
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn the_bound_is_reached_and_so_can_be_broken() {
    let plan = Plan::new(&limit("a", "1000/s", 100), true, 1);
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
    assert_bound(&mut log, plan.rate, plan.burst);

    let careless = Plan { capacity: f64::from(plan.burst), ..plan };
    let mut log = play(redis, &careless, &steps);
    let over = tokens_over(&mut log, careless.rate, careless.burst);
    assert!(over > 40.0, "with B in the place of B' the same steps break the bound: {over}");
}

#[test]
fn a_grant_that_was_long_on_its_way_lives_no_longer() {
    let plan = Plan::new(&limit("a", "1000/s", 100), true, 1);
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
    assert_bound(&mut log, plan.rate, plan.burst);
}
