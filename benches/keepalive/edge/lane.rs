//! The clients. A lane is one keep-alive connection to the proxy and the only one that sends to its
//! endpoint, so that the proxy's connection behind it has idled exactly since the lane's last answer.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;

use mio::Token;
use mio::net::TcpStream;

use crate::Thing;
use crate::hub::{Hub, Life};
use crate::plan::{Gap, LanePlan, Method, Row};
use crate::timer::{Nanos, from_millis};
use crate::wire;

const CHUNK: usize = 4096;

/// How long an answer may take.
const PATIENCE: Nanos = 5_000_000_000;

/// How long a lane waits after a failure before it begins anew.
const PAUSE: Nanos = 5_000_000;

pub(crate) struct Lane {
    stream: TcpStream,
    token: Token,
    to: SocketAddr,
    row: usize,
    name: String,
    method: Method,
    endpoint: u32,
    gap: Gap,
    /// How many requests it has yet to send.
    left: u32,
    failures: u32,
    state: State,
    unsent: Vec<u8>,
    answer: Vec<u8>,
}

enum State {
    /// `aimed`: at the age of the connection behind the proxy. Else the request only makes one.
    Waits {
        until: Nanos,
        aimed: bool,
    },
    Asked {
        id: u64,
        at: Nanos,
        aimed: bool,
    },
}

impl Lane {
    /// Begins all lanes of a row.
    pub(crate) fn begin(hub: &mut Hub, row: usize, plan: Row) -> io::Result<()> {
        let apart = plan.spread / plan.lanes.len().max(1) as f64;
        for (number, LanePlan { endpoint, gap }) in plan.lanes.into_iter().enumerate() {
            let (token, mut stream) = (hub.token(), TcpStream::connect(plan.to)?);
            hub.watch_both(&mut stream, token)?;
            let until = hub.now() + from_millis(apart * number as f64);
            hub.timer.add(until, token);
            let this = Self {
                stream,
                token,
                to: plan.to,
                row,
                name: plan.name.clone(),
                method: plan.method,
                endpoint,
                gap,
                left: plan.rounds,
                failures: 0,
                state: State::Waits { until, aimed: false },
                unsent: Vec::new(),
                answer: Vec::new(),
            };
            hub.born.push((token, Thing::Lane(this)));
            hub.tally.open += 1;
        }
        Ok(())
    }

    pub(crate) fn ready(&mut self, hub: &mut Hub) -> Life {
        if let Err(error) = self.send() {
            return self.lost(hub, &error);
        }
        let mut chunk = [0; CHUNK];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return self.lost(hub, &ErrorKind::UnexpectedEof.into()),
                Ok(read) => self.answer.extend_from_slice(&chunk[..read]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {
                    return Life::On;
                }
                Err(error) => return self.lost(hub, &error),
            }
            if let Life::Over = self.receive(hub) {
                return Life::Over;
            }
        }
    }

    pub(crate) fn due(&mut self, hub: &mut Hub) -> Life {
        let now = hub.now();
        match self.state {
            State::Waits { until, aimed } if now >= until => {
                if aimed {
                    hub.tally.late.push(now - until);
                }
                self.ask(hub, now, aimed)
            }
            State::Asked { at, .. } if now >= at + PATIENCE => self.failed(hub, "unanswered".into()),
            _ => Life::On,
        }
    }

    fn ask(&mut self, hub: &mut Hub, at: Nanos, aimed: bool) -> Life {
        let id = hub.tally.ask(self.row);
        let (name, endpoint) = (&self.name, self.endpoint);
        let rest = format!("/{name}/{id} HTTP/1.1\r\nHost: e{endpoint}.row\r\n");
        let request = match self.method {
            Method::Get => format!("GET {rest}\r\n"),
            Method::Post => format!("POST {rest}Content-Length: 5\r\n\r\nhello"),
        };
        self.unsent = request.into_bytes();
        self.state = State::Asked { id, at, aimed };
        hub.timer.add(at + PATIENCE, self.token);
        match self.send() {
            Ok(()) => Life::On,
            Err(error) => self.lost(hub, &error),
        }
    }

    fn send(&mut self) -> io::Result<()> {
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(sent) => drop(self.unsent.drain(..sent)),
                // Not connected yet, or full: an event will tell.
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn receive(&mut self, hub: &mut Hub) -> Life {
        let State::Asked { id, aimed, .. } = self.state else {
            return self.failed(hub, "unasked".into());
        };
        let (status, closes, number) = match wire::answer(&self.answer) {
            Ok(None) => return Life::On,
            Ok(Some(answer)) => (answer.status, answer.closes, wire::number(answer.body, id)),
            Err(_) => return self.failed(hub, "malformed".into()),
        };
        if status != 200 {
            return self.failed(hub, status.to_string());
        }
        let Some(number) = number else { return self.failed(hub, "wrong body".into()) };
        self.answer.clear();
        if aimed {
            self.left -= 1;
            hub.tally.answered(self.row, number > 1);
        }
        if self.left == 0 {
            return self.done(hub);
        }
        if closes && self.connect(hub).is_err() {
            return self.failed(hub, "connect".into());
        }
        let until = hub.now() + hub.draw(&self.gap);
        self.wait(hub, until, true)
    }

    fn wait(&mut self, hub: &mut Hub, until: Nanos, aimed: bool) -> Life {
        self.state = State::Waits { until, aimed };
        hub.timer.add(until, self.token);
        Life::On
    }

    /// The connection to the proxy is gone: between two requests it may.
    fn lost(&mut self, hub: &mut Hub, error: &io::Error) -> Life {
        if let State::Waits { .. } = self.state {
            return match self.connect(hub) {
                Ok(()) => Life::On,
                Err(_) => self.failed(hub, "connect".into()),
            };
        }
        let kind = match error.kind() {
            ErrorKind::UnexpectedEof => "closed",
            ErrorKind::ConnectionRefused => "connect",
            _ => "reset",
        };
        self.failed(hub, kind.into())
    }

    /// Counts a failure, and begins anew with a request that only makes a connection. One that fails
    /// is a failure like any other.
    fn failed(&mut self, hub: &mut Hub, kind: String) -> Life {
        hub.tally.failed(self.row, kind);
        self.failures += 1;
        self.left -= 1;
        if self.left == 0 || self.connect(hub).is_err() {
            return self.done(hub);
        }
        let until = hub.now() + PAUSE;
        self.wait(hub, until, false)
    }

    fn connect(&mut self, hub: &mut Hub) -> io::Result<()> {
        self.unsent.clear();
        self.answer.clear();
        self.stream = TcpStream::connect(self.to)?;
        hub.watch_both(&mut self.stream, self.token)
    }

    fn done(&mut self, hub: &mut Hub) -> Life {
        hub.tally.done(self.row, self.failures);
        Life::Over
    }
}
