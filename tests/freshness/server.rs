//! A DNS server that does whatever a test wants, which no real one does on demand: over UDP and TCP, on
//! loopback.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};

use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::rdata::{SOA, SRV};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

/// What is done with a query of a type.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Answer,
    Silence,
    Fail(ResponseCode),
    /// So many answers are NXDOMAIN, and the others what they are.
    Deny(usize),
}

#[derive(Default)]
struct Zone {
    ttl: u32,
    records: BTreeMap<String, Vec<RData>>,
    modes: BTreeMap<RecordType, Mode>,
    /// Other sets for one name: each query in turn.
    turns: Vec<Vec<RData>>,
    asked: Vec<(String, RecordType)>,
}

/// The server. It ends with the test's runtime.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
}

impl Server {
    /// Records have this TTL, in seconds.
    pub(crate) async fn start(ttl: u32) -> Self {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().expect("an address")).await {
                break (udp, tcp);
            }
        };
        let zone = Zone { ttl, ..Zone::default() };
        let server =
            Self { address: udp.local_addr().expect("an address"), zone: Arc::new(Mutex::new(zone)) };
        tokio::spawn(server.clone().datagrams(udp));
        tokio::spawn(server.clone().connections(tcp));
        server
    }

    /// The sidecar's `dns`, in YAML.
    pub(crate) fn yaml(&self) -> String {
        format!("servers: [\"{}\"]", self.address)
    }

    /// Sets a name's addresses.
    pub(crate) fn addresses(&self, name: &str, addresses: &[&str]) {
        self.set(name, addresses.iter().map(|text| address(text)).collect());
    }

    /// Sets a name's services: priority, weight, port and target.
    pub(crate) fn services(&self, name: &str, services: &[(u16, u16, u16, &str)]) {
        let service = |(priority, weight, port, target): &(u16, u16, u16, &str)| {
            RData::SRV(SRV::new(*priority, *weight, *port, Name::from_ascii(target).expect("a name")))
        };
        self.set(name, services.iter().map(service).collect());
    }

    /// Answers each query for an IPv4 address with the next of these.
    pub(crate) fn rotate(&self, turns: &[&[&str]]) {
        self.zone().turns = turns.iter().map(|set| set.iter().map(|text| address(text)).collect()).collect();
    }

    pub(crate) fn mode(&self, kinds: &[RecordType], mode: Mode) {
        self.zone().modes.extend(kinds.iter().map(|kind| (*kind, mode)));
    }

    /// How often a type was asked for.
    pub(crate) fn asked(&self, kind: RecordType) -> usize {
        self.zone().asked.iter().filter(|(_, asked)| *asked == kind).count()
    }

    fn set(&self, name: &str, data: Vec<RData>) {
        self.zone().records.insert(format!("{name}."), data);
    }

    fn zone(&self) -> MutexGuard<'_, Zone> {
        self.zone.lock().expect("unpoisoned")
    }

    fn answer(&self, query: &[u8]) -> Option<Vec<u8>> {
        let query = Message::from_vec(query).expect("a query");
        let question = query.queries[0].clone();
        let (name, kind) = (question.name.to_ascii().to_ascii_lowercase(), question.query_type);
        let mut zone = self.zone();
        zone.asked.push((name.clone(), kind));
        let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
        reply.metadata.recursion_available = true;
        reply.metadata.recursion_desired = true;
        reply.add_query(question.clone());
        let denied = match zone.modes.get_mut(&kind) {
            Some(Mode::Silence) => return None,
            Some(Mode::Fail(code)) => {
                reply.metadata.response_code = *code;
                return reply.to_vec().ok();
            }
            Some(Mode::Deny(left)) if *left > 0 => {
                *left -= 1;
                true
            }
            _ => false,
        };
        if kind == RecordType::A && !zone.turns.is_empty() {
            let next = zone.turns.remove(0);
            zone.turns.push(next.clone());
            zone.records.insert(name.clone(), next);
        }
        let (ttl, data) = (zone.ttl, zone.records.get(&name).filter(|_| !denied));
        if data.is_none() {
            reply.metadata.response_code = ResponseCode::NXDomain;
        }
        let wanted = data.into_iter().flatten().filter(|data| data.record_type() == kind);
        reply.add_answers(wanted.map(|data| Record::from_rdata(question.name.clone(), ttl, data.clone())));
        if reply.answers.is_empty() {
            let root = Name::root();
            let soa = SOA::new(root.clone(), root.clone(), 1, 60, 60, 60, 1);
            reply.add_authority(Record::from_rdata(root, 1, RData::SOA(soa)));
        }
        reply.to_vec().ok()
    }

    async fn datagrams(self, socket: UdpSocket) {
        let mut buffer = [0; 4096];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).await.expect("a query");
            if let Some(answer) = self.answer(&buffer[..length]) {
                let _ = socket.send_to(&answer, from).await;
            }
        }
    }

    async fn connections(self, listener: TcpListener) {
        loop {
            let (stream, _) = listener.accept().await.expect("a connection");
            tokio::spawn(self.clone().connection(stream));
        }
    }

    async fn connection(self, mut stream: TcpStream) -> std::io::Result<()> {
        loop {
            let mut query = vec![0; stream.read_u16().await?.into()];
            stream.read_exact(&mut query).await?;
            let Some(answer) = self.answer(&query) else { return Ok(()) };
            stream.write_u16(answer.len() as u16).await?;
            stream.write_all(&answer).await?;
        }
    }
}

fn address(text: &str) -> RData {
    RData::from(text.parse::<IpAddr>().expect("an address"))
}
