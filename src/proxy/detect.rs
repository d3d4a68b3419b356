//! Which protocol a connection speaks, told from its first bytes, which stay where they are.
//!
//! For protocols in which the server speaks first, the destination is dialled while the client is
//! silent, and the server's first bytes decide. Silence alone decides nothing: HTTP that comes
//! late is still HTTP.

use std::future::Future;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::tcp::Opened;
use crate::error::{Error, Reason, Result};
use crate::http::h2::PREFACE;
use crate::tls::hello::{self, Hello};

/// What is looked at first; most first packets are smaller.
const FIRST_LOOK: usize = 2048;

/// The longest first line that is waited for, and the longest method of it.
const MAX_LINE: usize = 16 << 10;
const MAX_METHOD: usize = 64;

/// How long a server that was dialled to hear whether it speaks first is listened to.
const LISTEN: Duration = Duration::from_secs(10);

/// Methods of RFC 9110 and 5789: what begins so is held to be HTTP, and refused if it is not
/// well-formed, rather than carried past all rules as bytes.
const METHODS: [&[u8]; 9] =
    [b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH"];

/// What a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// TLS; ours if it offers a protocol between sidecars.
    Tls {
        /// Between sidecars.
        ours: bool,
    },
    /// Something else.
    Opaque,
}

/// What was found out.
pub(super) struct Detected {
    /// The protocol.
    pub protocol: Protocol,
    /// The destination, if finding out took dialling it.
    pub server: Option<Box<Opened>>,
}

impl Detected {
    /// Bytes for a destination that is already open.
    pub(super) fn server(opened: Opened) -> Self {
        Self { protocol: Protocol::Opaque, server: Some(Box::new(opened)) }
    }
}

/// Looks at the first bytes. After `patience` of silence, `server` is dialled to hear whether it
/// speaks first. Who has begun to speak may take `half_said` over the bytes that decide.
pub(super) async fn detect(
    stream: &TcpStream,
    patience: Duration,
    half_said: Duration,
    server: Option<impl Future<Output = Result<Opened>>>,
) -> Result<Detected> {
    let client = |protocol| Detected { protocol, server: None };
    let Some(server) = server else { return client_first(stream, half_said).await.map(client) };
    if let Ok(protocol) = timeout(patience, client_first(stream, half_said)).await {
        return protocol.map(client);
    }
    let opened = tokio::select! {
        biased;
        protocol = client_first(stream, half_said) => return protocol.map(client),
        opened = server => opened,
    };
    // A destination that cannot be reached says nothing of the protocol: the client may yet speak.
    let Ok(mut opened) = opened else { return client_first(stream, half_said).await.map(client) };
    tokio::select! {
        biased;
        protocol = client_first(stream, half_said) => {
            let protocol = protocol?;
            Ok(Detected { protocol, server: (protocol == Protocol::Opaque).then(|| Box::new(opened)) })
        }
        heard = timeout(LISTEN, opened.hear()) => match heard {
            Ok(Ok(true)) => Ok(Detected::server(opened)),
            // It waits to be asked, or has gone: the client decides, and whatever that takes is
            // dialled then.
            Ok(Ok(false) | Err(_)) | Err(_) => {
                drop(opened);
                client_first(stream, half_said).await.map(client)
            }
        },
    }
}

async fn client_first(stream: &TcpStream, limit: Duration) -> Result<Protocol> {
    let gone = |_| Error::new(Reason::HttpDownstreamGone, "closed before a word");
    // A silent connection holds no buffer, and is not on the clock. What decides nearly always fits.
    let mut first = [0; PREFACE.len()];
    let mut len = stream.peek(&mut first).await.map_err(gone)?;
    if let Some(protocol) = classify(&first[..len]) {
        return Ok(protocol);
    }
    let (mut seen, mut pause) = (vec![0; FIRST_LOOK], Duration::from_millis(1));
    seen[..len].copy_from_slice(&first[..len]);
    let decided = timeout(limit, async {
        loop {
            let n = stream.peek(&mut seen).await.map_err(gone)?;
            if n == 0 {
                return Err(Error::new(Reason::HttpDownstreamGone, "closed before a word"));
            }
            if let Some(protocol) = classify(&seen[..n]) {
                return Ok(protocol);
            }
            len = n;
            let said_all = stream.ready(Interest::READABLE).await.is_ok_and(|ready| ready.is_read_closed());
            if said_all {
                return Ok(half_said(&seen[..n]));
            }
            // What was seen stays readable, so there is no event to wait for; rarely needed, since
            // what decides nearly always comes in one packet.
            if n == seen.len() {
                seen.resize((n * 2).min(hello::MAX), 0);
            }
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    });
    let decided = decided.await;
    decided.unwrap_or_else(|_| Ok(half_said(&seen[..len])))
}

/// What a client speaks that says no more. The beginning of something we know is held to be that, so
/// that it is refused there; a word of its own is its protocol's.
fn half_said(bytes: &[u8]) -> Protocol {
    let line = bytes.trim_ascii_start();
    let begins = |whole: &[u8]| whole.starts_with(line);
    if matches!(hello::detect(bytes), Hello::NeedMore) {
        Protocol::Tls { ours: false }
    } else if line.is_empty() || begins(PREFACE) || METHODS.iter().any(|method| begins(method)) {
        Protocol::Http1
    } else {
        Protocol::Opaque
    }
}

/// The protocol, once the bytes tell. What they have told, no later byte changes.
pub fn classify(bytes: &[u8]) -> Option<Protocol> {
    match hello::detect(bytes) {
        Hello::Tls { ours } => return Some(Protocol::Tls { ours }),
        Hello::NeedMore => return None,
        Hello::NotTls => {}
    }
    if bytes.starts_with(PREFACE) {
        return Some(Protocol::Http2);
    }
    if PREFACE.starts_with(bytes) {
        return None;
    }
    // RFC 9112 section 2.2: a server ignores empty lines before a request.
    let start = bytes.iter().position(|b| !matches!(b, b'\r' | b'\n'))?;
    let line = &bytes[start..];
    let spaced = |rest: &[u8]| matches!(rest.first(), Some(b' ' | b'\t'));
    if METHODS.iter().any(|method| line.strip_prefix(*method).is_some_and(spaced)) {
        return Some(Protocol::Http1);
    }
    let token = line.iter().take_while(|b| is_token(**b)).count();
    match line.get(token) {
        Some(b' ') if (1..MAX_METHOD).contains(&token) => {}
        None if token < MAX_METHOD => return None,
        _ => return Some(Protocol::Opaque),
    }
    // Another method, if the line ends as a request line does; text protocols have words too. The
    // first byte that decides does so however the line was cut into packets.
    let decides = |b: &u8| *b == b'\n' || b.is_ascii_control() && !b"\t\r".contains(b);
    match line.iter().take(MAX_LINE).position(decides) {
        Some(end) if line[end] == b'\n' => {
            let line = line[..end].trim_ascii_end();
            let version = line.rsplit(|b| *b == b' ').next().unwrap_or_default();
            Some(if version.starts_with(b"HTTP/") { Protocol::Http1 } else { Protocol::Opaque })
        }
        None if line.len() < MAX_LINE => None,
        _ => Some(Protocol::Opaque),
    }
}

/// RFC 9110 section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_tell() {
        for (bytes, expected) in [
            (&b"GET / HTTP/1.1\r\n"[..], Some(Protocol::Http1)),
            (b"\r\nGET / HTTP/1.1\r\n", Some(Protocol::Http1)),
            (b"PURGE /x HTTP/1.1\r\n", Some(Protocol::Http1)),
            (b"GET /nonsense", Some(Protocol::Http1)),
            (b"GET\t/ HTTP/1.1\r\n", Some(Protocol::Http1)),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Some(Protocol::Http2)),
            (b"PRI * HT", None),
            (b"P", None),
            // However they are cut into packets.
            (b"PURGE /\xe9", None),
            (b"PURGE /\xe9 HTTP/1.1\r\n", Some(Protocol::Http1)),
            (b"PURGE /\0", Some(Protocol::Opaque)),
            (b"PURGE /\0 HTTP/1.1\r\n", Some(Protocol::Opaque)),
            (&[b'A'; 64], Some(Protocol::Opaque)),
            (&[&[b'A'; 64][..], b" /x HTTP/1.1\r\n"].concat(), Some(Protocol::Opaque)),
            (b"PURGE /x HT", None),
            (b"\r\n", None),
            (b"get key\r\n", Some(Protocol::Opaque)),
            (b"EHLO there\r\n", Some(Protocol::Opaque)),
            (b"PING\r\n", Some(Protocol::Opaque)),
            (b"*1\r\n$4\r\nPING\r\n", Some(Protocol::Opaque)),
            (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", Some(Protocol::Opaque)),
            (b"\x16\x03\x01", None),
            (b"\x16\x09\x09\x00\x05hello", Some(Protocol::Opaque)),
        ] {
            assert_eq!(classify(bytes), expected, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_something(bytes: Vec<u8>) {
            let _ = classify(&bytes);
        }

        #[test]
        fn a_long_wait_is_bounded(byte: u8) {
            let protocol = classify(&vec![byte; hello::MAX]);
            proptest::prop_assert!(protocol.is_some() || byte == b'\r' || byte == b'\n');
        }
    }
}
