//! One reading of every message or none, and an end to everything that could go on for ever, through
//! the real binary: what an attacker would send, from either side, byte by byte. Whatever is refused
//! never reaches the other side, says which stage refused it and why, and is counted.

mod app;
mod bodies;
mod fields;
mod floods;
mod frames;
mod http2;
mod limits;
mod protocol;
mod requests;
mod responses;
#[path = "../support/mod.rs"]
mod support;
mod timeouts;

use std::time::{Duration, Instant};

use support::loopback::Loopback;
use support::raw::Raw;

/// What an application's clean request looks like, to see that the way is open.
const CLEAN: &str = "GET /clean HTTP/1.1\r\nHost: orders.test\r\n\r\n";

/// Sends bytes on a connection of their own, and gives all that comes back until it closes.
async fn answer(sidecar: &Loopback, bytes: &str) -> String {
    let mut raw = Raw::connect(sidecar.outbound()).await;
    raw.send(bytes).await;
    raw.rest().await
}

#[track_caller]
fn assert_refused(answer: &str, status: u16, reason: &str, request: &str) {
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}: {answer}");
    assert!(answer.contains(&format!("\r\nx-pannier-refused: {reason}\r\n")), "{request:?}: {answer}");
    assert!(answer.contains("\r\nconnection: close\r\n"), "{request:?}: {answer}");
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{request:?} has two answers: {answer}");
}

/// How many requests and connections a sidecar has refused for a reason.
async fn refused(sidecar: &Loopback, reason: &str) -> u64 {
    let metrics = sidecar.get("/metrics").await.expect("metrics");
    let label = format!("reason=\"{reason}\"");
    let counts = metrics.text().lines().filter(|line| line.starts_with("pannier_refused_total"));
    let counts = counts.filter(|line| line.contains(&label));
    counts.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

/// Waits until a sidecar has counted so many; that happens a little after the refusal is seen.
async fn counted(sidecar: &Loopback, reason: &str, at_least: u64) {
    let begin = Instant::now();
    eventually(async || {
        let count = refused(sidecar, reason).await;
        let late = begin.elapsed() > PATIENCE / 2;
        assert!(count >= at_least || !late, "{reason} is counted {count} times, not {at_least}");
        count >= at_least
    })
    .await;
}

/// Nothing that a test waits for takes longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until something is so.
async fn eventually(mut is_so: impl AsyncFnMut() -> bool) {
    let begin = Instant::now();
    while !is_so().await {
        assert!(begin.elapsed() < PATIENCE, "waited in vain");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
