//! One service compiled: which of its endpoints are served, and what its names lead to.
//!
//! An endpoint is served as kube-proxy would have it: the ready ones, or, where there is none, those
//! that still serve while they terminate. One that several slices have is one. Everything that an
//! answer needs is made here, once for each change of its slices.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use hickory_resolver::proto::rr::Name;

use super::slices::{Endpoint, Protocol, Slice};

/// The longest label (RFC 1035 section 2.3.4).
const LONGEST_LABEL: usize = 63;

/// What one message holds beside its header, its question and EDNS.
const ROOM: usize = 65_535 - 300;

/// A record's fixed part, with its name as a pointer (RFC 1035 section 4.1.3).
const FIXED: usize = 2 + 10;

/// A service of the zone.
#[derive(Debug, Default)]
pub(super) struct Service {
    /// IPv4 first, each family in ascending order.
    pub(super) endpoints: Vec<Served>,
    /// What is served under a port's name or number.
    ports: Vec<Port>,
    /// The endpoints that have a hostname, by it.
    hosts: Vec<(Box<str>, u32)>,
    /// The labels of topology zones, in ascending order.
    zones: Vec<Box<str>>,
    /// What cannot be served of it, a sentence each.
    pub(super) notes: Vec<String>,
    /// What it was compiled from.
    slices: Vec<Arc<Slice>>,
}

/// An endpoint that is served.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) address: IpAddr,
    /// The name that SRV records have for it; none where that would be longer than names may be.
    pub(super) target: Option<Name>,
    /// The label of its topology zone.
    zone_label: Option<Box<str>>,
    /// For humans: its zone and its node, as Kubernetes writes them.
    pub(super) zone: Option<Box<str>>,
    pub(super) node: Option<Box<str>>,
}

#[derive(Debug)]
struct Port {
    label: Box<str>,
    protocol: Protocol,
    targets: Vec<Target>,
}

/// What an SRV record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Target {
    /// Its place among the service's endpoints.
    pub(super) endpoint: u32,
    pub(super) port: u16,
    pub(super) weight: u16,
}

impl Service {
    /// Compiles the slices of the service called `name`.
    pub(super) fn compile(name: &Name, slices: &[&Arc<Slice>]) -> Self {
        let all =
            || slices.iter().flat_map(|slice| slice.endpoints.iter().map(move |endpoint| (slice, endpoint)));
        let any_ready = all().any(|(_, endpoint)| endpoint.ready);
        let takes_traffic = |endpoint: &Endpoint| match any_ready {
            true => endpoint.ready,
            false => endpoint.serving && endpoint.terminating,
        };
        let mut chosen: Vec<_> = all().filter(|(_, endpoint)| takes_traffic(endpoint)).collect();
        chosen.sort_by_key(|(_, endpoint)| endpoint.address);

        let slices_of_it = slices.iter().map(|slice| Arc::clone(slice)).collect();
        let mut service = Service { slices: slices_of_it, ..Service::default() };
        // Ports are known by name without an endpoint, too: their names are there, without data.
        for port in slices.iter().flat_map(|slice| &slice.ports) {
            service.port(port.name.as_deref(), port.number, port.protocol, |_| {});
        }
        for (slice, endpoint) in chosen {
            if service.endpoints.last().is_none_or(|last| last.address != endpoint.address) {
                service.endpoints.push(Served::new(name, endpoint));
            }
            let number = service.endpoints.len() as u32 - 1;
            if let Some(hostname) = &endpoint.hostname {
                service.hosts.push((hostname.as_str().into(), number));
            }
            for port in &slice.ports {
                let target = Target { endpoint: number, port: port.number, weight: slice.weight };
                service
                    .port(port.name.as_deref(), port.number, port.protocol, |targets| targets.push(target));
            }
        }
        service.hosts.sort();
        service.hosts.dedup();
        let labels = service.endpoints.iter().filter_map(|served| served.zone_label.clone());
        service.zones = labels.collect();
        service.zones.sort();
        service.zones.dedup();
        service.bound(name);
        service
    }

    /// Whether it is what these slices would be compiled to.
    pub(super) fn is_of(&self, slices: &[&Arc<Slice>]) -> bool {
        let same = |(ours, theirs): (&Arc<Slice>, &&Arc<Slice>)| Arc::ptr_eq(ours, theirs) || ours == *theirs;
        self.slices.len() == slices.len() && self.slices.iter().zip(slices).all(same)
    }

    /// Adds to what is served under a port's number and, where it has one, its name.
    fn port(
        &mut self,
        name: Option<&str>,
        number: u16,
        protocol: Protocol,
        mut add: impl FnMut(&mut Vec<Target>),
    ) {
        let number = number.to_string();
        for label in [Some(number.as_str()), name].into_iter().flatten() {
            let known = self.ports.iter_mut().find(|port| port.protocol == protocol && *port.label == *label);
            match known {
                Some(port) => add(&mut port.targets),
                None => {
                    let mut targets = Vec::new();
                    add(&mut targets);
                    self.ports.push(Port { label: label.into(), protocol, targets });
                }
            }
        }
    }

    /// Cuts what one message cannot hold. The same ones stay for every answer: a set that changed with
    /// each would have its askers open and close connections for nothing.
    fn bound(&mut self, name: &Name) {
        let unnamed = self.endpoints.iter().filter(|served| served.target.is_none()).count();
        if unnamed > 0 {
            self.notes.push(format!(
                "{name}: {unnamed} endpoints have no SRV record: their names would be longer than 255 bytes"
            ));
        }
        for port in &mut self.ports {
            port.targets.sort_unstable();
            port.targets.dedup_by_key(|target| (target.endpoint, target.port));
            port.targets.retain(|target| self.endpoints[target.endpoint as usize].target.is_some());
            let mut left = ROOM;
            let fits = port.targets.iter().take_while(|target| {
                let needed = self.endpoints[target.endpoint as usize].room();
                left.checked_sub(needed).inspect(|rest| left = *rest).is_some()
            });
            let (count, all) = (fits.count(), port.targets.len());
            if count < all {
                self.notes.push(format!(
                    "{name}: port {} has {all} endpoints, and one SRV answer holds {count}: the rest of them is \
                     served by A and AAAA alone",
                    port.label
                ));
                port.targets.truncate(count);
            }
        }
        for (family, served) in [("A", self.family(true).len()), ("AAAA", self.family(false).len())] {
            let most = most_addresses(family == "A");
            if served > most {
                self.notes.push(format!("{name}: of {served} endpoints one {family} answer holds {most}"));
            }
        }
    }

    /// The endpoints of one family, as many as an answer holds.
    pub(super) fn family(&self, ipv4: bool) -> &[Served] {
        let (four, six) =
            self.endpoints.split_at(self.endpoints.partition_point(|served| served.address.is_ipv4()));
        if ipv4 { four } else { six }
    }

    /// Whether the service has ports of a protocol. Of one whose slices name no port (Kubernetes writes
    /// such for a service without pods) nobody can say that it has not.
    pub(super) fn speaks(&self, protocol: Protocol) -> bool {
        self.ports.is_empty() || self.ports.iter().any(|port| port.protocol == protocol)
    }

    /// What is served under a port's name or number; `None` where there is no such port.
    pub(super) fn targets(&self, label: &str, protocol: Protocol) -> Option<&[Target]> {
        if self.ports.is_empty() {
            return Some(&[]);
        }
        let port = self.ports.iter().find(|port| port.protocol == protocol && *port.label == *label);
        port.map(|port| &*port.targets)
    }

    /// The endpoints with a hostname.
    pub(super) fn host(&self, hostname: &str) -> impl Iterator<Item = &Served> {
        let begin = self.hosts.partition_point(|(host, _)| **host < *hostname);
        let same = self.hosts[begin..].iter().take_while(move |(host, _)| **host == *hostname);
        same.map(|(_, endpoint)| &self.endpoints[*endpoint as usize])
    }

    /// The endpoint that SRV records call by this label, below that of its topology zone where it has one.
    pub(super) fn target(&self, label: &str, zone: Option<&str>) -> Option<&Served> {
        let address = undashed(label)?;
        let found = self.endpoints.binary_search_by_key(&address, |served| served.address).ok()?;
        let served = &self.endpoints[found];
        (served.zone_label.as_deref() == zone && served.target.is_some()).then_some(served)
    }

    /// Whether an endpoint is in the topology zone with this label.
    pub(super) fn has_zone(&self, label: &str) -> bool {
        self.zones.binary_search_by(|zone| (**zone).cmp(label)).is_ok()
    }
}

/// How many addresses one message holds.
pub(super) fn most_addresses(ipv4: bool) -> usize {
    ROOM / (FIXED + if ipv4 { 4 } else { 16 })
}

impl Served {
    fn new(service: &Name, endpoint: &Endpoint) -> Self {
        let zone_label = endpoint.zone.as_deref().map(zone_label);
        let below = match &zone_label {
            None => Ok(service.clone()),
            Some(zone) => service.prepend_label(zone.as_str()),
        };
        Self {
            address: endpoint.address,
            target: below.and_then(|below| below.prepend_label(dashed(endpoint.address))).ok(),
            zone_label: zone_label.map(Into::into),
            zone: endpoint.zone.as_deref().map(Into::into),
            node: endpoint.node.as_deref().map(Into::into),
        }
    }

    /// What its SRV record and its address take in a message, at most. Targets are not compressed
    /// (RFC 2782), and an address's name only by what the question has.
    fn room(&self) -> usize {
        let target = self.target.as_ref().map_or(0, Name::len);
        let own = 1 + dashed(self.address).len() + self.zone_label.as_ref().map_or(0, |zone| 1 + zone.len());
        let address = if self.address.is_ipv4() { 4 } else { 16 };
        FIXED + 6 + target + 1 + FIXED + own + address
    }
}

/// An address as a label: IPv6 with all of its eight groups, in lower-case hexadecimal.
fn dashed(address: IpAddr) -> String {
    let groups: Vec<String> = match address {
        IpAddr::V4(address) => address.octets().iter().map(u8::to_string).collect(),
        IpAddr::V6(address) => address.segments().iter().map(|group| format!("{group:x}")).collect(),
    };
    groups.join("-")
}

/// The address that a label stands for, if it is written as we write it.
fn undashed(label: &str) -> Option<IpAddr> {
    let dashes = label.bytes().filter(|b| *b == b'-').count();
    let address = match dashes {
        3 => IpAddr::V4(label.replace('-', ".").parse().ok()?),
        7 => IpAddr::V6(label.replace('-', ":").parse::<Ipv6Addr>().ok()?),
        _ => return None,
    };
    (dashed(address) == label).then_some(address)
}

/// A topology zone as a label.
fn zone_label(zone: &str) -> String {
    let letters = zone.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' });
    let mut label = String::from("zone-");
    label.extend(letters);
    // Of ASCII alone by now.
    label.truncate(LONGEST_LABEL);
    label
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::slices;
    use super::*;

    fn compile(slices: &[Arc<Slice>]) -> Service {
        let name = Name::from_ascii("orders.shop.endpoints.mesh.").unwrap();
        Service::compile(&name, &slices.iter().collect::<Vec<_>>())
    }

    fn endpoint(address: &str, conditions: &str) -> Endpoint {
        let address: IpAddr = address.parse().unwrap();
        let has = |letter| conditions.contains(letter);
        Endpoint {
            address,
            ready: has('r'),
            serving: has('s'),
            terminating: has('t'),
            hostname: None,
            zone: None,
            node: None,
        }
    }

    fn slice(ports: &[(&str, u16)], endpoints: Vec<Endpoint>) -> Arc<Slice> {
        let ports = ports.iter().map(|(name, number)| slices::Port {
            name: (!name.is_empty()).then(|| (*name).to_owned()),
            protocol: Protocol::Tcp,
            number: *number,
        });
        let (namespace, service) = ("shop".into(), "orders".into());
        Arc::new(Slice { namespace, service, weight: 100, ports: ports.collect(), endpoints })
    }

    fn addresses(service: &Service) -> Vec<String> {
        service.endpoints.iter().map(|served| served.address.to_string()).collect()
    }

    #[test]
    fn who_takes_traffic() {
        for (conditions, expected) in [
            (["rs", "rs", "s"], &["10.0.0.1", "10.0.0.2"] as &[_]),
            (["rs", "st", "st"], &["10.0.0.1"]),
            (["", "st", "st"], &["10.0.0.2", "10.0.0.3"]),
            (["s", "st", "t"], &["10.0.0.2"]),
            (["s", "t", ""], &[]),
        ] {
            let endpoints =
                conditions.iter().zip(1..).map(|(c, i)| endpoint(&format!("10.0.0.{i}"), c)).collect();
            assert_eq!(addresses(&compile(&[slice(&[], endpoints)])), expected, "{conditions:?}");
        }
    }

    #[test]
    fn slices_of_one_service_are_one() {
        let service = compile(&[
            slice(&[("http", 8080)], vec![endpoint("10.0.0.2", "r"), endpoint("10.0.0.1", "r")]),
            slice(&[("http", 9090), ("", 53)], vec![endpoint("10.0.0.2", "r"), endpoint("10.0.0.3", "")]),
            slice(&[("http", 8080)], vec![endpoint("fd00::1", "r"), endpoint("10.0.0.2", "r")]),
        ]);
        assert_eq!(
            (addresses(&service), service.notes.len()),
            (vec!["10.0.0.1".into(), "10.0.0.2".into(), "fd00::1".into()], 0)
        );
        let targets = |label: &str| {
            let targets = service.targets(label, Protocol::Tcp);
            targets.map(|targets| targets.iter().map(|t| (t.endpoint, t.port)).collect::<Vec<_>>())
        };
        assert_eq!(targets("http"), Some(vec![(0, 8080), (1, 8080), (1, 9090), (2, 8080)]));
        assert_eq!(targets("8080"), Some(vec![(0, 8080), (1, 8080), (2, 8080)]));
        assert_eq!(targets("53"), Some(vec![(1, 53)]));
        assert_eq!(targets("80"), None);
        assert!(service.speaks(Protocol::Tcp) && !service.speaks(Protocol::Udp));
    }

    #[test]
    fn ports_are_known_without_endpoints() {
        let service = compile(&[slice(&[("http", 8080)], vec![endpoint("10.0.0.1", "")])]);
        assert_eq!(service.targets("http", Protocol::Tcp), Some(&[] as &[_]));
        assert_eq!(service.targets("grpc", Protocol::Tcp), None);
        let service = compile(&[slice(&[], Vec::new())]);
        assert!(service.speaks(Protocol::Sctp));
        assert_eq!(service.targets("grpc", Protocol::Tcp), Some(&[] as &[_]));
    }

    #[test]
    fn targets_say_address_and_zone() {
        let zoned = |address, zone: &str| Endpoint {
            zone: Some(zone.into()),
            hostname: Some("orders-0".into()),
            ..endpoint(address, "r")
        };
        let long = "Z_".repeat(40);
        let service = compile(&[
            slice(
                &[],
                vec![endpoint("10.0.0.1", "r"), zoned("10.0.0.2", "EU Central/1a"), zoned("10.0.0.3", &long)],
            ),
            slice(&[], vec![zoned("2001:db8::a", "b")]),
        ]);
        let names: Vec<_> =
            service.endpoints.iter().map(|served| served.target.as_ref().unwrap().to_ascii()).collect();
        let cut = format!("zone-{}", "z-".repeat(29));
        assert_eq!(cut.len(), 63);
        assert_eq!(
            names,
            [
                "10-0-0-1.orders.shop.endpoints.mesh.".to_owned(),
                "10-0-0-2.zone-eu-central-1a.orders.shop.endpoints.mesh.".to_owned(),
                format!("10-0-0-3.{cut}.orders.shop.endpoints.mesh."),
                "2001-db8-0-0-0-0-0-a.zone-b.orders.shop.endpoints.mesh.".to_owned(),
            ]
        );
        let found = |label, zone| service.target(label, zone).map(|served| served.address.to_string());
        assert_eq!(found("10-0-0-1", None).as_deref(), Some("10.0.0.1"));
        assert_eq!(found("2001-db8-0-0-0-0-0-a", Some("zone-b")).as_deref(), Some("2001:db8::a"));
        for (label, zone) in [
            ("10-0-0-1", Some("zone-b")),
            ("10-0-0-2", None),
            ("10-0-0-9", None),
            ("10-0-0-01", None),
            ("2001-db8--a", Some("zone-b")),
            ("2001-0db8-0-0-0-0-0-a", Some("zone-b")),
            ("", None),
        ] {
            assert_eq!(found(label, zone), None, "{label} {zone:?}");
        }
        assert!(service.has_zone("zone-b") && !service.has_zone("zone-c"));
        assert_eq!(service.host("orders-0").count(), 3);
        assert_eq!(service.host("orders-1").count(), 0);
    }

    #[test]
    fn a_set_that_no_message_holds_is_cut_and_said() {
        let many = (0..5000u32).map(|i| Endpoint {
            address: std::net::Ipv4Addr::from(0x0a00_0000 + i).into(),
            ..endpoint("10.0.0.1", "r")
        });
        let service = compile(&[slice(&[("http", 80)], many.collect())]);
        let count = service.targets("http", Protocol::Tcp).unwrap().len();
        assert!((500..1000).contains(&count), "{count}");
        assert!(
            service.notes[0]
                .contains(&format!("port 80 has 5000 endpoints, and one SRV answer holds {count}"))
        );
        assert!(service.notes[2].contains("one A answer holds 4077"), "{:?}", service.notes);
    }

    proptest! {
        #[test]
        fn labels_are_read_back(v4: u32, v6: u128) {
            for address in [IpAddr::V4(v4.into()), IpAddr::V6(v6.into())] {
                prop_assert_eq!(undashed(&dashed(address)), Some(address));
            }
        }

        #[test]
        fn any_zone_makes_a_label(zone in "\\PC{0,200}") {
            let label = zone_label(&zone);
            prop_assert!(label.len() <= LONGEST_LABEL && Name::new().append_label(label.as_str()).is_ok());
        }
    }
}
