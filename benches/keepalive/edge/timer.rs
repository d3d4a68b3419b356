//! What is to happen when, to some tens of microseconds and never early. `epoll_wait` alone counts in
//! milliseconds, and the edge of a keep-alive is narrower than that.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Instant;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use rustix::fd::OwnedFd;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

const SECOND: u64 = 1_000_000_000;

/// A time in nanoseconds since the program began.
pub(crate) type Nanos = u64;

pub(crate) fn from_millis(millis: f64) -> Nanos {
    (millis.max(0.0) * 1e6) as Nanos
}

pub(crate) struct Timer {
    began: Instant,
    due: BinaryHeap<Reverse<(Nanos, Token)>>,
    /// What the kernel's timer is set for.
    set: Option<Nanos>,
    kernel: OwnedFd,
}

impl Timer {
    /// The kernel's timer is registered under the token.
    pub(crate) fn new(registry: &Registry, token: Token) -> io::Result<Self> {
        let kernel = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK)?;
        registry.register(&mut SourceFd(&kernel.as_raw_fd()), token, Interest::READABLE)?;
        Ok(Self { began: Instant::now(), due: BinaryHeap::new(), set: None, kernel })
    }

    pub(crate) fn now(&self) -> Nanos {
        self.began.elapsed().as_nanos() as Nanos
    }

    /// Wakes a token then. There is no taking back: whoever is woken looks whether it still cares.
    pub(crate) fn add(&mut self, at: Nanos, token: Token) {
        self.due.push(Reverse((at, token)));
    }

    /// The next token whose time has come.
    pub(crate) fn pop(&mut self) -> Option<Token> {
        let Reverse((at, token)) = *self.due.peek()?;
        if at > self.now() {
            return None;
        }
        self.due.pop();
        Some(token)
    }

    /// Has the kernel wake the poll for what is next. Its timer is not read: setting it anew is what
    /// makes it tell again.
    pub(crate) fn arm(&mut self) -> io::Result<()> {
        let next = self.due.peek().map(|Reverse((at, _))| *at);
        let Some(at) = next.filter(|at| self.set != Some(*at)) else { return Ok(()) };
        self.set = Some(at);
        // A timer of nothing would be off.
        let wait = at.saturating_sub(self.now()).max(1);
        let value = Timespec { tv_sec: (wait / SECOND) as i64, tv_nsec: (wait % SECOND) as _ };
        let never = Timespec { tv_sec: 0, tv_nsec: 0 };
        let spec = Itimerspec { it_interval: never, it_value: value };
        timerfd_settime(&self.kernel, TimerfdTimerFlags::empty(), &spec)?;
        Ok(())
    }
}
