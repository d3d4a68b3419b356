//! Room for connections to an upstream that has as many as it may: who waits for it, in order.
//!
//! Promises: what is given back goes to whoever has waited longest, on whichever worker; while somebody
//! waits, nothing that would serve him is kept idle.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::{Endpoint, Open};

/// A place among an upstream's connections, and perhaps the connection.
#[derive(Debug)]
pub struct Room {
    /// A connection of another request, open and idle. Before the place: it is closed before it is
    /// counted as such.
    pub handed: Option<Handed>,
    /// Counts it.
    pub open: Open,
}

/// A connection on its way between workers.
#[derive(Debug)]
pub struct Handed {
    /// The connection.
    pub stream: std::net::TcpStream,
    /// Bytes that were written to it.
    pub written: u64,
    /// Requests that it has carried.
    pub requests: u32,
    /// Requests after which its peer has said that it ends.
    pub most: u32,
    /// How long its peer has said that it keeps it, if it has.
    pub said: Option<Duration>,
    /// How long it had idled.
    pub idled: Duration,
    /// When it is too old, if its endpoint may be many behind one address.
    pub retires: tokio::time::Instant,
}

/// What somebody waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// A connection that has carried requests, or room for one.
    Used,
    /// As `Used`, for a request that may not be sent twice.
    Proven,
    /// Room for one of his own.
    New,
}

/// Who waits.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: Mutex<VecDeque<Waiting>>,
    /// As many: to be looked at without the lock.
    length: AtomicUsize,
}

#[derive(Debug)]
pub(super) struct Waiting {
    pub endpoint: Arc<Endpoint>,
    pub wanted: Wanted,
    give: oneshot::Sender<Room>,
}

impl Waiting {
    /// Gives him room. If he has gone, it is given back as the room is dropped.
    pub(super) fn give(self, room: Room) {
        drop(self.give.send(room));
    }
}

impl Queue {
    /// Whether nobody waits. Who has given up counts until somebody looks.
    pub(super) fn is_empty(&self) -> bool {
        self.length.load(Ordering::SeqCst) == 0
    }

    /// Whether somebody waits still.
    pub(super) fn is_waited_in(&self) -> bool {
        !self.is_empty() && {
            let mut waiting = self.waiting();
            waiting.retain(|one| !one.give.is_closed());
            self.length.store(waiting.len(), Ordering::SeqCst);
            !waiting.is_empty()
        }
    }

    /// Waits behind the others.
    pub(super) fn join(&self, endpoint: &Arc<Endpoint>, wanted: Wanted) -> oneshot::Receiver<Room> {
        let (give, room) = oneshot::channel();
        let mut waiting = self.waiting();
        waiting.push_back(Waiting { endpoint: endpoint.clone(), wanted, give });
        self.length.store(waiting.len(), Ordering::SeqCst);
        room
    }

    /// Whoever has waited longest, and waits still.
    pub(super) fn first(&self) -> Option<Waiting> {
        self.first_if(|_| true)
    }

    /// As [`first`](Self::first), if it is one that `suits`.
    pub(super) fn first_if(&self, suits: impl FnOnce(&Waiting) -> bool) -> Option<Waiting> {
        let mut waiting = self.waiting();
        while waiting.front().is_some_and(|first| first.give.is_closed()) {
            waiting.pop_front();
        }
        let first = waiting.pop_front_if(|first| suits(first));
        self.length.store(waiting.len(), Ordering::SeqCst);
        first
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
