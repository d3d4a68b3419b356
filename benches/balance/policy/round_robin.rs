//! One after the other, each client from a place of its own: nginx's default, and kube-proxy's by IPVS.

use fastrand::Rng;

use super::members::Members;
use super::{Ask, Decision, Few, Finish, Policy, Turn};
use crate::events::Nanos;
use crate::plan::Plan;

pub(crate) struct RoundRobin {
    members: Members,
    next: Vec<u32>,
}

impl Policy for RoundRobin {
    fn new(plan: &Plan) -> Self {
        let mut rng = Rng::with_seed(plan.seed);
        let next = (0..plan.clients).map(|_| rng.u32(..plan.servers.len() as u32)).collect();
        Self { members: Members::new(plan), next }
    }

    fn choose(&mut self, ask: &Ask, _: &mut Rng, _: &mut Few) -> Decision {
        let next = &mut self.next[usize::from(ask.client)];
        *next = next.wrapping_add(1);
        Decision::Send(self.members.nth(*next as usize))
    }

    fn finished(&mut self, _: Nanos, _: u16, _: u16, _: &Finish) {}

    fn turns(&mut self, _: Nanos, turn: Turn) {
        self.members.turns(turn);
    }
}
