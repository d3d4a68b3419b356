//! Whom a request names: a host, or a host and a port, and nothing else (RFC 9110 section 7.2). It
//! is read once, strictly, and then only looked at.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use bytes::Bytes;
use http::uri;

/// A host and perhaps a port.
#[derive(Clone)]
pub struct Authority {
    text: uri::Authority,
    /// The host, where `text` has it otherwise than in lower case and without a final dot.
    host: Option<Box<str>>,
    /// Where the host ends in `text`.
    host_end: usize,
    port: Option<u16>,
}

/// A text is no host, and no host and port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a host, or a host and a port")]
pub struct NotAnAuthority;

impl Authority {
    /// Reads it from where it arrived.
    pub fn read(text: Bytes) -> Result<Self, NotAnAuthority> {
        uri::Authority::from_maybe_shared(text).map_err(|_| NotAnAuthority)?.try_into()
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        self.text.as_str()
    }

    /// The host, in lower case and without its final dot; an IPv6 address in brackets.
    pub fn host(&self) -> &str {
        match &self.host {
            Some(host) => host,
            None => &self.as_str()[..self.host_end],
        }
    }

    /// The port, if it is named.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// As the crates of HTTP have it.
    pub fn to_uri(&self) -> uri::Authority {
        self.text.clone()
    }
}

/// The type also takes user information, `host:`, `host:+80`, `host:99999` and any text in brackets.
impl TryFrom<uri::Authority> for Authority {
    type Error = NotAnAuthority;

    fn try_from(text: uri::Authority) -> Result<Self, NotAnAuthority> {
        let all = text.as_str();
        let (host_end, port) = match all.rfind([':', ']']) {
            Some(at) if all.as_bytes()[at] == b':' => (at, Some(read_port(&all[at + 1..])?)),
            _ => (all.len(), None),
        };
        let host = &all[..host_end];
        let normal = host.strip_suffix('.').unwrap_or(host);
        match host.strip_prefix('[') {
            None if normal.is_empty() || host.contains(['@', ':', '[', ']']) => return Err(NotAnAuthority),
            None => {}
            Some(rest) => {
                let address = rest.strip_suffix(']').ok_or(NotAnAuthority)?;
                address.parse::<Ipv6Addr>().map_err(|_| NotAnAuthority)?;
            }
        }
        let has_upper = normal.bytes().fold(false, |upper, b| upper | b.is_ascii_uppercase());
        let host = has_upper.then(|| normal.to_ascii_lowercase().into());
        let host_end = normal.len();
        Ok(Self { text, host, host_end, port })
    }
}

/// Digits alone, and a port that there is.
fn read_port(text: &str) -> Result<u16, NotAnAuthority> {
    match text.parse() {
        Ok(port) if port != 0 && text.bytes().all(|b| b.is_ascii_digit()) => Ok(port),
        _ => Err(NotAnAuthority),
    }
}

impl FromStr for Authority {
    type Err = NotAnAuthority;

    fn from_str(text: &str) -> Result<Self, NotAnAuthority> {
        Self::read(Bytes::copy_from_slice(text.as_bytes()))
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_and_perhaps_a_port() {
        for (text, host, port) in [
            ("orders", "orders", None),
            ("Orders.Shop.:8080", "orders.shop", Some(8080)),
            ("orders.shop.", "orders.shop", None),
            ("10.0.0.1:80", "10.0.0.1", Some(80)),
            ("[fd00::7]", "[fd00::7]", None),
            ("[FD00::7]:65535", "[fd00::7]", Some(65535)),
        ] {
            let authority: Authority = text.parse().unwrap();
            assert_eq!((authority.host(), authority.port()), (host, port), "{text}");
            assert_eq!(authority.as_str(), text, "kept as it was written");
        }
    }

    #[test]
    fn nothing_else() {
        for text in [
            "",
            ".",
            ":80",
            "host:",
            "host:0",
            "host:+80",
            "host:65536",
            "host:80:80",
            "user@host",
            "user:pass@host:80",
            "a b",
            "a/b",
            "[fd00::7",
            "fd00::7]",
            "[fd00::7]x",
            "[fd00::7]:",
            "[v1.x]",
            "[host]:80",
            "fd00::7",
            "host:8080x",
            "a[b]",
            "[::1]@host",
            "a\u{e9}",
        ] {
            assert!(text.parse::<Authority>().is_err(), "{text}");
        }
    }
}
