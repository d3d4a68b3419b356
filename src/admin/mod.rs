//! The operator's door: readiness, metrics, configuration, drain and end over plain HTTP/1.1.
//!
//! A sidecar has two: **admin**, for whoever is inside the pod, and **probes**, for the cluster, which
//! has health and metrics and nothing else. What has no pod's traffic has probes alone. All run on the
//! control runtime, so nothing asked here is in the way of a request, and no lock is taken that the data
//! path knows.
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

/// What every process shows to the cluster: how it is. Asked on the control thread: it must not block.
pub trait Health: Send + Sync + 'static {
    /// Whether it can serve.
    fn ready(&self) -> Readiness;

    /// Its metrics, as OpenMetrics text.
    fn metrics(&self) -> String;
}

/// Whether the process can serve.
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

/// Doors that are open for as long as this lives: while the sidecar drains, too.
#[derive(Debug)]
#[must_use = "the doors close when this is dropped"]
pub struct Doors {
    servers: JoinSet<()>,
}

/// Opens a sidecar's two doors. To be called on the control runtime, which serves them.
///
/// # Errors
/// A listener that the runtime cannot take.
pub fn serve(
    admin: Vec<TcpListener>,
    probes: Vec<TcpListener>,
    view: Arc<dyn View>,
    metrics: Arc<Metrics>,
) -> io::Result<Doors> {
    let health = Arc::new(Sidecar { view: view.clone(), metrics });
    let mut doors = serve_probes(probes, health.clone())?;
    for listener in admin {
        doors.open(listener, pages::Pages::admin(health.clone(), view.clone()))?;
    }
    Ok(doors)
}

/// Opens the door for the cluster alone. To be called on the runtime that serves it.
///
/// # Errors
/// A listener that the runtime cannot take.
pub fn serve_probes(probes: Vec<TcpListener>, health: Arc<dyn Health>) -> io::Result<Doors> {
    let mut doors = Doors { servers: JoinSet::new() };
    for listener in probes {
        doors.open(listener, pages::Pages::probes(health.clone()))?;
    }
    Ok(doors)
}

impl Doors {
    fn open(&mut self, listener: TcpListener, pages: pages::Pages) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        self.servers.spawn(server::serve(listener, pages));
        Ok(())
    }
}

/// How a sidecar is.
struct Sidecar {
    view: Arc<dyn View>,
    metrics: Arc<Metrics>,
}

impl Health for Sidecar {
    fn ready(&self) -> Readiness {
        let mut readiness = self.view.ready();
        if self.metrics.plaintext() {
            readiness.notes.push("traffic is plaintext: no identity is configured".into());
        }
        readiness
    }

    fn metrics(&self) -> String {
        self.metrics.encode()
    }
}

#[cfg(test)]
mod tests;
