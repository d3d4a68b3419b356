//! What a choice costs, as the product makes it: all that is looked at is in this core's cache, and warm.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use pannier::balance::{Crowd, Endpoint, Now, Question};
use pannier::http::Announcement;

const CHOICES: u32 = 2_000_000;

/// The mean time of a choice among so many endpoints, in nanoseconds.
fn cost(endpoints: usize) -> f64 {
    let (crowd, now) = (Crowd::default(), Now::of_micros(1_000_000));
    let endpoint = |n: usize| Endpoint::new(([10, 0, (n >> 8) as u8, n as u8], 80).into(), None);
    let set: Vec<Arc<Endpoint>> = (0..endpoints).map(endpoint).collect();
    for (n, endpoint) in set.iter().enumerate() {
        endpoint.takes_place(n);
        let said = Announcement { in_flight: n as u32 % 16, capacity: 16, latency: 20_000, most: 0 };
        crowd.hear(endpoint, &said, now);
    }
    let question = Question { tried: &[], now, asked: false, uneven: None };
    let begin = Instant::now();
    for _ in 0..CHOICES {
        black_box(crowd.choose(black_box(&set), &question).is_ok());
    }
    begin.elapsed().as_nanos() as f64 / f64::from(CHOICES)
}

/// Prints it for sets of several sizes.
pub(crate) fn print() {
    for endpoints in [1, 3, 10, 16, 32, 100, 1000] {
        println!("{endpoints:5} endpoints: {:6.1} ns", cost(endpoints));
    }
}
