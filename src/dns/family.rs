//! Which family of addresses comes first where a name has both: the other is the way around it, as
//! Happy Eyeballs has it (RFC 8305), and not more endpoints. In a dual-stack cluster both are the
//! same pods.
//!
//! The order is that of RFC 6724's default policy: a family that this machine has no way to reach
//! comes last (rule 1), then global IPv6 before IPv4 before unique local IPv6 (rule 6).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// Says of each address of one name whether it is of the family that comes second.
pub(super) fn second(addresses: &[IpAddr]) -> impl Fn(&IpAddr) -> bool {
    let first_v6 = addresses.iter().find(|address| address.is_ipv6());
    let first_v4 = addresses.iter().find(|address| address.is_ipv4());
    let second_is_v6 = match (first_v4, first_v6) {
        (Some(v4), Some(v6)) => Some(rank(v6) > rank(v4)),
        _ => None,
    };
    move |address| second_is_v6 == Some(address.is_ipv6())
}

/// The less, the better.
fn rank(address: &IpAddr) -> (bool, u8) {
    let preference = match address {
        IpAddr::V6(address) if address.is_loopback() => 0,
        IpAddr::V6(address) if !address.is_unique_local() && !address.is_unicast_link_local() => 1,
        IpAddr::V4(_) => 2,
        IpAddr::V6(_) => 3,
    };
    (!is_reachable(*address), preference)
}

/// Whether there is a route to an address, and an address of ours to come from. Nothing is sent.
fn is_reachable(address: IpAddr) -> bool {
    let ours: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // Any port: the kernel only looks up the way.
    let discard = SocketAddr::new(address, 9);
    UdpSocket::bind((ours, 0)).is_ok_and(|socket| socket.connect(discard).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(texts: &[&str]) -> Vec<String> {
        let addresses: Vec<IpAddr> = texts.iter().map(|text| text.parse().unwrap()).collect();
        let second = second(&addresses);
        addresses.iter().filter(|address| second(address)).map(ToString::to_string).collect()
    }

    #[test]
    fn one_family_alone_is_never_second() {
        assert!(seconds(&["127.0.0.1", "10.255.255.1"]).is_empty());
        assert!(seconds(&["::1", "2001:db8::1"]).is_empty());
    }

    #[test]
    fn of_both_the_one_that_can_be_reached_and_is_preferred_comes_first() {
        assert_eq!(seconds(&["127.0.0.1", "127.0.0.2", "::1"]), ["127.0.0.1", "127.0.0.2"]);
        // Documentation addresses: no machine has a way to a link-local one without its link.
        assert_eq!(seconds(&["127.0.0.1", "fe80::1"]), ["fe80::1"]);
    }
}
