//! The main job, end to end: pods with an application that knows nothing of Pannier, the real
//! binary beside it, real rules, real DNS, and mutual TLS in between. Each test holds for IPv4
//! and IPv6.

mod support;

use std::net::{IpAddr, SocketAddr};

use support::authority::Authority;
use support::client::{Answer, get, talk};
use support::dns::Dns;
use support::lab::{Lab, Pod};
use support::load::Load;
use support::sidecar::Sidecar;

const HOST: &str = "orders.shop.svc.cluster.local";
const ENDPOINTS: &str = "orders-headless.shop.svc.cluster.local";
const PORT: u16 = 8080;

/// What applications dial, in each family. Node DNAT leads elsewhere on purpose: only a sidecar
/// that balances over the endpoints reaches all of them.
const VIP: [&str; 2] = ["10.96.0.10", "fd96::10"];

fn vip(v: usize, port: u16) -> SocketAddr {
    SocketAddr::new(VIP[v].parse().expect("an address"), port)
}

/// A sidecar in front of the orders application: mutual TLS, or nothing.
fn orders_sidecar<'a>(pod: &'a Pod, authority: &Authority) -> Sidecar<'a> {
    orders_sidecar_with(pod, authority, "")
}

/// The same, with rules.
fn orders_sidecar_with<'a>(pod: &'a Pod, authority: &Authority, allow: &str) -> Sidecar<'a> {
    let files = authority.issue(pod, "ns/shop/sa/orders");
    pod.init();
    pod.sidecar(&format!("{}inbound: {{ mtls: strict{allow} }}\n", files.yaml()))
}

/// A sidecar beside a caller of orders, which must prove to be `peer`.
fn caller_sidecar<'a>(pod: &'a Pod, authority: &Authority, peer: &str) -> Sidecar<'a> {
    let files = authority.issue(pod, "ns/shop/sa/caller");
    pod.init();
    pod.sidecar(&format!(
        "{identity}upstreams:
  orders:
    address: {HOST}:{PORT}
    endpoints: {ENDPOINTS}:{PORT}
    mtls: {{ mode: require, peer: \"{peer}\" }}
  database:
    address: {HOST}:3306
    endpoints: {ENDPOINTS}:3306
    mtls: {{ mode: require, peer: \"{peer}\" }}
",
        identity = files.yaml()
    ))
}

/// The names of one family.
fn names(dns: &mut Dns, v: usize, endpoints: &[&Pod]) {
    dns.set(HOST, &[vip(v, PORT).ip()]);
    let addresses: Vec<IpAddr> = endpoints.iter().map(|pod| pod.addresses(PORT)[v].ip()).collect();
    dns.set(ENDPOINTS, &addresses);
}

fn call(from: &Pod, to: SocketAddr, host: &str, path: &str) -> Answer {
    from.enter(|| get(to, host, path))
        .unwrap_or_else(|e| panic!("{} to {to}, {host}{path}: {e}", from.name()))
}

const ORDERS: &str = "spiffe://cluster.local/ns/shop/sa/orders";

#[test]
fn a_service_is_called_over_mtls_and_every_endpoint_answers() {
    for v in 0..2 {
        let lab = Lab::new();
        let authority = Authority::new("cluster.local");
        let (caller, one, two) = (lab.pod("caller"), lab.pod("one"), lab.pod("two"));
        let mut dns = lab.dns(1);
        names(&mut dns, v, &[&one, &two]);
        let apps = [&one, &two].map(|pod| pod.app(pod.addresses(PORT)[v]));
        let _service = lab.service(vip(v, PORT), &[apps[0].address()]);
        let _sidecars = (
            orders_sidecar(&one, &authority),
            orders_sidecar(&two, &authority),
            caller_sidecar(&caller, &authority, ORDERS),
        );

        let capture = lab.capture("tcp");
        let host = format!("{HOST}:{PORT}");
        let tally = Load {
            path: "/plaintext-canary".into(),
            connections: 4,
            requests: Some(200),
            ..Load::new(vip(v, PORT), &host)
        }
        .run(&caller);
        tally.assert_all_ok();
        assert!(tally.pods["one"] > 0 && tally.pods["two"] > 0, "{tally:?}");

        let told = call(&caller, vip(v, PORT), &host, "/plaintext-canary").json();
        assert!(told["peer"].as_str().expect("text").starts_with(["127.0.0.6:", "[::6]:"][v]), "{told}");
        let packets = capture.stop();
        assert!(packets.len() > 10_000, "the capture saw nothing");
        assert!(!packets.contain(b"plaintext-canary"), "a request went in the clear between pods");
    }
}

#[test]
fn an_endpoint_with_another_identity_is_refused() {
    for v in 0..2 {
        let lab = Lab::new();
        let authority = Authority::new("cluster.local");
        let (caller, one) = (lab.pod("caller"), lab.pod("one"));
        let mut dns = lab.dns(1);
        names(&mut dns, v, &[&one]);
        let app = one.app(one.addresses(PORT)[v]);
        let _sidecars = (
            orders_sidecar(&one, &authority),
            caller_sidecar(&caller, &authority, "spiffe://cluster.local/ns/shop/sa/somebody-else"),
        );
        let answer = call(&caller, vip(v, PORT), HOST, "/");
        assert_eq!(answer.status, 503);
        assert!(answer.refused().is_some_and(|why| why.starts_with("tls.identity")), "{answer:?}");
        assert!(app.requests().is_empty(), "the application was reached");
    }
}

#[test]
fn a_caller_without_identity_does_not_get_in() {
    for v in 0..2 {
        let lab = Lab::new();
        let authority = Authority::new("cluster.local");
        let (stranger, one) = (lab.pod("stranger"), lab.pod("one"));
        let app = one.app(one.addresses(PORT)[v]);
        let _sidecar = orders_sidecar(&one, &authority);
        let answer = call(&stranger, app.address(), HOST, "/");
        assert_eq!(answer.status, 403);
        assert!(answer.refused().is_some_and(|why| why.starts_with("auth.plaintext")), "{answer:?}");
        assert!(app.requests().is_empty(), "the application was reached");
    }
}

#[test]
fn inbound_reaches_what_listens_on_the_pod_and_nothing_private() {
    for v in 0..2 {
        let lab = Lab::new();
        let (caller, one) = (lab.pod("caller"), lab.pod("one"));
        let [private_v4, private_v6] =
            ["127.0.0.1:8082", "[::1]:8082"].map(|a| a.parse().expect("an address"));
        let on_pod_ip = one.app(one.addresses(8081)[v]);
        let private = one.app([private_v4, private_v6][v]);
        one.init();
        let _sidecar = one.sidecar("");

        assert_eq!(call(&caller, on_pod_ip.address(), "one", "/").pod(), Some("one"));

        let to = one.addresses(8082)[v];
        let answer = call(&caller, to, "one", "/");
        assert!(answer.refused().is_some_and(|why| why.starts_with("pool.connect")), "{answer:?}");
        assert!(private.requests().is_empty(), "a port of localhost was reached from outside");

        for port in [15000, 15001, 15006, 15053] {
            let to = one.addresses(port)[v];
            let refused = caller.enter(|| get(to, "one", "/")).expect_err("a private port of the sidecar");
            assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "{to}: {refused}");
        }
    }
}

#[test]
fn the_address_decides_where_a_mismatching_host_goes() {
    for v in 0..2 {
        let lab = Lab::new();
        let authority = Authority::new("cluster.local");
        let (caller, one, elsewhere) = (lab.pod("caller"), lab.pod("one"), lab.pod("elsewhere"));
        let mut dns = lab.dns(1);
        names(&mut dns, v, &[&one]);
        let app = one.app(one.addresses(PORT)[v]);
        let other = elsewhere.app(elsewhere.addresses(PORT)[v]);
        let _sidecars = (orders_sidecar(&one, &authority), caller_sidecar(&caller, &authority, ORDERS));
        let answer = call(&caller, other.address(), &format!("{HOST}:{PORT}"), "/");
        assert_eq!((answer.status.as_u16(), answer.pod()), (200, Some("elsewhere")));
        assert!(app.requests().is_empty(), "the host was believed");
    }
}

#[test]
fn a_server_that_speaks_first_is_heard_through_the_pair() {
    for v in 0..2 {
        let lab = Lab::new();
        let authority = Authority::new("cluster.local");
        let (caller, one) = (lab.pod("caller"), lab.pod("one"));
        let mut dns = lab.dns(1);
        names(&mut dns, v, &[&one]);
        let _app = one.greeting_app(one.addresses(3306)[v], b"\x0a8.0.36-greeting");
        let _sidecars = (orders_sidecar(&one, &authority), caller_sidecar(&caller, &authority, ORDERS));
        let capture = lab.capture("tcp");
        let got =
            caller.enter(|| talk(vip(v, 3306), "", |got| got.ends_with(b"greeting"))).expect("a greeting");
        assert_eq!(got, b"\x0a8.0.36-greeting");
        assert!(!capture.stop().contain(b"8.0.36-greeting"), "it went in the clear between pods");
    }
}

/// What an application asks of the proxy that it was told to use is the proxy's to answer, be it in the
/// mesh or not.
#[test]
fn connect_to_a_proxy_reaches_that_proxy() {
    for v in 0..2 {
        let lab = Lab::new();
        let authority = Authority::new("cluster.local");
        let (caller, one, stranger) = (lab.pod("caller"), lab.pod("one"), lab.pod("stranger"));
        let mut dns = lab.dns(1);
        names(&mut dns, v, &[&one]);
        let meshed = one.proxy_app(one.addresses(PORT)[v]);
        let elsewhere = stranger.proxy_app(stranger.addresses(3128)[v]);
        let _service = lab.service(vip(v, PORT), &[meshed.address()]);
        let _sidecars = (orders_sidecar(&one, &authority), caller_sidecar(&caller, &authority, ORDERS));
        let capture = lab.capture("tcp");
        for (proxy, secret) in [(vip(v, PORT), true), (elsewhere.address(), false)] {
            // Whom it names is no business of the sidecar's, even where that has a route.
            let name = if secret { "canary.test:443".to_owned() } else { format!("{HOST}:{PORT}") };
            let head = format!("CONNECT {name} HTTP/1.1\r\nhost: {name}\r\n\r\nand back");
            let got = caller.enter(|| talk(proxy, head, |got| got.ends_with(b"and back"))).expect("a tunnel");
            let got = String::from_utf8_lossy(&got);
            assert!(got.starts_with("HTTP/1.1 200 "), "{got}");
            assert!(got.ends_with(&format!("\r\n\r\nCONNECT {name} HTTP/1.1and back")), "{got}");
        }
        let packets = capture.stop();
        assert!(
            packets.contain(b"CONNECT orders") && !packets.contain(b"canary"),
            "in the clear between pods"
        );
    }
}

/// Behind CONNECT no rule about paths or methods could see anything.
#[test]
fn connect_takes_a_rule_for_everything() {
    for (rule, allowed) in [("path: /, ", false), ("method: [CONNECT, GET], ", false), ("", true)] {
        let lab = Lab::new();
        let authority = Authority::new("cluster.local");
        let (caller, one) = (lab.pod("caller"), lab.pod("one"));
        let mut dns = lab.dns(1);
        names(&mut dns, 0, &[&one]);
        let proxy = one.proxy_app(one.addresses(PORT)[0]);
        let _service = lab.service(vip(0, PORT), &[proxy.address()]);
        let allow = format!(", allow: [{{ {rule}caller: \"spiffe://cluster.local/*\" }}]");
        let _sidecars =
            (orders_sidecar_with(&one, &authority, &allow), caller_sidecar(&caller, &authority, ORDERS));
        let head = "CONNECT a.test:80 HTTP/1.1\r\nhost: a.test:80\r\n\r\nand back";
        let enough = |got: &[u8]| got.ends_with(b"and back") || got.ends_with(b"\n");
        let got = caller.enter(|| talk(vip(0, PORT), head, enough)).expect("an answer");
        let got = String::from_utf8_lossy(&got);
        assert_eq!(got.starts_with("HTTP/1.1 200 "), allowed, "{rule}: {got}");
        assert_eq!(got.contains("auth.denied"), !allowed, "{rule}: {got}");
        assert_eq!(proxy.connections() > 0, allowed, "{rule}");
    }
}
