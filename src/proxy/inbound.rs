//! Inbound: what is sent to the pod. The stages of a request, in order:
//!
//! intercept (is it ours to take) → detect (our mTLS, or what else) → tls (who is calling) → http
//! (one reading) → authorize → limit → pool → exchange with the application, where it listens.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;

use http::{HeaderName, HeaderValue, Method, Version};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::connection::{Requests, Stages};
use super::detect::{self, Detected, Protocol};
use super::forward::{Way, forward};
use super::limit::limit;
use super::mesh::{Destination, Mesh};
use super::outbound::port;
use super::tcp;
use super::tunnel::Tunnel;
use super::worker::{Snapshot, Worker};
use crate::auth;
use crate::config::model::{Direction, InboundMtls};
use crate::error::{Error, Reason, Result};
use crate::http::h1::{self, parse::is_own};
use crate::http::{
    Body, CALLER_FIELD, Length, Next, PROTOCOL_FIELD, RequestHead, Responder, UPGRADE_FIELD, h2, mesh,
    upgrade,
};
use crate::identity::SpiffeId;
use crate::intercept::{self, INBOUND_SOURCE, Source};
use crate::limit::Again;
use crate::pool::never_pauses;
use crate::tls::{self, Alpn, Buffered};

/// Serves one connection to the pod.
///
/// Whatever is not HTTP/1 has memory of its own, as has finding out what it is.
pub(super) async fn serve(worker: Rc<Worker>, stream: TcpStream) {
    let met = match Box::pin(meet(&worker, &stream)).await {
        Ok(met) => met,
        Err(error) => return worker.refused(Direction::Inbound, &error),
    };
    if met.is_http1() {
        // Requests in plaintext are read even where none is let in, so that their sender is told.
        let requests = Requests { worker, stages: met.stages(None) };
        drop(met);
        if let h1::Ended::Tunnel(downstream, first, tunnel) = h1::serve(stream, &requests).await {
            Box::pin(tunnel.join(downstream, first)).await;
        }
    } else if let Err(error) = Box::pin(other(&worker, stream, met)).await {
        worker.refused(Direction::Inbound, &error);
    }
}

/// What is known of a connection before its first request.
struct Met {
    mesh: Snapshot,
    target: SocketAddr,
    source: Option<Source>,
    destination: Destination,
    detected: Detected,
}

/// Intercept and detect.
async fn meet(worker: &Rc<Worker>, stream: &TcpStream) -> Result<Met> {
    let mesh = worker.mesh();
    let (target, source) = target(worker, &mesh, stream)?;
    let destination = application(worker, &mesh, target);
    let settings = &mesh.model.inbound;
    let plain = mesh.inbound_mtls != InboundMtls::Strict;
    let detected =
        if plain && settings.opaque_ports.contains(&target.port()) && worker.shared.tls.load().is_none() {
            Detected::server(tcp::open(worker, &destination, source).await?)
        } else {
            let server = plain.then(|| tcp::open(worker, &destination, source));
            let head = mesh.bounds(Direction::Inbound).head_timeout;
            let detecting = detect::detect(stream, settings.detect_timeout.0, head, server);
            worker.unless_closing(Direction::Inbound, detecting).await?
        };
    Ok(Met { mesh, target, source, destination, detected })
}

impl Met {
    fn carries_http(&self) -> bool {
        !self.mesh.model.inbound.opaque_ports.contains(&self.target.port())
    }

    fn is_http1(&self) -> bool {
        self.detected.protocol == Protocol::Http1 && self.carries_http()
    }

    fn stages(&self, caller: Option<SpiffeId>) -> Inbound {
        Inbound {
            target: self.target,
            source: self.source,
            told: Inbound::told(&caller),
            caller,
            taken: Cell::new(false),
        }
    }
}

/// Serves what is not plain HTTP/1.
async fn other(worker: &Rc<Worker>, stream: TcpStream, met: Met) -> Result<()> {
    match met.detected.protocol {
        Protocol::Tls { ours: true } if met.mesh.inbound_mtls != InboundMtls::Off => {
            secured(worker, met, stream).await
        }
        Protocol::Http2 if met.carries_http() => {
            let requests = Rc::new(Requests { worker: worker.clone(), stages: met.stages(None) });
            drop(met);
            if let Err(error) = h2::serve(stream, requests).await {
                tracing::debug!(%error, "an HTTP/2 connection to the application ended");
            }
            Ok(())
        }
        _ if met.mesh.inbound_mtls == InboundMtls::Strict => Err(unencrypted()),
        _ => {
            permit_bytes(&met.mesh, None)?;
            let Met { source, destination, detected, .. } = met;
            tcp::carry(worker, Direction::Inbound, stream, &destination, source, detected).await;
            Ok(())
        }
    }
}

/// Intercept: the application's address. A redirected connection goes where it was going, if that
/// is this pod and no port of ours; any other goes to the configured application.
fn target(worker: &Worker, mesh: &Mesh, stream: &TcpStream) -> Result<(SocketAddr, Option<Source>)> {
    match (intercept::original_destination(stream), mesh.model.application) {
        (Some(original), _) if worker.shared.ports.contains(&original.port()) => {
            Err(Error::new(Reason::InterceptOwnPort, format!("{original} is a port of the sidecar itself")))
        }
        (Some(original), _) if !intercept::is_local(original.ip()) => {
            Err(Error::new(Reason::InterceptNotLocal, format!("{original} is no address of this pod")))
        }
        (Some(original), _) => Ok((original, Some(INBOUND_SOURCE))),
        (None, Some(application)) => Ok((application, None)),
        (None, None) => {
            let why = "the connection was not redirected, and no `application` is configured";
            Err(Error::new(Reason::InterceptNoDestination, why))
        }
    }
}

/// The application, as the snapshot has it now: a connection may outlive many.
fn application(worker: &Worker, mesh: &Mesh, target: SocketAddr) -> Destination {
    let route = mesh.application.clone();
    Destination { pinned: Some(worker.endpoint_at(target, &route)), route }
}

/// TLS: who is calling, and what the connection carries.
async fn secured(worker: &Rc<Worker>, met: Met, stream: TcpStream) -> Result<()> {
    let failed = |why: String| Error::new(Reason::TlsHandshake, why);
    let identity = worker.shared.tls.load().ok_or_else(|| failed("this sidecar has no identity".into()))?;
    let handshake = TlsAcceptor::from(identity.server()).accept(Buffered::new(stream));
    let stream = timeout(met.mesh.bounds(Direction::Inbound).head_timeout, handshake)
        .await
        .map_err(|_| failed("the handshake took too long".into()))?
        .map_err(|error| tls::Failure::classify(&error))?;
    let connection = stream.get_ref().1;
    let inbound = met.stages(tls::peer_id(connection));
    match Alpn::negotiated(connection) {
        Some(Alpn::Mesh) => {
            drop(met);
            let _ = never_pauses(stream.get_ref().0.socket());
            let requests = Rc::new(Requests { worker: worker.clone(), stages: inbound });
            let why = mesh::serve(stream, requests).await;
            tracing::debug!(%why, "a connection of a sidecar ended");
            Ok(())
        }
        Some(Alpn::H2) => {
            drop(met);
            let _ = never_pauses(stream.get_ref().0.socket());
            let requests = Rc::new(Requests { worker: worker.clone(), stages: inbound });
            if let Err(error) = h2::serve(stream, requests).await {
                tracing::debug!(%error, "a connection of a sidecar ended");
            }
            Ok(())
        }
        Some(Alpn::Tcp) => {
            permit_bytes(&met.mesh, inbound.caller.as_ref())?;
            let Met { source, destination, .. } = met;
            let detected = Detected::server(tcp::open(worker, &destination, source).await?);
            tcp::carry(worker, Direction::Inbound, stream, &destination, source, detected).await;
            Ok(())
        }
        None => Err(failed("the caller agreed on no protocol of ours".into())),
    }
}

fn unencrypted() -> Error {
    Error::new(Reason::AuthPlaintext, "mTLS is required here (inbound.mtls: strict)")
}

/// Authorize, for bytes: they have no method and no path, so only a rule for all of them permits.
fn permit_bytes(mesh: &Mesh, caller: Option<&SpiffeId>) -> Result<()> {
    if mesh.policy.check_connection(caller.map(SpiffeId::as_str)) {
        return Ok(());
    }
    let who = caller.map_or_else(|| "a caller without identity".to_owned(), ToString::to_string);
    Err(Error::new(Reason::AuthDenied, format!("no rule of inbound.allow lets {who} send what is not HTTP")))
}

/// The stages of a request to the pod.
struct Inbound {
    target: SocketAddr,
    source: Option<Source>,
    caller: Option<SpiffeId>,
    /// What the application is told of the caller.
    told: Option<HeaderValue>,
    /// Whether the application has taken a request of this connection.
    taken: Cell<bool>,
}

impl Stages for Inbound {
    const DIRECTION: Direction = Direction::Inbound;

    async fn request(
        &self,
        worker: &Rc<Worker>,
        mesh: &Mesh,
        head: &mut RequestHead,
        body: &mut Body<'_>,
        respond: &mut Responder<'_>,
    ) -> Result<Next<Tunnel>> {
        let h2 = self.protocol(head);
        self.upgrade(head);
        head.fields.remove_where(|name| {
            is_own(name)
                || name.eq_ignore_ascii_case(CALLER_FIELD.as_bytes())
                // In HTTP/2 it may say `trailers`; to HTTP/1 it is of one hop.
                || (!h2 && name.eq_ignore_ascii_case(b"te"))
        });
        self.authorize(mesh, head)?;
        if head.method == Method::CONNECT {
            // What follows has no method and no path.
            permit_bytes(mesh, self.caller.as_ref())?;
        }
        let caller = self.caller.as_ref().map_or("", SpiffeId::as_str);
        // Anyone may say that he is a kubelet; the configured paths are few, and no limit is meant for them.
        let limits = match has_probed_path(mesh, head) {
            true => Again::default(),
            false => limit(mesh, &mesh.inbound_limits, head, port(head, Some(self.target)), caller).await?,
        };
        if let Some(told) = &self.told {
            head.fields.push(HeaderName::from_static(CALLER_FIELD), told.clone());
        }
        let destination = application(worker, mesh, self.target);
        let (always, announces) = (self.is_probe(mesh, head), self.caller.is_some());
        let way = Way { destination, source: self.source, key: None, h2, always, announces, limits };
        let next = forward(worker, &way, head, body, respond).await?;
        if !self.taken.replace(true) {
            worker.served(self.target);
        }
        Ok(next)
    }

    fn is_from_sidecar(&self) -> bool {
        self.caller.is_some()
    }
}

impl Inbound {
    fn told(caller: &Option<SpiffeId>) -> Option<HeaderValue> {
        // An id holds no character that a field could not (SPIFFE-ID section 2).
        caller.as_ref().and_then(|id| HeaderValue::try_from(format!("URI={id}")).ok())
    }

    /// Whether the application is spoken to in HTTP/2: as its caller spoke. Between sidecars every
    /// request is HTTP/2, so the other side says what it was before.
    fn protocol(&self, head: &RequestHead) -> bool {
        match &self.caller {
            Some(_) => head.fields.get(PROTOCOL_FIELD) == Some(b"h2"),
            None => head.version == Version::HTTP_2,
        }
    }

    /// The upgrade that a request asks for, which a sidecar tells by a field of its own.
    fn upgrade(&self, head: &mut RequestHead) {
        let protocols = self.caller.as_ref().and_then(|_| head.fields.get(UPGRADE_FIELD));
        if let Some(protocols) = protocols.filter(|protocols| upgrade::offered(protocols)) {
            head.upgrade = HeaderValue::from_bytes(protocols).ok().map(Box::new);
            head.length = Length::None;
        }
    }

    /// Whether it asks for the application's health: by its path, or as a kubelet does, which has no
    /// identity.
    fn is_probe(&self, mesh: &Mesh, head: &RequestHead) -> bool {
        let is_kubelet = || {
            self.caller.is_none()
                && head.fields.get("user-agent").is_some_and(|a| a.starts_with(b"kube-probe/"))
        };
        has_probed_path(mesh, head) || is_kubelet()
    }

    /// Authorize: may this caller do this.
    fn authorize(&self, mesh: &Mesh, head: &RequestHead) -> Result<()> {
        if self.caller.is_none() && mesh.inbound_mtls == InboundMtls::Strict {
            return Err(unencrypted());
        }
        let about_paths = mesh.policy.has_paths() || mesh.inbound_limits.has_paths();
        if about_paths && auth::is_ambiguous(head.path.path()) {
            let why = "the path can be read in more than one way, and rules or limits here are about paths";
            return Err(Error::new(Reason::AuthDenied, why));
        }
        let caller = self.caller.as_ref().map(SpiffeId::as_str);
        if mesh.policy.check(caller, head.method.as_str(), head.path.path()) {
            return Ok(());
        }
        let who = caller.unwrap_or("a caller without identity");
        Err(Error::new(Reason::AuthDenied, format!("no rule of inbound.allow lets {who} do this")))
    }
}

/// Whether the path is one that the configuration says is asked for the application's health.
fn has_probed_path(mesh: &Mesh, head: &RequestHead) -> bool {
    let path = head.path.path();
    mesh.probes.iter().any(|probe| probe.matches(path) && !auth::is_ambiguous(path))
}
