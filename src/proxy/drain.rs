//! Stopping without a failed request.
//!
//! 1. Readiness goes off. New connections are still served, since endpoints take a while to learn;
//!    answers to callers ask them to connect elsewhere.
//! 2. After `drain.accept`, inbound listeners close, connections to callers are ended once they
//!    are idle, and those between sidecars by GOAWAY. What the application sends is served on, so
//!    that its own shutdown calls succeed.
//! 3. When nothing is in flight, or after `drain.timeout`, the process ends.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::worker::Shared;
use crate::config::model::{self, Direction};

/// How often it is looked at whether all has finished.
const LOOK: Duration = Duration::from_millis(20);

/// How long the application may take to read its last answers.
const FAREWELL: Duration = Duration::from_secs(2);

/// Where a sidecar is in its end.
#[derive(Debug, Default)]
pub(super) struct Drain {
    draining: AtomicBool,
    asked: Notify,
    /// Cancelled when the inbound side closes.
    pub inbound: CancellationToken,
    /// Cancelled when the outbound side closes.
    pub outbound: CancellationToken,
}

impl Drain {
    /// Begins. Asked again, it changes nothing.
    pub(super) fn begin(&self) {
        if !self.draining.swap(true, Ordering::Relaxed) {
            self.asked.notify_one();
        }
    }

    /// Whether it has begun.
    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Whether answers of this direction ask the peer to connect elsewhere. The application has
    /// nowhere else to go.
    pub(super) fn tells(&self, direction: Direction) -> bool {
        match direction {
            Direction::Inbound => self.is_draining(),
            Direction::Outbound => self.outbound.is_cancelled(),
        }
    }

    /// Resolves when it begins.
    pub(super) async fn begun(&self) {
        self.asked.notified().await;
    }
}

/// Goes through the end, as `config` says.
pub(super) async fn drain(shared: &Shared, config: &model::Drain) {
    tracing::info!(accept = %config.accept, timeout = %config.timeout, "draining");
    sleep(config.accept.0).await;
    shared.drain.inbound.cancel();
    let finished = timeout(config.timeout.0, async {
        while !is_idle(shared) {
            sleep(LOOK).await;
        }
    });
    match finished.await {
        Ok(()) => tracing::info!("drained: nothing is in flight"),
        Err(_) => {
            tracing::warn!(in_flight = shared.in_flight(), "drain.timeout ran out with requests in flight")
        }
    }
    shared.drain.outbound.cancel();
    // The last answers leave their buffers, and the application's connections are closed in order.
    let _ = timeout(FAREWELL, async {
        while shared.ground.metrics.open(Direction::Outbound) > 0 {
            sleep(LOOK).await;
        }
    })
    .await;
}

fn is_idle(shared: &Shared) -> bool {
    shared.inbound_connections() == 0 && shared.in_flight() == 0
}
