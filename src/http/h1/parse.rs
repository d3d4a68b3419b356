//! Heads of HTTP/1 messages, read strictly (RFC 9112): what has two readings, or none, is
//! refused. The parser is `httparse`; what it lets pass and we do not is checked here.

use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, StatusCode, Version};
use httparse::{Header, Status};

use super::Hint;
use super::scan::{Scan, Scanned};
use crate::config::model::MOST_HEADERS;
use crate::http::fields::{Block, Span};
use crate::http::{Authority, CALLER_FIELD, Fields, OWN_PREFIX, RequestHead, ResponseHead, may_have_body};

const MAX_FIELDS: usize = MOST_HEADERS as usize;

/// Fields that sidecars may add to a head between them.
pub const OWN_FIELDS: usize = 16;

type Headers<'a> = [MaybeUninit<Header<'a>>; MAX_FIELDS];

/// Why a head was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// It has no single reading.
    Malformed(&'static str),
    /// It is larger than allowed, in bytes or fields.
    TooLarge,
    /// Its HTTP version is not 1.0 or 1.1.
    Version,
    /// It asks for something that is not carried.
    Unsupported(&'static str),
    /// It expects what nobody here can promise (RFC 9110 section 10.1.1).
    Expectation,
}

/// A request's head with what it says about its connection.
#[derive(Debug)]
pub struct ParsedRequest {
    /// What crosses.
    pub head: RequestHead,
    /// Whether the connection may carry another request after this one.
    pub keep_alive: bool,
}

/// A response's head with what it says about its connection.
#[derive(Debug)]
pub struct ParsedResponse {
    /// What crosses.
    pub head: ResponseHead,
    /// Whether the connection may carry another request after this one.
    pub keep_alive: bool,
    /// Whether the body is chunked; a [`Length::Stream`] that is not ends with the connection.
    pub chunked: bool,
    /// How long the peer says that it keeps the connection.
    pub hint: Option<Hint>,
}

/// Takes a request's head from the front of `buf`; none if it is not all there yet.
pub fn request(buf: &mut BytesMut, max_fields: usize) -> Result<Option<ParsedRequest>, Refused> {
    let mut headers: Headers<'_> = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut parsed = httparse::Request::new(&mut []);
    let len = match parsed.parse_with_uninit_headers(buf, &mut headers[..max_fields.min(MAX_FIELDS)]) {
        Ok(Status::Complete(len)) => len,
        Ok(Status::Partial) => return Ok(None),
        Err(error) => return Err(request_error(error, buf)),
    };
    strict_lines(&buf[..len])?;
    let version = if parsed.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 };
    let method = Method::from_bytes(parsed.method.unwrap_or_default().as_bytes())
        .map_err(|_| Refused::Malformed("the method is not a token"))?;
    let target = place(buf, parsed.path.unwrap_or_default().as_bytes());
    let mut scan = Scan::new(buf, version);
    for header in parsed.headers.iter() {
        scan.field(header)?;
    }
    let scanned = scan.request()?;
    if matches!(method, Method::CONNECT | Method::TRACE) && !scanned.length.is_empty() {
        // RFC 9110 sections 9.3.6 and 9.3.8: what one reader takes for a body is to another the
        // tunnel's first bytes, or the next request.
        return Err(Refused::Malformed("CONNECT and TRACE have no body"));
    }
    let block = buf.split_to(len).freeze();
    let host = match scanned.host {
        // An http URI always names a host (RFC 9110 section 4.2.1).
        Some((start, end)) if start == end && version == Version::HTTP_11 => {
            return Err(Refused::Malformed("Host is empty"));
        }
        Some((start, end)) => authority(block.slice(start..end))?,
        None if version == Version::HTTP_10 => None,
        None => return Err(Refused::Malformed("no Host")),
    };
    let upgrade = scanned.upgrade.filter(|_| scanned.length.is_empty());
    let upgrade = upgrade.and_then(|place| protocols(&block, place));
    let target = block.slice(target.0..target.1);
    let absolute = !target.starts_with(b"/") && &target[..] != b"*";
    let (authority, path) = target_parts(&method, target, host)?;
    let mut fields = scanned.fields.of(block);
    if absolute {
        // RFC 9112 section 3.2.2: Host is what the target says.
        fields.remove("host");
    }
    let (length, expiry) = (scanned.length, None);
    let head = RequestHead { method, authority, path, version, fields, length, upgrade, expiry };
    Ok(Some(ParsedRequest { head, keep_alive: scanned.keep_alive }))
}

/// Takes a response's head from the front of `buf`; none if it is not all there yet.
pub fn response(
    buf: &mut BytesMut,
    method: &Method,
    max_fields: usize,
) -> Result<Option<ParsedResponse>, Refused> {
    let mut headers: Headers<'_> = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let room = &mut headers[..max_fields.min(MAX_FIELDS)];
    let len = match config.parse_response_with_uninit_headers(&mut parsed, buf, room) {
        Ok(Status::Complete(len)) => len,
        Ok(Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(Refused::TooLarge),
        Err(httparse::Error::Version) => return Err(Refused::Version),
        Err(_) => return Err(Refused::Malformed("the response's head is not HTTP/1")),
    };
    strict_lines(&buf[..len])?;
    let version = if parsed.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 };
    let status = StatusCode::from_u16(parsed.code.unwrap_or(0))
        .ok()
        .filter(is_status)
        .ok_or(Refused::Malformed("the status is not a status"))?;
    let mut scan = Scan::new(buf, version);
    for header in parsed.headers.iter() {
        scan.field(header)?;
    }
    let scanned = scan.response(may_have_body(status, method), status)?;
    let block = buf.split_to(len).freeze();
    let switches = matches!(status, StatusCode::SWITCHING_PROTOCOLS | StatusCode::UPGRADE_REQUIRED);
    let upgrade = scanned.upgrade.filter(|_| switches).and_then(|place| protocols(&block, place));
    let Scanned { fields, length, keep_alive, chunked, hint, .. } = scanned;
    let head = ResponseHead { status, fields: fields.of(block), length, upgrade, load: None };
    Ok(Some(ParsedResponse { head, keep_alive, chunked, hint }))
}

/// Trailing fields at the front of `buf`, empty line included; none if not all there yet.
pub fn trailers(buf: &mut BytesMut, max_fields: usize) -> Result<Option<Fields>, Refused> {
    let mut headers = vec![httparse::EMPTY_HEADER; max_fields];
    let (len, fields) = match httparse::parse_headers(buf, &mut headers) {
        Ok(Status::Complete((len, fields))) => {
            strict_lines(&buf[..len])?;
            let mut block = Block::default();
            for field in fields {
                strict_value(field.value)?;
                // RFC 9110 section 6.5.1: what frames, routes or authenticates has no place in
                // a trailer; left out, not carried.
                if !may_not_trail(field.name.as_bytes()) {
                    block.push(Span::of(buf, field.name.as_bytes(), field.value));
                }
            }
            (len, block)
        }
        Ok(Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(Refused::TooLarge),
        Err(_) => return Err(Refused::Malformed("a trailer is not a field")),
    };
    Ok(Some(fields.of(buf.split_to(len).freeze())))
}

fn request_error(error: httparse::Error, buf: &[u8]) -> Refused {
    match error {
        httparse::Error::TooManyHeaders => Refused::TooLarge,
        // Only another well-formed `HTTP/d.d` is a version that we do not speak; the rest is noise,
        // as a target with a space in it is.
        httparse::Error::Version if names_other_version(buf) => Refused::Version,
        httparse::Error::HeaderName => Refused::Malformed("a field's name is not a token"),
        httparse::Error::HeaderValue => Refused::Malformed("a field's value holds a control character"),
        httparse::Error::NewLine => Refused::Malformed("a line does not end in CRLF"),
        _ => Refused::Malformed("the request line is not HTTP/1"),
    }
}

fn names_other_version(buf: &[u8]) -> bool {
    let line = buf.split(|b| *b == b'\r' || *b == b'\n').next().unwrap_or_default();
    let version = line.rsplit(|b| *b == b' ').next().unwrap_or_default();
    let well_formed = matches!(version, [b'H', b'T', b'T', b'P', b'/', a, b'.', b] if a.is_ascii_digit() && b.is_ascii_digit());
    well_formed && !matches!(version, b"HTTP/1.0" | b"HTTP/1.1")
}

/// Every line ends in CRLF, and CR stands nowhere else. `httparse` takes a bare LF for an end.
fn strict_lines(head: &[u8]) -> Result<(), Refused> {
    // Without a way out in between, so that many bytes are looked at at once.
    let pairs = head.iter().zip(head.iter().skip(1));
    let bare = pairs.fold(head.first() == Some(&b'\n'), |bare, (before, byte)| {
        bare | ((*byte == b'\n') != (*before == b'\r'))
    });
    if bare { Err(Refused::Malformed("a bare CR or LF")) } else { Ok(()) }
}

/// RFC 9110 section 5.5, and what an HTTP/2 peer could not be told.
pub(in crate::http) fn strict_value(value: &[u8]) -> Result<(), Refused> {
    let control = value.iter().fold(false, |c, &b| c | (b < 0x20 && b != b'\t') | (b == 0x7f));
    if !control { Ok(()) } else { Err(Refused::Malformed("a field's value holds a control character")) }
}

/// RFC 9110 section 5.1.
pub(in crate::http) fn strict_name(name: &[u8]) -> Result<(), Refused> {
    if !name.is_empty() && name.iter().all(|b| is_token(*b)) {
        Ok(())
    } else {
        Err(Refused::Malformed("a field's name is not a token"))
    }
}

pub(super) fn place(buf: &[u8], slice: &[u8]) -> (usize, usize) {
    let start = (slice.as_ptr() as usize).wrapping_sub(buf.as_ptr() as usize);
    (start, start + slice.len())
}

/// The protocols of Upgrade.
fn protocols(block: &Bytes, (start, end): (usize, usize)) -> Option<Box<HeaderValue>> {
    HeaderValue::from_maybe_shared(block.slice(start..end)).ok().map(Box::new)
}

/// Whom Host names; empty names nobody.
pub(in crate::http) fn authority(text: Bytes) -> Result<Option<Authority>, Refused> {
    if text.is_empty() {
        return Ok(None);
    }
    Authority::read(text).map(Some).map_err(|_| Refused::Malformed("Host is not an authority"))
}

/// Whether a status is one (RFC 9110 section 15): what is beyond 599 different readers take for
/// different things.
pub fn is_status(status: &StatusCode) -> bool {
    status.as_u16() < 600
}

/// The target's four forms (RFC 9112 section 3.2).
fn target_parts(
    method: &Method,
    target: Bytes,
    host: Option<Authority>,
) -> Result<(Option<Authority>, PathAndQuery), Refused> {
    if *method == Method::CONNECT {
        let named = authority(target)?.filter(|a| a.port().is_some());
        let named = named.ok_or(Refused::Malformed("CONNECT needs host:port"))?;
        return same_authority(named, host).map(|a| (Some(a), PathAndQuery::from_static("/")));
    }
    if target.starts_with(b"/") {
        return Ok((host, path(target)?));
    }
    if &target[..] == b"*" {
        return match *method {
            Method::OPTIONS => Ok((host, PathAndQuery::from_static("*"))),
            _ => Err(Refused::Malformed("the target * is for OPTIONS alone")),
        };
    }
    const SCHEME: &[u8] = b"http://";
    if target.len() <= SCHEME.len() || !target[..SCHEME.len()].eq_ignore_ascii_case(SCHEME) {
        return Err(Refused::Malformed("the target is neither a path nor an http URI"));
    }
    let rest = target.slice(SCHEME.len()..);
    let end = rest.iter().position(|b| matches!(b, b'/' | b'?')).unwrap_or(rest.len());
    let named = authority(rest.slice(..end))?.ok_or(Refused::Malformed("the target names no host"))?;
    let path = match rest.get(end) {
        // RFC 9112 section 3.2.4: of the server as a whole.
        None if *method == Method::OPTIONS => PathAndQuery::from_static("*"),
        None => PathAndQuery::from_static("/"),
        Some(b'/') => path(rest.slice(end..))?,
        Some(_) => path([b"/", &rest[end..]].concat().into())?,
    };
    same_authority(named, host).map(|a| (Some(a), path))
}

pub(in crate::http) fn path(text: Bytes) -> Result<PathAndQuery, Refused> {
    // The type drops a fragment; a request target has none (RFC 9112 section 3.2).
    if text.contains(&b'#') {
        return Err(Refused::Malformed("the target has a fragment"));
    }
    match PathAndQuery::from_maybe_shared(text) {
        Ok(path) if is_path(&path) => Ok(path),
        _ => Err(Refused::Malformed("the target is not a path")),
    }
}

/// Whether a path with its query is one (RFC 3986 section 3.3): it begins with `/`, is of visible
/// ASCII alone, and each `%` of the path begins a byte in disguise. The type takes more.
pub(in crate::http) fn is_path(path: &PathAndQuery) -> bool {
    let hex = |b: &u8| b.is_ascii_hexdigit();
    let mut of_path = path.path().as_bytes();
    while let Some(at) = of_path.iter().position(|b| *b == b'%') {
        if !matches!(&of_path[at + 1..], [high, low, ..] if hex(high) && hex(low)) {
            return false;
        }
        of_path = &of_path[at + 3..];
    }
    let all = path.as_str().as_bytes();
    all.starts_with(b"/") && all.iter().all(u8::is_ascii_graphic)
}

/// An absolute target and Host must name the same (RFC 9112 section 3.2.2 lets a proxy replace
/// Host; two readings are one too many).
fn same_authority(target: Authority, host: Option<Authority>) -> Result<Authority, Refused> {
    match host {
        Some(host)
            if (host.host(), host.port().unwrap_or(80)) != (target.host(), target.port().unwrap_or(80)) =>
        {
            Err(Refused::Malformed("Host is not the host of the target"))
        }
        _ => Ok(target),
    }
}

/// Fields that belong to one connection and never cross (RFC 9110 section 7.6.1), and those that
/// frame the message, which the next hop frames anew.
pub(in crate::http) fn is_connection_field(name: &[u8]) -> bool {
    const NAMES: [&[u8]; 9] = [
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"transfer-encoding",
        b"content-length",
        b"upgrade",
        b"te",
        b"http2-settings",
        b"host",
    ];
    // By length first: most names are none of these.
    matches!(name.len(), 2 | 4 | 7 | 10 | 14 | 16 | 17) && NAMES.iter().any(|n| n.eq_ignore_ascii_case(name))
}

/// Whether a field is one of Pannier's own, which nobody else may send.
pub fn is_own(name: &[u8]) -> bool {
    name.len() > OWN_PREFIX.len() && name[..OWN_PREFIX.len()].eq_ignore_ascii_case(OWN_PREFIX)
}

/// Fields that have no place in a trailer, because a reader who merges trailers into the head would
/// believe them: framing, routing, authentication, and what only a sidecar may say.
pub fn may_not_trail(name: &[u8]) -> bool {
    const NAMES: [&[u8]; 4] = [b"authorization", b"cookie", b"set-cookie", CALLER_FIELD.as_bytes()];
    is_connection_field(name) || is_own(name) || NAMES.iter().any(|n| n.eq_ignore_ascii_case(name))
}

/// RFC 9110 section 5.6.2.
pub(super) fn is_token(byte: u8) -> bool {
    TOKEN[byte as usize]
}

/// Which bytes a token may hold: looked up, as every byte of every field's name is.
const TOKEN: [bool; 256] = {
    let mut token = [false; 256];
    let mut byte = 0;
    while byte < 128 {
        token[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let mut others: &[u8] = b"!#$%&'*+-.^_`|~";
    while let [other, rest @ ..] = others {
        token[*other as usize] = true;
        others = rest;
    }
    token
};

/// RFC 9110 section 8.6: digits alone. A list, even of equal values, is refused.
pub(in crate::http) fn content_length(value: &[u8]) -> Result<u64, Refused> {
    let wrong = Refused::Malformed("Content-Length is not a number");
    if value.is_empty() || value.len() > 19 || !value.iter().all(u8::is_ascii_digit) {
        return Err(wrong);
    }
    Ok(value.iter().fold(0, |n, digit| n * 10 + u64::from(digit - b'0')))
}
