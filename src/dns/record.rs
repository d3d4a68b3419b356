//! What is known of one name, as a plain value that does no I/O and reads no clock.
//!
//! IPv4 and IPv6 are two sets that never wait for each other, and neither can empty the other;
//! services (SRV) are one. The rules of each set (see [`Kept`]):
//! - an answer lives for its TTL within `min_ttl` and `max_ttl`, at least [`FLOOR`], and is asked
//!   for again a little ahead of its end, by a random lead so that names learned together do not
//!   come back together;
//! - a failure keeps the records until `stale` after their end, and is retried with backoff;
//! - a denial (NXDOMAIN or NODATA) empties a working set only once a second query, spaced in time,
//!   denied it too. Without a set, it holds for its negative TTL (RFC 2308), capped.
//!
//! [`FLOOR`]: super::kept::FLOOR

use std::net::IpAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use hickory_resolver::proto::rr::RecordType;
use smallvec::SmallVec;
use tokio::time::Instant;

use super::kept::{Bounds, Denial, Kept, Last};
use super::{Answer, Service, State};
use crate::error::Reason;

static NO_SUCH_FAMILY: LazyLock<Arc<str>> = LazyLock::new(|| "it has addresses of the other family".into());

/// What a set is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    V4,
    V6,
    Services,
}

impl Kind {
    pub(super) fn record_type(self) -> RecordType {
        match self {
            Kind::V4 => RecordType::A,
            Kind::V6 => RecordType::AAAA,
            Kind::Services => RecordType::SRV,
        }
    }

    /// The other family of addresses.
    pub(super) fn other(self) -> Option<Kind> {
        match self {
            Kind::V4 => Some(Kind::V6),
            Kind::V6 => Some(Kind::V4),
            Kind::Services => None,
        }
    }

    /// Its place among the sets of a name.
    pub(super) fn place(self) -> usize {
        match self {
            Kind::V4 | Kind::Services => 0,
            Kind::V6 => 1,
        }
    }
}

/// What is sought of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Sought {
    Addresses,
    Services,
}

impl Sought {
    pub(super) fn kinds(self) -> &'static [Kind] {
        match self {
            Sought::Addresses => &[Kind::V4, Kind::V6],
            Sought::Services => &[Kind::Services],
        }
    }
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Datum {
    Address(IpAddr),
    Service(Service),
}

/// What asking brought.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Outcome {
    /// Records, with the least TTL of all that led to them.
    Found { records: Vec<Datum>, ttl: Duration },
    /// A server says that there is no such name, or no such record of it.
    Denied {
        what: Denial,
        ttl: Option<Duration>,
        why: Arc<str>,
        /// No server that may know better was silent.
        sure: bool,
    },
    /// No server could say.
    Failed { why: Arc<str> },
}

/// An outcome, and which of the names that a search list makes it belongs to.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Found {
    pub(super) outcome: Outcome,
    /// The index of the name that had the records.
    pub(super) candidate: usize,
    /// Every earlier name was denied, so this is the one that the search list means.
    pub(super) certain: bool,
}

/// All that is known of one name.
#[derive(Debug)]
pub(super) struct Record {
    bounds: Arc<Bounds>,
    sought: Sought,
    /// The one of the search list's names that exists: later queries ask for it alone.
    anchor: Option<usize>,
    /// As its kinds.
    sets: SmallVec<[Kept<Datum>; 2]>,
}

impl Record {
    pub(super) fn new(now: Instant, sought: Sought, bounds: Arc<Bounds>) -> Self {
        let sets = sought.kinds().iter().map(|_| Kept::new(now)).collect();
        Self { bounds, sought, anchor: None, sets }
    }

    /// Other servers, search list or bounds from now on: what is known stays, and is asked for
    /// again at once.
    pub(super) fn reconfigure(&mut self, now: Instant, bounds: Arc<Bounds>) {
        self.bounds = bounds;
        self.anchor = None;
        for set in &mut self.sets {
            set.due = now;
        }
    }

    pub(super) fn anchor(&self) -> Option<usize> {
        self.anchor
    }

    pub(super) fn kinds(&self) -> &'static [Kind] {
        self.sought.kinds()
    }

    pub(super) fn is_due(&self, kind: Kind, now: Instant) -> bool {
        self.set(kind).due <= now
    }

    /// Whether there is something of this kind that a query would refresh.
    pub(super) fn has(&self, kind: Kind) -> bool {
        !self.set(kind).records.is_empty()
    }

    /// Takes in what a query brought.
    pub(super) fn note(&mut self, now: Instant, kind: Kind, found: Found) {
        let Found { outcome, candidate, certain } = found;
        match outcome {
            Outcome::Found { records, ttl } => self.learn(now, kind, records, ttl, candidate, certain),
            // It takes nothing from a set that works: that would be for the silence of who knows it.
            Outcome::Denied { why, sure: false, .. } if self.has(kind) => {
                let recheck = self.bounds.recheck;
                self.set_mut(kind).fail(now, why, recheck);
            }
            Outcome::Denied { what, ttl, why, .. } => self.deny(now, kind, what, ttl, why),
            Outcome::Failed { why } => {
                let recheck = self.bounds.recheck;
                self.set_mut(kind).fail(now, why, recheck);
            }
        }
    }

    /// Drops what was stale for longer than allowed.
    pub(super) fn lapse(&mut self, now: Instant) {
        for set in &mut self.sets {
            set.lapse(now, &self.bounds);
        }
    }

    /// When something is next to be done, other than by a query's outcome. A kind whose query is
    /// in flight is not due.
    pub(super) fn wakes(&self, now: Instant, in_flight: [bool; 2]) -> Option<Instant> {
        let due = self.sets.iter().zip(in_flight).filter(|(_, busy)| !busy).map(|(set, _)| set.due);
        let ends = self.sets.iter().filter(|set| set.is_failing()).flat_map(|set| {
            [set.expires, set.expires + self.bounds.stale].into_iter().filter(|end| *end > now)
        });
        due.chain(ends).min()
    }

    /// When the first of the records is past its TTL.
    pub(super) fn expires(&self) -> Option<Instant> {
        self.serving().map(|set| set.expires).min()
    }

    /// The last failure or doubted denial, while there is one.
    pub(super) fn trouble(&self) -> Option<&Arc<str>> {
        self.sets.iter().find_map(|set| match &set.last {
            Last::Failed { why } => Some(why),
            Last::Denied { why, .. } if !set.records.is_empty() => Some(why),
            _ => None,
        })
    }

    /// Records that are served past their TTL because nothing could refresh them.
    pub(super) fn is_stale(&self, now: Instant) -> bool {
        self.serving().any(|set| set.overdue(now).is_some())
    }

    pub(super) fn answer(&self, now: Instant) -> Answer {
        let data = || self.sets.iter().flat_map(|set| set.records.iter());
        let state = if data().next().is_some() {
            match self.serving().find_map(|set| set.overdue(now)) {
                Some(why) => State::Stale { why: why.clone() },
                None => State::Fresh,
            }
        } else {
            self.absence()
        };
        let address = |datum: &Datum| match datum {
            Datum::Address(address) => Some(*address),
            Datum::Service(_) => None,
        };
        let service = |datum: &Datum| match datum {
            Datum::Service(service) => Some(service.clone()),
            Datum::Address(_) => None,
        };
        Answer {
            families: [Kind::V4, Kind::V6].map(|kind| self.is_settled(kind)),
            addresses: data().filter_map(address).collect(),
            services: data().filter_map(service).collect(),
            expires: self.expires(),
            state,
        }
    }

    /// Whether servers have been asked for this kind to the end, whatever came of it.
    fn is_settled(&self, kind: Kind) -> bool {
        self.sets.get(kind.place()).is_some_and(|set| !matches!(set.last, Last::Unasked))
    }

    fn learn(
        &mut self,
        now: Instant,
        kind: Kind,
        records: Vec<Datum>,
        ttl: Duration,
        candidate: usize,
        certain: bool,
    ) {
        if let Some(other) = kind.other().map(|other| self.set_mut(other))
            && !other.records.is_empty()
            && other.candidate != candidate
        {
            if other.candidate < candidate {
                // The earlier name of the search list is the one meant, and has no such address.
                let why = "the name that the search list means has no such address".into();
                return self.deny(now, kind, Denial::Data, None, why);
            }
            other.forget(now);
        }
        let bounds = self.bounds.clone();
        self.set_mut(kind).learn(now, records, ttl, candidate, &bounds);
        if certain {
            self.anchor = Some(candidate);
        }
    }

    fn deny(&mut self, now: Instant, kind: Kind, what: Denial, ttl: Option<Duration>, why: Arc<str>) {
        let bounds = self.bounds.clone();
        // Of most names one family is denied for good, and nobody reads why.
        let other_serves = kind.other().is_some_and(|other| self.has(other)) && !self.has(kind);
        let why = if other_serves { NO_SUCH_FAMILY.clone() } else { why };
        let empty = self.set_mut(kind).deny(now, what, ttl, why, &bounds);
        if empty && self.serving().next().is_none() {
            self.anchor = None;
        }
    }

    /// Why there is no record.
    fn absence(&self) -> State {
        let (mut no_name, mut no_data, mut failed) = (None, None, None);
        for set in &self.sets {
            match &set.last {
                Last::Unasked => return State::Pending,
                Last::Failed { why } => failed = failed.or(Some(why)),
                Last::Denied { what: Denial::Name, why } => no_name = no_name.or(Some(why)),
                Last::Denied { what: Denial::Data, why } => no_data = no_data.or(Some(why)),
                Last::Found => {}
            }
        }
        let such = [
            (Reason::DnsNoAnswer, failed),
            (Reason::DnsNoSuchName, no_name),
            (Reason::DnsNoAddress, no_data),
        ];
        let first = such.into_iter().find_map(|(reason, why)| Some((reason, why?.clone())));
        first.map_or(State::Pending, |(reason, why)| State::Failed { reason, why })
    }

    fn serving(&self) -> impl Iterator<Item = &Kept<Datum>> {
        self.sets.iter().filter(|set| !set.records.is_empty())
    }

    fn set(&self, kind: Kind) -> &Kept<Datum> {
        &self.sets[kind.place()]
    }

    fn set_mut(&mut self, kind: Kind) -> &mut Kept<Datum> {
        &mut self.sets[kind.place()]
    }
}

#[cfg(test)]
mod tests;
