//! The real binary beside an application.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::Signal;

use super::client::{self, Answer, request};
use super::lab::{Pod, SIDECAR_UID};
use super::process::Process;

/// The sidecar's own doors, by its defaults.
const ADMIN: SocketAddr = loopback(15000);
const PROBES: SocketAddr = loopback(15020);

/// How long a sidecar may take to be ready.
const READY: Duration = Duration::from_secs(15);

/// A running sidecar. Killed when dropped.
pub(crate) struct Sidecar<'a> {
    pod: &'a Pod,
    process: Process,
    config: PathBuf,
}

impl Pod {
    /// Runs `pannier init`, with its default rules.
    pub(crate) fn init(&self) {
        let binary = self.binary().display().to_string();
        self.namespace().run(&binary, &["init"], "");
    }

    /// Starts a sidecar with this configuration, and waits until it is ready.
    pub(crate) fn sidecar(&self, yaml: &str) -> Sidecar<'_> {
        let mut sidecar = self.sidecar_starting(yaml);
        let pod = self;
        sidecar.process.until(READY, "ready", |_| {
            let answer = pod.enter(|| client::get(PROBES, "probes", "/ready"));
            answer.ok().filter(|answer| answer.status == 200)
        });
        sidecar
    }

    /// As [`sidecar`](Self::sidecar), without waiting: for one that is not going to be ready.
    pub(crate) fn sidecar_starting(&self, yaml: &str) -> Sidecar<'_> {
        self.sidecar_as("proxy", yaml, &[])
    }

    /// Starts a sidecar that runs this application, and waits for neither.
    pub(crate) fn sidecar_with(&self, yaml: &str, application: &[&str]) -> Sidecar<'_> {
        self.sidecar_as("run", yaml, &[&["--"], application].concat())
    }

    fn sidecar_as(&self, how: &str, yaml: &str, more: &[&str]) -> Sidecar<'_> {
        // A directory of its own, as a mounted ConfigMap is.
        let dir = self.dir().join("config");
        std::fs::create_dir_all(&dir).expect("the pod's directory");
        let config = dir.join("pannier.yaml");
        std::fs::write(&config, yaml).expect("the pod's directory");
        let binary = self.binary().display().to_string();
        let mut command = self.namespace().command(&binary, SIDECAR_UID);
        command.args([how, "--config"]).arg(&config).args(more);
        Sidecar { pod: self, process: self.process(command, "pannier"), config }
    }

    /// The binary under test, where the sidecar's user can run it.
    fn binary(&self) -> PathBuf {
        let built = PathBuf::from(env!("CARGO_BIN_EXE_pannier"));
        if built.ancestors().skip(1).all(everyone_enters) {
            return built;
        }
        // A checkout below /root, say.
        let reachable = self.dir().join("pannier");
        if !reachable.exists() && std::fs::hard_link(&built, &reachable).is_err() {
            std::fs::copy(&built, &reachable).expect("a copy of the binary");
        }
        reachable
    }
}

impl Sidecar<'_> {
    /// The program.
    pub(crate) fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Replaces its configuration, in one step, as an editor or a ConfigMap does.
    pub(crate) fn configure(&self, yaml: &str) {
        let new = self.config.with_extension("new");
        std::fs::write(&new, yaml)
            .and_then(|()| std::fs::rename(&new, &self.config))
            .expect("the pod's directory");
    }

    /// Replaces its configuration as the kubelet replaces a mounted ConfigMap: a new directory,
    /// and the `..data` link turned to it. The file itself is a link that never changes.
    pub(crate) fn swap(&self, yaml: &str) {
        let dir = self.config.parent().expect("a directory of its own");
        let data =
            (0..).map(|n| format!("..{n}")).find(|name| !dir.join(name).exists()).expect("a free name");
        let turn = |to: &str, link: PathBuf| -> std::io::Result<()> {
            let new = dir.join("..new");
            std::os::unix::fs::symlink(to, &new)?;
            std::fs::rename(new, link)
        };
        std::fs::create_dir(dir.join(&data))
            .and_then(|()| std::fs::write(dir.join(&data).join("pannier.yaml"), yaml))
            .and_then(|()| turn(&data, dir.join("..data")))
            .and_then(|()| match self.config.is_symlink() {
                true => Ok(()),
                false => turn("..data/pannier.yaml", self.config.clone()),
            })
            .expect("the pod's directory");
    }

    /// Overwrites its configuration where it lies, and sends SIGHUP.
    pub(crate) fn overwrite(&self, yaml: &str) {
        std::fs::write(&self.config, yaml).expect("the pod's directory");
        self.process.signal(Signal::HUP);
    }

    /// `GET` on its probes door.
    pub(crate) fn probe(&self, path: &str) -> Answer {
        let answer = self.pod.enter(|| client::get(PROBES, "probes", path));
        answer.unwrap_or_else(|e| panic!("{path} on the probes door of {}: {e}", self.pod.name()))
    }

    /// `GET` on its admin door.
    pub(crate) fn get(&self, path: &str) -> Answer {
        self.admin("GET", path)
    }

    /// `POST` on its probes door.
    pub(crate) fn post_probe(&self, path: &str) -> Answer {
        let answer = self.pod.enter(|| client::send(PROBES, request("POST", "probes", path, "")));
        answer.unwrap_or_else(|e| panic!("POST {path} on the probes door of {}: {e}", self.pod.name()))
    }

    /// `POST` on its admin door.
    pub(crate) fn post(&self, path: &str) -> Answer {
        self.admin("POST", path)
    }

    fn admin(&self, method: &str, path: &str) -> Answer {
        let answer = self.pod.enter(|| client::send(ADMIN, request(method, "localhost", path, "")));
        answer.unwrap_or_else(|e| panic!("{} {path} on the admin door of {}: {e}", method, self.pod.name()))
    }

    /// The sum of a metric over all series that carry every one of `labels` (`key="value"`).
    pub(crate) fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        client::metric(self.get("/metrics").text(), name, labels)
    }

    /// SIGTERM: it drains.
    pub(crate) fn terminate(&self) {
        self.process.signal(Signal::TERM);
    }

    /// Waits until it ends.
    pub(crate) fn wait(&mut self, limit: Duration) -> ExitStatus {
        self.process.wait(limit)
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        self.process.log()
    }
}

fn everyone_enters(dir: &Path) -> bool {
    std::fs::metadata(dir).is_ok_and(|meta| meta.permissions().mode() & 0o001 != 0)
}

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}
