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
use super::choice::{Chosen, None, Question};
use super::crowd::Crowd;
use super::load::Condition;
use super::standing::Share;

/// What an endpoint may have beside the mean of all.
const BOUND: f32 = 1.25;

/// The number of a key: the same in every sidecar of one version.
pub fn key(value: &[u8]) -> u64 {
    FixedState::with_seed(0).hash_one(value)
}

impl Crowd {
    /// The endpoint for a request with `key`: the same for each request with it, while it has room. When
    /// none that is well has, as [`choose`](Self::choose).
    pub fn stick<'a>(
        &self,
        endpoints: &'a [Arc<Endpoint>],
        question: &Question<'_>,
        key: u64,
    ) -> Result<Chosen<'a>, None> {
        let usual = self.usual();
        let now = question.now;
        let in_flight: u32 = endpoints.iter().map(|endpoint| endpoint.in_flight()).sum();
        // With this one.
        let mean = (in_flight + 1) as f32 / endpoints.len().max(1) as f32;
        let bound = (mean * BOUND).ceil().max(1.0);
        let mut best: Option<(f64, Chosen<'a>)> = Option::None;
        for endpoint in endpoints {
            let view = endpoint.load.view(&usual, now.micros(), Share::WHOLE, 0.0);
            let suits = !view.full
                && (endpoint.in_flight() + 1) as f32 <= bound
                && matches!(endpoint.condition(now.millis()), Condition::Sound | Condition::Doubted)
                && !question.tried.contains(&endpoint.id);
            let drawn = draw(key, endpoint);
            if suits && best.as_ref().is_none_or(|(highest, _)| drawn > *highest) {
                best = Some((drawn, Chosen { endpoint, saturation: view.saturation(), fresh: 1.0 }));
            }
        }
        best.map_or_else(|| self.choose(endpoints, question), |(_, chosen)| Ok(chosen))
    }
}

/// An endpoint's number for a key: by its weight, it is the highest.
pub(super) fn draw(key: u64, endpoint: &Endpoint) -> f64 {
    let drawn = FixedState::with_seed(key).hash_one(endpoint.address);
    // From 0 to 1, both left out.
    let unit = ((drawn >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    -f64::from(endpoint.standing.weight()) / unit.ln()
}
