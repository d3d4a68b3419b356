//! Prequal: servers are asked for their load beside the requests, and the answers are used again while they
//! are fresh (Wydrowski et al., *Load is not what you should balance*, NSDI 2024).
//!
//! The paper's parameters: three questions for each request, sixteen answers kept for at most a second, one
//! removed for each request, in turn the oldest and the worst, and the use of each by
//! `max(1, (1 + d) / ((1 - m/n) r_probe - r_remove))` with d = 1. Of the answers that are cold, which is below
//! the quantile 2^-0.25 of the requests in flight that were seen lately, the one with the least latency is
//! taken; if all are hot, the one with the fewest requests in flight. Where fewer than two are left, any
//! server is. A server says how many requests it has, and the median of its latencies at about as many.
//!
//! Where the paper leaves it open: a pool holds one answer of a server, and where servers are so few that
//! the formula gives no number, an answer is used as long as it is kept. Clients that have been idle for
//! half a second ask, too. Against what fails fast and so looks idle, a client takes no answers of a server
//! that has failed it, for a second, and twice as long each time that it fails again, up to a minute.

use fastrand::Rng;

use super::members::{Members, Table};
use super::{Ask, Decision, Few, Finish, Outcome, Policy, Report, Served, Turn};
use crate::events::{MICROSECOND, MILLISECOND, Nanos, SECOND};
use crate::plan::Plan;

const PROBES: usize = 3;
const POOL: usize = 16;
const MOST_AGE: Nanos = SECOND;
const REMOVED: f64 = 1.0;
const DELTA: f64 = 1.0;
/// 2^-0.25.
const QUANTILE: f64 = 0.840_896;

/// How many of the last answers the quantile is of, and after how many it is computed again.
const SEEN: usize = 64;
const SEEN_ANEW: u32 = 8;

const IDLE: Nanos = 500 * MILLISECOND;
const FIRST_AVERSION: Nanos = SECOND;
const LONGEST_AVERSION: Nanos = 60 * SECOND;

/// So many draws find a server that has not failed lately, unless most have.
const DRAWS: usize = 8;

/// How many latencies a server keeps of those that met about as many requests, how many such steps there
/// are, and how many latencies make an estimate.
const KEPT: usize = 16;
const STEPS: usize = 64;
const ENOUGH: usize = 5;

/// An answer in the pool.
#[derive(Clone, Copy)]
struct Answer {
    at: Nanos,
    server: u16,
    uses: u16,
    in_flight: u32,
    latency_us: f32,
}

struct Client {
    pool: Vec<Answer>,
    /// Requests in flight of the last answers.
    seen: [u32; SEEN],
    answers: u32,
    /// More in flight than this is hot.
    hot: u32,
    removes_oldest: bool,
    asked: Nanos,
}

/// What a client has against a server.
#[derive(Clone, Copy, Default)]
struct Aversion {
    until: Nanos,
    length: Nanos,
}

pub(crate) struct Prequal {
    members: Members,
    clients: Vec<Client>,
    aversions: Table<Aversion>,
    servers: Vec<Latencies>,
    uses: f64,
}

impl Policy for Prequal {
    const TICK: Option<Nanos> = Some(IDLE);

    fn new(plan: &Plan) -> Self {
        let client = || Client {
            pool: Vec::with_capacity(POOL),
            seen: [0; SEEN],
            answers: 0,
            hot: u32::MAX,
            removes_oldest: true,
            asked: 0,
        };
        let gain = (1.0 - POOL as f64 / plan.members.len() as f64) * PROBES as f64 - REMOVED;
        Self {
            members: Members::new(plan),
            clients: (0..plan.clients).map(|_| client()).collect(),
            aversions: Table::new(plan, Aversion::default()),
            servers: vec![Latencies::new(); plan.servers.len()],
            uses: if gain > 0.0 { ((1.0 + DELTA) / gain).max(1.0) } else { f64::from(u16::MAX) },
        }
    }

    fn choose(&mut self, ask: &Ask, rng: &mut Rng, probes: &mut Few) -> Decision {
        let client = &mut self.clients[usize::from(ask.client)];
        client.pool.retain(|answer| answer.at + MOST_AGE > ask.now);
        let server = client.take().unwrap_or_else(|| {
            let aversions = self.aversions.of(ask.client);
            let willing = |server: &u16| aversions[usize::from(*server)].until <= ask.now;
            (0..DRAWS).map(|_| self.members.any(rng)).find(willing).unwrap_or(self.members.nth(0))
        });
        self.clients[usize::from(ask.client)].remove();
        self.ask(ask.now, ask.client, rng, probes);
        Decision::Send(server)
    }

    fn finished(&mut self, now: Nanos, client: u16, server: u16, finish: &Finish) {
        let aversion = self.aversions.at(client, server);
        match finish.outcome {
            Outcome::Answered => aversion.length = 0,
            Outcome::Failed | Outcome::Unreachable | Outcome::Broken if aversion.until <= now => {
                aversion.length = (2 * aversion.length).clamp(FIRST_AVERSION, LONGEST_AVERSION);
                aversion.until = now + aversion.length;
                self.clients[usize::from(client)].pool.retain(|answer| answer.server != server);
            }
            _ => {}
        }
    }

    fn told(&mut self, now: Nanos, client: u16, server: u16, report: Option<Report>, rng: &mut Rng) {
        let averse = self.aversions.at(client, server).until > now;
        let Some(report) = report.filter(|_| !averse) else { return };
        let uses = self.uses as u16 + u16::from(rng.f64() < self.uses.fract());
        let answer =
            Answer { at: now, server, uses, in_flight: report.in_flight, latency_us: report.latency_us };
        self.clients[usize::from(client)].take_note(answer);
    }

    fn tick(&mut self, now: Nanos, client: u16, rng: &mut Rng, probes: &mut Few) {
        if self.clients[usize::from(client)].asked + IDLE <= now {
            self.ask(now, client, rng, probes);
        }
    }

    fn served(&mut self, _: Nanos, server: u16, served: &Served) {
        if served.outcome == Outcome::Answered {
            let latency = (served.latency / MICROSECOND) as u32;
            self.servers[usize::from(server)].note(served.met, latency);
        }
    }

    fn report(&mut self, _: Nanos, server: u16, in_flight: u32) -> Report {
        let latency_us = self.servers[usize::from(server)].at(in_flight + 1);
        Report { in_flight, capacity: 0.0, latency_us }
    }

    fn turns(&mut self, _: Nanos, turn: Turn) {
        self.members.turns(turn);
        if let Turn::Leaves(server) = turn {
            self.clients.iter_mut().for_each(|client| client.pool.retain(|answer| answer.server != server));
        }
    }
}

impl Prequal {
    fn ask(&mut self, now: Nanos, client: u16, rng: &mut Rng, probes: &mut Few) {
        self.clients[usize::from(client)].asked = now;
        while probes.len() < PROBES.min(self.members.len()) {
            let server = self.members.any(rng);
            if !probes.contains(&server) {
                probes.push(server);
            }
        }
    }
}

impl Client {
    /// The server to be used by the answers in the pool, if they are enough.
    fn take(&mut self) -> Option<u16> {
        if self.pool.len() < 2 {
            return None;
        }
        let hot = self.hot;
        let rank = |answer: &Answer| match answer.in_flight > hot {
            false => (0, answer.latency_us),
            true => (1, answer.in_flight as f32),
        };
        let order = |one: &(usize, &Answer), other: &(usize, &Answer)| {
            let (one, other) = (rank(one.1), rank(other.1));
            one.0.cmp(&other.0).then(one.1.total_cmp(&other.1))
        };
        let (place, _) = self.pool.iter().enumerate().min_by(order)?;
        let answer = &mut self.pool[place];
        let server = answer.server;
        // The request that goes there now is one more than the server has said.
        answer.in_flight += 1;
        answer.uses -= 1;
        if answer.uses == 0 {
            self.pool.swap_remove(place);
        }
        Some(server)
    }

    /// Removes an answer, for the request that is sent: in turn the oldest and the worst.
    fn remove(&mut self) {
        let answers = self.pool.iter().enumerate();
        let found = if self.removes_oldest {
            answers.min_by_key(|(_, answer)| answer.at)
        } else {
            // Of the hot the one with the most in flight, else the slowest.
            let rank = |answer: &Answer| match answer.in_flight > self.hot {
                true => (1, answer.in_flight as f32),
                false => (0, answer.latency_us),
            };
            answers.max_by(|one, other| {
                let (one, other) = (rank(one.1), rank(other.1));
                one.0.cmp(&other.0).then(one.1.total_cmp(&other.1))
            })
        };
        if let Some((place, _)) = found {
            self.pool.swap_remove(place);
        }
        self.removes_oldest = !self.removes_oldest;
    }

    fn take_note(&mut self, answer: Answer) {
        self.seen[self.answers as usize % SEEN] = answer.in_flight;
        self.answers += 1;
        if self.answers.is_multiple_of(SEEN_ANEW) {
            let known = SEEN.min(self.answers as usize);
            let mut seen = self.seen;
            self.hot = *seen[..known].select_nth_unstable((QUANTILE * known as f64) as usize).1;
        }
        self.pool.retain(|other| other.server != answer.server);
        if self.pool.len() == POOL
            && let Some((oldest, _)) = self.pool.iter().enumerate().min_by_key(|(_, answer)| answer.at)
        {
            self.pool.swap_remove(oldest);
        }
        self.pool.push(answer);
    }
}

/// What a server's side knows of its latencies: the last of those that met about as many requests, by how
/// many they met.
#[derive(Clone)]
struct Latencies {
    /// In microseconds.
    last: [[u32; KEPT]; STEPS],
    noted: [u32; STEPS],
    /// What each step's estimate is, until it is to be computed again.
    estimates: [Option<f32>; STEPS],
}

impl Latencies {
    fn new() -> Self {
        Self { last: [[0; KEPT]; STEPS], noted: [0; STEPS], estimates: [None; STEPS] }
    }

    fn note(&mut self, met: u32, latency_us: u32) {
        let step = step(met);
        self.last[step][self.noted[step] as usize % KEPT] = latency_us;
        self.noted[step] += 1;
        self.estimates = [None; STEPS];
    }

    /// The median latency of those that met so many, or nearly so many where too few did, in
    /// microseconds; 0 where nothing is known.
    fn at(&mut self, met: u32) -> f32 {
        let step = step(met);
        if let Some(estimate) = self.estimates[step] {
            return estimate;
        }
        let mut found = [0; 3 * KEPT];
        let mut count = 0;
        for away in 0..STEPS {
            for near in [step.checked_sub(away), Some(step + away).filter(|near| *near < STEPS && away > 0)] {
                let Some(near) = near else { continue };
                let known = KEPT.min(self.noted[near] as usize);
                found[count..count + known].copy_from_slice(&self.last[near][..known]);
                count += known;
            }
            if count >= ENOUGH {
                break;
            }
        }
        let found = &mut found[..count];
        let estimate = if count == 0 { 0.0 } else { *found.select_nth_unstable(count / 2).1 as f32 };
        self.estimates[step] = Some(estimate);
        estimate
    }
}

/// Numbers of requests that are about the same: each for itself at first, then within an eighth.
fn step(met: u32) -> usize {
    let doubled = (met / 16).checked_ilog2().map_or(0, |doubled| doubled + 1);
    let step = if doubled == 0 { met } else { 8 + 8 * doubled + ((met >> doubled) - 8) };
    (step as usize).min(STEPS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(answers: &[(u16, u32, f32)]) -> Client {
        let mut client =
            Client { pool: Vec::new(), seen: [0; SEEN], answers: 0, hot: 5, removes_oldest: true, asked: 0 };
        for (at, &(server, in_flight, latency_us)) in answers.iter().enumerate() {
            client.pool.push(Answer { at: at as Nanos, server, uses: 9, in_flight, latency_us });
        }
        client
    }

    #[test]
    fn the_fastest_of_the_cold_is_used_and_the_emptiest_of_the_hot() {
        let mut cold = client(&[(1, 9, 1.0), (2, 4, 50.0), (3, 5, 20.0)]);
        assert_eq!(cold.take(), Some(3));
        assert_eq!(cold.take(), Some(2), "the use of 3 has made it hot");
        let mut hot = client(&[(1, 9, 1.0), (2, 7, 50.0)]);
        assert_eq!(hot.take(), Some(2));
        assert_eq!(client(&[(1, 0, 1.0)]).take(), None);
    }

    #[test]
    fn the_oldest_and_the_worst_are_removed_in_turn() {
        let mut client = client(&[(1, 1, 1.0), (2, 1, 50.0), (3, 9, 20.0), (4, 1, 90.0)]);
        let mut left = || {
            client.remove();
            let mut left: Vec<_> = client.pool.iter().map(|answer| answer.server).collect();
            left.sort_unstable();
            left
        };
        assert_eq!(left(), [2, 3, 4]);
        assert_eq!(left(), [2, 4]);
        assert_eq!(left(), [4]);
    }

    #[test]
    fn a_latency_is_estimated_by_those_that_met_as_many() {
        let mut latencies = Latencies::new();
        assert_eq!(latencies.at(0), 0.0);
        for latency in [10, 30, 20, 40, 50] {
            latencies.note(1, latency);
            latencies.note(9, 10 * latency);
        }
        assert_eq!(latencies.at(1), 30.0);
        assert_eq!(latencies.at(9), 300.0);
        assert_eq!(latencies.at(100), 300.0);
    }

    #[test]
    fn steps_follow_each_other() {
        let steps: Vec<_> = (0..600).map(step).collect();
        assert!(steps.windows(2).all(|two| two[1] == two[0] || two[1] == two[0] + 1), "{steps:?}");
        assert_eq!((steps[15], step(16), step(17), step(18), step(u32::MAX)), (15, 16, 16, 17, STEPS - 1));
    }
}
