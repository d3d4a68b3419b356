//! Asks DNS servers: which servers, which names a search list makes of one, `/etc/hosts`, and what
//! an answer means.
//!
//! hickory sends the queries, with a fresh port and id each, EDNS, and TCP where an answer was
//! truncated. It caches nothing, and it never sees the search list or more than one server: both
//! decide between "denied" and "failed", which is what [`super::record`] depends on.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use hickory_resolver::{TokioResolver, system_conf};

use super::hosts::HostsFile;
use super::record::{Bounds, Family, Found, Outcome};
use crate::config::model;

const RESOLV_CONF: &str = "/etc/resolv.conf";
const HOSTS: &str = "/etc/hosts";

/// The search list and the servers cannot be known.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// `/etc/resolv.conf` exists, but cannot be read.
    #[error("cannot read {path}: {source}; name the servers in `dns.servers`, or make it readable")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// `/etc/resolv.conf` makes no sense.
    #[error("{path} is not a resolver configuration: {source}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: NetError,
    },
    /// A resolver for a server could not be made.
    #[error("cannot ask DNS server {server}: {source}")]
    Server {
        /// The server.
        server: SocketAddr,
        /// Why.
        source: NetError,
    },
}

/// Everything that a query needs to know; replaced as a whole by a reload.
pub(super) struct Asker {
    pub(super) bounds: Bounds,
    pub(super) timeout: Duration,
    servers: Vec<Server>,
    /// The server that answered last, asked first.
    preferred: AtomicUsize,
    search: Vec<Name>,
    ndots: usize,
    hosts: HostsFile,
}

struct Server {
    address: SocketAddr,
    resolver: TokioResolver,
}

/// Queries sent to servers, and how many of them brought no answer.
#[derive(Debug, Default)]
pub(super) struct Totals {
    pub(super) queries: AtomicU64,
    pub(super) failures: AtomicU64,
    /// Refreshes that failed and left addresses in service past their TTL.
    pub(super) stale: AtomicU64,
}

/// A name, and the names that the search list makes of it, in the order to be tried.
pub(super) struct Names {
    /// As in the hosts file.
    plain: Option<Name>,
    candidates: Vec<Name>,
    /// What to say where it is no DNS name at all.
    malformed: Option<Arc<str>>,
}

impl Asker {
    pub(super) fn new(config: &model::Dns) -> Result<Self, ConfigError> {
        Self::with_files(config, Path::new(RESOLV_CONF), Path::new(HOSTS))
    }

    pub(super) fn with_files(
        config: &model::Dns,
        resolv_conf: &Path,
        hosts: &Path,
    ) -> Result<Self, ConfigError> {
        let (system, options) = read_resolv_conf(resolv_conf, !config.servers.is_empty())?;
        let addresses = if config.servers.is_empty() {
            system.name_servers().iter().map(|server| SocketAddr::new(server.ip, 53)).collect()
        } else {
            config.servers.clone()
        };
        let servers = addresses
            .into_iter()
            .map(|address| Server::new(address, config.timeout.0))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            bounds: Bounds { min_ttl: config.min_ttl.0, max_ttl: config.max_ttl.0, stale: config.stale.0 },
            timeout: config.timeout.0,
            servers,
            preferred: AtomicUsize::new(0),
            search: system.search().to_vec(),
            ndots: options.ndots,
            hosts: HostsFile::new(hosts),
        })
    }

    /// The servers, the one that answered last first.
    pub(super) fn servers(&self) -> impl Iterator<Item = (usize, SocketAddr)> {
        self.in_order().map(|(index, server)| (index, server.address))
    }

    /// Notes that a server answered.
    pub(super) fn prefer(&self, index: usize) {
        self.preferred.store(index, Ordering::Relaxed);
    }

    /// The names to try for `name`: by `ndots` and the search list, none of it with a final dot. A
    /// name that already ends in one of the list's domains is tried as it is first, which spares a
    /// cluster's DNS most of the queries that `ndots:5` costs it.
    pub(super) fn names(&self, name: &str) -> Names {
        let plain = match Name::from_ascii(name) {
            Ok(plain) => plain,
            Err(error) => {
                let why = format!("`{name}` is not a DNS name: {error}").into();
                return Names { plain: None, candidates: Vec::new(), malformed: Some(why) };
            }
        };
        let mut complete = plain.clone();
        complete.set_fqdn(true);
        let mut candidates = Vec::new();
        if plain.is_fqdn() {
            candidates.push(complete.clone());
        } else {
            // Labels less one are the dots that `ndots` counts.
            let complete_first = usize::from(plain.num_labels()) > self.ndots
                || complete.is_localhost()
                || self.search.iter().any(|domain| !domain.is_root() && domain.zone_of(&complete));
            let searched = self.search.iter().filter_map(|domain| plain.clone().append_domain(domain).ok());
            candidates.extend(complete_first.then(|| complete.clone()));
            candidates.extend(searched);
            candidates.extend((!complete_first).then(|| complete.clone()));
            let mut seen = Vec::with_capacity(candidates.len());
            candidates.retain(|name| {
                !seen.contains(name) && {
                    seen.push(name.clone());
                    true
                }
            });
        }
        Names { plain: Some(complete), candidates, malformed: None }
    }

    /// Asks for one family of addresses: the hosts file, then the anchor alone, or each name of
    /// the search list until one has addresses. A server that fails one of them does not end the
    /// search, as in glibc; silence does.
    pub(super) async fn resolve(
        &self,
        names: &Names,
        anchor: Option<usize>,
        family: Family,
        totals: &Totals,
    ) -> Found {
        if let Some(why) = &names.malformed {
            return nothing(Outcome::Denied { ttl: None, why: why.clone() });
        }
        if let Some(outcome) = names.plain.as_ref().and_then(|plain| self.hosts.look_up(plain, family)) {
            return nothing(outcome);
        }
        let range = anchor.map_or(0..names.candidates.len(), |index| index..index + 1);
        let mut failed = None;
        let mut denied = None;
        for candidate in range {
            match self.ask(&names.candidates[candidate], family, totals).await {
                Ok(outcome @ Outcome::Addresses { .. }) => {
                    return Found { outcome, candidate, certain: failed.is_none() };
                }
                Ok(outcome) => denied = Some(outcome),
                Err(failure) => {
                    let silent = failure.silent;
                    failed.get_or_insert(failure.why);
                    if silent {
                        break;
                    }
                }
            }
        }
        nothing(match (failed, denied) {
            (Some(why), _) => Outcome::Failed { why: why.into() },
            (None, Some(denied)) => denied,
            (None, None) => Outcome::Failed { why: "there is no server to ask".into() },
        })
    }

    /// Asks the servers in turn until one answers.
    async fn ask(&self, name: &Name, family: Family, totals: &Totals) -> Result<Outcome, Failure> {
        let kind = family.record_type();
        let mut failure = Failure { why: String::new(), silent: true };
        for (index, server) in self.in_order() {
            totals.queries.fetch_add(1, Ordering::Relaxed);
            let lookup = server.resolver.lookup(name.clone(), kind);
            let answer = match tokio::time::timeout(self.timeout, lookup).await {
                Ok(answer) => answer,
                Err(_) => Err(NetError::Timeout),
            };
            let error = match answer {
                Ok(lookup) => match chain(lookup.answers(), name, kind) {
                    Some((addresses, ttl)) => {
                        self.prefer(index);
                        return Ok(Outcome::Addresses { addresses, ttl });
                    }
                    None => NetError::Message("its answer has no address of that name"),
                },
                Err(error) => error,
            };
            if let Some((ttl, what)) = denial(&error) {
                self.prefer(index);
                let ttl = ttl.map(|ttl| Duration::from_secs(ttl.into()));
                let why = format!("{} says that {name} {what} ({kind})", server.address).into();
                return Ok(Outcome::Denied { ttl, why });
            }
            totals.failures.fetch_add(1, Ordering::Relaxed);
            failure.silent &= matches!(error, NetError::Timeout | NetError::Io(_) | NetError::NoConnections);
            if !failure.why.is_empty() {
                failure.why.push_str("; ");
            }
            failure.why.push_str(&self.complaint(server, name, kind, &error));
        }
        Err(failure)
    }

    fn complaint(&self, server: &Server, name: &Name, kind: RecordType, error: &NetError) -> String {
        let server = server.address;
        match error {
            NetError::Timeout => {
                format!("{server} did not answer within {:?} ({name} {kind})", self.timeout)
            }
            NetError::Dns(DnsError::ResponseCode(code)) => {
                format!("{server} answered {} ({name} {kind})", code.to_str())
            }
            error => format!("{server}: {error} ({name} {kind})"),
        }
    }

    fn in_order(&self) -> impl Iterator<Item = (usize, &Server)> {
        let first = self.preferred.load(Ordering::Relaxed);
        let count = self.servers.len();
        (0..count).map(move |i| (first + i) % count).map(|index| (index, &self.servers[index]))
    }
}

/// Every server that was asked failed.
struct Failure {
    why: String,
    /// None of them said anything at all.
    silent: bool,
}

impl Server {
    fn new(address: SocketAddr, timeout: Duration) -> Result<Self, ConfigError> {
        let mut server = NameServerConfig::udp_and_tcp(address.ip());
        for connection in &mut server.connections {
            connection.port = address.port();
        }
        let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        let options: &mut ResolverOpts = builder.options_mut();
        options.timeout = timeout;
        // Retries are ours, paced. Within its timeout hickory sends a lost datagram again.
        options.attempts = 0;
        options.cache_size = 0;
        options.use_hosts_file = ResolveHosts::Never;
        options.edns0 = true;
        let resolver = builder.build().map_err(|source| ConfigError::Server { server: address, source })?;
        Ok(Self { address, resolver })
    }
}

/// An outcome of no particular candidate.
fn nothing(outcome: Outcome) -> Found {
    Found { outcome, candidate: 0, certain: false }
}

/// The addresses at the end of the chain of aliases that begins at `name`, with the least TTL of
/// the whole chain.
fn chain(answers: &[Record], name: &Name, kind: RecordType) -> Option<(Vec<IpAddr>, Duration)> {
    let mut at = name;
    let mut ttl = u32::MAX;
    // As many steps as there are records: a loop of aliases ends.
    for _ in 0..=answers.len() {
        let records = answers.iter().filter(|record| record.name == *at && record.record_type() == kind);
        let mut addresses = Vec::new();
        for record in records {
            addresses.extend(record.data.ip_addr());
            ttl = ttl.min(record.ttl);
        }
        if !addresses.is_empty() {
            return Some((addresses, Duration::from_secs(ttl.into())));
        }
        let (target, alias_ttl) = answers.iter().find_map(|record| match &record.data {
            RData::CNAME(target) if record.name == *at => Some((&target.0, record.ttl)),
            _ => None,
        })?;
        ttl = ttl.min(alias_ttl);
        at = target;
    }
    None
}

/// Whether an error is a server's word that there is nothing, with its negative TTL (RFC 2308
/// section 5). A referral is not: that server does not know.
fn denial(error: &NetError) -> Option<(Option<u32>, &'static str)> {
    let NetError::Dns(DnsError::NoRecordsFound(none)) = error else { return None };
    match none.response_code {
        ResponseCode::NXDomain => Some((none.negative_ttl, "does not exist")),
        ResponseCode::NoError if none.ns.is_some() && none.soa.is_none() => None,
        ResponseCode::NoError => Some((none.negative_ttl, "has no such address")),
        _ => None,
    }
}

/// The system's search list, `ndots` and servers. As resolv.conf(5) has it, a missing file, or one
/// without a server, means a server on this machine.
fn read_resolv_conf(path: &Path, optional: bool) -> Result<(ResolverConfig, ResolverOpts), ConfigError> {
    let mut text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if optional || error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(source) => return Err(ConfigError::Unreadable { path: path.to_owned(), source }),
    };
    if let Ok(parsed) = system_conf::parse_resolv_conf(&text) {
        return Ok(parsed);
    }
    text.extend_from_slice(format!("\nnameserver {}\n", Ipv4Addr::LOCALHOST).as_bytes());
    system_conf::parse_resolv_conf(&text)
        .map_err(|source| ConfigError::Malformed { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use hickory_resolver::proto::op::Query;
    use hickory_resolver::proto::rr::rdata::CNAME;

    use super::*;

    fn asker(resolv_conf: &str) -> Asker {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, resolv_conf).unwrap();
        Asker::with_files(&model::Dns::default(), file.path(), Path::new("/nonexistent")).unwrap()
    }

    fn candidates(asker: &Asker, name: &str) -> Vec<String> {
        asker.names(name).candidates.iter().map(Name::to_ascii).collect()
    }

    fn servers(asker: &Asker) -> Vec<String> {
        asker.servers().map(|(_, server)| server.to_string()).collect()
    }

    #[test]
    fn ndots_and_the_search_list_order_the_names() {
        let asker = asker("nameserver 10.0.0.10\nsearch shop.svc.mesh svc.mesh\noptions ndots:3\n");
        assert_eq!(candidates(&asker, "orders"), ["orders.shop.svc.mesh.", "orders.svc.mesh.", "orders."]);
        assert_eq!(candidates(&asker, "a.b.c.d")[0], "a.b.c.d.");
        assert_eq!(candidates(&asker, "a.b.c")[0], "a.b.c.shop.svc.mesh.");
        assert_eq!(candidates(&asker, "orders."), ["orders."]);
        assert_eq!(candidates(&asker, "localhost")[0], "localhost.");
    }

    #[test]
    fn a_name_within_a_search_domain_is_tried_as_it_is_first() {
        let asker = asker("nameserver 10.0.0.10\nsearch shop.svc.mesh svc.mesh\noptions ndots:5\n");
        let names = candidates(&asker, "orders.shop.svc.mesh");
        assert_eq!((names[0].as_str(), names.len()), ("orders.shop.svc.mesh.", 3));
    }

    #[test]
    fn servers_come_from_the_system_unless_they_are_configured() {
        assert_eq!(
            servers(&asker("nameserver 10.0.0.10\nnameserver fd00::a\n")),
            ["10.0.0.10:53", "[fd00::a]:53"]
        );
        let local = asker("search shop.mesh\n");
        assert_eq!((servers(&local), local.search.len()), (vec!["127.0.0.1:53".to_owned()], 1));
        let none = Path::new("/nonexistent");
        let config = model::Dns::default();
        assert_eq!(servers(&Asker::with_files(&config, none, none).unwrap()), ["127.0.0.1:53"]);
        let config = model::Dns { servers: vec!["10.0.0.1:5353".parse().unwrap()], ..config };
        assert_eq!(servers(&Asker::with_files(&config, none, none).unwrap()), ["10.0.0.1:5353"]);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let none = Path::new("/nonexistent");
        let error = Asker::with_files(&model::Dns::default(), directory.path(), none).err().unwrap();
        assert!(error.to_string().contains(&directory.path().display().to_string()), "{error}");
        let config = model::Dns { servers: vec!["10.0.0.1:53".parse().unwrap()], ..Default::default() };
        assert!(Asker::with_files(&config, directory.path(), none).is_ok(), "it is not needed then");
    }

    #[test]
    fn the_server_that_answered_is_asked_first() {
        let asker = asker("nameserver 10.0.0.1\nnameserver 10.0.0.2\nnameserver 10.0.0.3\n");
        asker.prefer(1);
        assert_eq!(servers(&asker), ["10.0.0.2:53", "10.0.0.3:53", "10.0.0.1:53"]);
    }

    #[test]
    fn the_chain_is_followed_in_any_order_and_its_least_ttl_counts() {
        let name = |text: &str| Name::from_ascii(text).unwrap();
        let address = |owner: &str, ttl, last| {
            Record::from_rdata(name(owner), ttl, RData::from(IpAddr::from([10, 0, 0, last])))
        };
        let alias = |owner: &str, ttl, target: &str| {
            Record::from_rdata(name(owner), ttl, RData::CNAME(CNAME(name(target))))
        };
        let answers = [
            address("c.", 60, 1),
            alias("b.", 7, "c."),
            address("evil.", 1, 66),
            alias("a.", 90, "b."),
            address("c.", 50, 2),
        ];
        let (addresses, ttl) = chain(&answers, &name("A."), RecordType::A).unwrap();
        assert_eq!(addresses, [IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2])]);
        assert_eq!(ttl, Duration::from_secs(7));
        assert_eq!(chain(&answers, &name("c."), RecordType::A).unwrap().1, Duration::from_secs(50));
        assert_eq!(chain(&answers, &name("a."), RecordType::AAAA), None);
        let turning = [alias("a.", 1, "b."), alias("b.", 1, "a.")];
        assert_eq!(chain(&turning, &name("a."), RecordType::A), None);
    }

    #[test]
    fn only_a_servers_word_is_a_denial() {
        use hickory_resolver::net::NoRecords;
        let none = |code| NoRecords::new(Query::default(), code);
        assert!(denial(&none(ResponseCode::NXDomain).into()).is_some());
        assert!(denial(&none(ResponseCode::NoError).into()).is_some());
        assert!(denial(&none(ResponseCode::Unknown(42)).into()).is_none());
        assert!(denial(&NetError::Timeout).is_none());
        let mut referral = none(ResponseCode::NoError);
        referral.ns = Some(Arc::new([]));
        assert!(denial(&referral.into()).is_none());
    }
}
