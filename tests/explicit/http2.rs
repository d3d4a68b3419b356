//! HTTP/2 from applications, as gRPC uses it: every kind of call, with its trailers, its deadline and
//! its end.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Request, Response};
use pannier::identity::Identity;
use pannier::tls::{Alpn, Tls};
use rustls::ServerConfig;
use tempfile::TempDir;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use crate::support::authority::Authority;
use crate::support::loopback::{HOST, Loopback, Pair, hop, upstream, within};
use crate::support::raw::{Raw, listen};

/// An HTTP/2 application, and its word of each stream that was cancelled.
async fn app() -> (SocketAddr, mpsc::UnboundedReceiver<Reason>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let (tell, told) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let tell = tell.clone();
            tokio::spawn(async move {
                let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                while let Some(Ok((request, respond))) = connection.accept().await {
                    tokio::spawn(serve(request, respond, tell.clone()));
                }
            });
        }
    });
    (address, told)
}

async fn serve(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    tell: mpsc::UnboundedSender<Reason>,
) {
    let (parts, mut body) = request.into_parts();
    let mut response = Response::new(());
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    for name in ["te", "grpc-timeout"] {
        let value = parts.headers.get(name).cloned().unwrap_or(HeaderValue::from_static("none"));
        response
            .headers_mut()
            .insert(name.replace("te", "x-te").parse::<http::HeaderName>().expect("a name"), value);
    }
    match parts.uri.path() {
        "/unary" => {
            let asked = messages(&mut body).await;
            let mut send = respond.send_response(response, false).expect("an open stream");
            send.send_data(asked.concat().into(), false).expect("an open stream");
            send.send_trailers(status("0")).expect("an open stream");
        }
        "/client-streaming" => {
            let count = messages(&mut body).await.len();
            let mut send = respond.send_response(response, false).expect("an open stream");
            send.send_data(message(&count.to_string()), false).expect("an open stream");
            send.send_trailers(status("0")).expect("an open stream");
        }
        "/server-streaming" => {
            messages(&mut body).await;
            let mut send = respond.send_response(response, false).expect("an open stream");
            for n in 0..3 {
                send.send_data(message(&n.to_string()), false).expect("an open stream");
                // So that each has to come by itself.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            send.send_trailers(status("0")).expect("an open stream");
        }
        "/bidi" => {
            let mut send = respond.send_response(response, false).expect("an open stream");
            while let Some(data) = next(&mut body).await {
                send.send_data(data, false).expect("an open stream");
            }
            let asked = body.trailers().await.expect("trailers");
            let mut trailers = status("0");
            trailers.extend(asked.unwrap_or_default());
            send.send_trailers(trailers).expect("an open stream");
        }
        "/trailers-only" => {
            response.headers_mut().extend(status("5"));
            respond.send_response(response, true).expect("an open stream");
        }
        "/refuses-early" => {
            *response.status_mut() = http::StatusCode::PAYLOAD_TOO_LARGE;
            respond.send_response(response, true).expect("an open stream");
        }
        "/thinks" => {
            let _ = tell.send(poll_fn(|cx| respond.poll_reset(cx)).await.expect("a reset"));
        }
        "/falls-silent" => {
            let mut send = respond.send_response(response, false).expect("an open stream");
            send.send_data(message("one"), false).expect("an open stream");
            let _ = tell.send(poll_fn(|cx| send.poll_reset(cx)).await.expect("a reset"));
        }
        other => panic!("no such method: {other}"),
    }
}

async fn next(body: &mut RecvStream) -> Option<Bytes> {
    let data = body.data().await?.expect("a body");
    let _ = body.flow_control().release_capacity(data.len());
    Some(data)
}

/// Messages by their own lengths: how a body is cut into frames is each hop's affair.
async fn messages(body: &mut RecvStream) -> Vec<Bytes> {
    let (mut all, mut arrived) = (Vec::new(), BytesMut::new());
    while let Some(data) = next(body).await {
        arrived.extend_from_slice(&data);
        while let Some(&length) = arrived.get(4)
            && arrived.len() >= 5 + usize::from(length)
        {
            all.push(arrived.split_to(5 + usize::from(length)).freeze());
        }
    }
    assert!(arrived.is_empty(), "a message was cut short");
    all
}

fn message(text: &str) -> Bytes {
    [&[0, 0, 0, 0, u8::try_from(text.len()).expect("short")], text.as_bytes()].concat().into()
}

fn status(status: &'static str) -> HeaderMap {
    HeaderMap::from_iter([("grpc-status".parse().expect("a name"), HeaderValue::from_static(status))])
}

async fn client(through: SocketAddr) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(through).await.expect("connected");
    let (client, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    client
}

fn call(client: &mut SendRequest<Bytes>, host: &str, path: &str) -> (ResponseFuture, SendStream<Bytes>) {
    let request = Request::post(format!("http://{host}{path}")).header("grpc-timeout", "9S");
    let request = request.header("content-type", "application/grpc").header("te", "trailers");
    client.send_request(request.body(()).expect("valid"), false).expect("a stream")
}

async fn cancelled(word: &mut mpsc::UnboundedReceiver<Reason>) -> Reason {
    let heard = tokio::time::timeout(Duration::from_secs(10), word.recv()).await;
    heard.expect("the server hears of it").expect("the server lives")
}

fn field<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).map_or("", |value| value.to_str().expect("text"))
}

async fn grpc_passes(through: SocketAddr) {
    let mut client = client(through).await;
    for _ in 0..3 {
        let (response, mut send) = call(&mut client, HOST, "/unary");
        send.send_data(message("hello"), true).expect("sent");
        let response = response.await.expect("an answer");
        assert_eq!(response.status(), 200);
        let headers = response.headers();
        assert_eq!(field(headers, "content-type"), "application/grpc");
        // What is left of nine seconds, in microseconds.
        let left = field(headers, "grpc-timeout").strip_suffix('u').and_then(|n| n.parse::<u64>().ok());
        assert!(left.is_some_and(|left| (1_000_000..=9_000_000).contains(&left)), "{headers:?}");
        assert_eq!(field(headers, "x-te"), "trailers");
        let mut body = response.into_body();
        assert_eq!(messages(&mut body).await.concat(), message("hello"));
        let trailers = body.trailers().await.expect("whole").expect("trailers");
        assert_eq!(field(&trailers, "grpc-status"), "0");

        let (response, mut send) = call(&mut client, HOST, "/client-streaming");
        for n in 0..3 {
            send.send_data(message("x"), n == 2).expect("sent");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let mut body = response.await.expect("an answer").into_body();
        assert_eq!(messages(&mut body).await.concat(), message("3"));
        assert!(body.trailers().await.expect("whole").is_some());

        let (response, mut send) = call(&mut client, HOST, "/server-streaming");
        send.send_data(message("x"), true).expect("sent");
        let mut body = response.await.expect("an answer").into_body();
        assert_eq!(messages(&mut body).await, [message("0"), message("1"), message("2")]);
        assert!(body.trailers().await.expect("whole").is_some());

        let (response, mut send) = call(&mut client, HOST, "/bidi");
        let mut body = response.await.expect("an answer, before a word of the request's body").into_body();
        for word in ["one", "two"] {
            send.send_data(message(word), false).expect("sent");
            assert_eq!(next(&mut body).await, Some(message(word)));
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("x-asked", HeaderValue::from_static("yes"));
        send.send_trailers(trailers).expect("sent");
        assert_eq!(next(&mut body).await, None);
        let trailers = body.trailers().await.expect("whole").expect("trailers");
        assert_eq!((field(&trailers, "grpc-status"), field(&trailers, "x-asked")), ("0", "yes"));

        let (response, _send) = call(&mut client, HOST, "/trailers-only");
        let response = response.await.expect("an answer");
        assert_eq!(field(response.headers(), "grpc-status"), "5");
        assert!(response.into_body().is_end_stream(), "one frame says it all");
    }
    let (response, _) = call(&mut client, "nobody.test", "/unary");
    let response = response.await.expect("an answer");
    assert_eq!(response.status(), 200, "a gRPC client reads no other");
    let headers = response.headers();
    assert_eq!((field(headers, "grpc-status"), field(headers, "x-pannier-refused")), ("12", "route.none"));
}

#[tokio::test]
async fn grpc_calls_of_every_kind_pass() {
    let (app, _) = app().await;
    grpc_passes(hop(app).await.outbound()).await;
    grpc_passes(Pair::new(app).await.caller.outbound()).await;
}

/// A peer that terminates TLS by itself, or a sidecar from before the transport of their own.
#[tokio::test]
async fn a_peer_that_offers_only_http_2_is_spoken_to_in_it() {
    let (app, _word) = app().await;
    let files = TempDir::with_prefix("pannier-peer-").expect("a temporary directory");
    let authority = Authority::new("cluster.local");
    let issue = |name: &str| authority.issue_into(&files.path().join(name), &format!("ns/shop/sa/{name}"));
    let identity = Identity::load(issue("orders").paths()).expect("an identity");
    let mut config = ServerConfig::clone(&Tls::new(&identity).server());
    config.alpn_protocols = vec![Alpn::H2.name().to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let peer = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut stream = acceptor.accept(stream).await.expect("mTLS");
                let mut app = TcpStream::connect(app).await.expect("connected");
                let _ = copy_bidirectional(&mut stream, &mut app).await;
            });
        }
    });
    let who = ", mtls: { peer: \"spiffe://cluster.local/ns/shop/sa/orders\" }";
    let caller = Loopback::start("caller", &(issue("caller").yaml() + &upstream(peer, who))).await;
    grpc_passes(caller.outbound()).await;
}

#[tokio::test]
async fn a_call_that_outlasts_its_route_is_told_its_deadline() {
    let (app, mut word) = app().await;
    let plain = Loopback::start("caller", &(upstream(app, "") + &within("300ms"))).await;
    let pair = Pair::with(app, &within("300ms"), "").await;
    for caller in [&plain, &pair.caller] {
        let mut client = client(caller.outbound()).await;
        let (response, mut send) = call(&mut client, HOST, "/thinks");
        send.send_data(message("hello"), true).expect("sent");
        let response = response.await.expect("an answer");
        let headers = response.headers();
        let told =
            (response.status().as_u16(), field(headers, "grpc-status"), field(headers, "x-pannier-refused"));
        assert_eq!(told, (200, "4", "upstream.timeout"));
        assert_eq!(cancelled(&mut word).await, Reason::CANCEL, "nobody waits for it any more");
    }
}

#[tokio::test]
async fn a_call_that_is_cancelled_is_cancelled_at_its_server() {
    let (app, mut word) = app().await;
    let (plain, pair) = (hop(app).await, Pair::new(app).await);
    for sidecars in [&[&plain][..], &[&pair.caller, &pair.orders]] {
        let mut client = client(sidecars[0].outbound()).await;
        // While it thinks: with the request's end said, and without.
        for ended in [true, false] {
            let (response, mut send) = call(&mut client, HOST, "/thinks");
            send.send_data(message("hello"), ended).expect("sent");
            for sidecar in sidecars {
                sidecar.until_metric("pannier_upstream_in_flight", &[], 1.0).await;
            }
            send.send_reset(Reason::CANCEL);
            drop(response);
            assert_eq!(cancelled(&mut word).await, Reason::CANCEL);
        }
        // Within its answer, while nothing comes.
        for ended in [true, false] {
            let (response, mut send) = call(&mut client, HOST, "/falls-silent");
            send.send_data(message("hello"), ended).expect("sent");
            let mut body = response.await.expect("an answer").into_body();
            assert_eq!(next(&mut body).await, Some(message("one")));
            send.send_reset(Reason::CANCEL);
            assert_eq!(cancelled(&mut word).await, Reason::CANCEL);
        }
        for sidecar in sidecars {
            sidecar.until_metric("pannier_upstream_in_flight", &[], 0.0).await;
        }
    }
}

#[tokio::test]
async fn an_early_answer_ends_the_stream_without_an_error() {
    let (app, _) = app().await;
    let (plain, pair) = (hop(app).await, Pair::new(app).await);
    for caller in [&plain, &pair.caller] {
        let mut client = client(caller.outbound()).await;
        let (response, mut send) = call(&mut client, HOST, "/refuses-early");
        send.send_data(message("the beginning of much"), false).expect("sent");
        let response = response.await.expect("an answer");
        assert_eq!(response.status(), 413);
        assert!(response.into_body().is_end_stream());
        // RFC 9113 section 8.1: no need to send on.
        let reset = poll_fn(|cx| send.poll_reset(cx)).await.expect("a reset");
        assert_eq!(reset, Reason::NO_ERROR);
        // The connection lives on.
        let (response, _send) = call(&mut client, HOST, "/trailers-only");
        assert_eq!(response.await.expect("an answer").status(), 200);
    }
}

/// The application's caller speaks HTTP/2, so it is spoken to alike; what it answers is no HTTP/2.
#[tokio::test]
async fn a_server_that_speaks_only_http_1_is_named() {
    let app = listen(async |mut raw: Raw| {
        raw.head().await;
        raw.send("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
    })
    .await;
    let (plain, pair) = (hop(app).await, Pair::new(app).await);
    for caller in [&plain, &pair.caller] {
        let mut client = client(caller.outbound()).await;
        let request = Request::get(format!("http://{HOST}/")).body(()).expect("valid");
        let (response, _) = client.send_request(request, true).expect("a stream");
        let response = response.await.expect("an answer");
        assert_eq!(response.status(), 502);
        assert_eq!(field(response.headers(), "x-pannier-refused"), "upstream.malformed");
        let (mut body, mut text) = (response.into_body(), Vec::new());
        while let Some(data) = next(&mut body).await {
            text.extend_from_slice(&data);
        }
        let text = String::from_utf8_lossy(&text);
        assert!(text.contains("does not speak HTTP/2"), "{text}");
    }
}
