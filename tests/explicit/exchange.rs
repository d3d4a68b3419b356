//! HTTP/1 as it is sent, over one hop and over a pair: what has to hold, holds for both.

use std::net::SocketAddr;

use crate::support::loopback::HOST;
use crate::support::raw::{Raw, listen};

crate::over_a_hop_and_a_pair! { exchange:
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
            raw.rest().await;
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
        let answer = raw.rest().await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.ends_with("\r\n\r\nhello"), "{answer}");
        assert!(!answer.contains("transfer-encoding"), "{answer}");
    }
}
