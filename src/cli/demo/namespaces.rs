//! A mesh as in a cluster: each pod is a network namespace with an address of its own, behind a
//! node that routes between them. Connections are redirected by the rules of `pannier init`, names
//! are a real dnsmasq's, limits are counted in a real Redis, and the service has a virtual address.
//!
//! Nothing of this machine's own network is touched: the node is a namespace too.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Signal, geteuid};

use super::app::App;
use super::config::{self, CALLER, Ground, ORDERS, PORT, WIDE};
use super::directory::Directory;
use super::ended::{Result, Stop, cannot};
use super::mesh::{Caller, Mesh, PODS, Pod, Registry};
use super::place::{Namespace, Place};
use super::process::{self, Process};
use super::sidecar::Maker;
use super::traffic::Way;
use crate::identity::ca::Authority;

/// What applications dial.
const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

/// The last parts of addresses.
const NODE: u8 = 1;
const DNS: u8 = 2;
const REDIS: u8 = 3;
const WEB: u8 = 10;
const FIRST: u8 = 11;

const REDIS_PORT: u16 = 6379;

/// How long each record is valid, in seconds.
const TTL: u32 = 2;

/// How long a program may take to start.
const PATIENCE: Duration = Duration::from_secs(10);

/// The programs it takes, and the packages that have them.
const PROGRAMS: [(&str, &str); 4] = [
    ("ip", "iproute2"),
    ("iptables-restore", "iptables"),
    ("dnsmasq", "dnsmasq-base"),
    ("redis-server", "redis-server"),
];

/// What is missing here for such a mesh; none: it can be built.
pub(super) fn missing() -> Option<String> {
    if !cfg!(target_os = "linux") {
        return Some("this is not Linux".into());
    }
    if !geteuid().is_root() {
        return Some("only root may make network namespaces".into());
    }
    let missing = PROGRAMS.into_iter().filter(|(program, _)| !process::installed(program));
    let (programs, packages): (Vec<_>, Vec<_>) = missing.unzip();
    (!programs.is_empty())
        .then(|| format!("{} is missing (apt-get install {})", programs.join(", "), packages.join(" ")))
}

/// The node: packets between pods pass it. The first namespace to be made: where that may not be,
/// none can.
pub(super) fn node() -> Result<Arc<Namespace>> {
    Namespace::new("node")
}

/// Builds the mesh around `node`.
pub(super) fn build(
    node: Arc<Namespace>,
    directory: Directory,
    authority: &Authority,
    program: PathBuf,
    stop: &Stop,
) -> Result<Mesh> {
    let forward = || fs::write("/proc/sys/net/ipv4/ip_forward", "1");
    Place::Namespace(node.clone())
        .enter(forward)
        .and_then(|done| done)
        .map_err(cannot("let the node forward packets (net.ipv4.ip_forward)"))?;

    let resolver = dnsmasq(&node, &directory, stop)?;
    let redis = redis(&node, &directory, stop)?;
    let ground = Ground {
        dns: SocketAddr::new(ip(DNS), 53),
        redis: Some(SocketAddr::new(ip(REDIS), REDIS_PORT)),
        port: PORT,
        explicit: false,
    };
    let maker = Maker { directory: &directory, authority, redirected: true, program, stop };
    let mut pods = Vec::new();
    for ((name, work), number) in PODS.into_iter().zip(FIRST..) {
        let place = pod(&node, name, number)?;
        let address = SocketAddr::new(ip(number), PORT);
        let app = Some(App::start(&place, name, address, work)?);
        let sidecar = maker.start(&place, name, ORDERS, |identity| config::endpoint(identity, None))?;
        pods.push(Pod { name, address, app, sidecar });
    }
    let mut node = Node { namespace: node.clone(), resolver };
    let addresses: Vec<_> = pods.iter().map(|pod| pod.address).collect();
    node.publish(&addresses)?;

    let place = pod(&node.namespace, "web", WEB)?;
    let sidecar = maker.start(&place, "web", CALLER, |identity| config::caller(&ground, identity, WIDE))?;
    let caller = Caller { sidecar, place, way: Way::ByName(ground.dns) };
    Ok(Mesh {
        caller,
        pods,
        registry: Registry::Node(node),
        ground,
        about: "namespaces, redirection, mTLS, dnsmasq, Redis",
        _redis: Some(redis),
        directory,
    })
}

/// What knows the service: the DNS server, and the node's rules.
pub(super) struct Node {
    namespace: Arc<Namespace>,
    resolver: Dnsmasq,
}

impl Node {
    /// As the cluster does when the pods behind a service change.
    pub(super) fn publish(&mut self, endpoints: &[SocketAddr]) -> Result<()> {
        let place = Place::Namespace(self.namespace.clone());
        // Without `--noflush`: the table holds nothing else.
        let rules = config::service(VIP.into(), endpoints);
        process::run_at(
            &place,
            Command::new("iptables-restore").arg("--wait"),
            &rules,
            "write the service's rules",
        )?;
        self.resolver.publish(endpoints)
    }
}

/// A namespace with a link to the node. It has no neighbour: all it sends is routed.
fn pod(node: &Namespace, name: &str, number: u8) -> Result<Place> {
    let namespace = Namespace::new(name)?;
    let (address, gateway, step) = (ip(number), ip(NODE), format!("connect {name} to the node"));
    let links = format!(
        "link add pod{number} type veth peer name eth0 netns {pod}
addr add {gateway}/32 dev pod{number}
link set pod{number} up
route add {address}/32 dev pod{number}
",
        pod = namespace.name(),
    );
    node.ip(&links, &step)?;
    let links = format!(
        "addr add {address}/32 dev eth0
link set eth0 up
route add {gateway} dev eth0 scope link
route add default via {gateway} dev eth0
"
    );
    namespace.ip(&links, &step)?;
    // For commands that are tried by hand: the demo's own ask the server directly.
    namespace.resolv_conf(&format!("nameserver {}\noptions ndots:1\n", ip(DNS)))?;
    Ok(Place::Namespace(namespace))
}

/// The DNS server. It reads its records from a file, again when it is told to.
struct Dnsmasq {
    process: Process,
    hosts: PathBuf,
    stop: Stop,
}

fn dnsmasq(node: &Namespace, directory: &Directory, stop: &Stop) -> Result<Dnsmasq> {
    let place = pod(node, "dns", DNS)?;
    let files = directory.sub("dns")?;
    let hosts = files.join("hosts");
    fs::write(&hosts, "").map_err(cannot("write the DNS server's records"))?;
    let mut command = Command::new("dnsmasq");
    command.args(["--conf-file=/dev/null", "--keep-in-foreground", "--log-facility=-", "--user=root"]);
    command.args(["--pid-file=", "--bind-interfaces", "--no-resolv", "--no-hosts", "--cache-size=0"]);
    command.args(["--local=/cluster.local/".into(), format!("--local-ttl={TTL}")]);
    command.args([format!("--listen-address={}", ip(DNS)), format!("--addn-hosts={}", hosts.display())]);
    let mut process = Process::start(&place, &mut command, "dnsmasq", &files.join("dnsmasq.log"))?;
    process.until(PATIENCE, stop, "up", |process| (reads(process) > 0).then_some(()))?;
    Ok(Dnsmasq { process, hosts, stop: stop.clone() })
}

impl Dnsmasq {
    fn publish(&mut self, endpoints: &[SocketAddr]) -> Result<()> {
        let new = self.hosts.with_extension("new");
        fs::write(&new, config::hosts(VIP.into(), endpoints))
            .and_then(|()| fs::rename(&new, &self.hosts))
            .map_err(cannot("write the DNS server's records"))?;
        let before = reads(&self.process);
        self.process.signal(Signal::HUP)?;
        let again = |process: &Process| (reads(process) > before).then_some(());
        self.process.until(PATIENCE, &self.stop, "reading its records again", again)
    }
}

/// How often dnsmasq has read its records.
fn reads(process: &Process) -> usize {
    process.log().lines().filter(|line| line.contains("read ") && line.contains("hosts")).count()
}

/// A Redis that keeps nothing on disk.
fn redis(node: &Namespace, directory: &Directory, stop: &Stop) -> Result<Process> {
    let place = pod(node, "redis", REDIS)?;
    let files = directory.sub("redis")?;
    let address = SocketAddr::new(ip(REDIS), REDIS_PORT);
    let mut command = Command::new("redis-server");
    command.args(["--bind", &address.ip().to_string(), "--port", &REDIS_PORT.to_string()]);
    command.args(["--save", "", "--appendonly", "no", "--protected-mode", "no", "--dir"]).arg(&files);
    let mut process = Process::start(&place, &mut command, "Redis", &files.join("redis.log"))?;
    process.until(PATIENCE, stop, "answering", |_| {
        let pong = || {
            let mut stream = TcpStream::connect_timeout(&address, PATIENCE).ok()?;
            stream.set_read_timeout(Some(PATIENCE)).ok()?;
            stream.write_all(b"PING\r\n").ok()?;
            let mut answer = [0; 7];
            stream.read_exact(&mut answer).ok()?;
            (&answer == b"+PONG\r\n").then_some(())
        };
        place.enter(pong).ok().flatten()
    })?;
    Ok(process)
}

fn ip(number: u8) -> IpAddr {
    Ipv4Addr::new(10, 88, 0, number).into()
}

impl Mesh {
    /// Commands that can be tried while such a mesh is up, the first of them a shorthand.
    pub(super) fn commands_in_namespaces(&self) -> Vec<(String, &'static str)> {
        let Place::Namespace(web) = &self.caller.place else { return Vec::new() };
        let (host, admin) = (config::HOST, self.caller.sidecar.admin);
        let mut commands = vec![
            (
                format!("web() {{ ip netns exec {} \"$@\"; }}", web.name()),
                "to run something in the caller's pod",
            ),
            (format!("web curl -si http://{host}:{PORT}/hello"), "a request, as the application sends it"),
            (format!("web curl -si -X PUT http://{host}:{PORT}/writes/1"), "one that the limit may refuse"),
            (format!("web curl -s http://{admin}/upstreams"), "endpoints, and how full they are"),
            (format!("web curl -s http://{admin}/limits"), "limits, leases and decisions"),
            (format!("web curl -s http://{admin}/metrics"), "metrics"),
            ("web iptables -t nat -S".into(), "what `pannier init` has installed"),
        ];
        if process::installed("dig") {
            commands.push((format!("web dig +noall +answer {}", config::ENDPOINTS), "the endpoints, by DNS"));
        }
        commands
    }
}
