//! Connections that carry bytes: how many pass through those that stay open, and how many new ones
//! can be made.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::histogram::Histogram;
use crate::session::{self, Failures};
use crate::upstream::{ECHO, SINK, SOURCE};
use crate::{Target, Way};

const CHUNK: usize = 256 << 10;

/// How long bytes flow before they are counted: buffers are full then.
const WARM_UP: Duration = Duration::from_millis(300);

/// How long one exchange may take.
const GRACE: Duration = Duration::from_secs(5);

/// Reads or writes of one connection before the others have their turn.
const TURN: usize = 8;

/// What to carry.
#[derive(clap::Args)]
pub(crate) struct Plan {
    #[command(flatten)]
    target: Target,
    /// Which way.
    #[arg(long)]
    way: Way,
}

/// Carries it, and tells how many bytes passed.
pub(crate) fn run(plan: &Plan) -> io::Result<()> {
    let mut flow = Flow::new(plan)?;
    flow.carry(WARM_UP)?;
    if flow.failures.total() > 0 {
        return Err(io::Error::new(ErrorKind::NotConnected, "a connection was lost before the start"));
    }
    session::ready()?;
    flow.bytes = 0;
    let took = flow.carry(plan.target.seconds)?;
    let mut result = session::result(flow.bytes, took, &flow.failures);
    // Nothing was asked: what is counted are bytes.
    for name in ["requests", "rps"] {
        result.remove(name);
    }
    result.insert("bytes".into(), flow.bytes.into());
    session::finished(result)
}

struct Flow {
    poll: Poll,
    streams: Vec<Option<TcpStream>>,
    way: Way,
    /// Connections that may have more to read, or room to write.
    ready: VecDeque<usize>,
    chunk: Vec<u8>,
    bytes: u64,
    failures: Failures,
}

impl Flow {
    fn new(plan: &Plan) -> io::Result<Self> {
        let poll = Poll::new()?;
        let mut streams = Vec::new();
        for index in 0..plan.target.connections {
            let mut stream = std::net::TcpStream::connect(plan.target.to)?;
            stream.write_all(&[if plan.way == Way::Up { SINK } else { SOURCE }])?;
            stream.set_nonblocking(true)?;
            let mut stream = TcpStream::from_std(stream);
            let interest = Interest::READABLE | Interest::WRITABLE;
            poll.registry().register(&mut stream, Token(index), interest)?;
            streams.push(Some(stream));
        }
        let ready = VecDeque::new();
        let (chunk, failures) = (vec![b'x'; CHUNK], Failures::default());
        Ok(Self { poll, streams, way: plan.way, ready, chunk, bytes: 0, failures })
    }

    fn carry(&mut self, time: Duration) -> io::Result<Duration> {
        let start = Instant::now();
        let mut events = Events::with_capacity(1024);
        while start.elapsed() < time && self.streams.iter().any(Option::is_some) {
            let patience = if self.ready.is_empty() { Duration::from_millis(50) } else { Duration::ZERO };
            match self.poll.poll(&mut events, Some(patience)) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                polled => polled?,
            }
            for event in &events {
                let wanted = if self.way == Way::Up { event.is_writable() } else { event.is_readable() };
                if wanted && !self.ready.contains(&event.token().0) {
                    self.ready.push_back(event.token().0);
                }
            }
            if let Some(index) = self.ready.pop_front() {
                self.pass(index);
            }
        }
        Ok(start.elapsed())
    }

    fn pass(&mut self, index: usize) {
        let Some(stream) = &mut self.streams[index] else { return };
        for _ in 0..TURN {
            let moved = match self.way {
                Way::Up => stream.write(&self.chunk),
                Way::Down => stream.read(&mut self.chunk),
            };
            match moved {
                Ok(moved) if moved > 0 => self.bytes += moved as u64,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Ok(_) | Err(_) => {
                    self.failures.broken += 1;
                    self.streams[index] = None;
                    return;
                }
            }
        }
        self.ready.push_back(index);
    }
}

/// How many connections to make.
#[derive(clap::Args)]
pub(crate) struct Connect {
    #[command(flatten)]
    target: Target,
}

/// Makes them, as many at a time as there are to be connections, and tells how many were made.
pub(crate) fn connect(plan: &Connect) -> io::Result<()> {
    let mut dialler = Dialler {
        poll: Poll::new()?,
        plan: plan.target.clone(),
        open: Vec::new(),
        latency: Histogram::new(),
        failures: Failures::default(),
    };
    dialler.dial(Duration::ZERO)?;
    if dialler.failures.total() > 0 {
        return Err(io::Error::new(ErrorKind::NotConnected, "a connection failed before the start"));
    }
    session::ready()?;
    dialler.latency = Histogram::new();
    let took = dialler.dial(plan.target.seconds)?;
    let mut result = session::result(dialler.latency.total(), took, &dialler.failures);
    session::latencies(&mut result, &dialler.latency);
    session::finished(result)
}

struct Dialler {
    poll: Poll,
    plan: Target,
    open: Vec<Option<Dialled>>,
    latency: Histogram,
    failures: Failures,
}

struct Dialled {
    stream: TcpStream,
    since: Instant,
    said: bool,
}

impl Dialler {
    /// Keeps that many connections on their way for a time, and sees the last ones through.
    fn dial(&mut self, time: Duration) -> io::Result<Duration> {
        let start = Instant::now();
        self.open = (0..self.plan.connections).map(|_| None).collect();
        for index in 0..self.open.len() {
            self.begin(index);
        }
        let mut events = Events::with_capacity(1024);
        while self.open.iter().any(Option::is_some) && start.elapsed() < time + GRACE {
            match self.poll.poll(&mut events, Some(Duration::from_millis(100))) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                polled => polled?,
            }
            for event in &events {
                let index = event.token().0;
                let Some(dialled) = &mut self.open[index] else { continue };
                match dialled.exchange() {
                    Ok(false) => continue,
                    Ok(true) => self.latency.record(dialled.since.elapsed().as_nanos() as u64),
                    Err(error) if error.kind() == ErrorKind::ConnectionRefused => self.failures.connect += 1,
                    Err(_) => self.failures.broken += 1,
                }
                self.open[index] = None;
                if start.elapsed() < time {
                    self.begin(index);
                }
            }
        }
        self.failures.unanswered += self.open.iter().flatten().count() as u64;
        Ok(start.elapsed())
    }

    fn begin(&mut self, index: usize) {
        let since = Instant::now();
        let opened = TcpStream::connect(self.plan.to).and_then(|mut stream| {
            let interest = Interest::READABLE | Interest::WRITABLE;
            self.poll.registry().register(&mut stream, Token(index), interest)?;
            Ok(Dialled { stream, since, said: false })
        });
        match opened {
            Ok(dialled) => self.open[index] = Some(dialled),
            Err(_) => self.failures.connect += 1,
        }
    }
}

impl Dialled {
    /// One byte there and back. True once it is back.
    fn exchange(&mut self) -> io::Result<bool> {
        let waits =
            |error: &io::Error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected);
        if !self.said {
            match self.stream.write(&[ECHO]) {
                Ok(_) => self.said = true,
                Err(error) if waits(&error) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        match self.stream.read(&mut [0]) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(_) => Ok(true),
            Err(error) if waits(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
