//! The last stages, for both directions: balance, pool, exchange; and again, where a failure
//! proves that this is safe.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use http::StatusCode;
use smallvec::SmallVec;
use tokio::time::Instant;

use super::exchange::{self, Terms};
use super::hedge::hedged;
use super::mesh::{Destination, Route};
use super::patience::unless_slow;
use super::place::{place, place_now, place_then};
use super::remaining::{Told, ends, late};
use super::retry::{Failure, Pause, Tries};
use super::tunnel::{End, Switched, Tunnel, granted};
use super::worker::Worker;
use crate::balance::{InFlight, Want};
use crate::error::{Error, Reason, Result, Retry};
use crate::http::body::Replay;
use crate::http::deadline::{Deadline, within_since};
use crate::http::{Announcement, Body, Length, Next, RequestHead, Responder, ResponseHead};
use crate::intercept::Source;
use crate::limit::Again;
use crate::pool::{Dial, Need, Streams};
use crate::tls::Carries;

/// What is kept of a request's body, so that it can be sent again.
const REPLAY: usize = 64 << 10;

/// How to reach a destination.
pub(super) struct Way {
    /// Where.
    pub destination: Destination,
    /// The address that we connect from.
    pub source: Option<Source>,
    /// What the request is kept to one endpoint by.
    pub key: Option<u64>,
    /// The application speaks HTTP/2, so its peer is spoken to alike.
    pub h2: bool,
    /// It asks for the application's health: it is never one too many.
    pub always: bool,
    /// The downstream is a sidecar, which is told how full the destination is.
    pub announces: bool,
    /// The limits that count every try.
    pub limits: Again,
}

/// Sends a request to its destination and the answer back, or the tunnel that it asked for. Counts
/// both.
pub(super) async fn forward(
    worker: &Rc<Worker>,
    way: &Way,
    head: &RequestHead,
    body: &mut Body<'_>,
    respond: &mut Responder<'_>,
) -> Result<Next<Tunnel>> {
    let started = Instant::now();
    let route = &way.destination.route;
    let mut none = Body::Empty;
    // What follows such a request is no body: it is the tunnel's, once there is one.
    let body = if head.asks_for_tunnel() { &mut none } else { body };
    route.budget.asked(worker.index);
    let ends = ends(route, head, started);
    let limit = ends.map_or(Duration::MAX, |ends| ends.saturating_duration_since(started));
    let attempts = pin!(attempts(worker, way, head, body, respond, started, ends));
    let result = if limit.is_zero() { None } else { within_since(started, limit, attempts).await };
    let result = result.unwrap_or_else(|| Err(late(route, limit)));
    let (status, ended) = match &result {
        Ok(answered) => (answered.status, answered.at),
        Err(error) => (error.reason.status(), Instant::now()),
    };
    route.traffic.finished(worker.index, status.as_u16(), ended - started);
    match result {
        Ok(Answered { tunnel: None, .. }) => Ok(Next::Request),
        Ok(Answered { tunnel: Some(tunnel), .. }) => Ok(Next::Tunnel(tunnel)),
        Err(error) => Err(Error { upstream: Some(route.upstream.spec.name.clone()), ..error }),
    }
}

/// How a request ended well.
pub(super) struct Answered<T> {
    status: StatusCode,
    /// What it says in gRPC, if it does.
    grpc: Option<u8>,
    /// When its answer had been sent.
    at: Instant,
    /// What it became, if it asked for a tunnel and got it.
    tunnel: Option<T>,
}

impl<T> Answered<T> {
    fn with<U>(self, tunnel: Option<U>) -> Answered<U> {
        Answered { status: self.status, grpc: self.grpc, at: self.at, tunnel }
    }
}

async fn attempts(
    worker: &Rc<Worker>,
    way: &Way,
    head: &RequestHead,
    body: &mut Body<'_>,
    respond: &mut Responder<'_>,
    started: Instant,
    ends: Option<Instant>,
) -> Result<Answered<Tunnel>> {
    let route = &*way.destination.route;
    let body = Replay::new(body, REPLAY);
    let tries = Tries::new(&route.retries, &route.budget, head.is_idempotent(), ends);
    let tries = tries.counted_by(&way.limits);
    let asked = Asked { worker, way, head, body: &body, tries: &tries };
    let mut tried: SmallVec<[u64; 4]> = SmallVec::new();
    let mut next: Option<InFlight> = None;
    let mut failed: Option<Error> = None;
    loop {
        let first = tries.is_first();
        let mut begun = if first { started } else { Instant::now() };
        let place = match next.take() {
            Some(place) => place,
            None => match place_now(&asked, &tried, begun) {
                Ok(place) => place,
                Err(unplaced) => {
                    let place =
                        Box::pin(wanted(respond, place_then(unplaced, &asked, &tried, begun))).await?;
                    begun = Instant::now();
                    // That there is no other endpoint is not what failed.
                    place.map_err(|none| failed.take().unwrap_or(none))?
                }
            },
        };
        worker.shared.leads_away(route.direction, place.endpoint().address)?;
        let need = if first { need(head, route) } else { Need::New };
        let this = Try::new(need, begun);
        let (id, address) = (place.endpoint().id, place.endpoint().address);
        let error = if let Some(after) = asked.hedged_after(started) {
            match Box::pin(hedged(&asked, place, &this, after, respond, &mut tried)).await {
                Ok(answered) => return Ok(answered.with(None)),
                Err(error) => error,
            }
        } else {
            let done = match tries.try_timeout() {
                None => attempt(&asked, &place, &this, respond).await,
                // In memory of its own: few routes have one.
                Some(_) => Box::pin(once(&asked, &place, &this, respond)).await,
            };
            match done {
                Ok(mut answered) => {
                    let tunnel = match answered.tunnel.take() {
                        Some(switched) => {
                            Some(granted(worker, &way.destination.route, End::new(*switched, place)?))
                        }
                        None => None,
                    };
                    return Ok(answered.with(tunnel));
                }
                Err(error) => {
                    drop(place);
                    error
                }
            }
        };
        let again = match this.granted.take() {
            Some(pause) => Ok(pause),
            None => tries.again(Failure::of(&error, this.reused.get()), respond.has_begun(), &body),
        };
        let pause = match again {
            Ok(pause) => pause,
            Err(not) => return Err(not.told(error)),
        };
        tracing::debug!(endpoint = %address, %error, "trying again");
        body.rewind();
        if !tried.contains(&id) {
            tried.push(id);
        }
        next = Box::pin(paused(&asked, &tried, pause, respond)).await?;
        failed = Some(error);
    }
}

/// Waits for what a request needs, as long as the downstream wants that.
async fn wanted<T>(respond: &mut Responder<'_>, work: impl Future<Output = T>) -> Result<T> {
    let mut work = pin!(work);
    poll_fn(|cx| match work.as_mut().poll(cx) {
        Poll::Ready(done) => Poll::Ready(Ok(done)),
        Poll::Pending => respond.poll_gone(cx).map(|()| Err(exchange::given_up())),
    })
    .await
}

/// Waits for the time of the next try, as long as the downstream wants one; returns its place, if that had
/// to be known for it.
async fn paused(
    asked: &Asked<'_, '_, '_>,
    tried: &[u64],
    pause: Pause,
    respond: &mut Responder<'_>,
) -> Result<Option<InFlight>> {
    let pause = match pause {
        Pause::None => return Ok(None),
        Pause::Always(pause) => pause,
        Pause::IfTried(pause) => match place(asked, tried, Instant::now()).await {
            Ok(place) if tried.contains(&place.endpoint().id) => pause,
            place => return Ok(place.ok()),
        },
    };
    // No place is held meanwhile.
    let mut over = Deadline::new(pause);
    poll_fn(|cx| match respond.poll_gone(cx) {
        Poll::Ready(()) => Poll::Ready(Err(exchange::given_up())),
        Poll::Pending => over.poll(cx).map(|()| Ok(None)),
    })
    .await
}

/// What all tries of a request have in common.
pub(super) struct Asked<'a, 'b, 'c> {
    pub worker: &'a Rc<Worker>,
    pub way: &'a Way,
    pub head: &'a RequestHead,
    pub body: &'a Replay<'b, 'c>,
    pub tries: &'a Tries<'a>,
}

impl Asked<'_, '_, '_> {
    /// Where it goes, and on which terms.
    pub(super) fn route(&self) -> &Route {
        &self.way.destination.route
    }

    /// What it wants of the upstream, in a try that has begun at a time.
    pub(super) fn want<'s>(&self, tried: &'s [u64], begun: Instant) -> Want<'s> {
        let (deadline, patience) = (self.tries.ends(), self.route().patience());
        Want { tried, begun, deadline, patience, key: self.way.key }
    }

    /// After how long a first try is not to be alone any more: where the route asks for that, and the
    /// request may be run twice.
    fn hedged_after(&self, now: Instant) -> Option<Duration> {
        let route = self.route();
        let hedge = route.hedge.as_ref()?;
        let may_be = self.tries.is_first()
            && self.head.is_idempotent()
            && !self.head.asks_for_tunnel()
            && self.way.destination.pinned.is_none();
        if may_be { hedge.after(&route.traffic, now) } else { None }
    }
}

/// One try.
pub(super) struct Try {
    /// What it needs of a connection. After a first, a new one: that might have met one that was just
    /// being closed.
    pub need: Need,
    /// When it had its place: what it had to wait for until then is nobody's silence.
    pub begun: Instant,
    /// Whether it went on a connection that others had used.
    reused: Cell<bool>,
    /// Whether the head of its answer has come, and was not turned down.
    pub answered: Cell<bool>,
    /// What the endpoint's sidecar has said with its answer of how full it is, and when.
    heard: Cell<Option<(Announcement, Instant)>>,
    /// It was given up, or its answer turned down, and another was granted in its place.
    pub granted: Cell<Option<Pause>>,
}

impl Try {
    /// One that begins.
    pub(super) fn new(need: Need, begun: Instant) -> Self {
        let (reused, answered) = (Cell::new(false), Cell::new(false));
        Self { need, begun, reused, answered, heard: Cell::new(None), granted: Cell::new(None) }
    }

    /// Lets another stand for this one, as far as what comes after it is concerned.
    pub(super) fn pass_to(&self, other: &Self) {
        other.reused.set(self.reused.get());
        other.granted.set(self.granted.take());
    }
}

/// What a request needs of the connection that it goes on first.
fn need(head: &RequestHead, route: &Route) -> Need {
    let kept = match head.length {
        Length::None => true,
        Length::Sized(length) => length <= REPLAY as u64,
        Length::Stream => false,
    };
    if kept && route.retries.takes_resets() && head.is_idempotent() { Need::Usable } else { Need::Proven }
}

/// One try with one endpoint, as long as it is not given up for another.
pub(super) async fn once(
    asked: &Asked<'_, '_, '_>,
    place: &InFlight,
    this: &Try,
    respond: &mut Responder<'_>,
) -> Result<Answered<Box<Switched>>> {
    match asked.tries.try_timeout() {
        None => attempt(asked, place, this, respond).await,
        Some(limit) => {
            let done = unless_slow(attempt(asked, place, this, respond), limit, asked, this).await;
            done.inspect_err(|error| place.failed(error))
        }
    }
}

/// Pool and exchange; what came of them is noted at the endpoint.
async fn attempt(
    asked: &Asked<'_, '_, '_>,
    place: &InFlight,
    this: &Try,
    respond: &mut Responder<'_>,
) -> Result<Answered<Box<Switched>>> {
    let _excuse = Excuse { place, body: asked.body };
    let done = exchanged(asked, place, this, respond).await;
    // Also with an answer that was turned down.
    if let Some((said, at)) = this.heard.take() {
        place.hear(&said, at);
    }
    match &done {
        Ok(answered) => place.answered(answered.status, answered.grpc, answered.at),
        // That a used connection was closed is no failure of the endpoint.
        Err(error) if this.reused.get() && error.retry != Retry::Never => place.excuse(),
        // Its caller has not sent all of it; or has had enough of a stream of events, perhaps before the first.
        Err(error)
            if error.reason == Reason::HttpDownstreamGone
                && (asked.body.is_awaited() || asked.head.is_grpc()) =>
        {
            place.excuse();
        }
        Err(error) => place.failed(error),
    }
    done
}

/// Has an attempt that is given up say nothing of its endpoint while its caller is still sending the request.
struct Excuse<'a, 'b, 'c> {
    place: &'a InFlight,
    body: &'a Replay<'b, 'c>,
}

impl Drop for Excuse<'_, '_, '_> {
    fn drop(&mut self) {
        if self.body.is_awaited() {
            self.place.excuse();
        }
    }
}

async fn exchanged(
    asked: &Asked<'_, '_, '_>,
    place: &InFlight,
    this: &Try,
    respond: &mut Responder<'_>,
) -> Result<Answered<Box<Switched>>> {
    let Asked { worker, way, head, body, tries } = *asked;
    let Try { need, begun, .. } = *this;
    let (upstream, endpoint) = (place.upstream(), place.endpoint());
    let bounds = &way.destination.route.bounds;
    let mut sidecar = upstream.secures(endpoint);
    let (mut streams, mut sent) = (None, begun);
    if sidecar || way.h2 {
        streams = worker.pools.streams(endpoint, sidecar, begun).filter(|s| matches!(s, Streams::Mesh(_)));
        if streams.is_none() {
            // In memory of its own: between sidecars hardly any request waits for one, and a stream of HTTP/2
            // has to be waited for.
            (streams, sidecar) = Box::pin(wanted(respond, streams_to(worker, way, place, sidecar))).await??;
            // What that took is not the endpoint's time.
            sent = Instant::now();
        }
    }
    // A route's own timeout says how long its answers may take, and is watched over already.
    let patience = if way.destination.route.timeout.is_some() { Duration::MAX } else { bounds.body_timeout };
    let announces = way.announces.then_some(&**upstream);
    let due = way.destination.route.timeout.and_then(|whole| begun.checked_add(whole));
    let judges = way.destination.route.retries.judges();
    let judge = |answer: &ResponseHead| {
        if judges && let Some((pause, error)) = tries.judge(answer, head, sidecar, body) {
            this.granted.set(Some(pause));
            return Err(error);
        }
        this.answered.set(true);
        place.answer_began(due);
        Ok(())
    };
    let terms = |own, left| Terms {
        bounds,
        begun,
        patience,
        host: &endpoint.host,
        sidecar,
        h2: way.h2,
        heard: &this.heard,
        announces,
        own,
        left,
        judge: &judge,
    };
    let answered = match streams {
        Some(streams) => {
            let told = Told::of(asked, sidecar, sent).inspect_err(|_| place.excuse())?;
            let terms = terms(told.fields(), told.left);
            place.sent(sent);
            let done = match streams {
                Streams::Mesh(link) => exchange::over_mesh(link, head, body, respond, &terms).await?,
                Streams::H2(sender, _in_use) => {
                    Box::pin(exchange::over_h2(sender, head, body, respond, &terms)).await?
                }
            };
            let tunnel = done.tunnel.map(|frames| Box::new(Switched::Stream(frames)));
            Answered { status: done.status, grpc: done.grpc, at: Instant::now(), tunnel }
        }
        None => {
            // What waited since, waited for a connection that does not wait: the clock is read again.
            let now = if need == Need::Proven { Instant::now() } else { sent };
            let mut lease = match worker.pools.idle_h1(endpoint, need, now) {
                Some(lease) => {
                    sent = now;
                    lease
                }
                None => {
                    let dial = Dial { source: way.source, secure: None };
                    let opening = wanted(respond, worker.pools.open_h1(upstream, endpoint, dial, need));
                    let lease = noted(place, Box::pin(opening).await?)?;
                    // What that took is no part of a round trip.
                    sent = Instant::now();
                    lease
                }
            };
            this.reused.set(!lease.is_new());
            let told = Told::of(asked, sidecar, sent).inspect_err(|_| place.excuse())?;
            let terms = terms(told.fields(), told.left);
            place.sent(sent);
            let done = match exchange::over_h1(lease.conn(), head, body, respond, &terms).await {
                Ok(done) => done,
                Err(error) => {
                    if error.retry != Retry::Never {
                        lease.was_lost(sent.elapsed());
                    }
                    return Err(error);
                }
            };
            let at = Instant::now();
            let mut tunnel = None;
            if done.tunnel.is_some() {
                tunnel = Some(Box::new(Switched::Connection(lease)));
            } else if done.reusable {
                worker.pools.put(lease, at - sent, done.hint, at);
            }
            Answered { status: done.status, grpc: done.grpc, at, tunnel }
        }
    };
    Ok(answered)
}

/// Pool: a connection that carries many requests, and whether it is secure; none, if the endpoint turns out
/// to speak plaintext and the application HTTP/1.
async fn streams_to(
    worker: &Worker,
    way: &Way,
    place: &InFlight,
    secure: bool,
) -> Result<(Option<Streams>, bool)> {
    let (upstream, endpoint) = (place.upstream(), place.endpoint());
    let open = async |secure: bool| {
        let dial = Dial { source: way.source, secure: secure.then_some(Carries::Requests) };
        let bounds = way.destination.route.bounds;
        noted(place, worker.pools.open_streams(upstream, endpoint, dial, bounds).await)
    };
    match open(secure).await {
        Err(error) if secure && !upstream.secures(endpoint) => {
            // Found out just now; nothing was sent, so it starts over in plaintext.
            tracing::info!(endpoint = %endpoint.address, %error, "speaks plaintext");
            let streams = if way.h2 { Some(open(false).await?) } else { None };
            Ok((streams, false))
        }
        streams => Ok((Some(streams?), secure)),
    }
}

/// Remembers an endpoint that could not be reached, so that the next request passes it over.
pub(super) fn noted<T>(place: &InFlight, opened: Result<T>) -> Result<T> {
    if let Err(error) = &opened
        && error.reason != Reason::PoolFull
    {
        place.unreached();
    }
    opened
}
