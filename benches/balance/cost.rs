//! What a choice costs, as the product makes it: all that is looked at is in this core's cache, and warm.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pannier::balance::{Crowd, Endpoint, Now, Question, Ranks, Uneven};
use pannier::dns::Target;
use pannier::http::Announcement;

const CHOICES: u32 = 2_000_000;

const OURS: &str = "a";

/// The mean time of a choice among so many endpoints, in nanoseconds; `zones`: of which they are in turn.
fn cost(endpoints: usize, zones: &[&str]) -> f64 {
    let (crowd, now) = (Crowd::default(), Now::of_micros(1_000_000));
    let endpoint = |n: usize| {
        let target = Target::at(([10, 0, (n >> 8) as u8, n as u8], 80).into());
        let endpoint = Endpoint::new(target.address, None);
        let zone = Some(zones[n % zones.len()].into());
        endpoint.standing.take(&Target { zone, ..target }, None, false, Some(OURS));
        endpoint
    };
    let set: Vec<Arc<Endpoint>> = (0..endpoints).map(endpoint).collect();
    for (n, endpoint) in set.iter().enumerate() {
        endpoint.takes_place(n);
        let said = Announcement { in_flight: n as u32 % 16, capacity: 16, latency: 20_000, most: 0 };
        crowd.hear(endpoint, &said, now);
    }
    let ranks = Ranks::of(&set);
    let uneven = ranks.as_ref().map(|ranks| Uneven { slow_start: Duration::ZERO, ranks: Some(ranks) });
    let question = Question { tried: &[], now, asked: false, uneven };
    let begin = Instant::now();
    for _ in 0..CHOICES {
        black_box(crowd.choose(black_box(&set), &question).is_ok());
    }
    begin.elapsed().as_nanos() as f64 / f64::from(CHOICES)
}

/// Prints it for sets of several sizes.
pub(crate) fn print() {
    for endpoints in [1, 3, 10, 16, 32, 100, 1000] {
        let (alike, zones) = (cost(endpoints, &[OURS]), cost(endpoints, &[OURS, "b"]));
        println!("{endpoints:5} endpoints: {alike:6.1} ns, in two zones {zones:6.1} ns");
    }
}
