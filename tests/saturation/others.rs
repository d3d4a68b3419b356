//! What other callers have in flight counts, though only the endpoint's sidecar can know it.

use crate::app::App;
use crate::lab::{Mesh, crowd, get, hold_at, release};

/// Requests that a caller makes, one after the other.
const REQUESTS: usize = 30;

/// Two endpoints, of which another caller fills one: the first, or the second.
async fn who_has_nothing_in_flight_goes_to_the_other(fills: usize) {
    let apps = [App::named("a").await, App::named("b").await];
    let mesh = Mesh::new();
    let mut endpoints = Vec::new();
    for app in &apps {
        app.after(20);
        endpoints.push(mesh.endpoint(app, ", capacity: 4").await);
    }
    let (fuller, other) = (&apps[fills], &apps[1 - fills]);
    let one = mesh.caller(&[&endpoints[fills]], "").await;
    let two = mesh.caller(&[&endpoints[0], &endpoints[1]], "").await;
    // It has a connection to each.
    assert_eq!(crowd(&two, 120, 12).await, 120);
    assert!(apps.iter().all(|app| app.all() >= 20), "{} and {}", apps[0].all(), apps[1].all());
    let held = hold_at(one.outbound(), fuller, 8).await;
    // It may hear of it by one that is answered there.
    for _ in 0..5 {
        assert_eq!(get(&two, "/").await.status, 200);
    }
    let before = (fuller.all(), other.all());
    for _ in 0..REQUESTS {
        assert_eq!(get(&two, "/").await.status, 200);
    }
    let (went, wrong) = (other.all() - before.1, fuller.all() - before.0);
    assert_eq!(went + wrong, REQUESTS);
    assert!(wrong <= 3, "{wrong} of {REQUESTS} went to the one that is full");
    release(fuller, held).await;
}

#[tokio::test]
async fn while_others_fill_the_first_requests_go_to_the_second() {
    who_has_nothing_in_flight_goes_to_the_other(0).await;
}

#[tokio::test]
async fn while_others_fill_the_second_requests_go_to_the_first() {
    who_has_nothing_in_flight_goes_to_the_other(1).await;
}
