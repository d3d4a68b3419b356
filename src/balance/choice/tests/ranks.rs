//! Who comes before others, in large sets and for those who keep to one endpoint.

use super::*;

/// As many as that of a rank, from a number on.
fn rank(from: u8, many: u8, priority: u16, zone: &str, second: bool) -> impl Iterator<Item = Target> {
    let zone: Option<Arc<str>> = Some(zone.into());
    (from..from + many).map(move |n| Target { priority, second, zone: zone.clone(), ..target(n) })
}

#[test]
fn of_very_many_ranks_are_kept_though_some_are_looked_at() {
    let targets = rank(0, 100, 0, "here", false).chain(rank(100, 100, 0, "there", false));
    let set = standing(&targets.chain(rank(200, 50, 1, "here", false)).collect::<Vec<_>>(), 4);
    let (crowd, ranks) = (Crowd::default(), Ranks::of(&set));
    let question = uneven(ALIKE.now, &ranks);
    let chosen = |from, to| {
        (0..200).all(|_| {
            let chosen = crowd.choose(&set, &question).unwrap().endpoint.id;
            set[from..to].iter().any(|endpoint| endpoint.id == chosen)
        })
    };
    assert!(chosen(0, 100), "near ones");
    let said = Announcement { in_flight: 8, capacity: 4, latency: 1000, most: 0 };
    // Heard by others: what is usual here does not change with it.
    set[..100].iter().for_each(|endpoint| Crowd::default().hear(endpoint, &said, ALIKE.now));
    assert!(chosen(100, 200), "those that are near are crowded");
    set[..199].iter().for_each(|endpoint| begin(endpoint, 4));
    assert!(chosen(199, 200), "the only one with room of the first priority");
    begin(&set[199], 4);
    assert!(chosen(200, 250));
    set[200..].iter().for_each(|endpoint| begin(endpoint, 4));
    assert_eq!(crowd.choose(&set, &question).map(|chosen| chosen.endpoint.id), Err(None::Full));
}

#[test]
fn of_very_many_of_one_rank_those_that_were_heard_last_and_some_others_are_looked_at() {
    let targets = rank(0, 100, 0, "there", false).chain(rank(100, 100, 0, "here", false));
    let set = standing(&targets.collect::<Vec<_>>(), 10);
    set[100..199].iter().for_each(|endpoint| begin(endpoint, 5));
    let ranks = Ranks::of(&set);
    let question = uneven(ALIKE.now, &ranks);
    let counts = shares(&set, &question);
    assert!(counts[199] < 300, "not all are looked at: {counts:?}");
    let crowd = Crowd::default();
    let said = Announcement { in_flight: 0, capacity: 10, latency: 1000, most: 0 };
    // What is far is heard last, and is not looked at.
    for endpoint in [&set[199], &set[0], &set[1]] {
        crowd.hear(endpoint, &said, ALIKE.now);
    }
    let heard = (0..200).filter(|_| crowd.choose(&set, &question).unwrap().endpoint.id == set[199].id);
    assert!(heard.count() > 190);
}

#[test]
fn of_very_many_second_addresses_are_no_more_room_either() {
    let targets = rank(0, 100, 0, "here", true).chain(rank(100, 100, 0, "here", false));
    let set = standing(&targets.collect::<Vec<_>>(), 1);
    let ranks = Ranks::of(&set);
    let choose = |tried: &[u64]| choose(&set, &Question { tried, ..uneven(ALIKE.now, &ranks) });
    let is_second = |id: u64| set[..100].iter().any(|endpoint| endpoint.id == id);
    set[100].unreached(Duration::from_secs(30), ALIKE.now);
    assert!((0..50).all(|_| is_second(choose(&[set[100].id]).unwrap())), "the way around comes next");
    assert!((0..50).all(|_| !is_second(choose(&[]).unwrap())));
    set[101..].iter().for_each(|endpoint| begin(endpoint, 1));
    assert_eq!(choose(&[set[100].id]), Err(None::Full));
    for endpoint in &set[101..] {
        endpoint.load.end();
        endpoint.unreached(Duration::from_secs(30), ALIKE.now);
    }
    assert!((0..50).all(|_| is_second(choose(&[]).unwrap())), "no first one can be reached");
}

#[test]
fn keys_live_where_requests_without_one_would_go() {
    let first = rank(0, 4, 0, "here", false).chain(rank(4, 4, 0, "there", false));
    let all = first.chain(rank(8, 4, 0, "here", true)).chain(rank(12, 4, 10, "here", false));
    let (set, crowd) = (standing(&all.collect::<Vec<_>>(), 10), Crowd::default());
    let map = |set: &[Arc<Endpoint>]| -> Vec<u64> {
        let ranks = Ranks::of(set);
        let question = uneven(ALIKE.now, &ranks);
        (0..200).map(|key| crowd.stick(set, &question, key).unwrap().endpoint.id).collect()
    };
    let live = |from, to| map(&set).iter().all(|id| set[from..to].iter().any(|e| e.id == *id));
    assert!(live(0, 4), "near ones");
    let (before, after) = (map(&set), map(&set[1..]));
    let moved = before.iter().zip(&after).filter(|(before, after)| before != after);
    assert!(moved.clone().count() > 20 && moved.into_iter().all(|(before, _)| *before == set[0].id));
    assert!(after.iter().all(|id| set[1..4].iter().any(|endpoint| endpoint.id == *id)));
    let said = |in_flight| Announcement { in_flight, capacity: 10, latency: 1000, most: 0 };
    set[..4].iter().for_each(|endpoint| crowd.hear(endpoint, &said(20), ALIKE.now));
    assert!(live(4, 8), "those that are near are crowded");
    set[4..8].iter().for_each(|endpoint| crowd.hear(endpoint, &said(20), ALIKE.now));
    assert!(live(0, 8), "all of the first priority are");
    set[..8].iter().for_each(|endpoint| begin(endpoint, 10));
    assert!(live(12, 16), "they are full, and second addresses are no room");
    set[..8].iter().for_each(|endpoint| endpoint.unreached(Duration::from_secs(30), ALIKE.now));
    assert!(live(8, 12), "the way around");
}
