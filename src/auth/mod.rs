//! Who may call: the inbound allow list, compiled. A caller is known by the SPIFFE id that it
//! has proven; one that has proven none matches no rule, not even `*`.

pub mod token;

use std::collections::HashMap;

use crate::config::model::Allow;
use crate::config::units::OneOrMany;
use crate::route::PathMatcher;

/// The allow list, compiled. Immutable: a reload compiles another.
#[derive(Debug, Default)]
pub struct Policy {
    /// None: everyone may call.
    rules: Option<Rules>,
}

#[derive(Debug, Default)]
struct Rules {
    /// The rules of one caller each, by its id.
    exact: HashMap<Box<str>, Vec<Rule>>,
    /// Whether any is about a path.
    paths: bool,
    /// The rules of every caller whose id begins so.
    beginnings: Vec<(Box<str>, Rule)>,
}

/// What a caller may do.
#[derive(Debug)]
struct Rule {
    /// None: every path.
    path: Option<PathMatcher>,
    /// None: every method.
    methods: Option<Vec<Box<str>>>,
}

impl Policy {
    /// Compiles an allow list; none at all lets everyone in, an empty one nobody.
    pub fn compile(allow: &Option<Vec<Allow>>) -> Self {
        let Some(allow) = allow else {
            return Self { rules: None };
        };
        let mut rules = Rules::default();
        for one in allow {
            let rule = Rule {
                path: one.path.as_ref().map(PathMatcher::new),
                methods: one.method.as_ref().map(boxed),
            };
            rules.paths |= rule.path.is_some();
            match one.caller.strip_suffix('*') {
                Some(beginning) => rules.beginnings.push((beginning.into(), rule)),
                None => rules.exact.entry(one.caller.as_str().into()).or_default().push(rule),
            }
        }
        Self { rules: Some(rules) }
    }

    /// Whether the caller may send bytes that are no requests: only a rule for every path and
    /// method says so.
    pub fn check_connection(&self, caller: Option<&str>) -> bool {
        self.any(caller, |rule| rule.path.is_none() && rule.methods.is_none())
    }

    /// Whether the caller, by its proven SPIFFE id, may send this. `path` comes without query.
    pub fn check(&self, caller: Option<&str>, method: &str, path: &str) -> bool {
        self.any(caller, |rule| rule.takes(method, path))
    }

    /// Whether any rule is about a path.
    pub fn has_paths(&self) -> bool {
        self.rules.as_ref().is_some_and(|rules| rules.paths)
    }

    fn any(&self, caller: Option<&str>, takes: impl Fn(&Rule) -> bool) -> bool {
        let Some(rules) = &self.rules else { return true };
        let Some(caller) = caller else { return false };
        let exact = rules.exact.get(caller).into_iter().flatten();
        let beginnings = rules.beginnings.iter().filter(|(beginning, _)| caller.starts_with(&**beginning));
        exact.chain(beginnings.map(|(_, rule)| rule)).any(takes)
    }
}

impl Rule {
    fn takes(&self, method: &str, path: &str) -> bool {
        self.path.as_ref().is_none_or(|matcher| matcher.matches(path))
            && self.methods.as_ref().is_none_or(|methods| methods.iter().any(|known| **known == *method))
    }
}

fn boxed(texts: &OneOrMany<String>) -> Vec<Box<str>> {
    texts.as_slice().iter().map(|text| text.as_str().into()).collect()
}

/// Whether servers differ over which resource a path names (RFC 3986 section 6.2.2, and what servers
/// make of it): dot segments, empty segments, separators, and any of these or a plain character in
/// disguise. A rule about paths cannot be applied to such a path.
pub fn is_ambiguous(path: &str) -> bool {
    let disguised = |window: &[u8]| {
        let digit = |b: u8| char::from(b).to_digit(16);
        match (window[0], digit(window[1]), digit(window[2])) {
            (b'%', Some(high), Some(low)) => {
                let byte = (high << 4 | low) as u8;
                byte.is_ascii_alphanumeric() || b"-._~/\\;%\0".contains(&byte)
            }
            _ => false,
        }
    };
    path.contains("//")
        || path.contains(['\\', ';'])
        || path.split('/').any(|segment| segment == "." || segment == "..")
        || path.as_bytes().windows(3).any(disguised)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::model::PathMatch;

    fn rule(caller: &str, path: Option<&str>, methods: Option<Vec<&str>>) -> Allow {
        Allow {
            caller: caller.into(),
            path: path.map(|path| PathMatch::Prefix(path.into())),
            method: methods.map(|methods| OneOrMany::Many(methods.into_iter().map(str::to_owned).collect())),
        }
    }

    const WEB: &str = "spiffe://td/ns/shop/sa/web";

    #[test]
    fn paths_with_more_than_one_reading_are_known() {
        for path in [
            "/v1/../admin",
            "/v1/.",
            "//admin",
            "/v1//x",
            "/v1/..;/x",
            "/a%2Fb",
            "/a%2e%2E/b",
            "/a\\b",
            "/%5cx",
            "/%252e",
            "/%6frders",
        ] {
            assert!(is_ambiguous(path), "{path}");
        }
        for path in ["/", "/v1/x.y", "/v1/..x", "/a%20b", "/.well-known/x", "/v1/"] {
            assert!(!is_ambiguous(path), "{path}");
        }
    }

    #[test]
    fn no_list_is_everyone_and_an_empty_one_nobody() {
        let open = Policy::compile(&None);
        assert!(open.check(None, "GET", "/") && open.check(Some(WEB), "GET", "/"));
        let shut = Policy::compile(&Some(vec![]));
        assert!(!shut.check(None, "GET", "/") && !shut.check(Some(WEB), "GET", "/"));
    }

    #[test]
    fn caller_path_and_method_together() {
        let policy = Policy::compile(&Some(vec![
            rule(WEB, Some("/v1/"), Some(vec!["GET", "HEAD"])),
            rule("spiffe://td/ns/ops/*", None, None),
        ]));
        assert!(policy.check(Some(WEB), "GET", "/v1/x"));
        assert!(!policy.check(Some(WEB), "POST", "/v1/x"));
        assert!(!policy.check(Some(WEB), "get", "/v1/x"));
        assert!(!policy.check(Some(WEB), "GET", "/v1x"));
        assert!(!policy.check(Some("spiffe://td/ns/shop/sa/web2"), "GET", "/v1/x"));
        assert!(policy.check(Some("spiffe://td/ns/ops/sa/any"), "DELETE", "/"));
        assert!(!policy.check(Some("spiffe://td/ns/opsx/sa/any"), "DELETE", "/"));
        assert!(!policy.check(None, "GET", "/v1/x"));
    }

    #[test]
    fn a_star_is_every_proven_caller() {
        let policy = Policy::compile(&Some(vec![rule("*", None, None)]));
        assert!(policy.check(Some(WEB), "GET", "/"));
        assert!(!policy.check(None, "GET", "/"));
    }

    fn naive(allow: &[Allow], caller: &str, method: &str, path: &str) -> bool {
        allow.iter().any(|one| {
            let caller_ok = match one.caller.split_once('*') {
                Some((beginning, _)) => caller.starts_with(beginning),
                None => caller == one.caller,
            };
            let path_ok = one.path.as_ref().is_none_or(|matched| match matched {
                PathMatch::Prefix(prefix) => {
                    let prefix = prefix.trim_end_matches('/');
                    path == prefix || path.starts_with(&format!("{prefix}/"))
                }
                PathMatch::Exact(exact) => exact.exact == path,
            });
            let method_ok =
                one.method.as_ref().is_none_or(|methods| methods.as_slice().contains(&method.to_owned()));
            caller_ok && path_ok && method_ok
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]

        #[test]
        fn agrees_with_every_rule_looked_at(
            rules in prop::collection::vec((
                prop::sample::select(vec!["a/x", "a/y", "a/*", "b/*", "*", "a/xy"]),
                prop::option::of(prop::sample::select(vec!["/", "/v1", "/v1/", "/v1/z"])),
                prop::option::of(prop::collection::vec(prop::sample::select(vec!["GET", "PUT"]), 1..3)),
            ), 0..6),
            caller in prop::sample::select(vec!["a/x", "a/y", "a/xy", "b/x", "c"]),
            method in prop::sample::select(vec!["GET", "PUT", "POST"]),
            path in prop::sample::select(vec!["/", "/v1", "/v1/", "/v1/z/1", "/v1z", "/v2"]),
        ) {
            let allow: Vec<_> = rules.into_iter().map(|(caller, path, methods)| rule(caller, path, methods)).collect();
            let policy = Policy::compile(&Some(allow.clone()));
            prop_assert_eq!(policy.check(Some(caller), method, path), naive(&allow, caller, method, path));
            prop_assert!(!policy.check(None, method, path));
        }
    }
}
