//! What a decision about limits takes, as a request makes it: `Limits::admit`, with a lease at hand, while a
//! Redis refills it in the background. Prints one JSON object for each case.
//!
//! Threads decide in a tight loop, or at a pace that they sleep between: there what a decision reads has been
//! displaced by others since, as between the requests of a worker. Each decision is timed for the quantiles,
//! with one reading of the clock in it, which is told too. What it takes of a processor, with all that the
//! process does for it, is of a tight loop that times none.

// What the benches have in common.
#[path = "../peers/load/histogram.rs"]
mod histogram;

use std::hint::black_box;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use clap::Parser;
use pannier::config::model::Direction;
use pannier::limit::{Decision, Facts, Limits, Said, State};
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;

use self::histogram::Histogram;

/// A limit that is never reached: what is measured is the way of a request that passes.
const FAR: &str = "rate: 1000000000/s, burst: 4000000000";
const ALL: &str = "";
const TENANT: &str = "key: [\"header:x-tenant\"]";
const BOTH: &str = "key: [\"header:x-tenant\", host]";

/// The limits of a case, and how many keys its requests have. Without a limit it is what the machine and the loop
/// take.
const CASES: [(&str, &[&str], usize); 5] = [
    ("none", &[], 1),
    ("one", &[ALL], 1),
    ("keyed", &[TENANT], 1),
    ("keyed", &[TENANT], 1000),
    ("three", &[ALL, TENANT, BOTH], 1000),
];

/// How long a case runs before it is measured: a few lives of a lease.
const WARM: Duration = Duration::from_secs(5);

/// What is measured, and with which Redis.
#[derive(Parser)]
struct Plan {
    /// Where the Redis is: `redis://host:port`.
    #[arg(long)]
    redis: String,
    /// For how long each case is measured, in seconds.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Decisions a second of a thread that has a pace.
    #[arg(long, default_value_t = 5000)]
    pace: u64,
}

/// What the threads of a case do.
struct Work {
    limits: Limits,
    keys: Vec<String>,
    /// Between two decisions; none in a tight loop.
    pause: Option<Duration>,
    /// Decisions that found no lease.
    others: AtomicU64,
}

fn main() -> io::Result<()> {
    let plan = Plan::parse();
    let control = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let pace = Duration::from_secs_f64(1.0 / plan.pace as f64);
    for (name, limits, keys) in CASES {
        for threads in [1, 2] {
            for pause in [None, Some(pace)] {
                let limits = compile(&plan.redis, limits, control.handle()).map_err(io::Error::other)?;
                let keys: Vec<String> = (0..keys).map(|key| format!("tenant-{key}")).collect();
                let mut found =
                    json!({"case": name, "keys": keys.len(), "threads": threads, "paced": pause.is_some()});
                Work { limits, keys, pause, others: AtomicU64::new(0) }.measure(
                    threads,
                    plan.seconds,
                    &mut found,
                );
                println!("{found}");
            }
        }
    }
    Ok(())
}

fn compile(redis: &str, limits: &[&str], control: &tokio::runtime::Handle) -> Result<Limits, String> {
    let limits = limits.iter().enumerate().map(|(n, more)| format!("{{ name: \"{n}\", {FAR}, {more} }}, "));
    let text = format!("redis: {{ url: \"{redis}\" }}\nlimits: [{}]\n", limits.collect::<String>());
    let model = pannier::config::parse(&text, "a case").map_err(|problems| problems.to_string())?;
    let state = State::new(model.redis.as_ref(), control)?;
    Ok(Limits::compile(&model.limits, Direction::Outbound, &state))
}

impl Work {
    fn measure(&self, threads: usize, seconds: f64, found: &mut serde_json::Value) {
        let time = Duration::from_secs_f64(seconds);
        self.on(threads, || self.times(WARM));
        self.others.store(0, Relaxed);
        let times = self.on(threads, || self.times(time));
        // Of the thread that fared worst.
        let worst = |share| times.iter().map(|times| times.quantile(share)).max();
        found["decisions"] = times.iter().map(Histogram::total).sum::<u64>().into();
        found["others"] = self.others.load(Relaxed).into();
        found["clock_ns"] = clock().into();
        for (name, share) in [("p50_ns", 0.5), ("p99_ns", 0.99), ("p999_ns", 0.999)] {
            found[name] = worst(share).into();
        }
        found["max_ns"] = times.iter().map(Histogram::max).max().into();
        if self.pause.is_none() {
            let before = cpu();
            let done: u64 = self.on(threads, || self.count(time)).iter().sum();
            found["cpu_ns"] = ((cpu() - before) as f64 / done as f64).into();
        }
    }

    fn on<T: Send>(&self, threads: usize, run: impl Fn() -> T + Sync) -> Vec<T> {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(&run)).collect();
            threads.into_iter().map(|thread| thread.join().expect("no thread panics")).collect()
        })
    }

    /// Times each decision.
    fn times(&self, time: Duration) -> Histogram {
        let (mut times, start) = (Histogram::new(), Instant::now());
        for key in self.keys.iter().cycle() {
            if let Some(pause) = self.pause {
                std::thread::sleep(pause);
            }
            let before = Instant::now();
            let decision = self.decide(key);
            let after = Instant::now();
            if let Decision::Admitted(_) = decision {
                times.record((after - before).as_nanos() as u64);
            } else {
                self.end(decision);
            }
            if after - start > time {
                break;
            }
        }
        times
    }

    /// Decides for so long, and says how often.
    fn count(&self, time: Duration) -> u64 {
        const BATCH: usize = 1000;
        let (mut done, start, mut keys) = (0, Instant::now(), self.keys.iter().cycle());
        while start.elapsed() < time {
            for key in keys.by_ref().take(BATCH) {
                match self.decide(key) {
                    Decision::Admitted(_) => {}
                    other => self.end(other),
                }
            }
            done += BATCH as u64;
        }
        done
    }

    fn decide(&self, key: &str) -> Decision {
        let said = Tenant(key.as_bytes());
        let facts = Facts { host: "orders", port: None, path: "/", method: "GET", caller: "me", said: &said };
        self.limits.admit(black_box(&facts))
    }

    /// Waits for a lease, where there was none.
    fn end(&self, decision: Decision) {
        self.others.fetch_add(1, Relaxed);
        if let Decision::Wait(wait) = decision {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
            let _ = runtime.expect("a runtime").block_on(wait.resolve());
        }
    }
}

/// What a request says: whose it is.
struct Tenant<'a>(&'a [u8]);

impl Said for Tenant<'_> {
    fn field(&self, name: &str) -> Option<&[u8]> {
        (name == "x-tenant").then_some(self.0)
    }
}

/// What one reading of the clock takes, in nanoseconds.
fn clock() -> u64 {
    let mut times = Histogram::new();
    for _ in 0..10_000 {
        let before = Instant::now();
        times.record(before.elapsed().as_nanos() as u64);
    }
    times.quantile(0.5)
}

/// Processor time of this process, in nanoseconds.
fn cpu() -> u64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
