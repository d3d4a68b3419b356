//! The operator's door: readiness, metrics, configuration, drain and end over plain HTTP/1.1.
//!
//! There are two: **admin**, for whoever is inside the pod, and **probes**, for the cluster, which
//! has health and metrics and nothing else. Both run on the control runtime, so nothing asked here
//! is in the way of a request, and no lock is taken that the data path knows.
//!
//! Promises:
//! - A slow or hostile client cannot keep others out: each connection carries one request and ends
//!   after 10 s whatever it does, and a door that is full closes its oldest connection for the
//!   next. What such clients hold in memory is bounded by that number.
//! - A web page that is open on the operator's machine cannot use a forwarded admin port: what a
//!   browser sends on its behalf is refused.

mod pages;
mod server;

use std::io;
use std::net::TcpListener;
use std::sync::Arc;

use serde_json::Value;
use tokio::task::JoinSet;

use crate::telemetry::Metrics;

/// What the doors show. Its methods are called on the control thread: they must not block, nor
/// wait for a worker.
pub trait View: Send + Sync + 'static {
    /// Whether the sidecar can serve.
    fn ready(&self) -> Readiness;

    /// The running configuration, without secrets.
    fn config(&self) -> Value;

    /// Upstreams, with their endpoints and how full they are.
    fn upstreams(&self) -> Value;

    /// Limits, with their leases and decisions.
    fn limits(&self) -> Value;

    /// Begins to drain, as SIGTERM does. Asked again, it changes nothing.
    fn drain(&self);

    /// Ends once what is in flight has finished, waiting for nobody else. It shortens a drain that has
    /// begun.
    fn quit(&self);
}

/// Whether the sidecar can serve.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Readiness {
    /// Why it cannot: one sentence each. Empty when it is ready.
    pub why_not: Vec<String>,
    /// What the operator should know although it is ready, such as a reload that was refused.
    pub notes: Vec<String>,
}

impl Readiness {
    /// Whether nothing is in the way.
    pub fn ready(&self) -> bool {
        self.why_not.is_empty()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    Admin,
    Probes,
}

/// Both doors, open for as long as this lives: while the sidecar drains, too.
#[derive(Debug)]
#[must_use = "the doors close when this is dropped"]
pub struct Doors {
    _servers: JoinSet<()>,
}

/// Opens both doors. To be called on the control runtime, which serves them.
///
/// # Errors
/// A listener that the runtime cannot take.
pub fn serve(
    admin: Vec<TcpListener>,
    probes: Vec<TcpListener>,
    view: Arc<dyn View>,
    metrics: Arc<Metrics>,
) -> io::Result<Doors> {
    let doors = admin
        .into_iter()
        .map(|listener| (Door::Admin, listener))
        .chain(probes.into_iter().map(|listener| (Door::Probes, listener)));
    let mut servers = JoinSet::new();
    for (door, listener) in doors {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let pages = pages::Pages::new(door, view.clone(), metrics.clone());
        servers.spawn(server::serve(listener, pages));
    }
    Ok(Doors { _servers: servers })
}

#[cfg(test)]
mod tests;
