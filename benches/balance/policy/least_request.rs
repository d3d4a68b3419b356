//! The one of two random servers that has fewer requests of this client: Envoy's LEAST_REQUEST with its
//! default `choice_count` of 2 and equal weights, which is what Istio sends by.
//!
//! The two are drawn with replacement, as Envoy draws them. Istio's defaults for failures: outlier
//! detection is off, and up to two more attempts follow a failed connect, each at another host.

use fastrand::Rng;

use super::members::{Members, Table};
use super::{Ask, Decision, Few, Finish, Outcome, Policy, Turn};
use crate::events::Nanos;
use crate::plan::Plan;

/// How often a server that was tried is drawn again before it is taken all the same
/// (`host_selection_retry_max_attempts`).
const REDRAWS: usize = 5;

pub(crate) struct LeastRequest {
    members: Members,
    in_flight: Table<u16>,
}

impl Policy for LeastRequest {
    fn new(plan: &Plan) -> Self {
        Self { members: Members::new(plan), in_flight: Table::new(plan, 0) }
    }

    fn choose(&mut self, ask: &Ask, rng: &mut Rng, _: &mut Few) -> Decision {
        let mut server = self.draw(ask.client, rng);
        for _ in 0..REDRAWS {
            if !ask.tried.contains(&server) {
                break;
            }
            server = self.draw(ask.client, rng);
        }
        *self.in_flight.at(ask.client, server) += 1;
        Decision::Send(server)
    }

    fn finished(&mut self, _: Nanos, client: u16, server: u16, _: &Finish) {
        *self.in_flight.at(client, server) -= 1;
    }

    fn tries_again(&mut self, _: u16, outcome: Outcome, again: u8) -> bool {
        outcome == Outcome::Unreachable && again <= 2
    }

    fn turns(&mut self, _: Nanos, turn: Turn) {
        self.members.turns(turn);
    }
}

impl LeastRequest {
    fn draw(&self, client: u16, rng: &mut Rng) -> u16 {
        let (one, other) = (self.members.any(rng), self.members.any(rng));
        let in_flight = self.in_flight.of(client);
        if in_flight[usize::from(other)] < in_flight[usize::from(one)] { other } else { one }
    }
}
