//! The series of one kind, by their names: the same names give the same series, whoever asks and
//! however often the configuration is reloaded.
//!
//! Only reload and scrape come here; the data path holds the series themselves, so neither ever
//! waits for it or makes it wait.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long a series that nothing uses any more is still shown: several scrapes at any usual
/// interval, so that its last counts are seen.
const KEPT: Duration = Duration::from_secs(600);

#[derive(Debug)]
pub(super) struct Series<K, T>(Mutex<HashMap<K, Entry<T>>>);

#[derive(Debug)]
struct Entry<T> {
    series: Arc<T>,
    /// Since when this registry has been its only holder, as far as scrapes saw.
    unused_since: Option<Instant>,
}

impl<K, T> Default for Series<K, T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash, T> Series<K, T> {
    /// The series of that name, made now if it is new.
    pub(super) fn named(&self, name: K, make: impl FnOnce() -> T) -> Arc<T> {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry =
            entries.entry(name).or_insert_with(|| Entry { series: Arc::new(make()), unused_since: None });
        entry.unused_since = None;
        entry.series.clone()
    }

    /// All that are to be shown. Forgets those that nothing has used for [`KEPT`].
    pub(super) fn current(&self) -> Vec<Arc<T>> {
        let now = Instant::now();
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|_, entry| {
            if Arc::strong_count(&entry.series) > 1 {
                entry.unused_since = None;
                return true;
            }
            now.duration_since(*entry.unused_since.get_or_insert(now)) < KEPT
        });
        entries.values().map(|entry| entry.series.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_series_is_forgotten_only_when_long_unused() {
        let series: Series<&str, &str> = Series::default();
        let held = series.named("held", || "held");
        drop(series.named("gone", || "gone"));
        assert_eq!(series.current().len(), 2);

        tokio::time::advance(KEPT - Duration::from_secs(1)).await;
        assert_eq!(series.current().len(), 2, "its last counts are still shown");

        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(series.current(), [held]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_series_that_is_used_again_is_the_same_one() {
        let series: Series<&str, u32> = Series::default();
        drop(series.named("back", || 1));
        series.current();
        tokio::time::advance(KEPT / 2).await;
        let back = series.named("back", || 2);
        assert_eq!(*back, 1);

        tokio::time::advance(KEPT * 2).await;
        assert_eq!(series.current().len(), 1);
        drop(back);
        assert_eq!(series.current().len(), 1, "its time starts when it is dropped");
    }
}
