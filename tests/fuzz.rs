//! Generated input against every parser that reads a peer's or an operator's bytes. Each runs for
//! `PANNIER_FUZZ_SECONDS` (a fraction of a second unless told); `make fuzz` gives each a minute.
//!
//! What is generated is bytes, and messages put together from pieces that parsers trip over, so
//! that most of the input is nearly right.

use std::time::{Duration, Instant};

use bytes::BytesMut;
use http::Method;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use pannier::http::h1::parse;

/// Runs `check` on generated input until the time is up; at least a few hundred times.
fn fuzz<S: Strategy>(name: &str, strategy: S, mut check: impl FnMut(S::Value)) {
    let seconds = std::env::var("PANNIER_FUZZ_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(0.3);
    let (end, mut runner, mut runs) =
        (Instant::now() + Duration::from_secs_f64(seconds), TestRunner::default(), 0u64);
    while runs < 300 || Instant::now() < end {
        check(strategy.new_tree(&mut runner).expect("a strategy without filters").current());
        runs += 1;
    }
    println!("{name}: {runs} inputs");
}

/// Pieces of HTTP/1 messages, good and bad.
fn http1() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop::sample::select(vec![
        "GET ",
        "POST ",
        "CONNECT ",
        "/",
        "/a%2Fb",
        "*",
        "http://a",
        "#",
        " HTTP/1.1",
        " HTTP/1.0",
        " HTTP/2.0",
        "HTTP/1.1 200 OK",
        "HTTP/1.0 304 x",
        "HTTP/1.1 101 s",
        "\r\n",
        "\n",
        "\r",
        "\r\n\r\n",
        " ",
        "\t",
        ":",
        "Host: a",
        "Host: b",
        "host:",
        "Content-Length: 3",
        "Content-Length: 3, 3",
        "Transfer-Encoding: chunked",
        "Transfer-Encoding: identity",
        "Connection: close",
        "Connection: host",
        "Upgrade: h2c",
        "TE: trailers",
        "X-A: b",
        "x-pannier-refused: x",
        "\0",
        "\u{7f}",
        "\u{e9}",
        "5;a=b",
        "0",
        "ffffffffffffffff",
    ])
    .prop_map(|s| s.as_bytes().to_vec());
    let noise = prop::collection::vec(any::<u8>(), 0..8);
    prop::collection::vec(prop_oneof![8 => piece, 1 => noise], 0..24).prop_map(|pieces| pieces.concat())
}

#[test]
fn request_heads() {
    fuzz("request heads", http1(), |bytes| {
        let mut buf = BytesMut::from(&bytes[..]);
        if let Ok(Some(parsed)) = parse::request(&mut buf, 100) {
            // What was read says one thing: it holds no line end, nothing of one hop, one Host.
            let mut hosts = 0;
            parsed.head.fields.each(|name, value| {
                assert!(!name.is_empty() && value.iter().all(|b| !matches!(b, b'\r' | b'\n' | 0)));
                let name = name.to_ascii_lowercase();
                assert!(!matches!(
                    &name[..],
                    b"connection" | b"transfer-encoding" | b"content-length" | b"upgrade"
                ));
                hosts += usize::from(name == b"host");
            });
            assert!(hosts <= 1);
            let as_h2 = parsed.head.fields.to_map();
            let mut fields = 0;
            parsed.head.fields.each(|_, _| fields += 1);
            assert_eq!(as_h2.len(), fields, "a field that HTTP/2 cannot carry");
        }
    });
}

#[test]
fn response_heads_and_trailers() {
    fuzz("response heads", http1(), |bytes| {
        for method in [Method::GET, Method::HEAD] {
            let _ = parse::response(&mut BytesMut::from(&bytes[..]), &method, 100);
        }
        let _ = parse::trailers(&mut BytesMut::from(&bytes[..]), 64);
    });
}

/// What we read, another parser that takes the message must read alike: nobody behind us sees a
/// different request.
#[test]
fn heads_are_read_as_others_read_them() {
    fuzz("request heads beside httparse", http1(), |bytes| {
        let Ok(Some(parsed)) = parse::request(&mut BytesMut::from(&bytes[..]), 100) else { return };
        let mut headers = [httparse::EMPTY_HEADER; 128];
        let mut other = httparse::Request::new(&mut headers);
        let complete = other.parse(&bytes).expect("we read it");
        assert!(complete.is_complete());
        assert_eq!(other.method, Some(parsed.head.method.as_str()));
        let chunked = other.headers.iter().any(|h| h.name.eq_ignore_ascii_case("transfer-encoding"));
        let sized = other.headers.iter().any(|h| h.name.eq_ignore_ascii_case("content-length"));
        assert!(!(chunked && sized), "two framings");
        assert_eq!(chunked, parsed.head.length == pannier::http::Length::Stream);
        assert_eq!(sized, matches!(parsed.head.length, pannier::http::Length::Sized(_)));
    });
}

#[test]
fn client_hellos() {
    let hello = prop::collection::vec(
        prop_oneof![
            Just(vec![22u8, 3, 1]),
            Just(vec![1, 0, 0]),
            Just(vec![0, 16]),
            Just(b"\x0apannier/h2".to_vec()),
            prop::collection::vec(any::<u8>(), 0..64)
        ],
        0..12,
    )
    .prop_map(|pieces| pieces.concat());
    fuzz("client hellos", hello, |bytes| {
        let _ = pannier::tls::hello::detect(&bytes);
    });
}

#[test]
fn configurations() {
    let piece = prop::sample::select(vec![
        "upstreams:",
        "\n  ",
        "\n",
        "orders:",
        " ",
        "address: a:1",
        "routes:",
        "- ",
        "{",
        "}",
        "[",
        "]",
        "host: x",
        "limits:",
        "rate: 5/s",
        "*a",
        "&a ",
        "? ",
        "\"",
        "'",
        "|",
        "listen:",
        "outbound: 1",
        "!!int ",
        "%",
        "\t",
        "é",
    ])
    .prop_map(str::to_owned);
    let text = prop::collection::vec(piece, 0..20).prop_map(|pieces| pieces.concat());
    fuzz("configurations", text, |text| {
        let _ = pannier::config::parse(&text, "fuzz.yaml");
    });
}
