//! Fields that do not cross: those of one hop, those that only Pannier may set, and what a certificate
//! would write into them.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use pannier::config::model;
use pannier::identity::{Identity, provider};
use pannier::tls::{Alpn, Carries, Peer, Tls, server_name};

use super::frames::{End, Frames, OK, request};
use super::support::loopback::{HOST, Loopback, Pair, hop};
use super::support::raw::{Raw, Witness, listen};
use super::{CLEAN, counted};

/// Fields that only Pannier may set, and fields of one hop.
const FIELDS: &str = "X-Pannier-Protocol: h2\r\nx-pannier-anything: stolen\r\n\
    X-Forwarded-Client-Cert: URI=spiffe://stolen\r\nx-forwarded-client-cert: stolen\r\n\
    Connection: X-Hop, keep-alive\r\nX-Hop: stolen\r\nKeep-Alive: stolen\r\nProxy-Connection: stolen\r\n\
    TE: stolen\r\nUpgrade: stolen\r\nHTTP2-Settings: stolen\r\nX-Kept: kept\r\n";

#[tokio::test]
async fn own_fields_and_those_of_one_hop_do_not_cross() {
    let (witness, app) = Witness::listen().await;
    let pair = Pair::new(app).await;
    let inbound = Loopback::start("inbound", &format!("application: {app}\n")).await;
    for to in [pair.caller.outbound(), inbound.inbound()] {
        let mut raw = Raw::connect(to).await;
        raw.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n{FIELDS}\r\n"))
            .await;
        raw.send("1\r\nx\r\n0\r\nX-Pannier-Trailer: stolen\r\nContent-Length: 7\r\nX-Trailer: kept\r\n\r\n")
            .await;
        assert!(raw.head().await.starts_with("HTTP/1.1 200 "));
    }
    let seen = witness.seen();
    assert_eq!(seen.matches("x-kept: kept\r\n").count(), 2, "{seen}");
    assert!(!seen.contains("stolen") && !seen.contains("x-pannier-"), "{seen}");
    let callers: Vec<_> = seen.lines().filter(|line| line.starts_with("x-forwarded-client-cert")).collect();
    assert_eq!(callers, ["x-forwarded-client-cert: uri=spiffe://cluster.local/ns/shop/sa/caller"]);

    // And back.
    let app = listen(async |mut raw: Raw| {
        raw.head().await;
        let fields = FIELDS.replace("X-Forwarded", "X-Other").replace("x-forwarded", "x-other");
        let body = "1\r\nx\r\n0\r\nX-Pannier-Trailer: stolen\r\nX-Trailer: kept\r\n\r\n";
        let own = "x-pannier-refused: stolen\r\n";
        raw.send(format!("HTTP/1.1 200 OK\r\n{own}Transfer-Encoding: chunked\r\n{fields}\r\n{body}")).await;
    })
    .await;
    let (caller, pair) = (hop(app).await, Pair::new(app).await);
    for sidecar in [&caller, &pair.caller] {
        let mut raw = Raw::connect(sidecar.outbound()).await;
        raw.send(CLEAN).await;
        let head = raw.head().await.to_ascii_lowercase();
        assert!(head.contains("x-kept: kept\r\n"), "{head}");
        // Ours, and not the application's.
        assert_eq!(head.matches("keep-alive: ").count(), 1, "{head}");
        assert!(head.contains("\r\nkeep-alive: timeout=3599\r\n"), "{head}");
        for field in ["x-pannier-", "x-hop", "proxy-connection", "upgrade", "http2-settings"] {
            assert!(!head.contains(field), "{field}: {head}");
        }
        let (body, trailers) = raw.chunked().await;
        assert_eq!((&body[..], trailers.to_ascii_lowercase().as_str()), (&b"x"[..], "x-trailer: kept\r\n"));
    }
}

/// CVE-2023-27493: the id in a certificate is written into a field for the application, so one that
/// holds the end of a line, or of a value, is no id. Nobody with such a certificate gets in.
#[tokio::test]
async fn a_certificates_san_injects_no_field() {
    let (witness, app) = Witness::listen().await;
    let key = || KeyPair::generate().expect("a key");
    let mut root = CertificateParams::default();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = CertifiedIssuer::self_signed(root, key()).expect("a root");
    let leaf = |uri: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, "leaf");
        params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
        params.subject_alt_names = vec![SanType::URI(uri.try_into().expect("ASCII"))];
        let key = key();
        (params.signed_by(&key, &root).expect("a leaf"), key)
    };
    let dir = TempDir::with_prefix("pannier-san-").expect("a temporary directory");
    let file = |name: &str, text: String| {
        std::fs::write(dir.path().join(name), text).expect("our own directory");
        dir.path().join(name)
    };
    let (certificate, own_key) = leaf("spiffe://cluster.local/ns/shop/sa/orders");
    let files = model::Identity {
        certificate: file("tls.crt", certificate.pem()),
        key: file("tls.key", own_key.serialize_pem()),
        bundle: file("ca.crt", root.pem()),
        key_exchange: model::KeyExchange::default(),
    };
    let (certificate, key, bundle) =
        (files.certificate.display(), files.key.display(), files.bundle.display());
    let identity = format!("identity: {{ certificate: {certificate}, key: {key}, bundle: {bundle} }}\n");
    let orders =
        Loopback::start("orders", &format!("{identity}application: {app}\ninbound: {{ mtls: strict }}\n"))
            .await;
    let tls = Tls::new(&Identity::load(&files).expect("a sound identity"));
    let honest = tls.client(&Peer::TrustDomain("cluster.local".into()), Carries::Requests);
    let to = orders.inbound();
    let call = async |uri: &str| {
        let (certificate, key) = leaf(uri);
        let key: PrivateKeyDer<'static> = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        let key = provider().key_provider.load_private_key(key).expect("a key");
        let mut config = rustls::ClientConfig::clone(&honest);
        config.alpn_protocols = vec![Alpn::H2.name().to_vec()];
        let resolver = SingleCertAndKey::from(CertifiedKey::new(vec![certificate.der().clone()], key));
        config.client_auth_cert_resolver = Arc::new(resolver);
        let stream = TcpStream::connect(to).await.expect("connected");
        // The server's verdict comes after the client's handshake (RFC 8446 section 4.4.2.4).
        match TlsConnector::from(Arc::new(config)).connect(server_name(to.ip()), stream).await {
            Ok(stream) => Frames::over(stream).await.asked(1, &request(&[])).await,
            Err(_) => End::Closed,
        }
    };
    assert_eq!(call("spiffe://cluster.local/ns/shop/sa/web").await, End::Answer(OK), "the way is open");
    let evil = [
        "spiffe://cluster.local/ns/shop/sa/web\r\nsmuggled: 1",
        "spiffe://cluster.local/ns/shop/sa/web\nsmuggled: 1",
        "spiffe://cluster.local/ns/shop/sa/web\0",
        "spiffe://cluster.local/ns/shop/sa/web;By=smuggled",
        "spiffe://cluster.local/ns/shop/sa/web,URI=smuggled",
        "spiffe://cluster.local/ns/shop/sa/web\";smuggled=\"",
        "spiffe://cluster.local/ns/shop/sa/web smuggled",
    ];
    for uri in evil {
        assert_eq!(call(uri).await, End::Closed, "{uri:?} was let in");
    }
    counted(&orders, "tls.identity", evil.len() as u64).await;
    assert!(!witness.seen().contains("smuggled"), "{}", witness.seen());
}
