//! What a refused request is told.

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use bytes::Bytes;
use hyper::Request;
use tokio::net::TcpStream;

use crate::policies::{ask, sidecar};
use crate::support::loopback::HOST;

#[tokio::test]
async fn a_refusal_names_the_limit_what_it_admits_and_when_to_come_again() {
    let sidecar = sidecar("limits: [{ name: orders-writes, rate: 5/m, burst: 1, scope: pod }]\n").await;
    assert_eq!(ask(&sidecar, "/", &[]).await.status, 200);
    let answer = ask(&sidecar, "/", &[]).await;
    assert_eq!(answer.status, 429);
    assert_eq!((answer.refused(), answer.refused_by()), (Some("limit.exhausted"), Some("orders-writes")));
    assert_eq!(answer.field("ratelimit-policy"), Some("\"orders-writes\";q=5;w=60"));
    let after: u64 = answer.field("retry-after").expect("Retry-After").parse().expect("seconds");
    assert!((1..=12).contains(&after), "{answer:?}");
    assert_eq!(answer.field("ratelimit"), Some(&*format!("\"orders-writes\";r=0;t={after}")));
    assert!(answer.text().contains("limit `orders-writes`"), "{answer:?}");
}

#[tokio::test]
async fn the_status_is_the_operators_choice() {
    let sidecar = sidecar("limits: [{ name: a, rate: 1/d, burst: 1, scope: pod, status: 503 }]\n").await;
    assert_eq!(ask(&sidecar, "/", &[]).await.status, 200);
    let answer = ask(&sidecar, "/", &[]).await;
    assert_eq!((answer.status.as_u16(), answer.refused()), (503, Some("limit.exhausted")));
}

#[tokio::test]
async fn grpc_is_told_in_its_own_words() {
    let sidecar = sidecar("limits: [{ name: calls, rate: 1/m, burst: 1, scope: pod }]\n").await;
    assert_eq!(ask(&sidecar, "/", &[]).await.status, 200);
    let stream = TcpStream::connect(sidecar.outbound()).await.expect("connected");
    let (mut client, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    let request = Request::post(format!("http://{HOST}/shop.Orders/Place"));
    let request = request.header("content-type", "application/grpc").header("te", "trailers");
    let (response, mut body) =
        client.send_request(request.body(()).expect("valid"), false).expect("a stream");
    let _ = body.send_data(Bytes::from_static(&[0, 0, 0, 0, 0]), true);
    let response =
        tokio::time::timeout(Duration::from_secs(10), response).await.expect("in time").expect("an answer");
    let field = |name: &str| response.headers().get(name).map_or("", |value| value.to_str().expect("text"));
    assert_eq!((response.status().as_u16(), field("grpc-status")), (200, "8"), "RESOURCE_EXHAUSTED");
    assert_eq!(field("x-pannier-refused"), "limit.exhausted;limit=\"calls\"");
    let millis: u64 = field("grpc-retry-pushback-ms").parse().expect("a number");
    assert!((1..=60_000).contains(&millis), "{millis}");
    let details = BASE64_STANDARD_NO_PAD.decode(field("grpc-status-details-bin").as_bytes()).expect("base64");
    let kind = b"type.googleapis.com/google.rpc.RetryInfo";
    assert!(details.windows(kind.len()).any(|window| window == kind), "{details:?}");
}
