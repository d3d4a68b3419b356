//! What an upstream is while it runs: the endpoints that its source names, which join, leave and come back,
//! and the counts of what is open to them.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{SetOnce, watch};
use tokio::task::AbortHandle;

use super::candidates::Candidates;
use super::crowd::Crowd;
use super::room::{Queue, Room};
use super::standing::mean_weights;
use super::upstream::Open;
use super::waiting::Waiting;
use super::{Configured, Endpoint, Learned, Now, Spec};
use crate::dns::{self, Answer, Resolution, Resolver, State};

/// Endpoints that a source gives within so long of its first one are the first ones: two families, or the
/// targets of services, are answered one after another.
const TOGETHER: Duration = Duration::from_secs(2);

/// What lives on when the configuration changes something else.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) endpoints: ArcSwap<Vec<Arc<Endpoint>>>,
    /// Those of them that this sidecar uses.
    pub(super) candidates: ArcSwap<Candidates>,
    /// What is known of them together.
    pub(super) crowd: Crowd,
    /// What can be learned of them as one: of the application, whose only address is its own.
    pub(super) learned: Learned,
    /// Requests that wait for room.
    pub(super) waiting: Arc<Waiting>,
    /// The addresses of `spec.address`.
    pub(super) vips: ArcSwap<Vec<IpAddr>>,
    /// Endpoints that have left and still serve requests.
    pub(super) leaving: ArcSwap<Vec<Arc<Endpoint>>>,
    pub(super) resolution: watch::Receiver<Resolution>,
    pub(super) address: watch::Receiver<Answer>,
    /// Set once `address` and the source have both said something.
    pub(super) located: SetOnce<()>,
    /// Whether the source has said anything that is in `endpoints`.
    pub(super) heard: watch::Sender<bool>,
    pub(super) in_flight: AtomicU32,
    pub(super) connections: AtomicU32,
    pub(super) max_connections: AtomicU32,
    /// Who waits for one of those.
    pub(super) queue: Queue,
    pub(super) terms: Mutex<Terms>,
    is_balanced: bool,
    zone: Option<Arc<str>>,
    subset: Option<usize>,
    /// What this sidecar's subsets are drawn by.
    seed: u64,
    /// When it had its first endpoint, in milliseconds of the endpoints' clock; 0: it never had one.
    pub(super) begun: AtomicU64,
    /// Until when, in milliseconds of the endpoints' clock, endpoints are not alike: 0: they are;
    /// `u64::MAX`: their source says so.
    pub(super) uneven_until: AtomicU64,
    pub(super) follow: AbortHandle,
}

impl Drop for Live {
    fn drop(&mut self) {
        self.follow.abort();
    }
}

impl Live {
    pub(super) fn follow(spec: &Spec, resolver: &Arc<Resolver>) -> Arc<Self> {
        let mut resolution = spec.source.subscribe(resolver);
        let mut address = resolver.watch(&spec.address.host.to_string());
        Arc::new_cyclic(|weak: &std::sync::Weak<Live>| {
            let weak = weak.clone();
            let (said, dialled) = (resolution.clone(), address.clone());
            let name = spec.name.clone();
            let task = async move {
                loop {
                    let Some(live) = weak.upgrade() else { return };
                    let now = resolution.borrow_and_update().clone();
                    live.publish(&name, &now.endpoints);
                    let vips = address.borrow_and_update().clone();
                    // An answer that failed leaves what was known: a name that cannot be asked
                    // has not moved.
                    if !vips.addresses.is_empty() {
                        live.vips.store(Arc::new(vips.addresses.to_vec()));
                    }
                    live.heard.send_if_modified(|heard| {
                        let first = !*heard && !matches!(now.state, State::Pending);
                        *heard |= first;
                        first
                    });
                    if ![&now.state, &vips.state].contains(&&State::Pending) {
                        // Set already is as good.
                        let _ = live.located.set(());
                    }
                    drop(live);
                    let changed = tokio::select! {
                        changed = resolution.changed() => changed,
                        changed = address.changed() => changed,
                    };
                    if changed.is_err() {
                        return;
                    }
                }
            };
            Live {
                endpoints: ArcSwap::default(),
                candidates: ArcSwap::default(),
                crowd: Crowd::default(),
                learned: Learned::default(),
                waiting: Arc::default(),
                vips: ArcSwap::default(),
                leaving: ArcSwap::default(),
                resolution: said,
                address: dialled,
                located: SetOnce::new(),
                heard: watch::Sender::new(false),
                in_flight: AtomicU32::new(0),
                connections: AtomicU32::new(0),
                max_connections: AtomicU32::new(spec.max_connections),
                queue: Queue::default(),
                terms: Mutex::new(Terms::of(spec)),
                is_balanced: spec.is_balanced,
                zone: spec.zone.clone(),
                subset: spec.subset,
                seed: fastrand::u64(..),
                begun: AtomicU64::new(0),
                uneven_until: AtomicU64::new(0),
                follow: resolver.handle().spawn(task).abort_handle(),
            }
        })
    }

    /// Counts one connection more, if there may be one.
    pub(super) fn take_room(&self) -> bool {
        let most = self.max_connections.load(Ordering::Relaxed);
        let more = |open: u32| (open < most).then(|| open + 1);
        self.connections.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).is_ok()
    }

    /// Gives the room that there is to those who wait for it.
    pub(super) fn serve(self: &Arc<Self>) {
        while !self.queue.is_empty() && self.take_room() {
            match self.queue.first() {
                Some(first) => {
                    let open = Open::new(self.clone(), first.endpoint.clone());
                    first.give(Room { handed: Option::None, open });
                }
                Option::None => {
                    self.connections.fetch_sub(1, Ordering::SeqCst);
                }
            }
        }
    }

    /// Takes the set that the source says, keeping those endpoints that are still in it, and those that
    /// are in it again and still serve.
    fn publish(&self, name: &str, targets: &[dns::Target]) {
        let now = self.endpoints.load_full();
        let terms = *self.terms.lock().unwrap_or_else(PoisonError::into_inner);
        let (begun, at) = (self.begun.load(Ordering::Relaxed), Now::read().millis());
        if begun == 0 && !targets.is_empty() {
            self.begun.store(at, Ordering::Relaxed);
        }
        let known: HashMap<SocketAddr, &Arc<Endpoint>> = now.iter().map(|e| (e.address, e)).collect();
        let mut leaving = self.leaving.load().as_ref().clone();
        leaving.retain(|e| e.in_flight() + e.connections() > 0 || e.just_left());
        let mut endpoint = |target: &dns::Target| {
            if let Some(known) = known.get(&target.address) {
                return Arc::clone(known);
            }
            let serves =
                |e: &Arc<Endpoint>| e.address == target.address && e.just_left() && e.connections() > 0;
            if let Some(at) = leaving.iter().position(serves) {
                let back = leaving.remove(at);
                back.rejoin();
                return back;
            }
            let endpoint = Endpoint::new(target.address, terms.capacity);
            endpoint.keep_alive.configure(terms.keep_alive);
            if begun != 0 && at > begun + TOGETHER.as_millis() as u64 {
                endpoint.standing.join(at);
            }
            endpoint
        };
        let next: Vec<Arc<Endpoint>> = targets.iter().map(&mut endpoint).collect();
        let one = targets.iter().filter(|target| !target.second).count() == 1;
        let is_virtual = one && !self.is_balanced;
        let means = mean_weights(targets);
        for (endpoint, target) in next.iter().zip(targets) {
            endpoint.standing.take(target, means[&target.priority], is_virtual, self.zone.as_deref());
        }
        // What is said of endpoints may have changed, if they have not.
        let candidates = Arc::new(Candidates::of(&next, self.subset, self.seed));
        self.uneven_until.store(uneven_until(&next, terms.slow_start, at), Ordering::Relaxed);
        if next.iter().map(|e| e.id).eq(now.iter().map(|e| e.id)) {
            self.candidates.store(candidates);
            return;
        }
        if is_virtual {
            say_virtual(name, targets);
        }
        let stay: HashSet<u64> = next.iter().map(|endpoint| endpoint.id).collect();
        let left: Vec<_> = now.iter().filter(|e| !stay.contains(&e.id)).cloned().collect();
        leaving.extend(left.iter().cloned());
        self.leaving.store(Arc::new(leaving));
        self.endpoints.store(Arc::new(next));
        self.candidates.store(candidates);
        // Last: nobody finds a set of which every endpoint has left.
        left.iter().for_each(|endpoint| endpoint.leave());
        self.waiting.all();
    }
}

/// What the configuration says of endpoints, as long as it does.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    capacity: Option<u32>,
    keep_alive: Configured,
    slow_start: Duration,
}

impl Terms {
    pub(super) fn of(spec: &Spec) -> Self {
        Self { capacity: spec.capacity, keep_alive: spec.keep_alive, slow_start: spec.slow_start }
    }
}

/// Until when endpoints are not alike: see [`Live::uneven_until`].
fn uneven_until(endpoints: &[Arc<Endpoint>], slow_start: Duration, now: u64) -> u64 {
    let says = |e: &Endpoint| {
        let standing = &e.standing;
        (standing.weight(), standing.priority(), standing.is_second(), standing.is_far())
    };
    if endpoints.windows(2).any(|pair| says(&pair[0]) != says(&pair[1])) {
        return u64::MAX;
    }
    let warm_at = endpoints.iter().map(|endpoint| endpoint.standing.warm_at(slow_start));
    warm_at.max().filter(|at| *at > now).unwrap_or(0)
}

fn say_virtual(upstream: &str, targets: &[dns::Target]) {
    let address = targets.first().map(|target| target.address);
    tracing::info!(
        upstream,
        ?address,
        "has one address: if a Service's, it stands for many endpoints that cannot be told apart. Requests go over \
         several connections, each replaced after a while; to balance by saturation, set `endpoints`"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model;
    use crate::dns::{EndpointSource, Target};

    #[tokio::test]
    async fn what_is_said_anew_of_the_same_endpoints_holds_at_once() {
        let address = "127.0.0.1:80".parse().unwrap();
        let spec =
            Spec { subset: Some(2), ..Spec::plain("orders", address, EndpointSource::Static([].into())) };
        let resolver = Resolver::new(&model::Dns::default(), tokio::runtime::Handle::current()).unwrap();
        let live = Live::follow(&spec, &resolver);
        let mut targets: Vec<_> = (1..=9).map(|n| Target::at(([127, 0, 0, n], 80).into())).collect();
        live.publish("orders", &targets);
        let used = || live.candidates.load();
        assert!(used().endpoints.len() == 2 && used().ranks.is_none());
        let unused = |t: &&mut Target| used().endpoints.iter().all(|e| e.address != t.address);
        let first = targets.iter_mut().find(unused).map(|target| target.address);
        targets.iter_mut().for_each(|target| target.priority = u16::from(Some(target.address) != first));
        live.publish("orders", &targets);
        assert!(used().ranks.is_some());
        let has_first = used().endpoints.iter().any(|endpoint| Some(endpoint.address) == first);
        assert!(has_first && used().endpoints.len() == 3, "it comes first now, and is in every subset");
    }
}
