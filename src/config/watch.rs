//! Says when files have changed: the configuration, and the identity's files.
//!
//! What is watched is each file's directory, because a Kubernetes ConfigMap or Secret swaps the
//! `..data` link beside it and a watch on the file itself sees nothing. What counts is content: a
//! swap to equal content is no change. Every few seconds the files are looked at without having
//! been told to, so that a lost event, an exhausted inotify or a file system without it costs
//! seconds, not the change.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
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
/// How often the files are looked at without an event.
const POLL: Duration = Duration::from_secs(2);

/// Watches a set of files. Make it before the files are read for the first time: a change from
/// then on is reported.
#[derive(Debug)]
pub struct Watcher {
    files: Arc<[PathBuf]>,
    known: Vec<Seen>,
    directories: Vec<Directory>,
    /// None where the system has no watches to give: polling alone.
    inotify: Option<RecommendedWatcher>,
    signal: Arc<Signal>,
    hasher: RandomState,
    /// An event was taken, and what it means was not looked at yet.
    pending: bool,
}

/// Reports a change whether or not there is one, for SIGHUP. Cheap to clone, usable anywhere.
#[derive(Debug, Clone)]
pub struct Trigger(Arc<Signal>);

#[derive(Debug, Default)]
struct Signal {
    event: Notify,
    forced: AtomicBool,
    /// Content was written, and the writer has not closed the file yet.
    writing: AtomicBool,
}

/// A watched directory, and which one it was: one that is replaced must be watched anew.
#[derive(Debug)]
struct Directory {
    path: PathBuf,
    identity: Option<(u64, u64)>,
}

/// A file as it was last seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    stat: Option<Stat>,
    content: Option<u64>,
}

/// What changes with a file's content, short of reading it: device, inode, size, both times.
type Stat = (u64, u64, u64, (i64, i64), (i64, i64));

impl Watcher {
    /// Watches the directories of these files, which need not exist yet. Their directories must.
    pub fn new(paths: &[PathBuf]) -> io::Result<Watcher> {
        let names: BTreeSet<_> = paths.iter().filter_map(|path| path.file_name()).map(Into::into).collect();
        let parents: BTreeSet<_> = paths.iter().map(|path| directory_of(path)).collect();
        let directories = parents.into_iter().map(Directory::open).collect::<io::Result<Vec<_>>>()?;

        let signal = Arc::new(Signal::default());
        let mut watcher = Watcher {
            files: paths.into(),
            known: Vec::new(),
            directories,
            inotify: watch_events(names, signal.clone()),
            signal,
            hasher: RandomState::new(),
            pending: false,
        };
        for i in 0..watcher.directories.len() {
            watcher.watch_directory(i);
        }
        watcher.known = look(&watcher.files, None, &watcher.hasher);
        Ok(watcher)
    }

    /// A handle that makes [`changed`](Self::changed) return.
    pub fn trigger(&self) -> Trigger {
        Trigger(self.signal.clone())
    }

    /// Waits until the content of a file has changed, or a [`Trigger`] was fired. Several changes
    /// in quick succession are one. May be dropped and called again without losing a change.
    pub async fn changed(&mut self) {
        loop {
            if !self.pending {
                tokio::select! {
                    () = self.signal.event.notified() => self.pending = true,
                    () = tokio::time::sleep(POLL) => self.renew_directories(),
                }
            }
            if self.pending {
                self.settle().await;
            }
            let now = self.look_again().await;
            self.pending = false;
            let forced = self.signal.forced.swap(false, Ordering::AcqRel);
            let same = self.known.iter().zip(&now).all(|(before, now)| before.content == now.content);
            self.known = now;
            if forced || !same {
                return;
            }
        }
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

    /// Looks at the files off this thread: a hanging network file system must not stop others.
    /// After an event the content is read; without one, only where the stat has changed.
    async fn look_again(&self) -> Vec<Seen> {
        let (files, hasher) = (self.files.clone(), self.hasher.clone());
        let before = (!self.pending).then(|| self.known.clone());
        match tokio::task::spawn_blocking(move || look(&files, before.as_deref(), &hasher)).await {
            Ok(seen) => seen,
            // The runtime is shutting down: nothing has changed.
            Err(_) => self.known.clone(),
        }
    }

    fn renew_directories(&mut self) {
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

impl Trigger {
    /// Makes [`Watcher::changed`] return once.
    pub fn fire(&self) {
        self.0.forced.store(true, Ordering::Release);
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

fn directory_of(file: &Path) -> PathBuf {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.into(),
        _ => ".".into(),
    }
}

/// Starts listening for events about files of these names, and about `..` names, which are
/// Kubernetes' own. None, with a warning, where the system has no watches to give.
fn watch_events(names: BTreeSet<PathBuf>, signal: Arc<Signal>) -> Option<RecommendedWatcher> {
    let concerns = move |event: &notify::Event| {
        let ours = |path: &PathBuf| {
            path.file_name().is_some_and(|name| {
                names.contains(Path::new(name)) || name.as_encoded_bytes().starts_with(b"..")
            })
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

/// Looks at the files. Those whose stat is as `before` are not read again.
fn look(files: &[PathBuf], before: Option<&[Seen]>, hasher: &RandomState) -> Vec<Seen> {
    let one = |(i, file): (usize, &PathBuf)| {
        let stat = std::fs::metadata(file).ok().map(|metadata| {
            (
                metadata.dev(),
                metadata.ino(),
                metadata.len(),
                (metadata.mtime(), metadata.mtime_nsec()),
                (metadata.ctime(), metadata.ctime_nsec()),
            )
        });
        match before.and_then(|before| before.get(i)) {
            Some(before) if before.stat == stat => *before,
            _ => Seen { stat, content: std::fs::read(file).ok().map(|content| hasher.hash_one(content)) },
        }
    };
    files.iter().enumerate().map(one).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use tokio::time::timeout;

    use super::*;

    /// Generous: what is tested is that a change is seen at all. That it came by an event, not
    /// by polling, is tested by stopping the other one.
    const SOON: Duration = Duration::from_secs(20);
    const NEVER: Duration = Duration::from_millis(400);

    fn directory() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    async fn sees_change(watcher: &mut Watcher) {
        timeout(SOON, watcher.changed()).await.expect("the change was not seen");
    }

    async fn sees_nothing(watcher: &mut Watcher) {
        timeout(NEVER, watcher.changed()).await.expect_err("a change was seen that is none");
    }

    #[tokio::test]
    async fn written_replaced_and_removed() {
        let dir = directory();
        let file = dir.path().join("pannier.yaml");
        let mut watcher = Watcher::new(std::slice::from_ref(&file)).unwrap();
        fs::write(&file, "a").unwrap();
        sees_change(&mut watcher).await;
        fs::write(&file, "b").unwrap();
        sees_change(&mut watcher).await;
        fs::write(dir.path().join("new"), "c").unwrap();
        fs::rename(dir.path().join("new"), &file).unwrap();
        sees_change(&mut watcher).await;
        fs::remove_file(&file).unwrap();
        sees_change(&mut watcher).await;
    }

    #[tokio::test]
    async fn a_config_map_swap() {
        let dir = directory();
        let at = |name: &str| dir.path().join(name);
        for (version, content) in [("..1", "one"), ("..2", "two"), ("..3", "two")] {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("pannier.yaml"), content).unwrap();
        }
        symlink("..1", at("..data")).unwrap();
        symlink("..data/pannier.yaml", at("pannier.yaml")).unwrap();
        let mut watcher = Watcher::new(&[at("pannier.yaml")]).unwrap();
        let swap = |version: &str| {
            symlink(version, at("..tmp")).unwrap();
            fs::rename(at("..tmp"), at("..data")).unwrap();
        };
        swap("..2");
        sees_change(&mut watcher).await;
        swap("..3");
        sees_nothing(&mut watcher).await;
    }

    #[tokio::test]
    async fn other_files_and_reading_are_no_change() {
        let dir = directory();
        let file = dir.path().join("pannier.yaml");
        fs::write(&file, "a").unwrap();
        let mut watcher = Watcher::new(std::slice::from_ref(&file)).unwrap();
        fs::write(dir.path().join("other"), "x").unwrap();
        fs::read(&file).unwrap();
        fs::write(&file, "a").unwrap();
        sees_nothing(&mut watcher).await;
    }

    #[tokio::test]
    async fn a_change_is_not_lost_with_a_dropped_future() {
        let dir = directory();
        let file = dir.path().join("pannier.yaml");
        let mut watcher = Watcher::new(std::slice::from_ref(&file)).unwrap();
        fs::write(&file, "a").unwrap();
        for milliseconds in [1, 5, 20, 45] {
            if timeout(Duration::from_millis(milliseconds), watcher.changed()).await.is_ok() {
                return;
            }
        }
        sees_change(&mut watcher).await;
    }

    #[tokio::test]
    async fn without_events_polling_sees_it() {
        let dir = directory();
        let file = dir.path().join("pannier.yaml");
        let mut watcher = Watcher::new(std::slice::from_ref(&file)).unwrap();
        watcher.inotify = None;
        fs::write(&file, "a").unwrap();
        sees_change(&mut watcher).await;
    }

    #[tokio::test(start_paused = true)]
    async fn without_polling_events_see_it() {
        let dir = directory();
        let file = dir.path().join("pannier.yaml");
        let watcher = Watcher::new(std::slice::from_ref(&file)).unwrap();
        fs::write(&file, "a").unwrap();
        // No timer is awaited here, so that the paused clock stands and no poll can happen.
        watcher.signal.event.notified().await;
    }

    #[tokio::test]
    async fn a_replaced_directory_is_watched_anew() {
        let dir = directory();
        let inner = dir.path().join("inner");
        fs::create_dir(&inner).unwrap();
        let file = inner.join("pannier.yaml");
        let mut watcher = Watcher::new(std::slice::from_ref(&file)).unwrap();
        fs::rename(&inner, dir.path().join("old")).unwrap();
        fs::create_dir(&inner).unwrap();
        watcher.renew_directories();
        let signal = watcher.signal.clone();
        fs::write(&file, "a").unwrap();
        timeout(SOON, signal.event.notified()).await.expect("no event of the new directory");
    }

    #[tokio::test]
    async fn a_trigger_counts_without_a_change() {
        let dir = directory();
        let mut watcher = Watcher::new(&[dir.path().join("pannier.yaml")]).unwrap();
        let trigger = watcher.trigger();
        trigger.fire();
        sees_change(&mut watcher).await;
        sees_nothing(&mut watcher).await;
    }

    #[test]
    fn a_missing_directory_is_named() {
        let error = Watcher::new(&["/no/such/directory/x".into()]).unwrap_err();
        assert!(error.to_string().contains("cannot watch /no/such/directory: "), "{error}");
    }
}
