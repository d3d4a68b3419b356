//! Mutual TLS between sidecars: TLS 1.3 alone, both ends proving a SPIFFE id of the trust domain.
//!
//! A [`Tls`] is made from one [`Identity`] and never changes; a renewal makes another, and
//! [`Current`] holds the one that new connections use. Connections that exist keep theirs, so the
//! old and the new certificate serve side by side.
//!
//! **Session resumption is off**, on both ends. A resumed session skips the certificates, so one
//! that has expired, or a root that was withdrawn, would open connections for as long as tickets
//! live; and mesh connections live long, so there is little to win. Every handshake is a full one,
//! and every connection's peer has been verified when it was made. Each pair of [`Peer`] and
//! [`Carries`] has a client configuration of its own.
//!
//! The ALPN names what a connection carries. A peer that was verified but agreed on none of ours
//! speaks something else: see [`Alpn::negotiated`].

mod buffered;
mod failure;
pub mod hello;
mod verify;

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwapOption;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::server::NoServerSessionStorage;
use rustls::sign::SingleCertAndKey;
use rustls::version::TLS13;
use rustls::{ClientConfig, CommonState, ServerConfig};

pub use buffered::Buffered;
pub use failure::Failure;
pub use verify::WrongPeer;

use crate::identity::{self, Identity, SpiffeId};

/// One identity's TLS configurations, for both directions.
pub struct Tls {
    identity: Identity,
    server: Arc<ServerConfig>,
    clients: Mutex<HashMap<(Peer, Carries), Arc<ClientConfig>>>,
}

/// What a peer must prove to be.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Peer {
    /// This workload.
    Id(SpiffeId),
    /// Any workload of this trust domain.
    TrustDomain(String),
}

/// What a connection to another sidecar is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Carries {
    /// Requests.
    Requests,
    /// One TCP connection, as its bytes.
    Bytes,
}

/// How a connection between sidecars carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Alpn {
    /// Requests, in frames of our own.
    Mesh,
    /// Requests, as HTTP/2 streams.
    H2,
    /// One TCP connection, as its bytes.
    Tcp,
}

/// The configurations that new connections use: none while there is no identity. A clone is the
/// same cell.
#[derive(Debug, Clone, Default)]
pub struct Current(Arc<ArcSwapOption<Tls>>);

impl Tls {
    /// Compiles an identity.
    pub fn new(identity: &Identity) -> Arc<Self> {
        Arc::new(Self {
            identity: identity.clone(),
            server: Arc::new(server(identity)),
            clients: Mutex::default(),
        })
    }

    /// Who we are.
    pub fn id(&self) -> &SpiffeId {
        self.identity.id()
    }

    /// For connections from other sidecars: the client must prove an id of our trust domain, which
    /// [`peer_id`] then tells.
    pub fn server(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }

    /// For a connection to another sidecar that must prove to be `peer`. Made once and kept; to be
    /// asked for when a connection is opened, not for each request. The name to connect with is
    /// [`server_name`].
    pub fn client(&self, peer: &Peer, carries: Carries) -> Arc<ClientConfig> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let made = clients.entry((peer.clone(), carries));
        made.or_insert_with(|| Arc::new(client(&self.identity, peer.clone(), carries))).clone()
    }
}

fn server(identity: &Identity) -> ServerConfig {
    let mut config = ServerConfig::builder_with_provider(identity.provider())
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has suites of TLS 1.3")
        .with_client_cert_verifier(Arc::new(verify::Callers::new(identity)))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(identity.certified().clone())));
    config.alpn_protocols = Alpn::ALL.iter().map(|alpn| alpn.name().to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config
}

fn client(identity: &Identity, peer: Peer, carries: Carries) -> ClientConfig {
    let mut config = ClientConfig::builder_with_provider(identity.provider())
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has suites of TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verify::Upstream::new(identity, peer)))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity.certified().clone())));
    config.alpn_protocols = carries.offers().iter().map(|alpn| alpn.name().to_vec()).collect();
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    config
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tls").field(&self.identity).finish()
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Id(id) => write!(f, "{id}"),
            Peer::TrustDomain(name) => write!(f, "any workload of spiffe://{name}"),
        }
    }
}

impl Carries {
    /// What a connection may turn out to speak, the preferred one first.
    pub const fn offers(self) -> &'static [Alpn] {
        match self {
            Carries::Requests => &[Alpn::Mesh, Alpn::H2],
            Carries::Bytes => &[Alpn::Tcp],
        }
    }
}

impl Alpn {
    /// Every protocol, the preferred one first.
    pub const ALL: [Alpn; 3] = [Alpn::Mesh, Alpn::H2, Alpn::Tcp];

    /// The protocol's name in the handshake.
    pub const fn name(self) -> &'static [u8] {
        match self {
            Alpn::Mesh => b"pannier/mesh",
            Alpn::H2 => b"pannier/h2",
            Alpn::Tcp => b"pannier/tcp",
        }
    }

    /// What both ends of a connection agreed to carry. None after a handshake that succeeded means
    /// that the peer speaks TLS, but is no sidecar: the connection is to be closed.
    pub fn negotiated(connection: &CommonState) -> Option<Self> {
        let name = connection.alpn_protocol()?;
        Self::ALL.into_iter().find(|alpn| alpn.name() == name)
    }
}

impl Current {
    /// A cell that holds `tls`.
    pub fn new(tls: Option<Arc<Tls>>) -> Self {
        Self(Arc::new(ArcSwapOption::new(tls)))
    }

    /// The configurations for a new connection.
    pub fn load(&self) -> Option<Arc<Tls>> {
        self.0.load_full()
    }

    /// Has new connections use `tls`.
    pub fn store(&self, tls: Option<Arc<Tls>>) {
        self.0.store(tls);
    }
}

/// The id that the connection's peer has proven; none without TLS's handshake behind it.
pub fn peer_id(connection: &CommonState) -> Option<SpiffeId> {
    // The verifier has read the same certificate, so this succeeds; it is asked once a connection.
    identity::read_id(connection.peer_certificates()?.first()?).ok()
}

/// The name to open a connection with. It is in no certificate and not sent: the peer is known by
/// its SPIFFE id.
pub fn server_name(endpoint: IpAddr) -> ServerName<'static> {
    ServerName::IpAddress(endpoint.into())
}

#[cfg(test)]
mod tests;
