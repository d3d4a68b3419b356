//! A limit as one configuration has it: for which requests it holds, what they cost, and under which terms.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use smallvec::SmallVec;

use crate::config::model::{Cost, KeyPart};
use crate::error::Limited;

use super::bucket::{Bucket, MOST};
use super::gcra::Gcra;
use super::limit::Limit;
use super::matches::{Matcher, Own};
use super::plan::{Plan, Terms};
use super::{Facts, key};

/// A limit of one configuration. Immutable: a reload makes another over the same [`Limit`].
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) limit: Arc<Limit>,
    pub(super) plan: Arc<Plan>,
    pub(super) matcher: Matcher,
    pub(super) key: Box<[KeyPart]>,
    /// Keys with terms of their own.
    pub(super) own: Own,
    pub(super) cost: Cost,
    /// Refuses nothing.
    pub(super) observes: bool,
    /// Tries after the first take tokens too.
    pub(super) counts_retries: bool,
    /// What an answer says of each of the plan's terms when it refuses.
    pub(super) limited: Box<[Arc<Limited>]>,
}

/// A rule that holds for a request, and the bucket that the request is counted on.
#[derive(Clone, Copy)]
pub(super) struct Claim<'a> {
    pub(super) rule: &'a Arc<Rule>,
    /// Which of the plan's terms.
    pub(super) terms: usize,
    pub(super) bucket: &'a Arc<Bucket>,
    /// In tokens, never more than a bucket can hold.
    pub(super) cost: u32,
}

/// A claim that may cross threads.
#[derive(Debug, Clone)]
pub(super) struct OwnedClaim {
    rule: Arc<Rule>,
    terms: usize,
    bucket: Arc<Bucket>,
    cost: u32,
}

/// The claims of one request.
pub(super) type OwnedClaims = SmallVec<[OwnedClaim; 2]>;

impl Rule {
    /// Which of the plan's terms hold for a request's key.
    pub(super) fn terms_of(&self, facts: &Facts<'_>) -> usize {
        self.own.find(&self.key, facts).map_or(0, |own| own + 1)
    }

    /// What a request costs under these terms.
    pub(super) fn cost(&self, terms: &Terms, facts: &Facts<'_>) -> u32 {
        let cost = match &self.cost {
            Cost::Fixed(cost) => return cost.get(),
            Cost::Field(field) => {
                let value = facts.said.field(&field.header).and_then(number);
                value.unwrap_or(field.default.get())
            }
        };
        cost.clamp(1, self.dearest(terms))
    }

    /// The most that a request may cost under these terms.
    pub(super) fn dearest(&self, terms: &Terms) -> u32 {
        let dearest = if self.limit.leased { terms.of.dearest() } else { terms.of.burst };
        dearest.min(MOST)
    }

    /// A new bucket for a request's key.
    pub(super) fn bucket(&self, facts: &Facts<'_>) -> Bucket {
        let Self { limit, plan, key, .. } = self;
        limit.adopt(plan);
        let terms = self.terms_of(facts);
        let (shard, name) = match limit.leased {
            true => key::redis_name(&limit.redis_name, key, facts),
            false => Default::default(),
        };
        let lost_at = limit.lost_at.load(Relaxed);
        let tat = if lost_at == 0 { 0 } else { lost_at.saturating_add(plan.terms[terms].span()) };
        Bucket::new(plan, terms as u16, Gcra::full_at(tat), shard, name)
    }
}

impl Claim<'_> {
    pub(super) fn limit(&self) -> &Limit {
        &self.rule.limit
    }

    pub(super) fn plan(&self) -> &Plan {
        &self.rule.plan
    }

    pub(super) fn terms(&self) -> &Terms {
        &self.rule.plan.terms[self.terms]
    }

    pub(super) fn owned(&self) -> OwnedClaim {
        let Self { rule, terms, bucket, cost } = *self;
        OwnedClaim { rule: rule.clone(), terms, bucket: bucket.clone(), cost }
    }
}

impl OwnedClaim {
    pub(super) fn claim(&self) -> Claim<'_> {
        Claim { rule: &self.rule, terms: self.terms, bucket: &self.bucket, cost: self.cost }
    }
}

/// A whole number as a field has it; more than fits is as much as fits.
fn number(value: &[u8]) -> Option<u32> {
    let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    digits.then(|| std::str::from_utf8(value).ok()?.parse().ok().or(Some(u32::MAX)))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cost_is_a_whole_number_or_none() {
        for (text, cost) in
            [("7", Some(7)), ("0", Some(0)), ("007", Some(7)), ("99999999999999999999", Some(u32::MAX))]
        {
            assert_eq!(number(text.as_bytes()), cost, "{text}");
        }
        for text in ["", "-1", "+1", "1.5", "1 ", "0x1", "\u{661}"] {
            assert_eq!(number(text.as_bytes()), None, "{text}");
        }
    }
}
