//! A Redis Cluster of three.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;

use crate::access::Authority;
use crate::support::eventually;
use crate::support::lab::{Lab, Pod};
use crate::support::load::{Load, Sending};
use crate::support::process::Process;
use crate::{
    HOST, PASSWORD, PATIENCE, PORT, caller, documented_acl, get, make_user, of_limit, scripts, secret,
};

const NODES: [u16; 3] = [7001, 7002, 7003];
/// From a node's port to its port for TLS.
const TLS: u16 = 100;
const TENANTS: [&str; 16] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p"];

/// The nodes, all in one pod.
struct Cluster {
    pod: Pod,
    nodes: Vec<Process>,
}

impl Cluster {
    fn new(lab: &Lab) -> Self {
        let pod = lab.pod("cluster");
        let options = ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"];
        // One that is gone takes its own slots along, not all.
        let options = [&options[..], &["--cluster-require-full-coverage", "no"]].concat();
        let nodes = NODES.map(|port| pod.redis_server(port, &options)).into();
        let cluster = Self { pod, nodes };
        let addresses = NODES.map(|port| cluster.address(port).to_string());
        let all: Vec<&str> = addresses.iter().map(String::as_str).collect();
        let create = [&["--cluster", "create"][..], &all, &["--cluster-yes"]].concat();
        cluster.cli(NODES[0], &create);
        cluster.settle();
        cluster
    }

    /// The same, by TLS alone but for redis-cli. It is made by hand: redis-cli would need TLS too.
    fn by_tls(lab: &Lab, authority: &Authority) -> Self {
        let pod = lab.pod("cluster");
        let (certificate, key) = authority.issue("redis.test");
        let shown = |path: &Path| path.display().to_string();
        let start = |port: u16| {
            let options = [
                ("--tls-port", (port + TLS).to_string()),
                ("--tls-cert-file", shown(&certificate)),
                ("--tls-key-file", shown(&key)),
                ("--tls-ca-cert-file", shown(&authority.ca())),
                ("--tls-auth-clients", "no".into()),
                ("--tls-cluster", "yes".into()),
                ("--cluster-enabled", "yes".into()),
            ];
            let options: Vec<&str> = options.iter().flat_map(|(name, value)| [*name, value]).collect();
            pod.redis_server(port, &options)
        };
        let nodes = NODES.map(start).into();
        let cluster = Self { pod, nodes };
        let host = cluster.pod.v4().to_string();
        let slots = [("0", "5460"), ("5461", "10922"), ("10923", "16383")];
        for (port, (first, last)) in NODES.into_iter().zip(slots) {
            cluster.cli(port, &["CLUSTER", "ADDSLOTSRANGE", first, last]);
            cluster.cli(NODES[0], &["CLUSTER", "MEET", &host, &(port + TLS).to_string()]);
        }
        cluster.settle();
        cluster
    }

    /// Waits until the nodes know each other, and makes the user.
    fn settle(&self) {
        for port in NODES {
            eventually(PATIENCE, "the cluster", || {
                let info = self.cli(port, &["CLUSTER", "INFO"]);
                (info.contains("cluster_state:ok") && info.contains("cluster_size:3")).then_some(())
            });
            make_user(&self.pod, port, &[], &documented_acl());
        }
    }

    fn address(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.pod.v4(), port)
    }

    fn cli(&self, port: u16, arguments: &[&str]) -> String {
        self.pod.redis_cli(port, arguments)
    }

    fn id(&self, port: u16) -> String {
        self.cli(port, &["CLUSTER", "MYID"]).trim().to_owned()
    }

    /// How often each node has run the script.
    fn scripts(&self) -> [u64; 3] {
        NODES.map(|port| scripts(&self.pod, port, &[]))
    }

    /// The keys that a node holds.
    fn keys(&self, port: u16) -> Vec<String> {
        let keys = self.cli(port, &["--scan", "--pattern", "pannier:*"]);
        keys.lines().map(str::to_owned).collect()
    }

    fn slot(&self, key: &str) -> String {
        self.cli(NODES[0], &["CLUSTER", "KEYSLOT", key]).trim().to_owned()
    }

    fn yaml(&self, lab: &Lab, rate: u32, burst: u32) -> String {
        let password = lab.dir().join("password");
        secret(&password, PASSWORD);
        // One that is named is enough.
        format!(
            "redis: {{ cluster: \"redis://{}\", user: pannier, password_file: {}, budget: 500ms, on_new_state: full }}
limits:
  - {{ name: tenants, key: [\"header:x-tenant\"], rate: {rate}/s, burst: {burst}, without_redis: closed }}
",
            self.address(NODES[1]),
            password.display()
        )
    }
}

/// Load of every tenant at the same time.
fn load(from: &Pod, to: SocketAddr) -> Vec<Sending> {
    let load = |tenant| {
        let pause = Duration::from_millis(5);
        Load { fields: vec![("x-tenant", tenant)], connections: 1, pause, ..Load::new(to, HOST) }.start(from)
    };
    TENANTS.map(load).into()
}

#[test]
fn a_cluster_by_tls() {
    let lab = Lab::new();
    let authority = Authority::new(&lab, "authority");
    let cluster = Cluster::by_tls(&lab, &authority);
    let (orders, pod) = (lab.pod("orders"), lab.pod("caller"));
    let app = orders.app(orders.addresses(PORT)[0]);
    let plain = cluster.address(NODES[1]).to_string();
    let secure = cluster.address(NODES[1] + TLS).to_string();
    let tls = format!("budget: 500ms, tls: {{ ca: {}, server_name: redis.test }}", authority.ca().display());
    let yaml = cluster.yaml(&lab, 500, 100).replace("redis://", "rediss://");
    let _sidecar = caller(&pod, &yaml.replace(&plain, &secure).replace("budget: 500ms", &tls));
    let floods = load(&pod, app.address());
    eventually(PATIENCE, "every node to be asked", || {
        cluster.scripts().iter().all(|calls| *calls > 0).then_some(())
    });
    floods.into_iter().for_each(|flood| flood.stop().assert_all_ok());
}

#[test]
fn a_limit_with_many_keys_is_kept_by_all_nodes_and_follows_its_slots() {
    let lab = Lab::new();
    let cluster = Cluster::new(&lab);
    let (orders, pod) = (lab.pod("orders"), lab.pod("caller"));
    let app = orders.app(orders.addresses(PORT)[0]);
    let sidecar = caller(&pod, &cluster.yaml(&lab, 500, 100));

    let floods = load(&pod, app.address());
    eventually(PATIENCE, "every node to be asked", || {
        cluster.scripts().iter().all(|calls| *calls > 0).then_some(())
    });

    // All slots of the first go to the second, in the middle of the load.
    let (first, second) = (cluster.id(NODES[0]), cluster.id(NODES[1]));
    let at = cluster.address(NODES[0]).to_string();
    let reshard = ["--cluster", "reshard", &at, "--cluster-from", &first, "--cluster-to", &second];
    let reshard = [&reshard[..], &["--cluster-slots", "5461", "--cluster-yes", "--cluster-pipeline", "50"]];
    cluster.cli(NODES[0], &reshard.concat());
    assert_eq!(cluster.keys(NODES[0]), Vec::<String>::new(), "not all slots have moved");
    let before = cluster.scripts();
    eventually(PATIENCE, "the slots' new server to be asked", || {
        let now = cluster.scripts();
        (now[1] > before[1] + 10 && now[2] > before[2]).then_some(())
    });
    let tallies: Vec<_> = floods.into_iter().map(|flood| flood.stop()).collect();
    for tally in &tallies {
        tally.assert_all_ok();
    }
    let sent: u64 = tallies.iter().map(|tally| tally.sent()).sum();
    println!(
        "{sent} requests, {:?} scripts, errors {}",
        cluster.scripts(),
        of_limit(&sidecar, "tenants", "redis_errors")
    );
}

/// The slot's keys have moved, and the slot not yet.
#[test]
fn a_slot_that_is_on_its_way_is_asked_for_where_its_keys_are() {
    let lab = Lab::new();
    let cluster = Cluster::new(&lab);
    let (orders, pod) = (lab.pod("orders"), lab.pod("caller"));
    let app = orders.app(orders.addresses(PORT)[0]);
    let _sidecar = caller(&pod, &cluster.yaml(&lab, 20, 10));

    // One tenant alone, who asks for far more than there is: its keys live on.
    let flood = Load {
        fields: vec![("x-tenant", "a")],
        connections: 2,
        pause: Duration::from_millis(2),
        ..Load::new(app.address(), HOST)
    };
    let flood = flood.start(&pod);
    let bucket = |port: u16| cluster.keys(port).into_iter().find(|key| key.contains("}:b:"));
    let (from, bucket) = eventually(PATIENCE, "the tenant's bucket", || {
        NODES.into_iter().find_map(|port| Some((port, bucket(port)?)))
    });
    let to = NODES.into_iter().find(|port| *port != from).expect("another");
    let (shard, _) = bucket.split_once('}').expect("a shard");
    let keys: Vec<String> = cluster.keys(from).into_iter().filter(|key| key.starts_with(shard)).collect();
    let slot = cluster.slot(&bucket);
    let (from_id, to_id) = (cluster.id(from), cluster.id(to));
    cluster.cli(to, &["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id]);
    cluster.cli(from, &["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id]);
    let (host, port) = (cluster.pod.v4().to_string(), to.to_string());
    let migrate = ["MIGRATE", &host, &port, "", "0", "5000", "REPLACE", "KEYS"];
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let moved = cluster.cli(from, &[&migrate[..], &keys].concat());
    assert!(moved.starts_with("OK"), "{moved}");

    let granted = |flood: &Sending| flood.so_far().ok();
    let before = (granted(&flood), scripts(&cluster.pod, to, &[]));
    eventually(PATIENCE, "grants of the slot's next server", || {
        (granted(&flood) > before.0 + 20 && scripts(&cluster.pod, to, &[]) > before.1).then_some(())
    });
    for port in [to, from] {
        cluster.cli(port, &["CLUSTER", "SETSLOT", &slot, "NODE", &to_id]);
    }
    let before = granted(&flood);
    eventually(PATIENCE, "grants of the slot's new server", || (granted(&flood) > before + 20).then_some(()));
    let tally = flood.stop();
    assert!(tally.failures.is_empty(), "{tally:#?}");
}

#[test]
fn a_node_that_hangs_stops_the_keys_of_no_other() {
    let lab = Lab::new();
    let cluster = Cluster::new(&lab);
    let (orders, pod) = (lab.pod("orders"), lab.pod("caller"));
    let app = orders.app(orders.addresses(PORT)[0]);
    let _sidecar = caller(&pod, &cluster.yaml(&lab, 200, 40));

    // Whose keys are where: with nothing else going on, the node that is asked for a new tenant.
    let owners = TENANTS.map(|tenant| {
        let before = cluster.scripts();
        assert_eq!(get(&pod, app.address(), "/", tenant).status, 200, "{tenant}");
        let now = cluster.scripts();
        (0..NODES.len()).find(|node| now[*node] > before[*node]).expect("a node was asked")
    });
    let hung = owners[0];
    assert!(owners.iter().any(|owner| *owner != hung), "all tenants are on one node: {owners:?}");
    cluster.nodes[hung].signal(Signal::STOP);
    eventually(PATIENCE, "a tenant of the node that hangs to be refused", || {
        let answer = get(&pod, app.address(), "/", TENANTS[0]);
        (answer.refused() == Some("limit.unavailable")).then_some(())
    });

    let before = cluster_scripts_but(&cluster, hung);
    let floods = load(&pod, app.address());
    eventually(PATIENCE, "many refills of the others", || {
        let now = cluster_scripts_but(&cluster, hung);
        now.iter().zip(&before).all(|(now, before)| *now > before + 20 || *before == 0).then_some(())
    });
    for ((tally, owner), tenant) in floods.into_iter().map(|flood| flood.stop()).zip(owners).zip(TENANTS) {
        if owner != hung {
            tally.assert_all_ok();
        } else {
            assert!(tally.refused.contains_key("limit.unavailable"), "{tenant}: {tally:#?}");
        }
    }

    cluster.nodes[hung].signal(Signal::CONT);
    for tenant in TENANTS {
        eventually(PATIENCE, "every tenant to be served again", || {
            (get(&pod, app.address(), "/", tenant).status == 200).then_some(())
        });
    }
}

/// How often the nodes have run the script that are not `hung`, which says nothing.
fn cluster_scripts_but(cluster: &Cluster, hung: usize) -> Vec<u64> {
    let others = NODES.into_iter().enumerate().filter(|(node, _)| *node != hung);
    others.map(|(_, port)| scripts(&cluster.pod, port, &[])).collect()
}
