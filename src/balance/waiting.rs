//! Requests that wait for a place, while an upstream has as many as it takes.
//!
//! Promises: no more wait than may; a place that becomes free goes to one that waits, and to nobody who
//! came later; who has given up loses no place to nobody.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use tokio::time::Instant;

/// The bounds of waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Requests that may wait at once.
    pub most: usize,
    /// How long each may.
    pub time: std::time::Duration,
}

/// Who waits, by deadline, and among those with the same one by when they came.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    waiting: Mutex<Line>,
    /// As many: to be looked at without the lock.
    length: AtomicUsize,
}

#[derive(Debug, Default)]
struct Line {
    came: u64,
    waiting: BTreeMap<(Instant, u64), oneshot::Sender<Turn>>,
}

/// That a place has become free, and that it is his who holds this. Passed on if he does not use it.
#[derive(Debug)]
pub(super) struct Turn(Option<Arc<Waiting>>);

impl Turn {
    /// The place is taken, or is none.
    pub(super) fn used(mut self) {
        self.0 = None;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(waiting) = self.0.take() {
            waiting.next();
        }
    }
}

impl Waiting {
    /// Whether nobody waits. Who has given up counts until somebody looks.
    pub(super) fn is_empty(&self) -> bool {
        self.length.load(Ordering::SeqCst) == 0
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.length.load(Ordering::SeqCst)
    }

    /// Waits for a turn until `deadline`; none: `most` wait already.
    pub(super) fn join(&self, deadline: Instant, most: usize) -> Option<oneshot::Receiver<Turn>> {
        let (give, turn) = oneshot::channel();
        let mut line = self.line();
        if line.waiting.len() >= most {
            line.waiting.retain(|_, one| !one.is_closed());
        }
        if line.waiting.len() >= most {
            return None;
        }
        line.came += 1;
        let key = (deadline, line.came);
        line.waiting.insert(key, give);
        self.length.store(line.waiting.len(), Ordering::SeqCst);
        Some(turn)
    }

    /// A place has become free.
    pub(super) fn next(self: &Arc<Self>) {
        while !self.is_empty() {
            let first = {
                let mut line = self.line();
                let first = line.waiting.pop_first();
                self.length.store(line.waiting.len(), Ordering::SeqCst);
                first
            };
            let Some((_, first)) = first else { return };
            match first.send(Turn(Some(self.clone()))) {
                Ok(()) => return,
                // He has given up: it is the next one's.
                Err(turn) => turn.used(),
            }
        }
    }

    /// There may be room for any number of them now: each looks for himself.
    pub(super) fn all(self: &Arc<Self>) {
        let waiting = {
            let mut line = self.line();
            self.length.store(0, Ordering::SeqCst);
            std::mem::take(&mut line.waiting)
        };
        for one in waiting.into_values() {
            if let Err(turn) = one.send(Turn(Some(self.clone()))) {
                turn.used();
            }
        }
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn line() -> (Arc<Waiting>, Instant) {
        (Arc::default(), Instant::now())
    }

    #[tokio::test]
    async fn the_shortest_deadline_comes_first() {
        let (waiting, now) = line();
        let mut late = waiting.join(now + Duration::from_secs(2), 9).unwrap();
        let soon = waiting.join(now + Duration::from_secs(1), 9).unwrap();
        waiting.next();
        soon.await.unwrap().used();
        assert!(late.try_recv().is_err());
        assert_eq!(waiting.len(), 1);
    }

    #[tokio::test]
    async fn no_more_wait_than_may() {
        let (waiting, now) = line();
        let first = waiting.join(now, 1).unwrap();
        assert!(waiting.join(now, 1).is_none());
        drop(first);
        assert!(waiting.join(now, 1).is_some(), "he has given up");
    }

    #[tokio::test]
    async fn a_turn_that_nobody_uses_is_the_next_ones() {
        let (waiting, now) = line();
        let gone = waiting.join(now, 9).unwrap();
        let first = waiting.join(now, 9).unwrap();
        let second = waiting.join(now, 9).unwrap();
        drop(gone);
        waiting.next();
        // He is given it, and is gone before he uses it.
        drop(first.await.unwrap());
        second.await.unwrap().used();
        assert!(waiting.is_empty());
    }

    #[tokio::test]
    async fn all_may_have_a_turn_at_once() {
        let (waiting, now) = line();
        let gone = waiting.join(now, 9).unwrap();
        let two = [waiting.join(now, 9).unwrap(), waiting.join(now, 9).unwrap()];
        drop(gone);
        waiting.all();
        assert!(waiting.is_empty());
        for turn in two {
            turn.await.unwrap().used();
        }
    }
}
