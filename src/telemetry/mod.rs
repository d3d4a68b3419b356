//! What an operator sees: metrics and the log.
//!
//! Promises:
//! - Counting costs a request a few nanoseconds: no lock, no allocation, no shared cache line.
//!   Each worker writes counters of its own; a scrape adds them up on another thread.
//! - Every series' labels come from the configuration or from a closed list, never from a peer's
//!   bytes, so the number of series is bounded by what the operator wrote.
//! - Series live through reloads. One whose route or upstream is gone is still shown for a while,
//!   so that its last counts are scraped, and then forgotten.

mod histogram;
pub mod log;
mod metrics;
#[cfg(test)]
pub(crate) mod openmetrics;
mod process;
mod scrape;
mod series;
mod traffic;

pub use histogram::Latency;
pub use metrics::{Accepted, Metrics};
pub use scrape::{Number, Samples, Scrape};
pub use traffic::{Connection, Snapshot, Tcp, Traffic};

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::SystemTime;

/// What `collect` adds and what every process has to say of itself, as OpenMetrics 1.0 text.
pub fn exposition(started: SystemTime, collect: impl FnOnce(&mut Scrape)) -> String {
    let mut scrape = Scrape::default();
    let version = env!("CARGO_PKG_VERSION");
    scrape.info("pannier_build_info", "The version that runs.", &[("version", version)]);
    process::collect(&mut scrape, started);
    collect(&mut scrape);
    scrape.encode()
}

/// Adds to a counter that one thread alone writes: two plain moves, no locked instruction.
/// Readers on other threads see every value it ever had, in order.
fn add(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(by), Relaxed);
}
