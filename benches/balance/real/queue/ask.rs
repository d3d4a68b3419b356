//! The clients: requests at times that nothing holds up, each on a connection that is free or a new
//! one, as an application's own pool does.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::BODY;
use crate::histogram::Histogram;
use crate::response::{Response, is_good};
use crate::session::{self, Failures};
use crate::timer::{Nanos, Timer, from_millis};

const TIMER: Token = Token(0);
const ARRIVAL: Token = Token(1);
const FIRST: usize = 2;
const CHUNK: usize = 64 << 10;

/// What to send.
#[derive(clap::Args, Clone)]
pub(crate) struct Plan {
    /// Where.
    #[arg(long)]
    to: SocketAddr,
    /// Requests a second, on average; the times between them are exponentially distributed.
    #[arg(long)]
    rate: f64,
    /// Milliseconds of work in a request, on average; exponentially distributed, too.
    #[arg(long)]
    work: f64,
    /// Seconds of load before anything counts.
    #[arg(long)]
    warm: f64,
    /// Seconds that count.
    #[arg(long)]
    seconds: f64,
    /// Milliseconds that a client waits for its answer.
    #[arg(long)]
    deadline: f64,
    /// What times and work are drawn from.
    #[arg(long)]
    seed: u64,
}

/// Sends it, and tells how it went.
pub(crate) fn run(plan: &Plan) -> io::Result<()> {
    let mut ask = Ask::new(plan)?;
    session::ready()?;
    ask.ask_all()?;
    let took = Duration::from_secs_f64(plan.seconds);
    let mut result = session::result(ask.latency.total(), took, &ask.failures);
    session::latencies(&mut result, &ask.latency);
    result.insert("asked".into(), ask.counted.into());
    result.insert("asked_in_all".into(), ask.asked.into());
    result.insert("late_p99_us".into(), (ask.late.quantile(0.99) as f64 / 1e3).into());
    session::finished(result)
}

struct Ask {
    poll: Poll,
    to: SocketAddr,
    timer: Timer,
    arrivals: Arrivals,
    deadline: Nanos,
    /// When it began, and from when on requests count.
    start: Nanos,
    from: Nanos,
    connections: HashMap<Token, Connection>,
    /// Those without a request; the one used last is used next.
    idle: Vec<Token>,
    next: usize,
    chunk: Vec<u8>,
    asked: u64,
    in_flight: u64,
    counted: u64,
    latency: Histogram,
    /// From when a request was meant to be sent to when it was.
    late: Histogram,
    failures: Failures,
}

struct Connection {
    stream: TcpStream,
    response: Response,
    asked: Option<Asked>,
}

/// A request under way.
struct Asked {
    /// When it was meant to be sent.
    at: Nanos,
    bytes: Vec<u8>,
    sent: usize,
}

type Failure = fn(&mut Failures) -> &mut u64;

impl Ask {
    fn new(plan: &Plan) -> io::Result<Self> {
        let poll = Poll::new()?;
        let timer = Timer::new(poll.registry(), TIMER)?;
        Ok(Self {
            poll,
            to: plan.to,
            timer,
            arrivals: Arrivals::new(plan),
            deadline: from_millis(plan.deadline),
            start: 0,
            from: from_millis(plan.warm * 1e3),
            connections: HashMap::new(),
            idle: Vec::new(),
            next: FIRST,
            chunk: vec![0; CHUNK],
            asked: 0,
            in_flight: 0,
            counted: 0,
            latency: Histogram::new(),
            late: Histogram::new(),
            failures: Failures::default(),
        })
    }

    /// All requests, and until each has its answer or its client has given up.
    fn ask_all(&mut self) -> io::Result<()> {
        self.start = self.timer.now();
        self.from += self.start;
        self.arrive()?;
        let mut events = Events::with_capacity(1024);
        while self.arrivals.next.is_some() || self.in_flight > 0 {
            self.timer.arm()?;
            match self.poll.poll(&mut events, None) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                polled => polled?,
            }
            for event in events.iter().filter(|event| event.token() != TIMER) {
                let token = event.token();
                let looked = if event.is_writable() { self.send(token) } else { Ok(()) };
                if let Err(failure) = looked.and_then(|()| self.receive(token)) {
                    self.lost(token, failure);
                }
            }
            while let Some(token) = self.timer.pop() {
                if token == ARRIVAL { self.arrive()? } else { self.expire(token) }
            }
        }
        Ok(())
    }

    /// Sends what is to be sent by now.
    fn arrive(&mut self) -> io::Result<()> {
        while let Some((after, work)) = self.arrivals.next {
            let (at, now) = (self.start + after, self.timer.now());
            if at > now {
                self.timer.add(at, ARRIVAL);
                break;
            }
            self.arrivals.advance();
            if at >= self.from {
                self.late.record(now - at);
            }
            self.ask(at, work)?;
        }
        Ok(())
    }

    fn ask(&mut self, at: Nanos, work: Nanos) -> io::Result<()> {
        let token = match self.idle.pop() {
            Some(token) => token,
            None => self.open()?,
        };
        let bytes = format!("GET /{} HTTP/1.1\r\nHost: orders\r\n\r\n", work / 1000).into_bytes();
        if let Some(connection) = self.connections.get_mut(&token) {
            connection.asked = Some(Asked { at, bytes, sent: 0 });
        }
        self.asked += 1;
        self.in_flight += 1;
        self.counted += u64::from(at >= self.from);
        self.timer.add(at + self.deadline, token);
        if let Err(failure) = self.send(token) {
            self.lost(token, failure);
        }
        Ok(())
    }

    fn open(&mut self) -> io::Result<Token> {
        let mut stream = TcpStream::connect(self.to)?;
        let _ = stream.set_nodelay(true);
        let token = Token(self.next);
        self.next += 1;
        self.poll.registry().register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
        self.connections.insert(token, Connection { stream, response: Response::default(), asked: None });
        Ok(token)
    }

    /// Sends what the connection takes of its request.
    fn send(&mut self, token: Token) -> Result<(), Failure> {
        let Some(connection) = self.connections.get_mut(&token) else { return Ok(()) };
        let Some(asked) = &mut connection.asked else { return Ok(()) };
        while asked.sent < asked.bytes.len() {
            match connection.stream.write(&asked.bytes[asked.sent..]) {
                Ok(sent) => asked.sent += sent,
                // Not connected yet, or full: an event will tell.
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {
                    break;
                }
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    return Err(|failures| &mut failures.connect);
                }
                Err(_) => return Err(|failures| &mut failures.broken),
            }
        }
        Ok(())
    }

    /// Reads what there is, to the end: a poll tells once.
    fn receive(&mut self, token: Token) -> Result<(), Failure> {
        loop {
            let Some(connection) = self.connections.get_mut(&token) else { return Ok(()) };
            let read = match connection.stream.read(&mut self.chunk) {
                Ok(0) => return Err(|failures| &mut failures.broken),
                Ok(read) => read,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    return Err(|failures| &mut failures.connect);
                }
                Err(_) => return Err(|failures| &mut failures.broken),
            };
            match connection.response.take(&self.chunk[..read], BODY.len() as u64) {
                Ok(Some(answer)) => {
                    let Some(asked) = connection.asked.take() else {
                        return Err(|failures| &mut failures.malformed);
                    };
                    self.in_flight -= 1;
                    self.answered(&asked, answer.status);
                    if answer.closes {
                        self.connections.remove(&token);
                    } else {
                        self.idle.push(token);
                    }
                }
                Ok(None) => {}
                Err(_) => return Err(|failures| &mut failures.malformed),
            }
        }
    }

    fn answered(&mut self, asked: &Asked, status: u16) {
        if asked.at < self.from {
            return;
        }
        if is_good(status) {
            self.latency.record(self.timer.now() - asked.at);
        } else {
            self.failures.status += 1;
        }
    }

    /// The client gives up, if the connection's request is that old.
    fn expire(&mut self, token: Token) {
        let Some(connection) = self.connections.get(&token) else { return };
        if connection.asked.as_ref().is_some_and(|asked| asked.at + self.deadline <= self.timer.now()) {
            self.lost(token, |failures| &mut failures.unanswered);
        }
    }

    /// Lets a connection go. It has failed a request, if it had one.
    fn lost(&mut self, token: Token, failure: Failure) {
        let Some(connection) = self.connections.remove(&token) else { return };
        match connection.asked {
            Some(asked) => {
                self.in_flight -= 1;
                *failure(&mut self.failures) += u64::from(asked.at >= self.from);
            }
            None => self.idle.retain(|idle| *idle != token),
        }
    }
}

/// When requests come after the start, and how much work they are.
struct Arrivals {
    random: fastrand::Rng,
    /// Nanoseconds, on average.
    gap: f64,
    work: f64,
    until: Nanos,
    /// The next one; none after the last.
    next: Option<(Nanos, Nanos)>,
}

impl Arrivals {
    fn new(plan: &Plan) -> Self {
        let mut arrivals = Self {
            random: fastrand::Rng::with_seed(plan.seed),
            gap: 1e9 / plan.rate,
            work: plan.work * 1e6,
            until: from_millis((plan.warm + plan.seconds) * 1e3),
            next: Some((0, 0)),
        };
        arrivals.advance();
        arrivals
    }

    fn advance(&mut self) {
        let Some((at, _)) = self.next else { return };
        let at = at + self.exponential(self.gap);
        let work = self.exponential(self.work);
        self.next = (at < self.until).then_some((at, work));
    }

    fn exponential(&mut self, mean: f64) -> Nanos {
        // Never the logarithm of nothing: what is drawn is below 1.
        (-(1.0 - self.random.f64()).ln() * mean) as Nanos
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(rate: f64, seed: u64) -> Vec<(Nanos, Nanos)> {
        let to = ([127, 0, 0, 1], 1).into();
        let plan = Plan { to, rate, work: 8.0, warm: 1.0, seconds: 9.0, deadline: 1e3, seed };
        let mut arrivals = Arrivals::new(&plan);
        std::iter::from_fn(|| arrivals.next.inspect(|_| arrivals.advance())).collect()
    }

    #[test]
    fn a_seed_is_a_workload() {
        assert_eq!(all(1000.0, 7), all(1000.0, 7));
        assert_ne!(all(1000.0, 7), all(1000.0, 8));
    }

    #[test]
    fn times_and_work_are_exponential() {
        let all = all(1000.0, 7);
        let count = all.len() as f64;
        assert!((9_500.0..10_500.0).contains(&count), "{count} in 10 s at 1,000 a second");
        assert!(all.windows(2).all(|two| two[0].0 <= two[1].0) && all[all.len() - 1].0 < 10_000_000_000);
        let mean = all.iter().map(|(_, work)| *work as f64).sum::<f64>() / count;
        assert!((7.6e6..8.4e6).contains(&mean), "{mean} ns of work");
        // A share of exp(-2) is above twice the mean.
        let long = all.iter().filter(|(_, work)| *work > 16_000_000).count() as f64;
        assert!((0.12..0.15).contains(&(long / count)), "{long} long ones");
    }
}
