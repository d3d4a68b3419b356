//! Without redirection, on loopback: what is found by its host instead of its address, what is
//! carried between two sidecars, and what an operator sees from outside.

/// Both ways to an application: one plain hop, and a pair.
macro_rules! over_a_hop_and_a_pair {
    ($place:ident: $($name:ident)+) => {
        mod over_a_hop {
            $(#[tokio::test]
            async fn $name() {
                let app = crate::$place::$name::app().await;
                let caller = crate::support::loopback::hop(app).await;
                crate::$place::$name::holds(crate::support::raw::Raw::connect(caller.outbound()).await).await;
            })+
        }

        mod over_a_pair {
            $(#[tokio::test]
            async fn $name() {
                let app = crate::$place::$name::app().await;
                let pair = crate::support::loopback::Pair::new(app).await;
                crate::$place::$name::holds(crate::support::raw::Raw::connect(pair.caller.outbound()).await).await;
            })+
        }
    };
}
use over_a_hop_and_a_pair;

mod bodies;
mod connect;
mod exchange;
mod gone;
mod http2;
mod messages;
mod operator;
#[path = "../support/mod.rs"]
mod support;
mod upgrade;

use std::time::{Duration, Instant};

use support::client::get;
use support::loopback::{Loopback, hop};
use support::raw::{Raw, Witness, listen};

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
    assert_eq!(raw.rest().await, "");
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
    assert_eq!(raw.rest().await, "250 QUIT\r\n");
    // The client may speak first, too, in words that are not HTTP.
    let sidecar = Loopback::start("orders", &format!("application: {}\n", connect::echo().await)).await;
    let mut raw = Raw::connect(sidecar.inbound()).await;
    raw.send(b"\x00\x01binary").await;
    assert_eq!(raw.take(8).await, b"\x00\x01binary");
}
