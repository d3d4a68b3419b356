//! Opening a connection: TCP, and TLS on it where the peer's identity is required.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

use crate::balance::{Endpoint, Upstream};
use crate::error::{Error, Reason, Result, Retry};
use crate::intercept::Source;
use crate::tls::{self, Alpn, Buffered, Carries};

/// A dead peer is noticed within this time: on any connection while nothing is sent, and between
/// sidecars always.
const DEAD_PEER: Duration = Duration::from_secs(15);
const KEEPALIVE: Duration = Duration::from_secs(5);

/// An open connection, encrypted or not.
pub type Stream = Either<TcpStream, TlsStream<Buffered>>;

/// How to open a connection.
#[derive(Debug, Clone, Copy, Default)]
pub struct Dial {
    /// The address that we connect from, where the peer or the kernel's rules tell by it who we
    /// are.
    pub source: Option<Source>,
    /// Mutual TLS, and what it carries.
    pub secure: Option<Carries>,
}

/// Opens a connection, with our identity as it is then, within the upstream's `connect_timeout`, handshake included.
pub async fn dial(
    upstream: &Upstream,
    endpoint: &Endpoint,
    dial: Dial,
    tls: &tls::Current,
) -> Result<Stream> {
    let limit = upstream.connect_timeout(endpoint);
    match timeout(limit, open(upstream, endpoint, dial, tls)).await {
        Ok(opened) => opened,
        Err(_) => Err(failed(
            upstream,
            Reason::PoolConnectTimeout,
            format!("{} took no connection within {limit:?}", endpoint.address),
        )),
    }
}

/// As [`dial`], for what is never encrypted.
pub(super) async fn tcp(upstream: &Upstream, endpoint: &Endpoint, as_dialled: Dial) -> Result<TcpStream> {
    let plain = Dial { secure: None, ..as_dialled };
    match dial(upstream, endpoint, plain, &tls::Current::default()).await? {
        Either::Left(stream) => Ok(stream),
        Either::Right(_) => {
            Err(failed(upstream, Reason::TlsHandshake, "an encrypted stream where none was asked for".into()))
        }
    }
}

async fn open(upstream: &Upstream, endpoint: &Endpoint, dial: Dial, tls: &tls::Current) -> Result<Stream> {
    let address = endpoint.address;
    let stream = connect(address, dial.source.map(|s| s.towards(address.ip())))
        .await
        .map_err(|error| failed(upstream, Reason::PoolConnect, format!("{address}: {error}")))?;
    let Some(carries) = dial.secure else { return Ok(Either::Left(stream)) };
    let (Some(peer), Some(identity)) = (&upstream.spec.peer, tls.load()) else {
        let why = "mTLS is required, and this sidecar has no identity".to_owned();
        return Err(failed(upstream, Reason::TlsHandshake, why));
    };
    let config = identity.client(peer, carries);
    match TlsConnector::from(config).connect(tls::server_name(address.ip()), Buffered::new(stream)).await {
        Ok(stream) if Alpn::negotiated(stream.get_ref().1).is_some_and(|a| carries.offers().contains(&a)) => {
            if carries == Carries::Requests {
                let _ = never_pauses(stream.get_ref().0.socket());
            }
            Ok(Either::Right(stream))
        }
        Ok(_) => {
            let why = format!("{address} speaks TLS, but is no sidecar of this mesh");
            Err(failed(upstream, Reason::TlsHandshake, why))
        }
        Err(error) => {
            let failure = tls::Failure::classify(&error);
            if failure.plaintext && upstream.spec.may_fall_back {
                endpoint.speaks_plaintext();
            }
            Err(failed(upstream, failure.reason, format!("{address}: {}", failure.detail)))
        }
    }
}

async fn connect(address: SocketAddr, source: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(source) = source {
        socket.bind(SocketAddr::new(source, 0)).map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("cannot connect from {source} ({error}): has `pannier init` run?"),
            )
        })?;
    }
    let stream = socket.connect(address).await?;
    tune(&stream)?;
    Ok(stream)
}

/// Options of every connection, both directions: no delay for small writes, and probes that notice
/// a dead peer while nothing is sent.
pub fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    SockRef::from(stream)
        .set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE).with_retries(2))
}

/// Bounds how long what was sent may stay unacknowledged. For connections between sidecars alone:
/// their reader never pauses, while an application's may, and would be taken for dead.
pub fn never_pauses(stream: &TcpStream) -> io::Result<()> {
    SockRef::from(stream).set_tcp_user_timeout(Some(DEAD_PEER))
}

/// No connection, so nothing was sent: any request may go elsewhere.
fn failed(upstream: &Upstream, reason: Reason, detail: String) -> Error {
    Error::new(reason, detail).retry(Retry::Unprocessed).upstream(&upstream.spec.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_between_sidecars_is_a_reader_that_pauses_taken_for_dead() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let timeout = || SockRef::from(&stream).tcp_user_timeout().unwrap().unwrap_or_default();
        tune(&stream).unwrap();
        assert_eq!(timeout(), Duration::ZERO, "none: body_timeout is the bound");
        never_pauses(&stream).unwrap();
        assert_eq!(timeout(), DEAD_PEER);
    }
}
