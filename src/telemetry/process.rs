//! The process as the kernel sees it, by the names that every exporter gives these metrics.

use std::fs;
use std::time::SystemTime;

use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use super::Scrape;
use super::metrics::unix_seconds;

/// Adds what the system tells; what it does not tell is left out.
pub(super) fn collect(scrape: &mut Scrape, started: SystemTime) {
    scrape
        .gauge("process_start_time_seconds", "When the process started, since the epoch.")
        .set(&[], unix_seconds(started));

    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    scrape
        .counter("process_cpu_seconds_total", "CPU time spent, in user and system mode.")
        .set(&[], cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9);

    if let Some(bytes) = resident_bytes() {
        scrape.gauge("process_resident_memory_bytes", "Memory that is resident.").set(&[], bytes);
    }
    if let Some(open) = open_fds() {
        scrape.gauge("process_open_fds", "File descriptors that are open.").set(&[], open);
    }
    if let Some(most) = getrlimit(Resource::Nofile).current {
        scrape.gauge("process_max_fds", "The most file descriptors that may be open.").set(&[], most);
    }
}

fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().strip_suffix(" kB")?;
    Some(kib.parse::<u64>().ok()? * 1024)
}

fn open_fds() -> Option<u64> {
    const FDS: &str = "/proc/self/fd";
    // The directory's size is their number since Linux 6.2; before, they have to be counted.
    match fs::metadata(FDS).ok()?.len() {
        0 => Some(fs::read_dir(FDS).ok()?.count() as u64 - 1),
        count => Some(count),
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::super::openmetrics;
    use super::*;

    #[test]
    fn the_kernel_is_asked() {
        // Other tests open and close files meanwhile, but these stay.
        let files: Vec<_> = (0..300).map(|_| fs::File::open("/dev/null").expect("opens")).collect();
        let mut scrape = Scrape::default();
        collect(&mut scrape, SystemTime::now());
        let exposition = openmetrics::parse(&scrape.encode());
        let value = |name| exposition.value(name, &[]).expect(name);
        assert!(value("process_open_fds") > files.len() as f64);
        assert!(value("process_open_fds") <= value("process_max_fds"));
        assert!(value("process_resident_memory_bytes") > 1e6);
        assert!(value("process_cpu_seconds_total") > 0.0);
        assert!(value("process_start_time_seconds") > 1.7e9);
    }
}
