//! One endpoint of an upstream, and how full it is.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{KeepAlive, Standing};

/// How long an endpoint that could not be reached is passed over: doubled each time it fails
/// again, up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How long a peer that answered a handshake in plaintext is believed to know no other.
const PLAINTEXT_FOR: Duration = Duration::from_secs(60);

/// How long applications may go on to dial an endpoint that has left.
const REMEMBERED: Duration = Duration::from_secs(60);

/// Ids are never used twice, so that a pool cannot be mistaken for another's.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// Keeps what every worker writes on a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Padded<T>(T);

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
    capacity: AtomicU32,
    in_flight: Padded<AtomicU32>,
    connections: Padded<AtomicU32>,
    /// When it left its source, in milliseconds after [`now_millis`]'s beginning; 0: it has not.
    left: AtomicU64,
    failures: AtomicU32,
    /// Whether it has ever answered.
    proven: AtomicBool,
    /// Milliseconds after [`epoch`] until which it is passed over.
    paused_until: AtomicU64,
    /// Until when the peer, found to speak plaintext, is not asked for mTLS again.
    plaintext_until: AtomicU64,
}

impl Endpoint {
    /// An endpoint that takes `capacity` requests at once.
    pub fn new(address: SocketAddr, capacity: u32) -> Arc<Self> {
        Arc::new(Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            address,
            host: address.to_string().into(),
            keep_alive: KeepAlive::new(),
            standing: Standing::default(),
            capacity: AtomicU32::new(capacity),
            in_flight: Padded::default(),
            connections: Padded::default(),
            left: AtomicU64::new(0),
            failures: AtomicU32::new(0),
            proven: AtomicBool::new(false),
            paused_until: AtomicU64::new(0),
            plaintext_until: AtomicU64::new(0),
        })
    }

    /// Requests that it has from this sidecar, all workers together.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.0.load(Ordering::Relaxed)
    }

    /// Requests that it serves at once, for all callers.
    pub fn capacity(&self) -> u32 {
        self.capacity.load(Ordering::Relaxed)
    }

    /// Takes a capacity that the configuration has changed.
    pub fn set_capacity(&self, capacity: u32) {
        self.capacity.store(capacity, Ordering::Relaxed);
    }

    /// Whether it has as many as it takes.
    pub fn is_full(&self) -> bool {
        self.in_flight() >= self.capacity()
    }

    /// In flight over capacity.
    pub fn saturation(&self) -> f64 {
        f64::from(self.in_flight()) / f64::from(self.capacity().max(1))
    }

    /// Open connections to it.
    pub fn connections(&self) -> u32 {
        self.connections.0.load(Ordering::Relaxed)
    }

    pub(super) fn begin(&self) {
        self.in_flight.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn end(&self) {
        self.in_flight.0.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn opened(&self) {
        self.connections.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn closed(&self) {
        self.connections.0.fetch_sub(1, Ordering::Relaxed);
    }

    /// Marks it as gone from its source: it takes no new request, and finishes those it has.
    pub fn leave(&self) {
        self.left.store(now_millis(), Ordering::Relaxed);
    }

    /// Takes it back: its source names it again, and it still serves.
    pub(super) fn rejoin(&self) {
        self.left.store(0, Ordering::Relaxed);
    }

    /// Whether it has left.
    pub fn is_leaving(&self) -> bool {
        self.left.load(Ordering::Relaxed) != 0
    }

    /// Whether it left so recently that applications may still know it by its name.
    pub fn just_left(&self) -> bool {
        let left = self.left.load(Ordering::Relaxed);
        left != 0 && now_millis() < left + REMEMBERED.as_millis() as u64
    }

    /// Notes that it could not be reached: it is passed over for a while.
    pub fn failed(&self) {
        let (now, until) = (now_millis(), self.paused_until.load(Ordering::Relaxed));
        if now < until {
            // Requests that fail together are one failure.
            return;
        }
        let failures = self.failures.load(Ordering::Relaxed).min(10);
        let pause = (FIRST_PAUSE * (1 << failures)).min(LONGEST_PAUSE);
        // Spread, so that not all of a mesh come back at once.
        let pause = pause.mul_f64(0.75 + fastrand::f64() / 2.0);
        let next = now + pause.as_millis() as u64;
        if self.paused_until.compare_exchange(until, next, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Notes that it answered.
    pub fn answered(&self) {
        if !self.proven.load(Ordering::Relaxed) {
            self.proven.store(true, Ordering::Relaxed);
        }
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
            self.paused_until.store(0, Ordering::Relaxed);
        }
    }

    /// Whether it has never answered.
    pub fn is_untried(&self) -> bool {
        !self.proven.load(Ordering::Relaxed)
    }

    /// Whether it is passed over because it failed.
    pub fn is_paused(&self) -> bool {
        // The clock is read only for endpoints that have failed.
        match self.paused_until.load(Ordering::Relaxed) {
            0 => false,
            until => now_millis() < until,
        }
    }

    /// Whether it is known to speak plaintext.
    pub fn is_plaintext(&self) -> bool {
        match self.plaintext_until.load(Ordering::Relaxed) {
            0 => false,
            until => now_millis() < until,
        }
    }

    /// Notes that it answered a handshake with plaintext.
    pub fn speaks_plaintext(&self) {
        let until = now_millis() + PLAINTEXT_FOR.as_millis() as u64;
        self.plaintext_until.store(until, Ordering::Relaxed);
    }
}

/// Milliseconds of the endpoints' clock, from 1 on.
pub(super) fn now_millis() -> u64 {
    static EPOCH: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    EPOCH.get_or_init(Instant::now).elapsed().as_millis() as u64 + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_that_failed_is_passed_over_until_it_answers() {
        let endpoint = Endpoint::new("127.0.0.1:1".parse().unwrap(), 1);
        assert!(!endpoint.is_paused());
        endpoint.failed();
        assert!(endpoint.is_paused());
        endpoint.answered();
        assert!(!endpoint.is_paused());
    }
    #[test]
    fn requests_that_fail_together_are_one_failure() {
        let endpoint = Endpoint::new("127.0.0.1:1".parse().unwrap(), 1);
        for _ in 0..20 {
            endpoint.failed();
        }
        assert_eq!(endpoint.failures.load(Ordering::Relaxed), 1, "the next pause is the second");
    }
}
