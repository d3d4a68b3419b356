//! The resolver and the servers together, on loopback: against our own responder, against one that
//! misbehaves, and against dnsmasq. What is a matter of exact times is tested in `record`.

mod cached;
mod capture;
mod dnsmasq;
mod forged;
mod resolver;
mod server;
mod servers;
mod source;

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::rdata::CNAME;
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::authority::bind;
use super::query::Files;
use super::server::{Answerer, Server, Transport};
use super::{Answer, Resolver, wire};
use crate::config::model;
use crate::config::units::Time;

/// Far longer than anything here takes, so that only a hang fails by it.
const PATIENCE: Duration = Duration::from_secs(30);

/// No such file: neither the machine's search list nor its hosts file touch a test.
const NONE: &str = "/nonexistent/pannier";

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn settings(servers: &[SocketAddr]) -> model::Dns {
    model::Dns { servers: servers.to_vec(), timeout: Time(Duration::from_secs(1)), ..Default::default() }
}

fn resolver(servers: &[SocketAddr]) -> Arc<Resolver> {
    resolver_with(&settings(servers), NONE, NONE)
}

fn resolver_with(
    settings: &model::Dns,
    resolv_conf: impl AsRef<Path>,
    hosts: impl AsRef<Path>,
) -> Arc<Resolver> {
    let files = Files { resolv_conf: resolv_conf.as_ref().into(), hosts: hosts.as_ref().into() };
    Resolver::with_files(settings, files, Handle::current()).expect("a resolver")
}

/// Waits until the answer is such.
async fn until(answer: &mut watch::Receiver<Answer>, such: impl FnMut(&Answer) -> bool) -> Answer {
    tokio::time::timeout(PATIENCE, answer.wait_for(such)).await.expect("in time").expect("open").clone()
}

async fn addresses(answer: &mut watch::Receiver<Answer>, wanted: &[&str]) -> Answer {
    let wanted: Vec<IpAddr> = wanted.iter().map(|text| ip(text)).collect();
    until(answer, |answer| *answer.addresses == wanted).await
}

/// What a scripted server does with a query.
enum Step {
    Reply(Box<Message>),
    /// A reply once the gate is open.
    Held(Gate, Box<Message>),
    Raw(Vec<u8>),
    Silence,
}

/// Closed until a test opens it.
#[derive(Clone)]
struct Gate(watch::Sender<bool>);

impl Gate {
    fn new() -> Self {
        Self(watch::channel(false).0)
    }

    fn open(&self) {
        self.0.send_replace(true);
    }

    async fn opened(&self) {
        self.0.subscribe().wait_for(|open| *open).await.expect("we hold its other end");
    }
}

/// A server whose every answer a test decides, and that remembers what it was asked.
struct Scripted {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    _server: Server,
}

#[derive(Debug, Clone, PartialEq)]
struct Asked {
    name: String,
    kind: RecordType,
    transport: Transport,
}

type Script = Box<dyn Fn(&Message, Transport) -> Step + Send + Sync>;

struct Actor {
    script: Script,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Answerer for Actor {
    async fn answer(&self, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let query = Message::from_vec(query).expect("a query that can be read");
        let question = &query.queries[0];
        self.asked.lock().expect("unpoisoned").push(Asked {
            name: question.name.to_ascii(),
            kind: question.query_type,
            transport,
        });
        match (self.script)(&query, transport) {
            Step::Reply(reply) => wire::encode(&reply, &query, transport),
            Step::Held(gate, reply) => {
                gate.opened().await;
                wire::encode(&reply, &query, transport)
            }
            Step::Raw(bytes) => Some(bytes),
            Step::Silence => None,
        }
    }
}

impl Scripted {
    fn start(script: impl Fn(&Message, Transport) -> Step + Send + Sync + 'static) -> Self {
        let (udp, tcp) = bind(([127, 0, 0, 1], 0).into()).expect("a port");
        let address = udp.local_addr().expect("an address");
        let asked = Arc::new(Mutex::default());
        let actor = Actor { script: Box::new(script), asked: Arc::clone(&asked) };
        let server =
            Server::start(&Handle::current(), vec![udp], vec![tcp], Arc::new(actor)).expect("started");
        Self { address, asked, _server: server }
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("unpoisoned").clone()
    }

    fn asked_for(&self, kind: RecordType) -> usize {
        self.asked().iter().filter(|asked| asked.kind == kind).count()
    }
}

/// Lets time pass: what was to happen in the meantime happens.
async fn later(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

/// Waits until something is so.
async fn eventually(mut so: impl FnMut() -> bool) {
    let waited = async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waited).await.expect("in time");
}

fn kind(query: &Message) -> RecordType {
    query.queries[0].query_type
}

fn name(query: &Message) -> String {
    query.queries[0].name.to_ascii()
}

/// Those of the addresses that were asked for; without any, NODATA.
fn with(query: &Message, ttl: u32, addresses: &[&str]) -> Step {
    let mut reply = wire::reply_to(query);
    let records = addresses.iter().map(|text| RData::from(ip(text)));
    let records = records.filter(|data| data.record_type() == kind(query));
    reply.add_answers(records.map(|data| Record::from_rdata(query.queries[0].name.clone(), ttl, data)));
    Step::Reply(Box::new(reply))
}

fn alias(query: &Message, ttl: u32, target: &str) -> Step {
    let mut reply = wire::reply_to(query);
    let target = RData::CNAME(CNAME(Name::from_ascii(target).expect("a name")));
    reply.add_answer(Record::from_rdata(query.queries[0].name.clone(), ttl, target));
    Step::Reply(Box::new(reply))
}

fn code(query: &Message, code: ResponseCode) -> Step {
    let mut reply = wire::reply_to(query);
    reply.metadata.response_code = code;
    Step::Reply(Box::new(reply))
}
