//! Pannier: the product's own choice, of endpoints as it keeps them, with what its sidecars announce.

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use pannier::balance::{Crowd, Ejection, Endpoint, Learned, Now, Outcome as Wrong, Question, Taken, Uneven};
use pannier::http::Announcement;

use super::members::Members;
use super::{Ask, Decision, Few, Finish, Outcome, Policy, Report, Served, Turn};
use crate::events::Nanos;
use crate::plan::Plan;

/// As by default.
const SLOW_START: Duration = Duration::from_secs(10);

/// The endpoints' clock begins here, in microseconds.
const BEGIN: u64 = 1_000_000;

pub(crate) struct Pannier {
    members: Members,
    clients: Vec<Client>,
    servers: Vec<Server>,
    /// By request.
    taken: Vec<Option<Taken>>,
    ejection: Ejection,
    /// In milliseconds of the endpoints' clock.
    uneven_until: u64,
}

struct Client {
    crowd: Crowd,
    /// Those that take requests, and all by their number.
    endpoints: Vec<Arc<Endpoint>>,
    all: Vec<Arc<Endpoint>>,
}

/// A server's own sidecar.
#[derive(Default)]
struct Server {
    learned: Learned,
    in_flight: u32,
}

fn at(now: Nanos) -> Now {
    Now::of_micros(BEGIN + now / 1000)
}

impl Client {
    fn place(&self) {
        self.endpoints.iter().enumerate().for_each(|(place, endpoint)| endpoint.takes_place(place));
    }
}

impl Policy for Pannier {
    const REPORTS: bool = true;
    const CARRIES_DEADLINES: bool = true;

    fn new(plan: &Plan) -> Self {
        // The choice draws from the thread's own generator.
        fastrand::seed(plan.seed);
        let endpoint = |n: usize| Endpoint::new(([10, 0, (n >> 8) as u8, n as u8], 80).into(), None);
        let client = |_| {
            let all: Vec<_> = (0..plan.servers.len()).map(endpoint).collect();
            let endpoints = plan.members.iter().map(|n| all[usize::from(*n)].clone()).collect();
            let client = Client { crowd: Crowd::default(), endpoints, all };
            client.place();
            client
        };
        Self {
            members: Members::new(plan),
            clients: (0..plan.clients).map(client).collect(),
            servers: plan.servers.iter().map(|_| Server::default()).collect(),
            taken: Vec::new(),
            ejection: Ejection::default(),
            uneven_until: 0,
        }
    }

    fn choose(&mut self, ask: &Ask, _: &mut Rng, _: &mut Few) -> Decision {
        let client = &self.clients[usize::from(ask.client)];
        let tried: Vec<u64> = ask.tried.iter().map(|n| client.all[usize::from(*n)].id).collect();
        let now = at(ask.now);
        let uneven = Uneven { slow_start: SLOW_START, ranks: None };
        let uneven = (now.millis() < self.uneven_until).then_some(uneven);
        let question = Question { tried: &tried, now, asked: ask.told.is_some(), uneven };
        let Ok(chosen) = client.crowd.choose(&client.endpoints, &question) else { return Decision::Fail };
        let number = |endpoint: &Endpoint| match endpoint.address.ip() {
            std::net::IpAddr::V4(ip) => u16::from_be_bytes([ip.octets()[2], ip.octets()[3]]),
            std::net::IpAddr::V6(_) => 0,
        };
        if ask.told.is_none()
            && let Some((asked, worth)) = client.crowd.to_ask(&client.endpoints, &chosen, &question)
        {
            let mut few = Few::default();
            asked.iter().for_each(|endpoint| few.push(number(endpoint)));
            return Decision::AskThenChoose(few, worth.as_nanos() as Nanos);
        }
        let server = number(chosen.endpoint);
        let taken = Taken::of(chosen.endpoint, now);
        let slot = ask.ticket.slot as usize;
        if self.taken.len() <= slot {
            self.taken.resize_with(slot + 1, || None);
        }
        self.taken[slot] = taken;
        Decision::Send(server)
    }

    fn finished(&mut self, now: Nanos, client: u16, _: u16, finish: &Finish) {
        let client = &self.clients[usize::from(client)];
        let Some(taken) = self.taken[finish.ticket.slot as usize].take() else { return };
        let now = at(now);
        if finish.report != Report::default() && finish.outcome != Outcome::Abandoned {
            client.crowd.hear(&taken.endpoint, &said(&finish.report), now);
        }
        match finish.outcome {
            Outcome::Answered => client.crowd.answered(&taken, finish.latency as f32 / 1000.0, now),
            Outcome::Failed => {
                client.crowd.failed(&taken, Wrong::Lost, &self.ejection, &client.endpoints, now)
            }
            Outcome::Broken => {
                client.crowd.failed(&taken, Wrong::Broken, &self.ejection, &client.endpoints, now)
            }
            Outcome::Unreachable => taken.endpoint.unreached(self.ejection.longest, now),
            Outcome::Refused => client.crowd.refused(&taken.endpoint, now),
            Outcome::Abandoned => {}
        }
    }

    fn tries_again(&mut self, _: u16, outcome: Outcome, again: u8) -> bool {
        matches!(outcome, Outcome::Unreachable | Outcome::Refused) && again <= 2
    }

    fn told(&mut self, now: Nanos, client: u16, server: u16, report: Option<Report>, _: &mut Rng) {
        let client = &self.clients[usize::from(client)];
        if let Some(report) = report {
            client.crowd.hear(&client.all[usize::from(server)], &said(&report), at(now));
        }
    }

    fn admits(&mut self, _: Nanos, server: u16, deadline: Option<Nanos>) -> bool {
        let server = &mut self.servers[usize::from(server)];
        let admits = deadline.is_none() || server.in_flight < server.learned.most();
        server.in_flight += u32::from(admits);
        if !admits {
            server.learned.refused();
        }
        admits
    }

    fn served(&mut self, now: Nanos, server: u16, served: &Served) {
        let server = &mut self.servers[usize::from(server)];
        server.in_flight = served.in_flight;
        if served.outcome == Outcome::Answered {
            server.learned.answered(served.latency as f32 / 1000.0, served.met, at(now).micros());
        }
    }

    fn report(&mut self, now: Nanos, server: u16, in_flight: u32) -> Report {
        let learned = &self.servers[usize::from(server)].learned;
        let latency_us =
            if in_flight == 0 { learned.latency_at(at(now).micros()) } else { learned.latency() };
        Report { in_flight, capacity: if learned.is_known() { learned.capacity() } else { 0.0 }, latency_us }
    }

    fn turns(&mut self, now: Nanos, turn: Turn) {
        self.members.turns(turn);
        for client in &mut self.clients {
            match turn {
                Turn::Joins(server) => {
                    let endpoint = client.all[usize::from(server)].clone();
                    endpoint.standing.join(at(now).millis());
                    client.endpoints.push(endpoint);
                    self.uneven_until = at(now).millis() + SLOW_START.as_millis() as u64;
                }
                Turn::Leaves(server) => {
                    let left = client.all[usize::from(server)].id;
                    client.endpoints.retain(|endpoint| endpoint.id != left);
                }
                Turn::Speed(..) | Turn::Health(..) => return,
            }
            client.place();
        }
    }
}

fn said(report: &Report) -> Announcement {
    Announcement {
        in_flight: report.in_flight,
        capacity: report.capacity.round() as u32,
        latency: report.latency_us as u32,
        most: 0,
    }
}
