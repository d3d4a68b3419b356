//! A certificate authority for the lab's identities.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};

use super::lab::Pod;

/// An authority of one trust domain.
pub(crate) struct Authority {
    trust_domain: String,
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

/// The files of one workload's identity.
#[derive(Debug, Clone)]
pub(crate) struct IdentityFiles {
    /// Its certificate chain.
    pub(crate) certificate: PathBuf,
    /// Its key.
    pub(crate) key: PathBuf,
    /// The roots it verifies its peers against.
    pub(crate) bundle: PathBuf,
}

impl Authority {
    /// A new authority with a key of its own.
    pub(crate) fn new(trust_domain: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.subject_alt_names = vec![uri(&format!("spiffe://{trust_domain}"))];
        let certificate = params.self_signed(&key).expect("a root").pem();
        Self { trust_domain: trust_domain.to_owned(), issuer: Issuer::new(params, key), certificate }
    }

    /// The root, in PEM.
    pub(crate) fn root(&self) -> &str {
        &self.certificate
    }

    /// Writes an identity for `path` (`ns/shop/sa/orders`) into the pod's directory. A second
    /// one of the same pod replaces the first.
    pub(crate) fn issue(&self, pod: &Pod, path: &str) -> IdentityFiles {
        self.issue_into(&pod.dir().join("identity"), path)
    }

    /// The same into a directory of its own.
    pub(crate) fn issue_into(&self, dir: &Path, path: &str) -> IdentityFiles {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![uri(&format!("spiffe://{}/{path}", self.trust_domain))];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.issuer).expect("a leaf").pem();
        let files = IdentityFiles {
            certificate: dir.join("tls.crt"),
            key: dir.join("tls.key"),
            bundle: dir.join("ca.crt"),
        };
        fs::create_dir_all(dir).expect("the pod's directory");
        for (path, text) in [
            (&files.certificate, &certificate),
            (&files.key, &key.serialize_pem()),
            (&files.bundle, &self.certificate),
        ] {
            fs::write(path, text).expect("the pod's directory");
        }
        files
    }
}

impl IdentityFiles {
    /// The `identity` line of a configuration.
    pub(crate) fn yaml(&self) -> String {
        format!(
            "identity: {{ certificate: {}, key: {}, bundle: {} }}\n",
            self.certificate.display(),
            self.key.display(),
            self.bundle.display()
        )
    }
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().expect("ASCII"))
}
