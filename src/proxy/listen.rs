//! The listeners: each address once for each worker (SO_REUSEPORT), or once for what the control
//! thread serves. Port 0 takes a free port, the same for all.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

use crate::config::model::{Direction, Listen};
use crate::config::units::Addresses;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;

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
        let listener = all.tcp("dns", address, false)?;
        let bound = listener.local_addr().and_then(udp);
        all.dns_udp.push(bound.map_err(|error| Unbound { name: "dns", address, error })?);
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

/// With `shared`, the workers' listeners may all have the address.
fn tcp(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let socket = socket(address, Type::STREAM, Protocol::TCP, shared)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn udp(address: SocketAddr) -> io::Result<UdpSocket> {
    Ok(socket(address, Type::DGRAM, Protocol::UDP, false)?.into())
}

fn socket(address: SocketAddr, kind: Type, protocol: Protocol, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    if address.is_ipv6() {
        // The IPv4 address has a listener of its own.
        socket.set_only_v6(true)?;
    }
    // For TCP: not to wait out connections of a process before us. On UDP it would let two processes
    // share a port unnoticed.
    socket.set_reuse_address(kind == Type::STREAM)?;
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}
