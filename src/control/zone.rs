//! The endpoint zone: every service's names, and what is answered at each.
//!
//! | name below the domain | records |
//! |---|---|
//! | `<service>.<namespace>` | A and AAAA of the endpoints that take traffic |
//! | `_<port>._<protocol>.<service>.<namespace>` | SRV, by the port's name and by its number |
//! | `<hostname>.<service>.<namespace>` | A and AAAA of the endpoints with that hostname |
//! | `<address>[.zone-<zone>].<service>.<namespace>` | A or AAAA, and TXT: what SRV records lead to |
//!
//! A zone does not change: a new one takes its place. A question costs a few look-ups and the records
//! of its answer. A name above one that is there is there itself (RFC 8020).

use std::collections::HashMap;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use hickory_resolver::proto::rr::rdata::{NS, SOA, SRV, TXT};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};

use super::service::{Served, Service, most_addresses};
use super::slices::{Protocol, Slice};
use crate::dns::authority::Found;

/// How long answers may be believed, and denials (the SOA's minimum, RFC 2308).
const TTL: u32 = 5;

/// How long a domain may be, so that every service below it has a name of at most 255 bytes.
const LONGEST_DOMAIN: usize = 120;

/// The longest string in a TXT record (RFC 1035 section 3.3).
const LONGEST_TEXT: usize = 255;

/// Whose zone it is.
#[derive(Debug, Clone)]
pub(super) struct Domain {
    name: Name,
    server: Name,
    mailbox: Name,
}

/// The records of one moment.
#[derive(Debug)]
pub(super) struct Zone {
    domain: Domain,
    /// What the name server's own name leads to.
    servers: Arc<[IpAddr]>,
    /// By namespace and name.
    services: HashMap<Box<str>, HashMap<Box<str>, Arc<Service>>>,
    /// Whether everything has been read that there is. What was not read cannot be denied.
    complete: bool,
    pub(super) serial: u32,
}

/// Records and what goes with them, or that there is no such name.
type Answer = Option<(Vec<Record>, Vec<Record>)>;

impl FromStr for Domain {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("`{text}` is no domain: {why}");
        let bare = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let letters = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        };
        if !bare.split('.').all(letters) {
            return Err(wrong("expected labels of letters, digits and `-`, as `endpoints.mesh`"));
        }
        let name = Name::from_ascii(format!("{bare}.")).map_err(|error| wrong(&error.to_string()))?;
        let below = |label: &str| name.prepend_label(label).map_err(|_| wrong("it is too long"));
        // Below it stand a service's and a namespace's label, each of 63 bytes at most.
        if name.len() > LONGEST_DOMAIN {
            return Err(wrong("it is too long"));
        }
        Ok(Self { server: below("ns")?, mailbox: below("hostmaster")?, name })
    }
}

impl Domain {
    pub(super) fn name(&self) -> &Name {
        &self.name
    }

    /// The name of a service.
    fn service(&self, namespace: &str, service: &str) -> Name {
        let below = self.name.prepend_label(namespace).and_then(|name| name.prepend_label(service));
        below.expect("a domain leaves room for two labels")
    }
}

impl Zone {
    /// A zone of which nothing is known yet. The name server is to be found at `servers`.
    pub(super) fn unread(domain: Domain, servers: Arc<[IpAddr]>) -> Self {
        Self { domain, servers, services: HashMap::new(), complete: false, serial: 0 }
    }

    /// The zone that takes this one's place: all slices now. A service whose slices are the same is
    /// kept as it is.
    pub(super) fn next<'a>(
        &self,
        slices: impl IntoIterator<Item = &'a Arc<Slice>>,
        serial: u32,
        complete: bool,
    ) -> Self {
        let mut by_name: HashMap<(&str, &str), Vec<&Arc<Slice>>> = HashMap::new();
        for slice in slices {
            by_name.entry((&slice.namespace, &slice.service)).or_default().push(slice);
        }
        let mut services: HashMap<Box<str>, HashMap<Box<str>, Arc<Service>>> = HashMap::new();
        for ((namespace, service), slices) in by_name {
            let known = self.services.get(namespace).and_then(|services| services.get(service));
            let compiled = match known.filter(|known| known.is_of(&slices)) {
                Some(known) => known.clone(),
                None => Arc::new(Service::compile(&self.domain.service(namespace, service), &slices)),
            };
            services.entry(namespace.into()).or_default().insert(service.into(), compiled);
        }
        Self { domain: self.domain.clone(), servers: self.servers.clone(), services, complete, serial }
    }

    /// What cannot be served, a sentence each.
    pub(super) fn notes(&self) -> Vec<String> {
        let services = self.services.values().flat_map(HashMap::values);
        services.flat_map(|service| service.notes.iter().cloned()).collect()
    }

    /// How many services there are.
    pub(super) fn services(&self) -> usize {
        self.services.values().map(HashMap::len).sum()
    }

    /// How many endpoints are served.
    pub(super) fn endpoints(&self) -> usize {
        self.services.values().flat_map(HashMap::values).map(|service| service.endpoints.len()).sum()
    }

    /// What is answered to a question.
    pub(super) fn find(&self, name: &Name, kind: RecordType) -> Found {
        if !self.domain.name.zone_of(name) {
            return Found::Elsewhere;
        }
        match self.look_up(name, kind) {
            Some((answers, _)) if answers.is_empty() => Found::Empty { soa: self.soa() },
            Some((answers, additionals)) => Found::Records { answers, additionals },
            None if self.complete => Found::Absent { soa: self.soa() },
            None => Found::Unknown,
        }
    }

    fn look_up(&self, name: &Name, kind: RecordType) -> Answer {
        let below = name.iter().count() - self.domain.name.iter().count();
        let labels: Vec<String> = name.iter().take(below).map(plain).collect::<Option<_>>()?;
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        match *labels.as_slice() {
            [] => Some((self.apex(kind), Vec::new())),
            ["ns"] => Some((addresses(name, kind, self.servers.iter().copied()), Vec::new())),
            [namespace] => self.services.get(namespace).map(|_| nothing()),
            [ref above @ .., service, namespace] => {
                let service = self.services.get(namespace)?.get(service)?;
                within(service, above, name, kind)
            }
        }
    }

    fn apex(&self, kind: RecordType) -> Vec<Record> {
        match kind {
            RecordType::SOA => vec![self.soa()],
            RecordType::NS => vec![self.record(RData::NS(NS(self.domain.server.clone())))],
            _ => Vec::new(),
        }
    }

    fn soa(&self) -> Record {
        let Domain { server, mailbox, .. } = &self.domain;
        // The times are for secondaries, which this zone has none of.
        let data = SOA::new(server.clone(), mailbox.clone(), self.serial, 60, 10, 3600, TTL);
        self.record(RData::SOA(data))
    }

    fn record(&self, data: RData) -> Record {
        Record::from_rdata(self.domain.name.clone(), TTL, data)
    }
}

/// What a service has at `name`, whose labels below the service's own are `labels`.
fn within(service: &Service, labels: &[&str], name: &Name, kind: RecordType) -> Answer {
    match *labels {
        [] => {
            let family = service.family(kind == RecordType::A);
            let served = family.iter().take(most_addresses(kind == RecordType::A));
            Some((addresses(name, kind, served.map(|served| served.address)), Vec::new()))
        }
        [label] if label.starts_with('_') => service.speaks(protocol(label)?).then(nothing),
        [port, transport] if transport.starts_with('_') => {
            let protocol = protocol(transport)?;
            service.targets(port.strip_prefix('_')?, protocol).map(|targets| {
                if kind != RecordType::SRV {
                    return nothing();
                }
                let srv = targets.iter().filter_map(|target| {
                    let served = &service.endpoints[target.endpoint as usize];
                    let data = SRV::new(0, target.weight, target.port, served.target.clone()?);
                    Some(Record::from_rdata(name.clone(), TTL, RData::SRV(data)))
                });
                let mut endpoints: Vec<u32> = targets.iter().map(|target| target.endpoint).collect();
                endpoints.dedup();
                let additionals = endpoints.into_iter().filter_map(|endpoint| {
                    let served = &service.endpoints[endpoint as usize];
                    Some(Record::from_rdata(served.target.clone()?, TTL, served.address.into()))
                });
                (srv.collect(), additionals.collect())
            })
        }
        [label, zone] => service.target(label, Some(zone)).map(|served| single(served, name, kind)),
        // A hostname that reads as an address is not told from what SRV records lead to, which comes first.
        [label] => match service.target(label, None) {
            Some(served) => Some(single(served, name, kind)),
            None => {
                let mut hosts = service.host(label).peekable();
                let there = hosts.peek().is_some() || service.has_zone(label);
                there.then(|| (addresses(name, kind, hosts.map(|served| served.address)), Vec::new()))
            }
        },
        _ => None,
    }
}

/// What a name that SRV records lead to has.
fn single(served: &Served, name: &Name, kind: RecordType) -> (Vec<Record>, Vec<Record>) {
    if kind != RecordType::TXT {
        return (addresses(name, kind, [served.address].into_iter()), Vec::new());
    }
    let text = |what: &str, value: &Option<Box<str>>| {
        let mut text = format!("{what}={}", value.as_ref()?);
        text.truncate(text.floor_char_boundary(LONGEST_TEXT));
        Some(text)
    };
    let texts: Vec<_> =
        [text("zone", &served.zone), text("node", &served.node)].into_iter().flatten().collect();
    if texts.is_empty() {
        return nothing();
    }
    (vec![Record::from_rdata(name.clone(), TTL, RData::TXT(TXT::new(texts)))], Vec::new())
}

/// The addresses of the family that was asked for, beginning with any of them: who takes the first
/// then takes each as often.
fn addresses(name: &Name, kind: RecordType, all: impl Iterator<Item = IpAddr>) -> Vec<Record> {
    let records = all.map(RData::from).filter(|data| data.record_type() == kind);
    let mut records: Vec<_> = records.map(|data| Record::from_rdata(name.clone(), TTL, data)).collect();
    if !records.is_empty() {
        let first = fastrand::usize(..records.len());
        records.rotate_left(first);
    }
    records
}

/// A name that is there, without what was asked for.
fn nothing() -> (Vec<Record>, Vec<Record>) {
    (Vec::new(), Vec::new())
}

fn protocol(label: &str) -> Option<Protocol> {
    match label {
        "_tcp" => Some(Protocol::Tcp),
        "_udp" => Some(Protocol::Udp),
        "_sctp" => Some(Protocol::Sctp),
        _ => None,
    }
}

/// A label in lower case; `None` where it has what no name of ours has.
fn plain(label: &[u8]) -> Option<String> {
    let known = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    let text = std::str::from_utf8(label).ok()?;
    label.iter().all(known).then(|| text.to_ascii_lowercase())
}

#[cfg(test)]
mod tests;
