//! Interception: how a connection that the kernel redirected to us tells where it was meant to
//! go, the rules that redirect it, and what the kernel says is listened on beside us.
//!
//! It promises that an original destination is only ever the kernel's word, never the peer's,
//! and that what `pannier init` installs redirects every TCP connection of the pod exactly once.

pub mod install;
pub mod listening;
pub mod rules;

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::net::TcpStream;

/// Where the inbound proxy's connections to the application come from. The rules let these
/// addresses pass, so that the application is reached and not the proxy again.
pub const INBOUND_SOURCE: Source =
    Source { v4: Ipv4Addr::new(127, 0, 0, 6), v6: Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6) };

/// A source address in both families.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// Towards IPv4. On `lo` by nature: all of 127.0.0.0/8 is.
    pub v4: Ipv4Addr,
    /// Towards IPv6. `pannier init` adds it to `lo`.
    pub v6: Ipv6Addr,
}

impl Source {
    /// The address of the family of `target`.
    pub fn towards(self, target: IpAddr) -> IpAddr {
        match target.to_canonical() {
            IpAddr::V4(_) => self.v4.into(),
            IpAddr::V6(_) => self.v6.into(),
        }
    }
}

/// Where a redirected connection was meant to go: the destination of its first packet, as
/// conntrack remembers it. `None` when nothing redirected it.
pub fn original_destination(stream: &TcpStream) -> Option<SocketAddr> {
    let peer = canonical(stream.peer_addr().ok()?);
    let local = canonical(stream.local_addr().ok()?);
    let socket = SockRef::from(stream);
    // An IPv4 connection on an IPv6 socket is IPv4 to conntrack: the client's address decides,
    // not the socket's family.
    let original = match peer {
        SocketAddr::V4(_) => socket.original_dst_v4(),
        SocketAddr::V6(_) => socket.original_dst_v6(),
    };
    let original = canonical(original.ok()?.as_socket()?);
    (original != local).then_some(original)
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// How long an address that was ours is believed to be.
const LOCAL_FOR: Duration = Duration::from_secs(10);

thread_local! {
    /// The last few addresses that were ours, with the time until which that is believed. A pod
    /// has an address or two of each family.
    static LOCAL: RefCell<[Option<(IpAddr, Instant)>; 4]> = const { RefCell::new([None; 4]) };
}

/// Whether `ip` is assigned to this pod. The kernel is asked by binding a socket to it; a yes is
/// remembered for ten seconds, a no never, so that a new address is accepted at once.
///
/// An IPv6 link-local address is not recognised: without its interface it names no host.
pub fn is_local(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    let now = Instant::now();
    let known = |known: &Option<(IpAddr, Instant)>| known.is_some_and(|(at, until)| at == ip && now < until);
    if LOCAL.with_borrow(|local| local.iter().any(known)) {
        return true;
    }
    let ours = is_assigned(ip);
    if ours {
        LOCAL.with_borrow_mut(|local| {
            local.rotate_right(1);
            local[0] = Some((ip, now + LOCAL_FOR));
        });
    }
    ours
}

/// As [`is_local`], asked anew.
fn is_assigned(ip: IpAddr) -> bool {
    // These can be bound although no host has them.
    let nobody = ip.is_unspecified() || ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST);
    !nobody && UdpSocket::bind((ip, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_addresses_are_local() {
        for ip in ["127.0.0.1", "127.0.0.6", "::ffff:127.0.0.1"] {
            let ip = ip.parse().expect("an address");
            assert!(is_local(ip), "{ip}");
            assert!(is_local(ip), "{ip}, remembered");
        }
    }

    #[test]
    fn foreign_and_meaningless_addresses_are_not() {
        for ip in ["192.0.2.1", "2001:db8::1", "0.0.0.0", "::", "224.0.0.1", "ff02::1", "255.255.255.255"] {
            assert!(!is_local(ip.parse().expect("an address")), "{ip}");
        }
    }

    #[test]
    fn the_source_has_the_targets_family() {
        let towards = |ip: &str| INBOUND_SOURCE.towards(ip.parse().expect("an address")).to_string();
        assert_eq!(towards("10.0.0.1"), "127.0.0.6");
        assert_eq!(towards("::ffff:10.0.0.1"), "127.0.0.6");
        assert_eq!(towards("fd00::1"), "::6");
    }

    #[tokio::test]
    async fn a_plain_connection_has_no_original_destination() {
        for local in ["127.0.0.1:0", "[::1]:0"] {
            let listener = tokio::net::TcpListener::bind(local).await.expect("loopback");
            let address = listener.local_addr().expect("bound");
            let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
            assert_eq!(original_destination(&accepted.expect("accepted").0), None);
            assert_eq!(original_destination(&client.expect("connected")), None);
        }
    }
}
