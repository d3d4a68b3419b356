//! The keys that this sidecar knows, bounded, and each thread's own shortcut to those it met
//! last. Only a key that its thread has not met lately takes a lock.
//!
//! A key may be forgotten when that gives nothing away: its local count is full again, and what
//! it holds of the mesh's tokens dies unspent. Where no such key makes room, the newcomer counts
//! on its limit's common bucket.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque, hash_map::Entry};
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::bucket::Bucket;
use super::limit::Limit;

/// The most keys of a process: about 24 MiB.
const CAPACITY: usize = 1 << 16;
const SHARDS: usize = 16;
/// Keys that are looked at to make room for one.
const TRIES: usize = 16;
/// A thread's shortcuts.
const FRONT: usize = 1 << 10;

/// A key's bucket, as a thread keeps it: cloned without touching what threads share.
pub(super) type Shortcut = Rc<(u128, Arc<Bucket>)>;

thread_local! {
    static SHORTCUTS: RefCell<Box<[Option<Shortcut>]>> = RefCell::new(vec![None; FRONT].into());
}

/// All keys of all limits.
#[derive(Debug)]
pub(super) struct Table {
    shards: Box<[Mutex<Shard>]>,
    per_shard: usize,
    /// Whose common buckets there are beside the keys'.
    limits: Mutex<Vec<Weak<Limit>>>,
}

#[derive(Debug, Default)]
struct Shard {
    keys: HashMap<u128, Known>,
    /// The same keys, in the order in which they are looked at to make room.
    order: VecDeque<u128>,
}

#[derive(Debug)]
struct Known {
    limit: Arc<Limit>,
    bucket: Arc<Bucket>,
}

impl Default for Table {
    fn default() -> Self {
        Self::new(CAPACITY)
    }
}

impl Table {
    fn new(capacity: usize) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { shards, per_shard: capacity.div_ceil(SHARDS), limits: Mutex::default() }
    }

    /// Adds a limit, so that its common bucket is known too.
    pub(super) fn add(&self, limit: &Arc<Limit>) {
        let mut limits = lock(&self.limits);
        limits.retain(|known| known.strong_count() > 0);
        limits.push(Arc::downgrade(limit));
    }

    /// Drops the leases of a shard of the Redis that `state` asks which came from another state of it than the
    /// one since `since`.
    pub(super) fn forget_state_before(&self, state: u64, shard: u8, since: u64) {
        let forget = |limit: &Limit, bucket: &Bucket| {
            if limit.leased && limit.state == state && bucket.shard == shard {
                bucket.forget_state_before(since);
            }
        };
        lock(&self.limits).iter().filter_map(Weak::upgrade).for_each(|limit| forget(&limit, &limit.common));
        self.each(forget);
    }

    /// The bucket of `key`; `make` makes it where the key is new.
    pub(super) fn bucket(
        &self,
        key: u128,
        limit: &Arc<Limit>,
        now: u64,
        make: impl FnOnce() -> Bucket,
    ) -> Shortcut {
        SHORTCUTS.with_borrow_mut(|shortcuts| {
            let place = &mut shortcuts[key as usize % FRONT];
            match place {
                Some(known) if known.0 == key && !known.1.local.retired() => known.clone(),
                _ => match self.find(key, limit, now, make) {
                    Some(bucket) => place.insert(Rc::new((key, bucket))).clone(),
                    None => Rc::new((key, limit.common.clone())),
                },
            }
        })
    }

    /// Finds or makes the bucket, under a lock; None where there is no room.
    fn find(
        &self,
        key: u128,
        limit: &Arc<Limit>,
        now: u64,
        make: impl FnOnce() -> Bucket,
    ) -> Option<Arc<Bucket>> {
        if let Some(known) = self.shard(key).keys.get(&key) {
            return Some(known.bucket.clone());
        }
        // Without the lock, as it takes a digest.
        let bucket = Arc::new(make());
        let Shard { keys, order } = &mut *self.shard(key);
        // What cannot be forgotten while it counts leaves half of the room to other limits.
        let greedy = !limit.leased && limit.keys.load(Relaxed) as usize >= self.per_shard * SHARDS / 2;
        let room = match greedy {
            true => make_room(keys, order, now, Some(limit)),
            false => keys.len() < self.per_shard || make_room(keys, order, now, None),
        };
        match keys.entry(key) {
            Entry::Occupied(known) => Some(known.get().bucket.clone()),
            Entry::Vacant(_) if !room => {
                limit.lost_at.fetch_max(now, Relaxed);
                None
            }
            Entry::Vacant(place) => {
                order.push_back(key);
                limit.keys.fetch_add(1, Relaxed);
                Some(place.insert(Known { limit: limit.clone(), bucket }).bucket.clone())
            }
        }
    }

    /// Shows every key that it knows to `see`.
    pub(super) fn each(&self, mut see: impl FnMut(&Limit, &Bucket)) {
        for shard in &self.shards {
            lock(shard).keys.values().for_each(|known| see(&known.limit, &known.bucket));
        }
    }

    /// Forgets the keys that were not used since the last sweep.
    pub(super) fn sweep(&self, now: u64) {
        for shard in &self.shards {
            let Shard { keys, order } = &mut *lock(shard);
            order.retain(|key| !forget(keys, *key, now, false, None));
            keys.shrink_to(2 * order.len());
        }
    }

    fn shard(&self, key: u128) -> MutexGuard<'_, Shard> {
        lock(&self.shards[(key >> 64) as usize % SHARDS])
    }
}

/// The map is whole whenever the lock is free, whatever happened to a thread that held it.
fn lock<T>(shard: &Mutex<T>) -> MutexGuard<'_, T> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Forgets one key, of one limit if `of` says so: the first in order that was not used since it was last looked
/// at; if all of these were, the first that may be forgotten.
fn make_room(
    keys: &mut HashMap<u128, Known>,
    order: &mut VecDeque<u128>,
    now: u64,
    of: Option<&Arc<Limit>>,
) -> bool {
    for used in [false, true] {
        for _ in 0..TRIES {
            let Some(key) = order.pop_front() else { return false };
            if forget(keys, key, now, used, of) {
                return true;
            }
            order.push_back(key);
        }
    }
    false
}

/// Forgets a key if that is safe, and if it was not used since it was last looked at or `used` says that this
/// is no matter; of one limit alone if `of` says so.
fn forget(keys: &mut HashMap<u128, Known>, key: u128, now: u64, used: bool, of: Option<&Arc<Limit>>) -> bool {
    let Entry::Occupied(known) = keys.entry(key) else { return true };
    let Known { limit, bucket } = known.get();
    if of.is_some_and(|of| !Arc::ptr_eq(of, limit)) {
        return false;
    }
    if (bucket.take_used() && !used) || !bucket.retire(now) {
        return false;
    }
    limit.keys.fetch_sub(1, Relaxed);
    known.remove();
    true
}
