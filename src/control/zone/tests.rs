use futures_util::FutureExt;
use hickory_resolver::proto::op::{Message, MessageType, OpCode, Query};
use proptest::prelude::*;

use super::super::slices;
use super::*;

const SLICES: &str = "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: orders-4, namespace: shop, labels: { kubernetes.io/service-name: orders } }
addressType: IPv4
ports: [{ name: http, port: 8080 }]
endpoints:
- { addresses: [10.0.0.1], zone: EU-1a, nodeName: node-1, hostname: orders-0 }
- { addresses: [10.0.0.2] }
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: orders-6
  namespace: shop
  labels: { kubernetes.io/service-name: orders }
  annotations: { pannier.dev/weight: \"7\" }
addressType: IPv6
ports: [{ name: http, port: 8080 }]
endpoints:
- { addresses: [\"fd00::1\"], hostname: orders-0 }
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: empty-4, namespace: shop, labels: { kubernetes.io/service-name: empty } }
addressType: IPv4
ports: [{ name: http, port: 8080, protocol: UDP }]
endpoints: [{ addresses: [10.0.0.9], conditions: { ready: false } }]
";

fn zone_of(text: &str, complete: bool) -> Zone {
    let manifest = slices::read(text, false).unwrap();
    let servers: Arc<[IpAddr]> = [[127, 0, 0, 1].into()].into();
    let domain = "Endpoints.Mesh".parse().unwrap();
    let zone = Zone::unread(domain, servers).next(&manifest.slices, 7, complete);
    assert_eq!(zone.notes(), [""; 0]);
    zone
}

fn zone() -> Zone {
    zone_of(SLICES, true)
}

fn found(zone: &Zone, name: &str, kind: RecordType) -> Found {
    zone.find(&Name::from_ascii(format!("{name}.")).unwrap(), kind)
}

/// What is found, as text: answers, then additionals after a `+`; `-` for no data, `!` for no name.
fn ask(zone: &Zone, name: &str, kind: RecordType) -> Vec<String> {
    let text = |record: &Record| {
        assert_eq!(record.ttl, 5);
        match &record.data {
            RData::TXT(text) => {
                text.txt_data.iter().map(|s| String::from_utf8_lossy(s)).collect::<Vec<_>>().join(" ")
            }
            data => data.to_string(),
        }
    };
    match found(zone, name, kind) {
        Found::Elsewhere => vec!["elsewhere".into()],
        Found::Unknown => vec!["?".into()],
        Found::Absent { soa } | Found::Empty { soa } if soa.ttl != 5 => panic!("{soa}"),
        Found::Absent { .. } => vec!["!".into()],
        Found::Empty { .. } => vec!["-".into()],
        Found::Records { answers, additionals } => {
            let mut lines: Vec<_> = answers.iter().map(text).collect();
            lines.sort();
            lines.extend(additionals.iter().map(|record| format!("+{} {}", record.name, text(record))));
            lines
        }
    }
}

#[test]
fn addresses_of_services_and_hosts() {
    let zone = zone();
    for (name, kind, expected) in [
        ("orders.shop.endpoints.mesh", RecordType::A, &["10.0.0.1", "10.0.0.2"] as &[_]),
        ("ORDERS.Shop.endpoints.MESH", RecordType::A, &["10.0.0.1", "10.0.0.2"]),
        ("orders.shop.endpoints.mesh", RecordType::AAAA, &["fd00::1"]),
        ("orders.shop.endpoints.mesh", RecordType::SRV, &["-"]),
        ("orders-0.orders.shop.endpoints.mesh", RecordType::A, &["10.0.0.1"]),
        ("orders-0.orders.shop.endpoints.mesh", RecordType::AAAA, &["fd00::1"]),
        ("empty.shop.endpoints.mesh", RecordType::A, &["-"]),
        ("ns.endpoints.mesh", RecordType::A, &["127.0.0.1"]),
        ("ns.endpoints.mesh", RecordType::AAAA, &["-"]),
        ("endpoints.mesh", RecordType::NS, &["ns.endpoints.mesh."]),
        ("endpoints.mesh", RecordType::A, &["-"]),
        (
            "endpoints.mesh",
            RecordType::SOA,
            &["ns.endpoints.mesh. hostmaster.endpoints.mesh. 7 60 10 3600 5"],
        ),
    ] {
        assert_eq!(ask(&zone, name, kind), expected, "{name} {kind}");
    }
}

#[test]
fn srv_records_bring_their_addresses() {
    let zone = zone();
    let expected = [
        "0 100 8080 10-0-0-1.zone-eu-1a.orders.shop.endpoints.mesh.",
        "0 100 8080 10-0-0-2.orders.shop.endpoints.mesh.",
        "0 7 8080 fd00-0-0-0-0-0-0-1.orders.shop.endpoints.mesh.",
        "+10-0-0-1.zone-eu-1a.orders.shop.endpoints.mesh. 10.0.0.1",
        "+10-0-0-2.orders.shop.endpoints.mesh. 10.0.0.2",
        "+fd00-0-0-0-0-0-0-1.orders.shop.endpoints.mesh. fd00::1",
    ];
    for name in ["_http._tcp.orders.shop.endpoints.mesh", "_8080._TCP.orders.shop.endpoints.mesh"] {
        assert_eq!(ask(&zone, name, RecordType::SRV), expected);
    }
    let target = "10-0-0-1.zone-eu-1a.orders.shop.endpoints.mesh";
    assert_eq!(ask(&zone, target, RecordType::A), ["10.0.0.1"]);
    assert_eq!(ask(&zone, target, RecordType::AAAA), ["-"]);
    assert_eq!(ask(&zone, target, RecordType::TXT), ["zone=EU-1a node=node-1"]);
    let target = "fd00-0-0-0-0-0-0-1.orders.shop.endpoints.mesh";
    assert_eq!(ask(&zone, target, RecordType::AAAA), ["fd00::1"]);
    assert_eq!(ask(&zone, target, RecordType::TXT), ["-"]);
    assert_eq!(ask(&zone, "_http._udp.empty.shop.endpoints.mesh", RecordType::SRV), ["-"]);
}

#[test]
fn what_is_there_without_data_and_what_is_not() {
    let zone = zone();
    for there in
        ["shop", "_tcp.orders.shop", "_http._tcp.orders.shop", "zone-eu-1a.orders.shop", "_udp.empty.shop"]
    {
        assert_eq!(ask(&zone, &format!("{there}.endpoints.mesh"), RecordType::A), ["-"], "{there}");
    }
    let incomplete = zone_of(SLICES, false);
    for not in [
        "none",
        "none.shop",
        "orders.none",
        "_udp.orders.shop",
        "_grpc._tcp.orders.shop",
        "http._tcp.orders.shop",
        "_http._http.orders.shop",
        "x._http._tcp.orders.shop",
        "orders-1.orders.shop",
        "10-0-0-1.orders.shop",
        "10-0-0-2.zone-eu-1a.orders.shop",
        "zone-eu-1b.orders.shop",
        "*.shop",
        "a.b.c.d.e.f",
        "orders\\.shop",
    ] {
        let name = format!("{not}.endpoints.mesh");
        assert_eq!(ask(&zone, &name, RecordType::A), ["!"], "{not}");
        assert_eq!(ask(&incomplete, &name, RecordType::A), ["?"], "{not}");
    }
    assert_eq!(ask(&incomplete, "orders.shop.endpoints.mesh", RecordType::AAAA), ["fd00::1"]);
    for elsewhere in ["mesh", "shop", "orders.shop.endpoints.mash", "xendpoints.mesh"] {
        assert_eq!(ask(&zone, elsewhere, RecordType::A), ["elsewhere"], "{elsewhere}");
    }
}

#[test]
fn every_address_is_the_first_at_times() {
    let zone = zone();
    let mut first = std::collections::HashSet::new();
    for _ in 0..1000 {
        let Found::Records { answers, .. } = found(&zone, "orders.shop.endpoints.mesh", RecordType::A) else {
            panic!("no answer");
        };
        assert_eq!(answers.len(), 2);
        first.insert(answers[0].data.to_string());
    }
    assert_eq!(first.len(), 2);
}

#[test]
fn a_service_that_has_not_changed_is_kept() {
    let before = zone();
    let changed = SLICES.replace("10.0.0.2", "10.0.0.4");
    let slices = slices::read(&changed, false).unwrap().slices;
    let after = before.next(&slices, 8, true);
    let kept =
        |service: &str| Arc::ptr_eq(&before.services["shop"][service], &after.services["shop"][service]);
    assert!(kept("empty") && !kept("orders"));
    assert_eq!(ask(&after, "orders.shop.endpoints.mesh", RecordType::A), ["10.0.0.1", "10.0.0.4"]);
    assert_eq!(ask(&before, "orders.shop.endpoints.mesh", RecordType::A), ["10.0.0.1", "10.0.0.2"]);
    assert_eq!(after.next(&slices[..2], 9, true).services(), 1);
}

#[test]
fn domains() {
    for good in ["endpoints.mesh", "Mesh.", "a-b.c_d.1"] {
        good.parse::<Domain>().unwrap();
    }
    for bad in ["", ".", "a..b", "a b", "é", &"x".repeat(64), &"abcdefg.".repeat(31)] {
        bad.parse::<Domain>().expect_err(bad);
    }
}

struct Served(Zone);

impl crate::dns::authority::Records for Served {
    fn find(&self, name: &Name, kind: RecordType) -> Found {
        self.0.find(name, kind)
    }
}

proptest! {
    /// Labels of any bytes, in the zone or beside it.
    #[test]
    fn any_name_is_answered(
        labels in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 0..6),
        prefix in "(_http|_8080|_|10-0-0-1|fd00-0-0-0-0-0-0-1|zone-eu-1a|orders-0)?",
        suffix in prop::sample::select(vec!["", "endpoints.mesh", "orders.shop.endpoints.mesh", "_tcp.orders.shop.endpoints.mesh"]),
        kind: u16,
    ) {
        let mut name = Name::new();
        for label in labels.iter().map(Vec::as_slice).chain([prefix.as_bytes()]).filter(|label| !label.is_empty()) {
            name = name.append_label(label).unwrap();
        }
        let name = name.append_domain(&Name::from_ascii(suffix).unwrap()).unwrap();
        let mut query = Message::new(7, MessageType::Query, OpCode::Query);
        query.add_query(Query::query(name.clone(), kind.into()));
        let bytes = query.to_vec().unwrap();
        let answer = crate::dns::authority::answer(Arc::new(Served(zone())), &bytes).now_or_never();
        let answer = answer.expect("it waits for nothing").expect("an answer to a query");
        let answer = Message::from_vec(&answer).unwrap();
        prop_assert_eq!(answer.queries[0].name.to_ascii(), name.to_ascii());
    }
}
