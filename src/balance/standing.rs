//! How an endpoint stands beside the others: what its source says of it, and how long it has been
//! there.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::load::Rough;
use crate::dns::Target;

/// The share with which an endpoint begins that joins others.
const FIRST_SHARE: f32 = 0.1;

/// The mean weight of the targets of each priority, if they differ: weights are relative (RFC 2782), and what an
/// endpoint's is over the mean is what counts beside latencies.
pub(super) fn mean_weights(targets: &[Target]) -> HashMap<u16, Option<f32>> {
    let mut all: HashMap<u16, Vec<u64>> = HashMap::new();
    for target in targets {
        all.entry(target.priority).or_default().push(target.weight.max(1).into());
    }
    let mean = |weights: &[u64]| {
        let differ = weights.windows(2).any(|pair| pair[0] != pair[1]);
        differ.then(|| weights.iter().sum::<u64>() as f32 / weights.len() as f32)
    };
    all.into_iter().map(|(priority, weights)| (priority, mean(&weights))).collect()
}

/// What an endpoint is to be given beside others.
#[derive(Debug, Clone, Copy)]
pub(super) struct Share {
    /// Its weight over the mean.
    pub weight: f32,
    /// Whether weights differ.
    pub weighted: bool,
    /// The part of that which it is given while it starts slowly.
    pub warm: f32,
    /// What a request counts for: one, or one on average. By chance, so that of endpoints with nothing to do
    /// each is the least crowded as often as its weight says.
    pub one: f32,
}

impl Share {
    pub(super) const WHOLE: Self = Self { weight: 1.0, weighted: false, warm: 1.0, one: 1.0 };
}

/// What a source says of an endpoint. It changes while the endpoint serves.
#[derive(Debug)]
pub struct Standing {
    weight: AtomicU32,
    /// The mean of those of its priority, if they differ; else 0.
    mean_weight: Rough,
    priority: AtomicU32,
    /// It is another address of one that there is already, of the other family.
    second: AtomicBool,
    /// It may be many behind one address.
    is_virtual: AtomicBool,
    /// It is in another zone than we are.
    far: AtomicBool,
    /// When it joined others, in milliseconds of the endpoints' clock; 0: it was among the first.
    joined: AtomicU64,
    zone: Mutex<Option<Arc<str>>>,
}

impl Default for Standing {
    fn default() -> Self {
        Self {
            weight: AtomicU32::new(1),
            mean_weight: Rough::new(0.0),
            priority: AtomicU32::new(0),
            second: AtomicBool::new(false),
            is_virtual: AtomicBool::new(false),
            far: AtomicBool::new(false),
            joined: AtomicU64::new(0),
            zone: Mutex::default(),
        }
    }
}

impl Standing {
    /// Takes what the source says now. `mean_weight`: of the targets of its priority, if
    /// they differ.
    pub fn take(&self, target: &Target, mean_weight: Option<f32>, is_virtual: bool, our_zone: Option<&str>) {
        self.weight.store(target.weight.max(1), Ordering::Relaxed);
        self.mean_weight.set(mean_weight.unwrap_or(0.0));
        self.priority.store(target.priority.into(), Ordering::Relaxed);
        self.second.store(target.second, Ordering::Relaxed);
        self.is_virtual.store(is_virtual, Ordering::Relaxed);
        let far = our_zone.is_some_and(|ours| target.zone.as_deref() != Some(ours));
        self.far.store(far, Ordering::Relaxed);
        self.zone_of().clone_from(&target.zone);
    }

    /// Whether it is in another zone than we are.
    pub fn is_far(&self) -> bool {
        self.far.load(Ordering::Relaxed)
    }

    /// It joined others at `now`.
    pub fn join(&self, now_millis: u64) {
        self.joined.store(now_millis, Ordering::Relaxed);
    }

    /// When its slow start ends, in milliseconds; 0: it has none.
    pub(super) fn warm_at(&self, slow_start: Duration) -> u64 {
        match self.joined.load(Ordering::Relaxed) {
            0 => 0,
            joined => joined + slow_start.as_millis() as u64,
        }
    }

    /// Its weight beside others of the same priority.
    pub fn weight(&self) -> u32 {
        self.weight.load(Ordering::Relaxed)
    }

    /// Those of the least priority come first.
    pub fn priority(&self) -> u32 {
        self.priority.load(Ordering::Relaxed)
    }

    /// Whether it is another address of one that there is already, of the other family.
    pub fn is_second(&self) -> bool {
        self.second.load(Ordering::Relaxed)
    }

    /// Whether it may be many behind one address, as a ClusterIP Service is: each connection is to one
    /// of them, by chance, for as long as it lasts.
    pub fn is_virtual(&self) -> bool {
        self.is_virtual.load(Ordering::Relaxed)
    }

    /// The topology zone that it is in.
    pub fn zone(&self) -> Option<Arc<str>> {
        self.zone_of().clone()
    }

    /// What it is to be given beside others.
    pub(super) fn share(&self, now_millis: u64, slow_start: Duration) -> Share {
        let mean = self.mean_weight.get();
        let weighted = mean > 0.0;
        let weight = if weighted { self.weight() as f32 / mean } else { 1.0 };
        let one = -(1.0 - fastrand::f32()).ln();
        let joined = self.joined.load(Ordering::Relaxed);
        if joined == 0 {
            return Share { weight, weighted, warm: 1.0, one };
        }
        let (since, whole) = (now_millis.saturating_sub(joined) as f32, slow_start.as_millis() as f32);
        Share {
            weight,
            weighted,
            warm: if since >= whole { 1.0 } else { (since / whole).max(FIRST_SHARE) },
            one,
        }
    }

    fn zone_of(&self) -> std::sync::MutexGuard<'_, Option<Arc<str>>> {
        self.zone.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
