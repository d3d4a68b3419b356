//! What the demo's sidecars are configured with: files as a user would write them.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use crate::config::model::Identity;

/// What the caller's application dials.
pub(super) const HOST: &str = "orders.shop.svc.cluster.local";
/// The port it dials.
pub(super) const PORT: u16 = 8080;
/// What resolves to every endpoint.
pub(super) const ENDPOINTS: &str = "orders-headless.shop.svc.cluster.local";
/// The trust domain of all identities.
pub(super) const TRUST_DOMAIN: &str = "cluster.local";
/// Who the caller is.
pub(super) const CALLER: &str = "ns/shop/sa/web";
/// Who the endpoints are.
pub(super) const ORDERS: &str = "ns/shop/sa/orders";
/// The limit that the story tightens.
pub(super) const LIMIT: &str = "writes";
/// Requests that an endpoint serves at once. All that the caller ever has in flight fits into one,
/// so that none is refused while others are gone.
pub(super) const CAPACITY: u32 = 48;

/// The limit's rate a second, which is its burst too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rate(pub(super) u32);

/// At first: more than the caller sends.
pub(super) const WIDE: Rate = Rate(100);
/// After it was tightened: a fraction of what the caller sends.
pub(super) const TIGHT: Rate = Rate(10);

/// What differs between a mesh in namespaces and one on loopback.
#[derive(Debug, Clone)]
pub(super) struct Ground {
    /// The DNS server.
    pub(super) dns: SocketAddr,
    /// The Redis that counts for all; none: each sidecar counts for itself.
    pub(super) redis: Option<SocketAddr>,
    /// The port of the endpoints.
    pub(super) port: u16,
    /// Listeners that are dialled, where nothing is redirected; none: the usual ones.
    pub(super) explicit: bool,
}

/// The configuration of the caller's sidecar.
pub(super) fn caller(ground: &Ground, identity: &Identity, rate: Rate) -> String {
    let Ground { dns, redis, port, explicit } = ground;
    let mut text = String::from("# The caller's sidecar. A change is followed while it runs.\n");
    if *explicit {
        text.push_str(&listen("127.0.0.1:0"));
    }
    let (scope, Rate(rate)) = (if redis.is_some() { "mesh" } else { "pod" }, rate);
    let _ = write!(
        text,
        "identity: {identity}
dns: {{ servers: [\"{dns}\"] }}
upstreams:
  orders:
    address: {HOST}:{PORT}
    endpoints: {ENDPOINTS}:{port}
    mtls: {{ mode: require, peer: \"spiffe://{TRUST_DOMAIN}/{ORDERS}\" }}
    capacity: {CAPACITY}
limits:
  - {{ name: {LIMIT}, host: {HOST}, path: /writes, rate: {rate}/s, burst: {rate}, scope: {scope} }}
",
        identity = files(identity),
    );
    if let Some(redis) = redis {
        let _ = writeln!(text, "redis: {{ url: \"redis://{redis}\" }}");
    }
    text
}

/// The configuration of an endpoint's sidecar; `explicit` are its listener and its application,
/// where nothing is redirected.
pub(super) fn endpoint(identity: &Identity, explicit: Option<(SocketAddr, SocketAddr)>) -> String {
    let mut text = String::from("# The sidecar of an endpoint of orders.\nworkers: 1\n");
    if let Some((inbound, application)) = explicit {
        text.push_str(&listen(&inbound.to_string()));
        let _ = writeln!(text, "application: \"{application}\"");
    }
    let _ = write!(
        text,
        "identity: {identity}
inbound:
  mtls: strict
  allow: [{{ caller: \"spiffe://{TRUST_DOMAIN}/{CALLER}\" }}]
",
        identity = files(identity),
    );
    text
}

/// Records of the DNS server, in the format of /etc/hosts.
pub(super) fn hosts(vip: IpAddr, endpoints: &[SocketAddr]) -> String {
    let mut text = format!("{vip} {HOST}\n");
    for endpoint in endpoints {
        let _ = writeln!(text, "{} {ENDPOINTS}", endpoint.ip());
    }
    text
}

/// What kube-proxy would write: a connection to the service goes to one of its endpoints by chance.
pub(super) fn service(vip: IpAddr, endpoints: &[SocketAddr]) -> String {
    let mut text = String::from("*nat\n:PREROUTING ACCEPT [0:0]\n");
    for (i, endpoint) in endpoints.iter().enumerate() {
        let share = 1.0 / (endpoints.len() - i) as f64;
        let _ = writeln!(
            text,
            "-A PREROUTING -d {vip} -p tcp --dport {PORT} -m statistic --mode random \
             --probability {share:.6} -j DNAT --to-destination {endpoint}"
        );
    }
    text.push_str("COMMIT\n");
    text
}

/// Every listener on a free port, but the inbound one.
fn listen(inbound: &str) -> String {
    let free = "\"127.0.0.1:0\"";
    format!(
        "listen: {{ outbound: {free}, inbound: \"{inbound}\", dns: {free}, admin: {free}, probes: {free} }}\n"
    )
}

fn files(identity: &Identity) -> String {
    // A JSON string is a YAML one, whatever the path is.
    let quoted = |path: &std::path::Path| serde_json::Value::from(path.to_string_lossy()).to_string();
    let Identity { certificate, key, bundle, .. } = identity;
    format!("{{ certificate: {}, key: {}, bundle: {} }}", quoted(certificate), quoted(key), quoted(bundle))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::traffic::{READS, WRITES};
    use super::*;
    use crate::config;
    use crate::config::model::{KeyExchange, Scope};

    fn identity() -> Identity {
        let file = |name: &str| PathBuf::from("/tmp/a \"b\" #c: d").join(name);
        let [certificate, key, bundle] = ["tls.crt", "tls.key", "ca.crt"].map(file);
        Identity { certificate, key, bundle, key_exchange: KeyExchange::default() }
    }

    fn grounds() -> [Ground; 2] {
        let dns = "127.0.0.1:5353".parse().expect("an address");
        let redis = Some("10.88.0.3:6379".parse().expect("an address"));
        [
            Ground { dns, redis, port: 8080, explicit: false },
            Ground { dns, redis: None, port: 40_000, explicit: true },
        ]
    }

    #[test]
    fn every_configuration_of_the_callers_is_valid() {
        for ground in grounds() {
            for rate in [WIDE, TIGHT] {
                let model = config::parse(&caller(&ground, &identity(), rate), "caller").expect("valid");
                assert_eq!(model.identity, Some(identity()));
                assert_eq!(model.limits[0].rate.per_second(), f64::from(rate.0));
                let mesh = ground.redis.is_some();
                assert_eq!(model.limits[0].scope, if mesh { Scope::Mesh } else { Scope::Pod });
                assert_eq!(model.redis.is_some(), mesh);
                assert_eq!(model.upstreams["orders"].capacity.map(|c| c.get()), Some(CAPACITY));
            }
        }
    }

    #[test]
    fn every_configuration_of_an_endpoint_is_valid() {
        let addresses = ["127.0.0.11:40000", "127.0.0.11:40001"].map(|a| a.parse().expect("an address"));
        let plain = config::parse(&endpoint(&identity(), None), "endpoint").expect("valid");
        assert_eq!(plain.application, None);
        let text = endpoint(&identity(), Some((addresses[0], addresses[1])));
        let explicit = config::parse(&text, "endpoint").expect("valid");
        assert_eq!(explicit.application, Some(addresses[1]));
        assert_eq!(explicit.listen.inbound.as_slice(), &addresses[..1]);
    }

    #[test]
    fn one_endpoint_takes_all_that_is_ever_in_flight() {
        assert!(READS.connections + WRITES.connections <= CAPACITY as usize);
    }

    #[test]
    fn the_limit_is_above_what_is_sent_and_then_below() {
        const { assert!(WIDE.0 > WRITES.rate && TIGHT.0 < WRITES.rate) };
    }

    #[test]
    fn the_shares_of_a_service_add_up() {
        let endpoints = ["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"].map(|a| a.parse().expect("an address"));
        let text = service([10, 96, 0, 10].into(), &endpoints);
        for share in ["0.333333", "0.500000", "1.000000"] {
            assert_eq!(text.matches(share).count(), 1, "{text}");
        }
        assert_eq!(service([10, 96, 0, 10].into(), &[]).lines().count(), 3);
    }
}
