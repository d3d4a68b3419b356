//! The servers that are asked: which of them, in which order, and how each has done.
//!
//! hickory sends the queries, with a fresh port and id each, EDNS, and TCP where an answer was
//! truncated. It caches nothing, and it never sees more than one server: whether a name is denied or
//! nobody could say is decided here, since [`super::record`] depends on it.
//!
//! A server that is silent is asked last until a pause is over, which grows while it stays so. What is
//! slow is not waited for: the next one is asked beside it, and the first that has what was asked for
//! counts. That there is none is believed only once no server that was asked before may still say
//! otherwise. Servers of a domain of their own are asked for its names, and no others are.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{Name, RecordType};
use serde::Serialize;
use tokio::time::{Instant, sleep, timeout};

use super::meaning::{self, Edns, Meaning, Trouble};
use super::record::{Kind, Outcome};
use super::system::ConfigError;

/// The part of its time after which a silent server is helped by the next.
const PATIENCE: u32 = 4;

/// How long a server that was silent is asked last: doubled each time it is so again.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Servers, for every name and for the names of some domains.
pub(super) struct Servers {
    /// The longest domain first.
    domains: Vec<(Name, Group)>,
    others: Group,
}

/// How queries are sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Manner {
    /// For one query to one server.
    pub(super) timeout: Duration,
    pub(super) mixed_case: bool,
    /// TCP alone.
    pub(super) tcp: bool,
    /// Not always the first server first.
    pub(super) rotate: bool,
}

struct Group {
    servers: Vec<Arc<Server>>,
    manner: Manner,
    turn: AtomicUsize,
}

/// One server.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    resolver: TokioResolver,
    /// As `resolver`, for a server from before EDNS (RFC 6891 section 7).
    plain: TokioResolver,
    known: Arc<Known>,
}

/// How a server has done: kept while the configuration changes around it.
#[derive(Debug, Default)]
pub(super) struct Known {
    queries: AtomicU64,
    found: AtomicU64,
    denied: AtomicU64,
    troubles: [AtomicU64; Trouble::ALL.len()],
    /// It has answered a query with EDNS.
    reads_edns: AtomicBool,
    /// It has shown that it cannot read EDNS.
    no_edns: AtomicBool,
    doubt: Mutex<Doubt>,
}

#[derive(Debug, Default)]
struct Doubt {
    failures: u32,
    until: Option<Instant>,
}

/// How a server has done, as an operator sees it.
#[derive(Debug, Clone, Serialize)]
pub struct ServerSnapshot {
    /// Where it is.
    pub address: SocketAddr,
    /// Queries sent to it.
    pub queries: u64,
    /// Answers with what was asked for.
    pub found: u64,
    /// Answers that there is none: NXDOMAIN and NODATA.
    pub denied: u64,
    /// What brought neither, by kind: `timeout`, `unreachable`, `servfail`, `refused`, `malformed`.
    pub failures: std::collections::BTreeMap<&'static str, u64>,
    /// It was silent, and is asked last for now.
    pub asked_last: bool,
}

/// What is made of a server's answer.
pub(super) enum Taken<T> {
    /// It has what was asked for.
    Found(T),
    /// It says that there is none: true unless a server that was asked before says otherwise.
    Denied(T),
    /// It says nothing.
    Nothing,
}

/// Every server that was asked failed.
pub(super) struct Failure {
    pub(super) why: String,
    /// None of them said anything at all.
    pub(super) silent: bool,
}

impl Servers {
    /// `known` says what is known of a server already.
    pub(super) fn new(
        others: &[SocketAddr],
        domains: impl IntoIterator<Item = (Name, Vec<SocketAddr>)>,
        manner: Manner,
        known: impl Fn(SocketAddr) -> Arc<Known>,
    ) -> Result<Self, ConfigError> {
        let group = |addresses: &[SocketAddr]| {
            let server = |address: &SocketAddr| Server::new(*address, &manner, known(*address)).map(Arc::new);
            let servers = addresses.iter().map(server).collect::<Result<_, _>>()?;
            Ok(Group { servers, manner, turn: AtomicUsize::new(0) })
        };
        let mut domains: Vec<(Name, Group)> = domains
            .into_iter()
            .map(|(domain, addresses)| Ok((domain, group(&addresses)?)))
            .collect::<Result<_, ConfigError>>()?;
        domains.sort_by_key(|(domain, _)| std::cmp::Reverse(domain.num_labels()));
        Ok(Self { domains, others: group(others)? })
    }

    /// Asks the servers of a name until one answers.
    pub(super) async fn ask(&self, name: &Name, kind: Kind) -> Result<Outcome, Failure> {
        let limit = self.timeout();
        let mut failure = Failure { why: String::new(), silent: true };
        let ask = |server: Arc<Server>| async move { server.ask(name, kind.record_type(), limit).await };
        let take = |server: &Server, answer| match meaning::of(answer, name, kind) {
            Meaning::Found { records, ttl } => {
                server.known.answered(&server.known.found);
                Taken::Found(Outcome::Found { records, ttl })
            }
            Meaning::Denied { what, ttl } => {
                server.known.answered(&server.known.denied);
                let why = meaning::denial(server.address, name, kind, what).into();
                Taken::Denied(Outcome::Denied { what, ttl, why, sure: true })
            }
            Meaning::Failed { trouble, error } => {
                server.known.failed(trouble);
                failure.silent &= trouble.is_silence();
                if !failure.why.is_empty() {
                    failure.why.push_str("; ");
                }
                let complaint = meaning::complaint(server.address, name, kind, trouble, &error, limit);
                failure.why.push_str(&complaint);
                Taken::Nothing
            }
        };
        let outcome = self.race(name, ask, take).await;
        match outcome {
            // What one server denies while another is silent may be what only that other knows.
            Some(Outcome::Denied { what, ttl, why, .. }) => {
                let sure = failure.why.is_empty() && self.group(name).are_all_heard();
                Ok(Outcome::Denied { what, ttl, why, sure })
            }
            Some(outcome) => Ok(outcome),
            None => Err(failure),
        }
    }

    /// Has the servers of a name asked, each once: the next one when one has failed, or beside one that is
    /// slow. Ends with the first answer in which `take` finds what was asked for; else with a denial, once
    /// nobody is waited for who was asked before; else with nothing.
    pub(super) async fn race<F, T>(
        &self,
        name: &Name,
        ask: impl Fn(Arc<Server>) -> F,
        mut take: impl FnMut(&Server, F::Output) -> Taken<T>,
    ) -> Option<T>
    where
        F: Future + Send,
        F::Output: Send,
    {
        let patience = self.timeout() / PATIENCE;
        let mut next = self.group(name).in_order().into_iter();
        let mut asked: Vec<Arc<Server>> = Vec::new();
        let mut waiting = FuturesUnordered::new();
        let mut denied = None;
        loop {
            match if denied.is_none() { next.next() } else { None } {
                Some(server) => {
                    asked.push(server.clone());
                    let answer = ask(server.clone());
                    waiting.push(async move { (server, answer.await) });
                }
                None if waiting.is_empty() => return denied,
                None => {}
            }
            let more = denied.is_none() && next.len() > 0;
            // Until one has failed, or the last one has had its time to itself.
            tokio::select! {
                Some((server, answer)) = waiting.next() => {
                    let at = asked.iter().position(|asked| Arc::ptr_eq(asked, &server)).unwrap_or(0);
                    asked.remove(at);
                    match take(&server, answer) {
                        Taken::Found(found) => {
                            // Those that it has overtaken were silent for their part of the time.
                            asked.iter().for_each(|slow| slow.known.doubted());
                            return Some(found);
                        }
                        Taken::Denied(none) if at == 0 && denied.is_none() => return Some(none),
                        Taken::Denied(none) => denied = denied.or(Some(none)),
                        Taken::Nothing => {}
                    }
                }
                () = sleep(patience), if more => {}
            }
        }
    }

    /// How long one query to one server may take.
    pub(super) fn timeout(&self) -> Duration {
        self.others.manner.timeout
    }

    /// Whether they are asked over TCP alone.
    pub(super) fn tcp(&self) -> bool {
        self.others.manner.tcp
    }

    /// Every server once.
    pub(super) fn snapshot(&self) -> Vec<ServerSnapshot> {
        let groups = std::iter::once(&self.others).chain(self.domains.iter().map(|(_, group)| group));
        let mut all: Vec<ServerSnapshot> = Vec::new();
        for server in groups.flat_map(|group| &group.servers) {
            if all.iter().all(|known| known.address != server.address) {
                all.push(server.known.snapshot(server.address));
            }
        }
        all
    }

    #[cfg(test)]
    fn in_order(&self, name: &Name) -> Vec<Arc<Server>> {
        self.group(name).in_order()
    }

    fn group(&self, name: &Name) -> &Group {
        let own = self.domains.iter().find(|(domain, _)| domain.zone_of(name));
        own.map_or(&self.others, |(_, group)| group)
    }
}

impl Group {
    /// In the configuration's order, or from the next one on where they take turns; those that failed
    /// last, the one whose pause ends first before the others.
    fn in_order(&self) -> Vec<Arc<Server>> {
        let now = Instant::now();
        let mut order = self.servers.clone();
        if self.manner.rotate && !order.is_empty() {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed) % order.len();
            order.rotate_left(turn);
        }
        order.sort_by_key(|server| server.known.pause(now));
        order
    }

    /// Whether none of them was silent lately.
    fn are_all_heard(&self) -> bool {
        let now = Instant::now();
        self.servers.iter().all(|server| server.known.pause(now).is_zero())
    }
}

impl Server {
    fn new(address: SocketAddr, manner: &Manner, known: Arc<Known>) -> Result<Self, ConfigError> {
        let mut server = match manner.tcp {
            true => NameServerConfig::tcp(address.ip()),
            false => NameServerConfig::udp_and_tcp(address.ip()),
        };
        for connection in &mut server.connections {
            connection.port = address.port();
        }
        let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
        let resolver = |edns| {
            let mut builder =
                TokioResolver::builder_with_config(config.clone(), TokioRuntimeProvider::default());
            let options: &mut ResolverOpts = builder.options_mut();
            options.timeout = manner.timeout;
            // Retries are ours, paced. Within its timeout hickory sends a lost datagram again.
            options.attempts = 0;
            options.cache_size = 0;
            options.use_hosts_file = ResolveHosts::Never;
            options.edns0 = edns;
            options.case_randomization = manner.mixed_case;
            builder.build().map_err(|source| ConfigError::Server { server: address, source })
        };
        Ok(Self { address, resolver: resolver(true)?, plain: resolver(false)?, known })
    }

    async fn ask(&self, name: &Name, kind: RecordType, limit: Duration) -> Result<Lookup, NetError> {
        self.known.asked();
        let answer = async {
            match self.known.no_edns.load(Ordering::Relaxed) {
                false => self.ask_with_edns(name, kind, limit / 2).await,
                true => self.ask_without(name, kind).await,
            }
        };
        timeout(limit, answer).await.unwrap_or(Err(NetError::Timeout))
    }

    /// Asks with EDNS, and then without it a server that says that it cannot read it. One that has never
    /// answered with it is asked without it beside, once it has been silent for `patience`: some drop what
    /// they cannot read, and a complaint that does not repeat the question is passed over as forged.
    async fn ask_with_edns(
        &self,
        name: &Name,
        kind: RecordType,
        patience: Duration,
    ) -> Result<Lookup, NetError> {
        let mut lookup = std::pin::pin!(self.resolver.lookup(name.clone(), kind));
        let answer = if self.known.reads_edns.load(Ordering::Relaxed) {
            lookup.await
        } else {
            tokio::select! {
                biased;
                answer = &mut lookup => answer,
                answer = async { sleep(patience).await; self.ask_without(name, kind).await } => return answer,
            }
        };
        match meaning::edns(&answer) {
            Edns::Read => self.known.reads_edns.store(true, Ordering::Relaxed),
            Edns::Unread => return self.ask_without(name, kind).await,
            Edns::Unsaid => {}
        }
        answer
    }

    async fn ask_without(&self, name: &Name, kind: RecordType) -> Result<Lookup, NetError> {
        let answer = self.plain.lookup(name.clone(), kind).await;
        let speaks = matches!(meaning::edns(&answer), Edns::Read);
        self.known.no_edns.store(speaks, Ordering::Relaxed);
        answer
    }

    /// How it has done.
    pub(super) fn known(&self) -> &Known {
        &self.known
    }
}

impl Known {
    /// Notes a query that was sent by others than this module.
    pub(super) fn asked(&self) {
        self.queries.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes an answer that was passed on as it is.
    pub(super) fn passed_on(&self, is_denial: bool) {
        self.answered(if is_denial { &self.denied } else { &self.found });
    }

    fn answered(&self, count: &AtomicU64) {
        count.fetch_add(1, Ordering::Relaxed);
        *self.doubt() = Doubt::default();
    }

    /// Notes a query that brought nothing.
    pub(super) fn failed(&self, trouble: Trouble) {
        self.troubles[trouble as usize].fetch_add(1, Ordering::Relaxed);
        // What one name fails with says nothing of the others.
        if trouble.is_silence() {
            self.doubted();
        }
    }

    /// Notes that others answered sooner, or that it brought nothing.
    fn doubted(&self) {
        let now = Instant::now();
        let mut doubt = self.doubt();
        // Queries that fail together are one failure.
        if doubt.until.is_none_or(|until| until <= now) {
            let pause = FIRST_PAUSE.saturating_mul(1 << doubt.failures.min(10)).min(LONGEST_PAUSE);
            doubt.failures = doubt.failures.saturating_add(1);
            doubt.until = Some(now + pause.mul_f64(0.80 + 0.20 * fastrand::f64()));
        }
    }

    /// How long it is still asked last.
    fn pause(&self, now: Instant) -> Duration {
        self.doubt().until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now))
    }

    fn doubt(&self) -> std::sync::MutexGuard<'_, Doubt> {
        self.doubt.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn snapshot(&self, address: SocketAddr) -> ServerSnapshot {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let failures = Trouble::ALL.iter().zip(&self.troubles);
        ServerSnapshot {
            address,
            queries: count(&self.queries),
            found: count(&self.found),
            denied: count(&self.denied),
            failures: failures.map(|(trouble, times)| (trouble.name(), count(times))).collect(),
            asked_last: !self.pause(Instant::now()).is_zero(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANNER: Manner =
        Manner { timeout: Duration::from_secs(2), mixed_case: false, tcp: false, rotate: false };

    fn servers(manner: Manner, domains: &[(&str, &[&str])]) -> Servers {
        let list = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
        let domains = domains.iter().map(|(domain, servers)| (name(domain), list(servers)));
        let others = list(&["10.0.0.1:53", "10.0.0.2:53", "10.0.0.3:53"]);
        Servers::new(&others, domains, manner, |_| Arc::default()).unwrap()
    }

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn order(servers: &Servers, of: &str) -> Vec<String> {
        servers.in_order(&name(of)).iter().map(|server| server.address.ip().to_string()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_server_is_asked_last_until_its_pause_is_over() {
        let servers = servers(MANNER, &[]);
        assert_eq!(order(&servers, "a."), ["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
        let first = servers.in_order(&name("a.")).remove(0);
        first.known.failed(Trouble::Timeout);
        assert_eq!(order(&servers, "a."), ["10.0.0.2", "10.0.0.3", "10.0.0.1"]);
        tokio::time::advance(FIRST_PAUSE).await;
        assert_eq!(order(&servers, "a.")[0], "10.0.0.1", "it gets another chance");
        first.known.failed(Trouble::Unreachable);
        tokio::time::advance(FIRST_PAUSE).await;
        assert_eq!(order(&servers, "a.")[0], "10.0.0.2", "its second pause is longer");
        first.known.passed_on(false);
        assert_eq!(order(&servers, "a.")[0], "10.0.0.1");
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_counted_by_kind() {
        let servers = servers(MANNER, &[]);
        let first = servers.in_order(&name("a.")).remove(0);
        for trouble in [Trouble::ServFail, Trouble::Refused, Trouble::ServFail] {
            first.known.failed(trouble);
        }
        let snapshot = servers.snapshot().remove(0);
        assert_eq!((snapshot.failures["servfail"], snapshot.failures["timeout"]), (2, 0));
        assert!(!snapshot.asked_last, "it speaks");
    }

    #[tokio::test]
    async fn servers_take_turns_where_the_system_says_so() {
        let servers = servers(Manner { rotate: true, ..MANNER }, &[]);
        let firsts: Vec<String> = (0..4).map(|_| order(&servers, "a.").remove(0)).collect();
        assert_eq!(firsts, ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.1"]);
    }

    #[tokio::test]
    async fn a_domain_has_servers_of_its_own() {
        let own: &[(&str, &[&str])] = &[("mesh.", &["10.1.0.1:53"]), ("zone.mesh.", &["10.2.0.1:53"])];
        let servers = servers(MANNER, own);
        assert_eq!(order(&servers, "orders.shop.Mesh."), ["10.1.0.1"]);
        assert_eq!(order(&servers, "orders.zone.mesh."), ["10.2.0.1"], "the longest domain");
        assert_eq!(order(&servers, "mesh.example.").len(), 3);
        assert_eq!(servers.snapshot().len(), 5);
    }
}
