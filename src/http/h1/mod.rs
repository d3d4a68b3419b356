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
pub use write::{Framing, Writer};

use tokio::net::TcpStream;

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
        let (read, write) = stream.into_split();
        Self { reader: Reader::new(read), writer: Writer::new(write) }
    }
}
