//! Any server, whatever it does. What Istio and Envoy call RANDOM.

use fastrand::Rng;

use super::members::Members;
use super::{Ask, Decision, Few, Finish, Policy, Turn};
use crate::events::Nanos;
use crate::plan::Plan;

pub(crate) struct Random {
    members: Members,
}

impl Policy for Random {
    fn new(plan: &Plan) -> Self {
        Self { members: Members::new(plan) }
    }

    fn choose(&mut self, _: &Ask, rng: &mut Rng, _: &mut Few) -> Decision {
        Decision::Send(self.members.any(rng))
    }

    fn finished(&mut self, _: Nanos, _: u16, _: u16, _: &Finish) {}

    fn turns(&mut self, _: Nanos, turn: Turn) {
        self.members.turns(turn);
    }
}
