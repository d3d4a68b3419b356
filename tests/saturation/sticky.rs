//! Requests with the same value of a field or a cookie are answered by the same endpoint, and who leaves
//! moves nobody else's.

use crate::app::App;
use crate::eventually;
use crate::lab::{hold, orders, shown};
use crate::support::client::{request, send};
use crate::support::loopback::{HOST, Loopback};

const USERS: usize = 40;

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// Four applications, and a sidecar that keeps requests together by this.
async fn four(sticky: &str) -> (Vec<App>, Loopback) {
    let mut apps = Vec::new();
    for name in NAMES {
        apps.push(App::named(name).await);
    }
    let caller = Loopback::start("caller", &config(&apps, sticky)).await;
    (apps, caller)
}

fn config(apps: &[App], sticky: &str) -> String {
    let addresses: Vec<_> = apps.iter().map(|app| app.address).collect();
    orders(&addresses, ", capacity: 2")
        + &format!("routes: [{{ host: {HOST}, upstream: orders, sticky: {sticky} }}]\n")
}

/// Who answers a request with a field.
async fn answered(caller: &Loopback, (name, value): (&'static str, String)) -> String {
    let mut request = request("GET", HOST, "/", "");
    request.headers_mut().insert(name, value.parse().expect("a value"));
    let answer = send(caller.outbound(), request).await.expect("an answer");
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.text().to_owned()
}

/// Who answers each user.
async fn map(caller: &Loopback, field: impl Fn(usize) -> (&'static str, String)) -> Vec<String> {
    let mut map = Vec::new();
    for user in 0..USERS {
        map.push(answered(caller, field(user)).await);
    }
    map
}

fn distinct(names: &[String]) -> usize {
    NAMES.iter().filter(|name| names.iter().any(|have| have == **name)).count()
}

#[tokio::test]
async fn a_field_keeps_to_one_endpoint_whoever_leaves() {
    let (mut apps, caller) = four("{ header: X-User }").await;
    let field = |user| ("x-user", format!("user-{user}"));
    let first = map(&caller, field).await;
    for _ in 0..2 {
        assert_eq!(map(&caller, field).await, first);
    }
    assert_eq!(distinct(&first), 4, "users are spread: {first:?}");
    // Without the field, each goes where there is room.
    let held: Vec<_> = (0..8).map(|_| hold(caller.outbound())).collect();
    eventually("two at each", async || apps.iter().all(|app| app.held() == 2)).await;
    apps.iter().for_each(|app| app.release(2));
    for held in held {
        assert_eq!(held.answer().await.status, 200);
    }

    let gone = apps.remove(1);
    caller.configure(&config(&apps, "{ header: x-user }"));
    eventually("it to be gone", async || {
        shown(&caller).await["endpoints"].as_array().map(Vec::len) == Some(3)
    })
    .await;
    let after = map(&caller, field).await;
    for (before, after) in first.iter().zip(&after) {
        assert!(after == before || before == "b", "{before} became {after}");
        assert_ne!(after, "b");
    }
    drop(gone);
}

#[tokio::test]
async fn a_cookie_keeps_to_one_endpoint_whatever_others_there_are() {
    let (_apps, caller) = four("{ cookie: session }").await;
    let cookies = |round: usize| {
        move |user: usize| {
            let others = ["", "theme=dark; "][round % 2];
            ("cookie", format!("{others}session=user-{user}; seen={round}"))
        }
    };
    let first = map(&caller, cookies(0)).await;
    for round in 1..3 {
        assert_eq!(map(&caller, cookies(round)).await, first);
    }
    assert_eq!(distinct(&first), 4, "users are spread: {first:?}");
    let other = map(&caller, |user| ("cookie", format!("xsession=user-{user}; theme=dark"))).await;
    assert_ne!(other, first, "another cookie keeps nobody");
}
