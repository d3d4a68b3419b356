//! Which requests a limit holds for: host, path and method.

use crate::config::model::{self, PathMatch};
use crate::config::units::OneOrMany;

use super::Facts;

/// The compiled conditions of one limit.
#[derive(Debug)]
pub(super) struct Matcher {
    host: HostMatcher,
    path: PathMatcher,
    /// None: every method.
    methods: Option<Box<[String]>>,
}

impl Matcher {
    pub(super) fn new(limit: &model::Limit) -> Self {
        Self {
            host: HostMatcher::new(limit.host.as_ref().map_or(&[], OneOrMany::as_slice)),
            path: PathMatcher::new(&limit.path.clone().unwrap_or_default()),
            methods: limit.method.as_ref().map(|methods| methods.as_slice().into()),
        }
    }

    pub(super) fn matches(&self, facts: &Facts<'_>) -> bool {
        self.methods.as_ref().is_none_or(|methods| methods.iter().any(|method| method == facts.method))
            && self.host.matches(facts.host, facts.port)
            && self.path.matches(facts.path)
    }
}

/// A set of hosts, with or without a port. Empty, or with `*`: every host.
#[derive(Debug)]
struct HostMatcher(Box<[(String, Option<u16>)]>);

impl HostMatcher {
    fn new(hosts: &[String]) -> Self {
        if hosts.iter().any(|host| host == "*") {
            return Self([].into());
        }
        let parse = |host: &String| {
            let host = host.to_ascii_lowercase();
            match host.rsplit_once(':').and_then(|(name, port)| Some((name, port.parse().ok()?))) {
                Some((name, port)) => (name.to_owned(), Some(port)),
                None => (host, None),
            }
        };
        Self(hosts.iter().map(parse).collect())
    }

    fn matches(&self, host: &str, port: Option<u16>) -> bool {
        let same = |(name, only): &(String, Option<u16>)| name == host && (only.is_none() || *only == port);
        self.0.is_empty() || self.0.iter().any(same)
    }
}

/// One path, or a prefix of whole segments.
#[derive(Debug)]
enum PathMatcher {
    Exact(String),
    /// Without its final `/`.
    Prefix(String),
}

impl PathMatcher {
    fn new(path: &PathMatch) -> Self {
        match path {
            PathMatch::Exact(path) => Self::Exact(path.exact.clone()),
            PathMatch::Prefix(path) => Self::Prefix(path.strip_suffix('/').unwrap_or(path).into()),
        }
    }

    fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => exact == path,
            Self::Prefix(prefix) => path
                .strip_prefix(prefix.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_paths_and_methods() {
        let mut limit = super::super::plan::tests::limit("a", "1/s", 2);
        let facts =
            |host, port, path, method| Facts { host, port, path, method, caller: "", field: &|_| None };
        assert!(Matcher::new(&limit).matches(&facts("any", None, "/", "GET")));

        limit.host =
            Some(OneOrMany::Many(vec!["Orders.shop".into(), "b:8080".into(), "[fd00::7]:80".into()]));
        limit.path = Some(PathMatch::Prefix("/v1/".into()));
        limit.method = Some(OneOrMany::One("POST".into()));
        let matcher = Matcher::new(&limit);
        assert!(matcher.matches(&facts("orders.shop", Some(80), "/v1", "POST")));
        assert!(matcher.matches(&facts("b", Some(8080), "/v1/x", "POST")));
        assert!(matcher.matches(&facts("[fd00::7]", Some(80), "/v1/", "POST")));
        assert!(!matcher.matches(&facts("b", Some(80), "/v1/x", "POST")));
        assert!(!matcher.matches(&facts("orders.shop", None, "/v1x", "POST")));
        assert!(!matcher.matches(&facts("orders.shop", None, "/v1", "GET")));
    }
}
