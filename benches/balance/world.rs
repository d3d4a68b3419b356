//! A run: clients that choose, servers that work, and what travels between them.

use std::collections::VecDeque;

use fastrand::Rng;

use crate::ask::{Question, Round, Rounds, Told};
use crate::events::{Calendar, MICROSECOND, Nanos, SECOND, What};
use crate::measure::{Measured, Victim};
use crate::plan::Plan;
use crate::policy::{Ask, Decision, Few, Finish, Outcome, Policy, Report, Served, Ticket, Turn, tried};
use crate::requests::{Place, Request, Requests, TRIED};
use crate::scenario::exponential;
use crate::server::{Health, Server};

/// After how long a server that fails fast says so.
const FAILS_AFTER: Nanos = 200 * MICROSECOND;

pub(crate) struct World<'a, P> {
    plan: &'a Plan,
    policy: P,
    now: Nanos,
    calendar: Calendar,
    servers: Vec<Server<'a>>,
    requests: Requests,
    rounds: Rounds,
    /// What the policy decides by, and the network's whims.
    rng: Rng,
    /// What comes, which is the same for every policy.
    arrivals: Rng,
    number: u32,
    /// Requests with a deadline, the earliest first.
    deadlines: VecDeque<Ticket>,
    turns: std::vec::IntoIter<(Nanos, Turn)>,
    /// Those that count and have not ended.
    outstanding: u32,
    probes: Few,
    measured: Measured,
}

impl<'a, P: Policy> World<'a, P> {
    pub(crate) fn new(plan: &'a Plan) -> Self {
        let heard = |turn: &(Nanos, Turn)| P::KNOWS_ALL || !matches!(turn.1, Turn::Speed(..));
        let turns: Vec<_> = plan.turns.iter().copied().filter(heard).collect();
        let victim = plan.victim.map(|server| Victim::new(server, plan.clients));
        Self {
            policy: P::new(plan),
            now: 0,
            // A request is four events.
            calendar: Calendar::new(4.0 * plan.rate),
            servers: plan.servers.iter().map(|server| Server::new(server.workers, &server.speeds)).collect(),
            requests: Requests::default(),
            rounds: Rounds::default(),
            rng: Rng::with_seed(plan.seed ^ 1),
            arrivals: Rng::with_seed(plan.seed),
            number: 0,
            deadlines: VecDeque::new(),
            turns: turns.into_iter(),
            outstanding: 0,
            probes: Few::default(),
            measured: Measured::new(victim),
            plan,
        }
    }

    /// Until all that counts has ended.
    pub(crate) fn run(mut self) -> Measured {
        self.expect();
        self.calendar.push(self.turns.as_slice().first().map_or(self.plan.end, |turn| turn.0), What::Turn);
        if let Some(period) = P::TICK {
            for client in 0..self.plan.clients as u32 {
                self.calendar.push(self.rng.u64(..period), What::Tick(client));
            }
        }
        while let Some(event) = self.calendar.pop() {
            self.now = event.at;
            self.happens(event.what);
            while let Some(ticket) = self.policy.wakes() {
                if self.waits(ticket) {
                    self.choose(ticket.slot, None);
                }
            }
            if self.now >= self.plan.until && self.outstanding == 0 {
                break;
            }
        }
        let span = (self.plan.until - self.plan.from) as f64 / SECOND as f64;
        self.measured.goodput = self.measured.answers() as f64 / (self.plan.capacity * span);
        self.measured.rate = self.plan.rate;
        self.measured
    }

    fn happens(&mut self, what: What) {
        match what {
            What::Comes => self.comes(),
            What::Reaches(request) => self.reaches(request),
            What::Done(request) => self.done(request),
            What::Returns(request) => self.returns(request),
            What::Deadline => self.deadline(),
            What::Asked(question) => self.asked(question),
            What::Told(question) => self.told(question),
            What::Patience(round) => self.patience(round),
            What::Tick(client) => self.tick(client),
            What::Turn => self.turn(),
        }
    }

    fn travel(&mut self) -> Nanos {
        self.plan.delay.0 + self.rng.u64(..=self.plan.delay.1)
    }

    /// Draws when the next request comes.
    fn expect(&mut self) {
        let at = self.now + exponential(SECOND as f64 / self.plan.rate, &mut self.arrivals);
        if at < self.plan.end {
            self.calendar.push(at, What::Comes);
        }
    }

    /// A client has a request: any client, since all ask alike.
    fn comes(&mut self) {
        let client = self.arrivals.u32(..self.plan.clients as u32) as u16;
        let work = self.plan.work.draw(&mut self.arrivals);
        self.expect();
        self.number += 1;
        self.measured.came += 1;
        let measured = (self.plan.from..self.plan.until).contains(&self.now);
        if measured {
            self.measured.requests += 1;
            self.outstanding += 1;
        }
        let slot = self.requests.add(Request {
            number: self.number,
            client,
            server: 0,
            place: Place::Client,
            outcome: Outcome::Answered,
            attempts: 0,
            tried: [0; TRIED],
            runs: false,
            measured,
            work,
            came: self.now,
            sent: 0,
            reached: 0,
            met: 0,
            report: Report::default(),
        });
        if let Some(patience) = self.plan.patience {
            if self.deadlines.is_empty() {
                self.calendar.push(self.now + patience, What::Deadline);
            }
            self.deadlines.push_back(Ticket { slot, number: self.number });
        }
        self.choose(slot, None);
    }

    fn choose(&mut self, slot: u32, told: Option<&[Told]>) {
        let request = &self.requests[slot];
        let (client, came) = (request.client, request.came);
        let ask = Ask {
            now: self.now,
            client,
            ticket: Ticket { slot, number: request.number },
            work: request.work,
            deadline: self.plan.patience.map(|patience| came + patience),
            attempt: request.attempts,
            tried: tried(&request.tried, request.attempts),
            told,
        };
        self.probes.clear();
        match self.policy.choose(&ask, &mut self.rng, &mut self.probes) {
            Decision::Send(server) => self.send(slot, server),
            Decision::AskThenChoose(servers, patience) => {
                let number = self.requests[slot].number;
                let round = self.rounds.open(Ticket { slot, number }, servers.len());
                self.calendar.push(self.now + patience, What::Patience(round));
                for server in servers.iter() {
                    self.question(client, *server, Some(round));
                }
            }
            Decision::Wait => {}
            Decision::Fail => self.end(slot, Outcome::Refused),
        }
        self.send_probes(client);
    }

    fn send(&mut self, slot: u32, server: u16) {
        let travel = self.travel();
        let request = &mut self.requests[slot];
        request.place = Place::Sent;
        request.server = server;
        request.sent = self.now;
        request.attempts = request.attempts.saturating_add(1);
        request.tried.rotate_right(1);
        request.tried[0] = server;
        // Whoever knows everything sends before it can be taken.
        let leaves = if P::KNOWS_ALL { request.came } else { self.now };
        self.calendar.push(self.now.max(leaves + travel), What::Reaches(slot));
        self.measured.sends += 1;
        if let Some(victim) = &mut self.measured.victim {
            victim.sent(self.now, request.client, server);
        }
    }

    fn reaches(&mut self, slot: u32) {
        let request = &mut self.requests[slot];
        let server = &mut self.servers[usize::from(request.server)];
        request.reached = self.now;
        let deadline = self.plan.patience.map(|patience| request.came + patience);
        if server.health == Health::Dead {
            return self.answer(slot, Outcome::Unreachable);
        }
        if !self.policy.admits(self.now, request.server, deadline) {
            if P::REPORTS {
                request.report = self.policy.report(self.now, request.server, server.in_flight);
            }
            return self.answer(slot, Outcome::Refused);
        }
        request.met = server.in_flight + 1;
        if server.health == Health::Fails {
            server.in_flight += 1;
            request.runs = false;
            self.calendar.push(self.now + FAILS_AFTER, What::Done(slot));
        } else if server.take(slot) {
            self.start(slot);
        }
    }

    /// A worker begins with a request.
    fn start(&mut self, slot: u32) {
        let request = &mut self.requests[slot];
        request.runs = true;
        let done = self.servers[usize::from(request.server)].done(self.now, request.work);
        self.calendar.push(done, What::Done(slot));
        self.policy.starts(self.now, request.server);
    }

    fn done(&mut self, slot: u32) {
        let Request { server: number, runs, .. } = self.requests[slot];
        let server = &mut self.servers[usize::from(number)];
        let outcome = match server.health {
            Health::Dead => Outcome::Broken,
            _ if !runs => Outcome::Failed,
            _ => Outcome::Answered,
        };
        self.leave(slot, outcome);
        if !runs {
            return;
        }
        while let Some(next) = self.servers[usize::from(number)].next() {
            let is_late = |patience| self.now >= self.requests[next].came + patience;
            if P::CARRIES_DEADLINES && self.plan.patience.is_some_and(is_late) {
                self.leave(next, Outcome::Abandoned);
            } else {
                return self.start(next);
            }
        }
    }

    /// A server has a request no more.
    fn leave(&mut self, slot: u32, outcome: Outcome) {
        let request = &mut self.requests[slot];
        let server = &mut self.servers[usize::from(request.server)];
        server.in_flight -= 1;
        let latency = self.now - request.reached;
        let served = Served { outcome, latency, met: request.met, in_flight: server.in_flight };
        self.policy.served(self.now, request.server, &served);
        if P::REPORTS {
            request.report = self.policy.report(self.now, request.server, server.in_flight);
        }
        self.answer(slot, outcome);
    }

    /// What became of a request goes to its client, if that still waits.
    fn answer(&mut self, slot: u32, outcome: Outcome) {
        if self.requests[slot].place == Place::Abandoned {
            return self.requests.remove(slot);
        }
        self.requests[slot].outcome = outcome;
        let travel = self.travel();
        self.calendar.push(self.now + travel, What::Returns(slot));
    }

    fn returns(&mut self, slot: u32) {
        let Request { client, server, place, outcome, attempts, sent, report, .. } = self.requests[slot];
        if place == Place::Abandoned {
            return self.requests.remove(slot);
        }
        let ticket = Ticket { slot, number: self.requests[slot].number };
        let finish = Finish { ticket, outcome, latency: self.now - sent, report };
        self.policy.finished(self.now, client, server, &finish);
        if outcome == Outcome::Answered {
            return self.end(slot, outcome);
        }
        if let Some(victim) = &mut self.measured.victim
            && victim.server == server
            && outcome != Outcome::Refused
        {
            victim.failed(self.now, client);
        }
        if self.policy.tries_again(client, outcome, attempts) {
            self.requests[slot].place = Place::Client;
            self.choose(slot, None);
        } else {
            self.end(slot, outcome);
        }
    }

    /// The client's part of a request is over.
    fn end(&mut self, slot: u32, outcome: Outcome) {
        let request = &self.requests[slot];
        if request.measured {
            self.outstanding -= 1;
            match outcome {
                Outcome::Answered => self.measured.answered(self.now - request.came),
                _ => self.measured.errors += 1,
            }
        }
        if outcome == Outcome::Abandoned && request.place == Place::Sent {
            self.requests[slot].place = Place::Abandoned;
        } else {
            self.requests.remove(slot);
        }
    }

    /// The client that has waited longest gives up, if it still waits.
    fn deadline(&mut self) {
        let Some(patience) = self.plan.patience else { return };
        while let Some(&ticket) = self.deadlines.front() {
            let Ticket { slot, number } = ticket;
            if self.requests.is(slot, number) {
                let Request { client, server, place, came, sent, report, .. } = self.requests[slot];
                if came + patience > self.now {
                    self.calendar.push(came + patience, What::Deadline);
                    return;
                }
                if place == Place::Sent {
                    let finish =
                        Finish { ticket, outcome: Outcome::Abandoned, latency: self.now - sent, report };
                    self.policy.finished(self.now, client, server, &finish);
                } else {
                    self.policy.abandons(client, ticket);
                }
                self.end(slot, Outcome::Abandoned);
            }
            self.deadlines.pop_front();
        }
    }

    /// Sends the questions that the policy wants answered and does not wait for.
    fn send_probes(&mut self, client: u16) {
        let probes = self.probes;
        for server in probes.iter() {
            self.question(client, *server, None);
        }
    }

    fn question(&mut self, client: u16, server: u16, round: Option<u32>) {
        let question = self.rounds.ask(client, server, round);
        let at = self.now + self.travel();
        self.calendar.push(at, What::Asked(question));
        self.measured.probes += 1;
    }

    /// A server's side answers at once, unless it is dead.
    fn asked(&mut self, question: u32) {
        let server = self.rounds.question(question).server;
        let Server { health, in_flight, .. } = self.servers[usize::from(server)];
        let report = (health != Health::Dead).then(|| self.policy.report(self.now, server, in_flight));
        self.rounds.question(question).report = report;
        let at = self.now + self.travel();
        self.calendar.push(at, What::Told(question));
    }

    fn told(&mut self, question: u32) {
        let answered = self.rounds.close(question);
        let Question { client, server, report, .. } = answered;
        self.policy.told(self.now, client, server, report, &mut self.rng);
        if let Some(round) = answered.round
            && let Some(round) = self.rounds.note(round, (server, report))
        {
            self.decide(&round);
        }
    }

    fn patience(&mut self, round: u32) {
        if let Some(round) = self.rounds.expire(round) {
            self.decide(&round);
        }
    }

    /// Chooses by what a round of questions has told.
    fn decide(&mut self, round: &Round) {
        if self.waits(round.ticket) {
            self.choose(round.ticket.slot, Some(round.told()));
        }
    }

    /// Whether this is a request that its client still has.
    fn waits(&self, ticket: Ticket) -> bool {
        let request = &self.requests[ticket.slot];
        request.number == ticket.number && request.place == Place::Client
    }

    fn tick(&mut self, client: u32) {
        self.probes.clear();
        self.policy.tick(self.now, client as u16, &mut self.rng, &mut self.probes);
        self.send_probes(client as u16);
        if let Some(period) = P::TICK {
            self.calendar.push(self.now + period, What::Tick(client));
        }
    }

    fn turn(&mut self) {
        let Some((_, turn)) = self.turns.next() else { return };
        if let Some((at, _)) = self.turns.as_slice().first() {
            self.calendar.push(*at, What::Turn);
        }
        if let Turn::Health(server, health) = turn {
            self.servers[usize::from(server)].health = health;
            while health == Health::Dead
                && let Some(lost) = self.servers[usize::from(server)].give_up()
            {
                self.leave(lost, Outcome::Broken);
            }
        }
        if P::KNOWS_ALL || matches!(turn, Turn::Joins(_) | Turn::Leaves(_)) {
            self.policy.turns(self.now, turn);
        }
    }
}
