//! The servers that clients know: all the same, since joins and leaves are told to all at once.

use fastrand::Rng;

use super::Turn;
use crate::plan::Plan;

pub(crate) struct Members {
    servers: Vec<u16>,
}

impl Members {
    pub(crate) fn new(plan: &Plan) -> Self {
        Self { servers: plan.members.clone() }
    }

    pub(crate) fn turns(&mut self, turn: Turn) {
        match turn {
            Turn::Joins(server) => self.servers.push(server),
            Turn::Leaves(server) => self.servers.retain(|other| *other != server),
            Turn::Speed(..) | Turn::Health(..) => {}
        }
    }

    pub(crate) fn any(&self, rng: &mut Rng) -> u16 {
        self.servers[rng.usize(..self.servers.len())]
    }

    /// The n-th, counted round.
    pub(crate) fn nth(&self, n: usize) -> u16 {
        self.servers[n % self.servers.len()]
    }

    pub(crate) fn len(&self) -> usize {
        self.servers.len()
    }
}

/// A value of each client for each server.
pub(crate) struct Table<T> {
    servers: usize,
    values: Vec<T>,
}

impl<T: Copy> Table<T> {
    pub(crate) fn new(plan: &Plan, value: T) -> Self {
        let servers = plan.servers.len();
        Self { servers, values: vec![value; plan.clients * servers] }
    }

    pub(crate) fn of(&self, client: u16) -> &[T] {
        let start = usize::from(client) * self.servers;
        &self.values[start..start + self.servers]
    }

    pub(crate) fn at(&mut self, client: u16, server: u16) -> &mut T {
        &mut self.values[usize::from(client) * self.servers + usize::from(server)]
    }
}
