//! The cache: every watched name, each kept fresh by a task of its own.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Poll;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{Instant, timeout};

use super::kept::MOST;
use super::query::{Asker, Files};
use super::record::{Found, Kind, Outcome, Record, Sought};
use super::seen::{NameSnapshot, Snapshot};
use super::servers::Known;
use super::system::ConfigError;
use super::{Answer, State};
use crate::config::model;
use crate::config::watch::Watcher;

/// Queries in flight at once, for all names: whatever comes together goes out in order. One that has not
/// been answered for so long does not count any more.
const FLIGHTS: usize = 128;
const AT_ONCE: Duration = Duration::from_millis(100);

/// Resolves names and keeps the answers fresh while somebody watches them.
///
/// A name is in use while a receiver of it lives. It is asked for once however many watch it, and
/// forgotten when its answer expires after the last receiver is gone.
pub struct Resolver {
    handle: Handle,
    asker: ArcSwap<Asker>,
    names: Mutex<Names>,
    /// What the asker was made of.
    config: Mutex<model::Dns>,
    files: Files,
    servers: Mutex<HashMap<SocketAddr, Arc<Known>>>,
    /// The full names at which the search list's search ended, and whose search it was.
    meant: Mutex<HashMap<String, String>>,
    flights: Semaphore,
    totals: Totals,
}

type Names = HashMap<(Sought, String), Arc<Entry>>;

#[derive(Debug, Default)]
struct Totals {
    hits: AtomicU64,
    misses: AtomicU64,
    refreshes: AtomicU64,
    stale: AtomicU64,
}

/// One name.
struct Entry {
    sought: Sought,
    name: String,
    answer: watch::Sender<Answer>,
    /// The last failure, while it lasts.
    trouble: Mutex<Option<Arc<str>>>,
    /// A watcher came back, or the configuration changed.
    poke: Notify,
}

impl Resolver {
    /// A resolver whose tasks run on `handle`, the control runtime. It follows the system's files.
    pub fn new(config: &model::Dns, handle: Handle) -> Result<Arc<Self>, ConfigError> {
        Self::with_files(config, Files::default(), handle)
    }

    pub(super) fn with_files(
        config: &model::Dns,
        files: Files,
        handle: Handle,
    ) -> Result<Arc<Self>, ConfigError> {
        // Watched before they are read: no change is missed.
        let watcher = Watcher::new(&[files.resolv_conf.clone(), files.hosts.clone()]);
        let servers = Mutex::default();
        let asker = Asker::new(config, &files, |address| known(&servers, address))?;
        let resolver = Arc::new(Self {
            handle,
            asker: ArcSwap::from_pointee(asker),
            names: Mutex::default(),
            config: Mutex::new(config.clone()),
            files,
            servers,
            meant: Mutex::default(),
            flights: Semaphore::new(FLIGHTS),
            totals: Totals::default(),
        });
        match watcher {
            Ok(watcher) => {
                resolver.handle.spawn(follow(watcher, Arc::downgrade(&resolver)));
            }
            Err(error) => {
                let (resolv_conf, hosts) =
                    (resolver.files.resolv_conf.display(), resolver.files.hosts.display());
                tracing::warn!(%resolv_conf, %hosts, %error, "not followed; a reload reads them again");
            }
        }
        Ok(resolver)
    }

    /// Takes another configuration, and reads `/etc/resolv.conf` again. Answers stay in service;
    /// every name is asked for again at once. On an error nothing changes.
    pub fn reconfigure(&self, config: &model::Dns) -> Result<(), ConfigError> {
        let asker = Asker::new(config, &self.files, |address| known(&self.servers, address))?;
        lock(&self.config).clone_from(config);
        self.replace(asker);
        Ok(())
    }

    fn replace(&self, asker: Asker) {
        self.asker.store(Arc::new(asker));
        self.meant().clear();
        for entry in self.names().values() {
            entry.poke.notify_one();
        }
    }

    /// Watches a name's addresses, or an address, which is its own answer. The channel changes with
    /// every refresh; compare `addresses` by pointer to see whether the set did.
    ///
    /// A name with a final dot is complete; any other goes through `/etc/hosts` and the search
    /// list.
    pub fn watch(self: &Arc<Self>, name: &str) -> watch::Receiver<Answer> {
        match name.parse() {
            Ok(address) => self.constant(Answer::literal(address)),
            Err(_) => self.watch_for(Sought::Addresses, name),
        }
    }

    /// Watches a name's services (SRV), as [`watch`](Self::watch) does its addresses.
    pub fn watch_services(self: &Arc<Self>, name: &str) -> watch::Receiver<Answer> {
        self.watch_for(Sought::Services, name)
    }

    fn watch_for(self: &Arc<Self>, sought: Sought, name: &str) -> watch::Receiver<Answer> {
        let key = (sought, name.to_ascii_lowercase());
        let mut names = self.names();
        if let Some(entry) = names.get(&key) {
            self.totals.hits.fetch_add(1, Ordering::Relaxed);
            let receiver = entry.answer.subscribe();
            entry.poke.notify_one();
            return receiver;
        }
        self.totals.misses.fetch_add(1, Ordering::Relaxed);
        let (answer, receiver) = watch::channel(Answer::pending());
        let entry = Arc::new(Entry {
            sought,
            name: key.1.clone(),
            answer,
            trouble: Mutex::default(),
            poke: Notify::new(),
        });
        names.insert(key, entry.clone());
        self.handle.spawn(self.clone().keep(entry));
        receiver
    }

    /// The watched name that a full name stands for, because the search list's search for it ended
    /// there.
    pub(super) fn meant_by(&self, full_name: &str) -> Option<String> {
        self.meant().get(full_name).cloned()
    }

    /// Everything that is known, for `/upstreams` and the metrics.
    pub fn snapshot(&self) -> Snapshot {
        let now = Instant::now();
        let mut names: Vec<_> = self.names().values().map(|entry| entry.snapshot(now)).collect();
        names.sort_by(|a, b| a.name.cmp(&b.name));
        Snapshot { names, ..self.counts() }
    }

    /// As [`snapshot`](Self::snapshot), without the names.
    pub fn counts(&self) -> Snapshot {
        let servers = self.asker.load().servers.snapshot();
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Snapshot {
            hits: count(&self.totals.hits),
            misses: count(&self.totals.misses),
            refreshes: count(&self.totals.refreshes),
            stale: count(&self.totals.stale),
            queries: servers.iter().map(|server| server.queries).sum(),
            failures: servers.iter().flat_map(|server| server.failures.values()).sum(),
            servers,
            names: Vec::new(),
        }
    }

    /// How long what has expired may serve.
    pub(super) fn stale(&self) -> Duration {
        self.asker.load().bounds.stale
    }

    /// The runtime that refreshes names.
    pub fn handle(&self) -> &Handle {
        &self.handle
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
        let mut record = Record::new(Instant::now(), entry.sought, asker.bounds.clone());
        let mut flights = Flights::default();
        let mut meant = None;
        loop {
            let now = Instant::now();
            let current = self.asker.load_full();
            if !Arc::ptr_eq(&current, &asker) {
                record.reconfigure(now, current.bounds.clone());
                asker = current;
                flights = Flights::default();
            }
            record.lapse(now);
            let idles = |&kind: &Kind| !flights.is_under_way(kind) && record.is_due(kind, now);
            if entry.answer.receiver_count() == 0 && record.kinds().iter().any(idles) {
                // Boxed: most names never come here, and ten thousand tasks keep no room for it.
                if Box::pin(self.forget(&entry, record.expires().unwrap_or(now))).await {
                    self.note_meaning(&asker, &entry, meant, None);
                    return;
                }
                continue;
            }
            for &kind in record.kinds() {
                if !flights.is_under_way(kind) && record.is_due(kind, now) {
                    if record.has(kind) {
                        self.totals.refreshes.fetch_add(1, Ordering::Relaxed);
                    }
                    let query = self.clone().ask(asker.clone(), entry.clone(), record.anchor(), kind);
                    flights.0[kind.place()] = Some(query.boxed());
                }
            }
            if record.anchor() != meant {
                let before = std::mem::replace(&mut meant, record.anchor());
                self.note_meaning(&asker, &entry, before, meant);
            }
            entry.publish(record.answer(now), record.trouble());
            let wakes = record.wakes(now, flights.under_way());
            tokio::select! {
                (kind, found) = flights.next() => {
                    let now = Instant::now();
                    let failed = matches!(found.outcome, Outcome::Failed { .. });
                    record.note(now, kind, found);
                    if failed && record.is_stale(now) {
                        self.totals.stale.fetch_add(1, Ordering::Relaxed);
                    }
                }
                () = sleep_until(wakes) => {}
                () = entry.poke.notified() => {}
            }
        }
    }

    async fn ask(
        self: Arc<Self>,
        asker: Arc<Asker>,
        entry: Arc<Entry>,
        anchor: Option<usize>,
        kind: Kind,
    ) -> (Kind, Found) {
        // It is never closed.
        let mut flight = self.flights.acquire().await.ok();
        let mut asking = std::pin::pin!(asker.resolve(&entry.name, anchor, kind));
        // What is not answered at once is no burst, and not in the way of what would be.
        if let Ok(found) = timeout(AT_ONCE, &mut asking).await {
            return (kind, found);
        }
        drop(flight.take());
        (kind, asking.await)
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
            names.remove(&(entry.sought, entry.name.clone()));
        }
        unwatched
    }

    /// Remembers at which full name the search for a name ended, and no longer where it did before.
    fn note_meaning(&self, asker: &Asker, entry: &Entry, before: Option<usize>, now: Option<usize>) {
        let full = |anchor: Option<usize>| {
            let full = asker.names(&entry.name).candidates.into_iter().nth(anchor?)?;
            let full = full.to_ascii().to_ascii_lowercase();
            let full = full.trim_end_matches('.');
            (entry.sought == Sought::Addresses && full != entry.name.trim_end_matches('.'))
                .then(|| full.to_owned())
        };
        let mut meant = self.meant();
        if let Some(full) = full(before)
            && meant.get(&full) == Some(&entry.name)
        {
            meant.remove(&full);
        }
        if let Some(full) = full(now) {
            meant.insert(full, entry.name.clone());
        }
    }

    /// The system's files have changed: everything is read, and asked for, again.
    fn files_changed(&self) {
        let config = lock(&self.config).clone();
        let asker = match Asker::new(&config, &self.files, |address| known(&self.servers, address)) {
            Ok(asker) => asker,
            Err(error) => {
                tracing::warn!(%error, "the servers and the search list stay as they were");
                return;
            }
        };
        if asker.is_made_up && !self.asker.load().is_made_up {
            // Half-written, or about to come back: it is looked at again when it changes again.
            let path = self.files.resolv_conf.display();
            tracing::warn!(%path, "names no server any more; those that it named are asked on");
            return;
        }
        self.replace(asker);
        tracing::info!("the system's DNS configuration or hosts file has changed");
    }

    fn names(&self) -> MutexGuard<'_, Names> {
        lock(&self.names)
    }

    fn meant(&self) -> MutexGuard<'_, HashMap<String, String>> {
        lock(&self.meant)
    }
}

/// The queries of one name that are under way, by their kind's place.
#[derive(Default)]
struct Flights([Option<BoxFuture<'static, (Kind, Found)>>; 2]);

impl Flights {
    fn is_under_way(&self, kind: Kind) -> bool {
        self.0[kind.place()].is_some()
    }

    fn under_way(&self) -> [bool; 2] {
        self.0.each_ref().map(Option::is_some)
    }

    /// The first to end; none does while none is under way.
    async fn next(&mut self) -> (Kind, Found) {
        std::future::poll_fn(|context| {
            for flight in &mut self.0 {
                if let Some(query) = flight
                    && let Poll::Ready(ended) = query.poll_unpin(context)
                {
                    *flight = None;
                    return Poll::Ready(ended);
                }
            }
            Poll::Pending
        })
        .await
    }
}

/// Follows the system's files for as long as there is a resolver.
async fn follow(mut watcher: Watcher, resolver: Weak<Resolver>) {
    loop {
        watcher.changed().await;
        let Some(resolver) = resolver.upgrade() else { return };
        resolver.files_changed();
    }
}

/// What is known of a server.
fn known(servers: &Mutex<HashMap<SocketAddr, Arc<Known>>>, address: SocketAddr) -> Arc<Known> {
    lock(servers).entry(address).or_default().clone()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Entry {
    /// Lets the watchers see an answer, and the log a change of state.
    fn publish(&self, mut answer: Answer, trouble: Option<&Arc<str>>) {
        *lock(&self.trouble) = trouble.cloned();
        self.answer.send_if_modified(|known| {
            if *known == answer {
                return false;
            }
            if known.state.name() != answer.state.name() {
                log(&self.name, &known.state, &answer.state);
            }
            let records = answer.addresses.len() + answer.services.len();
            if records >= MOST && (&known.addresses, &known.services) != (&answer.addresses, &answer.services)
            {
                tracing::warn!(
                    name = self.name,
                    records,
                    "name has as many records as are used, and maybe more"
                );
            }
            if known.addresses == answer.addresses {
                answer.addresses = known.addresses.clone();
            }
            if known.services == answer.services {
                answer.services = known.services.clone();
            }
            *known = answer;
            true
        });
    }

    fn snapshot(&self, now: Instant) -> NameSnapshot {
        let answer = self.answer.borrow();
        let trouble = lock(&self.trouble);
        NameSnapshot {
            name: self.name.clone(),
            addresses: answer.addresses.to_vec(),
            services: answer.services.to_vec(),
            state: answer.state.name(),
            ttl_left: answer.expires.map(|expires| seconds_until(now, expires)),
            last_error: trouble.as_ref().or(answer.state.why()).map(|why| why.to_string()),
        }
    }
}

fn log(name: &str, before: &State, after: &State) {
    match after {
        State::Stale { why } if name.ends_with('.') => {
            tracing::debug!(name, %why, "a service's target cannot be refreshed");
        }
        State::Stale { why } => {
            tracing::warn!(name, %why, "name cannot be refreshed; its last addresses stay in service");
        }
        // The targets of services, of which there may be hundreds: their source speaks for them.
        State::Failed { reason, why } if name.ends_with('.') => {
            tracing::debug!(name, reason = reason.name(), %why, "a service's target has no address");
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
