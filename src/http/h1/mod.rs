//! HTTP/1.1 (RFC 9112) on the data path: strict reading, one write per head and small body, and
//! no buffer held by an idle connection.

pub mod chunked;
pub mod parse;
mod read;
mod scan;
mod serve;
#[cfg(test)]
mod tests;
mod write;

pub use read::{HeadError, Incoming, Reader};
pub use serve::{Ended, drain, refusal, serve};
pub use write::{Framing, Keeps, Writer};

use tokio::net::TcpStream;

/// What a peer says in a `Keep-Alive` field.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hint {
    /// Seconds; 0 if it does not say, or says that it rounded down to nothing.
    pub timeout: u32,
    /// Requests; none if it does not say.
    pub max: Option<u32>,
}

/// A connection's two halves.
#[derive(Debug)]
pub struct Conn {
    /// What arrives.
    pub reader: Reader,
    /// What leaves.
    pub writer: Writer,
}

impl Conn {
    /// A connection that has just been opened.
    pub fn new(stream: TcpStream) -> Self {
        Self::resume(stream, 0)
    }

    /// A connection on which so many bytes have been written already.
    pub fn resume(stream: TcpStream, written: u64) -> Self {
        let (read, write) = stream.into_split();
        Self { reader: Reader::new(read), writer: Writer::new(write, written) }
    }
}
