//! Connections that carry many requests each: one for each worker and endpoint, and more while it is
//! full. Those to other sidecars are asked whether they still live before they are used after a pause,
//! and given up when their peer is silent that owes an answer.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::FixedState;
use futures_util::FutureExt;
use futures_util::future::{LocalBoxFuture, Shared};
use tokio::task::spawn_local;
use tokio::time::{Instant, timeout};
use tokio_util::either::Either;

use super::plain::Plain;
use super::{Dial, dial, one_of_many};
use crate::balance::{Endpoint, Room, Upstream, Wanted};
use crate::error::{Error, Reason, Result, Retry};
use crate::http::{Bounds, h2, mesh};
use crate::tls::{self, Alpn};

/// A connection between sidecars on which nothing was heard for so long is asked before it is used.
const PAUSE: Duration = Duration::from_secs(5);

/// How long it may take to answer that; another is opened then.
const PROBE: Duration = Duration::from_secs(1);

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
    /// How long the peer may be silent that owes us something.
    peer_timeout: Duration,
    /// How long nobody may use it.
    most_idle: Duration,
    /// It was asked, and has not answered in time: nothing is put on it until it has been heard.
    suspect: Rc<Cell<bool>>,
    /// Its silence had lasted for too long already when it was last looked at.
    overdue: Rc<Cell<bool>>,
    /// When it is too old, if its endpoint may be many behind one address.
    retires: Instant,
}

/// A connection on which streams are opened.
#[derive(Clone)]
pub enum Streams {
    /// To another sidecar.
    Mesh(mesh::Link),
    /// HTTP/2.
    H2(h2::Sender, Use),
}

/// Counts those who use a connection, its pool among them.
#[derive(Debug, Clone, Default)]
pub struct Use(Rc<()>);

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
                Streams::H2(..) => false,
            }
    }

    /// Whether a request that has the choice goes elsewhere.
    fn is_busy(&self) -> bool {
        match &self.streams {
            Streams::Mesh(link) => link.fullness() > NEARLY_FULL || link.blocked_for() > BLOCKED,
            Streams::H2(..) => false,
        }
    }

    /// Whether so little was heard of it lately that it is asked first.
    fn is_doubtful(&self, now: Instant) -> bool {
        match &self.streams {
            Streams::Mesh(link) => link.silent_for(now) > PAUSE.min(self.peer_timeout / 2),
            Streams::H2(..) => false,
        }
    }

    /// Whether nobody has used it for so long that nobody will.
    fn is_forgotten(&self, now: Instant) -> bool {
        match &self.streams {
            Streams::Mesh(link) => self.is_idle() && link.silent_for(now) > self.most_idle,
            Streams::H2(..) => false,
        }
    }

    /// Whether it has been to one of many for long enough: the next one may be to another.
    fn is_aged(&self, now: Instant) -> bool {
        self.endpoint.standing.is_virtual() && self.retires <= now
    }

    /// How full it is, from 0 to 1.
    fn fullness(&self) -> f64 {
        match &self.streams {
            Streams::Mesh(link) => link.fullness(),
            Streams::H2(_, uses) => Rc::strong_count(&uses.0) as f64 / f64::from(u16::MAX),
        }
    }

    /// Asks a peer that is silent and owes us something whether it still lives, and gives it up if it
    /// does not say so either. Seen twice: we may have been kept from hearing it ourselves.
    fn look_after(&self, now: Instant) {
        let Streams::Mesh(link) = &self.streams else { return };
        if !self.is_doubtful(now) {
            self.suspect.set(false);
        }
        let half = self.peer_timeout / 2;
        let overdue = link.is_owed() && link.asked_for(now) > half;
        if overdue && self.overdue.get() {
            link.give_up("the peer was silent for peer_timeout");
        } else if link.is_owed() && link.silent_for(now) > half {
            link.ask();
        }
        self.overdue.set(overdue);
    }

    fn is_idle(&self) -> bool {
        match &self.streams {
            Streams::Mesh(link) => link.fullness() == 0.0,
            Streams::H2(_, uses) => Rc::strong_count(&uses.0) == 1,
        }
    }
}

/// A worker's connections that carry many requests.
pub(super) struct Shareds {
    /// Our identity, as it is when a connection is opened.
    tls: tls::Current,
    /// By endpoint, and whether it is encrypted.
    shared: RefCell<HashMap<(u64, bool), Multiplexed, FixedState>>,
}

impl Shareds {
    pub(super) fn new(tls: tls::Current) -> Self {
        Self { tls, shared: RefCell::default() }
    }

    /// A connection to `endpoint` that carries many requests: one there is, if it is not so full that
    /// another is better.
    pub(super) fn ready(&self, endpoint: &Endpoint, secure: bool, now: Instant) -> Option<Streams> {
        let shared = self.shared.borrow();
        let multiplexed = shared.get(&(endpoint.id, secure))?;
        let mut usable =
            multiplexed.open.iter().filter(|sharer| !sharer.is_over() && !sharer.is_doubtful(now));
        if endpoint.standing.is_virtual() {
            let enough =
                multiplexed.open.len() >= MOST || multiplexed.opening.is_some() || endpoint.is_paused();
            let emptiest = usable.min_by(|a, b| a.fullness().total_cmp(&b.fullness()));
            return emptiest.filter(|_| enough).map(|sharer| sharer.streams.clone());
        }
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

    /// As [`ready`](Self::ready), opening one if need be. An HTTP/2 connection is ready for another
    /// stream.
    pub(super) async fn open(
        self: &Rc<Self>,
        plain: &Rc<Plain>,
        upstream: &Arc<Upstream>,
        endpoint: &Arc<Endpoint>,
        dial: Dial,
        bounds: Bounds,
    ) -> Result<Streams> {
        // Once more if the connection turns out to have ended: nothing was sent on it.
        for _ in 0..2 {
            self.prove(endpoint, dial).await;
            let known = self.ready(endpoint, dial.secure.is_some(), Instant::now());
            let streams = match known {
                Some(streams) => streams,
                None => {
                    let opening = self.opening(plain, upstream, endpoint, dial, bounds);
                    match self.ready(endpoint, dial.secure.is_some(), Instant::now()) {
                        // One that is nearly full serves until there is another.
                        Some(streams) => streams,
                        None => opening.await?.streams,
                    }
                }
            };
            match streams {
                Streams::Mesh(link) if !link.is_over() => return Ok(Streams::Mesh(link)),
                Streams::Mesh(_) => {}
                Streams::H2(sender, uses) => {
                    if let Ok(sender) = sender.ready().await {
                        return Ok(Streams::H2(sender, uses));
                    }
                    // It takes no more, though it may still finish what it has.
                    self.drop_h2(endpoint, dial, &uses);
                }
            }
            self.drop_closed(endpoint, dial);
        }
        Err(Error::new(Reason::PoolConnect, format!("{} ends each connection at once", endpoint.address))
            .retry(Retry::Unprocessed)
            .upstream(&upstream.spec.name))
    }

    /// Asks a connection that was silent for a while whether it still lives. One that does not say so in
    /// time gets nothing new; what it has waits on, for `peer_timeout`.
    async fn prove(&self, endpoint: &Endpoint, dial: Dial) {
        let doubtful = {
            let (shared, now) = (self.shared.borrow(), Instant::now());
            let multiplexed = shared.get(&(endpoint.id, dial.secure.is_some()));
            let asks = |s: &&Sharer| !s.is_over() && s.is_doubtful(now) && !s.suspect.get();
            multiplexed.and_then(|multiplexed| multiplexed.open.iter().find(asks).cloned())
        };
        if let Some(Sharer { streams: Streams::Mesh(link), suspect, .. }) = doubtful
            && timeout(PROBE, link.answers()).await.is_err()
        {
            tracing::debug!(endpoint = %endpoint.address, "a connection does not answer after a pause");
            suspect.set(true);
        }
    }

    fn drop_h2(&self, endpoint: &Endpoint, dial: Dial, used: &Use) {
        if let Some(multiplexed) = self.shared.borrow_mut().get_mut(&(endpoint.id, dial.secure.is_some())) {
            let is_it = |sharer: &Sharer| match &sharer.streams {
                Streams::H2(_, uses) => Rc::ptr_eq(&uses.0, &used.0),
                Streams::Mesh(_) => false,
            };
            multiplexed.open.retain(|sharer| !is_it(sharer));
        }
    }

    fn drop_closed(&self, endpoint: &Endpoint, dial: Dial) {
        if let Some(multiplexed) = self.shared.borrow_mut().get_mut(&(endpoint.id, dial.secure.is_some())) {
            multiplexed.open.retain(|sharer| !sharer.is_over());
        }
    }

    /// The opening of another connection: the one that is going on, or a new one.
    fn opening(
        self: &Rc<Self>,
        plain: &Rc<Plain>,
        upstream: &Arc<Upstream>,
        endpoint: &Arc<Endpoint>,
        dial: Dial,
        bounds: Bounds,
    ) -> Opening {
        let key = (endpoint.id, dial.secure.is_some());
        let mut shared = self.shared.borrow_mut();
        let begin = || {
            let (plain, tls) = (plain.clone(), self.tls.clone());
            let opened = open(plain, upstream.clone(), endpoint.clone(), dial, tls, bounds);
            let shareds = self.clone();
            // A task of its own: it goes on when all who wait for it have given up.
            let task = spawn_local(async move {
                let underway = Underway { shareds, key };
                let opened = opened.await;
                if let Some(multiplexed) = underway.shareds.shared.borrow_mut().get_mut(&key) {
                    multiplexed.open.extend(opened.clone().ok());
                }
                opened
            });
            let ended = |_| Error::new(Reason::PoolConnect, "the worker ends").retry(Retry::Unprocessed);
            task.map(move |opened| opened.unwrap_or_else(|e| Err(ended(e)))).boxed_local().shared()
        };
        shared.entry(key).or_default().opening.get_or_insert_with(begin).clone()
    }

    /// Drops what can no longer be used, and what nobody has used for long; gives up whose peer is silent.
    pub(super) fn tidy(&self) {
        let now = Instant::now();
        // Without anybody who sends on it, a connection ends once its last stream has.
        self.shared.borrow_mut().retain(|_, multiplexed| {
            let mut first = true;
            multiplexed.open.retain(|sharer| {
                sharer.look_after(now);
                let is_virtual = sharer.endpoint.standing.is_virtual();
                let spare = !std::mem::take(&mut first) && sharer.is_idle() && !is_virtual;
                !spare
                    && !sharer.is_aged(now)
                    && !sharer.is_over()
                    && !sharer.endpoint.is_leaving()
                    && !sharer.is_forgotten(now)
            });
            !multiplexed.open.is_empty() || multiplexed.opening.is_some()
        });
    }

    /// Ends a connection to an upstream that carries nothing, if there is one.
    pub(super) fn give_one(&self, upstream: &Upstream) {
        let mut shared = self.shared.borrow_mut();
        for endpoint in upstream.endpoints().iter() {
            for secure in [true, false] {
                let Some(multiplexed) = shared.get_mut(&(endpoint.id, secure)) else { continue };
                if let Some(at) = multiplexed.open.iter().position(Sharer::is_idle) {
                    multiplexed.open.remove(at);
                    return;
                }
            }
        }
    }
}

/// The opening of a connection, until it has ended, however it does.
struct Underway {
    shareds: Rc<Shareds>,
    key: (u64, bool),
}

impl Drop for Underway {
    fn drop(&mut self) {
        if let Some(multiplexed) = self.shareds.shared.borrow_mut().get_mut(&self.key) {
            multiplexed.opening = None;
        }
    }
}

async fn open(
    plain: Rc<Plain>,
    upstream: Arc<Upstream>,
    endpoint: Arc<Endpoint>,
    dial: Dial,
    tls: tls::Current,
    bounds: Bounds,
) -> Result<Sharer> {
    let Room { open, .. } = plain.room(&upstream, &endpoint, Wanted::New).await?;
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
        Streams::H2(sender, Use::default())
    };
    let (peer_timeout, most_idle) = (upstream.spec.peer_timeout, upstream.spec.keep_alive.most_idle);
    let (suspect, overdue) = (Rc::default(), Rc::default());
    let retires = Instant::now() + one_of_many();
    Ok(Sharer { streams, endpoint, closed, peer_timeout, most_idle, suspect, overdue, retires })
}
