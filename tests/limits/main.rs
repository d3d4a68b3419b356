//! The mesh-wide limit, end to end: sidecars that share a real Redis, and callers that send far
//! more than they may.
//!
//! A request is decided between the moment that its client sends it and the moment that its
//! answer is there. So if all of a request's time lies in a window, so does its decision, and no
//! clock but the test's own is needed: in every window, the admitted requests that lie in it are
//! at most R·T + B. Nothing is allowed on top.

mod answers;
mod policies;
#[path = "../support/mod.rs"]
mod support;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use support::client::{Answer, request, send};
use support::eventually;
use support::lab::{Lab, Pod};
use support::load::{Load, Sending, Tally};
use support::redis::Redis;
use support::sidecar::Sidecar;

const PORT: u16 = 8080;
const HOST: &str = "orders";

/// The limit of most tests.
const RATE: f64 = 200.0;
const BURST: f64 = 100.0;

/// When each admitted request was sent and answered.
type Times = Vec<(Instant, Instant)>;

/// Fails if any window holds more than `rate`·T + `burst` of the requests.
fn assert_bound(times: &Times, rate: f64, burst: f64) {
    let mut times = times.clone();
    times.sort_unstable_by_key(|(_, answered)| *answered);
    for (from, _) in &times {
        let mut held = 0;
        for (sent, to) in &times {
            held += i32::from(sent >= from);
            let window = to.saturating_duration_since(*from).as_secs_f64();
            let most = rate * window + burst;
            assert!(
                f64::from(held) <= most + 1e-6,
                "{held} requests were admitted within {window:.4} s, where {most:.1} may be"
            );
        }
    }
}

/// From the first to the last.
fn span(times: &Times) -> f64 {
    let first = times.iter().map(|(sent, _)| *sent).min().expect("some were admitted");
    let last = times.iter().map(|(_, answered)| *answered).max().expect("some were admitted");
    (last - first).as_secs_f64()
}

/// Fails if much less than the limit was admitted.
fn assert_used(times: &Times, rate: f64) {
    let (admitted, span) = (times.len(), span(times));
    assert!(admitted as f64 >= 0.9 * rate * span, "{admitted} of {rate}/s were admitted in {span:.2} s");
}

fn merged<'a>(tallies: impl IntoIterator<Item = &'a Tally>) -> Times {
    tallies.into_iter().flat_map(|tally| tally.times.clone()).collect()
}

/// Fails unless every request was admitted, or refused by the limit in the way of a limit.
fn assert_refused_by_the_limit(tally: &Tally) {
    assert!(tally.failures.is_empty(), "{tally:#?}");
    let refused = tally.refused.get("limit.exhausted").copied().unwrap_or(0);
    assert!(refused > 0, "nothing was refused: {tally:#?}");
    assert_eq!(tally.statuses.get(&429), Some(&refused), "{tally:#?}");
    assert_eq!(tally.ok() + refused, tally.sent(), "{tally:#?}");
}

fn limit(rate: u32, burst: u32, more: &str) -> String {
    format!("limits: [{{ name: orders, rate: {rate}/s, burst: {burst}, without_redis: closed{more} }}]\n")
}

fn with_redis(redis: &Redis) -> String {
    // A budget that a machine with more load than cores keeps, too.
    format!("redis: {{ url: \"redis://{}\", budget: 500ms }}\n", redis.address())
}

/// A pod whose requests pass a sidecar.
fn caller<'a>(pod: &'a Pod, yaml: &str) -> Sidecar<'a> {
    pod.init();
    pod.sidecar(yaml)
}

/// Several times what the limit admits.
fn flood(from: &Pod, to: SocketAddr) -> Sending {
    Load { connections: 4, pause: Duration::from_millis(3), ..Load::new(to, HOST) }.start(from)
}

fn get(from: &Pod, to: SocketAddr, tenant: &'static str) -> Answer {
    let mut request = request("GET", HOST, "/", "");
    request.headers_mut().insert("x-tenant", hyper::header::HeaderValue::from_static(tenant));
    from.enter(|| send(to, request)).unwrap_or_else(|e| panic!("{}: {e}", from.name()))
}

/// A number of `/limits`, of the first limit.
fn of_limit(sidecar: &Sidecar<'_>, field: &str) -> u64 {
    let limits = sidecar.get("/limits").json();
    limits["limits"][0][field].as_u64().unwrap_or_else(|| panic!("no {field}: {limits}"))
}

/// How often Redis has run the script of limits.
fn scripts(redis: &Redis) -> u64 {
    let stats = redis.command("INFO commandstats");
    let calls = stats.lines().filter_map(|line| {
        let (command, numbers) = line.split_once(":calls=")?;
        let scripted = matches!(command, "cmdstat_eval" | "cmdstat_evalsha");
        scripted.then(|| numbers.split(',').next()?.parse::<u64>().ok())?
    });
    calls.sum()
}

#[test]
fn three_sidecars_hold_one_bound_together() {
    let lab = Lab::new();
    let redis = lab.redis();
    let orders = lab.pod("orders");
    let app = orders.app(orders.addresses(PORT)[0]);
    let pods = ["one", "two", "three"].map(|name| lab.pod(name));
    let yaml = with_redis(&redis) + &limit(RATE as u32, BURST as u32, "");
    let sidecars = pods.each_ref().map(|pod| caller(pod, &yaml));

    let floods = pods.each_ref().map(|pod| flood(pod, app.address()));
    std::thread::sleep(Duration::from_secs(5));
    let tallies = floods.map(Sending::stop);

    let times = merged(&tallies);
    assert_bound(&times, RATE, BURST);
    assert_used(&times, RATE);
    for (tally, sidecar) in tallies.iter().zip(&sidecars) {
        assert_refused_by_the_limit(tally);
        assert!(tally.ok() > 0, "one of the sidecars got nothing: {tally:#?}");
        assert_eq!((of_limit(sidecar, "admitted"), of_limit(sidecar, "sidecars")), (tally.ok(), 3));
    }
    assert_eq!(app.requests().len(), times.len(), "the application saw what was refused");

    // A request asks nobody: leases bring many tokens at once, and a refusal is remembered.
    let (sent, asked) = (tallies.iter().map(Tally::sent).sum::<u64>(), scripts(&redis));
    println!("sent {sent}, admitted {}, scripts run {asked}", times.len());
    assert!(
        asked * 2 < times.len() as u64,
        "{asked} calls of Redis for {} admissions of {sent}",
        times.len()
    );

    let answer = exhausted(&pods[0], app.address());
    assert_eq!((answer.status.as_u16(), answer.refused()), (429, Some("limit.exhausted")));
    let after: u64 = answer.field("retry-after").expect("Retry-After").parse().expect("seconds");
    assert!((1..=2).contains(&after), "{answer:?}");
    assert!(answer.text().contains("orders"), "the answer names the limit: {answer:?}");
}

/// The first refusal that comes of asking on and on.
fn exhausted(from: &Pod, to: SocketAddr) -> Answer {
    let flood = flood(from, to);
    let answer = eventually(Duration::from_secs(10), "a refusal", || {
        Some(get(from, to, "a")).filter(|answer| answer.status != 200)
    });
    flood.stop();
    answer
}

#[test]
fn below_the_limit_redis_is_asked_once_for_many_requests() {
    let lab = Lab::new();
    let redis = lab.redis();
    let (orders, pod) = (lab.pod("orders"), lab.pod("caller"));
    let app = orders.app(orders.addresses(PORT)[0]);
    let sidecar = caller(&pod, &(with_redis(&redis) + &limit(100_000, 100_000, "")));
    let before = scripts(&redis);
    let tally = Load { connections: 4, requests: Some(3000), ..Load::new(app.address(), HOST) }.run(&pod);
    tally.assert_all_ok();
    let asked = scripts(&redis) - before;
    println!("sent {}, scripts run {asked}, waited {}", tally.sent(), of_limit(&sidecar, "waited"));
    assert!(asked * 10 < tally.sent(), "{asked} calls of Redis for {} requests", tally.sent());
    assert!(of_limit(&sidecar, "waited") * 10 < tally.sent(), "requests waited for Redis");
}

#[test]
fn a_limit_tightened_by_reload_holds_at_once() {
    let lab = Lab::new();
    let redis = lab.redis();
    let orders = lab.pod("orders");
    let app = orders.app(orders.addresses(PORT)[0]);
    let pods = ["one", "two"].map(|name| lab.pod(name));
    let yaml = |rate, burst| with_redis(&redis) + &limit(rate, burst, "");
    let sidecars = pods.each_ref().map(|pod| caller(pod, &yaml(300, 150)));

    let floods = pods.each_ref().map(|pod| flood(pod, app.address()));
    std::thread::sleep(Duration::from_secs(2));
    sidecars.iter().for_each(|sidecar| sidecar.configure(&yaml(40, 20)));
    for sidecar in &sidecars {
        eventually(Duration::from_secs(5), "the tighter limit", || {
            (sidecar.get("/limits").json()["limits"][0]["rate"] == "40/s").then_some(())
        });
    }
    let tightened = Instant::now();
    std::thread::sleep(Duration::from_secs(4));
    let tallies = floods.map(Sending::stop);

    let times = merged(&tallies);
    assert_bound(&times, 300.0, 150.0);
    let after: Times = times.iter().filter(|(sent, _)| *sent >= tightened).copied().collect();
    assert_bound(&after, 40.0, 20.0);
    assert!(after.len() as f64 >= 0.75 * 40.0 * 4.0, "{} were admitted after", after.len());
    tallies.iter().for_each(assert_refused_by_the_limit);
}

#[test]
fn a_tenants_flood_does_not_touch_another() {
    let lab = Lab::new();
    let redis = lab.redis();
    let orders = lab.pod("orders");
    let app = orders.app(orders.addresses(PORT)[0]);
    let pods = ["one", "two"].map(|name| lab.pod(name));
    let yaml = with_redis(&redis) + &limit(50, 20, ", key: [\"header:x-tenant\"]");
    let _sidecars = pods.each_ref().map(|pod| caller(pod, &yaml));

    let floods = pods.each_ref().map(|pod| {
        let load = Load::new(app.address(), HOST);
        let pause = Duration::from_millis(3);
        Load { fields: vec![("x-tenant", "loud")], connections: 4, pause, ..load }.start(pod)
    });
    std::thread::sleep(Duration::from_secs(1));
    for _ in 0..40 {
        for pod in &pods {
            let answer = get(pod, app.address(), "quiet");
            assert_eq!(answer.status, 200, "{answer:?}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let tallies = floods.map(Sending::stop);
    tallies.iter().for_each(assert_refused_by_the_limit);
    assert_bound(&merged(&tallies), 50.0, 20.0);
    assert_used(&merged(&tallies), 50.0);
}

#[test]
fn without_a_redis_each_pod_has_the_limit() {
    let lab = Lab::new();
    let orders = lab.pod("orders");
    let app = orders.app(orders.addresses(PORT)[0]);
    let pods = ["one", "two"].map(|name| lab.pod(name));
    let yaml = limit(100, 50, "");
    let _sidecars = pods.each_ref().map(|pod| caller(pod, &yaml));
    let floods = pods.each_ref().map(|pod| flood(pod, app.address()));
    std::thread::sleep(Duration::from_secs(3));
    for tally in floods.map(Sending::stop) {
        assert_refused_by_the_limit(&tally);
        assert_bound(&tally.times, 100.0, 50.0);
        assert_used(&tally.times, 100.0);
    }
}

#[test]
fn the_bound_holds_while_redis_hangs_and_the_limit_is_closed() {
    let lab = Lab::new();
    let redis = lab.redis();
    let orders = lab.pod("orders");
    let app = orders.app(orders.addresses(PORT)[0]);
    let pods = ["one", "two"].map(|name| lab.pod(name));
    let yaml = with_redis(&redis).replace("500ms", "20ms") + &limit(RATE as u32, BURST as u32, "");
    let _sidecars = pods.each_ref().map(|pod| caller(pod, &yaml));

    let floods = pods.each_ref().map(|pod| flood(pod, app.address()));
    std::thread::sleep(Duration::from_secs(1));
    redis.pause();
    let closed = eventually(Duration::from_secs(10), "a closed limit", || {
        let answer = get(&pods[0], app.address(), "a");
        (answer.refused() == Some("limit.unavailable")).then_some(answer)
    });
    assert_eq!(closed.status, 503);
    assert!(closed.field("retry-after").is_some(), "{closed:?}");
    std::thread::sleep(Duration::from_millis(500));
    redis.resume();
    let open = Instant::now();
    eventually(Duration::from_secs(10), "requests that are admitted again", || {
        floods.iter().all(|flood| flood.so_far().times.iter().any(|(sent, _)| *sent > open)).then_some(())
    });
    std::thread::sleep(Duration::from_secs(1));
    let tallies = floods.map(Sending::stop);
    tallies.iter().for_each(|tally| assert!(tally.failures.is_empty(), "{tally:#?}"));
    assert_bound(&merged(&tallies), RATE, BURST);
}

#[test]
fn an_inbound_limit_holds_for_all_callers() {
    let lab = Lab::new();
    let redis = lab.redis();
    let orders = lab.pod("orders");
    let app = orders.app(orders.addresses(PORT)[0]);
    let callers = ["one", "two"].map(|name| lab.pod(name));
    let sidecar = caller(&orders, &(with_redis(&redis) + &limit(100, 50, ", direction: inbound")));
    let floods = callers.each_ref().map(|pod| flood(pod, app.address()));
    std::thread::sleep(Duration::from_secs(3));
    let tallies = floods.map(Sending::stop);
    tallies.iter().for_each(assert_refused_by_the_limit);
    let times = merged(&tallies);
    assert_bound(&times, 100.0, 50.0);
    assert_used(&times, 100.0);
    assert_eq!(app.requests().len(), times.len(), "the application saw what was refused");
    assert_eq!(of_limit(&sidecar, "admitted"), times.len() as u64);
}
