//! Header fields as they cross the proxy.
//!
//! From HTTP/1 they stay the bytes that arrived, with the places of names and values, so that
//! order and case are kept and nothing is copied but once, into the next hop's buffer. From
//! HTTP/2 they are the decoded map.

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{HeaderMap, HeaderName, HeaderValue};
use smallvec::SmallVec;

/// A head's or trailer's fields.
#[derive(Debug, Clone)]
pub struct Fields(Inner);

#[derive(Debug, Clone)]
enum Inner {
    Block(Block),
    Map(Box<HeaderMap>),
}

/// The places of fields in a block of bytes, as they are found. Boxed, because a head is moved from
/// stage to stage.
#[derive(Debug, Clone, Default)]
pub(super) struct Block(Box<Places>);

#[derive(Debug, Clone, Default)]
struct Places {
    /// Empty until all places are known.
    bytes: Bytes,
    spans: SmallVec<[Span; 16]>,
    added: Vec<(HeaderName, HeaderValue)>,
}

impl Block {
    /// Adds a field.
    pub(super) fn push(&mut self, span: Span) {
        self.0.spans.push(span);
    }

    /// Leaves only the fields whose name in `block` is to be kept.
    pub(super) fn retain(&mut self, block: &[u8], keep: impl Fn(&[u8]) -> bool) {
        self.0.spans.retain(|span| keep(span.name(block)));
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.spans.len()
    }

    /// The fields whose places these are in `bytes`.
    pub(super) fn of(mut self, bytes: Bytes) -> Fields {
        self.0.bytes = bytes;
        Fields(Inner::Block(self))
    }
}

/// Where one field lies in its block. A name of length 0 is a field taken out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    name: u32,
    name_len: u32,
    value: u32,
    value_len: u32,
}

impl Span {
    /// The place of `name` and `value`, both slices of `block`.
    pub(super) fn of(block: &[u8], name: &[u8], value: &[u8]) -> Self {
        // Offsets by address: both are slices that the parser cut from `block`. The subtraction
        // is checked when the span is used, by ordinary slicing.
        let base = block.as_ptr() as usize;
        Self {
            name: (name.as_ptr() as usize).wrapping_sub(base) as u32,
            name_len: name.len() as u32,
            // The parser gives an empty value as a slice of nowhere.
            value: if value.is_empty() { 0 } else { (value.as_ptr() as usize).wrapping_sub(base) as u32 },
            value_len: value.len() as u32,
        }
    }

    /// The place of a name at `start`, and of its value behind it.
    pub(super) fn at(start: usize, name_len: usize, value_len: usize) -> Self {
        Self {
            name: start as u32,
            name_len: name_len as u32,
            value: (start + name_len) as u32,
            value_len: value_len as u32,
        }
    }

    fn name<'a>(&self, block: &'a [u8]) -> &'a [u8] {
        &block[self.name as usize..(self.name + self.name_len) as usize]
    }

    /// The whole line, where it is in the block as we would write it.
    fn line(&self, block: &[u8]) -> Option<Range<usize>> {
        let (start, name_end) = (self.name as usize, (self.name + self.name_len) as usize);
        let (value, value_end) = (self.value as usize, (self.value + self.value_len) as usize);
        let as_written = value == name_end + 2
            && block[name_end..].starts_with(b": ")
            && block[value_end..].starts_with(b"\r\n");
        as_written.then_some(start..value_end + 2)
    }

    fn value<'a>(&self, block: &'a [u8]) -> &'a [u8] {
        &block[self.value as usize..(self.value + self.value_len) as usize]
    }
}

impl Default for Fields {
    fn default() -> Self {
        Fields(Inner::Map(Box::default()))
    }
}

impl From<HeaderMap> for Fields {
    fn from(map: HeaderMap) -> Self {
        Fields(Inner::Map(Box::new(map)))
    }
}

impl Fields {
    /// The status of gRPC that they hold.
    pub fn grpc_status(&self) -> Option<u8> {
        std::str::from_utf8(self.get("grpc-status")?).ok()?.parse().ok()
    }

    /// The first value of the field, named in lower case.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        match &self.0 {
            Inner::Block(block) => {
                let Places { bytes, spans, added } = &*block.0;
                spans
                    .iter()
                    .find(|s| s.name(bytes).eq_ignore_ascii_case(name.as_bytes()))
                    .map(|s| s.value(bytes))
                    .or_else(|| added.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_bytes()))
            }
            Inner::Map(map) => map.get(name).map(HeaderValue::as_bytes),
        }
    }

    /// Shows each value of the field, named in lower case, to `see`.
    pub fn each_of<'a>(&'a self, name: &str, mut see: impl FnMut(&'a [u8])) {
        match &self.0 {
            Inner::Block(block) => {
                let Places { bytes, spans, added } = &*block.0;
                let found = spans.iter().filter(|s| s.name(bytes).eq_ignore_ascii_case(name.as_bytes()));
                found.for_each(|s| see(s.value(bytes)));
                added.iter().filter(|(n, _)| n == name).for_each(|(_, v)| see(v.as_bytes()));
            }
            Inner::Map(map) => map.get_all(name).iter().for_each(|value| see(value.as_bytes())),
        }
    }

    /// The value of the field, named in lower case, if it is there once.
    pub fn only(&self, name: &str) -> Option<&[u8]> {
        let (mut only, mut more) = (None, false);
        self.each_of(name, |value| more |= only.replace(value).is_some());
        only.filter(|_| !more)
    }

    /// The first value of each of these fields, named in lower case, in one walk.
    pub fn values<const N: usize>(&self, names: [&str; N]) -> [Option<&[u8]>; N] {
        let Inner::Block(block) = &self.0 else { return names.map(|name| self.get(name)) };
        let Places { bytes, spans, added } = &*block.0;
        let mut found = [None; N];
        for span in spans {
            for (found, name) in found.iter_mut().zip(names) {
                // Nearly all differ in their length.
                if span.name_len as usize == name.len()
                    && found.is_none()
                    && span.name(bytes).eq_ignore_ascii_case(name.as_bytes())
                {
                    *found = Some(span.value(bytes));
                }
            }
        }
        for (field, value) in added {
            for (found, _) in found.iter_mut().zip(names).filter(|(_, name)| field == name) {
                found.get_or_insert(value.as_bytes());
            }
        }
        found
    }

    /// Calls `f` with each name and value, in order.
    pub fn each(&self, mut f: impl FnMut(&[u8], &[u8])) {
        match &self.0 {
            Inner::Block(block) => {
                let Places { bytes, spans, added } = &*block.0;
                for span in spans.iter().filter(|s| s.name_len != 0) {
                    f(span.name(bytes), span.value(bytes));
                }
                for (name, value) in added {
                    f(name.as_str().as_bytes(), value.as_bytes());
                }
            }
            Inner::Map(map) => {
                for (name, value) in map.iter() {
                    f(name.as_str().as_bytes(), value.as_bytes());
                }
            }
        }
    }

    /// Takes out each field whose name `condemned` says yes to.
    pub fn remove_where(&mut self, condemned: impl Fn(&[u8]) -> bool) {
        match &mut self.0 {
            Inner::Block(block) => {
                let Places { bytes, spans, added } = &mut *block.0;
                for span in spans.iter_mut() {
                    if span.name_len != 0 && condemned(span.name(bytes)) {
                        span.name_len = 0;
                    }
                }
                added.retain(|(name, _)| !condemned(name.as_str().as_bytes()));
            }
            Inner::Map(map) => {
                let names: SmallVec<[HeaderName; 4]> =
                    map.keys().filter(|name| condemned(name.as_str().as_bytes())).cloned().collect();
                for name in names {
                    map.remove(&name);
                }
            }
        }
    }

    /// Takes out every field of this name, given in lower case.
    pub fn remove(&mut self, name: &str) {
        match &mut self.0 {
            Inner::Map(map) => {
                map.remove(name);
            }
            Inner::Block(_) => self.remove_where(|n| n.eq_ignore_ascii_case(name.as_bytes())),
        }
    }

    /// Adds a field at the end.
    pub fn push(&mut self, name: HeaderName, value: HeaderValue) {
        match &mut self.0 {
            Inner::Block(block) => block.0.added.push((name, value)),
            Inner::Map(map) => {
                map.append(name, value);
            }
        }
    }

    /// Writes the fields as HTTP/1 lines.
    pub fn write_h1(&self, out: &mut BytesMut) {
        let Inner::Block(block) = &self.0 else { return self.each(|name, value| put_line(out, name, value)) };
        let Places { bytes, spans, added } = &*block.0;
        // Lines that follow each other as they are to be written are copied at once.
        let mut lines = 0..0;
        for span in spans.iter().filter(|s| s.name_len != 0) {
            match span.line(bytes) {
                Some(line) if line.start == lines.end => lines.end = line.end,
                Some(line) => out.extend_from_slice(&bytes[std::mem::replace(&mut lines, line)]),
                None => {
                    out.extend_from_slice(&bytes[std::mem::take(&mut lines)]);
                    put_line(out, span.name(bytes), span.value(bytes));
                }
            }
        }
        out.extend_from_slice(&bytes[lines]);
        for (name, value) in added {
            put_line(out, name.as_str().as_bytes(), value.as_bytes());
        }
    }

    /// The fields as HTTP/2 carries them.
    ///
    /// The HTTP/1 parser lets no byte through that a [`HeaderValue`] refuses, so that nothing is
    /// lost here; a value of another kind would be left out rather than carried.
    pub fn into_map(self) -> HeaderMap {
        match self.0 {
            Inner::Map(map) => *map,
            Inner::Block(block) => {
                let Places { bytes, spans, added } = *block.0;
                let mut map = HeaderMap::with_capacity(spans.len() + added.len());
                for span in spans.iter().filter(|s| s.name_len != 0) {
                    let value = bytes.slice(span.value as usize..(span.value + span.value_len) as usize);
                    let name = HeaderName::from_bytes(span.name(&bytes));
                    if let (Ok(name), Ok(value)) = (name, HeaderValue::from_maybe_shared(value)) {
                        map.append(name, value);
                    }
                }
                map.extend(added);
                map
            }
        }
    }

    /// The fields as a map, without giving them up (for a request that may be sent again).
    pub fn to_map(&self) -> HeaderMap {
        self.clone().into_map()
    }
}

/// Writes one field as an HTTP/1 line.
pub(super) fn put_line(out: &mut BytesMut, name: &[u8], value: &[u8]) {
    out.reserve(name.len() + value.len() + 4);
    out.put_slice(name);
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_slice(b"\r\n");
}
