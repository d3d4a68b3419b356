//! The queue of buckets that want tokens. A request thread that puts one in wakes the task only if a request
//! waits for it, or if the task sleeps for long: to wake a thread costs more than all else that a limit does.
//!
//! Promise: what is put in is taken within [`PATIENCE`] of the task's being free, at once if that is asked for.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::refill::Due;

/// How long the task lets buckets gather that nobody waits for.
pub(super) const PATIENCE: Duration = Duration::from_millis(2);
/// For so long after the last it looks by itself.
const ATTENTIVE: Duration = Duration::from_millis(50);

#[derive(Debug, Default)]
struct Queue {
    due: Mutex<Vec<Due>>,
    /// The task will not look by itself.
    sleeps: AtomicBool,
    wake: Notify,
    /// Of these there is one, until the link is dropped.
    senders: AtomicUsize,
}

/// The end of request threads.
#[derive(Debug)]
pub(super) struct Sender(Arc<Queue>);

/// The task's end.
#[derive(Debug)]
pub(super) struct Receiver {
    queue: Arc<Queue>,
    /// When there last was something.
    busy_at: Instant,
}

/// A queue.
pub(super) fn queue() -> (Sender, Receiver) {
    let queue = Arc::new(Queue { senders: AtomicUsize::new(1), ..Queue::default() });
    (Sender(queue.clone()), Receiver { queue, busy_at: Instant::now() })
}

impl Queue {
    /// The list is whole whenever the lock is free.
    fn due(&self) -> MutexGuard<'_, Vec<Due>> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sender {
    /// Puts one in.
    pub(super) fn send(&self, due: Due, at_once: bool) {
        self.0.due().push(due);
        if at_once || self.0.sleeps.load(SeqCst) {
            self.wake();
        }
    }

    /// Has the task look at once.
    pub(super) fn wake(&self) {
        self.0.wake.notify_one();
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.0.senders.fetch_sub(1, SeqCst);
        self.wake();
    }
}

impl Receiver {
    /// Takes what there is, at most `most`. False when there will be nothing any more.
    pub(super) fn take(&mut self, batch: &mut Vec<Due>, most: usize) -> bool {
        let mut due = self.queue.due();
        let taken = due.len().min(most.saturating_sub(batch.len()));
        batch.extend(due.drain(..taken));
        drop(due);
        if taken > 0 {
            self.busy_at = Instant::now();
        }
        !batch.is_empty() || self.queue.senders.load(SeqCst) > 0
    }

    /// Waits until there is something, and takes that. False when there will be nothing any more. Nothing is
    /// lost if this is dropped.
    pub(super) async fn wait(&mut self, batch: &mut Vec<Due>, most: usize) -> bool {
        let queue = self.queue.clone();
        loop {
            let woken = queue.wake.notified();
            let attentive = self.busy_at.elapsed() < ATTENTIVE;
            // Says that it sleeps before it looks, so that who comes after that wakes it.
            queue.sleeps.store(!attentive, SeqCst);
            let _awake = Awake(&queue.sleeps);
            if !queue.due().is_empty() {
                return self.take(batch, most);
            }
            if queue.senders.load(SeqCst) == 0 {
                return false;
            }
            if attentive {
                // Whether woken or not: it looks.
                let _ = timeout(PATIENCE, woken).await;
            } else {
                woken.await;
            }
        }
    }
}

/// Nobody need wake the task while it is at work, which it looks after by itself.
struct Awake<'a>(&'a AtomicBool);

impl Drop for Awake<'_> {
    fn drop(&mut self) {
        self.0.store(false, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::poll;

    use super::super::tests::due;
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_nobody_waits_for_gathers() {
        let (sender, mut receiver) = queue();
        let mut batch = Vec::new();
        sender.send(due(), true);
        assert!(receiver.wait(&mut batch, 10).await);
        batch.clear();
        let began = Instant::now();
        {
            let mut wait = pin!(receiver.wait(&mut batch, 10));
            assert!(poll!(&mut wait).is_pending());
            sender.send(due(), false);
            sender.send(due(), false);
            assert!(poll!(&mut wait).is_pending(), "it is not woken");
            assert!(wait.await);
        }
        assert_eq!((batch.len(), began.elapsed() <= 2 * PATIENCE), (2, true));
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_wakes_it_and_so_does_anyone_when_it_sleeps() {
        let (sender, mut receiver) = queue();
        for at_once in [true, false] {
            tokio::time::advance(2 * ATTENTIVE).await;
            let mut batch = Vec::new();
            let began = Instant::now();
            {
                let mut wait = pin!(receiver.wait(&mut batch, 10));
                assert!(poll!(&mut wait).is_pending());
                sender.send(due(), at_once);
                assert!(wait.await);
            }
            assert_eq!((batch.len(), began.elapsed()), (1, Duration::ZERO));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_with_the_link_once_it_is_empty() {
        let (sender, mut receiver) = queue();
        let mut batch = Vec::new();
        sender.send(due(), false);
        sender.send(due(), false);
        drop(sender);
        assert!(receiver.take(&mut batch, 1));
        batch.clear();
        assert!(receiver.wait(&mut batch, 10).await);
        batch.clear();
        assert!(!receiver.wait(&mut batch, 10).await);
        assert!(!receiver.take(&mut batch, 10));
    }
}
