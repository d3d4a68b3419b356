//! The last stages, for both directions: balance, pool, exchange; and again, where a failure
//! proves that this is safe.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use smallvec::SmallVec;
use tokio::time::timeout;

use super::exchange::{self, Done, Terms};
use super::mesh::{Destination, Mesh};
use super::worker::Worker;
use crate::balance::{Endpoint, InFlight};
use crate::error::{Error, Reason, Result, Retry};
use crate::http::body::Replay;
use crate::http::{Body, RequestHead, Responder};
use crate::intercept::Source;
use crate::pool::Dial;
use crate::tls::Alpn;

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

/// Sends a request to its destination and the answer back. Counts both.
pub(super) async fn forward(
    worker: &Rc<Worker>,
    mesh: &Mesh,
    way: &Way,
    head: &RequestHead,
    body: &mut Body<'_>,
    respond: &mut Responder<'_>,
) -> Result<StatusCode> {
    let started = Instant::now();
    let route = &way.destination.route;
    let attempts = attempts(worker, mesh, way, head, body, respond);
    let result = match route.timeout {
        None => attempts.await,
        Some(limit) => timeout(limit, attempts).await.unwrap_or_else(|_| {
            Err(Error::new(Reason::UpstreamTimeout, format!("no whole answer within {limit:?}")))
        }),
    };
    let status = result.as_ref().map_or_else(|e| e.reason.status(), |status| *status);
    route.traffic.finished(worker.index, status.as_u16(), started.elapsed());
    result.map_err(|error| Error { upstream: Some(route.upstream.spec.name.clone()), ..error })
}

async fn attempts(
    worker: &Rc<Worker>,
    mesh: &Mesh,
    way: &Way,
    head: &RequestHead,
    body: &mut Body<'_>,
    respond: &mut Responder<'_>,
) -> Result<StatusCode> {
    let retries = way.destination.route.retries;
    let mut body = Replay::new(body, if retries == 0 { 0 } else { REPLAY });
    let mut tried: SmallVec<[u64; 4]> = SmallVec::new();
    let mut tries = 0;
    let mut repeated = false;
    let mut failed: Option<Error> = None;
    loop {
        // That there is no other endpoint is not what failed.
        let place = place(way, &tried).await.map_err(|none| failed.take().unwrap_or(none))?;
        let error = match attempt(worker, mesh, way, &place, head, &mut body, respond, tries > 0).await {
            Ok(status) => return Ok(status),
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
#[expect(clippy::too_many_arguments, reason = "a request's parts have different lifetimes")]
async fn attempt(
    worker: &Rc<Worker>,
    mesh: &Mesh,
    way: &Way,
    place: &InFlight,
    head: &RequestHead,
    body: &mut Replay<'_, '_>,
    respond: &mut Responder<'_>,
    fresh: bool,
) -> Result<StatusCode> {
    let (upstream, endpoint) = (place.upstream(), &place.endpoint);
    let bounds = mesh.bounds;
    let mut sidecar = upstream.secures(endpoint);
    let mut dial =
        Dial { source: way.source, secure: sidecar.then_some(Alpn::H2), tls: worker.shared.tls.clone() };
    let sender = if sidecar {
        match worker.pools.h2(upstream, endpoint, &dial, bounds).await {
            Err(error) if !upstream.secures(endpoint) => {
                // Found out just now; nothing was sent, so it starts over in plaintext.
                tracing::info!(endpoint = %endpoint.address, %error, "speaks plaintext");
                (sidecar, dial.secure) = (false, None);
                None
            }
            sender => Some(noted(endpoint, sender)?),
        }
    } else {
        None
    };
    // A route's own timeout says how long its answers may take.
    let patience = way.destination.route.timeout.unwrap_or(bounds.body_timeout);
    let terms = Terms { bounds: &bounds, patience, host: &endpoint.host, sidecar, h2: way.h2 };
    let done = if let Some(sender) = sender {
        exchange::over_h2(sender, head, body, respond, &terms).await?
    } else if way.h2 {
        let sender = noted(endpoint, worker.pools.h2(upstream, endpoint, &dial, bounds).await)?;
        exchange::over_h2(sender, head, body, respond, &terms).await?
    } else {
        let lease = worker.pools.h1(upstream, endpoint, &dial, fresh).await;
        let mut lease = noted(endpoint, lease)?;
        let done = exchange::over_h1(&mut lease.conn, head, body, respond, &terms).await?;
        if done.reusable {
            worker.pools.put(lease, upstream);
        }
        done
    };
    let Done { status, .. } = done;
    endpoint.answered();
    Ok(status)
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
