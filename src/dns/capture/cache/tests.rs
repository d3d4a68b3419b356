use hickory_resolver::proto::op::{Message, MessageType, OpCode, Query};
use hickory_resolver::proto::rr::{Name, RecordType};

use super::*;
use crate::config::units::Time;
use crate::dns::wire;

const SECOND: Duration = Duration::from_secs(1);

fn question(name: &str) -> Vec<u8> {
    let mut query = Message::new(7, MessageType::Query, OpCode::Query);
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    wire::question(&query.to_vec().unwrap()).unwrap().to_vec()
}

fn key(name: &str) -> Key {
    Key::new(&question(name), false, false)
}

fn reply(ttl: u32) -> Arc<Reply> {
    Arc::new(Reply::of_records(&question("a.example."), ttl, [vec![10, 0, 0, 1]].into_iter()))
}

fn rules() -> Rules {
    Rules::new(&model::Dns { stale: Time(100 * SECOND), ..Default::default() })
}

/// A cache with one answer that lives for 100 s, and when it came.
fn one() -> (Cache, Key, Instant) {
    let (mut cache, key, now) = (Cache::new(), key("a.example."), Instant::now());
    cache.keep(key.clone(), reply(100), 100, now);
    (cache, key, now)
}

fn word(found: &Found) -> &'static str {
    match found {
        Found::Fresh { refresh: false, .. } => "fresh",
        Found::Fresh { refresh: true, .. } => "fresh, to be refreshed",
        Found::Stale { refresh: false, .. } => "stale",
        Found::Stale { refresh: true, .. } => "stale, to be refreshed",
        Found::Failed(_) => "failed",
        Found::Nothing => "nothing",
    }
}

#[test]
fn an_answer_lives_for_its_ttl_and_then_serves_while_it_may_be_stale() {
    let (mut cache, key, now) = one();
    let mut at = |seconds: u32| word(&cache.find(&key, now + seconds * SECOND, &rules()));
    assert_eq!(at(0), "fresh");
    assert_eq!(at(89), "fresh");
    assert_eq!(at(100), "stale, to be refreshed");
    assert_eq!(at(199), "stale, to be refreshed");
    assert_eq!(at(200), "nothing");
}

#[test]
fn begun_seconds_count_as_whole_ones() {
    let (mut cache, key, now) = one();
    let mut at = |millis| match cache.find(&key, now + Duration::from_millis(millis), &rules()) {
        Found::Fresh { age, .. } => age,
        found => panic!("{found:?}"),
    };
    assert_eq!([at(0), at(1), at(1000), at(1001)], [0, 1, 1, 2].map(Age::Seconds));
}

#[test]
fn what_is_in_use_is_refreshed_once_near_its_end() {
    let (mut cache, key, now) = one();
    let mut at = |seconds: u32| word(&cache.find(&key, now + seconds * SECOND, &rules()));
    assert_eq!(at(91), "fresh", "nobody has asked for it before");
    assert_eq!(at(92), "fresh, to be refreshed");
    assert_eq!(at(93), "fresh");
}

#[test]
fn a_refresh_that_failed_is_repeated_after_growing_pauses() {
    let (mut cache, key, now) = one();
    let mut at = now + 120 * SECOND;
    for pause in [1, 2, 4, 8, 10, 10] {
        assert_eq!(word(&cache.find(&key, at, &rules())), "stale, to be refreshed");
        cache.fail(key.clone(), ResponseCode::ServFail, at, &rules());
        at += pause * SECOND;
        let just_before = at - Duration::from_millis(1);
        assert_eq!(word(&cache.find(&key, just_before, &rules())), "stale", "after {pause} s");
    }
    // One that succeeds forgets them.
    cache.keep(key.clone(), reply(1), 1, at);
    cache.fail(key.clone(), ResponseCode::ServFail, at + SECOND, &rules());
    assert_eq!(word(&cache.find(&key, at + 2 * SECOND, &rules())), "stale, to be refreshed");
}

#[test]
fn a_failed_prefetch_leaves_what_is_fresh() {
    let (mut cache, key, now) = one();
    cache.fail(key.clone(), ResponseCode::ServFail, now + 95 * SECOND, &rules());
    assert_eq!(word(&cache.find(&key, now + 96 * SECOND, &rules())), "fresh");
}

#[test]
fn a_failure_with_nothing_to_serve_is_remembered_for_1_to_5_s() {
    let (mut cache, key, mut at) = (Cache::new(), key("a.example."), Instant::now());
    for pause in [1, 2, 4, 5, 5] {
        cache.fail(key.clone(), ResponseCode::Refused, at, &rules());
        at += pause * SECOND;
        match cache.find(&key, at - Duration::from_millis(1), &rules()) {
            Found::Failed(code) => assert_eq!(code, ResponseCode::Refused),
            found => panic!("{found:?} within {pause} s"),
        }
        assert_eq!(word(&cache.find(&key, at, &rules())), "nothing");
    }
}

#[test]
fn no_life_is_no_place_and_ends_what_was_known() {
    let (mut cache, key, now) = one();
    cache.keep(key.clone(), reply(0), 0, now);
    assert_eq!(word(&cache.find(&key, now, &rules())), "nothing");
    assert_eq!((cache.len(), cache.bytes()), (0, 0));
}

#[test]
fn the_configured_bounds_hold() {
    let rules = Rules::new(&model::Dns {
        min_ttl: Time(Duration::from_millis(1500)),
        max_ttl: Time(60 * SECOND),
        max_negative_ttl: Time(3 * SECOND),
        ..Default::default()
    });
    let life = |ttl| {
        let mut own = Reply::of_records(&question("a.example."), ttl, [vec![10, 0, 0, 1]].into_iter());
        rules.apply(&mut own)
    };
    assert_eq!([life(0), life(1), life(30), life(4000)], [2, 2, 30, 60]);
    // A denial without an SOA.
    let mut denial = Message::new(7, MessageType::Response, OpCode::Query);
    denial.add_query(Query::query(Name::from_ascii("a.example.").unwrap(), RecordType::A));
    denial.metadata.response_code = ResponseCode::NXDomain;
    let mut denial = Reply::read(denial.to_vec().unwrap(), &question("a.example.")).unwrap();
    assert_eq!(rules.apply(&mut denial), 3);
}

#[test]
fn with_other_servers_everything_is_asked_for_again_and_serves_meanwhile() {
    let (mut cache, known, now) = one();
    cache.fail(key("b.example."), ResponseCode::ServFail, now, &rules());
    cache.expire(now + SECOND);
    assert_eq!(word(&cache.find(&known, now + SECOND, &rules())), "stale, to be refreshed");
    assert_eq!(word(&cache.find(&key("b.example."), now, &rules())), "nothing");
}

#[test]
fn what_was_not_used_for_longest_goes_first() {
    let (mut cache, now) = (Cache::new(), Instant::now());
    let first = key("first.example.");
    cache.keep(first.clone(), reply(100), 100, now);
    for n in 0..2 * MAX_ENTRIES {
        cache.keep(key(&format!("n{n}.example.")), reply(100), 100, now);
        cache.fail(key(&format!("f{n}.example.")), ResponseCode::ServFail, now, &rules());
        assert!(cache.len() <= MAX_ENTRIES && cache.bytes() <= MAX_BYTES);
        if n % 100 == 0 {
            assert_eq!(word(&cache.find(&first, now, &rules())), "fresh", "after {n}");
        }
    }
    assert_eq!(word(&cache.find(&key("n0.example."), now, &rules())), "nothing");
    // Answers as long as they come: then the bytes are the bound.
    let big = Reply::of_records(&question("a.example."), 100, (0..4000).map(|_| vec![10, 0, 0, 1]));
    let big = Arc::new(big);
    for n in 0..1000 {
        cache.keep(key(&format!("big{n}.example.")), big.clone(), 100, now);
        assert!(cache.bytes() <= MAX_BYTES);
    }
    assert!(cache.len() < 200);
    let entries: usize = cache.entries.iter().map(|(key, entry)| size(key, entry)).sum();
    assert_eq!(cache.bytes(), entries);
}
