//! CONNECT (RFC 9110 section 9.3.6, RFC 9113 section 8.5): a tunnel to whom it names, over a
//! connection or over a stream.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use tokio::net::{TcpListener, TcpStream};

use crate::support::loopback::{HOST, Loopback, Pair, hop, upstream};
use crate::support::raw::{Raw, listen};

/// A server that sends back what it is sent, until the client's end.
pub(crate) async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    address
}

async fn is_a_tunnel(through: SocketAddr) {
    let mut raw = Raw::connect(through).await;
    // The first bytes do not wait for the answer.
    raw.send(format!("CONNECT {HOST}:80 HTTP/1.1\r\nhost: {HOST}:80\r\n\r\n\x01first")).await;
    let head = raw.head().await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(!head.contains("content-length") && !head.contains("transfer-encoding"), "{head}");
    assert_eq!(raw.take(6).await, b"\x01first");
    raw.send(b"\x00second").await;
    assert_eq!(raw.take(7).await, b"\x00second");
    raw.send("last").await;
    raw.finish().await;
    assert_eq!(raw.rest().await, "last", "one side's end is not the other's");

    let mut raw = Raw::connect(through).await;
    raw.send("CONNECT nobody.test:80 HTTP/1.1\r\nhost: nobody.test:80\r\n\r\n").await;
    let head = raw.head().await;
    assert!(head.starts_with("HTTP/1.1 404 ") && head.contains("route.none"), "{head}");
}

#[tokio::test]
async fn connect_is_a_tunnel() {
    let app = echo().await;
    is_a_tunnel(hop(app).await.outbound()).await;
    is_a_tunnel(Pair::new(app).await.caller.outbound()).await;
}

#[tokio::test]
async fn it_finds_the_upstream_of_that_address_whatever_its_routes() {
    let app = echo().await;
    // No route takes `/` of either host.
    let routes = "routes:\n- { host: orders.test, path: /v1, upstream: orders }\n\
        - { host: api.test, path: /v1, upstream: orders }\n- { host: any.test, upstream: orders }\n";
    let caller = Loopback::start("caller", &(upstream(app, "") + routes)).await;
    for (to, found) in [
        ("orders.test:80", true),
        ("ORDERS.test:80", true),
        ("any.test:80", true),
        (&*app.to_string(), true),
        ("orders.test:81", false),
        ("api.test:80", false),
        ("127.0.0.1:9", false),
    ] {
        let mut raw = Raw::connect(caller.outbound()).await;
        raw.send(format!("CONNECT {to} HTTP/1.1\r\nhost: {to}\r\n\r\nhello")).await;
        let head = raw.head().await;
        assert_eq!(head.starts_with("HTTP/1.1 200 "), found, "{to}: {head}");
        if found {
            assert_eq!(raw.take(5).await, b"hello", "{to}");
        } else {
            assert!(head.contains("x-pannier-refused: route.none\r\n"), "{to}: {head}");
        }
    }
}

#[tokio::test]
async fn it_has_no_body() {
    let caller = hop(echo().await).await;
    for field in ["content-length: 5", "transfer-encoding: chunked"] {
        let mut raw = Raw::connect(caller.outbound()).await;
        raw.send(format!("CONNECT {HOST}:80 HTTP/1.1\r\nhost: {HOST}:80\r\n{field}\r\n\r\n0\r\n\r\n")).await;
        let head = raw.head().await;
        assert!(head.starts_with("HTTP/1.1 400 ") && head.contains("http.malformed"), "{field}: {head}");
    }
}

/// An application that is a proxy itself is asked, and answers for itself.
#[tokio::test]
async fn an_application_may_be_the_proxy() {
    let app = listen(async |mut raw: Raw| {
        while let Some(head) = raw.next().await {
            if head.starts_with("CONNECT nobody.test:443 ") {
                raw.send("HTTP/1.1 403 Forbidden\r\ncontent-length: 3\r\n\r\nno!").await;
                continue;
            }
            assert!(head.starts_with("CONNECT elsewhere.test:443 HTTP/1.1\r\n"), "{head}");
            assert!(raw.is_silent_for(Duration::from_millis(200)).await, "bytes came before the answer");
            raw.send("HTTP/1.1 200 Established\r\ncontent-length: 7\r\n\r\nwelcome").await;
            assert_eq!(raw.rest().await, "hello");
            return raw.send("bye").await;
        }
    })
    .await;
    let sidecar = Loopback::start("proxy", &format!("application: {app}\n")).await;
    let mut raw = Raw::connect(sidecar.inbound()).await;
    raw.send("CONNECT nobody.test:443 HTTP/1.1\r\nhost: nobody.test:443\r\n\r\n").await;
    assert!(raw.head().await.starts_with("HTTP/1.1 403 "));
    assert_eq!(raw.take(3).await, b"no!");
    raw.send("CONNECT elsewhere.test:443 HTTP/1.1\r\nhost: elsewhere.test:443\r\n\r\nhello").await;
    let head = raw.head().await;
    // RFC 9110 section 9.3.6: a length in it means nothing.
    assert!(head.starts_with("HTTP/1.1 200 ") && !head.contains("content-length"), "{head}");
    assert_eq!(raw.take(7).await, b"welcome");
    raw.finish().await;
    assert_eq!(raw.rest().await, "bye");
}

async fn stream_is_a_tunnel(through: SocketAddr) {
    let stream = TcpStream::connect(through).await.expect("connected");
    let (mut client, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    let connect = |to: &'static str| Request::connect(to).body(()).expect("valid");
    let (response, mut send) = client.send_request(connect("orders.test:80"), false).expect("a stream");
    // Nothing need be said before the answer.
    let response = response.await.expect("an answer");
    assert_eq!(response.status(), 200);
    assert!(!response.headers().contains_key("content-length"));
    let mut body = response.into_body();
    for word in ["first", "second"] {
        send.send_data(Bytes::from(word), false).expect("sent");
        assert_eq!(body.data().await.expect("an echo").expect("whole"), word);
        body.flow_control().release_capacity(word.len()).expect("held");
    }
    send.send_data(Bytes::from("last"), true).expect("sent");
    assert_eq!(body.data().await.expect("an echo").expect("whole"), "last");
    while let Some(rest) = body.data().await {
        assert_eq!(rest.expect("in order"), "", "it ends as the server does");
    }
    assert!(body.trailers().await.expect("in order").is_none());

    // Streams beside it live on, and so does the connection.
    let (response, _) = client.send_request(connect("nobody.test:80"), true).expect("a stream");
    let response = response.await.expect("an answer");
    assert_eq!(
        (response.status().as_u16(), &response.headers()["x-pannier-refused"]),
        (404, &"route.none".parse().unwrap())
    );
    let (response, _) = client.send_request(connect("orders.test"), true).expect("a stream");
    match response.await {
        Ok(response) => assert_eq!(response.status(), 400),
        Err(error) => assert_eq!(error.reason(), Some(h2::Reason::PROTOCOL_ERROR)),
    }
}

#[tokio::test]
async fn a_stream_is_a_tunnel() {
    let app = echo().await;
    stream_is_a_tunnel(hop(app).await.outbound()).await;
    stream_is_a_tunnel(Pair::new(app).await.caller.outbound()).await;
}

#[tokio::test]
async fn a_lost_side_of_a_stream_resets_the_other() {
    let app = listen(async |mut raw: Raw| match &raw.take(2).await[..] {
        b"go" => raw.reset(),
        _ => {
            raw.send("here").await;
            assert!(raw.is_reset().await, "it looks like an end");
            println!("the server was reset");
        }
    })
    .await;
    let caller = hop(app).await;
    let stream = TcpStream::connect(caller.outbound()).await.expect("connected");
    let (mut client, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    let connect = || Request::connect("orders.test:80").body(()).expect("valid");
    let (response, mut send) = client.send_request(connect(), false).expect("a stream");
    let mut body = response.await.expect("an answer").into_body();
    send.send_data(Bytes::from("go"), false).expect("sent");
    let lost = body.data().await.expect("it does not end in order").expect_err("it was lost");
    assert_eq!(lost.reason(), Some(h2::Reason::CONNECT_ERROR));

    let (response, mut send) = client.send_request(connect(), false).expect("a stream");
    let mut body = response.await.expect("an answer").into_body();
    send.send_data(Bytes::from("ok"), false).expect("sent");
    assert_eq!(body.data().await.expect("an answer").expect("whole"), "here");
    caller.until_metric("pannier_tcp_open", &[r#"upstream="orders""#], 1.0).await;
    send.send_reset(h2::Reason::CANCEL);
    caller.until_metric("pannier_tcp_open", &[r#"upstream="orders""#], 0.0).await;
    caller.until_metric("pannier_upstream_in_flight", &[r#"upstream="orders""#], 0.0).await;
}
