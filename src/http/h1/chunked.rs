//! The chunked coding (RFC 9112 section 7.1), read strictly: hexadecimal sizes of at most 16
//! digits, CRLF and nothing else for a line's end, extensions bounded and dropped.

use bytes::{Buf, Bytes, BytesMut};

use super::parse;
use crate::http::Fields;

/// The longest line that a chunk's size may stand on, extensions included.
pub const MAX_SIZE_LINE: usize = 4096;

/// Bytes of size lines, beyond what chunks of their sizes need, that a body may spend in all: an
/// extension that nobody reads is not to carry a stream of its own.
const MAX_OVERHEAD: u64 = 16 << 10;

/// The largest trailer section.
const MAX_TRAILERS: usize = 16 << 10;

const TRAILERS_TOO_LARGE: &str = "the trailers are too large";

/// The most trailing fields.
const MAX_TRAILER_FIELDS: usize = 64;

/// A body that is being decoded.
#[derive(Debug, Default)]
pub struct Chunked {
    at: At,
    overhead: u64,
    /// How much of the trailer section has been looked through for its end.
    looked: usize,
}

/// Where in the coding we are.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum At {
    /// Before a chunk's size.
    #[default]
    Size,
    /// Inside a chunk, so many bytes before its end.
    Data(u64),
    /// Before the CRLF that ends a chunk.
    DataEnd,
    /// Before the trailer section.
    Trailers,
    /// After everything.
    Done,
    /// After what could not be read.
    Broken(&'static str),
}

/// What decoding gave.
#[derive(Debug)]
pub enum Decoded {
    /// Bytes of the body.
    Data(Bytes),
    /// The end, with what trails.
    End(Option<Box<Fields>>),
    /// More bytes are needed.
    NeedMore,
}

impl Chunked {
    /// Decodes from the front of `buf`. What could not be read once is never read again: nobody knows
    /// where it ends.
    pub fn decode(&mut self, buf: &mut BytesMut) -> Result<Decoded, &'static str> {
        self.next(buf).inspect_err(|why| self.at = At::Broken(why))
    }

    fn next(&mut self, buf: &mut BytesMut) -> Result<Decoded, &'static str> {
        loop {
            match self.at {
                At::Size => match size_line(buf)? {
                    None => return Ok(Decoded::NeedMore),
                    Some((size, line)) => {
                        self.spend(size, line)?;
                        self.at = if size == 0 { At::Trailers } else { At::Data(size) };
                    }
                },
                At::Data(left) => {
                    if buf.is_empty() {
                        return Ok(Decoded::NeedMore);
                    }
                    let take = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
                    let left = left - take as u64;
                    self.at = if left == 0 { At::DataEnd } else { At::Data(left) };
                    return Ok(Decoded::Data(buf.split_to(take).freeze()));
                }
                At::DataEnd => match &buf[..] {
                    [b'\r', b'\n', ..] => {
                        buf.advance(2);
                        self.at = At::Size;
                    }
                    [] | [b'\r'] => return Ok(Decoded::NeedMore),
                    _ => return Err("a chunk does not end in CRLF"),
                },
                At::Trailers => {
                    if !self.trailers_end(buf)? {
                        return Ok(Decoded::NeedMore);
                    }
                    self.at = At::Done;
                    if buf.starts_with(b"\r\n") {
                        buf.advance(2);
                        return Ok(Decoded::End(None));
                    }
                    return match parse::trailers(buf, MAX_TRAILER_FIELDS) {
                        Ok(Some(fields)) => Ok(Decoded::End(Some(Box::new(fields)))),
                        Err(parse::Refused::TooLarge) => Err(TRAILERS_TOO_LARGE),
                        Ok(None) | Err(_) => Err("a trailer is not a field"),
                    };
                }
                At::Done => return Ok(Decoded::End(None)),
                At::Broken(why) => return Err(why),
            }
        }
    }

    fn spend(&mut self, size: u64, line: usize) -> Result<(), &'static str> {
        let needed = size.saturating_mul(2).saturating_add(16);
        self.overhead = (self.overhead + line as u64).saturating_sub(needed);
        if self.overhead > MAX_OVERHEAD { Err("its chunk extensions are too large") } else { Ok(()) }
    }

    /// Whether the empty line that ends the trailer section has arrived. Each byte is looked at
    /// once, however the section is cut.
    fn trailers_end(&mut self, buf: &[u8]) -> Result<bool, &'static str> {
        for at in self.looked..buf.len().min(MAX_TRAILERS) {
            if buf[at] != b'\n' {
                continue;
            }
            match &buf[..=at] {
                [.., b'\r', b'\n', b'\r', b'\n'] | [b'\r', b'\n'] => return Ok(true),
                [.., b'\r', b'\n'] => {}
                _ => return Err("a trailer does not end in CRLF"),
            }
        }
        self.looked = buf.len();
        if buf.len() < MAX_TRAILERS { Ok(false) } else { Err(TRAILERS_TOO_LARGE) }
    }
}

/// A chunk's size, and how long the line was that it stood on; none if that is not all there yet.
fn size_line(buf: &mut BytesMut) -> Result<Option<(u64, usize)>, &'static str> {
    let Some(end) = buf.iter().take(MAX_SIZE_LINE).position(|b| *b == b'\n') else {
        return if buf.len() >= MAX_SIZE_LINE { Err("a chunk's size line is too long") } else { Ok(None) };
    };
    let line = buf[..end].strip_suffix(b"\r").ok_or("a chunk's size does not end in CRLF")?;
    let digits = line.iter().position(|b| !b.is_ascii_hexdigit()).unwrap_or(line.len());
    if digits == 0 || digits > 16 {
        return Err("a chunk's size is not a number");
    }
    let (number, extension) = line.split_at(digits);
    // RFC 9112 section 7.1.1: only `;` begins an extension. White space before it is an older
    // grammar's, and read differently by different servers.
    let extension_ok = extension.is_empty()
        || (extension[0] == b';' && extension.iter().all(|&b| b == b'\t' || (b >= 0x20 && b != 0x7f)));
    if !extension_ok {
        return Err("a chunk's size is followed by something else");
    }
    let size = number.iter().fold(0u64, |n, &d| n << 4 | u64::from((d as char).to_digit(16).unwrap_or(0)));
    buf.advance(end + 1);
    Ok(Some((size, end + 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(text: &[u8], step: usize) -> Result<(Vec<u8>, Option<Box<Fields>>), &'static str> {
        let (mut state, mut buf, mut out) = (Chunked::default(), BytesMut::new(), Vec::new());
        let mut pieces = text.chunks(step);
        loop {
            match state.decode(&mut buf)? {
                Decoded::Data(data) => out.extend_from_slice(&data),
                Decoded::End(trailers) => return Ok((out, trailers)),
                Decoded::NeedMore => buf.extend_from_slice(pieces.next().ok_or("cut short")?),
            }
        }
    }

    #[test]
    fn any_split_decodes_alike() {
        let text = b"5\r\nhello\r\n6;x=1\r\n world\r\n0\r\nx-sum: 1\r\n\r\n";
        for step in 1..text.len() {
            let (body, trailers) = decode(text, step).unwrap();
            assert_eq!(body, b"hello world");
            assert_eq!(trailers.unwrap().get("x-sum"), Some(&b"1"[..]));
        }
    }

    #[test]
    fn two_readings_are_refused() {
        for bad in [
            &b"5 \r\nhello\r\n0\r\n\r\n"[..],
            b"5\nhello\r\n0\r\n\r\n",
            b"+5\r\nhello\r\n0\r\n\r\n",
            b"0x5\r\nhello\r\n0\r\n\r\n",
            b"-5\r\nhello\r\n0\r\n\r\n",
            b"\r\nhello\r\n0\r\n\r\n",
            b"5\r\nhelloX0\r\n\r\n",
            b"5\r\nhello\n0\r\n\r\n",
            b"10000000000000000\r\n",
            b"5;a=\x00\r\nhello\r\n0\r\n\r\n",
            b"0\r\nbad trailer\r\n\r\n",
            b"0\r\nx: 1\n\r\n",
        ] {
            for step in [1, bad.len()] {
                let refused = decode(bad, step).unwrap_err();
                assert_ne!(refused, "cut short", "{:?}", String::from_utf8_lossy(bad));
            }
            let (mut state, mut buf) = (Chunked::default(), BytesMut::from(bad));
            let refused = loop {
                match state.decode(&mut buf) {
                    Ok(decoded) => assert!(matches!(decoded, Decoded::Data(_))),
                    Err(why) => break why,
                }
            };
            for rest in [&b""[..], b"\r\n0\r\n\r\n"] {
                buf.extend_from_slice(rest);
                assert_eq!(state.decode(&mut buf).unwrap_err(), refused);
            }
        }
    }

    #[test]
    fn endless_lines_are_bounded() {
        let mut line = b"5;".to_vec();
        line.resize(MAX_SIZE_LINE + 1, b'a');
        assert!(decode(&line, line.len()).is_err());
        let mut trailers = b"0\r\n".to_vec();
        trailers.extend(std::iter::repeat_n(b"x: 1\r\n", MAX_TRAILERS).flatten());
        assert!(decode(&trailers, 4096).is_err());
        // No line too long, but more of them than chunks of one byte need.
        let wide = |ext: usize| format!("1;{}\r\nx\r\n", "a".repeat(ext)).repeat(100) + "0\r\n\r\n";
        assert!(decode(wide(10).as_bytes(), 7).is_ok());
        assert_eq!(decode(wide(400).as_bytes(), 7).unwrap_err(), "its chunk extensions are too large");
    }
}
