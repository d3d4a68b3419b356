//! Which endpoints come before others: those of the least priority that have room, then those of the family
//! to reach them by, then those that are near.
//!
//! The second address of an endpoint is the way around its first: it is taken where no first one can be
//! reached, and right after one that could not be. It is no room beside it.
//!
//! Who is of which rank is known before any request comes: a choice looks at those of the first one, and at
//! others only if it found nothing there.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::choice::Question;
use super::load::Condition;
use super::{Endpoint, Standing};

/// The ranks of a set of endpoints.
#[derive(Debug)]
pub struct Ranks {
    /// By priority, then first addresses, then near ones. None is empty.
    all: Vec<Rank>,
    /// For each place in the set, which of them.
    of: Vec<u32>,
}

/// Endpoints none of which comes before another.
#[derive(Debug)]
pub(super) struct Rank {
    number: u32,
    priority: u32,
    is_second: bool,
    /// Its endpoints are in another zone than we are.
    pub(super) is_far: bool,
    /// Where they are in the set.
    pub(super) places: Vec<u32>,
}

/// The near and the far endpoints of one priority, by their addresses of one family.
#[derive(Debug, Clone, Copy)]
pub(super) struct Family<'a> {
    /// One rank or two. Those that are near come first.
    pub(super) ranks: &'a [Rank],
    /// They are second addresses of those of which one is full: no room.
    pub(super) is_shut: bool,
}

impl Ranks {
    /// The ranks of a set; none: it has only one.
    pub fn of(endpoints: &[Arc<Endpoint>]) -> Option<Self> {
        let mut places: BTreeMap<_, Vec<u32>> = BTreeMap::new();
        for (place, endpoint) in (0..).zip(endpoints) {
            places.entry(key(&endpoint.standing)).or_default().push(place);
        }
        if places.len() < 2 {
            return None;
        }
        let rank = |(number, ((priority, is_second, is_far), places))| Rank {
            number,
            priority,
            is_second,
            is_far,
            places,
        };
        let all: Vec<Rank> = (0..).zip(places).map(rank).collect();
        let mut of = vec![0; endpoints.len()];
        for rank in &all {
            rank.places.iter().for_each(|place| of[*place as usize] = rank.number);
        }
        Some(Self { all, of })
    }

    /// Whether what is at a place of the set is of a rank.
    pub(super) fn holds(&self, rank: &Rank, place: usize) -> bool {
        self.of.get(place) == Some(&rank.number)
    }

    /// What a request is to be given a place in, one after the other.
    pub(super) fn families<'a>(
        &'a self,
        endpoints: &'a [Arc<Endpoint>],
        question: &Question<'_>,
    ) -> impl Iterator<Item = Family<'a>> {
        let now = question.now.millis();
        let last = question.tried.last().and_then(|id| endpoints.iter().find(|e| e.id == *id));
        let unreached = last.filter(|e| e.condition(now) != Condition::Sound && e.is_unreached());
        let second_last = unreached.is_none_or(|endpoint| endpoint.standing.is_second());
        let is_full = move |e: &Arc<Endpoint>| e.condition(now) == Condition::Sound && e.is_full();
        self.all.chunk_by(|a, b| a.priority == b.priority).flat_map(move |ranks| {
            let (first, second) = ranks.split_at(ranks.partition_point(|rank| !rank.is_second));
            let families = if second_last { [first, second] } else { [second, first] };
            let any_is_full = move || first.iter().flat_map(|rank| rank.endpoints(endpoints)).any(is_full);
            families
                .into_iter()
                .filter(|ranks| !ranks.is_empty())
                .map(move |ranks| Family { ranks, is_shut: ranks[0].is_second && any_is_full() })
        })
    }
}

impl Rank {
    /// Its endpoints, of the set that it was made of.
    pub(super) fn endpoints<'a>(
        &self,
        set: &'a [Arc<Endpoint>],
    ) -> impl Iterator<Item = &'a Arc<Endpoint>> + Clone {
        self.places.iter().filter_map(|place| set.get(*place as usize))
    }
}

/// What an endpoint's rank depends on. The least comes first.
pub(super) fn key(standing: &Standing) -> (u32, bool, bool) {
    (standing.priority(), standing.is_second(), standing.is_far())
}
