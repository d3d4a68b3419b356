//! The server with the fewest requests of this client, of all of them; of several the one whose number has
//! not changed for longest: HAProxy's `balance leastconn`, in a proxy of each client's own.
//!
//! HAProxy's defaults for failures: no health checks, and its retries of a failed connect go to the same
//! server (`option redispatch` is off), so that none is simulated.

use fastrand::Rng;

use super::members::Table;
use super::{Ask, Decision, Few, Finish, Policy, Turn};
use crate::events::Nanos;
use crate::plan::Plan;

pub(crate) struct LeastConnections {
    /// Requests in flight, and below them when that changed last: in whole numbers, which are exact. Of
    /// what is no member, infinite.
    ranks: Table<f64>,
    clients: u16,
    changes: f64,
}

/// One request in flight more or less: more than all changes.
const REQUEST: f64 = 1e11;

impl Policy for LeastConnections {
    fn new(plan: &Plan) -> Self {
        let clients = plan.clients as u16;
        let mut policy = Self { ranks: Table::new(plan, f64::INFINITY), clients, changes: 0.0 };
        let mut rng = Rng::with_seed(plan.seed);
        let mut members = plan.members.clone();
        for client in 0..clients {
            rng.shuffle(&mut members);
            members.iter().for_each(|server| policy.change(client, *server, |_| 0.0));
        }
        policy
    }

    fn choose(&mut self, ask: &Ask, _: &mut Rng, _: &mut Few) -> Decision {
        let Some(server) = least(self.ranks.of(ask.client)) else { return Decision::Fail };
        self.change(ask.client, server, |rank| rank + REQUEST);
        Decision::Send(server)
    }

    fn finished(&mut self, _: Nanos, client: u16, server: u16, _: &Finish) {
        if self.ranks.at(client, server).is_finite() {
            self.change(client, server, |rank| rank - REQUEST);
        }
    }

    fn turns(&mut self, _: Nanos, turn: Turn) {
        for client in 0..self.clients {
            match turn {
                Turn::Joins(server) => self.change(client, server, |_| 0.0),
                Turn::Leaves(server) => *self.ranks.at(client, server) = f64::INFINITY,
                Turn::Speed(..) | Turn::Health(..) => {}
            }
        }
    }
}

impl LeastConnections {
    /// A server has more or fewer requests, and is the last among its equals.
    fn change(&mut self, client: u16, server: u16, to: impl Fn(f64) -> f64) {
        self.changes += 1.0;
        let rank = self.ranks.at(client, server);
        *rank = (to(*rank) / REQUEST).floor() * REQUEST + self.changes;
    }
}

/// Where the least rank is, unless all are infinite.
fn least(ranks: &[f64]) -> Option<u16> {
    // In lanes, so that it is as many comparisons as the machine makes at once.
    let mut lanes = [f64::INFINITY; 8];
    let chunks = ranks.chunks_exact(lanes.len());
    let least = chunks.remainder().iter().copied().fold(f64::INFINITY, f64::min);
    for chunk in chunks {
        for (lane, rank) in lanes.iter_mut().zip(chunk) {
            *lane = if *rank < *lane { *rank } else { *lane };
        }
    }
    let least = lanes.into_iter().fold(least, f64::min);
    let place = least.is_finite().then(|| ranks.iter().position(|rank| *rank == least)).flatten();
    place.map(|place| place as u16)
}
