//! The time that is left of a request: when it is over, and what the next hop is told of it.
//!
//! Promise: nothing is sent for which no time is left.

use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;

use super::forward::Asked;
use super::mesh::Route;
use crate::error::{Error, Reason, Result};
use crate::http::{RequestHead, expiry};

/// When a request's time is over: its route's, or what its caller has left for it.
pub(super) fn ends(route: &Route, head: &RequestHead, started: Instant) -> Option<Instant> {
    let of_route = route.timeout.and_then(|timeout| started.checked_add(timeout));
    let of_caller = head.expiry.map(|expiry| expiry.at);
    of_route.into_iter().chain(of_caller).min()
}

/// That it is over.
pub(super) fn late(route: &Route, limit: Duration) -> Error {
    let why = match limit {
        limit if limit.is_zero() => "its caller had no time left".into(),
        limit if route.timeout == Some(limit) => format!("no whole answer within {limit:?}"),
        limit => format!("no whole answer within the {limit:?} that its caller had left"),
    };
    Error::new(Reason::UpstreamTimeout, why)
}

/// What the next hop is told of how much time is left.
#[derive(Default)]
pub(super) struct Told {
    /// A sidecar, where the caller has said nothing: in a place of its own.
    pub left: Option<Duration>,
    /// The fields in which the caller has said it; few have.
    fields: Option<Box<HeaderMap>>,
}

impl Told {
    /// What the next hop, a sidecar or not, is told at `now`; an error if no time is left.
    pub(super) fn of(asked: &Asked<'_, '_, '_>, sidecar: bool, now: Instant) -> Result<Self> {
        let said = asked.head.expiry.as_ref().filter(|expiry| expiry.is_said());
        let Some(ends) = asked.tries.ends().filter(|_| sidecar || said.is_some()) else {
            return Ok(Self::default());
        };
        let left = ends.saturating_duration_since(now);
        if left.is_zero() {
            return Err(late(asked.route(), left));
        }
        let fields = said.map(|said| Box::new(expiry::told(said, left)));
        Ok(Self { left: Some(left).filter(|_| fields.is_none()), fields })
    }

    pub(super) fn fields(&self) -> Option<&HeaderMap> {
        self.fields.as_deref()
    }
}
