//! The one cryptographic provider: aws-lc-rs, with our order of suites and key exchanges. It is
//! passed to every TLS configuration by hand; the process has no default one.

use std::sync::{Arc, LazyLock};

use rustls::NamedGroup;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};

/// What every TLS connection of the process uses.
///
/// AES-GCM stands before ChaCha20, as every server processor of today has AES instructions, and
/// the 128-bit key first, as it costs least. X25519MLKEM768 is the preferred key exchange, so that
/// traffic recorded today stays closed to a quantum computer.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        Arc::new(CryptoProvider {
            cipher_suites: vec![
                cipher_suite::TLS13_AES_128_GCM_SHA256,
                cipher_suite::TLS13_AES_256_GCM_SHA384,
                cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
            ],
            kx_groups: vec![
                kx_group::X25519MLKEM768,
                kx_group::X25519,
                kx_group::SECP256R1,
                kx_group::SECP384R1,
            ],
            ..aws_lc_rs::default_provider()
        })
    });
    PROVIDER.clone()
}

/// The same without X25519MLKEM768.
pub(super) fn classical() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        let mut provider = CryptoProvider::clone(&provider());
        provider.kx_groups.retain(|group| group.name() != NamedGroup::X25519MLKEM768);
        Arc::new(provider)
    });
    PROVIDER.clone()
}
