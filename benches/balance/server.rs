//! A server: workers that take requests in the order in which they came.

use std::collections::VecDeque;

use crate::events::Nanos;
use crate::speed::Speeds;

/// How a server fails, if it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    Works,
    /// It answers everything at once, and with an error.
    Fails,
    /// It takes no connection.
    Dead,
}

pub(crate) struct Server<'a> {
    pub(crate) health: Health,
    /// Requests that it has, those that wait included.
    pub(crate) in_flight: u32,
    speeds: &'a Speeds,
    step: u32,
    workers: u32,
    busy: u32,
    waiting: VecDeque<u32>,
}

impl<'a> Server<'a> {
    pub(crate) fn new(workers: u32, speeds: &'a Speeds) -> Self {
        let waiting = VecDeque::new();
        Self { health: Health::Works, in_flight: 0, speeds, step: 0, workers, busy: 0, waiting }
    }

    /// Takes a request: true if a worker begins with it at once.
    pub(crate) fn take(&mut self, request: u32) -> bool {
        self.in_flight += 1;
        if self.busy < self.workers {
            self.busy += 1;
            return true;
        }
        self.waiting.push_back(request);
        false
    }

    /// When a worker that begins with so much work now is done with it.
    pub(crate) fn done(&mut self, now: Nanos, work: Nanos) -> Nanos {
        self.speeds.done(&mut self.step, now, work)
    }

    /// A worker has no request any more: the one that it takes next.
    pub(crate) fn next(&mut self) -> Option<u32> {
        let next = self.waiting.pop_front();
        if next.is_none() {
            self.busy -= 1;
        }
        next
    }

    /// One that waits, if any does, for none that will be served.
    pub(crate) fn give_up(&mut self) -> Option<u32> {
        self.waiting.pop_front()
    }
}
