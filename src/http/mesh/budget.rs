//! What this process may hold of bodies that nobody has taken yet, over all its connections
//! between sidecars.
//!
//! A quarter of the memory that the process may use. Windows begin small enough that many slow
//! readers fit into it, and grow only while less than half of it is held.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// The least and the most that a stream's window begins with.
const STREAM: std::ops::RangeInclusive<usize> = (16 << 10)..=(256 << 10);

/// The same for a connection's.
const CONNECTION: std::ops::RangeInclusive<usize> = (64 << 10)..=(1 << 20);

/// Slow streams that fit into the budget.
const STREAMS: usize = 1024;

static HELD: AtomicUsize = AtomicUsize::new(0);

/// The budget in bytes.
pub fn total() -> usize {
    static TOTAL: OnceLock<usize> = OnceLock::new();
    *TOTAL.get_or_init(|| memory_limit().map_or(1 << 30, |limit| limit / 4))
}

/// What the window of a new stream is.
pub(super) fn stream_window() -> u32 {
    (total() / STREAMS).clamp(*STREAM.start(), *STREAM.end()) as u32
}

/// What the window of a new connection is.
pub(super) fn connection_window() -> u32 {
    (total() / (STREAMS / 8)).clamp(*CONNECTION.start(), *CONNECTION.end()) as u32
}

/// Bytes that are held now.
pub fn held() -> usize {
    HELD.load(Relaxed)
}

/// Whether windows may grow.
pub(super) fn is_ample() -> bool {
    held() < total() / 2
}

/// Whether nothing more is to be held.
pub(super) fn is_spent() -> bool {
    held() >= total()
}

/// Bytes of a body that are held until they are taken.
#[derive(Debug, Default)]
pub(super) struct Held(usize);

impl Held {
    pub(super) fn bytes(&self) -> usize {
        self.0
    }

    pub(super) fn add(&mut self, n: usize) {
        self.0 += n;
        HELD.fetch_add(n, Relaxed);
    }

    pub(super) fn sub(&mut self, n: usize) {
        self.0 -= n;
        HELD.fetch_sub(n, Relaxed);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        HELD.fetch_sub(self.0, Relaxed);
    }
}

/// What the container or the machine gives us, in bytes.
fn memory_limit() -> Option<usize> {
    let cgroup = || -> Option<usize> {
        let path = std::fs::read_to_string("/proc/self/cgroup").ok()?;
        let path = path.lines().find_map(|line| line.strip_prefix("0::"))?;
        // The limit may be set on any of the groups above.
        let mut folder = std::path::PathBuf::from("/sys/fs/cgroup").join(path.trim_start_matches('/'));
        let mut least = None::<usize>;
        while folder.starts_with("/sys/fs/cgroup") {
            let limit = std::fs::read_to_string(folder.join("memory.max")).ok();
            if let Some(limit) = limit.and_then(|text| text.trim().parse().ok()) {
                least = Some(least.map_or(limit, |l| l.min(limit)));
            }
            folder.pop();
        }
        least
    };
    let machine = || -> Option<usize> {
        let text = std::fs::read_to_string("/proc/meminfo").ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        Some(line.trim().trim_end_matches("kB").trim().parse::<usize>().ok()? << 10)
    };
    cgroup().or_else(machine)
}
