//! A program that runs beside the test, with its output kept for the day it fails.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::eventually;

/// How many of a log's last lines a failing test shows.
const SHOWN: usize = 80;

/// A running program. Killed when dropped; when the test is failing, its last words are shown.
pub(crate) struct Process {
    child: Child,
    what: String,
    log: PathBuf,
}

impl Process {
    /// Starts `command`, its output going to `log`.
    pub(crate) fn start(mut command: Command, what: &str, log: &Path) -> Self {
        let file = File::options().create(true).append(true).open(log).expect("a log file");
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a second handle"))
            .stderr(file)
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start {what}: {e}"));
        Self { child, what: what.to_owned(), log: log.to_owned() }
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).unwrap_or_else(|e| panic!("cannot signal {}: {e}", self.what));
    }

    /// Kills it at once.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// How it ended, if it did.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child")
    }

    /// Waits until it ends.
    pub(crate) fn wait(&mut self, limit: Duration) -> ExitStatus {
        let what = format!("{} to end", self.what);
        eventually(limit, &what, || self.ended())
    }

    /// Waits until `done` gives a value, and fails at once when the program ends before.
    pub(crate) fn until<T>(
        &mut self,
        limit: Duration,
        what: &str,
        mut done: impl FnMut(&Self) -> Option<T>,
    ) -> T {
        eventually(limit, &format!("{}: {what}", self.what), || {
            if let Some(status) = self.ended() {
                panic!("{} ended ({status}) before {what}", self.what);
            }
            done(self)
        })
    }

    /// All it has written so far.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(SHOWN)..];
            eprintln!("--- the last words of {}:\n{}\n---", self.what, last.join("\n"));
        }
    }
}
