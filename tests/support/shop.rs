//! The mesh that most tests need: a caller, and two endpoints of a Service `orders` that it calls
//! over mutual TLS.

use std::net::SocketAddr;

use super::authority::Authority;
use super::dns::Dns;
use super::eventually;
use super::lab::{Lab, Pod};
use super::load::{Load, Sending};
use super::sidecar::Sidecar;

/// What the caller's application dials.
pub(crate) const HOST: &str = "orders.shop.svc.cluster.local:8080";
/// Its name.
pub(crate) const NAME: &str = "orders.shop.svc.cluster.local";
const ENDPOINTS: &str = "orders-headless.shop.svc.cluster.local";
/// Where the orders applications listen.
pub(crate) const PORT: u16 = 8080;
const VIP: [u8; 4] = [10, 96, 0, 10];

/// How long anything may take that has no time of its own.
pub(crate) const PATIENCE: std::time::Duration = std::time::Duration::from_secs(15);

/// A caller and two endpoints. IPv4, since what is tested here knows no family.
pub(crate) struct Shop {
    /// The node.
    pub(crate) lab: Lab,
    /// Who issues the identities.
    pub(crate) authority: Authority,
    /// The pod that calls.
    pub(crate) caller: Pod,
    /// An endpoint.
    pub(crate) one: Pod,
    /// Another.
    pub(crate) two: Pod,
}

impl Shop {
    /// The pods, with the rules of `pannier init`, and a DNS server that knows both endpoints.
    pub(crate) fn new(ttl: u32) -> (Self, Dns) {
        let lab = Lab::new();
        let (caller, one, two) = (lab.pod("caller"), lab.pod("one"), lab.pod("two"));
        let mut dns = lab.dns(ttl);
        dns.set(NAME, &[VIP.into()]);
        endpoints(&mut dns, &[&one, &two]);
        for pod in [&caller, &one, &two] {
            pod.init();
        }
        (Self { lab, authority: Authority::new("cluster.local"), caller, one, two }, dns)
    }

    /// The address that the caller's application dials.
    pub(crate) fn vip() -> SocketAddr {
        (VIP, PORT).into()
    }

    /// The identity of an endpoint, and its side of the configuration, with whatever else.
    pub(crate) fn orders(&self, pod: &Pod, more: &str) -> String {
        let files = self.authority.issue(pod, "ns/shop/sa/orders");
        format!("{}{more}", files.yaml())
    }

    /// The identity of the caller, its upstream, with more lines for it, and whatever else.
    pub(crate) fn calls(&self, upstream: &str, more: &str) -> String {
        let files = self.authority.issue(&self.caller, "ns/shop/sa/caller");
        format!(
            "{}upstreams:
  orders:
    address: {HOST}
    endpoints: {ENDPOINTS}:{PORT}
    mtls: {{ peer: spiffe://cluster.local/ns/shop/sa/orders }}
{upstream}{more}",
            files.yaml()
        )
    }

    /// `GET`s of the caller's application, on 8 connections, until stopped.
    pub(crate) fn load(&self) -> Load {
        Load::new(Self::vip(), HOST)
    }
}

/// Publishes the endpoints of orders.
pub(crate) fn endpoints(dns: &mut Dns, pods: &[&Pod]) {
    let addresses: Vec<_> = pods.iter().map(|pod| pod.v4()).collect();
    dns.set(ENDPOINTS, &addresses);
}

impl Sidecar<'_> {
    /// What `/upstreams` says of orders.
    pub(crate) fn orders(&self) -> serde_json::Value {
        let all = self.get("/upstreams").json();
        let upstreams = all["upstreams"].as_array().expect("a list");
        let orders = upstreams.iter().find(|upstream| upstream["name"] == "orders");
        orders.unwrap_or_else(|| panic!("no orders in {all}")).clone()
    }
}

impl Sending {
    /// Waits for so many more answers.
    pub(crate) fn more(&self, answers: u64) {
        let before = self.so_far().sent();
        eventually(PATIENCE, "answers", || (self.so_far().sent() >= before + answers).then_some(()));
    }

    /// Waits for so many more answers of this pod.
    pub(crate) fn more_from(&self, pod: &Pod, answers: u64) {
        let count = || self.so_far().pods.get(pod.name()).copied().unwrap_or(0);
        let before = count();
        let what = format!("answers of {}", pod.name());
        eventually(PATIENCE, &what, || (count() >= before + answers).then_some(()));
    }
}
