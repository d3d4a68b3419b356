//! What is known of one name and when it is to be asked again: the rules of time, as a plain value
//! that does no I/O and reads no clock.
//!
//! IPv4 and IPv6 are two records that never wait for each other, and neither can empty the other.
//! The rules of each:
//! - an answer lives for its TTL within `min_ttl` and `max_ttl`, at least [`FLOOR`], and is asked
//!   for again a little ahead of its end, by a random lead so that names learned together do not
//!   come back together;
//! - a failure keeps the addresses until `stale` after their end, and is retried with backoff;
//! - a denial (NXDOMAIN or NODATA) empties a working set only once a second query, spaced in time,
//!   denied it too. Without a set, it holds for its negative TTL (RFC 2308), capped.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::proto::rr::RecordType;
use tokio::time::Instant;

use super::{Answer, State};
use crate::error::Reason;

/// No name is asked for more often than this because of its TTL; a TTL of 0 counts as this.
pub(super) const FLOOR: Duration = Duration::from_secs(1);

/// How long after a first denial the second query goes out.
const CONFIRM: Duration = Duration::from_millis(750);
/// Denials in a row that empty a working set.
const DENIALS: u32 = 2;

/// How long a denial without an SOA holds, and the longest that any does: a Service that appears
/// is found within this.
const NEGATIVE_DEFAULT: Duration = Duration::from_secs(5);
const NEGATIVE_MAX: Duration = Duration::from_secs(30);

/// The first pause after a failure, doubled by each further one, and the longest.
const BACKOFF: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// The configured bounds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) min_ttl: Duration,
    pub(super) max_ttl: Duration,
    pub(super) stale: Duration,
}

/// One of the two kinds of address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) const BOTH: [Family; 2] = [Family::V4, Family::V6];

    pub(super) fn record_type(self) -> RecordType {
        match self {
            Family::V4 => RecordType::A,
            Family::V6 => RecordType::AAAA,
        }
    }

    pub(super) fn other(self) -> Family {
        match self {
            Family::V4 => Family::V6,
            Family::V6 => Family::V4,
        }
    }
}

/// What asking brought.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Outcome {
    /// Addresses, with the least TTL of the records that led to them.
    Addresses { addresses: Vec<IpAddr>, ttl: Duration },
    /// A server says that there is no such name, or no such address of it.
    Denied { ttl: Option<Duration>, why: Arc<str> },
    /// No server could say.
    Failed { why: Arc<str> },
}

/// An outcome, and which of the names that a search list makes it belongs to.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Found {
    pub(super) outcome: Outcome,
    /// The index of the name that had the addresses.
    pub(super) candidate: usize,
    /// Every earlier name was denied, so this is the one that the search list means.
    pub(super) certain: bool,
}

/// All that is known of one name.
#[derive(Debug)]
pub(super) struct Record {
    bounds: Bounds,
    /// The one of the search list's names that exists: later queries ask for it alone.
    anchor: Option<usize>,
    families: [Half; 2],
}

#[derive(Debug)]
struct Half {
    /// Ascending, without duplicates.
    addresses: Vec<IpAddr>,
    candidate: usize,
    /// When the addresses are past their TTL.
    expires: Instant,
    /// When to ask again.
    due: Instant,
    failures: u32,
    denials: u32,
    last: Last,
}

#[derive(Debug)]
enum Last {
    Unasked,
    Found,
    Denied { why: Arc<str> },
    Failed { why: Arc<str> },
}

impl Record {
    pub(super) fn new(now: Instant, bounds: Bounds) -> Self {
        let half = || Half {
            addresses: Vec::new(),
            candidate: 0,
            expires: now,
            due: now,
            failures: 0,
            denials: 0,
            last: Last::Unasked,
        };
        Self { bounds, anchor: None, families: [half(), half()] }
    }

    /// Other servers, search list or bounds from now on: what is known stays, and is asked for
    /// again at once.
    pub(super) fn reconfigure(&mut self, now: Instant, bounds: Bounds) {
        self.bounds = bounds;
        self.anchor = None;
        for half in &mut self.families {
            half.due = now;
        }
    }

    pub(super) fn anchor(&self) -> Option<usize> {
        self.anchor
    }

    pub(super) fn is_due(&self, family: Family, now: Instant) -> bool {
        self.half(family).due <= now
    }

    /// Takes in what a query brought.
    pub(super) fn note(&mut self, now: Instant, family: Family, found: Found) {
        let Found { outcome, candidate, certain } = found;
        match outcome {
            Outcome::Addresses { addresses, ttl } => {
                self.learn(now, family, addresses, ttl, candidate, certain);
            }
            Outcome::Denied { ttl, why } => self.deny(now, family, ttl, why),
            Outcome::Failed { why } => {
                let half = self.half_mut(family);
                half.failures = half.failures.saturating_add(1);
                half.due = now + backoff(half.failures);
                half.last = Last::Failed { why };
            }
        }
    }

    /// Drops what was stale for longer than allowed.
    pub(super) fn lapse(&mut self, now: Instant) {
        let stale = self.bounds.stale;
        for half in &mut self.families {
            if half.failing() && half.expires + stale <= now {
                half.addresses.clear();
            }
        }
    }

    /// When something is next to be done, other than by a query's outcome. A family whose query is
    /// in flight is not due.
    pub(super) fn wakes(&self, now: Instant, in_flight: [bool; 2]) -> Option<Instant> {
        let due = self.families.iter().zip(in_flight).filter(|(_, busy)| !busy).map(|(half, _)| half.due);
        let ends = self.families.iter().filter(|half| half.failing()).flat_map(|half| {
            [half.expires, half.expires + self.bounds.stale].into_iter().filter(|end| *end > now)
        });
        due.chain(ends).min()
    }

    /// When the first of the addresses is past its TTL.
    pub(super) fn expires(&self) -> Option<Instant> {
        self.serving().map(|half| half.expires).min()
    }

    /// The last failure or doubted denial, while there is one.
    pub(super) fn trouble(&self) -> Option<&Arc<str>> {
        self.families.iter().find_map(|half| match &half.last {
            Last::Failed { why } => Some(why),
            Last::Denied { why } if !half.addresses.is_empty() => Some(why),
            _ => None,
        })
    }

    /// Addresses that are served past their TTL because nothing could refresh them.
    pub(super) fn is_stale(&self, now: Instant) -> bool {
        self.serving().any(|half| half.overdue(now).is_some())
    }

    pub(super) fn answer(&self, now: Instant) -> Answer {
        let addresses: Arc<[IpAddr]> =
            self.families.iter().flat_map(|half| half.addresses.iter().copied()).collect();
        let state = if !addresses.is_empty() {
            match self.serving().find_map(|half| half.overdue(now)) {
                Some(why) => State::Stale { why: why.clone() },
                None => State::Fresh,
            }
        } else {
            self.absence()
        };
        Answer { addresses, expires: self.expires(), state }
    }

    fn learn(
        &mut self,
        now: Instant,
        family: Family,
        mut addresses: Vec<IpAddr>,
        ttl: Duration,
        candidate: usize,
        certain: bool,
    ) {
        let other = self.half_mut(family.other());
        if !other.addresses.is_empty() && other.candidate != candidate {
            if other.candidate < candidate {
                // The earlier name of the search list is the one meant, and has no such address.
                let why = "the name that the search list means has no such address".into();
                return self.deny(now, family, None, why);
            }
            other.addresses.clear();
            other.last = Last::Unasked;
            other.due = now;
        }
        addresses.sort_unstable();
        addresses.dedup();
        let ttl = ttl.min(self.bounds.max_ttl).max(self.bounds.min_ttl).max(FLOOR);
        let half = self.half_mut(family);
        half.addresses = addresses;
        half.candidate = candidate;
        half.expires = now + ttl;
        half.due = now + ttl.mul_f64(0.90 + 0.05 * fastrand::f64()).max(FLOOR);
        half.failures = 0;
        half.denials = 0;
        half.last = Last::Found;
        if certain {
            self.anchor = Some(candidate);
        }
    }

    fn deny(&mut self, now: Instant, family: Family, ttl: Option<Duration>, why: Arc<str>) {
        let half = self.half_mut(family);
        half.failures = 0;
        half.denials = half.denials.saturating_add(1);
        half.last = Last::Denied { why };
        if !half.addresses.is_empty() && half.denials < DENIALS {
            half.due = now + CONFIRM;
            return;
        }
        half.addresses.clear();
        let ttl = ttl.unwrap_or(NEGATIVE_DEFAULT).clamp(FLOOR, NEGATIVE_MAX);
        half.due = now + ttl.mul_f64(0.90 + 0.10 * fastrand::f64());
        if self.serving().next().is_none() {
            self.anchor = None;
        }
    }

    /// Why there is no address.
    fn absence(&self) -> State {
        let mut denied = None;
        let mut failed = None;
        for half in &self.families {
            match &half.last {
                Last::Unasked => return State::Pending,
                Last::Failed { why } => failed = failed.or(Some(why)),
                Last::Denied { why } => denied = denied.or(Some(why)),
                Last::Found => {}
            }
        }
        match (failed, denied) {
            (Some(why), _) => State::Failed { reason: Reason::DnsNoAnswer, why: why.clone() },
            (None, Some(why)) => State::Failed { reason: Reason::DnsNoSuchName, why: why.clone() },
            (None, None) => State::Pending,
        }
    }

    fn serving(&self) -> impl Iterator<Item = &Half> {
        self.families.iter().filter(|half| !half.addresses.is_empty())
    }

    fn half(&self, family: Family) -> &Half {
        &self.families[family as usize]
    }

    fn half_mut(&mut self, family: Family) -> &mut Half {
        &mut self.families[family as usize]
    }
}

impl Half {
    fn failing(&self) -> bool {
        !self.addresses.is_empty() && matches!(self.last, Last::Failed { .. })
    }

    /// Why addresses past their TTL could not be refreshed.
    fn overdue(&self, now: Instant) -> Option<&Arc<str>> {
        match &self.last {
            Last::Failed { why } | Last::Denied { why } if self.expires <= now => Some(why),
            _ => None,
        }
    }
}

/// The pause after so many failures in a row, up to a fifth shorter by chance.
fn backoff(failures: u32) -> Duration {
    let pause = BACKOFF.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(BACKOFF_MAX);
    pause.mul_f64(0.80 + 0.20 * fastrand::f64())
}

#[cfg(test)]
mod tests;
