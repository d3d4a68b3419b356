//! An upstream: its endpoints as they are now, and what this sidecar has in flight to them.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::candidates::Candidates;
use super::live::{Live, Terms};
use super::room::{Handed, Room, Waiting, Wanted};
use super::{Configured, Ejection, Endpoint, None, Now, Patience, Question, Uneven};
use crate::config::units::HostPort;
use crate::dns::{self, EndpointSource, Resolution, Resolver, State};
use crate::error::{Error, Reason, Result, Retry};
use crate::http::Announcement;
use crate::tls::Peer;

/// How long an address of one family is waited for before one of the other is tried (RFC 8305
/// section 8).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// What the configuration says of an upstream.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    /// Its name.
    pub name: Arc<str>,
    /// What applications dial.
    pub address: HostPort,
    /// Where its endpoints come from.
    pub source: EndpointSource,
    /// Whether the configuration names what to balance over. Else it is `address`, and if that is one
    /// alone it may stand for many, as a ClusterIP does.
    pub is_balanced: bool,
    /// How long an endpoint that joins others takes less than its share.
    pub slow_start: Duration,
    /// The identity that its endpoints must prove; none: plaintext.
    pub peer: Option<Peer>,
    /// Whether a peer that answers in plaintext may be spoken to so.
    pub may_fall_back: bool,
    /// What one endpoint takes at once; none: what it announces, or what is learned.
    pub capacity: Option<u32>,
    /// When endpoints that fail are passed over.
    pub ejection: Ejection,
    /// How requests wait while there is no room for them.
    pub queue: Patience,
    /// It is the application: what it can do as a whole is learned.
    pub is_application: bool,
    /// The zone that we are in: endpoints in it come first.
    pub zone: Option<Arc<str>>,
    /// Of very many endpoints this sidecar uses so many.
    pub subset: Option<usize>,
    /// Whether it is given no more than twice what it is learned to do at once.
    pub learns_most: bool,
    /// What this sidecar may have in flight to all of it.
    pub max_in_flight: u32,
    /// Connections that this sidecar may have open to all of it.
    pub max_connections: u32,
    /// For one connection, handshake included.
    pub connect_timeout: Duration,
    /// How long its endpoints keep plain connections.
    pub keep_alive: Configured,
    /// Between sidecars: how long a peer may be silent that owes us something.
    pub peer_timeout: Duration,
}

impl Spec {
    /// An upstream of which no more is said: in plaintext, with endpoints to balance over, and without bounds or a queue.
    pub fn plain(name: &str, address: HostPort, source: EndpointSource) -> Self {
        Self {
            name: name.into(),
            address,
            source,
            is_balanced: true,
            slow_start: Duration::ZERO,
            peer: Option::None,
            may_fall_back: false,
            capacity: Option::None,
            ejection: Ejection::default(),
            queue: Patience { most: 0, time: Duration::ZERO },
            is_application: false,
            zone: Option::None,
            subset: Option::None,
            learns_most: false,
            max_in_flight: u32::MAX,
            max_connections: u32::MAX,
            connect_timeout: Duration::from_secs(2),
            keep_alive: Configured {
                timeout: Option::None,
                requests: Option::None,
                most_idle: Duration::from_secs(300),
            },
            peer_timeout: Duration::from_secs(10),
        }
    }
}

/// An upstream as requests use it: shared by all workers, kept over reloads.
#[derive(Debug)]
pub struct Upstream {
    /// What the configuration says.
    pub spec: Spec,
    pub(super) live: Arc<Live>,
}

impl Upstream {
    /// The upstream of `spec`. Endpoints, counts and pools of `before` are kept if they come from
    /// the same source and prove the same identity.
    pub fn new(spec: Spec, before: Option<&Upstream>, resolver: &Arc<Resolver>) -> Arc<Self> {
        let same = |before: &&Upstream| {
            let old = &before.spec;
            old.address == spec.address
                && old.source == spec.source
                && old.peer == spec.peer
                && old.is_balanced == spec.is_balanced
                && (&old.zone, old.subset) == (&spec.zone, spec.subset)
        };
        let live = match before.filter(same) {
            Some(before) => before.live.clone(),
            Option::None => Live::follow(&spec, resolver),
        };
        *live.terms.lock().unwrap_or_else(PoisonError::into_inner) = Terms::of(&spec);
        live.max_connections.store(spec.max_connections, Ordering::Relaxed);
        // Those that have left may come back.
        for endpoint in live.endpoints.load().iter().chain(live.leaving.load().iter()) {
            endpoint.set_capacity(spec.capacity);
            endpoint.keep_alive.configure(spec.keep_alive);
        }
        // There may be room that was none before.
        live.serve();
        live.waiting.all();
        Arc::new(Self { spec, live })
    }

    /// The endpoints as they are now.
    pub fn endpoints(&self) -> Arc<Vec<Arc<Endpoint>>> {
        self.live.endpoints.load_full()
    }

    /// Endpoints that have left and still have requests or connections.
    pub fn leaving(&self) -> Vec<Arc<Endpoint>> {
        self.live.leaving.load().iter().filter(|e| e.in_flight() + e.connections() > 0).cloned().collect()
    }

    /// What the source last said.
    pub fn resolution(&self) -> Resolution {
        self.live.resolution.borrow().clone()
    }

    /// Requests in flight from this sidecar.
    pub fn in_flight(&self) -> u32 {
        self.live.in_flight.load(Ordering::Relaxed)
    }

    /// How full its endpoints are together: in flight over capacity, as far as is known, from 0 on.
    pub fn saturation(&self) -> f64 {
        if self.spec.is_application {
            return f64::from(self.in_flight()) / self.pod_capacity();
        }
        let endpoints = self.live.endpoints.load();
        // The second address of an endpoint is no room beside its first.
        let first = endpoints.iter().filter(|endpoint| !endpoint.standing.is_second());
        let (load, capacity) = first.fold((0.0, 0.0), |(load, capacity), endpoint| {
            let (_, most) = endpoint.capacity();
            (
                load + self.live.crowd.saturation(endpoint, Now::read()) * f64::from(most),
                capacity + f64::from(most),
            )
        });
        if capacity == 0.0 { 0.0 } else { load / capacity }
    }

    /// How full an endpoint is: in flight over capacity, as far as is known, from 0 on.
    pub fn saturation_of(&self, endpoint: &Endpoint) -> f64 {
        self.live.crowd.saturation(endpoint, Now::read())
    }

    /// Requests that may be in flight to it.
    pub(super) fn most(&self) -> u32 {
        if !self.spec.learns_most {
            return self.spec.max_in_flight;
        }
        self.live.learned.most()
    }

    /// Requests that the application serves at once before they wait for each other.
    pub fn pod_capacity(&self) -> f64 {
        self.spec.capacity.map_or(f64::from(self.live.learned.capacity()), f64::from)
    }

    /// What callers are told of it, where it is the application.
    pub fn announces(&self) -> Announcement {
        let learned = &self.live.learned;
        let learned_capacity = || if learned.is_known() { learned.capacity().round() as u32 } else { 0 };
        let in_flight = self.in_flight();
        // Whoever has nothing to do may be tried; one request at a time.
        let latency = match in_flight {
            0 => learned.latency_at(Now::read().micros()),
            _ => learned.latency(),
        };
        Announcement {
            in_flight,
            capacity: self.spec.capacity.unwrap_or_else(learned_capacity),
            latency: latency.ceil() as u32,
            most: Some(self.most()).filter(|most| *most != u32::MAX).unwrap_or(0),
        }
    }

    /// Requests that wait for a place.
    pub fn waiting(&self) -> usize {
        self.live.waiting.len()
    }

    /// Open connections to all endpoints.
    pub fn connections(&self) -> u32 {
        self.live.connections.load(Ordering::Relaxed)
    }

    /// Whether a connection to `original` was meant for this upstream: one of the addresses that
    /// applications dial, or an endpoint.
    pub fn owns(&self, original: SocketAddr) -> bool {
        let ip = original.ip();
        (original.port() == self.spec.address.port && self.live.vips.load().contains(&ip))
            || self.live.endpoints.load().iter().any(|e| e.address == original)
            || self.live.leaving.load().iter().any(|e| e.address == original && e.just_left())
    }

    /// Whether it is known yet which connections are meant for this upstream.
    pub fn is_located(&self) -> bool {
        self.live.located.initialized()
    }

    /// Waits until it is known whether a connection to `original` was meant for this upstream: until
    /// its names have been answered a first time, no longer than a connection may take. Without
    /// it, what comes first would pass the upstream by, and leave the pod in plaintext.
    pub async fn located(&self, original: SocketAddr) {
        let port = original.port();
        if port == self.spec.address.port || self.spec.source.may_have_port(port) {
            // Whether in time or not, what is known then decides.
            let _ = timeout(self.spec.connect_timeout, self.live.located.wait()).await;
        }
    }

    /// The endpoint at an address; one that has just left is still itself, and no other.
    pub fn endpoint_at(&self, address: SocketAddr) -> Option<Arc<Endpoint>> {
        let find = |set: &[Arc<Endpoint>]| set.iter().find(|e| e.address == address).cloned();
        find(&self.live.endpoints.load())
            .or_else(|| find(&self.live.leaving.load()).filter(|e| e.just_left()))
    }

    /// Whether mTLS is spoken to an endpoint: always where an identity is required, and where it is
    /// preferred unless the peer has just shown that it knows none.
    pub fn secures(&self, endpoint: &Endpoint) -> bool {
        self.spec.peer.is_some() && !(self.spec.may_fall_back && endpoint.is_plaintext())
    }

    /// Whether nothing may go to it but over mTLS.
    pub fn requires_identity(&self) -> bool {
        self.spec.peer.is_some() && !self.spec.may_fall_back
    }

    /// Whether `other` has the same endpoints, counts and pools.
    pub fn shares_with(&self, other: &Upstream) -> bool {
        Arc::ptr_eq(&self.live, &other.live)
    }

    /// Ends it: no name is followed any more, and its connections close once their requests have
    /// finished.
    pub fn retire(&self) {
        self.live.follow.abort();
        self.live.endpoints.load().iter().for_each(|e| e.leave());
    }

    /// What its endpoints differ in now, if they do.
    pub(super) fn uneven<'a>(&self, candidates: &'a Candidates, now: Now) -> Option<Uneven<'a>> {
        let uneven = now.millis() < self.live.uneven_until.load(Ordering::Relaxed);
        let ranks = candidates.ranks.as_ref();
        uneven.then_some(Uneven { slow_start: self.spec.slow_start, ranks })
    }

    /// The endpoint for the next request.
    pub fn choose(&self, tried: &[u64]) -> std::result::Result<Arc<Endpoint>, None> {
        let now = Now::read();
        let candidates = self.live.candidates.load();
        let question = Question { tried, now, asked: false, uneven: self.uneven(&candidates, now) };
        self.live.crowd.choose(&candidates.endpoints, &question).map(|chosen| chosen.endpoint.clone())
    }

    /// Takes what an endpoint's sidecar says of how full it is.
    pub fn hear(&self, endpoint: &Endpoint, said: &Announcement) {
        self.live.crowd.hear(endpoint, said, Now::read());
    }

    /// Whether its one endpoint may be many behind one address.
    pub fn is_virtual(&self) -> bool {
        self.live.endpoints.load().first().is_some_and(|endpoint| endpoint.standing.is_virtual())
    }

    /// How long TCP to `endpoint` is waited for before an address of the other family is tried: while
    /// there is one, and this one has never answered (RFC 8305's Connection Attempt Delay).
    pub fn attempt_delay(&self, endpoint: &Endpoint) -> Option<Duration> {
        if self.live.uneven_until.load(Ordering::Relaxed) == 0 || !endpoint.is_untried() {
            return Option::None;
        }
        let second = endpoint.standing.is_second();
        let other = |e: &Arc<Endpoint>| e.standing.is_second() != second && !e.is_paused();
        self.live.endpoints.load().iter().any(other).then_some(ATTEMPT_DELAY)
    }

    /// Waits for the source's first word, no longer than a connection may take.
    pub(super) async fn first_resolution(&self) -> Result<()> {
        let mut heard = self.live.heard.subscribe();
        // Whether in time or not, what the source says now is the answer.
        let _ = timeout(self.spec.connect_timeout, heard.wait_for(|heard| *heard)).await;
        match self.resolution().state {
            State::Failed { reason, why } => Err(self.error(reason, why.to_string())),
            State::Pending => Err(self.error(Reason::DnsNoAnswer, "its name has not been answered yet")),
            State::Fresh | State::Stale { .. } => Ok(()),
        }
    }

    /// Counts a new connection to `endpoint` while the guard lives; none if there are as many as there
    /// may be.
    pub fn open(&self, endpoint: &Arc<Endpoint>) -> Option<Open> {
        self.live.take_room().then(|| Open::new(self.live.clone(), endpoint.clone()))
    }

    /// Waits for room for a connection to `endpoint`, behind those who have waited longer.
    pub fn wait(&self, endpoint: &Arc<Endpoint>, wanted: Wanted) -> oneshot::Receiver<Room> {
        let room = self.live.queue.join(endpoint, wanted);
        // What was given back before we stood in the queue was given to nobody.
        self.live.serve();
        room
    }

    /// Whether somebody waits for room.
    pub fn is_waited_for(&self) -> bool {
        self.live.queue.is_waited_in()
    }

    /// That nobody has given a connection back in time.
    pub fn full(&self) -> Error {
        self.error(Reason::PoolFull, "max_connections connections are open, and each is in use")
            .retry(Retry::Unprocessed)
            .retry_after(Duration::from_secs(1))
    }

    pub(super) fn error(&self, reason: Reason, detail: impl Into<std::borrow::Cow<'static, str>>) -> Error {
        Error::new(reason, detail).retry(Retry::Never).upstream(&self.spec.name)
    }

    /// When the addresses that applications dial were last said, and what they are.
    pub fn address(&self) -> dns::Answer {
        self.live.address.borrow().clone()
    }
}

/// A connection to an endpoint, counted while it lives.
#[derive(Debug)]
pub struct Open {
    live: Arc<Live>,
    endpoint: Arc<Endpoint>,
}

impl Open {
    pub(super) fn new(live: Arc<Live>, endpoint: Arc<Endpoint>) -> Self {
        endpoint.opened();
        Self { live, endpoint }
    }

    /// The endpoint.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// Whether somebody waits for this connection, or for its room.
    pub fn is_waited_for(&self) -> bool {
        self.live.queue.is_waited_in()
    }

    /// Hands a connection to who has waited longest, if it `suits` what he wants: by `hand`, as what counts
    /// it. What does not suit is closed, which makes room.
    pub fn hand_on(self, suits: impl Fn(Wanted) -> bool, hand: impl FnOnce() -> Option<Handed>) {
        let suits = |first: &Waiting| first.endpoint.id == self.endpoint.id && suits(first.wanted);
        if let Some(first) = self.live.queue.first_if(suits) {
            first.give(Room { handed: hand(), open: self });
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.endpoint.closed();
        self.live.connections.fetch_sub(1, Ordering::SeqCst);
        self.live.serve();
    }
}
