//! Connections that are carried as bytes: inside mTLS where the upstream is in the mesh.
//!
//! Promises: each side's end is passed on by itself; a side that was lost is not taken for one that
//! ended; every byte that was passed on is counted at once.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf, copy_bidirectional_with_sizes};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

use super::detect::Detected;
use super::forward::noted;
use super::mesh::Destination;
use super::worker::Worker;
use crate::balance::{InFlight, Open, Want};
use crate::config::model::Direction;
use crate::error::{Reason, Result};
use crate::intercept::Source;
use crate::pool::{Dial, Lease, Stream, dial};
use crate::telemetry::Connection;
use crate::tls::{Buffered, Carries};

/// Endpoints that are tried for one connection.
const TRIES: usize = 3;

/// What is read at a time, each way.
const BUFFER: usize = 16 << 10;

/// A connection to a destination, counted while it lives.
pub(super) struct Opened {
    stream: Stream,
    /// What the server said before anybody asked.
    said: BytesMut,
    _place: InFlight,
    _open: Open,
}

impl Opened {
    /// The connection of an exchange that ended in a tunnel.
    pub(super) fn from_lease(lease: Lease, place: InFlight) -> Option<Self> {
        let (stream, read, open) = lease.into_stream()?;
        Some(Self { stream: Either::Left(stream), said: read.into(), _place: place, _open: open })
    }

    /// Its parts: the connection, what was read of it, and what counts it.
    pub(super) fn into_parts(self) -> (Stream, Bytes, impl Sized) {
        (self.stream, self.said.freeze(), (self._place, self._open))
    }

    /// Waits for the server's first bytes; false if it ends without a word.
    pub(super) async fn hear(&mut self) -> io::Result<bool> {
        self.stream.read_buf(&mut self.said).await.map(|n| n > 0)
    }
}

/// Opens a connection to a destination: to the least saturated endpoint that can be reached.
pub(super) async fn open(
    worker: &Rc<Worker>,
    destination: &Destination,
    source: Option<Source>,
) -> Result<Opened> {
    let upstream = &destination.route.upstream;
    let mut tried: SmallVec<[u64; TRIES]> = SmallVec::new();
    loop {
        let place = match &destination.pinned {
            Some(endpoint) => upstream.place_at(endpoint, Instant::now(), false)?,
            None => {
                upstream
                    .pick(
                        &Want {
                            tried: &tried,
                            begun: Instant::now(),
                            deadline: None,
                            patience: None,
                            key: None,
                        },
                        &**worker,
                    )
                    .await?
            }
        };
        let endpoint = place.endpoint().clone();
        worker.shared.leads_away(destination.route.direction, endpoint.address)?;
        let opened = worker.pools.room(upstream, &endpoint).await?;
        let secure = upstream.secures(&endpoint).then_some(Carries::Bytes);
        let mut way = Dial { source, secure };
        let mut stream = dial(upstream, &endpoint, way, &worker.shared.tls).await;
        if stream.is_err() && secure.is_some() && !upstream.secures(&endpoint) {
            way.secure = None;
            stream = dial(upstream, &endpoint, way, &worker.shared.tls).await;
        }
        match noted(&place, stream) {
            Ok(stream) => return Ok(Opened { stream, said: BytesMut::new(), _place: place, _open: opened }),
            Err(error) => {
                tried.push(endpoint.id);
                let last = tried.len() >= TRIES.min(upstream.endpoints().len());
                if last || destination.pinned.is_some() || error.reason == Reason::PoolFull {
                    return Err(error);
                }
            }
        }
    }
}

/// Carries a connection to its destination until both sides have ended.
pub(super) async fn carry(
    worker: &Rc<Worker>,
    direction: Direction,
    downstream: impl Socket,
    destination: &Destination,
    source: Option<Source>,
    detected: Detected,
) {
    let _busy = worker.busy();
    let opened = match detected.server {
        Some(opened) => Ok(*opened),
        None => open(worker, destination, source).await,
    };
    match opened {
        Ok(opened) => {
            if let (Direction::Inbound, Some(application)) = (direction, &destination.pinned) {
                worker.served(application.address);
            }
            let counted = destination.route.tcp.open(worker.index);
            relay(downstream, Bytes::new(), opened, &counted).await;
        }
        Err(error) => worker.refused(direction, &error),
    }
}

/// Carries bytes both ways until both sides have ended; `first` is what the downstream has said
/// already. Each side's end is passed on by itself (half-close).
pub(super) async fn relay(downstream: impl Socket, first: Bytes, opened: Opened, counted: &Connection) {
    let (stream, said, _counts) = opened.into_parts();
    let mut upstream = Counted { io: stream, count: |n| counted.sent(n) };
    let mut downstream = Counted { io: downstream, count: |n| counted.received(n) };
    let carried = async {
        upstream.write_all(&first).await?;
        upstream.flush().await?;
        downstream.write_all(&said).await?;
        downstream.flush().await?;
        copy_bidirectional_with_sizes(&mut downstream, &mut upstream, BUFFER, BUFFER).await
    };
    if let Err(error) = carried.await {
        tracing::debug!(%error, "a connection carried as bytes was lost");
        reset_on_close(upstream.io.socket());
        reset_on_close(downstream.io.socket());
    }
}

/// Makes the coming close a reset: an orderly end would say that all has been sent.
pub(super) fn reset_on_close(socket: &TcpStream) {
    let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

/// A connection with a socket at its bottom.
pub(super) trait Socket: AsyncRead + AsyncWrite + Unpin {
    /// The socket.
    fn socket(&self) -> &TcpStream;
}

impl Socket for TcpStream {
    fn socket(&self) -> &TcpStream {
        self
    }
}

impl Socket for TlsStream<Buffered> {
    fn socket(&self) -> &TcpStream {
        self.get_ref().0.socket()
    }
}

impl Socket for Stream {
    fn socket(&self) -> &TcpStream {
        match self {
            Either::Left(plain) => plain,
            Either::Right(encrypted) => encrypted.get_ref().0.socket(),
        }
    }
}

/// Counts what is written as it is taken.
struct Counted<S, F> {
    io: S,
    count: F,
}

impl<S: AsyncRead + Unpin, F: Unpin> AsyncRead for Counted<S, F> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin, F: Fn(u64) + Unpin> AsyncWrite for Counted<S, F> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let counted = self.get_mut();
        let written = ready!(Pin::new(&mut counted.io).poll_write(cx, buf))?;
        (counted.count)(written as u64);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}
