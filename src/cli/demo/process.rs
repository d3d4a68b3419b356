//! Programs that the demo starts: those that do one thing and end, and those that run along.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::ended::{Ended, Result, Stop, cannot};
use super::place::Place;

/// Lines of a program's log that are shown when it did not start.
const SHOWN: usize = 12;

/// Runs a program to its end with `input`, and gives what it printed. It fails with its words.
pub(super) fn run(command: &mut Command, input: &str, step: &str) -> Result<String> {
    run_at(&Place::Here, command, input, step)
}

/// As [`run`], somewhere.
pub(super) fn run_at(place: &Place, command: &mut Command, input: &str, step: &str) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = place.spawn(command).and_then(|mut child| {
        // One that does not read its input says why when it ends.
        let _ = child.stdin.take().map(|mut to| to.write_all(input.as_bytes()));
        child.wait_with_output()
    });
    let output = output.map_err(|error| failed(step, &program, error))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim();
    Err(failed(
        step,
        &program,
        if said.is_empty() { &output.status as &dyn std::fmt::Display } else { &said },
    ))
}

fn failed(step: &str, program: &str, why: impl std::fmt::Display) -> Ended {
    Ended::Failed { step: step.into(), why: format!("{program}: {why}") }
}

/// Whether a program is installed.
pub(super) fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).exists())
}

/// A program that runs along. Killed when dropped.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    what: String,
    log: PathBuf,
    // A place is gone with the last who uses it.
    _place: Place,
}

impl Process {
    /// Starts a program; what it says goes to `log`. `what` is what people know it as.
    pub(super) fn start(place: &Place, command: &mut Command, what: &str, log: &Path) -> Result<Self> {
        let step = || format!("start {what}");
        let file = File::create(log).map_err(cannot(step()))?;
        let second = file.try_clone().map_err(cannot(step()))?;
        command.stdin(Stdio::null()).stdout(second).stderr(file);
        let child = place.spawn(command).map_err(cannot(step()))?;
        Ok(Self { child, what: what.into(), log: log.into(), _place: place.clone() })
    }

    /// Waits until `done` gives a value. Fails with its last words when it ends before, or takes
    /// longer than `limit`.
    pub(super) fn until<T>(
        &mut self,
        limit: Duration,
        stop: &Stop,
        what: &str,
        mut done: impl FnMut(&Self) -> Option<T>,
    ) -> Result<T> {
        let begun = Instant::now();
        loop {
            if let Some(value) = done(self) {
                return Ok(value);
            }
            let why = match self.child.try_wait() {
                Ok(Some(status)) => format!("it ended ({status})"),
                _ if begun.elapsed() > limit => format!("not {what} within {limit:?}"),
                _ => {
                    stop.sleep(Duration::from_millis(20))?;
                    continue;
                }
            };
            let step = format!("start {}", self.what);
            return Err(Ended::Failed { step, why: format!("{why}\n{}", self.last_words()) });
        }
    }

    /// Sends it a signal.
    pub(super) fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(Pid::from_child(&self.child), signal).map_err(cannot(format!("signal {}", self.what)))
    }

    /// Kills it at once.
    pub(super) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// All it has said so far.
    pub(super) fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    fn last_words(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(SHOWN)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_fails_is_quoted() {
        let mut command = Command::new("sh");
        let error = run(command.args(["-c", "read line; echo no $line >&2; exit 3"]), "bananas\n", "peel");
        assert_eq!(error.expect_err("it failed").to_string(), "cannot peel: sh: no bananas");
        let error = run(Command::new("sh").args(["-c", "exit 3"]), "", "peel").expect_err("it failed");
        assert_eq!(error.to_string(), "cannot peel: sh: exit status: 3");
        let error = run(&mut Command::new("/nowhere/sh"), "", "peel").expect_err("it is not there");
        assert!(error.to_string().starts_with("cannot peel: /nowhere/sh: "), "{error}");
    }

    #[test]
    fn a_program_that_ends_too_early_leaves_its_last_words() {
        let log = tempfile::NamedTempFile::new().expect("a file");
        let mut command = Command::new("sh");
        command.args(["-c", "echo the port is taken; exit 1"]);
        let mut process =
            Process::start(&Place::Here, &mut command, "a server", log.path()).expect("it starts");
        let ended = process.until(Duration::from_secs(30), &Stop::default(), "ready", |_| None::<()>);
        let error = ended.expect_err("it ended").to_string();
        assert_eq!(error, "cannot start a server: it ended (exit status: 1)\nthe port is taken");
    }
}
