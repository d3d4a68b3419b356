//! The SPIFFE part of a certificate (X509-SVID sections 3.1 and 5.2): which workload a leaf names,
//! and that it is a leaf which may name one. Chains and dates are verified elsewhere; this reads
//! one certificate, from a peer or from our own file, and never panics on its bytes.

use rustls::pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use super::spiffe::{Invalid, SpiffeId};

/// Why a certificate names no workload.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// It is not a certificate, or an extension in it is malformed or repeated.
    #[error("the certificate cannot be read: {0}")]
    Unreadable(String),
    /// It has no URI among its subject alternative names.
    #[error("the certificate has no URI among its subject alternative names, so it names no SPIFFE id")]
    NoUri,
    /// It has more than one URI, so that it could be read as either.
    #[error("the certificate has {0} URIs among its subject alternative names; a SPIFFE certificate has one")]
    ManyUris(usize),
    /// Its URI is no SPIFFE id. The URI is shown escaped, and not whole where it is long.
    #[error("the certificate's URI \"{uri}\" is no SPIFFE id: {why}")]
    NotSpiffe {
        /// The URI.
        uri: String,
        /// What is wrong with it.
        why: Invalid,
    },
    /// Its id names a trust domain and no workload in it.
    #[error("the certificate's id {0} has no path, so it names a trust domain and no workload")]
    NoPath(SpiffeId),
    /// It may sign certificates.
    #[error("the certificate is an authority's, which cannot be a workload's")]
    Authority,
    /// Its key may not sign a handshake.
    #[error("the certificate's key usage does not include digitalSignature")]
    KeyUsage,
}

/// Reads the id of the workload that `certificate` names.
pub(crate) fn read_id(certificate: &CertificateDer<'_>) -> Result<SpiffeId, Flaw> {
    let certificate = parse(certificate)?;
    check_leaf(&certificate)?;
    let names = certificate.subject_alternative_name().map_err(unreadable)?.ok_or(Flaw::NoUri)?;
    let mut uri = None;
    let mut count = 0;
    for name in &names.value.general_names {
        match name {
            GeneralName::URI(text) => {
                uri = Some(*text);
                count += 1;
            }
            GeneralName::Invalid(..) => return Err(unreadable("a subject alternative name is malformed")),
            _ => {}
        }
    }
    match uri {
        None => Err(Flaw::NoUri),
        Some(_) if count > 1 => Err(Flaw::ManyUris(count)),
        Some(uri) => {
            let id: SpiffeId = uri.parse().map_err(|why| Flaw::NotSpiffe { uri: printable(uri), why })?;
            if id.path().is_empty() { Err(Flaw::NoPath(id)) } else { Ok(id) }
        }
    }
}

/// Parses a certificate that nothing follows.
pub(super) fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Flaw> {
    let (rest, certificate) = X509Certificate::from_der(certificate).map_err(unreadable)?;
    if !rest.is_empty() {
        return Err(unreadable("bytes follow it"));
    }
    Ok(certificate)
}

/// Refuses a certificate that may sign others, or whose key may not sign a handshake.
fn check_leaf(certificate: &X509Certificate<'_>) -> Result<(), Flaw> {
    if certificate.basic_constraints().map_err(unreadable)?.is_some_and(|constraints| constraints.value.ca) {
        return Err(Flaw::Authority);
    }
    let Some(usage) = certificate.key_usage().map_err(unreadable)? else { return Ok(()) };
    if usage.value.key_cert_sign() || usage.value.crl_sign() {
        return Err(Flaw::Authority);
    }
    if usage.value.digital_signature() { Ok(()) } else { Err(Flaw::KeyUsage) }
}

fn unreadable(why: impl std::fmt::Display) -> Flaw {
    Flaw::Unreadable(why.to_string())
}

/// A peer's text, fit for a log: escaped, and the first 100 characters of it.
fn printable(text: &str) -> String {
    text.chars().take(100).flat_map(char::escape_default).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, IsCa, KeyUsagePurpose, SanType};

    use super::*;
    use crate::identity::ca::Authority;

    fn read(edit: impl FnOnce(&mut CertificateParams)) -> Result<SpiffeId, Flaw> {
        let authority = Authority::new("cluster.local").unwrap();
        read_id(&authority.leaf_with("ns/shop/sa/orders", edit).unwrap().certificate_der())
    }

    fn uri(text: &str) -> SanType {
        SanType::URI(text.try_into().unwrap())
    }

    #[test]
    fn one_uri_and_other_names_are_a_workload() {
        let id = read(|leaf| leaf.subject_alt_names.push(SanType::DnsName("orders".try_into().unwrap())));
        assert_eq!(id.unwrap().as_str(), "spiffe://cluster.local/ns/shop/sa/orders");
    }

    #[test]
    fn what_is_no_workload_is_told_apart() {
        assert_eq!(read(|leaf| leaf.subject_alt_names.clear()), Err(Flaw::NoUri));
        let dns = |leaf: &mut CertificateParams| {
            leaf.subject_alt_names = vec![SanType::DnsName("cluster.local".try_into().unwrap())];
        };
        assert_eq!(read(dns), Err(Flaw::NoUri));
        let two = |leaf: &mut CertificateParams| leaf.subject_alt_names.push(uri("spiffe://cluster.local/b"));
        assert_eq!(read(two), Err(Flaw::ManyUris(2)));
        let foreign =
            |leaf: &mut CertificateParams| leaf.subject_alt_names.push(uri("https://shop.example/"));
        assert_eq!(read(foreign), Err(Flaw::ManyUris(2)));
        let bare =
            |leaf: &mut CertificateParams| leaf.subject_alt_names = vec![uri("spiffe://cluster.local")];
        assert!(matches!(read(bare), Err(Flaw::NoPath(_))));
        assert_eq!(
            read(|leaf| leaf.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained)),
            Err(Flaw::Authority)
        );
        assert_eq!(read(|leaf| leaf.key_usages.push(KeyUsagePurpose::KeyCertSign)), Err(Flaw::Authority));
        assert_eq!(read(|leaf| leaf.key_usages.push(KeyUsagePurpose::CrlSign)), Err(Flaw::Authority));
        assert_eq!(read(|leaf| leaf.key_usages = vec![KeyUsagePurpose::KeyAgreement]), Err(Flaw::KeyUsage));
    }

    #[test]
    fn a_hostile_uri_is_shown_harmless() {
        let flaw = read(|leaf| {
            leaf.subject_alt_names = vec![uri("spiffe://cluster.local/a\n\u{1b}[2J\0")];
        })
        .unwrap_err();
        assert_eq!(
            flaw.to_string(),
            "the certificate's URI \"spiffe://cluster.local/a\\n\\u{1b}[2J\\u{0}\" is no SPIFFE id: \
             the path may hold only letters, digits, `.`, `-`, `_` and `/`"
        );
    }

    #[test]
    fn bytes_after_the_certificate_are_refused() {
        let authority = Authority::new("cluster.local").unwrap();
        let mut der = authority.leaf("a").unwrap().certificate_der().to_vec();
        der.push(0);
        assert!(matches!(read_id(&CertificateDer::from(der)), Err(Flaw::Unreadable(_))));
    }

    proptest! {
        #[test]
        fn a_damaged_certificate_never_panics(at in any::<prop::sample::Index>(), to: u8, cut in any::<prop::sample::Index>()) {
            thread_local! {
                static LEAF: Vec<u8> =
                    Authority::new("cluster.local").unwrap().leaf("ns/a").unwrap().certificate_der().to_vec();
            }
            let mut der = LEAF.with(Clone::clone);
            let at = at.index(der.len());
            der[at] = to;
            let _ = read_id(&CertificateDer::from(der.clone()));
            der.truncate(cut.index(der.len()));
            prop_assert!(read_id(&CertificateDer::from(der)).is_err());
        }
    }
}
