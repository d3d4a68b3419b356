//! The one of two random servers that costs less, where the cost is a moving average of its latencies,
//! which takes peaks as they come, times one more than the requests that it has of this client:
//! linkerd2-proxy's balancer, which is that of `tower`.
//!
//! linkerd2-proxy's parameters: a decay of 10 s, and 30 ms for a server that is new. As there, reading a
//! cost decays it. A server that takes no connection is no choice until it does, and is tried in the
//! background; none of those that die here come back. Failure accrual is off by default, and so are
//! retries.

use fastrand::Rng;

use super::members::{Members, Table};
use super::{Ask, Decision, Few, Finish, Outcome, Policy, Turn};
use crate::events::{MILLISECOND, Nanos, SECOND};
use crate::plan::Plan;

const DECAY: f32 = 10.0 * SECOND as f32;
const UNKNOWN: f32 = 30.0 * MILLISECOND as f32;

/// So many draws find a server that suits, unless hardly any does.
const DRAWS: usize = 64;

/// What a client knows of a server.
#[derive(Clone, Copy)]
struct Estimate {
    latency: f32,
    pending: u16,
    is_connected: bool,
    updated: Nanos,
}

impl Estimate {
    /// Takes a latency, or 0 to let time pass.
    fn update(&mut self, now: Nanos, latency: f32) {
        if latency > self.latency {
            self.latency = latency;
        } else {
            let kept = (-((now - self.updated) as f32) / DECAY).exp();
            self.latency = self.latency * kept + latency * (1.0 - kept);
        }
        self.updated = now;
    }

    fn cost(&mut self, now: Nanos) -> f32 {
        self.update(now, 0.0);
        self.latency * f32::from(self.pending + 1)
    }
}

pub(crate) struct PeakEwma {
    members: Members,
    estimates: Table<Estimate>,
    clients: u16,
}

impl Policy for PeakEwma {
    fn new(plan: &Plan) -> Self {
        let unknown = Estimate { latency: UNKNOWN, pending: 0, is_connected: true, updated: 0 };
        let estimates = Table::new(plan, unknown);
        Self { members: Members::new(plan), estimates, clients: plan.clients as u16 }
    }

    fn choose(&mut self, ask: &Ask, rng: &mut Rng, _: &mut Few) -> Decision {
        let Some(one) = self.draw(ask.client, rng, None) else { return Decision::Fail };
        let one_costs = self.estimates.at(ask.client, one).cost(ask.now);
        let server = match self.draw(ask.client, rng, Some(one)) {
            Some(other) if self.estimates.at(ask.client, other).cost(ask.now) < one_costs => other,
            _ => one,
        };
        self.estimates.at(ask.client, server).pending += 1;
        Decision::Send(server)
    }

    fn finished(&mut self, now: Nanos, client: u16, server: u16, finish: &Finish) {
        let estimate = self.estimates.at(client, server);
        estimate.pending -= 1;
        estimate.update(now, finish.latency as f32);
        if matches!(finish.outcome, Outcome::Unreachable | Outcome::Broken) {
            estimate.is_connected = false;
        }
    }

    fn turns(&mut self, now: Nanos, turn: Turn) {
        self.members.turns(turn);
        if let Turn::Joins(server) = turn {
            (0..self.clients).for_each(|client| self.estimates.at(client, server).updated = now);
        }
    }
}

impl PeakEwma {
    /// A random server that is connected, unlike another.
    fn draw(&self, client: u16, rng: &mut Rng, other: Option<u16>) -> Option<u16> {
        let estimates = self.estimates.of(client);
        let suits = |server: &u16| estimates[usize::from(*server)].is_connected && other != Some(*server);
        (0..DRAWS).map(|_| self.members.any(rng)).find(suits)
    }
}
