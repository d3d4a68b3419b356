//! Which target takes a request: by host, port and path, by hash lookups alone, at a cost that
//! does not depend on the number of routes.
//!
//! The order: a host with the request's port, then the host with any port, then `*`. Within a
//! host the exact path, then the longest prefix of whole segments. Where a host has nothing for
//! the path, the next wider one is asked. [`PathMatcher`] and [`HostMatcher`] apply the same
//! rules to one path and one set of hosts, for limits and policies.

mod path;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use foldhash::fast::FixedState;

pub use path::PathMatcher;
use path::Paths;

use crate::config::HostPattern;
use crate::config::model::PathMatch;

/// One route: a host, a path there, and what it leads to.
#[derive(Debug, Clone)]
pub struct Entry<T> {
    /// The host or hosts.
    pub host: HostPattern,
    /// The path.
    pub path: PathMatch,
    /// What takes the request.
    pub target: T,
}

/// A table that only the configuration fills: whoever asks cannot make it slow.
type Map<K, V> = HashMap<K, V, FixedState>;

/// All routes, compiled. Immutable: a reload compiles another.
#[derive(Debug)]
pub struct Table<T> {
    hosts: Map<String, Ports<T>>,
    any: Paths<T>,
}

/// The paths of one host, by the port that the request names.
#[derive(Debug)]
struct Ports<T> {
    named: Map<u16, Paths<T>>,
    any: Paths<T>,
}

impl<T> Table<T> {
    /// Compiles routes. Of two with the same host and path the first is kept; the validation of
    /// a configuration refuses such a pair.
    pub fn compile(routes: impl Iterator<Item = Entry<T>>) -> Self {
        let mut table = Self { hosts: Map::default(), any: Paths::default() };
        for Entry { host, path, target } in routes {
            let paths = match host {
                HostPattern::Any => &mut table.any,
                HostPattern::Host { host, port } => {
                    let ports = table.hosts.entry(host).or_default();
                    match port {
                        Some(port) => ports.named.entry(port).or_default(),
                        None => &mut ports.any,
                    }
                }
            };
            paths.insert(&path, target);
        }
        table
    }

    /// The target of a request. `host` is in lower case, without port or final dot, an IPv6
    /// address in brackets in its shortest form; `port` is the one that the request names or
    /// implies; `path` comes without query. An unknown host (`""`) meets `*` alone.
    pub fn find(&self, host: &str, port: Option<u16>, path: &str) -> Option<&T> {
        if let Some(ports) = self.hosts.get(host) {
            let named = port.and_then(|port| ports.named.get(&port)).and_then(|paths| paths.find(path));
            if let Some(target) = named.or_else(|| ports.any.find(path)) {
                return Some(target);
            }
        }
        self.any.find(path)
    }
}

impl<T> Default for Ports<T> {
    fn default() -> Self {
        Self { named: Map::default(), any: Paths::default() }
    }
}

/// A set of hosts, each with or without a port; `*` is every host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostMatcher {
    /// None: every host.
    hosts: Option<Map<String, HostPorts>>,
}

/// The ports of a host that a [`HostMatcher`] takes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct HostPorts {
    any: bool,
    named: Vec<u16>,
}

impl HostMatcher {
    /// Compiles a set of hosts. A text that is no host matches nothing; the validation of a
    /// configuration refuses it.
    pub fn new(hosts: &[String]) -> Self {
        let mut set: Map<String, HostPorts> = Map::default();
        for pattern in hosts.iter().filter_map(|host| host.parse().ok()) {
            match pattern {
                HostPattern::Any => return Self::any(),
                HostPattern::Host { host, port: None } => set.entry(host).or_default().any = true,
                HostPattern::Host { host, port: Some(port) } => set.entry(host).or_default().named.push(port),
            }
        }
        Self { hosts: Some(set) }
    }

    /// Every host.
    pub fn any() -> Self {
        Self { hosts: None }
    }

    /// Whether a request's host is in the set; both are given as to [`Table::find`].
    pub fn matches(&self, host: &str, port: Option<u16>) -> bool {
        let Some(hosts) = &self.hosts else { return true };
        hosts.get(host).is_some_and(|ports| ports.any || port.is_some_and(|port| ports.named.contains(&port)))
    }
}
