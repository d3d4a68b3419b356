//! Heads of requests over HTTP/2: what has two readings, or none once it is HTTP/1, is refused
//! (RFC 9113 section 8).

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, COOKIE, HOST};
use http::request::Parts;
use http::uri::{self, PathAndQuery, Scheme, Uri};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};

use crate::error::{Error, Reason};
use crate::http::h1::parse::{content_length, is_own, is_path};
use crate::http::{Authority, Body, Bounds, Length, RequestHead};

/// Fields of one hop, which HTTP/2 has no place for (RFC 9113 section 8.2.2).
pub(super) const HOP_FIELDS: [&str; 5] =
    ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"];

/// The head of a request, with what the crate lets pass and we do not refused.
pub(super) fn request(parts: Parts, body: &Body<'_>, bounds: &Bounds) -> Result<RequestHead, Error> {
    let malformed = |why: &'static str| Error::new(Reason::HttpMalformed, why);
    let mut headers = parts.headers;
    // RFC 9113 section 8.2.1. In HTTP/1 it would not be of the value.
    if headers.values().any(|value| matches!(value.as_bytes(), [b' ' | b'\t', ..] | [.., b' ' | b'\t'])) {
        return Err(malformed("a field's value begins or ends with white space"));
    }
    measure(&parts.method, &parts.uri, &headers, bounds)?;
    if HOP_FIELDS.iter().any(|name| headers.contains_key(*name)) {
        return Err(malformed("a field of one connection, which HTTP/2 does not have"));
    }
    if headers.get_all("te").iter().any(|v| v != "trailers") {
        return Err(malformed("TE may only say trailers"));
    }
    if headers.get_all("expect").iter().any(|v| !v.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        return Err(Error::new(Reason::HttpExpectation, "only 100-continue can be expected here"));
    }
    if parts.method == Method::TRACE && !matches!(body, Body::Empty) {
        return Err(malformed("TRACE has no body"));
    }
    if parts.uri.scheme().is_some_and(|scheme| *scheme != Scheme::HTTP && *scheme != Scheme::HTTPS) {
        return Err(malformed(":scheme is neither http nor https"));
    }
    let authority = authority(parts.uri.authority().cloned(), &mut headers).map_err(malformed)?;
    let connects = parts.method == Method::CONNECT;
    let path = match parts.uri.path_and_query() {
        // RFC 9113 section 8.5: the authority alone, which names a port.
        None if connects && authority.port().is_some() => PathAndQuery::from_static("/"),
        None if connects => return Err(malformed("CONNECT needs host:port")),
        // The crate lets this pass as the extended CONNECT of RFC 8441 alone, which is not offered.
        Some(_) if connects => return Err(malformed("CONNECT has no path")),
        path => path.cloned().ok_or_else(|| malformed("no :path"))?,
    };
    let of_all = parts.method == Method::OPTIONS && path == "*";
    if !of_all && !is_path(&path) {
        return Err(malformed(":path is not a path"));
    }
    one_cookie(&mut headers);
    let length = match only(&mut headers, CONTENT_LENGTH).map_err(malformed)? {
        // The crate will check that the body fits it.
        Some(value) => match content_length(value.as_bytes()) {
            Ok(length) => Length::Sized(length),
            Err(_) => return Err(malformed("content-length is not a number")),
        },
        None if connects || matches!(body, Body::Empty) => Length::None,
        None => Length::Stream,
    };
    if connects && !length.is_empty() {
        return Err(malformed("CONNECT has no body"));
    }
    let (method, fields) = (parts.method, headers.into());
    let (authority, version) = (Some(authority), Version::HTTP_2);
    Ok(RequestHead { method, authority, path, version, fields, length, upgrade: None, expiry: None })
}

/// The largest field section that is decoded at all: twice what a head may have, so that one that is
/// too large is told so by us; what is beyond that the crate refuses unread. HTTP/2 counts 32 bytes for
/// each field beyond its text (RFC 9113 section 6.5.2), and a sidecar adds fields of its own.
pub(super) fn list_size(bounds: &Bounds) -> u32 {
    const BEYOND: usize = 32;
    const OWN: usize = 2048;
    u32::try_from(2 * (bounds.head_bytes + bounds.fields * BEYOND) + OWN).unwrap_or(u32::MAX)
}

/// Whether a head is within the bounds, measured as it would be on HTTP/1.
fn measure(method: &Method, uri: &Uri, headers: &HeaderMap, bounds: &Bounds) -> Result<(), Error> {
    let carried = || headers.iter().filter(|(name, _)| !is_own(name.as_str().as_bytes()));
    if carried().count() > bounds.fields {
        return Err(Error::new(Reason::HttpHeadTooLarge, "the request has too many fields"));
    }
    let authority = uri.authority().map_or(0, |a| a.as_str().len() + "host: \r\n".len());
    let path = uri.path_and_query().map_or(0, |p| p.as_str().len());
    let line = method.as_str().len() + path + "  HTTP/1.1\r\n\r\n".len();
    let fields: usize =
        carried().map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len()).sum();
    if line + authority + fields > bounds.head_bytes {
        return Err(Error::new(Reason::HttpHeadTooLarge, "the request's head is too large"));
    }
    Ok(())
}

/// Whom a request names: `:authority`, and Host if that says the same (RFC 9113 section 8.3.1).
fn authority(named: Option<uri::Authority>, headers: &mut HeaderMap) -> Result<Authority, &'static str> {
    match (named, only(headers, HOST)?) {
        (Some(named), Some(host)) if !host.as_bytes().eq_ignore_ascii_case(named.as_str().as_bytes()) => {
            Err("Host is not :authority")
        }
        (Some(named), _) => named.try_into().map_err(|_| ":authority is not host:port"),
        (None, Some(host)) => {
            Authority::read(Bytes::copy_from_slice(host.as_bytes())).map_err(|_| "Host is not an authority")
        }
        (None, None) => Err("neither :authority nor Host"),
    }
}

/// Takes out the field of this name, of which there may be one.
fn only(headers: &mut HeaderMap, name: HeaderName) -> Result<Option<HeaderValue>, &'static str> {
    if headers.get_all(&name).iter().nth(1).is_some() {
        return Err("more than one Host or content-length");
    }
    Ok(headers.remove(name))
}

/// HTTP/2 may cut cookies into fields of their own; whoever reads them next may not know
/// (RFC 9113 section 8.2.3).
fn one_cookie(headers: &mut HeaderMap) {
    let mut crumbs = headers.get_all(COOKIE).iter();
    if let (Some(first), Some(second)) = (crumbs.next(), crumbs.next()) {
        let mut whole = first.as_bytes().to_vec();
        for crumb in std::iter::once(second).chain(crumbs) {
            whole.extend_from_slice(b"; ");
            whole.extend_from_slice(crumb.as_bytes());
        }
        // Made of values that are ones.
        if let Ok(whole) = HeaderValue::from_maybe_shared(Bytes::from(whole)) {
            headers.insert(COOKIE, whole);
        }
    }
}
