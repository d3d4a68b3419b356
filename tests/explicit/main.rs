//! Without redirection, on loopback: what is found by its host instead of its address, what is
//! carried between two sidecars, and what an operator sees from outside.

/// Both ways to an application: one plain hop, and a pair.
macro_rules! over_a_hop_and_a_pair {
    ($place:ident: $($name:ident)+) => {
        mod over_a_hop {
            $(#[tokio::test]
            async fn $name() {
                let app = crate::$place::$name::app().await;
                let caller = crate::support::loopback::hop(app).await;
                crate::$place::$name::holds(crate::support::raw::Raw::connect(caller.outbound()).await).await;
            })+
        }

        mod over_a_pair {
            $(#[tokio::test]
            async fn $name() {
                let app = crate::$place::$name::app().await;
                let pair = crate::support::loopback::Pair::new(app).await;
                crate::$place::$name::holds(crate::support::raw::Raw::connect(pair.caller.outbound()).await).await;
            })+
        }
    };
}
use over_a_hop_and_a_pair;

mod exchange;
mod operator;
#[path = "../support/mod.rs"]
mod support;
mod upgrade;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use support::client::get;
use support::loopback::{HOST, Loopback, Pair, hop};
use support::raw::{Raw, Witness, listen};

const MEBI: u64 = 1 << 20;

#[tokio::test]
async fn a_host_finds_its_upstream_and_an_unknown_one_does_not() {
    let (witness, app) = Witness::listen().await;
    let caller = hop(app).await;
    let mut raw = Raw::connect(caller.outbound()).await;
    for (target, host) in [
        ("/a?x=1", "orders.test"),
        ("/b", "ORDERS.test:80"),
        ("http://orders.test/c?y", "orders.test"),
        ("http://orders.test:80", "orders.test"),
    ] {
        raw.send(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        let head = raw.head().await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{target} {host}: {head}");
        assert_eq!(raw.take(2).await, b"ok");
    }
    for host in ["nobody.test", "orders.test:81", "orders"] {
        raw.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        let head = raw.head().await;
        assert!(head.starts_with("HTTP/1.1 404 "), "{host}: {head}");
        assert!(head.contains("x-pannier-refused: route.none\r\n"), "{host}: {head}");
        assert!(raw.until(b"\n").await.starts_with("pannier: route.none"));
    }
    let seen = witness.seen();
    for line in ["get /a?x=1 http/1.1\r\n", "get /b ", "get /c?y ", "get / "] {
        assert_eq!(seen.matches(line).count(), 1, "{line}: {seen}");
    }
}

/// A server that sends back what it is sent, until the client's end.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    address
}

async fn is_a_tunnel(through: SocketAddr) {
    let mut raw = Raw::connect(through).await;
    // The first bytes do not wait for the answer.
    raw.send(format!("CONNECT {HOST}:80 HTTP/1.1\r\nhost: {HOST}:80\r\n\r\n\x01first")).await;
    let head = raw.head().await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(!head.contains("content-length") && !head.contains("transfer-encoding"), "{head}");
    assert_eq!(raw.take(6).await, b"\x01first");
    raw.send(b"\x00second").await;
    assert_eq!(raw.take(7).await, b"\x00second");
    raw.send("last").await;
    raw.finish().await;
    assert_eq!(raw.rest().await, "last", "one side's end is not the other's");

    let mut raw = Raw::connect(through).await;
    raw.send("CONNECT nobody.test:80 HTTP/1.1\r\nhost: nobody.test:80\r\n\r\n").await;
    let head = raw.head().await;
    assert!(head.starts_with("HTTP/1.1 404 ") && head.contains("route.none"), "{head}");
}

#[tokio::test]
async fn connect_is_a_tunnel() {
    let app = echo().await;
    is_a_tunnel(hop(app).await.outbound()).await;
    is_a_tunnel(Pair::new(app).await.caller.outbound()).await;
}

#[tokio::test]
async fn inbound_goes_to_the_application() {
    let (witness, app) = Witness::listen().await;
    let sidecar = Loopback::start("orders", &format!("application: {app}\n")).await;
    let answer = get(sidecar.inbound(), "whatever.test", "/x").await.expect("an answer");
    assert_eq!((answer.status.as_u16(), answer.text()), (200, "ok"));
    assert!(witness.seen().contains("host: whatever.test\r\n"));
}

#[tokio::test]
async fn inbound_without_an_application_is_refused() {
    let sidecar = Loopback::start("orders", "").await;
    let mut raw = Raw::connect(sidecar.inbound()).await;
    raw.offer("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(raw.rest().await, "");
    // It is counted a little after the connection is closed.
    let counted = async || {
        let metrics = sidecar.get("/metrics").await.expect("metrics");
        let refused = metrics.text().lines().find(|line| line.contains("intercept.no_destination"));
        refused.is_some_and(|line| line.ends_with(" 1"))
    };
    let begin = Instant::now();
    while !counted().await {
        assert!(begin.elapsed() < Duration::from_secs(10), "the refusal is not counted");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard_on_any_port() {
    let app = listen(async |mut raw: Raw| {
        raw.send("220 ready\r\n").await;
        let line = raw.until(b"\n").await;
        raw.send(format!("250 {line}")).await;
    })
    .await;
    let sidecar = Loopback::start("orders", &format!("application: {app}\n")).await;
    let mut raw = Raw::connect(sidecar.inbound()).await;
    assert_eq!(raw.until(b"\n").await, "220 ready\r\n");
    raw.send("QUIT\r\n").await;
    assert_eq!(raw.rest().await, "250 QUIT\r\n");
    // The client may speak first, too, in words that are not HTTP.
    let sidecar = Loopback::start("orders", &format!("application: {}\n", echo().await)).await;
    let mut raw = Raw::connect(sidecar.inbound()).await;
    raw.send(b"\x00\x01binary").await;
    assert_eq!(raw.take(8).await, b"\x00\x01binary");
}

/// An HTTP/2 application: a body comes back with the head's fields, and trailers follow.
async fn grpc() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                while let Some(Ok((request, respond))) = connection.accept().await {
                    tokio::spawn(grpc_answer(request, respond));
                }
            });
        }
    });
    address
}

async fn grpc_answer(request: Request<h2::RecvStream>, mut respond: h2::server::SendResponse<Bytes>) {
    let (parts, mut body) = request.into_parts();
    let mut response = Response::new(());
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    let te = parts.headers.get("te").cloned().unwrap_or(HeaderValue::from_static("none"));
    response.headers_mut().insert("x-te", te);
    let mut send = respond.send_response(response, false).expect("an open stream");
    while let Some(data) = body.data().await {
        let data = data.expect("a body");
        let _ = body.flow_control().release_capacity(data.len());
        send.send_data(data, false).expect("an open stream");
    }
    let asked = body.trailers().await.expect("trailers");
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    trailers.extend(asked.unwrap_or_default());
    send.send_trailers(trailers).expect("an open stream");
}

async fn is_grpc(through: SocketAddr) {
    let stream = TcpStream::connect(through).await.expect("connected");
    let (mut client, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    let call = |host: &str| {
        let request = Request::post(format!("http://{host}/shop.Orders/Get"));
        request.header("content-type", "application/grpc").header("te", "trailers").body(()).expect("valid")
    };
    for _ in 0..3 {
        let (response, mut send) = client.send_request(call(HOST), false).expect("a stream");
        send.send_data(Bytes::from_static(b"\0\0\0\0\x05hello"), false).expect("sent");
        let response = response.await.expect("an answer, before the request's end");
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "application/grpc");
        let mut body = response.into_body();
        let data = body.data().await.expect("a message").expect("whole");
        assert_eq!(&data[..], b"\0\0\0\0\x05hello");
        let mut trailers = HeaderMap::new();
        trailers.insert("x-asked", HeaderValue::from_static("yes"));
        send.send_trailers(trailers).expect("sent");
        assert!(body.data().await.is_none());
        let trailers = body.trailers().await.expect("whole").expect("trailers");
        assert_eq!(
            (&trailers["grpc-status"], &trailers["x-asked"]),
            (&"0".parse().unwrap(), &"yes".parse().unwrap())
        );
    }
    let (response, _) = client.send_request(call("nobody.test"), true).expect("a stream");
    let response = response.await.expect("an answer");
    assert_eq!(response.status(), 200, "a gRPC client reads no other");
    assert_eq!(
        (&response.headers()["grpc-status"], &response.headers()["x-pannier-refused"]),
        (&"12".parse().unwrap(), &"route.none".parse().unwrap())
    );
}

#[tokio::test]
async fn grpc_with_prior_knowledge_passes_with_its_trailers() {
    let app = grpc().await;
    is_grpc(hop(app).await.outbound()).await;
    is_grpc(Pair::new(app).await.caller.outbound()).await;
}

#[tokio::test]
async fn large_bodies_pass_and_are_never_gathered() {
    const SIZE: u64 = 64 * MEBI;
    let app = listen(async |mut raw: Raw| {
        raw.head().await;
        raw.skip(SIZE).await;
        raw.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {SIZE}\r\n\r\n")).await;
        let piece = vec![b'y'; MEBI as usize];
        for _ in 0..SIZE / MEBI {
            raw.send(&piece).await;
        }
        raw.rest().await;
    })
    .await;
    let pair = Pair::new(app).await;
    let plain = hop(app).await;
    for caller in [&plain, &pair.caller] {
        let mut raw = Raw::connect(caller.outbound()).await;
        raw.send(format!("POST / HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: {SIZE}\r\n\r\n")).await;
        let piece = vec![b'x'; MEBI as usize];
        for _ in 0..SIZE / MEBI {
            raw.send(&piece).await;
        }
        let head = raw.head().await;
        assert!(head.contains(&format!("content-length: {SIZE}\r\n")), "{head}");
        raw.skip(SIZE).await;
    }
    for (name, sidecar) in [("plain", &plain), ("caller", &pair.caller), ("orders", &pair.orders)] {
        let peak = sidecar.peak_memory() / MEBI;
        println!("{name}: {peak} MiB at most");
        assert!(peak < 48, "{name} held {peak} MiB");
    }
}

#[tokio::test]
async fn a_slow_reader_slows_the_sender() {
    let read = Arc::new(Notify::new());
    let reading = read.clone();
    let app = listen(move |mut raw: Raw| {
        let reading = reading.clone();
        async move {
            raw.head().await;
            reading.notified().await;
            raw.skip(64 * MEBI).await;
            raw.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        }
    })
    .await;
    let pair = Pair::new(app).await;
    let mut raw = Raw::connect(pair.caller.outbound()).await;
    raw.send(format!("POST / HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: {}\r\n\r\n", 64 * MEBI)).await;
    let sent = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let count = sent.clone();
    let sending = tokio::spawn(async move {
        let piece = vec![b'x'; 64 << 10];
        for _ in 0..1024 {
            raw.send(&piece).await;
            count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
        raw.head().await
    });
    // Until nothing more is taken: the buffers of three kernels and two sidecars are full.
    let mut last = u64::MAX;
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let now = sent.load(std::sync::atomic::Ordering::Relaxed);
        if now == last {
            break;
        }
        last = now;
    }
    assert!(last < 1024, "all of it was taken, though nobody reads");
    read.notify_one();
    assert!(sending.await.expect("sent").starts_with("HTTP/1.1 200 "));
}
