use proptest::prelude::*;

use super::*;
use crate::config::model::ExactPath;

fn exact(path: &str) -> PathMatch {
    PathMatch::Exact(ExactPath { exact: path.into() })
}

fn prefix(path: &str) -> PathMatch {
    PathMatch::Prefix(path.into())
}

fn table<'a>(routes: &[(&str, PathMatch, &'a str)]) -> Table<&'a str> {
    Table::compile(routes.iter().map(|(host, path, target)| Entry {
        host: host.parse().unwrap(),
        path: path.clone(),
        target: *target,
    }))
}

#[test]
fn hosts_from_narrow_to_wide() {
    let table = table(&[
        ("*", prefix("/"), "any"),
        ("Orders.Shop", prefix("/"), "host"),
        ("orders.shop:8080", prefix("/v1"), "port"),
        ("[fd00::7]:80", prefix("/"), "v6"),
    ]);
    let find = |host, port, path| table.find(host, port, path).copied();
    assert_eq!(find("orders.shop", Some(8080), "/v1/x"), Some("port"));
    assert_eq!(find("orders.shop", Some(8080), "/v2"), Some("host"));
    assert_eq!(find("orders.shop", Some(81), "/v1"), Some("host"));
    assert_eq!(find("orders.shop", None, "/v1"), Some("host"));
    assert_eq!(find("other.shop", Some(8080), "/v1"), Some("any"));
    assert_eq!(find("[fd00::7]", Some(80), "/"), Some("v6"));
    assert_eq!(find("", None, "*"), Some("any"));
}

#[test]
fn the_next_wider_host_where_the_path_has_nothing() {
    let table = table(&[("a:1", prefix("/x"), "a:1"), ("a", prefix("/y"), "a"), ("*", prefix("/z"), "any")]);
    let find = |path| table.find("a", Some(1), path).copied();
    assert_eq!(find("/x"), Some("a:1"));
    assert_eq!(find("/y"), Some("a"));
    assert_eq!(find("/z"), Some("any"));
    assert_eq!(find("/"), None);
}

#[test]
fn exact_first_then_the_longest_prefix() {
    let table = table(&[
        ("*", prefix("/"), "root"),
        ("*", prefix("/v1/"), "v1"),
        ("*", prefix("/v1/orders/open"), "open"),
        ("*", exact("/v1/orders"), "exact"),
    ]);
    let find = |path| table.find("h", None, path).copied();
    assert_eq!(find("/v1/orders"), Some("exact"));
    assert_eq!(find("/v1/orders/"), Some("v1"));
    assert_eq!(find("/v1/orders/open"), Some("open"));
    assert_eq!(find("/v1/orders/open/7"), Some("open"));
    assert_eq!(find("/v1/orders/opened"), Some("v1"));
    assert_eq!(find("/v1"), Some("v1"));
    assert_eq!(find("/v1/"), Some("v1"));
    assert_eq!(find("/v1x"), Some("root"));
    assert_eq!(find("/"), Some("root"));
    assert_eq!(find("*"), Some("root"));
    assert_eq!(find(""), Some("root"));
    assert_eq!(find(&"/v1".repeat(10_000)), Some("v1"));
}

#[test]
fn the_first_of_two_is_kept() {
    assert_eq!(
        table(&[("*", prefix("/v1"), "1"), ("*", prefix("/v1/"), "2")]).find("", None, "/v1"),
        Some(&"1")
    );
}

#[test]
fn path_matchers() {
    let v1 = PathMatcher::new(&prefix("/v1/"));
    assert!(v1.matches("/v1") && v1.matches("/v1/") && v1.matches("/v1/x"));
    assert!(!v1.matches("/v1x") && !v1.matches("/") && !v1.matches("/V1"));
    assert_eq!(v1, PathMatcher::new(&prefix("/v1")));
    let health = PathMatcher::new(&exact("/health"));
    assert!(health.matches("/health") && !health.matches("/health/"));
    assert!(PathMatcher::new(&prefix("/")).matches("*"));
}

#[test]
fn host_matchers() {
    let of =
        |hosts: &[&str]| HostMatcher::new(&hosts.iter().map(|host| host.to_string()).collect::<Vec<_>>());
    let some = of(&["A.shop", "b:80", "b:81"]);
    assert!(some.matches("a.shop", None) && some.matches("a.shop", Some(9)));
    assert!(some.matches("b", Some(80)) && some.matches("b", Some(81)));
    assert!(!some.matches("b", Some(82)) && !some.matches("b", None) && !some.matches("c", None));
    assert!(of(&["a", "*"]).matches("", None));
    assert!(!of(&["not a host"]).matches("not a host", None));
    assert!(!of(&[]).matches("a", None));
}

/// The rules of this module, said in the plainest way: every route is looked at.
fn naive<'a>(routes: &'a [Entry<usize>], host: &str, port: Option<u16>, path: &str) -> Option<&'a usize> {
    let segments = |path: &str| -> Vec<String> { path.split('/').skip(1).map(str::to_owned).collect() };
    let rank = |entry: &Entry<usize>| -> Option<(u8, bool, usize)> {
        let host_rank = match &entry.host {
            HostPattern::Any => 0,
            HostPattern::Host { host: named, port: None } if named == host => 1,
            HostPattern::Host { host: named, port: some } if named == host && *some == port => 2,
            HostPattern::Host { .. } => return None,
        };
        match &entry.path {
            PathMatch::Exact(exact) => (exact.exact == path).then_some((host_rank, true, 0)),
            PathMatch::Prefix(prefix) => {
                let mut wanted = segments(prefix);
                while wanted.last().is_some_and(String::is_empty) {
                    wanted.pop();
                }
                let has = segments(path);
                let below = has.len() >= wanted.len() && has[..wanted.len()] == wanted[..];
                below.then_some((host_rank, false, wanted.len()))
            }
        }
    };
    // Of equals the first is kept: `max_by_key` would give the last.
    let ranked = routes.iter().filter_map(|entry| Some((rank(entry)?, &entry.target)));
    ranked.rev().max_by_key(|(rank, _)| *rank).map(|(_, target)| target)
}

fn some_path() -> impl Strategy<Value = String> {
    (prop::collection::vec(prop::sample::select(vec!["a", "b", "ab", "v1"]), 0..5), any::<bool>()).prop_map(
        |(segments, slash)| {
            format!("/{}{}", segments.join("/"), if slash && !segments.is_empty() { "/" } else { "" })
        },
    )
}

fn some_route() -> impl Strategy<Value = (HostPattern, PathMatch)> {
    let host = prop_oneof![
        Just(HostPattern::Any),
        (prop::sample::select(vec!["x", "y", "[::1]"]), prop::option::of(1..3u16))
            .prop_map(|(host, port)| HostPattern::Host { host: host.into(), port }),
    ];
    let path = (some_path(), any::<bool>())
        .prop_map(|(path, is_exact)| if is_exact { exact(&path) } else { prefix(&path) });
    (host, path)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn agrees_with_the_naive_matcher(
        routes in prop::collection::vec(some_route(), 0..24),
        requests in prop::collection::vec(
            (prop::sample::select(vec!["x", "y", "[::1]", "z", ""]), prop::option::of(1..4u16), some_path()), 1..12),
    ) {
        let entries: Vec<_> = routes.into_iter().enumerate().map(|(target, (host, path))| Entry { host, path, target }).collect();
        let table = Table::compile(entries.iter().cloned());
        for (host, port, path) in requests {
            prop_assert_eq!(table.find(host, port, &path), naive(&entries, host, port, &path), "{} {:?} {}", host, port, path);
        }
    }

    #[test]
    fn a_table_of_one_is_a_matcher(path in some_path(), is_exact: bool, asked in some_path()) {
        let path = if is_exact { exact(&path) } else { prefix(&path) };
        let table = Table::compile([Entry { host: HostPattern::Any, path: path.clone(), target: () }].into_iter());
        prop_assert_eq!(PathMatcher::new(&path).matches(&asked), table.find("h", None, &asked).is_some());
    }

    #[test]
    fn no_path_panics(asked in "\\PC*|(/|é|[a-z.%]){0,40}") {
        let table = table(&[("*", prefix("/a/b/c"), ""), ("*", prefix("/é"), "")]);
        let _ = table.find("h", None, &asked);
    }
}
