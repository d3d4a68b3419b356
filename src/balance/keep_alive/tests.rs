//! Peers that say and show how long they keep connections, and those that change their mind.

use super::*;

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A peer of whose connections nothing is known, with a round trip of 100 µs.
fn peer() -> KeepAlive {
    let peer = KeepAlive::new();
    peer.trip(Duration::from_micros(100));
    peer
}

/// Another connection lives.
fn lives(peer: &KeepAlive, age: Duration, requests: u32) {
    peer.lives(age, requests, &mut false);
}

#[test]
fn nothing_is_proven_of_a_stranger() {
    let peer = peer();
    assert_eq!((peer.reuse(), peer.proven()), (CAUTIOUS, Duration::ZERO));
    assert!(peer.takes_more(1_000_000) && !peer.surely_takes_more(1));
}

#[test]
fn a_close_is_the_limit_of_every_request() {
    for limit in [50, 200, 1000, 5000] {
        let peer = peer();
        peer.closed(ms(limit), 1);
        assert_eq!(peer.reuse(), peer.proven());
        assert!(peer.proven() >= ms(limit / 2), "half of {limit} is reused: {:?}", peer.proven());
        assert!(peer.proven() <= ms(limit) - SCHEDULING, "{limit}: {:?}", peer.proven());
    }
}

#[test]
fn a_slow_path_has_a_larger_margin() {
    let (near, far) = (peer(), peer());
    for _ in 0..100 {
        far.trip(ms(4));
    }
    near.closed(ms(200), 1);
    far.closed(ms(200), 1);
    assert!(far.proven() + ms(3) < near.proven());
}

#[test]
fn a_peer_that_closes_nothing_is_trusted_as_long_as_it_has_shown() {
    let peer = peer();
    lives(&peer, ms(100), 1);
    assert!(peer.proven() > ms(80) && peer.proven() < ms(90), "{:?}", peer.proven());
    assert_eq!(peer.reuse(), CAUTIOUS);
    lives(&peer, ms(60_000), 1);
    assert!(peer.reuse() > ms(57_000) && peer.proven() == peer.reuse());
}

#[test]
fn the_least_of_what_is_said_and_shown() {
    let peer = peer();
    peer.hinted(Hint { timeout: 5, max: None });
    assert!(peer.proven() > ms(4500) && peer.proven() < ms(5000), "a hint is as good as a close");
    peer.closed(ms(6000), 1);
    assert!(peer.proven() < ms(5000), "{:?}", peer.proven());
    peer.configure(Configured { timeout: Some(ms(3000)), requests: None, most_idle: ms(60_000) });
    assert!(peer.proven() < ms(3000) && peer.proven() > ms(2500));
    peer.closed(ms(1000), 1);
    assert!(peer.proven() < ms(1000), "a close before what was configured is believed");
    peer.configure(Configured { timeout: None, requests: None, most_idle: ms(100) });
    assert_eq!((peer.reuse(), peer.proven()), (ms(100), ms(100)));
}

#[test]
fn what_was_kept_warm_says_nothing_of_what_was_used() {
    let peer = peer();
    peer.closed(ms(50), 1);
    let known = peer.report();
    (0..100).for_each(|_| lives(&peer, ms(60_000), 0));
    peer.closed(ms(1), 0);
    assert_eq!(peer.report(), known);
}

#[test]
fn a_hint_of_nothing_is_none() {
    // Node says the floor of its timeout in seconds.
    let peer = peer();
    peer.hinted(Hint { timeout: 0, max: None });
    assert_eq!(peer.reuse(), CAUTIOUS);
}

#[test]
fn a_limit_that_has_changed_is_found() {
    let peer = peer();
    (0..20).for_each(|_| peer.closed(ms(1000), 1));
    peer.closed(ms(200), 1);
    assert!(peer.reuse() < ms(200), "at the first close");
    for _ in 0..DOUBTS {
        lives(&peer, ms(700), 1);
    }
    assert!(peer.reuse() > ms(900), "{:?}", peer.reuse());
}

#[test]
fn one_connection_doubts_once() {
    let peer = peer();
    peer.closed(ms(200), 1);
    let mut doubted = false;
    (0..100).for_each(|n| peer.lives(ms(300 + n), 1, &mut doubted));
    assert!(peer.reuse() < ms(200), "however long it lives");
}

#[test]
fn the_least_hint_of_many_peers_at_one_address_holds() {
    let peer = peer();
    for timeout in [65, 5, 65, 5, 65] {
        peer.hinted(Hint { timeout, max: None });
    }
    assert!(peer.proven() < ms(5000));
    (0..DOUBTS).for_each(|_| peer.hinted(Hint { timeout: 65, max: None }));
    assert!(peer.proven() > ms(60_000), "all have said so for a while");
}

#[test]
fn the_earliest_of_a_coarse_timer_counts() {
    let peer = peer();
    for at in [1900, 1100, 1700, 1050, 1500] {
        peer.closed(ms(at), 1);
    }
    assert!(peer.proven() < ms(1050));
}

#[test]
fn requests_are_counted_up_to_what_was_seen_to_work() {
    let peer = peer();
    for n in 1..=4 {
        assert!(!peer.surely_takes_more(n));
        lives(&peer, ms(1), n);
        assert!(!peer.surely_takes_more(n), "so soon that proves nothing");
        lives(&peer, ms(6), n);
        assert!(peer.surely_takes_more(n));
    }
    // After the fifth it closes.
    peer.closed(Duration::from_micros(80), 5);
    assert!(peer.surely_takes_more(4) && !peer.surely_takes_more(5));
    assert!(peer.takes_more(5), "once may be a restart");
    peer.closed(Duration::from_micros(80), 5);
    peer.closed(Duration::from_micros(80), 5);
    assert!(!peer.takes_more(5) && peer.takes_more(4));
    assert_eq!(peer.report().requests, Some(5));
    assert_eq!(peer.reuse(), CAUTIOUS, "of idling that says nothing");
}

#[test]
fn many_requests_are_trusted_in_doubling_steps() {
    let peer = peer();
    lives(&peer, ms(6), FEW_REQUESTS);
    assert!(peer.surely_takes_more(2 * FEW_REQUESTS - 1));
    assert!(!peer.surely_takes_more(2 * FEW_REQUESTS));
}

#[test]
fn a_restart_is_forgotten() {
    let peer = peer();
    lives(&peer, ms(60_000), 50);
    for n in 1..6 {
        peer.closed(ms(10 * n), 3);
        peer.closed(Duration::ZERO, n as u32);
    }
    assert!(peer.reuse() < ms(10));
    for _ in 0..200 {
        lives(&peer, ms(400), 60);
    }
    assert!(peer.reuse() >= ms(380), "{:?}", peer.report());
    assert!(peer.surely_takes_more(60));
}
