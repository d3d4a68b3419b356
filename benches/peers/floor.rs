//! The floor under every proxy of the peers bench: a relay on one thread that copies bytes and
//! understands none of them. What it costs is the kernel's share; what a proxy costs beyond it
//! is the proxy's own.
//!
//! `floor LISTEN UPSTREAM`, both `ip:port`. One upstream connection per accepted one, closed
//! together. The short path of a relayed message is one `read` and one `write`.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Registry, Token};

const LISTENER: Token = Token(usize::MAX - 1);
const CHUNK: usize = 64 << 10;

fn main() -> io::Result<()> {
    let [listen, upstream] = addresses()?;
    let mut poll = Poll::new()?;
    let mut listener = TcpListener::bind(listen)?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;

    let mut events = Events::with_capacity(1024);
    let mut relays: Vec<Option<Relay>> = Vec::new();
    let mut free = Vec::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            polled => polled?,
        }
        // A slot is reused only after the batch, so that no late event meets a new relay.
        let mut closed = Vec::new();
        for event in &events {
            if event.token() == LISTENER {
                accept(&listener, upstream, poll.registry(), &mut relays, &mut free)?;
                continue;
            }
            let (slot, side) = (event.token().0 / 2, event.token().0 % 2);
            let Some(relay) = &mut relays[slot] else { continue };
            if relay.ready(side, event.is_writable(), &mut chunk).is_err() {
                relays[slot] = None;
                closed.push(slot);
            }
        }
        free.extend(closed);
    }
}

fn addresses() -> io::Result<[SocketAddr; 2]> {
    let given: Vec<String> = std::env::args().skip(1).collect();
    let parsed: Result<Vec<SocketAddr>, _> = given.iter().map(|text| text.parse()).collect();
    parsed
        .ok()
        .and_then(|addresses| addresses.try_into().ok())
        .ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "usage: floor LISTEN UPSTREAM, both ip:port"))
}

fn accept(
    listener: &TcpListener,
    upstream: SocketAddr,
    registry: &Registry,
    relays: &mut Vec<Option<Relay>>,
    free: &mut Vec<usize>,
) -> io::Result<()> {
    loop {
        let downstream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
            Err(error) => return Err(error),
        };
        let slot = free.pop().unwrap_or_else(|| {
            relays.push(None);
            relays.len() - 1
        });
        relays[slot] = Some(Relay::new(downstream, TcpStream::connect(upstream)?, registry, slot)?);
    }
}

/// Two connections, and what could not be written to either yet.
struct Relay {
    ends: [TcpStream; 2],
    unsent: [Vec<u8>; 2],
}

impl Relay {
    fn new(downstream: TcpStream, upstream: TcpStream, registry: &Registry, slot: usize) -> io::Result<Self> {
        let mut ends = [downstream, upstream];
        for (side, end) in ends.iter_mut().enumerate() {
            end.set_nodelay(true)?;
            registry.register(end, Token(slot * 2 + side), Interest::READABLE | Interest::WRITABLE)?;
        }
        Ok(Self { ends, unsent: [Vec::new(), Vec::new()] })
    }

    /// Moves what can be moved after an event on one side. An error, the end of either stream
    /// included, ends the relay.
    fn ready(&mut self, side: usize, writable: bool, chunk: &mut [u8]) -> io::Result<()> {
        if writable && !self.unsent[side].is_empty() {
            self.flush(side)?;
            self.copy(1 - side, chunk)?;
        }
        self.copy(side, chunk)
    }

    fn flush(&mut self, side: usize) -> io::Result<()> {
        let unsent = std::mem::take(&mut self.unsent[side]);
        self.send(side, &unsent)
    }

    /// Copies from one side to the other until the reader is empty or the writer full.
    fn copy(&mut self, from: usize, chunk: &mut [u8]) -> io::Result<()> {
        while self.unsent[1 - from].is_empty() {
            let read = match self.ends[from].read(chunk) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            self.send(1 - from, &chunk[..read])?;
            // A short read has emptied the socket; the next event comes with the next bytes.
            if read < chunk.len() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn send(&mut self, to: usize, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.ends[to].write(bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.unsent[to].extend_from_slice(bytes);
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
