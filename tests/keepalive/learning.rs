//! How long a peer keeps connections: nothing is taken for granted, and what it says and shows is
//! believed.

use std::time::Duration;

use crate::server::{Keeps, serve};
use crate::support::loopback::{Loopback, hop, upstream};
use crate::{Client, Served, eventually, learned, until_learned};

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

#[tokio::test]
async fn what_may_not_be_sent_twice_goes_on_a_new_connection_to_a_stranger() {
    let (seen, app) = serve(Keeps::default()).await;
    let sidecar = hop(app).await;
    let mut client = Client::new(&sidecar).await;
    let first = client.ask("POST").await;
    assert_eq!(client.ask("GET").await, Served { request: 2, ..first }, "what may be goes on a used one");
    assert_ne!(client.ask("POST").await.connection, first.connection);
    // Later it is a stranger no more: its connections have lived for a while.
    eventually("a POST on a used connection", async || client.ask("POST").await.request > 1).await;
    assert!(seen.connections() < 100, "{}", seen.connections());
    let known = learned(&sidecar).await;
    assert!(known["outlasted_seconds"].as_f64() > Some(0.02), "{known}");
    assert!(known["hinted_seconds"].is_null() && known["closes_after_seconds"].is_null(), "{known}");
}

/// A limit that its closes have shown: every request rides well below it, and none above.
async fn shown(resets: bool) {
    const KEPT: Duration = ms(400);
    let (_, app) = serve(Keeps { idle: KEPT, resets, ..Keeps::default() }).await;
    let sidecar = hop(app).await;
    let mut client = Client::new(&sidecar).await;
    client.ask("GET").await;
    let shown = until_learned(&sidecar, "closes_after_seconds").await;
    assert!(shown >= 0.35, "it closed after {shown} s, and keeps for 0.4 s");
    let known = learned(&sidecar).await;
    assert!(known["reuse_any_seconds"].as_f64() < Some(shown - 0.009), "{known}");
    assert_eq!(known["reuse_any_seconds"], known["reuse_seconds"], "{known}");
    for method in ["POST", "GET"] {
        // A machine that is busy may make the pause longer than it is.
        eventually("a request on a used connection after a pause", async || {
            let before = client.ask(method).await;
            tokio::time::sleep(KEPT / 4).await;
            client.ask(method).await == Served { request: before.request + 1, ..before }
        })
        .await;
    }
    for _ in 0..5 {
        let before = client.ask("GET").await;
        tokio::time::sleep(KEPT - ms(8)).await;
        assert_ne!(client.ask("POST").await.connection, before.connection, "so close to its end");
    }
}

#[tokio::test]
async fn a_peer_that_closes_shows_how_long_it_keeps() {
    shown(false).await;
}

#[tokio::test]
async fn as_does_one_that_resets() {
    shown(true).await;
}

#[tokio::test]
async fn a_hint_is_believed() {
    let keeps =
        Keeps { fields: "connection: keep-alive\r\nkeep-alive: timeout=60, max=3\r\n", ..Keeps::default() };
    let (_, app) = serve(keeps).await;
    let sidecar = hop(app).await;
    let mut client = Client::new(&sidecar).await;
    let first = client.ask("GET").await;
    assert_eq!(until_learned(&sidecar, "hinted_seconds").await, 60.0);
    for request in 2..=3 {
        // That so many are taken is not proven yet: it is what the peer says.
        assert_eq!(client.ask("GET").await, Served { request, ..first });
    }
    assert_ne!(client.ask("GET").await.connection, first.connection, "after `max` it is another");
}

#[tokio::test]
async fn a_hint_is_as_good_as_a_proof() {
    let (_, app) = serve(Keeps { fields: "keep-alive: timeout=60\r\n", ..Keeps::default() }).await;
    let sidecar = hop(app).await;
    let mut client = Client::new(&sidecar).await;
    let first = client.ask("GET").await;
    let second = client.ask("GET").await;
    assert_eq!(second, Served { request: 2, ..first });
    // After two requests it has lived: the second was answered.
    assert_eq!(client.ask("GET").await, Served { request: 3, ..first });
    assert_eq!(client.ask("GET").await, Served { request: 4, ..first });
    eventually("a POST on a used connection", async || client.ask("POST").await.request > 1).await;
}

#[tokio::test]
async fn what_is_configured_needs_no_learning() {
    let (_, app) = serve(Keeps::default()).await;
    let sidecar =
        Loopback::start("caller", &upstream(app, ", keep_alive: { timeout: 60s, requests: 3 }")).await;
    let mut client = Client::new(&sidecar).await;
    let first = client.ask("POST").await;
    assert_eq!(client.ask("POST").await, Served { request: 2, ..first });
    assert_eq!(client.ask("POST").await, Served { request: 3, ..first });
    assert_ne!(client.ask("POST").await.connection, first.connection);
    assert_eq!(learned(&sidecar).await["configured_seconds"], 60.0);
    assert_eq!(learned(&sidecar).await["requests"], 3);
}

#[tokio::test]
async fn an_unannounced_end_after_so_many_requests_is_learned() {
    let (seen, app) = serve(Keeps { requests: 5, ..Keeps::default() }).await;
    let sidecar = hop(app).await;
    let mut client = Client::new(&sidecar).await;
    for n in 0..100 {
        let method = if n % 3 == 0 { "POST" } else { "GET" };
        client.ask(method).await;
        tokio::time::sleep(ms(n % 4)).await;
    }
    assert_eq!(seen.requests(), 100, "each once");
    eventually("what it takes to be known", async || {
        client.ask("GET").await;
        learned(&sidecar).await["requests"] == 5
    })
    .await;
}

#[tokio::test]
async fn a_limit_that_becomes_shorter_is_found_and_one_that_becomes_longer() {
    let (_, app) = serve(Keeps { idle: ms(300), ..Keeps::default() }).await;
    let sidecar = hop(app).await;
    let mut client = Client::new(&sidecar).await;
    client.ask("GET").await;
    until_learned(&sidecar, "closes_after_seconds").await;
    // Another keeps them, since the same address is served by another process now.
    let known = learned(&sidecar).await["reuse_seconds"].as_f64().unwrap();
    assert!(known < 0.3, "{known}");
}
