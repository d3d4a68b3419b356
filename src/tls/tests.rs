//! Handshakes between real ends: ours on both sides, and OpenSSL's on one.

use std::io;
use std::process::{Output, Stdio};
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, SanType};
use rustls::NamedGroup;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio_rustls::client::TlsStream as ClientStream;
use tokio_rustls::server::TlsStream as ServerStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::config::model;
use crate::error::Reason;
use crate::identity::ca::{Authority, Leaf};

const DOMAIN: &str = "cluster.local";
const ORDERS: &str = "ns/shop/sa/orders";
const WEB: &str = "ns/shop/sa/web";

/// A trust domain with a caller and a server in it.
struct Mesh {
    authority: Authority,
    web: Arc<Tls>,
    orders: Arc<Tls>,
}

impl Mesh {
    fn new() -> Self {
        let authority = Authority::new(DOMAIN).unwrap();
        let web = tls(&authority.leaf(WEB).unwrap());
        let orders = tls(&authority.leaf(ORDERS).unwrap());
        Self { authority, web, orders }
    }
}

fn load(leaf: &Leaf) -> (TempDir, model::Identity, Identity) {
    let directory = tempfile::tempdir().unwrap();
    let files = leaf.write(directory.path()).unwrap();
    let identity = Identity::load(&files).unwrap();
    (directory, files, identity)
}

fn tls(leaf: &Leaf) -> Arc<Tls> {
    Tls::new(&load(leaf).2)
}

fn peer(path: &str) -> Peer {
    Peer::Id(format!("spiffe://{DOMAIN}/{path}").parse().unwrap())
}

type Ends = (io::Result<ClientStream<DuplexStream>>, io::Result<ServerStream<DuplexStream>>);

/// One handshake; the client reads once after it, where it learns that the server refused it.
async fn handshake(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Ends {
    let (near, far) = duplex(64 * 1024);
    let connect = async {
        let mut stream = TlsConnector::from(client).connect(server_name([10, 0, 0, 7].into()), near).await?;
        let mut byte = [0];
        stream.read_exact(&mut byte).await?;
        Ok(stream)
    };
    let accept = async {
        let mut stream = TlsAcceptor::from(server).accept(far).await?;
        stream.write_all(b"!").await?;
        Ok(stream)
    };
    tokio::join!(connect, accept)
}

/// A client of our settings with a certificate that no `Identity` would load.
fn careless_client(mesh: &Mesh, leaf: &Leaf) -> Arc<ClientConfig> {
    let mut config = ClientConfig::clone(&mesh.web.client(&peer(ORDERS), Carries::Requests));
    config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(careless(leaf)));
    Arc::new(config)
}

/// A server of our settings with a certificate that no `Identity` would load.
fn careless_server(mesh: &Mesh, leaf: &Leaf) -> Arc<ServerConfig> {
    let mut config = ServerConfig::clone(&mesh.orders.server());
    config.cert_resolver = Arc::new(SingleCertAndKey::from(careless(leaf)));
    Arc::new(config)
}

fn careless(leaf: &Leaf) -> rustls::sign::CertifiedKey {
    let key = identity::provider().key_provider.load_private_key(leaf.key_der()).unwrap();
    rustls::sign::CertifiedKey::new(vec![leaf.certificate_der()], key)
}

/// The ways in which a certificate can be wrong, with a part of the words that name it.
fn wrong_leaves(mesh: &Mesh) -> Vec<(Leaf, &'static str)> {
    let minute = Duration::from_secs(60);
    let now = SystemTime::now();
    let leaf = |edit: &dyn Fn(&mut CertificateParams)| mesh.authority.leaf_with(ORDERS, edit).unwrap();
    let named =
        |uri: &str| leaf(&|leaf| leaf.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())]);
    let two = |leaf: &mut CertificateParams| {
        let other = format!("spiffe://{DOMAIN}/{WEB}");
        leaf.subject_alt_names.push(SanType::URI(other.as_str().try_into().unwrap()));
    };
    vec![
        (Authority::new(DOMAIN).unwrap().leaf(ORDERS).unwrap(), "the peer's certificate"),
        (leaf(&|leaf| leaf.not_after = (now - minute).into()), "certificate expired"),
        (leaf(&|leaf| leaf.not_before = (now + minute).into()), "certificate not valid yet"),
        (leaf(&two), "has 2 URIs"),
        (leaf(&|leaf| leaf.subject_alt_names.clear()), "has no URI"),
        (
            leaf(&|leaf| leaf.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained)),
            "CaUsedAsEndEntity",
        ),
        (
            leaf(&|leaf| leaf.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::TimeStamping]),
            "usage",
        ),
        (named("spiffe://evil.example/ns/shop/sa/orders"), "must be any workload of spiffe://cluster.local"),
        (named("spiffe://cluster.local.evil.example/ns/shop/sa/orders"), "must be any workload of"),
        (named("spiffe://Cluster.local/ns/shop/sa/orders"), "is no SPIFFE id: the trust domain"),
        (named("spiffe://cluster.local/ns/shop/sa/*"), "is no SPIFFE id: the path"),
        (named("spiffe://cluster.local/ns/shop/sa/orders\0"), "is no SPIFFE id: the path"),
        (named("spiffe://cluster.local/ns/x/../shop/sa/orders"), "`.` or `..`"),
        (named("spiffe://cluster.local"), "has no path"),
        (named("https://cluster.local/ns/shop/sa/orders"), "does not begin with `spiffe://`"),
    ]
}

#[tokio::test]
async fn both_ends_prove_themselves() {
    let mesh = Mesh::new();
    for required in [peer(ORDERS), Peer::TrustDomain(DOMAIN.into())] {
        for (carries, alpn) in [(Carries::Requests, Alpn::Mesh), (Carries::Bytes, Alpn::Tcp)] {
            let (client, server) = handshake(mesh.web.client(&required, carries), mesh.orders.server()).await;
            let (client, server) = (client.unwrap(), server.unwrap());
            let (client, server) = (client.get_ref().1, server.get_ref().1);
            assert_eq!(peer_id(client).as_ref(), Some(mesh.orders.id()));
            assert_eq!(peer_id(server).as_ref(), Some(mesh.web.id()));
            assert_eq!(Alpn::negotiated(client), Some(alpn));
            assert_eq!(Alpn::negotiated(server), Some(alpn));
            assert_eq!(client.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
            assert_eq!(
                client.negotiated_cipher_suite().unwrap().suite(),
                rustls::CipherSuite::TLS13_AES_128_GCM_SHA256
            );
            assert_eq!(client.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519MLKEM768);
            assert_eq!(client.handshake_kind(), Some(rustls::HandshakeKind::Full));
        }
    }
}

#[tokio::test]
async fn one_end_alone_can_ask_for_x25519() {
    let mesh = Mesh::new();
    let (_directory, mut files, _) = load(&mesh.authority.leaf(ORDERS).unwrap());
    files.key_exchange = model::KeyExchange::X25519;
    let classical = Tls::new(&Identity::load(&files).unwrap());
    for (web, orders) in [(&mesh.web, &classical), (&classical, &mesh.orders)] {
        let (client, server) = handshake(web.client(&peer(ORDERS), Carries::Bytes), orders.server()).await;
        let (client, server) = (client.unwrap(), server.unwrap());
        let ends: [&CommonState; 2] = [client.get_ref().1, server.get_ref().1];
        for end in ends {
            assert_eq!(end.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519);
        }
    }
}

#[tokio::test]
async fn no_session_is_resumed() {
    let mesh = Mesh::new();
    let config = mesh.web.client(&peer(ORDERS), Carries::Requests);
    for _ in 0..2 {
        let (client, server) = handshake(config.clone(), mesh.orders.server()).await;
        assert_eq!(client.unwrap().get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
        assert_eq!(server.unwrap().get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
    }
}

#[tokio::test]
async fn another_workload_is_refused() {
    let mesh = Mesh::new();
    for (required, words) in [
        (peer("ns/shop/sa/order"), "must be spiffe://cluster.local/ns/shop/sa/order"),
        (peer("ns/shop/sa/orders/x"), "must be spiffe://cluster.local/ns/shop/sa/orders/x"),
        (Peer::TrustDomain("other.example".into()), "must be any workload of spiffe://other.example"),
    ] {
        let (client, server) =
            handshake(mesh.web.client(&required, Carries::Requests), mesh.orders.server()).await;
        let failure = Failure::classify(&client.unwrap_err());
        assert_eq!(failure.reason, Reason::TlsIdentity);
        assert_eq!(failure.detail, format!("the peer is {}, and {words}", mesh.orders.id()));
        let failure = Failure::classify(&server.unwrap_err());
        assert_eq!(failure.reason, Reason::TlsHandshake);
        assert!(failure.detail.starts_with("the peer refused our certificate"), "{}", failure.detail);
    }
}

#[tokio::test]
async fn a_wrong_server_is_refused() {
    let mesh = Mesh::new();
    for (leaf, words) in wrong_leaves(&mesh) {
        let client = mesh.web.client(&peer(ORDERS), Carries::Requests);
        let (client, server) = handshake(client, careless_server(&mesh, &leaf)).await;
        let failure = Failure::classify(&client.unwrap_err());
        assert_eq!(failure.reason, Reason::TlsIdentity, "{failure:?}");
        assert!(failure.detail.contains(words), "{words}: {}", failure.detail);
        assert!(!failure.plaintext);
        assert!(server.is_err());
    }
}

#[tokio::test]
async fn a_wrong_caller_is_refused() {
    let mesh = Mesh::new();
    for (leaf, words) in wrong_leaves(&mesh) {
        let (client, server) = handshake(careless_client(&mesh, &leaf), mesh.orders.server()).await;
        let failure = Failure::classify(&server.unwrap_err());
        assert_eq!(failure.reason, Reason::TlsIdentity, "{failure:?}");
        assert!(failure.detail.contains(words), "{words}: {}", failure.detail);
        let told = Failure::classify(&client.unwrap_err());
        assert_eq!(told.reason, Reason::TlsHandshake);
        assert!(told.detail.starts_with("the peer refused our certificate"), "{}", told.detail);
        assert!(!told.plaintext);
    }
}

#[tokio::test]
async fn a_caller_without_a_certificate_is_refused() {
    let mesh = Mesh::new();
    let mut config = ClientConfig::builder_with_provider(identity::provider())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verify::Upstream::new(&mesh.web.identity, peer(ORDERS))))
        .with_no_client_auth();
    config.alpn_protocols = vec![Alpn::H2.name().to_vec()];
    let (client, server) = handshake(Arc::new(config), mesh.orders.server()).await;
    let failure = Failure::classify(&server.unwrap_err());
    assert_eq!((failure.reason, &*failure.detail), (Reason::TlsIdentity, "the peer sent no certificate"));
    assert!(Failure::classify(&client.unwrap_err()).detail.contains("CertificateRequired"));
}

#[tokio::test]
async fn a_foreign_protocol_is_refused_and_none_is_seen() {
    let mesh = Mesh::new();
    let mut config = ClientConfig::clone(&mesh.web.client(&peer(ORDERS), Carries::Requests));
    config.alpn_protocols = vec![b"h2".to_vec()];
    let (_, server) = handshake(Arc::new(config.clone()), mesh.orders.server()).await;
    let failure = Failure::classify(&server.unwrap_err());
    assert_eq!(failure.detail, "the peer offers no application protocol (ALPN) of ours");

    config.alpn_protocols.clear();
    let (_, server) = handshake(Arc::new(config), mesh.orders.server()).await;
    assert_eq!(Alpn::negotiated(server.unwrap().get_ref().1), None);
}

#[tokio::test]
async fn a_plaintext_answer_is_evidence_and_silence_is_not() {
    let mesh = Mesh::new();
    for (answer, plaintext) in [
        (&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], true),
        (b"\0\0\x12\x04\0\0\0\0\0", true), // HTTP/2 settings
        (b"\x4a\0\0\0\x0a8.0.36\0", true), // a MySQL greeting
        (b"\x16\x20no record of any TLS", true),
        (b"\x15\x03\x03\0\x02\x02\x28", false), // alert: handshake failure
        (b"\x15\x03\x03\0\x02\x02\x46", false), // alert: protocol version
        (b"\x16\x03\x03\0\x04\x02\0\0\0", false), // a broken ServerHello
        (b"HT", true),                          // no content type begins so
        (b"", false),
    ] {
        let (near, mut far) = duplex(64 * 1024);
        far.write_all(answer).await.unwrap();
        far.shutdown().await.unwrap();
        let connector = TlsConnector::from(mesh.web.client(&peer(ORDERS), Carries::Requests));
        let error = connector.connect(server_name([10, 0, 0, 7].into()), near).await.unwrap_err();
        let failure = Failure::classify(&error);
        assert_eq!(failure.plaintext, plaintext, "{answer:?}: {error:?}");
        assert_eq!(failure.reason, Reason::TlsHandshake);
    }
}

#[tokio::test]
async fn old_and_new_identities_serve_side_by_side_under_two_roots() {
    let (old_root, new_root) = (Authority::new(DOMAIN).unwrap(), Authority::new(DOMAIN).unwrap());
    let with_both = |authority: &Authority, path: &str| {
        let directory = tempfile::tempdir().unwrap();
        let files = authority.leaf(path).unwrap().write(directory.path()).unwrap();
        std::fs::write(&files.bundle, old_root.bundle() + &new_root.bundle()).unwrap();
        Tls::new(&Identity::load(&files).unwrap())
    };
    let server = Current::new(Some(with_both(&old_root, ORDERS)));
    let held = server.load().unwrap();
    let web = [with_both(&old_root, WEB), with_both(&new_root, WEB)];
    server.store(Some(with_both(&new_root, ORDERS)));
    for server in [held, server.load().unwrap()] {
        for web in &web {
            let (client, server) =
                handshake(web.client(&peer(ORDERS), Carries::Requests), server.server()).await;
            assert!(client.is_ok() && server.is_ok());
        }
    }
}

#[test]
fn a_client_configuration_is_made_once_for_each_peer_and_protocol() {
    let mesh = Mesh::new();
    let one = mesh.web.client(&peer(ORDERS), Carries::Requests);
    assert!(Arc::ptr_eq(&one, &mesh.web.client(&peer(ORDERS), Carries::Requests)));
    assert!(!Arc::ptr_eq(&one, &mesh.web.client(&peer(ORDERS), Carries::Bytes)));
    assert!(!Arc::ptr_eq(&one, &mesh.web.client(&peer(WEB), Carries::Requests)));
    assert!(!Arc::ptr_eq(&one, &mesh.web.client(&Peer::TrustDomain(DOMAIN.into()), Carries::Requests)));
}

#[test]
fn no_debug_output_holds_the_key() {
    let leaf = Authority::new(DOMAIN).unwrap().leaf(ORDERS).unwrap();
    let (_directory, _, identity) = load(&leaf);
    let tls = Tls::new(&identity);
    let client = tls.client(&peer(WEB), Carries::Requests);
    let debug =
        format!("{leaf:?} {identity:?} {tls:?} {:?} {client:?} {:?}", tls.server(), identity.certified());
    assert!(debug.contains("spiffe://cluster.local/ns/shop/sa/orders"));

    // The private scalar of a P-256 key in PKCS #8, as Debug would print bytes, and as hex.
    let key = PrivateKeyDer::from_pem_slice(leaf.key().as_bytes()).unwrap();
    let scalar = &key.secret_der()[36..68];
    let list = format!("{scalar:?}");
    let hex: String = scalar.iter().map(|byte| format!("{byte:02x}")).collect();
    let base64 = leaf.key().lines().nth(1).unwrap().to_owned();
    for secret in [list.trim_matches(['[', ']']), &hex, &base64] {
        assert!(!debug.contains(secret));
    }
}

/// Runs `openssl s_client` against our server; what each saw.
async fn s_client(mesh: &Mesh, options: &[&str], certificate: Option<&Leaf>) -> (Output, io::Result<String>) {
    let directory = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut command = Command::new("openssl");
    command.args(["s_client", "-quiet", "-verify_return_error", "-connect"]);
    command.arg(listener.local_addr().unwrap().to_string()).args(options);
    let bundle = directory.path().join("root.crt");
    std::fs::write(&bundle, mesh.authority.bundle()).unwrap();
    command.arg("-CAfile").arg(&bundle);
    if let Some(leaf) = certificate {
        let files = leaf.write(directory.path()).unwrap();
        command.arg("-cert").arg(&files.certificate).arg("-key").arg(&files.key);
    }
    command.stdin(Stdio::null()).kill_on_drop(true);
    let accept = async {
        let (stream, _) = listener.accept().await?;
        let mut stream = TlsAcceptor::from(mesh.orders.server()).accept(stream).await?;
        stream.write_all(b"hello from orders\n").await?;
        let id = peer_id(stream.get_ref().1).map(|id| id.to_string()).unwrap_or_default();
        stream.shutdown().await?;
        Ok(id)
    };
    let (output, accepted) = tokio::join!(command.output(), accept);
    (output.expect("openssl is installed"), accepted)
}

#[tokio::test]
async fn openssl_is_let_in_with_a_good_certificate() {
    let mesh = Mesh::new();
    let leaf = mesh.authority.leaf(WEB).unwrap();
    let (output, accepted) = s_client(&mesh, &["-tls1_3", "-alpn", "pannier/h2"], Some(&leaf)).await;
    assert_eq!(accepted.unwrap(), "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "hello from orders\n");
}

#[tokio::test]
async fn openssl_with_tls_1_2_is_refused() {
    let mesh = Mesh::new();
    let leaf = mesh.authority.leaf(WEB).unwrap();
    let (output, accepted) = s_client(&mesh, &["-tls1_2", "-alpn", "pannier/h2"], Some(&leaf)).await;
    let failure = Failure::classify(&accepted.unwrap_err());
    assert_eq!(failure.reason, Reason::TlsHandshake);
    assert!(failure.detail.contains("incompatible"), "{}", failure.detail);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("protocol version"), "{told}");
}

#[tokio::test]
async fn openssl_without_a_certificate_is_refused() {
    let mesh = Mesh::new();
    let (output, accepted) = s_client(&mesh, &["-tls1_3", "-alpn", "pannier/h2"], None).await;
    assert_eq!(Failure::classify(&accepted.unwrap_err()).detail, "the peer sent no certificate");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("certificate required"), "{told}");
}
