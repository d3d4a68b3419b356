//! The listeners: each address once for each worker (SO_REUSEPORT), or once for what the control
//! thread serves. Port 0 takes a free port, the same for all.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use crate::config::model::{Direction, Listen};
use crate::config::units::Addresses;
use crate::listen::{tcp, udp};

/// Everything that is listened on.
pub(super) struct Listeners {
    /// For each worker, its own.
    pub workers: Vec<Vec<(Direction, TcpListener)>>,
    pub admin: Vec<TcpListener>,
    pub probes: Vec<TcpListener>,
    pub dns_udp: Vec<UdpSocket>,
    pub dns_tcp: Vec<TcpListener>,
    /// What was bound, by the names of the configuration.
    pub bound: Vec<(&'static str, SocketAddr)>,
}

/// An address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("listen.{name}: cannot listen on {address}: {error}")]
pub struct Unbound {
    name: &'static str,
    address: SocketAddr,
    error: io::Error,
}

/// Binds all that `listen` names.
pub(super) fn bind(listen: &Listen, workers: usize) -> Result<Listeners, Unbound> {
    let defaults = Listen::default();
    let mut all = Listeners {
        workers: (0..workers).map(|_| Vec::new()).collect(),
        admin: Vec::new(),
        probes: Vec::new(),
        dns_udp: Vec::new(),
        dns_tcp: Vec::new(),
        bound: Vec::new(),
    };
    let traffic = [
        ("outbound", Direction::Outbound, &listen.outbound, &defaults.outbound),
        ("inbound", Direction::Inbound, &listen.inbound, &defaults.inbound),
    ];
    for (name, direction, addresses, default) in traffic {
        for address in each(name, addresses, default) {
            // Without SO_REUSEPORT first: another process that listens there is to be noticed.
            drop(tcp(address, false).map_err(|error| Unbound { name, address, error })?);
            let first = all.tcp(name, address, true)?;
            let bound = first.local_addr().map_err(|error| Unbound { name, address, error })?;
            all.workers[0].push((direction, first));
            for worker in &mut all.workers[1..] {
                worker.push((direction, tcp(bound, true).map_err(|error| Unbound { name, address, error })?));
            }
        }
    }
    for address in each("admin", &listen.admin, &defaults.admin) {
        let listener = all.tcp("admin", address, false)?;
        all.admin.push(listener);
    }
    for address in each("probes", &listen.probes, &defaults.probes) {
        let listener = all.tcp("probes", address, false)?;
        all.probes.push(listener);
    }
    for address in each("dns", &listen.dns, &defaults.dns) {
        let failed = |error| Unbound { name: "dns", address, error };
        let (listener, socket) = same_port(address).map_err(failed)?;
        all.bound.push(("dns", listener.local_addr().map_err(failed)?));
        all.dns_udp.push(socket);
        all.dns_tcp.push(listener);
    }
    Ok(all)
}

impl Listeners {
    fn tcp(&mut self, name: &'static str, address: SocketAddr, shared: bool) -> Result<TcpListener, Unbound> {
        let failed = |error| Unbound { name, address, error };
        let listener = tcp(address, shared).map_err(failed)?;
        self.bound.push((name, listener.local_addr().map_err(failed)?));
        Ok(listener)
    }
}

/// A port, for TCP and UDP alike. One that is free for the one may be taken for the other: where any will do,
/// others are tried.
fn same_port(address: SocketAddr) -> io::Result<(TcpListener, UdpSocket)> {
    let mut tries = if address.port() == 0 { 16 } else { 1 };
    loop {
        let listener = tcp(address, false)?;
        tries -= 1;
        match listener.local_addr().and_then(udp) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries > 0 => {}
            socket => return Ok((listener, socket?)),
        }
    }
}

/// The addresses to bind: those of the default that this machine has no family for are left out,
/// those that somebody wrote are not.
fn each(name: &'static str, addresses: &Addresses, default: &Addresses) -> Vec<SocketAddr> {
    let written = addresses != default;
    let possible = |address: &SocketAddr| {
        let missing = !written && address.is_ipv6() && !has_ipv6();
        if missing {
            tracing::info!("listen.{name}: no IPv6 on this machine, so {address} is left out");
        }
        !missing
    };
    addresses.as_slice().iter().copied().filter(possible).collect()
}

fn has_ipv6() -> bool {
    UdpSocket::bind("[::1]:0").is_ok()
}
