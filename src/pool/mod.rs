//! Connections to endpoints, kept by each worker for itself and used most recent first.
//!
//! Promises: a connection is used only while it is open and silent and younger in its idleness
//! than the upstream allows; one HTTP/2 connection per worker and peer carries every request
//! between sidecars; no connection reaches an endpoint other than the one it was opened to.

mod dial;

pub use dial::{Dial, Stream, dial, never_pauses, tune};

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use foldhash::fast::FixedState;
use futures_util::FutureExt;
use futures_util::future::{LocalBoxFuture, Shared};
use tokio::net::TcpStream;
use tokio::task::spawn_local;

use crate::balance::{Endpoint, Open, Upstream};
use crate::error::{Error, Reason, Result, Retry};
use crate::http::{Bounds, h1, h2};
use crate::tls;

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
    conn: h1::Conn,
    open: Open,
    since: Instant,
    limit: Duration,
}

/// An HTTP/1 connection that carries one request.
pub struct Lease {
    /// The connection.
    pub conn: h1::Conn,
    open: Open,
}

impl Lease {
    /// The connection as bytes, and what was read of it and not used.
    pub fn into_stream(self) -> Option<(TcpStream, Bytes, Open)> {
        let h1::Conn { reader, writer } = self.conn;
        let (stream, read) = reader.reunite(writer)?;
        Some((stream, read, self.open))
    }
}

/// The one HTTP/2 connection to an endpoint.
struct Multiplexed {
    state: Connection,
    endpoint: Arc<Endpoint>,
}

#[derive(Clone)]
enum Connection {
    Opening(Shared<LocalBoxFuture<'static, Result<Sharer>>>),
    Open(Sharer),
}

/// Opens streams on a shared connection.
#[derive(Clone)]
struct Sharer {
    sender: h2::Sender,
    closed: Rc<Cell<bool>>,
}

impl Pools {
    /// No connections yet.
    pub fn new(tls: tls::Current) -> Self {
        Self { tls, idle: RefCell::default(), shared: RefCell::default() }
    }

    /// The HTTP/1 connection to `endpoint` that was used most recently. What `may_repeat` may be
    /// sent again should it turn out to have just been closed.
    pub fn idle_h1(&self, endpoint: &Endpoint, may_repeat: bool) -> Option<Lease> {
        let mut pools = self.idle.borrow_mut();
        let pool = pools.get_mut(&endpoint.id)?;
        while let Some(idle) = pool.pop() {
            let age = idle.since.elapsed();
            let asked = may_repeat && age < LOOKED_AT || idle.conn.reader.is_quiet();
            if age < idle.limit && idle.conn.reader.seems_quiet() && asked {
                return Some(Lease { conn: idle.conn, open: idle.open });
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
        Ok(Lease { conn: h1::Conn::new(stream), open })
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

    /// Gives a connection back, ready for its next request.
    pub fn put(&self, mut lease: Lease, upstream: &Upstream) {
        lease.conn.reader.rest();
        let endpoint = lease.open.endpoint();
        if endpoint.is_leaving() {
            return;
        }
        let id = endpoint.id;
        let limit = upstream.spec.idle_timeout;
        let idle = Idle { conn: lease.conn, open: lease.open, since: Instant::now(), limit };
        self.idle.borrow_mut().entry(id).or_default().push(idle);
    }

    /// Opens a stream's worth of an HTTP/2 connection to `endpoint`: the one there is, or the one
    /// that is being opened.
    pub async fn h2(
        self: &Rc<Self>,
        upstream: &Arc<Upstream>,
        endpoint: &Arc<Endpoint>,
        dial: Dial,
        bounds: Bounds,
    ) -> Result<h2::Sender> {
        // Once more if the connection turns out to have ended: nothing was sent on it.
        for _ in 0..2 {
            let sharer = self.sharer(upstream, endpoint, dial, bounds).await?;
            let closed = sharer.closed;
            match sharer.sender.ready().await {
                Ok(sender) if !closed.get() => return Ok(sender),
                _ => closed.set(true),
            }
        }
        Err(Error::new(Reason::PoolConnect, format!("{} ends each connection at once", endpoint.address))
            .retry(Retry::Unprocessed)
            .upstream(&upstream.spec.name))
    }

    async fn sharer(
        self: &Rc<Self>,
        upstream: &Arc<Upstream>,
        endpoint: &Arc<Endpoint>,
        dial: Dial,
        bounds: Bounds,
    ) -> Result<Sharer> {
        let key = (endpoint.id, dial.secure.is_some());
        let known = self.shared.borrow().get(&key).map(|m| m.state.clone());
        let opening = match known {
            Some(Connection::Open(sharer)) if !sharer.closed.get() => return Ok(sharer),
            Some(Connection::Opening(opening)) => opening,
            _ => {
                // A task of its own: it goes on when all who wait for it have given up.
                let task =
                    spawn_local(open_h2(upstream.clone(), endpoint.clone(), dial, self.tls.clone(), bounds));
                let ended = |_| Error::new(Reason::PoolConnect, "the worker ends").retry(Retry::Unprocessed);
                let opening = task.map(move |opened| opened.unwrap_or_else(|e| Err(ended(e))));
                let opening = opening.boxed_local().shared();
                let state = Connection::Opening(opening.clone());
                let multiplexed = Multiplexed { state, endpoint: endpoint.clone() };
                self.shared.borrow_mut().insert(key, multiplexed);
                opening
            }
        };
        let opened = opening.clone().await;
        // The first to hear replaces what all were waiting for; by now it may be another's.
        let mut shared = self.shared.borrow_mut();
        if let Some(multiplexed) = shared.get_mut(&key)
            && matches!(&multiplexed.state, Connection::Opening(o) if o.ptr_eq(&opening))
        {
            match &opened {
                Ok(sharer) => multiplexed.state = Connection::Open(sharer.clone()),
                Err(_) => {
                    shared.remove(&key);
                }
            }
        }
        opened
    }

    /// Drops what can no longer be used: idle for too long, ended by the peer, or to an endpoint
    /// that has left.
    pub fn sweep(&self) {
        self.idle.borrow_mut().retain(|_, pool| {
            pool.retain(|idle| {
                !idle.open.endpoint().is_leaving()
                    && idle.since.elapsed() < idle.limit
                    && idle.conn.reader.is_quiet()
            });
            !pool.is_empty()
        });
        // Without a sender, a connection ends once its last stream has.
        self.shared.borrow_mut().retain(|_, m| {
            // One that opened after all who waited for it had given up was noticed by nobody.
            let opened = match &m.state {
                Connection::Opening(opening) => opening.clone().now_or_never(),
                Connection::Open(sharer) => Some(Ok(sharer.clone())),
            };
            match opened {
                None => true,
                Some(Err(_)) => false,
                Some(Ok(sharer)) => {
                    let keep = !sharer.closed.get() && !m.endpoint.is_leaving();
                    m.state = Connection::Open(sharer);
                    keep
                }
            }
        });
    }
}

async fn open_h2(
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
    let (sender, driver) = h2::connect(stream, &bounds).await.map_err(failed)?;
    let closed = Rc::new(Cell::new(false));
    let ended = closed.clone();
    spawn_local(async move {
        if let Err(error) = driver.await {
            tracing::debug!(address = %open.endpoint().address, %error, "a connection to a peer ended");
        }
        ended.set(true);
    });
    Ok(Sharer { sender, closed })
}
