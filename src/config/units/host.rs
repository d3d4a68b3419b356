//! Hosts with ports, and the names of services.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A DNS name or address, with a port: `orders.shop:8080`, `10.0.0.7:80`, `[fd00::7]:80`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    /// The name in lower case without a final dot, or the address.
    pub host: Host,
    /// The port; never 0.
    pub port: u16,
}

/// The host of a [`HostPort`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    /// A DNS name, in lower case, without a final dot.
    Name(String),
    /// An address.
    Address(IpAddr),
}

/// What an upstream's endpoints are found by.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EndpointName {
    /// A name or address, and the port that its addresses listen on.
    At(HostPort),
    /// The name of SRV records (RFC 2782), which bring ports along: in lower case, without a final
    /// dot, beginning with `_`.
    Srv(String),
}

impl FromStr for HostPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("`{text}` is not `host:port`: {why}");
        let (host, port) = split_port(text);
        let port = port.ok_or_else(|| wrong("the port is missing"))?;
        let port = parse_port(port).map_err(wrong)?;
        let host = host.parse().map_err(|why: &str| wrong(why))?;
        Ok(HostPort { host, port })
    }
}

impl FromStr for EndpointName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if !text.starts_with('_') || text.contains(':') {
            return text.parse().map(EndpointName::At);
        }
        let is_srv = |name: &str| matches!(name.splitn(3, '.').collect::<Vec<_>>()[..], [_, proto, _] if proto.starts_with('_'));
        match text.parse() {
            Ok(Host::Name(name)) if is_srv(&name) => Ok(EndpointName::Srv(name)),
            _ => Err(format!("`{text}` is not an SRV name; expected one as `_http._tcp.orders.shop`")),
        }
    }
}

impl fmt::Display for EndpointName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EndpointName::At(host) => host.fmt(f),
            EndpointName::Srv(name) => f.write_str(name),
        }
    }
}

impl FromStr for Host {
    type Err = &'static str;

    /// A DNS name, an IPv4 address, or an IPv6 address in brackets.
    fn from_str(text: &str) -> Result<Self, &'static str> {
        if let Some(inner) = text.strip_prefix('[') {
            return match inner.strip_suffix(']').map(str::parse::<Ipv6Addr>) {
                Some(Ok(address)) => Ok(Host::Address(IpAddr::V6(address).to_canonical())),
                _ => Err("what stands in brackets is not an IPv6 address"),
            };
        }
        if text.contains(':') {
            return Err("an IPv6 address stands in brackets, as `[fd00::7]:80`");
        }
        if let Ok(address) = text.parse::<Ipv4Addr>() {
            return Ok(Host::Address(IpAddr::V4(address)));
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        let label_ok = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if name.len() > 253 || !name.split('.').all(label_ok) {
            return Err("the host is not a DNS name");
        }
        if name.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit())) {
            return Err("the host is neither an IPv4 address nor a DNS name");
        }
        Ok(Host::Name(name.to_ascii_lowercase()))
    }
}

/// Cuts `host:port` in two, the colons of an IPv6 address in brackets apart. A bare IPv6 address
/// is left whole, for [`Host`] to refuse.
pub(in crate::config) fn split_port(text: &str) -> (&str, Option<&str>) {
    let after_brackets = text.rfind(']').map_or(0, |end| end + 1);
    match text[after_brackets..].rfind(':') {
        Some(colon) if after_brackets > 0 || text.matches(':').count() == 1 => {
            let colon = after_brackets + colon;
            (&text[..colon], Some(&text[colon + 1..]))
        }
        _ => (text, None),
    }
}

/// A port from 1 to 65535, in digits alone.
pub(in crate::config) fn parse_port(text: &str) -> Result<u16, &'static str> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse() {
        Ok(0) => Err("the port is 0"),
        Ok(port) if digits => Ok(port),
        _ => Err("the port is not a number from 1 to 65535"),
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Name(name) => f.write_str(name),
            Host::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
            Host::Address(address) => write!(f, "{address}"),
        }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}
