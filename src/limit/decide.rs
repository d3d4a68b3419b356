//! The decision about one request under all limits that hold for it: remembered refusals first,
//! then tokens from each; if one has none, the others get theirs back. Each attempt reads the
//! clock once, and that moment is the request's admission.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use smallvec::SmallVec;

use crate::config::model::WithoutRedis;
use crate::error::{Error, Limited, Reason};

use super::bucket::Taken;
use super::clock;
use super::gcra::Denied;
use super::refill::Link;
use super::rule::{Claim, OwnedClaims, Rule};
use super::table::Shortcut;
use super::wait::Wait;
use super::{Facts, State};

/// When a request refused because Redis is down may come again.
const DOWN_RETRY: Duration = Duration::from_secs(1);

/// What the limits say about a request.
#[derive(Debug)]
pub enum Decision {
    /// It may pass, and this is what it takes to send it again.
    Admitted(Again),
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
    pub limit: Arc<Limited>,
    /// When it may have a token again.
    pub retry_after: Duration,
}

impl From<Refusal> for Error {
    fn from(Refusal { reason, limit, retry_after }: Refusal) -> Self {
        Error::new(reason, format!("limit `{}`", limit.name)).retry_after(retry_after).limited(limit)
    }
}

/// The limits that count every try of a request that was admitted (`count_retries`): nearly always none.
#[derive(Debug, Clone, Default)]
pub struct Again(Option<Arc<(Arc<State>, OwnedClaims)>>);

impl Again {
    /// Takes what one more try costs. False where a limit has no token at hand: then it is not made. A try
    /// never waits for Redis.
    pub fn take(&self) -> bool {
        let Some((state, claims)) = self.0.as_deref() else { return true };
        let attempt = Attempt { link: state.link.as_ref(), now: clock::now(), first: true, expired: false };
        matches!(attempt.decide(claims.iter().map(|owned| owned.claim())), Outcome::Admitted)
    }

    fn of<'c>(state: &Arc<State>, claims: impl Iterator<Item = Claim<'c>>) -> Self {
        let counted: OwnedClaims =
            claims.filter(|claim| claim.rule.counts_retries).map(|claim| claim.owned()).collect();
        Self((!counted.is_empty()).then(|| Arc::new((state.clone(), counted))))
    }
}

/// A claim on this thread's stack.
struct Held<'a> {
    rule: &'a Arc<Rule>,
    /// None: the limit has no key, and one bucket.
    key: Option<Shortcut>,
    terms: usize,
    cost: u32,
}

/// One attempt to admit.
pub(super) struct Attempt<'a> {
    pub(super) link: Option<&'a Link>,
    pub(super) now: u64,
    /// The request has not been counted as demand yet.
    pub(super) first: bool,
    /// Its time to wait is over.
    pub(super) expired: bool,
}

/// What came of an attempt; with the number of the claim that stood in the way.
pub(super) enum Outcome {
    Admitted,
    Refused(usize, Refused),
    Missing(usize),
    Retired,
}

/// Why a claim has no token, and never will have in this attempt.
pub(super) struct Refused {
    reason: Reason,
    retry_after: Duration,
}

/// Tokens, and how they are given back.
enum Token {
    Lease(Taken),
    /// Of the pod's own count, by the time that they are worth.
    Local(u64),
    /// Admitted without count: by `without_redis: open`, or because a limit that observes has yet to ask.
    Free,
    /// A limit that observes would have refused.
    Observed,
}

enum NoToken {
    Refused(Refused),
    Missing,
    Retired,
}

/// Decides about a request, at one reading of the clock, or none where no limit holds for it.
pub(super) fn admit(rules: &[Arc<Rule>], state: &Arc<State>, facts: &Facts<'_>) -> Decision {
    let mut holding = rules.iter().filter(|rule| rule.matcher.matches(facts)).peekable();
    if holding.peek().is_none() {
        return Decision::Admitted(Again::default());
    }
    admit_at(holding, state, facts, clock::now())
}

/// Decides about a request for which the rules `holding` hold, at the time `now`.
pub(super) fn admit_at<'r>(
    holding: impl Iterator<Item = &'r Arc<Rule>> + Clone,
    state: &Arc<State>,
    facts: &Facts<'_>,
    now: u64,
) -> Decision {
    loop {
        let held: SmallVec<[Held<'_>; 4]> =
            holding.clone().map(|rule| Held::new(rule, state, facts, now)).collect();
        let attempt = Attempt { link: state.link.as_ref(), now, first: true, expired: false };
        return match attempt.decide(held.iter().map(Held::claim)) {
            Outcome::Admitted => Decision::Admitted(match held.iter().any(|held| held.rule.counts_retries) {
                true => Again::of(state, held.iter().map(Held::claim)),
                false => Again::default(),
            }),
            Outcome::Refused(at, refused) => Decision::Refused(refused.by(held[at].claim())),
            Outcome::Missing(missing) => {
                held[missing].rule.limit.counters.waited.add();
                let claims = held.iter().map(|held| held.claim().owned()).collect();
                Decision::Wait(Wait::new(state.clone(), claims, missing))
            }
            // The table let the key go just now: it is new again.
            Outcome::Retired => continue,
        };
    }
}

/// What it takes to send a request again that these claims have admitted.
pub(super) fn again(state: &Arc<State>, claims: &OwnedClaims) -> Again {
    Again::of(state, claims.iter().map(|owned| owned.claim()))
}

impl Attempt<'_> {
    pub(super) fn decide<'c>(&self, claims: impl Iterator<Item = Claim<'c>> + Clone) -> Outcome {
        for (at, claim) in claims.clone().enumerate() {
            if !claim.rule.observes
                && let Some(refused) = self.remembered(claim)
            {
                claim.limit().counters.refused.add();
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
                Err(NoToken::Refused(_)) if claim.rule.observes => {
                    tokens.push(Token::Observed);
                    continue;
                }
                // What observes delays nobody: the next request finds what this one asked for.
                Err(NoToken::Missing) if claim.rule.observes => {
                    self.request(claim);
                    tokens.push(Token::Free);
                    continue;
                }
                Err(no_token) => no_token,
            };
            for (token, claim) in tokens.into_iter().zip(claims.clone()) {
                claim.give_back(token);
            }
            return match no_token {
                NoToken::Refused(refused) => {
                    claim.limit().counters.refused.add();
                    Outcome::Refused(at, refused)
                }
                NoToken::Missing => {
                    // At once for whatever else it will miss.
                    claims.skip(at).for_each(|claim| self.request(claim));
                    Outcome::Missing(at)
                }
                NoToken::Retired => Outcome::Retired,
            };
        }
        for (token, claim) in tokens.iter().zip(claims) {
            let counters = &claim.limit().counters;
            counters.admitted.add();
            if matches!(token, Token::Observed) {
                counters.observed.add();
            }
        }
        Outcome::Admitted
    }

    /// The refusal that a bucket remembers, if it does.
    fn remembered(&self, claim: Claim<'_>) -> Option<Refused> {
        if !claim.limit().leased {
            return None;
        }
        let until = claim.bucket.refused_until(self.now, claim.cost)?;
        self.missed(claim);
        Some(Refused::exhausted(until - self.now))
    }

    fn take(&self, claim: Claim<'_>) -> Result<Token, NoToken> {
        let Claim { rule, bucket, cost, .. } = claim;
        let terms = claim.terms();
        let Some(link) = self.link.filter(|_| rule.limit.leased) else {
            return self.take_local(claim, terms.interval, terms.span(), 0);
        };
        if let Some((taken, low)) = bucket.take(self.now, cost) {
            if low && !rule.plan.exact {
                link.request(rule, bucket, false);
            }
            return Ok(Token::Lease(taken));
        }
        if let Some(until) = bucket.refused_until(self.now, cost) {
            self.missed(claim);
            return Err(NoToken::Refused(Refused::exhausted(until - self.now)));
        }
        self.missed(claim);
        let expired = || self.expired.then(|| self.now.saturating_sub(link.budget.as_nanos() as u64));
        let since = link.down_since(bucket.shard).or_else(expired).ok_or(NoToken::Missing)?;
        rule.limit.counters.without_redis.add();
        match rule.plan.without_redis {
            WithoutRedis::Open => Ok(Token::Free),
            WithoutRedis::Closed => Err(NoToken::Refused(Refused::unavailable())),
            WithoutRedis::Share => {
                let known = bucket.sidecars.load(Relaxed).max(rule.limit.most_sidecars());
                let (interval, span) = terms.share(known);
                // Empty at the moment in which Redis was lost: what was leased is spent beside it.
                self.take_local(claim, interval, span, since)
            }
        }
    }

    /// Takes tokens of the pod's own count, which was empty at the time `emptied`; 0 for never.
    fn take_local(&self, claim: Claim<'_>, interval: u64, span: u64, emptied: u64) -> Result<Token, NoToken> {
        let worth = interval.saturating_mul(u64::from(claim.cost));
        let most = interval.saturating_mul(u64::from(claim.rule.dearest(claim.terms())));
        let floor = if emptied == 0 { 0 } else { emptied.saturating_add(span.max(worth)) };
        match claim.bucket.local.take(self.now, floor, worth, span, most) {
            Ok(()) => Ok(Token::Local(worth)),
            Err(Denied::Until(until)) => Err(NoToken::Refused(Refused::exhausted(until - self.now))),
            Err(Denied::Retired) => Err(NoToken::Retired),
        }
    }

    /// Asks for tokens in the background, if the request will miss some. Where each request asks, its wait
    /// does.
    fn request(&self, claim: Claim<'_>) {
        let Some(link) = self.link else { return };
        if claim.limit().leased && !claim.plan().exact && claim.bucket.live(self.now) < claim.cost {
            link.request(claim.rule, claim.bucket, false);
        }
    }

    /// Counts the request as demand, once.
    fn missed(&self, claim: Claim<'_>) {
        if self.first {
            claim.bucket.missed(claim.cost);
        }
    }
}

impl<'a> Held<'a> {
    /// Finds the bucket; also where a new plan reaches it.
    fn new(rule: &'a Arc<Rule>, state: &State, facts: &Facts<'_>, now: u64) -> Self {
        let Rule { limit, plan, key, .. } = &**rule;
        let key = (!key.is_empty()).then(|| {
            let hash = state.seeds.hash(limit.id, key, facts);
            let shortcut = state.table.bucket(hash, limit, now, || rule.bucket(facts));
            shortcut.1.touch();
            shortcut
        });
        let bucket = key.as_ref().map_or(&limit.common, |key| &key.1);
        let common = Arc::ptr_eq(bucket, &limit.common);
        let terms_of = || if common { 0 } else { rule.terms_of(facts) };
        if bucket.older_than(plan.generation) {
            limit.adopt(plan);
            bucket.renew(plan, terms_of() as u16, now);
        }
        let terms = bucket.terms(plan.generation).unwrap_or_else(terms_of);
        let cost = rule.cost(&plan.terms[terms], facts);
        Self { rule, key, terms, cost }
    }

    fn claim(&self) -> Claim<'_> {
        let bucket = self.key.as_ref().map_or(&self.rule.limit.common, |key| &key.1);
        Claim { rule: self.rule, terms: self.terms, bucket, cost: self.cost }
    }
}

impl Claim<'_> {
    fn give_back(&self, token: Token) {
        match token {
            Token::Lease(taken) => taken.into_iter().for_each(|lease| self.bucket.give_back(lease)),
            Token::Local(worth) => self.bucket.local.give_back(worth),
            Token::Free | Token::Observed => {}
        }
    }
}

impl Refused {
    fn exhausted(nanos: u64) -> Self {
        Self { reason: Reason::LimitExhausted, retry_after: Duration::from_nanos(nanos) }
    }

    pub(super) fn unavailable() -> Self {
        Self { reason: Reason::LimitUnavailable, retry_after: DOWN_RETRY }
    }

    pub(super) fn by(self, claim: Claim<'_>) -> Refusal {
        let limit = claim.rule.limited[claim.terms].clone();
        Refusal { reason: self.reason, limit, retry_after: self.retry_after }
    }
}
