//! The choice of an endpoint: the one that a request may expect to be answered by first, of those that
//! take requests.
//!
//! What it may expect is the endpoint's latency while there is room, and the requests before it once there
//! is none: [`Load::view`](super::load::Load::view). Of few endpoints all are looked at; of very many those
//! that were heard last, and some by chance.

use std::sync::Arc;
use std::time::Duration;

use super::crowd::Crowd;
use super::load::{Condition, Usual, View};
use super::ranks::{self, Rank, Ranks};
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
pub(super) const CROWDED: f32 = 1.0;

/// The rank, among those of one family, of one that is left for others then: behind near ones and far ones.
const SPILLS: u32 = 2;

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
    pub uneven: Option<Uneven<'a>>,
}

/// How endpoints that are not alike are told apart.
#[derive(Debug, Clone, Copy)]
pub struct Uneven<'a> {
    /// How long one that joins others takes less than its share.
    pub slow_start: Duration,
    /// Which come before others, by priority, family or zone; none: none does.
    pub ranks: Option<&'a Ranks>,
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
        if endpoints.is_empty() {
            return Err(None::Empty);
        }
        let mut best = Best::new(self.usual(), question);
        match question.uneven {
            Some(Uneven { slow_start, ranks }) => {
                let share = |e: &Endpoint| e.standing.share(question.now.millis(), slow_start);
                match ranks {
                    Some(ranks) => self.look_by_rank(endpoints, ranks, question, share, &mut best),
                    Option::None => self.look(endpoints, share, &mut best),
                }
            }
            Option::None => self.look(endpoints, |_: &Endpoint| Share::WHOLE, &mut best),
        }
        let chosen = best.chosen()?;
        let tries_another = fastrand::u8(..) == 0;
        Ok(if tries_another { forgotten(endpoints, &chosen, question).unwrap_or(chosen) } else { chosen })
    }

    /// Looks at endpoints of which none comes before another.
    #[inline]
    fn look<'a>(
        &self,
        endpoints: &'a [Arc<Endpoint>],
        share: impl Fn(&Endpoint) -> Share,
        best: &mut Best<'a, '_>,
    ) {
        let recent = self.recent().filter_map(|place| endpoints.get(place));
        some(endpoints, Some, recent, |endpoint| best.look(endpoint, share(endpoint), |_| Some(0)));
        if endpoints.len() > FEW && best.sound.is_none() {
            // Nothing among those that were looked at.
            endpoints.iter().for_each(|endpoint| best.look(endpoint, share(endpoint), |_| Some(0)));
        }
    }

    /// Looks at endpoints of the first rank that has something, and at those of earlier ones.
    fn look_by_rank<'a>(
        &self,
        endpoints: &'a [Arc<Endpoint>],
        ranks: &Ranks,
        question: &Question<'_>,
        share: impl Fn(&Endpoint) -> Share,
        best: &mut Best<'a, '_>,
    ) {
        for (number, family) in (0..).zip(ranks.families(endpoints, question)) {
            let look = |best: &mut Best<'a, '_>, rank: &Rank, endpoint| {
                best.look(endpoint, share(endpoint), |view| {
                    let spills = if view.saturation() > CROWDED { SPILLS } else { u32::from(rank.is_far) };
                    (!family.is_shut).then_some((number << 2) | spills)
                });
            };
            for rank in family.ranks {
                let at = |place: &u32| endpoints.get(*place as usize);
                let recent = self.recent().filter(|place| ranks.holds(rank, *place));
                let recent = recent.filter_map(|place| endpoints.get(place));
                some(&rank.places, at, recent, |endpoint| look(best, rank, endpoint));
                if best.sound.is_some_and(|sound| sound.rank & SPILLS == 0) {
                    return;
                }
            }
            if best.sound.is_none() {
                // Nothing among those that were looked at: nobody goes past one that has room.
                for rank in family.ranks.iter().filter(|rank| rank.places.len() > FEW) {
                    rank.endpoints(endpoints).for_each(|endpoint| look(best, rank, endpoint));
                }
            }
            if best.sound.is_some() {
                return;
            }
        }
    }
}

/// Looks at members of a set: all of few; of more, some by chance, and those that were heard last.
#[inline]
fn some<'a, 'm, T>(
    members: &'m [T],
    at: impl Fn(&'m T) -> Option<&'a Arc<Endpoint>>,
    recent: impl Iterator<Item = &'a Arc<Endpoint>>,
    mut look: impl FnMut(&'a Arc<Endpoint>),
) {
    let by_chance = || fastrand::usize(..members.len());
    if members.len() <= FEW {
        // A random beginning, so that equals share: callers who see the same must not choose the same.
        let (before, after) = members.split_at(by_chance());
        for endpoint in after.iter().chain(before).filter_map(at) {
            look(endpoint);
        }
    } else {
        for endpoint in (0..BY_CHANCE).filter_map(|_| at(&members[by_chance()])).chain(recent) {
            look(endpoint);
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
    let rank = ranks::key(&chosen.endpoint.standing);
    let fits = |e: &&Arc<Endpoint>| {
        e.condition(question.now.millis()).takes_requests()
            && !e.is_full()
            && ranks::key(&e.standing) == rank
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
    fn look(&mut self, endpoint: &'a Arc<Endpoint>, share: Share, rank: impl Fn(&View) -> Option<u32>) {
        if !self.question.tried.is_empty() && self.question.tried.contains(&endpoint.id) {
            return;
        }
        let view = endpoint.load.view(&self.usual, self.question.now.micros(), share, self.doubt);
        let rank = if view.full { Option::None } else { rank(&view) };
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

#[cfg(test)]
mod tests;
