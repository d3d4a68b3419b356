//! How an authoritative server answers: the rules are here, and what there is to say is another's
//! ([`Records`]).
//!
//! A name that is not there (NXDOMAIN) is told from one without records of the type (NODATA), and
//! either carries the SOA that bounds how long it may be believed (RFC 2308). The question comes back
//! in the letters in which it was asked. ANY gets the records of one type (RFC 8482), transfers are
//! refused. An answer that a datagram cannot hold is truncated, additional records included: they
//! are what saves the asker its next queries, so that one exchange over TCP is the cheaper way.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;

use hickory_resolver::proto::op::{Message, OpCode, ResponseCode};
use hickory_resolver::proto::rr::{DNSClass, Name, Record, RecordType};
use tokio::runtime::Handle;

use super::server::{Answerer, Server, Transport};
use super::wire;
use crate::listen;

/// The types that ANY is answered with: the first that the name has.
const ANY: [RecordType; 6] =
    [RecordType::A, RecordType::AAAA, RecordType::SRV, RecordType::TXT, RecordType::SOA, RecordType::NS];

/// How often another port is tried where UDP has one that TCP does not.
const PORT_TRIES: usize = 16;

/// What an authority knows. Asked for every query: it must not block.
pub trait Records: Send + Sync + 'static {
    /// What is known of the records of this type at this name.
    fn find(&self, name: &Name, kind: RecordType) -> Found;

    /// A query for this type was answered with this code.
    fn answered(&self, _kind: RecordType, _code: ResponseCode) {}
}

/// What is known of a name and a type.
#[derive(Debug, Clone, PartialEq)]
pub enum Found {
    /// The name is not in the zone: others may know it.
    Elsewhere,
    /// Nothing can be said now.
    Unknown,
    /// There is no such name, nor one below it.
    Absent {
        /// Bounds how long that may be believed.
        soa: Record,
    },
    /// The name is there, and has no record of the type.
    Empty {
        /// As above.
        soa: Record,
    },
    /// There are records.
    Records {
        /// Those that were asked for, at least one.
        answers: Vec<Record>,
        /// What the asker will want next.
        additionals: Vec<Record>,
    },
}

/// Serves [`Records`] over UDP and TCP, each of them on every socket that is given. Dropping the
/// server ends it.
pub fn serve(
    records: Arc<impl Records>,
    udp: Vec<UdpSocket>,
    tcp: Vec<TcpListener>,
    handle: &Handle,
) -> io::Result<Server> {
    Server::start(handle, udp, tcp, Arc::new(Authority { records }))
}

/// Both sockets on one port; port 0 takes a free one.
pub fn bind(address: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let mut tries = 0;
    loop {
        tries += 1;
        let udp = listen::udp(address)?;
        match listen::tcp(udp.local_addr()?, false) {
            Ok(tcp) => return Ok((udp, tcp)),
            Err(_) if address.port() == 0 && tries < PORT_TRIES => {}
            Err(error) => return Err(error),
        }
    }
}

struct Authority<R> {
    records: Arc<R>,
}

impl<R: Records> Answerer for Authority<R> {
    async fn answer(&self, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
        match wire::read_query(query) {
            Ok(query) => wire::encode(&self.reply(&query), &query, transport),
            Err(refusal) => {
                if refusal.is_some() {
                    self.records.answered(RecordType::ZERO, ResponseCode::FormErr);
                }
                refusal
            }
        }
    }
}

impl<R: Records> Authority<R> {
    fn reply(&self, query: &Message) -> Message {
        let mut reply = wire::reply_to(query);
        // We know our records, and ask nobody for others.
        reply.metadata.recursion_available = false;
        let kind = query.queries.first().map_or(RecordType::ZERO, |question| question.query_type);
        reply.metadata.response_code = self.fill(query, &mut reply);
        self.records.answered(kind, reply.metadata.response_code);
        reply
    }

    /// Puts records into the reply, and says which code goes with them.
    fn fill(&self, query: &Message, reply: &mut Message) -> ResponseCode {
        if query.version() > 0 {
            return ResponseCode::BADVERS;
        }
        if query.metadata.op_code != OpCode::Query {
            return ResponseCode::NotImp;
        }
        let [question] = query.queries.as_slice() else { return ResponseCode::FormErr };
        let transfer = matches!(question.query_type, RecordType::AXFR | RecordType::IXFR);
        if question.query_class != DNSClass::IN || transfer {
            return ResponseCode::Refused;
        }
        let found = match question.query_type {
            RecordType::ANY => self.find_any(&question.name),
            kind => self.records.find(&question.name, kind),
        };
        reply.metadata.authoritative = !matches!(found, Found::Elsewhere | Found::Unknown);
        match found {
            Found::Elsewhere => ResponseCode::Refused,
            Found::Unknown => ResponseCode::ServFail,
            Found::Absent { soa } => {
                reply.add_authority(soa);
                ResponseCode::NXDomain
            }
            Found::Empty { soa } => {
                reply.add_authority(soa);
                ResponseCode::NoError
            }
            Found::Records { answers, additionals } => {
                reply.add_answers(answers);
                reply.add_additionals(additionals);
                ResponseCode::NoError
            }
        }
    }

    fn find_any(&self, name: &Name) -> Found {
        let mut found = self.records.find(name, ANY[0]);
        for kind in &ANY[1..] {
            if !matches!(found, Found::Empty { .. }) {
                break;
            }
            found = self.records.find(name, *kind);
        }
        found
    }
}

/// What is answered to a message that comes over UDP.
#[cfg(test)]
pub(crate) async fn answer(records: Arc<impl Records>, query: &[u8]) -> Option<Vec<u8>> {
    Authority { records }.answer(query, Transport::Udp).await
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use hickory_resolver::proto::op::{Edns, MessageType, Query};
    use hickory_resolver::proto::rr::RData;
    use hickory_resolver::proto::rr::rdata::{SOA, TXT};
    use proptest::prelude::*;

    use super::*;

    /// `x.mesh` has TXT and nothing else; `mesh` is the zone.
    #[derive(Default)]
    struct Small {
        answered: Mutex<Vec<(RecordType, ResponseCode)>>,
    }

    impl Records for Small {
        fn find(&self, name: &Name, kind: RecordType) -> Found {
            let soa = || {
                let root = Name::root();
                let data = SOA::new(root.clone(), root.clone(), 1, 60, 60, 60, 5);
                Record::from_rdata(root, 5, RData::SOA(data))
            };
            match name.to_ascii().to_ascii_lowercase().as_str() {
                "x.mesh." if kind == RecordType::TXT => {
                    let text = RData::TXT(TXT::new(vec!["zone=a".into()]));
                    let answers = vec![Record::from_rdata(name.clone(), 5, text)];
                    Found::Records { answers, additionals: Vec::new() }
                }
                "x.mesh." | "mesh." => Found::Empty { soa: soa() },
                "later.mesh." => Found::Unknown,
                name if name.ends_with(".mesh.") => Found::Absent { soa: soa() },
                _ => Found::Elsewhere,
            }
        }

        fn answered(&self, kind: RecordType, code: ResponseCode) {
            self.answered.lock().unwrap().push((kind, code));
        }
    }

    fn authority() -> Authority<Small> {
        Authority { records: Arc::default() }
    }

    fn query(name: &str, kind: RecordType) -> Message {
        let mut query = Message::new(7, MessageType::Query, OpCode::Query);
        query.metadata.recursion_desired = true;
        query.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        query
    }

    #[test]
    fn codes_and_their_soa() {
        let authority = authority();
        for (name, kind, code, answers, soas) in [
            ("x.mesh.", RecordType::TXT, ResponseCode::NoError, 1, 0),
            ("x.mesh.", RecordType::A, ResponseCode::NoError, 0, 1),
            ("x.mesh.", RecordType::ANY, ResponseCode::NoError, 1, 0),
            ("mesh.", RecordType::ANY, ResponseCode::NoError, 0, 1),
            ("y.mesh.", RecordType::A, ResponseCode::NXDomain, 0, 1),
            ("y.mesh.", RecordType::ANY, ResponseCode::NXDomain, 0, 1),
            ("later.mesh.", RecordType::A, ResponseCode::ServFail, 0, 0),
            ("mash.", RecordType::A, ResponseCode::Refused, 0, 0),
            ("mesh.", RecordType::AXFR, ResponseCode::Refused, 0, 0),
            ("mesh.", RecordType::IXFR, ResponseCode::Refused, 0, 0),
        ] {
            let reply = authority.reply(&query(name, kind));
            assert_eq!(reply.metadata.response_code, code, "{name} {kind}");
            assert_eq!((reply.answers.len(), reply.authorities.len()), (answers, soas), "{name} {kind}");
            assert_eq!(reply.metadata.authoritative, answers + soas > 0, "{name} {kind}");
            assert!(!reply.metadata.recursion_available && reply.metadata.recursion_desired);
            assert_eq!(authority.records.answered.lock().unwrap().last(), Some(&(kind, code)));
        }
    }

    #[test]
    fn what_is_not_a_question_of_ours() {
        let authority = authority();
        let code = |query: &Message| authority.reply(query).metadata.response_code;
        let good = query("x.mesh.", RecordType::TXT);
        for wrong in [OpCode::Status, OpCode::Notify, OpCode::Update, OpCode::Unknown(9)] {
            let mut query = good.clone();
            query.metadata.op_code = wrong;
            assert_eq!(code(&query), ResponseCode::NotImp, "{wrong:?}");
        }
        for class in [DNSClass::CH, DNSClass::HS, DNSClass::ANY, DNSClass::NONE] {
            let mut query = good.clone();
            query.queries[0].query_class = class;
            assert_eq!(code(&query), ResponseCode::Refused, "{class}");
        }
        let mut two = good.clone();
        two.add_query(good.queries[0].clone());
        assert_eq!(code(&two), ResponseCode::FormErr);
        two.queries.clear();
        assert_eq!(code(&two), ResponseCode::FormErr);
        let mut newer = good.clone();
        let mut edns = Edns::new();
        edns.set_version(1);
        newer.set_edns(edns);
        assert_eq!(code(&newer), ResponseCode::BADVERS);
    }

    #[test]
    fn the_questions_case_comes_back() {
        let reply = authority().reply(&query("X.mEsH.", RecordType::TXT));
        let read = Message::from_vec(&reply.to_vec().unwrap()).unwrap();
        assert_eq!(read.queries[0].name.to_ascii(), "X.mEsH.");
        assert_eq!(read.answers[0].name.to_ascii(), "X.mEsH.");
    }

    proptest! {
        /// Any bytes: an answer to them or silence, never a panic.
        #[test]
        fn any_bytes_are_answered_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let answered =
                futures_util::future::FutureExt::now_or_never(authority().answer(&bytes, Transport::Udp));
            let answer = answered.expect("it waits for nothing");
            prop_assert!(answer.is_none_or(|answer| answer.len() >= 12 && answer[..2] == bytes[..2]));
        }
    }
}
