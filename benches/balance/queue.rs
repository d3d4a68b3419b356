//! In which order those are served best who wait for a place: one upstream in virtual time, callers who come
//! at any moment alike and leave when their time is over, and every order meets the same of them.
//!
//! Pannier's order is the product's own code. What nobody waits for any more is not stopped, as by most
//! applications, but for one table: it keeps its place until it is done.

mod order;
mod table;

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use fastrand::Rng;

use crate::events::{MILLISECOND, Nanos, SECOND};
use crate::scenario::{Work, exponential};
use order::{How, Order};

pub(crate) use table::print;

/// How many may wait, and how long: what Pannier does by default.
const MOST: usize = 1024;
const TIME: Nanos = SECOND;

/// What is measured, of the time that is simulated.
const FROM: Nanos = 2 * SECOND;
const UNTIL: Nanos = 12 * SECOND;

/// Bursts: so long 50 % of what the places can do, and as long 200 %.
const HALF: Nanos = 500 * MILLISECOND;

/// Who asks: how long each wants to wait for his answer, at random one of these times, and whether he says so.
#[derive(Debug)]
struct Callers {
    name: &'static str,
    times: &'static [Nanos],
    say_so: bool,
}

static CALLERS: [Callers; 4] = [
    Callers { name: "patient", times: &[3600 * SECOND], say_so: false },
    Callers { name: "100 ms or 1 s, known", times: &[100 * MILLISECOND, SECOND], say_so: true },
    Callers { name: "300 ms, unknown", times: &[300 * MILLISECOND], say_so: false },
    Callers { name: "150 ms, unknown", times: &[150 * MILLISECOND], say_so: false },
];

/// In percent of what the places can do.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Load {
    Steady(u32),
    Bursts,
}

const LOADS: [Load; 7] = [
    Load::Steady(80),
    Load::Steady(95),
    Load::Steady(105),
    Load::Steady(120),
    Load::Steady(150),
    Load::Steady(200),
    Load::Bursts,
];

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Setting {
    places: usize,
    work: Work,
    /// What nobody waits for any more leaves its place at once.
    stops: bool,
}

const SETTINGS: [Setting; 5] = [
    Setting { places: 16, work: Work::Exponential, stops: false },
    Setting { places: 16, work: Work::Lognormal, stops: false },
    Setting { places: 64, work: Work::Exponential, stops: false },
    Setting { places: 64, work: Work::Lognormal, stops: false },
    Setting { places: 16, work: Work::Exponential, stops: true },
];

#[derive(Debug, Clone, Copy)]
struct Case {
    setting: Setting,
    callers: &'static Callers,
    load: Load,
}

impl Case {
    /// When the next request comes.
    fn next(&self, mut now: Nanos, rng: &mut Rng) -> Nanos {
        loop {
            let (load, until) = match self.load {
                Load::Steady(load) => (f64::from(load) / 100.0, Nanos::MAX),
                Load::Bursts => ([0.5, 2.0][(now / HALF % 2) as usize], (now / HALF + 1) * HALF),
            };
            let at = now + exponential(Work::MEAN as f64 / (self.setting.places as f64 * load), rng);
            if at < until {
                return at;
            }
            now = until;
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Comes,
    /// So long did it wait at most.
    Refused(u32),
    Done(u32),
    /// Its place has it no longer, and it was of no use.
    Late(u32),
}

#[derive(Clone, Copy)]
enum State {
    Waits,
    Served(Nanos),
    Gone,
}

struct Request {
    came: Nanos,
    work: Nanos,
    leaves: Nanos,
    state: State,
}

/// What has come of requests: of all, for those to be counted; else of the time that is measured.
#[derive(Debug, Default, Clone, PartialEq)]
struct Seen {
    /// All that came, and all that were answered, refused, late, or are there at the end.
    all: u64,
    ended: u64,
    came: u64,
    refused: u64,
    /// Time of places that what was late had.
    wasted: Nanos,
    /// How long it took, of each that was answered in time.
    latencies: Vec<Nanos>,
}

struct Run<'a> {
    case: &'a Case,
    line: Box<dyn Order>,
    requests: Vec<Request>,
    /// By time, and among those of the same time in the order in which they were noted.
    events: BinaryHeap<Reverse<(Nanos, u64, What)>>,
    noted: u64,
    served: usize,
    seen: Seen,
}

impl Run<'_> {
    fn note(&mut self, at: Nanos, what: What) {
        self.noted += 1;
        self.events.push(Reverse((at, self.noted, what)));
    }

    fn comes(&mut self, now: Nanos, rng: &mut Rng) {
        let callers = self.case.callers;
        let time = callers.times[rng.usize(..callers.times.len())];
        let n = self.requests.len() as u32;
        let work = self.case.setting.work.draw(rng);
        self.requests.push(Request { came: now, work, leaves: now + time, state: State::Waits });
        self.note(self.case.next(now, rng), What::Comes);
        self.seen.all += 1;
        self.seen.came += u64::from(now >= FROM);
        if self.served < self.case.setting.places {
            self.serve(now, n);
        } else if self.line.len() >= MOST {
            self.refuse(now, n);
        } else {
            let own = now + self.line.time(now);
            let deadline = if callers.say_so { own.min(now + time) } else { own };
            self.line.join(now, deadline, n);
            self.note(deadline.min(now + time), What::Refused(n));
        }
    }

    fn serve(&mut self, now: Nanos, n: u32) {
        self.served += 1;
        let request = &mut self.requests[n as usize];
        request.state = State::Served(now);
        let (done, leaves) = (now + request.work, request.leaves);
        match done <= leaves {
            true => self.note(done, What::Done(n)),
            false if self.case.setting.stops => self.note(leaves, What::Late(n)),
            false => self.note(done, What::Late(n)),
        }
    }

    fn refuse(&mut self, now: Nanos, n: u32) {
        self.requests[n as usize].state = State::Gone;
        self.seen.ended += 1;
        self.seen.refused += u64::from(now >= FROM);
    }

    /// A place has become free.
    fn ends(&mut self, now: Nanos, n: u32, in_time: bool) {
        let request = &mut self.requests[n as usize];
        if let State::Served(begun) = std::mem::replace(&mut request.state, State::Gone) {
            match in_time {
                _ if now < FROM => {}
                true => self.seen.latencies.push(now - request.came),
                false => self.seen.wasted += now - begun.max(FROM),
            }
        }
        self.seen.ended += 1;
        self.served -= 1;
        if let Some(next) = self.line.next(now) {
            self.serve(now, next);
        }
    }
}

fn run(case: &Case, how: How, seed: u64) -> Seen {
    let mut rng = Rng::with_seed(seed);
    let (events, seen) = (BinaryHeap::new(), Seen::default());
    let mut run = Run { case, line: how.order(), requests: Vec::new(), events, noted: 0, served: 0, seen };
    run.note(case.next(0, &mut rng), What::Comes);
    while let Some(Reverse((now, _, what))) = run.events.pop() {
        match what {
            _ if now >= UNTIL => break,
            What::Comes => run.comes(now, &mut rng),
            What::Refused(n) => {
                if let State::Waits = run.requests[n as usize].state {
                    run.line.leave(n);
                    run.refuse(now, n);
                }
            }
            What::Done(n) => run.ends(now, n, true),
            What::Late(n) => run.ends(now, n, false),
        }
    }
    run.seen.ended += (run.served + run.line.len()) as u64;
    run.seen.latencies.sort_unstable();
    run.seen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(callers: usize, load: Load) -> Case {
        Case { setting: SETTINGS[0], callers: &CALLERS[callers], load }
    }

    #[test]
    fn no_request_is_lost_and_a_seed_is_one_run() {
        for how in How::ALL {
            for callers in 0..CALLERS.len() {
                let case = case(callers, Load::Bursts);
                let seen = run(&case, how, 1);
                assert!(seen.all > 10_000, "{seen:?}");
                assert_eq!(seen.all, seen.ended, "{how:?}, {case:?}");
                assert_eq!(seen, run(&case, how, 1));
                assert_ne!(seen, run(&case, how, 2));
            }
        }
    }

    #[test]
    fn the_product_s_order_is_what_it_is_said_to_be() {
        for callers in 0..CALLERS.len() {
            let case = case(callers, Load::Steady(105));
            assert_eq!(run(&case, How::Pannier, 3), run(&case, How::Once(10), 3), "{case:?}");
        }
    }

    #[test]
    fn waiting_is_as_long_as_theory_says() {
        // M/M/16 by Erlang's C at 80 %: 0.305 wait, for a work over 16 times the share that is free.
        let seen = (0..10).map(|seed| run(&case(0, Load::Steady(80)), How::Oldest, seed).latencies);
        let all: Vec<Nanos> = seen.flatten().collect();
        let mean = all.iter().sum::<Nanos>() as f64 / all.len() as f64 / Work::MEAN as f64;
        let expected = 1.0 + 0.305 / (16.0 * 0.2);
        assert!((mean / expected - 1.0).abs() < 0.03, "{mean} instead of {expected}");
    }
}
