//! Against a real server.

use std::path::PathBuf;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::*;
use crate::dns::State;

struct Dnsmasq {
    address: SocketAddr,
    directory: TempDir,
    options: Vec<String>,
    child: Option<Child>,
}

impl Dnsmasq {
    /// Serves a hosts file, with a TTL of a second, and denies what else is asked of `mesh`.
    async fn start(hosts: &str, options: &[&str]) -> Self {
        let (udp, _tcp) = bind(([127, 0, 0, 1], 0).into()).expect("a port");
        let address = udp.local_addr().expect("an address");
        drop((udp, _tcp));
        let mut dnsmasq = Self {
            address,
            directory: tempfile::tempdir().expect("a directory"),
            options: options.iter().map(|option| option.to_string()).collect(),
            child: None,
        };
        std::fs::write(dnsmasq.hosts(), hosts).expect("written");
        dnsmasq.run().await;
        dnsmasq
    }

    async fn run(&mut self) {
        let child = Command::new("dnsmasq")
            .args([
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--no-resolv",
                "--no-hosts",
                "--pid-file=",
            ])
            .args(["--bind-interfaces", "--listen-address=127.0.0.1", "--local=/mesh/", "--local-ttl=1"])
            .args(["--user=", "--group=", "--log-facility=-"])
            .arg(format!("--port={}", self.address.port()))
            .arg(format!("--addn-hosts={}", self.hosts().display()))
            .args(&self.options)
            .env("PATH", "/usr/sbin:/usr/local/sbin:/usr/bin:/bin")
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("dnsmasq is needed for this test: apt-get install dnsmasq-base");
        self.child = Some(child);
        let listens = async {
            while tokio::net::TcpStream::connect(self.address).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, listens).await.expect("dnsmasq listens");
    }

    /// Replaces the hosts file, as a change in the cluster would.
    fn change(&self, hosts: &str) {
        std::fs::write(self.hosts(), hosts).expect("written");
        let id = self.child.as_ref().and_then(Child::id).expect("it runs");
        let pid = Pid::from_raw(id.try_into().expect("a pid")).expect("not zero");
        kill_process(pid, Signal::HUP).expect("signalled");
    }

    async fn kill(&mut self) {
        self.child.take().expect("it runs").kill().await.expect("killed");
    }

    fn hosts(&self) -> PathBuf {
        self.directory.path().join("hosts")
    }
}

#[tokio::test]
async fn changes_failures_and_recovery_are_followed() {
    let mut server =
        Dnsmasq::start("10.0.0.1 orders.mesh\n10.0.0.2 orders.mesh\nfd00::1 orders.mesh\n", &[]).await;
    let resolver = resolver(&[server.address]);
    let mut answer = resolver.watch("orders.mesh");
    addresses(&mut answer, &["10.0.0.1", "10.0.0.2", "fd00::1"]).await;

    server.change("10.0.0.2 orders.mesh\n10.0.0.3 orders.mesh\nfd00::1 orders.mesh\n");
    addresses(&mut answer, &["10.0.0.2", "10.0.0.3", "fd00::1"]).await;

    server.kill().await;
    let stale = until(&mut answer, |answer| matches!(answer.state, State::Stale { .. })).await;
    assert_eq!(stale.addresses.len(), 3);

    std::fs::write(server.hosts(), "10.0.0.4 orders.mesh\n").expect("written");
    server.run().await;
    let fresh = addresses(&mut answer, &["10.0.0.4"]).await;
    assert_eq!(fresh.state, State::Fresh);

    server.change("");
    let gone = until(&mut answer, |answer| answer.addresses.is_empty()).await;
    assert!(
        matches!(gone.state, State::Failed { reason: crate::error::Reason::DnsNoSuchName, .. }),
        "{gone:?}"
    );
}

#[tokio::test]
async fn the_least_ttl_of_a_chain_counts() {
    let options = [
        "--host-record=blue.mesh,10.0.0.1,300",
        "--cname=green.mesh,blue.mesh,3",
        "--cname=orders.mesh,green.mesh,200",
    ];
    let server = Dnsmasq::start("", &options).await;
    let resolver = resolver(&[server.address]);
    for (name, most) in [("blue.mesh", 300), ("green.mesh", 3), ("orders.mesh", 3)] {
        let mut answer = resolver.watch(name);
        let first = addresses(&mut answer, &["10.0.0.1"]).await;
        let left = first.expires.expect("it expires") - tokio::time::Instant::now();
        assert!(left <= Duration::from_secs(most), "{name}: {left:?}");
        assert!(most < 300 || left > Duration::from_secs(3), "{name}: {left:?}");
    }
}

#[tokio::test]
async fn a_set_too_large_for_a_datagram_is_whole() {
    let hosts: String = (0..250).map(|n| format!("10.0.1.{n} orders.mesh\n")).collect();
    let server = Dnsmasq::start(&hosts, &[]).await;
    let resolver = resolver(&[server.address]);
    until(&mut resolver.watch("orders.mesh"), |answer| answer.addresses.len() == 250).await;
}
