//! Tunnels: what an upgrade or CONNECT makes of a connection or of a stream.
//!
//! Promises: nothing that the downstream said after its request goes on before the tunnel was
//! granted; each side's end is passed on by itself; a side that was lost is not taken for one that
//! ended; while nothing is said, no buffer is held by a stream.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::net::TcpStream;

use super::exchange::Frames;
use super::mesh::Route;
use super::tcp::{self, Opened, Socket};
use super::worker::{Busy, Worker};
use crate::balance::InFlight;
use crate::error::{Error, Reason, Result};
use crate::http::pump::{Broken, Sink, Source, gone};
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
pub(super) enum End {
    /// A connection.
    Connection(Box<Opened>),
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
                opened.map(|opened| End::Connection(Box::new(opened))).ok_or_else(|| {
                    Error::new(Reason::UpstreamReset, "the connection was lost as it became a tunnel")
                })
            }
        }
    }
}

/// A tunnel that has been granted: counted, and kept from being cut by the process's end.
pub(super) struct Tunnel {
    end: End,
    counted: Connection,
    _busy: Busy,
}

impl Tunnel {
    /// A tunnel to `end`, by `route`.
    pub(super) fn new(worker: &Rc<Worker>, route: &Arc<Route>, end: End) -> Self {
        Self { end, counted: route.tcp.open(worker.index), _busy: worker.busy() }
    }

    /// Joins it with the downstream's connection, of which `first` was read already, until both
    /// sides have ended.
    pub(super) async fn join(self, downstream: TcpStream, first: Bytes) {
        match self.end {
            End::Connection(opened) => tcp::relay(downstream, first, *opened, &self.counted).await,
            End::Stream((mut sink, mut body), _place) => {
                let mut near = Ends::new(downstream, first);
                let (sent, received) = (|n| self.counted.sent(n), |n| self.counted.received(n));
                let up = pass(&mut near.source, &mut sink, sent);
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
                lost(tokio::try_join!(pass(body, &mut sink, sent), pass(&mut far, respond, received)));
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

/// Carries one way to its end. However long nothing comes, a tunnel waits.
async fn pass(source: &mut impl Source, sink: &mut impl Sink, count: impl Fn(u64)) -> Result<(), Broken> {
    loop {
        let frame = match source.frame().now_or_never() {
            Some(frame) => frame,
            None => {
                sink.flush().await.map_err(Broken::Sink)?;
                tokio::select! {
                    biased;
                    frame = source.frame() => frame,
                    () = sink.gone() => return Err(gone()),
                }
            }
        };
        match frame.map_err(Broken::Source)? {
            Some(Frame::Data(data)) => {
                let bytes = data.len() as u64;
                sink.data(data).await.map_err(Broken::Sink)?;
                count(bytes);
            }
            // A tunnel has no fields behind it.
            Some(Frame::Trailers(_)) | None => return sink.end(None).await.map_err(Broken::Sink),
        }
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

struct Leaving<S>(WriteHalf<S>);

impl<S: Socket> Ends<S> {
    fn new(stream: S, first: Bytes) -> Self {
        let (read, write) = split(stream);
        Self { source: Arriving { half: read, buf: first.into() }, sink: Leaving(write) }
    }

    fn reset_on_close(self) {
        tcp::reset_on_close(self.source.half.unsplit(self.sink.0).socket());
    }
}

impl<S: Socket> Source for Arriving<S> {
    async fn frame(&mut self) -> Result<Option<Frame>, BodyError> {
        let Arriving { half, buf } = self;
        let read = poll_fn(|cx| {
            if !buf.is_empty() {
                return Poll::Ready(Ok(buf.len()));
            }
            buf.reserve(PIECE);
            let read = pin!(half.read_buf(buf)).poll(cx);
            if read.is_pending() {
                *buf = BytesMut::new();
            }
            read
        });
        match read.await {
            Ok(0) => Ok(None),
            // A few bytes would hold on to the whole piece for as long as they wait to leave.
            Ok(n) if n < PIECE / 4 => {
                let few = Bytes::copy_from_slice(buf);
                buf.clear();
                Ok(Some(Frame::Data(few)))
            }
            Ok(_) => Ok(Some(Frame::Data(buf.split().freeze()))),
            Err(error) => Err(BodyError::Gone(error)),
        }
    }
}

impl<S: Socket> Sink for Leaving<S> {
    async fn data(&mut self, data: Bytes) -> io::Result<()> {
        self.0.write_all(&data).await
    }

    async fn flush(&mut self) -> io::Result<()> {
        self.0.flush().await
    }

    async fn end(&mut self, _: Option<Fields>) -> io::Result<()> {
        self.0.shutdown().await
    }
}
