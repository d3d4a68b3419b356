//! What a choice promises, one by one.

use super::super::{Ejection, Outcome, Taken};
use super::*;

use crate::dns::Target;
use crate::http::Announcement;

const SLOW_START: Duration = Duration::from_secs(10);

/// Endpoints of which the source says so much.
fn standing(targets: &[Target], capacity: u32) -> Vec<Arc<Endpoint>> {
    let endpoint = |(place, target): (usize, &Target)| {
        let endpoint = Endpoint::new(target.address, Some(capacity));
        endpoint.standing.take(target, false, Some("here"));
        endpoint.takes_place(place);
        endpoint
    };
    targets.iter().enumerate().map(endpoint).collect()
}

fn target(n: u8) -> Target {
    Target { zone: Some("here".into()), ..Target::at(([127, 0, 0, n], 80).into()) }
}

fn endpoints(n: u8, capacity: u32) -> Vec<Arc<Endpoint>> {
    standing(&(1..=n).map(target).collect::<Vec<_>>(), capacity)
}

fn at(millis: u64) -> Now {
    Now::of_micros(millis * 1000)
}

const ALIKE: Question<'_> =
    Question { tried: &[], now: Now::of_micros(1_000_000), asked: false, uneven: Option::None };

fn uneven(now: Now) -> Question<'static> {
    Question { tried: &[], now, asked: false, uneven: Some(Uneven { slow_start: SLOW_START, ranked: true }) }
}

fn choose(set: &[Arc<Endpoint>], question: &Question<'_>) -> Result<u64, None> {
    Crowd::default().choose(set, question).map(|chosen| chosen.endpoint.id)
}

fn begin(endpoint: &Arc<Endpoint>, n: u32) {
    (0..n).for_each(|_| assert!(endpoint.load.begin().is_some()));
}

/// How often each is chosen of a thousand times.
fn shares(set: &[Arc<Endpoint>], question: &Question<'_>) -> Vec<usize> {
    let mut counts = vec![0; set.len()];
    for _ in 0..1000 {
        let chosen = choose(set, question).unwrap();
        counts[set.iter().position(|endpoint| endpoint.id == chosen).unwrap()] += 1;
    }
    counts
}

#[test]
fn the_least_saturated_is_chosen_not_the_least_loaded() {
    let set = [endpoints(1, 10).remove(0), endpoints(1, 100).remove(0)];
    begin(&set[0], 2);
    begin(&set[1], 10);
    assert_eq!(choose(&set, &ALIKE), Ok(set[1].id));
}

#[test]
fn what_others_have_there_counts() {
    let (set, crowd) = (endpoints(2, 10), Crowd::default());
    begin(&set[0], 3);
    let said = Announcement { in_flight: 8, capacity: 10, latency: 1000, most: 0 };
    crowd.hear(&set[1], &said, ALIKE.now);
    crowd.hear(&set[0], &Announcement { in_flight: 3, ..said }, ALIKE.now);
    assert_eq!(crowd.choose(&set, &ALIKE).unwrap().endpoint.id, set[0].id);
}

#[test]
fn equals_share() {
    let counts = shares(&endpoints(4, 10), &ALIKE);
    assert!(counts.iter().all(|count| *count > 150), "{counts:?}");
}

#[test]
fn of_very_many_those_that_were_heard_last_are_among_those_that_are_looked_at() {
    let (set, crowd) = (endpoints(200, 10), Crowd::default());
    for endpoint in &set[..199] {
        begin(endpoint, 9);
    }
    let said = Announcement { in_flight: 0, capacity: 10, latency: 1000, most: 0 };
    crowd.hear(&set[199], &said, ALIKE.now);
    for _ in 0..50 {
        assert_eq!(crowd.choose(&set, &ALIKE).unwrap().endpoint.id, set[199].id);
    }
}

#[test]
fn of_very_many_the_only_one_with_room_is_found() {
    let set = endpoints(200, 1);
    set[..199].iter().for_each(|endpoint| begin(endpoint, 1));
    for _ in 0..50 {
        assert_eq!(choose(&set, &ALIKE), Ok(set[199].id));
    }
    begin(&set[199], 1);
    assert_eq!(choose(&set, &ALIKE), Err(None::Full));
}

#[test]
fn full_left_and_tried_are_passed_over() {
    let set = endpoints(3, 1);
    begin(&set[0], 1);
    set[1].leave();
    for _ in 0..50 {
        assert_eq!(choose(&set, &ALIKE), Ok(set[2].id));
    }
    let tried = [set[1].id, set[2].id];
    assert_eq!(choose(&set, &Question { tried: &tried, ..ALIKE }), Err(None::Full));
    let all: Vec<u64> = set.iter().map(|endpoint| endpoint.id).collect();
    assert_eq!(choose(&set, &Question { tried: &all, ..ALIKE }), Err(None::Empty));
}

#[test]
fn one_that_left_is_the_last_resort_of_who_still_knows_it() {
    let set = endpoints(2, 1);
    set.iter().for_each(|endpoint| endpoint.leave());
    assert!(choose(&set, &ALIKE).is_ok());
    assert!(choose(&set, &uneven(ALIKE.now)).is_ok());
}

#[test]
fn one_that_failed_is_the_last_resort() {
    let set = endpoints(2, 10);
    set[0].unreached(Duration::from_secs(30), ALIKE.now);
    for _ in 0..50 {
        assert_eq!(choose(&set, &ALIKE), Ok(set[1].id));
    }
    assert_eq!(choose(&set, &Question { tried: &[set[1].id], ..ALIKE }), Ok(set[0].id));
}

#[test]
fn one_request_at_a_time_goes_to_one_that_is_doubted_unless_most_are() {
    let (set, crowd) = (endpoints(3, 10), Crowd::default());
    let fail = |n: usize| {
        let taken = Taken::of(&set[n], ALIKE.now).unwrap();
        crowd.failed(&taken, Outcome::Failed, &Ejection::default(), &set, ALIKE.now);
    };
    fail(0);
    let tries = Taken::of(&set[0], ALIKE.now);
    assert!(tries.is_some());
    for _ in 0..50 {
        assert_ne!(choose(&set, &ALIKE), Ok(set[0].id));
    }
    fail(1);
    begin(&set[2], 5);
    assert_ne!(choose(&set, &ALIKE), Ok(set[2].id), "the fault is hardly theirs");
}

#[test]
fn weights_are_shares_idle_and_busy() {
    let set = standing(&[Target { weight: 1, ..target(1) }, Target { weight: 3, ..target(2) }], 1000);
    let idle = shares(&set, &uneven(ALIKE.now));
    assert!((190..310).contains(&idle[0]), "{idle:?}");
    for _ in 0..400 {
        let chosen = Crowd::default().choose(&set, &uneven(ALIKE.now)).unwrap().endpoint.clone();
        begin(&chosen, 1);
    }
    assert!((88..=112).contains(&set[0].in_flight()), "{}", set[0].in_flight());
}

#[test]
fn an_endpoint_that_joins_takes_its_share_by_and_by() {
    let share = |now| {
        let set = endpoints(2, 1000);
        set[1].standing.join(1000);
        for _ in 0..200 {
            let chosen = Crowd::default().choose(&set, &uneven(at(now))).unwrap().endpoint.clone();
            begin(&chosen, 1);
        }
        set[1].in_flight()
    };
    let (first, half, whole) = (share(1001), share(6000), share(11_000));
    assert!((8..30).contains(&first), "a tenth of the other's share: {first}");
    assert!((55..80).contains(&half), "half of it: {half}");
    assert!((90..110).contains(&whole), "all of it: {whole}");
}

#[test]
fn the_next_priority_takes_what_the_first_has_no_room_for() {
    let set = standing(&[target(1), Target { priority: 1, ..target(2) }], 1);
    let question = uneven(ALIKE.now);
    assert_eq!(shares(&set, &question), [1000, 0]);
    begin(&set[0], 1);
    assert_eq!(shares(&set, &question), [0, 1000]);
    set[0].load.end();
    set[0].unreached(Duration::from_secs(30), ALIKE.now);
    assert_eq!(shares(&set, &question), [0, 1000]);
    set[1].unreached(Duration::from_secs(30), ALIKE.now);
    assert_eq!(shares(&set, &question), [1000, 0]);
}

#[test]
fn those_that_are_near_come_first_until_they_are_crowded() {
    let set = standing(&[target(1), Target { zone: Some("there".into()), ..target(2) }], 4);
    let question = uneven(ALIKE.now);
    begin(&set[0], 3);
    assert_eq!(choose(&set, &question), Ok(set[0].id), "it has room for one more");
    let crowd = Crowd::default();
    let said = Announcement { in_flight: 8, capacity: 4, latency: 1000, most: 0 };
    crowd.hear(&set[0], &said, ALIKE.now);
    assert_eq!(crowd.choose(&set, &question).unwrap().endpoint.id, set[1].id);
}

#[test]
fn the_next_priority_takes_over_from_a_full_one_of_both_families() {
    let both = [target(1), Target { second: true, ..target(2) }, Target { priority: 10, ..target(3) }];
    let set = standing(&both, 1);
    begin(&set[0], 1);
    assert_eq!(shares(&set, &uneven(ALIKE.now)), [0, 0, 1000]);
}

#[test]
fn the_second_address_is_the_way_around_and_no_more_room() {
    let set = standing(&[target(1), target(2), Target { second: true, ..target(3) }], 1);
    let choose = |tried: &[u64]| choose(&set, &Question { tried, ..uneven(ALIKE.now) });
    assert_eq!(shares(&set, &uneven(ALIKE.now))[2], 0);
    begin(&set[0], 1);
    begin(&set[1], 1);
    assert_eq!(choose(&[]), Err(None::Full));
    set[0].load.end();
    set[1].load.end();
    assert_ne!(choose(&[set[0].id]), Ok(set[2].id), "it answered, whatever it said");
    set[0].unreached(Duration::from_secs(30), ALIKE.now);
    assert_eq!(choose(&[set[0].id]), Ok(set[2].id), "the other family comes next");
    assert_eq!(choose(&[]), Ok(set[1].id));
    set[1].unreached(Duration::from_secs(30), ALIKE.now);
    assert_eq!(choose(&[]), Ok(set[2].id));
}

#[test]
fn a_key_keeps_to_one_endpoint_while_that_has_room() {
    let set = endpoints(8, 1000);
    let stick = |key| Crowd::default().stick(&set, &ALIKE, key).unwrap().endpoint.clone();
    let first = stick(7);
    assert!((0..50).all(|_| stick(7).id == first.id));
    let others = (0..200).filter(|key| stick(*key).id != first.id).count();
    assert!((150..195).contains(&others), "keys are spread: {others}");
    // All of one key: nobody has more than a quarter beyond the mean, but for rounding.
    for _ in 0..800 {
        begin(&stick(7), 1);
    }
    let most = set.iter().map(|endpoint| endpoint.in_flight()).max();
    assert!(most <= Some(126), "{most:?}");
    // Of those with room, another endpoint that joins or leaves moves nobody else.
    let fewer: Vec<_> = set.iter().filter(|endpoint| endpoint.id != first.id).cloned().collect();
    fewer.iter().for_each(|endpoint| {
        while endpoint.in_flight() > 0 {
            endpoint.load.end()
        }
    });
    let moved = |key: u64| {
        let after = Crowd::default().stick(&fewer, &ALIKE, key).unwrap().endpoint.id;
        after != stick(key).id && stick(key).id != first.id
    };
    assert_eq!((0..200).filter(|key| moved(*key)).count(), 0);
}
