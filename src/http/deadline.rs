//! Deadlines of a worker. Nearly every one is met, so setting one costs a place in a table rather
//! than an entry in a timer wheel: one task sleeps until the earliest that it has seen, and then
//! looks at all of them.
//!
//! Promises: nothing ends before its time; it ends at most [`GAP`] after it.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use pin_project_lite::pin_project;
use slab::Slab;
use tokio::task::AbortHandle;
use tokio::time::{Instant, Sleep, sleep_until};

/// The least time between two looks at the table, so that many deadlines that run out one after the
/// other cost no look each.
pub const GAP: Duration = Duration::from_millis(5);

thread_local! {
    static TABLE: Table = Table::default();
}

/// The deadlines of this thread.
#[derive(Default)]
struct Table {
    set: RefCell<Slab<Set>>,
    /// When the keeper will look next; none: it waits for a first deadline.
    next: Cell<Option<Instant>>,
    keeper: RefCell<Option<AbortHandle>>,
    waker: RefCell<Option<Waker>>,
}

struct Set {
    at: Instant,
    /// Whom to wake; none once the time has come.
    waiting: Option<Waker>,
}

/// A time after which something is no longer waited for.
#[derive(Debug)]
pub struct Deadline {
    limit: Duration,
    state: State,
}

#[derive(Debug)]
enum State {
    /// It counts from when it is first polled.
    Unset,
    /// It counts from then.
    Since(Instant),
    /// Its place in the table.
    Set(usize),
}

impl Deadline {
    /// `limit` from the moment that something is waited for.
    pub fn new(limit: Duration) -> Self {
        Self { limit, state: State::Unset }
    }

    /// `limit` from `begun`.
    pub fn since(begun: Instant, limit: Duration) -> Self {
        Self { limit, state: State::Since(begun) }
    }

    /// Ready once the time is over.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let begun = match self.state {
            State::Set(place) => return TABLE.with(|table| table.poll(place, cx.waker())),
            // No reading of the clock for what has no end.
            _ if self.limit == Duration::MAX => return Poll::Pending,
            State::Since(begun) => begun,
            State::Unset => Instant::now(),
        };
        if let Some(at) = begun.checked_add(self.limit) {
            self.state = State::Set(TABLE.with(|table| table.set(at, cx.waker())));
        }
        Poll::Pending
    }

    /// Begins anew when it is next polled.
    pub fn reset(&mut self) {
        if let State::Set(place) = std::mem::replace(&mut self.state, State::Unset) {
            // Gone when the thread ends before what it ran.
            let _ = TABLE.try_with(|table| table.set.borrow_mut().remove(place));
        }
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        self.reset();
    }
}

impl Table {
    fn set(&self, at: Instant, waker: &Waker) -> usize {
        let place = self.set.borrow_mut().insert(Set { at, waiting: Some(waker.clone()) });
        let forsaken = self.keeper.borrow().as_ref().is_some_and(AbortHandle::is_finished);
        if forsaken || self.next.get().is_none_or(|next| at < next) {
            self.next.set(Some(at));
            self.wake_keeper();
        }
        place
    }

    fn poll(&self, place: usize, waker: &Waker) -> Poll<()> {
        match &mut self.set.borrow_mut()[place].waiting {
            None => Poll::Ready(()),
            Some(known) => {
                known.clone_from(waker);
                Poll::Pending
            }
        }
    }

    fn wake_keeper(&self) {
        let mut keeper = self.keeper.borrow_mut();
        if keeper.as_ref().is_none_or(AbortHandle::is_finished) {
            *keeper = Some(tokio::spawn(keep()).abort_handle());
        } else if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }

    /// Wakes whose time has come; returns the earliest of the others.
    fn look(&self) -> Option<Instant> {
        let now = Instant::now();
        let mut earliest: Option<Instant> = None;
        for (_, set) in self.set.borrow_mut().iter_mut().filter(|(_, set)| set.waiting.is_some()) {
            if set.at <= now {
                if let Some(waker) = set.waiting.take() {
                    waker.wake();
                }
            } else {
                earliest = Some(earliest.map_or(set.at, |e| e.min(set.at)));
            }
        }
        let next = earliest.map(|at| at.max(now + GAP));
        self.next.set(next);
        next
    }
}

/// Looks at the table whenever the earliest deadline has come.
async fn keep() {
    loop {
        let mut sleep: Option<Pin<Box<Sleep>>> = None;
        poll_fn(|cx| {
            TABLE.with(|table| {
                *table.waker.borrow_mut() = Some(cx.waker().clone());
                let Some(next) = table.next.get() else { return Poll::Pending };
                let sleep = sleep.get_or_insert_with(|| Box::pin(sleep_until(next)));
                if sleep.deadline() != next {
                    sleep.as_mut().reset(next);
                }
                sleep.as_mut().poll(cx)
            })
        })
        .await;
        TABLE.with(Table::look);
    }
}

pin_project! {
    /// What [`within`] returns.
    pub struct Within<F> {
        #[pin]
        work: F,
        deadline: Deadline,
    }
}

/// Waits for `work` no longer than `limit` from `begun`: none if it takes longer.
pub fn within_since<F: Future>(begun: Instant, limit: Duration, work: F) -> Within<F> {
    Within { work, deadline: Deadline::since(begun, limit) }
}

/// Waits for `work` no longer than `limit`: none if it takes longer.
pub fn within<F: Future>(limit: Duration, work: F) -> Within<F> {
    Within { work, deadline: Deadline::new(limit) }
}

impl<F: Future> Future for Within<F> {
    type Output = Option<F::Output>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        match this.work.poll(cx) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending => this.deadline.poll(cx).map(|()| None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::future::pending;

    use tokio::time::sleep;

    #[tokio::test(start_paused = true)]
    async fn what_takes_too_long_ends_in_time_and_not_before() {
        for limit in [1, 7, 100, 60_000].map(Duration::from_millis) {
            let begun = Instant::now();
            assert!(within(limit, pending::<()>()).await.is_none());
            let took = begun.elapsed();
            assert!(took >= limit && took <= limit + GAP + Duration::from_millis(2), "{limit:?}: {took:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_done_in_time_leaves_nothing_behind() {
        for _ in 0..100 {
            assert!(within(Duration::from_secs(1), sleep(Duration::from_millis(3))).await.is_some());
        }
        assert!(TABLE.with(|table| table.set.borrow().is_empty()));
    }

    #[tokio::test(start_paused = true)]
    async fn an_earlier_deadline_is_not_held_up_by_a_later_one() {
        let begun = Instant::now();
        let late = within(Duration::from_secs(3600), pending::<()>());
        let early = within(Duration::from_millis(20), pending::<()>());
        tokio::select! {
            _ = late => panic!("the later one first"),
            none = early => assert!(none.is_none()),
        }
        assert!(begun.elapsed() < Duration::from_millis(30));
    }

    #[tokio::test(start_paused = true)]
    async fn what_began_before_ends_so_much_earlier() {
        let begun = Instant::now();
        sleep(Duration::from_millis(40)).await;
        let mut late = Deadline::since(begun, Duration::from_millis(100));
        poll_fn(|cx| late.poll(cx)).await;
        assert!(begun.elapsed() < Duration::from_millis(110), "{:?}", begun.elapsed());
        // Once more from now.
        late.reset();
        poll_fn(|cx| late.poll(cx)).await;
        assert!(begun.elapsed() >= Duration::from_millis(200), "{:?}", begun.elapsed());
        let mut never = Deadline::new(Duration::MAX - Duration::from_secs(1));
        assert!(within(Duration::from_secs(9), poll_fn(|cx| never.poll(cx))).await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn each_of_many_has_its_own_time() {
        let waits = (1..500u64).map(|n| async move {
            let begun = Instant::now();
            let limit = Duration::from_millis(n * 3);
            assert!(within(limit, pending::<()>()).await.is_none());
            let took = begun.elapsed();
            assert!(took >= limit && took <= limit + GAP + Duration::from_millis(2), "{limit:?}: {took:?}");
        });
        futures_util::future::join_all(waits).await;
    }
}
