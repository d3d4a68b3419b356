//! Requests of HTTP/1 with two readings, or none.

use super::support::loopback::{HOST, Loopback, Pair, hop};
use super::support::raw::{Raw, Witness, listen};
use super::{CLEAN, answer, assert_refused};

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
    "POST / HTTP/1.1\r\n{}Content-Length: 3 4\r\n\r\nabc",
    "POST / HTTP/1.1\r\n{}Content-Length: \x0b3\r\n\r\nabc",
    "POST / HTTP/1.1\r\n{}Content-Length: 3.0\r\n\r\nabc",
    "POST / HTTP/1.1\r\n{}Content-Length: 3_0\r\n\r\nabc",
    "POST / HTTP/1.1\r\n{}Content-Length : 3\r\n\r\nabc",
    "TRACE / HTTP/1.1\r\n{}Content-Length: 3\r\n\r\nabc",
    "TRACE / HTTP/1.1\r\n{}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\n{}Content-Length: 99999999999999999999\r\n\r\n",
    "POST / HTTP/1.1\r\n{}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\n{}Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    // Lines.
    "GET / HTTP/1.1\r\n{}X: 1\r\n folded\r\n\r\n",
    "GET / HTTP/1.1\r\n X: 1\r\n{}\r\n",
    "GET / HTTP/1.1\r\n\t{}\r\n",
    "GET / HTTP/1.1\r\n{}X: 1\r\n\tfolded\r\n\r\n",
    "GET / HTTP/1.1\r\n{}X\t: 1\r\n\r\n",
    "GET / HTTP/1.1\r\n{}X: 1\r\n\n",
    "GET / HTTP/1.1\r\n{}X: 1\r\r\n\r\n",
    "GET / HTTP/1.1\r\n{}X: 1\n\n",
    "GET / HTTP/1.1\r\r\n{}\r\n",
    "GET / HTTP/1.1 \r\n{}\r\n",
    "\nGET / HTTP/1.1\r\n{}\r\n",
    "GET / HTTP/1.1\r\n{}X\u{fc}: 1\r\n\r\n",
    "GET / HTTP/1.1\r\n{}(X): 1\r\n\r\n",
    "GET / HTTP/1.1\r\n{}\"X\": 1\r\n\r\n",
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
    "GET / HTTP/1.1\r\nHost:\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: :80\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: orders.test:\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: orders.test:0\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: orders.test:+80\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: orders.test:80:80\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: orders.test, orders.test\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: orders%2etest\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: [orders.test]\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: orders.test#\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: orders.test\\x\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: \"orders.test\"\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: http://orders.test\r\n\r\n",
    // Targets.
    "GET http://other.test/ HTTP/1.1\r\n{}\r\n",
    "GET https://orders.test/ HTTP/1.1\r\n{}\r\n",
    "GET http://u:p@orders.test/ HTTP/1.1\r\n{}\r\n",
    "GET /x#y HTTP/1.1\r\n{}\r\n",
    "GET x HTTP/1.1\r\n{}\r\n",
    "GET * HTTP/1.1\r\n{}\r\n",
    "GET /a b HTTP/1.1\r\n{}\r\n",
    "GET  / HTTP/1.1\r\n{}\r\n",
    "GET /  HTTP/1.1\r\n{}\r\n",
    "GET\t/ HTTP/1.1\r\n{}\r\n",
    "GET /\tHTTP/1.1\r\n{}\r\n",
    "GET /\u{fc} HTTP/1.1\r\n{}\r\n",
    "GET /?\u{fc} HTTP/1.1\r\n{}\r\n",
    "GET /\x7f HTTP/1.1\r\n{}\r\n",
    "GET /\0 HTTP/1.1\r\n{}\r\n",
    "GET /% HTTP/1.1\r\n{}\r\n",
    "GET /%4 HTTP/1.1\r\n{}\r\n",
    "GET /%zz HTTP/1.1\r\n{}\r\n",
    "GET ?x HTTP/1.1\r\n{}\r\n",
    "GET http:// HTTP/1.1\r\n{}\r\n",
    "GET http:///x HTTP/1.1\r\n{}\r\n",
    "GET http://orders.test:81/ HTTP/1.1\r\n{}\r\n",
    "GET http://orders.test/x#y HTTP/1.1\r\n{}\r\n",
    "GET http:/orders.test/ HTTP/1.1\r\n{}\r\n",
    "GET ftp://orders.test/ HTTP/1.1\r\n{}\r\n",
    "GET orders.test:80 HTTP/1.1\r\n{}\r\n",
    "OPTIONS ** HTTP/1.1\r\n{}\r\n",
    "GET / HTTP/11\r\n{}\r\n",
    "GET / HTTP/1.10\r\n{}\r\n",
    "GET / HTTP/01.1\r\n{}\r\n",
    "GET / HTTPS/1.1\r\n{}\r\n",
    "GET / http/1.1\r\n{}\r\n",
    "GET /\r\n{}\r\n",
    "CONNECT / HTTP/1.1\r\n{}\r\n",
    "CONNECT orders.test HTTP/1.1\r\n{}\r\n",
    "CONNECT http://orders.test/ HTTP/1.1\r\n{}\r\n",
    "CONNECT orders.test:0 HTTP/1.1\r\n{}\r\n",
    "CONNECT u@orders.test:80 HTTP/1.1\r\n{}\r\n",
    "CONNECT orders.test:80/ HTTP/1.1\r\n{}\r\n",
    "CONNECT other.test:80 HTTP/1.1\r\n{}\r\n",
    "CONNECT orders.test:80 HTTP/1.1\r\n{}Content-Length: 3\r\n\r\nabc",
    "CONNECT orders.test:80 HTTP/1.1\r\n{}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    // Connection may not take away what frames or routes.
    "GET / HTTP/1.1\r\n{}Connection: host\r\n\r\n",
    "POST / HTTP/1.1\r\n{}Connection: content-length\r\nContent-Length: 3\r\n\r\nabc",
    "POST / HTTP/1.1\r\n{}Connection: close, Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "GET / HTTP/1.1\r\n{}Connection: Cookie\r\nCookie: a\r\n\r\n",
    "GET / HTTP/1.1\r\n{}Connection: authorization\r\nAuthorization: a\r\n\r\n",
    "GET / HTTP/1.1\r\n{}Connection: x-forwarded-client-cert\r\n\r\n",
    "GET / HTTP/1.1\r\n{}Connection: x-pannier-protocol\r\n\r\n",
    "GET / HTTP/1.1\r\n{}Connection: close; x\r\n\r\n",
    "GET / HTTP/1.1\r\n{}Connection: \"close\"\r\n\r\n",
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
        (format!("GET / HTTP/1.1\r\n{host}Expect: 200-ok\r\n\r\n"), 417, "http.expectation"),
        (
            format!("PUT / HTTP/1.1\r\n{host}Expect: 100-continue, x\r\nContent-Length: 1\r\n\r\nx"),
            417,
            "http.expectation",
        ),
        (format!("GET / HTTP/9.9\r\n{host}\r\n"), 505, "http.version"),
        ("PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n".to_owned(), 505, "http.version"),
        (format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: chunked;q=1\r\n\r\n"), 501, "http.unsupported"),
        (format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: identity\r\n\r\n"), 501, "http.unsupported"),
        (format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding:\r\n\r\n"), 501, "http.unsupported"),
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

/// A body that one reader takes for a body and another for a request. Whatever a reader makes of it,
/// the application is to see nothing of it but a body.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: orders.test\r\n\r\n";

async fn is_refused_whole(request: String, status: u16, reason: &str) {
    let (witness, app) = Witness::listen().await;
    let caller = hop(app).await;
    let pair = Pair::new(app).await;
    for sidecar in [&caller, &pair.caller] {
        assert_refused(&answer(sidecar, &request).await, status, reason, &request);
    }
    assert_eq!(witness.seen(), "", "the application was reached");
}

/// CL.TE: the front believes the length, the back the coding.
#[tokio::test]
async fn cl_te_is_refused() {
    let length = 5 + SMUGGLED.len();
    let head = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {length}\r\n");
    is_refused_whole(
        format!("{head}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{SMUGGLED}"),
        400,
        "http.malformed",
    )
    .await;
}

/// TE.CL: the other way round.
#[tokio::test]
async fn te_cl_is_refused() {
    let head =
        format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n");
    let chunk = format!("{:x}\r\n{SMUGGLED}\r\n0\r\n\r\n", SMUGGLED.len());
    is_refused_whole(format!("{head}\r\n{chunk}"), 400, "http.malformed").await;
}

/// TE.TE: a coding that one of two does not recognise.
#[tokio::test]
async fn te_te_is_refused() {
    for (second, status, reason) in [
        ("Transfer-Encoding: x", 501, "http.unsupported"),
        ("Transfer-encoding: chunked", 501, "http.unsupported"),
        ("Transfer-Encoding : identity", 400, "http.malformed"),
        ("Transfer-Encoding\x0b: identity", 400, "http.malformed"),
        ("X: x\nTransfer-Encoding: identity", 400, "http.malformed"),
    ] {
        let head = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n{second}\r\n");
        is_refused_whole(format!("{head}\r\n0\r\n\r\n{SMUGGLED}"), status, reason).await;
    }
}

/// 0.CL: the front takes a request for one without a body. Here it has one, whatever the method,
/// and it arrives as that.
#[tokio::test]
async fn zero_cl_reads_the_body_of_every_method() {
    let (witness, app) = Witness::listen().await;
    let caller = hop(app).await;
    for method in ["GET", "HEAD", "DELETE", "OPTIONS", "get", "BREW"] {
        let mut raw = Raw::connect(caller.outbound()).await;
        let length = SMUGGLED.len();
        raw.send(format!(
            "{method} /zero HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {length}\r\n\r\n{SMUGGLED}"
        ))
        .await;
        assert!(raw.head().await.starts_with("HTTP/1.1 200 "));
    }
    let seen = witness.seen();
    let framed = format!("content-length: {}\r\n\r\nget /smuggled", SMUGGLED.len());
    assert_eq!((seen.matches(&framed).count(), seen.matches("/smuggled").count()), (6, 6), "{seen}");
}

/// RUSTSEC-2026-0034: an HTTP/1.0 request with Transfer-Encoding ends where nobody knows.
#[tokio::test]
async fn http_1_0_with_transfer_encoding_is_refused() {
    let head = format!(
        "POST / HTTP/1.0\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n"
    );
    is_refused_whole(format!("{head}\r\n0\r\n\r\n{SMUGGLED}"), 400, "http.malformed").await;
}

/// RUSTSEC-2025-0037: what is left of a refused or early answered request's body is not the next
/// request, however late it comes.
#[tokio::test]
async fn an_undrained_body_is_no_request() {
    let (witness, app) = Witness::listen().await;
    let caller = hop(app).await;
    for host in ["nobody.test", HOST] {
        for late in [false, true] {
            let mut raw = Raw::connect(caller.outbound()).await;
            let length = 10 + SMUGGLED.len();
            let head = format!("POST /early HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n");
            raw.send(head + "Connection: close\r\n\r\n").await;
            let mut got = String::new();
            if late {
                got = raw.head().await;
            }
            raw.offer(format!("0123456789{SMUGGLED}")).await;
            got += &raw.rest().await;
            assert_eq!(got.matches("HTTP/1.1 ").count(), 1, "{host}, late {late}: {got}");
        }
    }
    let seen = witness.seen();
    assert!(!seen.contains("\r\n\r\nget /smuggled"), "{seen}");
}

/// CVE-2026-73548, RUSTSEC-2026-0033: what follows a request to upgrade is of HTTP until the
/// application has agreed, which this one does not.
#[tokio::test]
async fn nothing_passes_an_upgrade_that_nobody_agreed_to() {
    let (witness, app) = Witness::listen().await;
    let (caller, pair) = (hop(app).await, Pair::new(app).await);
    for sidecar in [&caller, &pair.caller] {
        let mut raw = Raw::connect(sidecar.outbound()).await;
        let fields = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
        raw.send(format!(
            "GET /up HTTP/1.1\r\nHost: {HOST}\r\n{fields}\r\nGET /smuggled HTTP/1.1\r\nX: y\r\n\r\n"
        ))
        .await;
        let got = raw.rest().await;
        assert!(got.starts_with("HTTP/1.1 200 ") && got.contains("HTTP/1.1 400 "), "{got}");
    }
    assert!(!witness.seen().contains("smuggled"), "{}", witness.seen());
}

/// h2c upgrade smuggling: an upgrade to HTTP/2 is not passed on, so that no application agrees to a
/// tunnel past all rules.
#[tokio::test]
async fn h2c_upgrades_go_nowhere() {
    let (witness, app) = Witness::listen().await;
    let (caller, pair) = (hop(app).await, Pair::new(app).await);
    for sidecar in [&caller, &pair.caller] {
        for connection in ["Upgrade, HTTP2-Settings", "Upgrade", "HTTP2-Settings", "keep-alive"] {
            let fields = format!(
                "Connection: {connection}\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"
            );
            let mut raw = Raw::connect(sidecar.outbound()).await;
            raw.send(format!("GET /h2c HTTP/1.1\r\nHost: {HOST}\r\n{fields}\r\n")).await;
            assert!(raw.head().await.starts_with("HTTP/1.1 200 "), "{connection}");
        }
    }
    let seen = witness.seen();
    assert_eq!(seen.matches("get /h2c ").count(), 8, "{seen}");
    assert!(!seen.contains("upgrade") && !seen.contains("http2-settings"), "{seen}");
}

/// Targets are passed on as they are, byte by byte: nothing is decoded or joined on the way, and a
/// route takes what the bytes say.
#[tokio::test]
async fn targets_pass_as_they_are() {
    let (witness, app) = Witness::listen().await;
    let (caller, pair) = (hop(app).await, Pair::new(app).await);
    let targets = [
        "/a%2Fb",
        "/a%2fb",
        "//a",
        "/a//b",
        "/a/..;x/b",
        "/a/../b",
        "/%2e%2e/b",
        "/a?b%zz",
        "/;a=b",
        "/a\\b",
    ];
    for sidecar in [&caller, &pair.caller] {
        let mut raw = Raw::connect(sidecar.outbound()).await;
        for target in targets {
            raw.send(format!("GET {target} HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
            assert!(raw.head().await.starts_with("HTTP/1.1 200 "), "{target}");
            assert_eq!(raw.take(2).await, b"ok");
        }
    }
    for target in targets {
        let line = format!("get {} http/1.1\r\n", target.to_ascii_lowercase());
        assert!(witness.seen().matches(&line).count() >= 2, "{target}: {}", witness.seen());
    }
}

/// CVE-2021-39155: a Host in another case, or with a final dot, is the same host, to routes, limits
/// and rules alike.
#[tokio::test]
async fn a_host_in_another_case_is_the_same() {
    let (_, app) = Witness::listen().await;
    let limit = "limits: [ { name: one, host: orders.test, rate: 1/h, burst: 1, scope: pod } ]\n";
    for host in ["ORDERS.test", "orders.TEST:80", "Orders.Test."] {
        let caller = Loopback::start("caller", &(super::support::loopback::upstream(app, "") + limit)).await;
        let first =
            answer(&caller, &format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n")).await;
        assert!(first.starts_with("HTTP/1.1 200 "), "{first}");
        let again =
            answer(&caller, &format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await;
        assert_refused(&again, 429, "limit.exhausted;limit=\"one\"", host);
    }
}

/// An absolute target is what counts, and the application is told no other host (RFC 9112 section
/// 3.2.2).
#[tokio::test]
async fn an_absolute_target_and_host_agree_or_are_refused() {
    let (witness, app) = Witness::listen().await;
    let caller = hop(app).await;
    for target in ["http://orders.test/abs", "HTTP://ORDERS.test:80/abs"] {
        let mut raw = Raw::connect(caller.outbound()).await;
        raw.send(format!("GET {target} HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
        assert!(raw.head().await.starts_with("HTTP/1.1 200 "), "{target}");
    }
    let seen = witness.seen();
    assert_eq!((seen.matches("get /abs ").count(), seen.matches("host: ").count()), (2, 2), "{seen}");
    for host in ["other.test", "orders.test:81", "orders.test.evil"] {
        let request = format!("GET http://orders.test/abs HTTP/1.1\r\nHost: {host}\r\n\r\n");
        assert_refused(&answer(&caller, &request).await, 400, "http.malformed", &request);
    }
}

/// `OPTIONS *` is of the server as a whole, and stays that (RFC 9112 section 3.2.4).
#[tokio::test]
async fn options_of_everything_stays_that() {
    let (witness, app) = Witness::listen().await;
    let (caller, pair) = (hop(app).await, Pair::new(app).await);
    for sidecar in [&caller, &pair.caller] {
        for target in ["*", "http://orders.test"] {
            let mut raw = Raw::connect(sidecar.outbound()).await;
            raw.send(format!("OPTIONS {target} HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
            let head = raw.head().await;
            assert!(head.starts_with("HTTP/1.1 200 "), "{target}: {head}");
        }
    }
    assert_eq!(witness.seen().matches("options * http/1.1\r\n").count(), 4, "{}", witness.seen());
}

/// Fields named by Connection end here, and nothing else does.
#[tokio::test]
async fn fields_named_by_connection_do_not_cross() {
    let app = listen(async |mut raw: Raw| {
        let head = raw.head().await.to_ascii_lowercase();
        assert!(
            !head.contains("x-foo:") && !head.contains("x-bar:") && head.contains("x-food: kept"),
            "{head}"
        );
        raw.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    })
    .await;
    let caller = hop(app).await;
    let fields =
        "Connection: close, x-foo\r\nX-Foo: 1\r\nX-Food: kept\r\nConnection: ,X-BAR,\r\nx-bar: 2\r\n";
    let got = answer(&caller, &format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n{fields}\r\n")).await;
    assert!(got.starts_with("HTTP/1.1 200 ") && got.contains("connection: close\r\n"), "{got}");
}
