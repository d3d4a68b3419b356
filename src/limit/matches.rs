//! Which requests a limit holds for: host, path, method, fields, caller and claims; and which keys have a rate
//! of their own.

use std::collections::{BTreeMap, HashMap};

use crate::config::model::{self, KeyPart, KeyRate, Patterns};
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
enum Pattern {
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

    /// Whether a part of the request fits. Of a field or claim that is there several times each value may:
    /// nobody gets around a limit by saying a thing twice.
    fn fits_part(&self, part: &KeyPart, facts: &Facts<'_>) -> bool {
        let fits = |value: &[u8]| self.fits(Some(value));
        match part {
            KeyPart::Header(name) => facts.said.any_field(name, &fits),
            KeyPart::Claim(name) => facts.said.any_claim(name, &fits),
            _ => self.fits(key::value(part, facts)),
        }
    }

    fn fits(&self, value: Option<&[u8]>) -> bool {
        match self {
            Self::Exact(text) => value.is_some_and(|value| *value == **text),
            Self::Beginning(text) => value.is_some_and(|value| value.starts_with(text)),
        }
    }
}

/// Patterns, compiled.
fn patterns(texts: &[String]) -> Box<[Pattern]> {
    texts.iter().map(|text| Pattern::new(text)).collect()
}

/// Keys with terms of their own, of which the first that fits holds. Those that are written out are looked
/// up: there may be one for each tenant.
#[derive(Debug, Default)]
pub(super) struct Own {
    exact: HashMap<Box<[u8]>, usize>,
    patterns: Box<[(usize, Box<[Pattern]>)]>,
}

impl Own {
    pub(super) fn new(keys: &[KeyRate]) -> Self {
        let (mut exact, mut others) = (HashMap::new(), Vec::new());
        for (i, key) in keys.iter().enumerate() {
            let texts = key.is.as_slice();
            if texts.iter().any(|text| text.ends_with('*')) {
                others.push((i, patterns(texts)));
            } else {
                let text = joined(texts.iter().map(|text| Some(text.as_bytes())));
                exact.entry(text.expect("every part has a text")).or_insert(i);
            }
        }
        Self { exact, patterns: others.into() }
    }

    /// Which of them a request's key is.
    pub(super) fn find(&self, parts: &[KeyPart], facts: &Facts<'_>) -> Option<usize> {
        if self.exact.is_empty() && self.patterns.is_empty() {
            return None;
        }
        let values = || parts.iter().map(|part| key::value(part, facts));
        let exact = joined(values()).and_then(|text| self.exact.get(&text).copied());
        let before = self.patterns.iter().take_while(|(i, _)| exact.is_none_or(|exact| *i < exact));
        let fits = |is: &[Pattern]| is.iter().zip(values()).all(|(pattern, value)| pattern.fits(value));
        before.into_iter().find(|(_, is)| fits(is)).map(|(i, _)| *i).or(exact)
    }
}

/// Values as one, so that no two keys read alike; none where one is missing.
fn joined<'v>(values: impl Iterator<Item = Option<&'v [u8]>>) -> Option<Box<[u8]>> {
    let mut all = Vec::new();
    for value in values {
        let value = value?;
        all.extend_from_slice(&(value.len() as u64).to_le_bytes());
        all.extend_from_slice(value);
    }
    Some(all.into())
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
    use crate::limit::tests::Tenant;

    #[test]
    fn hosts_paths_and_methods() {
        let mut limit = super::super::plan::tests::limit("a", "1/s", 2);
        let facts =
            |host, port, path, method| Facts { host, port, path, method, caller: "", said: &Tenant("t") };
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

    #[test]
    fn callers() {
        let mut limit = super::super::plan::tests::limit("a", "1/s", 2);
        limit.caller =
            Some(OneOrMany::Many(vec!["spiffe://mesh/ns/shop/*".into(), "spiffe://mesh/ns/ops/cron".into()]));
        let matcher = Matcher::new(&limit);
        let holds = |caller| {
            let (host, path, said) = ("any", "/", &Tenant("t"));
            matcher.matches(&Facts { host, port: None, path, method: "GET", caller, said })
        };
        assert!(holds("spiffe://mesh/ns/shop/sa/web") && holds("spiffe://mesh/ns/ops/cron"));
        assert!(!holds("spiffe://mesh/ns/ops/cron2") && !holds("spiffe://mesh/ns/shopping") && !holds(""));
    }
}
