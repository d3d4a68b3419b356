//! Saturation, through the real binary: what both ends know of it decides where requests go, how many
//! are given, which wait, and which endpoints are passed over.

mod admit;
mod announced;
mod app;
mod ejection;
mod full;
mod lab;
mod metrics;
mod others;
mod sticky;
#[path = "../support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

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
