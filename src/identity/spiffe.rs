//! SPIFFE ids: `spiffe://trust-domain/path`, read once and strictly, so that two ids are the same
//! workload exactly when their bytes are the same. Nothing is normalised: what the SPIFFE-ID
//! specification does not allow is refused (upper case in the trust domain, ports, user info,
//! queries, fragments, percent-encoding, empty, `.` and `..` segments, a final `/`).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// What every id begins with.
const SCHEME: &str = "spiffe://";

/// The longest id, in bytes (SPIFFE-ID section 2.3).
const MAX_ID: usize = 2048;

/// The longest trust domain, in bytes (SPIFFE-ID section 2.3).
const MAX_TRUST_DOMAIN: usize = 255;

/// A valid SPIFFE id. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    text: Arc<str>,
    /// Where the path begins in `text`, or its length.
    path: u16,
}

/// Why a text is no SPIFFE id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// It does not begin with `spiffe://`.
    #[error("it does not begin with `spiffe://`")]
    Scheme,
    /// It is longer than 2048 bytes.
    #[error("it is longer than {MAX_ID} bytes")]
    TooLong,
    /// Nothing stands between `spiffe://` and the path.
    #[error("the trust domain is missing")]
    NoTrustDomain,
    /// The trust domain is longer than 255 bytes.
    #[error("the trust domain is longer than {MAX_TRUST_DOMAIN} bytes")]
    TrustDomainTooLong,
    /// The trust domain has a character that none may have.
    #[error("the trust domain may hold only `a` to `z`, `0` to `9`, `.`, `-` and `_`")]
    TrustDomain,
    /// The path ends with `/`, or has `//`.
    #[error("the path has an empty segment")]
    EmptySegment,
    /// The path has a segment `.` or `..`.
    #[error("the path has a segment `.` or `..`")]
    DotSegment,
    /// The path has a character that none may have.
    #[error("the path may hold only letters, digits, `.`, `-`, `_` and `/`")]
    Path,
}

impl SpiffeId {
    /// The id, `spiffe://trust-domain/path`.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The trust domain: who vouches for the id.
    pub fn trust_domain(&self) -> &str {
        &self.text[SCHEME.len()..usize::from(self.path)]
    }

    /// The path with its leading `/`; empty when the id names the trust domain itself.
    pub fn path(&self) -> &str {
        &self.text[usize::from(self.path)..]
    }
}

impl FromStr for SpiffeId {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text.len() > MAX_ID {
            return Err(Invalid::TooLong);
        }
        let rest = text.strip_prefix(SCHEME).ok_or(Invalid::Scheme)?;
        let trust_domain = rest.find('/').map_or(rest, |slash| &rest[..slash]);
        check_trust_domain(trust_domain)?;
        check_path(&rest[trust_domain.len()..])?;
        let path = SCHEME.len() + trust_domain.len();
        Ok(Self { text: text.into(), path: u16::try_from(path).map_err(|_| Invalid::TooLong)? })
    }
}

/// Refuses what is no name of a trust domain.
fn check_trust_domain(name: &str) -> Result<(), Invalid> {
    if name.is_empty() {
        return Err(Invalid::NoTrustDomain);
    }
    if name.len() > MAX_TRUST_DOMAIN {
        return Err(Invalid::TrustDomainTooLong);
    }
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-_".contains(&b);
    if !name.bytes().all(allowed) {
        return Err(Invalid::TrustDomain);
    }
    Ok(())
}

/// Refuses what is no path: empty, or segments that each begin with `/`.
fn check_path(path: &str) -> Result<(), Invalid> {
    let Some(segments) = path.strip_prefix('/') else { return Ok(()) };
    for segment in segments.split('/') {
        if segment.is_empty() {
            return Err(Invalid::EmptySegment);
        }
        if matches!(segment, "." | "..") {
            return Err(Invalid::DotSegment);
        }
        if !segment.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b)) {
            return Err(Invalid::Path);
        }
    }
    Ok(())
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_id_has_a_trust_domain_and_a_path() {
        let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/orders".parse().unwrap();
        assert_eq!(id.trust_domain(), "cluster.local");
        assert_eq!(id.path(), "/ns/shop/sa/orders");
        assert_eq!(id.to_string(), "spiffe://cluster.local/ns/shop/sa/orders");

        let domain: SpiffeId = "spiffe://a-b_c.9".parse().unwrap();
        assert_eq!((domain.trust_domain(), domain.path()), ("a-b_c.9", ""));
    }

    #[test]
    fn what_the_specification_forbids_is_refused() {
        let longest = format!("spiffe://{}/{}", "d".repeat(255), "p".repeat(MAX_ID - 265));
        assert_eq!(longest.len(), MAX_ID);
        assert!(longest.parse::<SpiffeId>().is_ok());
        let cases: &[(&str, Invalid)] = &[
            ("", Invalid::Scheme),
            ("https://cluster.local/a", Invalid::Scheme),
            ("SPIFFE://cluster.local/a", Invalid::Scheme),
            ("spiffe:/cluster.local/a", Invalid::Scheme),
            (" spiffe://cluster.local/a", Invalid::Scheme),
            ("spiffe://", Invalid::NoTrustDomain),
            ("spiffe:///a", Invalid::NoTrustDomain),
            ("spiffe://Cluster.local/a", Invalid::TrustDomain),
            ("spiffe://cluster.local:443/a", Invalid::TrustDomain),
            ("spiffe://user@cluster.local/a", Invalid::TrustDomain),
            ("spiffe://*.local/a", Invalid::TrustDomain),
            ("spiffe://cluster%2elocal/a", Invalid::TrustDomain),
            ("spiffe://cluster.local?q", Invalid::TrustDomain),
            ("spiffe://cluster.local#f", Invalid::TrustDomain),
            ("spiffe://cl\u{fc}ster.local/a", Invalid::TrustDomain),
            ("spiffe://cluster.local\0/a", Invalid::TrustDomain),
            ("spiffe://cluster.local/", Invalid::EmptySegment),
            ("spiffe://cluster.local/a/", Invalid::EmptySegment),
            ("spiffe://cluster.local//a", Invalid::EmptySegment),
            ("spiffe://cluster.local/./a", Invalid::DotSegment),
            ("spiffe://cluster.local/a/..", Invalid::DotSegment),
            ("spiffe://cluster.local/a?q", Invalid::Path),
            ("spiffe://cluster.local/a#f", Invalid::Path),
            ("spiffe://cluster.local/*", Invalid::Path),
            ("spiffe://cluster.local/a%2fb", Invalid::Path),
            ("spiffe://cluster.local/a b", Invalid::Path),
            ("spiffe://cluster.local/a\n", Invalid::Path),
            ("spiffe://cluster.local/a\0b", Invalid::Path),
            ("spiffe://cluster.local/\u{e9}", Invalid::Path),
        ];
        for (text, why) in cases {
            assert_eq!(text.parse::<SpiffeId>().unwrap_err(), *why, "{text:?}");
        }
        assert_eq!(format!("{longest}p").parse::<SpiffeId>().unwrap_err(), Invalid::TooLong);
        let wide = format!("spiffe://{}/a", "d".repeat(256));
        assert_eq!(wide.parse::<SpiffeId>().unwrap_err(), Invalid::TrustDomainTooLong);
    }

    proptest! {
        #[test]
        fn an_id_is_its_own_text(text in "(spiffe://)?[a-zA-Z0-9./_%?#:@ -]{0,40}|\\PC{0,40}") {
            if let Ok(id) = text.parse::<SpiffeId>() {
                prop_assert_eq!(id.as_str(), &text);
                prop_assert_eq!(format!("spiffe://{}{}", id.trust_domain(), id.path()), text);
            }
        }
    }
}
