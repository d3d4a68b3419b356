//! What servers said, for as long as it may be said again: the rules of time, as a plain value that
//! does no I/O and reads no clock.
//!
//! - Records live for their least TTL within `min_ttl` and `max_ttl`; what has none is not kept.
//! - A denial lives for its SOA's time within `max_negative_ttl` (RFC 2308). It holds for its type
//!   alone: there are servers that deny a name because it lacks one type (RFC 4074 section 4.2). Nor
//!   does it hold for names below (RFC 8020): there are servers that deny names with others below.
//! - While no server answers, what has expired serves for `stale` more (RFC 8767), and is asked for
//!   again after pauses that grow up to `recheck`.
//! - A failure without anything to serve is remembered for 1 to 5 s (RFC 9520).
//! - What is used is asked for again in the last tenth of its life, once.
//! - Bounded in bytes and entries: what was not used for longest goes first.

use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::proto::op::ResponseCode;
use lru::LruCache;
use tokio::time::Instant;

use super::message::{Age, Content, Key, Reply};
use crate::config::model;

const MAX_BYTES: usize = 8 << 20;
const MAX_ENTRIES: usize = 16_384;
/// What an entry takes beside its key and its answer: the cache's own links and table.
const OVERHEAD: usize = 160;

/// The pause after a failure, doubled by each further one, and its longest where nothing serves in
/// the meantime (RFC 9520 section 3.2).
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_FAILURE: Duration = Duration::from_secs(5);

/// Within which part of its life an answer in use is asked for again.
const LAST_PART: u32 = 10;

/// The configured times.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    min_ttl: u32,
    max_ttl: u32,
    max_negative_ttl: u32,
    stale: Duration,
    recheck: Duration,
}

impl Rules {
    pub(super) fn new(config: &model::Dns) -> Self {
        let seconds = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
        // A shortest time in parts of a second is kept too, and a longest not exceeded.
        let at_least = |time: Duration| seconds(time).saturating_add(u32::from(time.subsec_nanos() > 0));
        Self {
            min_ttl: at_least(config.min_ttl.0),
            max_ttl: seconds(config.max_ttl.0),
            max_negative_ttl: seconds(config.max_negative_ttl.0),
            stale: config.stale.0,
            recheck: config.recheck.0,
        }
    }

    /// Brings the TTLs of an answer within the bounds, and says for how many seconds it may be
    /// kept.
    pub(super) fn apply(&self, reply: &mut Reply) -> u32 {
        match reply.content() {
            Content::Records(least) => {
                reply.bound(self.min_ttl, self.max_ttl);
                least.max(self.min_ttl).min(self.max_ttl)
            }
            Content::Denial(ttl) => {
                let life = ttl.min(self.max_negative_ttl);
                reply.bound(0, life);
                life
            }
            Content::Passing => 0,
        }
    }
}

/// What is known of a question.
#[derive(Debug)]
pub(super) enum Found {
    /// An answer within its life.
    Fresh {
        reply: Arc<Reply>,
        age: Age,
        /// It is in use and near its end: to be asked for again, now and this once.
        refresh: bool,
    },
    /// An answer past its life, that may serve if no better comes.
    Stale {
        reply: Arc<Reply>,
        /// It may be asked for again.
        refresh: bool,
    },
    /// The servers have just failed, in this way.
    Failed(ResponseCode),
    Nothing,
}

/// The answers, the most recently used first.
#[derive(Debug)]
pub(super) struct Cache {
    entries: LruCache<Key, Entry>,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    answer: Option<Kept>,
    failures: u32,
    /// What the last failure was.
    code: ResponseCode,
    /// Until when it is not asked for again after a failure.
    pause: Option<Instant>,
}

#[derive(Debug)]
struct Kept {
    reply: Arc<Reply>,
    since: Instant,
    expires: Instant,
    /// Somebody asked for it since it came.
    used: bool,
    /// It is being asked for again ahead of its end.
    renewed: bool,
}

impl Cache {
    pub(super) fn new() -> Self {
        Self { entries: LruCache::unbounded(), bytes: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// What all entries take, near enough.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// What is known, for somebody who asks.
    pub(super) fn find(&mut self, key: &Key, now: Instant, rules: &Rules) -> Found {
        let Some(entry) = self.entries.get_mut(key) else { return Found::Nothing };
        let pausing = entry.pause.is_some_and(|until| now < until);
        match &mut entry.answer {
            Some(kept) if now < kept.expires => {
                let near = kept.expires - now <= (kept.expires - kept.since) / LAST_PART;
                let refresh = near && kept.used && !kept.renewed && !pausing;
                kept.renewed |= refresh;
                kept.used = true;
                let age = now.saturating_duration_since(kept.since);
                let seconds = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
                let age = Age::Seconds(seconds.saturating_add(u32::from(age.subsec_nanos() > 0)));
                Found::Fresh { reply: kept.reply.clone(), age, refresh }
            }
            Some(kept) if now - kept.expires < rules.stale => {
                Found::Stale { reply: kept.reply.clone(), refresh: !pausing }
            }
            _ if pausing => Found::Failed(entry.code),
            _ => Found::Nothing,
        }
    }

    /// Keeps an answer for so many seconds, in place of what was known; with none at all, what was
    /// known is forgotten all the same.
    pub(super) fn keep(&mut self, key: Key, reply: Arc<Reply>, life: u32, now: Instant) {
        self.forget(&key);
        if life == 0 {
            return;
        }
        let expires = now + Duration::from_secs(life.into());
        let kept = Kept { reply, since: now, expires, used: false, renewed: false };
        self.put(key, Entry { answer: Some(kept), failures: 0, code: ResponseCode::NoError, pause: None });
    }

    /// Notes that no server had an answer. What was known stays.
    pub(super) fn fail(&mut self, key: Key, code: ResponseCode, now: Instant, rules: &Rules) {
        let mut entry = self.forget(&key).unwrap_or(Entry { answer: None, failures: 0, code, pause: None });
        entry.answer = entry.answer.filter(|kept| now < kept.expires + rules.stale);
        let longest = if entry.answer.is_some() { rules.recheck } else { rules.recheck.min(LONGEST_FAILURE) };
        let pause = FIRST_PAUSE.saturating_mul(1 << entry.failures.min(16)).min(longest.max(FIRST_PAUSE));
        entry.failures = entry.failures.saturating_add(1);
        entry.code = code;
        entry.pause = Some(now + pause);
        self.put(key, entry);
    }

    /// Lets everything be asked for again, because the servers may be others now. It goes on
    /// serving where they do not answer.
    pub(super) fn expire(&mut self, now: Instant) {
        for (_, entry) in &mut self.entries {
            entry.pause = None;
            if let Some(kept) = &mut entry.answer {
                kept.expires = kept.expires.min(now);
            }
        }
    }

    fn put(&mut self, key: Key, entry: Entry) {
        self.bytes += size(&key, &entry);
        self.entries.put(key, entry);
        while self.bytes > MAX_BYTES || self.entries.len() > MAX_ENTRIES {
            let Some((key, entry)) = self.entries.pop_lru() else { return };
            self.bytes -= size(&key, &entry);
        }
    }

    fn forget(&mut self, key: &Key) -> Option<Entry> {
        let entry = self.entries.pop(key)?;
        self.bytes -= size(key, &entry);
        Some(entry)
    }
}

fn size(key: &Key, entry: &Entry) -> usize {
    OVERHEAD + key.question().len() + entry.answer.as_ref().map_or(0, |kept| kept.reply.size())
}

#[cfg(test)]
mod tests;
