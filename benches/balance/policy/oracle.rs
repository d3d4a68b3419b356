//! What could be reached with perfect knowledge of the present: one queue for all servers.
//!
//! A request goes to the free worker that is fastest at this moment. If none is free, it waits in one
//! queue for the first that is, on whichever server; it need not travel then, because it is everywhere.
//! Servers that stand still, fail or are dead are known. What is to come is not.

use std::collections::VecDeque;

use fastrand::Rng;

use super::{Ask, Decision, Few, Finish, Policy, Served, Ticket, Turn};
use crate::events::Nanos;
use crate::plan::Plan;
use crate::server::Health;

pub(crate) struct Oracle {
    /// Workers of each server that have nothing to do.
    free: Vec<u32>,
    speeds: Vec<f32>,
    /// Members that work.
    usable: Vec<bool>,
    /// The speed of each server that can begin at once; of others 0.
    ready: Vec<f32>,
    waiting: VecDeque<Ticket>,
    /// Somebody waits, and a worker may be free.
    stirred: bool,
}

impl Policy for Oracle {
    const KNOWS_ALL: bool = true;

    fn new(plan: &Plan) -> Self {
        let servers = plan.servers.len();
        let mut oracle = Self {
            free: plan.servers.iter().map(|server| server.workers).collect(),
            speeds: plan.servers.iter().map(|server| server.speeds.steps()[0].1 as f32).collect(),
            usable: vec![false; servers],
            ready: vec![0.0; servers],
            waiting: VecDeque::new(),
            stirred: false,
        };
        for &server in &plan.members {
            oracle.usable[usize::from(server)] = true;
            oracle.look(server);
        }
        oracle
    }

    fn choose(&mut self, ask: &Ask, _: &mut Rng, _: &mut Few) -> Decision {
        match self.fastest() {
            Some(server) => {
                self.free[usize::from(server)] -= 1;
                self.look(server);
                Decision::Send(server)
            }
            None => {
                self.waiting.push_back(ask.ticket);
                self.stirred = false;
                Decision::Wait
            }
        }
    }

    fn finished(&mut self, _: Nanos, _: u16, _: u16, _: &Finish) {}

    fn wakes(&mut self) -> Option<Ticket> {
        if !self.stirred || self.waiting.is_empty() {
            return None;
        }
        self.stirred = self.fastest().is_some();
        if self.stirred { self.waiting.pop_front() } else { None }
    }

    fn served(&mut self, _: Nanos, server: u16, _: &Served) {
        self.free[usize::from(server)] += 1;
        self.look(server);
    }

    fn turns(&mut self, _: Nanos, turn: Turn) {
        let server = match turn {
            Turn::Joins(server) | Turn::Leaves(server) => {
                self.usable[usize::from(server)] = matches!(turn, Turn::Joins(_));
                server
            }
            Turn::Speed(server, speed) => {
                self.speeds[usize::from(server)] = speed as f32;
                server
            }
            Turn::Health(server, health) => {
                self.usable[usize::from(server)] = health == Health::Works;
                server
            }
        };
        self.look(server);
    }
}

impl Oracle {
    /// What is known of a server has changed.
    fn look(&mut self, server: u16) {
        let at = usize::from(server);
        let is_ready = self.usable[at] && self.free[at] > 0;
        self.ready[at] = if is_ready { self.speeds[at] } else { 0.0 };
        self.stirred |= self.ready[at] > 0.0;
    }

    /// The server that begins at once and is fastest.
    fn fastest(&self) -> Option<u16> {
        // In lanes, so that it is as many comparisons as the machine makes at once.
        let mut lanes = [0.0f32; 16];
        let chunks = self.ready.chunks_exact(lanes.len());
        let mut best = chunks.remainder().iter().copied().fold(0.0, f32::max);
        for chunk in chunks {
            for (lane, speed) in lanes.iter_mut().zip(chunk) {
                *lane = if *speed > *lane { *speed } else { *lane };
            }
        }
        best = lanes.into_iter().fold(best, f32::max);
        let found = (best > 0.0).then(|| self.ready.iter().position(|speed| *speed == best));
        found.flatten().map(|server| server as u16)
    }
}
