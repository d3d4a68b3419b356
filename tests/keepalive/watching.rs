//! Idle connections are watched: whatever happens to one, it is closed at once, and nothing of it is
//! ever taken for an answer.

use std::time::Duration;

use tokio::sync::mpsc;

use crate::support::loopback::{HOST, hop};
use crate::support::raw::{Raw, listen};
use crate::{Client, PATIENCE};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n1 1";

/// The application does something to its connection once it is idle: the sidecar closes its end.
async fn ends(does: &'static str) {
    let (tell, mut told) = mpsc::unbounded_channel();
    let app = listen(move |mut raw: Raw| {
        let tell = tell.clone();
        async move {
            raw.head().await;
            raw.send(OK).await;
            tokio::time::sleep(Duration::from_millis(30)).await;
            match does {
                "ends" => raw.finish().await,
                says => raw.send(says).await,
            }
            // Its side is closed, too: none is left half closed.
            raw.gone().await;
            let _ = tell.send(());
        }
    })
    .await;
    let sidecar = hop(app).await;
    let mut client = Client::new(&sidecar).await;
    client.ask("GET").await;
    tokio::time::timeout(PATIENCE, told.recv()).await.expect("an end in time");
    // It is counted until a moment after.
    sidecar.until_metric("pannier_upstream_connections", &["upstream=\"orders\""], 0.0).await;
}

#[tokio::test]
async fn what_its_peer_ends_is_closed() {
    ends("ends").await;
}

#[tokio::test]
async fn what_its_peer_says_unasked_closes_it() {
    for says in ["HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n", "x"] {
        ends(says).await;
    }
}

#[tokio::test]
async fn what_its_peer_resets_is_gone() {
    let (tell, mut told) = mpsc::unbounded_channel();
    let app = listen(move |mut raw: Raw| {
        let tell = tell.clone();
        async move {
            raw.head().await;
            raw.send(OK).await;
            tokio::time::sleep(Duration::from_millis(30)).await;
            raw.reset();
            let _ = tell.send(());
        }
    })
    .await;
    let sidecar = hop(app).await;
    let mut client = Client::new(&sidecar).await;
    client.ask("GET").await;
    told.recv().await;
    sidecar.until_metric("pannier_upstream_connections", &["upstream=\"orders\""], 0.0).await;
}

#[tokio::test]
async fn an_answer_that_nobody_asked_for_answers_no_request() {
    // What an attacker's application would say to the next client of the connection.
    let poison = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison";
    let app = listen(move |mut raw: Raw| async move {
        while raw.next().await.is_some() {
            raw.offer(OK).await;
            raw.offer(poison).await;
        }
    })
    .await;
    let sidecar = hop(app).await;
    let mut raw = Raw::connect(sidecar.outbound()).await;
    for n in 0..50 {
        raw.send(format!("GET /{n} HTTP/1.1\r\nhost: {HOST}\r\n\r\n")).await;
        assert!(raw.head().await.starts_with("HTTP/1.1 200 "));
        assert_eq!(raw.take(3).await, b"1 1", "request {n}");
        tokio::time::sleep(Duration::from_millis(n % 7)).await;
    }
}
