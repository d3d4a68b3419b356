//! Requests of one kind to one endpoint, as far as that has room: consistent hashing with bounded load.
//!
//! Each endpoint has a number drawn from the key and its address, and the highest wins (rendezvous
//! hashing): when one joins or leaves, only the keys move that it wins or won. One that is fuller than the
//! others by a quarter is passed over for the next, so that a key of many requests does not drown it
//! (Mirrokni, Thorup, Zadimoghaddam: Consistent Hashing with Bounded Loads, 2018).

use std::hash::BuildHasher;
use std::sync::Arc;

use foldhash::quality::FixedState;

use super::Endpoint;
use super::choice::{CROWDED, Chosen, None, Question};
use super::crowd::Crowd;
use super::ranks::Family;
use super::standing::Share;

/// What an endpoint may have beside the mean of those that are well and of its rank.
const BOUND: f32 = 1.25;

/// The number of a key: the same in every sidecar of one version.
pub fn key(value: &[u8]) -> u64 {
    FixedState::with_seed(0).hash_one(value)
}

/// What is drawn for a key.
struct Drawn<'a> {
    chosen: Chosen<'a>,
    /// All that it could be drawn of are as full as they serve at once.
    from_crowded: bool,
}

impl Crowd {
    /// The endpoint for a request with `key`: the same for each request with it, while it has room. It is one of
    /// those that a request without a key would go to: of the first rank that has room. When
    /// none that is well has, as [`choose`](Self::choose).
    pub fn stick<'a>(
        &self,
        endpoints: &'a [Arc<Endpoint>],
        question: &Question<'_>,
        key: u64,
    ) -> Result<Chosen<'a>, None> {
        let draw_of_family = |family: Family<'_>| {
            let ranks = || family.ranks.iter().map(|rank| rank.endpoints(endpoints));
            // Those that are near are left when all of them are crowded, and so are those that are not.
            ranks()
                .filter_map(|rank| self.draw(rank, question, key))
                .find(|drawn| !drawn.from_crowded)
                .or_else(|| self.draw(ranks().flatten(), question, key))
        };
        let drawn = match question.uneven.and_then(|uneven| uneven.ranks) {
            Some(ranks) => {
                ranks.families(endpoints, question).filter(|family| !family.is_shut).find_map(draw_of_family)
            }
            Option::None => self.draw(endpoints.iter(), question, key),
        };
        drawn.map_or_else(|| self.choose(endpoints, question), |drawn| Ok(drawn.chosen))
    }

    /// The one of the highest number, of those that are well and have no more than their part.
    fn draw<'a>(
        &self,
        among: impl Iterator<Item = &'a Arc<Endpoint>> + Clone,
        question: &Question<'_>,
        key: u64,
    ) -> Option<Drawn<'a>> {
        let (usual, now) = (self.usual(), question.now);
        let well = among.filter(|endpoint| {
            endpoint.condition(now.millis()).takes_requests() && !question.tried.contains(&endpoint.id)
        });
        let (count, in_flight) = well.clone().fold((0, 0), |(n, sum), e| (n + 1, sum + e.in_flight()));
        // With this one.
        let mean = (in_flight + 1) as f32 / count.max(1) as f32;
        let bound = (mean * BOUND).ceil();
        let mut best: Option<(f64, Chosen<'a>)> = Option::None;
        let mut from_crowded = true;
        for endpoint in well {
            let view = endpoint.load.view(&usual, now.micros(), Share::WHOLE, 0.0);
            if view.full || (endpoint.in_flight() + 1) as f32 > bound {
                continue;
            }
            from_crowded &= view.saturation() > CROWDED;
            let number = draw(key, endpoint);
            if best.as_ref().is_none_or(|(highest, _)| number > *highest) {
                best = Some((number, Chosen { endpoint, saturation: view.saturation(), fresh: 1.0 }));
            }
        }
        best.map(|(_, chosen)| Drawn { chosen, from_crowded })
    }
}

/// An endpoint's number for a key: by its weight, it is the highest.
pub(super) fn draw(key: u64, endpoint: &Endpoint) -> f64 {
    let drawn = FixedState::with_seed(key).hash_one(endpoint.address);
    // From 0 to 1, both left out.
    let unit = ((drawn >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    -f64::from(endpoint.standing.weight()) / unit.ln()
}
