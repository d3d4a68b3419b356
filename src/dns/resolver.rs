//! The cache: every watched name, each kept fresh by a task of its own.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::query::{Asker, ConfigError, Names, Totals};
use super::record::{Family, Found, Record};
use super::{Answer, State};
use crate::config::model;

/// Resolves names and keeps the answers fresh while somebody watches them.
///
/// A name is in use while a receiver of it lives. It is asked for once however many watch it, and
/// forgotten when its answer expires after the last receiver is gone.
pub struct Resolver {
    handle: Handle,
    asker: ArcSwap<Asker>,
    names: Mutex<HashMap<String, Arc<Entry>>>,
    totals: Totals,
}

/// One name.
struct Entry {
    name: String,
    answer: watch::Sender<Answer>,
    /// The last failure, while it lasts.
    trouble: Mutex<Option<Arc<str>>>,
    /// A watcher came back, or the configuration changed.
    poke: Notify,
}

/// The whole cache as an operator sees it.
#[derive(Debug, Clone, Serialize)]
pub struct Snapshot {
    /// Queries sent to servers.
    pub queries: u64,
    /// Queries that brought neither addresses nor a denial.
    pub failures: u64,
    /// Refreshes that failed and left addresses in service past their TTL.
    pub stale: u64,
    /// In alphabetical order.
    pub names: Vec<NameSnapshot>,
}

/// One name as an operator sees it.
#[derive(Debug, Clone, Serialize)]
pub struct NameSnapshot {
    /// The name, in lower case.
    pub name: String,
    /// What it resolves to now.
    pub addresses: Vec<IpAddr>,
    /// `pending`, `fresh`, `stale` or `failed`.
    pub state: &'static str,
    /// Seconds until the first address is past its TTL; negative when stale.
    pub ttl_left: Option<f64>,
    /// Which server said what, when the last query of either family went wrong.
    pub last_error: Option<String>,
}

impl Resolver {
    /// A resolver whose tasks run on `handle`, the control runtime.
    pub fn new(config: &model::Dns, handle: Handle) -> Result<Arc<Self>, ConfigError> {
        Ok(Self::with_asker(Asker::new(config)?, handle))
    }

    pub(super) fn with_asker(asker: Asker, handle: Handle) -> Arc<Self> {
        let asker = ArcSwap::from_pointee(asker);
        Arc::new(Self { handle, asker, names: Mutex::default(), totals: Totals::default() })
    }

    /// Takes another configuration, and reads `/etc/resolv.conf` again. Answers stay in service;
    /// every name is asked for again at once. On an error nothing changes.
    pub fn reconfigure(&self, config: &model::Dns) -> Result<(), ConfigError> {
        self.asker.store(Arc::new(Asker::new(config)?));
        for entry in self.names().values() {
            entry.poke.notify_one();
        }
        Ok(())
    }

    /// Watches a name, or an address, which is its own answer. The channel changes with every
    /// refresh; compare `addresses` by pointer to see whether the set did.
    ///
    /// A name with a final dot is complete; any other goes through `/etc/hosts` and the search
    /// list.
    pub fn watch(self: &Arc<Self>, name: &str) -> watch::Receiver<Answer> {
        if let Ok(address) = name.parse() {
            return self.constant(Answer::literal(address));
        }
        let name = name.to_ascii_lowercase();
        let mut names = self.names();
        if let Some(entry) = names.get(&name) {
            let receiver = entry.answer.subscribe();
            entry.poke.notify_one();
            return receiver;
        }
        let (answer, receiver) = watch::channel(Answer::pending());
        let entry =
            Arc::new(Entry { name: name.clone(), answer, trouble: Mutex::default(), poke: Notify::new() });
        names.insert(name, entry.clone());
        self.handle.spawn(self.clone().keep(entry));
        receiver
    }

    /// Everything that is known, for `/upstreams` and the metrics.
    pub fn snapshot(&self) -> Snapshot {
        let now = Instant::now();
        let mut names: Vec<_> = self.names().values().map(|entry| entry.snapshot(now)).collect();
        names.sort_by(|a, b| a.name.cmp(&b.name));
        Snapshot {
            queries: self.totals.queries.load(Ordering::Relaxed),
            failures: self.totals.failures.load(Ordering::Relaxed),
            stale: self.totals.stale.load(Ordering::Relaxed),
            names,
        }
    }

    /// The runtime that refreshes names.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Which watched name a full name stands for, because the search for that one ended there.
    pub(super) fn meant_by(&self, _full_name: &str) -> Option<String> {
        None
    }

    pub(super) fn asker(&self) -> Arc<Asker> {
        self.asker.load_full()
    }

    /// A channel that never changes, and stays open as long as somebody holds it.
    pub(super) fn constant<T: Send + Sync + 'static>(&self, value: T) -> watch::Receiver<T> {
        let (sender, receiver) = watch::channel(value);
        self.handle.spawn(async move { sender.closed().await });
        receiver
    }

    /// Keeps one name fresh until nobody watches it.
    async fn keep(self: Arc<Self>, entry: Arc<Entry>) {
        let mut asker = self.asker.load_full();
        let mut names = Arc::new(asker.names(&entry.name));
        let mut record = Record::new(Instant::now(), asker.bounds);
        let mut queries = FuturesUnordered::new();
        let mut in_flight = [false; 2];
        loop {
            let now = Instant::now();
            let current = self.asker.load_full();
            if !Arc::ptr_eq(&current, &asker) {
                names = Arc::new(current.names(&entry.name));
                record.reconfigure(now, current.bounds);
                asker = current;
                queries.clear();
                in_flight = [false; 2];
            }
            record.lapse(now);
            for family in Family::BOTH {
                if !in_flight[family as usize] && record.is_due(family, now) {
                    in_flight[family as usize] = true;
                    queries.push(self.ask(asker.clone(), names.clone(), record.anchor(), family));
                }
            }
            entry.publish(record.answer(now), record.trouble());
            let wakes = record.wakes(now, in_flight);
            tokio::select! {
                Some((family, found)) = queries.next() => {
                    let now = Instant::now();
                    in_flight[family as usize] = false;
                    let failed = matches!(found.outcome, super::record::Outcome::Failed { .. });
                    record.note(now, family, found);
                    if failed && record.is_stale(now) {
                        self.totals.stale.fetch_add(1, Ordering::Relaxed);
                    }
                }
                () = sleep_until(wakes) => {}
                () = entry.poke.notified() => {}
                () = entry.answer.closed() => {
                    queries.clear();
                    in_flight = [false; 2];
                    if self.forget(&entry, record.expires().unwrap_or(now)).await {
                        return;
                    }
                }
            }
        }
    }

    async fn ask(
        self: &Arc<Self>,
        asker: Arc<Asker>,
        names: Arc<Names>,
        anchor: Option<usize>,
        family: Family,
    ) -> (Family, Found) {
        (family, asker.resolve(&names, anchor, family, &self.totals).await)
    }

    /// Waits until the name is watched again, or its answer has expired and it is forgotten: then
    /// true.
    async fn forget(&self, entry: &Entry, until: Instant) -> bool {
        let watched = async {
            while entry.answer.receiver_count() == 0 {
                entry.poke.notified().await;
            }
        };
        let _ = tokio::time::timeout_at(until, watched).await;
        let mut names = self.names();
        let unwatched = entry.answer.receiver_count() == 0;
        if unwatched {
            names.remove(&entry.name);
        }
        unwatched
    }

    fn names(&self) -> MutexGuard<'_, HashMap<String, Arc<Entry>>> {
        self.names.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Entry {
    /// Lets the watchers see an answer, and the log a change of state.
    fn publish(&self, mut answer: Answer, trouble: Option<&Arc<str>>) {
        *self.trouble.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = trouble.cloned();
        self.answer.send_if_modified(|known| {
            if *known == answer {
                return false;
            }
            if known.state.name() != answer.state.name() {
                log(&self.name, &known.state, &answer.state);
            }
            if known.addresses == answer.addresses {
                answer.addresses = known.addresses.clone();
            }
            *known = answer;
            true
        });
    }

    fn snapshot(&self, now: Instant) -> NameSnapshot {
        let answer = self.answer.borrow();
        let trouble = self.trouble.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        NameSnapshot {
            name: self.name.clone(),
            addresses: answer.addresses.to_vec(),
            state: answer.state.name(),
            ttl_left: answer.expires.map(|expires| seconds_until(now, expires)),
            last_error: trouble.as_ref().or(answer.state.why()).map(|why| why.to_string()),
        }
    }
}

fn log(name: &str, before: &State, after: &State) {
    match after {
        State::Stale { why } => {
            tracing::warn!(name, %why, "name cannot be refreshed; its last addresses stay in service");
        }
        State::Failed { reason, why } => {
            tracing::warn!(name, reason = reason.name(), %why, "name has no address");
        }
        State::Fresh if *before != State::Pending => tracing::info!(name, "name resolves again"),
        State::Fresh | State::Pending => {}
    }
}

/// Seconds from `now` to `then`, negative where it has passed.
fn seconds_until(now: Instant, then: Instant) -> f64 {
    let seconds = |span: Duration| span.as_secs_f64();
    seconds(then.saturating_duration_since(now)) - seconds(now.saturating_duration_since(then))
}

async fn sleep_until(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}
