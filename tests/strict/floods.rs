//! Floods of HTTP/2: each is bounded and counted, and heavy use just below the bound is not.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::http::Request;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;

use pannier::identity::Identity;
use pannier::tls::{Alpn, Carries, Peer, Tls, server_name};

use super::app::{self, Does};
use super::counted;
use super::frames::*;
use super::support::loopback::{HOST, Loopback, Pair, hop, upstream};
use super::support::raw::Witness;
use super::{eventually, refused};

const MEBI: u64 = 1 << 20;

/// So many frames of one kind, in writes of a thousand.
fn many(frame: &[u8], count: usize) -> impl Iterator<Item = Vec<u8>> + use<> {
    let thousand = frame.repeat(1000);
    (0..count / 1000).map(move |_| thousand.clone())
}

/// A flood ends with GOAWAY, or with a reset where what is on its way is more than is read.
#[track_caller]
fn assert_calmed(end: End, what: &str) {
    assert!(matches!(end, End::GoAway(ENHANCE_YOUR_CALM) | End::Closed), "{what}: {end:?}");
}

/// The streams 1, 3, 5, ...
fn streams() -> impl Iterator<Item = u32> {
    (0..).map(|n| 2 * n + 1)
}

fn cancel(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])
}

fn ask(stream: u32) -> Vec<u8> {
    frame(HEADERS, WHOLE, stream, &request(&[]))
}

/// CVE-2023-44487: requests that are cancelled as fast as they are made.
#[tokio::test]
async fn rapid_reset_is_bounded() {
    let (seen, app) = app::listen(Does::Nothing).await;
    let caller = hop(app).await;
    for apart in [false, true] {
        let mut frames = Frames::connect(&caller).await;
        let pairs: Vec<_> = streams().take(100_000).map(|n| [ask(n), cancel(n)]).collect();
        // Both in one write, or the request first, so that it is begun.
        let end = if apart {
            frames.flood(pairs.into_iter().flatten()).await
        } else {
            frames.flood(pairs.chunks(100).map(|pairs| pairs.concat().concat())).await
        };
        assert_calmed(end, "rapid reset");
    }
    counted(&caller, "http.flood", 2).await;
    let reached = seen.requests();
    assert!(reached < 40_000, "{reached} of 200000 cancelled requests reached the application");
    println!("rapid reset: {reached} requests reached the application");
}

/// What a client with deadlines does: a thousand requests at once that all run out of time, again and
/// again, and a stream of them at a pace.
#[tokio::test]
async fn clients_may_cancel() {
    let (_, app) = app::listen(Does::Nothing).await;
    let caller = hop(app).await;
    let mut frames = Frames::connect(&caller).await;
    let mut all = streams();
    for _ in 0..2 {
        let thousand: Vec<_> = all.by_ref().take(1000).collect();
        frames.send(thousand.iter().flat_map(|n| ask(*n)).collect::<Vec<_>>()).await;
        frames.settle().await;
        frames.send(thousand.iter().flat_map(|n| cancel(*n)).collect::<Vec<_>>()).await;
        frames.settle().await;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    for stream in all.take(1000) {
        frames.send([ask(stream), cancel(stream)].concat()).await;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    frames.settle().await;
    assert_eq!(refused(&caller, "http.flood").await, 0);
}

/// CVE-2025-8671 (MadeYouReset) and RUSTSEC-2024-0003: a peer that makes us reset its streams, whether
/// or not it reads what we say of them.
#[tokio::test]
async fn streams_that_make_us_reset_them_are_bounded() {
    let (_, app) = app::listen(Does::Nothing).await;
    let caller = hop(app).await;
    let nothing = |n| frame(WINDOW_UPDATE, 0, n, &[0; 4]);
    let overflow = |n| frame(WINDOW_UPDATE, 0, n, &0x7fff_ffff_u32.to_be_bytes()).repeat(2);
    let after_end = |n| frame(DATA, END_STREAM, n, b"x");
    let malformed = |n| frame(HEADERS, WHOLE, n, &block(&[(":method", "GET")]));
    let ways: [(&str, &dyn Fn(u32) -> Vec<u8>); 4] = [
        ("a window by nothing", &|n| [ask(n), nothing(n)].concat()),
        ("a window that overflows", &|n| [ask(n), overflow(n)].concat()),
        ("DATA after the end", &|n| [ask(n), after_end(n)].concat()),
        ("requests that are none", &malformed),
    ];
    for (i, (what, way)) in ways.into_iter().enumerate() {
        let mut frames = Frames::connect(&caller).await;
        let all: Vec<_> = streams().take(20_000).map(way).collect();
        let end = frames.flood(all.chunks(50).map(<[_]>::concat)).await;
        // Some of it ends the connection at once.
        assert!(matches!(end, End::GoAway(_) | End::Closed), "{what}: {end:?}");
        let ended = i as u64 + 1;
        eventually(async || {
            let counts = [refused(&caller, "http.flood").await, refused(&caller, "http.malformed").await];
            counts.iter().sum::<u64>() >= ended
        })
        .await;
        println!("{what}: {end:?}, {} floods", refused(&caller, "http.flood").await);
    }
    assert!(refused(&caller, "http.flood").await >= 1);
    let peak = caller.peak_memory() / MEBI;
    assert!(peak < 64, "{peak} MiB for resets that nobody reads");
}

/// CVE-2024-27316, RUSTSEC-2024-0332: a field block that never ends, in frames that say something, or
/// nothing.
#[tokio::test]
async fn a_continuation_flood_is_bounded() {
    let (witness, app) = Witness::listen().await;
    let caller = hop(app).await;
    let ways = [
        ("empty", Vec::new()),
        ("small", block(&[("x", "1")])),
        ("large", block(&[("x", &"a".repeat(16_000))])),
    ];
    for (what, payload) in ways {
        let mut frames = Frames::connect(&caller).await;
        frames.send(frame(HEADERS, END_STREAM, 1, &request(&[]))).await;
        let end = frames.flood(many(&frame(CONTINUATION, 0, 1, &payload), 100_000)).await;
        assert!(matches!(end, End::GoAway(_) | End::Closed), "{what}: {end:?}");
    }
    let counted = refused(&caller, "http.flood").await + refused(&caller, "http.malformed").await;
    assert_eq!(counted, 3);
    let peak = caller.peak_memory() / MEBI;
    assert!(peak < 64, "{peak} MiB for heads without end");
    assert_eq!(witness.seen(), "", "the application was reached");
}

/// A field block that stays incomplete, in silence or byte by byte, holds a connection no longer than
/// a head may take.
#[tokio::test]
async fn a_slow_field_block_times_out() {
    let (witness, app) = Witness::listen().await;
    let yaml = upstream(app, "") + "http: { header_timeout: 300ms }\n";
    let caller = Loopback::start("caller", &yaml).await;
    let begun = [
        ("after HEADERS", frame(HEADERS, END_STREAM, 1, &request(&[]))),
        ("inside HEADERS", frame(HEADERS, WHOLE, 1, &request(&[]))[..20].to_vec()),
        (
            "inside CONTINUATION",
            [&frame(HEADERS, END_STREAM, 1, &request(&[]))[..], &frame(CONTINUATION, 0, 1, b"abc")[..10]]
                .concat(),
        ),
    ];
    for (i, (what, bytes)) in begun.into_iter().enumerate() {
        let mut frames = Frames::connect(&caller).await;
        frames.send(bytes).await;
        assert_calmed(frames.end().await, what);
        counted(&caller, "http.head_timeout", i as u64 + 1).await;
    }
    // Not even while it comes on and on.
    let mut frames = Frames::connect(&caller).await;
    frames.send(frame(HEADERS, END_STREAM, 1, &request(&[]))).await;
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        frames.offer(frame(CONTINUATION, 0, 1, &block(&[("x", "1")]))).await;
    }
    assert_calmed(frames.end().await, "trickling");
    counted(&caller, "http.head_timeout", 4).await;
    assert_eq!(witness.seen(), "", "the application was reached");
}

/// Floods of frames that neither ask for nor bring anything.
#[tokio::test]
async fn floods_of_idle_frames_are_bounded() {
    let (_, app) = app::listen(Does::Nothing).await;
    let caller = hop(app).await;
    let open = frame(HEADERS, END_HEADERS, 1, &post(&[]));
    let kinds = [
        ("PING", frame(PING, 0, 0, &[0; 8])),
        ("PING ACK", frame(PING, ACK, 0, &[0; 8])),
        ("SETTINGS", frame(SETTINGS, 0, 0, &[])),
        ("SETTINGS that say something", frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff].repeat(10))),
        ("PRIORITY", frame(PRIORITY, 0, 3, &[0, 0, 0, 0, 16])),
        ("WINDOW_UPDATE", frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        ("WINDOW_UPDATE of a stream", frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1])),
        // RUSTSEC-2026-0258.
        ("empty DATA", frame(DATA, 0, 1, &[])),
        ("DATA that is padding alone", frame(DATA, PADDED, 1, &[1, 0])),
        ("unknown frames", frame(0xfe, 0, 0, &[])),
    ];
    for (i, (what, piece)) in kinds.into_iter().enumerate() {
        let mut frames = Frames::connect(&caller).await;
        frames.send(&open).await;
        assert_calmed(frames.flood(many(&piece, 3_000_000)).await, what);
        counted(&caller, "http.flood", i as u64 + 1).await;
    }
    let peak = caller.peak_memory() / MEBI;
    assert!(peak < 64, "{peak} MiB for frames that bring nothing");
}

/// What clients do that measure the path, keep a connection alive, and acknowledge each message: PINGs
/// by the thousand, and two windows and a PING for each frame of an answer.
#[tokio::test]
async fn clients_may_ping_and_open_windows() {
    let (_, app) = app::listen(Does::Sends(20_000, 5)).await;
    let caller = hop(app).await;
    let mut frames = Frames::connect(&caller).await;
    frames.send(many(&frame(PING, 0, 0, &[0; 8]), 5000).flatten().collect::<Vec<_>>()).await;
    frames.settle().await;
    frames.send(ask(1)).await;
    let mut acknowledged = 0;
    loop {
        let came = frames.next().await.expect("the connection goes on");
        assert!(!matches!(came.kind, GOAWAY | RST_STREAM), "after {acknowledged}: {came:?}");
        if came.kind == DATA && !came.payload.is_empty() {
            acknowledged += 1;
            let by = (came.payload.len() as u32).to_be_bytes();
            let windows = [frame(WINDOW_UPDATE, 0, 0, &by), frame(WINDOW_UPDATE, 0, 1, &by)].concat();
            frames.send([windows, frame(PING, 0, 0, &[0; 8])].concat()).await;
        }
        if came.kind == DATA && came.flags & END_STREAM != 0 {
            break;
        }
    }
    println!("{acknowledged} frames of an answer were acknowledged");
    frames.settle().await;
    assert_eq!(refused(&caller, "http.flood").await, 0);
}

/// A peer that never opens its window, or opens it by one byte and no more, holds an answer no longer
/// than a body may be silent.
#[tokio::test]
async fn a_window_that_stays_shut_holds_nothing_for_ever() {
    let (_, app) = app::listen(Does::Sends(2, 4096)).await;
    let yaml = upstream(app, "") + "http: { body_timeout: 1s }\n";
    let caller = Loopback::start("caller", &yaml).await;
    let shut = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    for (i, opens) in [0u32, 1].into_iter().enumerate() {
        let mut frames = Frames::connect(&caller).await;
        frames.send(&shut).await;
        frames.settle().await;
        for stream in streams().take(50) {
            frames.send(ask(stream)).await;
        }
        if opens > 0 {
            for stream in streams().take(50) {
                frames.send(frame(WINDOW_UPDATE, 0, stream, &opens.to_be_bytes())).await;
            }
        }
        let mut reset = 0;
        while reset < 50 {
            let came = frames.next().await.expect("the connection goes on");
            reset += usize::from(came.kind == RST_STREAM && came.code() != 0);
        }
        counted(&caller, "http.answer_timeout", 50 * (i as u64 + 1)).await;
    }
    let peak = caller.peak_memory() / MEBI;
    assert!(peak < 96, "{peak} MiB for answers that nobody takes");
}

/// HPACK bombs: a field that is written once and referred to a thousand times, and a table that is to
/// be larger than it may.
#[tokio::test]
async fn an_hpack_bomb_is_bounded() {
    let (witness, app) = Witness::listen().await;
    let caller = hop(app).await;
    let mut frames = Frames::connect(&caller).await;
    // A literal with incremental indexing (RFC 7541 section 6.2.1) of about 4000 bytes, then itself
    // again by its index, one byte each.
    let mut bomb = [request(&[]), vec![0x40, 1, b'x', 0x7f, 0xa1, 0x1e]].concat();
    bomb.extend([b'a'; 4000]);
    bomb.extend([0xbe; 10_000]);
    for stream in streams().take(20) {
        if !frames.offer(frame(HEADERS, WHOLE, stream, &bomb)).await {
            break;
        }
    }
    let end = frames.end().await;
    assert_calmed(end, "an HPACK bomb");
    counted(&caller, "http.flood", 1).await;
    let peak = caller.peak_memory() / MEBI;
    assert!(peak < 64, "{peak} MiB for a bomb");
    assert_eq!(witness.seen(), "", "the application was reached");
}

/// More streams than were offered are refused one by one, and by the thousand end the connection.
#[tokio::test]
async fn streams_beyond_the_limit_are_refused() {
    let (seen, app) = app::listen(Does::Nothing).await;
    let yaml = upstream(app, "") + "http: { max_streams: 10 }\n";
    let caller = Loopback::start("caller", &yaml).await;
    let mut frames = Frames::connect(&caller).await;
    let mut all = streams();
    for stream in all.by_ref().take(10) {
        frames.send(ask(stream)).await;
    }
    frames.settle().await;
    let beyond = all.next().expect("a stream");
    assert_eq!(frames.asked(beyond, &request(&[])).await, End::Reset(7), "REFUSED_STREAM");
    let rest: Vec<_> = all.take(20_000).map(ask).collect();
    assert_calmed(frames.flood(rest.chunks(100).map(<[_]>::concat)).await, "streams beyond the limit");
    counted(&caller, "http.flood", 1).await;
    let reached = seen.requests();
    assert_eq!(reached, 10);
}

/// A client of the `h2` crate with a thousand requests open on one connection, each with a body and
/// an answer: as heavy as honest use gets.
#[tokio::test]
async fn a_thousand_streams_are_served() {
    let (_, app) = app::listen(Does::Answers).await;
    let caller = hop(app).await;
    let stream = TcpStream::connect(caller.outbound()).await.expect("connected");
    let (client, mut connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    let mut pings = connection.ping_pong().expect("once");
    tokio::spawn(connection);
    let pinging = tokio::spawn(async move {
        for _ in 0..200 {
            pings.ping(h2::Ping::opaque()).await.expect("an answer");
        }
    });
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..1000 {
        let client = client.clone();
        calls.spawn(async move {
            let mut client = client.ready().await.expect("a stream");
            let request = Request::post(format!("http://{HOST}/")).body(()).expect("a request");
            let (answer, mut body) = client.send_request(request, false).expect("a stream");
            for _ in 0..20 {
                body.send_data(Bytes::from_static(b"x"), false).expect("an open stream");
            }
            body.send_data(Bytes::new(), true).expect("an open stream");
            answer.await.expect("an answer").status().as_u16()
        });
    }
    while let Some(status) = calls.join_next().await {
        assert_eq!(status.expect("a call"), 200);
    }
    pinging.await.expect("pings");
    assert_eq!(refused(&caller, "http.flood").await, 0);
}

/// A peer of the mesh with a certificate may do more, since many clients may be behind it, but not
/// everything.
#[tokio::test]
async fn a_peer_with_a_certificate_is_bounded_too() {
    let (_, app) = Witness::listen().await;
    let pair = Pair::new(app).await;
    let identity = Identity::load(pair.identity.paths()).expect("an identity");
    let mut config = ClientConfig::clone(
        &Tls::new(&identity).client(&Peer::TrustDomain("cluster.local".into()), Carries::Requests),
    );
    config.alpn_protocols = vec![Alpn::H2.name().to_vec()];
    let config = Arc::new(config);
    let to = pair.orders.inbound();
    let malformed = |n| frame(HEADERS, WHOLE, n, &block(&[(":method", "GET")]));
    let floods: [Box<dyn Iterator<Item = Vec<u8>>>; 3] = [
        Box::new(many(&frame(PING, 0, 0, &[0; 8]), 3_000_000)),
        Box::new(streams().take(200_000).map(malformed)),
        Box::new(streams().take(1_000_000).map(|n| [ask(n), cancel(n)].concat())),
    ];
    for flood in floods {
        let before = refused(&pair.orders, "http.flood").await;
        let stream = TcpStream::connect(to).await.expect("connected");
        let stream =
            TlsConnector::from(config.clone()).connect(server_name(to.ip()), stream).await.expect("mTLS");
        let mut frames = Frames::over(stream).await;
        assert_calmed(frames.flood(flood).await, "a peer of the mesh");
        counted(&pair.orders, "http.flood", before + 1).await;
    }
}
