//! The endpoint zone, asked by dig: what is there, what is not, and that changes of the files are
//! followed while what is wrong changes nothing.

mod support;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;

use support::client::{self, Answer};
use support::eventually;
use support::loopback::{binary, bound, run};
use support::process::Process;

/// How long a controller may take to start, or to follow a change.
const SOON: Duration = Duration::from_secs(15);

const SERVICE: &str = "orders.shop.endpoints.mesh";

/// A slice of a service in the namespace `shop`, its endpoints in flow style.
fn slice(service: &str, family: &str, endpoints: &str) -> String {
    format!(
        "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: {service}-{family}
  namespace: shop
  labels: {{ kubernetes.io/service-name: {service} }}
addressType: {family}
ports: [{{ name: http, port: 8080, protocol: TCP }}]
endpoints: [{endpoints}]
"
    )
}

/// Orders with these IPv4 addresses.
fn orders(addresses: &[&str]) -> String {
    let one = |address: &&str| format!("{{ addresses: [{address}] }}");
    slice("orders", "IPv4", &addresses.iter().map(one).collect::<Vec<_>>().join(", "))
}

/// Replaces a file in one step.
fn put(file: &Path, text: &str) {
    let new = file.with_extension("new");
    fs::write(&new, text).and_then(|()| fs::rename(&new, file)).expect("our own directory");
}

struct Controller {
    process: Process,
    dns: SocketAddr,
    probes: SocketAddr,
    _dir: TempDir,
}

impl Controller {
    /// Starts one that serves what is at `slices`.
    fn start(slices: &Path, more: &[&str]) -> Self {
        let dir = TempDir::with_prefix("pannier-controller-").expect("a temporary directory");
        let mut command = binary(&["controller", "--listen", "127.0.0.1:0", "--probes", "127.0.0.1:0"]);
        command.arg("--slices").arg(slices).args(more).env("PANNIER_LOG", "debug");
        let mut process = Process::start(command, "controller", &dir.path().join("log"));
        let bound = process.until(SOON, "listening", |process| {
            let bound = bound(&process.log());
            (bound.len() == 2).then_some(bound)
        });
        Self { process, dns: bound["dns"], probes: bound["probes"], _dir: dir }
    }

    /// As [`start`](Self::start), and waits until it is ready.
    fn ready(slices: &Path) -> Self {
        let controller = Self::start(slices, &[]);
        eventually(SOON, "readiness", || (controller.get("/ready").status == 200).then_some(()));
        controller
    }

    fn get(&self, path: &str) -> Answer {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(client::get(self.probes, "localhost", path)).expect("an answer")
    }

    fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        client::metric(self.get("/metrics").text(), name, labels)
    }

    /// Asks by dig, with its arguments separated by spaces.
    fn dig(&self, question: &str) -> Dig {
        let mut dig = Command::new("dig");
        dig.args(["@127.0.0.1", "-p", &self.dns.port().to_string(), "+tries=1", "+time=5"]);
        let output = dig.args(question.split(' ')).output().expect("dig (Debian: bind9-dnsutils)");
        Dig { text: String::from_utf8(output.stdout).expect("text") }
    }

    /// The addresses of orders, in order.
    fn addresses(&self) -> Vec<String> {
        let mut addresses = self.dig(&format!("{SERVICE} A")).data();
        addresses.sort();
        addresses
    }

    /// Waits until orders has these addresses.
    fn until(&self, addresses: &[&str]) {
        eventually(SOON, &format!("{addresses:?}"), || (self.addresses() == addresses).then_some(()));
    }

    fn serial(&self) -> u32 {
        let soa = self.dig("endpoints.mesh SOA").data();
        soa[0].split(' ').nth(2).and_then(|serial| serial.parse().ok()).expect("a serial")
    }
}

/// What dig prints.
struct Dig {
    text: String,
}

impl Dig {
    fn status(&self) -> &str {
        let rest = self.text.split_once("status: ").unwrap_or_else(|| panic!("no answer: {}", self.text)).1;
        rest.split(',').next().expect("a word")
    }

    fn has_flag(&self, flag: &str) -> bool {
        let line = self.text.lines().find_map(|line| line.strip_prefix(";; flags: ")).expect("flags");
        line.split(';').next().expect("a list").split(' ').any(|one| one == flag)
    }

    /// The records of a section, their parts separated by single spaces.
    fn section(&self, name: &str) -> Vec<String> {
        let lines = self.text.lines().skip_while(|line| *line != format!(";; {name} SECTION:")).skip(1);
        let records = lines.take_while(|line| !line.is_empty());
        records.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    }

    /// What the answers say, without name, TTL, class and type.
    fn data(&self) -> Vec<String> {
        let data = |line: &String| line.splitn(5, ' ').nth(4).expect("five parts").to_owned();
        self.section("ANSWER").iter().map(data).collect()
    }
}

fn directory() -> TempDir {
    TempDir::with_prefix("pannier-slices-").expect("a temporary directory")
}

#[test]
fn dig_finds_what_is_there() {
    let dir = directory();
    let file = dir.path().join("slices.yaml");
    let four = slice(
        "orders",
        "IPv4",
        "{ addresses: [10.0.0.1], zone: EU-1a, nodeName: node-1, hostname: orders-0 }, \
         { addresses: [10.0.0.2] }, { addresses: [10.0.0.3], conditions: { ready: false } }",
    );
    let six = slice("orders", "IPv6", "{ addresses: [\"fd00::1\"] }");
    let idle = slice("idle", "IPv4", "{ addresses: [10.0.0.9], conditions: { ready: false } }");
    let service = "apiVersion: v1\nkind: Service\nmetadata: { name: orders, namespace: shop }\n";
    put(&file, &format!("{service}{four}{six}{idle}"));
    let controller = Controller::ready(&file);

    assert_eq!(controller.addresses(), ["10.0.0.1", "10.0.0.2"]);
    assert_eq!(controller.dig(&format!("{SERVICE} AAAA")).data(), ["fd00::1"]);
    assert_eq!(controller.dig(&format!("orders-0.{SERVICE} A")).data(), ["10.0.0.1"]);

    let srv = controller.dig(&format!("_http._tcp.{SERVICE} SRV"));
    assert_eq!(
        srv.section("ANSWER"),
        [
            format!("_http._tcp.{SERVICE}. 5 IN SRV 0 100 8080 10-0-0-1.zone-eu-1a.{SERVICE}."),
            format!("_http._tcp.{SERVICE}. 5 IN SRV 0 100 8080 10-0-0-2.{SERVICE}."),
            format!("_http._tcp.{SERVICE}. 5 IN SRV 0 100 8080 fd00-0-0-0-0-0-0-1.{SERVICE}."),
        ]
    );
    assert_eq!(
        srv.section("ADDITIONAL"),
        [
            format!("10-0-0-1.zone-eu-1a.{SERVICE}. 5 IN A 10.0.0.1"),
            format!("10-0-0-2.{SERVICE}. 5 IN A 10.0.0.2"),
            format!("fd00-0-0-0-0-0-0-1.{SERVICE}. 5 IN AAAA fd00::1"),
        ]
    );
    assert_eq!(controller.dig(&format!("_8080._tcp.{SERVICE} SRV")).data(), srv.data());
    let target = controller.dig(&format!("10-0-0-1.zone-eu-1a.{SERVICE} TXT"));
    assert_eq!(target.data(), ["\"zone=EU-1a\" \"node=node-1\""]);

    for (question, status, answers) in [
        ("idle.shop.endpoints.mesh A", "NOERROR", 0),
        ("orders.shop.endpoints.mesh MX", "NOERROR", 0),
        ("_tcp.orders.shop.endpoints.mesh SRV", "NOERROR", 0),
        ("shop.endpoints.mesh A", "NOERROR", 0),
        ("endpoints.mesh NS", "NOERROR", 1),
        ("orders.shop.endpoints.mesh ANY", "NOERROR", 2),
        ("nobody.shop.endpoints.mesh A", "NXDOMAIN", 0),
        ("_udp.orders.shop.endpoints.mesh SRV", "NXDOMAIN", 0),
        ("_http._tcp.orders.shop.endpoints.mesh SRV +norecurse", "NOERROR", 3),
        ("orders.shop.svc.cluster.local A", "REFUSED", 0),
        ("orders.shop.endpoints.mesh A -c CH", "REFUSED", 0),
        ("orders.shop.endpoints.mesh A +opcode=notify", "NOTIMP", 0),
        ("orders.shop.endpoints.mesh A +edns=1 +noednsnegotiation", "BADVERS", 0),
    ] {
        let answer = controller.dig(question);
        assert_eq!((answer.status(), answer.data().len()), (status, answers), "{question}: {}", answer.text);
        let denied = answers == 0 && matches!(status, "NOERROR" | "NXDOMAIN");
        assert_eq!(answer.section("AUTHORITY").len(), usize::from(denied), "{question}: {}", answer.text);
        assert_eq!(answer.has_flag("aa"), denied || answers > 0, "{question}");
        assert!(!answer.has_flag("ra"), "{question}");
    }
    let denial = controller.dig("nobody.shop.endpoints.mesh A").section("AUTHORITY").remove(0);
    assert!(
        denial.starts_with("endpoints.mesh. 5 IN SOA ns.endpoints.mesh. hostmaster.endpoints.mesh."),
        "{denial}"
    );
    assert!(denial.ends_with(" 5"), "{denial}");
    let transfer = controller.dig("endpoints.mesh AXFR");
    assert!(transfer.text.contains("Transfer failed"), "{}", transfer.text);
    let mixed = controller.dig("OrDeRs.sHoP.eNdPoInTs.MeSh AAAA");
    assert_eq!(mixed.section("ANSWER"), ["OrDeRs.sHoP.eNdPoInTs.MeSh. 5 IN AAAA fd00::1"]);
    assert_eq!(controller.metric("pannier_zone_services", &[]), 2.0);
    assert_eq!(controller.metric("pannier_zone_endpoints", &[]), 3.0);
    assert!(controller.metric("pannier_zone_queries_total", &["type=\"SRV\"", "code=\"NOERROR\""]) >= 4.0);
    assert_eq!(controller.metric("pannier_zone_queries_total", &["code=\"BADVERS\""]), 1.0);
}

#[test]
fn what_no_datagram_holds_comes_over_tcp() {
    let dir = directory();
    let file = dir.path().join("slices.yaml");
    let many: Vec<_> = (0..200).map(|i| format!("10.0.1.{i}")).collect();
    put(&file, &orders(&many.iter().map(String::as_str).collect::<Vec<_>>()));
    let controller = Controller::ready(&file);
    let question = format!("_http._tcp.{SERVICE} SRV");
    let cut = controller.dig(&format!("{question} +ignore"));
    assert!(cut.has_flag("tc") && cut.data().is_empty(), "{}", cut.text);
    // By itself, dig asks again over TCP.
    for whole in [controller.dig(&question), controller.dig(&format!("{question} +tcp"))] {
        assert!(!whole.has_flag("tc"));
        assert_eq!((whole.data().len(), whole.section("ADDITIONAL").len()), (200, 200));
    }
    // One whose datagrams hold less, and one that fits.
    assert!(controller.dig(&format!("{SERVICE} A +noedns +ignore")).has_flag("tc"));
    put(&file, &orders(&["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"]));
    controller.until(&["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"]);
    let fits = controller.dig(&format!("{question} +ignore"));
    assert!(!fits.has_flag("tc"));
    assert_eq!((fits.data().len(), fits.section("ADDITIONAL").len()), (4, 4));
}

#[test]
fn a_changed_file_is_followed_and_a_broken_one_changes_nothing() {
    let dir = directory();
    let file = dir.path().join("slices.yaml");
    put(&file, &orders(&["10.0.0.1"]));
    let controller = Controller::ready(&file);
    assert_eq!(controller.addresses(), ["10.0.0.1"]);
    let first = controller.serial();

    put(&file, &orders(&["10.0.0.1", "10.0.0.2"]));
    controller.until(&["10.0.0.1", "10.0.0.2"]);
    let second = controller.serial();
    assert!(second > first, "{second} after {first}");

    let ready = |what: &str| {
        let answer = controller.get("/ready");
        assert_eq!(answer.status, 200, "once it is ready, a bad file does not end that");
        answer.text().contains(what).then_some(())
    };
    let broken = orders(&["10.0.0.3", "nonsense"]);
    put(&file, &broken);
    eventually(SOON, "the fault", || ready("endpoints[1]: addresses: `nonsense` is no IPv4 address"));
    assert_eq!(controller.addresses(), ["10.0.0.1", "10.0.0.2"]);
    assert_eq!(controller.serial(), second);
    assert_eq!(controller.metric("pannier_zone_refused_files", &[]), 1.0);
    assert_eq!(controller.metric("pannier_zone_read_failures_total", &[]), 1.0);
    let log = controller.process.log();
    assert!(log.contains("slices.yaml: document 1: EndpointSlice shop/orders-IPv4: endpoints[1]"), "{log}");
    fs::remove_file(&file).expect("our own file");
    eventually(SOON, "the fault", || ready("slices.yaml: cannot read the file"));
    assert_eq!(controller.addresses(), ["10.0.0.1", "10.0.0.2"]);

    put(&file, &orders(&["10.0.0.3"]));
    controller.until(&["10.0.0.3"]);
    eventually(SOON, "no fault", || {
        (controller.metric("pannier_zone_refused_files", &[]) == 0.0).then_some(())
    });
    assert_eq!(controller.get("/ready").text(), "ready\n");
}

#[test]
fn a_directory_of_files() {
    let dir = directory();
    let at = |name: &str| dir.path().join(name);
    put(&at("a.yaml"), &orders(&["10.0.0.1"]));
    put(&at("b.yml"), &orders(&["10.0.0.1", "10.0.0.2"]));
    let json = serde_json::json!({
        "kind": "List", "apiVersion": "v1", "items": [{
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": { "namespace": "shop", "labels": { "kubernetes.io/service-name": "orders" } },
            "endpoints": [{ "addresses": ["10.0.0.3"] }],
        }],
    });
    put(&at("c.json"), &json.to_string());
    put(&at("README.txt"), "not ours: [");
    let controller = Controller::ready(dir.path());
    assert_eq!(controller.addresses(), ["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
    put(&at("d.yaml"), &orders(&["10.0.0.4"]));
    controller.until(&["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"]);
    fs::remove_file(at("b.yml")).expect("our own file");
    controller.until(&["10.0.0.1", "10.0.0.3", "10.0.0.4"]);
}

#[test]
fn a_config_map_is_swapped() {
    let dir = directory();
    let at = |name: &str| dir.path().join(name);
    for (version, address) in [("..1", "10.0.0.1"), ("..2", "10.0.0.2")] {
        fs::create_dir(at(version)).expect("our own directory");
        put(&at(version).join("orders.yaml"), &orders(&[address]));
    }
    let link = |to: &str, name: &str| symlink(to, at(name)).expect("our own directory");
    link("..1", "..data");
    link("..data/orders.yaml", "orders.yaml");
    for served in [dir.path().to_owned(), at("orders.yaml")] {
        let controller = Controller::ready(&served);
        let (now, next) =
            if controller.addresses() == ["10.0.0.1"] { ("10.0.0.1", "2") } else { ("10.0.0.2", "1") };
        assert_eq!(controller.addresses(), [now]);
        link(&format!("..{next}"), "..new");
        fs::rename(at("..new"), at("..data")).expect("our own directory");
        controller.until(&[&format!("10.0.0.{next}")]);
    }
}

#[test]
fn nothing_is_denied_before_all_was_read() {
    let dir = directory();
    put(&dir.path().join("a.yaml"), &orders(&["10.0.0.1"]));
    put(&dir.path().join("b.yaml"), "kind: [");
    let controller = Controller::start(dir.path(), &[]);
    controller.until(&["10.0.0.1"]);
    let answer = controller.get("/ready");
    assert_eq!(answer.status, 503);
    assert!(answer.text().contains("b.yaml: line 1, column "), "{}", answer.text());
    assert_eq!(controller.dig("mail.shop.endpoints.mesh A").status(), "SERVFAIL");
    assert_eq!(controller.get("/live").status, 200);
    put(&dir.path().join("b.yaml"), &slice("mail", "IPv4", ""));
    eventually(SOON, "readiness", || (controller.get("/ready").status == 200).then_some(()));
    assert_eq!(controller.dig("mail.shop.endpoints.mesh A").status(), "NOERROR");
    assert_eq!(controller.dig("post.shop.endpoints.mesh A").status(), "NXDOMAIN");
}

#[test]
fn it_ends_by_sigterm() {
    let dir = directory();
    let file = dir.path().join("slices.yaml");
    put(&file, &orders(&["10.0.0.1"]));
    let mut controller = Controller::start(&file, &["--drain", "1h", "--domain", "Zone.Example."]);
    eventually(SOON, "readiness", || (controller.get("/ready").status == 200).then_some(()));
    controller.process.signal(Signal::TERM);
    eventually(SOON, "the end's beginning", || (controller.get("/ready").status == 503).then_some(()));
    assert_eq!(controller.dig("orders.shop.zone.example A").data(), ["10.0.0.1"]);
    controller.process.signal(Signal::TERM);
    assert!(controller.process.wait(SOON).success());

    let mut controller = Controller::start(&file, &["--drain", "0s"]);
    controller.process.signal(Signal::TERM);
    assert!(controller.process.wait(SOON).success());
}

#[test]
fn what_is_wrong_at_the_start() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let taken = taken.local_addr().expect("bound").to_string();
    let dir = directory();
    let there = dir.path().to_str().expect("text");
    for (args, code, why) in [
        (&["--slices", "/no/such/path"] as &[_], 2, "--slices /no/such/path: No such file or directory"),
        (&["--slices", there, "--domain", "a..b"], 2, "`a..b` is no domain"),
        (&["--slices", there, "--listen", "here"], 2, "--listen"),
        (&["--slices", there, "--listen", &taken], 1, "--listen: cannot listen on "),
        (
            &["--slices", there, "--listen", "127.0.0.1:0", "--probes", &taken],
            1,
            "--probes: cannot listen on ",
        ),
        (&[], 2, "--slices"),
    ] {
        let output = run(&[&["controller"], args].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), said.contains(why)), (Some(code), true), "{args:?}: {said}");
    }
}
