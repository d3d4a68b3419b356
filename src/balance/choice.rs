//! The choice of an endpoint: the one that a request may expect to be answered by first, of those that
//! take requests.
//!
//! What it may expect is the endpoint's latency while there is room, and the requests before it once there
//! is none: [`Load::view`](super::load::Load::view). Of few endpoints all are looked at; of very many those
//! that were heard last, and some by chance.

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use super::crowd::Crowd;
use super::load::{Condition, Usual, View};
use super::standing::Share;
use super::{Endpoint, Now};

/// Why no endpoint was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum None {
    /// There is no endpoint, or each has been tried.
    Empty,
    /// Every endpoint has as many requests as it takes.
    Full,
}

/// Sets up to this size are looked at as a whole.
const FEW: usize = 32;

/// Of larger ones so many are looked at by chance.
const BY_CHANCE: usize = 6;

/// Of those that were asked for a request's sake and have not answered, as much is taken to be used.
const UNHEARD: f32 = 1.0;

/// An endpoint that is near is left for one farther away when it is as full as this.
const CROWDED: f32 = 1.0;

/// How long an endpoint has to have answered nothing for that.
const FORGOTTEN: Duration = Duration::from_secs(5);

/// What a choice depends on beside the endpoints.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// Endpoints that the request has been to.
    pub tried: &'a [u64],
    /// When.
    pub now: Now,
    /// Whether endpoints were asked for its sake: those that have not answered are no better than they seem.
    pub asked: bool,
    /// What endpoints differ in, if they do.
    pub uneven: Option<Uneven>,
}

/// How endpoints that are not alike are told apart.
#[derive(Debug, Clone, Copy)]
pub struct Uneven {
    /// How long one that joins others takes less than its share.
    pub slow_start: Duration,
    /// Whether some come before others, by priority, family or zone.
    pub ranked: bool,
}

/// An endpoint that was chosen.
#[derive(Debug, Clone, Copy)]
pub struct Chosen<'a> {
    /// Which.
    pub endpoint: &'a Arc<Endpoint>,
    /// In flight over capacity, this request included, as far as is known.
    pub saturation: f32,
    /// How much what its sidecar has announced still says, from 0 to 1.
    pub fresh: f32,
}

impl Crowd {
    /// The endpoint for a request. It takes no lock, and allocates nothing while few have been tried.
    ///
    /// Endpoints that have failed are chosen only when no other is left: a wrong guess then costs one
    /// connection, while refusing would fail the request for certain. So are those that have left, which
    /// a request finds that began before a reload and chooses after it.
    pub fn choose<'a>(
        &self,
        endpoints: &'a [Arc<Endpoint>],
        question: &Question<'_>,
    ) -> Result<Chosen<'a>, None> {
        let mut best = Best::new(self.usual(), question);
        let alike = |_: &Arc<Endpoint>, _: &View| Some(0);
        match question.uneven {
            _ if endpoints.is_empty() => return Err(None::Empty),
            Some(uneven) if uneven.ranked => {
                let ranks = Ranks::of(endpoints, question);
                let share = |e: &Endpoint| e.standing.share(question.now.millis(), uneven.slow_start);
                endpoints.iter().for_each(|e| best.look(e, share(e), |e, view| ranks.rank(e, view)));
            }
            Some(uneven) => {
                let share = |e: &Endpoint| e.standing.share(question.now.millis(), uneven.slow_start);
                self.some(endpoints, |endpoint| best.look(endpoint, share(endpoint), alike));
            }
            Option::None => self.some(endpoints, |endpoint| best.look(endpoint, Share::WHOLE, alike)),
        }
        if endpoints.len() > FEW && best.is_none() {
            // Nothing among those that were looked at.
            endpoints.iter().for_each(|endpoint| best.look(endpoint, Share::WHOLE, alike));
        }
        let chosen = best.chosen()?;
        let tries_another = fastrand::u8(..) == 0;
        Ok(if tries_another { forgotten(endpoints, &chosen, question).unwrap_or(chosen) } else { chosen })
    }

    /// The endpoints that a choice looks at.
    #[inline]
    fn some<'a>(&self, endpoints: &'a [Arc<Endpoint>], mut look: impl FnMut(&'a Arc<Endpoint>)) {
        let by_chance = || fastrand::usize(..endpoints.len());
        if endpoints.len() <= FEW {
            // A random beginning, so that equals share: callers who see the same must not choose the same.
            let (before, after) = endpoints.split_at(by_chance());
            for endpoint in after.iter().chain(before) {
                look(endpoint);
            }
        } else {
            let places = (0..BY_CHANCE).map(|_| by_chance()).chain(self.recent());
            for endpoint in places.filter_map(|place| endpoints.get(place)) {
                look(endpoint);
            }
        }
    }
}

/// The endpoint that has answered nothing for longest, if that is so long that it may have become better than
/// it was: now and then a request finds out, where it would come before no one who is better placed.
fn forgotten<'a>(
    endpoints: &'a [Arc<Endpoint>],
    chosen: &Chosen<'a>,
    question: &Question<'_>,
) -> Option<Chosen<'a>> {
    let fits = |e: &&Arc<Endpoint>| {
        matches!(e.condition(question.now.millis()), Condition::Sound | Condition::Doubted)
            && !e.is_full()
            && e.standing.is_beside(&chosen.endpoint.standing)
            && !question.tried.contains(&e.id)
    };
    let endpoint = endpoints.iter().filter(fits).min_by_key(|endpoint| endpoint.last_answer())?;
    let idled = question.now.since(Now::of_micros(endpoint.last_answer()));
    (idled > FORGOTTEN).then_some(Chosen { endpoint, saturation: 0.0, fresh: 1.0 })
}

/// The best so far, by how it stands.
struct Best<'a, 'q> {
    usual: Usual,
    /// What is added for what is not known.
    doubt: f32,
    question: &'q Question<'q>,
    sound: Option<Candidate<'a>>,
    tried_out: Option<Candidate<'a>>,
    passed_over: Option<Candidate<'a>>,
    seen: u32,
    doubted: u32,
    full: bool,
}

#[derive(Clone, Copy)]
struct Candidate<'a> {
    endpoint: &'a Arc<Endpoint>,
    rank: u32,
    view: View,
}

impl<'a> Candidate<'a> {
    fn is_better(&self, than: &Option<Candidate<'a>>) -> bool {
        than.as_ref().is_none_or(|than| (self.rank, self.view.order) < (than.rank, than.view.order))
    }
}

impl<'a, 'q> Best<'a, 'q> {
    fn new(usual: Usual, question: &'q Question<'q>) -> Self {
        Self {
            usual,
            doubt: if question.asked { UNHEARD } else { 0.0 },
            question,
            sound: Option::None,
            tried_out: Option::None,
            passed_over: Option::None,
            seen: 0,
            doubted: 0,
            full: false,
        }
    }

    #[inline(always)]
    fn look(
        &mut self,
        endpoint: &'a Arc<Endpoint>,
        share: Share,
        rank: impl Fn(&Arc<Endpoint>, &View) -> Option<u32>,
    ) {
        if !self.question.tried.is_empty() && self.question.tried.contains(&endpoint.id) {
            return;
        }
        let view = endpoint.load.view(&self.usual, self.question.now.micros(), share, self.doubt);
        let rank = if view.full { Option::None } else { rank(endpoint, &view) };
        let Some(rank) = rank else {
            self.full |= !endpoint.is_leaving();
            return;
        };
        self.seen += 1;
        let candidate = Candidate { endpoint, rank, view };
        let place = if endpoint.load.is_sound() {
            &mut self.sound
        } else {
            match endpoint.condition(self.question.now.millis()) {
                Condition::Sound | Condition::Doubted => {
                    self.doubted += 1;
                    &mut self.sound
                }
                Condition::TriedOut => {
                    self.doubted += 1;
                    &mut self.tried_out
                }
                Condition::PassedOver => &mut self.passed_over,
            }
        };
        if candidate.is_better(place) {
            *place = Some(candidate);
        }
    }

    fn is_none(&self) -> bool {
        self.sound.is_none() && self.tried_out.is_none() && self.passed_over.is_none()
    }

    fn chosen(self) -> Result<Chosen<'a>, None> {
        let mut best = self.sound;
        if let Some(tried_out) = self.tried_out {
            // Where most are doubted, the fault is hardly theirs: the few others are not to take it all.
            let most = self.doubted * 2 > self.seen;
            if best.is_none() || (most && tried_out.is_better(&best)) {
                best = Some(tried_out);
            }
        }
        match best.or(self.passed_over) {
            Some(Candidate { endpoint, view, .. }) => {
                Ok(Chosen { endpoint, saturation: view.saturation(), fresh: view.fresh })
            }
            Option::None if self.full => Err(None::Full),
            Option::None => Err(None::Empty),
        }
    }
}

/// Which endpoints come before others: those of the least priority that have room, then those of the
/// family to reach them by, then those that are near.
///
/// The second address of an endpoint is the way around its first: it is taken where no first one can
/// be reached, and right after one that could not be. It is no room beside it.
struct Ranks {
    /// Which family comes last.
    avoided: bool,
    /// Priorities in which a first address is full: its second one is no room.
    full: SmallVec<[u32; 8]>,
}

impl Ranks {
    fn of(endpoints: &[Arc<Endpoint>], question: &Question<'_>) -> Self {
        let now = question.now.millis();
        let last = question.tried.last().and_then(|id| endpoints.iter().find(|e| e.id == *id));
        let unreached = last.filter(|endpoint| endpoint.condition(now) != Condition::Sound);
        let avoided = unreached.is_none_or(|endpoint| endpoint.standing.is_second());
        let full = endpoints
            .iter()
            .filter(|e| !e.standing.is_second() && e.condition(now) == Condition::Sound && e.is_full());
        Self { avoided, full: full.map(|e| e.standing.priority()).collect() }
    }

    /// The least comes first; none: it has no room.
    fn rank(&self, endpoint: &Arc<Endpoint>, view: &View) -> Option<u32> {
        let standing = &endpoint.standing;
        if standing.is_second() && self.full.contains(&standing.priority()) {
            return Option::None;
        }
        let spills = if view.saturation() > CROWDED { 2 } else { u32::from(standing.is_far()) };
        let second = u32::from(standing.is_second() == self.avoided);
        Some((standing.priority().min(0xffff) << 8) | (second << 4) | spills)
    }
}

#[cfg(test)]
mod tests;
