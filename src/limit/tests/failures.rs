//! Redis stopped, killed, and back again.

use super::*;
use crate::config::model::WithoutRedis;
use crate::error::Reason;

/// Far below what the client itself waits for an answer.
const BUDGET: Duration = Duration::from_millis(50);

fn keyed(name: &str, without_redis: WithoutRedis) -> model::Limit {
    let key = vec![KeyPart::Header("x-tenant".into())];
    model::Limit { key, without_redis, ..limit(name, "100/s", 50) }
}

fn decide_now(limits: &Limits, tenant: &str) -> Decision {
    request(tenant, |facts| limits.admit(facts))
}

/// Asks until a request of a tenant never seen before is admitted by Redis.
fn recovered(limits: &Limits) {
    let mut tenant = 0;
    eventually("the limit works again", || {
        tenant += 1;
        block_on(ask(limits, &format!("again {tenant}"))).is_ok()
    });
}

#[test]
fn a_redis_that_hangs_delays_no_one_beyond_the_budget() {
    let server = Server::start();
    let control = control();
    let state = server.state(control.handle(), BUDGET);
    let limits = Limits::compile(&[keyed("orders", WithoutRedis::Closed)], Direction::Outbound, &state);
    recovered(&limits);

    server.signal(Signal::STOP);
    let began = Instant::now();
    let error = block_on(ask(&limits, "a")).expect_err("nobody to ask");
    assert_eq!(error.reason, Reason::LimitUnavailable);
    // Beyond is only what the machine adds: less than the 500 ms after which the client gives up.
    assert!(began.elapsed() < Duration::from_millis(400), "{:?}", began.elapsed());
    // The breaker: whoever comes now does not wait at all.
    eventually("Redis counts as down", || !state.redis().expect("configured").up);
    for tenant in ["a", "b", "c"] {
        let decision = decide_now(&limits, tenant);
        let Decision::Refused(refusal) = decision else { panic!("{decision:?}") };
        assert_eq!(refusal.reason, Reason::LimitUnavailable);
    }

    server.signal(Signal::CONT);
    recovered(&limits);
    eventually("Redis counts as up", || state.redis().expect("configured").up);
}

#[test]
fn a_live_lease_outlives_redis_until_it_expires() {
    let mut server = Server::start();
    let control = control();
    let state = server.state(control.handle(), BUDGET);
    let written = model::Limit { without_redis: WithoutRedis::Closed, ..limit("orders", "10/h", 1000) };
    let limits = Limits::compile(&[written], Direction::Outbound, &state);
    eventually("there is a lease", || block_on(ask(&limits, "t")).is_ok() && limits.snapshot()[0].tokens > 3);
    server.kill();
    let tokens = limits.snapshot()[0].tokens;
    for _ in 0..tokens {
        assert!(matches!(decide_now(&limits, "t"), Decision::Admitted(_)));
    }
    block_on(ask(&limits, "t")).expect_err("the lease is spent");
}

#[test]
fn killed_and_back_again_each_policy_does_as_it_says() {
    let mut server = Server::start();
    let control = control();
    let state = server.state(control.handle(), BUDGET);
    let [open, closed, share] =
        [("open", WithoutRedis::Open), ("closed", WithoutRedis::Closed), ("share", WithoutRedis::Share)]
            .map(|(name, policy)| Limits::compile(&[keyed(name, policy)], Direction::Outbound, &state));
    // A second sidecar is known of, so this one's share is a half.
    let other = server.state(control.handle(), BUDGET);
    let others = Limits::compile(&[keyed("share", WithoutRedis::Share)], Direction::Outbound, &other);
    block_on(ask(&others, "t")).expect("a token");
    block_on(ask(&share, "t")).expect("a token");
    assert_eq!(share.snapshot()[0].sidecars, 2);

    server.kill();
    let _ = block_on(ask(&closed, "a"));
    eventually("Redis counts as down", || !state.redis().expect("configured").up);
    for i in 0..200 {
        assert!(matches!(decide_now(&open, "a"), Decision::Admitted(_)));
        let refused = decide_now(&closed, "b");
        let Decision::Refused(refusal) = refused else { panic!("{i}: {refused:?}") };
        assert_eq!(refusal.reason, Reason::LimitUnavailable);
    }
    assert_eq!(open.snapshot()[0].decided_without_redis, 200);

    // The share starts empty when Redis is lost, and is half of 100/s.
    let lost = clock::now();
    let mut log = Vec::new();
    while clock::now() < lost + 500_000_000 {
        log.extend(block_on(ask(&share, "c")).ok());
        std::thread::sleep(Duration::from_millis(1));
    }
    println!("{} admitted in 500 ms at a share of 50/s", log.len());
    assert!(!log.is_empty());
    assert_bound(&mut log, "50/s".parse().expect("a rate"), 25);

    server.restart();
    for limits in [&open, &closed, &share] {
        recovered(limits);
    }
    eventually("Redis counts as up", || state.redis().expect("configured").up);
    let before = server.script_calls();
    block_on(ask(&closed, "new")).expect("a token from Redis");
    assert!(server.script_calls() > before);
}

#[test]
fn a_redis_that_was_never_there_stops_no_one() {
    let mut server = Server::start();
    server.kill();
    let control = control();
    let state = server.state(control.handle(), BUDGET);
    let limits = Limits::compile(&[keyed("orders", WithoutRedis::Open)], Direction::Outbound, &state);
    for _ in 0..10 {
        block_on(ask(&limits, "a")).expect("open");
    }
    server.restart();
    // Without a request: the refill task looks for itself.
    eventually("Redis counts as up", || state.redis().expect("configured").up);
    block_on(ask(&limits, "b")).expect("a token");
    assert!(limits.snapshot()[0].tokens_granted > 0);
}

/// It says what it is, and fails each grant: what it lies on answers with the wrong kind of value.
#[test]
fn a_redis_that_greets_and_grants_nothing_stays_down() {
    let server = Server::start();
    let (_, name) = key::limit_name("orders", Direction::Outbound, &[KeyPart::Header("x-tenant".into())]);
    let keys: Vec<String> = (0..key::SHARDS).map(|shard| format!("test:{{{shard}}}:i:{name}")).collect();
    let each = |command: &str, more: &[&str]| {
        for key in &keys {
            let mut command = ::redis::cmd(command);
            command.arg(key).arg(more).exec(&mut server.connect()).expect("an answer");
        }
    };
    each("SET", &["a string where the sidecars are"]);
    let control = control();
    let state = server.state(control.handle(), BUDGET);
    let limits = Limits::compile(&[keyed("orders", WithoutRedis::Closed)], Direction::Outbound, &state);
    let redis = || state.redis().expect("configured");
    eventually("Redis is greeted", || redis().up);
    let error = block_on(ask(&limits, "a")).expect_err("no grant");
    assert_eq!(error.reason, Reason::LimitUnavailable);
    let failed = redis().round_trips;
    eventually("it is tried five times more", || {
        let redis = redis();
        assert!(!redis.up, "up after {} round trips", redis.round_trips);
        redis.round_trips > failed + 5
    });
    each("DEL", &[]);
    // Without a request: what failed is asked for until it does not.
    eventually("Redis counts as up", || redis().up);
    recovered(&limits);
}
