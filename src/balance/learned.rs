//! What a server can do, learned from how long its answers take against how many requests it has.
//!
//! A server takes some time for a request as long as each finds it with hands free, and beyond that each
//! request more adds its own time, as they wait for each other. The time of the first kind is its latency,
//! that of the second its pace, and latency over pace is its capacity: the number of requests from which on
//! they wait (Little's law at the knee).
//!
//! The capacity is a trait of the server, and learned slowly: how long answers take is kept apart for each
//! number of requests that they found, roughly, beside what is usual at the time. Its speed changes from one
//! moment to the next, as others use the same machine: every answer tells it, once it is known how much of
//! its time is due to the requests before it.
//!
//! Promises: the capacity stays within bounds; it grows beyond what has been tried only by twice, and only
//! where more requests were answered as fast as few; one slow answer moves it hardly.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::Now;
use super::load::Rough;

/// The capacity of which nothing is known, and the bounds of it.
const FIRST: f32 = 16.0;
const LEAST: f32 = 1.0;
const MOST: f32 = 65_536.0;

/// How much of the distance one answer moves the latency, and the time of its number.
const LATENCY_SHARE: f32 = 1.0 / 256.0;
const LEVEL_SHARE: f32 = 1.0 / 512.0;

/// For how long the least latency that was seen is remembered.
const BEST_LASTS: Duration = Duration::from_secs(300);

/// A server whose latency is more than so many times the least is slow at the time, or taken to be alone with
/// requests that wait: nothing is learned of it then that would make it larger.
const SLOWED: f32 = 1.05;

/// How much eight answers make a capacity grow at most.
const GROWTH: f32 = 1.0 + 1.0 / 16.0;

/// An answer that comes after none for long counts for more, up to so much: this long is remembered.
const MEMORY: Duration = Duration::from_secs(1);
const RARE_SHARE: f32 = 0.1;

/// How much one pause between answers moves what is usual of them, and the longest that counts, in seconds.
const PAUSE_SHARE: f32 = 1.0 / 16.0;
const LONGEST_PAUSE: f32 = 1.0;

/// A server that is not used may have become another meanwhile.
const FORGETS: Duration = Duration::from_millis(300);

/// Two answers in a row of one that was idle, each less than this part of what is usual, say that it is faster.
const FASTER: f32 = 0.5;

/// By so many standard errors may a latency be longer by chance.
const SIGMAS: f32 = 3.0;

/// Of answers that follow each other more closely, in microseconds, some are left out.
pub(super) const OFTEN: u64 = 100;

/// Answers from which on anything is said of a server.
const KNOWN: u64 = 32;

/// By how much the mean of one answer may err, in its parts.
const UNCERTAIN: f32 = 2.0;

/// Answers that a number's time is made of before it counts, and before it says that so many wait for each other.
const COUNTS: u32 = 8;
const CERTAIN: u32 = 256;

/// Beyond twice the capacity, so many requests are taken in any case; and so many of a server of which nothing
/// is known.
const ALWAYS: u32 = 4;
const AT_FIRST: u32 = 3;

/// Of so many answers to a server that is full, the first few are to this part of its capacity. It is full if
/// so many requests were refused meanwhile.
const TURN: u64 = 1024;
const FEWER: u64 = 64;
const FEW: f32 = 0.7;
const PRESSED: u32 = 128;

/// A number's time that is so many answers old says nothing any more: what was usual then may have been wrong.
const FORGOTTEN: u32 = 4096;

/// How much longer answers to many may take than to few while more are believed to be answered alike.
const TOLERANCE: f32 = 1.3;

/// One answer counts as no longer than so many times what is usual: there are such that wait for something
/// else.
const OUTLIER: f32 = 8.0;

/// No answer counts as longer, in microseconds.
const LONGEST: f32 = 6e8;

/// Each number up to this one has a time of its own; beyond, four share each doubling.
const EXACT: u32 = 8;
const LEVELS: usize = 8 + 4 * 13;

/// What is known of a server. Written by all workers; one of two answers at once may be lost.
#[derive(Debug)]
pub struct Learned {
    levels: [Level; LEVELS],
    answers: AtomicU64,
    /// What follows from the levels, in requests and microseconds.
    capacity: Rough,
    latency: Rough,
    /// By how much that may err by chance: the variance, in its own square.
    variance: Rough,
    /// The least latency that was seen, as far as it was not long ago; 0: not known.
    best: Rough,
    /// Whether the last answer was much faster than usual, after some time without any.
    faster: AtomicBool,
    /// Answers since the last one that counted for more, as none had come for long.
    dense: AtomicU32,
    /// Requests that were refused since [`PRESSED`] was last looked at, and whether they were many.
    refused: AtomicU32,
    pressed: AtomicBool,
    /// When the last answer was, in microseconds.
    last: AtomicU64,
    /// How long there is none, usually, in seconds.
    pause: Rough,
}

/// Answers to requests that found the server with about as many.
#[derive(Debug)]
struct Level {
    /// How long they take, in what is usual at the time.
    time: Rough,
    count: AtomicU32,
    /// Which answer of all was its last, as far as it fits.
    last: AtomicU32,
}

impl Default for Learned {
    fn default() -> Self {
        Self {
            levels: [const { Level { time: Rough::new(0.0), count: AtomicU32::new(0), last: AtomicU32::new(0) } };
                LEVELS],
            answers: AtomicU64::new(0),
            capacity: Rough::new(FIRST),
            latency: Rough::new(0.0),
            variance: Rough::new(1.0),
            best: Rough::new(0.0),
            faster: AtomicBool::new(false),
            dense: AtomicU32::new(0),
            refused: AtomicU32::new(0),
            pressed: AtomicBool::new(false),
            last: AtomicU64::new(0),
            pause: Rough::new(0.0),
        }
    }
}

impl Learned {
    /// Takes an answer that took so many microseconds, to a request that found the server with
    /// `in_flight` requests, itself included; `now` in microseconds.
    pub fn answered(&self, took_micros: f32, in_flight: u32, now: u64) {
        let last = self.last.swap(now, Relaxed);
        let took = took_micros.clamp(1.0, LONGEST);
        let took = if took.is_nan() { 1.0 } else { took };
        let answers = self.answers.load(Relaxed).saturating_add(1);
        self.answers.store(answers, Relaxed);
        if answers.is_multiple_of(TURN) {
            self.pressed.store(self.refused.swap(0, Relaxed) >= PRESSED, Relaxed);
        }
        let alone = self.alone(took, in_flight);
        let usual = match self.latency.get() {
            0.0 => alone,
            usual => usual,
        };
        // Without an answer when the request came: what was bad may be over, and is believed to be by half.
        let idle = now.saturating_sub(took as u64).saturating_sub(last);
        let was_idle = idle > FORGETS.as_micros() as u64;
        let believed = usual.midpoint(self.may_be(alone, usual, in_flight, was_idle));
        let by_half = believed < usual;
        let usual = believed;
        // Not as long as since the last answer: the longer one takes, the longer that is, and it would count for more.
        let idled = self.pause.get().max(idle as f32 / 1e6);
        self.pause.follow((now.saturating_sub(last) as f32 / 1e6).min(LONGEST_PAUSE), PAUSE_SHARE);
        let rare = (idled / MEMORY.as_secs_f32()).min(RARE_SHARE);
        let share = (1.0 / answers as f32).max(LATENCY_SHARE).max(rare);
        self.latency.set(usual + (alone.min(usual * OUTLIER) - usual) * share);
        let own = if by_half { share.max(0.5) } else { share };
        let others = 1.0 - own;
        self.variance.set(others * others * self.variance.get() + own * own);
        let latency = self.latency.get();
        let dense = if rare < RARE_SHARE { self.dense.load(Relaxed).saturating_add(1) } else { 0 };
        self.dense.store(dense, Relaxed);
        match self.best.get() {
            // The first few may all have been lucky.
            _ if answers < KNOWN => {}
            best if best > 0.0 && best < latency => {
                self.best.follow(latency, (idled / BEST_LASTS.as_secs_f32()).min(RARE_SHARE));
            }
            // So may those that come now and then.
            _ if dense < KNOWN as u32 => {}
            _ => self.best.set(latency),
        }
        let level = &self.levels[level_of(in_flight)];
        let count = level.count.load(Relaxed).saturating_add(1);
        level.count.store(count, Relaxed);
        level.last.store(answers as u32, Relaxed);
        let share = (1.0 / count as f32).max(LEVEL_SHARE);
        level.time.follow((took / usual).min(OUTLIER * level.time.get().max(1.0)), share);
        if count <= 2 * COUNTS || answers.is_multiple_of(8) {
            self.conclude();
        }
    }

    /// What one that was idle may take by now, if an answer of it says that this is less than usual: not less than
    /// it ever took, as one answer is chance; and what the answer says, if it is much less, and so was the one before.
    fn may_be(&self, alone: f32, usual: f32, in_flight: u32, was_idle: bool) -> f32 {
        let is_faster = was_idle && in_flight <= 1 && alone < usual * FASTER;
        let was_faster = self.faster.load(Relaxed);
        if is_faster != was_faster {
            self.faster.store(is_faster, Relaxed);
        }
        match self.best.get() {
            _ if is_faster && was_faster => alone,
            best if was_idle && best > 0.0 => alone.max(best).min(usual),
            _ => usual,
        }
    }

    /// How long an answer would have taken without the requests before it, as far as they had to be waited for.
    pub(super) fn alone(&self, took_micros: f32, in_flight: u32) -> f32 {
        took_micros / (in_flight as f32 / self.capacity.get()).max(1.0)
    }

    /// What follows from the levels now.
    fn conclude(&self) {
        let (mut alone, mut pace) = (f32::MAX, f32::MAX);
        // As long as none is certain, it is the highest that counts.
        let (mut highest, mut is_certain) = ((0.0, 0.0), false);
        let all = self.answers.load(Relaxed) as u32;
        for (number, level) in self.levels.iter().enumerate() {
            let count = level.count.load(Relaxed);
            let ago = all.wrapping_sub(level.last.load(Relaxed));
            if count < COUNTS || ago > FORGOTTEN {
                continue;
            }
            let n = about(number);
            // Of few answers the mean is uncertain: it may be longer.
            let time = level.time.get() * (1.0 + UNCERTAIN / (count as f32).sqrt());
            alone = alone.min(time);
            pace = pace.min(time / n);
            if count >= CERTAIN {
                (highest, is_certain) = ((n, level.time.get()), true);
            } else if !is_certain {
                highest = (n, time);
            }
        }
        if alone == f32::MAX {
            return;
        }
        let capacity = alone / pace;
        // Nothing says that more would not be answered as fast.
        let untried = if highest.1 < alone * TOLERANCE { 2.0 * highest.0 } else { 0.0 };
        let now = self.capacity.get();
        let best = self.best.get();
        let slowed = best > 0.0 && self.latency.get() > SLOWED * best;
        let most = if slowed { now } else { now * GROWTH };
        self.capacity.set(capacity.max(untried).min(most).clamp(LEAST, MOST));
    }

    /// Requests that it is given at once where what comes beyond is refused: twice its capacity, so that some
    /// always wait. A server that is flooded from the first one on is given them slowly, and one that always
    /// has as many as it may have is given few now and then: how long it takes for those cannot be told
    /// otherwise.
    pub fn most(&self) -> u32 {
        let (answers, capacity) = (self.answers.load(Relaxed), self.capacity());
        if self.pressed.load(Relaxed) && answers % TURN < FEWER {
            return ((capacity * FEW) as u32).max(AT_FIRST);
        }
        ((capacity * 2.0) as u32 + ALWAYS)
            .min(AT_FIRST.saturating_add(u32::try_from(answers / 4).unwrap_or(u32::MAX)))
    }

    /// Notes that one was refused, since it has [`most`](Self::most).
    pub fn refused(&self) {
        self.refused.fetch_add(1, Relaxed);
    }

    /// Requests from which on they wait for each other.
    pub fn capacity(&self) -> f32 {
        self.capacity.get()
    }

    /// Whether the last answer was so shortly before `now` that another says nothing more: what all workers write
    /// is written no more often than it is of use.
    pub(super) fn is_up_to_date(&self, now: Now) -> bool {
        now.micros() < self.last.load(Relaxed) + OFTEN
    }

    /// When the last answer was, in microseconds; 0: there was none.
    pub(super) fn last_answer(&self) -> u64 {
        self.last.load(Relaxed)
    }

    /// Whether so much was answered that this says something.
    pub fn is_known(&self) -> bool {
        self.answers.load(Relaxed) >= KNOWN
    }

    /// As [`latency`](Self::latency), for one who may wish to try whether it still is so: at `now`, in
    /// microseconds, it is forgotten by half for each [`FORGETS`] since the last answer.
    pub fn latency_at(&self, now: u64) -> f32 {
        let idled = Duration::from_micros(now.saturating_sub(self.last.load(Relaxed)));
        let halves = (idled.as_secs_f32() / FORGETS.as_secs_f32() - 1.0).max(0.0);
        // Not 0, which would say that nothing is known.
        (self.latency.get() * (-halves).exp2()).max(self.latency.get().min(1.0))
    }

    /// As [`latency`](Self::latency), as short as it may be but for chance: whoever looked slow by chance is tried
    /// again, and by that becomes known.
    pub(super) fn shortest_latency(&self) -> f32 {
        self.latency.get() / (1.0 + SIGMAS * self.variance.get().sqrt())
    }

    /// How long an answer takes while they do not, in microseconds; 0: nothing is known.
    pub fn latency(&self) -> f32 {
        self.latency.get()
    }
}

/// The level of a number of requests.
fn level_of(n: u32) -> usize {
    let n = n.max(1);
    if n <= EXACT {
        return n as usize - 1;
    }
    // Four levels for each doubling beyond eight.
    let doubling = n.ilog2();
    let quarter = (n >> (doubling - 2)) & 3;
    (EXACT as usize + 4 * (doubling as usize - 3) + quarter as usize).min(LEVELS - 1)
}

/// The number of requests that a level stands for.
fn about(level: usize) -> f32 {
    if level < EXACT as usize {
        return (level + 1) as f32;
    }
    let (doubling, quarter) = ((level - EXACT as usize) / 4 + 3, (level - EXACT as usize) % 4);
    (1_u64 << doubling) as f32 * (1.0 + (quarter as f32 + 0.5) / 4.0)
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;
    use std::collections::BinaryHeap;

    use super::*;

    /// Answers of a server with `hands`, each taking `micros`, while it has about `busy` requests.
    fn serve(learned: &Learned, rng: &mut fastrand::Rng, hands: f32, micros: f32, busy: u32, answers: usize) {
        for n in 0..answers {
            let now = n as u64 * 1000;
            let n = rng.u32(1..=2 * busy);
            let work = -micros * (1.0 - rng.f32()).ln();
            learned.answered(work + micros * (n as f32 / hands - 1.0).max(0.0), n, now);
        }
    }

    #[test]
    fn capacity_is_where_requests_begin_to_wait_for_each_other() {
        let mut rng = fastrand::Rng::with_seed(7);
        for hands in [4.0, 16.0, 100.0] {
            let learned = Learned::default();
            serve(&learned, &mut rng, hands, 20_000.0, hands as u32, 300_000);
            let (capacity, latency) = (learned.capacity(), learned.latency());
            // Beyond what it was taken for at first, it is sooner taken for smaller.
            let least = if hands > FIRST { 0.4 } else { 0.6 };
            assert!((least..1.7).contains(&(capacity / hands)), "{hands} hands: {capacity}");
            assert!((least..1.4).contains(&(latency / 20_000.0)), "{hands} hands: {latency}");
        }
    }

    #[test]
    fn a_server_that_is_never_full_is_not_taken_for_full() {
        let mut rng = fastrand::Rng::with_seed(7);
        let learned = Learned::default();
        serve(&learned, &mut rng, 1000.0, 5_000.0, 10, 20_000);
        assert!(learned.capacity() > 15.0, "{}", learned.capacity());
        assert!(learned.capacity() < 60.0, "it grows no further than what was tried: {}", learned.capacity());
    }

    /// A server that is asked for `demand` times what it can do, for some seconds from its first request on:
    /// the part of what it can do that it did in the last second, and how many it had on average.
    fn flood(hands: u32, demand: f64, seconds: u64) -> (f64, f64) {
        const MICROS: f64 = 20_000.0;
        let (learned, mut rng) = (Learned::default(), fastrand::Rng::with_seed(7));
        let mut random = || -(1.0 - rng.f64()).ln();
        let mut hands_free = vec![0.0_f64; hands as usize];
        let mut in_flight: BinaryHeap<Reverse<(u64, u64, u32)>> = BinaryHeap::new();
        let (mut now, mut done, mut had, mut came) = (0.0, 0, 0, 0);
        let ends = seconds as f64 * 1e6;
        while now < ends {
            now += random() * MICROS / f64::from(hands) / demand;
            while let Some(&Reverse((end, begun, found))) = in_flight.peek().filter(|r| r.0.0 as f64 <= now) {
                in_flight.pop();
                learned.answered((end - begun) as f32, found, end);
                done += u32::from(end as f64 > ends - 1e6);
            }
            if now > ends - 1e6 {
                (had, came) = (had + in_flight.len(), came + 1);
            }
            if in_flight.len() >= learned.most() as usize {
                learned.refused();
                continue;
            }
            let hand = hands_free.iter_mut().min_by(|a, b| a.total_cmp(b)).unwrap();
            *hand = hand.max(now) + random() * MICROS;
            let found = in_flight.len() as u32 + 1;
            in_flight.push(Reverse((*hand as u64, now as u64, found)));
        }
        (f64::from(done) / (f64::from(hands) * 1e6 / MICROS), had as f64 / f64::from(came))
    }

    #[test]
    fn a_server_that_is_flooded_from_its_first_request_on_does_all_that_it_can() {
        for hands in [4, 16, 64, 256] {
            for demand in [1.2, 2.0, 10.0] {
                let (done, had) = flood(hands, demand, 10);
                assert!(done > 0.85, "{hands} hands, {demand}: {done}");
                assert!(had / f64::from(hands) < 20.0, "{hands} hands, {demand}: {had}");
            }
        }
        let (done, _) = flood(256, 0.5, 5);
        assert!(done > 0.45, "one that is not flooded: {done}");
    }

    #[test]
    fn a_server_that_slows_down_is_seen_to() {
        let mut rng = fastrand::Rng::with_seed(7);
        let learned = Learned::default();
        serve(&learned, &mut rng, 8.0, 20_000.0, 8, 20_000);
        let before = learned.latency() / learned.capacity();
        serve(&learned, &mut rng, 8.0, 40_000.0, 8, 2_000);
        let after = learned.latency() / learned.capacity();
        assert!((1.5..2.7).contains(&(after / before)), "{before} to {after}");
    }

    #[test]
    fn a_server_that_has_become_faster_is_believed_though_it_is_hardly_tried() {
        let learned = Learned::default();
        (0..1000).for_each(|n| learned.answered(200_000.0, 1, 1 + n * 1000));
        let tried = |times: u64, took: f32| {
            let now = learned.last_answer();
            (1..=times).for_each(|n| learned.answered(took, 1, now + n * 1_000_000));
            learned.latency()
        };
        let once = tried(1, 20_000.0);
        assert!(once > 150_000.0, "one lucky answer is hardly any: {once}");
        let often = tried(4, 20_000.0);
        assert!(often < 50_000.0, "{often}");
    }

    #[test]
    fn chance_is_not_taken_for_a_change_where_requests_are_rare() {
        const MICROS: f32 = 20_000.0;
        let (learned, mut rng) = (Learned::default(), fastrand::Rng::with_seed(7));
        let mut random = || -(1.0 - rng.f32()).ln();
        let mut now = 0.0;
        let mut answers = |times: u32, pause: f32| {
            let mut sum = 0.0;
            for _ in 0..times {
                now += f64::from(random() * pause);
                learned.answered(random() * MICROS, 1, now as u64);
                sum += learned.latency();
            }
            sum / times as f32 / MICROS
        };
        let busy = answers(20_000, 5_000.0);
        assert!((0.9..1.1).contains(&busy), "{busy}");
        let best = learned.best.get();
        let rare = answers(5_000, 1e6);
        assert!((0.75..1.25).contains(&rare), "{rare}");
        assert!(learned.best.get() >= best, "of answers that come now and then no best is made");
    }

    #[test]
    fn a_level_stands_for_the_numbers_in_it() {
        for n in 1..100_000_u32 {
            let about = about(level_of(n));
            assert!((0.85..1.15).contains(&(about / n as f32)) || level_of(n) == LEVELS - 1, "{n}: {about}");
        }
    }

    #[test]
    fn nonsense_stays_within_bounds() {
        let learned = Learned::default();
        for took in [0.0, f32::MAX, f32::INFINITY, f32::NAN, -1.0] {
            for n in [0, 1, u32::MAX] {
                learned.answered(took, n, 1);
                assert!((LEAST..=MOST).contains(&learned.capacity()));
                assert!(learned.latency_at(1 << 40) > 0.0, "0 would say that nothing is known");
            }
        }
    }
}
