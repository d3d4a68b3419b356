//! How much of everything one may have, by direction: connections, streams, heads.

use std::time::{Duration, Instant};

use super::app::{self, Does};
use super::frames::{End, Frames, OK, SETTINGS, request};
use super::support::client;
use super::support::loopback::{HOST, Loopback, hop, upstream};
use super::support::raw::{Raw, Witness};
use super::{CLEAN, answer, assert_refused, counted, refused};

/// A connection that has been answered.
async fn answered(to: std::net::SocketAddr) -> Raw {
    let mut raw = Raw::connect(to).await;
    raw.send(CLEAN).await;
    assert!(raw.head().await.starts_with("HTTP/1.1 200 "));
    raw.take(2).await;
    raw
}

/// Waits until a new connection is served: the end of another is noticed a little later.
async fn served(to: std::net::SocketAddr) -> Raw {
    let begin = Instant::now();
    loop {
        let mut raw = Raw::connect(to).await;
        raw.offer(CLEAN).await;
        if let Some(head) = raw.next_or_gone().await {
            assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
            return raw;
        }
        assert!(begin.elapsed() < Duration::from_secs(10), "no connection is served again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// `max_connections`: what comes beyond is closed and counted, in its direction alone; the operator's
/// door and the probes are no part of it, and what has ended makes room.
#[tokio::test]
async fn connections_beyond_the_limit_are_closed() {
    let (witness, app) = Witness::listen().await;
    let more = format!(
        "application: {app}\noutbound: {{ max_connections: 3 }}\ninbound: {{ max_connections: 2 }}\n"
    );
    let sidecar = Loopback::start("both", &(upstream(app, "") + &more)).await;
    for (direction, to, most) in [("outbound", sidecar.outbound(), 3), ("inbound", sidecar.inbound(), 2)] {
        let mut open = Vec::new();
        for _ in 0..most {
            open.push(answered(to).await);
        }
        let before = refused(&sidecar, "listen.full").await;
        for n in 1..=5 {
            let mut raw = Raw::connect(to).await;
            raw.offer("GET /beyond HTTP/1.1\r\nHost: orders.test\r\n\r\n").await;
            assert_eq!(raw.rest().await, "", "{direction}: one more was served");
            counted(&sidecar, "listen.full", before + n).await;
        }
        let probe = client::get(sidecar.at("probes"), "probes", "/ready").await.expect("a probe");
        assert_eq!(probe.status, 200, "{direction}");
        // Those that are open go on.
        for raw in &mut open {
            raw.send(CLEAN).await;
            assert!(raw.head().await.starts_with("HTTP/1.1 200 "), "{direction}");
            raw.take(2).await;
        }
        drop(open.pop());
        open.push(served(to).await);
    }
    assert!(!witness.seen().contains("/beyond"), "{}", witness.seen());
}

/// A limit that was raised by a reload holds at once.
#[tokio::test]
async fn a_reload_makes_room() {
    let (_, app) = Witness::listen().await;
    let yaml = |most: u32| upstream(app, "") + &format!("outbound: {{ max_connections: {most} }}\n");
    let caller = Loopback::start("caller", &yaml(1)).await;
    let _first = answered(caller.outbound()).await;
    assert_eq!(answer(&caller, "").await, "", "closed");
    caller.configure(&yaml(2));
    let _second = served(caller.outbound()).await;
}

/// `max_header_bytes` and `max_headers`, and what one direction has of its own.
#[tokio::test]
async fn heads_are_bounded_by_direction() {
    let (witness, app) = Witness::listen().await;
    let more = format!(
        "application: {app}
http: {{ max_header_bytes: 4KiB, max_headers: 10 }}
inbound: {{ http: {{ max_header_bytes: 8KiB, max_headers: 20 }} }}
"
    );
    let sidecar = Loopback::start("both", &(upstream(app, "") + &more)).await;
    let long = |size: usize| format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nX: {}\r\n\r\n", "a".repeat(size));
    let many = |count: usize| format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n{}\r\n", "X: 1\r\n".repeat(count));
    for (to, size, count) in [(sidecar.outbound(), 4096, 10), (sidecar.inbound(), 8192, 20)] {
        for (request, fits) in
            [(long(size - 100), true), (long(size), false), (many(count - 1), true), (many(count), false)]
        {
            let mut raw = Raw::connect(to).await;
            raw.send(&request).await;
            if fits {
                assert!(raw.head().await.starts_with("HTTP/1.1 200 "), "{size}, {count}");
            } else {
                assert_refused(&raw.rest().await, 431, "http.head_too_large", &request[..50]);
            }
        }
    }
    counted(&sidecar, "http.head_too_large", 4).await;
    assert_eq!(witness.seen().matches("http/1.1\r\n").count(), 4);
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

/// `max_streams` is what a client is told, by direction.
#[tokio::test]
async fn streams_are_offered_by_direction() {
    let (_, app) = app::listen(Does::Answers).await;
    let yaml = upstream(app, "") + "http: { max_streams: 7 }\noutbound: { http: { max_streams: 5 } }\n";
    let caller = Loopback::start("caller", &yaml).await;
    let mut frames = Frames::connect(&caller).await;
    let settings = frames.next().await.expect("SETTINGS");
    assert_eq!(settings.kind, SETTINGS);
    let offered =
        settings.payload.chunks(6).find(|setting| setting[..2] == [0, 3]).expect("MAX_CONCURRENT_STREAMS");
    assert_eq!(offered[2..], [0, 0, 0, 5]);
    assert_eq!(frames.asked(1, &request(&[])).await, End::Answer(OK));
}

/// Libraries that had holes which were mended are not older than that: rustls-webpki
/// (RUSTSEC-2026-0104), h2 (RUSTSEC-2026-0258), hickory.
#[test]
fn dependencies_are_past_their_advisories() {
    let lock = include_str!("../../Cargo.lock");
    let version = |name: &str| {
        let at = lock.find(&format!("name = \"{name}\"\nversion = \"")).expect("it is used");
        let text = lock[at..].split('"').nth(3).expect("a version");
        text.split(['.', '-']).take(3).map(|part| part.parse().expect("a number")).collect::<Vec<u64>>()
    };
    for (name, least) in [
        ("rustls-webpki", [0, 103, 13]),
        ("h2", [0, 4, 16]),
        ("hickory-resolver", [0, 26, 1]),
        ("hickory-proto", [0, 26, 1]),
    ] {
        assert!(version(name) >= least.to_vec(), "{name} is {:?}", version(name));
    }
}

/// A clean request still passes a sidecar that has been attacked in every way at once.
#[tokio::test]
async fn a_sidecar_serves_beside_its_attackers() {
    let (_, app) = Witness::listen().await;
    let caller = hop(app).await;
    let mut attackers = Vec::new();
    for bytes in ["", "G", "GET / HTTP/1.1\r\nHost: orders", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        for _ in 0..50 {
            let mut raw = Raw::connect(caller.outbound()).await;
            raw.send(bytes).await;
            attackers.push(raw);
        }
    }
    for _ in 0..10 {
        answered(caller.outbound()).await;
    }
}
