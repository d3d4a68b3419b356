//! The balance stage: a place for a request at the endpoint that is likely to answer it first. Nearly always
//! there is one at once, and then nothing of what waiting needs is made.

use tokio::time::Instant;

use super::forward::Asked;
use crate::balance::{InFlight, Wait, Want};
use crate::error::{Error, Result};

/// Why a request has no place at once.
pub(super) enum Unplaced {
    Wait(Wait),
    Refused(Error),
}

/// As far of [`place`] as nothing has to be waited for.
pub(super) fn place_now(
    asked: &Asked<'_, '_, '_>,
    tried: &[u64],
    begun: Instant,
) -> std::result::Result<InFlight, Unplaced> {
    let destination = &asked.way.destination;
    let upstream = &destination.route.upstream;
    match &destination.pinned {
        Some(endpoint) => upstream.place_at(endpoint, begun, asked.way.always).map_err(Unplaced::Refused),
        None => upstream.pick_at_once(&asked.want(tried, begun)).map_err(Unplaced::Wait),
    }
}

/// The rest of [`place`].
pub(super) async fn place_then(
    unplaced: Unplaced,
    asked: &Asked<'_, '_, '_>,
    tried: &[u64],
    begun: Instant,
) -> Result<InFlight> {
    let wait = match unplaced {
        Unplaced::Wait(wait) => wait,
        Unplaced::Refused(error) => return Err(error),
    };
    let (upstream, worker, want) = (&asked.route().upstream, &**asked.worker, asked.want(tried, begun));
    match upstream.pick_after(wait, &want, worker).await {
        Err(_) if !tried.is_empty() => {
            upstream.pick(&Want { tried: &[], begun: Instant::now(), ..want }, worker).await
        }
        picked => picked,
    }
}

/// Balance: a place with the endpoint that is likely to answer first, of those that were not tried; when all
/// were, of all. `begun`: when this try has.
pub(super) async fn place(asked: &Asked<'_, '_, '_>, tried: &[u64], begun: Instant) -> Result<InFlight> {
    match place_now(asked, tried, begun) {
        Ok(place) => Ok(place),
        Err(unplaced) => place_then(unplaced, asked, tried, begun).await,
    }
}
