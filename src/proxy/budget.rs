//! How many requests to an upstream may be second ones: so that when it fails, those who ask again do
//! not keep it down.
//!
//! Promise: in any time T, an upstream gets at most `share` of the requests of that time and of the
//! ten seconds before it, and `least` of that time and those ten seconds, as second ones, over all workers
//! and routes. When the configuration changes either, what was left is left, as far as the new ones keep so
//! much. A request that is not sent a second time costs one addition in its worker's own memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::time::Instant;

use crate::config::model::RetryBudget;

/// For how long what was not used is kept.
const KEPT: Duration = Duration::from_secs(10);

/// Parts that one second request is counted in.
const WHOLE: f64 = 1000.0;

/// An upstream's budget. It lives on when the configuration changes.
#[derive(Debug)]
pub(super) struct Budget {
    begun: Instant,
    terms: ArcSwap<Terms>,
    /// Requests, by worker.
    asked: Box<[Count]>,
    /// What was used, and what was not and is not kept any more, in parts.
    used: AtomicU64,
    /// When requests were last counted, in milliseconds since it began, and how many they were then;
    /// 32 bits each, the time above.
    mark: AtomicU64,
    retried: AtomicU64,
    hedged: AtomicU64,
    won: AtomicU64,
    refused: AtomicU64,
}

/// How much is earned.
#[derive(Debug)]
struct Terms {
    /// By each request.
    share: f64,
    /// A second.
    least: f64,
    /// Beside what these earn from the budget's beginning on: so much that their change gives and takes
    /// nothing.
    given: f64,
}

impl Terms {
    fn earn(&self, asked: u64, age: Duration) -> f64 {
        self.least * age.as_secs_f64() + self.share * asked as f64
    }

    /// What is kept without any request.
    fn kept(&self) -> f64 {
        self.least * KEPT.as_secs_f64()
    }
}

/// A count on a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Count(AtomicU64);

/// What a second request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Second {
    /// The first one failed.
    Retry,
    /// The first one is slow.
    Hedge,
}

/// What became of second requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spent {
    /// Those that were sent because a first one had failed.
    pub retried: u64,
    /// Those that were sent because a first one was slow.
    pub hedged: u64,
    /// Those of them that were answered first.
    pub won: u64,
    /// Those that were not sent, because the budget or a limit that counts them had been used up.
    pub refused: u64,
}

impl Budget {
    /// A budget of requests that so many workers send.
    pub(super) fn new(config: RetryBudget, workers: usize) -> Self {
        let mut terms = Terms { share: config.share.of_one(), least: config.least.per_second(), given: 0.0 };
        // Ten seconds' worth is there from the beginning.
        terms.given = terms.kept();
        Self {
            begun: Instant::now(),
            terms: ArcSwap::from_pointee(terms),
            asked: (0..workers).map(|_| Count::default()).collect(),
            used: AtomicU64::new(0),
            mark: AtomicU64::new(0),
            retried: AtomicU64::new(0),
            hedged: AtomicU64::new(0),
            won: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// Takes what the configuration says from `now` on, also for requests that have begun.
    pub(super) fn change(&self, config: RetryBudget, now: Instant) {
        let before = self.terms.load();
        let (share, least) = (config.share.of_one(), config.least.per_second());
        if (share, least) == (before.share, before.least) {
            return;
        }
        let (asked, age) = self.counted(now);
        let (earned, most) = self.earned(&before, asked, age);
        let used = self.used.load(Relaxed);
        let left = earned.saturating_sub(used).min(most);
        let mut terms = Terms { share, least, given: 0.0 };
        terms.given = (used + left) as f64 / WHOLE - terms.earn(asked, age);
        self.terms.store(Arc::new(terms));
    }

    /// Counts a request.
    ///
    /// To be called on the thread of worker number `worker` alone: counters have one writer.
    pub(super) fn asked(&self, worker: usize) {
        if let Some(Count(count)) = self.asked.get(worker) {
            count.store(count.load(Relaxed) + 1, Relaxed);
        }
    }

    /// Takes a second request from the budget; false if there is none.
    pub(super) fn take(&self, second: Second, now: Instant) -> bool {
        let (asked, age) = self.counted(now);
        let (earned, most) = self.earned(&self.terms.load(), asked, age);
        let take = |used: u64| {
            let left = earned.saturating_sub(used).min(most);
            left.checked_sub(WHOLE as u64).map(|rest| earned - rest)
        };
        let taken = self.used.fetch_update(Relaxed, Relaxed, take).is_ok();
        let count = match second {
            _ if !taken => &self.refused,
            Second::Retry => &self.retried,
            Second::Hedge => &self.hedged,
        };
        count.fetch_add(1, Relaxed);
        taken
    }

    /// Gives back what was taken for a second request that was not sent after all.
    pub(super) fn unsent(&self, second: Second) {
        self.used.fetch_sub(WHOLE as u64, Relaxed);
        let count = match second {
            Second::Retry => &self.retried,
            Second::Hedge => &self.hedged,
        };
        count.fetch_sub(1, Relaxed);
        self.refused.fetch_add(1, Relaxed);
    }

    /// Counts a second request that was answered before the first.
    pub(super) fn won(&self) {
        self.won.fetch_add(1, Relaxed);
    }

    /// What became of second requests.
    pub(super) fn spent(&self) -> Spent {
        let Self { retried, hedged, won, refused, .. } = self;
        let [retried, hedged, won, refused] =
            [retried, hedged, won, refused].map(|count| count.load(Relaxed));
        Spent { retried, hedged, won, refused }
    }

    /// Requests until `now`, and how long that took.
    fn counted(&self, now: Instant) -> (u64, Duration) {
        let asked = self.asked.iter().map(|Count(count)| count.load(Relaxed)).sum();
        (asked, now.saturating_duration_since(self.begun))
    }

    /// What has been earned in all, and the most that may be left of it, in parts.
    fn earned(&self, terms: &Terms, asked: u64, age: Duration) -> (u64, u64) {
        let earned = terms.given + terms.earn(asked, age);
        let most = terms.kept() + terms.share * self.lately(asked, age);
        ((earned * WHOLE) as u64, (most * WHOLE) as u64)
    }

    /// About how many requests came in the last ten seconds, of `asked` in all: by how many came since
    /// the mark, which is moved on so that it is never much older.
    fn lately(&self, asked: u64, age: Duration) -> f64 {
        let mark = self.mark.load(Relaxed);
        // Both wrap, after 49 days and four thousand million requests; their differences do not.
        let millis = (age.as_millis() as u32).wrapping_sub((mark >> 32) as u32);
        let came = (asked as u32).wrapping_sub(mark as u32);
        let kept = KEPT.as_millis() as u32;
        if millis <= kept {
            return f64::from(came);
        }
        let lately = f64::from(came) * f64::from(kept) / f64::from(millis);
        if millis >= 2 * kept {
            let at = (age.as_millis() as u32).wrapping_sub(kept);
            let then = (asked as u32).wrapping_sub(lately as u32);
            let next = (u64::from(at) << 32) | u64::from(then);
            // Another worker's mark is as good.
            let _ = self.mark.compare_exchange(mark, next, Relaxed, Relaxed);
        }
        lately
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::config::units::{Percent, Rate};

    fn budget(share: u8, least: u64) -> Budget {
        let least = Rate { count: least, per: Duration::from_secs(1) };
        Budget::new(RetryBudget { share: Percent(share), least }, 2)
    }

    /// How many can be taken at once.
    fn takes(budget: &Budget) -> usize {
        (0..100_000).take_while(|_| budget.take(Second::Retry, Instant::now())).count()
    }

    fn ask(budget: &Budget, requests: usize) {
        (0..requests).for_each(|i| budget.asked(i % 2));
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_share_of_the_requests_and_a_few_beyond() {
        let budget = budget(20, 10);
        assert_eq!(takes(&budget), 100, "ten seconds' worth is there");
        ask(&budget, 500);
        assert_eq!(takes(&budget), 100);
        tokio::time::advance(SECOND).await;
        assert_eq!(takes(&budget), 10);
        ask(&budget, 4);
        assert_eq!(takes(&budget), 0, "less than one");
        ask(&budget, 1);
        assert_eq!(takes(&budget), 1);
        assert_eq!(budget.spent(), Spent { retried: 211, hedged: 0, won: 0, refused: 5 });
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_used_is_kept_for_ten_seconds() {
        let budget = budget(20, 1);
        for _ in 0..100 {
            ask(&budget, 1000);
            tokio::time::advance(SECOND).await;
            // Looked at now and then, as failures come.
            assert!(budget.take(Second::Hedge, Instant::now()));
        }
        let (most, now) = (10 * (200 + 1), takes(&budget));
        // The mark lies up to twenty seconds back, and what came since is spread evenly.
        assert!((most - 30..=most + 10).contains(&now), "{now}");
        tokio::time::advance(SECOND * 3600).await;
        let now = takes(&budget);
        assert!((10..=20).contains(&now), "an hour without requests: {now}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_time_before_the_first_failure_is_no_credit_either() {
        let budget = budget(50, 1);
        for _ in 0..1000 {
            ask(&budget, 10);
            tokio::time::advance(SECOND).await;
        }
        let now = takes(&budget);
        assert!((59..=61).contains(&now), "{now}");
    }

    fn change(budget: &Budget, share: u8, least: u64) {
        let least = Rate { count: least, per: SECOND };
        budget.change(RetryBudget { share: Percent(share), least }, Instant::now());
    }

    /// A budget that has been there for an hour.
    async fn old(share: u8) -> Budget {
        let budget = budget(share, 1);
        for _ in 0..3600 {
            ask(&budget, 1000);
            tokio::time::advance(SECOND).await;
        }
        budget
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_gives_nothing_and_takes_nothing() {
        for (before, after) in [(20, 10), (10, 20)] {
            let budget = old(before).await;
            let used = takes(&budget);
            change(&budget, after, 10);
            assert_eq!(takes(&budget), 0, "nothing was left");
            assert_eq!(budget.spent().retried, used as u64);
            ask(&budget, 1000);
            let earned = takes(&budget);
            let expected = 10 * usize::from(after);
            assert!((expected - 1..=expected + 1).contains(&earned), "{earned} of {expected}");
            tokio::time::advance(SECOND).await;
            assert!((9..=11).contains(&takes(&budget)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_left_is_left_as_far_as_so_much_is_kept() {
        let budget = old(20).await;
        change(&budget, 10, 1);
        let left = takes(&budget);
        assert!((1000..=1020).contains(&left), "a tenth of ten seconds: {left}");
        let budget = old(10).await;
        change(&budget, 20, 1);
        let left = takes(&budget);
        assert!((1000..=1020).contains(&left), "what there was: {left}");
    }

    #[test]
    fn workers_together_take_no_more() {
        let budget = budget(0, 1);
        let taken: usize = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        let now = budget.begun;
                        (0..1000).filter(|_| budget.take(Second::Retry, now)).count()
                    })
                })
                .collect();
            workers.into_iter().map(|worker| worker.join().expect("a thread")).sum()
        });
        assert_eq!(taken, 10);
    }
}
