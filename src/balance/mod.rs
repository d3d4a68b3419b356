//! Upstreams: sets of endpoints with a known saturation, and the choice of the least saturated.
//!
//! Promises: counts are exact over all workers; `max_in_flight` is never exceeded; an endpoint
//! that is full, that has left, or that just failed is passed over; a choice takes no lock and
//! allocates nothing.

mod endpoint;
mod keep_alive;
mod room;
mod upstream;

pub use endpoint::Endpoint;
pub use keep_alive::{Configured, KeepAlive, KeepAliveReport};
pub use room::{Handed, Room, Wanted};
pub use upstream::{InFlight, Open, Spec, Upstream};

use std::sync::Arc;

/// Why no endpoint was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum None {
    /// There is no endpoint, or each has been tried.
    Empty,
    /// Every endpoint is at its capacity.
    Full,
}

/// The least saturated endpoint that takes requests and is not among `tried`.
///
/// Endpoints that just failed are chosen only when no other is left: a wrong guess then costs one
/// connection, while refusing would fail the request for certain.
pub fn least_saturated<'a>(endpoints: &'a [Arc<Endpoint>], tried: &[u64]) -> Result<&'a Arc<Endpoint>, None> {
    if endpoints.is_empty() {
        return Err(None::Empty);
    }
    // A random beginning, so that equals share: callers who see the same must not choose the same.
    let start = fastrand::usize(..endpoints.len());
    let (mut best, mut best_paused) = (Option::None, Option::None);
    let mut full = false;
    let (before, after) = endpoints.split_at(start);
    for endpoint in after.iter().chain(before) {
        if endpoint.is_leaving() || tried.contains(&endpoint.id) {
            continue;
        }
        let (in_flight, capacity) = (endpoint.in_flight(), endpoint.capacity());
        if in_flight >= capacity {
            full = true;
            continue;
        }
        let best = if endpoint.is_paused() { &mut best_paused } else { &mut best };
        // a/b < c/d without division.
        let less = |(other, load, room): (&Arc<Endpoint>, u32, u32)| {
            let _ = other;
            u64::from(in_flight) * u64::from(room) < u64::from(load) * u64::from(capacity)
        };
        if best.is_none_or(less) {
            *best = Some((endpoint, in_flight, capacity));
        }
    }
    match best.or(best_paused) {
        Some((endpoint, ..)) => Ok(endpoint),
        Option::None if full => Err(None::Full),
        Option::None => Err(None::Empty),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(n: u8, capacity: u32) -> Vec<Arc<Endpoint>> {
        (1..=n).map(|i| Endpoint::new(([127, 0, 0, i], 80).into(), capacity)).collect()
    }

    #[test]
    fn the_least_saturated_is_chosen_not_the_least_loaded() {
        let set = [endpoints(1, 10).remove(0), endpoints(1, 100).remove(0)];
        (0..2).for_each(|_| set[0].begin()); // 0.2
        (0..10).for_each(|_| set[1].begin()); // 0.1
        assert_eq!(least_saturated(&set, &[]).unwrap().id, set[1].id);
    }

    #[test]
    fn equals_share() {
        let set = endpoints(4, 10);
        let mut seen = std::collections::HashSet::new();
        for _ in 0..200 {
            seen.insert(least_saturated(&set, &[]).unwrap().id);
        }
        assert_eq!(seen.len(), 4);
    }

    #[test]
    fn full_left_and_tried_are_passed_over() {
        let set = endpoints(3, 1);
        set[0].begin();
        set[1].leave();
        assert_eq!(least_saturated(&set, &[]).unwrap().id, set[2].id);
        assert_eq!(least_saturated(&set, &[set[2].id]).unwrap_err(), None::Full);
        set[0].end();
        assert_eq!(least_saturated(&set, &[set[0].id, set[2].id]).unwrap_err(), None::Empty);
    }

    #[test]
    fn one_that_failed_is_the_last_resort() {
        let set = endpoints(2, 10);
        set[0].failed();
        for _ in 0..50 {
            assert_eq!(least_saturated(&set, &[]).unwrap().id, set[1].id);
        }
        assert_eq!(least_saturated(&set, &[set[1].id]).unwrap().id, set[0].id);
    }
}
