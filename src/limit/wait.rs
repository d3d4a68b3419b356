//! A request that waits for Redis: bounded by `redis.budget`, after which `without_redis` decides.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::error::Error;

use super::State;
use super::bucket::Bucket;
use super::clock;
use super::decide::{Again, Attempt, Outcome, Refused, again};
use super::rule::{OwnedClaim, OwnedClaims};

/// A request that waits for a grant. It holds no token: dropping it costs nothing.
#[derive(Debug)]
pub struct Wait {
    state: Arc<State>,
    claims: OwnedClaims,
    /// Which of them has no token.
    missing: usize,
    asking: Asking,
}

/// What a waiting request needs of a bucket, which is asked for as long as it waits.
#[derive(Debug)]
struct Asking {
    bucket: Arc<Bucket>,
    cost: u32,
}

impl Wait {
    pub(super) fn new(state: Arc<State>, claims: OwnedClaims, missing: usize) -> Self {
        let asking = Asking::on(&state, &claims[missing]);
        Self { state, claims, missing, asking }
    }

    /// Waits for the grant, never longer than `redis.budget`; then `without_redis` decides.
    ///
    /// # Errors
    ///
    /// [`LimitExhausted`](crate::error::Reason::LimitExhausted) or
    /// [`LimitUnavailable`](crate::error::Reason::LimitUnavailable), with the limit's name.
    pub async fn resolve(self) -> Result<Again, Error> {
        self.resolved().await.map(|(_, again)| again)
    }

    /// Resolves to the time of admission, by [`clock::now`].
    pub(super) async fn resolved(self) -> Result<(u64, Again), Error> {
        let Self { state, claims, mut missing, mut asking } = self;
        let budget = state.link.as_ref().map_or(Duration::ZERO, |link| link.budget);
        let deadline = Instant::now() + budget;
        let mut expired = false;
        loop {
            // Listens before it looks, so that no refill goes unheard.
            let mut refilled = std::pin::pin!(claims[missing].claim().bucket.refilled.notified());
            refilled.as_mut().enable();
            let now = clock::now();
            let attempt = Attempt { link: state.link.as_ref(), now, first: false, expired };
            match attempt.decide(claims.iter().map(OwnedClaim::claim)) {
                Outcome::Admitted => return Ok((now, again(&state, &claims))),
                Outcome::Refused(at, refused) => return Err(refused.by(claims[at].claim()).into()),
                Outcome::Missing(other) if other != missing => {
                    missing = other;
                    asking = Asking::on(&state, &claims[missing]);
                }
                Outcome::Missing(_) => {
                    asking.ask(&state, &claims[missing]);
                    expired = timeout_at(deadline, refilled).await.is_err();
                }
                Outcome::Retired => {
                    return Err(Refused::unavailable().by(claims[missing].claim()).into());
                }
            }
        }
    }
}

impl Asking {
    fn on(state: &State, owned: &OwnedClaim) -> Self {
        let claim = owned.claim();
        claim.bucket.waits(claim.cost);
        let asking = Self { bucket: claim.bucket.clone(), cost: claim.cost };
        asking.ask(state, owned);
        asking
    }

    fn ask(&self, state: &State, owned: &OwnedClaim) {
        if let Some(link) = &state.link {
            link.request(owned.claim().rule, &self.bucket, true);
        }
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.bucket.waits_no_more(self.cost);
    }
}
