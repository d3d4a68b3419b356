//! The clock of limits: CLOCK_BOOTTIME, which no one sets and which runs on while the machine
//! sleeps, so that a lease held through a suspend is as old as the mesh sees it.

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds since boot; never 0.
pub(super) fn now() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    (time.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec as u64).max(1)
}
