//! The last stages, for both directions: balance, pool, exchange; and again, where a failure
//! proves that this is safe.

use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use smallvec::SmallVec;
use tokio::time::Instant;

use super::exchange::{self, Terms};
use super::mesh::Destination;
use super::tunnel::{End, Switched, Tunnel, granted};
use super::worker::Worker;
use crate::balance::{Endpoint, InFlight};
use crate::error::{Error, Reason, Result, Retry};
use crate::http::body::Replay;
use crate::http::deadline::within;
use crate::http::{Body, Length, Next, RequestHead, Responder};
use crate::intercept::Source;
use crate::pool::{Dial, Need, Streams};
use crate::tls::Carries;

/// What is kept of a request's body, so that it can be sent again.
const REPLAY: usize = 64 << 10;

/// The pause before an endpoint is tried a second time: doubled each time, and spread.
const FIRST_PAUSE: Duration = Duration::from_millis(20);

/// How to reach a destination.
pub(super) struct Way {
    /// Where.
    pub destination: Destination,
    /// The address that we connect from.
    pub source: Option<Source>,
    /// The application speaks HTTP/2, so its peer is spoken to alike.
    pub h2: bool,
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
    let attempts = pin!(attempts(worker, way, head, body, respond, started));
    let limit = route.timeout.unwrap_or(Duration::MAX);
    let late = || Error::new(Reason::UpstreamTimeout, format!("no whole answer within {limit:?}"));
    let result = within(limit, attempts).await.unwrap_or_else(|| Err(late()));
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
struct Answered<T> {
    status: StatusCode,
    /// When its answer had been sent.
    at: Instant,
    /// What it became, if it asked for a tunnel and got it.
    tunnel: Option<T>,
}

async fn attempts(
    worker: &Rc<Worker>,
    way: &Way,
    head: &RequestHead,
    body: &mut Body<'_>,
    respond: &mut Responder<'_>,
    started: Instant,
) -> Result<Answered<Tunnel>> {
    let retries = way.destination.route.retries;
    let mut body = Replay::new(body, REPLAY);
    let mut tried: SmallVec<[u64; 4]> = SmallVec::new();
    let mut tries = 0;
    let mut repeated = false;
    let mut failed: Option<Error> = None;
    loop {
        // That there is no other endpoint is not what failed.
        let place = place(way, &tried).await.map_err(|none| failed.take().unwrap_or(none))?;
        worker.shared.leads_away(way.destination.route.direction, place.endpoint.address)?;
        let mut this = Try {
            need: if tries > 0 { Need::New } else { need(head, retries) },
            begun: if tries > 0 { Instant::now() } else { started },
            reused: false,
        };
        let error = match attempt(worker, way, &place, head, &mut body, respond, &mut this).await {
            Ok(Answered { status, at, tunnel }) => {
                let tunnel = match tunnel {
                    Some(switched) => {
                        Some(granted(worker, &way.destination.route, End::new(*switched, place)?))
                    }
                    None => None,
                };
                return Ok(Answered { status, at, tunnel });
            }
            Err(error) => error,
        };
        let safe = match error.retry {
            Retry::Unprocessed => true,
            // That a used connection was closed is no failure of the endpoint. Beyond that, what may have
            // been processed is sent once more, not as often as it takes.
            Retry::Idempotent if this.reused => head.is_idempotent(),
            Retry::Idempotent => head.is_idempotent() && !std::mem::replace(&mut repeated, true),
            Retry::Never => false,
        };
        // A request that nobody took goes on a new connection whatever the route says of retries.
        let unsent = this.reused && error.retry == Retry::Unprocessed && tries == 0;
        if !safe || (tries >= retries && !unsent) || respond.has_begun() || !body.rewind() {
            return Err(error);
        }
        tracing::debug!(endpoint = %place.endpoint.address, %error, "trying again");
        if !tried.contains(&place.endpoint.id) {
            tried.push(place.endpoint.id);
        } else if !this.reused {
            let pause = FIRST_PAUSE * (1 << tries.min(6));
            let spread = pause.mul_f64(0.5 + fastrand::f64());
            drop(place);
            tokio::time::sleep(spread).await;
        }
        tries += 1;
        failed = Some(error);
    }
}

/// Balance: a place with the least saturated endpoint that was not tried; when all were, with any.
async fn place(way: &Way, tried: &[u64]) -> Result<InFlight> {
    let upstream = &way.destination.route.upstream;
    if let Some(endpoint) = &way.destination.pinned {
        return upstream.place_at(endpoint);
    }
    match upstream.pick(tried).await {
        Err(_) if !tried.is_empty() => upstream.pick(&[]).await,
        picked => picked,
    }
}

/// One try.
struct Try {
    /// What it needs of a connection. After a first, a new one: that might have met one that was just
    /// being closed.
    need: Need,
    begun: Instant,
    /// Whether it went on a connection that others had used.
    reused: bool,
}

/// What a request needs of the connection that it goes on first.
fn need(head: &RequestHead, retries: u8) -> Need {
    let kept = match head.length {
        Length::None => true,
        Length::Sized(length) => length <= REPLAY as u64,
        Length::Stream => false,
    };
    if kept && retries > 0 && head.is_idempotent() { Need::Usable } else { Need::Proven }
}

/// Pool and exchange: one try with one endpoint.
async fn attempt(
    worker: &Rc<Worker>,
    way: &Way,
    place: &InFlight,
    head: &RequestHead,
    body: &mut Replay<'_, '_>,
    respond: &mut Responder<'_>,
    this: &mut Try,
) -> Result<Answered<Box<Switched>>> {
    let Try { need, begun, .. } = *this;
    let (upstream, endpoint) = (place.upstream(), &place.endpoint);
    let bounds = &way.destination.route.bounds;
    let mut sidecar = upstream.secures(endpoint);
    let mut streams = None;
    if sidecar || way.h2 {
        streams = match streams_to(worker, way, place, begun, sidecar).await {
            Err(error) if sidecar && !upstream.secures(endpoint) => {
                // Found out just now; nothing was sent, so it starts over in plaintext.
                tracing::info!(endpoint = %endpoint.address, %error, "speaks plaintext");
                sidecar = false;
                if way.h2 { Some(streams_to(worker, way, place, begun, false).await?) } else { None }
            }
            streams => Some(streams?),
        };
    }
    // A route's own timeout says how long its answers may take, and is watched over already.
    let patience = if way.destination.route.timeout.is_some() { Duration::MAX } else { bounds.body_timeout };
    let terms = Terms { bounds, begun, patience, host: &endpoint.host, sidecar, h2: way.h2 };
    let answered = match streams {
        Some(streams) => {
            let done = match streams {
                Streams::Mesh(link) => exchange::over_mesh(link, head, body, respond, &terms).await?,
                Streams::H2(sender, _in_use) => {
                    Box::pin(exchange::over_h2(sender, head, body, respond, &terms)).await?
                }
            };
            let tunnel = done.tunnel.map(|frames| Box::new(Switched::Stream(frames)));
            Answered { status: done.status, at: Instant::now(), tunnel }
        }
        None => {
            // What waited since, waited for a connection that does not wait: the clock is read again.
            let now = if need == Need::Proven { Instant::now() } else { begun };
            let mut lease = match worker.pools.idle_h1(endpoint, need, now) {
                Some(lease) => lease,
                None => {
                    let dial = Dial { source: way.source, secure: None };
                    let opened = Box::pin(worker.pools.open_h1(upstream, endpoint, dial, need));
                    noted(endpoint, opened.await)?
                }
            };
            this.reused = !lease.is_new();
            // The time that opening took is no part of a round trip.
            let sent = if this.reused { now } else { Instant::now() };
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
            Answered { status: done.status, at, tunnel }
        }
    };
    endpoint.answered();
    Ok(answered)
}

/// Pool: a connection that carries many requests.
async fn streams_to(
    worker: &Worker,
    way: &Way,
    place: &InFlight,
    begun: Instant,
    secure: bool,
) -> Result<Streams> {
    if let Some(streams @ Streams::Mesh(_)) = worker.pools.streams(&place.endpoint, secure, begun) {
        return Ok(streams);
    }
    let dial = Dial { source: way.source, secure: secure.then_some(Carries::Requests) };
    let bounds = way.destination.route.bounds;
    let opening = worker.pools.open_streams(place.upstream(), &place.endpoint, dial, bounds);
    noted(&place.endpoint, Box::pin(opening).await)
}

/// Remembers an endpoint that could not be reached, so that the next request passes it over.
pub(super) fn noted<T>(endpoint: &Arc<Endpoint>, opened: Result<T>) -> Result<T> {
    if let Err(error) = &opened
        && error.reason != Reason::PoolFull
    {
        endpoint.failed();
    }
    opened
}
