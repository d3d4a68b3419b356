//! The last stages, for both directions: balance, pool, exchange; and again, where a failure
//! proves that this is safe.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use smallvec::SmallVec;

use super::exchange::{self, Terms};
use super::mesh::Destination;
use super::tunnel::{End, Switched, Tunnel, granted};
use super::worker::Worker;
use crate::balance::{Endpoint, InFlight};
use crate::error::{Error, Reason, Result, Retry};
use crate::http::body::Replay;
use crate::http::deadline::within;
use crate::http::{Body, Bounds, Next, RequestHead, Responder};
use crate::intercept::Source;
use crate::pool::{Dial, Streams};
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
    let attempts = attempts(worker, way, head, body, respond);
    let result = match route.timeout {
        None => attempts.await,
        Some(limit) => within(limit, attempts).await.unwrap_or_else(|| {
            Err(Error::new(Reason::UpstreamTimeout, format!("no whole answer within {limit:?}")))
        }),
    };
    let status = result.as_ref().map_or_else(|e| e.reason.status(), |(status, _)| *status);
    route.traffic.finished(worker.index, status.as_u16(), started.elapsed());
    match result {
        Ok((_, None)) => Ok(Next::Request),
        Ok((_, Some(tunnel))) => Ok(Next::Tunnel(tunnel)),
        Err(error) => Err(Error { upstream: Some(route.upstream.spec.name.clone()), ..error }),
    }
}

async fn attempts(
    worker: &Rc<Worker>,
    way: &Way,
    head: &RequestHead,
    body: &mut Body<'_>,
    respond: &mut Responder<'_>,
) -> Result<(StatusCode, Option<Tunnel>)> {
    let retries = way.destination.route.retries;
    let mut body = Replay::new(body, if retries == 0 { 0 } else { REPLAY });
    let mut tried: SmallVec<[u64; 4]> = SmallVec::new();
    let mut tries = 0;
    let mut repeated = false;
    let mut failed: Option<Error> = None;
    loop {
        // That there is no other endpoint is not what failed.
        let place = place(way, &tried).await.map_err(|none| failed.take().unwrap_or(none))?;
        worker.shared.leads_away(way.destination.route.direction, place.endpoint.address)?;
        let error = match attempt(worker, way, &place, head, &mut body, respond, tries > 0).await {
            Ok((status, None)) => return Ok((status, None)),
            Ok((status, Some(switched))) => {
                let end = End::new(*switched, place)?;
                return Ok((status, Some(granted(worker, &way.destination.route, end))));
            }
            Err(error) => error,
        };
        let safe = match error.retry {
            Retry::Unprocessed => true,
            // What may have been processed is sent once more, not as often as it takes.
            Retry::Idempotent => head.is_idempotent() && !std::mem::replace(&mut repeated, true),
            Retry::Never => false,
        };
        if !safe || tries >= retries || respond.has_begun() || !body.rewind() {
            return Err(error);
        }
        tracing::debug!(endpoint = %place.endpoint.address, %error, "trying again");
        if tried.contains(&place.endpoint.id) {
            let pause = FIRST_PAUSE * (1 << tries.min(6));
            let spread = pause.mul_f64(0.5 + fastrand::f64());
            drop(place);
            tokio::time::sleep(spread).await;
        } else {
            tried.push(place.endpoint.id);
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

/// Pool and exchange: one try with one endpoint.
async fn attempt(
    worker: &Rc<Worker>,
    way: &Way,
    place: &InFlight,
    head: &RequestHead,
    body: &mut Replay<'_, '_>,
    respond: &mut Responder<'_>,
    fresh: bool,
) -> Result<(StatusCode, Option<Box<Switched>>)> {
    let (upstream, endpoint) = (place.upstream(), &place.endpoint);
    let bounds = &way.destination.route.bounds;
    let mut sidecar = upstream.secures(endpoint);
    let mut streams = None;
    if sidecar || way.h2 {
        streams = match streams_to(worker, way, place, bounds, sidecar).await {
            Err(error) if sidecar && !upstream.secures(endpoint) => {
                // Found out just now; nothing was sent, so it starts over in plaintext.
                tracing::info!(endpoint = %endpoint.address, %error, "speaks plaintext");
                sidecar = false;
                if way.h2 { Some(streams_to(worker, way, place, bounds, false).await?) } else { None }
            }
            streams => Some(streams?),
        };
    }
    // A route's own timeout says how long its answers may take, and is watched over already.
    let patience = if way.destination.route.timeout.is_some() { Duration::MAX } else { bounds.body_timeout };
    let terms = Terms { bounds, patience, host: &endpoint.host, sidecar, h2: way.h2 };
    let (status, switched) = match streams {
        Some(Streams::Mesh(link)) => {
            let done = exchange::over_mesh(link, head, body, respond, &terms).await?;
            (done.status, done.tunnel.map(|frames| Box::new(Switched::Stream(frames))))
        }
        Some(Streams::H2(sender)) => {
            let done = Box::pin(exchange::over_h2(sender, head, body, respond, &terms)).await?;
            (done.status, done.tunnel.map(|frames| Box::new(Switched::Stream(frames))))
        }
        None => {
            let may_repeat = head.is_idempotent() && way.destination.route.retries > 0;
            let idle = if fresh { None } else { worker.pools.idle_h1(endpoint, may_repeat) };
            let dial = Dial { source: way.source, secure: None };
            let mut lease = match idle {
                Some(lease) => lease,
                None => noted(endpoint, Box::pin(worker.pools.open_h1(upstream, endpoint, dial)).await)?,
            };
            let done = exchange::over_h1(&mut lease.conn, head, body, respond, &terms).await?;
            match done.tunnel {
                Some(()) => (done.status, Some(Box::new(Switched::Connection(lease)))),
                None => {
                    if done.reusable {
                        worker.pools.put(lease, upstream);
                    }
                    (done.status, None)
                }
            }
        }
    };
    endpoint.answered();
    Ok((status, switched))
}

/// Pool: a connection that carries many requests.
async fn streams_to(
    worker: &Worker,
    way: &Way,
    place: &InFlight,
    bounds: &Bounds,
    secure: bool,
) -> Result<Streams> {
    if let Some(streams @ Streams::Mesh(_)) = worker.pools.streams(&place.endpoint, secure) {
        return Ok(streams);
    }
    let dial = Dial { source: way.source, secure: secure.then_some(Carries::Requests) };
    let opening = worker.pools.open_streams(place.upstream(), &place.endpoint, dial, *bounds);
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
