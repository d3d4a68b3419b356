//! What the operator's door shows of a running sidecar.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::mesh::{Mesh, Route};
use super::worker::Shared;
use crate::admin::{self, Readiness};
use crate::balance::{Endpoint, KeepAliveReport, Now, Upstream};
use crate::config::Model;
use crate::dns::{self, Capture, CaptureSnapshot, EndpointSource};
use crate::limit::{LimitReport, Limits, RedisReport};
use crate::telemetry::Scrape;

/// The view of one sidecar.
pub(super) struct View {
    shared: Arc<Shared>,
    capture: Arc<Capture>,
    bound: Vec<(&'static str, SocketAddr)>,
    notes: Mutex<Notes>,
}

/// What is known of names.
#[derive(Serialize)]
struct Names {
    #[serde(flatten)]
    resolver: dns::Snapshot,
    capture: CaptureSnapshot,
}

#[derive(Default)]
struct Notes {
    /// Why the last configuration was refused.
    refused: Option<String>,
    /// What was changed and takes a restart.
    restart: Vec<&'static str>,
}

impl View {
    pub(super) fn new(
        shared: Arc<Shared>,
        capture: Arc<Capture>,
        bound: Vec<(&'static str, SocketAddr)>,
    ) -> Arc<Self> {
        Arc::new(Self { shared, capture, bound, notes: Mutex::default() })
    }

    /// Notes why a configuration was refused; none: it was applied.
    pub(super) fn refused(&self, why: Option<String>) {
        self.notes().refused = why;
    }

    /// Notes what cannot change while running.
    pub(super) fn fixed(&self, before: &Model, now: &Model) {
        let mut restart = Vec::new();
        if before.listen != now.listen {
            restart.push("listen");
        }
        if before.workers != now.workers {
            restart.push("workers");
        }
        if !restart.is_empty() {
            tracing::warn!(fields = restart.join(", "), "changed; takes effect at the next start");
        }
        self.notes().restart = restart;
    }

    /// Adds upstreams, limits and the pod's queries to each scrape.
    pub(super) fn collect(self: &Arc<Self>) {
        let (shared, capture) = (self.shared.clone(), self.capture.clone());
        self.shared.ground.metrics.collect(move |scrape| {
            let mesh = shared.mesh.load();
            scrape
                .counter("pannier_host_mismatch_total", "Requests whose host and original address disagree")
                .set(&[], shared.mismatches());
            let pod = &mesh.application.upstream;
            let gauges = [
                (
                    "pannier_saturation_ratio",
                    "Requests that the application has, over its capacity",
                    pod.saturation(),
                ),
                (
                    "pannier_capacity",
                    "Requests that the application serves at once before they wait",
                    pod.pod_capacity(),
                ),
            ];
            for (name, help, value) in gauges {
                scrape.gauge(name, help).set(&[], value);
            }
            for route in mesh.upstreams.iter().chain([&mesh.original, &mesh.application]) {
                let upstream = &route.upstream;
                let labels = [("upstream", &*upstream.spec.name)];
                scrape
                    .gauge(
                        "pannier_upstream_saturation_ratio",
                        "Requests in flight over the capacity of all endpoints",
                    )
                    .set(&labels, upstream.saturation());
                scrape
                    .gauge("pannier_upstream_in_flight", "Requests in flight from this sidecar")
                    .set(&labels, upstream.in_flight());
                scrape
                    .gauge("pannier_upstream_waiting", "Requests that wait for room")
                    .set(&labels, upstream.waiting());
                scrape
                    .gauge("pannier_upstream_passed_over", "Endpoints that are passed over since they failed")
                    .set(&labels, upstream.endpoints().iter().filter(|e| e.is_paused()).count());
                scrape
                    .gauge("pannier_upstream_connections", "Open connections from this sidecar")
                    .set(&labels, upstream.connections());
                scrape
                    .gauge("pannier_upstream_endpoints", "Endpoints that take requests")
                    .set(&labels, upstream.endpoints().len());
            }
            for route in mesh.upstreams.iter().chain([&mesh.original, &mesh.application]) {
                retries(route, scrape);
            }
            dns(&shared.ground.resolver.counts(), scrape);
            for limit in limits(&mesh, Limits::snapshot) {
                let labels = [("limit", &*limit.name)];
                let counts = [
                    ("pannier_limit_admitted_total", "Requests that a limit admitted", limit.admitted),
                    ("pannier_limit_refused_total", "Requests that a limit refused", limit.refused),
                    (
                        "pannier_limit_would_refuse_total",
                        "Requests that a limit which observes would have refused",
                        limit.would_refuse,
                    ),
                    ("pannier_limit_waited_total", "Requests that waited for Redis", limit.waited),
                    (
                        "pannier_limit_without_redis_total",
                        "Requests that a limit decided by its `without_redis`",
                        limit.decided_without_redis,
                    ),
                ];
                for (name, help, count) in counts {
                    scrape.counter(name, help).set(&labels, count);
                }
            }
            if let Some(report) = shared.ground.limits.load().redis() {
                redis(&report, scrape);
            }
            let queries = capture.snapshot();
            for (answer, count) in queries.by_answer() {
                scrape
                    .counter("pannier_dns_capture_queries_total", "Queries of the pod, by what answered them")
                    .set(&[("answer", answer)], count);
            }
            scrape
                .gauge("pannier_dns_capture_entries", "Answers kept for the pod's queries")
                .set(&[], queries.entries);
            scrape
                .gauge("pannier_dns_capture_bytes", "Memory of the answers kept for the pod's queries")
                .set(&[], queries.bytes);
        });
    }

    fn notes(&self) -> std::sync::MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl admin::View for View {
    fn ready(&self) -> Readiness {
        // Listeners are bound and certificates loaded before the doors open: without either, the
        // process does not start.
        let mut ready = Readiness::default();
        if self.shared.drain.is_draining() {
            ready.why_not.push("draining".into());
        }
        let notes = self.notes();
        if let Some(why) = &notes.refused {
            ready
                .notes
                .push(format!("the last configuration was refused, and the one before runs on: {why}"));
        }
        for field in &notes.restart {
            ready.notes.push(format!("`{field}` was changed, which takes effect at the next start"));
        }
        ready
    }

    fn config(&self) -> Value {
        let mesh = self.shared.mesh.load();
        // The model's own serialization leaves secrets out.
        let config = serde_json::to_value(&mesh.model).unwrap_or_default();
        let bound: Vec<Value> = self
            .bound
            .iter()
            .map(|(name, address)| json!({ "listener": name, "address": address }))
            .collect();
        json!({
            "generation": self.shared.ground.metrics.generation(),
            "bound": bound,
            "identity": self.shared.tls.load().map(|tls| tls.id().to_string()),
            "config": config,
        })
    }

    fn upstreams(&self) -> Value {
        let mesh = self.shared.mesh.load();
        let all: Vec<Value> = mesh.upstreams.iter().map(|route| upstream(&mesh, route)).collect();
        json!({
            "upstreams": all,
            "original": bare(&mesh.original.upstream),
            "application": bare(&mesh.application.upstream),
            "dns": Names { resolver: self.shared.ground.resolver.snapshot(), capture: self.capture.snapshot() },
        })
    }

    fn limits(&self) -> Value {
        json!({ "limits": limits(&self.shared.mesh.load(), Limits::snapshot_with_buckets), "redis": self.shared.ground.limits.load().redis() })
    }

    fn drain(&self) {
        self.shared.drain.begin();
    }

    fn quit(&self) {
        self.shared.drain.quit();
    }
}

/// What became of requests that were to be sent again.
fn retries(route: &Route, scrape: &mut Scrape) {
    let (spent, upstream) = (route.budget.spent(), &*route.upstream.spec.name);
    for (outcome, count) in [("sent", spent.retried), ("over_budget", spent.refused)] {
        scrape
            .counter("pannier_retries_total", "Requests that were sent again, or would have been")
            .set(&[("upstream", upstream), ("outcome", outcome)], count);
    }
    for (outcome, count) in [("sent", spent.hedged), ("won", spent.won)] {
        scrape
            .counter("pannier_hedges_total", "Second requests beside slow ones, and those answered first")
            .set(&[("upstream", upstream), ("outcome", outcome)], count);
    }
}

/// What the servers of names have said. Their addresses are the operator's, and so few.
fn dns(counts: &dns::Snapshot, scrape: &mut Scrape) {
    let totals = [
        ("pannier_dns_names_hit_total", "Names that were known when they were wanted", counts.hits),
        ("pannier_dns_names_missed_total", "Names that had to be asked for", counts.misses),
        ("pannier_dns_refreshes_total", "Queries for what was known, to keep it fresh", counts.refreshes),
        ("pannier_dns_stale_total", "Refreshes that failed, past the TTL of what serves on", counts.stale),
    ];
    for (name, help, count) in totals {
        scrape.counter(name, help).set(&[], count);
    }
    for server in &counts.servers {
        let address = server.address.to_string();
        let failures = server.failures.iter().map(|(kind, count)| (*kind, *count));
        for (answer, count) in
            [("found", server.found), ("denied", server.denied)].into_iter().chain(failures)
        {
            scrape
                .counter(
                    "pannier_dns_answers_total",
                    "What servers answered to queries, or why there was no answer",
                )
                .set(&[("server", &address), ("answer", answer)], count);
        }
    }
}

/// What every limit has done.
fn limits(mesh: &Mesh, of_each: fn(&Limits) -> Vec<LimitReport>) -> Vec<LimitReport> {
    [&mesh.outbound_limits, &mesh.inbound_limits].into_iter().flat_map(of_each).collect()
}

/// The conversation with Redis.
fn redis(report: &RedisReport, scrape: &mut Scrape) {
    let up = u64::from(report.up);
    scrape.gauge("pannier_redis_up", "Whether the Redis of limits answers in time").set(&[], up);
    let warnings = report.warnings.len();
    scrape
        .gauge("pannier_redis_warnings", "What in its set-up may break the bound of limits")
        .set(&[], warnings);
    for (name, help, count) in [
        ("pannier_redis_calls_total", "Calls of the script of limits", report.calls),
        ("pannier_redis_errors_total", "Round trips to the Redis of limits that failed", report.errors),
        (
            "pannier_redis_new_states_total",
            "Times that a shard of limits was found without what it knew",
            report.new_states,
        ),
    ] {
        scrape.counter(name, help).set(&[], count);
    }
}

fn upstream(mesh: &Mesh, route: &Route) -> Value {
    let upstream = &route.upstream;
    let (spec, resolution) = (&upstream.spec, upstream.resolution());
    let now = Instant::now();
    let left = |at: Option<Instant>| at.map(|at| at.saturating_duration_since(now).as_secs_f64());
    let address = upstream.address();
    let routes = mesh.named.iter().filter(|named| named.upstream.spec.name == spec.name);
    let mut traffic = route.traffic.snapshot();
    routes.for_each(|named| traffic.merge(&named.traffic.snapshot()));
    let spent = route.budget.spent();
    let quantile = |q| traffic.latency.quantile(q).map(|latency| latency.as_secs_f64());
    json!({
        "name": &*spec.name,
        "address": spec.address.to_string(),
        "addresses": &*address.addresses,
        "peer": spec.peer.as_ref().map(ToString::to_string),
        "saturation": upstream.saturation(),
        "in_flight": upstream.in_flight(),
        "connections": upstream.connections(),
        // One address that may stand for many endpoints: how full each is cannot be known.
        "virtual": upstream.is_virtual(),
        "dns": {
            "state": if matches!(spec.source, EndpointSource::Static(_)) { "static" } else { resolution.state.name() },
            "expires_in_seconds": left(resolution.expires),
            "why": resolution.state.why().map(|why| &**why),
        },
        "requests": traffic.requests(),
        "retries": { "sent": spent.retried, "over_budget": spent.refused },
        "hedges": { "sent": spent.hedged, "won": spent.won },
        "latency_seconds": { "p50": quantile(0.5), "p99": quantile(0.99) },
        "waiting": upstream.waiting(),
        "endpoints": upstream.endpoints().iter().map(|e| endpoint(upstream, e)).collect::<Vec<_>>(),
        "leaving": upstream.leaving().iter().map(|e| endpoint(upstream, e)).collect::<Vec<_>>(),
    })
}

fn bare(upstream: &Upstream) -> Value {
    json!({ "in_flight": upstream.in_flight(), "connections": upstream.connections() })
}

/// How long a peer keeps plain connections, and what is made of it.
fn keep_alive(known: &KeepAliveReport) -> Value {
    let seconds = |age: Option<Duration>| age.map(|age| age.as_secs_f64());
    json!({
        "configured_seconds": seconds(known.configured),
        "hinted_seconds": seconds(known.hinted),
        "closes_after_seconds": seconds(known.closes_after),
        "outlasted_seconds": known.outlasted.as_secs_f64(),
        "round_trip_seconds": known.trip.as_secs_f64(),
        "reuse_seconds": known.reuse.as_secs_f64(),
        "reuse_any_seconds": known.proven.as_secs_f64(),
        "requests": known.requests,
    })
}

fn endpoint(upstream: &Upstream, endpoint: &Endpoint) -> Value {
    let standing = &endpoint.standing;
    let (source, capacity) = endpoint.capacity();
    let heard = endpoint.heard().map(|heard| Now::read().since(heard).as_secs_f64());
    json!({
        "address": endpoint.address,
        "saturation": (!standing.is_virtual()).then(|| upstream.saturation_of(endpoint)),
        "in_flight": endpoint.in_flight(),
        "capacity": capacity.round() as u32,
        "capacity_is": source,
        "most": endpoint.most(),
        "latency_seconds": endpoint.latency().map(|latency| latency.as_secs_f64()),
        // What its sidecar announced: how long ago.
        "heard_seconds_ago": heard,
        "connections": endpoint.connections(),
        "passed_over": endpoint.is_paused(),
        "weight": standing.weight(),
        "priority": standing.priority(),
        "second_family": standing.is_second(),
        "zone": standing.zone().map(|zone| zone.to_string()),
        "plaintext": endpoint.is_plaintext(),
        "keep_alive": keep_alive(&endpoint.keep_alive.report()),
    })
}
