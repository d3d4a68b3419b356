//! A Service's virtual address: DNAT, as kube-proxy would write it.

use std::fmt::Write;
use std::net::SocketAddr;

use super::lab::{Lab, Pod};
use super::namespace::Namespace;

/// A virtual address that leads to endpoints, each connection to one of them by chance.
pub(crate) struct Service<'a> {
    address: SocketAddr,
    chain: String,
    namespace: &'a Namespace,
}

impl Lab {
    /// A Service on the node, for every pod.
    pub(crate) fn service(&self, address: SocketAddr, endpoints: &[SocketAddr]) -> Service<'_> {
        Service::new(self.node(), "PREROUTING", address, endpoints)
    }
}

impl Pod {
    /// A Service inside the pod, where a node's rules are written into pods.
    pub(crate) fn service(&self, address: SocketAddr, endpoints: &[SocketAddr]) -> Service<'_> {
        Service::new(self.namespace(), "OUTPUT", address, endpoints)
    }
}

impl<'a> Service<'a> {
    fn new(namespace: &'a Namespace, hook: &str, address: SocketAddr, endpoints: &[SocketAddr]) -> Self {
        let ip: String = address.ip().to_string().replace([':', '.'], "");
        let service = Self { address, chain: format!("SVC-{ip}-{}", address.port()), namespace };
        service.endpoints(endpoints);
        let (ip, port, chain) = (address.ip(), address.port(), &service.chain);
        service.restore(&format!("-I {hook} 1 -d {ip} -p tcp --dport {port} -j {chain}\n"));
        service
    }

    /// Replaces the endpoints. Connections that are open stay where they are.
    pub(crate) fn endpoints(&self, endpoints: &[SocketAddr]) {
        let chain = &self.chain;
        let mut text = format!(":{chain} - [0:0]\n");
        for (i, endpoint) in endpoints.iter().enumerate() {
            let share = 1.0 / (endpoints.len() - i) as f64;
            let _ = writeln!(
                text,
                "-A {chain} -p tcp -m statistic --mode random --probability {share:.6} -j DNAT --to-destination {endpoint}"
            );
        }
        self.restore(&text);
    }

    fn restore(&self, rules: &str) {
        let program = if self.address.is_ipv4() { "iptables-restore" } else { "ip6tables-restore" };
        self.namespace.run(program, &["--noflush", "--wait"], &format!("*nat\n{rules}COMMIT\n"));
    }
}
