//! The time that is left of a request: when it is over, and what the next hop is told of it.
//!
//! Promise: nothing is sent for which no time is left.

use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;

use super::forward::Asked;
use super::mesh::Route;
use crate::error::{Error, Reason, Result};
use crate::http::expiry::{self, millis};
use crate::http::{Expiry, RequestHead};

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

/// The fields that tell the next hop how much time is left; few requests have any of their own.
pub(super) enum Told<'a> {
    /// All of the route's.
    Whole(&'a HeaderMap),
    /// Less, or a caller's.
    Less(Box<HeaderMap>),
}

impl<'a> Told<'a> {
    /// What the next hop, a sidecar or not, is told; an error if no time is left.
    pub(super) fn of(asked: &'a Asked<'_, '_, '_>, sidecar: bool) -> Result<Option<Self>> {
        let (route, said) = (asked.route(), asked.head.expiry.as_ref());
        let Some(ends) = asked.tries.ends().filter(|_| sidecar || said.is_some_and(Expiry::is_said)) else {
            return Ok(None);
        };
        let left = ends.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(late(route, left));
        }
        let whole = |timeout| said.is_none() && millis(left) == millis(timeout);
        Ok(Some(match route.timeout {
            Some(timeout) if whole(timeout) => Told::Whole(&route.told),
            _ => Told::Less(Box::new(expiry::told(said, left, sidecar))),
        }))
    }

    pub(super) fn fields(&self) -> &HeaderMap {
        match self {
            Told::Whole(fields) => fields,
            Told::Less(fields) => fields,
        }
    }
}
