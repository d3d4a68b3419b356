//! Requests over HTTP/1.1 connections that are kept alive: as fast as answers come (a closed loop),
//! or at a fixed rate. At a rate, a latency counts from when the request was meant to be sent: one
//! that waits because those before it are late is late itself.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::Target;
use crate::histogram::Histogram;
use crate::pace::Pace;
use crate::response::{Answer, Response, is_good};
use crate::session::{self, Failures};

const TIMER: Token = Token(usize::MAX - 1);
const CHUNK: usize = 256 << 10;

/// How long answers are waited for, at the beginning and after the end.
const GRACE: Duration = Duration::from_secs(5);

/// After so many failures lost connections stay lost: what is measured is down.
const HOPELESS: u64 = 100_000;

/// What to send.
#[derive(clap::Args)]
pub(crate) struct Plan {
    #[command(flatten)]
    target: Target,
    /// Requests a second, for all connections together; without it, as fast as answers come.
    #[arg(long)]
    rate: Option<u64>,
    /// What is asked for.
    #[arg(long, default_value = "/")]
    path: String,
    /// A field of each request, as `name: value`; may repeat.
    #[arg(long)]
    field: Vec<String>,
    /// The bytes of each answer's body.
    #[arg(long, default_value_t = 100)]
    body: u64,
    /// Sends a body of so many bytes with each request.
    #[arg(long)]
    upload: Option<usize>,
}

/// Sends it, and tells how it went.
pub(crate) fn run(plan: &Plan) -> io::Result<()> {
    let mut client = Client::new(plan)?;
    client.warm_up()?;
    session::ready()?;
    let took = client.measure(plan)?;
    let mut result = session::result(client.latency.total(), took, &client.failures);
    session::latencies(&mut result, &client.latency);
    result.insert("reconnected".into(), client.reconnected.into());
    result.insert("late_p99_us".into(), (client.late.quantile(0.99) as f64 / 1e3).into());
    session::finished(result)
}

struct Client {
    poll: Poll,
    to: SocketAddr,
    connections: Vec<Connection>,
    /// Those without a request, the one that waits longest first.
    idle: VecDeque<usize>,
    request: Vec<u8>,
    body: u64,
    start: Instant,
    until: u64,
    pace: Option<Pace>,
    warm: bool,
    chunk: Vec<u8>,
    latency: Histogram,
    /// From when a request was meant to be sent to when it was: at a rate only.
    late: Histogram,
    failures: Failures,
    /// Connections that the other side closed between two requests, which it may.
    reconnected: u64,
}

struct Connection {
    stream: Option<TcpStream>,
    response: Response,
    asked: Option<Asked>,
}

/// A request under way.
#[derive(Clone, Copy)]
struct Asked {
    /// When it was meant to be sent, in nanoseconds from the start.
    at: u64,
    /// How much of it is sent.
    sent: usize,
}

/// What came of looking at a connection.
enum Ended {
    /// By the other side, as it may.
    Closed,
    /// Otherwise.
    Failed(fn(&mut Failures) -> &mut u64),
}

impl Client {
    fn new(plan: &Plan) -> io::Result<Self> {
        let count = plan.target.connections;
        let nothing = || Connection { stream: None, response: Response::default(), asked: None };
        let mut client = Self {
            poll: Poll::new()?,
            to: plan.target.to,
            connections: (0..count).map(|_| nothing()).collect(),
            idle: VecDeque::with_capacity(count),
            request: request(plan),
            body: plan.body,
            start: Instant::now(),
            until: 0,
            pace: None,
            warm: false,
            chunk: vec![0; CHUNK],
            latency: Histogram::new(),
            late: Histogram::new(),
            failures: Failures::default(),
            reconnected: 0,
        };
        for index in 0..count {
            client.open(index)?;
        }
        Ok(client)
    }

    /// Uses every connection once, so that all are open all the way.
    fn warm_up(&mut self) -> io::Result<()> {
        for index in 0..self.connections.len() {
            self.ask(index, 0)?;
        }
        let wanted = self.connections.len();
        let mut events = Events::with_capacity(1024);
        while self.idle.len() < wanted && self.start.elapsed() < GRACE {
            self.turn(&mut events, Some(Duration::from_millis(100)))?;
        }
        if self.idle.len() < wanted || self.failures.total() > 0 {
            let failed = self.failures.total();
            let why = format!("{} of {wanted} connections answered, {failed} failed", self.idle.len());
            return Err(io::Error::new(ErrorKind::NotConnected, why));
        }
        self.reconnected = 0;
        self.warm = true;
        Ok(())
    }

    /// The load itself. Returns how long it took.
    fn measure(&mut self, plan: &Plan) -> io::Result<Duration> {
        self.until = plan.target.seconds.as_nanos() as u64;
        if let Some(rate) = plan.rate {
            self.pace = Some(Pace::new(rate.max(1), self.until, self.poll.registry(), TIMER)?);
        }
        let mut events = Events::with_capacity(1024);
        self.start = Instant::now();
        self.refill()?;
        let last = plan.target.seconds + GRACE;
        while self.is_working() && self.start.elapsed() < last {
            self.turn(&mut events, Some(Duration::from_millis(100)))?;
            self.refill()?;
        }
        let took = self.start.elapsed();
        self.failures.unanswered += self.connections.iter().filter(|c| c.asked.is_some()).count() as u64;
        self.failures.unanswered += self.pace.as_ref().map_or(0, Pace::unsent);
        Ok(took)
    }

    /// Whether there is more to send, or an answer due.
    fn is_working(&self) -> bool {
        let more = match &self.pace {
            Some(pace) => pace.unsent() > 0,
            None => self.now() < self.until,
        };
        more || self.connections.iter().any(|connection| connection.asked.is_some())
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// Sends on idle connections what is to be sent by now.
    fn refill(&mut self) -> io::Result<()> {
        let mut now = self.now();
        while !self.idle.is_empty() {
            let at = match &mut self.pace {
                Some(pace) => match pace.due() {
                    Some(due) if due <= now => {
                        pace.sent();
                        self.late.record(now - due);
                        due
                    }
                    _ => return pace.wake(now),
                },
                None if now < self.until => now,
                None => return Ok(()),
            };
            if let Some(index) = self.idle.pop_front() {
                self.ask(index, at)?;
            }
            now = self.now();
        }
        Ok(())
    }

    fn turn(&mut self, events: &mut Events, patience: Option<Duration>) -> io::Result<()> {
        match self.poll.poll(events, patience) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            polled => polled?,
        }
        for event in events.iter().filter(|event| event.token() != TIMER) {
            let index = event.token().0;
            let mut looked = Ok(());
            if event.is_writable() {
                looked = self.send(index);
            }
            if looked.is_ok() && event.is_readable() {
                looked = self.receive(index, event.is_read_closed());
            }
            if let Err(ended) = looked {
                self.lost(index, ended)?;
            }
        }
        Ok(())
    }

    fn open(&mut self, index: usize) -> io::Result<()> {
        let mut stream = TcpStream::connect(self.to)?;
        let _ = stream.set_nodelay(true);
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut stream, Token(index), interest)?;
        self.connections[index] =
            Connection { stream: Some(stream), response: Response::default(), asked: None };
        Ok(())
    }

    fn ask(&mut self, index: usize, at: u64) -> io::Result<()> {
        self.connections[index].asked = Some(Asked { at, sent: 0 });
        match self.send(index) {
            Ok(()) => Ok(()),
            Err(ended) => self.lost(index, ended),
        }
    }

    /// Sends what the connection takes of its request.
    fn send(&mut self, index: usize) -> Result<(), Ended> {
        let connection = &mut self.connections[index];
        let (Some(stream), Some(asked)) = (&mut connection.stream, &mut connection.asked) else {
            return Ok(());
        };
        while asked.sent < self.request.len() {
            match stream.write(&self.request[asked.sent..]) {
                Ok(sent) => asked.sent += sent,
                // Not connected yet, or full: an event will tell.
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {
                    break;
                }
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    return Err(Ended::Failed(|failures| &mut failures.connect));
                }
                Err(_) => return Err(Ended::Failed(|failures| &mut failures.broken)),
            }
        }
        Ok(())
    }

    /// Reads what there is. After a short read nothing is left, unless the stream's end follows.
    fn receive(&mut self, index: usize, ends: bool) -> Result<(), Ended> {
        loop {
            let connection = &mut self.connections[index];
            let Some(stream) = &mut connection.stream else { return Ok(()) };
            let read = match stream.read(&mut self.chunk) {
                Ok(0) if connection.asked.is_none() && connection.response.is_untouched() => {
                    return Err(Ended::Closed);
                }
                Ok(0) => return Err(Ended::Failed(|failures| &mut failures.broken)),
                Ok(read) => read,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    return Err(Ended::Failed(|failures| &mut failures.connect));
                }
                Err(_) => return Err(Ended::Failed(|failures| &mut failures.broken)),
            };
            let Some(asked) = connection.asked else {
                return Err(Ended::Failed(|failures| &mut failures.malformed));
            };
            match connection.response.take(&self.chunk[..read], self.body) {
                Ok(Some(answer)) => self.answered(index, &asked, &answer)?,
                Ok(None) => {}
                Err(_) => return Err(Ended::Failed(|failures| &mut failures.malformed)),
            }
            if read < CHUNK && !ends {
                return Ok(());
            }
        }
    }

    /// Counts an answer, and goes on with its connection.
    fn answered(&mut self, index: usize, asked: &Asked, answer: &Answer) -> Result<(), Ended> {
        // An answer before the request's end leaves the connection in the middle of one.
        let whole = asked.sent == self.request.len();
        self.connections[index].asked = None;
        if !is_good(answer.status) {
            self.failures.status += 1;
        } else if self.warm {
            let now = self.now();
            self.latency.record(now.saturating_sub(asked.at));
            if self.pace.is_none() && whole && !answer.closes && now < self.until {
                self.connections[index].asked = Some(Asked { at: now, sent: 0 });
                return self.send(index);
            }
        }
        if answer.closes || !whole {
            return Err(Ended::Closed);
        }
        self.idle.push_back(index);
        Ok(())
    }

    /// Opens a connection in the place of one that is gone.
    fn lost(&mut self, index: usize, ended: Ended) -> io::Result<()> {
        match ended {
            Ended::Closed => self.reconnected += 1,
            Ended::Failed(kind) => *kind(&mut self.failures) += 1,
        }
        self.idle.retain(|idle| *idle != index);
        self.connections[index] = Connection { stream: None, response: Response::default(), asked: None };
        if self.failures.total() < HOPELESS {
            self.open(index)?;
            self.idle.push_back(index);
        }
        Ok(())
    }
}

fn request(plan: &Plan) -> Vec<u8> {
    let method = if plan.upload.is_some() { "POST" } else { "GET" };
    let mut head = format!("{method} {} HTTP/1.1\r\nHost: orders\r\n", plan.path);
    for field in &plan.field {
        head += &format!("{field}\r\n");
    }
    if let Some(length) = plan.upload {
        head += &format!("Content-Type: application/octet-stream\r\nContent-Length: {length}\r\n");
    }
    let mut request = (head + "\r\n").into_bytes();
    request.resize(request.len() + plan.upload.unwrap_or_default(), b'x');
    request
}
