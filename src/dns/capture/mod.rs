//! The pod's own queries, redirected to us: names of the mesh are answered from the resolver, with
//! what is left of their TTL; everything else from a cache, or by the servers, whatever its type.
//!
//! A search list makes several queries of every name. Those for names that do not exist end in the
//! cache, and a full name that stands for one of the mesh is known as that. What is not done is to
//! answer the first of them with an alias to the last, as some servers offer: it spares queries by
//! saying that there is a name which there is not.
//!
//! Bounded: the cache in bytes, the queries to servers in number, and an answer by what the client's
//! datagram holds. Nothing here panics on any bytes.

mod cache;
mod counters;
mod lookup;
mod message;
mod question;

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use hickory_resolver::proto::op::ResponseCode;
use tokio::time::{Instant, timeout};

use self::lookup::{Given, Lookup};
use self::message::{Age, Reply, STALE_TTL};
use self::question::{Asked, Question};
use super::server::{Answerer, Server, Transport};
use super::{Answer, Resolver, State, wire};
use crate::config::model;

pub use self::counters::CaptureSnapshot;

const A: u16 = 1;
const AAAA: u16 = 28;

/// What answers the pod.
pub struct Capture {
    resolver: Arc<Resolver>,
    /// The names that the resolver answers for, in lower case.
    mesh_names: ArcSwap<HashSet<String>>,
    lookup: Arc<Lookup>,
}

impl Capture {
    /// Knows no name of the mesh yet.
    pub fn new(config: &model::Dns, resolver: Arc<Resolver>) -> Arc<Self> {
        let lookup = Lookup::new(config, resolver.clone());
        Arc::new(Self { resolver, mesh_names: ArcSwap::default(), lookup })
    }

    /// Answers on these sockets, on the resolver's runtime, until the server is dropped.
    pub fn serve(self: &Arc<Self>, udp: Vec<UdpSocket>, tcp: Vec<TcpListener>) -> io::Result<Server> {
        Server::start(self.resolver.handle(), udp, tcp, self.clone())
    }

    /// Takes these names of the mesh from now on: in any case, without a final dot.
    pub fn replace_names<'a>(&self, names: impl IntoIterator<Item = &'a str>) {
        self.mesh_names.store(Arc::new(names.into_iter().map(str::to_ascii_lowercase).collect()));
    }

    /// Takes another configuration. What servers said is asked for again as it is wanted, and
    /// serves on where they do not answer.
    pub fn reconfigure(&self, config: &model::Dns) {
        self.lookup.reconfigure(config);
    }

    /// What became of the pod's queries.
    pub fn snapshot(&self) -> CaptureSnapshot {
        self.lookup.snapshot()
    }

    async fn answer_question(
        &self,
        message: &[u8],
        question: &Question<'_>,
        transport: Transport,
    ) -> Option<Vec<u8>> {
        if let Some(reply) = self.mesh_reply(question).await {
            self.lookup.counters.mesh.add();
            return Some(reply.to(question, Age::Seconds(0), transport));
        }
        let Some(key) = question.key() else {
            return match self.lookup.pass(message, transport).await {
                Some(answer) => Some(message::pass(answer, question, transport)),
                None => message::refuse(message, question, ResponseCode::ServFail),
            };
        };
        match self.lookup.look_up(key).await {
            Given::Reply(reply, age) => Some(reply.to(question, age, transport)),
            Given::Raw(answer) => Some(message::pass(answer.to_vec(), question, transport)),
            Given::Failed(code) => message::refuse(message, question, code),
        }
    }

    /// The answer to a question for an address of a mesh name. Where the resolver knows none at
    /// all, the servers say so better, with their SOA.
    async fn mesh_reply(&self, question: &Question<'_>) -> Option<Reply> {
        let (wanted, family): (fn(&IpAddr) -> bool, usize) = match question.kind() {
            A => (IpAddr::is_ipv4, 0),
            AAAA => (IpAddr::is_ipv6, 1),
            _ => return None,
        };
        let name = self.mesh_name(question.host()?)?;
        let answer = self.known(&name).await?;
        // Of a family that is being asked for the first time, nothing is said yet. Where nobody answers for
        // it, the other one is all there is: a client that waits for both is not kept waiting.
        if answer.addresses.is_empty() || !answer.families[family] {
            return None;
        }
        let mut addresses: Vec<IpAddr> = answer.addresses.iter().copied().filter(wanted).collect();
        // As servers do: who takes the first is spread over all.
        let first = fastrand::usize(..addresses.len().max(1));
        addresses.rotate_left(first);
        let records = addresses.into_iter().map(|address| match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        });
        Some(Reply::of_records(question.spelled(), ttl_left(&answer, Instant::now()), records))
    }

    /// The name of the mesh that a name is, or that the search list made it of.
    fn mesh_name(&self, name: String) -> Option<String> {
        let names = self.mesh_names.load();
        if names.contains(&name) {
            return Some(name);
        }
        self.resolver.meant_by(&name).filter(|meant| names.contains(meant))
    }

    /// What the resolver knows, waiting for its first answer as long as that may take.
    async fn known(&self, name: &str) -> Option<Answer> {
        let mut answer = self.resolver.watch(name);
        let limit: Duration = self.resolver.asker().resolution_timeout;
        let first = timeout(limit, answer.wait_for(|answer| answer.state != State::Pending)).await;
        first.ok()?.ok().map(|answer| answer.clone())
    }
}

impl Answerer for Capture {
    async fn answer(&self, message: &[u8], transport: Transport) -> Option<Vec<u8>> {
        // To a response, an answer could only feed a loop.
        if !wire::is_query(message) {
            return None;
        }
        match question::read(message) {
            Asked::Question(question) => self.answer_question(message, &question, transport).await,
            Asked::Refused(code) => {
                self.lookup.counters.failed.add();
                wire::refusal(message, code)
            }
            Asked::Other => match self.lookup.pass(message, transport).await {
                Some(answer) => Some(message::pass_other(answer, message, transport)),
                None => wire::refusal(message, ResponseCode::ServFail),
            },
        }
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
