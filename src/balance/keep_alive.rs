//! How long an endpoint's peer keeps an idle connection, and how many requests it takes on one: what
//! was configured, what it says itself (`Keep-Alive: timeout=, max=`), and what its closes have shown.
//!
//! Promises: a connection that has idled beyond [`KeepAlive::reuse`] is not used; a request that may
//! not be sent twice uses one only below [`KeepAlive::proven`], an age that this peer has shown, or was
//! said, to outlast. Both lie before the peer's own limit by a margin for the round trip, and for the
//! time that either side may take to notice.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::http::h1::Hint;

/// What is trusted of a peer that nothing is known of: less than the shortest timeout in common use,
/// 1 s.
const CAUTIOUS: Duration = Duration::from_millis(900);

/// The least time that a process may be kept from running, on either side.
const SCHEDULING: Duration = Duration::from_millis(10);

/// A connection that was closed before it had idled for so long was not closed for idling.
const AT_ONCE: Duration = Duration::from_millis(5);

/// So many of the last closes count: the earliest of them is believed.
const REMEMBERED: usize = 8;

/// As long as no exchange has shown it, a round trip is held to be no longer; and so many of them count.
const SUPPOSED_TRIP: Duration = Duration::from_millis(1);
const TRIPS: usize = 16;

/// As many connections have to outlast the earliest close before it is forgotten: it had another cause,
/// or the peer has another limit now.
const DOUBTS: u8 = 8;

/// A limit on requests that nobody has announced is believed by all requests once so many connections
/// in a row ended after the same number. Those that may not be sent twice believe the first.
const ALIKE: usize = 3;

/// Connections of a peer are known to take so many requests before twice as many are tried of them.
const FEW_REQUESTS: u32 = 16;

/// What the configuration says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Configured {
    /// How long the peer keeps an idle connection; none: it is learned.
    pub timeout: Option<Duration>,
    /// How many requests it takes on one; none: it is learned.
    pub requests: Option<u32>,
    /// How long a connection may idle at most, whatever the peer allows.
    pub most_idle: Duration,
}

/// What is known of one endpoint's peer, shared by all workers.
#[derive(Debug)]
pub struct KeepAlive {
    /// Microseconds, read for each request.
    reuse: AtomicU64,
    proven: AtomicU64,
    /// The age above which a connection that lives on is news, in microseconds.
    news: AtomicU64,
    /// Requests after which a connection is not used any more.
    most: AtomicU32,
    proven_most: AtomicU32,
    /// As `news`, of requests.
    news_requests: AtomicU32,
    hinted: AtomicU32,
    known: Mutex<Known>,
}

/// What is known, for the operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeepAliveReport {
    /// What the configuration says.
    pub configured: Option<Duration>,
    /// What the peer last said.
    pub hinted: Option<Duration>,
    /// The earliest of its last closes.
    pub closes_after: Option<Duration>,
    /// The longest that a connection was seen to idle and live.
    pub outlasted: Duration,
    /// A round trip, at most.
    pub trip: Duration,
    /// How long a connection may have idled for a request that may be sent twice.
    pub reuse: Duration,
    /// How long it may have idled for any.
    pub proven: Duration,
    /// After how many requests it is not used any more; none: there is no such number.
    pub requests: Option<u32>,
}

impl KeepAlive {
    /// Nothing is known yet.
    pub(super) fn new() -> Self {
        let new = Self {
            reuse: AtomicU64::new(0),
            proven: AtomicU64::new(0),
            news: AtomicU64::new(0),
            most: AtomicU32::new(0),
            proven_most: AtomicU32::new(0),
            news_requests: AtomicU32::new(0),
            hinted: AtomicU32::new(0),
            known: Mutex::new(Known::default()),
        };
        new.change(|_| {});
        new
    }

    /// Takes what the configuration says now.
    pub fn configure(&self, configured: Configured) {
        self.change(|known| known.configured = configured);
    }

    /// How long a connection may have idled for a request that may be sent twice.
    pub fn reuse(&self) -> Duration {
        Duration::from_micros(self.reuse.load(Ordering::Relaxed))
    }

    /// How long it may have idled for any request.
    pub fn proven(&self) -> Duration {
        Duration::from_micros(self.proven.load(Ordering::Relaxed))
    }

    /// Whether a connection that has carried so many requests may carry one that may be sent twice.
    pub fn takes_more(&self, requests: u32) -> bool {
        requests < self.most.load(Ordering::Relaxed)
    }

    /// Whether it may carry any.
    pub fn surely_takes_more(&self, requests: u32) -> bool {
        requests < self.proven_most.load(Ordering::Relaxed)
    }

    /// How long a connection may idle at most, whatever its peer allows.
    pub fn most_idle(&self) -> Duration {
        self.known().configured.most_idle
    }

    /// Whether it is configured how many requests its peer takes on a connection.
    pub fn knows_requests(&self) -> bool {
        self.known().configured.requests.is_some()
    }

    /// Whether its limit is known only from what it does.
    pub fn is_learning(&self) -> bool {
        let known = self.known();
        let said = known.configured.timeout.into_iter().chain(known.hinted).min();
        let shown = known.closes.iter().min();
        // What its closes have shown below what is said may be over, too.
        said.is_none_or(|said| shown.is_some_and(|shown| *shown < said))
    }

    /// Notes what the peer says of itself.
    pub fn hinted(&self, hint: Hint) {
        if hint.timeout != 0 && self.hinted.load(Ordering::Relaxed) != hint.timeout {
            self.change(|known| {
                known.hint(hint.timeout);
                self.hinted.store(known.hinted_now(), Ordering::Relaxed);
            });
        }
    }

    /// Notes that a connection which had carried `requests` and idled for `age` is open and silent. Costs
    /// two comparisons if that is nothing new. `doubted` says whether it has cast doubt on what is known
    /// already, which each does once.
    pub fn lives(&self, age: Duration, requests: u32, doubted: &mut bool) {
        if requests == 0 {
            // How long a peer waits for the first request is another matter.
            return;
        }
        let old = age.as_micros() as u64 <= self.news.load(Ordering::Relaxed);
        let counted = age < AT_ONCE || requests <= self.news_requests.load(Ordering::Relaxed);
        if !(old && counted) {
            self.change(|known| known.lives(age, requests, doubted));
        }
    }

    /// Notes that the peer closed a connection which had carried `requests` and idled for `age`.
    pub fn closed(&self, age: Duration, requests: u32) {
        if requests > 0 {
            self.change(|known| known.closed(age, requests));
        }
    }

    /// Notes the shortest exchange of a while: no round trip is longer. The shortest of the last of them
    /// counts, since an answer may also have taken long for reasons of its own.
    pub fn trip(&self, trip: Duration) {
        self.change(|known| remember(&mut known.trips, trip, TRIPS));
    }

    /// What is known.
    pub fn report(&self) -> KeepAliveReport {
        let known = self.known();
        let most = known.most();
        KeepAliveReport {
            configured: known.configured.timeout,
            hinted: known.hinted,
            closes_after: known.closes.iter().min().copied(),
            outlasted: known.outlasted,
            trip: known.trip(),
            reuse: known.reuse(),
            proven: known.proven(),
            requests: (most != u32::MAX).then_some(most),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Known)) {
        let mut known = self.known();
        change(&mut known);
        let micros = |age: Duration| u64::try_from(age.as_micros()).unwrap_or(u64::MAX);
        self.reuse.store(micros(known.reuse()), Ordering::Relaxed);
        self.proven.store(micros(known.proven()), Ordering::Relaxed);
        self.news.store(micros(known.news()), Ordering::Relaxed);
        self.most.store(known.most(), Ordering::Relaxed);
        self.proven_most.store(known.proven_most(), Ordering::Relaxed);
        self.news_requests.store(known.news_requests(), Ordering::Relaxed);
    }
}

/// What is known, and what follows from it.
#[derive(Debug)]
struct Known {
    configured: Configured,
    hinted: Option<Duration>,
    /// How often in a row more was hinted.
    more_hinted: u8,
    /// How long the last connections had idled that the peer closed for that.
    closes: VecDeque<Duration>,
    doubts: u8,
    outlasted: Duration,
    trips: VecDeque<Duration>,
    /// After how many requests the last connections ended that the peer closed at once.
    ended_after: VecDeque<u32>,
    requests_doubts: u8,
    /// The most requests after which a connection lived on.
    carried: u32,
}

impl Default for Known {
    fn default() -> Self {
        Self {
            configured: Configured { timeout: None, requests: None, most_idle: Duration::MAX },
            hinted: None,
            more_hinted: 0,
            closes: VecDeque::new(),
            doubts: 0,
            outlasted: Duration::ZERO,
            trips: VecDeque::new(),
            ended_after: VecDeque::new(),
            requests_doubts: 0,
            carried: 0,
        }
    }
}

impl Known {
    /// Takes a hint: one of less at once, since one address may be of many peers; one of more when all have
    /// said so for a while.
    fn hint(&mut self, seconds: u32) {
        let hint = Duration::from_secs(seconds.into());
        self.more_hinted = if self.hinted.is_some_and(|now| now < hint) { self.more_hinted + 1 } else { 0 };
        if self.more_hinted == 0 || self.more_hinted >= DOUBTS {
            self.hinted = Some(hint);
            self.more_hinted = 0;
        }
    }

    /// The hint that holds, in seconds.
    fn hinted_now(&self) -> u32 {
        self.hinted.map_or(0, |hint| u32::try_from(hint.as_secs()).unwrap_or(u32::MAX))
    }

    /// How long the peer keeps an idle connection, as far as anything says so.
    fn limit(&self) -> Option<Duration> {
        let said = [self.configured.timeout, self.hinted, self.closes.iter().min().copied()];
        said.into_iter().flatten().min()
    }

    fn trip(&self) -> Duration {
        self.trips.iter().min().copied().unwrap_or(SUPPOSED_TRIP)
    }

    /// So much earlier a connection is given up. Never more than half of what there is.
    fn before(&self, limit: Duration) -> Duration {
        let margin = self.trip().min(limit / 4) + SCHEDULING + limit / 32;
        limit - margin.min(limit / 2)
    }

    fn reuse(&self) -> Duration {
        let trusted = || self.before(self.outlasted).max(CAUTIOUS);
        self.limit().map_or_else(trusted, |limit| self.before(limit)).min(self.configured.most_idle)
    }

    fn proven(&self) -> Duration {
        let limit = self.limit().unwrap_or(self.outlasted);
        // What is shorter than the margin was outlasted by chance.
        if limit <= 2 * SCHEDULING {
            return Duration::ZERO;
        }
        self.before(limit).min(self.configured.most_idle)
    }

    fn news(&self) -> Duration {
        self.closes.iter().min().map_or(self.outlasted, |least| self.outlasted.min(*least))
    }

    fn most(&self) -> u32 {
        let alike = self.ended_after.iter().rev().take(ALIKE);
        let shown = self
            .ended_after
            .back()
            .filter(|last| self.ended_after.len() >= ALIKE && alike.clone().all(|n| n == *last));
        shown.copied().into_iter().chain(self.configured.requests).min().unwrap_or(u32::MAX)
    }

    fn proven_most(&self) -> u32 {
        if let Some(configured) = self.configured.requests {
            return self.ended_after.iter().min().map_or(configured, |shown| configured.min(*shown));
        }
        let tried =
            if self.carried < FEW_REQUESTS { self.carried + 1 } else { self.carried.saturating_mul(2) };
        self.ended_after.iter().min().map_or(tried, |shown| tried.min(*shown))
    }

    fn news_requests(&self) -> u32 {
        self.ended_after.iter().min().map_or(self.carried, |shown| self.carried.min(shown - 1))
    }

    fn lives(&mut self, age: Duration, requests: u32, doubted: &mut bool) {
        self.outlasted = self.outlasted.max(age);
        let mut doubts = false;
        if !*doubted {
            doubts |= forget(&mut self.closes, &mut self.doubts, |least| age > least);
        }
        if age >= AT_ONCE {
            self.carried = self.carried.max(requests);
            if !*doubted {
                doubts |= forget(&mut self.ended_after, &mut self.requests_doubts, |least| requests >= least);
            }
        }
        *doubted |= doubts;
    }

    fn closed(&mut self, age: Duration, requests: u32) {
        if age < AT_ONCE {
            remember(&mut self.ended_after, requests, REMEMBERED);
            self.carried = self.carried.min(requests.saturating_sub(1));
            self.requests_doubts = 0;
        } else {
            remember(&mut self.closes, age, REMEMBERED);
            self.outlasted = age;
            self.doubts = 0;
        }
    }
}

fn remember<T>(last: &mut VecDeque<T>, one: T, most: usize) {
    if last.len() == most {
        last.pop_front();
    }
    last.push_back(one);
}

/// Doubts the least of `last` if it was `outlasted`, and forgets it after so many doubts. Whether it did.
fn forget<T: Ord + Copy>(last: &mut VecDeque<T>, doubts: &mut u8, outlasted: impl FnOnce(T) -> bool) -> bool {
    let least = last.iter().min().copied().filter(|least| outlasted(*least));
    if let Some(least) = least {
        *doubts += 1;
        if *doubts >= DOUBTS {
            *doubts = 0;
            last.retain(|one| *one != least);
        }
    }
    least.is_some()
}

#[cfg(test)]
mod tests;
