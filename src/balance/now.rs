//! The clock of endpoints: monotonic, in one number, so that it can be kept in an atomic.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// A time of the endpoints' clock, which begins at a second: 0 stands for never.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Now(u64);

const BEGIN: u64 = 1_000_000;

impl Now {
    /// This moment.
    pub fn read() -> Self {
        Self::at(Instant::now())
    }

    /// That moment.
    pub fn at(instant: Instant) -> Self {
        static EPOCH: OnceLock<Instant> = OnceLock::new();
        let since = instant.saturating_duration_since(*EPOCH.get_or_init(|| instant));
        Self(BEGIN + since.as_micros() as u64)
    }

    /// A time of a clock of one's own: so many microseconds, at least a second.
    pub const fn of_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// In microseconds.
    pub fn micros(self) -> u64 {
        self.0
    }

    /// In milliseconds.
    pub fn millis(self) -> u64 {
        self.0 / 1000
    }

    /// So much later.
    pub fn after(self, time: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX)))
    }

    /// How long `earlier` had been over then.
    pub fn since(self, earlier: Now) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}
