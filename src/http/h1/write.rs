//! The writing half of an HTTP/1 connection. A head and the first bytes of its body leave in one
//! write; large bodies are written from where they were read.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::rc::Rc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::tcp::OwnedWriteHalf;

use crate::http::{Fields, Length, RequestHead, ResponseHead};
use http::{HeaderValue, Method, StatusCode, Version};

/// Bytes up to which a piece of a body is gathered with what is already waiting.
const GATHER: usize = 8 << 10;

/// How a body is framed on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// As it is: its length is known, or the connection ends it.
    Plain,
    /// In chunks.
    Chunked,
    /// There is none, whatever is sent.
    Bodyless,
}

/// The writing half, with what is still to be written.
#[derive(Debug)]
pub struct Writer {
    half: OwnedWriteHalf,
    buf: BytesMut,
    framing: Framing,
    /// Bytes that have left since the last head, for whoever watches while a body is being sent.
    written: Rc<Cell<u64>>,
}

impl Writer {
    pub(super) fn new(half: OwnedWriteHalf) -> Self {
        Self { half, buf: BytesMut::new(), framing: Framing::Plain, written: Rc::default() }
    }

    /// Puts a request's head into the buffer. `host` stands in where the request names nobody.
    pub fn request(&mut self, head: &RequestHead, host: &str) {
        self.written.set(0);
        let out = &mut self.buf;
        out.reserve(512);
        out.put_slice(head.method.as_str().as_bytes());
        out.put_u8(b' ');
        match &head.authority {
            Some(authority) if head.method == Method::CONNECT => {
                out.put_slice(authority.as_str().as_bytes());
            }
            _ => out.put_slice(head.path.as_str().as_bytes()),
        }
        out.put_slice(b" HTTP/1.1\r\n");
        if head.fields.get("host").is_none() {
            out.put_slice(b"host: ");
            out.put_slice(head.authority.as_ref().map_or(host, |a| a.as_str()).as_bytes());
            out.put_slice(b"\r\n");
        }
        head.fields.write_h1(out);
        put_upgrade(out, head.upgrade.as_ref());
        self.framing = match head.length {
            Length::None => Framing::Bodyless,
            Length::Sized(_) => Framing::Plain,
            Length::Stream => Framing::Chunked,
        };
        put_length(out, head.length, self.framing);
        out.put_slice(b"\r\n");
    }

    /// Puts a response's head into the buffer, as an answer to `method` from a client that speaks
    /// `version`. With `close`, says that the connection ends.
    pub fn response(&mut self, head: &ResponseHead, method: &Method, version: Version, close: bool) {
        self.written.set(0);
        self.framing = match head.length {
            _ if !head.may_have_body(method) => Framing::Bodyless,
            Length::None | Length::Sized(_) => Framing::Plain,
            Length::Stream if version == Version::HTTP_11 => Framing::Chunked,
            Length::Stream => Framing::Plain,
        };
        let out = &mut self.buf;
        out.reserve(512);
        put_status(out, head.status);
        head.fields.write_h1(out);
        put_upgrade(out, head.upgrade.as_ref());
        let length = match head.length {
            // What can have a body and has none says so.
            Length::None if head.may_have_body(method) => Length::Sized(0),
            length => length,
        };
        put_length(out, length, self.framing);
        if close {
            out.put_slice(b"connection: close\r\n");
        } else if version == Version::HTTP_10 {
            out.put_slice(b"connection: keep-alive\r\n");
        }
        out.put_slice(b"\r\n");
    }

    /// Writes an interim response (1xx) at once.
    pub async fn interim(&mut self, status: StatusCode, fields: &Fields) -> io::Result<()> {
        put_status(&mut self.buf, status);
        fields.write_h1(&mut self.buf);
        self.buf.put_slice(b"\r\n");
        self.flush().await
    }

    /// Writes the head at once after which the connection is a tunnel. It has no body, and no field
    /// that says so.
    pub async fn tunnel(&mut self, head: &ResponseHead) -> io::Result<()> {
        put_status(&mut self.buf, head.status);
        head.fields.write_h1(&mut self.buf);
        put_upgrade(&mut self.buf, head.upgrade.as_ref());
        self.buf.put_slice(b"\r\n");
        self.flush().await
    }

    /// A piece of the body. Small pieces wait for [`Writer::flush`] or for company.
    pub async fn data(&mut self, mut data: Bytes) -> io::Result<()> {
        match self.framing {
            Framing::Bodyless => return Ok(()),
            Framing::Plain => {}
            Framing::Chunked => {
                use std::fmt::Write;
                let _ = write!(self.buf, "{:x}\r\n", data.len());
            }
        }
        if self.buf.len() + data.len() <= GATHER {
            self.buf.put_slice(&data);
        } else {
            while !data.is_empty() {
                let slices = [IoSlice::new(&self.buf), IoSlice::new(&data)];
                let slices = if self.buf.is_empty() { &slices[1..] } else { &slices[..] };
                let n = self.half.write_vectored(slices).await?;
                if n == 0 {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                self.written.set(self.written.get() + n as u64);
                let head = n.min(self.buf.len());
                self.buf.advance(head);
                data.advance(n - head);
            }
        }
        if self.framing == Framing::Chunked {
            self.buf.put_slice(b"\r\n");
        }
        Ok(())
    }

    /// Ends the body and writes all that waits.
    pub async fn end(&mut self, trailers: Option<Fields>) -> io::Result<()> {
        if self.framing == Framing::Chunked {
            self.buf.put_slice(b"0\r\n");
            if let Some(trailers) = trailers {
                trailers.write_h1(&mut self.buf);
            }
            self.buf.put_slice(b"\r\n");
        }
        self.flush().await
    }

    /// Writes all that waits.
    pub async fn flush(&mut self) -> io::Result<()> {
        while !self.buf.is_empty() {
            let n = self.half.write(&self.buf).await?;
            if n == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.written.set(self.written.get() + n as u64);
            self.buf.advance(n);
        }
        // An idle connection holds no buffer.
        self.buf = BytesMut::new();
        Ok(())
    }

    /// Resolves when the connection is lost. A peer that has merely ended its side may still read;
    /// and what it sends on stays where it is.
    pub async fn lost(&self) {
        // Costs no system call: the runtime hears of errors whether it reads or not.
        if self.half.ready(Interest::ERROR).await.is_err() {
            std::future::pending().await
        }
    }

    /// Bytes that have left since the last head began, as they leave.
    pub fn written(&self) -> Rc<Cell<u64>> {
        self.written.clone()
    }

    pub(super) fn into_half(self) -> OwnedWriteHalf {
        self.half
    }

    /// Ends our side of the connection.
    pub async fn shutdown(&mut self) -> io::Result<()> {
        self.half.shutdown().await
    }
}

fn put_status(out: &mut BytesMut, status: StatusCode) {
    out.put_slice(b"HTTP/1.1 ");
    out.put_slice(status.as_str().as_bytes());
    out.put_u8(b' ');
    out.put_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    out.put_slice(b"\r\n");
}

/// The fields of an upgrade, which are this hop's own.
fn put_upgrade(out: &mut BytesMut, protocols: Option<&HeaderValue>) {
    if let Some(protocols) = protocols {
        out.reserve(protocols.len() + 32);
        out.put_slice(b"connection: upgrade\r\nupgrade: ");
        out.put_slice(protocols.as_bytes());
        out.put_slice(b"\r\n");
    }
}

fn put_length(out: &mut BytesMut, length: Length, framing: Framing) {
    match length {
        Length::Sized(n) => {
            out.put_slice(b"content-length: ");
            put_number(out, n);
            out.put_slice(b"\r\n");
        }
        Length::Stream if framing == Framing::Chunked => out.put_slice(b"transfer-encoding: chunked\r\n"),
        Length::Stream | Length::None => {}
    }
}

fn put_number(out: &mut BytesMut, mut n: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            break;
        }
    }
    out.put_slice(&digits[at..]);
}
