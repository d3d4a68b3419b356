//! How long a caller waits is known on every hop: what is left of it is told, and when nothing is, nobody
//! works for it any more.

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Version};
use rustix::process::Signal;
use support::client::{Answer, request, send};
use support::loopback::{HOST, Loopback, Pair, hop, within};
use support::raw::{Raw, listen};
use tokio::sync::mpsc;

/// An application's word of what happens at it.
type Word = mpsc::UnboundedReceiver<String>;

/// An application that tells the head of each request. It answers, or is silent until its client has left,
/// and tells that too.
async fn app(answers: bool) -> (SocketAddr, Word) {
    let (tell, told) = mpsc::unbounded_channel();
    let address = listen(move |mut raw: Raw| {
        let tell = tell.clone();
        async move {
            while let Some(head) = raw.next_or_gone().await {
                let _ = tell.send(head.to_ascii_lowercase());
                if !answers {
                    raw.gone().await;
                    let _ = tell.send("left".into());
                    return;
                }
                raw.offer("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            }
        }
    })
    .await;
    (address, told)
}

async fn heard(word: &mut Word) -> String {
    tokio::time::timeout(Duration::from_secs(10), word.recv()).await.expect("word in time").expect("word")
}

async fn ask(to: SocketAddr, field: &str, value: &str) -> Answer {
    let mut request = request("GET", HOST, "/", "");
    request
        .headers_mut()
        .insert(field.parse::<hyper::header::HeaderName>().expect("a name"), value.parse().expect("a value"));
    send(to, request).await.expect("an answer")
}

/// A field of a head in text.
fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

fn is_late(answer: &Answer) -> bool {
    answer.status == 504 && answer.refused() == Some("upstream.timeout")
}

#[tokio::test]
async fn what_is_left_is_told_to_the_application() {
    let (address, mut word) = app(true).await;
    let (plain, pair) = (hop(address).await, Pair::new(address).await);
    for through in [plain.outbound(), pair.caller.outbound()] {
        for (said, unit) in [("9000", ""), ("9s", "ms")] {
            assert_eq!(ask(through, "x-request-timeout", said).await.status, 200);
            let head = heard(&mut word).await;
            let told = field(&head, "x-request-timeout").expect("it is passed on");
            let left: u64 =
                told.strip_suffix(unit).and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{told}"));
            assert!((1..=9000).contains(&left), "{told}");
            assert!(!head.contains("x-pannier"), "{head}");
        }
        assert_eq!(ask(through, "x-request-timeout", &u64::MAX.to_string()).await.status, 200);
        assert!(
            heard(&mut word).await.contains("x-request-timeout: 184467440737"),
            "longer than anybody lives"
        );
        // What cannot be read is not ours to judge.
        assert_eq!(ask(through, "x-request-timeout", "soon").await.status, 200);
        assert_eq!(field(&heard(&mut word).await, "x-request-timeout"), Some("soon"));
    }
}

#[tokio::test]
async fn each_try_is_told_what_is_left_then() {
    let (silent, mut first) = app(false).await;
    let (good, mut second) = app(true).await;
    let yaml = format!(
        "upstreams: {{ orders: {{ address: \"{HOST}:80\", endpoints: [\"{silent}\", \"{good}\"] }} }}
routes: [{{ host: {HOST}, upstream: orders, retries: {{ on: [timeout], try_timeout: 300ms }} }}]
"
    );
    let caller = Loopback::start("caller", &yaml).await;
    let left =
        |head: &str| field(head, "x-request-timeout").and_then(|n| n.parse::<u64>().ok()).expect("a number");
    // Until the silent one was the first choice.
    for _ in 0..100 {
        assert_eq!(ask(caller.outbound(), "x-request-timeout", "9000").await.status, 200);
        let at_second = left(&heard(&mut second).await);
        if let Ok(head) = first.try_recv() {
            let at_first = left(&head);
            assert!(at_first <= 9000 && at_second <= at_first - 300, "{at_first} and then {at_second}");
            return;
        }
    }
    panic!("the silent one was never asked");
}

#[tokio::test]
async fn nobody_works_for_a_caller_whose_time_is_over() {
    let (address, mut word) = app(false).await;
    let (plain, pair) = (hop(address).await, Pair::new(address).await);
    for sidecars in [&[&plain][..], &[&pair.caller, &pair.orders]] {
        assert!(is_late(&ask(sidecars[0].outbound(), "x-request-timeout", "200").await));
        assert!(heard(&mut word).await.starts_with("get / "));
        assert_eq!(heard(&mut word).await, "left");
        for sidecar in sidecars {
            sidecar.until_metric("pannier_upstream_in_flight", &[], 0.0).await;
        }
        // Without asking anybody.
        assert!(is_late(&ask(sidecars[0].outbound(), "x-request-timeout", "0").await));
    }
    assert!(word.try_recv().is_err(), "it was asked for one who has gone");
}

#[tokio::test]
async fn inbound_asks_no_application_without_time() {
    let (address, mut word) = app(true).await;
    let sidecar = Loopback::start("orders", &format!("application: {address}\n")).await;
    assert!(is_late(&ask(sidecar.inbound(), "x-request-timeout", "0ms").await));
    // What only sidecars say is nothing that anybody may.
    assert_eq!(ask(sidecar.inbound(), "x-pannier-timeout", "0").await.status, 200);
    assert!(!heard(&mut word).await.contains("x-pannier"));
    assert!(word.try_recv().is_err());
}

#[tokio::test]
async fn a_route_can_only_be_shortened() {
    let (address, mut word) = app(false).await;
    let caller = Pair::with(address, &within("300ms"), "").await;
    assert!(is_late(&ask(caller.caller.outbound(), "x-request-timeout", "60s").await));
    let head = heard(&mut word).await;
    let told = field(&head, "x-request-timeout").and_then(|told| told.strip_suffix("ms")?.parse().ok());
    assert!(told.is_some_and(|left: u64| left <= 300), "{head}");
}

#[tokio::test]
async fn a_peers_sidecar_knows_the_routes_time_and_its_application_does_not() {
    let (address, mut word) = app(false).await;
    let mut pair = Pair::with(address, &within("1s"), "").await;
    let to = pair.caller.outbound();
    let asked = tokio::spawn(async move { send(to, request("GET", HOST, "/", "")).await });
    let head = heard(&mut word).await;
    assert!(!head.contains("timeout"), "nobody said it to the application: {head}");
    // The caller's sidecar says nothing any more: the other one ends it by itself.
    pair.caller.process().signal(Signal::STOP);
    assert_eq!(heard(&mut word).await, "left");
    let counted = [r#"direction="inbound""#, r#"reason="upstream.timeout""#];
    pair.orders.until_metric("pannier_refused_total", &counted, 1.0).await;
    pair.caller.process().signal(Signal::CONT);
    let answer = asked.await.expect("no panic").expect("an answer");
    assert!(is_late(&answer), "{answer:?}");
}

/// A call of gRPC, with its deadline.
async fn call(to: SocketAddr, timeout: &str) -> Answer {
    let request = Request::post(format!("http://{HOST}/orders.Orders/Get"))
        .version(Version::HTTP_2)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", timeout);
    send(to, request.body(Full::new(Bytes::from_static(b"\0\0\0\0\0"))).expect("valid"))
        .await
        .expect("an answer")
}

#[tokio::test]
async fn a_call_of_grpc_ends_with_its_deadline() {
    // It need not speak HTTP/2 for this: it never says a word.
    let (address, _word) = app(false).await;
    let (plain, pair) = (hop(address).await, Pair::new(address).await);
    for through in [plain.outbound(), pair.caller.outbound()] {
        for (timeout, status) in [("300m", "4"), ("0S", "4"), ("soon", "13"), ("123456789m", "13")] {
            let answer = call(through, timeout).await;
            assert_eq!(
                (answer.status.as_u16(), answer.field("grpc-status")),
                (200, Some(status)),
                "{timeout}"
            );
        }
    }
}
