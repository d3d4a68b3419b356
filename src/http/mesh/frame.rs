//! Frames between sidecars, and how heads are written in them.
//!
//! A frame has the layout of HTTP/2's (RFC 9113 section 4.1): 24 bits of length, 8 of type, 8 of
//! flags, 32 of stream. A head is not compressed: its fields follow each other as they came, in
//! their order and case, each with its length before it, so that reading one is a walk over the
//! bytes and copies nothing.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, StatusCode, Version};

use super::Code;
use crate::http::announcement::{self, Announcement};
use crate::http::fields::{Block, Span};
use crate::http::h1::parse::{self, Refused};
use crate::http::{Bounds, Expiry, Fields, Length, RequestHead, ResponseHead, expiry};

/// A frame's header.
pub(super) const HEADER: usize = 9;

/// The largest piece of a body in one frame.
pub(super) const MAX_DATA: usize = 32 << 10;

/// What a head may take beyond its text: lengths, and fields that sidecars add.
pub(super) const HEAD_MARGIN: usize = 16 << 10;

/// Nothing more follows on this stream.
pub(super) const END: u8 = 1;
/// An answer to a PING.
pub(super) const ACK: u8 = 1;

/// The head is one that trails; it ends the stream.
pub(super) const TRAILERS: u8 = 2;

/// Types of frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Data = 0,
    Head = 1,
    Reset = 3,
    Settings = 4,
    Ping = 6,
    GoAway = 7,
    Window = 8,
}

/// A frame's header, read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    pub length: usize,
    pub kind: Kind,
    pub flags: u8,
    pub stream: u32,
}

/// What a side tells first of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Settings {
    /// Streams that it serves at once.
    pub streams: u32,
    /// Bytes of a body that it takes on a stream before it has returned credit.
    pub stream_window: u32,
    /// The same for all streams together.
    pub connection_window: u32,
}

/// The peer did what the protocol has no place for; the connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Violation(pub Code, pub &'static str);

pub(super) fn violation<T>(why: &'static str) -> Result<T, Violation> {
    Err(Violation(Code::PROTOCOL_ERROR, why))
}

impl Header {
    /// The header at the front of `buf`, if it is all there.
    pub(super) fn read(buf: &[u8], bounds: &Bounds) -> Result<Option<Self>, Violation> {
        let Some(header) = buf.first_chunk::<HEADER>() else { return Ok(None) };
        let [a, b, c, kind, flags, stream @ ..] = *header;
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        let (kind, most) = match kind {
            0 => (Kind::Data, MAX_DATA),
            1 => (Kind::Head, bounds.head_bytes.saturating_add(HEAD_MARGIN)),
            3 => (Kind::Reset, 4),
            4 => (Kind::Settings, 12),
            6 if flags & ACK != 0 => (Kind::Ping, announcement::LENGTH),
            6 => (Kind::Ping, 8),
            7 => (Kind::GoAway, 8),
            8 => (Kind::Window, 4),
            _ => return violation("a frame of an unknown type"),
        };
        let fits = match kind {
            Kind::Data | Kind::Head => length <= most,
            _ => length == most,
        };
        if !fits {
            return Err(Violation(Code::FRAME_SIZE_ERROR, "a frame of a size that its type does not have"));
        }
        Ok(Some(Self { length, kind, flags, stream: u32::from_be_bytes(stream) }))
    }

    pub(super) fn ends(&self) -> bool {
        self.flags & END != 0
    }
}

/// Writes a frame's header.
pub(super) fn put_header(out: &mut BytesMut, length: usize, kind: Kind, flags: u8, stream: u32) {
    let [_, a, b, c] = (length as u32).to_be_bytes();
    out.put_slice(&[a, b, c, kind as u8, flags]);
    out.put_u32(stream);
}

/// Writes a frame of one number.
pub(super) fn put_number(out: &mut BytesMut, kind: Kind, stream: u32, number: u32) {
    put_header(out, 4, kind, 0, stream);
    out.put_u32(number);
}

/// Writes a PING.
pub(super) fn put_ping(out: &mut BytesMut) {
    put_header(out, 8, Kind::Ping, 0, 0);
    out.put_u64(0);
}

/// Writes the answer to one, which says how full we are; all ones say nothing.
pub(super) fn put_pong(out: &mut BytesMut, said: Option<Announcement>) {
    put_header(out, announcement::LENGTH, Kind::Ping, ACK, 0);
    out.put_slice(&said.map_or([0xff; announcement::LENGTH], |said| said.bytes()));
}

/// Says which stream is the last that is taken.
pub(super) fn put_goaway(out: &mut BytesMut, last: u32, code: Code) {
    put_header(out, 8, Kind::GoAway, 0, 0);
    out.put_u32(last);
    out.put_u32(code.0);
}

impl Settings {
    pub(super) fn put(&self, out: &mut BytesMut) {
        put_header(out, 12, Kind::Settings, 0, 0);
        out.put_u32(self.streams);
        out.put_u32(self.stream_window);
        out.put_u32(self.connection_window);
    }

    pub(super) fn read(mut payload: Bytes) -> Self {
        let mut next = || payload.try_get_u32().unwrap_or_default();
        Self { streams: next(), stream_window: next(), connection_window: next() }
    }
}

/// Writes a frame whose payload `put` writes.
fn framed(out: &mut BytesMut, flags: u8, stream: u32, put: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.put_bytes(0, HEADER);
    put(out);
    let [_, a, b, c] = ((out.len() - start - HEADER) as u32).to_be_bytes();
    let [d, e, f, g] = stream.to_be_bytes();
    out[start..start + HEADER].copy_from_slice(&[a, b, c, Kind::Head as u8, flags, d, e, f, g]);
}

/// Writes a request's head. `host` stands in where the request names nobody; `own` is for the peer
/// alone, and so is what is `left` of the caller's time.
pub(super) fn put_request(
    out: &mut BytesMut,
    stream: u32,
    head: &RequestHead,
    host: &str,
    own: &HeaderMap,
    left: Option<Duration>,
    ends: bool,
) {
    framed(out, u8::from(ends), stream, |out| {
        // Never more than there is: what does not fit is as long as fits.
        out.put_u32(left.map_or(0, |left| u32::try_from(expiry::millis(left)).unwrap_or(u32::MAX)));
        put_text(out, head.method.as_str().as_bytes());
        put_text(out, head.authority.as_ref().map_or(host, |a| a.as_str()).as_bytes());
        put_text(out, head.path.as_str().as_bytes());
        put_length(out, head.length);
        put_fields(out, &head.fields, own, b"host");
    });
}

/// Writes a response's head, an interim one included; `own` is for the peer alone.
pub(super) fn put_response(
    out: &mut BytesMut,
    stream: u32,
    head: &ResponseHead,
    own: &HeaderMap,
    ends: bool,
) {
    framed(out, u8::from(ends), stream, |out| {
        out.put_u8(head.load.is_some().into());
        if let Some(load) = head.load {
            out.put_slice(&load.bytes());
        }
        out.put_u16(head.status.as_u16());
        put_length(out, head.length);
        put_fields(out, &head.fields, own, b"");
    });
}

/// Writes what trails a body, and ends the stream.
pub(super) fn put_trailers(out: &mut BytesMut, stream: u32, fields: &Fields) {
    framed(out, END | TRAILERS, stream, |out| put_fields(out, fields, &HeaderMap::new(), b""));
}

fn put_text(out: &mut BytesMut, text: &[u8]) {
    out.put_u32(text.len() as u32);
    out.put_slice(text);
}

fn put_length(out: &mut BytesMut, length: Length) {
    match length {
        Length::None => out.put_u8(0),
        Length::Stream => out.put_u8(1),
        Length::Sized(n) => {
            out.put_u8(2);
            out.put_u64(n);
        }
    }
}

fn put_fields(out: &mut BytesMut, fields: &Fields, own: &HeaderMap, but: &[u8]) {
    let mut put = |name: &[u8], value: &[u8]| {
        out.reserve(name.len() + value.len() + 8);
        out.put_u32(name.len() as u32);
        out.put_u32(value.len() as u32);
        out.put_slice(name);
        out.put_slice(value);
    };
    fields.each(|name, value| {
        if !name.eq_ignore_ascii_case(but) {
            put(name, value);
        }
    });
    for (name, value) in own {
        put(name.as_str().as_bytes(), value.as_bytes());
    }
}

/// Reads a payload from its front, and refuses what is cut short.
struct Walk {
    payload: Bytes,
    at: usize,
}

impl Walk {
    fn take(&mut self, n: usize) -> Result<&[u8], Refused> {
        let start = self.at;
        let taken = start.checked_add(n).and_then(|end| self.payload.get(start..end)).ok_or(CUT)?;
        self.at += n;
        Ok(taken)
    }

    fn number<const N: usize>(&mut self) -> Result<u64, Refused> {
        Ok(self.take(N)?.iter().fold(0, |n, byte| n << 8 | u64::from(*byte)))
    }

    fn text(&mut self) -> Result<Bytes, Refused> {
        let n = self.number::<4>()? as usize;
        let start = self.at;
        self.take(n)?;
        Ok(self.payload.slice(start..start + n))
    }

    fn length(&mut self) -> Result<Length, Refused> {
        match self.number::<1>()? {
            0 => Ok(Length::None),
            1 => Ok(Length::Stream),
            2 => Ok(Length::Sized(self.number::<8>()?)),
            _ => Err(Refused::Malformed("a length of an unknown kind")),
        }
    }

    /// The fields, which are all that is left.
    fn fields(mut self, most: usize, fit: impl Fn(&[u8], &[u8]) -> bool) -> Result<Fields, Refused> {
        let mut block = Block::default();
        while self.at < self.payload.len() {
            let (name, value) = (self.number::<4>()? as usize, self.number::<4>()? as usize);
            let start = self.at;
            let both = self.take(name.checked_add(value).ok_or(CUT)?)?;
            let (name, value) = both.split_at(name);
            parse::strict_name(name)?;
            parse::strict_value(value)?;
            if matches!(value, [b' ' | b'\t', ..] | [.., b' ' | b'\t']) {
                // In HTTP/1 it would not be of the value.
                return Err(Refused::Malformed("a field's value begins or ends with white space"));
            }
            if !fit(name, value) {
                return Err(Refused::Malformed("a field that belongs to one connection"));
            }
            block.push(Span::at(start, name.len(), value.len()));
        }
        if block.len() > most {
            return Err(Refused::TooLarge);
        }
        Ok(block.of(self.payload))
    }
}

const CUT: Refused = Refused::Malformed("a head that is cut short");

/// Reads a request's head.
pub(super) fn request(payload: Bytes, bounds: &Bounds) -> Result<RequestHead, Refused> {
    let mut walk = Walk { payload, at: 0 };
    let left = match walk.number::<4>()? {
        0 => None,
        millis => Some(Duration::from_millis(millis)),
    };
    let method =
        Method::from_bytes(&walk.text()?).map_err(|_| Refused::Malformed("the method is not a token"))?;
    let authority = parse::authority(walk.text()?)?;
    let path = match walk.text()? {
        any if &any[..] == b"*" && method == Method::OPTIONS => PathAndQuery::from_static("*"),
        path if path.starts_with(b"/") => parse::path(path)?,
        _ => return Err(Refused::Malformed("the target is not a path")),
    };
    let length = walk.length()?;
    let fields = walk.fields(bounds.fields + parse::OWN_FIELDS, crosses)?;
    let (version, upgrade, expiry) = (Version::HTTP_2, None, left.and_then(Expiry::after));
    Ok(RequestHead { method, authority, path, version, fields, length, upgrade, expiry })
}

/// Reads a response's head.
pub(super) fn response(payload: Bytes, bounds: &Bounds) -> Result<ResponseHead, Refused> {
    let mut walk = Walk { payload, at: 0 };
    let load = match walk.number::<1>()? {
        0 => None,
        1 => Announcement::from_bytes(walk.take(announcement::LENGTH)?),
        _ => return Err(Refused::Malformed("a load of an unknown kind")),
    };
    let status = StatusCode::from_u16(walk.number::<2>()? as u16)
        .ok()
        .filter(parse::is_status)
        .ok_or(Refused::Malformed("the status is not a status"))?;
    let announced = walk.length()?;
    // RFC 9110 section 8.6: neither 1xx nor 204 carries a length.
    let bodyless = status.is_informational() || status == StatusCode::NO_CONTENT;
    let length = if bodyless { Length::None } else { announced };
    // In an answer Host says nothing, and HTTP/1 lets it pass.
    let fit = |name: &[u8], value: &[u8]| name.eq_ignore_ascii_case(b"host") || crosses(name, value);
    let fields = walk.fields(bounds.fields + parse::OWN_FIELDS, fit)?;
    Ok(ResponseHead { status, fields, length, upgrade: None, load })
}

/// Reads what trails a body.
pub(super) fn trailers(payload: Bytes, bounds: &Bounds) -> Result<Fields, Refused> {
    Walk { payload, at: 0 }.fields(bounds.fields, |name, _| !parse::may_not_trail(name))
}

/// Whether a field may cross: none of one connection, but what gRPC asks of HTTP/2 (RFC 9113
/// section 8.2.2).
fn crosses(name: &[u8], value: &[u8]) -> bool {
    !parse::is_connection_field(name) || (name.eq_ignore_ascii_case(b"te") && value == b"trailers")
}
