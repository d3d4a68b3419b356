//! All that happens in a run whatever is chosen: drawn from its seed before it begins.

use fastrand::Rng;

use crate::events::{MICROSECOND, Nanos, SECOND};
use crate::policy::Turn;
use crate::scenario::{Scenario, Work};
use crate::speed::Speeds;

/// For how long it counts, at least, and for how many requests.
const LEAST_SPAN: f64 = 2.5;
const LEAST_REQUESTS: f64 = 110_000.0;

/// Requests come for so much longer, so that the last that count meet the same load as the first.
const TAIL: Nanos = SECOND / 2;

/// Within this time each server is replaced by a new one, which starts slowly.
const LIFE: f64 = 60.0;
const SLOW_START: Nanos = 5 * SECOND;

/// What is simulated: a world, how large it is, and how full.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    pub(crate) scenario: &'static Scenario,
    pub(crate) clients: usize,
    pub(crate) servers: usize,
    /// In percent of what the servers can do.
    pub(crate) load: u32,
    pub(crate) work: Work,
    pub(crate) seed: u64,
}

pub(crate) struct Planned {
    pub(crate) workers: u32,
    pub(crate) speeds: Speeds,
}

pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) clients: usize,
    /// All that ever serve, by number.
    pub(crate) servers: Vec<Planned>,
    /// Those that clients know at the beginning.
    pub(crate) members: Vec<u16>,
    /// In their order.
    pub(crate) turns: Vec<(Nanos, Turn)>,
    /// The one that will fail or die.
    pub(crate) victim: Option<u16>,
    pub(crate) work: Work,
    pub(crate) patience: Option<Nanos>,
    /// One way through the network: at least, and how much more.
    pub(crate) delay: (Nanos, Nanos),
    /// Requests a second that the servers can really do while it counts, of all clients.
    pub(crate) capacity: f64,
    /// Requests a second that come.
    pub(crate) rate: f64,
    /// What comes from here on counts,
    pub(crate) from: Nanos,
    /// until here.
    pub(crate) until: Nanos,
    /// And nothing comes any more.
    pub(crate) end: Nanos,
}

impl Plan {
    pub(crate) fn new(case: &Case) -> Self {
        let scenario = case.scenario;
        // Seeds that follow each other shall have nothing in common.
        let mut rng = Rng::with_seed(case.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let seed = rng.u64(..);
        let load = f64::from(case.load) / 100.0;
        let servers = scenario.servers(case.servers, &mut rng);
        let workers: f64 = servers.iter().map(|(workers, speed)| f64::from(*workers) * speed).sum();
        let per_worker = SECOND as f64 / Work::MEAN as f64;
        let rate = load * workers * per_worker * scenario.leaves();
        let span = (LEAST_REQUESTS / rate).max(LEAST_SPAN);
        let until = scenario.warm + (span * SECOND as f64) as Nanos;
        let mut plan = Self {
            seed,
            clients: case.clients,
            members: (0..case.servers as u16).collect(),
            turns: Vec::new(),
            victim: None,
            work: case.work,
            patience: scenario.patience,
            delay: (80 * MICROSECOND, 40 * MICROSECOND),
            capacity: 0.0,
            rate: 0.0,
            from: scenario.warm,
            until,
            end: until + TAIL,
            servers: Vec::new(),
        };
        for (workers, speed) in servers {
            let speeds = scenario.speeds(speed, plan.end, &mut rng);
            plan.servers.push(Planned { workers, speeds });
        }
        let mut present = vec![(0, Nanos::MAX); case.servers];
        if scenario.replaces {
            plan.replace(&mut present, &mut rng);
        }
        if let Some(health) = scenario.fault {
            let victim = rng.u16(..case.servers as u16);
            plan.victim = Some(victim);
            plan.turns.push((scenario.warm, Turn::Health(victim, health)));
        }
        for (server, planned) in plan.servers.iter().enumerate() {
            let speeds = planned.speeds.steps().iter().skip(1);
            plan.turns.extend(speeds.map(|&(at, speed)| (at, Turn::Speed(server as u16, speed))));
        }
        plan.turns.sort_by_key(|(at, _)| *at);
        let work: f64 = plan
            .servers
            .iter()
            .zip(&present)
            .map(|(server, (join, leave))| {
                let (from, until) = (plan.from.max(*join), plan.until.min(*leave));
                if from < until { f64::from(server.workers) * server.speeds.work(from, until) } else { 0.0 }
            })
            .sum();
        plan.capacity = work / (plan.until - plan.from) as f64 * per_worker;
        plan.rate = plan.capacity * load;
        plan
    }

    /// Servers are replaced one by one, the oldest first: each leaves when the one that comes for it is
    /// up to speed.
    fn replace(&mut self, present: &mut Vec<(Nanos, Nanos)>, rng: &mut Rng) {
        let every = LIFE * SECOND as f64 / self.members.len() as f64;
        for oldest in 0.. {
            let join = ((oldest as f64 + rng.f64()) * every) as i64 - SLOW_START as i64;
            let leave = (join + SLOW_START as i64) as Nanos;
            if join > self.end as i64 {
                break;
            }
            let server = self.servers.len() as u16;
            let mut speeds = Speeds::constant(0.1);
            for step in 0..10 {
                let from = join + (SLOW_START * step / 9) as i64;
                speeds.then(from.max(0) as Nanos, 0.1 * (step + 1) as f64);
            }
            self.servers.push(Planned { workers: self.servers[0].workers, speeds });
            if join > 0 {
                self.turns.push((join as Nanos, Turn::Joins(server)));
            } else {
                self.members.push(server);
            }
            self.turns.push((leave, Turn::Leaves(oldest as u16)));
            present[oldest].1 = leave;
            present.push((join.max(0) as Nanos, Nanos::MAX));
        }
    }
}
