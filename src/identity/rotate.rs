//! Following the identity's files. A renewal is taken when the whole set has been read and checked;
//! one that fails leaves the running identity alone, is reported once, and is tried again.

use std::time::Duration;

use tokio::time::timeout;
use tracing::{info, warn};

use super::{Error, Identity};
use crate::config::model;

/// How soon a renewal that failed is tried again. Files that are replaced one after the other do
/// not fit together for a moment, and a certificate may become valid without any change of a file.
const RETRY: Duration = Duration::from_secs(5);

/// Reads `files` now and after each change, for ever, and gives every new identity to `publish`,
/// which receives an error instead when a renewal failed. `current` is the identity that runs
/// already, if any; reading the same one again publishes nothing, and the same error in a row is
/// reported once.
///
/// `changes` resolves when a file may have changed. It may resolve for no reason, and may be
/// dropped while it waits; when nothing can change any more it must stay pending.
///
/// To be spawned on the control runtime; aborting the task ends it.
pub async fn rotate(
    files: model::Identity,
    mut current: Option<Identity>,
    mut changes: impl AsyncFnMut(),
    mut publish: impl FnMut(Result<&Identity, &Error>),
) {
    let mut failure: Option<Error> = None;
    loop {
        match Identity::load(&files) {
            Ok(loaded) => {
                failure = None;
                if !current.as_ref().is_some_and(|current| current.is_same(&loaded)) {
                    info!(id = %loaded.id(), roots = loaded.roots().len(), "identity renewed");
                    publish(Ok(&loaded));
                    current = Some(loaded);
                }
            }
            Err(error) => {
                if failure.as_ref() != Some(&error) {
                    warn!(%error, keeps = current.is_some(), "identity not renewed");
                    publish(Err(&error));
                    failure = Some(error);
                }
            }
        }
        if failure.is_some() {
            // Elapsed or changed, the files are read again.
            let _ = timeout(RETRY, changes()).await;
        } else {
            changes().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use tokio::sync::mpsc;
    use tokio::task::JoinHandle;

    use super::super::ca::Authority;
    use super::*;

    type Seen = mpsc::UnboundedReceiver<Result<Identity, Error>>;

    /// Rotates in a task, as the control runtime does; a message is a change.
    fn follow(
        files: &model::Identity,
        current: Option<Identity>,
    ) -> (mpsc::UnboundedSender<()>, Seen, JoinHandle<()>) {
        let (change, mut changes) = mpsc::unbounded_channel();
        let (publish, seen) = mpsc::unbounded_channel();
        let changed = async move || {
            changes.recv().await.expect("the test holds the sender");
        };
        let task = tokio::spawn(rotate(files.clone(), current, changed, move |renewal| {
            publish.send(renewal.cloned().map_err(Clone::clone)).unwrap();
        }));
        (change, seen, task)
    }

    /// Waits past a retry, in paused time, and tells that nothing was published.
    async fn nothing(seen: &mut Seen) {
        tokio::time::sleep(RETRY * 3).await;
        assert!(seen.try_recv().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn files_replaced_by_rename_are_followed() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::new("cluster.local").unwrap();
        let files = authority.leaf("ns/a").unwrap().write(directory.path()).unwrap();
        let first = Identity::load(&files).unwrap();
        let (change, mut seen, task) = follow(&files, Some(first.clone()));
        change.send(()).unwrap();
        nothing(&mut seen).await;

        authority.leaf("ns/a").unwrap().write(directory.path()).unwrap();
        change.send(()).unwrap();
        let second = seen.recv().await.unwrap().unwrap();
        assert!(!second.is_same(&first));
        assert_eq!(second.id(), first.id());
        task.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_root_alone_is_a_renewal() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::new("cluster.local").unwrap();
        let files = authority.leaf("ns/a").unwrap().write(directory.path()).unwrap();
        let (change, mut seen, task) = follow(&files, Some(Identity::load(&files).unwrap()));
        let other = Authority::new("cluster.local").unwrap();
        fs::write(&files.bundle, authority.bundle() + &other.bundle()).unwrap();
        change.send(()).unwrap();
        assert_eq!(seen.recv().await.unwrap().unwrap().roots().len(), 2);
        task.abort();
    }

    /// Lays files out as the kubelet does: `NAME -> ..data/NAME`, `..data -> ..VERSION`.
    fn mount(volume: &Path, version: &str, authority: &Authority) -> model::Identity {
        let data = volume.join(version);
        fs::create_dir(&data).unwrap();
        authority.leaf("ns/a").unwrap().write(&data).unwrap();
        symlink(version, volume.join("..data_tmp")).unwrap();
        fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
        for name in ["tls.crt", "tls.key", "ca.crt"] {
            let _ = symlink(Path::new("..data").join(name), volume.join(name));
        }
        model::Identity {
            certificate: volume.join("tls.crt"),
            key: volume.join("tls.key"),
            bundle: volume.join("ca.crt"),
            key_exchange: model::KeyExchange::default(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_swapped_data_symlink_is_followed() {
        let volume = tempfile::tempdir().unwrap();
        let authority = Authority::new("cluster.local").unwrap();
        let files = mount(volume.path(), "..v1", &authority);
        let (change, mut seen, task) = follow(&files, None);
        let first = seen.recv().await.unwrap().unwrap();

        mount(volume.path(), "..v2", &authority);
        change.send(()).unwrap();
        let second = seen.recv().await.unwrap().unwrap();
        assert!(!second.is_same(&first));
        task.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_renewal_is_reported_once_and_tried_again() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::new("cluster.local").unwrap();
        let files = authority.leaf("ns/a").unwrap().write(directory.path()).unwrap();
        let (change, mut seen, task) = follow(&files, Some(Identity::load(&files).unwrap()));

        let next = authority.leaf("ns/a").unwrap();
        fs::write(&files.certificate, next.certificate()).unwrap();
        change.send(()).unwrap();
        let error = seen.recv().await.unwrap().unwrap_err();
        assert_eq!(error.file, files.key);
        change.send(()).unwrap();
        nothing(&mut seen).await;

        // The key arrives, and no change is announced.
        fs::write(&files.key, next.key()).unwrap();
        let renewed = seen.recv().await.unwrap().unwrap();
        assert_eq!(renewed.certified().cert, [next.certificate_der()]);

        // The same fault again is a new failure.
        fs::write(&files.certificate, "").unwrap();
        change.send(()).unwrap();
        assert_eq!(seen.recv().await.unwrap().unwrap_err().file, files.certificate);
        task.abort();
    }
}
