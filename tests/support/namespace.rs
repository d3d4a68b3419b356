//! A network namespace, and code and programs that run inside it.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Once;
use std::thread::{self, JoinHandle};

use rustix::process::{Gid, Pid, Signal, Uid, geteuid, kill_process, test_kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space, set_thread_gid, set_thread_uid};
use tokio::sync::oneshot;

/// What every namespace of every lab is named after, followed by the test's process id.
const PREFIX: &str = "pannier";

/// A network namespace that is deleted when dropped, with every process inside.
pub(crate) struct Namespace {
    name: String,
}

impl Namespace {
    /// A new namespace; `name` is unique in this process.
    pub(crate) fn new(name: &str) -> Self {
        static FIRST: Once = Once::new();
        FIRST.call_once(|| {
            require();
            sweep();
        });
        let name = format!("{PREFIX}-{}-{name}", std::process::id());
        run("ip", &["netns", "add", &name], "");
        let namespace = Self { name };
        namespace.ip("link set lo up\n");
        namespace
    }

    /// Its name for `ip netns`.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` commands, one a line, inside.
    pub(crate) fn ip(&self, commands: &str) {
        run("ip", &["-n", &self.name, "-batch", "-"], commands);
    }

    /// Runs a program inside to its end, as root, and gives what it printed.
    pub(crate) fn run(&self, program: &str, args: &[&str], input: &str) -> String {
        run("ip", &[&["netns", "exec", &self.name, program], args].concat(), input)
    }

    /// Sets kernel parameters of the network, as `sysctl` names them.
    pub(crate) fn sysctl(&self, settings: &[(&str, &str)]) {
        self.enter(|| async {
            for (name, value) in settings {
                let path = format!("/proc/sys/{}", name.replace('.', "/"));
                fs::write(&path, value).unwrap_or_else(|e| panic!("cannot write {value} to {path}: {e}"));
            }
        });
    }

    /// What its processes read as /etc/resolv.conf.
    pub(crate) fn resolv_conf(&self, text: &str) {
        let dir = self.etc();
        fs::create_dir_all(&dir).and_then(|()| fs::write(dir.join("resolv.conf"), text)).expect("/etc/netns");
    }

    fn etc(&self) -> PathBuf {
        PathBuf::from("/etc/netns").join(&self.name)
    }

    /// A command that will run inside as `uid`, with /etc/resolv.conf in place.
    pub(crate) fn command(&self, program: &str, uid: u32) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]);
        if uid != 0 {
            let (user, group) = (format!("--reuid={uid}"), format!("--regid={uid}"));
            command.args(["setpriv", &user, &group, "--clear-groups", "--"]);
        }
        command.arg(program);
        command
    }

    /// Runs `f` inside, on a thread and a tokio runtime of its own, and waits for it.
    pub(crate) fn enter<F, R, T>(&self, f: F) -> T
    where
        F: FnOnce() -> R + Send,
        R: Future<Output = T>,
        T: Send,
    {
        thread::scope(|scope| {
            scope.spawn(|| inside(&self.name, f)).join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// As [`enter`](Self::enter), as another user and group.
    pub(crate) fn enter_as<F, R, T>(&self, uid: u32, gid: u32, f: F) -> T
    where
        F: FnOnce() -> R + Send,
        R: Future<Output = T>,
        T: Send,
    {
        self.enter(|| {
            // They belong to the thread, and this one is ours.
            set_thread_gid(Gid::from_raw(gid)).expect("root may be anyone");
            set_thread_uid(Uid::from_raw(uid)).expect("root may be anyone");
            f()
        })
    }

    /// Runs `f` inside, as [`enter`](Self::enter), until it ends or is stopped.
    pub(crate) fn start<F, R, T>(&self, f: F) -> Running<T>
    where
        F: FnOnce() -> R + Send + 'static,
        R: Future<Output = T>,
        T: Send + 'static,
    {
        let (stop, stopped) = oneshot::channel::<()>();
        let name = self.name.clone();
        let thread = thread::spawn(move || {
            inside(&name, || async {
                tokio::select! {
                    value = f() => Some(value),
                    _ = stopped => None,
                }
            })
        });
        Running { stop: Some(stop), thread: Some(thread) }
    }
}

fn inside<R: Future>(name: &str, f: impl FnOnce() -> R) -> R::Output {
    let path = format!("/run/netns/{name}");
    let namespace = File::open(&path).unwrap_or_else(|e| panic!("cannot open {path}: {e}"));
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
        .expect("enter a namespace");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async { f().await })
}

impl Drop for Namespace {
    fn drop(&mut self) {
        delete(&self.name);
    }
}

/// Something running inside a namespace. It is stopped when dropped.
pub(crate) struct Running<T> {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Option<T>>>,
}

impl<T> Running<T> {
    /// Waits for it to end by itself. A panic inside goes on here.
    pub(crate) fn join(mut self) -> T {
        let ended = self.thread.take().expect("running").join();
        ended.unwrap_or_else(|panic| resume_unwind(panic)).expect("nobody stopped it")
    }
}

impl<T> Drop for Running<T> {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join)
            && !thread::panicking()
        {
            resume_unwind(panic);
        }
    }
}

/// Runs a program to its end with `input`; fails with its words when it fails.
pub(crate) fn run(program: &str, args: &[&str], input: &str) -> String {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("cannot run `{program}`: {e}"));
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("its input");
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "`{program} {}` failed: {said}\n{input}", args.join(" "));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Fails with what this machine lacks.
fn require() {
    assert!(
        geteuid().is_root() && cfg!(target_os = "linux"),
        "this test builds network namespaces: run it as root on Linux"
    );
    for (program, package) in
        [("ip", "iproute2"), ("iptables", "iptables"), ("ip6tables", "iptables"), ("setpriv", "util-linux")]
    {
        require_program(program, package);
    }
}

/// Fails when `program` is not installed, saying which package has it.
pub(crate) fn require_program(program: &str, package: &str) {
    let path = std::env::var_os("PATH").unwrap_or_default();
    assert!(
        std::env::split_paths(&path).any(|dir| dir.join(program).exists()),
        "this test needs `{program}`: apt-get install {package}"
    );
}

/// Deletes what test processes that are gone have left.
fn sweep() {
    for line in run("ip", &["netns", "list"], "").lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        let mut parts = name.split('-');
        if parts.next() != Some(PREFIX) {
            continue;
        }
        let owner = parts.next().and_then(|pid| pid.parse().ok()).and_then(Pid::from_raw);
        if owner.is_some_and(|pid| test_kill_process(pid).is_err()) {
            delete(name);
        }
    }
}

/// Kills every process in a namespace and deletes it.
fn delete(name: &str) {
    // Two test processes may sweep the same namespace: what is gone already is no failure.
    if let Ok(pids) = Command::new("ip").args(["netns", "pids", name]).output() {
        for pid in String::from_utf8_lossy(&pids.stdout).lines().filter_map(|pid| pid.parse().ok()) {
            let _ = Pid::from_raw(pid).map(|pid| kill_process(pid, Signal::KILL));
        }
    }
    let _ = Command::new("ip").args(["netns", "delete", name]).output();
    let _ = fs::remove_dir_all(PathBuf::from("/etc/netns").join(name));
}
