use super::*;

fn with(limit: &str) -> String {
    format!("limits:\n  - {{ name: x, rate: 5/s }}\n  - {{ rate: 5/s, {limit} }}\n")
}

/// The one fault of a text says this.
#[track_caller]
fn says(text: &str, expected: &str) {
    let found = faults(text);
    assert!(found.len() == 1 && found[0].contains(expected), "expected `{expected}`, found {found:#?}");
}

#[test]
fn limits() {
    for good in [
        "name: y, burst: 1, scope: pod",
        "name: y, burst: 1, exact: true",
        "name: y, header: { X-A: [a, 'b*'], x-c: '*' }",
        "name: y, key: [path, \"header:a\"], keys: [{ is: [/a, 'b*'], rate: 9/m, burst: 2 }]",
        "name: y, burst: 5, lease: 800ms, cost: 1, observe: true, count_retries: true, status: 503",
        "name: y, burst: 20, cost: { header: x-cost, default: 10 }",
    ] {
        parse(&with(good), "t").unwrap_or_else(|problems| panic!("{good}: {problems}"));
    }
    let known = format!("{IDENTITY}{}", with("name: y, caller: 'spiffe://d/ns/a/*'"));
    parse(&known, "t").unwrap();
    says(&with("name: y, caller: 'spiffe://d/ns/a/*'"), "limits[1].caller: without an `identity`");
    fault(&with("name: x"), "3:24: limits[1].name: `x` is the name of another limit, on line 2");
    fault(&with("name: x y"), "3:24: limits[1].name: `x y` is not a name");
    fault(&with("name: y, host: a/b"), "3:33: limits[1].host: `a/b` is not a host");
    fault(&with("name: y, path: '/?'"), "3:33: limits[1].path: `/?` is not a path: the query");
    fault(&with("name: y, method: get"), "3:35: limits[1].method: methods are told apart by case");
    fault(&with("name: y, key: [host, host]"), "3:39: limits[1].key[1]: `host` is in the key already");
    fault(&with("name: y, key: [ip]"), "3:33: limits[1].key[0]: `ip` is no key");
}

#[test]
fn what_a_limit_holds_for() {
    says(&with("name: y, header: { 'a b': c }"), "limits[1].header");
    says(&with("name: y, header: { a: [] }"), "limits[1].header.a: an empty list fits no value");
    says(&with("name: y, header: { a: 'a*b' }"), "limits[1].header.a: `a*b`: `*` stands at the end alone");
    let known = |limit| format!("{IDENTITY}{}", with(limit));
    fault(&known("name: y, caller: bob"), "4:35: limits[1].caller: `bob`");
    fault(&known("name: y, caller: []"), "4:35: limits[1].caller: an empty list names no caller");
    says(&with("name: y, claim: { a: b }"), "limits[1].claim: without `jwt` no token is verified");
    fault(&with("name: y, key: [\"claim:a\"]"), "3:33: limits[1].key[0]: without `jwt`");
}

#[test]
fn rates_of_keys_own() {
    says(&with("name: y, keys: [{ is: a, rate: 1/s }]"), "limits[1].keys: there is one count for all");
    let keyed = |keys: &str| with(&format!("name: y, key: [host, method], keys: [{keys}]"));
    says(&keyed("{ is: a, rate: 1/s }"), "limits[1].keys[0].is: expected 2 values");
    says(&keyed("{ is: [a, 'b*c'], rate: 1/s }"), "limits[1].keys[0].is[1]: `b*c`");
    says(&keyed("{ is: [a, b], rate: 1/s, burst: 1 }"), "limits[1].keys[0].burst: expected at least 2");
}

#[test]
fn tokens_that_a_request_can_have() {
    fault(&with("name: y, burst: 1"), "3:34: limits[1].burst: expected at least 2");
    says(&with("name: y, burst: 6, lease: 1s1"), "limits[1].lease: `1s1` is not a time");
    says(&with("name: y, burst: 6, lease: 1001ms"), " is too long for 5/s and a burst of 6");
    says(&with("name: y, burst: 6, lease: 0s"), "limits[1].lease: expected more than nothing");
    says(&with("name: y, scope: pod, lease: 1s"), "limits[1].lease: a limit of `scope: pod`");
    says(
        &with("name: y, burst: 6, cost: 4"),
        "limits[1].cost: a bucket of 5/s and a burst of 6 never holds more than 3",
    );
    says(&with("name: y, burst: 6, cost: { header: a, default: 4 }"), "limits[1].cost.default: a bucket");
    says(&with("name: y, cost: 0"), "limits[1].cost: ");
    says(&with("name: y, cost: { header: 'a b' }"), "limits[1].cost.header: `a b` is not a field's name");
    says(&with("name: y, status: 200"), "limits[1].status: 200 is no refusal");
}

#[test]
fn what_does_not_go_together() {
    for (with_exact, why) in [
        ("scope: pod", "asks nobody"),
        ("lease: 1s, burst: 20", "it keeps no token"),
        ("observe: true", "delays nobody"),
        ("count_retries: true", "none is kept"),
    ] {
        let problems = parse(&with(&format!("name: y, exact: true, {with_exact}")), "t").unwrap_err();
        let text = problems.to_string();
        assert!(text.contains("limits[1].exact") && text.contains(why), "{text}");
    }
}
