//! A small authoritative server over a table that changes while it runs: the trial mesh's DNS.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use hickory_resolver::proto::rr::rdata::SOA;
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use tokio::runtime::Handle;

use super::authority::{self, Found, Records};
use super::server::Server;

/// How long a resolver may believe that a name is not there: short, since the table changes.
const NEGATIVE_TTL: u32 = 1;

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

    fn names(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.names.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Records for Zone {
    fn find(&self, name: &Name, kind: RecordType) -> Found {
        let entry = self.names().get(&key(&name.to_ascii())).cloned();
        let Some(Entry { ttl, addresses }) = entry else {
            return Found::Absent { soa: start_of_authority() };
        };
        let records = addresses.into_iter().map(RData::from).filter(|data| data.record_type() == kind);
        let answers: Vec<_> = records.map(|data| Record::from_rdata(name.clone(), ttl, data)).collect();
        if answers.is_empty() {
            return Found::Empty { soa: start_of_authority() };
        }
        Found::Records { answers, additionals: Vec::new() }
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
        let (udp, tcp) = authority::bind(address)?;
        Ok(Self { server: authority::serve(zone, vec![udp], vec![tcp], handle)? })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.server.addresses()[0]
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
    use super::*;

    fn zone() -> Arc<Zone> {
        let zone = Zone::new();
        let addresses = [[10, 0, 0, 1].into(), "fd00::1".parse().expect("an address")];
        zone.set("Orders.Mesh.", Duration::from_secs(3), addresses);
        zone.set("empty.mesh", Duration::from_secs(3), []);
        zone
    }

    fn find(zone: &Zone, name: &str, kind: RecordType) -> Found {
        zone.find(&Name::from_ascii(name).expect("a name"), kind)
    }

    #[test]
    fn names_answer_by_type_and_in_any_case() {
        for kind in [RecordType::A, RecordType::AAAA] {
            let Found::Records { answers, .. } = find(&zone(), "oRDERs.mesh.", kind) else {
                panic!("no {kind}");
            };
            assert_eq!((answers.len(), answers[0].ttl, answers[0].record_type()), (1, 3, kind));
        }
        assert!(matches!(find(&zone(), "orders.mesh.", RecordType::MX), Found::Empty { .. }));
    }

    #[test]
    fn no_name_and_no_data_are_told_apart() {
        let zone = zone();
        let absent = |name| matches!(find(&zone, name, RecordType::A), Found::Absent { .. });
        assert!(absent("nobody.mesh."));
        assert!(matches!(find(&zone, "empty.mesh.", RecordType::A), Found::Empty { .. }));
        assert!(zone.remove("ORDERS.mesh"));
        assert!(!zone.remove("orders.mesh"));
        assert!(absent("orders.mesh."));
    }
}
