//! A core's runtime: one thread, its connections and its pools, and nothing shared with other
//! workers but counts and the snapshot.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::spawn_local;
use tokio_util::sync::CancellationToken;

use super::application::Served;
use super::drain::Drain;
use super::mesh::{Ground, Mesh, Route};
use super::{inbound, outbound};
use crate::balance::{Asked, Asks, Endpoint, Upstream};
use crate::config::model::Direction;
use crate::error::{Error, Reason};
use crate::http::closing::{Closed, Closing};
use crate::intercept;
use crate::pool::{Alarm, Dial, Pools, tune};
use crate::telemetry::Accepted;
use crate::tls::{self, Carries};

/// How long a worker without requests holds on to a snapshot that was replaced.
const LET_GO: Duration = Duration::from_millis(500);

/// How long a connection may take to say its first word when connections are to end: one that has just
/// been accepted has it on its way.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Addresses without an upstream that a worker remembers.
const MAX_ADDRESSES: usize = 4096;

/// A worker's hold on the snapshot. Requests count it in the worker's own memory, not in the line
/// that all cores would write.
pub(super) type Snapshot = Rc<Arc<Mesh>>;

/// What all workers and the control thread share.
pub(super) struct Shared {
    /// The snapshot.
    pub mesh: ArcSwap<Mesh>,
    /// Our identity.
    pub tls: tls::Current,
    /// Whether we are about to end.
    pub drain: Drain,
    /// Where the application has taken traffic.
    pub served: Served,
    /// Counts, names and leases.
    pub ground: Ground,
    /// Every port that we listen on.
    pub ports: Vec<u16>,
    /// Where each direction's connections are accepted.
    pub listeners: Vec<(Direction, SocketAddr)>,
    /// Requests whose host has a route, but whose address is not that upstream's.
    pub mismatches: AtomicU64,
    /// Requests and tunnels that are being served, by worker.
    pub busy: Box<[Line]>,
    /// How each worker's pools are told of what happens to a connection, and of who waits for one.
    pub alarms: Arc<[Arc<Alarm>]>,
}

/// A count on a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Line(AtomicU64);

impl Shared {
    /// Refuses an endpoint that is a listener of the same direction: what goes there comes back here,
    /// until nothing is left to carry it.
    pub(super) fn leads_away(&self, direction: Direction, endpoint: SocketAddr) -> Result<(), Error> {
        let to_us = |listener: &SocketAddr| {
            listener.port() == endpoint.port()
                && (listener.ip() == endpoint.ip()
                    || (listener.ip().is_unspecified() && intercept::is_local(endpoint.ip())))
        };
        if !self.listeners.iter().any(|(of, listener)| *of == direction && to_us(listener)) {
            return Ok(());
        }
        let why =
            format!("the endpoint {endpoint} is this sidecar's own listener (listen.{})", direction.name());
        Err(Error::new(Reason::PoolLoop, why))
    }

    /// Requests and tunnels that are being served.
    pub(super) fn in_flight(&self) -> u64 {
        self.busy.iter().map(|line| line.0.load(Ordering::Relaxed)).sum()
    }

    /// Open connections of callers.
    pub(super) fn inbound_connections(&self) -> u64 {
        self.ground.metrics.open(Direction::Inbound)
    }
}

/// An accepted connection, on its way to the worker that will serve it.
pub(super) struct Accept {
    stream: std::net::TcpStream,
    direction: Direction,
    accepted: Accepted,
}

/// What a worker is given.
pub(super) struct Assignment {
    /// Its number, from 0.
    pub index: usize,
    /// Its own listeners.
    pub listeners: Vec<(Direction, std::net::TcpListener)>,
    /// Connections that other workers accepted for it.
    pub handed: mpsc::UnboundedReceiver<Accept>,
    /// The way to every worker, itself included.
    pub workers: Vec<mpsc::UnboundedSender<Accept>>,
}

/// One worker.
pub(super) struct Worker {
    /// Its number, from 0.
    pub index: usize,
    /// What all share.
    pub shared: Arc<Shared>,
    /// Its connections to endpoints.
    pub pools: Rc<Pools>,
    mesh: RefCell<Snapshot>,
    addresses: RefCell<HashMap<SocketAddr, Arc<Endpoint>>>,
    served: RefCell<HashSet<SocketAddr>>,
    inbound: Ending,
    outbound: Ending,
}

/// The end of one direction's connections: the token for what waits for it alone, the word for
/// the many that idle.
struct Ending {
    token: CancellationToken,
    closing: Rc<Closing>,
}

impl Ending {
    fn new(token: CancellationToken) -> Self {
        Self { token, closing: Rc::default() }
    }

    /// Passes the word on.
    fn follow(&self) -> impl Future<Output = ()> + use<> {
        let (token, closing) = (self.token.clone(), self.closing.clone());
        async move {
            token.cancelled().await;
            closing.say();
        }
    }
}

/// Runs a worker on this thread until `end`.
pub(super) fn run(
    shared: Arc<Shared>,
    assignment: Assignment,
    end: CancellationToken,
) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())?;
    runtime.block_on(async {
        let worker = Worker::new(assignment.index, shared);
        let workers = Rc::new(assignment.workers);
        spawn_local(worker.inbound.follow());
        spawn_local(worker.outbound.follow());
        for (direction, listener) in assignment.listeners {
            let listener = TcpListener::from_std(listener)?;
            spawn_local(accept(worker.clone(), workers.clone(), direction, listener));
        }
        spawn_local(take(worker.clone(), assignment.handed));
        let keeper = worker.clone();
        spawn_local(async move { keeper.pools.keep().await });
        let idler = worker.clone();
        spawn_local(async move {
            loop {
                // A worker without requests lets the snapshot before go, too.
                tokio::time::sleep(LET_GO).await;
                idler.mesh();
            }
        });
        end.cancelled().await;
        Ok(())
    })
}

impl Worker {
    fn new(index: usize, shared: Arc<Shared>) -> Rc<Self> {
        Rc::new(Self {
            index,
            pools: Rc::new(Pools::new(shared.tls.clone(), index, shared.alarms.clone())),
            mesh: RefCell::new(Rc::new(shared.mesh.load_full())),
            addresses: RefCell::default(),
            served: RefCell::default(),
            inbound: Ending::new(shared.drain.inbound.child_token()),
            outbound: Ending::new(shared.drain.outbound.child_token()),
            shared,
        })
    }

    /// The snapshot as it is now. The count that other cores write is touched only when it has
    /// changed.
    pub(super) fn mesh(&self) -> Snapshot {
        let now = self.shared.mesh.load();
        let mut known = self.mesh.borrow_mut();
        if !Arc::ptr_eq(&now, &known) {
            *known = Rc::new(Arc::clone(&now));
        }
        known.clone()
    }

    /// Resolves when idle connections of this direction are to be closed.
    pub(super) fn closing(&self, direction: Direction) -> Closed {
        self.ending(direction).closing.wait()
    }

    fn ending(&self, direction: Direction) -> &Ending {
        match direction {
            Direction::Inbound => &self.inbound,
            Direction::Outbound => &self.outbound,
        }
    }

    /// Waits for a connection's first word, which is `work`, but no longer than one may idle, and hardly
    /// beyond the time when connections of this direction are to end.
    pub(super) async fn unless_closing<T>(
        &self,
        direction: Direction,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let idle = self.mesh().bounds(direction).idle_timeout;
        tokio::select! {
            biased;
            done = work => done,
            () = self.closing(direction).then(|()| tokio::time::sleep(LAST_WORD)) => {
                Err(Error::new(Reason::DrainDraining, "silent until the end"))
            }
            () = tokio::time::sleep(idle) => Err(Error::new(Reason::HttpDownstreamGone, "silent for http.idle_timeout")),
        }
    }

    /// Counts a request or tunnel as long as the guard lives: the process does not end under it.
    pub(super) fn busy(self: &Rc<Self>) -> Busy {
        self.shared.busy[self.index].0.fetch_add(1, Ordering::Relaxed);
        Busy(self.clone())
    }

    /// Counts and notes a connection that was refused.
    pub(super) fn refused(&self, direction: Direction, error: &Error) {
        tracing::debug!(direction = direction.name(), side = ?error.reason.side(), %error, "refused");
        self.shared.ground.metrics.refused(direction, self.index, error.reason);
    }

    /// Notes that the application took a connection's traffic at this address. What all workers know is
    /// touched only by what is new to this one.
    pub(super) fn served(&self, application: SocketAddr) {
        if self.served.borrow_mut().insert(application) {
            self.shared.served.note(application);
        }
    }

    /// The endpoint of an address that belongs to no upstream.
    pub(super) fn endpoint_at(&self, address: SocketAddr, route: &Route) -> Arc<Endpoint> {
        let mut addresses = self.addresses.borrow_mut();
        if addresses.len() >= MAX_ADDRESSES && !addresses.contains_key(&address) {
            addresses.retain(|_, e| e.in_flight() + e.connections() > 0);
        }
        let new = || {
            let endpoint = Endpoint::new(address, None);
            endpoint.keep_alive.configure(route.upstream.spec.keep_alive);
            endpoint
        };
        addresses.entry(address).or_insert_with(new).clone()
    }
}

impl Asks for Worker {
    async fn ask(&self, upstream: &Arc<Upstream>, endpoints: Asked) {
        let now = tokio::time::Instant::now();
        let mut asked = FuturesUnordered::new();
        let mut strange = None;
        for endpoint in &endpoints {
            match self.pools.link(endpoint, now) {
                Some(link) => asked.push(async move { (endpoint, link.load().await) }),
                None => strange = Some(endpoint),
            }
        }
        if let Some(endpoint) = strange {
            self.gets_to_know(upstream, endpoint);
        }
        while let Some((endpoint, said)) = asked.next().await {
            if let Some(said) = said {
                upstream.hear(endpoint, &said);
            }
        }
    }
}

impl Worker {
    /// Opens a connection to an endpoint's sidecar, so that it can be asked the next time.
    fn gets_to_know(&self, upstream: &Arc<Upstream>, endpoint: &Arc<Endpoint>) {
        if !upstream.secures(endpoint) {
            return;
        }
        let (pools, upstream, endpoint) = (self.pools.clone(), upstream.clone(), endpoint.clone());
        let bounds = *self.mesh().bounds(Direction::Outbound);
        spawn_local(async move {
            let dial = Dial { source: None, secure: Some(Carries::Requests) };
            if let Err(error) = pools.open_streams(&upstream, &endpoint, dial, bounds).await {
                tracing::debug!(endpoint = %endpoint.address, %error, "could not be asked how full it is");
            }
        });
    }
}

/// A request or tunnel that is being served.
pub(super) struct Busy(Rc<Worker>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.shared.busy[self.0.index].0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Accepts connections until those of this direction are to end.
async fn accept(
    worker: Rc<Worker>,
    workers: Rc<Vec<mpsc::UnboundedSender<Accept>>>,
    direction: Direction,
    listener: TcpListener,
) {
    let closing = worker.ending(direction).token.clone();
    loop {
        let accepted = tokio::select! {
            biased;
            accepted = listener.accept() => accepted,
            () = closing.cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) => place(&worker, &workers, direction, stream),
            Err(error) => {
                // Out of descriptors, or a connection that died in the queue: neither is the
                // listener's end.
                tracing::warn!(%error, direction = direction.name(), "accept");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
    // Whoever is in the queue was told that we listen, and what the runtime knows of it may be old: the
    // kernel is asked until it has no more.
    let Ok(listener) = listener.into_std() else { return };
    while let Ok((stream, _)) = listener.accept() {
        if let Ok(stream) = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)) {
            place(&worker, &workers, direction, stream);
        }
    }
}

/// Gives a connection to the worker that has the fewest.
fn place(
    worker: &Rc<Worker>,
    workers: &[mpsc::UnboundedSender<Accept>],
    direction: Direction,
    stream: TcpStream,
) {
    let metrics = &worker.shared.ground.metrics;
    let least = (0..workers.len()).min_by_key(|i| (metrics.connections(*i), *i != worker.index));
    let least = least.unwrap_or(worker.index);
    // Counted first and looked at then: two workers that accept at once must not both find room.
    let accepted = metrics.accepted(direction, least);
    let most = worker.mesh().max_connections(direction);
    if metrics.open(direction) > most {
        let why = format!("{}.max_connections ({most}) are open", direction.name());
        worker.refused(direction, &Error::new(Reason::ListenFull, why));
    } else if least == worker.index {
        spawn_local(serve(worker.clone(), direction, stream, accepted));
    } else if let Ok(stream) = stream.into_std() {
        let _ = workers[least].send(Accept { stream, direction, accepted });
    }
}

/// Serves connections that other workers accepted.
async fn take(worker: Rc<Worker>, mut handed: mpsc::UnboundedReceiver<Accept>) {
    while let Some(Accept { stream, direction, accepted }) = handed.recv().await {
        match TcpStream::from_std(stream) {
            Ok(stream) => drop(spawn_local(serve(worker.clone(), direction, stream, accepted))),
            Err(error) => tracing::warn!(%error, "a connection could not be handed over"),
        }
    }
}

async fn serve(worker: Rc<Worker>, direction: Direction, stream: TcpStream, _accepted: Accepted) {
    if tune(&stream).is_err() {
        return;
    }
    match direction {
        Direction::Outbound => outbound::serve(worker, stream).await,
        Direction::Inbound => inbound::serve(worker, stream).await,
    }
}
