//! The manifests of a file or a directory, as they were last read.
//!
//! A file that cannot be read any more, or says what cannot be right, keeps what it said before: that a
//! file is half written, or gone from under its mount, withdraws nothing. In a directory, a file that
//! was removed takes its slices with it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::slices::{self, Manifest, Slice};
use crate::config::watch::Stat;

/// A file larger than this holds no manifests.
const LARGEST: u64 = 256 << 20;

/// Beyond this, no file system gives two contents the same times.
const TICK: Duration = Duration::from_millis(50);

/// What is in a directory.
const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];

/// Everything that has been read.
#[derive(Debug)]
pub(super) struct Files {
    path: PathBuf,
    known: BTreeMap<PathBuf, Known>,
    /// Why the directory cannot be listed.
    unlisted: Option<String>,
}

/// One file.
#[derive(Debug, Default)]
struct Known {
    /// None where it has to be read at the next look, whether it seems to have changed or not.
    seen: Option<Stat>,
    /// What it said when it last could be read.
    manifest: Option<Manifest>,
    /// What is wrong with it now.
    problem: Option<String>,
}

/// What a look has found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Look {
    /// The slices are others than before.
    pub(super) changed: bool,
    /// How many files are wrong, or wrong in another way, that were not before.
    pub(super) failures: u64,
}

impl Files {
    /// Nothing has been read yet.
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), known: BTreeMap::new(), unlisted: None }
    }

    /// Reads what has changed since the last look. Blocks.
    pub(super) fn look(&mut self) -> Look {
        let mut look = Look::default();
        let is_directory = self.path.is_dir();
        let listed = if is_directory { list(&self.path) } else { Ok([self.path.clone()].into()) };
        let listed = match listed {
            Ok(listed) => listed,
            Err(error) => {
                let why = format!("{}: cannot list the directory: {error}", self.path.display());
                look.failures = (self.unlisted.as_ref() != Some(&why)).into();
                self.unlisted = Some(why);
                return look;
            }
        };
        self.unlisted = None;
        let before = self.known.len();
        // Where PATH was a directory and is gone, what its files said stays.
        if is_directory {
            self.known.retain(|path, _| listed.contains(path));
        }
        look.changed = self.known.len() != before;
        for path in listed {
            let stat = match Stat::of(&path) {
                Err(error) if is_directory && error.kind() == ErrorKind::NotFound => {
                    look.changed |= self.known.remove(&path).is_some();
                    continue;
                }
                stat => stat,
            };
            self.known.entry(path.clone()).or_default().look(&path, stat, &mut look);
        }
        look
    }

    /// Every slice, in the order of the files.
    pub(super) fn slices(&self) -> impl Iterator<Item = &Arc<Slice>> {
        self.known.values().filter_map(|known| known.manifest.as_ref()).flat_map(|manifest| &manifest.slices)
    }

    /// Whether all that there is has been read at some time.
    pub(super) fn complete(&self) -> bool {
        self.unlisted.is_none() && self.known.values().all(|known| known.manifest.is_some())
    }

    /// What is wrong now, a sentence each.
    pub(super) fn problems(&self) -> Vec<String> {
        let of_files = self.known.values().filter_map(|known| known.problem.clone());
        self.unlisted.iter().cloned().chain(of_files).collect()
    }

    /// What was left out of what was read.
    pub(super) fn notes(&self) -> Vec<String> {
        let notes = self.known.iter().flat_map(|(path, known)| {
            let notes = known.manifest.iter().flat_map(|manifest| &manifest.notes);
            notes.map(move |note| format!("{}: {note}", path.display()))
        });
        let nothing = self.known.is_empty() && self.unlisted.is_none();
        let nothing = nothing.then(|| {
            format!("{}: there is no file here that ends in .yaml, .yml or .json", self.path.display())
        });
        nothing.into_iter().chain(notes).collect()
    }
}

impl Known {
    fn look(&mut self, path: &Path, stat: io::Result<Stat>, look: &mut Look) {
        if self.seen.is_some() && self.seen.as_ref() == stat.as_ref().ok() {
            return;
        }
        match stat.map_err(cannot_read).and_then(|stat| self.read(path, stat)) {
            Ok(manifest) => {
                look.changed |= self.manifest.as_ref().is_none_or(|known| known.slices != manifest.slices);
                self.manifest = Some(manifest);
                self.problem = None;
            }
            Err(why) => {
                let why = Some(format!("{}: {why}", path.display()));
                look.failures += u64::from(self.problem != why);
                self.problem = why;
            }
        }
    }

    fn read(&mut self, path: &Path, stat: Stat) -> Result<Manifest, String> {
        let text = text(path);
        // What changed meanwhile, or may yet without showing it, is read again.
        let settled = stat.is_older_than(TICK) && Stat::of(path).is_ok_and(|now| now == stat);
        self.seen = settled.then_some(stat);
        let is_json = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
        let manifest = slices::read(&text?, is_json)?;
        if manifest.objects == 0 && self.manifest.as_ref().is_some_and(|known| !known.slices.is_empty()) {
            return Err("the file is empty; to withdraw what it said, write `kind: List` with `items: []`, \
                        or remove the file from its directory"
                .into());
        }
        Ok(manifest)
    }
}

/// The manifests in a directory. Names that begin with a dot are Kubernetes' own, or an editor's.
fn list(directory: &Path) -> io::Result<BTreeSet<PathBuf>> {
    let mut files = BTreeSet::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        let ours =
            |extension: &std::ffi::OsStr| EXTENSIONS.iter().any(|ours| extension.eq_ignore_ascii_case(ours));
        let is_directory = kind.is_dir() || (kind.is_symlink() && path.is_dir());
        if !hidden && path.extension().is_some_and(ours) && !is_directory {
            files.insert(path);
        }
    }
    Ok(files)
}

fn text(path: &Path) -> Result<String, String> {
    // Opening a pipe would wait for a writer.
    if !std::fs::metadata(path).map_err(cannot_read)?.is_file() {
        return Err("this is no file".into());
    }
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(LARGEST + 1).read_to_end(&mut bytes));
    read.map_err(cannot_read)?;
    if bytes.len() as u64 > LARGEST {
        return Err(format!("the file is larger than {} MiB; split it over a directory", LARGEST >> 20));
    }
    String::from_utf8(bytes)
        .map_err(|error| format!("byte {} is not UTF-8", error.utf8_error().valid_up_to() + 1))
}

fn cannot_read(error: io::Error) -> String {
    format!("cannot read the file: {error}")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn slice(service: &str, address: &str) -> String {
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
             metadata: {{ namespace: shop, labels: {{ kubernetes.io/service-name: {service} }} }}\n\
             endpoints: [{{ addresses: [{address}] }}]\n"
        )
    }

    fn served(files: &Files) -> Vec<String> {
        let one = |slice: &Arc<Slice>| format!("{} {}", slice.service, slice.endpoints[0].address);
        files.slices().map(one).collect()
    }

    const NOTHING: Look = Look { changed: false, failures: 0 };
    const CHANGED: Look = Look { changed: true, failures: 0 };
    const FAILED: Look = Look { changed: false, failures: 1 };

    #[test]
    fn a_file_is_followed_and_keeps_what_it_said() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("slices.txt");
        let mut files = Files::new(&path);
        assert_eq!((files.look(), files.complete()), (FAILED, false));
        assert_eq!(files.look(), NOTHING, "the same failure is one");
        fs::write(&path, slice("a", "10.0.0.1")).unwrap();
        assert_eq!((files.look(), files.complete()), (CHANGED, true));
        assert_eq!(files.look(), NOTHING);
        // The same size, and as good as the same time.
        fs::write(&path, slice("a", "10.0.0.2")).unwrap();
        assert_eq!((files.look(), served(&files)), (CHANGED, vec!["a 10.0.0.2".to_owned()]));
        for (broken, why) in
            [("kind: [", "not valid YAML"), ("", "the file is empty"), ("\u{0}", "slices.txt: ")]
        {
            fs::write(&path, broken).unwrap();
            assert_eq!((files.look(), files.complete()), (FAILED, true), "{broken:?}");
            assert!(files.problems()[0].contains(why), "{:?}", files.problems());
            assert_eq!(served(&files), ["a 10.0.0.2"]);
        }
        fs::remove_file(&path).unwrap();
        assert_eq!(files.look(), FAILED);
        assert_eq!(served(&files), ["a 10.0.0.2"]);
        fs::write(&path, "kind: List\nitems: []\n").unwrap();
        assert_eq!((files.look(), served(&files).len(), files.problems().len()), (CHANGED, 0, 0));
    }

    #[test]
    fn a_directorys_files_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let mut files = Files::new(dir.path());
        assert_eq!((files.look(), files.complete(), files.notes().len()), (NOTHING, true, 1));
        fs::write(at("b.yaml"), slice("b", "10.0.0.2")).unwrap();
        fs::write(at("a.JSON"), "{}").unwrap();
        fs::write(at("c.txt"), "kind: [").unwrap();
        fs::write(at(".d.yaml"), "kind: [").unwrap();
        fs::create_dir(at("e.yaml")).unwrap();
        assert_eq!(files.look(), Look { changed: true, failures: 1 });
        assert!(!files.complete() && files.problems()[0].contains("a.JSON: document 1: `kind` is missing"));
        fs::write(at("a.JSON"), "{\"kind\":\"X\"}").unwrap();
        files.look();
        assert!(files.complete() && files.problems().is_empty() && files.notes().is_empty());
        fs::remove_file(at("b.yaml")).unwrap();
        assert_eq!((files.look(), served(&files).len()), (CHANGED, 0));
    }

    #[test]
    fn a_config_map_is_swapped() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for (version, address) in [("..1", "10.0.0.1"), ("..2", "10.0.0.2")] {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("a.yaml"), slice("a", address)).unwrap();
        }
        symlink("..1", at("..data")).unwrap();
        symlink("..data/a.yaml", at("a.yaml")).unwrap();
        let mut files = Files::new(dir.path());
        files.look();
        assert_eq!(served(&files), ["a 10.0.0.1"]);
        symlink("..2", at("..new")).unwrap();
        fs::rename(at("..new"), at("..data")).unwrap();
        assert_eq!((files.look(), served(&files)), (CHANGED, vec!["a 10.0.0.2".to_owned()]));
        // The directory is gone for a while, as under a volume that is mounted anew.
        let away = dir.path().with_extension("away");
        fs::rename(dir.path(), &away).unwrap();
        files.look();
        assert_eq!(served(&files), ["a 10.0.0.2"]);
        assert!(files.problems()[0].contains("cannot read the file"), "{:?}", files.problems());
        fs::rename(&away, dir.path()).unwrap();
        files.look();
        assert_eq!((served(&files).len(), files.problems().len(), files.complete()), (1, 0, true));
    }
}
