//! Who this workload is: its SPIFFE certificate, key and trust bundle, read from files and checked
//! as one set, so that what has been loaded is known to work in a handshake. [`rotate()`] follows the
//! files and hands on each renewal; a set that does not fit together never replaces one that does.
//!
//! The private key stays inside: it is in no `Debug` output and in no message.

pub mod ca;
mod provider;
mod rotate;
mod spiffe;
mod svid;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, InconsistentKeys, RootCertStore};
use x509_parser::time::ASN1Time;

pub use provider::provider;
pub use rotate::rotate;
pub use spiffe::{Invalid, SpiffeId};
pub use svid::Flaw;
pub(crate) use svid::read_id;

use crate::config::model::{self, KeyExchange};

/// A workload's certificate chain, its key, and the roots of its trust domain, which fit together.
#[derive(Clone)]
pub struct Identity {
    id: SpiffeId,
    not_after: SystemTime,
    certified: Arc<CertifiedKey>,
    roots: Arc<RootCertStore>,
    key_exchange: KeyExchange,
}

/// Why an identity cannot be used: which file, and what about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", file.display())]
pub struct Error {
    /// The file at fault.
    pub file: PathBuf,
    /// What is wrong, and where one can tell, what to do.
    pub message: String,
}

impl Identity {
    /// Reads and checks the three files: the chain names one workload, is valid now, leads to a
    /// root of the bundle both as a client and as a server, and the key is the certificate's.
    pub fn load(files: &model::Identity) -> Result<Self, Error> {
        let chain = certificates(&files.certificate)?;
        let leaf = &chain[0];
        let id = read_id(leaf).map_err(|flaw| Error::new(&files.certificate, flaw))?;
        let not_after = not_after(leaf).map_err(|flaw| Error::new(&files.certificate, flaw))?;
        let roots = Arc::new(roots(&files.bundle)?);
        verify(&chain, &roots, files)?;
        let certified = Arc::new(certify(chain, files)?);
        Ok(Self { id, not_after, certified, roots, key_exchange: files.key_exchange })
    }

    /// The workload.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// When the workload's certificate expires.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// The chain, leaf first, with its key.
    pub(crate) fn certified(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }

    /// The roots of the trust domain.
    pub(crate) fn roots(&self) -> &Arc<RootCertStore> {
        &self.roots
    }

    /// What its connections are encrypted by.
    pub(crate) fn provider(&self) -> Arc<CryptoProvider> {
        match self.key_exchange {
            KeyExchange::X25519Mlkem768 => provider(),
            KeyExchange::X25519 => provider::classical(),
        }
    }

    /// Whether the other is the same certificate under the same roots.
    fn is_same(&self, other: &Self) -> bool {
        self.certified.cert == other.certified.cert && self.roots.roots == other.roots.roots
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("id", &self.id)
            .field("not_after", &self.not_after)
            .field("roots", &self.roots.len())
            .finish_non_exhaustive()
    }
}

impl Error {
    fn new(file: &Path, message: impl fmt::Display) -> Self {
        Self { file: file.to_owned(), message: message.to_string() }
    }
}

fn read(file: &Path) -> Result<Vec<u8>, Error> {
    fs::read(file).map_err(|error| Error::new(file, format_args!("cannot be read: {error}")))
}

/// The certificates of a PEM file, one at least.
fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let text = read(file)?;
    let certificates = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| Error::new(file, format_args!("is no valid PEM: {error}")))?;
    if certificates.is_empty() {
        return Err(Error::new(file, "holds no certificate; expected PEM, `-----BEGIN CERTIFICATE-----`"));
    }
    Ok(certificates)
}

/// The trust bundle. Every certificate in it must be an authority's: a root is trusted without
/// further question, so a leaf in here would let its owner name any workload.
fn roots(file: &Path) -> Result<RootCertStore, Error> {
    let mut store = RootCertStore::empty();
    for (nth, root) in (1..).zip(certificates(file)?) {
        let wrong = |why: &dyn fmt::Display| Error::new(file, format_args!("root {nth}: {why}"));
        let is_authority = svid::parse(&root).map_err(|flaw| wrong(&flaw))?.is_ca();
        if !is_authority {
            return Err(wrong(&"the certificate is not an authority's (its CA flag is not set)"));
        }
        store.add(root).map_err(|error| wrong(&error))?;
    }
    Ok(store)
}

/// The key, if it is the leaf's.
fn certify(chain: Vec<CertificateDer<'static>>, files: &model::Identity) -> Result<CertifiedKey, Error> {
    let wrong = |why: fmt::Arguments<'_>| Error::new(&files.key, why);
    let key = PrivateKeyDer::from_pem_slice(&read(&files.key)?).map_err(|error| match error {
        pem::Error::NoItemsFound => wrong(format_args!(
            "holds no unencrypted private key; expected PEM, `-----BEGIN PRIVATE KEY-----`"
        )),
        error => wrong(format_args!("is no valid PEM: {error}")),
    })?;
    CertifiedKey::from_der(chain, key, &provider()).map_err(|error| match error {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            wrong(format_args!("is not the key of the certificate in {}", files.certificate.display()))
        }
        error => wrong(format_args!("cannot be used: {error}")),
    })
}

/// Verifies our own chain as our peers will, as a server's and as a client's.
fn verify(
    chain: &[CertificateDer<'_>],
    roots: &Arc<RootCertStore>,
    files: &model::Identity,
) -> Result<(), Error> {
    let explain = |error| Error::new(&files.certificate, explain(&error, &files.bundle));
    let (provider, now) = (provider(), UnixTime::now());
    let leaf = ParsedCertificate::try_from(&chain[0]).map_err(explain)?;
    let algorithms = provider.signature_verification_algorithms.all;
    verify_server_cert_signed_by_trust_anchor(&leaf, roots, &chain[1..], now, algorithms).map_err(explain)?;
    WebPkiClientVerifier::builder_with_provider(roots.clone(), provider)
        .build()
        .map_err(|error| Error::new(&files.bundle, error))?
        .verify_client_cert(&chain[0], &chain[1..], now)
        .map_err(explain)?;
    Ok(())
}

/// What a failed verification of our own chain means to the operator.
fn explain(error: &rustls::Error, bundle: &Path) -> String {
    let rustls::Error::InvalidCertificate(error) = error else { return error.to_string() };
    match error {
        CertificateError::UnknownIssuer => {
            format!("the chain leads to no root in {}; is an intermediate missing?", bundle.display())
        }
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("a certificate of the chain expired at {}", date(*not_after))
        }
        CertificateError::NotValidYetContext { not_before, .. } => format!(
            "a certificate of the chain is not valid before {}; is this machine's clock right?",
            date(*not_before)
        ),
        CertificateError::BadSignature => {
            format!("a root in {} has the issuer's name, but another key", bundle.display())
        }
        error => error.to_string(),
    }
}

fn date(time: UnixTime) -> String {
    i64::try_from(time.as_secs())
        .ok()
        .and_then(|seconds| ASN1Time::from_timestamp(seconds).ok())
        .map_or_else(|| format!("{} s after 1970", time.as_secs()), |date| date.to_string())
}

fn not_after(certificate: &CertificateDer<'_>) -> Result<SystemTime, Flaw> {
    let seconds = svid::parse(certificate)?.validity().not_after.timestamp();
    Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.try_into().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rcgen::ExtendedKeyUsagePurpose;
    use tempfile::TempDir;

    use super::ca::Authority;
    use super::*;

    /// A directory with a good identity, and its authority.
    fn good() -> (TempDir, model::Identity, Authority) {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::new("cluster.local").unwrap();
        let files = authority.leaf("ns/shop/sa/orders").unwrap().write(directory.path()).unwrap();
        (directory, files, authority)
    }

    fn message(files: &model::Identity, at_fault: &Path) -> String {
        let error = Identity::load(files).unwrap_err();
        assert_eq!(error.file, at_fault, "{error}");
        assert!(error.to_string().starts_with(at_fault.to_str().unwrap()));
        error.message
    }

    #[test]
    fn a_set_that_fits_together_loads() {
        let (_directory, files, _) = good();
        let identity = Identity::load(&files).unwrap();
        assert_eq!(identity.id().as_str(), "spiffe://cluster.local/ns/shop/sa/orders");
        let left = identity.not_after().duration_since(SystemTime::now()).unwrap();
        assert!(left > Duration::from_secs(23 * 3600) && left <= Duration::from_secs(24 * 3600));
        assert_eq!(fs::metadata(&files.key).unwrap().permissions().mode() & 0o077, 0);
    }

    #[test]
    fn two_roots_may_be_trusted_at_once() {
        let (_directory, files, authority) = good();
        let other = Authority::new("cluster.local").unwrap();
        fs::write(&files.bundle, other.bundle() + &authority.bundle()).unwrap();
        assert_eq!(Identity::load(&files).unwrap().roots().len(), 2);
    }

    #[test]
    fn each_fault_names_its_file() {
        let (_directory, files, authority) = good();
        let keep = |file: &Path| (file.to_owned(), fs::read(file).unwrap());
        let saved = [keep(&files.certificate), keep(&files.key), keep(&files.bundle)];
        let restore = || saved.iter().for_each(|(file, bytes)| fs::write(file, bytes).unwrap());

        fs::write(&files.certificate, "hello").unwrap();
        assert!(message(&files, &files.certificate).starts_with("holds no certificate"));
        restore();
        fs::write(&files.key, authority.leaf("x").unwrap().key()).unwrap();
        assert!(message(&files, &files.key).starts_with("is not the key of the certificate in"));
        fs::write(&files.key, "").unwrap();
        assert!(message(&files, &files.key).starts_with("holds no unencrypted private key"));
        fs::remove_file(&files.key).unwrap();
        assert!(message(&files, &files.key).starts_with("cannot be read: No such file"));
        restore();
        fs::write(&files.bundle, Authority::new("cluster.local").unwrap().bundle()).unwrap();
        assert!(!message(&files, &files.certificate).is_empty());
        fs::write(&files.bundle, authority.leaf("x").unwrap().certificate()).unwrap();
        assert_eq!(
            message(&files, &files.bundle),
            "root 1: the certificate is not an authority's (its CA flag is not set)"
        );
        fs::write(&files.bundle, "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n").unwrap();
        assert!(message(&files, &files.bundle).starts_with("is no valid PEM"));
        restore();
        assert!(Identity::load(&files).is_ok());
    }

    #[test]
    fn a_certificate_out_of_its_time_or_purpose_is_refused() {
        let (directory, _, authority) = good();
        let load = |leaf: ca::Leaf| {
            let files = leaf.write(directory.path()).unwrap();
            message(&files, &files.certificate)
        };
        let now = SystemTime::now();
        let expired =
            authority.leaf_with("a", |leaf| leaf.not_after = (now - Duration::from_secs(60)).into());
        assert!(load(expired.unwrap()).starts_with("a certificate of the chain expired at"));
        let early = authority.leaf_with("a", |leaf| leaf.not_before = (now + Duration::from_secs(60)).into());
        assert!(load(early.unwrap()).contains("is this machine's clock right?"));
        for usage in [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth] {
            let half = authority.leaf_with("a", |leaf| leaf.extended_key_usages = vec![usage]);
            assert!(load(half.unwrap()).contains("does not allow extended key usage"));
        }
        let two = authority.leaf_with("a", |leaf| {
            leaf.subject_alt_names.push(rcgen::SanType::URI("spiffe://b/c".try_into().unwrap()));
        });
        assert!(load(two.unwrap()).contains("has 2 URIs"));
    }
}
