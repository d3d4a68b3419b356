//! The endpoints that this sidecar uses, of those that a source names.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::ranks::{self, Ranks};
use super::{Endpoint, sticky};

/// Endpoints, and which of them come before others: two that are always of each other.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    pub(super) endpoints: Vec<Arc<Endpoint>>,
    /// None: none comes before another.
    pub(super) ranks: Option<Ranks>,
}

impl Candidates {
    /// All of a set, or, where it is larger than `most`, so many of each rank: those of the highest numbers,
    /// drawn for each from its address (rendezvous hashing), so that one that joins or leaves changes hardly any
    /// of the others. As each rank has its own, none is cut away by one that comes after it, and there is one to
    /// go to where it fails.
    pub(super) fn of(all: &[Arc<Endpoint>], most: Option<usize>, seed: u64) -> Self {
        let endpoints = match most {
            Some(most) if all.len() > most => subset(all, most, seed),
            _ => all.to_vec(),
        };
        endpoints.iter().enumerate().for_each(|(place, endpoint)| endpoint.takes_place(place));
        let ranks = Ranks::of(&endpoints);
        Self { endpoints, ranks }
    }
}

fn subset(all: &[Arc<Endpoint>], most: usize, seed: u64) -> Vec<Arc<Endpoint>> {
    let mut ranks: BTreeMap<_, Vec<(f64, &Arc<Endpoint>)>> = BTreeMap::new();
    for endpoint in all {
        let drawn = (sticky::draw(seed, endpoint), endpoint);
        ranks.entry(ranks::key(&endpoint.standing)).or_default().push(drawn);
    }
    for drawn in ranks.values_mut().filter(|drawn| drawn.len() > most) {
        drawn.select_nth_unstable_by(most, |a, b| b.0.total_cmp(&a.0));
        drawn.truncate(most);
    }
    ranks.into_values().flatten().map(|(_, endpoint)| endpoint.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::Target;

    fn endpoint(n: u16, second: bool, priority: u16, zone: &str) -> Arc<Endpoint> {
        let at = Target::at(([10, 0, (n >> 8) as u8, n as u8], 80).into());
        let endpoint = Endpoint::new(at.address, None);
        let target = Target { second, priority, zone: Some(zone.into()), ..at };
        endpoint.standing.take(&target, None, false, Some("here"));
        endpoint
    }

    fn count(candidates: &Candidates, is: impl Fn(&Endpoint) -> bool) -> usize {
        candidates.endpoints.iter().filter(|endpoint| is(endpoint)).count()
    }

    #[test]
    fn a_subset_has_its_part_of_each_rank() {
        let primaries = (0..2).map(|n| endpoint(n, false, 0, "here"));
        let backups = (2..102).map(|n| endpoint(n, false, 10, "here"));
        let seconds = (102..202).map(|n| endpoint(n, true, 10, "here"));
        let far = (202..302).map(|n| endpoint(n, false, 10, "there"));
        let all: Vec<_> = seconds.chain(far).chain(backups).chain(primaries).collect();
        for seed in 0..50 {
            let some = Candidates::of(&all, Some(20), seed);
            assert_eq!(count(&some, |e| e.standing.priority() == 0), 2);
            assert_eq!(count(&some, |e| e.standing.is_second()), 20, "not counted beside first ones");
            assert_eq!(count(&some, |e| e.standing.is_far()), 20);
            assert_eq!(some.endpoints.len(), 62);
        }
    }

    #[test]
    fn who_leaves_changes_one_of_a_subset() {
        let all: Vec<_> = (0..200).map(|n| endpoint(n, false, 0, "here")).collect();
        let before = Candidates::of(&all, Some(20), 7);
        assert_eq!(before.endpoints.len(), 20);
        let gone = before.endpoints[0].id;
        let fewer: Vec<_> = all.iter().filter(|endpoint| endpoint.id != gone).cloned().collect();
        let after = Candidates::of(&fewer, Some(20), 7);
        let stays = |e: &Endpoint| before.endpoints.iter().any(|old| old.id == e.id);
        assert_eq!((after.endpoints.len(), count(&after, stays)), (20, 19));
        let small = Candidates::of(&all[..20], Some(20), 7);
        assert!(small.endpoints.len() == 20 && small.ranks.is_none());
    }
}
