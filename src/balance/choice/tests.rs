//! What a choice promises, one by one.

use super::super::standing::mean_weights;
use super::super::{Ejection, Learned, Outcome, Taken};
use super::*;

use crate::dns::Target;
use crate::http::Announcement;

mod ranks;

const SLOW_START: Duration = Duration::from_secs(10);

/// Endpoints of which the source says so much.
fn standing(targets: &[Target], capacity: u32) -> Vec<Arc<Endpoint>> {
    let means = mean_weights(targets);
    let endpoint = |(place, target): (usize, &Target)| {
        let endpoint = Endpoint::new(target.address, Some(capacity));
        endpoint.standing.take(target, means[&target.priority], false, Some("here"));
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

fn uneven(now: Now, ranks: &Option<Ranks>) -> Question<'_> {
    let uneven = Some(Uneven { slow_start: SLOW_START, ranks: ranks.as_ref() });
    Question { tried: &[], now, asked: false, uneven }
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
fn those_whose_answers_differ_by_chance_share_too() {
    let (crowd, mut rng) = (Crowd::default(), fastrand::Rng::with_seed(7));
    let set: Vec<_> = (1..=4).map(|n| Endpoint::new(target(n).address, Option::None)).collect();
    for n in 0..4000 {
        let endpoint = &set[n % set.len()];
        let taken: Vec<_> = (0..rng.usize(1..=4)).filter_map(|_| Taken::of(endpoint, ALIKE.now)).collect();
        let took = -20_000.0 * (1.0 - rng.f32()).ln();
        crowd.answered(taken.last().unwrap(), took, at(1000 + n as u64));
    }
    let question = Question { now: at(5000), ..ALIKE };
    let at_once: Vec<_> = (0..8)
        .filter_map(|_| Taken::of(crowd.choose(&set, &question).unwrap().endpoint, question.now))
        .collect();
    let counts: Vec<_> = set.iter().map(|endpoint| endpoint.in_flight()).collect();
    assert!(at_once.len() == 8 && counts.iter().all(|count| (1..=3).contains(count)), "{counts:?}");
}

#[test]
fn what_is_learned_is_what_was_measured() {
    let crowd = Crowd::default();
    let set: Vec<_> = (1..=2).map(|n| Endpoint::new(target(n).address, Option::None)).collect();
    for n in 0..1000 {
        for (endpoint, took) in set.iter().zip([20_000.0, 60_000.0]) {
            crowd.answered(&Taken::of(endpoint, ALIKE.now).unwrap(), took, at(1000 + n));
        }
    }
    let learned: Vec<_> = set.iter().map(|endpoint| endpoint.latency().unwrap().as_micros()).collect();
    assert!((20_000..25_000).contains(&learned[0]) && (45_000..=60_000).contains(&learned[1]), "{learned:?}");
    let alone = Crowd::default();
    let endpoint = Endpoint::new(target(3).address, Option::None);
    (0..1000).for_each(|n| {
        alone.answered(&Taken::of(&endpoint, ALIKE.now).unwrap(), 20_000.0, at(1000 + n));
    });
    let learned = endpoint.latency().unwrap().as_micros();
    assert!((19_300..20_100).contains(&learned), "{learned}");
}

#[test]
fn one_that_was_slow_is_tried_again_before_any_that_comes_later() {
    let far = Target { zone: Some("there".into()), ..target(3) };
    let (crowd, set) = (Crowd::default(), standing(&[target(1), target(2), far], 100));
    for n in 0..1000 {
        crowd.answered(&Taken::of(&set[0], ALIKE.now).unwrap(), 20_000.0, at(10 * n));
        crowd.answered(&Taken::of(&set[1], ALIKE.now).unwrap(), 500_000.0, at(n));
    }
    let mut counts = [0; 3];
    for _ in 0..20_000 {
        let chosen = crowd.choose(&set, &uneven(at(10_000), &Ranks::of(&set))).unwrap().endpoint.id;
        counts[set.iter().position(|endpoint| endpoint.id == chosen).unwrap()] += 1;
    }
    assert!((20..400).contains(&counts[1]) && counts[2] == 0, "{counts:?}");
}

#[test]
fn one_that_was_slow_and_then_failed_is_tried_again_too() {
    let (crowd, set) = (Crowd::default(), endpoints(2, 100));
    for n in 0..1000 {
        crowd.answered(&Taken::of(&set[0], ALIKE.now).unwrap(), 20_000.0, at(10 * n));
        crowd.answered(&Taken::of(&set[1], ALIKE.now).unwrap(), 500_000.0, at(n));
    }
    set[1].unreached(Duration::from_secs(1), at(2000));
    let question = Question { now: at(10_000), ..ALIKE };
    let is_second = |_: &u32| crowd.choose(&set, &question).unwrap().endpoint.id == set[1].id;
    let tried = (0..20_000).filter(is_second).count();
    assert!((20..400).contains(&tried), "{tried}");
}

#[test]
fn what_one_endpoint_says_makes_others_no_fuller_than_it_may() {
    let (crowd, set) = (Crowd::default(), endpoints(2, 10));
    for n in 1..100 {
        let said = Announcement { in_flight: 16_777_216, capacity: 1, latency: 1, most: 0 };
        crowd.hear(&set[0], &said, at(1000 + n));
    }
    assert!(crowd.usual().others <= 4.0, "{}", crowd.usual().others);
}

#[test]
fn one_that_says_nothing_changes_nothing_of_those_that_say_how_much_they_serve() {
    let (set, crowd) = (endpoints(1, 10), Crowd::default());
    let silent = Endpoint::new(target(9).address, Option::None);
    let said = Announcement { in_flight: 1, capacity: 100, latency: 20_000, most: 0 };
    crowd.hear(&set[0], &said, ALIKE.now);
    for n in 0..1000 {
        crowd.answered(&Taken::of(&silent, ALIKE.now).unwrap(), 20_000.0, at(1001 + n));
    }
    assert!(silent.capacity().1 < 3.0, "one at a time");
    assert_eq!(crowd.usual().part, 0.01);
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
    assert!(choose(&set, &uneven(ALIKE.now, &Ranks::of(&set))).is_ok());
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
    let idle = shares(&set, &uneven(ALIKE.now, &Ranks::of(&set)));
    assert!((190..310).contains(&idle[0]), "{idle:?}");
    for _ in 0..400 {
        let chosen =
            Crowd::default().choose(&set, &uneven(ALIKE.now, &Ranks::of(&set))).unwrap().endpoint.clone();
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
            let chosen =
                Crowd::default().choose(&set, &uneven(at(now), &Ranks::of(&set))).unwrap().endpoint.clone();
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
    let ranks = Ranks::of(&set);
    let question = uneven(ALIKE.now, &ranks);
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
    let ranks = Ranks::of(&set);
    let question = uneven(ALIKE.now, &ranks);
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
    assert_eq!(shares(&set, &uneven(ALIKE.now, &Ranks::of(&set))), [0, 0, 1000]);
}

#[test]
fn the_second_address_is_the_way_around_and_no_more_room() {
    let set = standing(&[target(1), target(2), Target { second: true, ..target(3) }], 1);
    let choose = |tried: &[u64]| choose(&set, &Question { tried, ..uneven(ALIKE.now, &Ranks::of(&set)) });
    assert_eq!(shares(&set, &uneven(ALIKE.now, &Ranks::of(&set)))[2], 0);
    begin(&set[0], 1);
    begin(&set[1], 1);
    assert_eq!(choose(&[]), Err(None::Full));
    set[0].load.end();
    set[1].load.end();
    assert_ne!(choose(&[set[0].id]), Ok(set[2].id), "it answered, whatever it said");
    let failed = Taken::of(&set[0], ALIKE.now).unwrap();
    Crowd::default().failed(&failed, Outcome::Failed, &Ejection::default(), &set, ALIKE.now);
    drop(failed);
    assert_ne!(choose(&[set[0].id]), Ok(set[2].id), "so it did then");
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

/// How many of 100,000 requests each endpoint is given that come from `busy` at once, each answered after about 20 ms;
/// `said`: its sidecar announces what it learns.
fn given(targets: &[Target], busy: usize, said: bool) -> Vec<usize> {
    let means = mean_weights(targets);
    let endpoint = |target: &Target| {
        let endpoint = Endpoint::new(target.address, Option::None);
        endpoint.standing.take(target, means[&target.priority], false, Some("here"));
        endpoint
    };
    let endpoints: Vec<_> = targets.iter().map(endpoint).collect();
    let servers: Vec<_> = targets.iter().map(|_| Learned::default()).collect();
    let (crowd, mut rng) = (Crowd::default(), fastrand::Rng::with_seed(7));
    let announce = |which: usize, now: u64| {
        let (endpoint, server) = (&endpoints[which], &servers[which]);
        let in_flight = endpoint.in_flight();
        let latency = if in_flight == 0 { server.latency_at(now) } else { server.latency() } as u32;
        let said = Announcement { in_flight, capacity: server.capacity() as u32, latency, most: 0 };
        crowd.hear(endpoint, &said, Now::of_micros(now));
    };
    let (mut in_flight, mut given): (Vec<(u64, f32, usize, Taken)>, _) = (Vec::new(), vec![0; targets.len()]);
    let (mut now, mut probed) = (1_000_000, 0);
    for _ in 0..100_000 {
        if said && now > probed + 100_000 {
            probed = now;
            let idle =
                (0..servers.len()).filter(|n| endpoints[*n].in_flight() == 0 && servers[*n].is_known());
            idle.for_each(|which| announce(which, now));
        }
        let uneven = Some(Uneven { slow_start: SLOW_START, ranks: Option::None });
        let question = Question { tried: &[], now: Now::of_micros(now), asked: false, uneven };
        while in_flight.len() < busy {
            let chosen = crowd.choose(&endpoints, &question).unwrap().endpoint;
            let which = endpoints.iter().position(|endpoint| endpoint.id == chosen.id).unwrap();
            let took = 1.0 - 20_000.0 * (1.0 - rng.f32()).ln();
            in_flight.push((now + took as u64, took, which, Taken::of(chosen, question.now).unwrap()));
            given[which] += 1;
        }
        let first = (0..busy).min_by_key(|n| in_flight[*n].0).unwrap();
        let (ends, took, which, taken) = in_flight.swap_remove(first);
        now = ends;
        if said {
            servers[which].answered(took, endpoints[which].in_flight(), now);
            drop(taken);
            if servers[which].is_known() {
                announce(which, now);
            }
        } else {
            crowd.answered(&taken, took, Now::of_micros(now));
        }
    }
    given
}

#[test]
fn weights_are_shares_whatever_was_learned() {
    for (light, said) in [100, 333, 1000].into_iter().flat_map(|light| [(light, false), (light, true)]) {
        for busy in [1, 4, 10, 30] {
            let targets = [Target { weight: light, ..target(1) }, Target { weight: 1000, ..target(2) }];
            let given = given(&targets, busy, said);
            let share = given[0] as f32 / given[1] as f32 / (light as f32 / 1000.0);
            assert!((0.2..5.0).contains(&share), "{given:?} of weight {light}, {busy} at once, {said}");
        }
    }
}
