//! Tokens that are given back, to the script itself: what is left of the grants keeps the bound.

use super::*;

/// Grants of a bucket, of which some tokens are given back: none too many, if what is left are grants of GCRA.
/// Each step is how many milliseconds pass, how many tokens are wanted, and which share of the grant so many steps
/// before is given back.
fn tokens_kept_over(redis: &mut Clocked, plan: &Arc<Plan>, steps: &[(u64, u32, usize, u32)]) -> f64 {
    redis.begin();
    let (mut time, mut grants) = (DAY, Vec::<(u64, Grant, u32)>::new());
    for (pass, wanted, before, share) in steps {
        time += pass * MS;
        let back = match grants.len().checked_sub(1 + before).and_then(|at| grants.get_mut(at)) {
            None => Back::default(),
            Some((_, Grant { at, since, .. }, left)) => {
                let count = *left * share / 4;
                *left -= count;
                Back { count, granted_at: *at, since: *since }
            }
        };
        let grant = redis.ask(time, plan, "x", &[("a", Want { back, ..want(*wanted) })], time)[0];
        grants.push((time, grant, grant.granted));
    }
    let mut kept: Vec<u64> = grants.iter().flat_map(|(at, _, left)| (0..*left).map(|_| *at)).collect();
    let of = plan.terms[0].of;
    tokens_over(&mut kept, of.rate, of.capacity as u32)
}

#[test]
fn what_is_given_back_leaves_grants_that_keep_the_bound() {
    let plan = plan_of("1000/s", 100, 0);
    let step = (prop_oneof![4 => 0u64..4, 4 => 0u64..60, 1 => 200u64..300], 0u32..60, 0usize..6, 0u32..=4);
    let steps = prop::collection::vec(step, 5..60);
    let run = |changes: &[(&str, &str)]| {
        let redis = RefCell::new(Clocked::start_with(changes));
        let config = ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() };
        TestRunner::new(config).run(&steps, |steps| {
            prop_assert_eq!(tokens_kept_over(&mut redis.borrow_mut(), &plan, &steps), 0.0);
            Ok(())
        })
    };
    run(&[]).unwrap_or_else(|error| panic!("{error}"));
    // All that bounds it is needed.
    let least = ("math.min(back, spans[first][2])", "back");
    let taken = ("spans[i][2] = spans[i][2] - back", "spans[i][2] = spans[i][2]");
    for careless in [least, taken] {
        run(&[careless]).expect_err(careless.0);
    }
}

#[test]
fn what_was_granted_before_all_that_is_known_stays_spent() {
    let plan = plan_of("1000/s", 100, 0);
    let granted = |changes: &[(&str, &str)]| {
        let redis = &mut Clocked::start_with(changes);
        let first = redis.ask_one(DAY, &plan, "x", 50);
        // It has come back by now, and is spent; as is all that comes afterwards.
        redis.ask_one(DAY + 50 * MS, &plan, "y", 50);
        for i in 1..=40 {
            redis.ask_one(DAY + 50 * MS + i * 5 * MS, &plan, "y", 5);
        }
        let back = Back { count: 50, granted_at: first.at, since: first.since };
        redis.ask(DAY + 250 * MS, &plan, "x", &[("a", Want { back, ..want(50) })], DAY)[0].granted
    };
    assert_eq!(granted(&[]), 0);
    let known = ("granted_at >= spans[1][1]", "spans[1]");
    let any = ("until spans[first][1]", "until first == 1 or spans[first][1]");
    assert!(granted(&[known, any]) > 40, "the test would see it");
}

/// The steps by which two sidecars at a bucket of 50 give back more than is theirs to give: what the first does not
/// spend has mostly come back by the time that it says so, and the second has spent that.
fn given_back_late(redis: &mut Clocked, plan: &Arc<Plan>) -> [u32; 2] {
    let first = redis.ask_one(DAY, plan, "x", 50);
    let second = redis.ask_one(DAY + 40 * MS, plan, "y", 50);
    let back = Back { count: first.granted, granted_at: first.at, since: first.since };
    let returned = Want { back, ..want(50) };
    let third = redis.ask(DAY + 45 * MS, plan, "x", &[("a", returned)], DAY)[0];
    [second.granted, third.granted]
}

#[test]
fn what_is_given_back_is_no_more_than_was_missing_ever_since() {
    let plan = plan_of("1000/s", 100, 0);
    let redis = &mut Clocked::start();
    // Of 50 that were granted 40 had come back after 40 ms, and were spent: the bucket is as if ten had not been.
    assert_eq!(given_back_late(redis, &plan), [40, 15]);
    let careless = [("math.min(back, spans[first][2])", "back")];
    assert_eq!(given_back_late(&mut Clocked::start_with(&careless), &plan), [40, 50], "more than the bound");
    // In time it is all.
    redis.begin();
    let first = redis.ask_one(DAY, &plan, "x", 50);
    let back = |count, granted_at| Back { count, granted_at, since: first.since };
    let give = |back| [("a", Want { back, ..want(50) })];
    assert_eq!(redis.ask(DAY + MS, &plan, "x", &give(back(49, first.at)), DAY)[0].granted, 50);
    // Not twice, not of another state, and not of a time that nobody knows of.
    assert_eq!(redis.ask(DAY + MS, &plan, "x", &give(back(49, first.at)), DAY)[0].granted, 0);
    let other = Back { since: first.since + 1, ..back(9, first.at) };
    assert_eq!(redis.ask(DAY + 2 * MS, &plan, "x", &give(other), DAY)[0].granted, 1);
    assert_eq!(redis.ask(DAY + 3 * MS, &plan, "x", &give(back(9, first.at - 1)), DAY)[0].granted, 1);
    assert_eq!(redis.ask(DAY + 4 * MS, &plan, "x", &give(back(9, 0)), DAY)[0].granted, 1);
    assert_eq!(redis.ask(DAY + 5 * MS, &plan, "x", &give(back(u32::MAX, first.at)), DAY)[0].granted, 1);
    assert_eq!(redis.ask(DAY + 6 * MS, &plan, "x", &give(back(9, first.at + 9_000)), DAY)[0].granted, 1);
    // By other terms nothing is taken back.
    let slower = plan_of("500/s", 50, 1);
    assert_eq!(redis.ask(DAY + 7 * MS, &slower, "x", &give(back(9, first.at)), DAY)[0].granted, 0);
    // By who wants nothing, and all of it.
    redis.begin();
    let grant = redis.ask_one(DAY, &plan, "x", 50);
    let back = Back { count: 50, granted_at: grant.at, since: grant.since };
    redis.ask(DAY + MS, &plan, "x", &[("a", Want { back, ..want(0) })], DAY);
    assert_eq!(redis.ask_one(DAY + MS, &plan, "y", 50).granted, 50);
}
