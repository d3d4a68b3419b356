mod jwt;
mod limits;

use std::fs;

use super::model::Most;
use super::*;

/// The faults of a text, each as it is shown, without the source.
fn faults(text: &str) -> Vec<String> {
    let problems = parse(text, "t").expect_err("the text was taken");
    problems.to_string().lines().map(|line| line.strip_prefix("t:").unwrap_or(line).to_owned()).collect()
}

#[track_caller]
fn fault(text: &str, expected: &str) {
    let found = faults(text);
    assert!(found.len() == 1 && found[0].starts_with(expected), "expected `{expected}`, found {found:#?}");
}

const ONE: &str = "upstreams: { a: { address: a:80 } }\n";
const IDENTITY: &str = "identity: { certificate: a, key: b, bundle: c }\n";

#[test]
fn nothing_is_the_default() {
    for text in ["", "# nothing\n", "---\n", "\u{feff}", "~"] {
        assert_eq!(parse(text, "t").unwrap(), Model::default(), "{text:?}");
    }
}

#[test]
fn the_example_explains_a_working_sidecar() {
    let model = load(Path::new("deploy/pannier.yaml")).unwrap_or_else(|problems| panic!("{problems}"));
    assert!(!model.upstreams.is_empty() && !model.routes.is_empty() && !model.limits.is_empty());
    assert_eq!(warnings(&model), []);
    // Every section of the model is in the example, so that one who reads it has seen them all.
    let text = fs::read_to_string("deploy/pannier.yaml").unwrap();
    let schema = schema();
    for section in schema["properties"].as_object().unwrap().keys() {
        let named =
            text.lines().any(|line| line.trim_start_matches("# ").starts_with(&format!("{section}:")));
        assert!(named, "the example says nothing of `{section}`");
    }
}

#[test]
fn what_is_written_as_json_reads_back() {
    for text in ["".into(), fs::read_to_string("deploy/pannier.yaml").unwrap()] {
        let model = parse(&text, "t").unwrap();
        let written = serde_json::to_string(&model).unwrap();
        assert_eq!(parse(&written, "json").unwrap(), model);
    }
}

#[test]
fn the_password_is_never_shown() {
    let model = parse("redis: { url: 'redis://u:hush@h/1' }", "t").unwrap();
    assert_eq!(serde_json::to_value(&model).unwrap()["redis"]["url"], "redis://u:***@h/1");
    assert!(!format!("{model:?}").contains("hush"));
    assert!(!faults("redis: { url: 'redis://u:hush@h:x' }")[0].contains("hush"));
    assert!(!faults("redis: { url: 'u:hush@h' }")[0].contains("hush"));
}

#[test]
fn keys_that_are_none_name_the_nearest() {
    fault("upstream: {}", "1:1: upstream: `upstream` is no key here; did you mean `upstreams`?");
    fault(
        "frobnicate: 1",
        "1:1: frobnicate: `frobnicate` is no key here; expected one of `listen`, `application`",
    );
    fault("drain: { acept: 1s }", "1:10: drain.acept: `acept` is no key here; did you mean `accept`?");
    fault("drain: { <<: {} }", "1:10: drain.\"<<\": merge keys are not read");
    fault("drain: {}\ndrain: {}", "2:1: drain: `drain` is here twice; the first is on line 1");
    fault(
        "upstreams:\n  a: { address: a:80 }\n  a: { address: a:81 }",
        "3:3: upstreams.a: `a` is here twice; the first is on line 2",
    );
}

#[test]
fn values_of_the_wrong_kind_say_what_was_expected() {
    fault("workers: 0", "1:10: workers: expected a whole number from 1, found 0");
    fault("workers: two", "1:10: workers: expected a whole number from 1, found `two`");
    fault("workers: '2'", "1:10: workers: expected a whole number from 1, found `2`");
    fault("dns: { mixed_case: yes }", "1:20: dns.mixed_case: expected a boolean, found `yes`");
    assert!(parse("dns: { mixed_case: true }", "t").unwrap().dns.mixed_case);
    fault("workers:", "1:8: workers: nothing stands here; expected a value, or leave the key out");
    fault("inbound: { allow: ~ }", "1:19: inbound.allow: nothing stands here; expected a value");
    fault("routes:", "1:7: routes: nothing stands here; expected a list");
    fault("routes: {}", "1:9: routes: expected a list, found a block of keys");
    fault("drain: [1s]", "1:8: drain: expected a block of keys, found a list");
    fault("[]", "1:1: expected a block of keys, found a list");
    fault("just text", "1:1: expected a block of keys, found `just text`");
    fault("drain: { accept: 5 }", "1:18: drain.accept: `5` is not a time; expected a number and a unit");
    fault("drain: { accept: [5s] }", "1:18: drain.accept: expected a time, as `250ms`");
    fault("application: 8080", "1:14: application: `8080` is not `ip:port`; expected an address");
    fault("listen: { dns: [127.0.0.1:1, x] }", "1:30: listen.dns[1]: `x` is not `ip:port`");
    fault("listen: { dns: {} }", "1:16: listen.dns: expected one value, or a list of them, found a block");
    fault(
        "outbound: { on_mismatch: rout }",
        "1:26: outbound.on_mismatch: `rout` is not known here; did you mean `route`?",
    );
    fault("outbound: { on_mismatch: [] }", "1:26: outbound.on_mismatch: expected one word, found a list");
    fault(
        "outbound: { opaque_ports: [80, 70000] }",
        "1:32: outbound.opaque_ports[1]: expected a whole number from 0 to 65535, found 70000",
    );
    fault(
        "outbound: { opaque_ports: [-1] }",
        "1:28: outbound.opaque_ports[0]: expected a whole number from 0 to 65535, found -1",
    );
    fault("http: { max_header_bytes: 1.5MiB }", "1:27: http.max_header_bytes: `1.5MiB` is not a size");
    fault("limits: [ { name: x, rate: 5 } ]", "1:28: limits[0].rate: `5` is not a rate");
    fault("limits: [ { name: x, rate: 5/s, key: [ip] } ]", "1:39: limits[0].key[0]: `ip` is no key");
    fault("upstreams: { a: {} }", "1:17: upstreams.a: `address` is missing");
    fault(
        "upstreams: { a: { address: a:80, capacity: 0 } }",
        "1:44: upstreams.a.capacity: expected a whole number from 1",
    );
    let route = format!("{ONE}routes:\n  - upstream: a\n    path: {{ exct: /x }}\n");
    fault(&route, "4:13: routes[0].path.exct: `exct` is no key here; did you mean `exact`?");
    let route = format!("{ONE}routes:\n  - upstream: a\n    path: [ /x ]\n");
    fault(
        &route,
        "4:11: routes[0].path: expected a path, as `/v1/` for a prefix, or `{ exact: /health }`, found a list",
    );
}

#[test]
fn every_fault_is_reported_at_its_own_place() {
    let text = "workers: none
upstreams:
  orders: { address: orders, mtls: { mode: always } }
  payments: { adress: payments:80 }
  mail: { address: mail:25, idle: 1s }
routes:
  - { upstream: orders, timeout: soon }
  - { host: b, upstream: mial }
  - { host: a b, path: v1, upstream: mail, retries: 300 }
  - { host: a b, path: v1, upstream: payments }
limits:
  - { rate: 1/s }
";
    let found = faults(text);
    let expected = [
        "1:10: workers: expected a whole number from 1",
        "3:22: upstreams.orders.address: `orders` is not `host:port`: the port is missing",
        "3:44: upstreams.orders.mtls.mode: `always` is not known here; expected one of `require`",
        "4:15: upstreams.payments.adress: `adress` is no key here; did you mean `address`?",
        "5:29: upstreams.mail.idle: `idle` is no key here",
        "7:34: routes[0].timeout: `soon` is not a time",
        "8:26: routes[1].upstream: no upstream is named `mial`; did you mean `mail`?",
        "9:53: routes[2].retries: expected a whole number from 0 to 255, or a block as `{ most: 2, on: [connect, 503] }`, found `300`",
        "10:13: routes[3].host: `a b` is not a host: the host is not a DNS name",
        "10:24: routes[3].path: `v1` is not a path: expected `/` at its beginning",
        "12:5: limits[0]: `name` is missing",
    ];
    for (i, expected) in expected.iter().enumerate() {
        assert!(found.iter().any(|line| line.starts_with(expected)), "{i}: no `{expected}` in {found:#?}");
    }
    // The third route is read without its wrong retries: its host and path are faults too.
    assert_eq!(found.len(), expected.len() + 2, "{found:#?}");
}

#[test]
fn more_faults_than_anyone_reads_end() {
    let text: String = (0..1_000).map(|i| format!("key{i}: 1\n")).collect();
    let found = faults(&text);
    assert_eq!(found.len(), 51);
    assert!(found[50].contains("50 faults are enough"), "{}", found[50]);
}

#[test]
fn retries_and_hedges() {
    let wrong = |route: &str, at: usize, expected: &str| {
        let begin = "  - { upstream: a, ";
        let text = format!("{ONE}routes:\n{begin}{route} }}\n");
        fault(&text, &format!("3:{}: {expected}", begin.len() + at));
    };
    wrong("retries: [1]", 10, "routes[0].retries: expected a whole number from 0 to 255, or a block as");
    wrong("retries: +2", 10, "routes[0].retries: expected a whole number from 0 to 255, or a block as");
    wrong(
        "retries: { on: [600] }",
        17,
        "routes[0].retries.on[0]: `600` is no status of a failure; expected one from 400",
    );
    wrong(
        "retries: { on: [conect] }",
        17,
        "routes[0].retries.on[0]: `conect` is no failure; did you mean `connect`?",
    );
    wrong("retries: { on: [503, 503] }", 22, "routes[0].retries.on[1]: `503` is in the list already");
    wrong("retries: { on: [] }", 16, "routes[0].retries.on: an empty list sends nothing again");
    wrong("retries: { try_timeout: 0s }", 25, "routes[0].retries.try_timeout: nothing is done in no time");
    wrong(
        "retries: { backoff: { first: 1s } }",
        30,
        "routes[0].retries.backoff.first: `first` (1s) is above `most` (500ms)",
    );
    wrong("hedge: { after: p100 }", 17, "routes[0].hedge.after: `p100` is no share; expected `p1` to `p99`");
    wrong("hedge: { after: 0s }", 17, "routes[0].hedge.after: nothing is done in no time");
    fault(
        "upstreams: { a: { address: a:80, retry_budget: { share: 120% } } }",
        "1:57: upstreams.a.retry_budget.share: `120%` is not a share",
    );
}

#[test]
fn names_that_do_not_resolve() {
    fault("routes: [ { upstream: a } ]", "1:23: routes[0].upstream: no upstream is named `a`");
    let text = format!("{ONE}routes:\n  - upstream: b\n");
    fault(&text, "3:15: routes[0].upstream: no upstream is named `b`; did you mean `a`?");
}

#[test]
fn routes() {
    let with = |route: &str| {
        format!("{ONE}routes:\n  - {{ upstream: a, host: x, path: /v1 }}\n  - {{ upstream: a, {route} }}\n")
    };
    parse(&with("host: x, path: /v2"), "t").unwrap();
    parse(&with("host: x, path: { exact: /v1 }"), "t").unwrap();
    parse(&with("host: 'x:80', path: /v1"), "t").unwrap();
    fault(
        &with("host: X, path: /v1/"),
        "4:26: routes[1].host: `x` with this path has a route already, on line 3",
    );
    fault(
        &with("host: [y, x.], path: /v1"),
        "4:30: routes[1].host[1]: `x` with this path has a route already",
    );
    fault(
        &with("host: [y, Y]"),
        "4:30: routes[1].host[1]: `y` with this path has a route already, on line 4",
    );
    fault(&with("host: []"), "4:26: routes[1].host: an empty list names no host");
    fault(&with("host: '*.shop'"), "4:26: routes[1].host: `*.shop` is not a host: `*` stands alone");
    fault(&with("path: /v1/*"), "4:26: routes[1].path: `/v1/*` is not a path: there are no wildcards");
    fault(&with("timeout: 0s"), "4:29: routes[1].timeout: nothing is done in no time");
    fault(&with("body_timeout: 0s"), "4:34: routes[1].body_timeout: nothing is done in no time");
    fault(&with("min_body_rate: x"), "4:35: routes[1].min_body_rate: `x` is not a rate");
}

#[test]
fn upstreams() {
    let with = |more: &str| format!("{IDENTITY}upstreams:\n  a: {{ address: a:80, {more} }}\n");
    parse(&with("mtls: {}, endpoints: [10.0.0.1:80, '[fd00::1]:80']"), "t").unwrap();
    parse(&with("endpoints: [b:80], idle_timeout: 0s"), "t").unwrap();
    fault(&with("endpoints: []"), "3:34: upstreams.a.endpoints: an empty list has no endpoint");
    fault(&with("endpoints: [10.0.0.1:80, b:80]"), "3:48: upstreams.a.endpoints[1]: a list is of `ip:port`");
    fault(
        &with("endpoints: [10.0.0.1:80, 10.0.0.1:80]"),
        "3:48: upstreams.a.endpoints[1]: `10.0.0.1:80` is in the list already",
    );
    fault(&with("connect_timeout: 0s"), "3:40: upstreams.a.connect_timeout: nothing is done in no time");
    fault(
        &with("mtls: { peer: cluster.local/x }"),
        "3:37: upstreams.a.mtls.peer: `cluster.local/x` is not a SPIFFE id",
    );
    fault(
        &with("mtls: { mode: off, peer: spiffe://td/x }"),
        "3:48: upstreams.a.mtls.peer: nobody proves an id where",
    );
    fault("upstreams: { 'a b': { address: a:80 } }", "1:14: upstreams.\"a b\": `a b` is not a name");
    let twins = "upstreams: { a: { address: x:80 }, b: { address: X:80 } }\n";
    fault(twins, "1:50: upstreams.b.address: `x:80` is the address of `a` too");
    parse(
        &format!(
            "{twins}routes: [ {{ host: x, path: /1, upstream: a }}, {{ host: x, path: /2, upstream: b }} ]"
        ),
        "t",
    )
    .unwrap();
}

#[test]
fn how_requests_are_balanced() {
    let with = |more: &str| format!("upstreams:\n  a: {{ address: a:80, {more} }}\n");
    parse(
        &with("ejection: { errors: 3, ratio: 100%, share: 0%, pause: 2s }, queue: { requests: 0, time: 0s }"),
        "t",
    )
    .unwrap();
    fault(&with("ejection: { ratio: 0% }"), "2:42: upstreams.a.ejection.ratio: one error would eject");
    fault(&with("ejection: { ratio: 20 }"), "2:42: upstreams.a.ejection.ratio: `20` is not a share");
    fault(
        &with("ejection: { errors: 0 }"),
        "2:43: upstreams.a.ejection.errors: expected a whole number from 1",
    );
    fault(&with("ejection: { lots: 1 }"), "2:35: upstreams.a.ejection.lots: `lots` is no key here");
    fault(&with("ejection: { pause: 0s }"), "2:42: upstreams.a.ejection.pause: nothing is done in no time");
    fault(&with("ejection: { pause: 5m }"), "2:42: upstreams.a.ejection.pause: `longest` (2m) is less than");
    fault(&with("ejection: { longest: 1ms }"), "2:44: upstreams.a.ejection.longest: `longest` (1ms) is less");
    fault(&with("queue: { time: 0s }"), "2:38: upstreams.a.queue.time: nobody waits for no time");
    fault(&with("queue: 10"), "2:30: upstreams.a.queue: expected a block of keys");
    fault(&with("subset: 0"), "2:31: upstreams.a.subset: expected a whole number from 1");
    let with = |sticky: &str| format!("{ONE}routes:\n  - {{ upstream: a, sticky: {sticky} }}\n");
    parse(&with("{ header: X-User }"), "t").unwrap();
    parse(&with("{ cookie: __Host-session }"), "t").unwrap();
    fault(&with("{ header: '' }"), "3:38: routes[0].sticky.header: `` is not a field's name");
    fault(&with("{ header: x user }"), "3:38: routes[0].sticky.header: `x user` is not a field's name");
    fault(&with("{ cookie: a=b }"), "3:38: routes[0].sticky.cookie: `a=b` is not a cookie's name");
    fault(
        &with("{ heder: x }"),
        "3:30: routes[0].sticky.heder: `heder` is no key here; did you mean `header`?",
    );
    fault(&with("{ header: x, cookie: y }"), "3:28: routes[0].sticky: ");
    fault(&with("x-user"), "3:28: routes[0].sticky: ");
    fault("zone: ''", "1:7: zone: nothing stands here; expected a zone's name");
}

#[test]
fn what_the_application_is_given() {
    let with = |more: &str| format!("inbound: {{ {more} }}");
    parse(&with("capacity: 8, max_in_flight: 16, probes: [/health, { exact: /ready }]"), "t").unwrap();
    assert_eq!(
        parse(&with("max_in_flight: learned"), "t").unwrap().inbound.max_in_flight,
        Some(Most::Learned)
    );
    let number = "expected a whole number from 1, or `learned`";
    fault(&with("max_in_flight: 0"), &format!("1:27: inbound.max_in_flight: {number}"));
    fault(&with("max_in_flight: many"), &format!("1:27: inbound.max_in_flight: {number}"));
    fault(&with("max_in_flight: []"), &format!("1:27: inbound.max_in_flight: {number}"));
    fault(&with("capacity: 0"), "1:22: inbound.capacity: expected a whole number from 1");
    fault(&with("probes: [/health, ready]"), "1:30: inbound.probes[1]: `ready` is not a path: expected `/`");
    fault(
        &with("probes: [{ exact: ready }]"),
        "1:21: inbound.probes[0]: `ready` is not a path: expected `/`",
    );
}

#[test]
fn mtls_without_an_identity() {
    fault(
        "upstreams: { a: { address: a:80, mtls: {} } }",
        "1:34: upstreams.a.mtls.mode: mTLS is required, but no `identity`",
    );
    fault(
        "upstreams: { a: { address: a:80, mtls: { mode: require } } }",
        "1:48: upstreams.a.mtls.mode: mTLS is required, but no `identity`",
    );
    parse("upstreams: { a: { address: a:80, mtls: { mode: prefer } } }", "t").unwrap();
    fault("inbound: { mtls: strict }", "1:18: inbound.mtls: mTLS is required, but no `identity`");
    fault(
        "inbound: { allow: [ { caller: '*' } ] }",
        "1:19: inbound.allow: callers prove who they are by mTLS",
    );
    let off = format!("{IDENTITY}inbound: {{ mtls: off, allow: [ {{ caller: '*' }} ] }}");
    fault(&off, "2:30: inbound.allow: callers prove who they are by mTLS, and `inbound.mtls` is `off`");
    // A wrong identity is one fault, not one for each that needs it.
    fault("identity: { certificate: a }\ninbound: { mtls: strict }", "1:11: identity: `key` is missing");
    fault(
        &IDENTITY.replace("certificate: a", "certificate: ''"),
        "1:26: identity.certificate: expected a file's path",
    );
}

#[test]
fn inbound() {
    let with = |rule: &str| format!("{IDENTITY}inbound:\n  allow:\n    - {{ {rule} }}\n");
    parse(&with("caller: spiffe://td/ns/*, path: { exact: /x }, method: GET"), "t").unwrap();
    fault(&with("caller: spiffe://td*"), "4:17: inbound.allow[0].caller: `spiffe://td*` is not a caller");
    fault(&with("caller: '*', path: x"), "4:28: inbound.allow[0].path: `x` is not a path");
    fault(
        &with("caller: '*', method: [GET, post]"),
        "4:36: inbound.allow[0].method[1]: methods are told apart by case",
    );
    fault(&with("caller: '*', method: []"), "4:30: inbound.allow[0].method: an empty list names no method");
}

#[test]
fn listeners() {
    parse(
        "listen: { outbound: 127.0.0.1:0, inbound: 127.0.0.1:0, admin: 127.0.0.1:0, probes: 0.0.0.0:0 }",
        "t",
    )
    .unwrap();
    fault(
        "listen: { outbound: 127.0.0.1:15006 }",
        "1:1: listen.inbound: 0.0.0.0:15006 is taken already by `outbound`",
    );
    fault(
        "listen: { probes: 0.0.0.0:15000 }",
        "1:19: listen.probes: 0.0.0.0:15000 is taken already by `admin`",
    );
    fault("listen: { admin: 0.0.0.0:15000 }", "1:18: listen.admin: the admin door can drain");
    fault("application: 127.0.0.1:15006", "1:14: application: this is the sidecar's own `listen.inbound`");
    fault("application: 127.0.0.1:0", "1:14: application: the port is 0");
    fault("workers: 5000", "1:10: workers: expected at most 1024");
}

#[test]
fn other_values_that_cannot_be_meant() {
    fault("dns: { timeout: 0s }", "1:17: dns.timeout: nothing is done in no time");
    fault(
        "dns: { domains: { 'a..b': [10.0.0.1:53] } }",
        "1:27: dns.domains.\"a..b\": `a..b` is not a domain; expected one as `endpoints.mesh`",
    );
    fault("dns: { domains: { mesh: [] } }", "1:25: dns.domains.mesh: expected at least one server");
    fault("dns: { domains: { mesh: 10.0.0.1:0 } }", "1:25: dns.domains.mesh: the port is 0; expected the");
    fault("dns: { jitter: 5 }", "1:16: dns.jitter: `5` is not a share; expected `0%` to `100%`");
    fault("dns: { jitter: 101% }", "1:16: dns.jitter: `101%` is not a share; expected `0%` to `100%`");
    fault(
        "upstreams: { a: { address: 'a:80', endpoints: _http } }",
        "1:47: upstreams.a.endpoints: `_http` is not an SRV name",
    );
    fault("dns: { min_ttl: 10m }", "1:17: dns.min_ttl: `min_ttl` (10m) is above `max_ttl` (5m)");
    fault("dns: { servers: ['10.0.0.1:0'] }", "1:18: dns.servers[0]: the port is 0");
    fault("http: { header_timeout: 0s }", "1:25: http.header_timeout: nothing is done in no time");
    fault("http: { max_header_bytes: 10 }", "1:27: http.max_header_bytes: expected from 1KiB to 1MiB");
    fault("http: { max_headers: 257 }", "1:22: http.max_headers: expected at most 256");
    fault("http: { max_streams: 0 }", "1:22: http.max_streams: expected a whole number from 1");
    fault("http: { min_body_rate: 0 }", "1:24: http.min_body_rate: `0` is not a rate");
    fault("inbound: { http: { body_timeout: 0s } }", "1:34: inbound.http.body_timeout: nothing is done in");
    fault(
        "outbound: { http: { max_headers: 999 } }",
        "1:34: outbound.http.max_headers: expected at most 256",
    );
    fault("outbound: { http: { max_strems: 9 } }", "1:21: outbound.http.max_strems: `max_strems` is no key");
    fault("outbound: { max_connections: 0 }", "1:30: outbound.max_connections: expected a whole number");
    fault("inbound: { connect_timeout: 0s }", "1:29: inbound.connect_timeout: nothing is done in no time");
    fault("inbound: { opaque_ports: [0] }", "1:27: inbound.opaque_ports[0]: expected a port");
    fault("inbound: { opaque_ports: [25, 25] }", "1:31: inbound.opaque_ports[1]: 25 is in the list already");
}

#[test]
fn text_that_is_no_yaml_ends_at_its_fault() {
    fault("routes: [ {\n", "1:11: not valid YAML: ");
    fault("a: 'b\n", "1:4: not valid YAML: ");
    fault("drain:\n\taccept: 1s\n", "2:");
    fault("drain: {}\n---\ndrain: {}\n", "2:1: a second document begins here");
}

#[test]
fn files_that_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let wrong = |path: &Path| {
        let problems = load(path).unwrap_err().to_string();
        problems.strip_prefix(&path.display().to_string()).unwrap().to_owned()
    };
    assert!(wrong(&dir.path().join("none")).starts_with(": cannot read the file: No such file"));
    assert_eq!(wrong(dir.path()), ": this is a directory; expected a file");

    let file = dir.path().join("file");
    fs::write(&file, b"# \xc3\xa9\na: \xff\n").unwrap();
    assert_eq!(wrong(&file), ":2:4: the byte here is not UTF-8");
    fs::write(&file, vec![b'#'; (8 << 20) + 1]).unwrap();
    assert_eq!(wrong(&file), ": the file is larger than 8 MiB");
    fs::write(&file, vec![b'#'; 8 << 20]).unwrap();
    load(&file).unwrap();
}

#[test]
fn the_schema_knows_what_may_be_left_out() {
    let schema = schema();
    let upstream = &schema["$defs"]["Upstream"];
    assert_eq!(upstream["required"], serde_json::json!(["address"]));
    assert_eq!(upstream["additionalProperties"], false);
    assert!(!schema.to_string().contains("\"null\""));
}

proptest::proptest! {
    #[test]
    fn no_text_panics(text in "\\PC*|([a-z:{}\\[\\]&*!|>'\"#,~ \n-]|routes|upstreams|  ){0,60}") {
        let _ = parse(&text, "t");
    }
}
