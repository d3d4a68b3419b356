//! The demo's directory: certificates, configurations and logs. It is gone with the demo; that of
//! one that was killed is removed by the next, with the sidecars that it has left.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};

use super::ended::{Result, cannot};
use super::place::{PREFIX, is_gone, owner};

/// A directory that every user may read; keys in it are their owners' alone.
#[derive(Debug)]
pub(super) struct Directory(PathBuf);

impl Directory {
    /// A new one, below the directory for temporary files.
    pub(super) fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("{PREFIX}{}", std::process::id()));
        let directory = Self::make(&path)?;
        Ok(Self(directory))
    }

    /// Its path.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// A new directory inside.
    pub(super) fn sub(&self, name: &str) -> Result<PathBuf> {
        Self::make(&self.0.join(name))
    }

    /// Makes a directory that was not there: nobody else has prepared it.
    fn make(path: &Path) -> Result<PathBuf> {
        fs::create_dir(path)
            .and_then(|()| fs::set_permissions(path, Permissions::from_mode(0o755)))
            .map_err(cannot(format!("make the directory {}", path.display())))?;
        Ok(path.into())
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Removes what demos that were killed have left. To be called before this one makes its own.
pub(super) fn sweep() {
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name.to_str().and_then(owner).is_some_and(is_gone) {
            kill_users_of(&entry.path());
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Kills the processes that were started with a file of `directory`.
fn kill_users_of(directory: &Path) {
    let Some(inside) = directory.join("").to_str().map(str::to_owned) else { return };
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid
            && let Ok(line) = fs::read(entry.path().join("cmdline"))
            && line.split(|byte| *byte == 0).any(|argument| argument.starts_with(inside.as_bytes()))
        {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}
