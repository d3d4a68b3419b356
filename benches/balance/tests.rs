//! The simulation against what queueing theory knows, and against itself.

use std::collections::VecDeque;

use fastrand::Rng;

use crate::events::{MILLISECOND, Nanos, SECOND};
use crate::measure::Measured;
use crate::plan::{Case, Plan, Planned};
use crate::policy::{
    Ask, Decision, Few, Finish, Outcome, POLICIES, Policy, Report, Served, Ticket, Turn, run,
};
use crate::scenario::{SCENARIOS, Scenario, Work};
use crate::speed::Speeds;

fn plan(scenario: &str, size: (usize, usize), load: u32, seed: u64) -> Plan {
    let scenario = Scenario::named(scenario).unwrap();
    let (clients, servers) = size;
    Plan::new(&Case { scenario, clients, servers, load, work: Work::Exponential, seed })
}

/// One queue, and nothing between it and its client.
fn queue(workers: u32, load: f64, requests: f64) -> Plan {
    let mut plan = plan("alike", (1, 1), 50, 1);
    plan.servers = vec![Planned { workers, speeds: Speeds::constant(1.0) }];
    plan.delay = (0, 0);
    plan.rate = load * f64::from(workers) * SECOND as f64 / Work::MEAN as f64;
    plan.until = plan.from + (requests / plan.rate * SECOND as f64) as Nanos;
    plan.end = plan.until;
    plan
}

fn by_name(name: &str, plan: &Plan) -> Measured {
    POLICIES.iter().find(|policy| policy.0 == name).unwrap().1(plan)
}

fn is_near(value: f64, expected: f64, share: f64) {
    assert!((value / expected - 1.0).abs() < share, "{value} where {expected} was expected");
}

#[test]
fn a_worker_is_waited_for_as_long_as_theory_says() {
    // M/M/1: the time of a request is the time of its work over the share of time that is free.
    let mean = by_name("random", &queue(1, 0.7, 1e6)).mean();
    is_near(mean, 20_000.0 / 0.3, 0.02);
    // M/M/4 by Erlang's C: 0.596 of all wait, for a work over four times the share that is free.
    let mean = by_name("random", &queue(4, 0.8, 1e6)).mean();
    is_near(mean, 20_000.0 * (1.0 + 0.5964 / (4.0 * 0.2)), 0.02);
}

#[test]
fn the_distributions_of_work_have_the_same_mean() {
    for (name, work) in Work::ALL {
        let mut rng = Rng::with_seed(1);
        let sum: f64 = (0..1_000_000).map(|_| work.draw(&mut rng) as f64).sum();
        let mean = sum / 1e6;
        assert!((mean / Work::MEAN as f64 - 1.0).abs() < 0.01, "{name}: {mean}");
    }
}

#[test]
fn a_seed_is_one_run() {
    let outcome = |seed| {
        let mut measured = by_name("prequal", &plan("antagonists", (10, 10), 80, seed));
        (measured.mean(), measured.percentile(0.99), measured.sends, measured.probes)
    };
    assert_eq!(outcome(1), outcome(1));
    assert_ne!(outcome(1), outcome(2));
}

#[test]
fn every_policy_meets_the_same_requests() {
    for scenario in SCENARIOS.iter().filter(|scenario| scenario.patience.is_none()) {
        let plan = plan(scenario.name, (10, 10), 60, 3);
        let counts: Vec<_> = POLICIES.iter().map(|(_, run)| run(&plan)).map(|m| m.requests).collect();
        assert!(counts.iter().all(|count| *count == counts[0]), "{}: {counts:?}", scenario.name);
        is_near(counts[0] as f64, 110_000.0, 0.07);
    }
}

#[test]
fn nothing_chosen_at_random_is_better_than_what_perfect_knowledge_chooses() {
    for scenario in SCENARIOS {
        for load in [scenario.loads[0], scenario.loads[scenario.loads.len() - 1]] {
            let plan = plan(scenario.name, (10, 10), load, 1);
            let [mut random, mut oracle] = ["random", "oracle"].map(|name| by_name(name, &plan));
            let name = scenario.name;
            assert!(
                oracle.goodput >= 0.999 * random.goodput,
                "{name}: {} {}",
                oracle.goodput,
                random.goodput
            );
            let [random, oracle] = [&mut random, &mut oracle].map(|measured| measured.percentile(0.99));
            assert!(oracle <= random, "{name}: {oracle} {random}");
        }
    }
}

#[test]
fn a_server_that_fails_has_its_share_of_what_is_sent_at_random_and_none_of_what_knows() {
    for scenario in ["failing-fast", "dead"] {
        let plan = plan(scenario, (10, 10), 50, 1);
        let share = |name| by_name(name, &plan).victim.unwrap().shares().1;
        is_near(share("random"), 0.1, 0.05);
        assert_eq!(share("oracle"), 0.0);
        let again = by_name("round-robin", &plan).victim.unwrap().again();
        is_near(again.0, 1100.0, 0.05);
    }
}

/// All that a policy can do: a client has at most so many requests on their way and keeps others until
/// one comes back, asks two servers for each and takes the emptier one; a server refuses what would be
/// the n-th.
struct Thorough {
    on_their_way: Vec<u32>,
    waiting: Vec<VecDeque<Ticket>>,
    woken: Option<Ticket>,
    /// Of each server.
    loads: Vec<u32>,
    told: u32,
}

const MOST_SENT: u32 = 10;
const MOST_AGAIN: u8 = 20;
const MOST_SERVED: u32 = 8;

impl Policy for Thorough {
    const CARRIES_DEADLINES: bool = true;
    const REPORTS: bool = true;

    fn new(plan: &Plan) -> Self {
        Self {
            on_their_way: vec![0; plan.clients],
            waiting: vec![VecDeque::new(); plan.clients],
            woken: None,
            loads: vec![0; plan.servers.len()],
            told: 0,
        }
    }

    fn choose(&mut self, ask: &Ask, rng: &mut Rng, _: &mut Few) -> Decision {
        let client = usize::from(ask.client);
        if let Some(told) = ask.told {
            assert!(self.on_their_way[client] <= MOST_SENT);
            let emptier = told.iter().min_by_key(|told| told.1.map_or(u32::MAX, |report| report.in_flight));
            return emptier.map_or(Decision::Fail, |(server, _)| Decision::Send(*server));
        }
        if ask.attempt == 0 && self.on_their_way[client] == MOST_SENT {
            self.waiting[client].push_back(ask.ticket);
            return Decision::Wait;
        }
        self.on_their_way[client] += u32::from(ask.attempt == 0);
        let mut servers = Few::default();
        while servers.len() < 2 {
            let server = rng.u16(..self.loads.len() as u16);
            if !servers.contains(&server) {
                servers.push(server);
            }
        }
        Decision::AskThenChoose(servers, MILLISECOND)
    }

    fn finished(&mut self, _: Nanos, client: u16, _: u16, finish: &Finish) {
        assert!(finish.outcome == Outcome::Abandoned || finish.report.capacity == 4.0);
        if finish.outcome != Outcome::Refused {
            self.over(client);
        }
    }

    fn tries_again(&mut self, client: u16, outcome: Outcome, again: u8) -> bool {
        assert_eq!(outcome, Outcome::Refused);
        if again > MOST_AGAIN {
            self.over(client);
        }
        again <= MOST_AGAIN
    }

    fn told(&mut self, _: Nanos, _: u16, _: u16, _: Option<Report>, _: &mut Rng) {
        self.told += 1;
    }

    fn wakes(&mut self) -> Option<Ticket> {
        self.woken.take()
    }

    fn abandons(&mut self, client: u16, ticket: Ticket) {
        let waiting = &mut self.waiting[usize::from(client)];
        match waiting.iter().position(|other| *other == ticket) {
            Some(place) => drop(waiting.remove(place)),
            None => self.over(client),
        }
    }

    fn admits(&mut self, _: Nanos, server: u16, deadline: Option<Nanos>) -> bool {
        let load = &mut self.loads[usize::from(server)];
        let admits = *load < MOST_SERVED;
        *load += u32::from(admits);
        assert!(deadline.is_some());
        admits
    }

    fn served(&mut self, _: Nanos, server: u16, served: &Served) {
        let load = &mut self.loads[usize::from(server)];
        *load -= 1;
        assert_eq!(*load, served.in_flight);
    }

    fn report(&mut self, _: Nanos, server: u16, in_flight: u32) -> Report {
        assert_eq!(in_flight, self.loads[usize::from(server)]);
        Report { in_flight, capacity: 4.0, latency_us: 0.0 }
    }

    fn turns(&mut self, _: Nanos, _: Turn) {}
}

impl Thorough {
    /// A client has one less on its way.
    fn over(&mut self, client: u16) {
        let client = usize::from(client);
        self.on_their_way[client] -= 1;
        self.woken = self.waiting[client].pop_front();
    }
}

#[test]
fn clients_may_ask_and_wait_and_servers_may_refuse() {
    let plan = plan("overload", (10, 10), 110, 1);
    let mut thorough = run::<Thorough>(&plan);
    assert!(thorough.probes >= 2 * (thorough.requests - thorough.errors), "two for each that was sent");
    assert!(thorough.sends > 0 && thorough.percentile(1.0) <= 500_001);
    // Servers that have eight at most are always busy and never late.
    let plain = by_name("least-request", &plan);
    assert!(thorough.goodput > 0.9 && plain.goodput < 0.2, "{} {}", thorough.goodput, plain.goodput);
}
