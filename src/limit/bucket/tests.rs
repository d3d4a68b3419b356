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
    let want = Want { wanted, least: 1 };
    let wait = if granted < wanted { MS } else { 0 };
    Grant { sent, want, granted, scarce: false, wait, sidecars: 1, tau: u64::MAX, since: 1, young: false }
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
fn it_asks_for_what_was_demanded_and_no_more() {
    let (bucket, plan) = (bucket(), plan());
    bucket.missed(1);
    assert_eq!(bucket.want(&plan.terms[0], 1000 * MS, 20 * MS).wanted, 1, "one request, one token");
    bucket.granted(&plan, &grant(1000 * MS, 1, 1), 1001 * MS);
    assert_eq!(take_all(&bucket, 1001 * MS), 1);
    bucket.missed(1);
    assert_eq!(bucket.want(&plan.terms[0], 1001 * MS, 20 * MS).wanted, 3, "two requests in no time");
    // 60 requests in 60 ms are 90 in nine tenths of tau, or half a deviation fewer; 20 are in stock.
    let (steady, now) = (self::bucket(), 1061 * MS);
    steady.granted(&plan, &grant(1000 * MS, 80, 80), 1001 * MS);
    for _ in 0..60 {
        steady.take(now, 1).expect("a token");
    }
    assert_eq!(steady.want(&plan.terms[0], now, 20 * MS).wanted, 66);
    // Where others lack tokens it takes none that it may not spend.
    let sparing = self::bucket();
    sparing.granted(&plan, &Grant { scarce: true, ..grant(1000 * MS, 80, 80) }, 1001 * MS);
    for _ in 0..60 {
        sparing.take(now, 1).expect("a token");
    }
    assert_eq!(sparing.want(&plan.terms[0], now, 20 * MS).wanted, 52);
}

#[test]
fn a_low_stock_is_told_while_redis_may_be_asked() {
    let (bucket, plan) = (bucket(), plan());
    for _ in 0..10 {
        bucket.missed(1);
    }
    assert_eq!(bucket.want(&plan.terms[0], 1000 * MS, 20 * MS).wanted, 10);
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
