//! Requests that wait for a place, while an upstream has as many as it takes.
//!
//! Promises: no more wait than may; a place that becomes free goes to one that waits (`line.rs` says to
//! whom), and to nobody who does not; who has given up waits no more, and no place is lost with him.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::line::{Line, Ticket};

/// The bounds of waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Requests that may wait at once.
    pub most: usize,
    /// How long each may.
    pub time: std::time::Duration,
}

/// Who waits for a place of an upstream.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    line: Mutex<Line<oneshot::Sender<Turn>>>,
    /// As many: to be looked at without the lock.
    length: AtomicUsize,
}

/// One who waits. He has left the line once this is dropped.
#[derive(Debug)]
pub(super) struct Waiter {
    waiting: Arc<Waiting>,
    ticket: Ticket,
    turn: oneshot::Receiver<Turn>,
}

impl Waiter {
    /// His turn; none: there is nobody who would give it.
    pub(super) async fn turn(mut self) -> Option<Turn> {
        (&mut self.turn).await.ok()
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        // Whoever has had his turn is not in it any more. A turn that comes now is passed on by itself.
        self.waiting.with(|line| line.leave(self.ticket));
    }
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
    /// Whether nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.length.load(Ordering::SeqCst)
    }

    /// Waits for a turn, since then and until `deadline`; none: `most` wait already.
    pub(super) fn join(self: &Arc<Self>, since: Instant, deadline: Instant, most: usize) -> Option<Waiter> {
        let (give, turn) = oneshot::channel();
        let join = |line: &mut Line<_>| (line.len() < most).then(|| line.join(since, deadline, give));
        let ticket = self.with(join)?;
        Some(Waiter { waiting: self.clone(), ticket, turn })
    }

    /// A place has become free.
    pub(super) fn next(self: &Arc<Self>) {
        while !self.is_empty() {
            let Some(next) = self.with(|line| line.next(Instant::now())) else { return };
            match next.send(Turn(Some(self.clone()))) {
                Ok(()) => return,
                // He is just giving up: it is the next one's.
                Err(turn) => turn.used(),
            }
        }
    }

    /// There may be room for any number of them now: each looks for himself.
    pub(super) fn all(self: &Arc<Self>) {
        for one in self.with(Line::take) {
            if let Err(turn) = one.send(Turn(Some(self.clone()))) {
                turn.used();
            }
        }
    }

    /// Does something with the line, and tells how long it is then.
    fn with<R>(&self, act: impl FnOnce(&mut Line<oneshot::Sender<Turn>>) -> R) -> R {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        let done = act(&mut line);
        self.length.store(line.len(), Ordering::SeqCst);
        done
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const TIME: Duration = Duration::from_secs(60);

    fn line() -> (Arc<Waiting>, Instant) {
        (Arc::default(), Instant::now())
    }

    #[tokio::test]
    async fn the_shortest_deadline_comes_first() {
        let (waiting, now) = line();
        let late = waiting.join(now, now + 2 * TIME, 9).unwrap();
        let soon = waiting.join(now, now + TIME, 9).unwrap();
        waiting.next();
        soon.turn().await.unwrap().used();
        assert_eq!(waiting.len(), 1);
        drop(late);
    }

    #[tokio::test]
    async fn under_overload_who_came_last_comes_first() {
        let (waiting, now) = line();
        let early = waiting.join(now - TIME, now + TIME, 9).unwrap();
        let last = waiting.join(now, now + 2 * TIME, 9).unwrap();
        waiting.next();
        last.turn().await.unwrap().used();
        assert_eq!(waiting.len(), 1);
        drop(early);
    }

    #[tokio::test]
    async fn no_more_wait_than_may() {
        let (waiting, now) = line();
        let first = waiting.join(now, now + TIME, 1).unwrap();
        assert!(waiting.join(now, now + TIME, 1).is_none());
        drop(first);
        assert!(waiting.is_empty());
        assert!(waiting.join(now, now + TIME, 1).is_some(), "he has given up");
    }

    #[tokio::test]
    async fn a_turn_that_nobody_uses_is_the_next_ones() {
        let (waiting, now) = line();
        let [gone, first, second, third] = [(); 4].map(|()| waiting.join(now, now + TIME, 9).unwrap());
        drop(gone);
        waiting.next();
        // He is given it, and is gone before he uses it.
        drop(first.turn().await.unwrap());
        // And he before he knows of it.
        drop(second);
        third.turn().await.unwrap().used();
        assert!(waiting.is_empty());
    }

    #[tokio::test]
    async fn all_may_have_a_turn_at_once() {
        let (waiting, now) = line();
        let [gone, first, second] = [(); 3].map(|()| waiting.join(now, now + TIME, 9).unwrap());
        drop(gone);
        waiting.all();
        assert!(waiting.is_empty());
        for one in [first, second] {
            one.turn().await.unwrap().used();
        }
    }
}
