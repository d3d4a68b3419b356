//! What a sidecar announces with each answer reaches the caller's sidecar, and nobody else; and nobody
//! but a sidecar announces anything.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http2;
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response, Version, server};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::app::{Answers, App};
use crate::eventually;
use crate::lab::{Mesh, endpoint, hold_at, orders, plain, release};
use crate::support::authority::IdentityFiles;
use crate::support::client::{Answer, request, send};
use crate::support::loopback::{HOST, Loopback};
use pannier::identity::Identity;
use pannier::tls::{Alpn, Carries, Peer, Tls, server_name};

/// What the tests are about.
const FIELD: &str = "x-pannier-load";

/// An application that says that it is fuller than anything can be.
const LIES: Answers =
    Answers { status: 200, after: Duration::ZERO, field: Some((FIELD, "9000/1/1/1")), trailer: None };

/// Asks as a sidecar of the mesh that speaks HTTP/2, and gives the fields of the answer.
async fn ask_as_sidecar(identity: &IdentityFiles, to: &Loopback) -> HeaderMap {
    let identity = Identity::load(identity.paths()).expect("an identity");
    let orders = Peer::TrustDomain("cluster.local".into());
    let mut config = ClientConfig::clone(&Tls::new(&identity).client(&orders, Carries::Requests));
    config.alpn_protocols = vec![Alpn::H2.name().to_vec()];
    let to = to.inbound();
    let stream = TcpStream::connect(to).await.expect("connected");
    let stream = TlsConnector::from(Arc::new(config)).connect(server_name(to.ip()), stream).await;
    let io = TokioIo::new(stream.expect("mTLS"));
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await.expect("HTTP/2");
    tokio::spawn(connection);
    let request = Request::get(format!("http://{HOST}/")).body(Full::<Bytes>::default()).expect("valid");
    let (parts, body) = sender.send_request(request).await.expect("an answer").into_parts();
    let _ = body.collect().await;
    assert_eq!(parts.status, 200);
    parts.headers
}

/// The sidecar of an endpoint that speaks HTTP/2 alone and says how full it is; and what it is told.
async fn speaks_http_2(identity: &IdentityFiles) -> (SocketAddr, mpsc::UnboundedReceiver<HeaderMap>) {
    let identity = Identity::load(identity.paths()).expect("an identity");
    let mut config = ServerConfig::clone(&Tls::new(&identity).server());
    config.alpn_protocols = vec![Alpn::H2.name().to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let (tell, told) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let stream = TokioIo::new(acceptor.accept(stream).await.expect("mTLS"));
            let tell = tell.clone();
            let answer = service_fn(move |request: Request<_>| {
                let _ = tell.send(request.headers().clone());
                let answer = Response::builder().header(FIELD, "3/8/1500/20");
                async { Ok::<_, Infallible>(answer.body(Full::<Bytes>::from("h2")).expect("an answer")) }
            });
            tokio::spawn(
                server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(stream, answer),
            );
        }
    });
    (address, told)
}

/// Asks as an application that claims to be a sidecar.
async fn ask_as_application(caller: &Loopback, version: Version) -> Answer {
    let mut request = request("GET", HOST, "/", "");
    if version == Version::HTTP_2 {
        *request.uri_mut() = format!("http://{HOST}/").parse().expect("a URI");
        request.headers_mut().remove("host");
    }
    *request.version_mut() = version;
    request.headers_mut().insert(FIELD, "7/7/7/7".parse().expect("a value"));
    send(caller.outbound(), request).await.expect("an answer")
}

#[tokio::test]
async fn a_sidecar_says_how_full_its_application_is() {
    let app = App::named("a").await;
    app.answers(LIES);
    let mesh = Mesh::new();
    let orders = mesh.endpoint(&app, ", capacity: 8, max_in_flight: 20").await;
    let caller = mesh.caller(&[&orders], "").await;
    let held = hold_at(caller.outbound(), &app, 3).await;
    let fields = ask_as_sidecar(&mesh.identity("caller"), &orders).await;
    let said: Vec<_> = fields.get_all(FIELD).iter().map(|value| value.to_str().expect("text")).collect();
    assert_eq!(said.len(), 1, "once, and nothing of the application's: {said:?}");
    let numbers: Vec<u32> = said[0].split('/').map(|number| number.parse().expect("a number")).collect();
    assert_eq!((numbers.len(), numbers[1], numbers[3]), (4, 8, 20), "{said:?}");
    // With the one that it answers, or without.
    assert!((3..=4).contains(&numbers[0]), "{said:?}");
    release(&app, held).await;
}

#[tokio::test]
async fn a_sidecar_that_speaks_http_2_alone_is_told_and_heard_in_fields() {
    let mesh = Mesh::new();
    let (address, mut told) = speaks_http_2(&mesh.identity("orders")).await;
    let peer = ", mtls: { peer: \"spiffe://cluster.local/ns/shop/sa/orders\" }";
    let routes = format!("routes: [{{ host: {HOST}, path: /, upstream: orders, timeout: 5s }}]\n");
    let yaml = mesh.identity("caller").yaml() + &orders(&[address], peer) + &routes;
    let caller = Loopback::start("caller", &yaml).await;
    let answer = ask_as_application(&caller, Version::HTTP_11).await;
    assert_eq!((answer.status.as_u16(), answer.text(), answer.field(FIELD)), (200, "h2", None));
    let told = told.recv().await.expect("a request");
    let left: u64 = told["x-pannier-timeout"].to_str().expect("text").parse().expect("milliseconds");
    assert!((1..=5000).contains(&left), "{told:?}");
    assert!(!told.contains_key(FIELD), "{told:?}");
    // It counts with the end of the request, which its client does not wait for.
    eventually("word", async || !endpoint(&caller, address).await["heard_seconds_ago"].is_null()).await;
    let shown = endpoint(&caller, address).await;
    assert_eq!((&shown["capacity_is"], &shown["capacity"]), (&"announced".into(), &8.into()), "{shown}");
    assert_eq!(shown["most"], 20, "{shown}");
}

#[tokio::test]
async fn applications_neither_hear_nor_say_it() {
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let app = App::named("a").await;
        app.answers(LIES);
        let mesh = Mesh::new();
        let orders = mesh.endpoint(&app, ", capacity: 8").await;
        let caller = mesh.caller(&[&orders], "").await;
        for _ in 0..5 {
            let answer = ask_as_application(&caller, version).await;
            assert_eq!((answer.status.as_u16(), answer.text()), (200, "a"), "{version:?}");
            assert_eq!(answer.field(FIELD), None, "{version:?}");
        }
        assert_eq!(app.all(), 5);
        assert!(app.heads().iter().all(|head| !head.contains_key(FIELD)), "{version:?}: {:?}", app.heads());
        let shown = endpoint(&caller, orders.inbound()).await;
        assert_eq!((&shown["capacity_is"], &shown["capacity"]), (&"announced".into(), &8.into()), "{shown}");
        assert!(shown["heard_seconds_ago"].as_f64().is_some_and(|ago| ago < 60.0), "{shown}");
        assert!(shown["most"].is_null(), "{shown}");
        assert!(shown["saturation"].as_f64().is_some_and(|full| full < 1.0), "{shown}");
    }
}

#[tokio::test]
async fn a_plaintext_endpoint_moves_nothing_by_saying_it() {
    let (liar, honest) = (App::named("liar").await, App::named("honest").await);
    liar.answers(LIES);
    liar.after(5);
    honest.after(5);
    let caller = plain(&[&liar, &honest], "").await;
    for _ in 0..10 {
        let crowd =
            futures_util::future::join_all((0..16).map(|_| ask_as_application(&caller, Version::HTTP_11)));
        assert!(crowd.await.iter().all(|answer| answer.status == 200 && answer.field(FIELD).is_none()));
    }
    assert!(liar.all() >= 20 && honest.all() >= 20, "{} and {}", liar.all(), honest.all());
    assert!([liar.heads(), honest.heads()].iter().flatten().all(|head| !head.contains_key(FIELD)));
    let shown = endpoint(&caller, liar.address).await;
    assert_eq!(
        (&shown["capacity_is"], &shown["heard_seconds_ago"]),
        (&"learned".into(), &().into()),
        "{shown}"
    );
    assert!(shown["most"].is_null(), "{shown}");
}

#[tokio::test]
async fn a_caller_in_plaintext_is_told_nothing() {
    let app = App::named("a").await;
    app.answers(LIES);
    let orders = Loopback::start("orders", &format!("application: {}\n", app.address)).await;
    let mut asked = request("GET", HOST, "/", "");
    asked.headers_mut().insert(FIELD, "7/7/7/7".parse().expect("a value"));
    let answer = send(orders.inbound(), asked).await.expect("an answer");
    assert_eq!((answer.status.as_u16(), answer.field(FIELD)), (200, None));
    assert!(!app.heads()[0].contains_key(FIELD));
}
