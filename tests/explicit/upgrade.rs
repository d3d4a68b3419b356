//! Upgrades (RFC 9110 section 7.8): a WebSocket from the application to its peer, and what may not
//! pass as one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Empty;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use crate::support::loopback::{HOST, Pair, hop};
use crate::support::raw::{Raw, Witness, listen};

crate::over_a_hop_and_a_pair! { upgrade:
    nothing_passes_before_the_switch_and_everything_after_it
    each_side_ends_by_itself
    a_client_that_is_lost_did_not_end
    a_server_that_is_lost_did_not_end
    another_answer_is_an_ordinary_one
    a_method_other_than_get_may_upgrade
}

const ASK: &str = "connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    sec-websocket-version: 13\r\n\r\n";
const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// Long enough for bytes that should not come.
const A_WHILE: Duration = Duration::from_millis(200);

fn ask() -> String {
    format!("GET /chat HTTP/1.1\r\nhost: {HOST}\r\n{ASK}")
}

/// An application that switches, and goes on with `then`.
async fn switching<F: Future<Output = ()> + Send>(
    then: impl Fn(Raw) -> F + Copy + Send + Sync + 'static,
) -> SocketAddr {
    listen(move |mut raw: Raw| async move {
        raw.head().await;
        raw.send(SWITCH).await;
        then(raw).await;
    })
    .await
}

/// A client that has asked, and was answered.
async fn switched(raw: &mut Raw) {
    raw.send(ask()).await;
    let head = raw.head().await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
}

mod nothing_passes_before_the_switch_and_everything_after_it {
    use super::*;

    pub(super) async fn app() -> SocketAddr {
        listen(async |mut raw: Raw| {
            let head = raw.head().await.to_ascii_lowercase();
            assert_eq!(head.matches("connection: upgrade\r\n").count(), 1, "{head}");
            assert_eq!(head.matches("upgrade: websocket\r\n").count(), 1, "{head}");
            assert!(head.contains("sec-websocket-key: dghlihnhbxbszsbub25jzq==\r\n"), "{head}");
            assert!(!head.contains("x-pannier-") && !head.contains("content-length"), "{head}");
            assert!(!head.contains("transfer-encoding"), "{head}");
            // CVE-2026-73548, RUSTSEC-2026-0033.
            assert!(raw.is_silent_for(A_WHILE).await, "bytes came before the switch");
            raw.send(format!("{SWITCH}hello")).await;
            assert_eq!(raw.take(5).await, b"early");
            raw.send("heard").await;
            assert_eq!(raw.take(3).await, b"\0\r\n");
        })
        .await
    }

    pub(super) async fn holds(mut raw: Raw) {
        raw.send(ask() + "early").await;
        let head = raw.head().await.to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 101 switching protocols\r\n"), "{head}");
        assert_eq!(head.matches("connection: upgrade\r\n").count(), 1, "{head}");
        assert_eq!(head.matches("upgrade: websocket\r\n").count(), 1, "{head}");
        assert!(head.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n"), "{head}");
        assert!(!head.contains("content-length") && !head.contains("transfer-encoding"), "{head}");
        assert!(!head.contains("x-pannier-"), "{head}");
        assert_eq!(raw.take(10).await, b"helloheard");
        raw.send("\0\r\n").await;
        assert_eq!(raw.rest().await, "");
    }
}

mod each_side_ends_by_itself {
    use super::*;

    pub(super) async fn app() -> SocketAddr {
        switching(async |mut raw: Raw| {
            // The first connection ends from the client, the second from here.
            let first = raw.take(1).await == b"1";
            if first {
                assert_eq!(raw.rest().await, "the end");
                raw.send("but not mine").await;
            } else {
                raw.send("the end").await;
                raw.finish().await;
                assert_eq!(raw.rest().await, "but not mine");
            }
        })
        .await
    }

    pub(super) async fn holds(mut raw: Raw) {
        let through = raw.peer();
        switched(&mut raw).await;
        raw.send("1the end").await;
        raw.finish().await;
        assert_eq!(raw.rest().await, "but not mine");

        let mut raw = Raw::connect(through).await;
        switched(&mut raw).await;
        raw.send("2").await;
        assert_eq!(raw.rest().await, "the end");
        raw.send("but not mine").await;
        raw.finish().await;
        assert_eq!(raw.rest().await, "");
    }
}

mod a_server_that_is_lost_did_not_end {
    use super::*;

    pub(super) async fn app() -> SocketAddr {
        switching(async |mut raw: Raw| {
            raw.take(2).await;
            raw.reset();
        })
        .await
    }

    pub(super) async fn holds(mut raw: Raw) {
        switched(&mut raw).await;
        raw.send("go").await;
        assert!(raw.is_reset().await, "it looks like an end");
    }
}

mod a_client_that_is_lost_did_not_end {
    use super::*;

    pub(super) async fn app() -> SocketAddr {
        let seen = Arc::new(std::sync::Mutex::new(None));
        listen(move |mut raw: Raw| {
            let seen = seen.clone();
            async move {
                let head = raw.head().await;
                raw.send(SWITCH).await;
                if head.starts_with("GET /chat") {
                    raw.take(2).await;
                    let reset = raw.is_reset().await;
                    *seen.lock().expect("not poisoned") = Some(reset);
                    return;
                }
                // The second asks what became of the first.
                loop {
                    let told = *seen.lock().expect("not poisoned");
                    match told {
                        Some(reset) => return raw.send(if reset { "reset" } else { "ended" }).await,
                        None => tokio::time::sleep(Duration::from_millis(10)).await,
                    }
                }
            }
        })
        .await
    }

    pub(super) async fn holds(mut raw: Raw) {
        let through = raw.peer();
        switched(&mut raw).await;
        raw.send("go").await;
        tokio::time::sleep(A_WHILE).await;
        raw.reset();
        let mut raw = Raw::connect(through).await;
        raw.send(format!("GET /told HTTP/1.1\r\nhost: {HOST}\r\n{ASK}")).await;
        raw.head().await;
        assert_eq!(raw.rest().await, "reset");
    }
}

mod another_answer_is_an_ordinary_one {
    use super::*;

    pub(super) async fn app() -> SocketAddr {
        listen(async |mut raw: Raw| {
            while let Some(head) = raw.next().await {
                let ok = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                let required = "HTTP/1.1 426 Upgrade Required\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
                    Sec-WebSocket-Version: 13\r\nContent-Length: 0\r\n\r\n";
                raw.send(if head.contains("/426") { required } else { ok }).await;
            }
        })
        .await
    }

    pub(super) async fn holds(mut raw: Raw) {
        // What is sent behind it is the next request, as it is for the application.
        let next = format!("GET /next HTTP/1.1\r\nhost: {HOST}\r\n\r\n");
        raw.send(ask() + &next).await;
        for _ in 0..2 {
            let head = raw.head().await;
            assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
            assert!(!head.to_ascii_lowercase().contains("upgrade"), "{head}");
            assert_eq!(raw.take(2).await, b"ok");
        }
        raw.send(ask().replace("/chat", "/426")).await;
        let head = raw.head().await.to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 426 "), "{head}");
        assert!(head.contains("sec-websocket-version: 13\r\n"), "{head}");
        raw.send(&next).await;
        assert!(raw.head().await.starts_with("HTTP/1.1 200 "));
    }
}

mod a_method_other_than_get_may_upgrade {
    use super::*;

    pub(super) async fn app() -> SocketAddr {
        listen(async |mut raw: Raw| {
            let head = raw.head().await;
            assert!(head.starts_with("POST /exec?command=sh HTTP/1.1\r\n"), "{head}");
            assert!(head.to_ascii_lowercase().contains("\r\nupgrade: spdy/3.1\r\n"), "{head}");
            let switch =
                "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n";
            raw.send(switch).await;
            let said = raw.take(5).await;
            raw.send(said).await;
        })
        .await
    }

    pub(super) async fn holds(mut raw: Raw) {
        let fields = "connection: upgrade\r\nupgrade: SPDY/3.1\r\ncontent-length: 0\r\n";
        raw.send(format!("POST /exec?command=sh HTTP/1.1\r\nhost: {HOST}\r\n{fields}\r\n")).await;
        assert!(raw.head().await.starts_with("HTTP/1.1 101 "));
        raw.send("shell").await;
        assert_eq!(raw.rest().await, "shell");
    }
}

#[tokio::test]
async fn what_may_not_be_upgraded_is_an_ordinary_request() {
    let (witness, app) = Witness::listen().await;
    let (plain, pair) = (hop(app).await, Pair::new(app).await);
    let asks = [
        "connection: upgrade\r\nupgrade: h2c\r\n",
        "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n",
        "connection: upgrade\r\nupgrade: websocket, h2c\r\n",
        "connection: upgrade\r\nupgrade: H2C,websocket\r\n",
        "connection: upgrade\r\nupgrade: websocket\r\nupgrade: h2c\r\n",
        "connection: upgrade\r\nupgrade: h2c\r\nupgrade: websocket\r\n",
        "connection: upgrade\r\nupgrade: TLS/1.2\r\n",
        "connection: upgrade\r\nupgrade: HTTP/2.0\r\n",
        "connection: upgrade\r\nupgrade:\r\n",
        "connection: upgrade\r\nupgrade: web socket\r\n",
        "upgrade: websocket\r\n",
        "connection: keep-alive\r\nupgrade: websocket\r\n",
        "connection: upgrade\r\n",
        // A body would have to end before the switch, which only its sender can know.
        "connection: upgrade\r\nupgrade: websocket\r\ncontent-length: 2\r\n",
    ];
    for sidecar in [&plain, &pair.caller] {
        for ask in asks {
            let mut raw = Raw::connect(sidecar.outbound()).await;
            let body = if ask.contains("content-length") { "hi" } else { "" };
            raw.send(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n{ask}\r\n{body}")).await;
            assert!(raw.head().await.starts_with("HTTP/1.1 200 "), "{ask}");
            assert_eq!(raw.take(2).await, b"ok");
        }
        let mut raw = Raw::connect(sidecar.outbound()).await;
        raw.send(format!("GET / HTTP/1.0\r\nhost: {HOST}\r\n{ASK}")).await;
        assert!(raw.rest().await.starts_with("HTTP/1.1 200 "));
    }
    let seen = witness.seen();
    assert_eq!(seen.matches("get / http/1.1\r\n").count(), 2 * (asks.len() + 1), "{seen}");
    for field in ["upgrade", "http2-settings", "h2c"] {
        assert!(!seen.contains(field), "{field}: {seen}");
    }
}

#[tokio::test]
async fn a_switch_to_something_else_is_no_answer() {
    let answers = [
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket, h2c\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
        "HTTP/1.0 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
         Transfer-Encoding: chunked\r\n\r\n",
    ];
    let app = listen(move |mut raw: Raw| async move {
        let head = raw.head().await;
        let number = head.split(['/', ' ']).nth(2).and_then(|n| n.parse::<usize>().ok()).expect("a number");
        raw.send(answers[number]).await;
        assert_eq!(raw.rest().await, "", "bytes of the client came after a switch that was refused");
    })
    .await;
    let (plain, pair) = (hop(app).await, Pair::new(app).await);
    for (number, text) in answers.iter().enumerate() {
        for sidecar in [&plain, &pair.caller] {
            let mut raw = Raw::connect(sidecar.outbound()).await;
            raw.send(format!("GET /{number} HTTP/1.1\r\nhost: {HOST}\r\n{ASK}")).await;
            let head = raw.head().await;
            assert!(head.starts_with("HTTP/1.1 502 "), "{text}: {head}");
        }
    }
    let refused = [r#"reason="upstream.malformed""#];
    assert_eq!(plain.metric("pannier_refused_total", &refused).await, answers.len() as f64);
}

#[tokio::test]
async fn a_tunnel_is_counted_while_it_is_open() {
    let app = switching(async |mut raw: Raw| {
        raw.take(10).await;
        raw.send("twenty-one bytes back").await;
        raw.rest().await;
    })
    .await;
    let pair = Pair::new(app).await;
    let mut raw = Raw::connect(pair.caller.outbound()).await;
    switched(&mut raw).await;
    raw.send("ten bytes!").await;
    assert_eq!(raw.take(21).await, b"twenty-one bytes back");
    for (sidecar, upstream) in
        [(&pair.caller, r#"upstream="orders""#), (&pair.orders, r#"upstream="application""#)]
    {
        let labels = [upstream];
        sidecar.until_metric("pannier_tcp_open", &labels, 1.0).await;
        sidecar.until_metric("pannier_tcp_sent_bytes_total", &labels, 10.0).await;
        sidecar.until_metric("pannier_tcp_received_bytes_total", &labels, 21.0).await;
        let switched = [upstream, r#"code="1xx""#];
        assert_eq!(sidecar.metric("pannier_requests_total", &switched).await, 1.0);
    }
    drop(raw);
    pair.caller.until_metric("pannier_tcp_open", &[r#"upstream="orders""#], 0.0).await;
    pair.orders.until_metric("pannier_tcp_open", &[r#"upstream="application""#], 0.0).await;
}

#[tokio::test]
async fn an_end_waits_for_a_tunnel() {
    let app = switching(async |mut raw: Raw| {
        while let Some(line) = raw.line().await {
            raw.send(line).await;
        }
    })
    .await;
    let drain = "drain: { accept: 0s, timeout: 30s }\n";
    let mut pair = Pair::with(app, drain, drain).await;
    let mut raw = Raw::connect(pair.caller.outbound()).await;
    switched(&mut raw).await;
    for _ in 0..3 {
        raw.send("still here\n").await;
        assert_eq!(raw.until(b"\n").await, "still here\n");
        // Whose application stays, and whose is seen by the tunnel alone.
        pair.orders.post("/quit").await;
        pair.caller.post("/drain").await;
        tokio::time::sleep(A_WHILE).await;
    }
    for sidecar in [&mut pair.orders, &mut pair.caller] {
        assert!(sidecar.process().ended().is_none(), "it left with a tunnel open");
    }
    raw.finish().await;
    assert_eq!(raw.rest().await, "");
    for sidecar in [&mut pair.orders, &mut pair.caller] {
        assert!(sidecar.process().wait(Duration::from_secs(10)).success());
        assert!(sidecar.log().contains("nothing is in flight"), "it ran out of time");
    }
}

/// A real client and a real server, as applications have them: hyper's.
#[tokio::test]
async fn an_upgraded_connection_carries_much_both_ways_at_once() {
    const SIZE: usize = 16 << 20;
    let (plain, pair) = (hop(upgrading().await).await, Pair::new(upgrading().await).await);
    for sidecar in [&plain, &pair.caller] {
        let stream = TcpStream::connect(sidecar.outbound()).await.expect("connected");
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP/1");
        tokio::spawn(connection.with_upgrades());
        let request = Request::get("/chat").header("host", HOST).header("connection", "upgrade");
        let request = request.header("upgrade", "echo").body(Empty::<bytes::Bytes>::new()).expect("valid");
        let response = sender.send_request(request).await.expect("an answer");
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        let upgraded = TokioIo::new(hyper::upgrade::on(response).await.expect("an upgrade"));
        let (mut read, mut write) = tokio::io::split(upgraded);
        let pattern = |n: usize| (n.wrapping_mul(2_654_435_761) >> 7) as u8;
        let sending = tokio::spawn(async move {
            let all: Vec<u8> = (0..SIZE).map(pattern).collect();
            for piece in all.chunks(10_007) {
                write.write_all(piece).await.expect("sent");
            }
            write.shutdown().await.expect("ended");
        });
        let mut all = Vec::with_capacity(SIZE);
        read.read_to_end(&mut all).await.expect("read");
        sending.await.expect("sent");
        assert_eq!(all.len(), SIZE);
        assert!(all.iter().enumerate().all(|(n, byte)| *byte == pattern(n)), "bytes were changed");
    }
    for sidecar in [&plain, &pair.caller, &pair.orders] {
        assert!(sidecar.peak_memory() < 48 << 20, "it was gathered");
    }
}

/// Switches to a protocol that echoes.
async fn upgrading() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(async |mut request: Request<hyper::body::Incoming>| {
                tokio::spawn(async move {
                    let upgraded = hyper::upgrade::on(&mut request).await.expect("an upgrade");
                    let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded));
                    tokio::io::copy(&mut read, &mut write).await.expect("echoed");
                    write.shutdown().await.expect("ended");
                });
                let response = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
                response
                    .header("connection", "upgrade")
                    .header("upgrade", "echo")
                    .body(Empty::<bytes::Bytes>::new())
            });
            let server = hyper::server::conn::http1::Builder::new();
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service).with_upgrades());
        }
    });
    address
}

/// A client that reads nothing keeps the server from sending.
#[tokio::test]
async fn a_slow_reader_of_a_tunnel_slows_the_sender() {
    const PIECE: usize = 64 << 10;
    let stalled = Arc::new(Notify::new());
    let tell = stalled.clone();
    let app = listen(move |mut raw: Raw| {
        let tell = tell.clone();
        async move {
            raw.head().await;
            raw.send(SWITCH).await;
            let sent = raw.send_until_stuck(&[b'x'; PIECE], A_WHILE * 5).await;
            assert!(sent < 32 << 20, "{sent} bytes were taken, though nobody reads");
            tell.notify_one();
            raw.rest().await;
        }
    })
    .await;
    let (plain, pair) = (hop(app).await, Pair::new(app).await);
    for sidecar in [&plain, &pair.caller] {
        let mut raw = Raw::connect(sidecar.outbound()).await;
        raw.send(ask()).await;
        stalled.notified().await;
    }
    for sidecar in [&plain, &pair.caller, &pair.orders] {
        assert!(sidecar.peak_memory() < 48 << 20, "it was gathered");
    }
}
