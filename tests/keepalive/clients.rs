//! Our side towards clients: they are told how long their connection is kept, and asked to connect anew
//! when it is old, never cut under a request.

use crate::server::{Keeps, serve};
use crate::support::loopback::{HOST, Loopback, Pair, hop, upstream};
use crate::support::raw::Raw;

async fn head(raw: &mut Raw, version: &str) -> String {
    raw.send(format!("GET / {version}\r\nhost: {HOST}\r\nconnection: keep-alive\r\n\r\n")).await;
    let head = raw.head().await;
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    raw.take(length.expect("a length")).await;
    head
}

#[tokio::test]
async fn are_told_how_long_their_connection_is_kept() {
    let (_, app) = serve(Keeps { fields: "keep-alive: timeout=7\r\n", ..Keeps::default() }).await;
    let sidecar = hop(app).await;
    for version in ["HTTP/1.1", "HTTP/1.0"] {
        let head = head(&mut Raw::connect(sidecar.outbound()).await, version).await;
        // Ours, and not the application's; a second less than we keep it.
        assert!(head.contains("\r\nconnection: keep-alive\r\nkeep-alive: timeout=3599\r\n"), "{head}");
        assert!(!head.contains("timeout=7"), "{head}");
    }
    let yaml = upstream(app, "") + "http: { idle_timeout: 1s }\n";
    let sidecar = Loopback::start("caller", &yaml).await;
    let head = head(&mut Raw::connect(sidecar.outbound()).await, "HTTP/1.1").await;
    assert!(!head.contains("keep-alive"), "what is too short for seconds is not told: {head}");
}

#[tokio::test]
async fn are_asked_to_connect_anew_when_their_connection_is_old() {
    let (_, app) = serve(Keeps::default()).await;
    let yaml = upstream(app, "") + "http: { max_connection_age: 200ms }\n";
    let sidecar = Loopback::start("caller", &yaml).await;
    let mut connections = 0;
    let begin = tokio::time::Instant::now();
    while connections < 5 {
        let mut raw = Raw::connect(sidecar.outbound()).await;
        connections += 1;
        loop {
            assert!(begin.elapsed() < crate::PATIENCE, "no connection ends");
            let head = head(&mut raw, "HTTP/1.1").await;
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            if head.contains("\r\nconnection: close\r\n") {
                assert_eq!(raw.rest().await, "", "and then it is closed");
                break;
            }
            assert!(head.contains("\r\nkeep-alive: timeout=3599\r\n"), "{head}");
        }
    }
}

#[tokio::test]
async fn sidecars_connect_anew_without_a_failed_request() {
    let (seen, app) = serve(Keeps { fields: "keep-alive: timeout=60\r\n", ..Keeps::default() }).await;
    let pair = Pair::with(app, "", "http: { max_connection_age: 100ms }\n").await;
    let mut client = crate::Client::new(&pair.caller).await;
    let mut sent = 0;
    while pair.orders.log().matches("a connection of a sidecar ended").count() < 5 {
        for method in ["GET", "POST"].repeat(50) {
            client.ask(method).await;
            sent += 1;
        }
    }
    assert_eq!(seen.requests(), sent, "each was served once");
}
