//! When to look at files: after an event about one of them, once its writer has finished, and every
//! few seconds without one.
//!
//! What is watched is the files' directory, because a Kubernetes ConfigMap or Secret swaps the
//! `..data` link beside them and a watch on a file itself sees nothing. Looking without having been
//! told to makes a lost event, an exhausted inotify or a file system without it cost seconds, not
//! the change.

use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;
use tokio::time::Instant;

/// Writers are given so long to finish, counted from the last event ..
const QUIET: Duration = Duration::from_millis(40);
/// .. and at most so long from the first.
const PATIENCE: Duration = Duration::from_millis(100);
/// A writer that has begun is waited for until it closes the file, but no longer than this.
const WRITING: Duration = Duration::from_millis(600);
/// How often to look without an event.
const POLL: Duration = Duration::from_secs(2);

/// Events of some directories. Make it before the files are read for the first time: what happens to
/// them from then on is told.
#[derive(Debug)]
pub struct Events {
    directories: Vec<Directory>,
    /// None where the system has no watches to give: polling alone.
    pub(super) inotify: Option<RecommendedWatcher>,
    pub(super) signal: Arc<Signal>,
    /// An event was taken, and what it means was not looked at yet.
    pending: bool,
}

/// Makes [`Events::next`] return. Cheap to clone, usable anywhere.
#[derive(Debug, Clone)]
pub(super) struct Waker(Arc<Signal>);

#[derive(Debug, Default)]
pub(super) struct Signal {
    pub(super) event: Notify,
    /// Content was written, and the writer has not closed the file yet.
    writing: AtomicBool,
}

/// A watched directory, and which one it was: one that is replaced must be watched anew.
#[derive(Debug)]
struct Directory {
    path: PathBuf,
    identity: Option<(u64, u64)>,
}

impl Events {
    /// Watches these directories, for files that `concerns` takes by their name, and for `..` names,
    /// which are Kubernetes' own.
    pub fn new(
        directories: impl IntoIterator<Item = PathBuf>,
        concerns: impl Fn(&OsStr) -> bool + Send + 'static,
    ) -> io::Result<Self> {
        let directories = directories.into_iter().map(Directory::open).collect::<io::Result<_>>()?;
        let signal = Arc::new(Signal::default());
        let inotify = listen(concerns, signal.clone());
        let mut events = Self { directories, inotify, signal, pending: false };
        for i in 0..events.directories.len() {
            events.watch_directory(i);
        }
        Ok(events)
    }

    /// Waits until it is time to look: true after an event, false where there was none. Call
    /// [`looked`](Self::looked) when it has been done; until then the event is told again, so that
    /// this may be dropped and called again without losing one.
    pub async fn next(&mut self) -> bool {
        if !self.pending {
            tokio::select! {
                () = self.signal.event.notified() => self.pending = true,
                () = tokio::time::sleep(POLL) => self.renew_directories(),
            }
        }
        if self.pending {
            self.settle().await;
        }
        self.pending
    }

    /// What was told has been looked at.
    pub fn looked(&mut self) {
        self.pending = false;
    }

    pub(super) fn waker(&self) -> Waker {
        Waker(self.signal.clone())
    }

    /// Waits for the end of a burst of events.
    async fn settle(&self) {
        let begun = Instant::now();
        loop {
            let writing = self.signal.writing.load(Ordering::Acquire);
            let end = begun + if writing { WRITING } else { PATIENCE };
            let quiet = if writing { end } else { (Instant::now() + QUIET).min(end) };
            if tokio::time::timeout_at(quiet, self.signal.event.notified()).await.is_err() {
                self.signal.writing.store(false, Ordering::Release);
                return;
            }
        }
    }

    pub(super) fn renew_directories(&mut self) {
        for i in 0..self.directories.len() {
            let identity = identity_of(&self.directories[i].path).ok();
            if self.directories[i].identity != identity {
                self.directories[i].identity = identity;
                self.watch_directory(i);
            }
        }
    }

    fn watch_directory(&mut self, i: usize) {
        let path = &self.directories[i].path;
        if let Some(inotify) = &mut self.inotify {
            // Not watched any more where the directory is another one: nothing to undo then.
            let _ = inotify.unwatch(path);
            if let Err(error) = inotify.watch(path, RecursiveMode::NonRecursive) {
                tracing::warn!(
                    "cannot watch {}: {error}; looking every {} seconds instead",
                    path.display(),
                    POLL.as_secs()
                );
            }
        }
    }
}

impl Waker {
    pub(super) fn wake(&self) {
        self.0.event.notify_one();
    }
}

impl Directory {
    fn open(path: PathBuf) -> io::Result<Self> {
        match identity_of(&path) {
            Ok(identity) => Ok(Self { path, identity: Some(identity) }),
            Err(error) => {
                Err(io::Error::new(error.kind(), format!("cannot watch {}: {error}", path.display())))
            }
        }
    }
}

fn identity_of(directory: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::metadata(directory)?;
    if !metadata.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    Ok((metadata.dev(), metadata.ino()))
}

/// Starts listening. None, with a warning, where the system has no watches to give.
fn listen(
    concerns: impl Fn(&OsStr) -> bool + Send + 'static,
    signal: Arc<Signal>,
) -> Option<RecommendedWatcher> {
    let concerns = move |event: &notify::Event| {
        let ours = |path: &PathBuf| {
            path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"..") || concerns(name))
        };
        // Reading is an event too; ours would wake us for ever.
        let reading =
            matches!(event.kind, EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write));
        event.need_rescan() || (!reading && event.paths.iter().any(ours))
    };
    let handler = move |event: notify::Result<notify::Event>| {
        if event.as_ref().map_or(true, &concerns) {
            match event.map(|event| event.kind) {
                Ok(EventKind::Modify(ModifyKind::Data(_))) => signal.writing.store(true, Ordering::Release),
                _ => signal.writing.store(false, Ordering::Release),
            }
            signal.event.notify_one();
        }
    };
    notify::recommended_watcher(handler)
        .inspect_err(|error| {
            let seconds = POLL.as_secs();
            tracing::warn!("cannot watch files: {error}; looking every {seconds} seconds instead");
        })
        .ok()
}
