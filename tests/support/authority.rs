//! The lab's identities, by the product's own trial authority.

use std::os::unix::fs::chown;
use std::path::Path;

use pannier::config::model;
use pannier::identity::ca;

use super::lab::{Pod, SIDECAR_UID};

/// An authority of one trust domain.
pub(crate) struct Authority(ca::Authority);

/// The files of one workload's identity.
#[derive(Debug, Clone)]
pub(crate) struct IdentityFiles(model::Identity);

impl Authority {
    /// A new authority with a key of its own.
    pub(crate) fn new(trust_domain: &str) -> Self {
        Self(ca::Authority::new(trust_domain).expect("a root"))
    }

    /// The root, in PEM.
    pub(crate) fn root(&self) -> String {
        self.0.bundle()
    }

    /// Writes an identity for `path` (`ns/shop/sa/orders`) into the pod's directory. A second
    /// one of the same pod replaces the first.
    pub(crate) fn issue(&self, pod: &Pod, path: &str) -> IdentityFiles {
        self.issue_into(&pod.dir().join("identity"), path)
    }

    /// The same into a directory of its own.
    pub(crate) fn issue_into(&self, dir: &Path, path: &str) -> IdentityFiles {
        std::fs::create_dir_all(dir).expect("a directory of ours");
        let files = self.0.leaf(path).expect("a leaf").write(dir).expect("a directory of ours");
        // The key is for its owner alone: the sidecar's user. Without root, that is who we are.
        if rustix::process::geteuid().is_root() {
            chown(&files.key, Some(SIDECAR_UID), None).expect("we are root");
        }
        IdentityFiles(files)
    }
}

impl IdentityFiles {
    /// Where they are.
    pub(crate) fn paths(&self) -> &model::Identity {
        &self.0
    }

    /// The `identity` line of a configuration.
    pub(crate) fn yaml(&self) -> String {
        let model::Identity { certificate, key, bundle, .. } = &self.0;
        format!(
            "identity: {{ certificate: {}, key: {}, bundle: {} }}\n",
            certificate.display(),
            key.display(),
            bundle.display()
        )
    }
}
