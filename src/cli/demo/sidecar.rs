//! A real sidecar: this same program, started as `pannier proxy`.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::directory::Directory;
use super::ended::{Result, Stop, cannot};
use super::place::Place;
use super::process::{self, Process};
use super::watch;
use crate::config::model::Identity;
use crate::identity::ca::Authority;

/// The user that sidecars run as where connections are redirected, by the default of
/// `pannier init`: theirs alone are not.
const USER: u32 = 1337;

/// How long a sidecar may take until it is ready.
const READY: Duration = Duration::from_secs(15);

/// What every sidecar of a demo is made from.
pub(super) struct Maker<'a> {
    /// Where its files go.
    pub(super) directory: &'a Directory,
    /// Who issues its certificate.
    pub(super) authority: &'a Authority,
    /// Whether connections are redirected to it.
    pub(super) redirected: bool,
    /// The program.
    pub(super) program: PathBuf,
    /// Whether somebody has stopped the demo.
    pub(super) stop: &'a Stop,
}

/// A running sidecar. Killed when dropped.
#[derive(Debug)]
pub(super) struct Sidecar {
    process: Process,
    identity: Identity,
    config: PathBuf,
    /// Its admin listener.
    pub(super) admin: SocketAddr,
    /// Its outbound listener.
    pub(super) outbound: SocketAddr,
}

impl Maker<'_> {
    /// Starts a sidecar with the configuration that `config` makes of its identity, and waits until
    /// it is ready. `who` is the path of its SPIFFE id.
    pub(super) fn start(
        &self,
        place: &Place,
        name: &str,
        who: &str,
        config: impl FnOnce(&Identity) -> String,
    ) -> Result<Sidecar> {
        let step = || format!("write the files of {name}'s sidecar");
        let files = self.directory.sub(name)?;
        let identity = self.identity(&files, who).map_err(cannot(step()))?;
        let path = self.directory.sub(&format!("{name}/config"))?.join("pannier.yaml");
        fs::write(&path, config(&identity)).map_err(cannot(step()))?;

        if self.redirected {
            let mut init = Command::new(&self.program);
            process::run_at(place, init.arg("init"), "", &format!("redirect the connections of {name}"))?;
        }
        let mut command = Command::new(&self.program);
        // What it listens on is read from its log.
        command.args(["proxy", "--config"]).arg(&path).env("PANNIER_LOG", "info");
        if self.redirected {
            command.uid(USER).gid(USER);
        }
        let what = format!("the sidecar of {name}");
        let mut process = Process::start(place, &mut command, &what, &files.join("sidecar.log"))?;
        let (admin, outbound) = process.until(READY, self.stop, "ready", |process| {
            let log = process.log();
            let probes = listener(&log, "probes")?;
            let answer = place.enter(|| watch::get(probes, "/ready")).ok()?;
            matches!(answer, Ok((200, _))).then_some((listener(&log, "admin")?, listener(&log, "outbound")?))
        })?;
        Ok(Sidecar { process, identity, config: path, admin, outbound })
    }

    fn identity(&self, files: &Path, who: &str) -> std::result::Result<Identity, Box<dyn std::error::Error>> {
        let identity = self.authority.leaf(who)?.write(files)?;
        if self.redirected {
            chown(&identity.key, Some(USER), Some(USER))?;
        }
        Ok(identity)
    }
}

impl Sidecar {
    /// Replaces its configuration, in one step, as an editor or a ConfigMap does.
    pub(super) fn configure(&self, config: impl FnOnce(&Identity) -> String) -> Result<()> {
        let new = self.config.with_extension("new");
        fs::write(&new, config(&self.identity))
            .and_then(|()| fs::rename(&new, &self.config))
            .map_err(cannot(format!("write {}", self.config.display())))
    }

    /// Its configuration file.
    pub(super) fn config(&self) -> &Path {
        &self.config
    }

    /// SIGKILL.
    pub(super) fn kill(&mut self) {
        self.process.kill();
    }
}

/// This program, where the sidecars' user can run it.
pub(super) fn program(directory: &Directory) -> Result<PathBuf> {
    let step = "find this program";
    let built = std::env::current_exe().map_err(cannot(step))?;
    if built.ancestors().skip(1).all(everyone_enters) {
        return Ok(built);
    }
    // A checkout below /root, say.
    let reachable = directory.path().join("pannier");
    fs::hard_link(&built, &reachable)
        .or_else(|_| fs::copy(&built, &reachable).map(drop))
        .map_err(cannot(format!("copy {} to {}", built.display(), reachable.display())))?;
    Ok(reachable)
}

fn everyone_enters(directory: &Path) -> bool {
    fs::metadata(directory).is_ok_and(|meta| meta.permissions().mode() & 0o001 != 0)
}

/// Where a sidecar listens, by its log.
fn listener(log: &str, name: &str) -> Option<SocketAddr> {
    let message = format!("listening: {name}");
    log.lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find(|line| line["message"] == message.as_str())
        .and_then(|line| line["address"].as_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_read_from_the_log() {
        let log = "not JSON\n\
            {\"level\":\"INFO\",\"message\":\"listening: outbound\",\"address\":\"127.0.0.1:15001\"}\n\
            {\"level\":\"INFO\",\"message\":\"listening: outbound\",\"address\":\"[::1]:15001\"}\n";
        assert_eq!(listener(log, "outbound"), "127.0.0.1:15001".parse().ok());
        assert_eq!(listener(log, "admin"), None);
    }
}
