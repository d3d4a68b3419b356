//! A DNS server's sockets: datagrams and streams in, answers out. What to answer is another's.
//!
//! Bounded: so many queries and connections at once, a connection that idles or will not take its
//! answer is closed, and nothing that a client sends can do more than cost one query. What can be
//! answered without waiting is answered however many wait.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use futures_util::poll;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Queries that wait at once per datagram socket. One that would be the next is dropped, as the
/// network might: its client asks again.
const MAX_QUERIES: usize = 512;
/// Queries in hand at once per connection; more wait in the connection, whose bound is the kernel's.
const MAX_PIPELINED: usize = 16;
/// Connections at once per listener; more wait in its backlog.
const MAX_CONNECTIONS: usize = 128;
/// How long a connection may idle or stall (RFC 7766 section 6.2.3).
const IDLE: Duration = Duration::from_secs(10);
/// The pause after an error of the socket itself, such as no more file descriptors.
const AFTER_ERROR: Duration = Duration::from_millis(50);

/// How a query came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

/// Decides answers.
pub(super) trait Answerer: Send + Sync + 'static {
    /// The answer to one message, or `None` to stay silent.
    fn answer(&self, query: &[u8], transport: Transport) -> impl Future<Output = Option<Vec<u8>>> + Send;
}

/// A running DNS server. Dropping it ends it.
#[derive(Debug)]
pub struct Server {
    addresses: Vec<SocketAddr>,
    _tasks: JoinSet<()>,
}

impl Server {
    /// The addresses that it listens on: the datagram sockets', then the listeners'.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    pub(super) fn start<A: Answerer>(
        handle: &Handle,
        udp: Vec<UdpSocket>,
        tcp: Vec<TcpListener>,
        answerer: Arc<A>,
    ) -> io::Result<Self> {
        let _context = handle.enter();
        let mut addresses = Vec::with_capacity(udp.len() + tcp.len());
        let mut tasks = JoinSet::new();
        for socket in udp {
            socket.set_nonblocking(true)?;
            addresses.push(socket.local_addr()?);
            let socket = Arc::new(tokio::net::UdpSocket::from_std(socket)?);
            tasks.spawn_on(datagrams(socket, answerer.clone()), handle);
        }
        for listener in tcp {
            listener.set_nonblocking(true)?;
            addresses.push(listener.local_addr()?);
            let listener = tokio::net::TcpListener::from_std(listener)?;
            tasks.spawn_on(connections(listener, answerer.clone()), handle);
        }
        Ok(Self { addresses, _tasks: tasks })
    }
}

async fn datagrams<A: Answerer>(socket: Arc<tokio::net::UdpSocket>, answerer: Arc<A>) {
    let mut queries = JoinSet::new();
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        tokio::select! {
            received = socket.recv_from(&mut buffer) => match received {
                Ok((length, from)) => {
                    let query = buffer[..length].to_vec();
                    let mut answered = Box::pin(datagram(socket.clone(), query, from, answerer.clone()));
                    if poll!(&mut answered).is_pending() && queries.len() < MAX_QUERIES {
                        queries.spawn(answered);
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "DNS socket");
                    tokio::time::sleep(AFTER_ERROR).await;
                }
            },
            Some(_) = queries.join_next() => {}
        }
    }
}

async fn datagram<A: Answerer>(
    socket: Arc<tokio::net::UdpSocket>,
    query: Vec<u8>,
    from: SocketAddr,
    answerer: Arc<A>,
) {
    if let Some(answer) = answerer.answer(&query, Transport::Udp).await
        && let Err(error) = socket.send_to(&answer, from).await
    {
        tracing::debug!(%error, %from, "DNS answer was not sent");
    }
}

async fn connections<A: Answerer>(listener: tokio::net::TcpListener, answerer: Arc<A>) {
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if open.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    let answerer = answerer.clone();
                    open.spawn(async move {
                        // An error here is the client's end of the connection: nobody to tell.
                        let _ = connection(stream, answerer).await;
                    });
                }
                Err(error) => {
                    tracing::debug!(%error, "DNS listener");
                    tokio::time::sleep(AFTER_ERROR).await;
                }
            },
            Some(_) = open.join_next() => {}
        }
    }
}

/// Answers the queries of one connection, each as soon as it can be (RFC 7766 section 6.2.1.1),
/// until it ends, idles or stalls. A client that has sent all it had gets the rest of its answers.
async fn connection<A: Answerer>(stream: TcpStream, answerer: Arc<A>) -> io::Result<()> {
    let (reader, writer) = stream.into_split();
    // One at a time, so that answers that nobody takes stay in hand, and count.
    let (answered, answers) = mpsc::channel(1);
    tokio::try_join!(read_queries(reader, answerer, answered), write_answers(writer, answers))?;
    Ok(())
}

async fn read_queries<A: Answerer>(
    mut reader: OwnedReadHalf,
    answerer: Arc<A>,
    answered: mpsc::Sender<Option<Vec<u8>>>,
) -> io::Result<()> {
    let room = Arc::new(Semaphore::new(MAX_PIPELINED));
    // Dropped with the connection, and what is in hand with it.
    let mut in_hand = JoinSet::new();
    loop {
        let permit = room.clone().acquire_owned().await.map_err(io::Error::other)?;
        while in_hand.try_join_next().is_some() {}
        match timeout(IDLE, reader.peek(&mut [0])).await {
            Ok(Ok(0)) => break,
            Ok(begun) => drop(begun?),
            Err(_) if in_hand.is_empty() => return Ok(()),
            Err(_) => continue,
        }
        let query = match timeout(IDLE, read_message(&mut reader)).await? {
            Ok(query) => query,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(error),
        };
        let (answerer, answered) = (answerer.clone(), answered.clone());
        in_hand.spawn(async move {
            let answer = answerer.answer(&query, Transport::Tcp).await;
            // Without a writer the connection has ended.
            let _ = answered.send(answer).await;
            drop(permit);
        });
    }
    drop(answered);
    while in_hand.join_next().await.is_some() {}
    Ok(())
}

async fn write_answers(
    mut writer: OwnedWriteHalf,
    mut answers: mpsc::Receiver<Option<Vec<u8>>>,
) -> io::Result<()> {
    while let Some(answer) = answers.recv().await {
        // Whoever sends what is no query is not spoken to any further.
        let answer = answer.ok_or(io::ErrorKind::InvalidData)?;
        timeout(IDLE, write_message(&mut writer, &answer)).await??;
    }
    Ok(())
}

/// Reads one message with its length before it (RFC 1035 section 4.2.2).
pub(super) async fn read_message(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

/// Writes one message with its length before it, in one segment where it fits.
pub(super) async fn write_message(stream: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    let mut framed = Vec::with_capacity(2 + message.len());
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(message);
    stream.write_all(&framed).await
}
