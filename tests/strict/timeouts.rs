//! Nobody is waited for for ever: each timeout by its name, what says it and what counts it, and what it
//! must leave alone.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::http::Request;
use socket2::{Domain, Socket, Type};
use tokio::net::TcpStream;
use tokio::time::sleep;
use tokio_rustls::rustls::ClientConfig;

use pannier::identity::Identity;
use pannier::tls::{Alpn, Carries, Peer, Tls, server_name};

use super::app::{self, Does};
use super::frames::{DATA, END_HEADERS, End, Frames, GOAWAY, HEADERS, OK, frame, post, request};
use super::support::authority::Authority;
use super::support::loopback::{HOST, Loopback, upstream};
use super::support::raw::{Raw, Witness, listen};
use super::{CLEAN, answer, assert_refused, counted, refused};

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A sidecar of a caller with more of a configuration.
async fn with(app: SocketAddr, more: &str) -> Loopback {
    Loopback::start("caller", &(upstream(app, "") + more)).await
}

/// An application that reads a head and says nothing.
async fn silent() -> SocketAddr {
    listen(async |mut raw: Raw| {
        raw.head().await;
        raw.gone().await;
    })
    .await
}

#[tokio::test]
async fn a_slow_head_times_out() {
    let (witness, app) = Witness::listen().await;
    let caller = Loopback::start("caller", &(upstream(app, "") + "http: { header_timeout: 300ms }\n")).await;
    let mut raw = Raw::connect(caller.outbound()).await;
    // The connection itself may idle.
    tokio::time::sleep(Duration::from_millis(600)).await;
    raw.send(CLEAN).await;
    raw.head().await;
    raw.take(2).await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    raw.send("GET /slow HTTP/1.1\r\nHost: orders").await;
    assert_refused(&raw.rest().await, 408, "http.head_timeout", "a slow head");
    // Not even when it comes on and on.
    let mut raw = Raw::connect(caller.outbound()).await;
    raw.send("GET /slow HTTP/1.1\r\nHost: orders.test\r\n").await;
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        raw.offer("X: 1\r\n").await;
    }
    let answer = raw.rest().await;
    assert!(answer.is_empty() || answer.contains("http.head_timeout"), "{answer}");
    assert!(!witness.seen().contains("/slow"), "the application was reached");
}

/// The bytes that tell which protocol is spoken are of the head, and take no longer.
#[tokio::test]
async fn a_slow_first_word_times_out() {
    let (witness, app) = Witness::listen().await;
    let caller = with(app, "http: { header_timeout: 300ms }\n").await;
    for word in ["G", "GET", "PRI * HTTP/2.0\r\n\r\nS", "\r\n", "\x16\x03"] {
        let mut raw = Raw::connect(caller.outbound()).await;
        raw.send(word).await;
        let got = raw.rest().await;
        assert!(got.is_empty() || got.contains("x-pannier-refused: http."), "{word:?}: {got}");
    }
    assert_eq!(witness.seen(), "", "the application was reached");
}

/// A body that stops coming.
#[tokio::test]
async fn a_silent_body_times_out() {
    let app = silent().await;
    let caller = with(app, "http: { body_timeout: 300ms }\n").await;
    let sized = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 9\r\n\r\nhalf");
    let chunked =
        format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n");
    for (i, request) in [sized, chunked].iter().enumerate() {
        assert_refused(&answer(&caller, request).await, 408, "http.body_timeout", request);
        counted(&caller, "http.body_timeout", i as u64 + 1).await;
    }
    let (_, app) = app::listen(Does::Nothing).await;
    let caller = with(app, "http: { body_timeout: 300ms }\n").await;
    let mut frames = Frames::connect(&caller).await;
    frames.send(frame(HEADERS, END_HEADERS, 1, &post(&[]))).await;
    frames.send(frame(DATA, 0, 1, b"half")).await;
    assert!(matches!(frames.end_of(1).await, End::Answer(byte) if byte != OK));
    counted(&caller, "http.body_timeout", 1).await;
}

/// A body that comes, but by the byte, and never ends: sized, in chunks, and over HTTP/2.
#[tokio::test]
async fn a_trickling_body_is_too_slow() {
    let app = silent().await;
    let caller = with(app, "http: { min_body_rate: 1000/s }\n").await;
    for (i, framing) in ["Content-Length: 100000", "Transfer-Encoding: chunked"].iter().enumerate() {
        let mut raw = Raw::connect(caller.outbound()).await;
        raw.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\n{framing}\r\n\r\n")).await;
        for _ in 0..30 {
            sleep(millis(50)).await;
            raw.offer(if i == 0 { "x" } else { "1\r\nx\r\n" }).await;
        }
        let got = raw.rest().await;
        assert!(got.is_empty() || got.contains("x-pannier-refused: http.body_slow\r\n"), "{framing}: {got}");
        counted(&caller, "http.body_slow", i as u64 + 1).await;
    }
    let (_, app) = app::listen(Does::Nothing).await;
    let caller = with(app, "http: { min_body_rate: 1000/s }\n").await;
    let mut frames = Frames::connect(&caller).await;
    frames.send(frame(HEADERS, END_HEADERS, 1, &post(&[]))).await;
    for _ in 0..30 {
        sleep(millis(50)).await;
        frames.offer(frame(DATA, 0, 1, b"x")).await;
    }
    assert!(matches!(frames.end_of(1).await, End::Answer(byte) if byte != OK));
    counted(&caller, "http.body_slow", 1).await;
}

/// What may be slow: streams of gRPC, answers, routes and directions that say so, and a sender that is
/// held up by its reader.
#[tokio::test]
async fn what_may_be_slow_is_left_alone() {
    let (seen, app) = app::listen(Does::Answers).await;
    let caller = with(app, "http: { min_body_rate: 1000/s }\n").await;
    let mut frames = Frames::connect(&caller).await;
    let grpc = post(&[("content-type", "application/grpc"), ("te", "trailers")]);
    frames.send(frame(HEADERS, END_HEADERS, 1, &grpc)).await;
    for last in [0, 0, 0, 0, 1] {
        sleep(millis(400)).await;
        frames.send(frame(DATA, last, 1, b"x")).await;
    }
    assert_eq!(frames.end_of(1).await, End::Answer(OK));
    assert_eq!(seen.bodies(), ["xxxxx"]);

    // An application that answers by the byte, and takes a body by the byte.
    let app = listen(async |mut raw: Raw| {
        while let Some(head) = raw.next().await {
            let posted = head.starts_with("POST");
            for _ in 0..if posted { 5 } else { 0 } {
                raw.take(1).await;
                sleep(millis(10)).await;
            }
            raw.offer("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n").await;
            for _ in 0..5 {
                sleep(millis(400)).await;
                raw.offer("x").await;
            }
        }
    })
    .await;
    let route = "routes: [ { host: orders.test, upstream: orders, min_body_rate: off } ]\n";
    for (more, slow) in [
        ("http: { min_body_rate: 1000/s }\n".to_owned(), false),
        (format!("http: {{ min_body_rate: 1000/s }}\n{route}"), true),
        ("http: { min_body_rate: 1000/s }\noutbound: { http: { min_body_rate: off } }\n".to_owned(), true),
        ("http: { min_body_rate: off }\n".to_owned(), true),
    ] {
        let caller = with(app, &more).await;
        let mut raw = Raw::connect(caller.outbound()).await;
        raw.send(CLEAN).await;
        assert!(raw.head().await.starts_with("HTTP/1.1 200 "));
        assert_eq!(raw.take(5).await, b"xxxxx", "an answer may be slow");
        if slow {
            raw.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 5\r\n\r\n")).await;
            for _ in 0..5 {
                sleep(millis(400)).await;
                raw.send("x").await;
            }
            assert!(raw.head().await.starts_with("HTTP/1.1 200 "), "{more}");
            assert_eq!(raw.take(5).await, b"xxxxx");
        }
        assert_eq!(refused(&caller, "http.body_slow").await, 0);
    }
}

/// An upload may take longer than an answer may be silent, as long as it goes on.
#[tokio::test]
async fn a_long_upload_is_waited_for() {
    let app = listen(async |mut raw: Raw| {
        raw.head().await;
        raw.take(20).await;
        raw.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    })
    .await;
    let caller = with(app, "http: { body_timeout: 1s }\n").await;
    let mut raw = Raw::connect(caller.outbound()).await;
    raw.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 20\r\n\r\n")).await;
    for _ in 0..20 {
        sleep(millis(100)).await;
        raw.send("x").await;
    }
    assert!(raw.head().await.starts_with("HTTP/1.1 200 "));
    let (_, app) = app::listen(Does::Answers).await;
    let caller = with(app, "http: { body_timeout: 1s }\n").await;
    let mut frames = Frames::connect(&caller).await;
    frames.send(frame(HEADERS, END_HEADERS, 1, &post(&[]))).await;
    for n in 0..20 {
        sleep(millis(100)).await;
        frames.send(frame(DATA, u8::from(n == 19), 1, b"x")).await;
    }
    assert_eq!(frames.end_of(1).await, End::Answer(OK));
}

/// An application that answers nothing, or stops within its answer.
#[tokio::test]
async fn a_silent_upstream_times_out() {
    let caller = with(silent().await, "http: { body_timeout: 1s }\n").await;
    let request = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
    assert_refused(&answer(&caller, &request).await, 504, "upstream.timeout", "no answer");
    let half = listen(async |mut raw: Raw| {
        raw.head().await;
        raw.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf").await;
        raw.gone().await;
    })
    .await;
    let caller = with(half, "http: { body_timeout: 1s }\n").await;
    let got = answer(&caller, &request).await;
    assert!(got.ends_with("\r\n\r\nhalf"), "{got}");
    counted(&caller, "upstream.timeout", 1).await;
}

/// An application that does not read what it is sent.
#[tokio::test]
async fn an_upstream_that_takes_no_body_times_out() {
    let app = listen(async |_: Raw| sleep(Duration::from_secs(60)).await).await;
    let caller = with(app, "http: { body_timeout: 1s, min_body_rate: 1000/s }\n").await;
    let mut raw = Raw::connect(caller.outbound()).await;
    raw.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 100000000\r\n\r\n")).await;
    let sending = async { while raw.offered(vec![b'x'; 1 << 20]).await {} };
    tokio::time::timeout(Duration::from_secs(20), sending).await.expect("an end");
    counted(&caller, "upstream.timeout", 1).await;
    assert_eq!(refused(&caller, "http.body_slow").await, 0, "the sender is not to blame");
}

/// A route's `timeout`, from the request's head to the end of the answer; its `body_timeout`.
#[tokio::test]
async fn a_routes_timeouts_hold_for_it_alone() {
    let app = silent().await;
    let routes = "http: { body_timeout: 1h }
routes:
  - { host: orders.test, path: /timeout, upstream: orders, timeout: 300ms }
  - { host: orders.test, path: /silence, upstream: orders, body_timeout: 300ms }
  - { host: orders.test, upstream: orders }
";
    let caller = with(app, routes).await;
    for path in ["/timeout", "/silence"] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
        assert_refused(&answer(&caller, &request).await, 504, "upstream.timeout", path);
    }
    let mut raw = Raw::connect(caller.outbound()).await;
    raw.send(CLEAN).await;
    assert!(raw.is_silent_for(millis(900)).await, "another route has another timeout");
}

/// A client that asks and asks and reads no answer, and one that stops reading in the middle.
#[tokio::test]
async fn a_reader_that_stops_is_given_up() {
    const SIZE: usize = 64 << 20;
    let app = listen(async |mut raw: Raw| {
        while raw.next_or_gone().await.is_some() {
            raw.offer(format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n")).await;
            raw.offer(vec![b'x'; SIZE]).await;
        }
    })
    .await;
    let caller = with(app, "http: { body_timeout: 1s }\n").await;
    let mut raw = Raw::connect(caller.outbound()).await;
    raw.send(CLEAN).await;
    raw.head().await;
    counted(&caller, "http.answer_timeout", 1).await;
    assert!(raw.rest().await.len() < SIZE, "it is not taken for whole");
}

/// Idle connections end: of HTTP/1, of HTTP/2, and those that say nothing at all. One that is in use does
/// not.
#[tokio::test]
async fn idle_connections_are_closed() {
    let (_, app) = Witness::listen().await;
    let caller = with(app, "http: { idle_timeout: 500ms }\n").await;
    for bytes in ["", CLEAN] {
        let mut raw = Raw::connect(caller.outbound()).await;
        raw.send(bytes).await;
        let got = raw.rest().await;
        assert!(got.is_empty() == bytes.is_empty() && !got.contains("x-pannier-refused"), "{got}");
    }
    let app = app::listen(Does::Answers).await.1;
    let caller = with(app, "http: { idle_timeout: 1s }\n").await;
    let mut frames = Frames::connect(&caller).await;
    // In use for longer than it may idle.
    for n in 0..10 {
        assert_eq!(frames.asked(2 * n + 1, &request(&[])).await, End::Answer(OK));
        sleep(millis(200)).await;
    }
    // Told to go, it goes; and where it is silent, it is closed.
    let mut told = false;
    while let Some(frame) = frames.next().await {
        told |= frame.kind == GOAWAY && frame.code() == 0;
    }
    assert!(told, "it was closed without a word");
}

/// An open request is no idleness, however long it takes.
#[tokio::test]
async fn an_open_request_is_not_idle() {
    let app = listen(async |mut raw: Raw| {
        raw.head().await;
        sleep(millis(1500)).await;
        raw.offer("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    })
    .await;
    let caller = with(app, "http: { idle_timeout: 300ms }\n").await;
    let mut raw = Raw::connect(caller.outbound()).await;
    raw.send(CLEAN).await;
    assert!(raw.head().await.starts_with("HTTP/1.1 200 "));
    let (_, app) = app::listen(Does::Answers).await;
    let caller = with(app, "http: { idle_timeout: 300ms }\n").await;
    let stream = TcpStream::connect(caller.outbound()).await.expect("connected");
    let (mut client, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    let request = Request::post(format!("http://{HOST}/")).body(()).expect("a request");
    let (answer, mut body) = client.send_request(request, false).expect("a stream");
    sleep(millis(1500)).await;
    body.send_data(Bytes::from_static(b"late"), true).expect("an open stream");
    assert_eq!(answer.await.expect("an answer").status(), 200);
}

/// An address that takes no connection: its queue is full.
fn full() -> (Socket, Vec<std::net::TcpStream>, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a free port");
    socket.listen(0).expect("it listens");
    let address = socket.local_addr().expect("bound").as_socket().expect("an IPv4 address");
    let connect = |_| std::net::TcpStream::connect_timeout(&address, millis(200)).ok();
    let held = (0..10).map_while(connect).collect();
    (socket, held, address)
}

/// `connect_timeout`: of an upstream, and of the application.
#[tokio::test]
async fn a_connection_that_is_not_taken_times_out() {
    let (_socket, _held, address) = full();
    let yaml = upstream(address, ", connect_timeout: 200ms")
        + "routes: [ { host: orders.test, upstream: orders, retries: 0 } ]\n";
    let caller = Loopback::start("caller", &yaml).await;
    let request = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
    assert_refused(&answer(&caller, &request).await, 503, "pool.connect_timeout", "an upstream");
    counted(&caller, "pool.connect_timeout", 1).await;
    let yaml = format!("application: {address}\ninbound: {{ connect_timeout: 200ms }}\n");
    let orders = Loopback::start("orders", &yaml).await;
    let mut raw = Raw::connect(orders.inbound()).await;
    raw.send(&request).await;
    assert_refused(&raw.rest().await, 503, "pool.connect_timeout", "an application");
    counted(&orders, "pool.connect_timeout", 1).await;
}

/// A caller that begins a handshake and does not go on.
#[tokio::test]
async fn a_handshake_that_stops_times_out() {
    let (witness, app) = Witness::listen().await;
    let files = tempfile::TempDir::with_prefix("pannier-handshake-").expect("a temporary directory");
    let identity = Authority::new("cluster.local").issue_into(files.path(), "ns/shop/sa/orders");
    let strict =
        format!("application: {app}\ninbound: {{ mtls: strict, http: {{ header_timeout: 300ms }} }}\n");
    let orders = Loopback::start("orders", &(identity.yaml() + &strict)).await;
    let own = Tls::new(&Identity::load(identity.paths()).expect("an identity"));
    let mut config =
        ClientConfig::clone(&own.client(&Peer::TrustDomain("cluster.local".into()), Carries::Requests));
    config.alpn_protocols = vec![Alpn::H2.name().to_vec()];
    let config = Arc::new(config);
    let to = orders.inbound();
    let mut client = rustls::ClientConnection::new(config, server_name(to.ip())).expect("a client");
    let mut hello = Vec::new();
    client.write_tls(&mut hello).expect("a hello");
    let mut raw = Raw::connect(to).await;
    raw.send(hello).await;
    raw.rest().await;
    counted(&orders, "tls.handshake", 1).await;
    assert_eq!(witness.seen(), "", "the application was reached");
}
