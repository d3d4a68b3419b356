//! Connections to endpoints, kept by each worker for itself and used most recent first.
//!
//! Promises: a connection is used only while it is open and silent and younger in its idleness
//! than the upstream allows; one connection per worker and peer carries every request between
//! sidecars, and another only while that one is full; no connection reaches an endpoint other than the one it was opened to.

mod dial;

pub use dial::{Dial, Stream, dial, never_pauses, tune};

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use foldhash::fast::FixedState;
use futures_util::FutureExt;
use futures_util::future::{LocalBoxFuture, Shared};
use tokio::net::TcpStream;
use tokio::task::spawn_local;
use tokio::time::{Instant, timeout};
use tokio_util::either::Either;

use crate::balance::{Endpoint, Open, Upstream};
use crate::error::{Error, Reason, Result, Retry};
use crate::http::{Bounds, h1, h2, mesh};
use crate::tls::{self, Alpn};

/// A connection that has idled for less than this is used without asking the kernel about it, for
/// a request that may be sent again: the runtime has looked since.
const LOOKED_AT: Duration = Duration::from_millis(5);

/// A worker's connections.
pub struct Pools {
    /// Our identity, as it is when a connection is opened.
    tls: tls::Current,
    idle: RefCell<HashMap<u64, Vec<Idle>, FixedState>>,
    /// By endpoint, and whether it is encrypted.
    shared: RefCell<HashMap<(u64, bool), Multiplexed, FixedState>>,
}

/// An HTTP/1 connection between two requests.
struct Idle {
    lease: Lease,
    since: Instant,
    limit: Duration,
}

/// An HTTP/1 connection that carries one request.
pub struct Lease {
    /// The connection. It stays where it is while it goes from hand to hand.
    pub conn: Box<h1::Conn>,
    open: Open,
}

impl Lease {
    /// The connection as bytes, and what was read of it and not used.
    pub fn into_stream(self) -> Option<(TcpStream, Bytes, Open)> {
        let h1::Conn { reader, writer } = *self.conn;
        let (stream, read) = reader.reunite(writer)?;
        Some((stream, read, self.open))
    }
}

/// The connections to an endpoint that carry many requests each: one, and more while it is full.
#[derive(Default)]
struct Multiplexed {
    open: Vec<Sharer>,
    opening: Option<Opening>,
}

type Opening = Shared<LocalBoxFuture<'static, Result<Sharer>>>;

/// Opens streams on a shared connection.
#[derive(Clone)]
struct Sharer {
    streams: Streams,
    endpoint: Arc<Endpoint>,
    closed: Rc<Cell<bool>>,
}

/// A connection on which streams are opened.
#[derive(Clone)]
pub enum Streams {
    /// To another sidecar.
    Mesh(mesh::Link),
    /// HTTP/2.
    H2(h2::Sender),
}

/// A connection with more of its streams open than this share gets another beside it.
const NEARLY_FULL: f64 = 0.8;

/// As has one whose peer has taken nothing of what was sent for so long.
const BLOCKED: Duration = Duration::from_millis(100);

/// Connections that a worker opens to one endpoint for streams.
const MOST: usize = 4;

impl Sharer {
    fn is_over(&self) -> bool {
        self.closed.get()
            || match &self.streams {
                Streams::Mesh(link) => link.is_over(),
                Streams::H2(_) => false,
            }
    }

    /// Whether a request that has the choice goes elsewhere.
    fn is_busy(&self) -> bool {
        match &self.streams {
            Streams::Mesh(link) => link.fullness() > NEARLY_FULL || link.blocked_for() > BLOCKED,
            Streams::H2(_) => false,
        }
    }

    fn is_idle(&self) -> bool {
        match &self.streams {
            Streams::Mesh(link) => link.fullness() == 0.0,
            Streams::H2(_) => false,
        }
    }
}

impl Pools {
    /// No connections yet.
    pub fn new(tls: tls::Current) -> Self {
        Self { tls, idle: RefCell::default(), shared: RefCell::default() }
    }

    /// The HTTP/1 connection to `endpoint` that was used most recently before `now`. What `may_repeat`
    /// may be sent again should it turn out to have just been closed.
    pub fn idle_h1(&self, endpoint: &Endpoint, may_repeat: bool, now: Instant) -> Option<Lease> {
        let mut pools = self.idle.borrow_mut();
        let pool = pools.get_mut(&endpoint.id)?;
        while let Some(idle) = pool.pop() {
            let age = now.saturating_duration_since(idle.since);
            let reader = &idle.lease.conn.reader;
            let asked = may_repeat && age < LOOKED_AT || reader.is_quiet();
            if age < idle.limit && reader.seems_quiet() && asked {
                return Some(idle.lease);
            }
        }
        None
    }

    /// A new HTTP/1 connection to `endpoint`.
    pub async fn open_h1(
        &self,
        upstream: &Arc<Upstream>,
        endpoint: &Arc<Endpoint>,
        dial: Dial,
    ) -> Result<Lease> {
        let open = match upstream.open(endpoint) {
            // An idle connection to another endpoint makes room.
            Err(full) if self.close_idle(upstream) => upstream.open(endpoint).map_err(|_| full)?,
            opened => opened?,
        };
        let stream = dial::tcp(upstream, endpoint, dial).await?;
        Ok(Lease { conn: Box::new(h1::Conn::new(stream)), open })
    }

    /// Closes the idle connection to an upstream that has waited longest; false if there is none.
    fn close_idle(&self, upstream: &Upstream) -> bool {
        let mut pools = self.idle.borrow_mut();
        let endpoints = upstream.endpoints();
        let oldest = endpoints
            .iter()
            .filter_map(|e| Some((e.id, pools.get(&e.id)?.first()?.since)))
            .min_by_key(|(_, since)| *since);
        let Some((id, _)) = oldest else { return false };
        pools.get_mut(&id).is_some_and(|pool| {
            drop(pool.remove(0));
            true
        })
    }

    /// Gives a connection back at `now`, ready for its next request.
    pub fn put(&self, mut lease: Lease, upstream: &Upstream, now: Instant) {
        lease.conn.reader.rest();
        let endpoint = lease.open.endpoint();
        if endpoint.is_leaving() {
            return;
        }
        let id = endpoint.id;
        let limit = upstream.spec.idle_timeout;
        let idle = Idle { lease, since: now, limit };
        self.idle.borrow_mut().entry(id).or_default().push(idle);
    }

    /// A connection to `endpoint` that carries many requests: one there is, if it is not so full that
    /// another is better.
    pub fn streams(&self, endpoint: &Endpoint, secure: bool) -> Option<Streams> {
        let shared = self.shared.borrow();
        let multiplexed = shared.get(&(endpoint.id, secure))?;
        let mut usable = multiplexed.open.iter().filter(|sharer| !sharer.is_over());
        let first = usable.next()?;
        if !first.is_busy() {
            return Some(first.streams.clone());
        }
        if let Some(next) = usable.find(|sharer| !sharer.is_busy()) {
            return Some(next.streams.clone());
        }
        // Rather a busy one than none, as long as another cannot be had.
        (multiplexed.open.len() >= MOST || multiplexed.opening.is_some()).then(|| first.streams.clone())
    }

    /// As [`streams`](Self::streams), opening one if need be. An HTTP/2 connection is ready for another
    /// stream.
    pub async fn open_streams(
        self: &Rc<Self>,
        upstream: &Arc<Upstream>,
        endpoint: &Arc<Endpoint>,
        dial: Dial,
        bounds: Bounds,
    ) -> Result<Streams> {
        // Once more if the connection turns out to have ended: nothing was sent on it.
        for _ in 0..2 {
            let known = self.streams(endpoint, dial.secure.is_some());
            let streams = match known {
                Some(streams) => streams,
                None => {
                    let opening = self.opening(upstream, endpoint, dial, bounds);
                    match self.streams(endpoint, dial.secure.is_some()) {
                        // One that is nearly full serves until there is another.
                        Some(streams) => streams,
                        None => opening.await?.streams,
                    }
                }
            };
            match streams {
                Streams::Mesh(link) if !link.is_over() => return Ok(Streams::Mesh(link)),
                Streams::Mesh(_) => {}
                Streams::H2(sender) => {
                    if let Ok(sender) = sender.ready().await {
                        return Ok(Streams::H2(sender));
                    }
                }
            }
            self.drop_closed(endpoint, dial);
        }
        Err(Error::new(Reason::PoolConnect, format!("{} ends each connection at once", endpoint.address))
            .retry(Retry::Unprocessed)
            .upstream(&upstream.spec.name))
    }

    fn drop_closed(&self, endpoint: &Endpoint, dial: Dial) {
        if let Some(multiplexed) = self.shared.borrow_mut().get_mut(&(endpoint.id, dial.secure.is_some())) {
            multiplexed.open.retain(|sharer| !sharer.is_over());
        }
    }

    /// The opening of another connection: the one that is going on, or a new one.
    fn opening(
        self: &Rc<Self>,
        upstream: &Arc<Upstream>,
        endpoint: &Arc<Endpoint>,
        dial: Dial,
        bounds: Bounds,
    ) -> Opening {
        let key = (endpoint.id, dial.secure.is_some());
        let mut shared = self.shared.borrow_mut();
        let begin = || {
            let opened = open_streams(upstream.clone(), endpoint.clone(), dial, self.tls.clone(), bounds);
            let pools = self.clone();
            // A task of its own: it goes on when all who wait for it have given up.
            let task = spawn_local(async move {
                let underway = Underway { pools, key };
                let opened = opened.await;
                if let Some(multiplexed) = underway.pools.shared.borrow_mut().get_mut(&key) {
                    multiplexed.open.extend(opened.clone().ok());
                }
                opened
            });
            let ended = |_| Error::new(Reason::PoolConnect, "the worker ends").retry(Retry::Unprocessed);
            task.map(move |opened| opened.unwrap_or_else(|e| Err(ended(e)))).boxed_local().shared()
        };
        shared.entry(key).or_default().opening.get_or_insert_with(begin).clone()
    }

    /// Drops what can no longer be used: idle for too long, ended by the peer, or to an endpoint
    /// that has left.
    pub fn sweep(&self) {
        self.idle.borrow_mut().retain(|_, pool| {
            pool.retain(|idle| {
                !idle.lease.open.endpoint().is_leaving()
                    && idle.since.elapsed() < idle.limit
                    && idle.lease.conn.reader.is_quiet()
            });
            !pool.is_empty()
        });
        // Without anybody who sends on it, a connection ends once its last stream has.
        self.shared.borrow_mut().retain(|_, multiplexed| {
            let mut first = true;
            multiplexed.open.retain(|sharer| {
                let spare = !std::mem::take(&mut first) && sharer.is_idle();
                !spare && !sharer.is_over() && !sharer.endpoint.is_leaving()
            });
            !multiplexed.open.is_empty() || multiplexed.opening.is_some()
        });
    }
}

/// The opening of a connection, until it has ended, however it does.
struct Underway {
    pools: Rc<Pools>,
    key: (u64, bool),
}

impl Drop for Underway {
    fn drop(&mut self) {
        if let Some(multiplexed) = self.pools.shared.borrow_mut().get_mut(&self.key) {
            multiplexed.opening = None;
        }
    }
}

async fn open_streams(
    upstream: Arc<Upstream>,
    endpoint: Arc<Endpoint>,
    dial: Dial,
    tls: tls::Current,
    bounds: Bounds,
) -> Result<Sharer> {
    let open = upstream.open(&endpoint)?;
    let failed = |error: ::h2::Error| {
        Error::new(Reason::PoolConnect, format!("{}: HTTP/2: {error}", endpoint.address))
            .retry(Retry::Unprocessed)
            .upstream(&upstream.spec.name)
    };
    let stream = dial::dial(&upstream, &endpoint, dial, &tls).await?;
    let closed = Rc::new(Cell::new(false));
    let ended = closed.clone();
    let address = endpoint.address;
    let is_mesh = match &stream {
        Either::Left(_) => false,
        Either::Right(stream) => Alpn::negotiated(stream.get_ref().1) == Some(Alpn::Mesh),
    };
    let streams = if is_mesh {
        let (link, driver) = mesh::connect(stream, &bounds);
        spawn_local(async move {
            let why = driver.await;
            tracing::debug!(%address, %why, "a connection to a peer ended");
            ended.set(true);
            drop(open);
        });
        // Until it has said so much, it may yet refuse us: the client's handshake ends first.
        let greeted = timeout(upstream.spec.connect_timeout, link.greeted()).await;
        let failed = |why: &str| {
            Error::new(Reason::PoolConnect, format!("{address}: {why}"))
                .retry(Retry::Unprocessed)
                .upstream(&upstream.spec.name)
        };
        match greeted {
            Ok(Ok(())) => Streams::Mesh(link),
            Ok(Err(why)) => return Err(failed(&why)),
            Err(_) => return Err(failed("the peer's sidecar has not said a word within connect_timeout")),
        }
    } else {
        let (sender, driver) = h2::connect(stream, &bounds).await.map_err(failed)?;
        spawn_local(async move {
            if let Err(error) = driver.await {
                tracing::debug!(%address, %error, "a connection to a peer ended");
            }
            ended.set(true);
            drop(open);
        });
        Streams::H2(sender)
    };
    Ok(Sharer { streams, endpoint, closed })
}
