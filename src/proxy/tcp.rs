//! Connections that are carried as bytes: inside mTLS where the upstream is in the mesh.

use std::io;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional_with_sizes};

use super::detect::Detected;
use super::forward::noted;
use super::mesh::Destination;
use super::worker::Worker;
use crate::balance::{InFlight, Open};
use crate::config::model::Direction;
use crate::error::{Reason, Result};
use crate::intercept::Source;
use crate::pool::{Dial, Stream, dial};
use crate::tls::Carries;

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
            Some(endpoint) => upstream.place_at(endpoint)?,
            None => upstream.pick(&tried).await?,
        };
        let endpoint = place.endpoint.clone();
        let opened = upstream.open(&endpoint)?;
        let secure = upstream.secures(&endpoint).then_some(Carries::Bytes);
        let mut way = Dial { source, secure };
        let mut stream = dial(upstream, &endpoint, way, &worker.shared.tls).await;
        if stream.is_err() && secure.is_some() && !upstream.secures(&endpoint) {
            way.secure = None;
            stream = dial(upstream, &endpoint, way, &worker.shared.tls).await;
        }
        match noted(&endpoint, stream) {
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
    downstream: impl AsyncRead + AsyncWrite + Unpin,
    destination: &Destination,
    source: Option<Source>,
    detected: Detected,
) {
    let _busy = worker.busy();
    let opened = match detected.server {
        Some(opened) => Ok(opened),
        None => open(worker, destination, source).await,
    };
    match opened {
        Ok(opened) => {
            let counted = destination.route.tcp.open(worker.index);
            let (sent, received) = relay(downstream, Bytes::new(), opened).await;
            counted.sent(sent);
            counted.received(received);
        }
        Err(error) => worker.refused(direction, &error),
    }
}

/// Carries bytes both ways until both sides have ended; `first` is what the downstream has said
/// already. Each side's end is passed on by itself (half-close). Returns how many bytes went to the
/// destination, and how many came back, where both ended well.
pub(super) async fn relay(
    mut downstream: impl AsyncRead + AsyncWrite + Unpin,
    first: Bytes,
    mut opened: Opened,
) -> (u64, u64) {
    let (asked, said) = (first.len() as u64, opened.said.len() as u64);
    let carried = async {
        opened.stream.write_all(&first).await?;
        opened.stream.flush().await?;
        downstream.write_all(&opened.said).await?;
        downstream.flush().await?;
        copy_bidirectional_with_sizes(&mut downstream, &mut opened.stream, BUFFER, BUFFER).await
    };
    match carried.await {
        Ok((sent, received)) => (asked + sent, said + received),
        Err(error) => {
            tracing::debug!(%error, "a connection carried as bytes was lost");
            (asked, said)
        }
    }
}
