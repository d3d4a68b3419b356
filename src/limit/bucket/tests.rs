use super::*;
use crate::limit::plan::{Plan, tests};

const MS: u64 = 1_000_000;

/// 1000 tokens a second, tau 100 ms, B' 100.
fn plan() -> Plan {
    tests::plan("1000/s", 200)
}

fn bucket() -> Bucket {
    Bucket::new(&plan(), 0, Gcra::default(), 0, "a".into())
}

fn grant(sent: u64, wanted: u32, granted: u32) -> Grant {
    let want = Want { wanted, least: 1, back: Back::default() };
    let wait = if granted < wanted { MS } else { 0 };
    let at = sent / 1000;
    Grant { sent, want, granted, wait, sidecars: 1, tau: u64::MAX, at, since: 1, young: false }
}

fn give_back(bucket: &Bucket, taken: Taken) {
    taken.into_iter().for_each(|lease| bucket.give_back(lease));
}

fn take_all(bucket: &Bucket, now: u64) -> usize {
    std::iter::from_fn(|| bucket.take(now, 1)).count()
}

#[test]
fn every_grant_dies_by_its_own_clock() {
    let (bucket, plan) = (bucket(), plan());
    bucket.granted(&plan, &grant(1000 * MS, 5, 5), 1001 * MS);
    bucket.granted(&plan, &grant(1050 * MS, 7, 7), 1051 * MS);
    assert_eq!(bucket.live(1099 * MS), 12);
    assert_eq!(bucket.live(1100 * MS), 7, "tau after it was asked for, not after it came");
    assert_eq!(take_all(&bucket, 1149 * MS), 7);
    assert_eq!(bucket.take(1149 * MS, 1), None);
}

#[test]
fn the_grant_that_expires_first_is_spent_first() {
    let (bucket, plan) = (bucket(), plan());
    bucket.granted(&plan, &grant(1050 * MS, 7, 7), 1051 * MS);
    bucket.granted(&plan, &grant(1000 * MS, 5, 5), 1052 * MS);
    for _ in 0..5 {
        bucket.take(1053 * MS, 1).expect("a token");
    }
    assert_eq!(bucket.live(1100 * MS), 7);
}

#[test]
fn a_grant_that_comes_after_its_tau_is_dropped() {
    let (bucket, plan) = (bucket(), plan());
    bucket.granted(&plan, &grant(1000 * MS, 5, 5), 1100 * MS);
    assert_eq!(bucket.live(1100 * MS), 0);
    assert_eq!(take_all(&bucket, 1099 * MS), 0);
}

#[test]
fn a_request_takes_nothing_that_was_asked_for_after_it_looked_at_the_clock() {
    let (bucket, plan) = (bucket(), plan());
    bucket.granted(&plan, &grant(1000 * MS, 5, 5), 1001 * MS);
    assert_eq!(bucket.take(999 * MS, 1), None);
    assert!(bucket.take(1000 * MS, 1).is_some());
}

#[test]
fn a_dear_request_takes_of_several_grants_or_of_none() {
    let (bucket, plan) = (bucket(), plan());
    bucket.granted(&plan, &grant(1000 * MS, 5, 5), 1001 * MS);
    bucket.granted(&plan, &grant(1050 * MS, 7, 7), 1051 * MS);
    assert_eq!(bucket.take(1060 * MS, 13), None);
    assert_eq!(bucket.live(1060 * MS), 12, "nothing was taken");
    let (taken, _) = bucket.take(1060 * MS, 8).expect("of both");
    assert_eq!((taken.len(), bucket.live(1060 * MS)), (2, 4));
    give_back(&bucket, taken);
    assert_eq!((bucket.live(1060 * MS), bucket.live(1100 * MS)), (12, 7), "each to its own");
}

#[test]
fn a_token_goes_back_to_its_own_grant_or_nowhere() {
    let (bucket, plan) = (bucket(), plan());
    bucket.granted(&plan, &grant(1000 * MS, 1, 1), 1001 * MS);
    let (lease, _) = bucket.take(1002 * MS, 1).expect("a token");
    give_back(&bucket, lease);
    assert_eq!(bucket.live(1002 * MS), 1);
    let (lease, _) = bucket.take(1002 * MS, 1).expect("the same token");
    for i in 1..=4 {
        bucket.granted(&plan, &grant(1000 * MS + i * MS, 1, 1), 1010 * MS);
    }
    give_back(&bucket, lease);
    assert_eq!(bucket.live(1011 * MS), 4, "its grant has been replaced");
}

#[test]
fn an_exhausted_bucket_is_remembered() {
    let (bucket, plan) = (bucket(), plan());
    let again = bucket.granted(&plan, &grant(1000 * MS, 5, 2), 1001 * MS).expect("less than was wanted");
    assert_eq!(bucket.refused_until(1002 * MS, 1), None, "there are tokens");
    assert_eq!(take_all(&bucket, 1002 * MS), 2);
    assert_eq!(bucket.refused_until(1002 * MS, 1), Some(again));
    assert!(
        (1001 * MS + 65 * MS..=1001 * MS + 85 * MS).contains(&again),
        "about three quarters of tau: {again}"
    );
    assert_eq!(bucket.refused_until(again, 1), None);
}

#[test]
fn nonsense_from_redis_refuses_no_longer_than_one_token_takes() {
    let (bucket, plan) = (bucket(), tests::plan("1/m", 2));
    let nonsense = Grant { wait: u64::MAX, sidecars: u32::MAX, ..grant(MS, 1, 0) };
    assert_eq!(bucket.granted(&plan, &nonsense, 2 * MS), Some(2 * MS + plan.terms[0].interval));
}

#[test]
fn a_new_plan_drops_old_grants_even_those_on_their_way() {
    let (bucket, plan) = (bucket(), plan());
    bucket.granted(&plan, &grant(1000 * MS, 5, 5), 1001 * MS);
    assert!(bucket.older_than(2));
    bucket.renew(&Plan { generation: 2, ..self::plan() }, 0, 1002 * MS);
    bucket.granted(&plan, &grant(1001 * MS, 5, 5), 1002 * MS);
    assert_eq!(bucket.live(1003 * MS), 0);
    bucket.renew(&plan, 0, 1003 * MS);
    assert!(!bucket.older_than(2), "an older plan changes nothing");
    let longer = Plan { generation: 3, ..tests::plan("100/s", 200) };
    bucket.renew(&longer, 0, 1004 * MS);
    bucket.granted(&longer, &grant(1004 * MS, 5, 5), 1005 * MS);
    assert_eq!(take_all(&bucket, 1006 * MS), 5, "also by who waited since the plan before");
}

#[test]
fn it_asks_for_the_mean_of_what_is_demanded() {
    let (bucket, plan) = (bucket(), plan());
    let wanted = |now| bucket.want(&plan, 0, now, 20 * MS).wanted;
    bucket.waits(1);
    bucket.missed(1);
    assert_eq!(wanted(1000 * MS), 1, "one request, one token");
    bucket.granted(&plan, &grant(1000 * MS, 1, 1), 1001 * MS);
    assert_eq!(take_all(&bucket, 1001 * MS), 1);
    bucket.waits_no_more(1);
    // Who comes every 50 ms needs two for a lease, however often it asks.
    let mut asked = Vec::new();
    for now in (21..60).map(|i| i * 50 * MS) {
        bucket.waits(1);
        bucket.missed(1);
        asked.push(wanted(now));
        bucket.granted(&plan, &grant(now, 1, 1), now);
        bucket.take(now, 1).expect("a token");
        bucket.waits_no_more(1);
    }
    assert!(asked.iter().all(|wanted| (1..=2).contains(wanted)), "{asked:?}");
    assert_eq!(asked.last(), Some(&2));
}

#[test]
fn where_requests_surely_are_more_than_before_it_asks_for_more_at_once() {
    let (bucket, plan) = (bucket(), plan());
    bucket.want(&plan, 0, 1000 * MS, 20 * MS);
    for _ in 0..64 {
        bucket.missed(1);
    }
    // 64, less two deviations, in a fifth of a lease, and a little more; no rate is known from less than a half of one.
    assert_eq!(bucket.want(&plan, 0, 1020 * MS, 20 * MS).wanted, 98);
}

#[test]
fn what_nobody_will_spend_is_given_back() {
    let (bucket, plan) = (bucket(), plan());
    let want = |now| bucket.want(&plan, 0, now, 20 * MS);
    want(990 * MS);
    bucket.granted(&plan, &grant(1000 * MS, 70, 70), 1001 * MS);
    for _ in 0..35 {
        bucket.take(1050 * MS, 1).expect("a token");
    }
    assert_eq!(want(1060 * MS).back.count, 0, "they may be spent yet");
    // About to die: a tenth of what is needed for a lease may be spent before.
    let asked = want(1090 * MS);
    assert_eq!(asked.back, Back { count: 35 - bucket.live(1090 * MS), granted_at: 1_000_000, since: 1 });
    assert!((1..=8).contains(&bucket.live(1090 * MS)), "{asked:?}");
    let left = bucket.live(1090 * MS);
    assert_eq!(want(1101 * MS).back.count, left, "dead");
    assert_eq!(want(1102 * MS).back.count, 0, "once");
    bucket.granted(&plan, &grant(1102 * MS, 9, 9), 1103 * MS);
    let newer = Plan { generation: 2, ..self::plan() };
    bucket.renew(&newer, 0, 1104 * MS);
    assert_eq!(bucket.want(&newer, 0, 1300 * MS, 20 * MS).back.count, 0, "of another plan");
}

#[test]
fn what_is_left_when_nobody_comes_is_given_back_and_no_more_is_asked_for() {
    let (bucket, plan) = (bucket(), plan());
    bucket.want(&plan, 0, 990 * MS, 20 * MS);
    let again =
        bucket.dies(&plan.terms[0], &grant(1000 * MS, 70, 70), 1001 * MS).expect("enough to be worth a call");
    assert_eq!(bucket.granted(&plan, &grant(1000 * MS, 70, 70), 1001 * MS), None);
    assert!(!bucket.is_left(&plan.terms[0], 1099 * MS), "they may be spent yet");
    for _ in 0..30 {
        bucket.take(1050 * MS, 1).expect("a token");
    }
    assert!(again >= 1100 * MS && bucket.is_left(&plan.terms[0], again));
    let want = bucket.want(&plan, 0, again, 20 * MS);
    assert_eq!((want.wanted, want.back.count), (0, 40));
    assert!(!bucket.is_left(&plan.terms[0], again));
    let nothing = grant(again, 0, 0);
    assert_eq!(
        (bucket.granted(&plan, &nothing, again), bucket.dies(&plan.terms[0], &nothing, again)),
        (None, None)
    );
}

#[test]
fn while_tokens_are_scarce_it_asks_for_few_and_gives_back_every_one() {
    let (bucket, plan) = (bucket(), plan());
    let terms = &plan.terms[0];
    // What it asks for where requests missed so many tokens in the lease before.
    let wanted = |now, missed| {
        (0..missed).for_each(|_| bucket.missed(1));
        bucket.want(&plan, 0, now, 20 * MS).wanted
    };
    wanted(1000 * MS, 0);
    assert_eq!(wanted(1100 * MS, 16), 9, "8, the mean of two leases, and a little more");
    assert_eq!(bucket.dies(terms, &grant(1100 * MS, 3, 3), 1101 * MS), None, "three are not worth a call");
    bucket.granted(&plan, &grant(1100 * MS, 9, 1), 1101 * MS);
    let dies = bucket.dies(terms, &grant(1100 * MS, 9, 1), 1101 * MS).expect("one is");
    assert!(bucket.is_left(terms, dies));
    assert_eq!(wanted(1200 * MS, 8), 6, "fewer than the eight that it will need");
    bucket.granted(&plan, &grant(1200 * MS, 4, 4), 1201 * MS);
    // That was the last time that Redis had too little, for four leases.
    assert_eq!((wanted(1499 * MS, 30), wanted(1502 * MS, 0)), (7, 10));
}

#[test]
fn a_low_stock_is_told_while_redis_may_be_asked() {
    let (bucket, plan) = (bucket(), plan());
    bucket.want(&plan, 0, 900 * MS, 20 * MS);
    for _ in 0..19 {
        bucket.missed(1);
    }
    assert_eq!(
        bucket.want(&plan, 0, 1000 * MS, 20 * MS).wanted,
        11,
        "19, less two deviations, and a little more"
    );
    bucket.granted(&plan, &grant(1000 * MS, 10, 10), 1001 * MS);
    let low: Vec<bool> = std::iter::from_fn(|| bucket.take(1002 * MS, 1)).map(|(_, low)| low).collect();
    assert_eq!(low.iter().position(|low| *low), Some(7), "two of ten are left: {low:?}");
    bucket.granted(&plan, &grant(1010 * MS, 10, 9), 1011 * MS);
    assert!(std::iter::from_fn(|| bucket.take(1012 * MS, 1)).all(|(_, low)| !low));
}

#[test]
fn tokens_are_taken_once_by_any_number_of_threads() {
    let (bucket, plan) = (bucket(), plan());
    bucket.granted(&plan, &grant(1000 * MS, 5000, 5000), 1001 * MS);
    let taken: usize = std::thread::scope(|scope| {
        let take = || (0..3000).filter(|_| bucket.take(1002 * MS, 1).is_some()).count();
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
    });
    assert_eq!(taken, 5000);
}
