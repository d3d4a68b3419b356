//! How well an endpoint is chosen: a simulation of clients, servers and the network between them, in which
//! ways to choose meet the same requests.
mod ask;
mod events;
mod measure;
mod plan;
mod policy;
mod requests;
mod scenario;
mod server;
mod speed;
mod world;

use plan::{Case, Plan};
use scenario::{Scenario, Work};

fn main() {
    for name in ["alike", "heterogeneous"] {
        for (clients, servers) in [(10, 10), (100, 100), (1000, 1000)] {
            for policy in policy::NAMES {
                let case = Case {
                    scenario: Scenario::named(name).unwrap(),
                    clients,
                    servers,
                    load: 80,
                    work: Work::Exponential,
                    seed: 1,
                };
                let begin = std::time::Instant::now();
                let plan = Plan::new(&case);
                let mut m = policy::run(policy, &plan).unwrap();
                let took = begin.elapsed().as_secs_f64();
                println!(
                    "{name} {clients}x{servers} {policy:14} p50 {} p99 {} mean {:.0} goodput {:.3} {} requests {:.2}M/s",
                    m.percentile(0.5),
                    m.percentile(0.99),
                    m.mean(),
                    m.goodput,
                    m.requests,
                    m.sends as f64 / took / 1e6
                );
            }
        }
    }
}
