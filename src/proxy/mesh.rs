//! The snapshot that requests look things up in, compiled from the configuration: immutable, and
//! replaced as a whole by a reload.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use super::budget::Budget;
use super::hedge::Hedge;
use super::retry::Policy;
use super::sticky::Sticky;
use crate::auth;
use crate::auth::token::Tokens;
use crate::balance::{Configured, Ejection, Endpoint, Patience, Spec, Upstream};
use crate::config::HostPattern;
use crate::config::model::{
    self, Direction, InboundMtls, Model, Most, MtlsMode, OnMismatch, Retries, RetryBudget,
};
use crate::config::units::{EndpointName, Host, HostPort, Time};
use crate::dns::{EndpointSource, Resolver};
use crate::http::Bounds;
use crate::limit::{self, Limits};
use crate::route::{Entry, PathMatcher, Table};
use crate::telemetry::{Metrics, Tcp, Traffic};
use crate::tls::{Peer, Tls};

/// What the sidecar runs.
pub(super) struct Mesh {
    /// What it was compiled from.
    pub model: Model,
    /// Host and path to route.
    pub routes: Table<Arc<Route>>,
    /// Each upstream, with the route of what finds it by address alone.
    pub upstreams: Vec<Arc<Route>>,
    /// The routes in `routes`, for those who look at all of them.
    pub named: Vec<Arc<Route>>,
    /// What goes to its original destination, since no route takes it.
    pub original: Arc<Route>,
    /// What comes to this pod's application.
    pub application: Arc<Route>,
    /// Limits on what the pod sends.
    pub outbound_limits: Limits,
    /// Limits on what is sent to the pod.
    pub inbound_limits: Limits,
    /// Who may call.
    pub policy: auth::Policy,
    /// Whose tokens are believed.
    pub tokens: Arc<Tokens>,
    /// Paths by which the application's health is asked for.
    pub probes: Vec<PathMatcher>,
    /// Which connections are let in.
    pub inbound_mtls: InboundMtls,
    /// What happens when host and address disagree.
    pub on_mismatch: OnMismatch,
    /// The bounds of messages, by direction.
    bounds: [Bounds; 2],
    /// Our own SPIFFE id; empty without an identity.
    pub identity: Box<str>,
}

/// Where requests go, and on which terms.
pub(super) struct Route {
    /// Which way requests go.
    pub direction: Direction,
    /// The upstream.
    pub upstream: Arc<Upstream>,
    /// From the request's head to the end of the answer.
    pub timeout: Option<Duration>,
    /// When a request is sent again.
    pub retries: Policy,
    /// When it is sent a second time before the first has been answered.
    pub hedge: Option<Hedge>,
    /// How many may be, over all routes to the upstream.
    pub budget: Arc<Budget>,
    /// The bounds of messages.
    pub bounds: Bounds,
    /// What keeps requests to one endpoint.
    pub sticky: Option<Sticky>,
    /// Requests and their latency.
    pub traffic: Arc<Traffic>,
    /// Connections carried as bytes.
    pub tcp: Arc<Tcp>,
}

impl Route {
    /// How long an answer may take before that is its endpoint's failure.
    pub(super) fn patience(&self) -> Option<Duration> {
        self.timeout.into_iter().chain(self.retries.try_timeout()).min()
    }
}

/// Where one request or connection goes.
#[derive(Clone)]
pub(super) struct Destination {
    /// The route.
    pub route: Arc<Route>,
    /// The one endpoint that was dialled; none: whichever is least saturated.
    pub pinned: Option<Arc<Endpoint>>,
}

/// An upstream, and what all routes to it share.
struct Towards {
    upstream: Arc<Upstream>,
    budget: Arc<Budget>,
}

/// What a route has of its own.
struct Terms<'a> {
    timeout: Option<Duration>,
    retries: &'a Retries,
    hedge: Option<model::Hedge>,
    sticky: Option<Sticky>,
    bounds: Bounds,
}

/// What compiling needs beside the configuration: what outlives a snapshot.
pub(super) struct Ground {
    /// Resolves names.
    pub resolver: Arc<Resolver>,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// Leases and buckets.
    pub limits: ArcSwap<limit::State>,
}

impl Mesh {
    /// Compiles a configuration that has been checked. What `before` has and still holds is kept:
    /// endpoints, counts, pools, leases.
    pub(super) fn compile(
        model: Model,
        tokens: Arc<Tokens>,
        tls: Option<&Tls>,
        ground: &Ground,
        before: Option<&Mesh>,
    ) -> Self {
        let metrics = &ground.metrics;
        let known = |name: &str| before?.upstreams.iter().find(|route| &*route.upstream.spec.name == name);
        let budget = |config, before: Option<&Arc<Route>>| match before {
            Some(route) => {
                route.budget.change(config, Instant::now());
                route.budget.clone()
            }
            None => Arc::new(Budget::new(config, metrics.workers())),
        };
        let both = [Direction::Outbound, Direction::Inbound].map(|direction| bounds(&model.http(direction)));
        let route_within = |direction, towards: &Towards, label: &str, terms: Terms<'_>| {
            let name = towards.upstream.spec.name.clone();
            Arc::new(Route {
                direction,
                upstream: towards.upstream.clone(),
                timeout: terms.timeout,
                retries: Policy::new(terms.retries),
                hedge: terms.hedge.map(|hedge| Hedge::new(&hedge)),
                budget: towards.budget.clone(),
                bounds: terms.bounds,
                traffic: metrics.traffic(direction, &name, label),
                tcp: metrics.tcp(direction, &name),
                sticky: terms.sticky,
            })
        };
        let route = |direction, towards: &Towards, label: &str, retries: &Retries| {
            let terms =
                Terms { timeout: None, retries, hedge: None, sticky: None, bounds: both[direction as usize] };
            route_within(direction, towards, label, terms)
        };
        let upstreams: HashMap<&str, Towards> = model
            .upstreams
            .iter()
            .map(|(name, upstream)| {
                let (spec, known) = (spec(&model, name, upstream, tls), known(name));
                let budget = budget(upstream.retry_budget, known);
                let before = known.map(|route| &*route.upstream);
                let upstream = Upstream::new(spec, before, &ground.resolver);
                (name.as_str(), Towards { upstream, budget })
            })
            .collect();
        let (mut entries, mut named) = (Vec::new(), Vec::new());
        for written in &model.routes {
            // Checked by validation: the upstream and the hosts are what they should be.
            let Some(towards) = upstreams.get(written.upstream.as_str()) else { continue };
            let timeout = written.timeout.map(|t| t.0);
            let label = label(written);
            let of_all = both[Direction::Outbound as usize];
            let bounds = Bounds {
                body_timeout: written.body_timeout.map_or(of_all.body_timeout, |t| t.0),
                least: written.min_body_rate.map_or(of_all.least, |rate| rate.0),
                ..of_all
            };
            let terms = Terms {
                timeout,
                retries: &written.retries,
                hedge: written.hedge,
                sticky: written.sticky.as_ref().map(Sticky::from),
                bounds,
            };
            let target = route_within(Direction::Outbound, towards, &label, terms);
            named.push(target.clone());
            for host in written.host.as_slice().iter().filter_map(|h| h.parse().ok()) {
                entries.push(Entry { host, path: written.path.clone(), target: target.clone() });
            }
        }
        let retries = Retries::default();
        for (name, address) in model.implicit_routes() {
            let Some(towards) = upstreams.get(name) else { continue };
            let target = route(Direction::Outbound, towards, &address.to_string(), &retries);
            named.push(target.clone());
            let host = HostPattern::from(address);
            entries.push(Entry { host, path: model::PathMatch::default(), target });
        }
        let limits = ground.limits.load_full();
        let fixed = |direction, name: &'static str, retries, connect_timeout: Time| {
            let before = before.map(|b| match direction {
                Direction::Outbound => &b.original,
                Direction::Inbound => &b.application,
            });
            let budget = budget(RetryBudget::default(), before);
            let before = before.map(|route| &*route.upstream);
            let spec = anywhere(name, connect_timeout.0);
            let spec = match direction {
                Direction::Outbound => spec,
                Direction::Inbound => application(spec, &model.inbound),
            };
            let upstream = Upstream::new(spec, before, &ground.resolver);
            route(direction, &Towards { upstream, budget }, "", retries)
        };
        Self {
            routes: Table::compile(entries.into_iter()),
            named,
            upstreams: model
                .upstreams
                .keys()
                .map(|name| route(Direction::Outbound, &upstreams[name.as_str()], "address", &retries))
                .collect(),
            original: fixed(Direction::Outbound, "original", &retries, model.outbound.connect_timeout),
            // Once, for a connection that the application closed as it was taken up. Whether to try
            // another endpoint is the caller's sidecar's to say.
            application: fixed(
                Direction::Inbound,
                "application",
                &Retries::Most(1),
                model.inbound.connect_timeout,
            ),
            outbound_limits: Limits::compile(&model.limits, Direction::Outbound, &limits),
            inbound_limits: Limits::compile(&model.limits, Direction::Inbound, &limits),
            policy: auth::Policy::compile(&model.inbound.allow),
            tokens,
            probes: model.inbound.probes.iter().map(PathMatcher::new).collect(),
            inbound_mtls: model.inbound_mtls(),
            on_mismatch: model.outbound.on_mismatch,
            bounds: both,
            identity: tls.map_or_else(Box::default, |tls| tls.id().as_str().into()),
            model,
        }
    }

    /// The bounds of messages of one direction.
    pub(super) fn bounds(&self, direction: Direction) -> &Bounds {
        &self.bounds[direction as usize]
    }

    /// Connections of one direction that may be open.
    pub(super) fn max_connections(&self, direction: Direction) -> u64 {
        u64::from(match direction {
            Direction::Outbound => self.model.outbound.max_connections.get(),
            Direction::Inbound => self.model.inbound.max_connections.get(),
        })
    }

    /// Ends what this snapshot has and `next` has not.
    pub(super) fn retire(&self, next: &Mesh) {
        let kept =
            |upstream: &Upstream| next.upstreams.iter().any(|route| route.upstream.shares_with(upstream));
        for route in self.upstreams.iter().filter(|route| !kept(&route.upstream)) {
            route.upstream.retire();
        }
    }

    /// The upstream that an address belongs to, and the endpoint, if it is one's. Waits for
    /// upstreams of which that is not known yet.
    pub(super) async fn by_address(&self, original: std::net::SocketAddr) -> Option<Destination> {
        let find = || {
            let route = self.upstreams.iter().find(|r| r.upstream.owns(original))?;
            Some(Destination { route: route.clone(), pinned: route.upstream.endpoint_at(original) })
        };
        let known = || self.upstreams.iter().all(|r| r.upstream.is_located());
        let mut found = find();
        if found.is_none() && !known() {
            let unknown = self.upstreams.iter().filter(|r| !r.upstream.is_located());
            let mut located: FuturesUnordered<_> = unknown.map(|r| r.upstream.located(original)).collect();
            while found.is_none() && located.next().await.is_some() {
                found = find();
            }
        }
        found
    }
}

fn spec(model: &Model, name: &str, upstream: &model::Upstream, tls: Option<&Tls>) -> Spec {
    let mode = model.upstream_mtls(upstream);
    let peer = match upstream.mtls.as_ref().and_then(|m| m.peer.as_deref()) {
        Some(id) => id.parse().ok().map(Peer::Id),
        None => tls.map(|tls| Peer::TrustDomain(tls.id().trust_domain().to_owned())),
    };
    let source = match &upstream.endpoints {
        Some(endpoints) => EndpointSource::new(endpoints.as_slice()),
        None => EndpointSource::new(&[EndpointName::At(upstream.address.clone())]),
    };
    Spec {
        name: name.into(),
        address: upstream.address.clone(),
        source,
        is_balanced: upstream.endpoints.is_some() || matches!(upstream.address.host, Host::Address(_)),
        slow_start: upstream.slow_start.0,
        peer: peer.filter(|_| mode != MtlsMode::Off),
        may_fall_back: mode == MtlsMode::Prefer,
        capacity: upstream.capacity.map(|n| n.get()),
        ejection: ejection(&upstream.ejection),
        queue: Patience { most: upstream.queue.requests as usize, time: upstream.queue.time.0 },
        zone: model.zone.as_deref().map(Into::into),
        subset: upstream.subset.map(|n| n.get() as usize),
        is_application: false,
        learns_most: false,
        max_in_flight: upstream.max_in_flight.map_or(u32::MAX, |n| n.get()),
        max_connections: upstream.max_connections.map_or(u32::MAX, |n| n.get()),
        connect_timeout: upstream.connect_timeout.0,
        keep_alive: keep_alive(upstream),
        peer_timeout: upstream.peer_timeout.0,
    }
}

fn ejection(written: &model::Ejection) -> Ejection {
    Ejection {
        failed: written.errors.get(),
        lost: written.lost.get(),
        part: written.ratio.of_one() as f32,
        most: written.share.of_one() as f32,
        pause: written.pause.0,
        longest: written.longest.0,
    }
}

fn keep_alive(upstream: &model::Upstream) -> Configured {
    Configured {
        timeout: upstream.keep_alive.timeout.map(|t| t.0),
        requests: upstream.keep_alive.requests.map(|n| n.get()),
        most_idle: upstream.idle_timeout.0,
    }
}

/// An upstream without endpoints of its own: each request brings its address along.
fn anywhere(name: &str, connect_timeout: Duration) -> Spec {
    let address = HostPort { host: Host::Address([0, 0, 0, 0].into()), port: 0 };
    let defaults = model::Upstream::at(address);
    let keep_alive = keep_alive(&defaults);
    Spec {
        ejection: ejection(&defaults.ejection),
        connect_timeout,
        keep_alive,
        peer_timeout: defaults.peer_timeout.0,
        ..Spec::plain(name, defaults.address, EndpointSource::new(&[]))
    }
}

/// The application, as the upstream of what is sent to the pod.
fn application(spec: Spec, inbound: &model::Inbound) -> Spec {
    Spec {
        is_application: true,
        capacity: inbound.capacity.map(|n| n.get()),
        max_in_flight: match inbound.max_in_flight {
            Some(Most::Number(n)) => n.get(),
            Some(Most::Learned) | None => u32::MAX,
        },
        learns_most: inbound.max_in_flight == Some(Most::Learned),
        ..spec
    }
}

/// What a route is called in metrics: its first host and its path.
fn label(route: &model::Route) -> String {
    let host = route.host.as_slice().first().map_or("*", String::as_str);
    match &route.path {
        model::PathMatch::Prefix(path) => format!("{host}{path}"),
        model::PathMatch::Exact(path) => format!("{host}={}", path.exact),
    }
}

fn bounds(http: &model::Http) -> Bounds {
    Bounds {
        head_bytes: usize::try_from(http.max_header_bytes.0).unwrap_or(usize::MAX),
        fields: http.max_headers.get() as usize,
        streams: http.max_streams.get(),
        head_timeout: http.header_timeout.0,
        body_timeout: http.body_timeout.0,
        least: http.min_body_rate.0,
        idle_timeout: http.idle_timeout.0,
        age: http.max_connection_age.0,
    }
}
