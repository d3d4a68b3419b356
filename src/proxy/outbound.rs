//! Outbound: what the pod sends. The stages of a request, in order:
//!
//! intercept (where was it meant to go) → detect (which protocol) → http (one reading) → route →
//! limit → balance → pool → exchange.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::{Method, StatusCode};
use tokio::net::TcpStream;

use super::connection::{Requests, Stages};
use super::detect::{self, Detected, Protocol};
use super::forward::{Way, forward};
use super::limit::limit;
use super::mesh::{Destination, Mesh, Route};
use super::tcp;
use super::tunnel::{End, Tunnel, granted};
use super::worker::Worker;
use crate::config::model::{Direction, OnMismatch};
use crate::error::{Error, Reason, Result};
use crate::http::h1::{self, parse::is_own};
use crate::http::{Body, Next, RequestHead, Responder, ResponseHead, h2};
use crate::intercept;

/// Serves one connection of the pod.
///
/// Whatever is not HTTP/1 has memory of its own, as has finding out what it is: thousands of idle
/// HTTP/1 connections hold none of it.
pub(super) async fn serve(worker: Rc<Worker>, stream: TcpStream) {
    let original = intercept::original_destination(&stream);
    let met = match Box::pin(meet(&worker, &stream, original)).await {
        Ok(met) => met,
        Err(error) => return worker.refused(Direction::Outbound, &error),
    };
    let stages = Outbound { original };
    match met.detected.protocol {
        Protocol::Http1 => {
            drop(met);
            let requests = Requests { worker, stages };
            if let h1::Ended::Tunnel(downstream, first, tunnel) = h1::serve(stream, &requests).await {
                Box::pin(tunnel.join(downstream, first)).await;
            }
        }
        Protocol::Http2 => {
            drop(met);
            let requests = Rc::new(Requests { worker, stages });
            if let Err(error) = Box::pin(h2::serve(stream, requests)).await {
                tracing::debug!(%error, "an HTTP/2 connection of the application ended");
            }
        }
        Protocol::Opaque | Protocol::Tls { .. } => match met.destination {
            Some(destination) => {
                let carried =
                    tcp::carry(&worker, Direction::Outbound, stream, &destination, None, met.detected);
                Box::pin(carried).await;
            }
            None => {
                let why = "bytes that are not HTTP, and no original destination";
                worker.refused(Direction::Outbound, &Error::new(Reason::InterceptNoDestination, why));
            }
        },
    }
}

/// What is known of a connection before its first request.
struct Met {
    detected: Detected,
    /// By address alone: where opaque bytes go.
    destination: Option<Destination>,
}

/// Intercept and detect.
async fn meet(worker: &Rc<Worker>, stream: &TcpStream, original: Option<SocketAddr>) -> Result<Met> {
    let mesh = worker.mesh();
    let destination = match original {
        Some(original) => Some(by_address(worker, &mesh, original).await),
        None => None,
    };
    let settings = &mesh.model.outbound;
    let opaque = original.is_some_and(|o| settings.opaque_ports.contains(&o.port()));
    let detected = match &destination {
        Some(destination) if opaque => Detected::server(tcp::open(worker, destination, None).await?),
        _ => {
            let server = destination.as_ref().map(|d| tcp::open(worker, d, None));
            let head = mesh.bounds(Direction::Outbound).head_timeout;
            let detecting = detect::detect(stream, settings.detect_timeout.0, head, server);
            worker.unless_closing(Direction::Outbound, detecting).await?
        }
    };
    Ok(Met { detected, destination })
}

async fn by_address(worker: &Worker, mesh: &Mesh, original: SocketAddr) -> Destination {
    mesh.by_address(original).await.unwrap_or_else(|| Destination {
        route: mesh.original.clone(),
        pinned: Some(worker.endpoint_at(original, &mesh.original)),
    })
}

/// The stages of a request of the pod.
struct Outbound {
    /// Where the kernel says that the connection was going; none: it was made to us.
    original: Option<SocketAddr>,
}

impl Stages for Outbound {
    const DIRECTION: Direction = Direction::Outbound;

    async fn request(
        &self,
        worker: &Rc<Worker>,
        mesh: &Mesh,
        head: &mut RequestHead,
        body: &mut Body<'_>,
        respond: &mut Responder<'_>,
    ) -> Result<Next<Tunnel>> {
        head.fields.remove_where(is_own);
        let destination = match head.method {
            Method::CONNECT => Box::pin(self.connects_to(worker, mesh, head)).await?,
            _ => self.route(worker, mesh, head).await?,
        };
        let limits =
            limit(mesh, &mesh.outbound_limits, head, port(head, self.original), &mesh.identity).await?;
        if head.method == Method::CONNECT && self.original.is_none() {
            return Box::pin(connect(worker, &destination, respond)).await;
        }
        let h2 = head.version == http::Version::HTTP_2;
        let key = destination.route.sticky.as_ref().and_then(|sticky| sticky.key(head));
        let way = Way { destination, source: None, key, h2, always: false, announces: false, limits };
        forward(worker, &way, head, body, respond).await
    }

    fn is_from_sidecar(&self) -> bool {
        false
    }
}

impl Outbound {
    /// Route, for CONNECT. To the explicit listener it asks for a tunnel to whom it names: as any
    /// connection, to the upstream with that address, or else by the host's routes. One that was
    /// going to a proxy goes to that proxy.
    async fn connects_to(&self, worker: &Worker, mesh: &Mesh, head: &RequestHead) -> Result<Destination> {
        if let Some(original) = self.original {
            return Ok(by_address(worker, mesh, original).await);
        }
        let (host, port) = (head.host(), port(head, None));
        if let (Ok(ip), Some(port)) = (host.trim_matches(['[', ']']).parse(), port)
            && let Some(destination) = mesh.by_address(SocketAddr::new(ip, port)).await
        {
            return Ok(destination);
        }
        let named = mesh.upstreams.iter().find(|route| {
            let address = &route.upstream.spec.address;
            Some(address.port) == port && address.host.to_string() == host
        });
        match named.or_else(|| mesh.routes.find(host, port, head.path.path())) {
            Some(route) => Ok(Destination { route: route.clone(), pinned: None }),
            None => {
                Err(Error::new(Reason::RouteNone, "no upstream has this address, and no route this host"))
            }
        }
    }

    /// Route: host and path say which upstream, if the connection was meant for it.
    async fn route(&self, worker: &Worker, mesh: &Mesh, head: &RequestHead) -> Result<Destination> {
        let route = mesh.routes.find(head.host(), port(head, self.original), head.path.path());
        if let (Some(route), Some(original)) = (route, self.original)
            && !route.upstream.owns(original)
            && !route.upstream.is_located()
        {
            // Of an upstream that a reload has just brought, nothing may be known yet.
            Box::pin(route.upstream.located(original)).await;
            if !route.upstream.is_located() && route.upstream.requires_identity() {
                // Perhaps meant for it, perhaps not: in plaintext it does not go.
                let why = "its names have not been answered, so whether this was meant for it is not known";
                return Err(Error::new(Reason::DnsNoAnswer, why).upstream(&route.upstream.spec.name));
            }
        }
        let balanced = |route: &Arc<Route>| Destination { route: route.clone(), pinned: None };
        match (route, self.original) {
            (Some(route), None) => Ok(balanced(route)),
            (Some(route), Some(original)) if route.upstream.owns(original) => Ok(balanced(route)),
            (Some(route), Some(original)) => {
                worker.shared.mismatches.fetch_add(1, Ordering::Relaxed);
                match mesh.on_mismatch {
                    OnMismatch::Original => Ok(Box::pin(by_address(worker, mesh, original)).await),
                    OnMismatch::Route => Ok(balanced(route)),
                    OnMismatch::Refuse => {
                        let why = format!("the host has a route, but {original} is not of its upstream");
                        Err(Error::new(Reason::RouteMismatch, why).upstream(&route.upstream.spec.name))
                    }
                }
            }
            (None, Some(original)) => Ok(Box::pin(by_address(worker, mesh, original)).await),
            (None, None) => Err(Error::new(
                Reason::RouteNone,
                "no route takes this host and path, and nothing was redirected",
            )),
        }
    }
}

/// The port that a request names, or that it was sent to; without either, that of `http`
/// (RFC 9110 section 4.2.1).
pub(super) fn port(head: &RequestHead, original: Option<SocketAddr>) -> Option<u16> {
    const HTTP: u16 = 80;
    head.port().or(original.map(|o| o.port())).or(Some(HTTP))
}

/// CONNECT (RFC 9110 section 9.3.6): a tunnel to the destination, which carries bytes alone.
async fn connect(
    worker: &Rc<Worker>,
    destination: &Destination,
    respond: &mut Responder<'_>,
) -> Result<Next<Tunnel>> {
    let opened = tcp::open(worker, destination, None).await?;
    let gone = |_| Error::new(Reason::HttpDownstreamGone, "the downstream gave the tunnel up");
    respond.tunnel(ResponseHead::new(StatusCode::OK)).await.map_err(gone)?;
    Ok(Next::Tunnel(granted(worker, &destination.route, End::Connection(opened))))
}
