//! What a failed handshake means: whose certificate was at fault, and whether the peer has shown
//! that it speaks no TLS at all.

use std::borrow::Cow;
use std::io;

use rustls::{AlertDescription, CertificateError, InvalidMessage};

use crate::error::{self, Reason, Retry};

/// A failed handshake, in the operator's terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// `tls.identity` when the peer did not prove to be who it must be, `tls.handshake` otherwise.
    pub reason: Reason,
    /// The peer answered a handshake with something that is no TLS record. The only evidence on
    /// which `prefer` may fall back to plaintext: an alert, a wrong certificate, a timeout and a
    /// connection that just closes are none.
    pub plaintext: bool,
    /// What happened.
    pub detail: Cow<'static, str>,
}

impl Failure {
    /// Reads the error of a handshake, or of the first read after one: with TLS 1.3 a client
    /// learns only there that the server has refused its certificate.
    pub fn classify(error: &io::Error) -> Self {
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match tls {
            Some(error) => Self::of(error),
            None if error.kind() == io::ErrorKind::UnexpectedEof => {
                Self::handshake("the peer closed the connection during the TLS handshake")
            }
            None => Self::handshake(format!("the TLS handshake failed: {error}")),
        }
    }

    fn of(error: &rustls::Error) -> Self {
        use rustls::Error as Tls;
        match error {
            Tls::InvalidCertificate(error) => Self::identity(explain(error)),
            Tls::NoCertificatesPresented => Self::identity("the peer sent no certificate"),
            Tls::AlertReceived(alert) if is_about_certificate(*alert) => {
                Self::handshake(format!("the peer refused our certificate: alert {alert:?}"))
            }
            Tls::AlertReceived(alert) => {
                Self::handshake(format!("the peer ended the TLS handshake: alert {alert:?}"))
            }
            Tls::InvalidMessage(
                InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
            ) => Self { plaintext: true, ..Self::handshake("the peer answered with no TLS") },
            Tls::NoApplicationProtocol => {
                Self::handshake("the peer offers no application protocol (ALPN) of ours")
            }
            error => Self::handshake(format!("the TLS handshake failed: {error}")),
        }
    }

    fn identity(detail: impl Into<Cow<'static, str>>) -> Self {
        Self { reason: Reason::TlsIdentity, plaintext: false, detail: detail.into() }
    }

    fn handshake(detail: impl Into<Cow<'static, str>>) -> Self {
        Self { reason: Reason::TlsHandshake, plaintext: false, detail: detail.into() }
    }
}

/// A request that waited for the handshake was not sent, so it may go elsewhere.
impl From<Failure> for error::Error {
    fn from(failure: Failure) -> Self {
        Self::new(failure.reason, failure.detail).retry(Retry::Unprocessed)
    }
}

/// What is wrong with the peer's certificate.
fn explain(error: &CertificateError) -> Cow<'static, str> {
    match error {
        CertificateError::UnknownIssuer => "the peer's certificate leads to no root of our bundle".into(),
        // Our own verdict: see `WrongPeer`.
        CertificateError::Other(why) => why.0.to_string().into(),
        error => format!("the peer's certificate is refused: {error}").into(),
    }
}

/// Whether an alert speaks of the certificate that we sent (RFC 8446 section 6.2).
fn is_about_certificate(alert: AlertDescription) -> bool {
    use AlertDescription as Alert;
    matches!(
        alert,
        Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied
            | Alert::CertificateRequired
            // What rustls answers to a certificate that its issuer did not sign.
            | Alert::DecryptError
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bytes_that_are_no_tls_are_evidence_of_plaintext() {
        let tls = |error: rustls::Error| io::Error::new(io::ErrorKind::InvalidData, error);
        let cases = [
            (tls(InvalidMessage::InvalidContentType.into()), true),
            (tls(InvalidMessage::UnknownProtocolVersion.into()), true),
            (tls(InvalidMessage::MessageTooShort.into()), false),
            (tls(rustls::Error::AlertReceived(AlertDescription::ProtocolVersion)), false),
            (tls(CertificateError::Expired.into()), false),
            (io::ErrorKind::UnexpectedEof.into(), false),
            (io::ErrorKind::ConnectionReset.into(), false),
            (io::ErrorKind::TimedOut.into(), false),
        ];
        for (error, plaintext) in cases {
            assert_eq!(Failure::classify(&error).plaintext, plaintext, "{error:?}");
        }
    }

    #[test]
    fn an_alert_about_our_certificate_is_not_the_peers_identity() {
        let alert = |alert| {
            let error = rustls::Error::AlertReceived(alert);
            Failure::classify(&io::Error::new(io::ErrorKind::InvalidData, error))
        };
        let refused = alert(AlertDescription::CertificateExpired);
        assert_eq!(refused.reason, Reason::TlsHandshake);
        assert_eq!(refused.detail, "the peer refused our certificate: alert CertificateExpired");
        let version = alert(AlertDescription::ProtocolVersion);
        assert_eq!(version.detail, "the peer ended the TLS handshake: alert ProtocolVersion");
    }

    #[test]
    fn a_failed_handshake_processed_no_request() {
        let error: error::Error = Failure::classify(&io::ErrorKind::UnexpectedEof.into()).into();
        assert_eq!((error.reason, error.retry), (Reason::TlsHandshake, Retry::Unprocessed));
    }
}
