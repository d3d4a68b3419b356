//! What is not the mesh's: from the cache, or from a server, which is asked once however many
//! clients wait, and goes on being asked when they leave.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::FutureExt;
use futures_util::future::Shared;
use hickory_resolver::proto::op::ResponseCode;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, timeout_at};

use super::cache::{Cache, Found, Rules};
use super::counters::{CaptureSnapshot, Counters};
use super::message::{Age, Content, Key, Reply};
use crate::config::model;
use crate::dns::Resolver;
use crate::dns::forward::{Asking, Outgoing, forward};
use crate::dns::server::Transport;
use crate::dns::wire;

/// Queries to servers at once, each with a socket of its own. What comes beyond is refused, so that
/// servers that are silent take neither every descriptor nor the place of what is known.
const MAX_FORWARDED: usize = 512;

/// The cache, and whoever asks the servers.
pub(super) struct Lookup {
    resolver: Arc<Resolver>,
    settings: ArcSwap<Settings>,
    known: Mutex<Known>,
    room: Arc<Semaphore>,
    pub(super) counters: Counters,
}

struct Known {
    cache: Cache,
    flights: HashMap<Key, Flight>,
}

/// The configured times and ways.
struct Settings {
    rules: Rules,
    resolution_timeout: Duration,
    answer_timeout: Duration,
    mixed_case: bool,
}

/// A question that a server is being asked.
#[derive(Clone)]
struct Flight {
    began: Instant,
    landed: Shared<oneshot::Receiver<Landed>>,
}

/// What asking brought.
#[derive(Debug, Clone)]
pub(super) enum Landed {
    Reply(Arc<Reply>),
    /// An answer whose records make no sense to us.
    Raw(Arc<[u8]>),
    Failed(ResponseCode),
}

/// What a client is answered.
#[derive(Debug)]
pub(super) enum Given {
    Reply(Arc<Reply>, Age),
    Raw(Arc<[u8]>),
    Failed(ResponseCode),
}

/// A flight, until it has landed: one that never does is forgotten, and the question asked anew.
struct Flying<'a> {
    lookup: &'a Lookup,
    key: Option<Key>,
}

impl Drop for Flying<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            self.lookup.known().flights.remove(&key);
        }
    }
}

impl Settings {
    fn new(config: &model::Dns) -> Self {
        Self {
            rules: Rules::new(config),
            resolution_timeout: config.resolution_timeout.0,
            answer_timeout: config.answer_timeout.0,
            mixed_case: config.mixed_case,
        }
    }
}

impl Lookup {
    pub(super) fn new(config: &model::Dns, resolver: Arc<Resolver>) -> Arc<Self> {
        Arc::new(Self {
            resolver,
            settings: ArcSwap::from_pointee(Settings::new(config)),
            known: Mutex::new(Known { cache: Cache::new(), flights: HashMap::new() }),
            room: Arc::new(Semaphore::new(MAX_FORWARDED)),
            counters: Counters::default(),
        })
    }

    /// Takes another configuration. What is known is asked for again, as it is wanted.
    pub(super) fn reconfigure(&self, config: &model::Dns) {
        self.settings.store(Arc::new(Settings::new(config)));
        self.known().cache.expire(Instant::now());
    }

    pub(super) fn snapshot(&self) -> CaptureSnapshot {
        let known = self.known();
        self.counters.snapshot(known.cache.len(), known.cache.bytes())
    }

    /// The answer to a question that the cache may answer.
    pub(super) async fn look_up(self: &Arc<Self>, key: Key) -> Given {
        let settings = self.settings.load_full();
        let found = self.known().cache.find(&key, Instant::now(), &settings.rules);
        match found {
            Found::Fresh { reply, age, refresh } => {
                if refresh && self.fly(&key, &settings).is_some() {
                    self.counters.prefetches.add();
                }
                self.counters.hits.add();
                Given::Reply(reply, age)
            }
            Found::Stale { reply, refresh } => {
                let flight = refresh.then(|| self.fly(&key, &settings)).flatten();
                let landed = match flight {
                    // A client that comes late to it has not to wait as long as the first.
                    Some(flight) => {
                        timeout_at(flight.began + settings.answer_timeout, flight.landed).await.ok()
                    }
                    None => None,
                };
                match landed {
                    Some(Ok(landed @ (Landed::Reply(_) | Landed::Raw(_)))) => self.given(landed),
                    _ => {
                        self.counters.stale.add();
                        Given::Reply(reply, Age::Stale)
                    }
                }
            }
            Found::Failed(code) => self.given(Landed::Failed(code)),
            Found::Nothing => {
                let landed = match self.fly(&key, &settings) {
                    Some(flight) => flight.landed.await.ok(),
                    None => None,
                };
                self.given(landed.unwrap_or(Landed::Failed(ResponseCode::ServFail)))
            }
        }
    }

    /// Passes a message on as it is, and brings what a server says.
    pub(super) async fn pass(&self, message: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let answer = match self.room.try_acquire() {
            Ok(_room) => {
                self.counters.forwarded.add();
                let limit = self.settings.load().resolution_timeout;
                forward(&self.resolver.asker(), &Outgoing::Passed { message, transport }, limit).await
            }
            Err(_) => None,
        };
        let count = if answer.is_some() { &self.counters.misses } else { &self.counters.failed };
        count.add();
        answer
    }

    /// What asking brought, to a client that waited for it.
    fn given(&self, landed: Landed) -> Given {
        match landed {
            Landed::Reply(reply) => {
                self.counters.misses.add();
                Given::Reply(reply, Age::Seconds(0))
            }
            Landed::Raw(bytes) => {
                self.counters.misses.add();
                Given::Raw(bytes)
            }
            Landed::Failed(code) => {
                self.counters.failed.add();
                Given::Failed(code)
            }
        }
    }

    /// Has a server asked, unless it is being asked already. `None` where too much is asked at once.
    fn fly(self: &Arc<Self>, key: &Key, settings: &Arc<Settings>) -> Option<Flight> {
        let mut known = self.known();
        if let Some(flight) = known.flights.get(key) {
            return Some(flight.clone());
        }
        let room = self.room.clone().try_acquire_owned().ok()?;
        let (land, landed) = oneshot::channel();
        let flight = Flight { began: Instant::now(), landed: landed.shared() };
        known.flights.insert(key.clone(), flight.clone());
        drop(known);
        self.counters.forwarded.add();
        self.resolver.handle().spawn(self.clone().ask(key.clone(), settings.clone(), land, room));
        Some(flight)
    }

    /// Asks the servers, and keeps what they say.
    async fn ask(
        self: Arc<Self>,
        key: Key,
        settings: Arc<Settings>,
        land: oneshot::Sender<Landed>,
        _room: OwnedSemaphorePermit,
    ) {
        let asking = Asking {
            question: key.question(),
            dnssec_ok: key.dnssec_ok(),
            checking_disabled: key.checking_disabled(),
            mixed_case: settings.mixed_case,
        };
        let limit = settings.resolution_timeout;
        let mut flying = Flying { lookup: &self, key: Some(key.clone()) };
        let answer = forward(&self.resolver.asker(), &Outgoing::Asked(asking), limit).await;
        flying.key = None;
        drop(flying);
        let landed = self.keep(key, answer, &settings.rules);
        // Nobody may be waiting any more: it was kept all the same.
        let _ = land.send(landed);
    }

    fn keep(&self, key: Key, answer: Option<Vec<u8>>, rules: &Rules) -> Landed {
        let now = Instant::now();
        let mut known = self.known();
        known.flights.remove(&key);
        let answer = match answer {
            Some(answer) if !wire::is_failure(&answer) => answer,
            failure => {
                let code = failure.map_or(ResponseCode::ServFail, |failure| wire::code(&failure));
                known.cache.fail(key, code, now, rules);
                return Landed::Failed(code);
            }
        };
        // One that cannot be read is passed on, as it came: the client may know what it means.
        let Some(mut reply) = Reply::read(answer.clone(), key.question()) else {
            return Landed::Raw(answer.into());
        };
        let life = rules.apply(&mut reply);
        let reply = Arc::new(reply);
        if reply.content() != Content::Passing {
            known.cache.keep(key, reply.clone(), life, now);
        }
        Landed::Reply(reply)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

#[cfg(test)]
mod tests;
