//! The application is given no more than it is said to take, or has shown to: what comes beyond is told so
//! at once, unread, and goes elsewhere where there is such.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http_body_util::Full;
use hyper::Request;
use hyper::body::Bytes;
use tokio::task::JoinSet;

use crate::app::App;
use crate::eventually;
use crate::lab::{Mesh, crowd, hold_at, release};
use crate::support::client::{Answer, request, send};
use crate::support::loopback::{HOST, Loopback};

fn assert_refused(answer: &Answer) {
    assert_eq!((answer.status.as_u16(), answer.refused()), (503, Some("admit.full")), "{answer:?}");
    assert!(answer.field("retry-after").is_some(), "{answer:?}");
}

/// A request as the kubelet makes it.
fn kubelets() -> Request<Full<Bytes>> {
    let mut request = request("GET", HOST, "/", "");
    request.headers_mut().insert("user-agent", "kube-probe/1.30".parse().expect("a value"));
    request
}

#[tokio::test]
async fn what_is_too_many_is_told_so_and_probes_never_are() {
    let app = App::named("a").await;
    let inbound = "inbound: { max_in_flight: 2, probes: [{ exact: /healthz }] }";
    let orders = Loopback::start("orders", &format!("application: {}\n{inbound}\n", app.address)).await;
    let held = hold_at(orders.inbound(), &app, 2).await;
    let ask = async |request| send(orders.inbound(), request).await.expect("an answer");
    for method in ["GET", "POST"] {
        assert_refused(&ask(request(method, HOST, "/", "")).await);
    }
    assert_refused(&ask(request("GET", HOST, "/healthz/x", "")).await);
    assert_eq!(app.all(), 2, "they are refused unread");
    for _ in 0..3 {
        assert_eq!(ask(request("GET", HOST, "/healthz?full=1", "")).await.status, 200);
        assert_eq!(ask(kubelets()).await.status, 200);
    }
    for page in ["/ready", "/upstreams", "/metrics"] {
        assert_eq!(orders.get(page).await.expect("the admin door").status, 200, "{page}");
    }
    let ready = send(orders.at("probes"), request("GET", "probes", "/ready", "")).await;
    assert_eq!(ready.expect("the probes' door").status, 200);
    assert_eq!(orders.metric("pannier_refused_total", &["reason=\"admit.full\""]).await, 3.0);
    release(&app, held).await;
    assert_eq!(ask(request("GET", HOST, "/", "")).await.status, 200);
}

#[tokio::test]
async fn a_caller_of_the_mesh_is_no_kubelet() {
    let app = App::named("a").await;
    let mesh = Mesh::new();
    let orders = mesh.endpoint(&app, ", max_in_flight: 1, probes: [/healthz]").await;
    let (one, other) = (mesh.caller(&[&orders], "").await, mesh.caller(&[&orders], "").await);
    let held = hold_at(one.outbound(), &app, 1).await;
    assert_refused(&send(other.outbound(), kubelets()).await.expect("an answer"));
    assert_eq!(app.all(), 1);
    let answer = send(other.outbound(), request("GET", HOST, "/healthz", "")).await.expect("an answer");
    assert_eq!(answer.status, 200, "{answer:?}");
    release(&app, held).await;
}

#[tokio::test]
async fn what_one_endpoint_has_no_room_for_is_answered_by_another() {
    let (a, b) = (App::named("a").await, App::named("b").await);
    let mesh = Mesh::new();
    let at_a = mesh.endpoint(&a, ", max_in_flight: 2").await;
    let at_b = mesh.endpoint(&b, ", max_in_flight: 2").await;
    let one = mesh.caller(&[&at_a], "").await;
    // Users are sent to theirs, whatever others have there.
    let sticky = format!("routes: [{{ host: {HOST}, upstream: orders, sticky: {{ header: x-user }} }}]\n");
    let other = mesh.caller_with(&[&at_a, &at_b], "", &sticky).await;
    let held = hold_at(one.outbound(), &a, 2).await;
    for n in 0..40 {
        let mut request = request(["GET", "POST"][n % 2], HOST, "/", ["", "body"][n % 2]);
        request.headers_mut().insert("x-user", format!("user-{n}").parse().expect("a value"));
        let answer = send(other.outbound(), request).await.expect("an answer");
        assert_eq!((answer.status.as_u16(), answer.text()), (200, "b"), "{n}");
    }
    assert_eq!((a.all(), b.all()), (2, 40));
    assert!(
        at_a.metric("pannier_refused_total", &["reason=\"admit.full\""]).await >= 5.0,
        "hardly any was sent to the one that is full"
    );
    release(&a, held).await;
    eventually("the other one to take part again", async || crowd(&other, 16, 8).await == 16 && a.all() > 2)
        .await;
}

#[tokio::test]
async fn how_many_it_takes_may_be_learned() {
    // One at a time, 20 ms each.
    let app = App::with_hands("a", 1).await;
    app.after(20);
    let yaml = format!("application: {}\ninbound: {{ max_in_flight: learned }}\n", app.address);
    let orders = Loopback::start("orders", &yaml).await;
    for _ in 0..20 {
        assert_eq!(
            send(orders.inbound(), request("GET", HOST, "/", "")).await.expect("an answer").status,
            200
        );
    }
    let refused = Arc::new(AtomicUsize::new(0));
    let mut callers = JoinSet::new();
    for _ in 0..64 {
        let (to, refused) = (orders.inbound(), refused.clone());
        callers.spawn(async move {
            for _ in 0..20 {
                let answer = send(to, request("GET", HOST, "/", "")).await.expect("an answer");
                if answer.status != 200 {
                    assert_refused(&answer);
                    refused.fetch_add(1, Ordering::SeqCst);
                    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                }
            }
        });
    }
    while !callers.is_empty() {
        tokio::select! {
            answer = send(orders.inbound(), kubelets()) => assert_eq!(answer.expect("an answer").status, 200),
            Some(done) = callers.join_next() => done.expect("all were answered"),
        }
    }
    let (refused, most) = (refused.load(Ordering::SeqCst), app.most());
    let capacity = orders.metric("pannier_capacity", &[]).await;
    assert!(refused > 0, "none of 64 at once was too many");
    assert!(most <= 40, "it had {most} at once");
    assert!(capacity < 12.0, "nothing was learned: {capacity}");
}
