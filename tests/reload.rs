//! A new configuration costs no request, and takes effect at once; a bad one changes nothing.

mod support;

use std::time::{Duration, Instant};

use support::app::App;
use support::client::get;
use support::eventually;
use support::lab::Pod;
use support::load::Load;
use support::shop::{HOST, PATIENCE, PORT, Shop};
use support::sidecar::Sidecar;

/// What is sent while the configuration changes.
const REQUESTS: u64 = 50_000;

const CONNECTIONS: usize = 16;

/// The change that a reload is meant to be in time for.
const IN_TIME: Duration = Duration::from_secs(1);

const OUTBOUND: ([u8; 4], u16) = ([127, 0, 0, 1], 15001);

/// The caller's configuration number `n`: no two neighbours agree on a route, a limit or a
/// capacity, and every other pair has one more upstream.
fn caller(shop: &Shop, archive: &Pod, n: usize) -> String {
    let more = format!(
        "  archive: {{ address: archive:{PORT}, endpoints: {archive}, mtls: {{ mode: off }}, capacity: {capacity} }}
{added}routes:
- {{ host: {HOST}, path: /canary, upstream: {canary} }}
- {{ host: {HOST}, upstream: orders, timeout: {timeout}s, retries: {retries} }}
- {{ host: route-{n}, upstream: orders }}
limits:
- {{ name: orders, host: {HOST}, scope: pod, rate: {rate}/s }}
{limit}http: {{ max_headers: {headers} }}
",
        archive = archive.addresses(PORT)[0],
        added = if n % 4 < 2 { "" } else { "  added: { address: added:80, endpoints: 10.0.0.1:80 }\n" },
        canary = if n.is_multiple_of(2) { "orders" } else { "archive" },
        timeout = 60 + n,
        retries = 2 + n % 3,
        rate = 1_000_000 + n,
        limit = if n % 3 == 0 { "" } else { "- { name: another, path: /nobody, scope: pod, rate: 1/s }\n" },
        capacity = 1 + n,
        headers = 100 + n,
    );
    shop.calls(&format!("    capacity: {}\n", 1000 + n), &more)
}

/// The orders side's configuration number `n`.
fn orders(identity: &str, n: usize) -> String {
    format!(
        "{identity}inbound:
  mtls: strict
  allow:
  - {{ caller: spiffe://cluster.local/ns/shop/* }}
  - {{ caller: spiffe://cluster.local/ns/test/sa/number-{n} }}
limits:
- {{ name: calls, direction: inbound, scope: pod, key: [caller], rate: {rate}/s }}
http: {{ max_headers: {headers} }}
",
        rate = 1_000_000 + n,
        headers = 100 + n,
    )
}

/// Which pod's application answers the canary.
fn canary(shop: &Shop) -> String {
    let answer = shop.caller.enter(|| get(OUTBOUND.into(), HOST, "/canary")).expect("an answer");
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.pod().expect("an application").to_owned()
}

fn max_headers(sidecar: &Sidecar) -> usize {
    sidecar.get("/config").json()["config"]["http"]["max_headers"].as_u64().expect("a number") as usize
}

/// Connections that callers have opened to a sidecar.
fn accepted(sidecar: &Sidecar) -> f64 {
    sidecar.metric("pannier_downstream_accepted_total", &["direction=\"inbound\""])
}

#[test]
fn fifty_thousand_requests_through_reloads_and_none_fails() {
    let (shop, _dns) = Shop::new(5);
    let archive = shop.lab.pod("archive");
    let apps = [&shop.one, &shop.two, &archive].map(|pod| pod.app(pod.addresses(PORT)[0]));
    let identities = [&shop.one, &shop.two].map(|pod| shop.orders(pod, ""));
    let one = shop.one.sidecar(&orders(&identities[0], 0));
    let two = shop.two.sidecar(&orders(&identities[1], 0));
    let sidecar = shop.caller.sidecar(&caller(&shop, &archive, 0));

    // Every worker has its connections to both.
    let warm = 4_000;
    Load { connections: CONNECTIONS, requests: Some(warm), ..shop.load() }.run(&shop.caller).assert_all_ok();
    let (to_one, to_two) = (accepted(&one), accepted(&two));
    let connections = sidecar.orders()["connections"].clone();
    assert!(to_one > 0.0 && to_two > 0.0);

    let sending =
        Load { connections: CONNECTIONS, requests: Some(REQUESTS), ..shop.load() }.start(&shop.caller);
    let (mut n, mut canaries, mut times) = (0, 0, Vec::new());
    let mut bad = 0;
    while sending.so_far().sent() < REQUESTS * 9 / 10 || n < 6 {
        n += 1;
        let yaml = caller(&shop, &archive, n);
        let begun = Instant::now();
        match n % 3 {
            0 => sidecar.configure(&yaml),
            1 => sidecar.swap(&yaml),
            _ => sidecar.overwrite(&yaml),
        }
        one.swap(&orders(&identities[0], n));
        let answers = |pod: &str| (pod == archive.name()) == (n % 2 == 1);
        eventually(PATIENCE, "the new route", || {
            canaries += 1;
            answers(&canary(&shop)).then_some(())
        });
        times.push(begun.elapsed());
        eventually(PATIENCE, "the other side's change", || (max_headers(&one) == 100 + n).then_some(()));
        assert_eq!(max_headers(&sidecar), 100 + n);
        if n % 5 == 2 {
            refused(&sidecar, &caller(&shop, &archive, n + 1), bad);
            bad += 1;
            canaries += 1;
            assert!(answers(&canary(&shop)), "a refused configuration took effect");
        }
    }
    let tally = sending.finish();
    tally.assert_all_ok();
    assert_eq!(tally.sent(), REQUESTS);
    times.sort_unstable();
    let (median, longest) = (times[times.len() / 2], times[times.len() - 1]);
    println!(
        "{n} configurations on either side, {bad} refused, {} requests: no failure; in effect after {median:?} in \
         the middle, {longest:?} at most; {} and {} connections to the applications",
        tally.sent(),
        apps[0].connections(),
        apps[1].connections(),
    );
    assert!(median < IN_TIME, "in effect after {median:?}");

    assert_eq!((accepted(&one), accepted(&two)), (to_one, to_two), "connections were opened anew");
    assert_eq!(sidecar.orders()["connections"], connections);
    // Here one may be closed for its idleness; dropped with the old configuration, all would be.
    let kept = |app: &App| app.connections() < (CONNECTIONS * n / 2) as u64;
    assert!(kept(&apps[0]) && kept(&apps[1]), "connections to the applications were opened anew");
    let outbound = ["direction=\"outbound\"", "code=\"2xx\""];
    let counted = sidecar.metric("pannier_requests_total", &outbound);
    assert_eq!(counted as u64, warm + REQUESTS + canaries, "counts were lost");
    let admitted = sidecar.metric("pannier_limit_admitted_total", &["limit=\"orders\""]);
    assert_eq!(admitted as u64, warm + REQUESTS + canaries, "a limit's counts were lost");
}

/// Writes a configuration with an error: it is refused aloud, and the running one is untouched.
fn refused(sidecar: &Sidecar, yaml: &str, refused_before: usize) {
    let yaml = yaml.replace("upstream: orders, timeout", "upstream: ordres, timeout");
    let line = yaml.lines().position(|line| line.contains("ordres")).expect("the error");
    let column = yaml.lines().nth(line).and_then(|line| line.find("ordres")).expect("the error");
    let place = format!("pannier.yaml:{}:{}: ", line + 1, column + 1);
    let generation = |sidecar: &Sidecar| sidecar.get("/config").json()["generation"].clone();
    let (running, places) = (generation(sidecar), sidecar.log().matches(&place).count());
    sidecar.configure(&yaml);
    eventually(PATIENCE, "the refusal", || {
        let refused = sidecar.metric("pannier_config_reloads_total", &["result=\"refused\""]);
        (refused > refused_before as f64).then_some(())
    });
    let log = sidecar.log();
    assert!(log.matches(&place).count() > places, "no {place} in the log:\n{log}");
    assert!(log.contains("no upstream is named `ordres`"), "{log}");
    let ready = sidecar.probe("/ready");
    assert_eq!(ready.status, 200);
    assert!(ready.text().contains(&place), "{}", ready.text());
    assert_eq!(generation(sidecar), running);
}
