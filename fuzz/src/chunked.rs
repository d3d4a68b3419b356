//! The chunked coding: however it was cut, it is read as a reader of few lines reads it, which has
//! the whole of it before it.

use bytes::BytesMut;
use pannier::http::h1::chunked::{Chunked, Decoded, MAX_SIZE_LINE};
use pannier::http::h1::parse;

/// What a body came to.
#[derive(Debug, PartialEq)]
enum Read {
    /// Its bytes, its trailing fields, and how many bytes follow it.
    Whole(Vec<u8>, usize, usize),
    /// More is needed.
    Unfinished,
    /// It is no such body.
    Refused,
}

/// A chunked body and its trailer section.
pub fn chunked(input: &[u8]) {
    // Beyond that the bounds of lines and trailers decide, which the naive reader does not know.
    if input.len() > MAX_SIZE_LINE {
        return;
    }
    let whole = decode(input, input.len());
    for step in [1, 2, 7] {
        assert_eq!(decode(input, step), whole, "in pieces of {step}");
    }
    match (naive(input), whole) {
        (Some((body, rest)), Read::Whole(data, _, left)) => {
            assert_eq!(data, body);
            let mut after = BytesMut::from(rest);
            if !rest.starts_with(b"\r\n") {
                parse::trailers(&mut after, 64).expect("trailers").expect("all of them");
            }
            assert!(left == after.len() || rest.len() == left + 2);
        }
        // It ends in trailers that are refused, or not all there.
        (Some((_, rest)), _) => {
            assert!(!rest.starts_with(b"\r\n"));
            assert!(!matches!(parse::trailers(&mut BytesMut::from(rest), 64), Ok(Some(_))));
        }
        (None, whole) => assert!(!matches!(whole, Read::Whole(..)), "{whole:?}"),
    }
}

fn decode(input: &[u8], step: usize) -> Read {
    let (mut state, mut buf, mut body) = (Chunked::default(), BytesMut::new(), Vec::new());
    let mut arrived = 0;
    loop {
        match state.decode(&mut buf) {
            Ok(Decoded::Data(data)) => {
                assert!(!data.is_empty());
                body.extend_from_slice(&data);
            }
            Ok(Decoded::End(trailers)) => {
                let mut count = 0;
                if let Some(trailers) = trailers {
                    trailers.each(|name, _| {
                        count += 1;
                        assert!(!parse::may_not_trail(name), "{:?}", String::from_utf8_lossy(name));
                    });
                }
                return Read::Whole(body, count, buf.len() + input.len() - arrived);
            }
            Ok(Decoded::NeedMore) if arrived == input.len() => return Read::Unfinished,
            Ok(Decoded::NeedMore) => {
                let end = input.len().min(arrived + step.max(1));
                buf.extend_from_slice(&input[arrived..end]);
                arrived = end;
            }
            Err(_) => return Read::Refused,
        }
    }
}

/// RFC 9112 section 7.1, up to the last chunk: the body and what follows; none if there is no whole
/// body.
fn naive(mut rest: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|two| two == b"\r\n")?;
        // One character for each byte.
        let line: String = rest[..end].iter().map(|b| char::from(*b)).collect();
        let (digits, extension) = line.split_once(';').unwrap_or((&line, ""));
        // What reads numbers takes a sign.
        if extension.contains(|c: char| c != '\t' && c.is_ascii_control()) || digits.starts_with('+') {
            return None;
        }
        if digits.len() > 16 {
            return None;
        }
        let size = usize::try_from(u64::from_str_radix(digits, 16).ok()?).ok()?;
        rest = &rest[end + 2..];
        if size == 0 {
            return Some((body, rest));
        }
        body.extend_from_slice(rest.get(..size)?);
        rest = rest[size..].strip_prefix(b"\r\n")?;
    }
}
