//! The transport between sidecars: one connection carries the requests of many, in frames of our
//! own.
//!
//! It does what HTTP/2 does between two programs that are both ours, and no more: streams with
//! credit (RFC 9113 section 5.2), resets that say whether a request was processed, and an orderly
//! end. There is no priority, no push, no compression state, and no frame that a peer could send
//! without end and without effect: whatever has no place here ends the connection.
//!
//! Everything of a connection lives on its worker's thread. A request writes its frames straight
//! into the connection's buffer; the connection's own task runs after all that are ready, and
//! writes once.
//!
//! Promises: credit of the connection returns on receipt and that of a stream as its body is
//! taken, so that a slow stream holds up no other, and what is held for slow readers stays within
//! [`budget`]; a request that lies beyond the peer's last, or was refused, was not processed;
//! nothing panics on a peer's bytes.

pub mod budget;
mod client;
mod driver;
mod frame;
mod link;
mod server;
mod stream;

pub use client::{Link, Response, connect};
pub use server::{Answer, serve};
pub use stream::{Incoming, Sink};

#[cfg(test)]
mod tests;

use std::fmt;

/// Why a stream or connection ended, with the numbers of RFC 9113 section 7.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Code(u32);

impl Code {
    /// Nothing is wrong.
    pub const NO_ERROR: Code = Code(0);
    /// The peer broke a rule.
    pub const PROTOCOL_ERROR: Code = Code(1);
    /// It could not be done.
    pub const INTERNAL_ERROR: Code = Code(2);
    /// The peer sent more than it had credit for.
    pub const FLOW_CONTROL_ERROR: Code = Code(3);
    /// The peer sent a frame of the wrong size.
    pub const FRAME_SIZE_ERROR: Code = Code(6);
    /// Nothing of the stream was processed.
    pub const REFUSED_STREAM: Code = Code(7);
    /// Nobody wants the stream any more.
    pub const CANCEL: Code = Code(8);
    /// As `REFUSED_STREAM`, since the application has as many requests as it is given. This one and the next are our
    /// own.
    pub const FULL: Code = Code(0x7061_6e01);
    /// As `REFUSED_STREAM`, since the application could not be reached.
    pub const UNREACHED: Code = Code(0x7061_6e02);
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match *self {
            Self::NO_ERROR => "no error",
            Self::PROTOCOL_ERROR => "protocol error",
            Self::INTERNAL_ERROR => "internal error",
            Self::FLOW_CONTROL_ERROR => "flow control error",
            Self::FRAME_SIZE_ERROR => "frame size error",
            Self::REFUSED_STREAM => "refused stream",
            Self::CANCEL => "cancelled",
            Self::FULL => "the application is full",
            Self::UNREACHED => "the application could not be reached",
            Self(other) => return write!(f, "code {other}"),
        };
        f.write_str(name)
    }
}

/// How a stream was lost.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Lost {
    /// The peer ended it.
    #[error("the peer reset the stream: {0:?}")]
    Reset(Code),
    /// The peer is ending, and the stream lies beyond the last that it takes.
    #[error("the peer is ending and did not take the stream")]
    Untaken,
    /// The connection ended under it.
    #[error("the connection was lost: {0}")]
    Connection(std::sync::Arc<str>),
    /// What came on it is no message.
    #[error("the stream carries no valid message: {0}")]
    Malformed(&'static str),
}
