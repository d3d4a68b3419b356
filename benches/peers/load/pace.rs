//! A fixed rate: when each request is meant to be sent, whatever became of those before.

use std::io;
use std::os::fd::AsRawFd;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use rustix::fd::OwnedFd;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

const SECOND: u64 = 1_000_000_000;

/// The schedule, and a timer that fires at its times to the microsecond; `epoll_wait` alone would
/// send a millisecond's worth at once.
pub(crate) struct Pace {
    rate: u64,
    all: u64,
    next: u64,
    /// What the timer is set for.
    set: Option<u64>,
    timer: OwnedFd,
}

impl Pace {
    /// So many requests a second for so many nanoseconds. The timer is registered under the token.
    pub(crate) fn new(rate: u64, nanoseconds: u64, registry: &Registry, token: Token) -> io::Result<Self> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK)?;
        registry.register(&mut SourceFd(&timer.as_raw_fd()), token, Interest::READABLE)?;
        let all = u128::from(rate) * u128::from(nanoseconds) / u128::from(SECOND);
        Ok(Self { rate, all: all as u64, next: 0, set: None, timer })
    }

    /// When the next request is meant to be sent, in nanoseconds from the start; none after the
    /// last.
    pub(crate) fn due(&self) -> Option<u64> {
        let at = u128::from(self.next) * u128::from(SECOND) / u128::from(self.rate);
        (self.next < self.all).then_some(at as u64)
    }

    /// Goes on to the one after.
    pub(crate) fn sent(&mut self) {
        self.next += 1;
    }

    /// How many were never sent.
    pub(crate) fn unsent(&self) -> u64 {
        self.all - self.next
    }

    /// Wakes the poll when the next is due. The timer is not read: setting it anew is what makes it
    /// tell again.
    pub(crate) fn wake(&mut self, now: u64) -> io::Result<()> {
        let Some(due) = self.due().filter(|due| self.set != Some(*due)) else { return Ok(()) };
        self.set = Some(due);
        // A timer of nothing would be off.
        let wait = due.saturating_sub(now).max(1);
        let value = Timespec { tv_sec: (wait / SECOND) as i64, tv_nsec: (wait % SECOND) as _ };
        let never = Timespec { tv_sec: 0, tv_nsec: 0 };
        let spec = Itimerspec { it_interval: never, it_value: value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &spec)?;
        Ok(())
    }
}
