//! Connections to endpoints, kept by each worker for itself and used most recent first.
//!
//! Promises: a connection is used only while it is open and silent, and has idled for less than its
//! peer is known to allow (see [`KeepAlive`](crate::balance::KeepAlive)); one that its peer closes is
//! closed at once; one connection per worker and peer carries every request between sidecars, and another
//! only while that one is full; no request waits while another worker keeps idle what it needs; no
//! connection reaches an endpoint other than the one it was opened to.

mod dial;
mod evidence;
mod kept;
mod plain;
mod streams;
#[cfg(test)]
mod tests;
mod watch;

pub use dial::{Dial, Stream, dial, never_pauses, tune};
pub use evidence::has_left;
pub use kept::{Lease, Need};
pub use streams::{Streams, Use};
pub use watch::Alarm;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_local;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::balance::{Endpoint, Open, Room, Upstream, Wanted};
use crate::error::Result;
use crate::http::Bounds;
use crate::http::h1::Hint;
use crate::http::mesh;
use crate::tls;
use plain::Plain;
use streams::Shareds;

/// How often a worker looks through its connections. What happens to one of them it hears at once.
const LOOK: Duration = Duration::from_millis(100);

/// How long a connection is used to an endpoint that may be many behind one address, more or less: each
/// is to one of them, and only new ones go to those that have come since.
const ONE_OF_MANY: Duration = Duration::from_secs(60);

/// That age, spread, so that those opened together do not end together.
fn one_of_many() -> Duration {
    ONE_OF_MANY.mul_f64(0.80 + 0.40 * fastrand::f64())
}

/// A worker's connections.
pub struct Pools {
    plain: Rc<Plain>,
    shared: Rc<Shareds>,
}

impl Pools {
    /// No connections yet. `alarms` are those of all workers, of which this one is number `index`.
    pub fn new(tls: tls::Current, index: usize, alarms: Arc<[Arc<Alarm>]>) -> Self {
        Self { plain: Rc::new(Plain::new(index, alarms)), shared: Rc::new(Shareds::new(tls)) }
    }

    /// The idle HTTP/1 connection to `endpoint` that was used most recently before `now`, of those that
    /// have what a request needs.
    pub fn idle_h1(&self, endpoint: &Endpoint, need: Need, now: Instant) -> Option<Lease> {
        self.plain.idle(endpoint, need, now)
    }

    /// An HTTP/1 connection to `endpoint` when none was idle.
    pub async fn open_h1(
        &self,
        upstream: &Arc<Upstream>,
        endpoint: &Arc<Endpoint>,
        dial: Dial,
        need: Need,
    ) -> Result<Lease> {
        self.plain.open(upstream, endpoint, dial, need).await
    }

    /// Gives a connection back at `now`, ready for its next request, after an exchange that took `trip`,
    /// in which its peer said `hint` of how long it keeps it.
    pub fn put(&self, lease: Lease, trip: Duration, hint: Option<Hint>, now: Instant) {
        self.plain.put(lease, trip, hint, now);
    }

    /// A connection to `endpoint` that carries many requests: one there is, if it is not so full that
    /// another is better.
    pub fn streams(&self, endpoint: &Endpoint, secure: bool, now: Instant) -> Option<Streams> {
        self.shared.ready(endpoint, secure, now)
    }

    /// A connection to the sidecar of `endpoint`, if there is one that it may be asked on.
    pub fn link(&self, endpoint: &Endpoint, now: Instant) -> Option<mesh::Link> {
        match self.shared.ready(endpoint, true, now)? {
            Streams::Mesh(link) => Some(link),
            Streams::H2(..) => None,
        }
    }

    /// As [`streams`](Self::streams), opening one if need be. An HTTP/2 connection is ready for another
    /// stream.
    pub async fn open_streams(
        &self,
        upstream: &Arc<Upstream>,
        endpoint: &Arc<Endpoint>,
        dial: Dial,
        bounds: Bounds,
    ) -> Result<Streams> {
        self.shared.open(&self.plain, upstream, endpoint, dial, bounds).await
    }

    /// Room for a connection that is not kept here, within the time that one may take.
    pub async fn room(&self, upstream: &Arc<Upstream>, endpoint: &Arc<Endpoint>) -> Result<Open> {
        let Room { open, .. } = self.plain.room(upstream, endpoint, Wanted::New).await?;
        Ok(open)
    }

    /// Looks after the connections for as long as it is polled.
    pub async fn keep(&self) {
        let mut tick = interval(LOOK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = self.plain.alarm.rung() => {}
                _ = tick.tick() => {
                    for (upstream, endpoint, dial) in self.plain.tidy() {
                        let plain = self.plain.clone();
                        spawn_local(async move { plain.warm(upstream, endpoint, dial).await });
                    }
                    self.shared.tidy();
                }
            }
            let calls = self.plain.alarm.take();
            self.plain.look_at(&calls.disturbed);
            for upstream in calls.wanted {
                while upstream.is_waited_for() && self.plain.give_one(&upstream) {}
                if upstream.is_waited_for() {
                    // It makes room when it has ended, for one of those who wait: each has said so.
                    self.shared.give_one(&upstream);
                }
            }
        }
    }
}
