//! Connections that are never stale, through the real binary: how long a peer keeps them is learned,
//! what it closes is closed, and a request is sent again only where that is safe.

mod between;
mod clients;
mod evidence;
mod killed;
mod learning;
mod server;
mod sizes;
#[path = "../support/mod.rs"]
mod support;
mod watching;

use std::time::{Duration, Instant};

use serde_json::Value;

use support::loopback::{HOST, Loopback};
use support::raw::Raw;

/// Nothing that a test waits for takes longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until something is so.
async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let begin = Instant::now();
    while !is_so().await {
        assert!(begin.elapsed() < PATIENCE, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A connection of the application, on which one request follows the other.
struct Client(Raw);

impl Client {
    async fn new(to: &Loopback) -> Self {
        Self(Raw::connect(to.outbound()).await)
    }

    /// Sends a request, and gives the status and the body of its answer.
    async fn send(&mut self, method: &str, path: &str) -> (u16, String) {
        let length = if method == "GET" { "" } else { "content-length: 4\r\n" };
        let body = if method == "GET" { "" } else { "body" };
        self.0.send(format!("{method} {path} HTTP/1.1\r\nhost: {HOST}\r\n{length}\r\n{body}")).await;
        let head = self.0.head().await.to_ascii_lowercase();
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        let body = self.0.take(length.expect("a length")).await;
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    /// As [`send`](Self::send), of what has to be answered by the application: gives what it says.
    async fn ask(&mut self, method: &str) -> Served {
        let (status, body) = self.send(method, "/").await;
        assert_eq!(status, 200, "{method}: {body}");
        let (connection, request) = body.split_once(' ').expect("what the server says");
        Served { connection: connection.parse().unwrap(), request: request.parse().unwrap() }
    }
}

/// Where the application took a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Served {
    /// Which of its connections, from 1.
    connection: usize,
    /// Which request on it, from 1.
    request: usize,
}

/// What `/upstreams` shows of the one endpoint's keep-alive.
async fn learned(sidecar: &Loopback) -> Value {
    let page = sidecar.get("/upstreams").await.expect("the page");
    let page: Value = serde_json::from_str(page.text()).expect("JSON");
    page["upstreams"][0]["endpoints"][0]["keep_alive"].clone()
}

/// Waits until something is known.
async fn until_learned(sidecar: &Loopback, what: &str) -> f64 {
    let mut known = None;
    eventually(what, async || {
        known = learned(sidecar).await[what].as_f64();
        known.is_some()
    })
    .await;
    known.expect("just seen")
}
