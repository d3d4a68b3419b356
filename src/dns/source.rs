//! Where an upstream's endpoints come from, behind one interface: balance and pool do not know
//! which.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::{Answer, Resolver, State, family};
use crate::config::units::{EndpointName, Host, HostPort};
use crate::error::Reason;

/// Targets of one source's services that are asked for. A server that names more gives their addresses
/// along, as the mesh's endpoint zone does.
const TARGETS: usize = 256;

/// How long a source without an address for any of its services goes on with those that it had, where
/// servers say that there is none: they change names and addresses one after the other.
const MEANWHILE: Duration = Duration::from_secs(5);

/// One endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its share beside the others of the same priority; 1 where the source gives none.
    pub weight: u32,
    /// Endpoints of the least priority that can take a request take it.
    pub priority: u16,
    /// Another address of what is among the others already, of the other family: the way around,
    /// where those of the first cannot be reached.
    pub second: bool,
    /// The topology zone that it is in, where the source says so.
    pub zone: Option<Arc<str>>,
}

impl Target {
    /// An endpoint like all others.
    pub fn at(address: SocketAddr) -> Self {
        Self { address, weight: 1, priority: 0, second: false, zone: None }
    }
}

/// The endpoints as they are now.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolution {
    /// Without duplicates; in the order of the configuration's entries, and ascending within one
    /// name. The same `Arc` for as long as the set is the same.
    pub endpoints: Arc<[Target]>,
    /// When the first of them is past its TTL; `None` where none expires.
    pub expires: Option<Instant>,
    /// How far to trust them.
    pub state: State,
}

/// A source of endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndpointSource {
    /// A list that never changes.
    Static(Arc<[Target]>),
    /// Names, each with the port that its addresses listen on or of services that bring theirs
    /// along, and addresses among them.
    Dns(Arc<[EndpointName]>),
}

impl EndpointSource {
    /// The source that an upstream's `endpoints`, or its `address`, stand for.
    pub fn new(endpoints: &[EndpointName]) -> Self {
        let fixed: Option<Vec<Target>> = endpoints.iter().map(fixed).collect();
        match fixed {
            Some(mut targets) => {
                keep_first(&mut targets);
                EndpointSource::Static(targets.into())
            }
            None => EndpointSource::Dns(endpoints.into()),
        }
    }

    /// Whether an endpoint may listen on this port.
    pub fn may_have_port(&self, port: u16) -> bool {
        match self {
            EndpointSource::Static(targets) => targets.iter().any(|target| target.address.port() == port),
            EndpointSource::Dns(names) => names.iter().any(|name| match name {
                EndpointName::At(host) => host.port == port,
                EndpointName::Srv(_) => true,
            }),
        }
    }

    /// Watches the endpoints. The channel signals when the endpoints or the state change; `expires`
    /// moves silently with every refresh. It stays open while its receiver lives.
    pub fn subscribe(&self, resolver: &Arc<Resolver>) -> watch::Receiver<Resolution> {
        match self {
            EndpointSource::Static(targets) => resolver.constant(Resolution {
                endpoints: targets.clone(),
                expires: None,
                state: State::Fresh,
            }),
            EndpointSource::Dns(names) => {
                let parts: Vec<Part> = names.iter().map(|name| Part::watch(name, resolver)).collect();
                let (sender, receiver) = watch::channel(merge(&parts));
                resolver.handle().spawn(follow(parts, resolver.clone(), sender));
                receiver
            }
        }
    }
}

/// One name of a source.
enum Part {
    /// Addresses that listen on a port.
    Addresses { port: u16, answer: watch::Receiver<Answer> },
    /// Services, and the addresses of those targets that came without.
    Services {
        answer: watch::Receiver<Answer>,
        targets: BTreeMap<Arc<str>, watch::Receiver<Answer>>,
        /// How many targets are not asked for, being beyond [`TARGETS`].
        left_out: usize,
    },
}

impl Part {
    fn watch(name: &EndpointName, resolver: &Arc<Resolver>) -> Self {
        match name {
            EndpointName::Srv(name) => {
                let answer = resolver.watch_services(name);
                Part::Services { answer, targets: BTreeMap::new(), left_out: 0 }
            }
            EndpointName::At(HostPort { host, port }) => {
                let answer = match host {
                    Host::Name(name) => resolver.watch(name),
                    Host::Address(address) => resolver.constant(Answer::literal(*address)),
                };
                Part::Addresses { port: *port, answer }
            }
        }
    }

    /// Watches the targets that the services name now, and no others.
    fn follow_targets(&mut self, resolver: &Arc<Resolver>) {
        let Part::Services { answer, targets, left_out } = self else { return };
        let services = answer.borrow_and_update().services.clone();
        let mut seen = HashSet::new();
        let unknown = services.iter().filter(|service| service.addresses.is_empty());
        let unknown = unknown.map(|service| &service.target).filter(|target| seen.insert(*target));
        let unknown: Vec<&Arc<str>> = unknown.collect();
        let (wanted, beyond) = unknown.split_at(unknown.len().min(TARGETS));
        if std::mem::replace(left_out, beyond.len()) != beyond.len()
            && let Some(first) = beyond.first()
        {
            tracing::warn!(
                %first,
                left_out = beyond.len(),
                "more than {TARGETS} targets whose server gives no addresses along are not asked for"
            );
        }
        targets.retain(|target, _| wanted.contains(&target));
        for &target in wanted {
            if !targets.contains_key(target) {
                // A target is a full name: no search list applies to it.
                targets.insert(target.clone(), resolver.watch(&format!("{target}.")));
            }
        }
    }

    /// Whether it knows of services, wherever they are.
    fn has_services(&self) -> bool {
        matches!(self, Part::Services { answer, .. } if !answer.borrow().services.is_empty())
    }

    fn receivers(&mut self) -> Box<dyn Iterator<Item = &mut watch::Receiver<Answer>> + Send + '_> {
        match self {
            Part::Addresses { answer, .. } => Box::new(std::iter::once(answer)),
            Part::Services { answer, targets, .. } => {
                Box::new(std::iter::once(answer).chain(targets.values_mut()))
            }
        }
    }

    /// The endpoints, and each answer that they come from.
    fn endpoints(&self, into: &mut Vec<Target>) -> Vec<Answer> {
        match self {
            Part::Addresses { port, answer } => {
                let answer = answer.borrow().clone();
                into.extend(at(&answer.addresses, *port));
                vec![answer]
            }
            Part::Services { answer, targets, .. } => {
                let answer = answer.borrow().clone();
                let mut answers = Vec::with_capacity(1 + targets.len());
                for service in answer.services.iter() {
                    let known = targets.get(&service.target).map(|target| target.borrow().clone());
                    let addresses = known.as_ref().map_or(&service.addresses, |known| &known.addresses);
                    let zone = zone(&service.target);
                    into.extend(at(addresses, service.port).map(|target| Target {
                        // A weight of 0 is a very small share (RFC 2782), and not none.
                        weight: u32::from(service.weight).max(1),
                        priority: service.priority,
                        zone: zone.clone(),
                        ..target
                    }));
                    answers.extend(known);
                }
                answers.push(answer);
                answers
            }
        }
    }
}

/// Endpoints at the addresses of one host.
fn at(addresses: &[IpAddr], port: u16) -> impl Iterator<Item = Target> {
    let second = family::second(addresses);
    addresses.iter().map(move |ip| Target { second: second(ip), ..Target::at(SocketAddr::new(*ip, port)) })
}

/// The zone in a target's name of the mesh's endpoint zone: `10-0-0-7.zone-a.orders.shop.endpoints.mesh`.
fn zone(target: &str) -> Option<Arc<str>> {
    target.split('.').nth(1)?.strip_prefix("zone-").map(Into::into)
}

/// Carries changes of the names to the source's watchers, until there are none.
async fn follow(mut parts: Vec<Part>, resolver: Arc<Resolver>, sender: watch::Sender<Resolution>) {
    let mut bare: Option<Instant> = None;
    loop {
        parts.iter_mut().for_each(|part| part.follow_targets(&resolver));
        let mut resolution = merge(&parts);
        let has_services = parts.iter().any(Part::has_services);
        if has_services && resolution.endpoints.is_empty() {
            bare.get_or_insert_with(Instant::now);
        } else {
            bare = None;
        }
        let mut until = None;
        sender.send_if_modified(|known| {
            if let (Some(since), false) = (bare, known.endpoints.is_empty()) {
                // Other services took the place of those there were, and nobody knows their addresses
                // yet: what there was serves on.
                let (limit, why) = match &resolution.state {
                    State::Failed { reason: Reason::DnsNoAnswer, why } => (resolver.stale(), why.clone()),
                    State::Failed { why, .. } => (MEANWHILE, why.clone()),
                    _ => return false,
                };
                if since.elapsed() < limit {
                    until = Some(since + limit);
                    resolution.state = State::Stale { why };
                    resolution.endpoints = known.endpoints.clone();
                }
            }
            let changed = known.endpoints != resolution.endpoints || known.state != resolution.state;
            if known.endpoints == resolution.endpoints {
                resolution.endpoints = known.endpoints.clone();
            }
            *known = resolution;
            changed
        });
        let next = {
            let mut changes: FuturesUnordered<_> =
                parts.iter_mut().flat_map(Part::receivers).map(|answer| answer.changed()).collect();
            tokio::select! {
                Some(change) = changes.next() => change,
                () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => Ok(()),
                () = sender.closed() => return,
            }
        };
        if next.is_err() {
            return;
        }
    }
}

/// All endpoints together. Names without an answer take nothing from those with one.
fn merge(parts: &[Part]) -> Resolution {
    let mut endpoints = Vec::new();
    let answers: Vec<Answer> = parts.iter().flat_map(|part| part.endpoints(&mut endpoints)).collect();
    keep_first(&mut endpoints);
    let has = |answer: &Answer| !answer.addresses.is_empty() || !answer.services.is_empty();
    let serves = |answer: &&Answer| endpoints.is_empty() || has(answer);
    let state = answers.iter().filter(serves).map(|answer| &answer.state).max_by_key(|state| rank(state));
    Resolution {
        expires: answers.iter().filter_map(|answer| answer.expires).min(),
        state: state.cloned().unwrap_or(State::Pending),
        endpoints: endpoints.into(),
    }
}

/// Which of several states speaks for all: the worst that still serves, or, where none serves, that
/// an answer may yet come.
fn rank(state: &State) -> u8 {
    match state {
        State::Fresh => 0,
        State::Failed { .. } => 1,
        State::Stale { .. } => 2,
        State::Pending => 3,
    }
}

fn fixed(endpoint: &EndpointName) -> Option<Target> {
    match endpoint {
        EndpointName::At(HostPort { host: Host::Address(ip), port }) => {
            Some(Target::at(SocketAddr::new(*ip, *port)))
        }
        _ => None,
    }
}

/// Of several at one address, the first.
fn keep_first(targets: &mut Vec<Target>) {
    let mut seen = HashSet::with_capacity(targets.len());
    targets.retain(|target| seen.insert(target.address));
}
