//! Sidecars that share a limit through a real Redis.

use super::*;

const BUDGET: Duration = Duration::from_secs(2);

/// Sends requests without pause until `end`, and gives the times of the admitted ones.
async fn overload(limits: &Limits, end: Instant) -> Vec<u64> {
    let mut log = Vec::new();
    while Instant::now() < end {
        match ask(limits, "t").await {
            Ok(at) => log.push(at),
            Err(error) => {
                assert_eq!(error.reason, crate::error::Reason::LimitExhausted, "{error}");
                let pause = error.retry_after.unwrap_or_default().min(Duration::from_millis(2));
                tokio::time::sleep(pause).await;
            }
        }
    }
    log
}

#[test]
fn three_sidecars_hold_the_bound_and_use_what_it_allows() {
    let server = Server::start();
    let control = control();
    let written = limit("orders", "2000/s", 1000);
    let greeted = server.greeted(control.handle(), 3);
    let began = Instant::now();
    let end = began + Duration::from_millis(2500);
    let logs: Vec<Vec<u64>> = std::thread::scope(|scope| {
        let sidecar = || {
            let state = server.state(control.handle(), BUDGET);
            let limits = Limits::compile(std::slice::from_ref(&written), Direction::Outbound, &state);
            block_on(overload(&limits, end))
        };
        let threads: Vec<_> = (0..3).map(|_| scope.spawn(sidecar)).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let seconds = began.elapsed().as_secs_f64();
    let shares: Vec<usize> = logs.iter().map(Vec::len).collect();
    let mut log = logs.concat();
    assert_bound(&mut log, written.rate, 1000);
    let calls = server.script_calls() - greeted;
    println!("{} of {:.0} at R, {shares:?}, {calls} calls of the script", log.len(), 2000.0 * seconds);
    assert!(log.len() as f64 >= 0.95 * 2000.0 * seconds, "{} in {seconds} s", log.len());
    assert!(calls * 20 < log.len() as u64, "{calls} calls for {} admissions", log.len());
    assert!(shares.iter().all(|share| share * 20 > log.len()), "each has a twentieth and more: {shares:?}");
}

#[test]
fn a_live_lease_asks_nobody() {
    let server = Server::start();
    let control = control();
    let greeted = server.greeted(control.handle(), 1);
    let state = server.state(control.handle(), BUDGET);
    // A token is good for 50 s: nothing expires in this test.
    let limits = Limits::compile(&[limit("orders", "1000/s", 100_000)], Direction::Outbound, &state);
    for _ in 0..20_000 {
        block_on(ask(&limits, "t")).expect("far below the limit");
    }
    let report = &limits.snapshot()[0];
    let calls = server.script_calls() - greeted;
    println!("{calls} calls of the script, {} waits for 20000 requests", report.waited);
    // Twice as many tokens at each call: from 1 to 20000 in about 15.
    assert!(calls < 60, "{calls}");
    assert!(report.waited < 60, "{}", report.waited);
    assert_eq!((report.admitted, report.refused), (20_000, 0));
}

#[test]
fn a_key_used_once_takes_one_token() {
    let server = Server::start();
    let control = control();
    let written = limit("orders", "1/h", 10);
    for expected in [true, true, true, true, true, false] {
        let state = server.state(control.handle(), BUDGET);
        let limits = Limits::compile(std::slice::from_ref(&written), Direction::Outbound, &state);
        assert_eq!(block_on(ask(&limits, "t")).is_ok(), expected, "B' is 5");
    }
}

#[test]
fn keys_are_apart_and_the_same_for_every_sidecar() {
    let server = Server::start();
    let control = control();
    let written = model::Limit { key: vec![KeyPart::Header("x-tenant".into())], ..limit("orders", "1/h", 4) };
    let sidecars: Vec<Limits> = (0..2)
        .map(|_| {
            let state = server.state(control.handle(), BUDGET);
            Limits::compile(std::slice::from_ref(&written), Direction::Outbound, &state)
        })
        .collect();
    for tenant in ["a", "b", "c"] {
        let admitted = (0..10).filter(|i| block_on(ask(&sidecars[i % 2], tenant)).is_ok()).count();
        assert_eq!(admitted, 2, "B' is 2");
    }
    let mut connection = server.connect();
    let keys: Vec<String> = ::redis::cmd("KEYS").arg("*").query(&mut connection).expect("keys");
    assert!(keys.iter().all(|key| key.starts_with("test:{")), "{keys:?}");
    for key in keys {
        let ttl: i64 = ::redis::cmd("PTTL").arg(&key).query(&mut connection).expect("a time");
        assert!(ttl > 0, "{key} expires");
    }
}

#[test]
fn an_exhausted_limit_costs_redis_nothing() {
    let server = Server::start();
    let control = control();
    let state = server.state(control.handle(), BUDGET);
    let limits = Limits::compile(&[limit("orders", "1/h", 2)], Direction::Outbound, &state);
    block_on(ask(&limits, "t")).expect("the one token");
    block_on(ask(&limits, "t")).expect_err("no more");
    let before = server.script_calls();
    for _ in 0..1000 {
        let decision = request("t", |facts| limits.admit(facts));
        let Decision::Refused(refusal) = decision else { panic!("{decision:?}") };
        assert!(refusal.retry_after > Duration::from_secs(1000), "{refusal:?}");
    }
    assert_eq!(server.script_calls(), before);
}

#[test]
fn who_the_pod_refuses_costs_redis_nothing() {
    let server = Server::start();
    let control = control();
    let state = server.state(control.handle(), BUDGET);
    let tenants =
        || model::Limit { key: vec![KeyPart::Header("x-tenant".into())], ..limit("tenants", "100/s", 100) };
    let exact = model::Limit { name: "exact".into(), exact: true, ..tenants() };
    let pod = model::Limit { scope: Scope::Pod, ..limit("pod", "1/h", 1) };
    let limits = Limits::compile(&[tenants(), exact, pod], Direction::Outbound, &state);
    block_on(ask(&limits, "t")).expect("room in all");
    eventually("no refill is under way", || {
        let before = server.script_calls();
        std::thread::sleep(Duration::from_millis(50));
        server.script_calls() == before
    });
    let before = server.script_calls();
    for tenant in 0..50 {
        block_on(ask(&limits, &tenant.to_string())).expect_err("the pod's limit refuses");
    }
    assert_eq!(server.script_calls(), before);
}

#[test]
fn a_lease_gets_its_token_back_when_another_limit_refuses() {
    let server = Server::start();
    let control = control();
    let state = server.state(control.handle(), BUDGET);
    let narrow = model::Limit { scope: Scope::Pod, ..limit("narrow", "1/h", 3) };
    let limits = Limits::compile(&[limit("wide", "1/h", 1000), narrow], Direction::Outbound, &state);
    for _ in 0..3 {
        block_on(ask(&limits, "t")).expect("room in both");
    }
    eventually("no refill is under way", || limits.snapshot()[0].tokens > 0);
    let tokens = limits.snapshot()[0].tokens;
    for _ in 0..10 * tokens {
        block_on(ask(&limits, "t")).expect_err("the narrow one refuses");
    }
    assert!(limits.snapshot()[0].tokens >= tokens);
}

#[test]
fn a_changed_rate_drops_the_leases_of_the_old() {
    let server = Server::start();
    let control = control();
    let state = server.state(control.handle(), BUDGET);
    let wide = Limits::compile(&[limit("orders", "1000/s", 1000)], Direction::Outbound, &state);
    for _ in 0..100 {
        block_on(ask(&wide, "t")).expect("far below the limit");
    }
    let narrow = Limits::compile(&[limit("orders", "1/h", 2)], Direction::Outbound, &state);
    assert!(wide.snapshot()[0].tokens > 0, "a configuration that nobody uses changes nothing");
    let admitted = (0..100).filter(|_| block_on(ask(&narrow, "t")).is_ok()).count();
    assert!(admitted <= 1, "{admitted}");
    assert!(block_on(ask(&wide, "t")).is_err(), "who still holds the old configuration is held by the new");
}

#[test]
fn a_flushed_script_is_loaded_again() {
    let server = Server::start();
    let control = control();
    let state = server.state(control.handle(), BUDGET);
    let key = vec![KeyPart::Header("x-tenant".into())];
    let limits =
        Limits::compile(&[model::Limit { key, ..limit("orders", "10/s", 10) }], Direction::Outbound, &state);
    block_on(ask(&limits, "a")).expect("a first token");
    ::redis::cmd("SCRIPT").arg("FLUSH").exec(&mut server.connect()).expect("it flushes");
    block_on(ask(&limits, "b")).expect("another");
    assert_eq!(limits.snapshot()[0].redis_errors, 0);
}
