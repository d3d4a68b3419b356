//! All metrics of a sidecar: one [`Metrics`], made once, that lives through every reload.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use super::series::Series;
use super::traffic::CLASSES;
use super::{Scrape, Tcp, Traffic, add};
use crate::config::model::Direction;
use crate::error::Reason;

const DIRECTIONS: [Direction; 2] = [Direction::Outbound, Direction::Inbound];
const REASONS: usize = Reason::ALL.len();

/// The metrics of this process.
pub struct Metrics {
    started: SystemTime,
    workers: Box<[Worker]>,
    traffic: Series<(Direction, Arc<str>, Arc<str>), Traffic>,
    tcp: Series<(Direction, Arc<str>), Tcp>,
    config: Config,
    identity: Identity,
    collectors: Mutex<Vec<Collector>>,
}

/// Adds to a scrape what it alone knows.
type Collector = Arc<dyn Fn(&mut Scrape) + Send + Sync>;

/// What is counted by worker. Padded, so that no two share a cache line.
#[derive(Debug)]
#[repr(align(128))]
struct Worker {
    /// By direction and reason; the worker is the only writer.
    refused: [[AtomicU64; REASONS]; DIRECTIONS.len()],
    /// By direction. Whoever accepts and whoever closes both write.
    accepted: [AtomicU64; DIRECTIONS.len()],
    open: [AtomicU64; DIRECTIONS.len()],
}

#[derive(Debug)]
struct Config {
    applied: AtomicU64,
    refused: AtomicU64,
    /// When the running configuration was taken, in Unix seconds.
    since: AtomicU64,
}

#[derive(Debug, Default)]
struct Identity {
    renewed: AtomicU64,
    refused: AtomicU64,
    /// In Unix seconds; 0 without an identity.
    not_after: AtomicU64,
}

impl Metrics {
    /// For a process with so many workers, numbered from 0. The configuration that it starts with
    /// is generation 1.
    pub fn new(workers: usize) -> Arc<Self> {
        let started = SystemTime::now();
        Arc::new(Self {
            started,
            workers: (0..workers).map(|_| Worker::new()).collect(),
            traffic: Series::default(),
            tcp: Series::default(),
            config: Config {
                applied: AtomicU64::new(0),
                refused: AtomicU64::new(0),
                since: AtomicU64::new(unix_seconds(started) as u64),
            },
            identity: Identity::default(),
            collectors: Mutex::default(),
        })
    }

    /// The counters of a route's requests to an upstream. The same names give the same counters,
    /// before and after a reload. Not for the request path: a route asks once and keeps them.
    pub fn traffic(&self, direction: Direction, upstream: &str, route: &str) -> Arc<Traffic> {
        let (upstream, route): (Arc<str>, Arc<str>) = (upstream.into(), route.into());
        self.traffic.named((direction, upstream.clone(), route.clone()), || {
            Traffic::new(self.workers.len(), direction, upstream, route)
        })
    }

    /// The counters of an upstream's connections that are carried as bytes. As
    /// [`traffic`](Self::traffic), to be asked for once.
    pub fn tcp(&self, direction: Direction, upstream: &str) -> Arc<Tcp> {
        let upstream: Arc<str> = upstream.into();
        self.tcp.named((direction, upstream.clone()), || Tcp::new(self.workers.len(), direction, upstream))
    }

    /// Counts a request or connection that Pannier refused or failed.
    ///
    /// To be called on the thread of worker number `worker` alone: counters have one writer.
    ///
    /// # Panics
    /// If there is no worker of that number.
    pub fn refused(&self, direction: Direction, worker: usize, reason: Reason) {
        add(&self.workers[worker].refused[direction as usize][reason as usize], 1);
    }

    /// Counts a connection that was accepted for a worker, for as long as what is returned lives.
    /// Any thread may call it: the one that accepts need not be the one that serves.
    ///
    /// # Panics
    /// If there is no worker of that number.
    #[must_use = "the connection is counted as closed when this is dropped"]
    pub fn accepted(self: &Arc<Self>, direction: Direction, worker: usize) -> Accepted {
        let counts = &self.workers[worker];
        counts.accepted[direction as usize].fetch_add(1, Relaxed);
        counts.open[direction as usize].fetch_add(1, Relaxed);
        Accepted { metrics: self.clone(), direction, worker }
    }

    /// How many accepted connections a worker has, both directions together.
    ///
    /// # Panics
    /// If there is no worker of that number.
    pub fn connections(&self, worker: usize) -> u64 {
        self.workers[worker].open.iter().map(|open| open.load(Relaxed)).sum()
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// How many accepted connections of one direction are open, all workers together.
    pub fn open(&self, direction: Direction) -> u64 {
        self.workers.iter().map(|worker| worker.open[direction as usize].load(Relaxed)).sum()
    }

    /// How many connections of one direction were ever accepted, all workers together.
    pub fn accepted_ever(&self, direction: Direction) -> u64 {
        self.workers.iter().map(|worker| worker.accepted[direction as usize].load(Relaxed)).sum()
    }

    /// Counts a reload: whether the new configuration was applied, or refused with the old one
    /// running on.
    pub fn reload(&self, ok: bool) {
        if ok {
            self.config.since.store(unix_seconds(SystemTime::now()) as u64, Relaxed);
            self.config.applied.fetch_add(1, Relaxed);
        } else {
            self.config.refused.fetch_add(1, Relaxed);
        }
    }

    /// The number of the running configuration: 1 at the start, one more with each that was
    /// applied.
    pub fn generation(&self) -> u64 {
        self.config.applied.load(Relaxed) + 1
    }

    /// States until when this workload's certificate is valid; None where no identity is
    /// configured and traffic is plaintext.
    pub fn identity(&self, not_after: Option<SystemTime>) {
        // 0 stands for none; a certificate that ended in 1970 may as well have ended a second later.
        let seconds = not_after.map_or(0, |time| (unix_seconds(time) as u64).max(1));
        self.identity.not_after.store(seconds, Relaxed);
    }

    /// Counts a renewal of the certificate files: taken, or refused with the old identity kept.
    pub fn identity_renewed(&self, ok: bool) {
        let counter = if ok { &self.identity.renewed } else { &self.identity.refused };
        counter.fetch_add(1, Relaxed);
    }

    /// Whether traffic is plaintext because no identity is configured.
    pub fn plaintext(&self) -> bool {
        self.identity.not_after.load(Relaxed) == 0
    }

    /// Adds a source that is asked at each scrape, for as long as the process runs. It runs on the
    /// control thread: it must not block, nor wait for a worker.
    pub fn collect(&self, collector: impl Fn(&mut Scrape) + Send + Sync + 'static) {
        self.collectors.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::new(collector));
    }

    /// All metrics now, as OpenMetrics 1.0 text.
    pub fn encode(&self) -> String {
        super::exposition(self.started, |scrape| {
            self.collect_traffic(scrape);
            self.collect_tcp(scrape);
            self.collect_workers(scrape);
            self.collect_config(scrape);
            self.collect_identity(scrape);
            // Called without the lock: a collector may be slow, and may register another.
            let collectors = self.collectors.lock().unwrap_or_else(PoisonError::into_inner).clone();
            for collector in collectors {
                collector(scrape);
            }
        })
    }

    fn collect_traffic(&self, scrape: &mut Scrape) {
        for traffic in self.traffic.current() {
            let snapshot = traffic.snapshot();
            let [direction, upstream, route] = [
                ("direction", traffic.direction.name()),
                ("upstream", &*traffic.upstream),
                ("route", &*traffic.route),
            ];
            // Every class from the start: a first 5xx must be seen as an increase from 0.
            let mut requests = scrape.counter("pannier_requests_total", "Requests answered.");
            for (class, count) in CLASSES.iter().zip(snapshot.classes) {
                requests.set(&[direction, upstream, route, ("code", class)], count);
            }
            if snapshot.latency.count() > 0 {
                scrape.latency(
                    "pannier_request_duration_seconds",
                    "From the end of a request's head to the end of its answer.",
                    &[direction, upstream, route],
                    snapshot.latency,
                );
            }
        }
    }

    fn collect_tcp(&self, scrape: &mut Scrape) {
        for tcp in self.tcp.current() {
            let labels = [("direction", tcp.direction.name()), ("upstream", &*tcp.upstream)];
            let totals = tcp.totals();
            scrape
                .counter("pannier_tcp_opened_total", "Connections carried as bytes that were opened.")
                .set(&labels, totals.opened);
            scrape
                .gauge("pannier_tcp_open", "Connections carried as bytes that are open.")
                .set(&labels, totals.open);
            scrape
                .counter("pannier_tcp_sent_bytes_total", "Bytes of such connections sent to the upstream.")
                .set(&labels, totals.sent);
            scrape
                .counter("pannier_tcp_received_bytes_total", "Bytes of such connections received from it.")
                .set(&labels, totals.received);
        }
    }

    fn collect_workers(&self, scrape: &mut Scrape) {
        for direction in DIRECTIONS {
            let label = ("direction", direction.name());
            let mut refused =
                scrape.counter("pannier_refused_total", "Requests and connections refused or failed.");
            for &reason in Reason::ALL {
                let of = |w: &Worker| w.refused[direction as usize][reason as usize].load(Relaxed);
                refused.set(&[label, ("reason", reason.name())], self.workers.iter().map(of).sum::<u64>());
            }
            for (number, worker) in self.workers.iter().enumerate() {
                let labels = [label, ("worker", &*number.to_string())];
                scrape
                    .counter("pannier_downstream_accepted_total", "Connections accepted.")
                    .set(&labels, worker.accepted[direction as usize].load(Relaxed));
                scrape
                    .gauge("pannier_downstream_connections", "Accepted connections that are open.")
                    .set(&labels, worker.open[direction as usize].load(Relaxed));
            }
        }
    }

    fn collect_config(&self, scrape: &mut Scrape) {
        let Config { applied, refused, since } = &self.config;
        scrape
            .counter("pannier_config_reloads_total", "Reloads of the configuration, by result.")
            .set(&[("result", "applied")], applied.load(Relaxed))
            .set(&[("result", "refused")], refused.load(Relaxed));
        scrape
            .gauge("pannier_config_generation", "The number of the running configuration, from 1.")
            .set(&[], self.generation());
        scrape
            .gauge(
                "pannier_config_last_success_timestamp_seconds",
                "When the running configuration was taken, since the epoch.",
            )
            .set(&[], since.load(Relaxed));
    }

    fn collect_identity(&self, scrape: &mut Scrape) {
        let Identity { renewed, refused, not_after } = &self.identity;
        scrape
            .gauge("pannier_plaintext", "1 when no identity is configured, and nothing is encrypted.")
            .set(&[], self.plaintext());
        if self.plaintext() {
            return;
        }
        scrape
            .gauge(
                "pannier_identity_expiry_timestamp_seconds",
                "When this workload's certificate expires, since the epoch.",
            )
            .set(&[], not_after.load(Relaxed));
        scrape
            .counter("pannier_identity_renewals_total", "Renewals of the certificate files, by result.")
            .set(&[("result", "taken")], renewed.load(Relaxed))
            .set(&[("result", "refused")], refused.load(Relaxed));
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("workers", &self.workers.len()).finish_non_exhaustive()
    }
}

impl Worker {
    fn new() -> Self {
        Self {
            refused: [const { [const { AtomicU64::new(0) }; REASONS] }; DIRECTIONS.len()],
            accepted: Default::default(),
            open: Default::default(),
        }
    }
}

/// An accepted connection that is open.
#[derive(Debug)]
pub struct Accepted {
    metrics: Arc<Metrics>,
    direction: Direction,
    worker: usize,
}

impl Drop for Accepted {
    fn drop(&mut self) {
        self.metrics.workers[self.worker].open[self.direction as usize].fetch_sub(1, Relaxed);
    }
}

/// Seconds since the epoch; a time before it counts as the epoch.
pub(super) fn unix_seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::openmetrics;
    use super::*;

    const OUT: Direction = Direction::Outbound;

    #[test]
    fn everything_at_once_is_valid_openmetrics() {
        let metrics = Metrics::new(2);
        let orders = metrics.traffic(OUT, "orders", "orders.shop/v1");
        orders.finished(0, 200, Duration::from_millis(3));
        orders.finished(1, 503, Duration::from_secs(2));
        metrics.traffic(Direction::Inbound, "application", "*/").finished(1, 200, Duration::from_micros(80));
        let tcp = metrics.tcp(OUT, "mysql").open(0);
        tcp.sent(10);
        metrics.refused(OUT, 0, Reason::LimitExhausted);
        metrics.refused(OUT, 1, Reason::LimitExhausted);
        let _open = metrics.accepted(OUT, 1);
        metrics.identity(Some(UNIX_EPOCH + Duration::from_secs(2_000_000_000)));
        metrics.reload(true);
        metrics.reload(false);
        metrics.collect(|scrape| {
            scrape
                .gauge("pannier_upstream_saturation_ratio", "How full an upstream is.")
                .set(&[("upstream", "orders")], 0.25);
        });

        let got = openmetrics::parse(&metrics.encode());
        let route = [("direction", "outbound"), ("upstream", "orders"), ("route", "orders.shop/v1")];
        let with = |label| [&route[..], &[label]].concat();
        assert_eq!(got.value("pannier_requests_total", &with(("code", "2xx"))), Some(1.0));
        assert_eq!(got.value("pannier_requests_total", &with(("code", "5xx"))), Some(1.0));
        assert_eq!(got.value("pannier_requests_total", &with(("code", "4xx"))), Some(0.0));
        let bucket = |le| got.value("pannier_request_duration_seconds_bucket", &with(("le", le)));
        assert_eq!((bucket("0.0025"), bucket("0.005")), (Some(0.0), Some(1.0)));
        assert_eq!((bucket("1.0"), bucket("2.5"), bucket("+Inf")), (Some(1.0), Some(2.0), Some(2.0)));
        assert_eq!(got.value("pannier_request_duration_seconds_sum", &route), Some(2.003));
        let refused = [("direction", "outbound"), ("reason", "limit.exhausted")];
        assert_eq!(got.value("pannier_refused_total", &refused), Some(2.0));
        let mysql = [("direction", "outbound"), ("upstream", "mysql")];
        assert_eq!(got.value("pannier_tcp_open", &mysql), Some(1.0));
        assert_eq!(got.value("pannier_tcp_sent_bytes_total", &mysql), Some(10.0));
        let worker = [("direction", "outbound"), ("worker", "1")];
        assert_eq!(got.value("pannier_downstream_connections", &worker), Some(1.0));
        assert_eq!(got.value("pannier_config_generation", &[]), Some(2.0));
        assert_eq!(got.value("pannier_config_reloads_total", &[("result", "refused")]), Some(1.0));
        assert_eq!(got.value("pannier_plaintext", &[]), Some(0.0));
        assert_eq!(got.value("pannier_identity_expiry_timestamp_seconds", &[]), Some(2e9));
        assert_eq!(got.value("pannier_upstream_saturation_ratio", &[("upstream", "orders")]), Some(0.25));
        assert_eq!(got.value("pannier_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), Some(1.0));
    }

    #[test]
    fn the_same_names_are_the_same_counters() {
        let metrics = Metrics::new(1);
        metrics.traffic(OUT, "a", "r").finished(0, 200, Duration::ZERO);
        metrics.traffic(OUT, "a", "r").finished(0, 200, Duration::ZERO);
        assert_eq!(metrics.traffic(OUT, "a", "r").snapshot().requests(), 2);
        assert_eq!(metrics.traffic(Direction::Inbound, "a", "r").snapshot().requests(), 0);
    }

    #[test]
    fn an_accepted_connection_counts_until_it_is_dropped() {
        let metrics = Metrics::new(2);
        let first = metrics.accepted(OUT, 0);
        let second = metrics.accepted(Direction::Inbound, 0);
        assert_eq!((metrics.connections(0), metrics.connections(1)), (2, 0));
        drop(first);
        assert_eq!(metrics.connections(0), 1);
        assert_eq!((metrics.open(OUT), metrics.accepted_ever(OUT)), (0, 1));
        drop(second);
        let labels = [("direction", "outbound"), ("worker", "0")];
        let got = openmetrics::parse(&metrics.encode());
        assert_eq!(got.value("pannier_downstream_connections", &labels), Some(0.0));
        assert_eq!(got.value("pannier_downstream_accepted_total", &labels), Some(1.0));
    }

    #[test]
    fn without_an_identity_it_says_plaintext() {
        let metrics = Metrics::new(1);
        let got = openmetrics::parse(&metrics.encode());
        assert_eq!(got.value("pannier_plaintext", &[]), Some(1.0));
        assert_eq!(got.value("pannier_identity_expiry_timestamp_seconds", &[]), None);
        metrics.identity(Some(UNIX_EPOCH));
        assert!(!metrics.plaintext());
    }

    #[test]
    fn refusals_begin_at_zero() {
        let metrics = Metrics::new(1);
        let got = openmetrics::parse(&metrics.encode());
        for reason in Reason::ALL {
            for direction in DIRECTIONS {
                let labels = [("direction", direction.name()), ("reason", reason.name())];
                assert_eq!(got.value("pannier_refused_total", &labels), Some(0.0));
            }
        }
    }

    #[test]
    fn counts_while_a_scrape_runs_are_never_lost() {
        let metrics = Metrics::new(1);
        let traffic = metrics.traffic(OUT, "a", "r");
        const REQUESTS: u64 = 50_000;
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                for _ in 0..REQUESTS {
                    traffic.finished(0, 200, Duration::from_micros(50));
                }
            });
            let mut before = 0;
            while !worker.is_finished() {
                openmetrics::parse(&metrics.encode());
                let now = traffic.snapshot().requests();
                assert!(now >= before);
                before = now;
            }
        });
        assert_eq!(traffic.snapshot().requests(), REQUESTS);
    }
}
