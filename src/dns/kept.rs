//! One set of records of a name, as IPv4 addresses are one and IPv6 addresses another, and when it
//! is to be asked for again: the rules of time, as a plain value that does no I/O and reads no
//! clock. See [`super::record`] for what they promise.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::rotation::Rotation;

/// No name is asked for more often than this because of its TTL; a TTL of 0 counts as this.
pub(super) const FLOOR: Duration = Duration::from_secs(1);

/// How long after a first denial the second query goes out.
const CONFIRM: Duration = Duration::from_millis(750);
/// Denials in a row that empty a working set.
const DENIALS: u32 = 2;

/// How long a denial without an SOA holds.
const NEGATIVE_DEFAULT: Duration = Duration::from_secs(5);

/// The first pause after a failure, doubled by each further one.
const BACKOFF: Duration = Duration::from_millis(500);

/// At which part of its TTL a set is asked for again, at the latest.
const AHEAD: f64 = 0.95;

/// The configured bounds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) min_ttl: Duration,
    pub(super) max_ttl: Duration,
    pub(super) max_negative_ttl: Duration,
    /// The part of a TTL by which refreshes are spread.
    pub(super) jitter: f64,
    /// RFC 8767's maximum stale timer.
    pub(super) stale: Duration,
    /// RFC 8767's failure recheck timer.
    pub(super) recheck: Duration,
}

/// Records of one name that are used, the first of them in order: no answer makes more of a sidecar.
pub(super) const MOST: usize = 1024;

/// What a server says is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Denial {
    /// The name: NXDOMAIN.
    Name,
    /// Such a record of the name: NODATA.
    Data,
}

/// Records of one type, and how far they can be trusted.
#[derive(Debug)]
pub(super) struct Kept<T> {
    /// Ascending, without duplicates.
    pub(super) records: Vec<T>,
    /// Which of the names that a search list makes has them.
    pub(super) candidate: usize,
    /// When they are past their TTL.
    pub(super) expires: Instant,
    /// When to ask again.
    pub(super) due: Instant,
    failures: u32,
    denials: u32,
    pub(super) last: Last,
    /// What is known of a server that answers with a part of the set each time; most never do.
    rotation: Option<Box<Rotation<T>>>,
}

/// What the last query brought.
#[derive(Debug)]
pub(super) enum Last {
    Unasked,
    Found,
    Denied { what: Denial, why: Arc<str> },
    Failed { why: Arc<str> },
}

impl<T: Ord + Clone> Kept<T> {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            records: Vec::new(),
            candidate: 0,
            expires: now,
            due: now,
            failures: 0,
            denials: 0,
            last: Last::Unasked,
            rotation: None,
        }
    }

    /// Takes in an answer.
    pub(super) fn learn(
        &mut self,
        now: Instant,
        mut records: Vec<T>,
        ttl: Duration,
        candidate: usize,
        bounds: &Bounds,
    ) {
        records.sort_unstable();
        records.dedup();
        records.truncate(MOST);
        records.shrink_to_fit();
        self.records = self.whole(now, records);
        self.candidate = candidate;
        let ttl = ttl.min(bounds.max_ttl).max(bounds.min_ttl).max(FLOOR);
        self.expires = now + ttl;
        self.due = now + ttl.mul_f64((AHEAD - bounds.jitter * fastrand::f64()).max(0.0)).max(FLOOR);
        self.failures = 0;
        self.denials = 0;
        self.last = Last::Found;
    }

    /// What an answer stands for: itself, or, from a server that gives parts, what it gave lately.
    fn whole(&mut self, now: Instant, answer: Vec<T>) -> Vec<T> {
        if self.rotation.is_none() {
            if self.records.is_empty() || self.records == answer {
                return answer;
            }
            self.rotation = Some(Box::new(Rotation::new(now, self.records.clone())));
        }
        let Some(rotation) = &mut self.rotation else { return answer };
        let whole = rotation.take(now, answer);
        if rotation.is_over() {
            self.rotation = None;
        }
        whole
    }

    /// Takes in that there is nothing. Says whether the set is empty now.
    pub(super) fn deny(
        &mut self,
        now: Instant,
        what: Denial,
        ttl: Option<Duration>,
        why: Arc<str>,
        bounds: &Bounds,
    ) -> bool {
        self.failures = 0;
        self.denials = self.denials.saturating_add(1);
        self.last = Last::Denied { what, why };
        if !self.records.is_empty() && self.denials < DENIALS {
            self.due = now + CONFIRM;
            return false;
        }
        self.records.clear();
        self.rotation = None;
        let ttl = ttl.unwrap_or(NEGATIVE_DEFAULT).min(bounds.max_negative_ttl).max(FLOOR);
        self.due = now + ttl.mul_f64(0.90 + 0.10 * fastrand::f64());
        true
    }

    /// Takes in that no server could say.
    pub(super) fn fail(&mut self, now: Instant, why: Arc<str>, recheck: Duration) {
        self.failures = self.failures.saturating_add(1);
        self.due = now + backoff(self.failures, recheck);
        self.last = Last::Failed { why };
    }

    /// Drops what was stale for longer than allowed.
    pub(super) fn lapse(&mut self, now: Instant, bounds: &Bounds) {
        if self.is_failing() && self.expires + bounds.stale <= now {
            self.records.clear();
            self.rotation = None;
        }
    }

    /// Forgets the records, to ask for them anew.
    pub(super) fn forget(&mut self, now: Instant) {
        self.records.clear();
        self.rotation = None;
        self.last = Last::Unasked;
        self.due = now;
    }

    /// Whether its records could not be refreshed.
    pub(super) fn is_failing(&self) -> bool {
        !self.records.is_empty() && matches!(self.last, Last::Failed { .. })
    }

    /// Why records past their TTL could not be refreshed. A denial that is about to be confirmed is
    /// no such reason.
    pub(super) fn overdue(&self, now: Instant) -> Option<&Arc<str>> {
        match &self.last {
            Last::Failed { why } if self.expires <= now => Some(why),
            _ => None,
        }
    }
}

/// The pause after so many failures in a row, up to a fifth shorter by chance.
fn backoff(failures: u32, most: Duration) -> Duration {
    let pause = BACKOFF.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(most);
    pause.mul_f64(0.80 + 0.20 * fastrand::f64())
}
