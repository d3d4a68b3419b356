//! Heads and the less common ways of sending a message, over one hop and over a pair.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use crate::support::loopback::{HOST, Loopback, Pair, hop, upstream};
use crate::support::raw::{Raw, listen};

crate::over_a_hop_and_a_pair! { messages:
    interim_answers_pass
    an_expectation_may_fail_at_once
    a_client_need_not_wait_for_100_continue
    a_server_may_answer_without_100_continue
    http_1_0_clients_may_keep_their_connection
    http_1_0_servers_are_read
    fields_that_repeat_keep_their_order
    heads_up_to_the_bound_pass
}

mod interim_answers_pass {
    use super::*;

    pub(super) async fn app() -> SocketAddr {
        listen(async |mut raw: Raw| {
            while raw.next().await.is_some() {
                raw.send("HTTP/1.1 102 Processing\r\n\r\n").await;
                raw.send("HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\nlink: </b.css>\r\n\r\n").await;
                raw.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            }
        })
        .await
    }

    pub(super) async fn holds(mut raw: Raw) {
        let through = raw.peer();
        raw.send(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n")).await;
        assert!(raw.head().await.starts_with("HTTP/1.1 102 "));
        let early = raw.head().await;
        assert!(early.starts_with("HTTP/1.1 103 Early Hints\r\n"), "{early}");
        assert!(early.contains("link: </a.css>\r\nlink: </b.css>\r\n"), "{early}");
        assert!(!early.contains("content-length"), "{early}");
        assert!(raw.head().await.starts_with("HTTP/1.1 200 "));
        assert_eq!(raw.take(2).await, b"ok");
        // HTTP/1.0 knows none.
        let mut raw = Raw::connect(through).await;
        raw.send(format!("GET / HTTP/1.0\r\nhost: {HOST}\r\n\r\n")).await;
        assert!(raw.rest().await.starts_with("HTTP/1.1 200 "));
    }
}

const EXPECTS: &str = "expect: 100-continue\r\ncontent-length: 5\r\n\r\n";

mod an_expectation_may_fail_at_once {
    use super::*;

    pub(super) async fn app() -> SocketAddr {
        listen(async |mut raw: Raw| {
            raw.head().await;
            raw.send("HTTP/1.1 417 Expectation Failed\r\ncontent-length: 3\r\n\r\nno!").await;
            assert_eq!(raw.rest().await, "", "a body came that was not asked for");
        })
        .await
    }

    pub(super) async fn holds(mut raw: Raw) {
        raw.send(format!("PUT / HTTP/1.1\r\nhost: {HOST}\r\n{EXPECTS}")).await;
        let answer = raw.rest().await;
        assert!(answer.starts_with("HTTP/1.1 417 ") && answer.ends_with("\r\n\r\nno!"), "{answer}");
        // Whether the body follows nobody knows, so nothing may follow.
        assert!(answer.contains("connection: close\r\n"), "{answer}");
    }
}

mod a_client_need_not_wait_for_100_continue {
    use super::*;

    pub(super) async fn app() -> SocketAddr {
        listen(async |mut raw: Raw| {
            while raw.next().await.is_some() {
                let body = raw.take(5).await;
                raw.send("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n").await;
                raw.send(body).await;
            }
        })
        .await
    }

    pub(super) async fn holds(mut raw: Raw) {
        raw.send(format!("PUT / HTTP/1.1\r\nhost: {HOST}\r\n{EXPECTS}hello")).await;
        assert!(raw.head().await.starts_with("HTTP/1.1 200 "));
        assert_eq!(raw.take(5).await, b"hello");
    }
}

mod a_server_may_answer_without_100_continue {
    use super::*;

    pub(super) async fn app() -> SocketAddr {
        listen(async |mut raw: Raw| {
            raw.head().await;
            raw.send("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine").await;
            raw.rest().await;
        })
        .await
    }

    pub(super) async fn holds(mut raw: Raw) {
        raw.send(format!("PUT / HTTP/1.1\r\nhost: {HOST}\r\n{EXPECTS}")).await;
        let answer = raw.rest().await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\nfine"), "{answer}");
        assert!(answer.contains("connection: close\r\n"), "{answer}");
    }
}

mod http_1_0_clients_may_keep_their_connection {
    use super::*;

    pub(super) async fn app() -> SocketAddr {
        listen(async |mut raw: Raw| {
            while let Some(head) = raw.next().await {
                assert!(head.contains(" HTTP/1.1\r\n"), "{head}");
                raw.send("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").await;
            }
        })
        .await
    }

    pub(super) async fn holds(mut raw: Raw) {
        for _ in 0..2 {
            raw.send(format!("GET / HTTP/1.0\r\nhost: {HOST}\r\nconnection: keep-alive\r\n\r\n")).await;
            let head = raw.head().await;
            assert!(head.contains("connection: keep-alive\r\n"), "{head}");
            assert_eq!(raw.take(5).await, b"hello");
        }
        raw.send(format!("GET / HTTP/1.0\r\nhost: {HOST}\r\n\r\n")).await;
        let answer = raw.rest().await;
        assert!(answer.ends_with("\r\n\r\nhello"), "{answer}");
    }
}

mod http_1_0_servers_are_read {
    use super::*;

    pub(super) async fn app() -> SocketAddr {
        listen(async |mut raw: Raw| {
            while let Some(head) = raw.next().await {
                if head.starts_with("GET /kept ") {
                    raw.send("HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 4\r\n\r\nkept")
                        .await;
                } else {
                    return raw.send("HTTP/1.0 200 OK\r\n\r\nuntil the end").await;
                }
            }
        })
        .await
    }

    pub(super) async fn holds(mut raw: Raw) {
        for _ in 0..2 {
            raw.send(format!("GET /kept HTTP/1.1\r\nhost: {HOST}\r\n\r\n")).await;
            assert!(raw.head().await.starts_with("HTTP/1.1 200 "));
            assert_eq!(raw.take(4).await, b"kept");
            raw.send(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n")).await;
            let head = raw.head().await;
            assert!(
                head.starts_with("HTTP/1.1 200 ") && head.contains("transfer-encoding: chunked"),
                "{head}"
            );
            assert_eq!(raw.chunked().await.0, b"until the end");
        }
    }
}

mod fields_that_repeat_keep_their_order {
    use super::*;

    pub(super) async fn app() -> SocketAddr {
        listen(async |mut raw: Raw| {
            let head = raw.head().await.to_ascii_lowercase();
            let values: Vec<_> = head.lines().filter_map(|line| line.strip_prefix("x-many: ")).collect();
            assert_eq!(values, ["3", "1", "2", "1"], "{head}");
            let cookies = "Set-Cookie: b=1\r\nSet-Cookie: a=2\r\nX-Between: 1\r\nSet-Cookie: c=3\r\n";
            raw.send(format!("HTTP/1.1 200 OK\r\n{cookies}content-length: 2\r\n\r\nok")).await;
        })
        .await
    }

    pub(super) async fn holds(mut raw: Raw) {
        let fields = "x-many: 3\r\nX-Many: 1\r\nx-other: 1\r\nx-many: 2\r\nx-many: 1\r\n";
        raw.send(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n{fields}\r\n")).await;
        let head = raw.head().await.to_ascii_lowercase();
        let cookies: Vec<_> = head.lines().filter_map(|line| line.strip_prefix("set-cookie: ")).collect();
        assert_eq!(cookies, ["b=1", "a=2", "c=3"], "{head}");
    }
}

/// `http.max_header_bytes`, where nobody says otherwise, and half of `http.max_headers`.
const BOUND: usize = 64 << 10;
const SOME: usize = 50;

/// A head of so many bytes, from `start` and with so many fields to fill it.
fn head_of(size: usize, start: &str, fields: usize) -> String {
    let mut head = start.to_owned();
    for n in 0..fields {
        let end = if n + 1 == fields {
            size - 2
        } else {
            start.len() + (size - 2 - start.len()) * (n + 1) / fields
        };
        let name = format!("x-field-{n}: ");
        let filler = "a".repeat(end - head.len() - name.len() - 2);
        head += &format!("{name}{filler}\r\n");
    }
    head += "\r\n";
    assert_eq!(head.len(), size);
    head
}

mod heads_up_to_the_bound_pass {
    use super::*;

    pub(super) async fn app() -> SocketAddr {
        listen(async |mut raw: Raw| {
            while let Some(head) = raw.next().await {
                let asked = |name: &str| -> usize {
                    let prefix = format!("{name}: ");
                    head.lines()
                        .find_map(|line| line.strip_prefix(&*prefix))
                        .map_or(0, |v| v.parse().expect("a number"))
                };
                let (size, fields) = (asked("x-size"), asked("x-fields"));
                let fillers: usize = head.lines().filter(|line| line.starts_with("x-field-")).count();
                let start = format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-got: {fillers}\r\n");
                raw.send(match size {
                    0 => format!("{start}\r\nok"),
                    size => head_of(size, &start, fields) + "ok",
                })
                .await;
            }
        })
        .await
    }

    pub(super) async fn holds(mut raw: Raw) {
        let through = raw.peer();
        for fields in [1, SOME, 98] {
            // There, up to the last byte.
            let start = format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n");
            raw.send(head_of(BOUND, &start, fields)).await;
            let head = raw.head().await;
            assert!(
                head.starts_with("HTTP/1.1 200 ") && head.contains(&format!("x-got: {fields}\r\n")),
                "{head}"
            );
            assert_eq!(raw.take(2).await, b"ok");
            // And back.
            let ask = |size: usize| format!("{start}x-size: {size}\r\nx-fields: {fields}\r\n\r\n");
            raw.send(ask(BOUND)).await;
            let head = raw.head().await;
            assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
            assert_eq!(head.lines().filter(|line| line.starts_with("x-field-")).count(), fields);
            assert!(head.len() > BOUND - 100, "{} bytes are left", head.len());
            assert_eq!(raw.take(2).await, b"ok");
            // One more is too many.
            let mut other = Raw::connect(through).await;
            other.send(ask(BOUND + 1)).await;
            let head = other.head().await;
            assert!(head.starts_with("HTTP/1.1 502 ") && head.contains("upstream.malformed"), "{head}");
            let mut other = Raw::connect(through).await;
            other.send(head_of(BOUND + 1, &start, fields)).await;
            let head = other.head().await;
            assert!(head.starts_with("HTTP/1.1 431 ") && head.contains("http.head_too_large"), "{head}");
        }
    }
}

#[tokio::test]
async fn case_and_order_of_fields_are_kept_on_http_1() {
    let app = listen(async |mut raw: Raw| {
        let head = raw.head().await;
        assert_eq!(
            head,
            "GET /Path?Q=1 HTTP/1.1\r\nX-First: 1\r\nhOsT: Orders.TEST\r\naccept:*/*\r\nX-first:  2\r\nEMPTY:\r\n\r\n"
                .replace("accept:*", "accept: *").replace(":  2", ": 2").replace("EMPTY:", "EMPTY: ")
        );
        raw.send("HTTP/1.1 200 Fine\r\nZ-Last: 1\r\nSERVER: Me\r\nz-last: 2\r\nETag: \"X\"\r\n\r\n").await;
    })
    .await;
    let caller = hop(app).await;
    let mut raw = Raw::connect(caller.outbound()).await;
    let fields = "X-First: 1\r\nhOsT: Orders.TEST\r\naccept:*/*\r\nX-first:  2\r\nEMPTY:\r\n";
    raw.send(format!("GET /Path?Q=1 HTTP/1.1\r\n{fields}\r\n")).await;
    let head = raw.head().await;
    assert!(head.contains("\r\nZ-Last: 1\r\nSERVER: Me\r\nz-last: 2\r\nETag: \"X\"\r\n"), "{head}");
}

#[tokio::test]
async fn requests_are_not_taken_ahead_without_bound() {
    const FAR_TOO_MUCH: u64 = 64 << 20;
    let answer = Arc::new(Notify::new());
    let answering = answer.clone();
    let app = listen(move |mut raw: Raw| {
        let answering = answering.clone();
        async move {
            raw.head().await;
            answering.notified().await;
            loop {
                raw.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
                if raw.next().await.is_none() {
                    return;
                }
            }
        }
    })
    .await;
    let caller = hop(app).await;
    let mut raw = Raw::connect(caller.outbound()).await;
    let get = format!("GET / HTTP/1.1\r\nhost: {HOST}\r\nx-filler: {}\r\n\r\n", "a".repeat(8000));
    let sent = raw.send_until_stuck(get.as_bytes(), Duration::from_millis(500)).await;
    assert!(sent < FAR_TOO_MUCH / 4, "{sent} bytes were taken ahead");
    assert!(caller.peak_memory() < 32 << 20, "they were gathered");
    answer.notify_one();
    let (whole, begun) = (sent as usize / get.len(), sent as usize % get.len());
    raw.send(&get[begun..]).await;
    for _ in 0..=whole {
        assert!(raw.head().await.starts_with("HTTP/1.1 200 "));
        assert_eq!(raw.take(2).await, b"ok");
    }
}

#[tokio::test]
async fn an_upstream_that_is_our_own_listener_is_refused() {
    let caller = Loopback::start("caller", "").await;
    let own = caller.outbound();
    caller.configure(&upstream(own, ""));
    caller.until_metric("pannier_config_generation", &[], 2.0).await;
    let mut raw = Raw::connect(own).await;
    raw.send(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n")).await;
    let answer = raw.head().await;
    assert!(answer.starts_with("HTTP/1.1 508 "), "{answer}");
    assert!(answer.contains("x-pannier-refused: pool.loop\r\n"), "{answer}");
    let text = raw.until(b"\n").await;
    assert!(text.contains(&format!("{own} is this sidecar's own listener (listen.outbound)")), "{text}");
    raw.send(format!("CONNECT {HOST}:80 HTTP/1.1\r\nhost: {HOST}:80\r\n\r\n")).await;
    assert!(raw.head().await.contains("x-pannier-refused: pool.loop\r\n"));
    // Once each: nothing went round.
    assert_eq!(caller.metric("pannier_refused_total", &[]).await, 2.0);
    assert_eq!(caller.metric("pannier_downstream_accepted_total", &[r#"direction="outbound""#]).await, 1.0);
}

#[tokio::test]
async fn a_head_of_http_2_has_the_same_bound() {
    let (_, app) = crate::support::raw::Witness::listen().await;
    let (plain, pair) = (hop(app).await, Pair::new(app).await);
    for caller in [&plain, &pair.caller] {
        let stream = tokio::net::TcpStream::connect(caller.outbound()).await.expect("connected");
        let (mut client, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
        tokio::spawn(connection);
        for (size, fields) in [(BOUND + 100, 1), (BOUND + 4000, 1), (100, 101)] {
            let mut request = http::Request::get(format!("http://{HOST}/"));
            for n in 0..fields {
                request = request.header(format!("x-field-{n}"), "a".repeat(size / fields));
            }
            let request = request.body(()).expect("valid");
            let (response, _) = client.send_request(request, true).expect("a stream");
            let response = response.await.expect("an answer");
            let refused =
                response.headers().get("x-pannier-refused").map(|value| value.to_str().expect("text"));
            assert_eq!(response.status(), 431, "{size} {fields}");
            assert!(refused.is_none_or(|why| why == "http.head_too_large"), "{refused:?}");
        }
    }
}
