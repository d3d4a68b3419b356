//! Inbound: what is sent to the pod. The stages of a request, in order:
//!
//! intercept (is it ours to take) → detect (our mTLS, or what else) → tls (who is calling) → http
//! (one reading) → authorize → limit → pool → exchange with the application, where it listens.

use std::net::SocketAddr;
use std::rc::Rc;

use http::{HeaderName, HeaderValue, Method, Version};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::connection::{Requests, Stages};
use super::detect::{self, Detected, Protocol};
use super::forward::{Way, forward};
use super::mesh::{Destination, Mesh};
use super::outbound::limit;
use super::tcp;
use super::tunnel::Tunnel;
use super::worker::Worker;
use crate::auth;
use crate::config::model::{Direction, InboundMtls};
use crate::error::{Error, Reason, Result};
use crate::http::h1::{self, parse::is_own};
use crate::http::{
    Body, CALLER_FIELD, Length, Next, PROTOCOL_FIELD, RequestHead, Responder, UPGRADE_FIELD, h2, upgrade,
};
use crate::identity::SpiffeId;
use crate::intercept::{self, INBOUND_SOURCE, Source};
use crate::pool::never_pauses;
use crate::tls::{self, Alpn};

/// Serves one connection to the pod.
pub(super) async fn serve(worker: Rc<Worker>, stream: TcpStream) {
    if let Err(error) = connection(&worker, stream).await {
        worker.refused(Direction::Inbound, &error);
    }
}

async fn connection(worker: &Rc<Worker>, stream: TcpStream) -> Result<()> {
    let mesh = worker.mesh();
    let (target, source) = target(worker, &mesh, &stream)?;
    let destination = application(worker, &mesh, target);
    let settings = &mesh.model.inbound;
    let plain = mesh.inbound_mtls != InboundMtls::Strict;
    let detected =
        if plain && settings.opaque_ports.contains(&target.port()) && worker.shared.tls.load().is_none() {
            Detected::server(tcp::open(worker, &destination, source).await?)
        } else {
            let server = plain.then(|| tcp::open(worker, &destination, source));
            let detecting = detect::detect(&stream, settings.detect_timeout.0, server);
            Box::pin(worker.unless_closing(Direction::Inbound, detecting)).await?
        };
    let inbound = |caller| Inbound { target, source, told: Inbound::told(&caller), caller };
    let http = !settings.opaque_ports.contains(&target.port());
    match detected.protocol {
        Protocol::Tls { ours: true } if mesh.inbound_mtls != InboundMtls::Off => {
            Box::pin(secured(worker, &mesh, stream, inbound)).await
        }
        // Requests in plaintext are read even where none is let in, so that their sender is told.
        Protocol::Http1 if http => {
            let requests = Requests { worker: worker.clone(), stages: inbound(None) };
            if let h1::Ended::Tunnel(downstream, first, tunnel) = h1::serve(stream, &requests).await {
                Box::pin(tunnel.join(downstream, first)).await;
            }
            Ok(())
        }
        Protocol::Http2 if http => {
            let requests = Rc::new(Requests { worker: worker.clone(), stages: inbound(None) });
            if let Err(error) = Box::pin(h2::serve(stream, requests)).await {
                tracing::debug!(%error, "an HTTP/2 connection to the application ended");
            }
            Ok(())
        }
        _ if !plain => Err(unencrypted()),
        _ => {
            permit_bytes(&mesh, None)?;
            Box::pin(tcp::carry(worker, Direction::Inbound, stream, &destination, source, detected)).await;
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
async fn secured(
    worker: &Rc<Worker>,
    mesh: &Mesh,
    stream: TcpStream,
    inbound: impl FnOnce(Option<SpiffeId>) -> Inbound,
) -> Result<()> {
    let failed = |why: String| Error::new(Reason::TlsHandshake, why);
    let identity = worker.shared.tls.load().ok_or_else(|| failed("this sidecar has no identity".into()))?;
    let handshake = TlsAcceptor::from(identity.server()).accept(stream);
    let stream = timeout(mesh.bounds.head_timeout, handshake)
        .await
        .map_err(|_| failed("the handshake took too long".into()))?
        .map_err(|error| tls::Failure::classify(&error))?;
    let connection = stream.get_ref().1;
    let caller = tls::peer_id(connection);
    let inbound = inbound(caller);
    match Alpn::negotiated(connection) {
        Some(Alpn::H2) => {
            let _ = never_pauses(stream.get_ref().0);
            let requests = Rc::new(Requests { worker: worker.clone(), stages: inbound });
            if let Err(error) = h2::serve(stream, requests).await {
                tracing::debug!(%error, "a connection of a sidecar ended");
            }
            Ok(())
        }
        Some(Alpn::Tcp) => {
            permit_bytes(mesh, inbound.caller.as_ref())?;
            let Inbound { target, source, .. } = inbound;
            let destination = application(worker, mesh, target);
            let opened = tcp::open(worker, &destination, source).await?;
            let detected = Detected::server(opened);
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
}

impl Stages for Inbound {
    const DIRECTION: Direction = Direction::Inbound;

    async fn request(
        &self,
        worker: &Rc<Worker>,
        mesh: &Mesh,
        mut head: RequestHead,
        body: &mut Body<'_>,
        respond: &mut Responder<'_>,
    ) -> Result<Next<Tunnel>> {
        let h2 = self.protocol(&head);
        self.upgrade(&mut head);
        head.fields.remove_where(|name| is_own(name) || name.eq_ignore_ascii_case(CALLER_FIELD.as_bytes()));
        self.authorize(mesh, &head)?;
        if head.method == Method::CONNECT {
            // What follows has no method and no path.
            permit_bytes(mesh, self.caller.as_ref())?;
        }
        let caller = self.caller.as_ref().map_or("", SpiffeId::as_str);
        limit(&mesh.inbound_limits, &head, Some(self.target), caller).await?;
        if let Some(told) = &self.told {
            head.fields.push(HeaderName::from_static(CALLER_FIELD), told.clone());
        }
        let destination = application(worker, mesh, self.target);
        let way = Way { destination, source: self.source, h2 };
        forward(worker, mesh, &way, &head, body, respond).await
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
            head.upgrade = HeaderValue::from_bytes(protocols).ok();
            head.length = Length::None;
        }
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
