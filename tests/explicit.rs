//! Without redirection, on loopback: what is found by its host instead of its address, what is
//! carried between two sidecars, and what an operator sees from outside.

mod support;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use support::client::{get, request, send};
use support::loopback::{HOST, Loopback, Pair, hop, run, upstream};
use support::raw::{Raw, Witness, listen};

const MEBI: u64 = 1 << 20;

/// Both ways to an application: one plain hop, and a pair. What has to hold, holds for both.
macro_rules! over_a_hop_and_a_pair {
    ($($name:ident)+) => {
        mod over_a_hop {
            $(#[tokio::test]
            async fn $name() {
                let app = super::$name::app().await;
                let caller = super::hop(app).await;
                super::$name::holds(super::Raw::connect(caller.outbound()).await).await;
            })+
        }

        mod over_a_pair {
            $(#[tokio::test]
            async fn $name() {
                let app = super::$name::app().await;
                let pair = super::Pair::new(app).await;
                super::$name::holds(super::Raw::connect(pair.caller.outbound()).await).await;
            })+
        }
    };
}

over_a_hop_and_a_pair! {
    events_come_as_they_are_sent
    an_answer_may_come_before_the_body_has_been_sent
    answers_without_a_body_have_none
    chunks_and_trailers_cross_both_ways
    clients_wait_for_100_continue
    pipelined_requests_are_answered_in_order
    http_1_0_is_served
}

mod events_come_as_they_are_sent {
    use super::*;

    pub(super) async fn app() -> SocketAddr {
        listen(async |mut raw: Raw| {
            raw.head().await;
            raw.send("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n").await;
            raw.send("transfer-encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n").await;
            // The second only once the first has arrived: the client says so with a request.
            raw.until(b"more").await;
            raw.send("9\r\ndata: 2\n\n\r\n0\r\n\r\n").await;
        })
        .await
    }

    pub(super) async fn holds(mut raw: Raw) {
        raw.send(format!("POST /events HTTP/1.1\r\nhost: {HOST}\r\ntransfer-encoding: chunked\r\n\r\n"))
            .await;
        assert!(raw.head().await.starts_with("HTTP/1.1 200 "));
        assert_eq!(raw.until(b"\n\n\r\n").await, "9\r\ndata: 1\n\n\r\n");
        raw.send("4\r\nmore\r\n0\r\n\r\n").await;
        assert_eq!(raw.chunked().await.0, b"data: 2\n\n");
    }
}

mod an_answer_may_come_before_the_body_has_been_sent {
    use super::*;

    pub(super) async fn app() -> SocketAddr {
        listen(async |mut raw: Raw| {
            raw.head().await;
            raw.send("HTTP/1.1 413 Content Too Large\r\ncontent-length: 3\r\n\r\nno!").await;
            raw.to_end().await;
        })
        .await
    }

    pub(super) async fn holds(mut raw: Raw) {
        raw.send(format!("POST / HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 1000000\r\n\r\n")).await;
        raw.send(vec![b'x'; 1000]).await;
        assert!(raw.head().await.starts_with("HTTP/1.1 413 "));
        assert_eq!(raw.take(3).await, b"no!");
    }
}

mod answers_without_a_body_have_none {
    use super::*;

    pub(super) async fn app() -> SocketAddr {
        listen(async |mut raw: Raw| {
            while let Some(head) = raw.next().await {
                raw.send(match head.split(' ').nth(1) {
                    Some("/204") => "HTTP/1.1 204 No Content\r\nx-app: 1\r\n\r\n",
                    Some("/304") => "HTTP/1.1 304 Not Modified\r\netag: \"1\"\r\ncontent-length: 5\r\n\r\n",
                    Some("/0") => "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
                    _ if head.starts_with("HEAD") => "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n",
                    _ => "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
                })
                .await;
            }
        })
        .await
    }

    pub(super) async fn holds(mut raw: Raw) {
        for (line, status, length) in [
            ("HEAD /", "200", Some("content-length: 5")),
            ("GET /204", "204", None),
            ("GET /304", "304", Some("content-length: 5")),
            ("GET /0", "200", Some("content-length: 0")),
            ("HEAD /", "200", Some("content-length: 5")),
        ] {
            raw.send(format!("{line} HTTP/1.1\r\nhost: {HOST}\r\n\r\n")).await;
            let head = raw.head().await;
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{line}: {head}");
            let announced = head.lines().find(|line| line.starts_with("content-length"));
            assert_eq!(announced, length, "{line}: {head}");
            assert!(!head.contains("transfer-encoding"), "{line}: {head}");
        }
        // Nothing was left between them.
        raw.send(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n")).await;
        assert!(raw.head().await.starts_with("HTTP/1.1 200 "));
        assert_eq!(raw.take(5).await, b"hello");
    }
}

mod chunks_and_trailers_cross_both_ways {
    use super::*;

    pub(super) async fn app() -> SocketAddr {
        listen(async |mut raw: Raw| {
            let head = raw.head().await;
            let (body, trailers) = raw.chunked().await;
            raw.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
            let told = format!("{head}{}|{trailers}", String::from_utf8_lossy(&body));
            raw.send(format!("{:x}\r\n{told}\r\n0\r\nx-sum: back\r\n\r\n", told.len())).await;
        })
        .await
    }

    pub(super) async fn holds(mut raw: Raw) {
        raw.send(format!("POST / HTTP/1.1\r\nhost: {HOST}\r\ntransfer-encoding: chunked\r\n\r\n")).await;
        raw.send("3;ext=1\r\nabc\r\n00002\r\nde\r\n0\r\nx-sum: there\r\n\r\n").await;
        raw.head().await;
        let (told, trailers) = raw.chunked().await;
        let told = String::from_utf8(told).expect("text");
        assert!(told.ends_with("abcde|x-sum: there\r\n"), "{told}");
        assert_eq!(trailers, "x-sum: back\r\n");
    }
}

mod clients_wait_for_100_continue {
    use super::*;

    pub(super) async fn app() -> SocketAddr {
        listen(async |mut raw: Raw| {
            let head = raw.head().await;
            assert!(head.to_ascii_lowercase().contains("expect: 100-continue"), "{head}");
            raw.send("HTTP/1.1 100 Continue\r\n\r\n").await;
            let body = raw.take(5).await;
            raw.send("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n").await;
            raw.send(body).await;
        })
        .await
    }

    pub(super) async fn holds(mut raw: Raw) {
        let head =
            format!("PUT / HTTP/1.1\r\nhost: {HOST}\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n");
        raw.send(head).await;
        assert!(raw.head().await.starts_with("HTTP/1.1 100 "));
        raw.send("hello").await;
        assert!(raw.head().await.starts_with("HTTP/1.1 200 "));
        assert_eq!(raw.take(5).await, b"hello");
    }
}

mod pipelined_requests_are_answered_in_order {
    use super::*;

    pub(super) async fn app() -> SocketAddr {
        listen(async |mut raw: Raw| {
            while let Some(head) = raw.next().await {
                let path = head.split(' ').nth(1).expect("a path").to_owned();
                let body = if head.starts_with("POST") { raw.take(4).await } else { Vec::new() };
                let told = format!("{path}{}", String::from_utf8_lossy(&body));
                raw.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{told}", told.len())).await;
            }
        })
        .await
    }

    pub(super) async fn holds(mut raw: Raw) {
        let get = |path| format!("GET {path} HTTP/1.1\r\nhost: {HOST}\r\n\r\n");
        let post = format!("POST /2 HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 4\r\n\r\nbody");
        raw.send(get("/1") + &post + &get("/3")).await;
        for told in ["/1", "/2body", "/3"] {
            assert!(raw.head().await.starts_with("HTTP/1.1 200 "));
            assert_eq!(String::from_utf8_lossy(&raw.take(told.len()).await), told);
        }
    }
}

mod http_1_0_is_served {
    use super::*;

    pub(super) async fn app() -> SocketAddr {
        listen(async |mut raw: Raw| {
            while raw.next().await.is_some() {
                raw.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
                    .await;
            }
        })
        .await
    }

    pub(super) async fn holds(mut raw: Raw) {
        raw.send(format!("GET / HTTP/1.0\r\nhost: {HOST}\r\nconnection: keep-alive\r\n\r\n")).await;
        // It knows no chunks, so the connection's end is the body's.
        let answer = raw.to_end().await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.ends_with("\r\n\r\nhello"), "{answer}");
        assert!(!answer.contains("transfer-encoding"), "{answer}");
    }
}

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
    assert_eq!(raw.to_end().await, "last", "one side's end is not the other's");

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
    assert_eq!(raw.to_end().await, "");
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
    assert_eq!(raw.to_end().await, "250 QUIT\r\n");
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
        raw.to_end().await;
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

#[tokio::test]
async fn the_operators_pages_show_everything_but_secrets() {
    let (_witness, app) = Witness::listen().await;
    let yaml = upstream(app, "")
        + "limits: [{ name: all, rate: 1000/s, scope: pod }]
redis: { url: \"redis://someone:hunter2@127.0.0.1:9\" }
";
    let sidecar = Loopback::start("caller", &yaml).await;
    get(sidecar.outbound(), HOST, "/").await.expect("an answer");
    let page = async |path: &str| sidecar.get(path).await.expect("a page");

    assert_eq!(page("/live").await.text(), "live\n");
    assert!(page("/ready").await.text().starts_with("ready\n"));
    let metrics = page("/metrics").await;
    assert!(metrics.field("content-type").expect("a type").starts_with("application/openmetrics-text"));
    assert!(metrics.text().ends_with("# EOF\n"));
    for series in ["pannier_requests_total{", "pannier_limit_admitted_total{limit=\"all\"} 1"] {
        assert!(metrics.text().contains(series), "no {series}");
    }
    let config = page("/config").await.json();
    assert_eq!((&config["generation"], &config["identity"]), (&1.into(), &serde_json::Value::Null));
    assert_eq!(config["bound"].as_array().expect("a list").len(), 5, "{config}");
    assert_eq!(config["config"]["upstreams"]["orders"]["address"], "orders.test:80");
    let upstreams = page("/upstreams").await.json();
    let endpoint = &upstreams["upstreams"][0]["endpoints"][0];
    assert_eq!((&endpoint["address"], &endpoint["in_flight"]), (&app.to_string().into(), &0.into()));
    let limits = page("/limits").await.json();
    assert_eq!((&limits["limits"][0]["name"], &limits["limits"][0]["admitted"]), (&"all".into(), &1.into()));

    for path in ["/config", "/limits", "/upstreams", "/metrics", "/ready"] {
        assert!(!page(path).await.text().contains("hunter2"), "{path} shows a password");
    }
    assert!(!sidecar.log().contains("hunter2"), "the log shows a password");
    assert_eq!(page("/nowhere").await.status, 404);
    let posted = send(sidecar.at("admin"), request("POST", "localhost", "/config", "")).await;
    assert_eq!(posted.expect("an answer").status, 405);
    let probes = sidecar.at("probes");
    for (path, status) in
        [("/live", 200), ("/ready", 200), ("/metrics", 200), ("/config", 404), ("/drain", 404)]
    {
        assert_eq!(get(probes, "localhost", path).await.expect("an answer").status, status, "{path}");
    }
}

fn file(dir: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = dir.path().join(name);
    std::fs::write(&path, text).expect("our own directory");
    path
}

/// Runs a command: its exit code, and what it said on stdout and stderr.
fn ran(args: &[&str]) -> (i32, String, String) {
    let output = run(args);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
    (output.status.code().expect("it exits"), text(&output.stdout), text(&output.stderr))
}

#[test]
fn check_explains_a_file_or_says_where_it_is_wrong() {
    let dir = TempDir::new().expect("a temporary directory");
    let check = |path: &Path| ran(&["check", path.to_str().expect("text")]);
    let good = "upstreams: { orders: { address: \"orders.test:80\" } }
limits: [{ name: all, rate: 10/s }]
";
    let (code, said, errors) = check(&file(&dir, "good.yaml", good));
    assert_eq!((code, errors.as_str()), (0, ""));
    for word in ["orders.test:80", "10/s", "valid"] {
        assert!(said.contains(word), "{said}");
    }
    assert_eq!(check(&file(&dir, "empty.yaml", "")).0, 0);

    let bad = "upstreams:
  orders: { adress: \"orders.test:80\" }
routes:
  - { host: a, upstream: ordres }
limits: [{ name: all, rate: fast }]
";
    let (code, said, errors) = check(&file(&dir, "bad.yaml", bad));
    assert_eq!((code, said.as_str()), (1, ""));
    for place in ["bad.yaml:2:", "bad.yaml:4:", "bad.yaml:5:"] {
        assert!(errors.contains(place), "all faults at once: {errors}");
    }
    assert!(errors.contains("adress") && errors.contains("ordres"), "{errors}");

    let (code, _, errors) = check(&dir.path().join("missing.yaml"));
    assert_eq!(code, 2);
    assert!(errors.contains("missing.yaml"), "{errors}");
}

#[test]
fn the_command_line_helps_and_its_exit_codes_tell() {
    let (code, said, _) = ran(&["--help"]);
    assert_eq!(code, 0);
    for word in ["proxy", "init", "check", "schema", "Exit codes"] {
        assert!(said.contains(word), "{said}");
    }
    for command in ["proxy", "init", "check", "schema"] {
        assert_eq!(ran(&[command, "--help"]).0, 0, "{command}");
    }
    assert!(ran(&["--version"]).1.contains(env!("CARGO_PKG_VERSION")));
    for wrong in [&[][..], &["prxy"], &["check"], &["proxy", "--confg", "x"]] {
        assert_eq!(ran(wrong).0, 2, "{wrong:?}");
    }
    let (code, said, _) = ran(&["schema"]);
    assert_eq!(code, 0);
    let schema: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    assert!(schema["properties"]["upstreams"].is_object(), "{schema}");

    let dir = TempDir::new().expect("a temporary directory");
    let bad = file(&dir, "bad.yaml", "listen: { outbund: 1 }\n");
    let (code, _, errors) = ran(&["proxy", "--config", bad.to_str().expect("text")]);
    assert_eq!(code, 1);
    assert!(errors.contains("bad.yaml:1:") && errors.contains("outbund"), "{errors}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("bound");
    let taken = file(&dir, "taken.yaml", &format!("listen: {{ outbound: \"{address}\" }}\n"));
    let (code, _, errors) = ran(&["proxy", "--config", taken.to_str().expect("text")]);
    assert_eq!(code, 1);
    assert!(errors.contains("listen.outbound") && errors.contains(&address.to_string()), "{errors}");
}
