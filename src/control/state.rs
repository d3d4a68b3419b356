//! What the controller knows of itself: the zone in service, its health and its counts.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RecordType};

use super::zone::Zone;
use crate::admin::{Health, Readiness};
use crate::dns::authority::{Found, Records};
use crate::telemetry::{self, Scrape};

/// The types that are told apart in metrics; the last stands for all others.
const KINDS: [&str; 8] = ["A", "AAAA", "SRV", "TXT", "NS", "SOA", "ANY", "other"];

/// The codes that we answer with.
const CODES: [&str; 7] = ["NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "BADVERS"];

/// Shared between those who answer, who follow the files, and who ask how it goes.
pub(super) struct State {
    zone: ArcSwap<Zone>,
    started: SystemTime,
    /// Everything has been read once.
    loaded: AtomicBool,
    draining: AtomicBool,
    /// What is wrong with the files now.
    problems: ArcSwap<Vec<String>>,
    read_failures: AtomicU64,
    /// In Unix seconds; 0 before the first time.
    last_read: AtomicU64,
    queries: [[AtomicU64; CODES.len()]; KINDS.len()],
}

impl State {
    /// Nothing has been read yet.
    pub(super) fn new(zone: Zone) -> Self {
        Self {
            zone: ArcSwap::from_pointee(zone),
            started: SystemTime::now(),
            loaded: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            problems: ArcSwap::default(),
            read_failures: AtomicU64::new(0),
            last_read: AtomicU64::new(0),
            queries: Default::default(),
        }
    }

    /// Takes a zone into service, says so, and gives back the one before it.
    pub(super) fn publish(&self, zone: Zone) -> Arc<Zone> {
        tracing::info!(
            serial = zone.serial,
            services = zone.services(),
            endpoints = zone.endpoints(),
            "the zone has changed"
        );
        self.zone.swap(zone.into())
    }

    /// Everything has been read once: what is not there now can be denied.
    pub(super) fn loaded(&self) {
        if !self.loaded.swap(true, Relaxed) {
            tracing::info!("ready: everything has been read");
        }
    }

    /// The zone in service.
    pub(super) fn zone(&self) -> Arc<Zone> {
        self.zone.load_full()
    }

    /// The files were looked at. What is newly wrong is logged.
    pub(super) fn looked(&self, failures: u64, problems: Vec<String>) {
        self.read_failures.fetch_add(failures, Relaxed);
        if problems.is_empty() {
            self.last_read.store(unix_seconds(), Relaxed);
        }
        let before = self.problems.load();
        let known: HashSet<_> = before.iter().collect();
        for problem in problems.iter().filter(|problem| !known.contains(problem)) {
            tracing::warn!("{problem}; what it last said stays in service");
        }
        self.problems.store(problems.into());
    }

    /// The end has begun.
    pub(super) fn drain(&self) {
        self.draining.store(true, Relaxed);
    }

    fn collect(&self, scrape: &mut Scrape) {
        let mut queries = scrape.counter("pannier_zone_queries_total", "Queries answered, by type and code.");
        for (kind, counts) in KINDS.iter().zip(&self.queries) {
            for (code, count) in CODES.iter().zip(counts) {
                queries.set(&[("type", kind), ("code", code)], count.load(Relaxed));
            }
        }
        let zone = self.zone.load();
        scrape.gauge("pannier_zone_services", "Services in the zone.").set(&[], zone.services());
        scrape.gauge("pannier_zone_endpoints", "Endpoints that are served.").set(&[], zone.endpoints());
        scrape
            .gauge("pannier_zone_serial", "The zone's serial, which grows with each change.")
            .set(&[], zone.serial);
        scrape
            .counter("pannier_zone_read_failures_total", "Files that were found wrong or unreadable.")
            .set(&[], self.read_failures.load(Relaxed));
        scrape
            .gauge("pannier_zone_refused_files", "Files of which the last good content is served.")
            .set(&[], self.problems.load().len());
        let last = self.last_read.load(Relaxed);
        if last > 0 {
            scrape
                .gauge(
                    "pannier_zone_last_read_timestamp_seconds",
                    "When all files were last found good, since the epoch.",
                )
                .set(&[], last);
        }
    }
}

impl Records for State {
    fn find(&self, name: &Name, kind: RecordType) -> Found {
        self.zone.load().find(name, kind)
    }

    fn answered(&self, kind: RecordType, code: ResponseCode) {
        let kind = match kind {
            RecordType::A => 0,
            RecordType::AAAA => 1,
            RecordType::SRV => 2,
            RecordType::TXT => 3,
            RecordType::NS => 4,
            RecordType::SOA => 5,
            RecordType::ANY => 6,
            _ => 7,
        };
        let code = match code {
            ResponseCode::NoError => 0,
            ResponseCode::FormErr => 1,
            ResponseCode::ServFail => 2,
            ResponseCode::NXDomain => 3,
            ResponseCode::NotImp => 4,
            ResponseCode::Refused => 5,
            _ => 6,
        };
        self.queries[kind][code].fetch_add(1, Relaxed);
    }
}

impl Health for State {
    fn ready(&self) -> Readiness {
        let problems = self.problems.load();
        let mut readiness = Readiness { why_not: Vec::new(), notes: problems.to_vec() };
        if self.draining.load(Relaxed) {
            readiness.why_not.push("it has been told to end".into());
        }
        if !self.loaded.load(Relaxed) {
            readiness.why_not.push("not everything has been read yet".into());
        }
        readiness
    }

    fn metrics(&self) -> String {
        telemetry::exposition(self.started, |scrape| self.collect(scrape))
    }
}

/// The time, in seconds since the epoch.
pub(super) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
