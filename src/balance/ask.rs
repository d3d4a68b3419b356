//! Asking before sending: where callers are many and each sends little, what an answer said of its
//! endpoint is long over when the next request comes. While the endpoints are busy, a request then first
//! asks a few of them how full they are, over connections that are there, and is in no hurry for the last.

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use super::Endpoint;
use super::choice::{Chosen, Question};
use super::crowd::Crowd;

/// Endpoints that one request asks.
const MOST: usize = 4;

/// What is known of the chosen endpoint is asked for anew when it says less than this, from 0 to 1.
const STALE: f32 = 0.9;

/// Where the best that is known is as full as this, others of which little is known are asked whatever is
/// known of that one.
const CROWDED: f32 = 1.0;

/// With less in flight than this part of the capacity, the request included, any endpoint will do; and so will
/// one that has hardly anything else.
const BUSY: f32 = 0.3;
const ALONE: f32 = 1.2;

/// How long answers are waited for: this part of what a request takes, within bounds.
const PART: f32 = 0.1;
const SHORTEST: Duration = Duration::from_micros(500);
const LONGEST: Duration = Duration::from_millis(5);

/// Requests that take less than this, in microseconds, are sooner answered than their endpoint has been
/// asked.
const LEAST: f32 = 2_000.0;

/// Endpoints to be asked.
pub type Asked = SmallVec<[Arc<Endpoint>; MOST]>;

impl Crowd {
    /// The endpoints to be asked before a request goes to `chosen`, and how long their answers are worth
    /// waiting for; none: it may go.
    pub fn to_ask(
        &self,
        endpoints: &[Arc<Endpoint>],
        chosen: &Chosen<'_>,
        question: &Question<'_>,
    ) -> Option<(Asked, Duration)> {
        let usual = self.usual();
        let (_, capacity) = chosen.endpoint.capacity();
        let idle = chosen.saturation < BUSY.max(ALONE / capacity) || usual.latency < LEAST;
        if endpoints.len() < 2
            || (chosen.fresh > STALE && chosen.saturation < CROWDED)
            || (idle && self.has_heard())
            || self.is_asked_in_vain()
        {
            return None;
        }
        let mut asked = Asked::new();
        let start = fastrand::usize(..endpoints.len());
        let step = 1 + fastrand::usize(..endpoints.len().min(97));
        for n in 0..endpoints.len().min(2 * MOST) {
            let endpoint = &endpoints[(start + n * step) % endpoints.len()];
            let suits = endpoint.condition(question.now.millis()).takes_requests()
                && endpoint.load.fresh(&usual, question.now.micros()) <= STALE
                && !question.tried.contains(&endpoint.id)
                && !asked.iter().any(|other| other.id == endpoint.id);
            if suits {
                asked.push(endpoint.clone());
            }
            if asked.len() == MOST {
                break;
            }
        }
        if asked.is_empty() {
            return None;
        }
        let worth = Duration::from_micros((usual.latency * PART) as u64);
        Some((asked, worth.clamp(SHORTEST, LONGEST)))
    }
}
