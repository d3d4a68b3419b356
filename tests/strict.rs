//! One reading of every message or none, through the real binary: what an attacker would send,
//! from either side, byte by byte. Whatever is refused never reaches the other side.

mod support;

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;

use pannier::identity::Identity;
use pannier::tls::{Alpn, Carries, Peer, Tls, server_name};

use support::loopback::{HOST, Loopback, Pair, hop, upstream};
use support::raw::{Raw, Witness, listen};

/// What an application's clean request looks like, to see that the way is open.
const CLEAN: &str = "GET /clean HTTP/1.1\r\nHost: orders.test\r\n\r\n";

/// Sends bytes on a connection of their own, and gives all that comes back until it closes.
async fn answer(sidecar: &Loopback, bytes: &str) -> String {
    let mut raw = Raw::connect(sidecar.outbound()).await;
    raw.send(bytes).await;
    raw.rest().await
}

fn assert_refused(answer: &str, status: u16, reason: &str, request: &str) {
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}: {answer}");
    assert!(answer.contains(&format!("\r\nx-pannier-refused: {reason}\r\n")), "{request:?}: {answer}");
    assert!(answer.contains("\r\nconnection: close\r\n"), "{request:?}: {answer}");
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{request:?} has two answers: {answer}");
}

/// Requests that have more than one reading, or none. `{}` is their Host line.
const MALFORMED: &[&str] = &[
    // Framing.
    "POST / HTTP/1.1\r\n{}Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n",
    "POST / HTTP/1.1\r\n{}Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n",
    "POST / HTTP/1.0\r\n{}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n",
    "POST / HTTP/1.1\r\n{}Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "POST / HTTP/1.1\r\n{}Content-Length: 3\r\nContent-Length: 40\r\n\r\nabcGET /smuggled HTTP/1.1\r\n\r\n",
    "POST / HTTP/1.1\r\n{}Content-Length: 3, 3\r\n\r\nabc",
    "POST / HTTP/1.1\r\n{}Content-Length: +3\r\n\r\nabc",
    "POST / HTTP/1.1\r\n{}Content-Length: -3\r\n\r\nabc",
    "POST / HTTP/1.1\r\n{}Content-Length: 0x3\r\n\r\nabc",
    "POST / HTTP/1.1\r\n{}Content-Length:\r\n\r\n",
    "POST / HTTP/1.1\r\n{}Content-Length: 99999999999999999999\r\n\r\n",
    "POST / HTTP/1.1\r\n{}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\n{}Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    // Lines.
    "GET / HTTP/1.1\r\n{}X: 1\r\n folded\r\n\r\n",
    "GET / HTTP/1.1\r\n X: 1\r\n{}\r\n",
    "GET / HTTP/1.1\r\n{}X: 1\n\r\n",
    "GET / HTTP/1.1\n{}\n",
    "GET / HTTP/1.1\r\n{}X: 1\rSmuggled: 2\r\n\r\n",
    "GET / HTTP/1.1\r\n{}X: a\0b\r\n\r\n",
    "GET / HTTP/1.1\r\n{}X\0: a\r\n\r\n",
    "GET / HTTP/1.1\r\n{}: a\r\n\r\n",
    "GET / HTTP/1.1\r\n{}no colon\r\n\r\n",
    "GET / HTTP/1.1\r\n{}X: \x7f\r\n\r\n",
    // Host.
    "GET / HTTP/1.1\r\n\r\n",
    "GET / HTTP/1.1\r\n{}{}\r\n",
    "GET / HTTP/1.1\r\n{}Host: other.test\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: orders.test/x\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: u@orders.test\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: orders.test:99999\r\n\r\n",
    // Targets.
    "GET http://other.test/ HTTP/1.1\r\n{}\r\n",
    "GET https://orders.test/ HTTP/1.1\r\n{}\r\n",
    "GET http://u:p@orders.test/ HTTP/1.1\r\n{}\r\n",
    "GET /x#y HTTP/1.1\r\n{}\r\n",
    "GET x HTTP/1.1\r\n{}\r\n",
    "GET * HTTP/1.1\r\n{}\r\n",
    "GET /a b HTTP/1.1\r\n{}\r\n",
    "GET  / HTTP/1.1\r\n{}\r\n",
    "GET / http/1.1\r\n{}\r\n",
    "GET /\r\n{}\r\n",
    "CONNECT / HTTP/1.1\r\n{}\r\n",
    "CONNECT orders.test HTTP/1.1\r\n{}\r\n",
    // Connection may not take away what frames or routes.
    "GET / HTTP/1.1\r\n{}Connection: host\r\n\r\n",
    "POST / HTTP/1.1\r\n{}Connection: content-length\r\nContent-Length: 3\r\n\r\nabc",
];

#[tokio::test]
async fn requests_with_two_readings_are_refused() {
    let (witness, app) = Witness::listen().await;
    let caller = hop(app).await;
    for text in MALFORMED {
        let request = text.replace("{}", &format!("Host: {HOST}\r\n"));
        assert_refused(&answer(&caller, &request).await, 400, "http.malformed", &request);
        // After a clean one, too: the connection ends with it.
        let mut raw = Raw::connect(caller.outbound()).await;
        raw.send(CLEAN).await;
        assert!(raw.head().await.starts_with("HTTP/1.1 200 "));
        assert_eq!(raw.take(2).await, b"ok");
        raw.send(&request).await;
        assert_refused(&raw.rest().await, 400, "http.malformed", &request);
    }
    let seen = witness.seen();
    assert_eq!(seen.matches("http/1.1\r\n").count(), MALFORMED.len(), "more than the clean ones: {seen}");
    assert_eq!(seen.matches("get /clean ").count(), MALFORMED.len(), "{seen}");
}

#[tokio::test]
async fn what_is_not_carried_is_said_so() {
    let (witness, app) = Witness::listen().await;
    let caller = hop(app).await;
    let host = format!("Host: {HOST}\r\n");
    for (request, status, reason) in [
        (format!("GET / HTTP/2.0\r\n{host}\r\n"), 505, "http.version"),
        (format!("GET / HTTP/1.2\r\n{host}\r\n"), 505, "http.version"),
        (format!("GET / HTTP/0.9\r\n{host}\r\n"), 505, "http.version"),
        (
            format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: gzip, chunked\r\n\r\n"),
            501,
            "http.unsupported",
        ),
        (
            format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: chunked, identity\r\n\r\n"),
            501,
            "http.unsupported",
        ),
        (format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: xchunked\r\n\r\n"), 501, "http.unsupported"),
        (format!("GET / HTTP/1.1\r\n{host}{}\r\n", "X: 1\r\n".repeat(100)), 431, "http.head_too_large"),
        (format!("GET / HTTP/1.1\r\n{host}X: {}\r\n\r\n", "a".repeat(70_000)), 431, "http.head_too_large"),
        (format!("GET /{} HTTP/1.1\r\n{host}\r\n", "a".repeat(70_000)), 431, "http.head_too_large"),
    ] {
        let shown = &request[..request.len().min(100)];
        assert_refused(&answer(&caller, &request).await, status, reason, shown);
    }
    assert_eq!(witness.seen(), "", "the application was reached");
}

#[tokio::test]
async fn what_is_no_http_at_all_has_nowhere_to_go() {
    let (witness, app) = Witness::listen().await;
    let caller = hop(app).await;
    for bytes in ["G(T / HTTP/1.1\r\nHost: orders.test\r\n\r\n", "\0\0\0\r\n"] {
        assert_eq!(answer(&caller, bytes).await, "", "{bytes:?}");
    }
    assert_eq!(witness.seen(), "", "the application was reached");
}

#[tokio::test]
async fn a_broken_body_ends_the_connection_and_nothing_behind_it_passes() {
    let (witness, app) = Witness::listen().await;
    let caller = hop(app).await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: orders.test\r\n\r\n";
    let bodies = [
        "5 \r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "5\r\nhelloX0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
        "5;a=\0\r\nhello\r\n0\r\n\r\n",
        "0\r\nbad trailer\r\n\r\n",
    ];
    for body in bodies {
        let head = format!("POST /body HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n");
        let got = answer(&caller, &format!("{head}{body}{smuggled}")).await;
        // The application may have answered the head before the body turned out bad.
        assert!(got.matches("HTTP/1.1 ").count() <= 1, "{body:?} has two answers: {got}");
    }
    // A body that ends where its length says does not: the next request is one.
    let length = smuggled.len();
    let mut raw = Raw::connect(caller.outbound()).await;
    raw.send(format!("POST /sized HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {length}\r\n\r\n{smuggled}"))
        .await;
    raw.head().await;
    let seen = witness.seen();
    // Once, as the body that it is.
    assert_eq!(seen.matches("/smuggled").count(), 1, "{seen}");
    assert_eq!(seen.matches(&format!("content-length: {length}\r\n\r\nget /smuggled")).count(), 1, "{seen}");
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

#[tokio::test]
async fn answers_with_two_readings_are_not_passed_on() {
    let answers = [
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhello",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/1.1 099 No\r\n\r\n",
        "HTTP/2.0 200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\nContent-Length: 5\n\nhello",
        "HTTP/1.1 200 OK\r\nX : 1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: 1\r\n folded\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n",
        "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        "nonsense\r\n\r\n",
    ];
    // The request's path says which of them to give.
    let app = listen(move |mut raw: Raw| async move {
        let head = raw.head().await;
        let number = head.split(['/', ' ']).nth(2).and_then(|n| n.parse::<usize>().ok()).expect("a number");
        raw.send(answers[number]).await;
        raw.rest().await;
    })
    .await;
    let (caller, pair) = (hop(app).await, Pair::new(app).await);
    for (number, text) in answers.iter().enumerate() {
        for sidecar in [&caller, &pair.caller] {
            let mut raw = Raw::connect(sidecar.outbound()).await;
            raw.send(format!("GET /{number} HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
            let head = raw.head().await;
            assert!(head.starts_with("HTTP/1.1 502 "), "{text:?}: {head}");
        }
        let request = format!("GET /{number} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
        assert_refused(&answer(&caller, &request).await, 502, "upstream.malformed", text);
    }
}

#[tokio::test]
async fn half_an_answer_is_not_taken_for_a_whole_one() {
    let app = listen(async |mut raw: Raw| {
        let head = raw.head().await;
        raw.send(match head.split(' ').nth(1) {
            Some("/sized") => "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
            Some("/chunked") => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
            _ => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nzz\r\n0\r\n\r\n",
        })
        .await;
    })
    .await;
    let (caller, pair) = (hop(app).await, Pair::new(app).await);
    for sidecar in [&caller, &pair.caller] {
        for path in ["/sized", "/chunked", "/broken"] {
            let request = format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
            let got = answer(sidecar, &request).await;
            assert!(!got.ends_with("0\r\n\r\n"), "{path}: it looks whole: {got}");
            assert!(
                path != "/sized" || !got.contains("200 OK") || got.contains("content-length: 100"),
                "{got}"
            );
            assert!(got.matches("HTTP/1.1 ").count() <= 1, "{path}: {got}");
        }
    }
}

#[tokio::test]
async fn an_answer_nobody_asked_for_goes_to_nobody() {
    let app = listen(async |mut raw: Raw| {
        while raw.next().await.is_some() {
            let first = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirst";
            raw.send(format!("{first}HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")).await;
        }
    })
    .await;
    let caller = hop(app).await;
    let mut raw = Raw::connect(caller.outbound()).await;
    for _ in 0..5 {
        raw.send(CLEAN).await;
        raw.head().await;
        assert_eq!(raw.take(5).await, b"first");
    }
}

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
        for field in ["x-pannier-", "x-hop", "keep-alive", "proxy-connection", "upgrade", "http2-settings"] {
            assert!(!head.contains(field), "{field}: {head}");
        }
        let (body, trailers) = raw.chunked().await;
        assert_eq!((&body[..], trailers.to_ascii_lowercase().as_str()), (&b"x"[..], "x-trailer: kept\r\n"));
    }
}

/// An HTTP/2 frame (RFC 9113 section 4.1).
fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
}

/// A field block of literals (RFC 7541 section 6.2.2), which no encoder has looked at.
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).expect("short")], text.as_bytes()].concat();
    fields.iter().flat_map(|(name, value)| [vec![0], text(name), text(value)].concat()).collect()
}

/// Sends one request in frames of our own. What came first: the status' byte of the answer's
/// field block, or none where the stream or the connection was reset.
async fn h2_answer(mut io: impl AsyncRead + AsyncWrite + Unpin, fields: &[(&str, &str)]) -> Option<u8> {
    const END: u8 = 0x5;
    let settings = frame(4, 0, 0, &[]);
    let bytes =
        [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &settings, &frame(1, END, 1, &block(fields))].concat();
    io.write_all(&bytes).await.expect("sent");
    let answer = async {
        loop {
            let mut head = [0; 9];
            if io.read_exact(&mut head).await.is_err() {
                return None;
            }
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let mut payload = vec![0; length];
            io.read_exact(&mut payload).await.ok()?;
            match head[3] {
                // A change of the table's size may stand first.
                1 => return payload.into_iter().find(|byte| byte & 0xe0 != 0x20),
                3 | 7 => return None,
                _ => {}
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), answer).await.expect("an answer in time")
}

/// `:status` of 200 and 400, by their places in the static table (RFC 7541 appendix A).
const OK: u8 = 0x80 | 8;
const BAD_REQUEST: u8 = 0x80 | 12;

/// Requests whose fields would be other lines in HTTP/1, or say two things, in HTTP/2.
const MALFORMED_H2: &[&[(&str, &str)]] = &[
    &[(":path", "/"), (":authority", HOST), ("host", "other.test")],
    &[(":path", "/"), (":authority", "u@orders.test")],
    &[(":path", "/"), (":authority", HOST), ("connection", "close")],
    &[(":path", "/"), (":authority", HOST), ("transfer-encoding", "chunked")],
    &[(":path", "/"), (":authority", HOST), ("upgrade", "h2c")],
    &[(":path", "/"), (":authority", HOST), ("te", "gzip")],
    &[(":path", "/"), (":authority", HOST), ("x", "1\r\nsmuggled: 1")],
    &[(":path", "/"), (":authority", HOST), ("x", "1\nsmuggled: 1")],
    &[(":path", "/"), (":authority", HOST), ("x", "1\0smuggled")],
    &[(":path", "/"), (":authority", HOST), ("x\r\nsmuggled", "1")],
    &[(":path", "/"), (":authority", HOST), ("x: smuggled", "1")],
    &[(":path", "/"), (":authority", HOST), ("X-Smuggled", "1")],
    &[(":path", "/"), (":authority", "orders.test\r\nsmuggled: 1")],
    &[(":path", "/ HTTP/1.1\r\nsmuggled: 1\r\n\r\nGET /smuggled"), (":authority", HOST)],
    &[(":path", "/smuggled HTTP/1.1"), (":authority", HOST)],
    &[(":path", "smuggled"), (":authority", HOST)],
    &[(":path", ""), (":authority", HOST)],
    &[(":authority", HOST)],
    &[(":path", "/"), (":path", "/smuggled"), (":authority", HOST)],
    &[(":path", "/"), (":authority", HOST), ("x", "1"), (":method", "SMUGGLED")],
    &[(":path", "/"), (":authority", HOST), (":smuggled", "1")],
    &[(":path", "/"), (":authority", HOST), ("content-length", "1"), ("content-length", "2")],
    &[(":path", "/"), (":authority", HOST), ("content-length", "smuggled")],
];

#[tokio::test]
async fn http_2_between_sidecars_smuggles_nothing_into_http_1() {
    let (witness, app) = Witness::listen().await;
    let pair = Pair::new(app).await;
    let identity = Identity::load(pair.identity.paths());
    let tls = Tls::new(&identity.expect("an identity"));
    let orders = Peer::TrustDomain("cluster.local".into());
    let mut config = ClientConfig::clone(&tls.client(&orders, Carries::Requests));
    config.alpn_protocols = vec![Alpn::H2.name().to_vec()];
    let connector = TlsConnector::from(Arc::new(config));
    // A peer of the mesh that is not one of ours.
    let rogue = async |fields: &[(&str, &str)]| {
        let to = pair.orders.inbound();
        let stream = TcpStream::connect(to).await.expect("connected");
        let stream = connector.connect(server_name(to.ip()), stream).await.expect("mTLS");
        h2_answer(stream, &[&[(":method", "GET"), (":scheme", "http")], fields].concat()).await
    };
    for fields in MALFORMED_H2 {
        let status = rogue(fields).await;
        assert!(matches!(status, None | Some(BAD_REQUEST)), "{fields:?} is answered with {status:?}");
    }
    assert_eq!(witness.seen(), "", "the application was reached");
    let clean = [(":path", "/clean"), (":authority", HOST), ("x-kept", "kept"), ("x-pannier-stolen", "1")];
    let stolen = [("x-forwarded-client-cert", "URI=spiffe://stolen")];
    assert_eq!(rogue(&[&clean[..], &stolen].concat()).await, Some(OK));
    let seen = witness.seen();
    assert!(seen.starts_with("get /clean http/1.1\r\n") && seen.contains("x-kept: kept\r\n"), "{seen}");
    assert!(!seen.contains("stolen"), "{seen}");
    assert!(
        seen.contains("x-forwarded-client-cert: uri=spiffe://cluster.local/ns/shop/sa/caller\r\n"),
        "{seen}"
    );
}

#[tokio::test]
async fn http_2_of_an_application_is_read_as_strictly() {
    let (witness, app) = Witness::listen().await;
    let caller = hop(app).await;
    for fields in MALFORMED_H2 {
        let stream = TcpStream::connect(caller.outbound()).await.expect("connected");
        let status = h2_answer(stream, &[&[(":method", "GET"), (":scheme", "http")], *fields].concat()).await;
        assert!(matches!(status, None | Some(BAD_REQUEST)), "{fields:?} is answered with {status:?}");
    }
    assert_eq!(witness.seen(), "", "the application was reached");
}

#[tokio::test]
async fn a_heads_bound_is_the_same_however_it_is_cut() {
    let (witness, app) = Witness::listen().await;
    let bound = "http: { max_header_bytes: 4KiB }\n";
    let caller = Loopback::start("caller", &format!("{}{bound}", upstream(app, ""))).await;
    let head = |size: usize| {
        let start = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nX-Fill: ");
        format!("{start}{}\r\n\r\n", "a".repeat(size - start.len() - 4))
    };
    assert!(answer(&caller, &head(4096 + 1)).await.starts_with("HTTP/1.1 431 "));
    assert_eq!(witness.seen(), "", "the application was reached");
}
