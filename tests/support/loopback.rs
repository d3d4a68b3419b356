//! The real binary on loopback, without a namespace and without redirection: every listener on a
//! free port, which its log reports.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::authority::{Authority, IdentityFiles};
use super::client::{self, Answer, request};
use super::process::Process;

/// How long a sidecar may take to be ready.
const READY: Duration = Duration::from_secs(15);

/// Free ports, and a DNS server that is not there: nothing leaves the machine.
const LISTEN: &str = "listen:
  outbound: 127.0.0.1:0
  inbound: 127.0.0.1:0
  dns: 127.0.0.1:0
  admin: 127.0.0.1:0
  probes: 127.0.0.1:0
dns: { servers: [\"127.0.0.1:9\"] }
";

/// A running sidecar that nothing is redirected to. Killed when dropped.
pub(crate) struct Loopback {
    process: Process,
    config: PathBuf,
    /// What every configuration of it begins with.
    fixed: String,
    bound: BTreeMap<String, SocketAddr>,
    _dir: TempDir,
}

impl Loopback {
    /// Starts a sidecar with this configuration, which says nothing of `listen`, `dns` and
    /// `workers`, and waits until it is ready.
    pub(crate) async fn start(name: &str, yaml: &str) -> Self {
        Self::with_workers(1, name, yaml).await
    }

    /// As [`start`](Self::start), with so many workers.
    pub(crate) async fn with_workers(workers: usize, name: &str, yaml: &str) -> Self {
        Self::begin(format!("{LISTEN}workers: {workers}\n"), name, yaml).await
    }

    /// As [`start`](Self::start), taking callers' requests where another has.
    pub(crate) async fn in_place_of(inbound: SocketAddr, name: &str, yaml: &str) -> Self {
        let listen = LISTEN.replace("inbound: 127.0.0.1:0", &format!("inbound: {inbound}"));
        Self::begin(format!("{listen}workers: 1\n"), name, yaml).await
    }

    /// As [`start`](Self::start), with a `dns` of these lines.
    pub(crate) async fn asking(dns: &str, name: &str, yaml: &str) -> Self {
        Self::asking_by(binary(&["proxy"]), dns, name, yaml).await
    }

    /// As [`asking`](Self::asking), by this command.
    pub(crate) async fn asking_by(proxy: Command, dns: &str, name: &str, yaml: &str) -> Self {
        let listen = LISTEN.replace("servers: [\"127.0.0.1:9\"]", dns);
        Self::begin_by(proxy, format!("{listen}workers: 1\n"), name, yaml).await
    }

    async fn begin(fixed: String, name: &str, yaml: &str) -> Self {
        Self::begin_by(binary(&["proxy"]), fixed, name, yaml).await
    }

    async fn begin_by(mut command: Command, fixed: String, name: &str, yaml: &str) -> Self {
        let dir = TempDir::with_prefix("pannier-loopback-").expect("a temporary directory");
        let config = dir.path().join("pannier.yaml");
        fs::write(&config, format!("{fixed}{yaml}")).expect("our own directory");
        command.arg("--config").arg(&config).env("PANNIER_LOG", "debug");
        let process = Process::start(command, name, &dir.path().join("log"));
        let mut sidecar = Self { process, config, fixed, bound: BTreeMap::new(), _dir: dir };
        sidecar.bound = sidecar.process.until(READY, "listening", |process| {
            let bound = bound(&process.log());
            (bound.len() == 5).then_some(bound)
        });
        let begin = tokio::time::Instant::now();
        while !matches!(sidecar.get("/ready").await, Ok(answer) if answer.status == 200) {
            assert!(begin.elapsed() < READY, "{name} is not ready");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        sidecar
    }

    /// Where a listener, by its name in the configuration, is bound.
    pub(crate) fn at(&self, listener: &str) -> SocketAddr {
        self.bound[listener]
    }

    /// Where the application's requests go.
    pub(crate) fn outbound(&self) -> SocketAddr {
        self.at("outbound")
    }

    /// Where callers' requests go.
    pub(crate) fn inbound(&self) -> SocketAddr {
        self.at("inbound")
    }

    /// `GET` on its admin door.
    pub(crate) async fn get(&self, path: &str) -> std::io::Result<Answer> {
        client::send(self.at("admin"), request("GET", "localhost", path, "")).await
    }

    /// `POST` on its admin door.
    pub(crate) async fn post(&self, path: &str) -> Answer {
        let answer = client::send(self.at("admin"), request("POST", "localhost", path, "")).await;
        answer.unwrap_or_else(|e| panic!("POST {path}: {e}"))
    }

    /// The sum of a metric over all series that carry every one of `labels` (`key="value"`).
    pub(crate) async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        client::metric(self.get("/metrics").await.expect("metrics").text(), name, labels)
    }

    /// Waits until a metric is `value`.
    pub(crate) async fn until_metric(&self, name: &str, labels: &[&str], value: f64) {
        let begin = tokio::time::Instant::now();
        loop {
            let now = self.metric(name, labels).await;
            if now == value {
                return;
            }
            assert!(begin.elapsed() < READY, "{name} {labels:?} is {now}, and not {value}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Replaces what [`start`](Self::start) was given, in one step.
    pub(crate) fn configure(&self, yaml: &str) {
        let new = self.config.with_extension("new");
        fs::write(&new, format!("{}{yaml}", self.fixed))
            .and_then(|()| fs::rename(&new, &self.config))
            .expect("our own directory");
    }

    /// Replaces it as a program that opens the file, thinks, and writes it in two goes.
    pub(crate) async fn configure_slowly(&self, yaml: &str) {
        use std::io::Write;
        let text = format!("{}{yaml}", self.fixed);
        let (first, second) = text.split_at(text.len() / 2);
        let mut file = fs::File::create(&self.config).expect("our own file");
        for part in [first, second] {
            tokio::time::sleep(Duration::from_millis(150)).await;
            file.write_all(part.as_bytes()).expect("our own file");
        }
    }

    /// Leaves nothing in it, as a full disk does.
    pub(crate) fn empty_configuration(&self) {
        fs::write(&self.config, "").expect("our own file");
    }

    /// The program.
    pub(crate) fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        self.process.log()
    }

    /// The most memory that it has held, in bytes.
    pub(crate) fn peak_memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.pid())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
        kib << 10
    }
}

/// The host that the upstream of [`hop`] and [`Pair`] has.
pub(crate) const HOST: &str = "orders.test";

/// An upstream with one endpoint.
pub(crate) fn upstream(endpoint: SocketAddr, more: &str) -> String {
    format!("upstreams: {{ orders: {{ address: \"{HOST}:80\", endpoints: [\"{endpoint}\"]{more} }} }}\n")
}

/// A route of [`HOST`] whose answers have no longer than this.
pub(crate) fn within(timeout: &str) -> String {
    format!("routes: [{{ host: {HOST}, upstream: orders, timeout: {timeout} }}]\n")
}

/// A sidecar beside a caller of the application at `app`, which has none.
pub(crate) async fn hop(app: SocketAddr) -> Loopback {
    Loopback::start("caller", &upstream(app, "")).await
}

/// A caller's sidecar and the application's, with mutual TLS in between.
pub(crate) struct Pair {
    /// The caller's.
    pub(crate) caller: Loopback,
    /// The application's.
    pub(crate) orders: Loopback,
    /// The caller's identity.
    pub(crate) identity: IdentityFiles,
    _files: TempDir,
}

impl Pair {
    /// A pair in front of the application at `app`.
    pub(crate) async fn new(app: SocketAddr) -> Self {
        Self::with(app, "", "").await
    }

    /// As [`new`](Self::new), with more in the configuration of the caller's sidecar, and of the
    /// application's.
    pub(crate) async fn with(app: SocketAddr, callers: &str, applications: &str) -> Self {
        Self::towards(app, "", callers, applications).await
    }

    /// As [`with`](Self::with), with more in what the caller's sidecar is told of the upstream.
    pub(crate) async fn towards(app: SocketAddr, more: &str, callers: &str, applications: &str) -> Self {
        let files = TempDir::with_prefix("pannier-pair-").expect("a temporary directory");
        let authority = Authority::new("cluster.local");
        let issue =
            |name: &str| authority.issue_into(&files.path().join(name), &format!("ns/shop/sa/{name}"));
        let strict = issue("orders").yaml()
            + &format!("application: {app}\ninbound: {{ mtls: strict }}\n{applications}");
        let orders = Loopback::start("orders", &strict).await;
        let identity = issue("caller");
        let peer = format!(", mtls: {{ peer: \"spiffe://cluster.local/ns/shop/sa/orders\" }}{more}");
        let yaml = identity.yaml() + &upstream(orders.inbound(), &peer) + callers;
        let caller = Loopback::start("caller", &yaml).await;
        Self { caller, orders, identity, _files: files }
    }
}

/// The binary under test with arguments.
pub(crate) fn binary(args: &[&str]) -> Command {
    let mut command = Command::new(Path::new(env!("CARGO_BIN_EXE_pannier")));
    command.args(args).env_remove("PANNIER_CONFIG").env_remove("PANNIER_LOG");
    command
}

/// Runs the binary to its end.
pub(crate) fn run(args: &[&str]) -> Output {
    binary(args).output().expect("the binary under test")
}

/// What the log says is bound.
pub(crate) fn bound(log: &str) -> BTreeMap<String, SocketAddr> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let bound = lines.filter_map(|line| {
        let fields = line.get("fields").unwrap_or(&line);
        let name = fields.get("message")?.as_str()?.strip_prefix("listening: ")?.to_owned();
        Some((name, fields.get("address")?.as_str()?.parse().ok()?))
    });
    bound.collect()
}
