//! What is known of tokens that came before, so that one that comes with every request is verified once.
//! Kept under their SHA-256 digests, so that no token lies in memory, and none can be made to meet another.
//!
//! Good tokens and refused ones have rooms of their own: however many bad ones come, no good one goes for
//! them. In each, what was not used for longest goes first. A refusal is forgotten after seconds.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_lc_rs::digest::{SHA256, digest};
use foldhash::quality::RandomState;
use lru::LruCache;

use super::{Claims, Invalid};

const SHARDS: usize = 16;
/// Good tokens of a shard: 8,192 and 16 MiB in all.
const MOST_GOOD: usize = 512;
const MOST_BYTES: usize = 1 << 20;
/// Refused ones: 4,096 in all, about 512 KiB.
const MOST_REFUSED: usize = 256;
/// What an entry takes beside its claims: the cache's own links and table, and counts.
const OVERHEAD: usize = 160;

/// How long a refusal is remembered, in seconds.
pub(super) const REMEMBERED: u64 = 10;

/// A token, as it is known here.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Digest([u8; 32]);

/// What is known of a token.
#[derive(Debug, PartialEq)]
pub(super) enum Known {
    /// It was good once: its time is to be looked at again.
    Good(Arc<Claims>),
    Refused(Invalid),
}

/// What is known of all tokens.
pub(super) struct Cache {
    shards: Box<[Mutex<Shard>]>,
}

struct Shard {
    good: LruCache<Digest, Arc<Claims>, RandomState>,
    /// What the good ones take.
    bytes: usize,
    refused: LruCache<Digest, Refused, RandomState>,
}

struct Refused {
    why: Invalid,
    /// Remembered from this second until that: a clock that is set back ends it too.
    since: u64,
    until: u64,
}

impl Digest {
    pub(super) fn of(token: &[u8]) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest(&SHA256, token).as_ref());
        Self(bytes)
    }
}

impl Default for Cache {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }
}

impl Default for Shard {
    fn default() -> Self {
        Self {
            good: LruCache::unbounded_with_hasher(RandomState::default()),
            bytes: 0,
            refused: LruCache::unbounded_with_hasher(RandomState::default()),
        }
    }
}

impl Cache {
    /// What is known of a token at `now`, in seconds since 1970.
    pub(super) fn find(&self, token: &Digest, now: u64) -> Option<Known> {
        let shard = &mut *self.shard(token);
        if let Some(claims) = shard.good.get(token) {
            return Some(Known::Good(claims.clone()));
        }
        let Refused { why, since, until } = shard.refused.get(token)?;
        (*since..*until).contains(&now).then_some(Known::Refused(*why))
    }

    /// Keeps a good token.
    pub(super) fn keep(&self, token: Digest, claims: &Arc<Claims>) {
        let added = size(claims);
        if added > MOST_BYTES {
            return;
        }
        let shard = &mut *self.shard(&token);
        shard.refused.pop(&token);
        shard.forget(&token);
        while shard.good.len() >= MOST_GOOD || shard.bytes + added > MOST_BYTES {
            let Some((_, oldest)) = shard.good.pop_lru() else { break };
            shard.bytes -= size(&oldest);
        }
        shard.good.put(token, claims.clone());
        shard.bytes += added;
    }

    /// Remembers a refusal from `since` until `until`, and that the token is good no more.
    pub(super) fn refuse(&self, token: Digest, why: Invalid, since: u64, until: u64) {
        let shard = &mut *self.shard(&token);
        shard.forget(&token);
        if shard.refused.len() >= MOST_REFUSED && !shard.refused.contains(&token) {
            shard.refused.pop_lru();
        }
        shard.refused.put(token, Refused { why, since, until });
    }

    fn shard(&self, token: &Digest) -> MutexGuard<'_, Shard> {
        let shard = &self.shards[usize::from(token.0[0]) % SHARDS];
        // It is whole whenever the lock is free, whatever happened to a thread that held it.
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shard {
    fn forget(&mut self, token: &Digest) {
        if let Some(claims) = self.good.pop(token) {
            self.bytes -= size(&claims);
        }
    }
}

fn size(claims: &Claims) -> usize {
    claims.bytes() + OVERHEAD
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::claims::Times;
    use super::super::json::Object;
    use super::*;

    fn claims(filling: usize) -> Arc<Claims> {
        let text = format!("{{\"exp\":1000,\"x\":\"{}\"}}", "y".repeat(filling));
        let times = Times { leeway: 0, max_lifetime: None };
        Arc::new(Claims::new(Object::read(text.as_bytes()).unwrap(), times).unwrap())
    }

    fn nth(n: u32) -> Digest {
        Digest::of(&n.to_le_bytes())
    }

    impl Cache {
        /// Good tokens, their bytes as counted and as they are, and refused ones.
        fn counts(&self) -> (usize, usize, usize, usize) {
            self.shards.iter().map(|shard| shard.lock().unwrap()).fold((0, 0, 0, 0), |(a, b, c, d), shard| {
                let bytes: usize = shard.good.iter().map(|(_, claims)| size(claims)).sum();
                (a + shard.good.len(), b + shard.bytes, c + bytes, d + shard.refused.len())
            })
        }
    }

    #[test]
    fn bounded_in_tokens_and_bytes() {
        for filling in [0, 20_000] {
            let cache = Cache::default();
            let claims = claims(filling);
            for n in 0..20_000 {
                cache.keep(nth(n), &claims);
                cache.keep(nth(n / 2), &claims);
                cache.refuse(nth(n + 1_000_000), Invalid::Signature, 0, 10);
            }
            let (good, counted, bytes, refused) = cache.counts();
            assert_eq!(counted, bytes);
            assert!(good <= SHARDS * MOST_GOOD && bytes <= SHARDS * MOST_BYTES, "{good} of {bytes} bytes");
            // One of the bounds is reached.
            assert!(good == SHARDS * MOST_GOOD || bytes > SHARDS * (MOST_BYTES - 2 * size(&claims)));
            assert_eq!(refused, SHARDS * MOST_REFUSED);
        }
    }

    #[test]
    fn what_is_used_stays() {
        let (cache, claims) = (Cache::default(), claims(0));
        cache.keep(nth(0), &claims);
        for n in 1..30_000 {
            cache.keep(nth(n), &claims);
            assert!(cache.find(&nth(0), 0).is_some(), "{n}");
        }
        assert!(cache.find(&nth(1), 0).is_none());
    }

    #[test]
    fn a_token_is_good_or_refused_and_not_both() {
        let (cache, claims) = (Cache::default(), claims(0));
        cache.keep(nth(0), &claims);
        cache.refuse(nth(0), Invalid::Expired, 5, 10);
        assert_eq!(cache.find(&nth(0), 5), Some(Known::Refused(Invalid::Expired)));
        assert_eq!(cache.find(&nth(0), 4), None);
        cache.keep(nth(0), &claims);
        assert_eq!(cache.find(&nth(0), 5), Some(Known::Good(claims)));
        let (good, counted, bytes, refused) = cache.counts();
        assert_eq!((good, counted, refused), (1, bytes, 0));
    }
}
