//! Tunnels: what an upgrade or CONNECT makes of a connection or of a stream.
//!
//! Promises: nothing that the downstream said after its request goes on before the tunnel was
//! granted; each side's end is passed on by itself; a side that was lost is not taken for one that
//! ended; while nothing is said, no buffer is held by a stream.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWrite, ReadHalf, WriteHalf, split};
use tokio::net::TcpStream;

use super::exchange::Frames;
use super::mesh::Route;
use super::tcp::{self, Opened, Socket};
use super::worker::{Busy, Worker};
use crate::balance::InFlight;
use crate::error::{Error, Reason, Result};
use crate::http::pump::{Broken, Sink, Source, pump};
use crate::http::{Body, BodyError, Fields, Frame, Responder};
use crate::pool::Lease;
use crate::telemetry::Connection;

/// What is read from a connection at a time.
const PIECE: usize = 16 << 10;

/// What an exchange had under it when the tunnel was granted.
pub(super) enum Switched {
    /// A connection of its own.
    Connection(Lease),
    /// A stream among others.
    Stream(Frames),
}

/// The upstream's end of a tunnel, with its place in the counts.
#[expect(clippy::large_enum_variant, reason = "it is boxed as a whole")]
pub(super) enum End {
    /// A connection.
    Connection(Opened),
    /// A stream: where bytes go, and where they come from.
    Stream(Frames, InFlight),
}

impl End {
    /// The end of an exchange.
    pub(super) fn new(switched: Switched, place: InFlight) -> Result<Self> {
        match switched {
            Switched::Stream(frames) => Ok(End::Stream(frames, place)),
            Switched::Connection(lease) => {
                let opened = Opened::from_lease(lease, place);
                opened.map(End::Connection).ok_or_else(|| {
                    Error::new(Reason::UpstreamReset, "the connection was lost as it became a tunnel")
                })
            }
        }
    }
}

/// A tunnel that has been granted: counted, and kept from being cut by the process's end. In memory of
/// its own, since requests that ask for none have no room for it.
pub(super) type Tunnel = Box<Granted>;

pub(super) struct Granted {
    end: End,
    counted: Connection,
    _busy: Busy,
}

/// A tunnel to `end`, by `route`.
pub(super) fn granted(worker: &Rc<Worker>, route: &Arc<Route>, end: End) -> Tunnel {
    Box::new(Granted { end, counted: route.tcp.open(worker.index), _busy: worker.busy() })
}

impl Granted {
    /// Joins it with the downstream's connection, of which `first` was read already, until both
    /// sides have ended.
    pub(super) async fn join(self, downstream: TcpStream, first: Bytes) {
        match self.end {
            End::Connection(opened) => tcp::relay(downstream, first, opened, &self.counted).await,
            End::Stream((mut sink, mut body), _place) => {
                let mut near = Ends::new(downstream, first);
                let (sent, received) = (|n| self.counted.sent(n), |n| self.counted.received(n));
                let up = pass(&mut near.source, &mut *sink, sent);
                let down = pass(&mut body, &mut near.sink, received);
                if lost(tokio::try_join!(up, down)) {
                    near.reset_on_close();
                }
            }
        }
    }

    /// As [`join`](Self::join), where the downstream is a stream. What is not ended of it afterwards
    /// is for its server to reset.
    pub(super) async fn join_stream(self, body: &mut Body<'_>, respond: &mut Responder<'_>) {
        let (sent, received) = (|n| self.counted.sent(n), |n| self.counted.received(n));
        match self.end {
            End::Connection(opened) => {
                let (stream, said, _counts) = opened.into_parts();
                let mut far = Ends::new(stream, said);
                let up = pass(body, &mut far.sink, sent);
                let down = pass(&mut far.source, respond, received);
                if lost(tokio::try_join!(up, down)) {
                    far.reset_on_close();
                }
            }
            End::Stream((mut sink, mut far), _place) => {
                lost(tokio::try_join!(pass(body, &mut *sink, sent), pass(&mut far, respond, received)));
            }
        }
    }
}

fn lost(ended: Result<((), ()), Broken>) -> bool {
    if let Err(error) = &ended {
        tracing::debug!(?error, "a tunnel was lost");
    }
    ended.is_err()
}

/// Carries one way to its end. However long nothing comes or is taken, a tunnel waits.
async fn pass(
    source: &mut impl Source,
    sink: &mut (impl Sink + ?Sized),
    count: impl Fn(u64) + Unpin,
) -> Result<(), Broken> {
    pump(source, &mut Counted { sink, count }, Duration::MAX).await.map(|_| ())
}

/// A sink that counts what it is given.
struct Counted<'a, K: ?Sized, F> {
    sink: &'a mut K,
    count: F,
}

impl<K: Sink + ?Sized, F: Fn(u64)> Sink for Counted<'_, K, F> {
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.sink.poll_room(cx)
    }

    fn data(&mut self, data: Bytes) {
        (self.count)(data.len() as u64);
        self.sink.data(data);
    }

    fn end(&mut self, _: Option<Fields>) {
        // A tunnel has no fields behind it.
        self.sink.end(None);
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.sink.poll_flush(cx)
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.sink.poll_gone(cx)
    }
}

/// A connection as the two ends of a stream.
struct Ends<S> {
    source: Arriving<S>,
    sink: Leaving<S>,
}

struct Arriving<S> {
    half: ReadHalf<S>,
    /// What was read before, and then what is being read.
    buf: BytesMut,
}

struct Leaving<S> {
    half: WriteHalf<S>,
    piece: Bytes,
    ended: bool,
}

impl<S: Socket> Ends<S> {
    fn new(stream: S, first: Bytes) -> Self {
        let (read, write) = split(stream);
        let source = Arriving { half: read, buf: first.into() };
        Self { source, sink: Leaving { half: write, piece: Bytes::new(), ended: false } }
    }

    fn reset_on_close(self) {
        tcp::reset_on_close(self.source.half.unsplit(self.sink.half).socket());
    }
}

impl<S: Socket> Source for Arriving<S> {
    fn poll_frame(&mut self, cx: &mut Context<'_>, _: usize) -> Poll<Result<Option<Frame>, BodyError>> {
        let Arriving { half, buf } = self;
        if buf.is_empty() {
            buf.reserve(PIECE);
            let read = pin!(half.read_buf(buf)).poll(cx);
            if read.is_pending() {
                *buf = BytesMut::new();
            }
            if ready!(read).map_err(BodyError::Gone)? == 0 {
                return Poll::Ready(Ok(None));
            }
        }
        if buf.len() < PIECE / 4 {
            // A few bytes would hold on to the whole piece for as long as they wait to leave.
            let few = Bytes::copy_from_slice(buf);
            buf.clear();
            return Poll::Ready(Ok(Some(Frame::Data(few))));
        }
        Poll::Ready(Ok(Some(Frame::Data(buf.split().freeze()))))
    }
}

impl<S: Socket> Sink for Leaving<S> {
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        while !self.piece.is_empty() {
            let written = ready!(Pin::new(&mut self.half).poll_write(cx, &self.piece))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.piece.advance(written);
        }
        // What was sent is not held on to.
        self.piece = Bytes::new();
        Poll::Ready(Ok(usize::MAX))
    }

    fn data(&mut self, data: Bytes) {
        debug_assert!(self.piece.is_empty(), "a piece before there was room");
        self.piece = data;
    }

    fn end(&mut self, _: Option<Fields>) {
        self.ended = true;
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_room(cx))?;
        let half = Pin::new(&mut self.half);
        if self.ended { half.poll_shutdown(cx) } else { half.poll_flush(cx) }
    }

    fn poll_gone(&mut self, _: &mut Context<'_>) -> Poll<()> {
        // Whoever waits for what comes from it notices.
        Poll::Pending
    }
}
