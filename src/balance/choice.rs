//! The choice of an endpoint: the least saturated of those that take requests.

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use super::Endpoint;

/// Why no endpoint was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum None {
    /// There is no endpoint, or each has been tried.
    Empty,
    /// Every endpoint is at its capacity.
    Full,
}

/// The least saturated endpoint that takes requests and is not among `tried`, of endpoints that are
/// alike.
///
/// Endpoints that just failed are chosen only when no other is left: a wrong guess then costs one
/// connection, while refusing would fail the request for certain. So are those that have left, which
/// a request finds that began before a reload and chooses after it.
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
        if tried.contains(&endpoint.id) {
            continue;
        }
        let (in_flight, capacity) = (endpoint.in_flight(), endpoint.capacity());
        if in_flight >= capacity {
            full |= !endpoint.is_leaving();
            continue;
        }
        let best = if endpoint.is_paused() || endpoint.is_leaving() { &mut best_paused } else { &mut best };
        // a/b < c/d without division.
        let less = |(_, load, room): (&Arc<Endpoint>, u32, u32)| {
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

/// As [`least_saturated`], of endpoints that are not alike: those of the least priority that have room,
/// each by its weight, and one that has just joined by less than that.
///
/// The second address of an endpoint is the way around its first: it is taken where no first one can
/// be reached, and right after one that could not be. It is no room beside it.
pub fn least_saturated_by_share<'a>(
    endpoints: &'a [Arc<Endpoint>],
    tried: &[u64],
    now_millis: u64,
    slow_start: Duration,
) -> Result<&'a Arc<Endpoint>, None> {
    let last = tried.last().and_then(|id| endpoints.iter().find(|endpoint| endpoint.id == *id));
    let unreached =
        last.filter(|endpoint| endpoint.is_paused()).map(|endpoint| endpoint.standing.is_second());
    let avoided = unreached.unwrap_or(true);
    let mut best: Option<(&Arc<Endpoint>, (bool, u32, bool), f64)> = Option::None;
    let mut equals = 0.0;
    let mut full = false;
    // Where a first address is full, its second one is no room.
    let full_first = endpoints.iter().filter(|e| !e.standing.is_second() && !e.is_paused() && e.is_full());
    let full_first: SmallVec<[u32; 8]> = full_first.map(|e| e.standing.priority()).collect();
    for endpoint in endpoints {
        if tried.contains(&endpoint.id) {
            continue;
        }
        let standing = &endpoint.standing;
        let (in_flight, capacity) = (endpoint.in_flight(), endpoint.capacity());
        if in_flight >= capacity {
            full |= !endpoint.is_leaving();
            continue;
        }
        if standing.is_second() && full_first.contains(&standing.priority()) {
            continue;
        }
        let share = standing.share(now_millis, slow_start);
        let load = f64::from(in_flight) / (f64::from(capacity) * share);
        let last_resort = endpoint.is_paused() || endpoint.is_leaving();
        let rank = (last_resort, standing.priority(), standing.is_second() == avoided);
        let order = best.as_ref().map_or(Ordering::Less, |(_, best_rank, best_load)| {
            rank.cmp(best_rank).then(load.total_cmp(best_load))
        });
        match order {
            Ordering::Less => (best, equals) = (Some((endpoint, rank, load)), share),
            // Of equals each by its share.
            Ordering::Equal => {
                equals += share;
                if fastrand::f64() * equals < share {
                    best = Some((endpoint, rank, load));
                }
            }
            Ordering::Greater => {}
        }
    }
    match best {
        Some((endpoint, ..)) => Ok(endpoint),
        Option::None if full => Err(None::Full),
        Option::None => Err(None::Empty),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::Target;

    fn endpoints(n: u8, capacity: u32) -> Vec<Arc<Endpoint>> {
        (1..=n).map(|i| Endpoint::new(([127, 0, 0, i], 80).into(), capacity)).collect()
    }

    const SLOW_START: Duration = Duration::from_secs(10);

    /// Endpoints of which the source says so much.
    fn standing(targets: &[Target], capacity: u32) -> Vec<Arc<Endpoint>> {
        let endpoint = |target: &Target| {
            let endpoint = Endpoint::new(target.address, capacity);
            endpoint.standing.take(target, false);
            endpoint
        };
        targets.iter().map(endpoint).collect()
    }

    fn target(n: u8) -> Target {
        Target::at(([127, 0, 0, n], 80).into())
    }

    /// How often each is chosen of a thousand times, at a time.
    fn shares(set: &[Arc<Endpoint>], now: u64) -> Vec<usize> {
        let mut counts = vec![0; set.len()];
        for _ in 0..1000 {
            let chosen = least_saturated_by_share(set, &[], now, SLOW_START).unwrap().id;
            counts[set.iter().position(|endpoint| endpoint.id == chosen).unwrap()] += 1;
        }
        counts
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
        for _ in 0..50 {
            assert_eq!(least_saturated(&set, &[]).unwrap().id, set[2].id);
        }
        assert_eq!(least_saturated(&set, &[set[1].id, set[2].id]).unwrap_err(), None::Full);
        let all: Vec<u64> = set.iter().map(|endpoint| endpoint.id).collect();
        assert_eq!(least_saturated(&set, &all).unwrap_err(), None::Empty);
    }

    #[test]
    fn one_that_left_is_the_last_resort_of_who_still_knows_it() {
        let set = endpoints(2, 1);
        set.iter().for_each(|endpoint| endpoint.leave());
        assert!(least_saturated(&set, &[]).is_ok());
        assert!(least_saturated_by_share(&set, &[], 1, SLOW_START).is_ok());
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

    #[test]
    fn weights_are_shares_idle_and_busy() {
        let set = standing(&[Target { weight: 1, ..target(1) }, Target { weight: 3, ..target(2) }], 1000);
        let idle = shares(&set, 1);
        assert!((180..320).contains(&idle[0]), "{idle:?}");
        for _ in 0..400 {
            least_saturated_by_share(&set, &[], 1, SLOW_START).unwrap().begin();
        }
        assert!((95..=105).contains(&set[0].in_flight()), "{}", set[0].in_flight());
    }

    #[test]
    fn an_endpoint_that_joins_takes_its_share_by_and_by() {
        let set = standing(&[target(1), target(2)], 1000);
        set[1].standing.join(1000);
        let at = |now| shares(&set, now)[1];
        let (first, half, whole) = (at(1001), at(6000), at(11_000));
        assert!((50..150).contains(&first), "a tenth of the other's share: {first}");
        assert!((270..400).contains(&half), "half of it: {half}");
        assert!((420..580).contains(&whole), "all of it: {whole}");
    }

    #[test]
    fn the_next_priority_takes_what_the_first_has_no_room_for() {
        let set = standing(&[target(1), Target { priority: 1, ..target(2) }], 1);
        assert_eq!(shares(&set, 1), [1000, 0]);
        set[0].begin();
        assert_eq!(shares(&set, 1), [0, 1000]);
        set[0].end();
        set[0].failed();
        assert_eq!(shares(&set, 1), [0, 1000]);
        set[1].failed();
        assert_eq!(shares(&set, 1), [1000, 0]);
    }

    #[test]
    fn the_next_priority_takes_over_from_a_full_one_of_both_families() {
        let both = [target(1), Target { second: true, ..target(2) }, Target { priority: 10, ..target(3) }];
        let set = standing(&both, 1);
        set[0].begin();
        assert_eq!(shares(&set, 1), [0, 0, 1000]);
    }

    #[test]
    fn the_second_address_is_the_way_around_and_no_more_room() {
        let set = standing(&[target(1), target(2), Target { second: true, ..target(3) }], 1);
        let choose = |tried: &[u64]| least_saturated_by_share(&set, tried, 1, SLOW_START).map(|e| e.id);
        assert_eq!(shares(&set, 1)[2], 0);
        set[0].begin();
        set[1].begin();
        assert_eq!(choose(&[]), Err(None::Full));
        set[0].end();
        set[1].end();
        assert_ne!(choose(&[set[0].id]), Ok(set[2].id), "it answered, whatever it said");
        set[0].failed();
        assert_eq!(choose(&[set[0].id]), Ok(set[2].id), "the other family comes next");
        assert_eq!(choose(&[]), Ok(set[1].id));
        set[1].failed();
        assert_eq!(choose(&[]), Ok(set[2].id));
    }
}
