//! An upstream: its endpoints as they are now, and what this sidecar has in flight to them.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::endpoint::now_millis;
use super::live::Live;
use super::room::{Handed, Room, Waiting, Wanted};
use super::{Configured, Endpoint, None, least_saturated, least_saturated_by_share};
use crate::config::units::HostPort;
use crate::dns::{self, EndpointSource, Resolution, Resolver, State};
use crate::error::{Error, Reason, Result, Retry};
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
    /// What one endpoint takes at once.
    pub capacity: u32,
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

/// An upstream as requests use it: shared by all workers, kept over reloads.
#[derive(Debug)]
pub struct Upstream {
    /// What the configuration says.
    pub spec: Spec,
    live: Arc<Live>,
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
        };
        let live = match before.filter(same) {
            Some(before) => before.live.clone(),
            Option::None => Live::follow(&spec, resolver),
        };
        live.capacity.store(spec.capacity, Ordering::Relaxed);
        live.max_connections.store(spec.max_connections, Ordering::Relaxed);
        *live.keep_alive.lock().unwrap_or_else(PoisonError::into_inner) = spec.keep_alive;
        *live.slow_start.lock().unwrap_or_else(PoisonError::into_inner) = spec.slow_start;
        // Those that have left may come back.
        for endpoint in live.endpoints.load().iter().chain(live.leaving.load().iter()) {
            endpoint.set_capacity(spec.capacity);
            endpoint.keep_alive.configure(spec.keep_alive);
        }
        // Some of them may have found room that was none before.
        live.serve();
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

    /// In flight over the capacity of all endpoints.
    pub fn saturation(&self) -> f64 {
        let endpoints = self.live.endpoints.load();
        // The second address of an endpoint is no room beside its first.
        let first = endpoints.iter().filter(|endpoint| !endpoint.standing.is_second());
        let capacity: u64 = first.map(|endpoint| u64::from(endpoint.capacity())).sum();
        if capacity == 0 { 0.0 } else { f64::from(self.in_flight()) / capacity as f64 }
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

    /// Takes a place with the least saturated endpoint that is not among `tried`.
    pub async fn pick(self: &Arc<Self>, tried: &[u64]) -> Result<InFlight> {
        let in_flight = self.begin()?;
        let mut chosen = self.choose(tried);
        if matches!(chosen, Err(None::Empty)) && tried.is_empty() {
            Box::pin(self.first_resolution()).await?;
            chosen = self.choose(tried);
        }
        match chosen {
            Ok(endpoint) => Ok(in_flight.at(endpoint)),
            Err(None::Full) => Err(self
                .error(Reason::BalanceFull, "every endpoint is at its capacity")
                .retry_after(Duration::from_secs(1))),
            Err(None::Empty) if tried.is_empty() => {
                Err(self.error(Reason::BalanceNoEndpoint, "its source gives no endpoint"))
            }
            Err(None::Empty) => Err(self.error(Reason::BalanceNoEndpoint, "every endpoint was tried")),
        }
    }

    /// The endpoint for the next request. It takes no lock, and allocates nothing.
    pub fn choose(&self, tried: &[u64]) -> std::result::Result<Arc<Endpoint>, None> {
        let endpoints = self.live.endpoints.load();
        let uneven_until = self.live.uneven_until.load(Ordering::Relaxed);
        // The clock is read only while it matters.
        let now = if uneven_until == 0 { 0 } else { now_millis() };
        if now >= uneven_until {
            least_saturated(&endpoints, tried).cloned()
        } else {
            least_saturated_by_share(&endpoints, tried, now, self.spec.slow_start).cloned()
        }
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

    /// Takes a place with one endpoint, whatever its saturation.
    pub fn place_at(self: &Arc<Self>, endpoint: &Arc<Endpoint>) -> Result<InFlight> {
        Ok(self.begin()?.at(endpoint.clone()))
    }

    fn begin(self: &Arc<Self>) -> Result<Place> {
        // Counted first and given back if that was one too many: exact over all workers.
        let before = self.live.in_flight.fetch_add(1, Ordering::Relaxed);
        let place = Place(self.clone());
        if before >= self.spec.max_in_flight {
            return Err(self
                .error(Reason::BalanceFull, "max_in_flight requests are in flight")
                .retry_after(Duration::from_secs(1)));
        }
        Ok(place)
    }

    /// Waits for the source's first word, no longer than a connection may take.
    async fn first_resolution(&self) -> Result<()> {
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

    fn error(&self, reason: Reason, detail: impl Into<std::borrow::Cow<'static, str>>) -> Error {
        Error::new(reason, detail).retry(Retry::Never).upstream(&self.spec.name)
    }

    /// When the addresses that applications dial were last said, and what they are.
    pub fn address(&self) -> dns::Answer {
        self.live.address.borrow().clone()
    }
}

/// A place in the upstream's count, before an endpoint is chosen.
struct Place(Arc<Upstream>);

impl Place {
    fn at(self, endpoint: Arc<Endpoint>) -> InFlight {
        endpoint.begin();
        InFlight { endpoint, place: self }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.live.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request in flight, counted at its endpoint and its upstream while this lives.
pub struct InFlight {
    /// Where it goes.
    pub endpoint: Arc<Endpoint>,
    place: Place,
}

impl InFlight {
    /// The upstream.
    pub fn upstream(&self) -> &Arc<Upstream> {
        &self.place.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.endpoint.end();
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
