//! No endpoint is given more than it takes, and what comes beyond waits, no longer and no more than it may.

use std::time::Duration;

use tokio::task::JoinSet;

use crate::app::App;
use crate::eventually;
use crate::lab::{Held, get, hold, orders, plain, release, shown, until_waiting};
use crate::support::client::{Answer, request, send};
use crate::support::loopback::{HOST, Loopback};

/// Two applications behind one sidecar, each with a request, which is all that it takes.
async fn both_full(upstream: &str) -> (App, App, Loopback, Vec<Held>) {
    let (a, b) = (App::named("a").await, App::named("b").await);
    let caller = plain(&[&a, &b], upstream).await;
    let held = vec![hold(caller.outbound()), hold(caller.outbound())];
    eventually("one at each", async || (a.held(), b.held()) == (1, 1)).await;
    (a, b, caller, held)
}

fn assert_refused(answer: &Answer) {
    assert_eq!((answer.status.as_u16(), answer.refused()), (503, Some("balance.full")), "{answer:?}");
    assert!(answer.field("retry-after").is_some(), "{answer:?}");
}

#[tokio::test]
async fn what_finds_every_endpoint_full_waits_for_the_first_that_has_room() {
    let (a, b, caller, _held) = both_full(", capacity: 1, queue: { time: 1m }").await;
    let third = hold(caller.outbound());
    until_waiting(&caller, 1).await;
    assert_eq!((a.held(), b.held(), third.is_answered()), (1, 1, false));
    a.release(1);
    eventually("its turn", async || a.held() == 1 && a.all() == 2).await;
    assert_eq!(shown(&caller).await["waiting"], 0);
    a.release(1);
    let answer = third.answer().await;
    assert_eq!((answer.status.as_u16(), answer.text()), (200, "a"));
    assert_eq!((b.all(), a.most(), b.most()), (1, 1, 1));
}

#[tokio::test]
async fn without_a_queue_it_is_refused_at_once() {
    let (a, b, caller, held) = both_full(", capacity: 1, queue: { requests: 0 }").await;
    assert_refused(&get(&caller, "/").await);
    a.release(1);
    b.release(1);
    for held in held {
        assert_eq!(held.answer().await.status, 200);
    }
    assert_eq!(get(&caller, "/").await.status, 200);
    assert_eq!(a.all() + b.all(), 3);
}

#[tokio::test]
async fn the_queue_has_an_end_and_so_has_waiting_in_it() {
    let (a, b, caller, _held) = both_full(", capacity: 1, queue: { requests: 2, time: 2s }").await;
    let waiting = [hold(caller.outbound()), hold(caller.outbound())];
    until_waiting(&caller, 2).await;
    assert_refused(&get(&caller, "/").await);
    for waiting in waiting {
        assert_refused(&waiting.answer().await);
    }
    assert_eq!((a.all(), b.all()), (1, 1));
}

#[tokio::test]
async fn a_route_s_timeout_ends_waiting_too() {
    let (a, b) = (App::named("a").await, App::named("b").await);
    let route = format!(
        "routes: [{{ host: {HOST}, upstream: orders }}, {{ host: {HOST}, path: /soon, upstream: orders, timeout: 200ms }}]\n"
    );
    let upstream = orders(&[a.address, b.address], ", capacity: 1, queue: { time: 1m }");
    let caller = Loopback::start("caller", &(upstream + &route)).await;
    let held = [hold(caller.outbound()), hold(caller.outbound())];
    eventually("one at each", async || (a.held(), b.held()) == (1, 1)).await;
    let answer = get(&caller, "/soon").await;
    assert!([503, 504].contains(&answer.status.as_u16()), "{answer:?}");
    assert_eq!((a.all(), b.all()), (1, 1));
    drop(held);
}

#[tokio::test]
async fn max_in_flight_bounds_all_of_an_upstream_likewise() {
    let app = App::named("a").await;
    let caller = plain(&[&app], ", max_in_flight: 2, queue: { requests: 1, time: 1m }").await;
    let held = crate::lab::hold_at(caller.outbound(), &app, 2).await;
    let third = hold(caller.outbound());
    until_waiting(&caller, 1).await;
    assert_refused(&get(&caller, "/").await);
    release(&app, held).await;
    app.release(1);
    assert_eq!(third.answer().await.status, 200);
    assert_eq!((app.all(), app.most()), (3, 2));
}

#[tokio::test]
async fn who_gives_up_takes_no_turn() {
    let (a, _b, caller, _held) = both_full(", capacity: 1, queue: { time: 1m }").await;
    let gives_up = hold(caller.outbound());
    until_waiting(&caller, 1).await;
    let stays = hold(caller.outbound());
    until_waiting(&caller, 2).await;
    gives_up.give_up().await;
    // Also of him who is gone, should the application have been given his before that was seen.
    a.release(3);
    assert_eq!(stays.answer().await.text(), "a");
}

#[tokio::test]
async fn what_a_reload_makes_room_for_waits_no_longer() {
    let app = App::named("a").await;
    let upstream =
        |capacity: &str| orders(&[app.address], &format!(", capacity: {capacity}, queue: {{ time: 1m }}"));
    let caller = Loopback::start("caller", &upstream("1")).await;
    let held = crate::lab::hold_at(caller.outbound(), &app, 1).await;
    let waiting = [hold(caller.outbound()), hold(caller.outbound())];
    until_waiting(&caller, 2).await;
    caller.configure(&upstream("3"));
    eventually("all to be given", async || app.held() == 3).await;
    app.release(3);
    for held in held.into_iter().chain(waiting) {
        assert_eq!(held.answer().await.status, 200);
    }
}

#[tokio::test]
async fn a_crowd_is_answered_and_no_endpoint_ever_has_more_than_it_takes() {
    let (a, b) = (App::named("a").await, App::named("b").await);
    for app in [&a, &b] {
        app.after(5);
    }
    let endpoints = orders(&[a.address, b.address], ", capacity: 2, queue: { time: 1m }");
    let caller = Loopback::with_workers(2, "caller", &endpoints).await;
    let mut crowd = JoinSet::new();
    for n in 0..200 {
        let to = caller.outbound();
        crowd.spawn(async move {
            // Not all at the same moment.
            tokio::time::sleep(Duration::from_millis(n % 7)).await;
            let method = if n % 2 == 0 { "GET" } else { "POST" };
            send(to, request(method, HOST, "/", "")).await.expect("an answer")
        });
    }
    while let Some(answer) = crowd.join_next().await {
        let answer = answer.expect("an answer");
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    assert_eq!(a.all() + b.all(), 200, "each once");
    assert_eq!((a.most(), b.most()), (2, 2));
    let shown = shown(&caller).await;
    assert_eq!((&shown["waiting"], &shown["in_flight"]), (&0.into(), &0.into()), "{shown}");
}
