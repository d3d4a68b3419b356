//! Requests of HTTP/2 that would be another message in HTTP/1, or two, and what is said where they
//! are too much.

use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;

use pannier::identity::Identity;
use pannier::tls::{Alpn, Carries, Peer, Tls, server_name};

use super::app::{self, Does};
use super::counted;
use super::frames::{
    BAD_REQUEST, DATA, END_HEADERS, END_STREAM, End, Frames, HEADERS, OK, block, frame, post, request,
};
use super::support::client::{request as ask, send};
use super::support::loopback::{HOST, Loopback, Pair, hop, upstream};
use super::support::raw::{Raw, Witness, listen};

/// Requests whose fields would be other lines in HTTP/1, or say two things, in HTTP/2.
const MALFORMED_H2: &[&[(&str, &str)]] = &[
    &[(":path", "/"), (":authority", HOST), ("host", "other.test")],
    &[(":path", "/"), (":authority", "u@orders.test")],
    &[(":path", "/"), (":authority", HOST), ("connection", "close")],
    &[(":path", "/"), (":authority", HOST), ("transfer-encoding", "chunked")],
    &[(":path", "/"), (":authority", HOST), ("upgrade", "h2c")],
    &[(":path", "/"), (":authority", HOST), ("te", "gzip")],
    &[(":path", "/"), (":authority", HOST), ("x", "1\r\nsmuggled: 1")],
    &[(":path", "/"), (":authority", HOST), ("x", "1\nsmuggled: 1")],
    &[(":path", "/"), (":authority", HOST), ("x", "1\0smuggled")],
    &[(":path", "/"), (":authority", HOST), ("x\r\nsmuggled", "1")],
    &[(":path", "/"), (":authority", HOST), ("x: smuggled", "1")],
    &[(":path", "/"), (":authority", HOST), ("X-Smuggled", "1")],
    &[(":path", "/"), (":authority", "orders.test\r\nsmuggled: 1")],
    &[(":path", "/ HTTP/1.1\r\nsmuggled: 1\r\n\r\nGET /smuggled"), (":authority", HOST)],
    &[(":path", "/smuggled HTTP/1.1"), (":authority", HOST)],
    &[(":path", "smuggled"), (":authority", HOST)],
    &[(":path", ""), (":authority", HOST)],
    &[(":authority", HOST)],
    &[(":path", "/"), (":path", "/smuggled"), (":authority", HOST)],
    &[(":path", "/"), (":authority", HOST), ("x", "1"), (":method", "SMUGGLED")],
    &[(":path", "/"), (":authority", HOST), (":smuggled", "1")],
    &[(":path", "/"), (":authority", HOST), ("content-length", "1"), ("content-length", "2")],
    &[(":path", "/"), (":authority", HOST), ("content-length", "smuggled")],
    &[(":path", "/"), (":authority", HOST), ("content-length", "+0")],
    &[(":path", "/"), (":authority", HOST), ("content-length", "0"), ("content-length", "0")],
    &[(":path", "/"), (":authority", HOST), ("content-length", "7")],
    // Whom it names: nobody, two, or not one.
    &[(":path", "/")],
    &[(":path", "/"), (":authority", "")],
    &[(":path", "/"), (":authority", "orders.test:0")],
    &[(":path", "/"), (":authority", "orders.test:+80")],
    &[(":path", "/"), (":authority", "orders.test:99999")],
    &[(":path", "/"), (":authority", "orders.test/smuggled")],
    &[(":path", "/"), (":authority", "orders.test smuggled")],
    &[(":path", "/"), ("host", "orders.test"), ("host", "orders.test")],
    &[(":path", "/"), (":authority", HOST), ("host", HOST), ("host", "other.test")],
    &[(":path", "/"), ("host", "u@orders.test")],
    &[(":path", "/"), (":authority", HOST), ("host", "")],
    // Targets.
    &[(":path", "?smuggled"), (":authority", HOST)],
    &[(":path", "*"), (":authority", HOST)],
    &[(":path", "http://orders.test/smuggled"), (":authority", HOST)],
    &[(":path", "/\u{fc}smuggled"), (":authority", HOST)],
    &[(":path", "/%smuggled"), (":authority", HOST)],
    &[(":path", "/\x7fsmuggled"), (":authority", HOST)],
    &[(":path", "/\tsmuggled"), (":authority", HOST)],
    &[(":path", "/\0smuggled"), (":authority", HOST)],
    // Fields of one connection, and values that would not be the same in HTTP/1.
    &[(":path", "/"), (":authority", HOST), ("keep-alive", "smuggled")],
    &[(":path", "/"), (":authority", HOST), ("proxy-connection", "smuggled")],
    &[(":path", "/"), (":authority", HOST), ("te", "trailers"), ("te", "gzip")],
    &[(":path", "/"), (":authority", HOST), ("x", " smuggled")],
    &[(":path", "/"), (":authority", HOST), ("x", "smuggled\t")],
    &[(":path", "/"), (":authority", HOST), ("x", "1\rsmuggled: 1")],
    &[(":path", "/"), (":authority", HOST), ("x smuggled", "1")],
    &[(":path", "/"), (":authority", HOST), ("x\0smuggled", "1")],
    &[(":path", "/"), (":authority", HOST), ("", "smuggled")],
    &[(":path", "/"), (":authority", HOST), (":status", "200")],
    &[(":path", "/"), (":authority", HOST), (":protocol", "smuggled")],
];

/// The same with pseudo-fields that are missing, there twice, or not what they should be.
const MALFORMED_PSEUDO: &[&[(&str, &str)]] = &[
    &[(":method", "GET"), (":path", "/"), (":authority", HOST)],
    &[(":scheme", "http"), (":path", "/"), (":authority", HOST)],
    &[(":method", "GET"), (":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", HOST)],
    &[(":method", "GET"), (":scheme", "http"), (":scheme", "http"), (":path", "/"), (":authority", HOST)],
    &[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", HOST), (":authority", HOST)],
    &[(":method", "GET SMUGGLED"), (":scheme", "http"), (":path", "/"), (":authority", HOST)],
    &[(":method", "GET / HTTP/1.1\r\n"), (":scheme", "http"), (":path", "/"), (":authority", HOST)],
    &[(":method", ""), (":scheme", "http"), (":path", "/"), (":authority", HOST)],
    &[(":method", "GET"), (":scheme", "http://smuggled/?"), (":path", "/"), (":authority", HOST)],
    &[(":method", "GET"), (":scheme", ""), (":path", "/"), (":authority", HOST)],
    &[(":method", "CONNECT"), (":scheme", "http"), (":path", "/"), (":authority", HOST)],
    &[(":METHOD", "GET"), (":scheme", "http"), (":path", "/"), (":authority", HOST)],
];

/// Sends one request over an open connection, and gives what becomes of it.
async fn asked(io: impl AsyncRead + AsyncWrite + Unpin, fields: &[(&str, &str)]) -> End {
    Frames::over(io).await.asked(1, &block(fields)).await
}

#[track_caller]
fn assert_malformed(end: End, fields: &[(&str, &str)]) {
    let is_refused = matches!(end, End::Answer(BAD_REQUEST) | End::Reset(_) | End::GoAway(_));
    assert!(is_refused, "{fields:?} ended as {end:?}");
}

/// CR and LF in fields carried from HTTP/2 to HTTP/1, and everything else that would be two things
/// there.
#[tokio::test]
async fn http_2_between_sidecars_smuggles_nothing_into_http_1() {
    let (witness, app) = Witness::listen().await;
    let pair = Pair::new(app).await;
    let identity = Identity::load(pair.identity.paths());
    let tls = Tls::new(&identity.expect("an identity"));
    let orders = Peer::TrustDomain("cluster.local".into());
    let mut config = ClientConfig::clone(&tls.client(&orders, Carries::Requests));
    config.alpn_protocols = vec![Alpn::H2.name().to_vec()];
    let connector = TlsConnector::from(Arc::new(config));
    // A peer of the mesh that is not one of ours.
    let rogue = async |fields: &[(&str, &str)]| {
        let to = pair.orders.inbound();
        let stream = TcpStream::connect(to).await.expect("connected");
        let stream = connector.connect(server_name(to.ip()), stream).await.expect("mTLS");
        asked(stream, fields).await
    };
    let get = |fields: &[(&'static str, &'static str)]| {
        [&[(":method", "GET"), (":scheme", "http")], fields].concat()
    };
    for fields in MALFORMED_H2 {
        assert_malformed(rogue(&get(fields)).await, fields);
    }
    for fields in MALFORMED_PSEUDO {
        assert_malformed(rogue(fields).await, fields);
    }
    let all = (MALFORMED_H2.len() + MALFORMED_PSEUDO.len()) as u64;
    counted(&pair.orders, "http.malformed", all).await;
    assert_eq!(witness.seen(), "", "the application was reached");
    let clean = [(":path", "/clean"), (":authority", HOST), ("x-kept", "kept"), ("x-pannier-stolen", "1")];
    let stolen = [("x-forwarded-client-cert", "URI=spiffe://stolen")];
    assert_eq!(rogue(&get(&[&clean[..], &stolen].concat())).await, End::Answer(OK));
    let seen = witness.seen();
    assert!(seen.starts_with("get /clean http/1.1\r\n") && seen.contains("x-kept: kept\r\n"), "{seen}");
    assert!(!seen.contains("stolen"), "{seen}");
    assert!(
        seen.contains("x-forwarded-client-cert: uri=spiffe://cluster.local/ns/shop/sa/caller\r\n"),
        "{seen}"
    );
}

#[tokio::test]
async fn http_2_of_an_application_is_read_as_strictly() {
    let (witness, app) = Witness::listen().await;
    let caller = hop(app).await;
    for fields in MALFORMED_H2 {
        let stream = TcpStream::connect(caller.outbound()).await.expect("connected");
        let get = [&[(":method", "GET"), (":scheme", "http")], *fields].concat();
        assert_malformed(asked(stream, &get).await, fields);
    }
    for fields in MALFORMED_PSEUDO {
        let stream = TcpStream::connect(caller.outbound()).await.expect("connected");
        assert_malformed(asked(stream, fields).await, fields);
    }
    counted(&caller, "http.malformed", (MALFORMED_H2.len() + MALFORMED_PSEUDO.len()) as u64).await;
    assert_eq!(witness.seen(), "", "the application was reached");
}

/// HTTP/1 refuses it; in HTTP/2 it ends with the frame it came in, so that what is routed, allowed and
/// forwarded is one path.
#[tokio::test]
async fn a_fragment_reaches_nobody() {
    let (seen, app) = app::listen(Does::Sends(1, 1)).await;
    let routes = format!("routes: [{{ host: {HOST}, path: {{ exact: /open }}, upstream: orders }}]\n");
    let caller = Loopback::start("caller", &(upstream(app, "") + &routes)).await;
    let mut raw = Raw::connect(caller.outbound()).await;
    raw.send(format!("GET /open#/x HTTP/1.1\r\nhost: {HOST}\r\n\r\n")).await;
    assert!(raw.head().await.starts_with("HTTP/1.1 400 "));
    let stream = TcpStream::connect(caller.outbound()).await.expect("connected");
    let get = [(":method", "GET"), (":scheme", "http"), (":path", "/open#/x"), (":authority", HOST)];
    assert_eq!(asked(stream, &get).await, End::Answer(OK));
    let heads = seen.heads();
    assert!(heads.contains("/open") && !heads.contains('#') && seen.requests() == 1, "{heads}");
}

/// A body is as long as it says, or the request is none (RFC 9113 section 8.1.1).
#[tokio::test]
async fn a_body_that_is_not_of_its_length_is_no_request() {
    let (seen, app) = app::listen(Does::Answers).await;
    let caller = hop(app).await;
    for (length, body) in [("4", &b"short"[..]), ("50", b"short"), ("0", b"short")] {
        let mut frames = Frames::connect(&caller).await;
        // In one write: of a head that comes alone, and says that nothing follows, the request is whole.
        let head = frame(HEADERS, END_HEADERS, 1, &post(&[("content-length", length)]));
        frames.send([head, frame(DATA, END_STREAM, 1, body)].concat()).await;
        let end = frames.end_of(1).await;
        assert!(matches!(end, End::Reset(1) | End::GoAway(1)), "{length}: {end:?}");
    }
    counted(&caller, "http.malformed", 3).await;
    assert_eq!(seen.bodies(), [""; 0], "a body was taken for whole");
    let mut frames = Frames::connect(&caller).await;
    frames.send(frame(HEADERS, END_HEADERS, 1, &post(&[("content-length", "5")]))).await;
    frames.send(frame(DATA, END_STREAM, 1, b"whole")).await;
    assert_eq!(frames.end_of(1).await, End::Answer(OK));
    assert_eq!(seen.bodies(), ["whole"]);
}

/// Cookies that HTTP/2 has cut arrive in one piece (RFC 9113 section 8.2.3), and TE, which may say
/// `trailers` there, is of one hop in HTTP/1.
#[tokio::test]
async fn what_http_2_writes_otherwise_is_put_right() {
    let (witness, app) = Witness::listen().await;
    let pair = Pair::new(app).await;
    let identity = Identity::load(pair.identity.paths()).expect("an identity");
    let mut config = ClientConfig::clone(
        &Tls::new(&identity).client(&Peer::TrustDomain("cluster.local".into()), Carries::Requests),
    );
    config.alpn_protocols = vec![Alpn::H2.name().to_vec()];
    let config = Arc::new(config);
    let to = pair.orders.inbound();
    let stream = TcpStream::connect(to).await.expect("connected");
    let stream = TlsConnector::from(config).connect(server_name(to.ip()), stream).await.expect("mTLS");
    let cookies =
        [("cookie", "a=1"), ("x-between", "1"), ("cookie", "b=2"), ("cookie", "c=3"), ("te", "trailers")];
    assert_eq!(Frames::over(stream).await.asked(1, &request(&cookies)).await, End::Answer(OK));
    let seen = witness.seen();
    assert_eq!(seen.matches("cookie: a=1; b=2; c=3\r\n").count(), 1, "{seen}");
    assert!(seen.matches("cookie").count() == 1 && !seen.contains("te: "), "{seen}");
}

/// What is refused of HTTP/2 says so as it does in HTTP/1.
#[tokio::test]
async fn refusals_say_which_stage_and_why() {
    let (_, app) = app::listen(Does::Answers).await;
    let caller = hop(app).await;
    let uri = format!("http://{HOST}/");
    let refused = async |edit: &dyn Fn(hyper::http::request::Builder) -> hyper::http::request::Builder| {
        let (mut parts, body) = ask("POST", HOST, "/", "x").into_parts();
        let builder = hyper::Request::builder().method("POST").uri(&uri).version(hyper::Version::HTTP_2);
        let request = edit(builder).body(()).expect("a request");
        parts.uri = request.uri().clone();
        parts.version = hyper::Version::HTTP_2;
        parts.headers = request.headers().clone();
        let answer =
            send(caller.outbound(), hyper::Request::from_parts(parts, body)).await.expect("an answer");
        (answer.status.as_u16(), answer.refused().unwrap_or("nothing").to_owned())
    };
    assert_eq!(refused(&|b| b.header("expect", "x")).await, (417, "http.expectation".into()));
    assert_eq!(refused(&|b| b.header("x", "a".repeat(70_000))).await, (431, "http.head_too_large".into()));
    let many = |b: hyper::http::request::Builder| (0..101).fold(b, |b, i| b.header(format!("x-{i}"), "1"));
    assert_eq!(refused(&many).await, (431, "http.head_too_large".into()));
    assert_eq!(refused(&|b| b).await, (200, "nothing".into()));
}

/// Answers of an HTTP/2 application with a status that is none, or that switches protocols.
#[tokio::test]
async fn statuses_of_http_2_answers_are_read_as_strictly() {
    for status in ["101", "099", "600", "999", "2000", "+20", ""] {
        let app = listen(move |mut raw: Raw| async move {
            raw.take(24).await;
            raw.send(frame(super::frames::SETTINGS, 0, 0, &[])).await;
            loop {
                let head = raw.take(9).await;
                raw.take(u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize).await;
                if head[3] == HEADERS {
                    break;
                }
            }
            raw.send(frame(HEADERS, END_HEADERS, 1, &block(&[(":status", status)]))).await;
            raw.rest().await;
        })
        .await;
        let caller = hop(app).await;
        let mut frames = Frames::connect(&caller).await;
        let end = frames.asked(1, &request(&[])).await;
        // 502, as a literal.
        assert!(matches!(end, End::Answer(byte) if byte != OK), "{status:?}: {end:?}");
    }
}
