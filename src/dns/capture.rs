//! The pod's own queries, redirected to us: names of the mesh are answered from the cache, with
//! what is left of their TTL; everything else goes to the servers as it came, whatever its type.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use hickory_resolver::proto::op::{Message, OpCode, ResponseCode};
use hickory_resolver::proto::rr::{DNSClass, RData, Record, RecordType};
use tokio::time::{Instant, timeout};

use super::server::{Answerer, Server, Transport};
use super::{Answer, Resolver, State, forward, wire};

/// The TTL of an answer past its own: short, because the cache is fresh again as soon as a server
/// is (RFC 8767 section 4 wants it above 0, and up to 30 s).
const STALE_TTL: u32 = 5;

/// The names that the cache answers for; replaced by a reload.
#[derive(Debug, Default)]
pub struct MeshNames(ArcSwap<HashSet<String>>);

impl MeshNames {
    /// Names in any case, without a final dot.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Arc<Self> {
        let mesh_names = Self::default();
        mesh_names.replace(names);
        Arc::new(mesh_names)
    }

    /// Takes other names from now on.
    pub fn replace<'a>(&self, names: impl IntoIterator<Item = &'a str>) {
        self.0.store(Arc::new(names.into_iter().map(str::to_ascii_lowercase).collect()));
    }

    fn contains(&self, name: &str) -> bool {
        self.0.load().contains(name)
    }
}

/// Answers on these sockets, on the resolver's runtime, until the server is dropped.
pub fn serve(
    udp: Vec<UdpSocket>,
    tcp: Vec<TcpListener>,
    resolver: Arc<Resolver>,
    mesh_names: Arc<MeshNames>,
) -> io::Result<Server> {
    let handle = resolver.handle().clone();
    Server::start(&handle, udp, tcp, Arc::new(Capture { resolver, mesh_names }))
}

struct Capture {
    resolver: Arc<Resolver>,
    mesh_names: Arc<MeshNames>,
}

impl Answerer for Capture {
    async fn answer(&self, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
        if !wire::is_query(query) {
            return None;
        }
        if let Ok(message) = wire::read_query(query)
            && let Some(reply) = self.cached(&message).await
        {
            return wire::encode(&reply, &message, transport);
        }
        match forward::forward(&self.resolver.asker(), query, transport).await {
            Some(answer) => Some(answer),
            None => wire::refusal(query, ResponseCode::ServFail),
        }
    }
}

impl Capture {
    /// The answer to a question for an address of a mesh name. Where the cache knows none at all,
    /// the servers say so better, with their SOA.
    async fn cached(&self, query: &Message) -> Option<Message> {
        let [question] = query.queries.as_slice() else { return None };
        let wanted: fn(&IpAddr) -> bool = match question.query_type {
            RecordType::A => IpAddr::is_ipv4,
            RecordType::AAAA => IpAddr::is_ipv6,
            _ => return None,
        };
        if query.metadata.op_code != OpCode::Query || question.query_class != DNSClass::IN {
            return None;
        }
        let name = question.name.to_ascii().to_ascii_lowercase();
        let name = name.strip_suffix('.').unwrap_or(&name);
        if !self.mesh_names.contains(name) {
            return None;
        }
        let answer = self.known(name).await?;
        if answer.addresses.is_empty() {
            return None;
        }
        let mut addresses: Vec<IpAddr> = answer.addresses.iter().copied().filter(wanted).collect();
        // As servers do: who takes the first is spread over all.
        let first = fastrand::usize(..addresses.len().max(1));
        addresses.rotate_left(first);
        let ttl = ttl_left(&answer, Instant::now());
        let mut reply = wire::reply_to(query);
        reply.add_answers(
            addresses
                .into_iter()
                .map(|address| Record::from_rdata(question.name.clone(), ttl, RData::from(address))),
        );
        Some(reply)
    }

    /// What the resolver knows, waiting for its first answer as long as one query may take.
    async fn known(&self, name: &str) -> Option<Answer> {
        let mut answer = self.resolver.watch(name);
        let limit: Duration = self.resolver.asker().resolution_timeout;
        let first = timeout(limit, answer.wait_for(|answer| answer.state != State::Pending)).await;
        first.ok()?.ok().map(|answer| answer.clone())
    }
}

/// Whole seconds that an answer may still be kept.
fn ttl_left(answer: &Answer, now: Instant) -> u32 {
    if matches!(answer.state, State::Stale { .. }) {
        return STALE_TTL;
    }
    let left = answer.expires.map_or(Duration::ZERO, |expires| expires.saturating_duration_since(now));
    u32::try_from(left.as_secs()).unwrap_or(u32::MAX)
}
