//! Pannier: the server with the fewest requests of this client, of all.

use fastrand::Rng;

use super::members::{Members, Table};
use super::{Ask, Decision, Few, Finish, Outcome, Policy, Turn};
use crate::events::Nanos;
use crate::plan::Plan;

pub(crate) struct Pannier {
    members: Members,
    in_flight: Table<u16>,
}

impl Policy for Pannier {
    fn new(plan: &Plan) -> Self {
        Self { members: Members::new(plan), in_flight: Table::new(plan, 0) }
    }

    fn choose(&mut self, ask: &Ask, rng: &mut Rng, _: &mut Few) -> Decision {
        let in_flight = self.in_flight.of(ask.client);
        let untried = self.members.from(rng.usize(..self.members.len())).filter(|s| !ask.tried.contains(s));
        match untried.min_by_key(|server| in_flight[usize::from(*server)]) {
            Some(server) => {
                *self.in_flight.at(ask.client, server) += 1;
                Decision::Send(server)
            }
            None => Decision::Fail,
        }
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
