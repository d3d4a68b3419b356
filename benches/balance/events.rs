//! What is due when: a wheel of days for the near future and a heap for the far one.
//!
//! Promises: events come in the order of their times, and equal runs give equal orders. Once it has grown to
//! what a run keeps at once, it allocates nothing.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// Nanoseconds of simulated time.
pub(crate) type Nanos = u64;

pub(crate) const MICROSECOND: Nanos = 1_000;
pub(crate) const MILLISECOND: Nanos = 1_000_000;
pub(crate) const SECOND: Nanos = 1_000_000_000;

/// Something that happens. Numbers are slots of what they belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// The next request of all clients comes into being.
    Comes,
    /// A request reaches its server.
    Reaches(u32),
    /// A server is done with a request.
    Done(u32),
    /// What a server said to a request reaches the client.
    Returns(u32),
    /// The patience of the client that has waited longest is over.
    Deadline,
    /// A question about its load reaches a server.
    Asked(u32),
    /// The answer to it reaches the client.
    Told(u32),
    /// Answers to this round of questions are waited for no longer.
    Patience(u32),
    /// A client's own timer.
    Tick(u32),
    /// The plan's next change of the world.
    Turn,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    pub(crate) at: Nanos,
    pub(crate) what: What,
}

/// By time alone, for the heap.
struct Far(Event);

impl PartialEq for Far {
    fn eq(&self, other: &Self) -> bool {
        self.0.at == other.0.at
    }
}

impl Eq for Far {}

impl PartialOrd for Far {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Far {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.at.cmp(&other.0.at)
    }
}

/// How many days the wheel has.
const DAYS: u64 = 1 << 13;

const NOTHING: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Node {
    event: Event,
    next: u32,
}

/// Events that are still to come.
pub(crate) struct Calendar {
    /// A day is `1 << shift` nanoseconds.
    shift: u32,
    day: u64,
    /// What is left of today, the earliest last.
    today: Vec<Event>,
    /// The first node of each day.
    days: Vec<u32>,
    nodes: Vec<Node>,
    free: u32,
    /// How many events the wheel holds.
    held: usize,
    /// What lies beyond the wheel.
    far: BinaryHeap<Reverse<Far>>,
}

impl Calendar {
    /// A calendar for about so many events a second.
    pub(crate) fn new(per_second: f64) -> Self {
        // A few events a day, so that neither sorting them nor empty days cost much.
        let length = (2e9 / per_second).clamp(256.0, 1e6) as u64;
        Self {
            shift: length.ilog2(),
            day: 0,
            today: Vec::new(),
            days: vec![NOTHING; DAYS as usize],
            nodes: Vec::new(),
            free: NOTHING,
            held: 0,
            far: BinaryHeap::new(),
        }
    }

    /// Notes an event that is not earlier than the last one that came.
    pub(crate) fn push(&mut self, at: Nanos, what: What) {
        let event = Event { at, what };
        let day = at >> self.shift;
        if day <= self.day {
            let place = self.today.iter().rposition(|other| other.at > at).map_or(0, |before| before + 1);
            self.today.insert(place, event);
        } else if day < self.day + DAYS {
            self.put(day, event);
        } else {
            self.far.push(Reverse(Far(event)));
        }
    }

    /// The next event.
    pub(crate) fn pop(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.today.pop() {
                return Some(event);
            }
            if self.held == 0 && self.far.is_empty() {
                return None;
            }
            self.turn();
        }
    }

    /// Begins the next day.
    fn turn(&mut self) {
        self.day += 1;
        while let Some(Reverse(Far(event))) = self.far.peek() {
            if event.at >> self.shift >= self.day + DAYS {
                break;
            }
            let Some(Reverse(Far(event))) = self.far.pop() else { break };
            self.put(event.at >> self.shift, event);
        }
        let mut node = std::mem::replace(&mut self.days[(self.day % DAYS) as usize], NOTHING);
        while node != NOTHING {
            let Node { event, next } = self.nodes[node as usize];
            self.today.push(event);
            self.nodes[node as usize].next = self.free;
            self.free = node;
            self.held -= 1;
            node = next;
        }
        self.today.sort_unstable_by_key(|event| Reverse(event.at));
    }

    fn put(&mut self, day: u64, event: Event) {
        self.held += 1;
        let first = &mut self.days[(day % DAYS) as usize];
        let node = Node { event, next: *first };
        if self.free == NOTHING {
            *first = self.nodes.len() as u32;
            self.nodes.push(node);
        } else {
            *first = self.free;
            let place = &mut self.nodes[self.free as usize];
            self.free = std::mem::replace(place, node).next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_the_order_of_their_times() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut calendar = Calendar::new(10_000.0);
        let (mut now, mut due, mut came) = (0, 0, 0);
        for _ in 0..100_000 {
            // Some today, some within the wheel, some beyond it.
            let ahead = [10 * MICROSECOND, 20 * MILLISECOND, 5 * SECOND][rng.usize(..3)];
            calendar.push(now + rng.u64(..ahead), What::Comes);
            due += 1;
            if rng.bool() {
                let event = calendar.pop().unwrap();
                assert!(event.at >= now, "{} after {now}", event.at);
                now = event.at;
                came += 1;
            }
        }
        while let Some(event) = calendar.pop() {
            assert!(event.at >= now, "{} after {now}", event.at);
            now = event.at;
            came += 1;
        }
        assert_eq!(came, due);
    }
}
