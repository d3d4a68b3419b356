//! One endpoint of an upstream, and how full it is.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::health::Health;
use super::load::{Condition, Load};
use super::{Ejection, KeepAlive, Learned, Now, Outcome, Source, Standing};

/// How long a peer that answered a handshake in plaintext is believed to know no other.
const PLAINTEXT_FOR: Duration = Duration::from_secs(60);

/// How long applications may go on to dial an endpoint that has left.
const REMEMBERED: Duration = Duration::from_secs(60);

/// Ids are never used twice, so that a pool cannot be mistaken for another's.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// An address that serves requests, shared by all workers.
#[derive(Debug)]
pub struct Endpoint {
    /// Unlike that of every other endpoint of this process; pools are kept by it.
    pub id: u64,
    /// Where it listens.
    pub address: SocketAddr,
    /// `address` as text, for requests that name no host.
    pub host: Arc<str>,
    /// How long its peer keeps connections.
    pub keep_alive: KeepAlive,
    /// How it stands beside others.
    pub standing: Standing,
    /// How full it is.
    pub(super) load: Load,
    /// What it can do, as far as its answers say.
    learned: Learned,
    health: Health,
    /// Its place among its upstream's endpoints.
    place: AtomicU32,
    connections: AtomicU32,
    /// When it left its source, in milliseconds of the endpoints' clock; 0: it has not.
    left: AtomicU64,
    /// Whether it has ever answered.
    proven: AtomicBool,
    /// Until when the peer, found to speak plaintext, is not asked for mTLS again.
    plaintext_until: AtomicU64,
}

impl Endpoint {
    /// An endpoint that serves `capacity` requests at once, if that is known.
    pub fn new(address: SocketAddr, capacity: Option<u32>) -> Arc<Self> {
        Arc::new(Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            address,
            host: address.to_string().into(),
            keep_alive: KeepAlive::new(),
            standing: Standing::default(),
            load: Load::new(capacity),
            learned: Learned::default(),
            health: Health::default(),
            place: AtomicU32::new(0),
            connections: AtomicU32::new(0),
            left: AtomicU64::new(0),
            proven: AtomicBool::new(false),
            plaintext_until: AtomicU64::new(0),
        })
    }

    /// Requests that it has from this sidecar, all workers together.
    pub fn in_flight(&self) -> u32 {
        self.load.in_flight()
    }

    /// Requests that it serves at once, for all callers, before they wait for each other; and who says so.
    pub fn capacity(&self) -> (Source, f32) {
        self.load.capacity()
    }

    /// Requests that it takes at once, if that is bounded.
    pub fn most(&self) -> Option<u32> {
        self.load.most()
    }

    /// Takes a capacity that the configuration has changed.
    pub fn set_capacity(&self, capacity: Option<u32>) {
        self.load.configure(capacity);
    }

    /// Whether it has as many as it takes.
    pub fn is_full(&self) -> bool {
        self.load.most().is_some_and(|most| self.in_flight() >= most)
    }

    /// How long an answer takes while it is not crowded, if that is known.
    pub fn latency(&self) -> Option<Duration> {
        let is_known = self.load.latency() > 0.0;
        let micros = if self.load.announces() { self.load.latency() } else { self.learned.latency() };
        is_known.then(|| Duration::from_micros(micros as u64))
    }

    /// When its sidecar last said how full it is, if it ever did.
    pub fn heard(&self) -> Option<Now> {
        Some(self.load.heard()).filter(|micros| *micros > 0).map(Now::of_micros)
    }

    /// When it last answered, in microseconds of the endpoints' clock; 0: never.
    pub(super) fn last_answer(&self) -> u64 {
        self.learned.last_answer()
    }

    pub(super) fn place(&self) -> u32 {
        self.place.load(Ordering::Relaxed)
    }

    /// Its number among its upstream's endpoints.
    pub fn takes_place(&self, place: usize) {
        self.place.store(u32::try_from(place).unwrap_or(u32::MAX - 1), Ordering::Relaxed);
    }

    /// How it stands at a time in milliseconds.
    pub(super) fn condition(&self, now_millis: u64) -> Condition {
        self.load.condition(now_millis)
    }

    /// Open connections to it.
    pub fn connections(&self) -> u32 {
        self.connections.load(Ordering::Relaxed)
    }

    pub(super) fn opened(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn closed(&self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }

    /// Marks it as gone from its source: it takes no new request, and finishes those it has.
    pub fn leave(&self) {
        self.left.store(Now::read().millis(), Ordering::Relaxed);
        self.load.leave(true);
    }

    /// Takes it back: its source names it again, and it still serves.
    pub(super) fn rejoin(&self) {
        self.left.store(0, Ordering::Relaxed);
        self.load.leave(false);
    }

    /// Whether it has left.
    pub fn is_leaving(&self) -> bool {
        self.left.load(Ordering::Relaxed) != 0
    }

    /// Whether it left so recently that applications may still know it by its name.
    pub fn just_left(&self) -> bool {
        let left = self.left.load(Ordering::Relaxed);
        left != 0 && Now::read().millis() < left + REMEMBERED.as_millis() as u64
    }

    /// Notes that it could not be reached: it is passed over for a while.
    pub fn unreached(&self, longest: Duration, now: Now) {
        self.health.unreached(&self.load, longest, now.millis());
    }

    /// Notes that it can be reached, and serves; `tried_out`: a request that was sent to see whether it does.
    pub(super) fn reached(&self, tried_out: bool, now: Now) {
        if self.is_untried() {
            self.proven.store(true, Ordering::Relaxed);
        }
        self.health.answered(&self.load, tried_out, now.millis());
    }

    /// Learns from a request that took so many microseconds and found it with `found` of ours.
    pub(super) fn learn(&self, took_micros: f32, found: u32, now: Now) {
        self.learned.answered(took_micros, found, now.micros());
        self.load.learn(&self.learned, now.micros());
    }

    /// What is learned of it, also while its sidecar knows better.
    pub(super) fn learned(&self) -> &Learned {
        &self.learned
    }

    /// Notes that it answered with an error, or not at all.
    pub(super) fn failed(
        &self,
        outcome: Outcome,
        ejection: &Ejection,
        usual: f32,
        now: Now,
        has_room: impl FnOnce() -> bool,
    ) {
        self.health.failed(outcome, &self.load, ejection, usual, now.millis(), has_room);
    }

    /// Notes that one who had waited for an answer for unusually long gave it up.
    pub(super) fn left(&self, ejection: &Ejection) {
        self.health.left(&self.load, ejection);
    }

    /// Notes that an answer of it has begun.
    pub(super) fn answers(&self) {
        self.health.answers(&self.load);
    }

    /// Whether it is passed over, if it is, because no connection to it could be opened.
    pub(super) fn is_unreached(&self) -> bool {
        self.health.is_unreached()
    }

    /// Whether it has never answered.
    pub fn is_untried(&self) -> bool {
        !self.proven.load(Ordering::Relaxed)
    }

    /// Whether it is passed over because it failed.
    pub fn is_paused(&self) -> bool {
        // The clock is read only for endpoints that have failed.
        !self.load.is_sound()
            && !self.is_leaving()
            && self.condition(Now::read().millis()) == Condition::PassedOver
    }

    /// Whether it is known to speak plaintext.
    pub fn is_plaintext(&self) -> bool {
        match self.plaintext_until.load(Ordering::Relaxed) {
            0 => false,
            until => Now::read().millis() < until,
        }
    }

    /// Notes that it answered a handshake with plaintext.
    pub fn speaks_plaintext(&self) {
        let until = Now::read().millis() + PLAINTEXT_FOR.as_millis() as u64;
        self.plaintext_until.store(until, Ordering::Relaxed);
    }
}
