//! Limits against a real Redis. What is shared: a server that is started and stopped, sidecars
//! that use it, and the bound itself.

mod failures;
mod local;
mod mesh;
mod simulated;

use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::plan::tests::{limit, plan};
use super::*;
use crate::config::model::OnNewState;
use crate::config::units::{Rate, Time};

/// A Redis of the test's own, on a free port of the loopback, that forgets everything.
struct Server {
    port: u16,
    process: Child,
}

impl Server {
    fn start() -> Self {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = free.local_addr().expect("its address").port();
        drop(free);
        Self { port, process: launch(port) }
    }

    /// Ends it without notice, and starts it anew on the same port, empty.
    fn kill(&mut self) {
        self.process.kill().expect("redis-server runs");
        self.process.wait().expect("redis-server ends");
    }

    fn restart(&mut self) {
        self.process = launch(self.port);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).expect("redis-server runs");
    }

    fn connect(&self) -> ::redis::Connection {
        let client = ::redis::Client::open(self.url()).expect("a URL");
        client.get_connection().expect("redis-server answers")
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// How often the script was run.
    fn script_calls(&self) -> u64 {
        let stats: String =
            ::redis::cmd("INFO").arg("commandstats").query(&mut self.connect()).expect("statistics");
        let line = stats.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
        line.map_or(0, |rest| rest.split(',').next().expect("a number").parse().expect("a number"))
    }

    /// How often the script will have been called when `sidecars` more have got to know the server, which has
    /// it then.
    fn greeted(&self, control: &tokio::runtime::Handle, sidecars: u64) -> u64 {
        let state = self.state(control, Duration::from_secs(2));
        let calls = || state.redis().expect("configured").calls;
        eventually("they know each other", || calls() > 0);
        let (all, own) = (self.script_calls(), calls());
        println!("{all} calls of the script, of which {own} by one that knows it");
        all + own * sidecars
    }

    /// A sidecar's state that uses this server.
    fn state(&self, control: &tokio::runtime::Handle, budget: Duration) -> Arc<State> {
        let redis = model::Redis {
            budget: Time(budget),
            prefix: "test".into(),
            // A test's Redis is new, and what it holds at first is not what most are about.
            on_new_state: OnNewState::Full,
            ..model::Redis::at(self.url().parse().expect("a URL"))
        };
        State::new(Some(&redis), control).expect("a URL")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn launch(port: u16) -> Child {
    let process = Command::new("redis-server")
        .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port", &port.to_string()])
        .stdout(Stdio::null())
        .spawn()
        .expect("these tests need `redis-server` in the path (Debian: redis-server)");
    let client = ::redis::Client::open(format!("redis://127.0.0.1:{port}")).expect("a URL");
    eventually("redis-server answers", || client.get_connection().is_ok());
    process
}

/// The runtime that refills, as the sidecar has one.
fn control() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}

/// Waits for what must become true.
fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < end, "{what}: not within 20 s");
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Limits {
    /// Decides at a time of the test's own.
    fn admit_at(&self, facts: &Facts<'_>, now: u64) -> Decision {
        let holding = self.in_turn.iter().filter(|rule| rule.matcher.matches(facts));
        decide::admit_at(holding, &self.state, facts, now)
    }
}

/// What a request of a tenant says.
pub(super) struct Tenant<'a>(pub(super) &'a str);

impl Said for Tenant<'_> {
    fn field(&self, name: &str) -> Option<&[u8]> {
        (name == "x-tenant").then_some(self.0.as_bytes())
    }
}

/// A request to `/` of one tenant.
fn request<T>(tenant: &str, run: impl FnOnce(&Facts<'_>) -> T) -> T {
    let (host, path, said) = ("orders.shop", "/", &Tenant(tenant));
    run(&Facts { host, port: None, path, method: "GET", caller: "me", said })
}

/// Asks until there is an answer, and says when the request was admitted.
async fn ask(limits: &Limits, tenant: &str) -> Result<u64, crate::error::Error> {
    let now = clock::now();
    match request(tenant, |facts| limits.admit_at(facts, now)) {
        Decision::Admitted(_) => Ok(now),
        Decision::Refused(refusal) => Err(refusal.into()),
        Decision::Wait(wait) => wait.resolved().await.map(|(at, _)| at),
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}

/// A mesh limit of this rate and burst, and its plan.
pub(super) fn limit_of(rate: &str, burst: u32) -> (Arc<Limit>, Arc<Plan>) {
    let plan = Arc::new(plan(rate, burst));
    let (shard, redis_name) = key::limit_name("a", Direction::Outbound, &[]);
    let limit = Limit {
        id: 1,
        name: "a".into(),
        direction: Direction::Outbound,
        leased: true,
        redis_name,
        plan: ArcSwap::new(plan.clone()),
        common: Arc::new(Bucket::new(&plan, 0, Gcra::default(), shard, "".into())),
        lost_at: AtomicU64::new(0),
        keys: AtomicU32::new(0),
        sidecars: Default::default(),
        state: 0,
        counters: Arc::default(),
    };
    (Arc::new(limit), plan)
}

/// A bucket of such a limit that wants tokens.
pub(super) fn due() -> refill::Due {
    let (limit, plan) = limit_of("1/s", 2);
    let bucket = Arc::new(bucket_of(&plan, "a"));
    refill::Due::new(limit, plan, bucket)
}

/// A bucket of a limit of that plan.
pub(super) fn bucket_of(plan: &Plan, name: &str) -> Bucket {
    Bucket::new(plan, 0, Gcra::default(), 0, name.into())
}

/// Checks that no window T of the log holds more than R·T + B.
fn assert_bound(log: &mut [u64], rate: Rate, burst: u32) {
    let over = tokens_over(log, rate, burst);
    assert!(over == 0.0, "{over} of {} admissions above the bound", log.len());
}

/// By how much some window holds more than R·T + B, at most. In whole numbers: a bucket of that
/// rate and burst takes exactly the logs that keep the bound.
fn tokens_over(log: &mut [u64], rate: Rate, burst: u32) -> f64 {
    log.sort_unstable();
    let per = rate.per.as_nanos();
    let (mut tat, mut over) = (0, 0);
    for at in log.iter().map(|at| u128::from(*at) * u128::from(rate.count)) {
        tat = at.max(tat) + per;
        over = over.max((tat - at).saturating_sub(u128::from(burst) * per));
    }
    over as f64 / per as f64
}
