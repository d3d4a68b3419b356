//! The upstreams: they act on a request the moment it has been read, answer at once, and end a
//! connection when it has idled for exactly as long as their behaviour says.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::time::Duration;

use mio::Token;
use mio::net::{TcpListener, TcpStream};
use socket2::SockRef;

use crate::hub::{Hub, Life};
use crate::plan::End;
use crate::relay::Relay;
use crate::timer::{Nanos, from_millis};
use crate::{Thing, wire};

const CHUNK: usize = 4096;

/// How long a server takes to close a connection after the last answer on it.
const MOMENT: Nanos = 500_000;

/// Where connections are accepted.
pub(crate) struct Door {
    listener: TcpListener,
    behind: Behind,
}

enum Behind {
    /// An upstream of this behaviour.
    Upstream(usize),
    /// A relay to another door.
    Relay { to: SocketAddr, delay: Nanos },
}

impl Door {
    /// Opens the door to an upstream, and that of its relay, if there is one. Returns the port that
    /// proxies are to use.
    pub(crate) fn open(hub: &mut Hub, behaviour: usize) -> io::Result<u16> {
        let port = Self::of(hub, Behind::Upstream(behaviour))?;
        let Some(delay) = hub.behaviours[behaviour].delay else { return Ok(port) };
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Self::of(hub, Behind::Relay { to, delay: from_millis(delay) })
    }

    fn of(hub: &mut Hub, behind: Behind) -> io::Result<u16> {
        let mut listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)))?;
        let (port, token) = (listener.local_addr()?.port(), hub.token());
        hub.watch(&mut listener, token)?;
        hub.born.push((token, Thing::Door(Self { listener, behind })));
        Ok(port)
    }

    pub(crate) fn ready(&mut self, hub: &mut Hub) -> io::Result<()> {
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error),
            };
            match &self.behind {
                Behind::Upstream(behaviour) => Upstream::begin(hub, stream, *behaviour)?,
                Behind::Relay { to, delay } => Relay::begin(hub, stream, *to, *delay)?,
            }
        }
    }
}

/// One connection of an upstream.
pub(crate) struct Upstream {
    stream: TcpStream,
    behaviour: usize,
    /// Of a request that has not come whole.
    request: Vec<u8>,
    /// How many requests it has carried.
    number: u64,
    /// When it will have idled for long enough. One that has carried nothing yet is left alone, as
    /// servers do for a minute.
    ends: Option<Nanos>,
    /// Its own direction has ended.
    half: bool,
    /// It has carried what it may, and is read no more.
    full: bool,
}

impl Upstream {
    fn begin(hub: &mut Hub, mut stream: TcpStream, behaviour: usize) -> io::Result<()> {
        let _ = stream.set_nodelay(true);
        let token = hub.token();
        hub.watch(&mut stream, token)?;
        let this =
            Self { stream, behaviour, request: Vec::new(), number: 0, ends: None, half: false, full: false };
        hub.born.push((token, Thing::Upstream(this)));
        Ok(())
    }

    pub(crate) fn ready(&mut self, hub: &mut Hub, token: Token) -> Life {
        let mut chunk = [0; CHUNK];
        while !self.full {
            match self.stream.read(&mut chunk) {
                Ok(0) => return Life::Over,
                Ok(read) => self.request.extend_from_slice(&chunk[..read]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Life::On,
                Err(_) => return Life::Over,
            }
            // Nobody here sends a second before the first is answered.
            match wire::request(&self.request) {
                Ok(Some(id)) => {
                    self.request.clear();
                    if self.act(hub, token, id) == Life::Over {
                        return Life::Over;
                    }
                }
                Ok(None) => {}
                Err(_) => return Life::Over,
            }
        }
        Life::On
    }

    fn act(&mut self, hub: &mut Hub, token: Token, id: u64) -> Life {
        hub.tally.acted(id);
        self.number += 1;
        if self.half {
            return Life::On;
        }
        let behaviour = &hub.behaviours[self.behaviour];
        self.full = behaviour.after == Some(self.number);
        let connection = if self.full && behaviour.announced { "close" } else { "keep-alive" };
        let hint =
            behaviour.hint.map(|seconds| format!("Keep-Alive: timeout={seconds}\r\n")).unwrap_or_default();
        let body = wire::body(id, self.number);
        let length = body.len();
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: {connection}\r\n{hint}\r\n{body}"
        );
        // So little always fits what the kernel takes at once.
        if self.stream.write_all(answer.as_bytes()).is_err() {
            return Life::Over;
        }
        let ends = hub.now() + if self.full { MOMENT } else { hub.idle(self.behaviour) };
        self.ends = Some(ends);
        hub.timer.add(ends, token);
        Life::On
    }

    /// A time has come: perhaps that of an answer before the last.
    pub(crate) fn due(&mut self, hub: &mut Hub) -> Life {
        let Some(overdue) = self.ends.and_then(|ends| hub.now().checked_sub(ends)) else { return Life::On };
        self.ends = None;
        let behaviour = &hub.behaviours[self.behaviour];
        hub.tally.overdue.entry(behaviour.name.clone()).or_default().push(overdue);
        match behaviour.end {
            End::Fin => return Life::Over,
            End::Rst => return reset(&self.stream),
            End::Half => self.half = true,
        }
        match self.stream.shutdown(Shutdown::Write) {
            Ok(()) => Life::On,
            Err(_) => Life::Over,
        }
    }
}

/// Has a connection end by a reset, once it is dropped.
pub(crate) fn reset(stream: &TcpStream) -> Life {
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
    Life::Over
}
