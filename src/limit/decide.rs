//! The decision about one request under all limits that hold for it: remembered refusals first,
//! then a token from each; if one has none, the others get theirs back. Each attempt reads the
//! clock once, and that moment is the request's admission.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use smallvec::SmallVec;
use tokio::time::{Instant, timeout_at};

use crate::config::model::WithoutRedis;
use crate::error::{Error, Reason};

use super::bucket::{Bucket, Lease};
use super::clock;
use super::gcra::{Denied, Gcra};
use super::key;
use super::limit::Limit;
use super::plan::Plan;
use super::refill::Link;
use super::table::Shortcut;
use super::{Facts, Rule, State};

/// When a request refused because Redis is down may come again.
const DOWN_RETRY: Duration = Duration::from_secs(1);

/// What the limits say about a request.
#[derive(Debug)]
pub enum Decision {
    /// It may pass.
    Admitted,
    /// It may not.
    Refused(Refusal),
    /// A key has no live lease: Redis is being asked.
    Wait(Wait),
}

/// Why a request may not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// [`Reason::LimitExhausted`], or [`Reason::LimitUnavailable`].
    pub reason: Reason,
    /// The limit that refused.
    pub limit: Arc<str>,
    /// When it may have a token again.
    pub retry_after: Duration,
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Error::new(refusal.reason, format!("limit `{}`", refusal.limit)).retry_after(refusal.retry_after)
    }
}

/// A request that waits for a grant. It holds no token: dropping it costs nothing.
#[derive(Debug)]
pub struct Wait {
    state: Arc<State>,
    claims: SmallVec<[Owned; 2]>,
    /// Which of them has no token.
    missing: usize,
}

/// A limit that holds for a request, and the bucket that it is counted on.
#[derive(Clone, Copy)]
struct Claim<'a> {
    limit: &'a Arc<Limit>,
    plan: &'a Arc<Plan>,
    bucket: &'a Arc<Bucket>,
}

/// A claim on this thread's stack.
struct Held<'a> {
    rule: &'a Rule,
    /// None: the limit has no key, and one bucket.
    key: Option<Shortcut>,
}

/// A claim that may cross threads.
#[derive(Debug)]
struct Owned {
    limit: Arc<Limit>,
    plan: Arc<Plan>,
    bucket: Arc<Bucket>,
}

/// One attempt to admit.
struct Attempt<'a> {
    link: Option<&'a Link>,
    now: u64,
    /// The request has not been counted as demand yet.
    first: bool,
    /// Its time to wait is over.
    expired: bool,
}

/// What came of an attempt; with the number of the claim that stood in the way.
enum Outcome {
    Admitted,
    Refused(usize, Refused),
    Missing(usize),
    Retired,
}

/// Why a claim has no token, and never will have in this attempt.
struct Refused {
    reason: Reason,
    retry_after: Duration,
}

/// A token, and how it is given back.
enum Token {
    Lease(Lease),
    /// Of the pod's own count, by its interval.
    Local(u64),
    /// Admitted without count, by `without_redis: open`.
    Free,
}

enum NoToken {
    Refused(Refused),
    Missing,
    Retired,
}

/// Decides about a request, at one reading of the clock, or none where no limit holds for it.
pub(super) fn admit(rules: &[Rule], state: &Arc<State>, facts: &Facts<'_>) -> Decision {
    let mut holding = rules.iter().filter(|rule| rule.matcher.matches(facts)).peekable();
    if holding.peek().is_none() {
        return Decision::Admitted;
    }
    admit_at(holding, state, facts, clock::now())
}

/// Decides about a request for which the rules `holding` hold, at the time `now`.
pub(super) fn admit_at<'r>(
    holding: impl Iterator<Item = &'r Rule> + Clone,
    state: &Arc<State>,
    facts: &Facts<'_>,
    now: u64,
) -> Decision {
    loop {
        let held: SmallVec<[Held<'_>; 4]> =
            holding.clone().map(|rule| Held::new(rule, state, facts, now)).collect();
        let attempt = Attempt { link: state.link.as_ref(), now, first: true, expired: false };
        return match attempt.decide(held.iter().map(Held::claim)) {
            Outcome::Admitted => Decision::Admitted,
            Outcome::Refused(at, refused) => Decision::Refused(refused.by(held[at].claim().limit)),
            Outcome::Missing(missing) => {
                held[missing].rule.limit.counters.waited.add();
                let claims = held.iter().map(|held| held.claim().owned()).collect();
                Decision::Wait(Wait { state: state.clone(), claims, missing })
            }
            // The table let the key go just now: it is new again.
            Outcome::Retired => continue,
        };
    }
}

impl Wait {
    /// Waits for the grant, never longer than `redis.budget`; then `without_redis` decides.
    ///
    /// # Errors
    ///
    /// [`Reason::LimitExhausted`] or [`Reason::LimitUnavailable`], with the limit's name.
    pub async fn resolve(self) -> Result<(), Error> {
        self.resolved().await.map(drop)
    }

    /// Resolves to the time of admission, by [`clock::now`].
    pub(super) async fn resolved(self) -> Result<u64, Error> {
        let Self { state, claims, mut missing } = self;
        let budget = state.link.as_ref().map_or(Duration::ZERO, |link| link.budget);
        let deadline = Instant::now() + budget;
        let mut expired = false;
        loop {
            // Listens before it looks, so that no refill goes unheard.
            let mut refilled = std::pin::pin!(claims[missing].bucket.refilled.notified());
            refilled.as_mut().enable();
            let now = clock::now();
            let attempt = Attempt { link: state.link.as_ref(), now, first: false, expired };
            match attempt.decide(claims.iter().map(Owned::claim)) {
                Outcome::Admitted => return Ok(now),
                Outcome::Refused(at, refused) => return Err(refused.by(&claims[at].limit).into()),
                Outcome::Missing(other) if other != missing => missing = other,
                Outcome::Missing(_) => expired = timeout_at(deadline, refilled).await.is_err(),
                Outcome::Retired => return Err(Refused::unavailable().by(&claims[missing].limit).into()),
            }
        }
    }
}

impl Attempt<'_> {
    fn decide<'c>(&self, claims: impl Iterator<Item = Claim<'c>> + Clone) -> Outcome {
        for (at, claim) in claims.clone().enumerate() {
            if let Some(refused) = self.remembered(claim) {
                claim.limit.counters.refused.add();
                return Outcome::Refused(at, refused);
            }
        }
        let mut tokens: SmallVec<[Token; 4]> = SmallVec::new();
        for (at, claim) in claims.clone().enumerate() {
            let no_token = match self.take(claim) {
                Ok(token) => {
                    tokens.push(token);
                    continue;
                }
                Err(no_token) => no_token,
            };
            for (token, claim) in tokens.into_iter().zip(claims.clone()) {
                claim.give_back(token);
            }
            return match no_token {
                NoToken::Refused(refused) => {
                    claim.limit.counters.refused.add();
                    Outcome::Refused(at, refused)
                }
                NoToken::Missing => {
                    self.request(claims.skip(at + 1));
                    Outcome::Missing(at)
                }
                NoToken::Retired => Outcome::Retired,
            };
        }
        claims.for_each(|claim| claim.limit.counters.admitted.add());
        Outcome::Admitted
    }

    /// The refusal that a bucket remembers, if it does. Also where a new plan reaches a bucket.
    fn remembered(&self, claim: Claim<'_>) -> Option<Refused> {
        let Claim { limit, plan, bucket } = claim;
        if !limit.leased {
            return None;
        }
        if bucket.older_than(plan.generation) {
            limit.adopt(plan);
            bucket.renew(plan.generation);
        }
        let until = bucket.refused_until(self.now)?;
        self.missed(bucket);
        Some(Refused::exhausted(until - self.now))
    }

    fn take(&self, claim: Claim<'_>) -> Result<Token, NoToken> {
        let Claim { limit, plan, bucket } = claim;
        let Some(link) = self.link.filter(|_| limit.leased) else {
            return self.take_local(&bucket.local, 0, plan.interval, plan.span());
        };
        if let Some((lease, low)) = bucket.take(self.now, plan.lead) {
            if low {
                link.request(limit, bucket);
            }
            return Ok(Token::Lease(lease));
        }
        self.missed(bucket);
        if let Some(until) = bucket.refused_until(self.now) {
            return Err(NoToken::Refused(Refused::exhausted(until - self.now)));
        }
        link.request(limit, bucket);
        let expired = || self.expired.then(|| self.now.saturating_sub(link.budget.as_nanos() as u64));
        let since = link.down_since(limit, bucket).or_else(expired).ok_or(NoToken::Missing)?;
        limit.counters.without_redis.add();
        match plan.without_redis {
            WithoutRedis::Open => Ok(Token::Free),
            WithoutRedis::Closed => Err(NoToken::Refused(Refused::unavailable())),
            WithoutRedis::Share => {
                let (interval, span) = plan.share(limit.sidecars.load(Relaxed));
                // Empty at the moment in which Redis was lost: what was leased is spent beside it.
                self.take_local(&bucket.local, since.saturating_add(span), interval, span)
            }
        }
    }

    fn take_local(&self, local: &Gcra, floor: u64, interval: u64, span: u64) -> Result<Token, NoToken> {
        match local.take(self.now, floor, interval, span) {
            Ok(()) => Ok(Token::Local(interval)),
            Err(Denied::Until(until)) => Err(NoToken::Refused(Refused::exhausted(until - self.now))),
            Err(Denied::Retired) => Err(NoToken::Retired),
        }
    }

    /// Asks at once for whatever else the request will miss.
    fn request<'c>(&self, claims: impl Iterator<Item = Claim<'c>>) {
        let Some(link) = self.link else { return };
        for claim in claims.filter(|claim| claim.limit.leased && claim.bucket.live(self.now) == 0) {
            self.missed(claim.bucket);
            link.request(claim.limit, claim.bucket);
        }
    }

    fn missed(&self, bucket: &Bucket) {
        if self.first {
            bucket.missed();
        }
    }
}

impl<'a> Held<'a> {
    fn new(rule: &'a Rule, state: &State, facts: &Facts<'_>, now: u64) -> Self {
        let Rule { limit, plan, key, .. } = rule;
        let key = (!key.is_empty()).then(|| {
            let hash = state.seeds.hash(limit.id, key, facts);
            let shortcut = state.table.bucket(hash, limit, now, || {
                let (shard, name) =
                    if limit.leased { key::redis_name(key, facts) } else { Default::default() };
                limit.adopt(plan);
                let lost_at = limit.lost_at.load(Relaxed);
                let tat = if lost_at == 0 { 0 } else { lost_at.saturating_add(plan.span()) };
                Bucket::new(limit.plan.load().generation, Gcra::full_at(tat), shard, name)
            });
            shortcut.1.touch();
            shortcut
        });
        Self { rule, key }
    }

    fn claim(&self) -> Claim<'_> {
        let Rule { limit, plan, .. } = self.rule;
        Claim { limit, plan, bucket: self.key.as_ref().map_or(&limit.common, |key| &key.1) }
    }
}

impl Claim<'_> {
    fn give_back(&self, token: Token) {
        match token {
            Token::Lease(lease) => self.bucket.give_back(lease),
            Token::Local(interval) => self.bucket.local.give_back(interval),
            Token::Free => {}
        }
    }

    fn owned(&self) -> Owned {
        Owned { limit: self.limit.clone(), plan: self.plan.clone(), bucket: self.bucket.clone() }
    }
}

impl Owned {
    fn claim(&self) -> Claim<'_> {
        Claim { limit: &self.limit, plan: &self.plan, bucket: &self.bucket }
    }
}

impl Refused {
    fn exhausted(nanos: u64) -> Self {
        Self { reason: Reason::LimitExhausted, retry_after: Duration::from_nanos(nanos) }
    }

    fn unavailable() -> Self {
        Self { reason: Reason::LimitUnavailable, retry_after: DOWN_RETRY }
    }

    fn by(self, limit: &Limit) -> Refusal {
        Refusal { reason: self.reason, limit: limit.name.clone(), retry_after: self.retry_after }
    }
}
