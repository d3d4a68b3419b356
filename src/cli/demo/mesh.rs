//! The demo's mesh: a caller, the three pods of the service that it calls, and what tells where
//! these are. Who uses it does not see whether it stands in namespaces or on loopback.

use std::net::SocketAddr;
use std::time::Duration;

use super::app::App;
use super::config::{self, Ground, Rate};
use super::directory::Directory;
use super::ended::Result;
use super::loopback::Zone;
use super::namespaces::Node;
use super::place::Place;
use super::process::Process;
use super::sidecar::Sidecar;
use super::traffic::Way;

/// The pods of orders, and how long their applications work on a request. One is slower: it gets
/// fewer requests, so that all are equally full.
pub(super) const PODS: [(&str, Duration); 3] = [
    ("orders-1", Duration::from_millis(8)),
    ("orders-2", Duration::from_millis(8)),
    ("orders-3", Duration::from_millis(24)),
];

/// A mesh that is up. It goes, with all that it is made of, when dropped.
pub(super) struct Mesh {
    /// The pod that calls.
    pub(super) caller: Caller,
    /// The pods that are called.
    pub(super) pods: Vec<Pod>,
    pub(super) registry: Registry,
    pub(super) ground: Ground,
    /// What it is made of, for people.
    pub(super) about: &'static str,
    /// What counts for limits, where it is not the sidecar itself.
    pub(super) _redis: Option<Process>,
    // Last: everything has files in it.
    pub(super) directory: Directory,
}

/// The pod whose application calls.
pub(super) struct Caller {
    pub(super) sidecar: Sidecar,
    pub(super) place: Place,
    /// Where its application connects to.
    pub(super) way: Way,
}

/// A pod of orders.
pub(super) struct Pod {
    pub(super) name: &'static str,
    /// Where its callers reach it.
    pub(super) address: SocketAddr,
    pub(super) app: Option<App>,
    pub(super) sidecar: Sidecar,
}

/// What says where the service's pods are.
pub(super) enum Registry {
    /// A DNS server, and a virtual address on the node.
    Node(Node),
    /// A DNS server of our own.
    Zone(Zone),
}

impl Mesh {
    /// Says that these pods are the service's, and no others.
    pub(super) fn publish(&mut self, names: &[&str]) -> Result<()> {
        let pods = self.pods.iter().filter(|pod| names.contains(&pod.name));
        let addresses: Vec<_> = pods.map(|pod| pod.address).collect();
        match &mut self.registry {
            Registry::Node(node) => node.publish(&addresses),
            Registry::Zone(zone) => {
                zone.publish(&addresses);
                Ok(())
            }
        }
    }

    /// Gives the caller's sidecar another rate for writes, by its configuration file.
    pub(super) fn limit(&self, rate: Rate) -> Result<()> {
        self.caller.sidecar.configure(|identity| config::caller(&self.ground, identity, rate))
    }

    /// A pod by its name.
    pub(super) fn pod(&mut self, name: &str) -> Option<&mut Pod> {
        self.pods.iter_mut().find(|pod| pod.name == name)
    }
}

impl Pod {
    /// Kills the sidecar and the application at once.
    pub(super) fn kill(&mut self) {
        self.sidecar.kill();
        self.app = None;
    }
}
