//! The pod's own queries, as the resolvers that pods have send them: dig, glibc, musl, and what a
//! JVM's clients do. Names of the mesh cost the cluster's DNS nothing, others once, and all of them
//! work on while it does not answer.

mod support;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use hickory_resolver::proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RecordType};
use tokio::net::UdpSocket;

use support::dns::Dns;
use support::eventually;
use support::lab::{Lab, Pod, SIDECAR_UID};
use support::namespace::require_program;
use support::sidecar::Sidecar;

const HOST: &str = "orders.shop.svc.cluster.local";
const VIP: &str = "10.96.0.10";

/// A name outside of the cluster.
const OUTSIDE: &str = "www.example.org";
const ADDRESS: &str = "10.1.2.3";
/// One with more addresses than a datagram holds.
const BIG: &str = "big.example.org";
const MANY: usize = 150;

const PATIENCE: Duration = Duration::from_secs(30);

/// What dnsmasq serves beside addresses. A name without a record does not exist.
const RECORDS: [&str; 8] = [
    "--local=/example.org/",
    "--log-queries",
    "--mx-host=example.org,mail.example.org,10",
    "--txt-record=example.org,v=spf1 -all",
    "--srv-host=_sip._udp.example.org,sip.example.org,5060,1,2",
    "--ptr-record=3.2.1.10.in-addr.arpa,www.example.org",
    "--dns-rr=odd.example.org,65280,0a0b0c",
    "--cname=alias.example.org,www.example.org",
];

/// A pod with a sidecar.
struct Captured<'a> {
    dns: &'a mut Dns,
    pod: &'a Pod,
    sidecar: &'a Sidecar<'a>,
}

fn captured(ttl: u32, settings: &str, test: impl FnOnce(Captured<'_>)) {
    let lab = Lab::new();
    let pod = lab.pod("caller");
    let mut dns = lab.dns_with(ttl, &RECORDS);
    let many: Vec<IpAddr> = (0..MANY).map(|n| IpAddr::from([10, 2, 0, n as u8])).collect();
    dns.set(HOST, &[ip(VIP)]);
    dns.set(OUTSIDE, &[ip(ADDRESS)]);
    dns.set(BIG, &many);
    pod.init();
    redirect_dns(&pod);
    let sidecar = pod.sidecar(&format!(
        "upstreams: {{ orders: {{ address: \"{HOST}:8080\", endpoints: [\"10.77.0.99:8080\"] }} }}\n{settings}"
    ));
    test(Captured { dns: &mut dns, pod: &pod, sidecar: &sidecar });
}

/// Has the pod's queries go to its sidecar, whose own do not.
fn redirect_dns(pod: &Pod) {
    for transport in ["udp", "tcp"] {
        let rule = format!(
            "-w -t nat -I OUTPUT -p {transport} --dport 53 -m owner ! --uid-owner {SIDECAR_UID} \
             -j REDIRECT --to-ports 15053"
        );
        let rule: Vec<&str> = rule.split_whitespace().collect();
        pod.namespace().run("iptables", &rule, "");
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

impl Captured<'_> {
    /// What `dig` shows, of all that it can, where it finds nothing wrong with the answer.
    fn dig(&self, args: &[&str]) -> String {
        require_program("dig", "bind9-dnsutils");
        // Within what a resolution may take and a little more.
        let all = [&["+tries=1", "+time=20"], args].concat();
        let said = self.pod.namespace().run("dig", &all, "");
        for wrong in ["WARNING", "Warning", "malformed", "mismatch", "extra bytes", "BADCOOKIE"] {
            assert!(!said.contains(wrong), "dig {args:?} finds something wrong:\n{said}");
        }
        said
    }

    fn short(&self, args: &[&str]) -> Vec<String> {
        self.dig(&[args, &["+short"]].concat()).lines().map(str::to_owned).collect()
    }

    /// How often the server was asked for this name.
    fn asked_for(&self, name: &str) -> usize {
        self.dns.asked().iter().filter(|asked| *asked == name).count()
    }

    /// The same, with what a search list makes of the name.
    fn searched_for(&self, name: &str) -> usize {
        self.dns.asked().iter().filter(|asked| asked.starts_with(name)).count()
    }

    /// The addresses that a program prints, one a line, before anything else.
    fn addresses(&self, program: &str, args: &[&str]) -> Vec<String> {
        let mut found: Vec<String> = self
            .pod
            .namespace()
            .run(program, args, "")
            .lines()
            .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
            .collect();
        found.sort();
        found.dedup();
        found
    }

    fn capture(&self, count: &str) -> u64 {
        let all = self.sidecar.get("/upstreams").json();
        all["dns"]["capture"][count].as_u64().unwrap_or_else(|| panic!("no {count}: {all}"))
    }

    /// Looks a name up by `look_up`, which has it go through the search list, until it was done
    /// twice before a denial without an SOA was over: the second time costs no query at all.
    fn assert_second_is_free(&self, name: &str, look_up: impl Fn()) {
        eventually(PATIENCE, "a second lookup at no cost", || {
            look_up();
            let before = self.searched_for(name);
            assert!(before >= 2, "it was asked for at first");
            look_up();
            (self.searched_for(name) == before).then_some(())
        });
    }
}

#[test]
fn dig_gets_every_type_and_each_from_the_cache_the_second_time() {
    captured(300, "", |captured| {
        let cases: [(&[&str], &str); 7] = [
            (&[OUTSIDE], ADDRESS),
            (&["example.org", "MX"], "10 mail.example.org."),
            (&["example.org", "TXT"], "\"v=spf1 -all\""),
            (&["_sip._udp.example.org", "SRV"], "1 2 5060 sip.example.org."),
            (&["-x", ADDRESS], "www.example.org."),
            (&["odd.example.org", "TYPE65280"], "\\# 3 0A0B0C"),
            (&["alias.example.org"], ADDRESS),
        ];
        let ways: [&[&str]; 6] =
            [&[], &["+tcp"], &["+noedns"], &["+nocookie", "+bufsize=4096"], &["+adflag"], &["+norec"]];
        for (question, expected) in cases {
            for way in ways {
                let answer = captured.short(&[question, way].concat());
                assert_eq!(answer.last().map(String::as_str), Some(expected), "{question:?} {way:?}");
            }
        }
        // Once for all ways, and once without recursion, which is not the cache's to answer.
        assert_eq!(captured.asked_for("odd.example.org"), 2);
        assert_eq!(captured.asked_for("alias.example.org"), 2);
        // DNSSEC's own answers are others.
        assert!(captured.dig(&[OUTSIDE, "+dnssec"]).contains("flags: do; udp: 1232"));
        let any = captured.dig(&["example.org", "ANY", "+notcp"]);
        assert!(any.contains("mail.example.org.") && any.contains("v=spf1"), "{any}");
        let version = captured.short(&["CH", "TXT", "version.bind"]);
        assert!(version[0].contains("dnsmasq"), "{version:?}");
        let subnet = captured.short(&[OUTSIDE, "+subnet=10.0.0.0/8"]);
        assert_eq!(subnet, [ADDRESS]);
        assert!(captured.capture("hits") > 20 && captured.capture("entries") > 6);
    });
}

#[test]
fn more_than_a_datagram_holds_comes_over_tcp() {
    captured(300, "", |captured| {
        for way in [&["+noedns"][..], &["+bufsize=4096"]] {
            let cut = captured.dig(&[&[BIG, "+ignore", "+notcp"], way].concat());
            assert!(cut.contains("flags: qr tc rd ra"), "{cut}");
            // dig tries again over TCP by itself.
            assert_eq!(
                captured.short(&[&[BIG], way].concat()).iter().filter(|a| a.starts_with("10.2.")).count(),
                MANY
            );
        }
        assert_eq!(captured.asked_for(BIG), 2, "once over UDP, and once over TCP");
    });
}

#[test]
fn names_of_the_mesh_cost_the_cluster_nothing() {
    captured(300, "", |captured| {
        for name in [HOST, "ORDERS.shop.svc.cluster.local."] {
            assert_eq!(captured.short(&[name]), [VIP]);
            assert_eq!(captured.short(&[name, "+tcp"]), [VIP]);
        }
        for name in ["orders", "orders.shop", HOST] {
            assert_eq!(captured.addresses("getent", &["ahosts", name]), [VIP], "{name}");
        }
        assert_eq!(captured.asked_for(HOST), 2, "by the resolver, for each family");
        assert!(captured.capture("mesh") >= 10);
        let mesh = captured.sidecar.metric("pannier_dns_capture_queries_total", &["answer=\"mesh\""]);
        assert!(mesh >= 10.0);
        assert!(captured.sidecar.metric("pannier_dns_capture_bytes", &[]) > 0.0);
    });
}

#[test]
fn glibc_looks_up_once() {
    captured(300, "", |captured| {
        captured.assert_second_is_free(OUTSIDE, || {
            assert_eq!(captured.addresses("getent", &["ahosts", OUTSIDE]), [ADDRESS]);
        });
    });
}

/// Prints the addresses of a name, as the C library finds them.
const LOOK_UP: &str = r#"
#include <netdb.h>
#include <stdio.h>
int main(int argc, char **argv) {
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *found;
    int error = argc == 2 ? getaddrinfo(argv[1], NULL, &hints, &found) : EAI_NONAME;
    if (error) return fprintf(stderr, "%s\n", gai_strerror(error)), 1;
    for (char text[64]; found; found = found->ai_next) {
        getnameinfo(found->ai_addr, found->ai_addrlen, text, sizeof text, NULL, 0, NI_NUMERICHOST);
        puts(text);
    }
}
"#;

fn musl_program(pod: &Pod) -> PathBuf {
    require_program("musl-gcc", "musl-tools");
    let (source, program) = (pod.dir().join("look_up.c"), pod.dir().join("look_up"));
    std::fs::write(&source, LOOK_UP).expect("the pod's directory");
    let compiled = Command::new("musl-gcc").args(["-static", "-o"]).args([&program, &source]).status();
    assert!(compiled.expect("musl-gcc runs").success());
    program
}

#[test]
fn musl_looks_up_once() {
    captured(300, "", |captured| {
        let program = musl_program(captured.pod);
        let program = program.to_str().expect("a path in text");
        captured.assert_second_is_free(OUTSIDE, || {
            assert_eq!(captured.addresses(program, &[OUTSIDE]), [ADDRESS]);
        });
        assert_eq!(captured.addresses(program, &["orders"]), [VIP]);
        // Some of its versions have no TCP: what fits of a long answer has to do.
        assert!(captured.addresses(program, &[&format!("{BIG}.")]).len() > 20);
    });
}

/// As Netty's resolver does: both families at the same time from one socket, with an EDNS size that
/// no answer gets.
async fn like_a_jvm(name: String) -> BTreeMap<u16, Message> {
    let socket = UdpSocket::bind("0.0.0.0:0").await.expect("a socket");
    // What resolv.conf names: redirected to the sidecar.
    socket.connect("10.77.0.2:53").await.expect("connected");
    for (id, kind) in [(4711, RecordType::A), (4712, RecordType::AAAA)] {
        let mut query = Message::new(id, MessageType::Query, OpCode::Query);
        query.metadata.recursion_desired = true;
        query.add_query(Query::query(Name::from_ascii(&name).expect("a name"), kind));
        let mut edns = Edns::new();
        edns.set_max_payload(4096);
        query.set_edns(edns);
        socket.send(&query.to_vec().expect("a message")).await.expect("sent");
    }
    let mut answers = BTreeMap::new();
    while answers.len() < 2 {
        let mut buffer = [0; 4096];
        let length = tokio::time::timeout(PATIENCE, socket.recv(&mut buffer)).await;
        let length = length.expect("an answer in time").expect("an answer");
        let answer = Message::from_vec(&buffer[..length]).expect("a message");
        answers.insert(answer.metadata.id, answer);
    }
    answers
}

#[test]
fn a_jvms_client_gets_both_families_on_one_socket() {
    captured(300, "", |captured| {
        for (name, address) in [(OUTSIDE, ADDRESS), (HOST, VIP)] {
            for _ in 0..3 {
                let answers = captured.pod.enter(|| like_a_jvm(format!("{name}.")));
                let addresses = |id: u16| -> Vec<IpAddr> {
                    let answer = &answers[&id];
                    assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
                    assert!(answer.edns.is_some() && answer.metadata.recursion_available);
                    answer.answers.iter().filter_map(|record| record.data.ip_addr()).collect()
                };
                assert_eq!((addresses(4711), addresses(4712)), (vec![ip(address)], vec![]));
            }
        }
        assert_eq!(captured.asked_for(OUTSIDE), 2);
    });
}

#[test]
fn while_the_server_hangs_what_was_known_is_answered_and_the_rest_fails_in_time() {
    let settings = "dns: { timeout: 1s, resolution_timeout: 2s, answer_timeout: 300ms }\n";
    captured(1, settings, |captured| {
        assert_eq!(captured.short(&[OUTSIDE]), [ADDRESS]);
        captured.dns.pause();
        eventually(PATIENCE, "a stale answer", || {
            let answer = captured.dig(&[OUTSIDE]);
            assert!(answer.contains("status: NOERROR") && answer.contains(ADDRESS), "{answer}");
            answer.contains("EDE: 3 (Stale Answer)").then_some(())
        });
        assert!(captured.capture("stale") > 0);
        let unknown = captured.dig(&["never.example.org"]);
        assert!(unknown.contains("status: SERVFAIL"), "{unknown}");
        assert_eq!(captured.short(&[HOST]), [VIP]);
        captured.dns.resume();
        eventually(PATIENCE, "a fresh answer", || {
            (!captured.dig(&[OUTSIDE]).contains("Stale Answer")).then_some(())
        });
    });
}

#[test]
fn mixed_case_is_between_us_and_the_server() {
    captured(300, "dns: { mixed_case: true }\n", |captured| {
        let answer = captured.dig(&["WWW.Example.ORG", "+noall", "+question", "+answer"]);
        assert!(answer.contains(";WWW.Example.ORG.") && answer.contains(ADDRESS), "{answer}");
        let again = captured.dig(&["www.example.org", "+noall", "+question", "+answer"]);
        assert!(again.contains(";www.example.org.") && again.contains(ADDRESS), "{again}");
        assert_eq!(captured.asked_for(OUTSIDE), 1);
    });
}
