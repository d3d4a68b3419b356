//! Why the demo ends before its end, and the ways to be told to.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

use super::place::{Place, Running};

/// How often it is looked at whether somebody has stopped the demo.
const LOOK: Duration = Duration::from_millis(20);

/// The demo did not come to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    /// Somebody stopped it.
    #[error("stopped")]
    Stopped,
    /// Something did not work.
    #[error("cannot {step}: {why}")]
    Failed {
        /// What was being done.
        step: String,
        /// What the system or the program that did it said.
        why: String,
    },
}

/// What a part of the demo gives.
pub(super) type Result<T> = std::result::Result<T, Ended>;

/// Turns an error into what could not be done because of it.
pub(super) fn cannot<E: Display>(step: impl Into<String>) -> impl FnOnce(E) -> Ended {
    move |why| Ended::Failed { step: step.into(), why: why.to_string() }
}

/// Whether somebody has stopped the demo: Ctrl-C, or a signal that ends programs.
#[derive(Debug, Clone, Default)]
pub(super) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Stops the demo at its next step.
    pub(super) fn stop(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it has been stopped.
    pub(super) fn is_stopped(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Goes on, or not.
    pub(super) fn check(&self) -> Result<()> {
        if self.is_stopped() { Err(Ended::Stopped) } else { Ok(()) }
    }

    /// Waits, unless it is stopped.
    pub(super) fn sleep(&self, time: Duration) -> Result<()> {
        let until = Instant::now() + time;
        loop {
            self.check()?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            thread::sleep(left.min(LOOK));
        }
    }

    /// Takes SIGINT, SIGTERM and SIGHUP as the wish to stop, for as long as the result lives.
    /// Without this they would end the process, and leave what it had made.
    pub(super) fn on_signals(&self) -> Result<Running> {
        let stop = self.clone();
        Place::Here.start("signals", move || async move {
            let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
            let mut signals = kinds.map(signal).into_iter().flatten();
            let (Some(mut int), Some(mut term), Some(mut hup)) =
                (signals.next(), signals.next(), signals.next())
            else {
                return;
            };
            loop {
                tokio::select! {
                    _ = int.recv() => {}
                    _ = term.recv() => {}
                    _ = hup.recv() => {}
                }
                stop.stop();
            }
        })
    }
}
