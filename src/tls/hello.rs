//! Telling a ClientHello from everything else by a connection's first bytes, and our own mTLS from
//! the application's TLS by the ALPN that it offers (RFC 8446 sections 4.1.2 and 5.1, RFC 7301).
//!
//! A hello may come in any number of reads and records: a post-quantum key share alone is larger
//! than a packet. Nothing here keeps state or consumes bytes; the caller collects what arrives, up
//! to [`MAX`] bytes, and asks again.

use std::borrow::Cow;

use super::Alpn;

/// The most bytes that a hello may take, record headers included. Ours take less than 2 KiB;
/// applications put whole certificate chains into session tickets.
pub const MAX: usize = 64 * 1024;

/// What a connection's first bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hello {
    /// A ClientHello so far; more bytes decide.
    NeedMore,
    /// No ClientHello, or a broken one.
    NotTls,
    /// A whole ClientHello.
    Tls {
        /// It offers a protocol of ours: the peer is a sidecar.
        ours: bool,
    },
}

/// The content type of a handshake record.
const HANDSHAKE: u8 = 22;

/// The type of a ClientHello message.
const CLIENT_HELLO: u8 = 1;

/// The extension that lists application protocols.
const ALPN: u16 = 16;

/// The largest payload of a plaintext record.
const MAX_RECORD: usize = 1 << 14;

/// Reads the first bytes of a connection, all that have arrived.
pub fn detect(bytes: &[u8]) -> Hello {
    match client_hello(bytes) {
        Ok(Some(message)) => match is_ours(&message) {
            Some(ours) => Hello::Tls { ours },
            None => Hello::NotTls,
        },
        Ok(None) if bytes.len() < MAX => Hello::NeedMore,
        Ok(None) | Err(NotTls) => Hello::NotTls,
    }
}

struct NotTls;

/// The body of the ClientHello that `bytes` begin with, once all of it is there. It is borrowed
/// where one record holds it, which is nearly always.
fn client_hello(bytes: &[u8]) -> Result<Option<Cow<'_, [u8]>>, NotTls> {
    let Some((first, mut rest)) = record(bytes)? else { return Ok(None) };
    if first.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
        return Err(NotTls);
    }
    let mut message = Cow::Borrowed(first);
    loop {
        // Its header is its type and a length of three bytes.
        if let [_, a, b, c, body @ ..] = &*message {
            let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
            if length > MAX {
                return Err(NotTls);
            }
            if body.len() >= length {
                let end = 4 + length;
                return Ok(Some(match message {
                    Cow::Borrowed(message) => Cow::Borrowed(&message[4..end]),
                    Cow::Owned(message) => Cow::Owned(message[4..end].to_vec()),
                }));
            }
        }
        let Some((fragment, after)) = record(rest)? else { return Ok(None) };
        message.to_mut().extend_from_slice(fragment);
        rest = after;
    }
}

/// The payload of the handshake record that `bytes` begin with, as far as it has come, and what
/// follows it; `None` until its header is whole.
fn record(bytes: &[u8]) -> Result<Option<(&[u8], &[u8])>, NotTls> {
    // Each byte is judged as it comes, so that other protocols are known by their first.
    let length = match bytes {
        [] | [HANDSHAKE] | [HANDSHAKE, 3] | [HANDSHAKE, 3, _] | [HANDSHAKE, 3, _, _] => return Ok(None),
        [HANDSHAKE, 3, _, high, low, ..] => usize::from(*high) << 8 | usize::from(*low),
        _ => return Err(NotTls),
    };
    // A handshake record is never empty.
    if length == 0 || length > MAX_RECORD {
        return Err(NotTls);
    }
    let rest = &bytes[5..];
    let here = length.min(rest.len());
    Ok(Some(rest.split_at(here)))
}

/// Whether a ClientHello's body offers a protocol of ours; `None` where it is malformed.
fn is_ours(body: &[u8]) -> Option<bool> {
    let mut body = Reader(body);
    body.take(2 + 32)?; // version and random
    body.list8()?; // session id
    body.list16()?; // cipher suites
    body.list8()?; // compression methods
    if body.0.is_empty() {
        return Some(false); // a hello of before extensions
    }
    let mut extensions = Reader(body.list16()?);
    if !body.0.is_empty() {
        return None;
    }
    let mut ours = false;
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let data = extensions.list16()?;
        if kind == ALPN {
            ours |= offers_ours(data)?;
        }
    }
    Some(ours)
}

/// Whether the data of an ALPN extension names a protocol of ours.
fn offers_ours(data: &[u8]) -> Option<bool> {
    let mut data = Reader(data);
    let mut names = Reader(data.list16()?);
    let mut ours = false;
    while !names.0.is_empty() {
        let name = names.list8()?;
        ours |= Alpn::ALL.iter().any(|alpn| alpn.name() == name);
    }
    data.0.is_empty().then_some(ours)
}

/// Takes bytes from the front; `None` where there are too few.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u16(&mut self) -> Option<u16> {
        let (&bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u16::from_be_bytes(bytes))
    }

    /// A list with a length of one byte before it.
    fn list8(&mut self) -> Option<&'a [u8]> {
        let length = self.take(1)?[0];
        self.take(length.into())
    }

    /// A list with a length of two bytes before it.
    fn list16(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?;
        self.take(length.into())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;
    use crate::identity;

    /// The bytes of a real client's hello, with a post-quantum key share.
    fn hello(alpn: &[&[u8]]) -> Vec<u8> {
        let mut config = ClientConfig::builder_with_provider(identity::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        let mut client = ClientConnection::new(Arc::new(config), "orders.shop".try_into().unwrap()).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        assert!(bytes.len() > 1216, "the key share of X25519MLKEM768 alone is 1216 bytes");
        bytes
    }

    /// The same message in records of `size` bytes.
    fn fragment(hello: &[u8], size: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for part in hello[5..].chunks(size) {
            bytes.extend([HANDSHAKE, 3, 1]);
            bytes.extend(u16::try_from(part.len()).unwrap().to_be_bytes());
            bytes.extend(part);
        }
        bytes
    }

    /// Every shorter prefix needs more, whatever the split.
    fn assert_split_anywhere(bytes: &[u8], whole: Hello) {
        for end in 0..bytes.len() {
            assert_eq!(detect(&bytes[..end]), Hello::NeedMore, "after {end} of {} bytes", bytes.len());
        }
        assert_eq!(detect(bytes), whole);
        assert_eq!(detect(&[bytes, b"more"].concat()), whole);
    }

    #[test]
    fn hellos_are_read_whatever_their_split() {
        for (alpn, ours) in [
            (&[Alpn::H2.name()][..], true),
            (&[Alpn::Tcp.name()], true),
            (&[b"h2", b"http/1.1"], false),
            (&[b"h2", Alpn::H2.name()], true),
            (&[b"pannier/h2x", b"pannier/h", b"Pannier/h2"], false),
            (&[], false),
        ] {
            let bytes = hello(alpn);
            assert_split_anywhere(&bytes, Hello::Tls { ours });
            for size in [1, 3, 4, 5, 100, 1000] {
                assert_split_anywhere(&fragment(&bytes, size), Hello::Tls { ours });
            }
        }
    }

    #[test]
    fn other_protocols_are_known_by_their_first_bytes() {
        for bytes in [
            &b"G"[..],
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\x00",
            b"\x15\x03\x03\x00\x02\x02\x28", // an alert
            b"\x17\x03\x03\x00\x01\x00",     // application data
            b"\x16\x02",
            b"\x16\x03\x01\x00\x00",                 // an empty record
            b"\x16\x03\x01\x40\x01",                 // a record that is too long
            b"\x16\x03\x01\x00\x04\x02",             // a ServerHello
            b"\x16\x03\x01\x00\x04\x01\x01\x00\x01", // a message longer than `MAX`
            b"\x16\x03\x01\x00\x01\x01G",            // a hello that goes on as no record
            b"\x80\x2e\x01\x03\x01",                 // SSL 2
        ] {
            assert_eq!(detect(bytes), Hello::NotTls, "{bytes:?}");
        }
    }

    #[test]
    fn a_hello_has_an_end() {
        let mut body = vec![CLIENT_HELLO, 0, 0xff, 0xff];
        body.resize(4 + 0xfffe, 0);
        let header = [HANDSHAKE, 3, 1, 0, 0].to_vec();
        // One byte less than the message says, in records of 4 KiB: more is needed, up to `MAX`.
        let bytes = fragment(&[header, body].concat(), 4096);
        assert_eq!(detect(&bytes[..MAX - 1]), Hello::NeedMore);
        assert_eq!(detect(&bytes[..MAX]), Hello::NotTls);
    }

    #[test]
    fn a_hello_without_extensions_is_tls() {
        let mut body = vec![3, 1];
        body.extend([7; 32]);
        body.extend([0, 0, 2, 0x13, 1, 1, 0]);
        let mut bytes = vec![HANDSHAKE, 3, 1, 0, u8::try_from(body.len() + 4).unwrap(), CLIENT_HELLO, 0, 0];
        bytes.push(u8::try_from(body.len()).unwrap());
        bytes.extend(&body);
        assert_eq!(detect(&bytes), Hello::Tls { ours: false });
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = detect(&bytes);
            let _ = detect(&[&[HANDSHAKE, 3, 1, 1, 0, CLIENT_HELLO, 0, 0, 252][..], &bytes].concat());
        }

        #[test]
        fn a_damaged_hello_is_answered(at in any::<prop::sample::Index>(), to: u8) {
            thread_local! {
                static HELLO: Vec<u8> = hello(&[Alpn::H2.name()]);
            }
            let mut bytes = HELLO.with(Clone::clone);
            let at = at.index(bytes.len());
            bytes[at] = to;
            let whole = detect(&bytes);
            // A hello that has been read stays the same when more follows it.
            if whole != Hello::NeedMore {
                bytes.push(0);
                prop_assert_eq!(detect(&bytes), whole);
            }
        }

        #[test]
        fn an_answer_is_final(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in any::<prop::sample::Index>()) {
            let bytes = [&[HANDSHAKE, 3, 1, 0, 60, CLIENT_HELLO, 0, 0, 56][..], &bytes].concat();
            let early = detect(&bytes[..cut.index(bytes.len())]);
            if early != Hello::NeedMore {
                prop_assert_eq!(detect(&bytes), early);
            }
        }
    }
}
