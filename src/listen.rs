//! Sockets that are listened on. An IPv6 address takes no IPv4, so that both can be had on one port;
//! port 0 takes a free one.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;

/// A listener; with `shared`, others of this process may have the address too.
pub(crate) fn tcp(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let socket = socket(address, Type::STREAM, Protocol::TCP, shared)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// A socket for datagrams.
pub(crate) fn udp(address: SocketAddr) -> io::Result<UdpSocket> {
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
