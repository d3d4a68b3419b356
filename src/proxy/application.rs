//! Whether the application is still there, as far as a sidecar can see: by its connections to us,
//! and by the ports that we have handed it traffic on.
//!
//! An application that has closed its ports and holds no connection cannot be told from one that has
//! gone, which is why whoever asks waits a moment before it believes that.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

use super::worker::Shared;
use crate::config::model::Direction;
use crate::intercept::listening::{listening, takes};

/// Where the application has taken traffic from us.
#[derive(Debug, Default)]
pub(super) struct Served(Mutex<BTreeSet<SocketAddr>>);

impl Served {
    /// Notes an address at which the application took what it was sent.
    pub(super) fn note(&self, address: SocketAddr) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(address);
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }
}

/// What shows that the application is there.
pub(super) enum Sign {
    /// It has so many connections to us open.
    Connected(u64),
    /// It listens where it took traffic from us, or where it is configured.
    Listens(SocketAddr),
}

impl fmt::Display for Sign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connected(connections) => {
                write!(f, "its connections to us are open, {connections} of them")
            }
            Self::Listens(address) => write!(f, "it listens on {address}"),
        }
    }
}

/// Looks for a sign of the application.
pub(super) fn sign(shared: &Shared) -> Option<Sign> {
    match shared.ground.metrics.open(Direction::Outbound) {
        0 => {}
        connections => return Some(Sign::Connected(connections)),
    }
    let mut known = shared.served.addresses();
    known.extend(shared.mesh.load().model.application);
    if known.is_empty() {
        return None;
    }
    match listening() {
        Ok(listeners) => {
            let taken = |known: &SocketAddr| listeners.iter().any(|listener| takes(*listener, *known));
            known.into_iter().find(taken).map(Sign::Listens)
        }
        Err(error) => {
            tracing::debug!(%error, "whether the application still listens cannot be seen");
            None
        }
    }
}
