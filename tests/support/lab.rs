//! The node and its pods.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use pannier::intercept::install;
use pannier::intercept::rules::RuleSet;
use tempfile::TempDir;

use super::namespace::{Namespace, Running};
use super::process::Process;

/// The user that sidecars run as.
pub(crate) const SIDECAR_UID: u32 = 1337;

/// A node with pods.
pub(crate) struct Lab {
    number: u32,
    next: AtomicU8,
    node: Arc<Namespace>,
    dir: Arc<TempDir>,
}

/// A pod: a namespace with addresses of its own.
pub(crate) struct Pod {
    name: String,
    number: u8,
    namespace: Namespace,
    started: AtomicU32,
    dir: Arc<TempDir>,
    // Packets of the pod pass the node until the pod is gone.
    _node: Arc<Namespace>,
}

/// The last part of the DNS server's address, which every pod's resolv.conf names.
pub(super) const DNS: u8 = 2;
const FIRST_POD: u8 = 10;

/// Addresses are usable at once: nobody else is on a link who could have the same. Otherwise the
/// first second of each link's IPv6 is lost.
const AT_ONCE: [(&str, &str); 2] =
    [("net.ipv6.conf.all.accept_dad", "0"), ("net.ipv6.conf.default.accept_dad", "0")];

impl Lab {
    /// A node without pods.
    pub(crate) fn new() -> Self {
        static LABS: AtomicU32 = AtomicU32::new(0);
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let node = Namespace::new(&format!("{number}-node"));
        node.sysctl(&[("net.ipv4.ip_forward", "1"), ("net.ipv6.conf.all.forwarding", "1")]);
        node.sysctl(&AT_ONCE);
        let dir = TempDir::with_prefix("pannier-lab-").expect("a temporary directory");
        // The sidecars read it as a user of their own.
        let everyone = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(dir.path(), everyone).expect("our own directory");
        Self { number, next: AtomicU8::new(FIRST_POD), node: Arc::new(node), dir: Arc::new(dir) }
    }

    /// A new pod. Its name is unique in the lab.
    pub(crate) fn pod(&self, name: &str) -> Pod {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.pod_at(name, number)
    }

    /// A new pod at an address that others know beforehand.
    pub(super) fn pod_at(&self, name: &str, number: u8) -> Pod {
        let namespace = Namespace::new(&format!("{}-{name}", self.number));
        namespace.sysctl(&AT_ONCE);
        let (v4, v6) = (v4(number), v6(number));
        let (gateway4, gateway6) = (self::v4(1), self::v6(1));
        // Each pod has a link to the node and no neighbour: all it sends is routed, so that the
        // node's DNAT sees both directions.
        self.node.ip(&format!(
            "link add pod{number} type veth peer name eth0 netns {pod}
             addr add {gateway4}/32 dev pod{number}
             addr add {gateway6}/128 dev pod{number} nodad
             link set pod{number} up
             route add {v4}/32 dev pod{number}
             route add {v6}/128 dev pod{number}
            ",
            pod = namespace.name(),
        ));
        namespace.ip(&format!(
            "addr add {v4}/32 dev eth0
             addr add {v6}/128 dev eth0 nodad
             link set eth0 up
             route add {gateway4} dev eth0 scope link
             route add default via {gateway4} dev eth0
             route add {gateway6} dev eth0
             route add default via {gateway6} dev eth0
            "
        ));
        namespace.resolv_conf(&format!(
            "nameserver {}\nsearch shop.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n",
            self::v4(DNS)
        ));
        Pod {
            name: name.to_owned(),
            number,
            namespace,
            started: AtomicU32::new(0),
            dir: self.dir.clone(),
            _node: self.node.clone(),
        }
    }

    /// The node, through which all traffic between pods passes.
    pub(crate) fn node(&self) -> &Namespace {
        &self.node
    }

    /// A directory that every user may read, gone with the lab.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }
}

impl Pod {
    /// The name it was given.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its IPv4 address.
    pub(crate) fn v4(&self) -> IpAddr {
        v4(self.number).into()
    }

    /// Its IPv6 address.
    pub(crate) fn v6(&self) -> IpAddr {
        v6(self.number).into()
    }

    /// Its addresses with a port, IPv4 first.
    pub(crate) fn addresses(&self, port: u16) -> [SocketAddr; 2] {
        [SocketAddr::new(self.v4(), port), SocketAddr::new(self.v6(), port)]
    }

    /// Its namespace.
    pub(crate) fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Runs `f` in the pod, as root, on a runtime of its own, and waits for it.
    pub(crate) fn enter<F, R, T>(&self, f: F) -> T
    where
        F: FnOnce() -> R + Send,
        R: Future<Output = T>,
        T: Send,
    {
        self.namespace.enter(f)
    }

    /// As [`enter`](Self::enter), as another user and group.
    pub(crate) fn enter_as<F, R, T>(&self, uid: u32, gid: u32, f: F) -> T
    where
        F: FnOnce() -> R + Send,
        R: Future<Output = T>,
        T: Send,
    {
        self.namespace.enter_as(uid, gid, f)
    }

    /// Runs `f` in the pod, as [`enter`](Self::enter), until it ends or is stopped.
    pub(crate) fn start<F, R, T>(&self, f: F) -> Running<T>
    where
        F: FnOnce() -> R + Send + 'static,
        R: Future<Output = T>,
        T: Send + 'static,
    {
        self.namespace.start(f)
    }

    /// Starts a program in the pod.
    pub(crate) fn spawn(&self, program: &str, args: &[&str], uid: u32) -> Process {
        let mut command = self.namespace.command(program, uid);
        command.args(args);
        self.process(command, program)
    }

    pub(super) fn process(&self, command: Command, program: &str) -> Process {
        let name = Path::new(program).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let count = self.started.fetch_add(1, Ordering::Relaxed);
        let log = self.dir().join(format!("{name}-{count}.log"));
        Process::start(command, &format!("{name} in {}", self.name), &log)
    }

    /// A directory of the pod's, readable by every user.
    pub(crate) fn dir(&self) -> PathBuf {
        let dir = self.dir.path().join(&self.name);
        std::fs::create_dir_all(&dir).expect("a directory in the lab's");
        dir
    }

    /// Installs interception rules without the binary: for tests of the rules themselves.
    pub(crate) fn intercept(&self, rules: &RuleSet) {
        self.enter(|| async { install::install(rules, install::families()) })
            .unwrap_or_else(|error| panic!("{}: {error}", self.name));
    }
}

fn v4(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, number)
}

fn v6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, number.into())
}
