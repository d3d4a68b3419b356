//! The server with the fewest requests of this client, of all of them, in turns where several have the
//! same: HAProxy's `balance leastconn`, in a proxy of each client's own.
//!
//! HAProxy's defaults for failures: no health checks, and its retries of a failed connect go to the same
//! server (`option redispatch` is off), so that none is simulated.

use fastrand::Rng;

use super::members::{Members, Table};
use super::{Ask, Decision, Few, Finish, Policy, Turn};
use crate::events::Nanos;
use crate::plan::Plan;

pub(crate) struct LeastConnections {
    members: Members,
    in_flight: Table<u16>,
    /// Where each client goes on looking: behind the server that it chose last.
    next: Vec<u32>,
}

impl Policy for LeastConnections {
    fn new(plan: &Plan) -> Self {
        let mut rng = Rng::with_seed(plan.seed);
        let next = (0..plan.clients).map(|_| rng.u32(..plan.servers.len() as u32)).collect();
        Self { members: Members::new(plan), in_flight: Table::new(plan, 0), next }
    }

    fn choose(&mut self, ask: &Ask, _: &mut Rng, _: &mut Few) -> Decision {
        let in_flight = self.in_flight.of(ask.client);
        let next = &mut self.next[usize::from(ask.client)];
        let mut best = (u16::MAX, 0, 0);
        for (skipped, server) in self.members.from(*next as usize).enumerate() {
            let load = in_flight[usize::from(server)];
            if load < best.0 {
                best = (load, server, skipped as u32);
            }
            if load == 0 {
                break;
            }
        }
        let (_, server, skipped) = best;
        *next = (*next + skipped + 1) % self.members.len() as u32;
        *self.in_flight.at(ask.client, server) += 1;
        Decision::Send(server)
    }

    fn finished(&mut self, _: Nanos, client: u16, server: u16, _: &Finish) {
        *self.in_flight.at(client, server) -= 1;
    }

    fn turns(&mut self, _: Nanos, turn: Turn) {
        self.members.turns(turn);
    }
}
