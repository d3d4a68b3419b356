//! An endpoint that fails gets no more than its first few requests, is tried by one at a time after a
//! pause, and takes part again once it is well.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::app::{Answers, App};
use crate::eventually;
use crate::lab::{Mesh, crowd, endpoint, get, orders, plain, shown};
use crate::support::client::{request, send};
use crate::support::loopback::{HOST, Loopback};

/// Failures in a row after which an endpoint is passed over, by default. What is on its way at the time comes
/// on top.
const A_FEW: usize = 5;

async fn three() -> [App; 3] {
    [App::named("a").await, App::named("b").await, App::named("c").await]
}

/// Whether an endpoint is passed over.
async fn is_passed_over(caller: &Loopback, app: &App) -> bool {
    endpoint(caller, app.address).await["passed_over"] == true
}

#[tokio::test]
async fn one_that_fails_everything_gets_no_more_than_a_few() {
    for status in [500, 503] {
        for at_once in [1, 8] {
            let [a, b, sick] = three().await;
            // It is the fastest of them, and the more so when it fails.
            a.after(4);
            b.after(4);
            let caller = plain(&[&a, &b, &sick], ", ejection: { pause: 1m, longest: 1m }").await;
            assert_eq!(crowd(&caller, 300, 8).await, 300);
            assert!(sick.all() > 50, "it takes part: {}", sick.all());
            sick.status(status);
            let before = sick.all();
            let good = crowd(&caller, 400, at_once).await;
            let failed = sick.all() - before;
            assert_eq!(good + failed, 400);
            assert!((1..A_FEW + at_once).contains(&failed), "{status}, {at_once} at once: {failed}");
            assert!(is_passed_over(&caller, &sick).await);
            assert!(a.all() + b.all() >= 400 - failed);
        }
    }
}

/// How many of 60 requests, one after the other, an endpoint gets that answers none any more, with more in
/// the caller's configuration.
async fn stuck_gets(more: &str, ask: impl AsyncFn(&Loopback)) -> usize {
    let (stuck, good) = (App::named("stuck").await, App::named("good").await);
    // Faster by so much that whoever sees both idle goes to the first.
    stuck.after(2);
    good.after(15);
    let upstream = orders(&[stuck.address, good.address], ", retry_budget: { least: 100/s }");
    let caller = Loopback::start("caller", &(upstream + more)).await;
    assert_eq!(crowd(&caller, 400, 8).await, 400);
    assert!(stuck.all() > 50, "it takes part: {}", stuck.all());
    stuck.after(60_000);
    let before = stuck.all();
    for _ in 0..60 {
        // Nothing of them is in flight any more when the next one comes.
        ask(&caller).await;
        eventually("its end", async || shown(&caller).await["in_flight"] == 0).await;
    }
    stuck.all() - before
}

#[tokio::test]
async fn one_that_lets_callers_wait_until_they_leave_is_left_alone() {
    let waited = stuck_gets("", async |caller| {
        let _ = tokio::time::timeout(Duration::from_millis(100), get(caller, "/")).await;
    });
    let waited = waited.await;
    assert!((1..=20).contains(&waited), "{waited} of 60");
}

#[tokio::test]
async fn one_that_lets_them_wait_until_their_time_is_over_is_left_alone() {
    let waited = stuck_gets("", async |caller| {
        let mut request = request("GET", HOST, "/", "");
        request.headers_mut().insert("x-request-timeout", "100".parse().expect("a value"));
        send(caller.outbound(), request).await.expect("an answer");
    });
    let waited = waited.await;
    assert!((1..=20).contains(&waited), "{waited} of 60");
}

#[tokio::test]
async fn one_that_always_loses_to_hedges_is_left_alone() {
    let route = format!("routes: [{{ host: {HOST}, upstream: orders, hedge: {{ after: 50ms }} }}]\n");
    let waited = stuck_gets(&route, async |caller| assert_eq!(get(caller, "/").await.status, 200));
    let waited = waited.await;
    assert!((1..=20).contains(&waited), "{waited} of 60");
}

/// An application whose answers begin at once and never end.
async fn endless() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 4096];
                let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n";
                while stream.read(&mut request).await.is_ok_and(|n| n > 0) {
                    stream.write_all(head.as_bytes()).await.expect("taken");
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn one_whose_answers_are_left_in_the_middle_is_as_well_as_before() {
    let stream = endless().await;
    let rules = "retries: { most: 1, on: [timeout], try_timeout: 100ms }";
    let routes = format!("routes: [{{ host: {HOST}, upstream: orders, {rules} }}]\n");
    let caller = Loopback::start("caller", &(orders(&[stream], "") + &routes)).await;
    for _ in 0..5 {
        let mut request = request("GET", HOST, "/", "");
        request.headers_mut().insert("x-request-timeout", "300".parse().expect("a value"));
        assert!(
            send(caller.outbound(), request).await.is_err(),
            "its time is over in the middle of the answer"
        );
    }
    eventually("its end", async || shown(&caller).await["in_flight"] == 0).await;
    assert_eq!(endpoint(&caller, stream).await["passed_over"], false);
}

/// Calls in gRPC, one after the other; how many came well to their end.
async fn calls(caller: &Loopback, n: usize) -> usize {
    let stream = TcpStream::connect(caller.outbound()).await.expect("connected");
    let (mut client, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("HTTP/2");
    tokio::spawn(connection);
    let mut good = 0;
    for _ in 0..n {
        let call = Request::post(format!("http://{HOST}/orders.Orders/Get")).header("te", "trailers");
        let call = call.header("content-type", "application/grpc").body(Full::<Bytes>::default());
        let answer = client.send_request(call.expect("a request")).await.expect("an answer");
        let early = answer.headers().contains_key("grpc-status");
        let body = answer.into_body().collect().await.expect("a body");
        let late = body.trailers().is_some_and(|trailers| trailers.contains_key("grpc-status"));
        good += usize::from(!early && !late);
    }
    good
}

#[tokio::test]
async fn one_that_fails_every_call_of_grpc_is_found_out_too() {
    let early = |status| Answers { field: Some(("grpc-status", status)), ..Answers::default() };
    let late = |status| Answers { trailer: Some(("grpc-status", status)), ..Answers::default() };
    for (answers, is_failure) in
        [(early("14"), true), (late("13"), true), (late("14"), true), (early("5"), false), (late("9"), false)]
    {
        let [a, b, sick] = three().await;
        a.after(4);
        b.after(4);
        let caller = plain(&[&a, &b, &sick], ", ejection: { pause: 1m, longest: 1m }").await;
        assert_eq!(calls(&caller, 60).await, 60);
        sick.answers(answers);
        let before = sick.all();
        let good = calls(&caller, 60).await;
        assert_eq!(is_passed_over(&caller, &sick).await, is_failure, "{answers:?}");
        let its = sick.all() - before;
        assert_eq!(good + its, 60);
        assert_eq!(its <= A_FEW, is_failure, "{answers:?}: {its}");
    }
}

#[tokio::test]
async fn after_its_pause_single_requests_try_it_and_once_well_it_takes_part_again() {
    let [a, b, sick] = three().await;
    a.after(10);
    b.after(10);
    sick.after(5);
    let caller = plain(&[&a, &b, &sick], ", ejection: { pause: 200ms, longest: 200ms }").await;
    crowd(&caller, 200, 8).await;
    sick.status(503);
    eventually("it to be passed over", async || {
        crowd(&caller, 8, 8).await;
        is_passed_over(&caller, &sick).await
    })
    .await;
    let before = sick.all();
    sick.most();
    // It is tried now and then, by one each time, and found to be no better.
    eventually("it to be tried twice", async || {
        crowd(&caller, 16, 8).await;
        sick.all() >= before + 2
    })
    .await;
    assert_eq!(sick.most(), 1);
    sick.status(200);
    eventually("it to take part again", async || {
        let before = sick.all();
        assert!(crowd(&caller, 32, 8).await >= 31);
        sick.all() - before >= 5
    })
    .await;
    assert!(!is_passed_over(&caller, &sick).await);
}

#[tokio::test]
async fn where_all_fail_all_are_asked() {
    let apps = three().await;
    let [a, b, c] = &apps;
    let caller = plain(&[a, b, c], ", ejection: { pause: 1m, longest: 1m, share: 34% }").await;
    for app in &apps {
        app.status(503);
    }
    assert_eq!(crowd(&caller, 300, 4).await, 0, "each is answered by an application");
    let all: Vec<_> = apps.iter().map(App::all).collect();
    assert_eq!(all.iter().sum::<usize>(), 300);
    let shown = shown(&caller).await;
    let passed_over = |endpoint: &&serde_json::Value| endpoint["passed_over"] == true;
    assert_eq!(shown["endpoints"].as_array().expect("endpoints").iter().filter(passed_over).count(), 1);
    assert!(all.iter().filter(|n| **n > 50).count() == 2, "{all:?}");
    assert!(all.iter().all(|n| *n > 0), "{all:?}");
}

#[tokio::test]
async fn where_all_may_be_ejected_requests_still_go_somewhere() {
    let apps = three().await;
    let [a, b, c] = &apps;
    let caller = plain(&[a, b, c], ", ejection: { pause: 1m, longest: 1m, share: 100% }").await;
    for app in &apps {
        app.status(500);
    }
    assert_eq!(crowd(&caller, 100, 1).await, 0);
    assert_eq!(apps.iter().map(App::all).sum::<usize>(), 100);
    for app in &apps {
        assert!(is_passed_over(&caller, app).await);
    }
}

/// An address where nobody listens, and nobody else can.
fn nobody() -> (TcpSocket, SocketAddr) {
    let taken = TcpSocket::new_v4().expect("a socket");
    taken.bind("127.0.0.1:0".parse().expect("an address")).expect("a free port");
    let address = taken.local_addr().expect("bound");
    (taken, address)
}

#[tokio::test]
async fn one_whose_sidecar_alone_lives_is_as_dead() {
    let [a, b, _] = three().await;
    let mesh = Mesh::new();
    let (_taken, dead) = nobody();
    let yaml = format!("application: {dead}\ninbound: {{ mtls: strict }}\n");
    let orphan = Loopback::start("orders", &(mesh.identity("orders").yaml() + &yaml)).await;
    let (at_a, at_b) = (mesh.endpoint(&a, "").await, mesh.endpoint(&b, "").await);
    let caller = mesh.caller(&[&at_a, &orphan, &at_b], "").await;
    assert_eq!(crowd(&caller, 400, 1).await, 400);
    let tried = orphan.metric("pannier_refused_total", &["reason=\"pool.connect\""]).await;
    assert!((1.0..=5.0).contains(&tried), "{tried}");
}

#[tokio::test]
async fn a_dead_one_fails_no_request_and_is_hardly_ever_tried() {
    let [a, b, _] = three().await;
    let (_taken, dead) = nobody();
    let caller = Loopback::start("caller", &orders(&[a.address, dead, b.address], "")).await;
    assert_eq!(crowd(&caller, 400, 1).await, 400);
    let tried = caller.log().matches("trying again").count();
    // One after each pause, which is twice as long each time.
    assert!((1..=8).contains(&tried), "{tried}");
    assert_eq!(get(&caller, "/").await.status, 200);
}
