//! The frame of an application: accepts connections, and gives each its turn when something
//! happened on it.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

const LISTENER: Token = Token(usize::MAX - 1);
const CHUNK: usize = 256 << 10;

/// What an application does with a connection.
pub(crate) trait Service {
    /// Reads and writes what can be; an error ends the connection, its own end included. `ends`:
    /// the other side has ended its stream, so there is something to read even after a short read.
    fn turn(&mut self, stream: &mut TcpStream, ends: bool, chunk: &mut [u8]) -> io::Result<()>;
}

/// Serves for ever.
pub(crate) fn run<S: Service>(listen: SocketAddr, service: impl Fn() -> S) -> io::Result<()> {
    let mut poll = Poll::new()?;
    let mut listener = TcpListener::bind(listen)?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut events = Events::with_capacity(1024);
    let mut open: Vec<Option<(TcpStream, S)>> = Vec::new();
    let mut free = Vec::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            polled => polled?,
        }
        // A slot is used again only after the batch: no late event is to meet another connection.
        let mut closed = Vec::new();
        for event in &events {
            if event.token() != LISTENER {
                let index = event.token().0;
                let Some((stream, service)) = &mut open[index] else { continue };
                if service.turn(stream, event.is_read_closed(), &mut chunk).is_err() {
                    open[index] = None;
                    closed.push(index);
                }
                continue;
            }
            loop {
                let mut stream = match listener.accept() {
                    Ok((stream, _)) => stream,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
                    Err(error) => return Err(error),
                };
                let _ = stream.set_nodelay(true);
                let index = free.pop().unwrap_or(open.len());
                if index == open.len() {
                    open.push(None);
                }
                let interest = Interest::READABLE | Interest::WRITABLE;
                poll.registry().register(&mut stream, Token(index), interest)?;
                open[index] = Some((stream, service()));
            }
        }
        free.append(&mut closed);
    }
}
