//! How many requests to an upstream may be second ones: so that when it fails, those who ask again do
//! not keep it down.
//!
//! Promise: in any time T, an upstream gets at most `share` of the requests of that time and of the
//! ten seconds before it, and `least` of that time and those ten seconds, as second ones, over all workers
//! and routes. A request that is not sent a second time costs one addition in its worker's own
//! memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

use crate::config::model::RetryBudget;

/// For how long what was not used is kept.
const KEPT: Duration = Duration::from_secs(10);

/// Parts that one second request is counted in.
const WHOLE: f64 = 1000.0;

/// An upstream's budget, as the configuration has it.
#[derive(Debug)]
pub(super) struct Budget {
    share: f64,
    /// A second.
    least: f64,
    ledger: Arc<Ledger>,
}

/// What was counted: it lives on when the configuration changes.
#[derive(Debug)]
struct Ledger {
    begun: Instant,
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
    /// Those that were not sent, because the budget had been used up.
    pub refused: u64,
}

impl Budget {
    /// A budget of requests that so many workers send. Counts of `before` live on.
    pub(super) fn new(config: RetryBudget, workers: usize, before: Option<&Budget>) -> Self {
        let ledger = before.map(|before| before.ledger.clone());
        Self {
            share: config.share.of_one(),
            least: config.least.per_second(),
            ledger: ledger.unwrap_or_else(|| Arc::new(Ledger::new(workers))),
        }
    }

    /// Counts a request.
    ///
    /// To be called on the thread of worker number `worker` alone: counters have one writer.
    pub(super) fn asked(&self, worker: usize) {
        if let Some(Count(count)) = self.ledger.asked.get(worker) {
            count.store(count.load(Relaxed) + 1, Relaxed);
        }
    }

    /// Takes a second request from the budget; false if there is none.
    pub(super) fn take(&self, second: Second, now: Instant) -> bool {
        let ledger = &*self.ledger;
        let age = now.saturating_duration_since(ledger.begun);
        let asked = ledger.asked.iter().map(|Count(count)| count.load(Relaxed)).sum::<u64>();
        // Ten seconds' worth is there from the beginning.
        let kept = self.least * KEPT.as_secs_f64();
        let earned = kept + self.least * age.as_secs_f64() + self.share * asked as f64;
        let most = kept + self.share * ledger.lately(asked, age);
        let (earned, most) = ((earned * WHOLE) as u64, (most * WHOLE) as u64);
        let take = |used: u64| {
            let left = earned.saturating_sub(used).min(most);
            left.checked_sub(WHOLE as u64).map(|rest| earned - rest)
        };
        let taken = ledger.used.fetch_update(Relaxed, Relaxed, take).is_ok();
        let count = match second {
            _ if !taken => &ledger.refused,
            Second::Retry => &ledger.retried,
            Second::Hedge => &ledger.hedged,
        };
        count.fetch_add(1, Relaxed);
        taken
    }

    /// Counts a second request that was answered before the first.
    pub(super) fn won(&self) {
        self.ledger.won.fetch_add(1, Relaxed);
    }

    /// What became of second requests.
    pub(super) fn spent(&self) -> Spent {
        let Ledger { retried, hedged, won, refused, .. } = &*self.ledger;
        let [retried, hedged, won, refused] =
            [retried, hedged, won, refused].map(|count| count.load(Relaxed));
        Spent { retried, hedged, won, refused }
    }
}

impl Ledger {
    fn new(workers: usize) -> Self {
        Self {
            begun: Instant::now(),
            asked: (0..workers).map(|_| Count::default()).collect(),
            used: AtomicU64::new(0),
            mark: AtomicU64::new(0),
            retried: AtomicU64::new(0),
            hedged: AtomicU64::new(0),
            won: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
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
        Budget::new(RetryBudget { share: Percent(share), least }, 2, None)
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

    #[tokio::test(start_paused = true)]
    async fn what_was_counted_outlives_a_change() {
        let before = budget(20, 10);
        assert_eq!(takes(&before), 100);
        let least = Rate { count: 20, per: SECOND };
        let after = Budget::new(RetryBudget { share: Percent(20), least }, 2, Some(&before));
        assert_eq!(after.spent().retried, 100);
        assert_eq!(takes(&after), 100, "as much more as there is more of it");
    }

    #[test]
    fn workers_together_take_no_more() {
        let budget = budget(0, 1);
        let taken: usize = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        let now = budget.ledger.begun;
                        (0..1000).filter(|_| budget.take(Second::Retry, now)).count()
                    })
                })
                .collect();
            workers.into_iter().map(|worker| worker.join().expect("a thread")).sum()
        });
        assert_eq!(taken, 10);
    }
}
