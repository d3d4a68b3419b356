//! What is measured is right while it is so.

use crate::app::App;
use crate::eventually;
use crate::lab::{Mesh, crowd, hold, hold_at, plain, release, until_waiting};
use crate::support::client::{get as get_at, metric};
use crate::support::loopback::Loopback;

/// A number as Prometheus sees it.
async fn seen(sidecar: &Loopback, name: &str, labels: &[&str]) -> f64 {
    let page = get_at(sidecar.at("probes"), "probes", "/metrics").await.expect("the page");
    assert!(page.text().contains(name), "there is no {name}");
    metric(page.text(), name, labels)
}

const ORDERS: &[&str] = &["upstream=\"orders\""];

#[tokio::test]
async fn both_ends_say_how_full_the_application_is() {
    let app = App::named("a").await;
    let mesh = Mesh::new();
    let orders = mesh.endpoint(&app, ", capacity: 6").await;
    let caller = mesh.caller(&[&orders], "").await;
    // So many that it knows how long they take.
    assert_eq!(crowd(&caller, 40, 2).await, 40);
    assert_eq!(seen(&orders, "pannier_capacity", &[]).await, 6.0);
    assert_eq!(seen(&orders, "pannier_saturation_ratio", &[]).await, 0.0);
    let held = hold_at(caller.outbound(), &app, 3).await;
    assert_eq!(seen(&orders, "pannier_saturation_ratio", &[]).await, 0.5);
    let ratio = seen(&caller, "pannier_upstream_saturation_ratio", ORDERS).await;
    assert!((0.5..0.6).contains(&ratio), "{ratio}");
    release(&app, held).await;
    eventually("nothing to be left", async || {
        seen(&orders, "pannier_saturation_ratio", &[]).await == 0.0
            && seen(&caller, "pannier_upstream_saturation_ratio", ORDERS).await < 0.1
    })
    .await;
}

#[tokio::test]
async fn who_waits_is_counted() {
    let app = App::named("a").await;
    let caller = plain(&[&app], ", capacity: 1, queue: { time: 1m }").await;
    assert_eq!(seen(&caller, "pannier_upstream_waiting", ORDERS).await, 0.0);
    let held = hold_at(caller.outbound(), &app, 1).await;
    let waiting = [hold(caller.outbound()), hold(caller.outbound())];
    until_waiting(&caller, 2).await;
    assert_eq!(seen(&caller, "pannier_upstream_waiting", ORDERS).await, 2.0);
    assert_eq!(seen(&caller, "pannier_upstream_saturation_ratio", ORDERS).await, 1.0);
    assert_eq!(seen(&caller, "pannier_upstream_in_flight", ORDERS).await, 1.0);
    app.release(3);
    for held in held.into_iter().chain(waiting) {
        assert_eq!(held.answer().await.status, 200);
    }
    assert_eq!(seen(&caller, "pannier_upstream_waiting", ORDERS).await, 0.0);
}

#[tokio::test]
async fn who_is_passed_over_is_counted() {
    let (well, sick) = (App::named("well").await, App::named("sick").await);
    sick.status(503);
    let caller = plain(&[&well, &sick], ", ejection: { pause: 1m, longest: 1m }").await;
    assert_eq!(seen(&caller, "pannier_upstream_passed_over", ORDERS).await, 0.0);
    well.after(5);
    assert!(crowd(&caller, 100, 4).await >= 90);
    assert_eq!(seen(&caller, "pannier_upstream_passed_over", ORDERS).await, 1.0);
}
