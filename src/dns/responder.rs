//! A small authoritative server over a table that changes while it runs: the trial mesh's DNS.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use hickory_resolver::proto::op::{Message, OpCode, ResponseCode};
use hickory_resolver::proto::rr::rdata::SOA;
use hickory_resolver::proto::rr::{DNSClass, Name, RData, Record, RecordType};
use tokio::runtime::Handle;

use super::server::{Answerer, Server, Transport};
use super::wire;

/// How long a resolver may believe that a name is not there: short, since the table changes.
const NEGATIVE_TTL: u32 = 1;

/// How often another port is tried where UDP has one that TCP does not.
const PORT_TRIES: usize = 16;

/// Names and their addresses.
#[derive(Debug, Default)]
pub struct Zone {
    names: Mutex<HashMap<String, Entry>>,
}

#[derive(Debug, Clone)]
struct Entry {
    ttl: u32,
    addresses: Vec<IpAddr>,
}

impl Zone {
    /// An empty zone: every name is denied.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Sets what a name resolves to. `ttl` counts in whole seconds; without addresses the name
    /// exists, and has none.
    pub fn set(&self, name: &str, ttl: Duration, addresses: impl IntoIterator<Item = IpAddr>) {
        let ttl = u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX);
        let entry = Entry { ttl, addresses: addresses.into_iter().collect() };
        self.names().insert(key(name), entry);
    }

    /// Removes a name, and says whether it was there.
    pub fn remove(&self, name: &str) -> bool {
        self.names().remove(&key(name)).is_some()
    }

    fn find(&self, name: &Name) -> Option<Entry> {
        self.names().get(&key(&name.to_ascii())).cloned()
    }

    fn names(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.names.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Serves a [`Zone`], and denies whatever is not in it. Dropping it ends it.
#[derive(Debug)]
pub struct Responder {
    server: Server,
}

impl Responder {
    /// Listens on `address`, UDP and TCP on one port; port 0 takes a free one. Runs on `handle`.
    pub fn start(address: SocketAddr, zone: Arc<Zone>, handle: &Handle) -> io::Result<Self> {
        let (udp, tcp) = bind(address)?;
        let server = Server::start(handle, vec![udp], vec![tcp], Arc::new(Authority { zone }))?;
        Ok(Self { server })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.server.addresses()[0]
    }
}

/// Both sockets on one port.
pub(super) fn bind(address: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let mut tries = 0;
    loop {
        tries += 1;
        let udp = UdpSocket::bind(address)?;
        match TcpListener::bind(udp.local_addr()?) {
            Ok(tcp) => return Ok((udp, tcp)),
            Err(_) if address.port() == 0 && tries < PORT_TRIES => {}
            Err(error) => return Err(error),
        }
    }
}

struct Authority {
    zone: Arc<Zone>,
}

impl Answerer for Authority {
    async fn answer(&self, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
        match wire::read_query(query) {
            Ok(query) => wire::encode(&self.reply(&query), &query, transport),
            Err(refusal) => refusal,
        }
    }
}

impl Authority {
    fn reply(&self, query: &Message) -> Message {
        let mut reply = wire::reply_to(query);
        if query.metadata.op_code != OpCode::Query {
            reply.metadata.response_code = ResponseCode::NotImp;
            return reply;
        }
        let [question] = query.queries.as_slice() else {
            reply.metadata.response_code = ResponseCode::FormErr;
            return reply;
        };
        if question.query_class != DNSClass::IN {
            reply.metadata.response_code = ResponseCode::Refused;
            return reply;
        }
        reply.metadata.authoritative = true;
        let entry = self.zone.find(&question.name);
        if entry.is_none() {
            reply.metadata.response_code = ResponseCode::NXDomain;
        }
        if let Some(Entry { ttl, addresses }) = entry {
            let wanted = |data: &RData| {
                question.query_type == RecordType::ANY || question.query_type == data.record_type()
            };
            let records = addresses.into_iter().map(RData::from).filter(wanted);
            reply.add_answers(records.map(|data| Record::from_rdata(question.name.clone(), ttl, data)));
        }
        if reply.answers.is_empty() {
            reply.add_authority(start_of_authority());
        }
        reply
    }
}

/// What bounds a denial (RFC 2308 section 3).
fn start_of_authority() -> Record {
    let root = Name::root();
    let data = SOA::new(root.clone(), root.clone(), 1, 60, 60, 60, NEGATIVE_TTL);
    Record::from_rdata(root, NEGATIVE_TTL, RData::SOA(data))
}

/// Lower case, without a final dot.
fn key(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use hickory_resolver::proto::op::{MessageType, Query};
    use proptest::prelude::*;

    use super::*;

    fn authority() -> Authority {
        let zone = Zone::new();
        let addresses = [[10, 0, 0, 1].into(), "fd00::1".parse().expect("an address")];
        zone.set("Orders.Mesh.", Duration::from_secs(3), addresses);
        zone.set("empty.mesh", Duration::from_secs(3), []);
        Authority { zone }
    }

    fn ask(authority: &Authority, name: &str, kind: RecordType) -> Message {
        let mut query = Message::new(7, MessageType::Query, OpCode::Query);
        query.add_query(Query::query(Name::from_ascii(name).expect("a name"), kind));
        authority.reply(&query)
    }

    #[test]
    fn names_answer_by_type_and_in_any_case() {
        let authority = authority();
        for (kind, count) in
            [(RecordType::A, 1), (RecordType::AAAA, 1), (RecordType::ANY, 2), (RecordType::MX, 0)]
        {
            let reply = ask(&authority, "oRDERs.mesh.", kind);
            assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
            assert_eq!(reply.answers.len(), count, "{kind}");
            assert!(reply.answers.iter().all(|record| record.ttl == 3));
            assert_eq!(reply.authorities.len(), usize::from(count == 0), "an SOA bounds a denial");
        }
    }

    #[test]
    fn no_name_and_no_data_are_told_apart() {
        let authority = authority();
        let code = |name| ask(&authority, name, RecordType::A).metadata.response_code;
        assert_eq!(code("nobody.mesh."), ResponseCode::NXDomain);
        assert_eq!(code("empty.mesh."), ResponseCode::NoError);
        assert!(authority.zone.remove("ORDERS.mesh"));
        assert!(!authority.zone.remove("orders.mesh"));
        assert_eq!(code("orders.mesh."), ResponseCode::NXDomain);
    }

    proptest! {
        /// Any header and question bytes: an answer or silence, never a panic.
        #[test]
        fn any_bytes_are_answered_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let answered = futures_util::future::FutureExt::now_or_never(
                authority().answer(&bytes, Transport::Udp),
            );
            let answer = answered.expect("it waits for nothing");
            prop_assert!(answer.is_none_or(|answer| answer.len() >= 12 && answer[..2] == bytes[..2]));
        }
    }
}
