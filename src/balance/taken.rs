//! A place in an endpoint's count, and what came of the request that had it.

use std::sync::Arc;

use super::load::Condition;
use super::{Crowd, Ejection, Endpoint, Now, Outcome};

/// A place of an endpoint, counted while this lives.
#[derive(Debug)]
pub struct Taken {
    /// Which.
    pub endpoint: Arc<Endpoint>,
    /// Requests that it had of this sidecar with this one.
    found: u32,
    /// It tries whether the endpoint still fails.
    tries_out: bool,
    /// It was chosen, so that what comes of it is of use to the next choice.
    pub(super) chosen: bool,
}

impl Taken {
    /// A place of an endpoint that was chosen, unless there is none any more.
    pub fn of(endpoint: &Arc<Endpoint>, now: Now) -> Option<Self> {
        let found = endpoint.load.begin()?;
        let tries_out = !endpoint.load.is_sound() && endpoint.load.try_out(now.millis());
        Some(Self { endpoint: endpoint.clone(), found, tries_out, chosen: true })
    }

    /// A place of an endpoint that was not chosen, whatever it has.
    pub(super) fn anyway(endpoint: &Arc<Endpoint>) -> Self {
        let found = endpoint.load.begin_anyway();
        Self { endpoint: endpoint.clone(), found, tries_out: false, chosen: false }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.endpoint.load.end();
        if self.tries_out {
            self.endpoint.load.tried_out();
        }
    }
}

impl Crowd {
    /// A request was answered, after so many microseconds.
    pub fn answered(&self, taken: &Taken, took_micros: f32, now: Now) {
        self.count(false);
        taken.endpoint.reached(taken.tries_out, now);
        self.learn(taken, took_micros, now);
    }

    /// A request was given up, after so many microseconds without an answer. It would have taken longer: what is
    /// shorter than usual says nothing. As many in a row as would have the endpoint ejected if they had failed
    /// have it doubted.
    pub(super) fn left(&self, taken: &Taken, took_micros: f32, ejection: &Ejection, now: Now) {
        let learned = taken.endpoint.learned();
        let usual = if learned.latency() > 0.0 { learned.latency() } else { self.usual().latency };
        if learned.alone(took_micros, taken.found) > usual {
            self.learn(taken, took_micros, now);
            taken.endpoint.left(ejection);
        }
    }

    fn learn(&self, taken: &Taken, took_micros: f32, now: Now) {
        let endpoint = &taken.endpoint;
        if endpoint.learned().is_up_to_date(now) {
            return;
        }
        endpoint.learn(took_micros, taken.found, now);
        self.learn_of(endpoint);
    }

    /// A request went wrong at one of `all` endpoints.
    pub fn failed(
        &self,
        taken: &Taken,
        outcome: Outcome,
        ejection: &Ejection,
        all: &[Arc<Endpoint>],
        now: Now,
    ) {
        self.count(true);
        let has_room = || {
            let (mut unreached, mut ejected) = (0, 1);
            for endpoint in all.iter().filter(|e| e.condition(now.millis()) == Condition::PassedOver) {
                *if endpoint.is_unreached() { &mut unreached } else { &mut ejected } += 1;
            }
            // Those that cannot be reached are no help to the others, whose share must not be theirs too.
            let reachable = all.len() - unreached;
            let is_last = unreached > 0 && ejected >= reachable;
            !is_last && ejected as f32 <= (reachable as f32 * ejection.most).max(1.0)
        };
        taken.endpoint.failed(outcome, ejection, self.errors(), now, has_room);
    }

    /// An endpoint refused a request unread, since it has as many as it takes.
    pub fn refused(&self, endpoint: &Endpoint, now: Now) {
        endpoint.load.refused(now.micros());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::time::Duration;

    const NOW: Now = Now::of_micros(1_000_000);

    fn endpoints(n: u8) -> Vec<Arc<Endpoint>> {
        (1..=n).map(|n| Endpoint::new(([127, 0, 0, n], 80).into(), None)).collect()
    }

    fn unreached(endpoint: &Endpoint) {
        endpoint.unreached(Duration::from_secs(30), NOW);
    }

    /// What an endpoint is after so many failures of one kind.
    fn after(failures: u32, outcome: Outcome, of: &Arc<Endpoint>, all: &[Arc<Endpoint>]) -> Condition {
        for _ in 0..failures {
            let taken = Taken::of(of, NOW).expect("a place");
            Crowd::default().failed(&taken, outcome, &Ejection::default(), all, NOW);
        }
        of.condition(NOW.millis())
    }

    #[test]
    fn those_that_cannot_be_reached_take_no_share_of_those_that_fail() {
        let set = endpoints(10);
        set[..3].iter().for_each(|endpoint| unreached(endpoint));
        let conditions: Vec<_> = (3..10).map(|n| after(5, Outcome::Failed, &set[n], &set)).collect();
        let (out, doubted) = (Condition::PassedOver, Condition::Doubted);
        assert_eq!(conditions, [out, out, doubted, doubted, doubted, doubted, doubted], "a third of seven");
    }

    #[test]
    fn the_last_that_can_be_reached_is_not_ejected() {
        let set = endpoints(2);
        unreached(&set[0]);
        assert_eq!(after(9, Outcome::Failed, &set[1], &set), Condition::Doubted);
        let alone = endpoints(1);
        assert_eq!(after(9, Outcome::Failed, &alone[0], &alone), Condition::PassedOver, "one always may be");
    }

    #[test]
    fn whose_connections_break_can_be_reached() {
        let set = endpoints(10);
        let out =
            |endpoint: &&Arc<Endpoint>| after(3, Outcome::Broken, endpoint, &set) == Condition::PassedOver;
        assert_eq!(set.iter().filter(out).count(), 3);
    }

    #[test]
    fn who_leaves_before_what_is_usual_blames_nobody() {
        let (set, crowd, ejection) = (endpoints(2), Crowd::default(), Ejection::default());
        let at = |n: u64| Now::of_micros(1_000_000 + n * 1000);
        let taken = Taken::of(&set[0], NOW).expect("a place");
        (0..100).for_each(|n| crowd.answered(&taken, 10_000.0, at(n)));
        let usual = set[0].learned().latency();
        let unknown = Taken::of(&set[1], NOW).expect("a place");
        for n in 100..200 {
            crowd.left(&taken, 9_000.0, &ejection, at(n));
            crowd.left(&unknown, 2_000.0, &ejection, at(n));
        }
        assert_eq!(set[0].learned().latency(), usual);
        assert_eq!(set[1].learned().latency(), 0.0);
        assert!(set.iter().all(|e| e.condition(NOW.millis()) == Condition::Sound));
        (200..203).for_each(|n| crowd.left(&taken, 20_000.0, &ejection, at(n)));
        assert!(set[0].learned().latency() > usual);
        assert_eq!(set[0].condition(at(203).millis()), Condition::Doubted);
    }
}
