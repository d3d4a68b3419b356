//! Paths: exact ones, and prefixes of whole segments. `/v1` and `/v1/` are the same prefix; it
//! takes `/v1`, `/v1/` and `/v1/x`, never `/v1x`. The prefix `/` takes everything, the `*` of
//! `OPTIONS *` and the empty path of CONNECT included.

use smallvec::SmallVec;

use super::Map;
use crate::config::model::PathMatch;

/// One path, compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathMatcher {
    exact: bool,
    /// A prefix stands here without its final `/`.
    path: Box<str>,
}

impl PathMatcher {
    /// Compiles a path.
    pub fn new(path: &PathMatch) -> Self {
        match path {
            PathMatch::Exact(exact) => Self { exact: true, path: exact.exact.as_str().into() },
            PathMatch::Prefix(prefix) => Self { exact: false, path: without_end(prefix).into() },
        }
    }

    /// Whether a request's path, given without query, is or lies below this one.
    pub fn matches(&self, path: &str) -> bool {
        if self.exact {
            return *self.path == *path;
        }
        match path.strip_prefix(&*self.path) {
            Some(rest) => self.path.is_empty() || rest.is_empty() || rest.starts_with('/'),
            None => false,
        }
    }
}

fn without_end(prefix: &str) -> &str {
    prefix.trim_end_matches('/')
}

/// The paths of one host, each with its target.
#[derive(Debug)]
pub(super) struct Paths<T> {
    exact: Map<Box<str>, T>,
    prefixes: Map<Box<str>, T>,
    /// How many segments the prefixes have: each number once, largest first.
    depths: Vec<usize>,
}

impl<T> Default for Paths<T> {
    fn default() -> Self {
        Self { exact: Map::default(), prefixes: Map::default(), depths: Vec::new() }
    }
}

impl<T> Paths<T> {
    /// Adds a path; one that is there already stays.
    pub(super) fn insert(&mut self, path: &PathMatch, target: T) {
        match path {
            PathMatch::Exact(exact) => {
                self.exact.entry(exact.exact.as_str().into()).or_insert(target);
            }
            PathMatch::Prefix(prefix) => {
                let prefix = without_end(prefix);
                let depth = prefix.matches('/').count();
                if let Err(place) = self.depths.binary_search_by(|known| depth.cmp(known)) {
                    self.depths.insert(place, depth);
                }
                self.prefixes.entry(prefix.into()).or_insert(target);
            }
        }
    }

    /// The exact path's target, else the longest prefix's: one lookup for each depth that
    /// prefixes have and the path reaches.
    pub(super) fn find(&self, path: &str) -> Option<&T> {
        if !self.exact.is_empty()
            && let Some(target) = self.exact.get(path)
        {
            return Some(target);
        }
        let deepest = *self.depths.first()?;
        let ends = segment_ends(path, deepest);
        self.depths
            .iter()
            .filter(|depth| **depth < ends.len())
            .find_map(|depth| self.prefixes.get(&path[..ends[*depth]]))
    }
}

/// Where the first 0, 1, 2, .. segments of a path end, up to `deepest` of them.
fn segment_ends(path: &str, deepest: usize) -> SmallVec<[usize; 16]> {
    let mut ends = SmallVec::new();
    ends.push(0);
    if deepest == 0 || !path.starts_with('/') {
        return ends;
    }
    let later_slashes = path.bytes().enumerate().skip(1).filter(|(_, b)| *b == b'/').map(|(i, _)| i);
    ends.extend(later_slashes.chain([path.len()]).take(deepest));
    ends
}
