//! The rules that `pannier init` installs, proven by packets: who dials what, and who answers.
//! One table of cases holds for IPv4 and IPv6.

mod support;

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::mpsc;

use pannier::intercept::install::{self, Error};
use pannier::intercept::rules::{Family, RuleSet};
use pannier::intercept::{INBOUND_SOURCE, is_local, original_destination};
use support::lab::{Lab, Pod};
use support::namespace::Running;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, UdpSocket};

const APPLICATION: (u32, u32) = (1000, 1000);
const ROOT: (u32, u32) = (0, 0);
const SIDECAR: (u32, u32) = (1337, 1337);
/// Another process of the sidecar, known by its group.
const HELPER: (u32, u32) = (1000, 1338);

/// The port that the rules under test leave out, in each direction.
const EXCLUDED_INBOUND: u16 = 9090;
const EXCLUDED_OUTBOUND: u16 = 5432;

/// An address of a documentation range: nobody is there.
const NOBODY: [&str; 2] = ["203.0.113.1:80", "[2001:db8::1]:80"];
/// Services' addresses: on the node, and in the pod.
const VIP: [&str; 2] = ["10.96.0.10:80", "[fd96::10]:80"];
const VIP_IN_POD: [&str; 2] = ["10.96.0.20:80", "[fd96::20]:80"];

/// Who answered, and what it knows of the connection.
#[derive(Debug, PartialEq)]
enum Answer {
    /// A listener of the pod or the peer, by its name, with no redirection.
    Direct(String, IpAddr),
    /// A listener that was redirected to: its name, and the original destination.
    Redirected(String, SocketAddr),
    /// A reset, in answer to the first packet.
    Refused,
}

/// Accepts connections and tells each what it knows: its name, the original destination, the
/// client's address.
fn listen(pod: &Pod, name: &'static str, addresses: &[SocketAddr]) -> Vec<Running<()>> {
    let each = addresses.iter().map(|&address| {
        let (bound, listening) = mpsc::channel();
        let running = pod.start(move || async move {
            let listener =
                TcpListener::bind(address).await.unwrap_or_else(|e| panic!("{name} on {address}: {e}"));
            bound.send(()).expect("the test waits");
            while let Ok((mut stream, peer)) = listener.accept().await {
                let original =
                    original_destination(&stream).map_or("-".into(), |address| address.to_string());
                let told = format!("{name} {original} {}", peer.ip().to_canonical());
                let _ = stream.write_all(told.as_bytes()).await;
            }
        });
        listening.recv().unwrap_or_else(|_| panic!("{name} does not listen on {address}"));
        running
    });
    each.collect()
}

/// Dials from a pod as a user, and from a source address if one is given.
fn dial(pod: &Pod, (uid, gid): (u32, u32), from: Option<IpAddr>, to: SocketAddr) -> Answer {
    let told = pod.enter_as(uid, gid, || async {
        let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if let Some(from) = from {
            socket.bind((from, 0).into())?;
        }
        let mut told = String::new();
        let read = async { socket.connect(to).await?.read_to_string(&mut told).await };
        tokio::time::timeout(std::time::Duration::from_secs(5), read).await??;
        Ok::<_, std::io::Error>(told)
    });
    let told = match told {
        Ok(told) => told,
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Answer::Refused,
        Err(error) => panic!("{uid}:{gid} in {} to {to}: {error}", pod.name()),
    };
    let parts: Vec<_> = told.split(' ').collect();
    let [name, original, peer] = parts[..] else { panic!("a listener said {told:?}") };
    match original {
        "-" => Answer::Direct(name.into(), peer.parse().expect("an address")),
        original => Answer::Redirected(name.into(), original.parse().expect("an address")),
    }
}

#[test]
fn every_connection_goes_where_the_rules_say() {
    let lab = Lab::new();
    let (pod, peer) = (lab.pod("pod"), lab.pod("peer"));
    // IPv4 arrives as IPv4-mapped IPv6.
    let any = |port: u16| [SocketAddr::from(([0u16; 8], port))];
    let loopback =
        |port| [format!("127.0.0.1:{port}"), format!("[::1]:{port}")].map(|a| a.parse().expect("an address"));
    let _listeners = [
        listen(&pod, "outbound", &loopback(15001)),
        listen(&pod, "inbound", &any(15006)),
        listen(&pod, "admin", &any(15000)),
        listen(&pod, "dns", &any(15053)),
        listen(&pod, "probes", &any(15020)),
        listen(&pod, "app", &any(8080)),
        listen(&pod, "pod-ip-app", &pod.addresses(8081)),
        listen(&pod, "local-app", &loopback(8082)),
        listen(&pod, "excluded", &any(EXCLUDED_INBOUND)),
        listen(&peer, "peer", &any(8080)),
        listen(&peer, "peer-db", &any(EXCLUDED_OUTBOUND)),
        listen(&peer, "peer-inbound", &any(15006)),
    ];
    let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
    let _services: Vec<_> = (0..2)
        .flat_map(|v| {
            let to = [peer.addresses(8080)[v]];
            [lab.service(address(VIP[v]), &to), pod.service(address(VIP_IN_POD[v]), &to)]
        })
        .collect();
    // After the pod's other rules, as an init container may run: ours still come first.
    pod.intercept(&RuleSet {
        gid: Some(HELPER.1),
        exclude_inbound_ports: vec![EXCLUDED_INBOUND],
        exclude_outbound_ports: vec![EXCLUDED_OUTBOUND],
        ..RuleSet::default()
    });

    for v in 0..2 {
        let here = |port| pod.addresses(port)[v];
        let there = |port| peer.addresses(port)[v];
        let local = |port| loopback(port)[v];
        let (vip, vip_in_pod, nobody) = (address(VIP[v]), address(VIP_IN_POD[v]), address(NOBODY[v]));
        let inner = INBOUND_SOURCE.towards(here(1).ip());
        let source = Some(inner);
        let outbound = |original| Answer::Redirected("outbound".into(), original);
        let inbound = |original| Answer::Redirected("inbound".into(), original);
        let direct = |name: &str, from: IpAddr| Answer::Direct(name.into(), from);
        let (my_ip, peers_ip, localhost) = (here(1).ip(), there(1).ip(), local(1).ip());

        let cases = [
            // What the application sends.
            (&pod, APPLICATION, None, there(8080), outbound(there(8080))),
            (&pod, APPLICATION, None, there(15006), outbound(there(15006))),
            (&pod, APPLICATION, None, there(EXCLUDED_INBOUND), outbound(there(EXCLUDED_INBOUND))),
            (&pod, APPLICATION, None, nobody, outbound(nobody)),
            (&pod, APPLICATION, None, vip, outbound(vip)),
            (&pod, APPLICATION, None, vip_in_pod, outbound(vip_in_pod)),
            (&pod, ROOT, None, there(8080), outbound(there(8080))),
            (&pod, APPLICATION, None, there(EXCLUDED_OUTBOUND), direct("peer-db", my_ip)),
            (&pod, APPLICATION, None, local(8082), direct("local-app", localhost)),
            (&pod, APPLICATION, None, local(8080), direct("app", localhost)),
            (&pod, APPLICATION, None, here(8080), direct("app", my_ip)),
            (&pod, APPLICATION, None, here(8081), direct("pod-ip-app", my_ip)),
            (&pod, APPLICATION, None, here(8082), Answer::Refused),
            (&pod, APPLICATION, None, local(15001), direct("outbound", localhost)),
            // What the sidecar sends: it never meets itself, unless it means its own pod.
            (&pod, SIDECAR, None, there(8080), direct("peer", my_ip)),
            (&pod, SIDECAR, None, vip, direct("peer", my_ip)),
            (&pod, SIDECAR, None, there(15006), direct("peer-inbound", my_ip)),
            (&pod, SIDECAR, None, local(8082), direct("local-app", localhost)),
            (&pod, SIDECAR, None, here(8080), inbound(here(8080))),
            (&pod, SIDECAR, None, here(8081), inbound(here(8081))),
            (&pod, SIDECAR, None, here(15001), inbound(here(15001))),
            (&pod, SIDECAR, None, here(EXCLUDED_INBOUND), direct("excluded", my_ip)),
            (&pod, SIDECAR, None, here(15020), direct("probes", my_ip)),
            (&pod, HELPER, None, there(8080), direct("peer", my_ip)),
            (&pod, HELPER, None, local(8082), direct("local-app", localhost)),
            (&pod, HELPER, None, here(8080), inbound(here(8080))),
            // The inbound listener's way to the application.
            (&pod, SIDECAR, source, here(8080), direct("app", inner)),
            (&pod, SIDECAR, source, here(8081), direct("pod-ip-app", inner)),
            (&pod, SIDECAR, source, here(8082), Answer::Refused),
            (&pod, SIDECAR, source, local(8082), direct("local-app", inner)),
            // What others send.
            (&peer, ROOT, None, here(8080), inbound(here(8080))),
            (&peer, ROOT, None, here(8081), inbound(here(8081))),
            (&peer, ROOT, None, here(8082), inbound(here(8082))),
            (&peer, ROOT, None, here(12345), inbound(here(12345))),
            (&peer, ROOT, None, here(EXCLUDED_OUTBOUND), inbound(here(EXCLUDED_OUTBOUND))),
            (&peer, SIDECAR, None, here(8080), inbound(here(8080))),
            (&peer, ROOT, None, here(EXCLUDED_INBOUND), direct("excluded", peers_ip)),
            (&peer, ROOT, None, here(15020), direct("probes", peers_ip)),
            (&peer, ROOT, None, here(15000), Answer::Refused),
            (&peer, ROOT, None, here(15001), Answer::Refused),
            (&peer, ROOT, None, here(15006), Answer::Refused),
            (&peer, ROOT, None, here(15053), Answer::Refused),
        ];
        for (from, user, source, to, expected) in cases {
            let answer = dial(from, user, source, to);
            assert_eq!(answer, expected, "{user:?} in {}, from {source:?}, to {to}", from.name());
        }
    }
}

#[test]
fn udp_is_not_touched() {
    let lab = Lab::new();
    let (pod, peer) = (lab.pod("pod"), lab.pod("peer"));
    pod.intercept(&RuleSet::default());
    for (from, to) in [(&pod, &peer), (&peer, &pod)] {
        for v in 0..2 {
            let to_address = to.addresses(8080)[v];
            let (bound, listening) = mpsc::channel();
            let heard = to.start(move || async move {
                let socket = UdpSocket::bind(to_address).await.expect("a free port");
                bound.send(()).expect("the test waits");
                let mut buffer = [0; 16];
                let (len, peer) = socket.recv_from(&mut buffer).await.expect("a packet");
                (buffer[..len].to_vec(), peer.ip())
            });
            listening.recv().expect("bound");
            let source = from.addresses(0)[v];
            from.enter(|| async {
                let socket = UdpSocket::bind(source).await.expect("a socket");
                socket.send_to(b"hello", to_address).await.expect("sent");
            });
            assert_eq!(heard.join(), (b"hello".to_vec(), source.ip()));
        }
    }
}

/// The rules of both families: each with its table's name, in order.
fn rules(pod: &Pod) -> Vec<String> {
    let saved = ["iptables-save", "ip6tables-save"].map(|program| pod.namespace().run(program, &[], ""));
    let mut table = String::new();
    let mut rules = Vec::new();
    for line in saved.concat().lines() {
        match line.as_bytes().first() {
            Some(b'*') => line.clone_into(&mut table),
            Some(b'-') => rules.push(format!("{table} {line}")),
            _ => {}
        }
    }
    rules
}

#[test]
fn a_second_run_changes_nothing_and_removal_takes_all() {
    let lab = Lab::new();
    let pod = lab.pod("pod");
    let others = "*nat\n-A OUTPUT -d 192.0.2.1/32 -p tcp -j RETURN\n-A PREROUTING -d 192.0.2.1/32 -p tcp -j RETURN\nCOMMIT\n";
    pod.namespace().run("iptables-restore", &["--noflush"], others);
    let before = rules(&pod);
    let source = INBOUND_SOURCE.v6.into();
    assert!(!pod.enter(|| async { is_local(source) }), "::6 is nobody's yet");

    let chosen = RuleSet { exclude_inbound_ports: vec![9090], ..RuleSet::default() };
    pod.intercept(&chosen);
    let once = rules(&pod);
    assert!(pod.enter(|| async { is_local(source) }), "::6 is on lo");
    pod.intercept(&chosen);
    assert_eq!(rules(&pod), once);

    // Another choice replaces the first.
    pod.intercept(&RuleSet::default());
    assert_ne!(rules(&pod), once);
    pod.intercept(&chosen);
    assert_eq!(rules(&pod), once);

    let remove = || pod.enter(|| async { install::remove(install::families()) }).expect("removed");
    remove();
    assert_eq!(rules(&pod), before);
    assert!(!pod.namespace().run("iptables-save", &[], "").contains("PANNIER"), "a chain is left");
    assert!(!pod.namespace().run("ip6tables-save", &[], "").contains("PANNIER"), "a chain is left");
    assert!(!pod.enter(|| async { is_local(source) }), "::6 is gone");
    remove();
}

#[test]
fn without_ipv6_the_rest_is_intercepted() {
    let lab = Lab::new();
    let pod = lab.pod("pod");
    pod.namespace().sysctl(&[("net.ipv6.conf.all.disable_ipv6", "1")]);
    pod.enter(|| async {
        assert_eq!(install::families(), [Family::V4]);
        install::install(&RuleSet::default(), install::families()).expect("IPv4 alone");
    });
    assert!(pod.namespace().run("iptables-save", &[], "").contains("PANNIER_OUTBOUND"));
    assert!(!pod.namespace().run("ip6tables-save", &[], "").contains("PANNIER"));
}

#[test]
fn without_the_capabilities_the_message_says_what_to_do() {
    let lab = Lab::new();
    let pod = lab.pod("pod");
    let before = rules(&pod);
    let refused = pod.enter_as(1000, 1000, || async { install::install(&RuleSet::default(), &Family::ALL) });
    let error = refused.expect_err("a user may not change rules");
    assert!(matches!(error, Error::NotPermitted), "{error}");
    assert!(error.to_string().contains("add: [NET_ADMIN, NET_RAW]"), "{error}");
    assert_eq!(rules(&pod), before);
}

#[test]
fn own_addresses_are_the_pods_and_nobody_elses() {
    let lab = Lab::new();
    let (pod, peer) = (lab.pod("pod"), lab.pod("peer"));
    let (mine, theirs) = ([pod.v4(), pod.v6()], [peer.v4(), peer.v6()]);
    pod.enter(|| async {
        assert!(mine.iter().all(|&ip| is_local(ip)), "{mine:?}");
        assert!(!theirs.iter().any(|&ip| is_local(ip)), "{theirs:?}");
    });
}
