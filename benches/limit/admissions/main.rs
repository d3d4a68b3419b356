//! Sidecars that share one limit through one Redis, in a process: each is a state of limits of its own, with
//! its own connection. They are sent more than the limit admits, or less; every admission is logged, and the
//! log is held against the bound. Whoever runs this stops and starts what they talk to meanwhile.
//!
//! Once all have had an answer of Redis it prints `ready` and waits for a line on its input. After the time it
//! prints one JSON object.

mod bound;
mod drive;
mod log;
mod offer;

use std::io::{self, BufRead, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use pannier::config::model::{Direction, Model};
use pannier::limit::{Limits, State};
use serde_json::{Value, json};

use self::bound::Bound;
use self::log::Log;
use self::offer::Shape;

/// How long it may take until every sidecar has had an answer of Redis.
const PATIENCE: Duration = Duration::from_secs(20);
const SECOND: u64 = 1_000_000_000;
/// Admissions are counted for each tenth of a second.
const TICK: u64 = SECOND / 10;
/// The windows that the bound is shown for, in seconds.
const WINDOWS: [u64; 3] = [1, 10, 60];

/// What is run.
#[derive(Parser, Clone)]
struct Plan {
    /// A configuration: its `redis`, and its one limit.
    #[arg(long)]
    config: PathBuf,
    /// How many share the limit.
    #[arg(long, default_value_t = 3)]
    sidecars: usize,
    /// Threads that send requests, each to every sidecar.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// How requests come.
    #[arg(long, value_enum, default_value_t = Shape::Even)]
    shape: Shape,
    /// Requests of all together for each key, as a share of what the limit admits.
    #[arg(long, default_value_t = 2.0)]
    demand: f64,
    /// Keys: values of the field `x-tenant`, by chance.
    #[arg(long, default_value_t = 1)]
    keys: usize,
    /// For how long, in seconds.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// The steady state begins after so many seconds.
    #[arg(long, default_value_t = 2.0)]
    warm: f64,
    /// Requests come the same way again for the same seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// One of those that share the limit.
struct Sidecar {
    state: Arc<State>,
    limits: Limits,
}

fn main() -> io::Result<()> {
    let plan = Plan::parse();
    let model =
        pannier::config::load(&plan.config).map_err(|problems| io::Error::other(problems.to_string()))?;
    // As the sidecar's own thread for all that no request does itself.
    let control = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let sidecars = (0..plan.sidecars)
        .map(|_| Sidecar::new(&model, control.handle()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(io::Error::other)?;
    meet_redis(&sidecars)?;
    println!("ready");
    io::stdout().flush()?;
    io::stdin().lock().read_line(&mut String::new())?;
    let before = usage();
    let log = drive::all(&plan, model.limits[0].rate.per_second(), &sidecars);
    let cpu = usage() - before;
    println!("{}", result(&plan, &model, &sidecars, log, cpu));
    Ok(())
}

impl Sidecar {
    fn new(model: &Model, control: &tokio::runtime::Handle) -> Result<Self, String> {
        let state = State::new(model.redis.as_ref(), control)?;
        let limits = Limits::compile(&model.limits, Direction::Outbound, &state);
        Ok(Self { state, limits })
    }

    fn knows_redis(&self) -> bool {
        self.state.redis().is_none_or(|redis| redis.up && redis.round_trips > 0)
    }
}

/// Waits until all have had an answer.
fn meet_redis(sidecars: &[Sidecar]) -> io::Result<()> {
    let end = Instant::now() + PATIENCE;
    while !sidecars.iter().all(Sidecar::knows_redis) {
        if Instant::now() > end {
            return Err(io::Error::other("Redis does not answer every sidecar"));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Processor time of this process, in seconds.
fn usage() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn result(plan: &Plan, model: &Model, sidecars: &[Sidecar], mut log: Log, cpu: f64) -> Value {
    let limit = &model.limits[0];
    let rate = limit.rate.per_second();
    let burst = limit.burst.map_or(rate.ceil().max(2.0), |burst| f64::from(burst.get()));
    let bound = Bound { rate: rate / SECOND as f64, burst };
    let reports: Vec<_> = sidecars.iter().map(|sidecar| sidecar.limits.snapshot().swap_remove(0)).collect();
    let sum = |count: fn(&pannier::limit::LimitReport) -> u64| reports.iter().map(count).sum::<u64>();
    let (warm, end) = ((plan.warm * SECOND as f64) as u64, (plan.seconds * SECOND as f64) as u64);
    let steady = |at: u64| (warm..end).contains(&at);
    let may = rate * (plan.seconds - plan.warm) * plan.keys as f64;
    let in_steady = log.admitted.iter().filter(|one| steady(one.from)).count() as f64;
    let mut timeline = vec![0_u64; (end / TICK) as usize + 1];
    let mut of_each = vec![0_u64; plan.sidecars];
    for one in &log.admitted {
        timeline[((one.from / TICK) as usize).min((end / TICK) as usize)] += 1;
        of_each[one.sidecar as usize] += 1;
    }
    let ideal = bound.one_bucket(plan.keys, &mut log.offered, steady) as f64;
    let offered = log.offered.len();
    let keys = log.by_key(plan.keys);
    let micros = |values: &mut [u64], share| log::quantile(values, share) as f64 / 1e3;
    let every = keys.iter().map(|spans| bound.worst(spans)).max_by(|a, b| a.ratio.total_cmp(&b.ratio));
    let windows: serde_json::Map<String, Value> = WINDOWS
        .iter()
        .filter(|seconds| (**seconds * SECOND) as f64 <= plan.seconds * SECOND as f64)
        .map(|seconds| {
            let most = keys.iter().map(|spans| bound.within(spans, seconds * SECOND)).fold(0.0, f64::max);
            (seconds.to_string(), most.into())
        })
        .collect();
    json!({
        "rate": rate, "burst": burst, "sidecars": plan.sidecars, "keys": plan.keys, "seconds": plan.seconds,
        "offered": offered, "admitted": log.admitted.len(), "exhausted": log.exhausted,
        "unavailable": log.unavailable, "waited": sum(|of| of.waited),
        "without_redis": sum(|of| of.decided_without_redis), "asked": sum(|of| of.tokens_asked),
        "granted": sum(|of| of.tokens_granted),
        "errors": sum(|of| of.redis_errors), "of_each": of_each,
        "utilisation": in_steady / may, "of_one_bucket": in_steady / ideal.max(1.0),
        "bound": windows, "every": every.map(|worst| json!({
            "ratio": worst.ratio, "window": worst.window as f64 / SECOND as f64, "admitted": worst.admitted,
        })),
        "late_p99_us": micros(&mut log.late, 0.99), "wait_p99_us": micros(&mut log.waits, 0.99),
        "wait_max_us": micros(&mut log.waits, 1.0), "cpu_seconds": cpu, "timeline": timeline,
    })
}
