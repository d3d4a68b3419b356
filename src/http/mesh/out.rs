//! What waits to be written to a connection.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncWrite;

/// Pieces from this size are written from where they were read; smaller ones are copied together.
const APART: usize = 4 << 10;

/// What may wait before bodies have to.
const ENOUGH: usize = 128 << 10;

/// What the buffer may have grown to and still be kept.
const KEEP: usize = 16 << 10;

/// How many pieces go into one write.
const SLICES: usize = 32;

/// Frames on their way, in order.
#[derive(Debug, Default)]
pub(super) struct Out {
    /// What goes first.
    pieces: VecDeque<Bytes>,
    /// What goes last: where frames are written.
    pub tail: BytesMut,
    /// Bytes in `pieces`.
    apart: usize,
    /// Whether something was given to the writer below, and not yet all sent.
    unflushed: bool,
}

impl Out {
    /// Puts a piece of a body behind the header that was just written.
    pub(super) fn piece(&mut self, piece: Bytes) {
        if piece.len() < APART {
            self.tail.extend_from_slice(&piece);
            return;
        }
        if !self.tail.is_empty() {
            let before = self.tail.split().freeze();
            self.apart += before.len();
            self.pieces.push_back(before);
        }
        self.apart += piece.len();
        self.pieces.push_back(piece);
    }

    pub(super) fn len(&self) -> usize {
        self.apart + self.tail.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0 && !self.unflushed
    }

    /// Bytes of bodies that may still be put here.
    pub(super) fn room(&self) -> usize {
        ENOUGH.saturating_sub(self.len())
    }

    /// Whether bodies have to wait.
    pub(super) fn is_full(&self) -> bool {
        self.room() == 0
    }

    /// Writes all of it.
    pub(super) fn poll_write(
        &mut self,
        io: &mut (impl AsyncWrite + Unpin),
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while !(self.pieces.is_empty() && self.tail.is_empty()) {
            let n = if self.pieces.is_empty() {
                ready!(Pin::new(&mut *io).poll_write(cx, &self.tail))?
            } else {
                let mut slices = [IoSlice::new(&[]); SLICES];
                let pieces = self.pieces.iter().map(|piece| &piece[..]);
                let all = pieces.chain(std::iter::once(&self.tail[..]));
                let mut used = 0;
                for (slice, piece) in slices.iter_mut().zip(all) {
                    *slice = IoSlice::new(piece);
                    used += 1;
                }
                ready!(Pin::new(&mut *io).poll_write_vectored(cx, &slices[..used]))?
            };
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unflushed = true;
            self.advance(n);
        }
        if self.unflushed {
            ready!(Pin::new(&mut *io).poll_flush(cx))?;
            self.unflushed = false;
        }
        if self.tail.capacity() > KEEP {
            self.tail = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }

    fn advance(&mut self, mut n: usize) {
        while let Some(first) = self.pieces.front_mut() {
            let gone = n.min(first.len());
            first.advance(gone);
            self.apart -= gone;
            n -= gone;
            if !first.is_empty() {
                return;
            }
            self.pieces.pop_front();
        }
        if n == self.tail.len() {
            self.tail.clear();
        } else {
            self.tail.advance(n);
        }
    }
}
