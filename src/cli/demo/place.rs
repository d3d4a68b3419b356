//! A place in a network: this machine's own, or a network namespace that the demo makes. Code and
//! programs are started in it alike.
//!
//! A namespace is gone, with every process inside, when the last who uses it lets go. One that a
//! killed demo has left is removed by the next.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::sync::oneshot;

use super::ended::{Ended, Result, cannot};
use super::process;

/// What everything that the demo makes is named after, followed by its process id.
pub(super) const PREFIX: &str = "pannier-demo-";

/// Where code and programs run.
#[derive(Debug, Clone)]
pub(super) enum Place {
    /// The network of this machine.
    Here,
    /// A pod's.
    Namespace(Arc<Namespace>),
}

/// A network namespace of the demo's.
#[derive(Debug)]
pub(super) struct Namespace {
    name: String,
    file: File,
}

impl Namespace {
    /// A new namespace. `name` is unique in this demo.
    pub(super) fn new(name: &str) -> Result<Arc<Self>> {
        let step = format!("make a network namespace for {name}");
        let name = format!("{PREFIX}{}-{name}", std::process::id());
        process::run(Command::new("ip").args(["netns", "add", &name]), "", &step)?;
        let path = PathBuf::from("/run/netns").join(&name);
        let opened = File::open(&path).inspect_err(|_| delete(&name));
        let namespace = Self { name, file: opened.map_err(cannot(step.clone()))? };
        namespace.ip("link set lo up\n", &step)?;
        Ok(Arc::new(namespace))
    }

    /// Its name for `ip netns`.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` commands, one a line, inside.
    pub(super) fn ip(&self, commands: &str, step: &str) -> Result<()> {
        let mut command = Command::new("ip");
        process::run(command.args(["-n", &self.name, "-batch", "-"]), commands, step).map(drop)
    }

    /// What programs that `ip netns exec` starts read as /etc/resolv.conf.
    pub(super) fn resolv_conf(&self, text: &str) -> Result<()> {
        let directory = etc(&self.name);
        fs::create_dir_all(&directory)
            .and_then(|()| fs::write(directory.join("resolv.conf"), text))
            .map_err(cannot(format!("write {}/resolv.conf", directory.display())))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        delete(&self.name);
    }
}

impl Place {
    /// Runs `f` there, on a thread of its own, and waits for it.
    pub(super) fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> io::Result<T> {
        let inside = || self.go().map(|()| f());
        thread::scope(|scope| {
            let thread = thread::Builder::new().name("demo".into()).spawn_scoped(scope, inside)?;
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Starts a program there.
    pub(super) fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        self.enter(|| command.spawn())?
    }

    /// Runs what `f` makes there, on a thread and a runtime of its own, until it ends or the
    /// result is dropped. What it has opened or started closes then.
    pub(super) fn start<F, R>(&self, name: &str, f: F) -> Result<Running>
    where
        F: FnOnce() -> R + Send + 'static,
        R: Future<Output = ()>,
    {
        let (stop, stopped) = oneshot::channel::<()>();
        let (say, said) = mpsc::channel();
        let place = self.clone();
        let inside = move || {
            let runtime =
                place.go().and_then(|()| tokio::runtime::Builder::new_current_thread().enable_all().build());
            let _ = say.send(runtime.as_ref().map(drop).map_err(io::Error::to_string));
            let Ok(runtime) = runtime else { return };
            runtime.block_on(async {
                tokio::select! {
                    () = f() => {}
                    _ = stopped => {}
                }
            });
        };
        let step = || format!("start the demo's {name}");
        let thread = thread::Builder::new().name(name.into()).spawn(inside).map_err(cannot(step()))?;
        said.recv().unwrap_or_else(|gone| Err(gone.to_string())).map_err(cannot(step()))?;
        Ok(Running { stop: Some(stop), thread: Some(thread) })
    }

    /// Moves this thread there, for good.
    fn go(&self) -> io::Result<()> {
        let Place::Namespace(namespace) = self else { return Ok(()) };
        Ok(move_into_link_name_space(namespace.file.as_fd(), Some(LinkNameSpaceType::Network))?)
    }
}

/// Something that runs on a thread of its own. It is stopped when dropped.
#[derive(Debug)]
pub(super) struct Running {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    /// Waits until it has ended by itself.
    pub(super) fn finish(mut self) -> Result<()> {
        let ended = self.thread.take().map_or(Ok(()), JoinHandle::join);
        ended.map_err(|_| Ended::Failed { step: "finish".into(), why: "a part of the demo panicked".into() })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic has been printed where it happened.
            let _ = thread.join();
        }
    }
}

/// Removes the namespaces of demos that were killed. To be called before this one makes its own.
pub(super) fn sweep() {
    let Ok(list) = Command::new("ip").args(["netns", "list"]).output() else { return };
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    for name in list.lines().filter_map(|line| line.split_whitespace().next()) {
        if owner(name).is_some_and(is_gone) {
            delete(name);
        }
    }
}

/// The process that made what is named so.
pub(super) fn owner(name: &str) -> Option<Pid> {
    let pid = name.strip_prefix(PREFIX)?.split('-').next()?;
    pid.parse().ok().and_then(Pid::from_raw)
}

/// Whether the demo of that process has ended. Before this one has begun, what bears its id is of an
/// earlier one.
pub(super) fn is_gone(pid: Pid) -> bool {
    pid == rustix::process::getpid() || test_kill_process(pid) == Err(rustix::io::Errno::SRCH)
}

/// Kills every process in a namespace and removes it. What is gone already is no failure.
fn delete(name: &str) {
    if let Ok(pids) = Command::new("ip").args(["netns", "pids", name]).output() {
        for pid in String::from_utf8_lossy(&pids.stdout).lines().filter_map(|pid| pid.parse().ok()) {
            // Our own threads are in there until they end.
            if pid != std::process::id() as i32
                && let Some(pid) = Pid::from_raw(pid)
            {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
    let _ = Command::new("ip").args(["netns", "delete", name]).output();
    let _ = fs::remove_dir_all(etc(name));
}

fn etc(name: &str) -> PathBuf {
    PathBuf::from("/etc/netns").join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_is_in_the_name() {
        assert_eq!(owner("pannier-demo-42-caller"), Pid::from_raw(42));
        assert_eq!(owner("pannier-demo-42"), Pid::from_raw(42));
        for other in ["pannier-42-caller", "pannier-demo-x", "pannier-demo-", "pannier-demo-0"] {
            assert_eq!(owner(other), None, "{other}");
        }
    }
}
