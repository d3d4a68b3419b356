//! What the fields of an HTTP/1 head say, gathered in one pass: which of them cross, how the body is
//! framed, and what becomes of the connection.

use http::{StatusCode, Version};
use httparse::Header;
use smallvec::SmallVec;

use super::Hint;
use super::parse::{Refused, content_length, is_connection_field, is_own, is_token, place, strict_value};
use crate::http::fields::{Block, Span};
use crate::http::{CALLER_FIELD, Length, upgrade};

/// The fields of a head, on the way through them.
pub(super) struct Scan<'a> {
    buf: &'a [u8],
    version: Version,
    fields: Block,
    host: Option<(usize, usize)>,
    content_length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
    /// The value of Upgrade; empty if it is not to be offered.
    upgrade: Option<(usize, usize)>,
    /// Whether Connection names Upgrade.
    upgrades: bool,
    /// Something other than 100 (Continue) is expected.
    expects_other: bool,
    hint: Option<Hint>,
    /// Fields that Connection names, as given.
    named: SmallVec<[&'a [u8]; 2]>,
}

/// What a whole head said.
pub(super) struct Scanned {
    /// What crosses.
    pub fields: Block,
    /// Where the value of Host is; of no length at 0 if it is empty.
    pub host: Option<(usize, usize)>,
    /// What it says of the body.
    pub length: Length,
    /// Whether the connection may carry another message after this one.
    pub keep_alive: bool,
    /// Whether the body is chunked.
    pub chunked: bool,
    /// Where the protocols are that the connection may switch to.
    pub upgrade: Option<(usize, usize)>,
    /// How long the peer keeps the connection.
    pub hint: Option<Hint>,
}

impl<'a> Scan<'a> {
    pub(super) fn new(buf: &'a [u8], version: Version) -> Self {
        Self {
            buf,
            version,
            fields: Block::default(),
            host: None,
            content_length: None,
            chunked: false,
            close: false,
            keep_alive: false,
            upgrade: None,
            upgrades: false,
            expects_other: false,
            hint: None,
            named: SmallVec::new(),
        }
    }

    /// Takes one field of the head.
    pub(super) fn field(&mut self, header: &Header<'a>) -> Result<(), Refused> {
        let (name, value) = (header.name.as_bytes(), header.value);
        strict_value(value)?;
        // By length first: most fields are none of these.
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => {
                if self.host.replace(place(self.buf, value)).is_some() {
                    return Err(Refused::Malformed("more than one Host"));
                }
                if value.is_empty() {
                    self.host = Some((0, 0));
                }
                self.fields.push(Span::of(self.buf, name, value));
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                if self.content_length.replace(content_length(value)?).is_some() {
                    return Err(Refused::Malformed("more than one Content-Length"));
                }
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Refused::Unsupported("a Transfer-Encoding other than chunked"));
                }
                self.chunked = true;
            }
            10 if name.eq_ignore_ascii_case(b"connection") => self.connection(value)?,
            10 if name.eq_ignore_ascii_case(b"keep-alive") => self.hint = Some(hint(value)),
            6 if name.eq_ignore_ascii_case(b"expect") => {
                self.expects_other |= !value.eq_ignore_ascii_case(b"100-continue");
                self.fields.push(Span::of(self.buf, name, value));
            }
            7 if name.eq_ignore_ascii_case(b"upgrade") => {
                // Of two, or of one that may not be offered, nothing is.
                let usable = self.upgrade.is_none() && upgrade::offered(value);
                self.upgrade = Some(if usable { place(self.buf, value) } else { (0, 0) });
            }
            _ if is_connection_field(name) => {}
            _ => self.fields.push(Span::of(self.buf, name, value)),
        }
        Ok(())
    }

    fn connection(&mut self, value: &'a [u8]) -> Result<(), Refused> {
        for token in tokens(value) {
            if token.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if token.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if token.eq_ignore_ascii_case(b"upgrade") {
                self.upgrades = true;
            } else if may_not_be_named(token) {
                return Err(Refused::Malformed("Connection names a field that is not the connection's"));
            } else if !token.iter().all(|b| is_token(*b)) {
                return Err(Refused::Malformed("Connection names what is no field"));
            } else {
                self.named.push(token);
            }
        }
        Ok(())
    }

    /// What they say of a request.
    pub(super) fn request(self) -> Result<Scanned, Refused> {
        if self.expects_other {
            return Err(Refused::Expectation);
        }
        let length = match (self.chunked, self.content_length) {
            (true, Some(_)) => return Err(Refused::Malformed("Content-Length with Transfer-Encoding")),
            (true, None) if self.version == Version::HTTP_10 => {
                return Err(Refused::Malformed("HTTP/1.0 with Transfer-Encoding"));
            }
            (true, None) => Length::Stream,
            (false, Some(length)) => Length::Sized(length),
            (false, None) => Length::None,
        };
        self.finish(length)
    }

    /// What they say of a response.
    pub(super) fn response(mut self, may_have_body: bool, status: StatusCode) -> Result<Scanned, Refused> {
        let bodyless = status.is_informational() || status == StatusCode::NO_CONTENT;
        if bodyless && (self.chunked || self.content_length.is_some_and(|length| length > 0)) {
            // RFC 9112 section 6.3: no body follows, whatever is said; not every reader knows.
            return Err(Refused::Malformed("a body with a status that has none"));
        }
        let length = match (self.chunked, self.content_length) {
            (true, Some(_)) => return Err(Refused::Malformed("Content-Length with Transfer-Encoding")),
            (true, None) if self.version == Version::HTTP_10 => {
                return Err(Refused::Malformed("HTTP/1.0 with Transfer-Encoding"));
            }
            (true, None) => Length::Stream,
            // RFC 9110 section 8.6: neither 1xx nor 204 carries a length.
            (false, Some(_)) if bodyless => Length::None,
            (false, Some(length)) => Length::Sized(length),
            (false, None) if may_have_body => {
                // RFC 9112 section 6.3 rule 8: until the connection closes.
                self.close = true;
                Length::Stream
            }
            (false, None) => Length::None,
        };
        self.finish(length)
    }

    fn finish(mut self, length: Length) -> Result<Scanned, Refused> {
        if !self.named.is_empty() {
            let is_named = |name: &[u8]| self.named.iter().any(|n| n.eq_ignore_ascii_case(name));
            self.fields.retain(self.buf, |name| !is_named(name));
        }
        let persistent = self.version == Version::HTTP_11 || self.keep_alive;
        let upgrades = self.upgrades && self.version == Version::HTTP_11;
        Ok(Scanned {
            fields: self.fields,
            host: self.host,
            length,
            keep_alive: persistent && !self.close,
            chunked: self.chunked,
            upgrade: self.upgrade.filter(|(start, end)| upgrades && start < end),
            hint: self.hint,
        })
    }
}

/// Fields that Connection must not name (RFC 9110 section 7.6.1): taken away, they would change
/// what a message means, to whom it goes, or who is said to have sent it.
fn may_not_be_named(token: &[u8]) -> bool {
    const NAMES: [&[u8]; 6] = [
        b"host",
        b"content-length",
        b"transfer-encoding",
        b"authorization",
        b"cookie",
        CALLER_FIELD.as_bytes(),
    ];
    is_own(token) || NAMES.iter().any(|n| n.eq_ignore_ascii_case(token))
}

/// What a `Keep-Alive` field says (RFC 2068 section 19.7.1). It is advice, so that what cannot be read
/// says nothing.
fn hint(value: &[u8]) -> Hint {
    let mut hint = Hint::default();
    for token in tokens(value) {
        let Some((name, number)) = std::str::from_utf8(token).ok().and_then(|t| t.split_once('=')) else {
            continue;
        };
        let number = number.trim().trim_matches('"').parse().ok();
        if name.trim().eq_ignore_ascii_case("timeout") {
            hint.timeout = number.unwrap_or(0);
        } else if name.trim().eq_ignore_ascii_case("max") {
            hint.max = number;
        }
    }
    hint
}

fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|t| !t.is_empty())
}
