//! One application's work: a few workers, and one queue in front of them. It knows nothing of
//! connections, and no clock but what it is told.

use std::collections::VecDeque;

use crate::timer::Nanos;

/// Workers that each do one thing at a time, and what waits for them, first come first served.
/// `T` says whose a request is.
pub(crate) struct Station<T> {
    workers: usize,
    /// Work done in a nanosecond; at 0 nothing goes on.
    speed: f64,
    waiting: VecDeque<Waiting<T>>,
    running: Vec<Running<T>>,
}

struct Waiting<T> {
    whose: T,
    came: Nanos,
    work: Nanos,
}

struct Running<T> {
    whose: T,
    /// What was left to do, and when.
    left: f64,
    since: Nanos,
}

impl<T: Copy + PartialEq> Station<T> {
    pub(crate) fn new(workers: usize) -> Self {
        Self { workers, speed: 1.0, waiting: VecDeque::new(), running: Vec::with_capacity(workers) }
    }

    /// A request: so much work, in nanoseconds at a speed of 1.
    pub(crate) fn take(&mut self, now: Nanos, whose: T, work: Nanos) {
        if self.running.len() < self.workers {
            self.running.push(Running { whose, left: work as f64, since: now });
        } else {
            self.waiting.push_back(Waiting { whose, came: now, work });
        }
    }

    /// When the next one is done, if nothing changes.
    pub(crate) fn next(&self) -> Option<Nanos> {
        self.running.iter().filter_map(|running| running.due(self.speed)).min()
    }

    /// Whose work is done by now. The worker turned to the next one when it was, not when it was
    /// noticed: how late the bench is takes nothing from what the application can do.
    pub(crate) fn done(&mut self, now: Nanos) -> Option<T> {
        let due = self.next().filter(|due| *due <= now)?;
        let index = self.running.iter().position(|running| running.due(self.speed) == Some(due))?;
        let done = self.running.swap_remove(index);
        if let Some(next) = self.waiting.pop_front() {
            let since = due.max(next.came);
            self.running.push(Running { whose: next.whose, left: next.work as f64, since });
        }
        Some(done.whose)
    }

    /// What is under way goes on at another speed.
    pub(crate) fn set_speed(&mut self, now: Nanos, speed: f64) {
        for running in &mut self.running {
            running.left -= now.saturating_sub(running.since) as f64 * self.speed;
            running.since = now;
        }
        self.speed = speed;
    }

    /// Nobody waits for this one's answer any more. Once begun, work goes on.
    pub(crate) fn forget(&mut self, whose: T) {
        self.waiting.retain(|waiting| waiting.whose != whose);
    }
}

impl<T> Running<T> {
    fn due(&self, speed: f64) -> Option<Nanos> {
        (speed > 0.0).then(|| self.since + (self.left.max(0.0) / speed) as Nanos)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything that is done by then, in order, each with when it was.
    fn all(station: &mut Station<u32>, until: Nanos) -> Vec<(u32, Nanos)> {
        let mut found = Vec::new();
        while let Some(due) = station.next().filter(|due| *due <= until) {
            found.extend(station.done(due).map(|whose| (whose, due)));
        }
        found
    }

    #[test]
    fn workers_take_turns_in_order() {
        let mut station = Station::new(2);
        (1..=4).for_each(|whose| station.take(0, whose, 100 * Nanos::from(whose)));
        assert_eq!(all(&mut station, 1000), [(1, 100), (2, 200), (3, 400), (4, 600)]);
        assert_eq!(station.next(), None);
    }

    #[test]
    fn being_noticed_late_costs_no_capacity() {
        let mut station = Station::new(1);
        station.take(0, 1, 100);
        station.take(0, 2, 100);
        // It came when the first was done, and that was not noticed yet.
        station.take(350, 3, 100);
        assert_eq!((station.done(350), station.done(350)), (Some(1), Some(2)));
        assert_eq!((station.done(449), station.done(450)), (None, Some(3)));
    }

    #[test]
    fn a_change_of_speed_is_for_what_is_left() {
        let mut station = Station::new(2);
        station.take(0, 1, 100);
        station.take(0, 2, 200);
        station.set_speed(50, 0.5);
        assert_eq!(all(&mut station, 200), [(1, 150)]);
        station.set_speed(250, 2.0);
        assert_eq!(all(&mut station, 1000), [(2, 275)]);
    }

    #[test]
    fn a_pause_is_for_as_long_as_it_lasts() {
        let mut station = Station::new(1);
        station.take(0, 1, 100);
        station.take(10, 2, 100);
        station.set_speed(40, 0.0);
        assert_eq!((station.next(), station.done(5000)), (None, None));
        station.set_speed(1040, 1.0);
        assert_eq!(all(&mut station, 5000), [(1, 1100), (2, 1200)]);
    }

    #[test]
    fn who_has_gone_is_skipped_unless_begun() {
        let mut station = Station::new(1);
        (1..=3).for_each(|whose| station.take(0, whose, 100));
        station.forget(1);
        station.forget(2);
        assert_eq!(all(&mut station, 1000), [(1, 100), (3, 200)]);
    }
}
