//! Bodies of HTTP/1 whose framing has two readings, or none.

use super::answer;
use super::support::loopback::{HOST, Pair, hop};
use super::support::raw::{Raw, Witness};

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
        "5\rhello\r\n0\r\n\r\n",
        "5;a\nhello\r\n0\r\n\r\n",
        "5;a\rb\r\nhello\r\n0\r\n\r\n",
        "5\t;a\r\nhello\r\n0\r\n\r\n",
        "5,a\r\nhello\r\n0\r\n\r\n",
        ";a\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "5h\r\nhello\r\n0\r\n\r\n",
        "00000000000000005\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\r\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "0\r\nX: 1\n\r\n",
        "0\r\nX: 1\r\n folded\r\n\r\n",
        "0\r\nX : 1\r\n\r\n",
        "0\r\nX: a\0b\r\n\r\n",
        "0\r\n\n",
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

/// What is refused of a body is said so, where no answer has begun.
#[tokio::test]
async fn a_broken_body_is_answered_with_400() {
    // An application that says nothing before the body is whole.
    let app = super::support::raw::listen(async |mut raw: Raw| {
        raw.rest().await;
    })
    .await;
    let caller = hop(app).await;
    for body in ["5 \r\nhello\r\n", "x\r\n", "5\r\nhelloX", "0\r\nbad trailer\r\n\r\n"] {
        let head = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n");
        super::assert_refused(&answer(&caller, &(head + body)).await, 400, "http.malformed", body);
    }
}

/// Extensions of chunks are nobody's, and end here; trailers cross, but not those that would mean
/// something in a head.
#[tokio::test]
async fn extensions_end_here_and_trailers_are_sieved() {
    let (witness, app) = Witness::listen().await;
    let pair = Pair::new(app).await;
    let caller = hop(app).await;
    for sidecar in [&caller, &pair.caller] {
        let mut raw = Raw::connect(sidecar.outbound()).await;
        raw.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n")).await;
        raw.send("5;ext\r\nhello\r\n0000000000000001;a=\"b;c\"\r\n!\r\n00;ext=\"\"\r\n").await;
        raw.send("X-Sum: 1\r\nHost: ext\r\nContent-Length: 9\r\nTransfer-Encoding: ext\r\nCookie: ext\r\n")
            .await;
        raw.send("Authorization: ext\r\nConnection: ext\r\nX-Forwarded-Client-Cert: ext\r\n\r\n").await;
        assert!(raw.head().await.starts_with("HTTP/1.1 200 "));
        raw.send(super::CLEAN).await;
        assert_eq!(raw.take(2).await, b"ok");
        assert!(raw.head().await.starts_with("HTTP/1.1 200 "));
    }
    let seen = witness.seen();
    assert_eq!((seen.matches("hello").count(), seen.matches("x-sum: 1\r\n").count()), (2, 2), "{seen}");
    assert!(!seen.contains("ext"), "{seen}");
}

/// Sizes, extensions and trailers end, however they are cut.
#[tokio::test]
async fn chunk_lines_and_trailers_are_bounded() {
    let app = super::support::raw::listen(async |mut raw: Raw| {
        raw.rest().await;
    })
    .await;
    let caller = hop(app).await;
    for (what, body) in [
        ("an endless extension", format!("5;{}", "a".repeat(5000))),
        ("extensions without end", format!("1;{}\r\nx\r\n", "a".repeat(500)).repeat(100)),
        ("trailers without end", format!("0\r\n{}", "X: 1\r\n".repeat(4000))),
        ("too many trailers", format!("0\r\n{}\r\n", "X: 1\r\n".repeat(65))),
    ] {
        let head = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n");
        super::assert_refused(&answer(&caller, &(head + &body)).await, 400, "http.malformed", what);
    }
}
