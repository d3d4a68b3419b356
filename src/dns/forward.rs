//! Asks the servers for what the pod asked: its message as it came, or a question of ours.
//!
//! Each query has a socket, a port and an id of its own, and the socket is connected: an answer
//! counts only from the server that was asked, to the question that was asked. Whatever else
//! arrives is passed over, and waiting goes on.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::Name;
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::meaning::Trouble;
use super::query::Asker;
use super::server::{Transport, read_message, write_message};
use super::servers::{Server, Taken};
use super::wire;

/// What a server is sent.
#[derive(Debug, Clone)]
pub(super) enum Outgoing<'a> {
    /// A client's message, all of it as it came but the id, by the transport that it came by:
    /// where a server truncates, the client comes again over TCP, and so do we.
    Passed {
        /// The message.
        message: &'a [u8],
        /// How it came, and how it goes.
        transport: Transport,
    },
    /// A question of our own.
    Asked(Asking<'a>),
}

/// A question that we put ourselves, with EDNS, and over TCP where a datagram does not hold the
/// answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asking<'a> {
    /// Name, type and class.
    pub(super) question: &'a [u8],
    /// Signatures are wanted (RFC 3225).
    pub(super) dnssec_ok: bool,
    /// Without the server's own validation (RFC 4035 section 3.2.2).
    pub(super) checking_disabled: bool,
    /// In letters of mixed case, which the answer has to repeat.
    pub(super) mixed_case: bool,
}

/// Asks the servers that know of the name, all together for no longer than `limit`: the first
/// answer that says something, else the last failure that one of them reported. `None` where all
/// were silent.
pub(super) async fn forward(asker: &Asker, outgoing: &Outgoing<'_>, limit: Duration) -> Option<Vec<u8>> {
    let servers = &asker.servers;
    let (patience, tcp) = (servers.timeout(), servers.tcp());
    let mut failure = None;
    let ask = |server: Arc<Server>| async move {
        server.known().asked();
        outgoing.exchange(server.address, tcp, patience).await
    };
    let take = |server: &Server, answer: io::Result<Vec<u8>>| match answer {
        Ok(answer) => {
            if wire::is_failure(&answer) {
                server.known().failed(Trouble::of_code(wire::code(&answer)));
                failure = Some(answer);
                return Taken::Nothing;
            }
            let is_denial = wire::code(&answer) == ResponseCode::NXDomain;
            server.known().passed_on(is_denial);
            if is_denial { Taken::Denied(answer) } else { Taken::Found(answer) }
        }
        Err(error) => {
            server.known().failed(Trouble::of_io(&error));
            tracing::debug!(server = %server.address, %error, "DNS server did not answer the pod's query");
            Taken::Nothing
        }
    };
    let answer = timeout(limit, servers.race(&outgoing.name(), ask, take)).await;
    answer.ok().flatten().or(failure)
}

impl Outgoing<'_> {
    /// The name that decides which servers are asked.
    fn name(&self) -> Name {
        let mut rest = match *self {
            Outgoing::Passed { message, .. } => wire::question(message).unwrap_or_default(),
            Outgoing::Asked(asking) => asking.question,
        };
        let labels = std::iter::from_fn(|| {
            let (&length, after) = rest.split_first()?;
            let (label, after) = after.split_at_checked(length.into())?;
            rest = after;
            (length > 0).then_some(label)
        });
        Name::from_labels(labels).unwrap_or_default()
    }

    /// One server's answer. `tcp`: over nothing else.
    async fn exchange(&self, server: SocketAddr, tcp: bool, limit: Duration) -> io::Result<Vec<u8>> {
        match *self {
            Outgoing::Passed { message, transport } => {
                let mut query = message.to_vec();
                query[..2].copy_from_slice(&unpredictable_id());
                match transport {
                    Transport::Udp if !tcp => over_udp(server, &query, limit, wire::answers).await,
                    _ => over_tcp(server, &query, limit, wire::answers).await,
                }
            }
            Outgoing::Asked(asking) => asking.exchange(server, tcp, limit).await,
        }
    }
}

impl Asking<'_> {
    /// One server's answer.
    async fn exchange(&self, server: SocketAddr, tcp: bool, limit: Duration) -> io::Result<Vec<u8>> {
        let answer = self.ask(server, true, tcp, limit).await?;
        // A server from before EDNS cannot read the query with it (RFC 6891 section 7).
        if matches!(wire::code(&answer), ResponseCode::FormErr | ResponseCode::NotImp) {
            return self.ask(server, false, tcp, limit).await;
        }
        Ok(answer)
    }

    /// Asks over UDP, and over TCP for what a datagram does not hold. A server whose TCP cannot be
    /// reached has at least said something.
    async fn ask(&self, server: SocketAddr, edns: bool, tcp: bool, limit: Duration) -> io::Result<Vec<u8>> {
        let accepts = |query: &[u8], answer: &[u8]| {
            wire::answers(query, answer) && (!self.mixed_case || wire::repeats(query, answer))
        };
        if tcp {
            return over_tcp(server, &self.message(edns), limit, accepts).await;
        }
        let answer = over_udp(server, &self.message(edns), limit, accepts).await?;
        if !wire::is_truncated(&answer) {
            return Ok(answer);
        }
        match over_tcp(server, &self.message(edns), limit, accepts).await {
            Ok(whole) => Ok(whole),
            Err(error) => {
                tracing::debug!(%server, %error, "DNS server truncated its answer, and did not give it over TCP");
                Ok(answer)
            }
        }
    }

    /// The message that asks a question of ours, with an id of its own.
    fn message(&self, edns: bool) -> Vec<u8> {
        let question = self.question;
        let mut message = Vec::with_capacity(wire::HEADER + question.len() + wire::OPT);
        message.extend_from_slice(&unpredictable_id());
        // Recursion desired. What was validated is to be said (RFC 6840 section 5.7): each client
        // is told if it asked.
        message.push(wire::RD);
        message.push(wire::AD | if self.checking_disabled { wire::CD } else { 0 });
        message.extend_from_slice(&[0, 1, 0, 0, 0, 0, 0, u8::from(edns)]);
        message.extend_from_slice(question);
        if self.mixed_case {
            mix_case(&mut message[wire::HEADER..wire::HEADER + question.len().saturating_sub(4)]);
        }
        if edns {
            wire::push_opt(&mut message, self.dnssec_ok, &[]);
        }
        message
    }
}

/// Sends the query, and once more when a quarter of the time has passed in silence.
async fn over_udp(
    server: SocketAddr,
    query: &[u8],
    limit: Duration,
    accepts: impl Fn(&[u8], &[u8]) -> bool,
) -> io::Result<Vec<u8>> {
    let local: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(local).await?;
    socket.connect(server).await?;
    let mut buffer = vec![0; wire::datagram_room(query)];
    let mut receive = async || {
        loop {
            let length = socket.recv(&mut buffer).await?;
            if accepts(query, &buffer[..length]) {
                return io::Result::Ok(length);
            }
        }
    };
    for patience in [limit / 4, limit - limit / 4] {
        socket.send(query).await?;
        if let Ok(received) = timeout(patience, receive()).await {
            let length = received?;
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

async fn over_tcp(
    server: SocketAddr,
    query: &[u8],
    limit: Duration,
    accepts: impl Fn(&[u8], &[u8]) -> bool,
) -> io::Result<Vec<u8>> {
    let exchange = async {
        let mut stream = TcpStream::connect(server).await?;
        write_message(&mut stream, query).await?;
        read_message(&mut stream).await
    };
    let answer = timeout(limit, exchange).await??;
    if accepts(query, &answer) { Ok(answer) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Gives each letter of a name one of its two cases. The bytes that say how long a label is are
/// below all letters.
fn mix_case(name: &mut [u8]) {
    for part in name.chunks_mut(64) {
        let mut bits = unpredictable();
        for byte in part {
            if byte.is_ascii_alphabetic() {
                *byte = if bits & 1 == 0 { byte.to_ascii_lowercase() } else { byte.to_ascii_uppercase() };
                bits >>= 1;
            }
        }
    }
}

fn unpredictable_id() -> [u8; 2] {
    (unpredictable() as u16).to_be_bytes()
}

/// Bits that nobody can tell from those before them: a keyed hash of a count, the key the system's.
fn unpredictable() -> u64 {
    static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    static COUNT: AtomicU64 = AtomicU64::new(0);
    KEY.hash_one(COUNT.fetch_add(1, Ordering::Relaxed))
}
