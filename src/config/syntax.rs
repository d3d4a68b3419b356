//! The small languages inside a configuration: hosts that routes and limits name, paths,
//! methods, names, SPIFFE ids. Each function says in its error what was expected.

use std::fmt;
use std::str::FromStr;

use super::model::PathMatch;
use super::problem::did_you_mean;
use super::units::{Host, HostPort, parse_port, split_port};

/// A host as routes and limits name it: `*`, `host` or `host:port`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HostPattern {
    /// `*`: any host.
    Any,
    /// One host.
    Host {
        /// The name in lower case without a final dot, an IPv4 address, or an IPv6 address in
        /// brackets in its shortest form.
        host: String,
        /// The port; none is any port.
        port: Option<u16>,
    },
}

impl FromStr for HostPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "*" {
            return Ok(HostPattern::Any);
        }
        let wrong = |why: &str| format!("`{text}` is not a host: {why}");
        if text.contains('*') {
            return Err(wrong("`*` stands alone, for any host"));
        }
        if text.contains('/') {
            return Err(wrong("expected `host` or `host:port`, without scheme or path"));
        }
        let (host, port) = split_port(text);
        let port = port.map(parse_port).transpose().map_err(wrong)?;
        let host: Host = host.parse().map_err(|why: &str| wrong(why))?;
        Ok(HostPattern::Host { host: host.to_string(), port })
    }
}

impl From<&HostPort> for HostPattern {
    fn from(address: &HostPort) -> Self {
        HostPattern::Host { host: address.host.to_string(), port: Some(address.port) }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostPattern::Any => f.write_str("*"),
            HostPattern::Host { host, port: None } => f.write_str(host),
            HostPattern::Host { host, port: Some(port) } => write!(f, "{host}:{port}"),
        }
    }
}

/// A path to match is one that a normalized request can have (RFC 3986 section 3.3): absolute,
/// without query, dot segments or empty segments; a prefix may end with `/`.
pub(super) fn path(matched: &PathMatch) -> Result<(), String> {
    let text = match matched {
        PathMatch::Prefix(path) => path,
        PathMatch::Exact(exact) => &exact.exact,
    };
    let wrong = |why: &str| Err(format!("`{text}` is not a path: {why}"));
    if !text.starts_with('/') {
        return wrong("expected `/` at its beginning");
    }
    if text.contains(['?', '#']) {
        return wrong("the query is not matched; expected the path alone");
    }
    if text.contains('*') {
        return wrong("there are no wildcards; a prefix takes what lies below it by itself");
    }
    let bytes = text.as_bytes();
    for (i, b) in bytes.iter().enumerate() {
        let hex = |offset: usize| bytes.get(i + offset).is_some_and(u8::is_ascii_hexdigit);
        match b {
            b'%' if hex(1) && hex(2) => {}
            b'%' => return wrong("`%` is followed by two hex digits"),
            b'/' | b'-' | b'.' | b'_' | b'~' | b':' | b'@' => {}
            b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'+' | b',' | b';' | b'=' => {}
            _ if b.is_ascii_alphanumeric() => {}
            _ => return wrong("a character here is not of a path; expected it percent-encoded"),
        }
    }
    if text.contains("//") {
        return wrong("it has an empty segment");
    }
    if text.split('/').any(|segment| segment == "." || segment == "..") {
        return wrong("`.` and `..` are resolved before matching, so it would never match");
    }
    Ok(())
}

/// A method: a token (RFC 9110 section 9.1), and not a common one in the wrong case.
pub(super) fn method(text: &str) -> Result<(), String> {
    const COMMON: [&str; 9] =
        ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
    if http::Method::from_bytes(text.as_bytes()).is_err() {
        return Err(format!("`{text}` is not a method; expected a word, as `POST`"));
    }
    let upper = text.to_ascii_uppercase();
    if upper != text && COMMON.contains(&upper.as_str()) {
        return Err(format!("methods are told apart by case{}", did_you_mean(text, [upper.as_str()])));
    }
    Ok(())
}

/// A field's name (RFC 9110 section 5.1).
pub(super) fn field(text: &str) -> Result<(), String> {
    match http::HeaderName::from_bytes(text.as_bytes()) {
        Ok(_) => Ok(()),
        Err(_) => Err(format!("`{text}` is not a field's name; expected one as `x-user`")),
    }
}

/// Text that a value is compared with: `*` stands at its end alone.
pub(super) fn pattern(text: &str) -> Result<(), String> {
    match text.find('*') {
        Some(at) if at + 1 < text.len() => {
            Err(format!("`{text}`: `*` stands at the end alone, for any rest of the value"))
        }
        _ if text.is_empty() => {
            Err("an empty text fits nothing but an empty value; write `*` for any".into())
        }
        _ => Ok(()),
    }
}

/// A cookie's name: a token, as a method is (RFC 6265 section 4.1.1).
pub(super) fn cookie(text: &str) -> Result<(), String> {
    match http::Method::from_bytes(text.as_bytes()) {
        Ok(_) => Ok(()),
        Err(_) => Err(format!("`{text}` is not a cookie's name; expected one as `session`")),
    }
}

/// A name of an upstream or a limit: it stands in metrics, header fields and keys in Redis.
pub(super) fn name(text: &str) -> Result<(), String> {
    let ok = (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if ok {
        return Ok(());
    }
    Err(format!("`{text}` is not a name; expected 1 to 64 of letters, digits, `-`, `_` and `.`"))
}

/// A workload's SPIFFE id: trust domain and path, by the SPIFFE-ID specification.
pub(super) fn spiffe_id(text: &str) -> Result<(), String> {
    let wrong = |why: &str| Err(format!("`{text}` is not a SPIFFE id: {why}"));
    let Some(rest) = text.strip_prefix("spiffe://") else {
        return wrong("expected `spiffe://TRUST-DOMAIN/PATH`");
    };
    if text.len() > 2048 {
        return wrong("it is longer than 2048 bytes");
    }
    let Some((domain, path)) = rest.split_once('/') else {
        return wrong("expected a path after the trust domain");
    };
    if let Err(why) = trust_domain(domain) {
        return wrong(why);
    }
    if path.split('/').any(|segment| segment.is_empty() || segment == "." || segment == "..") {
        return wrong("its path has an empty segment, `.` or `..`");
    }
    if !path.bytes().all(is_spiffe_path) {
        return wrong("its path holds more than letters, digits, `.`, `-`, `_` and `/`");
    }
    Ok(())
}

/// A SPIFFE id, or the beginning of one and `*` for any rest, or `*` alone. The trust domain is
/// always whole: `spiffe://cluster.local*` would take `spiffe://cluster.local.evil`.
pub(super) fn spiffe_pattern(text: &str) -> Result<(), String> {
    let Some(beginning) = text.strip_suffix('*') else {
        return spiffe_id(text);
    };
    if beginning.is_empty() {
        return Ok(());
    }
    let wrong = |why: &str| Err(format!("`{text}` is not a caller: {why}"));
    let Some((domain, path)) = beginning.strip_prefix("spiffe://").and_then(|rest| rest.split_once('/'))
    else {
        return wrong("expected `*` alone, or after `spiffe://TRUST-DOMAIN/`");
    };
    if let Err(why) = trust_domain(domain) {
        return wrong(why);
    }
    if path.contains('*') {
        return wrong("`*` stands at the end alone");
    }
    if !path.bytes().all(is_spiffe_path) {
        return wrong("its path holds more than letters, digits, `.`, `-`, `_` and `/`");
    }
    Ok(())
}

fn trust_domain(text: &str) -> Result<(), &'static str> {
    let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
    if text.is_empty() || text.len() > 255 || !text.bytes().all(ok) {
        return Err("a trust domain is of lower-case letters, digits, `.`, `-` and `_`");
    }
    Ok(())
}

fn is_spiffe_path(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'/')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::ExactPath;

    #[test]
    fn host_patterns() {
        for (text, shown) in [
            ("*", "*"),
            ("Orders.Shop.", "orders.shop"),
            ("orders:80", "orders:80"),
            ("10.0.0.7", "10.0.0.7"),
            ("[FD00:0::7]:80", "[fd00::7]:80"),
            ("[::1]", "[::1]"),
        ] {
            assert_eq!(text.parse::<HostPattern>().unwrap().to_string(), shown);
        }
        for (text, why) in [
            ("", "not a DNS name"),
            ("*.shop", "`*` stands alone"),
            ("*:80", "`*` stands alone"),
            ("http://orders", "without scheme or path"),
            ("orders/v1", "without scheme or path"),
            ("orders:0", "the port is 0"),
            ("orders:http", "the port is not a number"),
            ("fd00::7", "stands in brackets"),
        ] {
            let error = text.parse::<HostPattern>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn paths() {
        for good in ["/", "/v1/", "/v1/a%20b", "/x.y/~z/:id@2;p=1", "/.well-known/x"] {
            path(&PathMatch::Prefix(good.into())).unwrap();
        }
        for (bad, why) in [
            ("", "at its beginning"),
            ("v1", "at its beginning"),
            ("/a?b", "the query"),
            ("/a#b", "the query"),
            ("/a//b", "an empty segment"),
            ("/a/../b", "resolved before"),
            ("/.", "resolved before"),
            ("/a b", "percent-encoded"),
            ("/é", "percent-encoded"),
            ("/a%2", "two hex digits"),
            ("/v1/*", "no wildcards"),
        ] {
            let error = path(&PathMatch::Exact(ExactPath { exact: bad.into() })).unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }

    #[test]
    fn methods_and_names() {
        method("POST").unwrap();
        method("PURGE").unwrap();
        assert!(method("post").unwrap_err().contains("did you mean `POST`?"));
        assert!(method("").is_err());
        assert!(method("GET POST").is_err());
        name("orders-v1.eu_2").unwrap();
        for bad in ["", "a b", "a{b}", "é", &"x".repeat(65)] {
            assert!(name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn spiffe() {
        for good in ["spiffe://cluster.local/ns/shop/sa/orders", "spiffe://a_b-c.1/X"] {
            spiffe_id(good).unwrap();
            spiffe_pattern(good).unwrap();
        }
        for bad in [
            "",
            "cluster.local/ns/shop",
            "https://cluster.local/ns",
            "spiffe://cluster.local",
            "spiffe://cluster.local/",
            "spiffe:///ns",
            "spiffe://Cluster.local/ns",
            "spiffe://cluster.local:80/ns",
            "spiffe://u@cluster.local/ns",
            "spiffe://cluster.local/ns/",
            "spiffe://cluster.local/ns//x",
            "spiffe://cluster.local/ns/../x",
            "spiffe://cluster.local/ns?x",
            "spiffe://cluster.local/ns%20x",
        ] {
            assert!(spiffe_id(bad).is_err(), "{bad}");
            assert!(spiffe_pattern(bad).is_err(), "{bad}");
        }
        assert!(spiffe_id(&format!("spiffe://td/{}", "x".repeat(2048))).is_err());
        for good in ["*", "spiffe://cluster.local/*", "spiffe://cluster.local/ns/shop/*"] {
            spiffe_pattern(good).unwrap();
        }
        for bad in ["spiffe://*", "spiffe://cluster.local*", "spiffe://cluster.local/*/x*", "**", "x*"] {
            assert!(spiffe_pattern(bad).is_err(), "{bad}");
        }
    }
}
