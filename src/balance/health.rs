//! Whether an endpoint serves what it is given, and how long it is passed over if it does not.
//!
//! After a failure, or a few requests in a row that were given up after unusually long, an endpoint is
//! doubted: one request at a time goes there until one is answered. After a
//! few in a row, or when far more of its answers are errors than of the others', it is ejected: it gets
//! nothing for a while, then one request that tries it out; if that fails too, nothing for four times as long.
//!
//! Promises: an endpoint that fails everything gets no more than its first few requests and, now and then,
//! one; requests that fail together count as one failure to connect; of the endpoints that can be reached no
//! more are ejected than the share that may be. One that no connection can be opened to is passed over whatever
//! the others do, since that is certain; when all are, all are tried.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use http::StatusCode;

use super::load::{Condition, DOUBTED, Load, Rough};

/// How a request went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// By an answer with a server's error, as an application makes them.
    Failed,
    /// Without an answer in time, or by one that stands for none: 502, 503, 504.
    Lost,
    /// Its connection broke, as all do when the process at their end dies, or its stream was reset. If another
    /// process takes the place of that one, that is soon.
    Broken,
}

impl Outcome {
    /// What an answer says of its endpoint, by its status and that of gRPC, if it has one: none, if nothing
    /// is wrong. A deadline of the caller's that was too short (4, DEADLINE_EXCEEDED) is no fault of it.
    pub fn of(status: StatusCode, grpc: Option<u8>) -> Option<Self> {
        const UNKNOWN: u8 = 2;
        const INTERNAL: u8 = 13;
        const UNAVAILABLE: u8 = 14;
        const DATA_LOSS: u8 = 15;
        match (status.as_u16(), grpc) {
            (502..=504, _) | (_, Some(UNAVAILABLE)) => Some(Self::Lost),
            (501, _) => None,
            (500.., _) | (_, Some(UNKNOWN | INTERNAL | DATA_LOSS)) => Some(Self::Failed),
            _ => None,
        }
    }
}

/// When endpoints are ejected.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ejection {
    /// After so many errors in a row.
    pub failed: u32,
    /// After so many in a row that were no answer, or stood for none.
    pub lost: u32,
    /// When so large a part of its answers are errors, and three times as many as of the others.
    pub part: f32,
    /// No more than this part of the endpoints that can be reached; one always.
    pub most: f32,
    /// For how long; four times as long each time that it then fails again.
    pub pause: Duration,
    /// And no longer.
    pub longest: Duration,
}

impl Default for Ejection {
    fn default() -> Self {
        Self {
            failed: 5,
            lost: 3,
            part: 0.2,
            most: 0.3,
            pause: Duration::from_secs(2),
            longest: Duration::from_secs(120),
        }
    }
}

/// How long an endpoint that could not be reached, or whose connections broke, is passed over at first.
const UNREACHED: Duration = Duration::from_millis(500);

/// Answers that a part is judged by.
const JUDGED: u32 = 50;

/// How much of the distance one answer moves a part.
pub(super) const SHARE: f32 = 1.0 / 50.0;

/// What is known of an endpoint's failures.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// Errors in a row.
    failed: AtomicU32,
    /// Those in a row that were no answer, or stood for none.
    lost: AtomicU32,
    /// Requests in a row that were given up after unusually long.
    left: AtomicU32,
    /// The part of its answers that are errors, and how many it is made of.
    part: Rough,
    answers: AtomicU32,
    /// Whether it is passed over because there was no connection, or none any more.
    gone: AtomicBool,
    /// Whether the former.
    unreached: AtomicBool,
    /// How often it has been passed over lately, and until when the last time, in milliseconds.
    pauses: AtomicU32,
    paused_until: AtomicU64,
}

impl Health {
    /// It answered; `tried_out`: a request that was sent to see whether it still fails.
    pub(super) fn answered(&self, load: &Load, tried_out: bool, now: u64) {
        self.count(0.0);
        let until = load.passed_over_until();
        let gone = until != 0 && self.gone.load(Relaxed);
        if until != 0 && !tried_out && !gone {
            // What was sent before it failed says nothing about it now.
            return;
        }
        if self.failed.load(Relaxed) != 0 {
            self.failed.store(0, Relaxed);
            self.lost.store(0, Relaxed);
        }
        if self.left.load(Relaxed) != 0 {
            self.left.store(0, Relaxed);
        }
        if until != 0 && (until <= now || gone) {
            if gone {
                self.gone.store(false, Relaxed);
                self.unreached.store(false, Relaxed);
                self.pauses.store(0, Relaxed);
            }
            load.is_well(until);
        }
    }

    /// It answered with an error, or not at all. `usual`: the part of the answers of all endpoints that
    /// are errors; `has_room`: whether one more may be ejected.
    pub(super) fn failed(
        &self,
        outcome: Outcome,
        load: &Load,
        ejection: &Ejection,
        usual: f32,
        now: u64,
        has_room: impl FnOnce() -> bool,
    ) {
        self.count(1.0);
        let failed = self.failed.fetch_add(1, Relaxed) + 1;
        let lost = match outcome {
            Outcome::Failed => 0,
            Outcome::Lost | Outcome::Broken => self.lost.fetch_add(1, Relaxed) + 1,
        };
        let is_bad = self.answers.load(Relaxed) >= JUDGED
            && self.part.get() > ejection.part
            && self.part.get() > 3.0 * usual;
        let until = load.passed_over_until();
        // Whoever tries out one that was passed over decides alone.
        let fails_again = until > DOUBTED;
        if load.condition(now) == Condition::PassedOver {
            // It was sent before.
        } else if (fails_again || failed >= ejection.failed || lost >= ejection.lost || is_bad) && has_room()
        {
            let is_gone = outcome == Outcome::Broken && !is_bad;
            self.gone.store(is_gone, Relaxed);
            self.unreached.store(false, Relaxed);
            let first = if is_gone { UNREACHED.min(ejection.pause) } else { ejection.pause };
            self.pause(load, first, ejection.longest, now);
            self.answers.store(0, Relaxed);
        } else {
            load.pass_over(0, DOUBTED);
        }
    }

    /// It could not be reached.
    pub(super) fn unreached(&self, load: &Load, longest: Duration, now: u64) {
        // Requests that fail together are one failure.
        if load.condition(now) != Condition::PassedOver {
            self.gone.store(true, Relaxed);
            self.unreached.store(true, Relaxed);
            self.pause(load, UNREACHED, longest, now);
        }
    }

    pub(super) fn is_unreached(&self) -> bool {
        self.unreached.load(Relaxed)
    }

    /// A request was given up after unusually long: no failure, but after a few in a row nobody knows whether
    /// it answers at all.
    pub(super) fn left(&self, load: &Load, ejection: &Ejection) {
        if self.left.fetch_add(1, Relaxed) + 1 >= ejection.lost {
            load.pass_over(0, DOUBTED);
        }
    }

    /// An answer of it has begun, so that it is known that it answers.
    pub(super) fn answers(&self, load: &Load) {
        if self.left.load(Relaxed) != 0 {
            self.left.store(0, Relaxed);
            if self.failed.load(Relaxed) == 0 {
                load.is_well(DOUBTED);
            }
        }
    }

    fn pause(&self, load: &Load, first: Duration, longest: Duration, now: u64) {
        let before = load.passed_over_until();
        let last = self.paused_until.load(Relaxed);
        // One that was well for long begins anew.
        let pauses = if now > last + longest.as_millis() as u64 { 0 } else { self.pauses.load(Relaxed) };
        let pause = first.saturating_mul(1 << (2 * pauses.min(8))).min(longest);
        // Spread, so that not all of a mesh come back at once.
        let pause = pause.mul_f64(0.75 + fastrand::f64() / 2.0);
        let until = now + (pause.as_millis() as u64).max(1);
        if load.pass_over(before, until) {
            self.pauses.store(pauses + 1, Relaxed);
            self.paused_until.store(until, Relaxed);
        }
    }

    fn count(&self, error: f32) {
        let answers = self.answers.load(Relaxed);
        if answers < JUDGED {
            self.answers.store(answers + 1, Relaxed);
            if answers == 0 {
                self.part.set(0.0);
            }
        }
        if error > 0.0 || self.part.get() > 0.0 {
            self.part.follow(error, SHARE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fail(health: &Health, load: &Load, outcome: Outcome, now: u64) {
        health.failed(outcome, load, &Ejection::default(), 0.0, now, || true);
    }

    #[test]
    fn after_one_failure_one_request_at_a_time_goes_there() {
        let (health, load) = (Health::default(), Load::new(None));
        fail(&health, &load, Outcome::Failed, 10);
        assert_eq!(load.condition(10), Condition::Doubted);
        health.answered(&load, true, 11);
        assert_eq!(load.condition(11), Condition::Sound);
    }

    #[test]
    fn a_few_in_a_row_eject_it_and_fewer_that_were_no_answer() {
        for (outcome, so_many) in [(Outcome::Failed, 5), (Outcome::Lost, 3)] {
            let (health, load) = (Health::default(), Load::new(None));
            for _ in 1..so_many {
                fail(&health, &load, outcome, 10);
                assert_eq!(load.condition(10), Condition::Doubted);
            }
            fail(&health, &load, outcome, 10);
            assert_eq!(load.condition(10), Condition::PassedOver);
            assert_eq!(load.condition(2510), Condition::Doubted, "about two seconds later");
            health.answered(&load, false, 100);
            assert_eq!(load.condition(100), Condition::PassedOver, "that one was sent before");
            // One that fails then has it passed over for about four times as long.
            fail(&health, &load, outcome, 2510);
            assert_eq!(load.condition(2510 + 5999), Condition::PassedOver);
            assert_eq!(load.condition(2510 + 10_000), Condition::Doubted);
            health.answered(&load, true, 2510 + 10_000);
            assert_eq!(load.condition(2510 + 10_000), Condition::Sound);
        }
    }

    #[test]
    fn one_whose_process_died_is_tried_again_soon_however_often_it_dies() {
        let (health, load) = (Health::default(), Load::new(None));
        for death in 1..=4_u64 {
            let now = death * 10_000;
            (0..12).for_each(|_| fail(&health, &load, Outcome::Broken, now));
            assert_eq!(load.condition(now + 374), Condition::PassedOver);
            assert_eq!(load.condition(now + 626), Condition::Doubted);
            // It is not back yet.
            health.unreached(&load, Ejection::default().longest, now + 626);
            assert_eq!(load.condition(now + 626 + 1499), Condition::PassedOver);
            assert_eq!(load.condition(now + 626 + 2501), Condition::Doubted);
            health.answered(&load, true, now + 626 + 2501);
            assert_eq!(load.condition(now + 626 + 2501), Condition::Sound);
        }
    }

    #[test]
    fn an_answer_is_wrong_by_its_status_or_by_that_of_grpc() {
        let of = |status, grpc| Outcome::of(StatusCode::from_u16(status).unwrap(), grpc);
        for fine in [(200, None), (200, Some(0)), (404, None), (501, None), (200, Some(4)), (200, Some(8))] {
            assert_eq!(of(fine.0, fine.1), None, "{fine:?}");
        }
        for failed in [(500, None), (599, None), (200, Some(2)), (200, Some(13)), (200, Some(15))] {
            assert_eq!(of(failed.0, failed.1), Some(Outcome::Failed), "{failed:?}");
        }
        for lost in [(502, None), (503, None), (504, None), (200, Some(14))] {
            assert_eq!(of(lost.0, lost.1), Some(Outcome::Lost), "{lost:?}");
        }
    }

    #[test]
    fn one_of_which_many_answers_are_errors_is_ejected_though_never_many_in_a_row() {
        let (health, load) = (Health::default(), Load::new(None));
        let mut ejected = false;
        for n in 0..400_u64 {
            match n % 2 {
                0 => health.answered(&load, true, n),
                _ => fail(&health, &load, Outcome::Failed, n),
            }
            ejected |= load.condition(n) == Condition::PassedOver;
        }
        assert!(ejected);
        let (health, load) = (Health::default(), Load::new(None));
        for n in 0..400_u64 {
            match n % 2 {
                0 => health.answered(&load, true, n),
                // The others are no better.
                _ => health.failed(Outcome::Failed, &load, &Ejection::default(), 0.4, n, || true),
            }
            assert_ne!(load.condition(n), Condition::PassedOver);
        }
    }

    #[test]
    fn a_few_that_are_given_up_in_a_row_have_it_doubted_and_never_ejected() {
        let (health, load, ejection) = (Health::default(), Load::new(None), Ejection::default());
        for _ in 0..10 {
            (1..ejection.lost).for_each(|_| health.left(&load, &ejection));
            assert_eq!(load.condition(10), Condition::Sound);
            health.answered(&load, false, 10);
        }
        for _ in 0..20 {
            health.left(&load, &ejection);
        }
        assert_eq!(load.condition(10), Condition::Doubted);
        health.answered(&load, true, 11);
        assert_eq!(load.condition(11), Condition::Sound);
        health.left(&load, &ejection);
        assert_eq!(load.condition(11), Condition::Sound, "it begins anew");
    }

    #[test]
    fn one_whose_answers_begin_is_not_doubted_for_those_who_leave_them() {
        let (health, load, ejection) = (Health::default(), Load::new(None), Ejection::default());
        for _ in 0..20 {
            (1..ejection.lost).for_each(|_| health.left(&load, &ejection));
            health.answers(&load);
            assert_eq!(load.condition(10), Condition::Sound);
        }
        (0..ejection.lost).for_each(|_| health.left(&load, &ejection));
        assert_eq!(load.condition(10), Condition::Doubted);
        health.answers(&load);
        assert_eq!(load.condition(10), Condition::Sound, "it does answer");
        fail(&health, &load, Outcome::Failed, 10);
        health.left(&load, &ejection);
        health.answers(&load);
        assert_eq!(load.condition(10), Condition::Doubted, "a failure is undone by a whole answer");
    }

    #[test]
    fn no_more_are_ejected_than_may_be() {
        let (health, load) = (Health::default(), Load::new(None));
        for _ in 0..20 {
            health.failed(Outcome::Lost, &load, &Ejection::default(), 0.0, 10, || false);
        }
        assert_eq!(load.condition(10), Condition::Doubted);
    }

    #[test]
    fn requests_that_fail_together_are_one_failure_to_connect() {
        let (health, load) = (Health::default(), Load::new(None));
        for _ in 0..20 {
            health.unreached(&load, Ejection::default().longest, 10);
        }
        assert_eq!(health.pauses.load(Relaxed), 1, "the next pause is the second");
        assert_eq!(load.condition(10 + 374), Condition::PassedOver);
        assert_eq!(load.condition(10 + 626), Condition::Doubted);
    }
}
