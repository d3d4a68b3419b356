//! What an upstream is while it runs: the endpoints that its source names, which join, leave and come back,
//! and the counts of what is open to them.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{SetOnce, watch};
use tokio::task::AbortHandle;

use super::endpoint::now_millis;
use super::room::{Queue, Room};
use super::upstream::Open;
use super::{Configured, Endpoint, Spec};
use crate::dns::{self, Answer, Resolution, Resolver, State};

/// Endpoints that a source gives within so long of its first one are the first ones: two families, or the
/// targets of services, are answered one after another.
const TOGETHER: Duration = Duration::from_secs(2);

/// What lives on when the configuration changes something else.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) endpoints: ArcSwap<Vec<Arc<Endpoint>>>,
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
    pub(super) capacity: AtomicU32,
    pub(super) keep_alive: Mutex<Configured>,
    pub(super) is_balanced: bool,
    pub(super) slow_start: Mutex<Duration>,
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
                capacity: AtomicU32::new(spec.capacity),
                keep_alive: Mutex::new(spec.keep_alive),
                is_balanced: spec.is_balanced,
                slow_start: Mutex::new(spec.slow_start),
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
        let capacity = self.capacity.load(Ordering::Relaxed);
        let keep_alive = *self.keep_alive.lock().unwrap_or_else(PoisonError::into_inner);
        let slow_start = *self.slow_start.lock().unwrap_or_else(PoisonError::into_inner);
        let (begun, at) = (self.begun.load(Ordering::Relaxed), now_millis());
        if begun == 0 && !targets.is_empty() {
            self.begun.store(at, Ordering::Relaxed);
        }
        let mut leaving = self.leaving.load().as_ref().clone();
        leaving.retain(|e| e.in_flight() + e.connections() > 0 || e.just_left());
        let mut endpoint = |target: &dns::Target| {
            if let Some(known) = now.iter().find(|e| e.address == target.address) {
                return known.clone();
            }
            let serves =
                |e: &Arc<Endpoint>| e.address == target.address && e.just_left() && e.connections() > 0;
            if let Some(at) = leaving.iter().position(serves) {
                let back = leaving.remove(at);
                back.rejoin();
                return back;
            }
            let endpoint = Endpoint::new(target.address, capacity);
            endpoint.keep_alive.configure(keep_alive);
            if begun != 0 && at > begun + TOGETHER.as_millis() as u64 {
                endpoint.standing.join(at);
            }
            endpoint
        };
        let next: Vec<Arc<Endpoint>> = targets.iter().map(&mut endpoint).collect();
        let one = targets.iter().filter(|target| !target.second).count() == 1;
        let is_virtual = one && !self.is_balanced;
        for (endpoint, target) in next.iter().zip(targets) {
            endpoint.standing.take(target, is_virtual);
        }
        self.uneven_until.store(uneven_until(&next, targets, slow_start), Ordering::Relaxed);
        if next.iter().map(|e| e.id).eq(now.iter().map(|e| e.id)) {
            return;
        }
        if is_virtual {
            say_virtual(name, targets);
        }
        let left: Vec<_> =
            now.iter().filter(|e| !targets.iter().any(|t| t.address == e.address)).cloned().collect();
        leaving.extend(left.iter().cloned());
        self.leaving.store(Arc::new(leaving));
        self.endpoints.store(Arc::new(next));
        // Last: nobody finds a set of which every endpoint has left.
        left.iter().for_each(|endpoint| endpoint.leave());
    }
}

/// Until when endpoints are not alike: see [`Live::uneven_until`].
fn uneven_until(endpoints: &[Arc<Endpoint>], targets: &[dns::Target], slow_start: Duration) -> u64 {
    let says = |target: &dns::Target| (target.weight, target.priority, target.second);
    if targets.windows(2).any(|pair| says(&pair[0]) != says(&pair[1])) {
        return u64::MAX;
    }
    let warm_at = endpoints.iter().map(|endpoint| endpoint.standing.warm_at(slow_start));
    warm_at.max().filter(|at| *at > now_millis()).unwrap_or(0)
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
