//! The worlds that are simulated: what servers are like, and what happens to them.

use fastrand::Rng;

use crate::events::{MILLISECOND, Nanos, SECOND};
use crate::server::Health;
use crate::speed::Speeds;

pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    /// In percent of what the servers can do.
    pub(crate) loads: &'static [u32],
    servers: Kind,
    /// What comes over each server's speed during the run.
    weather: Weather,
    /// Servers leave during the run, each after another has taken its place.
    pub(crate) replaces: bool,
    /// What becomes of one server when the measurement begins.
    pub(crate) fault: Option<Health>,
    /// How long clients wait for an answer.
    pub(crate) patience: Option<Nanos>,
    /// What is simulated before anything counts.
    pub(crate) warm: Nanos,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Alike,
    Mixed,
    OneSlow,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Weather {
    Fair,
    Antagonists,
    Pauses,
}

const EVERY_LOAD: &[u32] = &[50, 60, 70, 80, 90, 95];

/// Nothing happens, and all servers are the same.
const ALIKE: Scenario = Scenario {
    name: "alike",
    about: "all servers have 4 workers of the same speed",
    loads: EVERY_LOAD,
    servers: Kind::Alike,
    weather: Weather::Fair,
    replaces: false,
    fault: None,
    patience: None,
    warm: 2 * SECOND,
};

/// As many workers as a server has where all are alike.
const WORKERS: u32 = 4;

pub(crate) const SCENARIOS: &[Scenario] = &[
    ALIKE,
    Scenario {
        name: "heterogeneous",
        about: "servers have 2, 4 or 8 workers of speed 0.6, 1 or 1.6",
        servers: Kind::Mixed,
        ..ALIKE
    },
    Scenario {
        name: "antagonists",
        about: "something takes 20 to 50 % of a server's speed, for 2 s of every 4 s on average",
        weather: Weather::Antagonists,
        ..ALIKE
    },
    Scenario {
        name: "slow-starts",
        about: "servers are replaced, each once a minute; a new one begins at 10 % of its speed and has all of it after 5 s",
        replaces: true,
        ..ALIKE
    },
    Scenario {
        name: "pauses",
        about: "each server stands still for 50 to 150 ms every 2 s on average",
        weather: Weather::Pauses,
        ..ALIKE
    },
    Scenario {
        name: "one-slow",
        about: "one server has a tenth of the others' speed",
        servers: Kind::OneSlow,
        ..ALIKE
    },
    Scenario {
        name: "failing-fast",
        about: "one server begins to answer everything with an error after 0.2 ms",
        loads: &[50, 80],
        fault: Some(Health::Fails),
        ..ALIKE
    },
    Scenario {
        name: "dead",
        about: "one server begins to refuse connections",
        loads: &[50, 80],
        fault: Some(Health::Dead),
        ..ALIKE
    },
    Scenario {
        name: "overload",
        about: "clients ask for more than the servers can do, and give up after 500 ms",
        loads: &[110],
        patience: Some(500 * MILLISECOND),
        // Until queues are as long as they will be: they grow by a tenth of a second's work each second.
        warm: 8 * SECOND,
        ..ALIKE
    },
];

impl Scenario {
    pub(crate) fn named(name: &str) -> Option<&'static Self> {
        SCENARIOS.iter().find(|scenario| scenario.name == name)
    }

    /// The workers of each server, and how fast each of them is in fair weather.
    pub(crate) fn servers(&self, number: usize, rng: &mut Rng) -> Vec<(u32, f64)> {
        let mut servers: Vec<_> = match self.servers {
            Kind::Mixed => {
                let mixed = [2, 4, 8].into_iter().flat_map(|k| [0.6, 1.0, 1.6].map(|speed| (k, speed)));
                mixed.cycle().take(number).collect()
            }
            Kind::OneSlow => {
                [(WORKERS, 0.1)].into_iter().chain([(WORKERS, 1.0)].repeat(number)).take(number).collect()
            }
            Kind::Alike => vec![(WORKERS, 1.0); number],
        };
        rng.shuffle(&mut servers);
        servers
    }

    /// What the weather leaves of a server's speed, on average.
    pub(crate) fn leaves(&self) -> f64 {
        match self.weather {
            Weather::Fair => 1.0,
            Weather::Antagonists => 1.0 - 0.35 / 2.0,
            Weather::Pauses => 2.0 / 2.1,
        }
    }

    /// A server's speed over time, from its speed in fair weather.
    pub(crate) fn speeds(&self, speed: f64, until: Nanos, rng: &mut Rng) -> Speeds {
        let mut speeds = Speeds::constant(speed);
        match self.weather {
            Weather::Fair => {}
            Weather::Antagonists => {
                let mut at = 0;
                let mut is_free = rng.bool();
                while at < until {
                    speeds.then(at, if is_free { speed } else { speed * (0.5 + 0.3 * rng.f64()) });
                    is_free = !is_free;
                    at += exponential(2.0 * SECOND as f64, rng);
                }
            }
            Weather::Pauses => {
                let mut at = exponential(2.0 * SECOND as f64, rng);
                while at < until {
                    speeds.then(at, 0.0);
                    at += rng.u64(50 * MILLISECOND..=150 * MILLISECOND);
                    speeds.then(at, speed);
                    at += exponential(2.0 * SECOND as f64, rng);
                }
            }
        }
        speeds
    }
}

/// A time until something that comes at any moment alike.
pub(crate) fn exponential(mean: f64, rng: &mut Rng) -> Nanos {
    (-(1.0 - rng.f64()).ln() * mean) as Nanos
}

/// How much work requests are: 20 ms on average.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    Exponential,
    /// With a sigma of 1: one in a hundred is six times the mean.
    Lognormal,
    /// Nine of ten are 10 ms, one is 110 ms.
    Bimodal,
}

impl Work {
    pub(crate) const MEAN: Nanos = 20 * MILLISECOND;

    pub(crate) const ALL: [(&'static str, Self); 3] =
        [("exponential", Self::Exponential), ("lognormal", Self::Lognormal), ("bimodal", Self::Bimodal)];

    pub(crate) fn draw(self, rng: &mut Rng) -> Nanos {
        match self {
            Self::Exponential => exponential(Self::MEAN as f64, rng),
            Self::Lognormal => {
                // Box and Muller's.
                let radius = (-2.0 * (1.0 - rng.f64()).ln()).sqrt();
                let normal = radius * (std::f64::consts::TAU * rng.f64()).cos();
                (Self::MEAN as f64 * (normal - 0.5).exp()) as Nanos
            }
            Self::Bimodal if rng.u32(..10) == 0 => 110 * MILLISECOND,
            Self::Bimodal => 10 * MILLISECOND,
        }
    }
}
