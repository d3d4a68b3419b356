//! What the command line asks for.

use std::path::PathBuf;
use std::time::Duration;

use crate::policy::POLICIES;
use crate::scenario::{SCENARIOS, Scenario, Work};

const USAGE: &str = "\
Simulates ways to choose an endpoint. What the results have already is not simulated again.

  --scenario NAMES   separated by commas, as all that are several; all by default
  --size SIZES       clients and servers, such as 100x10
  --load LOADS       in percent of what the servers can do, instead of the scenario's own
  --policy NAMES     all by default
  --again NAMES      of these policies, forgets the results first: they have changed
  --work NAME        how the work of requests is distributed: exponential, lognormal or bimodal
  --seeds N          of each case; 20 by default
  --quick            three small sizes, one load and three seeds
  --minutes N        begins no other case after so long
  --out FILE         where results are added; target/bench/balance.jsonl by default";

const SIZES: [(usize, usize); 9] = [
    (10, 10),
    (100, 10),
    (10, 100),
    (100, 100),
    (1000, 10),
    (10, 1000),
    (1000, 100),
    (100, 1000),
    (1000, 1000),
];

/// What a quick run has: three small sizes, a load of those that a scenario has, some seeds.
const QUICK_SIZES: usize = 3;
const QUICK_LOAD: u32 = 80;
const QUICK_SEEDS: u64 = 3;

pub(crate) struct Options {
    pub(crate) scenarios: Vec<&'static Scenario>,
    /// Clients and servers.
    pub(crate) sizes: Vec<(usize, usize)>,
    /// In percent; none: those of the scenario.
    loads: Option<Vec<u32>>,
    /// Names out of [`POLICIES`].
    pub(crate) policies: Vec<&'static str>,
    /// Those whose results are of no use any more.
    pub(crate) again: Vec<&'static str>,
    pub(crate) work: Work,
    pub(crate) seeds: u64,
    pub(crate) time: Option<Duration>,
    pub(crate) out: PathBuf,
    is_quick: bool,
}

impl Options {
    pub(crate) fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self {
            scenarios: SCENARIOS.iter().collect(),
            sizes: SIZES.to_vec(),
            loads: None,
            policies: POLICIES.iter().map(|policy| policy.0).collect(),
            again: Vec::new(),
            work: Work::Exponential,
            seeds: 20,
            time: None,
            out: "target/bench/balance.jsonl".into(),
            is_quick: false,
        };
        while let Some(argument) = arguments.next() {
            if argument == "--quick" {
                options.is_quick = true;
                options.sizes.truncate(QUICK_SIZES);
                options.seeds = QUICK_SEEDS;
                continue;
            }
            if argument == "--help" {
                return Err(usage());
            }
            let value = arguments.next().ok_or_else(|| format!("{argument}: no value\n\n{}", usage()))?;
            options
                .take(&argument, &value)
                .ok_or_else(|| format!("{argument} {value}: what is that?\n\n{}", usage()))?;
        }
        Ok(options)
    }

    fn take(&mut self, argument: &str, value: &str) -> Option<()> {
        let values = || value.split(',');
        match argument {
            "--scenario" => self.scenarios = values().map(Scenario::named).collect::<Option<_>>()?,
            "--size" => self.sizes = values().map(size).collect::<Option<_>>()?,
            "--load" => self.loads = Some(values().map(|load| load.parse().ok()).collect::<Option<_>>()?),
            "--policy" => self.policies = values().map(policy).collect::<Option<_>>()?,
            "--again" => self.again = values().map(policy).collect::<Option<_>>()?,
            "--work" => self.work = Work::ALL.iter().find(|work| work.0 == value)?.1,
            "--seeds" => self.seeds = value.parse().ok()?,
            "--minutes" => self.time = Some(Duration::from_secs_f64(60.0 * value.parse::<f64>().ok()?)),
            "--out" => self.out = value.into(),
            _ => return None,
        }
        Some(())
    }

    /// The loads that a scenario is simulated at.
    pub(crate) fn loads(&self, scenario: &'static Scenario) -> &[u32] {
        match &self.loads {
            Some(loads) => loads,
            None if self.is_quick => {
                let quick = scenario.loads.iter().position(|load| *load == QUICK_LOAD).unwrap_or(0);
                &scenario.loads[quick..=quick]
            }
            None => scenario.loads,
        }
    }
}

fn usage() -> String {
    let mut usage =
        format!("{USAGE}\n\nPolicies: {}.\nScenarios:\n", POLICIES.map(|policy| policy.0).join(", "));
    for scenario in SCENARIOS {
        usage += &format!("  {:16} {}\n", scenario.name, scenario.about);
    }
    usage
}

fn policy(name: &str) -> Option<&'static str> {
    POLICIES.iter().map(|policy| policy.0).find(|known| *known == name)
}

/// Clients and servers; as many as they can be numbered with.
fn size(text: &str) -> Option<(usize, usize)> {
    let (clients, servers) = text.split_once('x')?;
    let number = |text: &str| text.parse().ok().filter(|number| (1..=10_000).contains(number));
    Some((number(clients)?, number(servers)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, String> {
        Options::parse(line.split_whitespace().map(String::from))
    }

    #[test]
    fn options_select_cases() {
        let options =
            parse("--scenario alike,dead --size 7x3 --policy oracle --load 85 --minutes 1.5").unwrap();
        assert_eq!(
            options.scenarios.iter().map(|scenario| scenario.name).collect::<Vec<_>>(),
            ["alike", "dead"]
        );
        assert_eq!((options.sizes[0], options.policies[0]), ((7, 3), "oracle"));
        assert_eq!(options.loads(options.scenarios[1]), [85]);
        assert_eq!(options.time, Some(Duration::from_secs(90)));
        let quick = parse("--quick").unwrap();
        let loads: Vec<_> = quick.scenarios.iter().map(|scenario| quick.loads(scenario)).collect();
        assert!(loads[..8].iter().all(|loads| *loads == [80]) && loads[8] == [110], "{loads:?}");
    }

    #[test]
    fn what_is_not_known_is_an_error() {
        for line in [
            "--scenario no",
            "--size 10",
            "--size 0x1",
            "--policy best",
            "--again best",
            "--load",
            "--fast 1",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
