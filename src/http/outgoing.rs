//! A body that leaves on a stream, over either transport that has streams. A small piece is kept
//! until it is known whether it is the last, so that the end leaves with it and not in a frame of
//! its own.

use std::io;
use std::task::{Context, Poll, ready};

use bytes::Bytes;

use super::Fields;
use super::pump::Sink;

/// A piece from this size is not kept: beside it a frame for the end is nothing, and a slow reader
/// would have two of them held.
const KEPT: usize = 16 << 10;

/// The stream that a body leaves on.
pub trait Stream {
    /// Sends of `piece` what there is credit for; with `ends`, the end goes with the last of it.
    /// Ready when nothing is left.
    fn poll_send(&mut self, cx: &mut Context<'_>, piece: &mut Bytes, ends: bool) -> Poll<io::Result<()>>;
    /// How much would be sent at once.
    fn room(&mut self) -> usize;
    /// Ends a body that has left, or what trails it.
    fn end(&mut self, trailers: Option<Fields>) -> io::Result<()>;
    /// Ready when the peer has given the stream up.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()>;
}

/// A body that leaves.
#[derive(Debug)]
pub struct Outgoing<S> {
    stream: S,
    /// On its way, as fast as there is credit.
    leaving: Bytes,
    /// The last piece, if it is small: kept until it is known whether it is the last.
    waiting: Bytes,
    /// Its end, once that is known, with what trails.
    end: Option<Option<Fields>>,
    ended: bool,
}

impl<S: Stream> Outgoing<S> {
    /// What leaves on `stream`; with `ended`, its head was all.
    pub(super) fn new(stream: S, ended: bool) -> Self {
        Self { stream, leaving: Bytes::new(), waiting: Bytes::new(), end: None, ended }
    }

    /// The stream, if its end has not been sent.
    pub(super) fn unended(self) -> Option<S> {
        (!self.ended).then_some(self.stream)
    }
}

impl<S: Stream> Sink for Outgoing<S> {
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        loop {
            if !self.leaving.is_empty() {
                ready!(self.stream.poll_send(cx, &mut self.leaving, false))?;
            }
            if self.waiting.len() < KEPT {
                return Poll::Ready(Ok(self.stream.room()));
            }
            self.leaving = std::mem::take(&mut self.waiting);
        }
    }

    fn data(&mut self, data: Bytes) {
        debug_assert!(self.leaving.is_empty(), "a piece of a body before there was room");
        self.leaving = std::mem::replace(&mut self.waiting, data);
    }

    fn end(&mut self, trailers: Option<Fields>) {
        self.end = Some(trailers);
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.ended {
            return Poll::Ready(Ok(()));
        }
        // Nothing trails, so the end can go with the last piece.
        let plain = matches!(self.end, Some(None));
        let mut with_piece = false;
        while !self.leaving.is_empty() || !self.waiting.is_empty() {
            if self.leaving.is_empty() {
                self.leaving = std::mem::take(&mut self.waiting);
            }
            with_piece = plain && self.waiting.is_empty();
            ready!(self.stream.poll_send(cx, &mut self.leaving, with_piece))?;
        }
        if let Some(trailers) = self.end.take() {
            self.ended = true;
            if !with_piece {
                return Poll::Ready(self.stream.end(trailers));
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.stream.poll_gone(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Notes what is sent, so much of it at a time.
    #[derive(Default)]
    struct Noted {
        credit: usize,
        sent: Vec<(Vec<u8>, bool)>,
        trailed: Option<bool>,
    }

    impl Stream for Noted {
        fn poll_send(&mut self, _: &mut Context<'_>, piece: &mut Bytes, ends: bool) -> Poll<io::Result<()>> {
            let now = piece.split_to(piece.len().min(std::mem::take(&mut self.credit)));
            if !now.is_empty() {
                self.sent.push((now.to_vec(), ends && piece.is_empty()));
            }
            if piece.is_empty() { Poll::Ready(Ok(())) } else { Poll::Pending }
        }

        fn room(&mut self) -> usize {
            self.credit
        }

        fn end(&mut self, trailers: Option<Fields>) -> io::Result<()> {
            assert!(self.trailed.replace(trailers.is_some()).is_none(), "ended twice");
            Ok(())
        }

        fn poll_gone(&mut self, _: &mut Context<'_>) -> Poll<()> {
            Poll::Pending
        }
    }

    /// Two pieces and an end, with credit for `credit` bytes at each look.
    fn sent(trailers: Option<Fields>, credit: usize) -> Noted {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut out = Outgoing::new(Noted::default(), false);
        for piece in [&b"first"[..], b"last"] {
            while out.poll_room(&mut cx).is_pending() {
                out.stream.credit = credit;
            }
            out.data(Bytes::from_static(piece));
        }
        out.end(trailers);
        for _ in 0..50 {
            out.stream.credit = credit;
            if out.poll_flush(&mut cx).is_ready() && out.ended {
                break;
            }
        }
        assert!(out.ended && out.poll_flush(&mut cx).is_ready());
        out.stream
    }

    #[test]
    fn the_end_goes_with_the_last_piece_and_is_sent_once() {
        for credit in [1, 3, 100] {
            let noted = sent(None, credit);
            assert_eq!(
                noted.sent.iter().flat_map(|(data, _)| data).copied().collect::<Vec<_>>(),
                b"firstlast"
            );
            let ends: Vec<_> = noted.sent.iter().map(|(_, ends)| *ends).collect();
            assert_eq!(ends.iter().position(|ends| *ends), Some(ends.len() - 1), "credit {credit}");
            assert_eq!(noted.trailed, None);
        }
    }

    #[test]
    fn trailers_are_an_end_of_their_own() {
        let noted = sent(Some(Fields::default()), 2);
        assert!(noted.sent.iter().all(|(_, ends)| !ends) && noted.trailed == Some(true));
        // As is that of a body without a byte.
        let mut empty = Outgoing::new(Noted::default(), false);
        empty.end(None);
        assert!(empty.poll_flush(&mut Context::from_waker(std::task::Waker::noop())).is_ready());
        assert_eq!((empty.stream.sent.len(), empty.stream.trailed), (0, Some(false)));
    }

    #[test]
    fn a_stream_without_credit_holds_one_large_piece() {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut out = Outgoing::new(Noted::default(), false);
        out.data(Bytes::from_static(b"small"));
        assert!(out.poll_room(&mut cx).is_ready(), "a small one may wait for its end");
        out.data(Bytes::from(vec![0; KEPT]));
        out.stream.credit = 5;
        assert!(out.poll_room(&mut cx).is_pending(), "a large one may not");
        out.stream.credit = KEPT;
        assert!(out.poll_room(&mut cx).is_ready());
        out.end(None);
        assert!(out.poll_flush(&mut cx).is_ready());
        let sizes: Vec<_> = out.stream.sent.iter().map(|(data, ends)| (data.len(), *ends)).collect();
        assert_eq!((sizes, out.stream.trailed), (vec![(5, false), (KEPT, false)], Some(false)));
    }
}
