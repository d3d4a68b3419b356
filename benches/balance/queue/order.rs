//! The orders that are compared. Who waits is a number that is higher the later he came.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pannier::balance::{Line, Ticket};
use tokio::time::Instant;

use super::TIME;
use crate::events::{MILLISECOND, Nanos};

/// Of controlled delay: an interval without an empty queue is overload, and the queue's time is then short.
const INTERVAL: Nanos = 100 * MILLISECOND;
const SHORT: Nanos = 5 * MILLISECOND;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum How {
    /// As the product does it.
    Pannier,
    Oldest,
    Deadline,
    Newest,
    /// By deadline, until the oldest has waited so many percent of his time: then the newest.
    Once(u64),
    /// By deadline, but behind the others who has waited half of his time.
    Fresh,
    /// The newest under overload, who may then wait for hardly any time.
    Controlled,
}

impl How {
    pub(super) const ALL: [Self; 9] = [
        Self::Oldest,
        Self::Deadline,
        Self::Newest,
        Self::Controlled,
        Self::Fresh,
        Self::Once(15),
        Self::Once(25),
        Self::Once(10),
        Self::Pannier,
    ];

    pub(super) fn name(self) -> String {
        match self {
            Self::Pannier => "**Pannier**".into(),
            Self::Oldest => "first in, first out".into(),
            Self::Deadline => "shortest deadline".into(),
            Self::Newest => "last in, first out".into(),
            Self::Once(percent) => format!("newest, once the oldest has waited {percent} %"),
            Self::Fresh => "shortest deadline of those with half their time left".into(),
            Self::Controlled => "newest under overload, and controlled delay".into(),
        }
    }

    pub(super) fn order(self) -> Box<dyn Order> {
        match self {
            Self::Pannier => {
                Box::new(Pannier { start: Instant::now(), line: Line::default(), tickets: BTreeMap::new() })
            }
            how => Box::new(Rival { how, waiting: BTreeMap::new(), by_deadline: BTreeSet::new(), since: 0 }),
        }
    }
}

pub(super) trait Order {
    fn join(&mut self, now: Nanos, deadline: Nanos, n: u32);
    fn leave(&mut self, n: u32);
    fn next(&mut self, now: Nanos) -> Option<u32>;
    fn len(&self) -> usize;

    /// How long one may wait who comes now.
    fn time(&self, _now: Nanos) -> Nanos {
        TIME
    }
}

struct Pannier {
    /// The beginning of time. What is measured does not depend on it.
    start: Instant,
    line: Line<u32>,
    tickets: BTreeMap<u32, Ticket>,
}

impl Pannier {
    fn at(&self, time: Nanos) -> Instant {
        self.start + Duration::from_nanos(time)
    }
}

impl Order for Pannier {
    fn join(&mut self, now: Nanos, deadline: Nanos, n: u32) {
        let ticket = self.line.join(self.at(now), self.at(deadline), n);
        self.tickets.insert(n, ticket);
    }

    fn leave(&mut self, n: u32) {
        if let Some(ticket) = self.tickets.remove(&n) {
            self.line.leave(ticket);
        }
    }

    fn next(&mut self, now: Nanos) -> Option<u32> {
        let next = self.line.next(self.at(now))?;
        self.tickets.remove(&next);
        Some(next)
    }

    fn len(&self) -> usize {
        self.line.len()
    }
}

struct Rival {
    how: How,
    /// When each came, and until when he waits.
    waiting: BTreeMap<u32, (Nanos, Nanos)>,
    by_deadline: BTreeSet<(Nanos, u32)>,
    /// Since when somebody waits.
    since: Nanos,
}

impl Rival {
    /// In percent of his time.
    fn waited(&self, n: u32, now: Nanos) -> u64 {
        let (came, deadline) = self.waiting[&n];
        ((now - came) * 100).div_ceil(deadline - came)
    }
}

impl Order for Rival {
    fn join(&mut self, now: Nanos, deadline: Nanos, n: u32) {
        if self.waiting.is_empty() {
            self.since = now;
        }
        self.waiting.insert(n, (now, deadline));
        self.by_deadline.insert((deadline, n));
    }

    fn leave(&mut self, n: u32) {
        if let Some((_, deadline)) = self.waiting.remove(&n) {
            self.by_deadline.remove(&(deadline, n));
        }
    }

    fn next(&mut self, now: Nanos) -> Option<u32> {
        let (oldest, newest) = (*self.waiting.first_key_value()?.0, *self.waiting.last_key_value()?.0);
        let first = self.by_deadline.first()?.1;
        let is_overload = match self.how {
            How::Newest => true,
            How::Once(percent) => self.waited(oldest, now) > percent,
            How::Controlled => now - self.since > INTERVAL,
            _ => false,
        };
        let next = match self.how {
            _ if is_overload => newest,
            How::Oldest => oldest,
            How::Fresh => {
                let is_fresh = |n: &u32| self.waited(*n, now) <= 50;
                self.by_deadline.iter().map(|one| one.1).find(is_fresh).unwrap_or(newest)
            }
            _ => first,
        };
        self.leave(next);
        Some(next)
    }

    fn len(&self) -> usize {
        self.waiting.len()
    }

    fn time(&self, now: Nanos) -> Nanos {
        match self.how {
            How::Controlled if !self.waiting.is_empty() && now - self.since > INTERVAL => SHORT,
            How::Controlled => INTERVAL,
            _ => TIME,
        }
    }
}
