//! The application, where we start it: it is told what we are told, and is waited for.
//!
//! Promises: it has our environment and our standard streams; no SIGTERM or SIGINT that came after
//! [`Relay::new`] is lost to it; it is never killed, since only the operator knows how long it may
//! take. As the first process of a container we are everybody's last parent, so whatever child ends is
//! reaped.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait};
use tokio::signal::unix::{self, SignalKind, signal};

/// An application that cannot be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start {}: {error}", .program.display())]
pub struct NotStarted {
    program: OsString,
    error: io::Error,
}

impl NotStarted {
    /// Whether there is no such program, rather than one that cannot be run.
    pub fn is_missing(&self) -> bool {
        self.error.kind() == io::ErrorKind::NotFound
    }
}

/// What is passed on to the application, and the word that a child has ended.
pub(super) struct Relay {
    terminate: unix::Signal,
    interrupt: unix::Signal,
    child: unix::Signal,
}

impl Relay {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            child: signal(SignalKind::child())?,
        })
    }
}

/// The running application.
pub(super) struct Child {
    pid: Pid,
    relay: Relay,
}

impl Child {
    pub(super) fn start(mut command: Command, relay: Relay) -> Result<Self, NotStarted> {
        match command.spawn() {
            Ok(child) => {
                tracing::info!(pid = child.id(), program = %command.get_program().display(), "the application is started");
                Ok(Self { pid: Pid::from_child(&child), relay })
            }
            Err(error) => Err(NotStarted { program: command.get_program().to_owned(), error }),
        }
    }

    /// Passes signals on until it has ended; says how it did.
    pub(super) async fn wait(mut self) -> ExitStatus {
        // Ctrl-C in a terminal is sent to all who share it, and a second one often means more.
        let shares_terminal = io::stdin().is_terminal();
        loop {
            tokio::select! {
                _ = self.relay.child.recv() => {
                    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
                        if pid == self.pid {
                            let status = ExitStatus::from_raw(status.as_raw());
                            tracing::info!(%status, "the application has ended");
                            return status;
                        }
                    }
                }
                _ = self.relay.terminate.recv() => self.tell(Signal::TERM),
                _ = self.relay.interrupt.recv(), if !shares_terminal => self.tell(Signal::INT),
            }
        }
    }

    fn tell(&self, signal: Signal) {
        // It is reaped by nobody else, so the number is still its own.
        if let Err(error) = kill_process(self.pid, signal) {
            tracing::warn!(%error, "the application cannot be told to stop");
        }
    }
}
