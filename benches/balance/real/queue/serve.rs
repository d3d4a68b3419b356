//! The applications: what they listen on, their connections, and what happens to them when.

use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};

use mio::net::{TcpListener, TcpStream};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use serde_json::json;

use crate::BODY;
use crate::plan::{Change, Order, Turn};
use crate::station::Station;
use crate::timer::{Nanos, Timer, from_millis};

const INPUT: Token = Token(0);
const TIMER: Token = Token(1);
/// Of the first application's port and timer; connections come behind the last's.
const FIRST: usize = 2;
const STDIN: i32 = 0;
const CHUNK: usize = 64 << 10;
const FIELDS: usize = 64;

/// How many, and how many things each does at once.
#[derive(clap::Args)]
pub(crate) struct Plan {
    #[arg(long, default_value_t = 8)]
    applications: usize,
    #[arg(long, default_value_t = 4)]
    workers: usize,
}

/// Serves until the input ends.
pub(crate) fn run(plan: &Plan) -> io::Result<()> {
    let poll = Poll::new()?;
    poll.registry().register(&mut SourceFd(&STDIN), INPUT, Interest::READABLE)?;
    let timer = Timer::new(poll.registry(), TIMER)?;
    let next = FIRST + plan.applications;
    let (applications, connections) = (Vec::new(), HashMap::new());
    let mut serve = Serve { poll, timer, workers: plan.workers, applications, connections, next, began: 0 };
    for index in 0..plan.applications {
        let application =
            Application::new(serve.listen(index, (Ipv4Addr::LOCALHOST, 0).into())?, plan.workers)?;
        serve.applications.push(application);
    }
    serve.serve()
}

struct Serve {
    poll: Poll,
    timer: Timer,
    workers: usize,
    applications: Vec<Application>,
    connections: HashMap<Token, Connection>,
    next: usize,
    /// When the slice did.
    began: Nanos,
}

struct Application {
    address: SocketAddr,
    /// None while it is dead.
    door: Option<TcpListener>,
    station: Station<Token>,
    fails: bool,
    /// What will happen to it.
    plan: VecDeque<Change>,
    /// The earliest time for which the timer is set.
    awaits: Option<Nanos>,
    /// How many it has had in this slice.
    requests: u64,
}

struct Connection {
    stream: TcpStream,
    application: usize,
    /// Of a head that has not come whole.
    head: Vec<u8>,
    /// An answer is due.
    asks: bool,
}

impl Serve {
    fn serve(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        let mut chunk = vec![0; CHUNK];
        loop {
            self.timer.arm()?;
            match self.poll.poll(&mut events, None) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                polled => polled?,
            }
            for event in &events {
                match event.token() {
                    TIMER => {}
                    INPUT => {
                        let mut order = String::new();
                        if io::stdin().read_line(&mut order)? == 0 {
                            return Ok(());
                        }
                        self.begin(&serde_json::from_str(&order)?)?;
                    }
                    Token(at) if at < FIRST + self.applications.len() => self.accept(at - FIRST)?,
                    token => self.read(token, &mut chunk),
                }
            }
            while let Some(Token(at)) = self.timer.pop() {
                self.due(at - FIRST);
            }
        }
    }

    /// Ends what was, and tells of it; begins anew.
    fn begin(&mut self, order: &Order) -> io::Result<()> {
        // Whoever still waits here has been given up by its client.
        self.connections.retain(|_, connection| !connection.asks);
        self.began = self.timer.now();
        let had: Vec<u64> = self.applications.iter().map(|application| application.requests).collect();
        for index in 0..self.applications.len() {
            let address = self.applications[index].address;
            let door = match self.applications[index].door.take() {
                Some(door) => door,
                None => self.listen(index, address)?,
            };
            let mut application = Application::new(door, self.workers)?;
            application.plan = order.begin.get(index).cloned().unwrap_or_default().into();
            self.applications[index] = application;
            self.due(index);
        }
        let ports: Vec<u16> =
            self.applications.iter().map(|application| application.address.port()).collect();
        let mut out = io::stdout().lock();
        writeln!(out, "{}", json!({ "ports": ports, "requests": had }))?;
        out.flush()
    }

    fn listen(&self, index: usize, address: SocketAddr) -> io::Result<TcpListener> {
        let mut door = TcpListener::bind(address)?;
        self.poll.registry().register(&mut door, Token(FIRST + index), Interest::READABLE)?;
        Ok(door)
    }

    fn accept(&mut self, index: usize) -> io::Result<()> {
        while let Some(door) = &self.applications[index].door {
            let mut stream = match door.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error),
            };
            let _ = stream.set_nodelay(true);
            let token = Token(self.next);
            self.next += 1;
            self.poll.registry().register(&mut stream, token, Interest::READABLE)?;
            let connection = Connection { stream, application: index, head: Vec::new(), asks: false };
            self.connections.insert(token, connection);
        }
        Ok(())
    }

    /// Takes the request of a connection, or its end.
    fn read(&mut self, token: Token, chunk: &mut [u8]) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        let application = &mut self.applications[connection.application];
        let work = match connection.read(chunk) {
            Ok(Some(work)) => work,
            Ok(None) => return,
            Err(_) => {
                application.station.forget(token);
                self.connections.remove(&token);
                return;
            }
        };
        application.requests += 1;
        if application.fails {
            self.answer(token, "503 Service Unavailable");
            return;
        }
        application.station.take(self.timer.now(), token, work);
        let index = connection.application;
        self.due(index);
    }

    /// Does what is due at an application, and sees that it is woken for the next.
    fn due(&mut self, index: usize) {
        let now = self.timer.now();
        while let Some(token) = self.applications[index].station.done(now) {
            self.answer(token, "200 OK");
        }
        while let Some(turn) = self.applications[index].turn(now.saturating_sub(self.began)) {
            self.change(index, now, turn);
        }
        let application = &mut self.applications[index];
        let change = application.plan.front().map(|change| self.began + from_millis(change.at));
        let next = [change, application.station.next()].into_iter().flatten().min();
        application.awaits = application.awaits.filter(|awaits| *awaits > now);
        if let Some(next) = next.filter(|next| application.awaits.is_none_or(|awaits| *next < awaits)) {
            application.awaits = Some(next);
            self.timer.add(next, Token(FIRST + index));
        }
    }

    fn change(&mut self, index: usize, now: Nanos, turn: Turn) {
        let application = &mut self.applications[index];
        match turn {
            Turn::Speed(speed) => application.station.set_speed(now, speed),
            Turn::Fails => application.fails = true,
            Turn::Dies => {
                application.door = None;
                application.station = Station::new(self.workers);
                self.connections.retain(|_, connection| connection.application != index);
            }
        }
    }

    fn answer(&mut self, token: Token, status: &str) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        connection.asks = false;
        let length = BODY.len();
        let answer = format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\r\n{BODY}"
        );
        // It is small, and the last one has been read.
        if connection.stream.write_all(answer.as_bytes()).is_err() {
            self.connections.remove(&token);
        }
    }
}

impl Application {
    fn new(door: TcpListener, workers: usize) -> io::Result<Self> {
        Ok(Self {
            address: door.local_addr()?,
            door: Some(door),
            station: Station::new(workers),
            fails: false,
            plan: VecDeque::new(),
            awaits: None,
            requests: 0,
        })
    }

    /// What has to happen to it, so long after the beginning.
    fn turn(&mut self, after: Nanos) -> Option<Turn> {
        let due = self.plan.front().is_some_and(|change| from_millis(change.at) <= after);
        if due { self.plan.pop_front().map(|change| change.to) } else { None }
    }
}

impl Connection {
    /// The work of a request that has come whole.
    fn read(&mut self, chunk: &mut [u8]) -> io::Result<Option<Nanos>> {
        loop {
            let read = match self.stream.read(chunk) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            };
            self.head.extend_from_slice(&chunk[..read]);
        }
        let Some((length, work)) = parse(&self.head)? else { return Ok(None) };
        // No proxy here sends a request on a connection before the last one's answer.
        if self.asks || length != self.head.len() {
            return Err(ErrorKind::InvalidData.into());
        }
        self.head.clear();
        self.asks = true;
        Ok(Some(work))
    }
}

/// The length of a whole head, and the work that it asks for.
fn parse(head: &[u8]) -> io::Result<Option<(usize, Nanos)>> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    let parsed = request.parse(head).map_err(|_| ErrorKind::InvalidData)?;
    let httparse::Status::Complete(length) = parsed else { return Ok(None) };
    let path = request.path.unwrap_or_default().trim_start_matches('/');
    let micros: u64 = path.parse().map_err(|_| ErrorKind::InvalidData)?;
    Ok(Some((length, micros * 1000)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_says_its_work() {
        let whole = b"GET /1500 HTTP/1.1\r\nHost: orders\r\n\r\n";
        assert_eq!(parse(whole).unwrap(), Some((whole.len(), 1_500_000)));
        assert_eq!(parse(&whole[..20]).unwrap(), None);
        assert!(parse(b"GET /much HTTP/1.1\r\n\r\n").is_err());
    }

    #[test]
    fn changes_happen_in_order_and_not_before_their_time() {
        let door = TcpListener::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let mut application = Application::new(door, 1).unwrap();
        let change = |at, speed| Change { at, to: Turn::Speed(speed) };
        application.plan = [change(0.0, 0.5), change(2.0, 1.0)].into();
        assert_eq!(application.turn(1_999_999), Some(Turn::Speed(0.5)));
        assert_eq!(application.turn(1_999_999), None);
        assert_eq!(application.turn(2_000_000), Some(Turn::Speed(1.0)));
    }
}
