//! What serves a request: the seam between the wire and the proxy.

use std::future::Future;

use super::closing::Closed;
use super::{Announcement, Body, Bounds, RequestHead, Responder};
use crate::error::Error;

/// Serves requests of one downstream connection, over either protocol.
pub trait Handler {
    /// The other end of a tunnel.
    type Tunnel;

    /// Serves one request. What it leaves of the body is read and dropped, within bounds.
    fn handle(
        &self,
        head: &mut RequestHead,
        body: &mut Body<'_>,
        respond: &mut Responder<'_>,
    ) -> impl Future<Output = Next<Self::Tunnel>>;

    /// Carries a tunnel over the stream on which it was asked for, until both sides have ended. Where a
    /// connection becomes one as a whole, whoever served the connection gets both.
    fn tunnel(
        &self,
        other: Self::Tunnel,
        body: &mut Body<'_>,
        respond: &mut Responder<'_>,
    ) -> impl Future<Output = ()>;

    /// Takes note of what could not be read as a request and was refused.
    fn refused(&self, error: &Error);

    /// The bounds of messages on this connection.
    fn bounds(&self) -> Bounds;

    /// Whether the downstream is a sidecar, whose connection carries requests of many clients.
    fn shares_connections(&self) -> bool;

    /// How full the pod is, for a downstream that is a sidecar.
    fn announces(&self) -> Option<Announcement>;

    /// Whether answers should ask the downstream to connect elsewhere.
    fn is_draining(&self) -> bool;

    /// Resolves when idle connections are to be closed.
    fn closing(&self) -> Closed;
}

/// What a connection does after a request.
#[derive(Debug)]
pub enum Next<T> {
    /// Carries the next request.
    Request,
    /// Becomes a tunnel.
    Tunnel(T),
}
