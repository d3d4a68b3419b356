//! Which requests a limit holds for: host, path, method, fields, caller and claims; and which keys have a rate
//! of their own.

use std::collections::BTreeMap;

use crate::config::model::{self, KeyPart, Patterns};
use crate::route::{HostMatcher, PathMatcher};

use super::Facts;
use super::key;

/// The compiled conditions of one limit.
#[derive(Debug)]
pub(super) struct Matcher {
    host: HostMatcher,
    path: PathMatcher,
    /// None: every method.
    methods: Option<Box<[String]>>,
    /// Each one must fit.
    values: Box<[(KeyPart, Box<[Pattern]>)]>,
}

/// Text that a value is compared with.
#[derive(Debug)]
pub(super) enum Pattern {
    Exact(Box<[u8]>),
    /// It begins so; with nothing, any value that is there.
    Beginning(Box<[u8]>),
}

impl Pattern {
    fn new(text: &str) -> Self {
        match text.strip_suffix('*') {
            Some(beginning) => Self::Beginning(beginning.as_bytes().into()),
            None => Self::Exact(text.as_bytes().into()),
        }
    }

    /// Whether a part of the request fits; a claim that is a list does if one of its texts is the one that is
    /// written.
    fn fits_part(&self, part: &KeyPart, facts: &Facts<'_>) -> bool {
        let listed = match (self, part) {
            (Self::Exact(text), KeyPart::Claim(name)) => {
                std::str::from_utf8(text).is_ok_and(|text| (facts.has_claim)(name, text))
            }
            _ => false,
        };
        listed || self.fits(key::value(part, facts))
    }

    fn fits(&self, value: Option<&[u8]>) -> bool {
        match self {
            Self::Exact(text) => value.is_some_and(|value| *value == **text),
            Self::Beginning(text) => value.is_some_and(|value| value.starts_with(text)),
        }
    }
}

/// Patterns, compiled.
pub(super) fn patterns(texts: &[String]) -> Box<[Pattern]> {
    texts.iter().map(|text| Pattern::new(text)).collect()
}

/// Whether a request's key is the one that `is` describes, part by part.
pub(super) fn fits(is: &[Pattern], parts: &[KeyPart], facts: &Facts<'_>) -> bool {
    parts.iter().zip(is).all(|(part, pattern)| pattern.fits(key::value(part, facts)))
}

impl Matcher {
    pub(super) fn new(limit: &model::Limit) -> Self {
        let named = |part: fn(String) -> KeyPart, all: &BTreeMap<String, Patterns>| {
            let each = |(name, patterns): (&String, &Patterns)| {
                (part(name.clone()), self::patterns(patterns.as_slice()))
            };
            all.iter().map(each).collect::<Vec<_>>()
        };
        let mut values = named(|name| KeyPart::Header(name.to_ascii_lowercase()), &limit.header);
        values.extend(limit.caller.as_ref().map(|callers| (KeyPart::Caller, patterns(callers.as_slice()))));
        values.extend(named(KeyPart::Claim, &limit.claim));
        Self {
            host: limit
                .host
                .as_ref()
                .map_or_else(HostMatcher::any, |hosts| HostMatcher::new(hosts.as_slice())),
            path: PathMatcher::new(&limit.path.clone().unwrap_or_default()),
            methods: limit.method.as_ref().map(|methods| methods.as_slice().into()),
            values: values.into(),
        }
    }

    pub(super) fn matches(&self, facts: &Facts<'_>) -> bool {
        self.methods.as_ref().is_none_or(|methods| methods.iter().any(|method| method == facts.method))
            && self.host.matches(facts.host, facts.port)
            && self.path.matches(facts.path)
            && self.values.iter().all(|(part, patterns)| patterns.iter().any(|p| p.fits_part(part, facts)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::units::OneOrMany;

    #[test]
    fn hosts_paths_and_methods() {
        let mut limit = super::super::plan::tests::limit("a", "1/s", 2);
        let facts = |host, port, path, method| Facts {
            host,
            port,
            path,
            method,
            caller: "",
            field: &|_| None,
            claim: &|_| None,
            has_claim: &|_, _| false,
        };
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
