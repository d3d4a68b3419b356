//! The demo ends cleanly however it ends: nothing of it is left, and what one that was killed has
//! left, the next removes. `make demo` itself plays the whole story.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Each removes what others that were killed have left, so that they must not overlap.
static ONE: Mutex<()> = Mutex::new(());

/// A demo whose traffic has begun. Its stdout stays open with it.
struct Demo {
    child: Child,
    _stdout: BufReader<ChildStdout>,
}

impl Demo {
    fn start(args: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pannier"));
        command.arg("demo").args(args).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("it starts");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut said = String::new();
        while !said.contains("Traffic begins") {
            let read = stdout.read_line(&mut said).expect("text");
            assert!(read > 0, "the demo ended before its traffic began:\n{said}");
        }
        Self { child, _stdout: stdout }
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn end(mut self, signal: Signal) -> ExitStatus {
        kill_process(Pid::from_child(&self.child), signal).expect("it runs");
        self.child.wait().expect("it ends")
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // Where a test has failed; otherwise it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn directory(pid: u32) -> PathBuf {
    std::env::temp_dir().join(format!("pannier-demo-{pid}"))
}

/// Sidecars that were started with files in `directory`.
fn sidecars(directory: &Path) -> usize {
    let inside = format!("{}/", directory.display());
    let lines = fs::read_dir("/proc").expect("/proc").flatten().map(|entry| entry.path().join("cmdline"));
    lines.filter_map(|file| fs::read_to_string(file).ok()).filter(|line| line.contains(&inside)).count()
}

fn namespaces(pid: u32) -> usize {
    let begin = format!("pannier-demo-{pid}-");
    let names = |directory| fs::read_dir(directory).into_iter().flatten().flatten().map(|e| e.file_name());
    let all = names("/run/netns").chain(names("/etc/netns"));
    all.filter(|name| name.to_string_lossy().starts_with(&begin)).count()
}

/// Processes that were killed are gone soon, not at once.
fn eventually(what: &str, done: impl Fn() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(20), "waited in vain: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

fn nothing_is_left_of(pid: u32) {
    eventually("its sidecars are gone", || sidecars(&directory(pid)) == 0);
    assert!(!directory(pid).exists(), "its directory is left");
    assert_eq!(namespaces(pid), 0, "its namespaces are left");
}

fn stopped_it_leaves_nothing(args: &[&str], signal: Signal) {
    let _one = ONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let demo = Demo::start(args);
    let pid = demo.pid();
    assert!(sidecars(&directory(pid)) >= 4, "four pods have a sidecar each");
    assert_eq!(demo.end(signal).code(), Some(130));
    nothing_is_left_of(pid);
}

#[test]
fn stopped_on_loopback_it_leaves_nothing() {
    stopped_it_leaves_nothing(&["--loopback"], Signal::INT);
}

#[test]
fn stopped_in_namespaces_it_leaves_nothing() {
    stopped_it_leaves_nothing(&[], Signal::TERM);
}

#[test]
fn what_a_killed_one_has_left_the_next_removes() {
    let _one = ONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let killed = [Demo::start(&["--loopback"]), Demo::start(&[])].map(|demo| {
        let pid = demo.pid();
        demo.end(Signal::KILL);
        pid
    });
    assert!(killed.iter().all(|pid| directory(*pid).exists() && sidecars(&directory(*pid)) > 0));
    Demo::start(&["--loopback"]).end(Signal::TERM);
    killed.into_iter().for_each(nothing_is_left_of);
}
