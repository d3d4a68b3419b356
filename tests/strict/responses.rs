//! Answers with two readings, or none, and answers without end.

use std::net::SocketAddr;

use super::support::loopback::{HOST, Loopback, Pair, hop, upstream};
use super::support::raw::{Raw, listen};
use super::{CLEAN, answer, assert_refused};

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
        "HTTP/1.1 600 What\r\n\r\n",
        "HTTP/1.1 999 What\r\n\r\n",
        "HTTP/1.1 000 What\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1 -20 OK\r\n\r\n",
        "HTTP/1.1  200 OK\r\n\r\n",
        "HTTP/1.1\t200 OK\r\n\r\n",
        "HTTP/1.1 200 O\0K\r\n\r\n",
        "HTTP/1.1 200 O\rK\r\n\r\n",
        "http/1.1 200 OK\r\n\r\n",
        "HTTP/1.2 200 OK\r\n\r\n",
        "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello",
        "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\n\r\nhello",
        "HTTP/1.1 102 Processing\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nConnection: content-length\r\nContent-Length: 5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nConnection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\n: a\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
        "HTTP/1.1 200 OK\r\n X: a\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: 1\n\r\n",
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

/// An application that answers each request with so many interim answers, and then with 200.
async fn hinting(interim: usize) -> SocketAddr {
    listen(move |mut raw: Raw| async move {
        while raw.next().await.is_some() {
            for _ in 0..interim {
                raw.offer("HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n").await;
            }
            raw.offer("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        }
    })
    .await
}

/// Interim answers are passed on, as many as anybody sends, and end.
#[tokio::test]
async fn a_flood_of_interim_answers_ends() {
    for (interim, status) in [(20, 200), (10_000, 502)] {
        let app = hinting(interim).await;
        let (caller, pair) = (hop(app).await, Pair::new(app).await);
        for sidecar in [&caller, &pair.caller] {
            let mut raw = Raw::connect(sidecar.outbound()).await;
            raw.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n")).await;
            let got = raw.rest().await;
            let passed = got.matches("HTTP/1.1 103 ").count();
            assert!(
                got.contains(&format!("HTTP/1.1 {status} ")),
                "{interim}: {}",
                &got[..got.len().min(2000)]
            );
            assert!(if status == 200 { passed == interim } else { passed <= 64 }, "{passed} of {interim}");
            assert!(status == 200 || got.contains("x-pannier-refused: upstream.malformed\r\n"), "{got}");
        }
    }
}

/// The body of an answer that has none by its status or method is none, and what comes all the same
/// is nobody's answer.
#[tokio::test]
async fn an_answer_without_a_body_has_none() {
    let app = listen(async |mut raw: Raw| {
        while let Some(head) = raw.next().await {
            let sent = match head.split(' ').nth(1).expect("a path") {
                "/304" => "HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\nETag: \"a\"\r\n\r\n",
                "/304c" => "HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n",
                "/204" => "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
                "/evil" => "HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
                _ => "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n",
            };
            raw.send(sent).await;
            if head.starts_with("GET /whole") {
                raw.send("good").await;
            }
        }
    })
    .await;
    let (caller, pair) = (hop(app).await, Pair::new(app).await);
    for sidecar in [&caller, &pair.caller] {
        let mut raw = Raw::connect(sidecar.outbound()).await;
        for (line, status, length) in [
            ("HEAD /", 200, Some("content-length: 4\r\n")),
            ("GET /304", 304, None),
            ("GET /304c", 304, None),
            ("GET /204", 204, None),
            ("GET /evil", 204, None),
        ] {
            raw.send(format!("{line} HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
            let head = raw.head().await;
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{line}: {head}");
            assert!(length.is_none_or(|length| head.contains(length)), "{line}: {head}");
            assert!(!head.contains("transfer-encoding"), "{line}: {head}");
            // The next answer is the next request's.
            raw.send(format!("GET /whole HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
            assert!(raw.head().await.starts_with("HTTP/1.1 200 "), "after {line}");
            assert_eq!(raw.take(4).await, b"good", "after {line}");
        }
    }
}

/// The bounds of heads hold for answers too.
#[tokio::test]
async fn an_answers_head_is_bounded() {
    let app = listen(async |mut raw: Raw| {
        let head = raw.head().await;
        let fields = match head.split(' ').nth(1).expect("a path") {
            "/fields" => "X: 1\r\n".repeat(101),
            "/long" => format!("X: {}\r\n", "a".repeat(70_000)),
            _ => format!("X: {}\r\n", "a".repeat(60_000)),
        };
        raw.offer(format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n{fields}\r\n")).await;
        raw.rest().await;
    })
    .await;
    let caller = Loopback::start("caller", &upstream(app, "")).await;
    for path in ["/fields", "/long"] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
        assert_refused(&answer(&caller, &request).await, 502, "upstream.malformed", path);
    }
    let fits = answer(&caller, &format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n")).await;
    assert!(fits.starts_with("HTTP/1.1 200 "), "{}", &fits[..100]);
}
