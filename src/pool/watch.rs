//! Watches idle connections: whatever happens to one wakes the worker's keeper, which then looks at that
//! one alone.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};

use tokio::sync::Notify;

use crate::balance::Upstream;

/// What a worker's keeper is to look at. Others may ask for something: all of it is shared.
#[derive(Debug, Default)]
pub struct Alarm {
    calls: Mutex<Calls>,
    rung: Notify,
}

/// What was asked for since the keeper last looked.
#[derive(Debug, Default)]
pub(super) struct Calls {
    /// Idle connections that something has happened to.
    pub disturbed: Vec<Place>,
    /// Upstreams that others wait for a connection to.
    pub wanted: Vec<Arc<Upstream>>,
}

/// An idle connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Its endpoint's id.
    pub endpoint: u64,
    /// Its own, unlike that of every other of its worker.
    pub id: u64,
}

impl Alarm {
    /// Asks for a connection to `upstream`, or for the place of one.
    pub(super) fn want(&self, upstream: &Arc<Upstream>) {
        self.calls().wanted.push(upstream.clone());
        self.rung.notify_one();
    }

    /// Waits until there is something to look at.
    pub(super) async fn rung(&self) {
        self.rung.notified().await;
    }

    /// Takes what there is to look at.
    pub(super) fn take(&self) -> Calls {
        std::mem::take(&mut *self.calls())
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Rings for one connection.
struct Bell {
    place: Place,
    alarm: Arc<Alarm>,
}

/// What is woken when something happens to the connection at `place`.
pub(super) fn bell(place: Place, alarm: &Arc<Alarm>) -> Waker {
    Waker::from(Arc::new(Bell { place, alarm: alarm.clone() }))
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.alarm.calls().disturbed.push(self.place);
        self.alarm.rung.notify_one();
    }
}
