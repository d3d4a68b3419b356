//! A small authority for trials: it issues SPIFFE certificates to the demo and to tests. Its keys
//! live in memory and end with the process, and every certificate says that it is for trials. It
//! is no authority for a mesh that matters.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};

use super::spiffe::{Invalid, SpiffeId};
use crate::config::model;

/// The organisation in every certificate.
const ORGANISATION: &str = "Pannier trial CA";

/// How long a leaf is valid.
const LEAF_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// How long the root is valid.
const ROOT_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);

/// How far a certificate's beginning lies in the past, for clocks that are late.
const BACKDATE: Duration = Duration::from_secs(300);

/// An authority of one trust domain.
pub struct Authority {
    trust_domain: String,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A workload's certificate with its key, and the root that signed it.
pub struct Leaf {
    certificate: Certificate,
    key: KeyPair,
    bundle: String,
}

/// Why a certificate could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The trust domain or path makes no SPIFFE id.
    #[error("`{0}` is no SPIFFE id: {1}")]
    Id(String, Invalid),
    /// The key or the certificate could not be made.
    #[error("cannot make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
}

impl Authority {
    /// Makes a root for `trust_domain`, such as `cluster.local`.
    pub fn new(trust_domain: &str) -> Result<Self, Error> {
        let mut root = params(&format!("spiffe://{trust_domain}"), "root", ROOT_LIFETIME)?;
        root.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(root, KeyPair::generate()?)?;
        Ok(Self { trust_domain: trust_domain.to_owned(), issuer })
    }

    /// Issues a certificate for the workload at `path`, such as `ns/shop/sa/orders`, valid for a day.
    pub fn leaf(&self, path: &str) -> Result<Leaf, Error> {
        self.sign(self.leaf_params(path)?)
    }

    /// The root certificate, in PEM: the bundle that verifies every leaf.
    pub fn bundle(&self) -> String {
        self.issuer.pem()
    }

    fn leaf_params(&self, path: &str) -> Result<CertificateParams, Error> {
        let mut leaf = params(&format!("spiffe://{}/{path}", self.trust_domain), path, LEAF_LIFETIME)?;
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        leaf.use_authority_key_identifier_extension = true;
        Ok(leaf)
    }

    fn sign(&self, params: CertificateParams) -> Result<Leaf, Error> {
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Leaf { certificate, key, bundle: self.bundle() })
    }
}

/// What root and leaf have in common: names and dates. Their subjects differ by `name`: a leaf with
/// its issuer's subject passes for self-signed.
fn params(id: &str, name: &str, lifetime: Duration) -> Result<CertificateParams, Error> {
    let id: SpiffeId = id.parse().map_err(|why| Error::Id(id.to_owned(), why))?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, ORGANISATION);
    params.distinguished_name.push(DnType::CommonName, name);
    params.subject_alt_names = vec![SanType::URI(id.as_str().try_into()?)];
    let now = SystemTime::now();
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + lifetime).into();
    Ok(params)
}

impl Leaf {
    /// The certificate, in PEM.
    pub fn certificate(&self) -> String {
        self.certificate.pem()
    }

    /// The private key, in PEM (PKCS #8).
    pub fn key(&self) -> String {
        self.key.serialize_pem()
    }

    /// The root that signed it, in PEM.
    pub fn bundle(&self) -> &str {
        &self.bundle
    }

    /// Writes `tls.crt`, `tls.key` (for the owner alone) and `ca.crt` into `directory`, each
    /// replaced in one step.
    pub fn write(&self, directory: &Path) -> io::Result<model::Identity> {
        let files = model::Identity {
            certificate: directory.join("tls.crt"),
            key: directory.join("tls.key"),
            bundle: directory.join("ca.crt"),
            key_exchange: model::KeyExchange::default(),
        };
        replace(&files.certificate, &self.certificate(), 0o644)?;
        replace(&files.key, &self.key(), 0o600)?;
        replace(&files.bundle, &self.bundle, 0o644)?;
        Ok(files)
    }
}

/// Replaces a file so that a reader sees the old text or the new, whole.
fn replace(file: &Path, text: &str, mode: u32) -> io::Result<()> {
    let new = file.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?.write_all(text.as_bytes())?;
    fs::rename(&new, file)
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaf").field("certificate", &self.certificate()).finish_non_exhaustive()
    }
}

#[cfg(test)]
impl Authority {
    /// A leaf that `edit` has made wrong, for tests.
    pub(crate) fn leaf_with(
        &self,
        path: &str,
        edit: impl FnOnce(&mut CertificateParams),
    ) -> Result<Leaf, Error> {
        let mut params = self.leaf_params(path)?;
        edit(&mut params);
        self.sign(params)
    }
}

#[cfg(test)]
impl Leaf {
    pub(crate) fn certificate_der(&self) -> rustls::pki_types::CertificateDer<'static> {
        self.certificate.der().clone()
    }

    pub(crate) fn key_der(&self) -> rustls::pki_types::PrivateKeyDer<'static> {
        rustls::pki_types::PrivatePkcs8KeyDer::from(self.key.serialize_der()).into()
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn openssl_verifies_a_leaf_and_shows_that_it_is_for_trials() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::new("cluster.local").unwrap();
        let files = authority.leaf("ns/shop/sa/orders").unwrap().write(directory.path()).unwrap();
        for purpose in ["sslserver", "sslclient"] {
            let verify = Command::new("openssl")
                .args(["verify", "-x509_strict", "-purpose", purpose, "-CAfile"])
                .args([&files.bundle, &files.certificate])
                .output()
                .expect("openssl is installed");
            assert!(verify.status.success(), "{}", String::from_utf8_lossy(&verify.stderr));
        }
        let text = Command::new("openssl")
            .args(["x509", "-noout", "-text", "-in"])
            .arg(&files.certificate)
            .output()
            .expect("openssl is installed");
        let text = String::from_utf8_lossy(&text.stdout).into_owned();
        assert!(text.contains("Pannier trial CA"));
        assert!(text.contains("URI:spiffe://cluster.local/ns/shop/sa/orders"));
    }

    #[test]
    fn what_makes_no_id_makes_no_certificate() {
        assert!(matches!(Authority::new("Cluster.local"), Err(Error::Id(..))));
        assert!(matches!(Authority::new("cluster.local").unwrap().leaf("a//b"), Err(Error::Id(..))));
    }
}
