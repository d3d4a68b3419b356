//! What is carried of `envoy.service.ratelimit.v3`, read and written by hand: a request's domain, its descriptors
//! and how much it counts for; an answer's codes and what remains.

/// A field's number and its value; those of other types are passed over.
enum Field<'a> {
    Number(u64, u64),
    Bytes(u64, &'a [u8]),
}

/// What a sidecar asks.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Request {
    pub(crate) domain: String,
    /// Each of which is counted apart: pairs of key and value.
    pub(crate) descriptors: Vec<Vec<(String, String)>>,
    /// How much it counts for.
    pub(crate) hits: u64,
}

/// What is answered about one descriptor.
pub(crate) struct Status {
    pub(crate) over: bool,
    /// Requests a second that it admits, and how many of this second remain.
    pub(crate) limit: u64,
    pub(crate) remaining: u64,
}

/// The types of a field, and the numbers of what is written.
const NUMBER: u64 = 0;
const BYTES: u64 = 2;
const OK: u64 = 1;
const OVER_LIMIT: u64 = 2;
const SECOND: u64 = 1;

impl Request {
    /// Reads a message; none if it is not one.
    pub(crate) fn read(message: &[u8]) -> Option<Self> {
        let mut request = Self { hits: 1, ..Self::default() };
        each(message, |field| {
            match field {
                Field::Bytes(1, domain) => request.domain = text(domain)?,
                Field::Bytes(2, descriptor) => request.descriptors.push(entries(descriptor)?),
                Field::Number(3, hits) => request.hits = hits.max(1),
                _ => {}
            }
            Some(())
        })?;
        Some(request)
    }
}

/// The pairs of a descriptor.
fn entries(descriptor: &[u8]) -> Option<Vec<(String, String)>> {
    let mut entries = Vec::new();
    each(descriptor, |field| {
        if let Field::Bytes(1, entry) = field {
            let mut pair = (String::new(), String::new());
            each(entry, |field| {
                match field {
                    Field::Bytes(1, key) => pair.0 = text(key)?,
                    Field::Bytes(2, value) => pair.1 = text(value)?,
                    _ => {}
                }
                Some(())
            })?;
            entries.push(pair);
        }
        Some(())
    })?;
    Some(entries)
}

/// An answer, as a message of gRPC: its length comes first.
pub(crate) fn answer(statuses: &[Status]) -> Vec<u8> {
    let code = |over| if over { OVER_LIMIT } else { OK };
    let mut message = Vec::with_capacity(64);
    put_number(&mut message, 1, code(statuses.iter().any(|status| status.over)));
    for status in statuses {
        let (mut one, mut limit) = (Vec::with_capacity(24), Vec::with_capacity(12));
        put_number(&mut limit, 1, status.limit);
        put_number(&mut limit, 2, SECOND);
        put_number(&mut one, 1, code(status.over));
        put_bytes(&mut one, 2, &limit);
        put_number(&mut one, 3, status.remaining);
        put_bytes(&mut message, 2, &one);
    }
    let mut framed = vec![0];
    framed.extend((message.len() as u32).to_be_bytes());
    framed.extend(message);
    framed
}

/// Reads the fields of a message, until it ends or one is nothing that can be read.
fn each<'a>(mut message: &'a [u8], mut take: impl FnMut(Field<'a>) -> Option<()>) -> Option<()> {
    while !message.is_empty() {
        let tag = number(&mut message)?;
        match tag & 7 {
            NUMBER => take(Field::Number(tag >> 3, number(&mut message)?))?,
            BYTES => {
                let length = usize::try_from(number(&mut message)?).ok()?;
                let (value, rest) = message.split_at_checked(length)?;
                message = rest;
                take(Field::Bytes(tag >> 3, value))?;
            }
            1 => message = message.get(8..)?,
            5 => message = message.get(4..)?,
            _ => return None,
        }
    }
    Some(())
}

/// Seven bits a byte, the lowest first; the last byte's highest bit is 0.
fn number(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = message.split_first()?;
        *message = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if *byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn text(bytes: &[u8]) -> Option<String> {
    String::from_utf8(bytes.into()).ok()
}

fn put(message: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        message.push(value as u8 | 0x80);
        value >>= 7;
    }
    message.push(value as u8);
}

fn put_number(message: &mut Vec<u8>, field: u64, value: u64) {
    put(message, field << 3 | NUMBER);
    put(message, value);
}

fn put_bytes(message: &mut Vec<u8>, field: u64, value: &[u8]) {
    put(message, field << 3 | BYTES);
    put(message, value.len() as u64);
    message.extend(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read() {
        let mut message = b"\x0a\x05bench\x12\x0e\x0a\x0c\x0a\x06tenant\x12\x02t7".to_vec();
        message.extend(b"\x12\x0b\x0a\x09\x0a\x03all\x12\x021!\x18\xac\x02\x25\x01\x02\x03\x04");
        let pair = |key: &str, value: &str| vec![(key.into(), value.into())];
        let descriptors = vec![pair("tenant", "t7"), pair("all", "1!")];
        assert_eq!(Request::read(&message), Some(Request { domain: "bench".into(), descriptors, hits: 300 }));
    }

    #[test]
    fn a_request_that_ends_too_early_is_none() {
        let message = b"\x0a\x05bench\x12\x0e\x0a\x0c\x0a\x06tenant\x12\x02t7\x18\x01";
        let ends = [0, 7, 23, 25];
        for end in (0..=message.len()).filter(|end| !ends.contains(end)) {
            assert_eq!(Request::read(&message[..end]), None, "{end}");
        }
        for bad in [&b"\x0a\x01\xff"[..], b"\x0b", &[0xff; 12]] {
            assert_eq!(Request::read(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn an_answer_is_written() {
        let statuses =
            [Status { over: false, limit: 300, remaining: 1 }, Status { over: true, limit: 5, remaining: 0 }];
        let expected = b"\0\0\0\0\x19\x08\x02\x12\x0b\x08\x01\x12\x05\x08\xac\x02\x10\x01\x18\x01";
        let expected = [&expected[..], b"\x12\x0a\x08\x02\x12\x04\x08\x05\x10\x01\x18\x00"].concat();
        let written = answer(&statuses);
        assert_eq!(written[5..], expected[5..]);
        assert_eq!(written[..5], [0, 0, 0, 0, written.len() as u8 - 5]);
    }
}
