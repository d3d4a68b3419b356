//! Who may be at the other end. The chain is verified by webpki against the roots of our trust
//! domain; then the SPIFFE id is read from the leaf and compared. Host names play no part.
//!
//! A bundle vouches for its own trust domain alone: an id of another one is refused even where a
//! root of ours has signed it.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
};

use super::Peer;
use crate::identity::{self, Flaw, Identity, SpiffeId};

/// Why a peer whose chain is good is still not the one to talk to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WrongPeer {
    /// Its certificate names no workload.
    #[error(transparent)]
    NoWorkload(#[from] Flaw),
    /// It is another workload.
    #[error("the peer is {found}, and must be {required}")]
    Other {
        /// Who it is.
        found: SpiffeId,
        /// Who it must be.
        required: Peer,
    },
}

impl Peer {
    /// Accepts the peer that `certificate` names, or says why not.
    fn accept(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let wrong = |why| Error::from(CertificateError::Other(OtherError(Arc::new(why))));
        let found = identity::read_id(certificate).map_err(|flaw| wrong(WrongPeer::NoWorkload(flaw)))?;
        let accepted = match self {
            Peer::Id(id) => *id == found,
            Peer::TrustDomain(name) => name == found.trust_domain(),
        };
        if accepted { Ok(()) } else { Err(wrong(WrongPeer::Other { found, required: self.clone() })) }
    }
}

/// Verifies the server of a connection that we opened.
#[derive(Debug)]
pub(super) struct Upstream {
    required: Peer,
    own_domain: Peer,
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Upstream {
    pub(super) fn new(identity: &Identity, required: Peer) -> Self {
        Self {
            required,
            own_domain: own_domain(identity),
            roots: identity.roots().clone(),
            algorithms: identity::provider().signature_verification_algorithms,
        }
    }
}

impl ServerCertVerifier for Upstream {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(leaf)?;
        let algorithms = self.algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)?;
        self.own_domain.accept(leaf)?;
        self.required.accept(leaf)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Verifies the client of a connection that was opened to us.
#[derive(Debug)]
pub(super) struct Callers {
    own_domain: Peer,
    chains: Arc<dyn ClientCertVerifier>,
}

impl Callers {
    pub(super) fn new(identity: &Identity) -> Self {
        let chains =
            WebPkiClientVerifier::builder_with_provider(identity.roots().clone(), identity::provider())
                .clear_root_hint_subjects()
                .build()
                .expect("an identity has a root");
        Self { own_domain: own_domain(identity), chains }
    }
}

impl ClientCertVerifier for Callers {
    fn client_auth_mandatory(&self) -> bool {
        true
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Callers have one certificate and need no hint; the names would be sent in each handshake.
        self.chains.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.chains.verify_client_cert(leaf, intermediates, now)?;
        self.own_domain.accept(leaf)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chains.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chains.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}

fn own_domain(identity: &Identity) -> Peer {
    Peer::TrustDomain(identity.id().trust_domain().to_owned())
}
