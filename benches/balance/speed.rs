//! How fast a server is, and when: known before the run, so that every policy meets the same world.

use crate::events::Nanos;

/// The speed of one server over time: 1 does a second's work in a second, 0 stands still.
#[derive(Clone, Debug)]
pub(crate) struct Speeds {
    /// From when on, and how fast, in order; the first is from 0.
    steps: Vec<(Nanos, f64)>,
}

impl Speeds {
    pub(crate) fn constant(speed: f64) -> Self {
        Self { steps: vec![(0, speed)] }
    }

    /// Another speed from a time on that is not before the last change.
    pub(crate) fn then(&mut self, from: Nanos, speed: f64) {
        match self.steps.last_mut() {
            Some(last) if last.0 == from => last.1 = speed,
            _ => self.steps.push((from, speed)),
        }
    }

    pub(crate) fn steps(&self) -> &[(Nanos, f64)] {
        &self.steps
    }

    /// What one worker can do in a span of time, in nanoseconds of work.
    pub(crate) fn work(&self, from: Nanos, until: Nanos) -> f64 {
        let ends = self.steps.iter().skip(1).map(|step| step.0).chain([Nanos::MAX]);
        let done = self.steps.iter().zip(ends).map(|(&(begin, speed), end)| {
            let (begin, end) = (begin.max(from), end.min(until));
            end.saturating_sub(begin) as f64 * speed
        });
        done.sum()
    }

    /// When work that begins now is done. `step` is the place of the last answer, which is where the
    /// search begins: times of beginning only grow.
    pub(crate) fn done(&self, step: &mut u32, now: Nanos, work: Nanos) -> Nanos {
        let mut at = *step as usize;
        while self.steps.get(at + 1).is_some_and(|next| next.0 <= now) {
            at += 1;
        }
        *step = at as u32;
        let (mut now, mut work) = (now, work as f64);
        loop {
            let speed = self.steps[at].1;
            let Some(next) = self.steps.get(at + 1) else {
                // A server that stands still for ever is done with nothing.
                return if speed > 0.0 { now + (work / speed) as Nanos } else { Nanos::MAX >> 1 };
            };
            let possible = (next.0 - now) as f64 * speed;
            if possible >= work {
                return now + (work / speed) as Nanos;
            }
            work -= possible;
            now = next.0;
            at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_takes_as_long_as_the_speeds_that_it_meets() {
        let mut speeds = Speeds::constant(1.0);
        speeds.then(100, 0.0);
        speeds.then(150, 0.5);
        let mut step = 0;
        assert_eq!(speeds.done(&mut step, 20, 30), 50);
        assert_eq!(speeds.done(&mut step, 90, 10), 100);
        assert_eq!(speeds.done(&mut step, 90, 20), 170, "10 before the pause, 10 at half speed after it");
        assert_eq!(speeds.done(&mut step, 120, 20), 190);
        assert_eq!(speeds.work(90, 170), 20.0);
        assert_eq!(speeds.work(0, 1_000), 100.0 + 425.0);
    }
}
