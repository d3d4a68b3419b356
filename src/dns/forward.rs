//! Passes queries on as they are, bytes for bytes but the id, so that every type works, known or
//! not.
//!
//! Each query has a socket, a port and an id of its own, and the socket is connected: an answer
//! counts only from the server that was asked, to the question that was asked. The transport is
//! the client's: where a server truncates, the client comes again over TCP, and so do we.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hickory_resolver::proto::op::Message;
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::meaning::Trouble;
use super::query::Asker;
use super::server::{Transport, read_message, write_message};
use super::wire;

/// Asks the servers in turn; `None` where none answered within the configured timeout each.
pub(super) async fn forward(asker: &Asker, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
    if !wire::is_query(query) {
        return None;
    }
    let read = Message::from_vec(query).ok();
    let name = read.and_then(|query| query.queries.first().map(|asked| asked.name.clone()));
    let limit = asker.servers.timeout();
    let mut ours = query.to_vec();
    for server in asker.servers.of(&name.unwrap_or_default()) {
        let address = server.address;
        server.known().asked();
        ours[..2].copy_from_slice(&unpredictable_id().to_be_bytes());
        let answer = match transport {
            Transport::Udp => over_udp(address, &ours, limit).await,
            Transport::Tcp => {
                timeout(limit, over_tcp(address, &ours)).await.unwrap_or_else(|late| Err(late.into()))
            }
        };
        match answer {
            Ok(mut answer) => {
                server.known().passed_on();
                answer[..2].copy_from_slice(&query[..2]);
                return Some(answer);
            }
            Err(error) => {
                server.known().failed(Trouble::of_io(&error));
                tracing::debug!(server = %address, %error, "DNS server did not answer a forwarded query");
            }
        }
    }
    None
}

/// Sends the query, and once more when a quarter of the time has passed in silence.
async fn over_udp(server: SocketAddr, query: &[u8], limit: Duration) -> io::Result<Vec<u8>> {
    let local: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(local).await?;
    socket.connect(server).await?;
    let mut buffer = vec![0; wire::datagram_room(query)];
    for patience in [limit / 4, limit - limit / 4] {
        socket.send(query).await?;
        if let Ok(received) = timeout(patience, receive(&socket, query, &mut buffer)).await {
            buffer.truncate(received?);
            return Ok(buffer);
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// Waits for the answer to `query`, past whatever else arrives.
async fn receive(socket: &UdpSocket, query: &[u8], buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        let length = socket.recv(buffer).await?;
        if wire::answers(query, &buffer[..length]) {
            return Ok(length);
        }
    }
}

async fn over_tcp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    write_message(&mut stream, query).await?;
    let answer = read_message(&mut stream).await?;
    if wire::answers(query, &answer) { Ok(answer) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// An id that nobody can tell from those before it: a keyed hash of a count, the key the system's.
fn unpredictable_id() -> u16 {
    static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    static COUNT: AtomicU64 = AtomicU64::new(0);
    KEY.hash_one(COUNT.fetch_add(1, Ordering::Relaxed)) as u16
}
