//! Stopping without a failed request.
//!
//! 1. Readiness goes off. New connections are still served, since endpoints take a while to learn;
//!    answers to callers ask them to connect elsewhere.
//! 2. After `drain.accept`, inbound listeners close, connections to callers are ended once they
//!    are idle, and those that carry streams by GOAWAY. What the application sends is served on, so
//!    that its own shutdown calls succeed.
//! 3. When nothing is in flight and the application has gone, or after `drain.timeout`, the process
//!    ends. An application that we started is waited for however long it takes, and `drain.timeout`
//!    then is for what it has left behind.
//!
//! Whoever asks to quit waits neither for callers to learn nor for an application that we did not
//! start; what is in flight is finished all the same.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::application::sign;
use super::worker::Shared;
use crate::config::model::{self, Direction};

/// How often it is looked at whether all has finished.
const LOOK: Duration = Duration::from_millis(20);

/// How long there must have been no sign of the application until it is believed to have gone. It may
/// be between two connections, or never have been called.
const QUIET: Duration = Duration::from_secs(1);

/// How long the application may take to read its last answers.
const FAREWELL: Duration = Duration::from_secs(2);

/// Where a sidecar is in its end.
#[derive(Debug, Default)]
pub(super) struct Drain {
    draining: AtomicBool,
    asked: Notify,
    quitting: CancellationToken,
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

    /// Begins, or goes on, without waiting for those who are only expected to learn or to go.
    pub(super) fn quit(&self) {
        self.quitting.cancel();
        self.begin();
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

/// Goes through the end, as `config` says. `ended` is cancelled when the application that we started
/// has ended; none: it is not ours.
pub(super) async fn drain(shared: &Shared, config: &model::Drain, ended: Option<&CancellationToken>) {
    tracing::info!(accept = %config.accept, timeout = %config.timeout, "draining");
    let _ = timeout(config.accept.0, shared.drain.quitting.cancelled()).await;
    shared.drain.inbound.cancel();
    if let Some(ended) = ended {
        ended.cancelled().await;
    }
    match timeout(config.timeout.0, finished(shared)).await {
        Ok(()) if ended.is_some() => {
            tracing::info!("drained: nothing is in flight, and the application has ended")
        }
        Ok(()) if shared.drain.quitting.is_cancelled() => {
            tracing::info!("drained: nothing is in flight, and the application is not waited for");
        }
        Ok(()) => tracing::info!("drained: nothing is in flight, and there is no sign of the application"),
        Err(_) => say_what_is_left(shared),
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

/// Waits until nothing is in flight, and until the application has gone unless it is asked to quit.
async fn finished(shared: &Shared) {
    let mut accepted = None;
    let mut quiet_since = Instant::now();
    loop {
        let is_idle = shared.inbound_connections() == 0 && shared.in_flight() == 0;
        if is_idle && shared.drain.quitting.is_cancelled() {
            return;
        }
        // A connection may have been too short to be seen open.
        let now = Some(shared.ground.metrics.accepted_ever(Direction::Outbound));
        let is_silent = std::mem::replace(&mut accepted, now) == now;
        if !is_idle || !is_silent || sign(shared).is_some() {
            quiet_since = Instant::now();
        } else if quiet_since.elapsed() >= QUIET {
            return;
        }
        sleep(LOOK).await;
    }
}

fn say_what_is_left(shared: &Shared) {
    match (shared.in_flight(), sign(shared)) {
        (0, None) => tracing::info!("drain.timeout ran out, with nothing in flight"),
        (0, Some(sign)) => tracing::warn!("drain.timeout ran out and the application is still there: {sign}"),
        (in_flight, _) => tracing::warn!(in_flight, "drain.timeout ran out with requests in flight"),
    }
}
