//! Where an upstream's endpoints come from, behind one interface: balance and pool do not know
//! which.

use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Answer, Resolver, State};
use crate::config::units::{EndpointName, Host, HostPort};

/// One endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its share beside the others; 1 where the source gives none.
    pub weight: u32,
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
    /// Names, each with the port that its addresses listen on, and addresses among them.
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
    pub fn has_port(&self, port: u16) -> bool {
        match self {
            EndpointSource::Static(targets) => targets.iter().any(|target| target.address.port() == port),
            EndpointSource::Dns(hosts) => hosts.iter().any(|name| match name {
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
            EndpointSource::Dns(hosts) => {
                let parts: Vec<Part> = hosts.iter().map(|host| Part::watch(host, resolver)).collect();
                let (sender, receiver) = watch::channel(merge(&parts));
                resolver.handle().spawn(follow(parts, sender));
                receiver
            }
        }
    }
}

/// One name of a source.
struct Part {
    port: u16,
    answer: watch::Receiver<Answer>,
}

impl Part {
    fn watch(name: &EndpointName, resolver: &Arc<Resolver>) -> Self {
        let EndpointName::At(host) = name else {
            return Self { port: 0, answer: resolver.constant(Answer::pending()) };
        };
        let answer = match &host.host {
            Host::Name(name) => resolver.watch(name),
            Host::Address(address) => resolver.constant(Answer::literal(*address)),
        };
        Self { port: host.port, answer }
    }
}

/// Carries changes of the names to the source's watchers, until there are none.
async fn follow(mut parts: Vec<Part>, sender: watch::Sender<Resolution>) {
    loop {
        let next = {
            let mut changes: FuturesUnordered<_> =
                parts.iter_mut().map(|part| part.answer.changed()).collect();
            tokio::select! {
                Some(change) = changes.next() => change,
                () = sender.closed() => return,
            }
        };
        if next.is_err() {
            return;
        }
        let mut resolution = merge(&parts);
        sender.send_if_modified(|known| {
            let changed = known.endpoints != resolution.endpoints || known.state != resolution.state;
            if known.endpoints == resolution.endpoints {
                resolution.endpoints = known.endpoints.clone();
            }
            *known = resolution;
            changed
        });
    }
}

/// All endpoints together. Names without an answer take nothing from those with one.
fn merge(parts: &[Part]) -> Resolution {
    let answers: Vec<Answer> = parts.iter().map(|part| part.answer.borrow().clone()).collect();
    let mut endpoints: Vec<Target> = parts
        .iter()
        .zip(&answers)
        .flat_map(|(part, answer)| answer.addresses.iter().map(|ip| SocketAddr::new(*ip, part.port)))
        .map(|address| Target { address, weight: 1 })
        .collect();
    keep_first(&mut endpoints);
    let serves = |answer: &&Answer| endpoints.is_empty() || !answer.addresses.is_empty();
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
            Some(Target { address: SocketAddr::new(*ip, *port), weight: 1 })
        }
        _ => None,
    }
}

fn keep_first(targets: &mut Vec<Target>) {
    let mut seen = std::collections::HashSet::with_capacity(targets.len());
    targets.retain(|target| seen.insert(target.address));
}
