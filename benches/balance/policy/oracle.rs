//! What could be reached with perfect knowledge of the present: one queue for all servers.
//!
//! A request goes to the free worker that is fastest at this moment. If none is free, it waits in one
//! queue for the first that is, on whichever server; it need not travel then, because it is everywhere.
//! Where all that are free have less than a quarter of the greatest speed, it waits too if a faster one is
//! expected to be done with it sooner.
//! Servers that stand still, fail or are dead are known, and so is the work of each request. What is to come
//! is not. Where there is a deadline, the queue is no longer than half of it.

use std::collections::VecDeque;

use fastrand::Rng;

use super::{Ask, Decision, Few, Finish, Policy, Served, Ticket, Turn};
use crate::events::Nanos;
use crate::plan::Plan;
use crate::scenario::Work;
use crate::server::Health;

/// A worker of less than this share of the greatest speed may be worse than none.
const SLOW: f32 = 0.25;

/// One that waits.
struct Waiting {
    ticket: Ticket,
    work: Nanos,
}

pub(crate) struct Oracle {
    workers: Vec<f32>,
    /// Workers of each server that have nothing to do.
    free: Vec<u32>,
    speeds: Vec<f32>,
    /// Members that work.
    usable: Vec<bool>,
    /// The speed of each server that can begin at once; of others 0.
    ready: Vec<f32>,
    /// The greatest speed that a usable server has.
    best: f32,
    waiting: VecDeque<Waiting>,
    /// Somebody waits, and a worker may be free.
    stirred: bool,
    /// Who was told not to wait any longer.
    woken: Option<Ticket>,
}

impl Policy for Oracle {
    const KNOWS_ALL: bool = true;

    fn new(plan: &Plan) -> Self {
        let servers = plan.servers.len();
        let mut oracle = Self {
            workers: plan.servers.iter().map(|server| server.workers as f32).collect(),
            free: plan.servers.iter().map(|server| server.workers).collect(),
            speeds: plan.servers.iter().map(|server| server.speeds.steps()[0].1 as f32).collect(),
            usable: vec![false; servers],
            ready: vec![0.0; servers],
            best: 0.0,
            waiting: VecDeque::new(),
            stirred: false,
            woken: None,
        };
        for &server in &plan.members {
            oracle.usable[usize::from(server)] = true;
            oracle.look(server);
        }
        oracle.best = oracle.greatest();
        oracle
    }

    fn choose(&mut self, ask: &Ask, _: &mut Rng, _: &mut Few) -> Decision {
        let is_woken = self.woken.take() == Some(ask.ticket);
        let begins = |speed: f32| is_woken || self.is_sooner(ask.work, speed, self.waiting.len());
        match fastest(&self.ready).filter(|(_, speed)| begins(*speed)) {
            Some((server, _)) => {
                self.free[server] -= 1;
                self.look(server as u16);
                Decision::Send(server as u16)
            }
            None if self.is_hopeless(ask) => Decision::Fail,
            None => {
                self.waiting.push_back(Waiting { ticket: ask.ticket, work: ask.work });
                Decision::Wait
            }
        }
    }

    fn finished(&mut self, _: Nanos, _: u16, _: u16, _: &Finish) {}

    fn wakes(&mut self) -> Option<Ticket> {
        if !self.stirred {
            return None;
        }
        let found = fastest(&self.ready).and_then(|(_, speed)| {
            let mut waiting = self.waiting.iter().enumerate();
            waiting.find(|(place, one)| self.is_sooner(one.work, speed, *place))
        });
        let place = found.map(|(place, _)| place);
        self.woken = place.and_then(|place| self.waiting.remove(place)).map(|one| one.ticket);
        self.stirred = self.woken.is_some();
        self.woken
    }

    fn abandons(&mut self, _: u16, ticket: Ticket) {
        self.waiting.retain(|one| one.ticket != ticket);
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
        self.best = self.greatest();
    }
}

impl Oracle {
    /// What is known of a server has changed.
    fn look(&mut self, server: u16) {
        let at = usize::from(server);
        let is_ready = self.usable[at] && self.free[at] > 0;
        self.ready[at] = if is_ready { self.speeds[at] } else { 0.0 };
        self.stirred |= self.ready[at] > 0.0 && !self.waiting.is_empty();
    }

    fn greatest(&self) -> f32 {
        let usable = self.usable.iter().zip(&self.speeds).filter(|(usable, _)| **usable);
        usable.map(|(_, speed)| *speed).fold(0.0, f32::max)
    }

    /// Whether work is done sooner by a free worker of this speed than by a faster one that is busy, with
    /// so many waiting before it.
    fn is_sooner(&self, work: Nanos, speed: f32, before: usize) -> bool {
        if speed >= self.best * SLOW {
            return true;
        }
        let (mut rate, mut squares) = (0.0, 0.0);
        for ((&usable, &other), &workers) in self.usable.iter().zip(&self.speeds).zip(&self.workers) {
            if usable && other > speed {
                rate += workers * other;
                squares += workers * other * other;
            }
        }
        let wait = (before + 1) as f32 * Work::MEAN as f32 / rate;
        work as f32 / speed <= wait + work as f32 * rate / squares
    }

    /// Whether so many wait already that this one would probably wait in vain.
    fn is_hopeless(&self, ask: &Ask) -> bool {
        let Some(deadline) = ask.deadline else { return false };
        let usable = (0..self.usable.len()).filter(|server| self.usable[*server]);
        let rate: f32 = usable.map(|server| self.workers[server] * self.speeds[server]).sum();
        let wait = self.waiting.len() as f32 * Work::MEAN as f32 / rate;
        wait > (deadline - ask.now) as f32 / 2.0
    }
}

/// The greatest speed and where it is, unless all are 0.
fn fastest(ready: &[f32]) -> Option<(usize, f32)> {
    // In lanes, so that it is as many comparisons as the machine makes at once.
    let mut lanes = [0.0f32; 16];
    let chunks = ready.chunks_exact(lanes.len());
    let best = chunks.remainder().iter().copied().fold(0.0, f32::max);
    for chunk in chunks {
        for (lane, speed) in lanes.iter_mut().zip(chunk) {
            *lane = if *speed > *lane { *speed } else { *lane };
        }
    }
    let best = lanes.into_iter().fold(best, f32::max);
    let place = (best > 0.0).then(|| ready.iter().position(|speed| *speed == best)).flatten();
    place.map(|place| (place, best))
}
