//! Which requests a limit holds for: host, path and method.

use crate::config::model;
use crate::route::{HostMatcher, PathMatcher};

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
            host: limit
                .host
                .as_ref()
                .map_or_else(HostMatcher::any, |hosts| HostMatcher::new(hosts.as_slice())),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::units::OneOrMany;

    #[test]
    fn hosts_paths_and_methods() {
        let mut limit = super::super::plan::tests::limit("a", "1/s", 2);
        let facts =
            |host, port, path, method| Facts { host, port, path, method, caller: "", field: &|_| None };
        assert!(Matcher::new(&limit).matches(&facts("any", None, "/", "GET")));

        limit.host =
            Some(OneOrMany::Many(vec!["Orders.shop".into(), "b:8080".into(), "[fd00::7]:80".into()]));
        limit.path = Some(model::PathMatch::Prefix("/v1/".into()));
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
