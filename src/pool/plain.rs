//! HTTP/1 connections of a worker: kept while they idle, watched, used most recent first, and handed to
//! other workers that wait for one.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::FixedState;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use super::kept::{Kept, LOOKED_AT, Lease, Need};
use super::watch::{Alarm, Place, bell};
use super::{Dial, dial, one_of_many};
use crate::balance::{Endpoint, Handed, Now, Open, Room, Upstream, Wanted};
use crate::error::{Error, Reason, Result, Retry};
use crate::http::h1::{self, Hint};

/// Connections that a worker opens to one endpoint at the same time: so many that come back at once
/// after a restart do not all shake hands together.
const DIALS: usize = 16;

/// Connections that are passed over for one that suits a request, at most.
const PASSED_OVER: usize = 16;

/// Requests that had to open a connection in a while, and in the one before, for which one is kept
/// warm.
const BUSY: u32 = 2;

/// The connections to one endpoint.
struct Pool {
    endpoint: Arc<Endpoint>,
    /// The one used last comes last.
    #[expect(clippy::vec_box, reason = "a connection stays where it is from its opening to its close")]
    idle: Vec<Box<Kept>>,
    dials: Arc<Semaphore>,
    /// The shortest exchange since the keeper last looked.
    trip: Duration,
    /// How the last connection was opened that was opened because none was idle, and how many were since
    /// the keeper last looked, and before.
    missed: Option<(Arc<Upstream>, Dial)>,
    misses: u32,
    missed_before: u32,
    /// Whether one is being opened that no request waits for.
    warming: bool,
}

/// A worker's HTTP/1 connections.
pub(super) struct Plain {
    pools: RefCell<HashMap<u64, Pool, FixedState>>,
    next: std::cell::Cell<u64>,
    /// This worker's, and everybody's.
    pub(super) alarm: Arc<Alarm>,
    alarms: Arc<[Arc<Alarm>]>,
}

impl Plain {
    /// None yet. `alarms` are those of all workers.
    pub(super) fn new(index: usize, alarms: Arc<[Arc<Alarm>]>) -> Self {
        Self { pools: RefCell::default(), next: Default::default(), alarm: alarms[index].clone(), alarms }
    }

    /// The idle connection to `endpoint` that was used most recently before `now`, of those that suit.
    pub(super) fn idle(&self, endpoint: &Endpoint, need: Need, now: Instant) -> Option<Lease> {
        let mut pools = self.pools.borrow_mut();
        let pool = pools.get_mut(&endpoint.id)?;
        match need {
            Need::Usable => pool.latest(need, endpoint.keep_alive.reuse(), now),
            Need::Proven => {
                let found = pool.latest(need, endpoint.keep_alive.proven(), now);
                found.or_else(|| pool.proves(now))
            }
            Need::New => None,
        }
    }

    /// A connection to `endpoint` when none was idle: a new one, or with its upstream at its maximum one
    /// that another request gives back.
    pub(super) async fn open(
        &self,
        upstream: &Arc<Upstream>,
        endpoint: &Arc<Endpoint>,
        dial: Dial,
        need: Need,
    ) -> Result<Lease> {
        let wanted = match need {
            Need::Usable => Wanted::Used,
            Need::Proven => Wanted::Proven,
            Need::New => Wanted::New,
        };
        let Room { handed, open } = self.room(upstream, endpoint, wanted).await?;
        if let Some(Handed { stream, written, requests, most, said, idled, retires }) = handed
            && let Ok(stream) = TcpStream::from_std(stream)
        {
            let conn = h1::Conn::resume(stream, written);
            let mut kept = self.kept(conn, open, requests, most, Some(idled));
            (kept.said, kept.retires) = (said, retires);
            return Ok(Lease(kept));
        }
        let dials = self.missed(upstream, endpoint, dial);
        let _permit = self.turn(dials, upstream, endpoint).await?;
        let stream = dial::tcp(upstream, endpoint, dial).await?;
        Ok(Lease(self.kept(h1::Conn::new(stream), open, 0, u32::MAX, None)))
    }

    /// Waits for a turn to open a connection.
    async fn turn(
        &self,
        dials: Arc<Semaphore>,
        upstream: &Upstream,
        endpoint: &Endpoint,
    ) -> Result<OwnedSemaphorePermit> {
        if let Ok(permit) = dials.clone().try_acquire_owned() {
            return Ok(permit);
        }
        let limit = upstream.spec.connect_timeout;
        match timeout(limit, dials.acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(Error::new(
                Reason::PoolConnectTimeout,
                format!("{} takes no connections: {DIALS} are being opened for {limit:?}", endpoint.address),
            )
            .retry(Retry::Unprocessed)
            .upstream(&upstream.spec.name)),
        }
    }

    /// Room for a connection: what there is, what can be made, or what is given back by whoever has it,
    /// within the time that a connection may take.
    pub(super) async fn room(
        &self,
        upstream: &Arc<Upstream>,
        endpoint: &Arc<Endpoint>,
        wanted: Wanted,
    ) -> Result<Room> {
        loop {
            if let Some(open) = upstream.open(endpoint) {
                return Ok(Room { handed: None, open });
            }
            if !self.close_one(upstream) {
                break;
            }
        }
        let room = upstream.wait(endpoint, wanted);
        // Nobody is to wait while another worker holds what he needs.
        self.alarms.iter().for_each(|alarm| alarm.want(upstream));
        match timeout(upstream.spec.connect_timeout, room).await {
            Ok(Ok(room)) => Ok(room),
            _ => Err(upstream.full()),
        }
    }

    /// Closes the idle connection to an upstream that has waited longest; false if there is none.
    fn close_one(&self, upstream: &Upstream) -> bool {
        self.take_oldest(upstream).map(drop).is_some()
    }

    /// Gives an idle connection to whoever waits for `upstream`; false if there is none.
    pub(super) fn give_one(&self, upstream: &Upstream) -> bool {
        self.take_oldest(upstream).map(Kept::hand_on).is_some()
    }

    fn take_oldest(&self, upstream: &Upstream) -> Option<Box<Kept>> {
        let mut pools = self.pools.borrow_mut();
        let (endpoints, leaving) = (upstream.endpoints(), upstream.leaving());
        let all = endpoints.iter().chain(&leaving);
        let oldest = all.filter_map(|e| Some((e.id, pools.get(&e.id)?.idle.first()?.since)));
        let (id, _) = oldest.min_by_key(|(_, since)| *since)?;
        let idle = &mut pools.get_mut(&id)?.idle;
        (!idle.is_empty()).then(|| idle.remove(0))
    }

    /// Gives a connection back at `now`, after an exchange that took `trip`, in which its peer said
    /// `hint`.
    pub(super) fn put(&self, lease: Lease, trip: Duration, hint: Option<Hint>, now: Instant) {
        let Lease(mut kept) = lease;
        kept.served(hint);
        kept.conn.reader.rest();
        kept.since = now;
        // One that is spent only by what its peer has shown is kept to see whether that still holds.
        let spent = kept.is_spent();
        let shows = spent && kept.requests < kept.most && !kept.open.endpoint().keep_alive.knows_requests();
        if kept.open.endpoint().is_leaving() || kept.is_aged(now) || (spent && !shows) {
            return;
        }
        if kept.open.is_waited_for() {
            return kept.hand_on();
        }
        if !kept.watch() {
            return kept.ended(now);
        }
        let mut pools = self.pools.borrow_mut();
        let endpoint = kept.open.endpoint();
        let pool = pools.entry(endpoint.id).or_insert_with(|| Pool::new(endpoint));
        if shows && pool.idle.iter().any(|other| other.is_spent()) {
            return;
        }
        pool.trip = pool.trip.min(trip);
        pool.idle.push(kept);
    }

    fn kept(
        &self,
        conn: h1::Conn,
        open: Open,
        requests: u32,
        most: u32,
        idled: Option<Duration>,
    ) -> Box<Kept> {
        let id = self.next.get();
        self.next.set(id + 1);
        let bell = bell(Place { endpoint: open.endpoint().id, id }, &self.alarm);
        let since = Instant::now();
        let retires = since + one_of_many();
        Box::new(Kept {
            conn,
            open,
            id,
            bell,
            requests,
            most,
            idled,
            said: None,
            doubted: false,
            since,
            retires,
        })
    }

    /// Whether nothing is kept for any endpoint.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.pools.borrow().is_empty()
    }

    /// Notes that a request had to open a connection.
    fn missed(&self, upstream: &Arc<Upstream>, endpoint: &Arc<Endpoint>, dial: Dial) -> Arc<Semaphore> {
        let mut pools = self.pools.borrow_mut();
        let pool = pools.entry(endpoint.id).or_insert_with(|| Pool::new(endpoint));
        pool.misses += 1;
        pool.missed = Some((upstream.clone(), dial));
        pool.dials.clone()
    }

    /// Looks at connections that something has happened to: what is not as it should be is closed.
    pub(super) fn look_at(&self, disturbed: &[Place]) {
        let now = Instant::now();
        let mut closed: Vec<Box<Kept>> = Vec::new();
        let mut pools = self.pools.borrow_mut();
        for place in disturbed {
            let Some(pool) = pools.get_mut(&place.endpoint) else { continue };
            // One that carries a request is that request's own.
            let Some(at) = pool.idle.iter().rposition(|kept| kept.id == place.id) else { continue };
            if !pool.idle[at].watch() {
                closed.push(pool.idle.remove(at));
            }
        }
        // Closed together although they had idled for different times: that was no timeout.
        for kept in &closed {
            let of_same = closed.iter().filter(|other| other.open.endpoint().id == kept.open.endpoint().id);
            let ages = of_same.map(|other| other.age(now));
            let (least, most) =
                ages.fold((Duration::MAX, Duration::ZERO), |(a, b), age| (a.min(age), b.max(age)));
            if most - least <= most / 8 + LOOKED_AT * 2 {
                kept.ended(now);
            }
        }
    }

    /// Retires what may not be used any more, but for one of each peer that shows how long it keeps it.
    /// Returns the endpoints that want a connection opened before a request needs it.
    pub(super) fn tidy(&self) -> Vec<(Arc<Upstream>, Arc<Endpoint>, Dial)> {
        let now = Instant::now();
        let mut cold = Vec::new();
        self.pools.borrow_mut().retain(|_, pool| {
            pool.tidy(now);
            if let Some((upstream, dial)) = pool.is_cold(now) {
                cold.push((upstream, pool.endpoint.clone(), dial));
            }
            let dials = pool.dials.available_permits() < DIALS;
            !pool.idle.is_empty() || pool.missed.is_some() || pool.warming || dials
        });
        cold
    }

    /// Opens a connection that no request waits for, if there is room for it.
    pub(super) async fn warm(&self, upstream: Arc<Upstream>, endpoint: Arc<Endpoint>, dial: Dial) {
        let kept = self.opened_ahead(&upstream, &endpoint, dial).await;
        let mut pools = self.pools.borrow_mut();
        let pool = pools.entry(endpoint.id).or_insert_with(|| Pool::new(&endpoint));
        pool.warming = false;
        match kept {
            Some(kept) if kept.open.is_waited_for() => kept.hand_on(),
            Some(kept) if kept.watch() => pool.idle.push(kept),
            _ => {}
        }
    }

    async fn opened_ahead(
        &self,
        upstream: &Arc<Upstream>,
        endpoint: &Arc<Endpoint>,
        dial: Dial,
    ) -> Option<Box<Kept>> {
        let dials = self.pools.borrow().get(&endpoint.id)?.dials.clone();
        let _permit = dials.try_acquire_owned().ok()?;
        let open = upstream.open(endpoint)?;
        match dial::tcp(upstream, endpoint, dial).await {
            Ok(stream) => Some(self.kept(h1::Conn::new(stream), open, 0, u32::MAX, None)),
            Err(_) => {
                endpoint.unreached(upstream.spec.ejection.longest, Now::read());
                None
            }
        }
    }
}

impl Pool {
    fn new(endpoint: &Arc<Endpoint>) -> Self {
        Self {
            endpoint: endpoint.clone(),
            idle: Vec::new(),
            dials: Arc::new(Semaphore::new(DIALS)),
            trip: Duration::MAX,
            missed: None,
            misses: 0,
            missed_before: 0,
            warming: false,
        }
    }

    /// The connection that was used last, of those that suit and have idled for less than `limit`.
    fn latest(&mut self, need: Need, limit: Duration, now: Instant) -> Option<Lease> {
        let least = self.idle.len().saturating_sub(PASSED_OVER);
        for at in (least..self.idle.len()).rev() {
            let age = self.idle[at].age(now);
            // What lies below has idled longer.
            if age >= limit {
                return None;
            }
            let reader = &self.idle[at].conn.reader;
            let asked = need != Need::Usable || age >= LOOKED_AT;
            if !reader.seems_quiet() || (asked && !reader.is_quiet()) {
                self.idle.remove(at).ended(now);
                continue;
            }
            if asked {
                let kept = &mut self.idle[at];
                self.endpoint.keep_alive.lives(age, kept.requests, &mut kept.doubted);
            }
            if self.idle[at].suits(need, age) {
                let mut kept = self.idle.remove(at);
                kept.idled = Some(age);
                return Some(Lease(kept));
            }
        }
        None
    }

    /// For a request that may not be sent twice, and finds none that suits: looks at what those show that
    /// have idled for a while, so that as many are opened only once. One of them may suit then.
    fn proves(&mut self, now: Instant) -> Option<Lease> {
        let shown = self.idle.partition_point(|kept| kept.age(now) >= LOOKED_AT);
        let (oldest, latest) = (0, shown.checked_sub(1)?);
        for at in [latest, oldest] {
            let kept = &mut *self.idle[at];
            if kept.conn.reader.is_quiet() {
                self.endpoint.keep_alive.lives(kept.age(now), kept.requests, &mut kept.doubted);
            }
        }
        let kept = &self.idle[latest];
        let age = kept.age(now);
        (kept.suits(Need::Proven, age) && kept.conn.reader.is_quiet()).then(|| {
            let mut kept = self.idle.remove(latest);
            kept.idled = Some(age);
            Lease(kept)
        })
    }

    fn tidy(&mut self, now: Instant) {
        let peer = &self.endpoint.keep_alive;
        if self.trip != Duration::MAX {
            peer.trip(std::mem::replace(&mut self.trip, Duration::MAX));
        }
        if self.endpoint.is_leaving() {
            self.idle.clear();
        }
        // The oldest shows how long one is kept, and one that is spent whether it had to be.
        let spent = self.idle.iter().position(|kept| kept.is_spent());
        let oldest = self.idle.iter().position(|kept| kept.requests > 0);
        for at in [oldest, spent].into_iter().flatten() {
            let kept = &mut *self.idle[at];
            if kept.conn.reader.is_quiet() {
                peer.lives(kept.since.elapsed(), kept.requests, &mut kept.doubted);
            }
        }
        let (limit, most) = (peer.reuse(), peer.most_idle());
        let mut observers = u32::from(peer.is_learning());
        self.idle.retain(|kept| {
            let age = kept.age(now);
            let old = age >= limit;
            // It has shown what it was kept for.
            let shown = kept.is_spent() && age >= LOOKED_AT;
            let stays = !shown && !kept.is_aged(now) && (!old || (observers > 0 && age < most));
            observers -= u32::from(stays && old);
            stays
        });
    }

    /// How to open a connection, if requests have had to wait for one for a while, and none is idle.
    fn is_cold(&mut self, now: Instant) -> Option<(Arc<Upstream>, Dial)> {
        let busy = self.misses >= BUSY && self.missed_before >= BUSY;
        self.missed_before = std::mem::take(&mut self.misses);
        let missed = if busy { self.missed.clone() } else { None };
        if self.missed_before == 0 {
            self.missed = None;
        }
        let limit = self.endpoint.keep_alive.reuse();
        let ready = self.idle.iter().any(|kept| kept.age(now) < limit);
        let wanted = !ready && !self.warming && !self.endpoint.is_paused() && !self.endpoint.is_leaving();
        self.warming |= wanted && missed.is_some();
        missed.filter(|_| wanted)
    }
}
