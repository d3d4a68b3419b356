//! Says when files have changed: the configuration, and the identity's files.
//!
//! What counts is content: a swap of a ConfigMap to equal content is no change. When to look is
//! [`Events`]' to say.

mod events;

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

pub use events::Events;

/// Watches a set of files. Make it before the files are read for the first time: a change from
/// then on is reported.
#[derive(Debug)]
pub struct Watcher {
    files: Arc<[PathBuf]>,
    known: Vec<Seen>,
    events: Events,
    forced: Arc<AtomicBool>,
    hasher: RandomState,
}

/// Reports a change whether or not there is one, for SIGHUP. Cheap to clone, usable anywhere.
#[derive(Debug, Clone)]
pub struct Trigger {
    forced: Arc<AtomicBool>,
    waker: events::Waker,
}

/// A file as it was last seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    stat: Option<Stat>,
    content: Option<u64>,
}

/// What changes with a file's content, short of reading it: device, inode, size, both times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat(u64, u64, u64, (i64, i64), (i64, i64));

impl Watcher {
    /// Watches the directories of these files, which need not exist yet. Their directories must.
    pub fn new(paths: &[PathBuf]) -> io::Result<Watcher> {
        let names: BTreeSet<PathBuf> =
            paths.iter().filter_map(|path| path.file_name()).map(Into::into).collect();
        let directories: BTreeSet<_> = paths.iter().map(|path| directory_of(path)).collect();
        let events = Events::new(directories, move |name| names.contains(Path::new(name)))?;
        let (files, hasher) = (paths.into(), RandomState::new());
        let known = look(paths, None, &hasher);
        Ok(Watcher { files, known, events, forced: Arc::default(), hasher })
    }

    /// A handle that makes [`changed`](Self::changed) return.
    pub fn trigger(&self) -> Trigger {
        Trigger { forced: self.forced.clone(), waker: self.events.waker() }
    }

    /// Waits until the content of a file has changed, or a [`Trigger`] was fired. Several changes
    /// in quick succession are one. May be dropped and called again without losing a change.
    pub async fn changed(&mut self) {
        loop {
            let told = self.events.next().await;
            let now = self.look_again(told).await;
            self.events.looked();
            let forced = self.forced.swap(false, Ordering::AcqRel);
            let same = self.known.iter().zip(&now).all(|(before, now)| before.content == now.content);
            self.known = now;
            if forced || !same {
                return;
            }
        }
    }

    /// Looks at the files off this thread: a hanging network file system must not stop others.
    /// After an event the content is read; without one, only where the stat has changed.
    async fn look_again(&self, told: bool) -> Vec<Seen> {
        let (files, hasher) = (self.files.clone(), self.hasher.clone());
        let before = (!told).then(|| self.known.clone());
        match tokio::task::spawn_blocking(move || look(&files, before.as_deref(), &hasher)).await {
            Ok(seen) => seen,
            // The runtime is shutting down: nothing has changed.
            Err(_) => self.known.clone(),
        }
    }
}

impl Trigger {
    /// Makes [`Watcher::changed`] return once.
    pub fn fire(&self) {
        self.forced.store(true, Ordering::Release);
        self.waker.wake();
    }
}

impl Stat {
    /// That of the file at `path`, or of what a link there leads to.
    pub fn of(path: &Path) -> io::Result<Self> {
        std::fs::metadata(path).map(|metadata| {
            Stat(
                metadata.dev(),
                metadata.ino(),
                metadata.len(),
                (metadata.mtime(), metadata.mtime_nsec()),
                (metadata.ctime(), metadata.ctime_nsec()),
            )
        })
    }

    /// Whether the file has been as it is for so long. One that has not may change again within the
    /// file system's tick, to the same size, and show the same times.
    pub fn is_older_than(&self, age: Duration) -> bool {
        let (seconds, nanos) = self.4;
        let changed = u64::try_from(seconds).ok().zip(u32::try_from(nanos).ok());
        changed.is_none_or(|(seconds, nanos)| {
            let then = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos);
            then.elapsed().is_ok_and(|passed| passed > age)
        })
    }
}

/// Where a file is.
pub fn directory_of(file: &Path) -> PathBuf {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.into(),
        _ => ".".into(),
    }
}

/// Looks at the files. Those whose stat is as `before` are not read again.
fn look(files: &[PathBuf], before: Option<&[Seen]>, hasher: &RandomState) -> Vec<Seen> {
    let one = |(i, file): (usize, &PathBuf)| {
        let stat = Stat::of(file).ok();
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
        watcher.events.inotify = None;
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
        watcher.events.signal.event.notified().await;
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
        watcher.events.renew_directories();
        let signal = watcher.events.signal.clone();
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
