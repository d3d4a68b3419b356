//! What waits to be written to a connection, in order: small things copied together, large pieces of
//! bodies from where they were read.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};
use smallvec::SmallVec;

/// Pieces from this size are written from where they were read.
const APART: usize = 4 << 10;

/// How many pieces go into one write.
const SLICES: usize = 32;

/// Bytes on their way.
#[derive(Debug, Default)]
pub(super) struct Out {
    /// What goes first.
    pieces: VecDeque<Bytes>,
    /// What goes last: where heads and frames are put.
    pub(super) tail: BytesMut,
    /// Bytes in `pieces`.
    apart: usize,
}

impl Out {
    /// Puts a piece of a body behind what waits.
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

    /// Bytes that wait.
    pub(super) fn len(&self) -> usize {
        self.apart + self.tail.len()
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What waits, if it is in one place.
    pub(super) fn only(&self) -> Option<&[u8]> {
        match (self.pieces.front(), self.tail.is_empty()) {
            (None, _) => Some(&self.tail),
            (Some(piece), true) if self.pieces.len() == 1 => Some(piece),
            _ => None,
        }
    }

    /// What goes into the next write.
    pub(super) fn slices(&self) -> SmallVec<[IoSlice<'_>; SLICES]> {
        let pieces = self.pieces.iter().map(|piece| &piece[..]);
        pieces.chain(std::iter::once(&self.tail[..])).take(SLICES).map(IoSlice::new).collect()
    }

    /// Notes that the first `n` bytes have been written.
    pub(super) fn advance(&mut self, mut n: usize) {
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

    /// Gives the memory back that nothing waits in, as far as it is more than `keep`.
    pub(super) fn shrink(&mut self, keep: usize) {
        if self.pieces.is_empty() {
            self.pieces = VecDeque::new();
        }
        if self.tail.is_empty() && self.tail.capacity() > keep {
            self.tail = BytesMut::new();
        }
    }
}
