//! The lab itself, proven before anything is proven by it: its network, its servers, its
//! applications and its load.

mod support;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_resolver::Resolver;
use hickory_resolver::config::{NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hyper::Version;
use rustix::process::Signal;
use support::authority::Authority;
use support::client::{get, request, send, talk};
use support::eventually;
use support::lab::{Lab, Pod};
use support::load::Load;

/// The addresses and TTLs that a pod's query for `name` is answered with.
fn resolve(pod: &Pod, server: SocketAddr, name: &str) -> Result<Vec<(IpAddr, u32)>, String> {
    let name = format!("{name}.");
    pod.enter(|| async {
        let config =
            ResolverConfig::from_parts(None, vec![], vec![NameServerConfig::udp_and_tcp(server.ip())]);
        let mut resolver = Resolver::builder_with_config(config, TokioRuntimeProvider::default());
        resolver.options_mut().timeout = Duration::from_secs(1);
        resolver.options_mut().attempts = 1;
        let resolver = resolver.build().map_err(|e| e.to_string())?;
        let found = resolver.lookup_ip(name.as_str()).await.map_err(|e| e.to_string())?;
        let records = found.as_lookup().answers().iter();
        Ok(records.filter_map(|record| Some((record.data.ip_addr()?, record.ttl))).collect())
    })
}

#[test]
fn pods_reach_each_other_through_the_node_and_services() {
    let lab = Lab::new();
    let (caller, one, two) = (lab.pod("caller"), lab.pod("one"), lab.pod("two"));
    for v in 0..2 {
        let apps = [&one, &two].map(|pod| pod.app(pod.addresses(8080)[v]));
        let to = apps[0].address();
        let answer = caller.enter(|| get(to, "one", "/x?y=1")).expect("an answer");
        assert_eq!((answer.status.as_u16(), answer.pod()), (200, Some("one")));
        let told = answer.json();
        assert_eq!(told["path"], "/x?y=1");
        assert_eq!(
            told["peer"].as_str().map(|peer| peer.contains(&caller.addresses(1)[v].ip().to_string())),
            Some(true)
        );

        let vip: SocketAddr = ["10.96.0.1:80", "[fd96::1]:80"][v].parse().expect("an address");
        let service = lab.service(vip, &apps.each_ref().map(|app| app.address()));
        let tally = Load { requests: Some(40), connections: 20, ..Load::new(vip, "orders") }.run(&caller);
        tally.assert_all_ok();
        assert_eq!(tally.pods.values().sum::<u64>(), 40);
        service.endpoints(&[apps[1].address()]);
        let tally = Load { requests: Some(20), ..Load::new(vip, "orders") }.run(&caller);
        assert_eq!(tally.pods.into_iter().collect::<Vec<_>>(), [("two".to_owned(), 20)]);
    }
}

#[test]
fn dns_follows_its_records_and_fails_on_demand() {
    let lab = Lab::new();
    let caller = lab.pod("caller");
    let mut dns = lab.dns(3);
    let (server, name) = (dns.address(), "orders.shop.svc.cluster.local");
    assert!(resolve(&caller, server, name).is_err());
    dns.set(name, &[caller.v4(), caller.v6()]);
    let mut found = resolve(&caller, server, name).expect("addresses");
    found.sort();
    assert_eq!(found, [(caller.v4(), 3), (caller.v6(), 3)]);
    dns.set(name, &["10.77.0.99".parse().expect("an address")]);
    assert_eq!(resolve(&caller, server, name).expect("addresses").len(), 1);
    dns.restart(1);
    assert_eq!(resolve(&caller, server, name).expect("addresses")[0].1, 1);
    dns.kill();
    assert!(resolve(&caller, server, name).is_err());
    // What programs of a pod ask is what the lab says.
    let asked = caller.namespace().run(
        "ip",
        &["netns", "exec", caller.namespace().name(), "cat", "/etc/resolv.conf"],
        "",
    );
    assert!(asked.contains(&server.ip().to_string()), "{asked}");
}

#[test]
fn redis_dies_and_comes_back_empty() {
    let lab = Lab::new();
    let mut redis = lab.redis();
    assert_eq!(redis.command("SET a 1"), "+OK\r\n");
    assert!(redis.command("GET a").contains('1'));
    redis.restart();
    assert_eq!(redis.command("GET a"), "$-1\r\n");
}

#[test]
fn applications_speak_what_they_should() {
    let lab = Lab::new();
    let (caller, pod) = (lab.pod("caller"), lab.pod("app"));
    let any = |port| SocketAddr::from(([0, 0, 0, 0], port));
    let at = |port| SocketAddr::new(pod.v4(), port);
    let _apps =
        (pod.app(any(8080)), pod.h2_app(any(8081)), pod.greeting_app(any(3306), b"\x0a8.0.36-greeting"));

    let echoed = caller
        .enter(|| send(at(8080), request("POST", "app", "/echo", vec![b'x'; 300_000])))
        .expect("an echo");
    assert_eq!((echoed.body.len(), echoed.pod()), (300_000, Some("app")));

    let mut h2 = request("GET", "app", "http://app/", "");
    *h2.version_mut() = Version::HTTP_2;
    h2.headers_mut().remove("host");
    assert_eq!(caller.enter(|| send(at(8081), h2)).expect("an answer").json()["version"], "2");

    let greeted = caller.enter(|| talk(at(3306), "", |got| got.ends_with(b"greeting"))).expect("a greeting");
    assert_eq!(greeted, b"\x0a8.0.36-greeting");
}

#[test]
fn load_tells_failures_and_who_answered() {
    let lab = Lab::new();
    let (caller, pod) = (lab.pod("caller"), lab.pod("app"));
    let app = pod.app(pod.addresses(8080)[0]);
    app.delay(Duration::from_millis(5));
    let to = app.address();
    let sending = Load { connections: 4, ..Load::new(to, "app") }.start(&caller);
    eventually(Duration::from_secs(10), "a few answers", || (sending.so_far().ok() > 20).then_some(()));
    let tally = sending.stop();
    tally.assert_all_ok();
    assert_eq!((app.requests().len() as u64, app.connections()), (tally.ok(), 4));
    drop(app);
    let tally = Load { requests: Some(3), ..Load::new(to, "app") }.run(&caller);
    assert_eq!((tally.ok(), tally.failures.values().sum::<u64>()), (0, 3));
    assert!(tally.failures.keys().all(|why| why.contains("connect")), "{tally:?}");
}

#[test]
fn captures_show_what_went_over_the_wire() {
    let lab = Lab::new();
    let (caller, pod) = (lab.pod("caller"), lab.pod("app"));
    let app = pod.app(pod.addresses(8080)[1]);
    let capture = lab.capture("");
    caller.enter(|| get(app.address(), "app", "/a-secret-in-plain-sight")).expect("an answer");
    let packets = capture.stop();
    assert!(packets.contain(b"/a-secret-in-plain-sight"));
    assert!(!packets.contain(b"/a-secret-never-sent"));
}

#[test]
fn programs_run_in_the_pod_as_their_user() {
    let lab = Lab::new();
    let pod = lab.pod("pod");
    let mut process = pod.spawn("sh", &["-c", "id -u; ip -4 -o addr show eth0; sleep 60"], 1337);
    let said = process.until(Duration::from_secs(10), "its words", |process| {
        Some(process.log()).filter(|log| log.lines().count() >= 2)
    });
    assert!(said.starts_with("1337\n") && said.contains(&pod.v4().to_string()), "{said}");
    process.signal(Signal::TERM);
    assert!(!process.wait(Duration::from_secs(10)).success());
}

#[test]
fn identities_are_spiffe_and_the_sidecar_can_read_them() {
    let lab = Lab::new();
    let pod = lab.pod("orders");
    let files = Authority::new("cluster.local").issue(&pod, "ns/shop/sa/orders");
    let files = files.paths();
    let read = pod.spawn(
        "cat",
        &[&files.certificate, &files.key, &files.bundle].map(|f| f.to_str().expect("UTF-8")),
        1337,
    );
    let mut read = read;
    assert!(read.wait(Duration::from_secs(10)).success(), "{}", read.log());
    assert_eq!(read.log().matches("BEGIN CERTIFICATE").count(), 2);
    let der = rustls_pki_types::pem::PemObject::from_pem_file(&files.certificate).expect("a certificate");
    let der: rustls_pki_types::CertificateDer<'_> = der;
    let (_, certificate) = x509_parser::parse_x509_certificate(&der).expect("a certificate");
    let names = certificate.subject_alternative_name().expect("valid").expect("there").value;
    assert!(format!("{names:?}").contains("spiffe://cluster.local/ns/shop/sa/orders"), "{names:?}");
}
