//! The counters of one route, and of one upstream's opaque connections: written by the workers,
//! each in memory of its own, and read by whoever asks.

use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::add;
use super::histogram::{Latency, Recorder};
use crate::config::model::Direction;

/// The classes of status codes, as `code` labels.
pub(super) const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// A status outside 100 to 599 is a server's error to whoever receives it (RFC 9110 section 15).
fn class(status: u16) -> usize {
    match status {
        100..600 => usize::from(status / 100) - 1,
        _ => 4,
    }
}

/// Requests of one route, in one direction, to one upstream.
#[derive(Debug)]
pub struct Traffic {
    pub(super) direction: Direction,
    pub(super) upstream: Arc<str>,
    pub(super) route: Arc<str>,
    /// By worker. A route that a worker never saw costs that worker no memory.
    shards: Box<[OnceLock<Box<Shard>>]>,
}

/// What one worker counts.
#[derive(Debug)]
#[repr(align(128))]
struct Shard {
    classes: [AtomicU64; CLASSES.len()],
    latency: Recorder,
}

/// A route's counts as they were when they were read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Requests finished, by the class of their status: 1xx, 2xx, 3xx, 4xx, 5xx.
    pub classes: [u64; CLASSES.len()],
    /// How long they took, from the end of the request's head to the end of the answer.
    pub latency: Latency,
}

impl Traffic {
    pub(super) fn new(workers: usize, direction: Direction, upstream: Arc<str>, route: Arc<str>) -> Self {
        Self { direction, upstream, route, shards: (0..workers).map(|_| OnceLock::new()).collect() }
    }

    /// Counts a request that was answered with `status`.
    ///
    /// To be called on the thread of worker number `worker` alone: counters have one writer.
    ///
    /// # Panics
    /// If there is no worker of that number.
    pub fn finished(&self, worker: usize, status: u16, took: Duration) {
        let shard = self.shards[worker].get_or_init(|| {
            Box::new(Shard { classes: [const { AtomicU64::new(0) }; 5], latency: Recorder::new() })
        });
        add(&shard.classes[class(status)], 1);
        shard.latency.record(took);
    }

    /// The counts of all workers together.
    pub fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for shard in self.shards.iter().filter_map(OnceLock::get) {
            for (sum, count) in snapshot.classes.iter_mut().zip(&shard.classes) {
                *sum += count.load(Relaxed);
            }
            snapshot.latency.add(&shard.latency);
        }
        snapshot
    }
}

impl Snapshot {
    /// Requests of every class.
    pub fn requests(&self) -> u64 {
        self.classes.iter().sum()
    }

    /// Adds another's counts, such as those of another route to the same upstream.
    pub fn merge(&mut self, other: &Snapshot) {
        for (mine, theirs) in self.classes.iter_mut().zip(other.classes) {
            *mine += theirs;
        }
        self.latency.merge(&other.latency);
    }
}

/// Connections carried as bytes, in one direction, to one upstream.
#[derive(Debug)]
pub struct Tcp {
    pub(super) direction: Direction,
    pub(super) upstream: Arc<str>,
    shards: Box<[TcpShard]>,
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct TcpShard {
    opened: AtomicU64,
    closed: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
}

/// Totals of one upstream's opaque connections.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct TcpTotals {
    pub(super) opened: u64,
    pub(super) open: u64,
    pub(super) sent: u64,
    pub(super) received: u64,
}

impl Tcp {
    pub(super) fn new(workers: usize, direction: Direction, upstream: Arc<str>) -> Self {
        Self { direction, upstream, shards: (0..workers).map(|_| TcpShard::default()).collect() }
    }

    /// Counts a connection, for as long as what is returned lives.
    ///
    /// To be called on the thread of worker number `worker` alone: counters have one writer.
    ///
    /// # Panics
    /// If there is no worker of that number.
    #[must_use = "the connection is counted as closed when this is dropped"]
    pub fn open(self: &Arc<Self>, worker: usize) -> Connection {
        add(&self.shards[worker].opened, 1);
        Connection { tcp: self.clone(), worker, _stays_on_its_worker: PhantomData }
    }

    pub(super) fn totals(&self) -> TcpTotals {
        let mut totals = TcpTotals::default();
        for shard in &self.shards {
            // Closed first: one that opens and closes meanwhile must not make it negative.
            let closed = shard.closed.load(Relaxed);
            let opened = shard.opened.load(Relaxed);
            totals.opened += opened;
            totals.open += opened.saturating_sub(closed);
            totals.sent += shard.sent.load(Relaxed);
            totals.received += shard.received.load(Relaxed);
        }
        totals
    }
}

/// An open opaque connection. It cannot leave its worker's thread, which alone counts for it.
#[derive(Debug)]
pub struct Connection {
    tcp: Arc<Tcp>,
    worker: usize,
    _stays_on_its_worker: PhantomData<Rc<()>>,
}

impl Connection {
    /// Counts bytes sent to the upstream.
    pub fn sent(&self, bytes: u64) {
        add(&self.tcp.shards[self.worker].sent, bytes);
    }

    /// Counts bytes received from the upstream.
    pub fn received(&self, bytes: u64) {
        add(&self.tcp.shards[self.worker].received, bytes);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        add(&self.tcp.shards[self.worker].closed, 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_add_up() {
        let traffic = Arc::new(Traffic::new(3, Direction::Outbound, "orders".into(), "/v1".into()));
        const EACH: u64 = 10_000;
        std::thread::scope(|scope| {
            for worker in 0..3 {
                let traffic = traffic.clone();
                scope.spawn(move || {
                    for i in 0..EACH {
                        let status = if i % 10 == 0 { 503 } else { 200 };
                        traffic.finished(worker, status, Duration::from_millis(2));
                    }
                });
            }
        });
        let snapshot = traffic.snapshot();
        assert_eq!(snapshot.classes, [0, 3 * EACH * 9 / 10, 0, 0, 3 * EACH / 10]);
        assert_eq!(snapshot.requests(), 3 * EACH);
        assert_eq!(snapshot.latency.count(), 3 * EACH);
        assert_eq!(snapshot.latency.sum(), Duration::from_millis(2) * 3 * EACH as u32);
    }

    #[test]
    fn every_status_has_a_class() {
        let classes: Vec<&str> =
            [100, 199, 200, 304, 404, 599, 600, 999, 99, 0, u16::MAX].map(|s| CLASSES[class(s)]).into();
        assert_eq!(classes, ["1xx", "1xx", "2xx", "3xx", "4xx", "5xx", "5xx", "5xx", "5xx", "5xx", "5xx"]);
    }

    #[test]
    fn snapshots_merge() {
        let traffic = Traffic::new(1, Direction::Inbound, "a".into(), "b".into());
        traffic.finished(0, 200, Duration::from_millis(1));
        let mut twice = traffic.snapshot();
        twice.merge(&traffic.snapshot());
        assert_eq!((twice.classes[1], twice.latency.count()), (2, 2));
    }

    #[test]
    fn a_connection_is_open_until_it_is_dropped() {
        let tcp = Arc::new(Tcp::new(2, Direction::Outbound, "mysql".into()));
        let first = tcp.open(0);
        let second = tcp.open(1);
        first.sent(3);
        second.sent(4);
        second.received(5);
        assert_eq!(tcp.totals(), TcpTotals { opened: 2, open: 2, sent: 7, received: 5 });
        drop(first);
        assert_eq!(tcp.totals(), TcpTotals { opened: 2, open: 1, sent: 7, received: 5 });
    }
}
