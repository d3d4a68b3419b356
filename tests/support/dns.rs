//! A real DNS server: dnsmasq in a pod of its own, at the address that every resolv.conf names.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;
use tokio::net::UdpSocket;

use super::lab::{DNS, Lab, Pod};
use super::namespace::require_program;
use super::process::Process;

/// The lab's DNS server. Authoritative for `cluster.local`, where a name without a record does
/// not exist; it knows nothing else.
pub(crate) struct Dns {
    pod: Pod,
    ttl: u32,
    more: Vec<String>,
    records: BTreeMap<String, Vec<IpAddr>>,
    process: Process,
}

impl Lab {
    /// Starts the DNS server. Every record has a TTL of `ttl` seconds.
    pub(crate) fn dns(&self, ttl: u32) -> Dns {
        self.dns_with(ttl, &[])
    }

    /// As [`dns`](Self::dns), with more options of dnsmasq.
    pub(crate) fn dns_with(&self, ttl: u32, more: &[&str]) -> Dns {
        let more: Vec<String> = more.iter().map(ToString::to_string).collect();
        require_program("dnsmasq", "dnsmasq-base");
        let pod = self.pod_at("dns", DNS);
        std::fs::write(hosts(&pod), "").expect("the lab's directory");
        let process = launch(&pod, ttl, &more);
        let mut dns = Dns { pod, ttl, more, records: BTreeMap::new(), process };
        dns.await_answer();
        dns
    }
}

impl Dns {
    /// Where it answers.
    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::new(self.pod.v4(), 53)
    }

    /// Sets a name's addresses, of both families. An empty list: the name does not exist.
    pub(crate) fn set(&mut self, name: &str, addresses: &[IpAddr]) {
        self.records.insert(name.to_owned(), addresses.to_vec());
        let mut text = String::new();
        for (name, addresses) in &self.records {
            for address in addresses {
                let _ = writeln!(text, "{address} {name}");
            }
        }
        let file = hosts(&self.pod);
        let new = file.with_extension("new");
        std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, &file)).expect("the lab's directory");
        // It reads its records again, and answers throughout.
        let read = self.reads();
        self.process.signal(Signal::HUP);
        self.process.until(Duration::from_secs(5), "reading its records", |process| {
            (count_reads(&process.log()) > read).then_some(())
        });
    }

    /// Queries are no longer answered, as by a server that hangs.
    pub(crate) fn pause(&self) {
        self.process.signal(Signal::STOP);
    }

    /// The end of a pause.
    pub(crate) fn resume(&self) {
        self.process.signal(Signal::CONT);
    }

    /// Kills it: queries meet a closed port.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again, with the records that it had, and a TTL for all of them.
    pub(crate) fn restart(&mut self, ttl: u32) {
        self.process.kill();
        self.ttl = ttl;
        self.process = launch(&self.pod, ttl, &self.more);
        self.await_answer();
    }

    /// The names that it was asked for, in lower case: with the option `--log-queries`.
    pub(crate) fn asked(&self) -> Vec<String> {
        let asked = |line: &str| Some(line.split_once("query[")?.1.split(' ').nth(1)?.to_ascii_lowercase());
        self.process.log().lines().filter_map(asked).collect()
    }

    fn reads(&self) -> usize {
        count_reads(&self.process.log())
    }

    fn await_answer(&mut self) {
        let (pod, to) = (&self.pod, self.address());
        self.process.until(Duration::from_secs(10), "an answer", |_| {
            pod.enter(|| async {
                let socket = UdpSocket::bind((to.ip(), 0)).await.ok()?;
                // The root's name servers, which it refuses to know: an answer all the same.
                let query = [0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];
                socket.send_to(&query, to).await.ok()?;
                let mut buffer = [0; 512];
                let answer = socket.recv(&mut buffer);
                tokio::time::timeout(Duration::from_millis(100), answer).await.ok()?.ok()
            })
        });
    }
}

fn hosts(pod: &Pod) -> PathBuf {
    pod.dir().join("hosts")
}

fn count_reads(log: &str) -> usize {
    log.lines().filter(|line| line.contains("read ") && line.contains("hosts")).count()
}

fn launch(pod: &Pod, ttl: u32, more: &[String]) -> Process {
    let (v4, v6) = (format!("--listen-address={}", pod.v4()), format!("--listen-address={}", pod.v6()));
    let (hosts, ttl) = (format!("--addn-hosts={}", hosts(pod).display()), format!("--local-ttl={ttl}"));
    let args = [
        "--conf-file=/dev/null",
        "--keep-in-foreground",
        "--log-facility=-",
        "--user=root",
        "--pid-file=",
        "--bind-interfaces",
        "--no-resolv",
        "--no-hosts",
        "--local=/cluster.local/",
        "--cache-size=0",
        &v4,
        &v6,
        &hosts,
        &ttl,
    ];
    let args: Vec<&str> = args.into_iter().chain(more.iter().map(String::as_str)).collect();
    pod.spawn("dnsmasq", &args, 0)
}
