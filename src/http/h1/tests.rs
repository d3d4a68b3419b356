//! The strictness of heads: every message has one reading, or is refused.

use bytes::BytesMut;
use http::{Method, Version};
use proptest::prelude::*;

use super::parse::{self, ParsedRequest, ParsedResponse, Refused};
use crate::http::Length;

fn request(text: &str) -> Result<Option<ParsedRequest>, Refused> {
    parse::request(&mut BytesMut::from(text), 100)
}

fn good(text: &str) -> ParsedRequest {
    request(text).unwrap_or_else(|e| panic!("{text:?}: {e:?}")).unwrap_or_else(|| panic!("{text:?}: partial"))
}

fn response(text: &str, method: &Method) -> Result<Option<ParsedResponse>, Refused> {
    parse::response(&mut BytesMut::from(text), method, 100)
}

fn names(head: &ParsedRequest) -> Vec<String> {
    let mut names = Vec::new();
    head.head.fields.each(|name, _| names.push(String::from_utf8_lossy(name).into_owned()));
    names
}

#[test]
fn a_request_is_read() {
    let parsed = good("GET /a/b?c=d HTTP/1.1\r\nHost: Orders.Shop:8080\r\nX-One: 1\r\nAccept: */*\r\n\r\n");
    assert_eq!(parsed.head.host(), "orders.shop");
    assert_eq!(parsed.head.port(), Some(8080));
    assert_eq!(parsed.head.path, "/a/b?c=d");
    assert_eq!(parsed.head.length, Length::None);
    assert!(parsed.keep_alive);
    // Case and order stay.
    assert_eq!(names(&parsed), ["Host", "X-One", "Accept"]);
}

#[test]
fn persistence_is_by_version_and_connection() {
    for (head, keep) in [
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", true),
        ("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Close\r\n\r\n", false),
        ("GET / HTTP/1.0\r\nHost: a\r\n\r\n", false),
        ("GET / HTTP/1.0\r\nHost: a\r\nConnection: Keep-Alive\r\n\r\n", true),
    ] {
        assert_eq!(good(head).keep_alive, keep, "{head}");
    }
}

#[test]
fn what_is_of_one_hop_does_not_cross() {
    let parsed = good(
        "POST / HTTP/1.1\r\nHost: a\r\nConnection: X-Secret, keep-alive\r\nX-Secret: 1\r\nKeep-Alive: timeout=5\r\n\
         Proxy-Connection: x\r\nTE: trailers\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA\r\nContent-Length: 3\r\nX-Kept: 1\r\n\r\nabc",
    );
    assert_eq!(names(&parsed), ["Host", "X-Kept"]);
    assert_eq!(parsed.head.length, Length::Sized(3));
}

#[test]
fn targets_have_four_forms() {
    let parsed = good("GET http://orders.shop:81?x HTTP/1.1\r\nHost: orders.shop:81\r\n\r\n");
    assert_eq!(
        (parsed.head.host(), parsed.head.port(), parsed.head.path.as_str()),
        ("orders.shop", Some(81), "/?x")
    );
    assert_eq!(good("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").head.path, "*");
    assert_eq!(good("OPTIONS http://a HTTP/1.1\r\nHost: a\r\n\r\n").head.path, "*");
    assert_eq!(good("GET http://a HTTP/1.1\r\nHost: a\r\n\r\n").head.path, "/");
    assert_eq!(good("GET /%2F?%zz HTTP/1.1\r\nHost: [::1]:8\r\n\r\n").head.path, "/%2F?%zz");
    let parsed = good("CONNECT db.shop:3306 HTTP/1.1\r\nHost: db.shop:3306\r\n\r\n");
    assert_eq!((parsed.head.host(), parsed.head.port()), ("db.shop", Some(3306)));
    assert_eq!(good("GET / HTTP/1.0\r\n\r\n").head.version, Version::HTTP_10);
}

#[test]
fn two_readings_or_none_are_refused() {
    for bad in [
        // Framing: CL.TE, TE.CL, TE.TE, duplicate and malformed lengths.
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\r\n",
        "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 3\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -3\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x3\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3 \x0b\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n",
        // Lines: folding, bare CR and LF, spaces before the colon, NUL, controls.
        "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n folded\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n X: 1\r\n\r\n",
        "GET / HTTP/1.1\nHost: a\n\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: 1\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: 1\ry: 2\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX\0: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: \x7f\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n",
        // Host: none, two, not one.
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a:b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a:99999\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost:\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a:0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a:+80\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a:\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: :80\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a%41\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: [a]\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: [::1\r\n\r\n",
        // Targets.
        "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET http://a:81/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET https://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET http://u:p@a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /x#fragment HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET http://a/x#fragment HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /\u{fc} HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /?\u{fc} HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /% HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /%4 HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /%4g HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET ?x HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET a HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET * HTTP/1.1\r\nHost: a\r\n\r\n",
        "CONNECT /x HTTP/1.1\r\nHost: a\r\n\r\n",
        "CONNECT a HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /  HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "G(T / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / http/1.1\r\nHost: a\r\n\r\n",
        "GET /\r\nHost: a\r\n\r\n",
        // Connection may not name what frames or routes.
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: host\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nConnection: content-length\r\nContent-Length: 3\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nConnection: close, transfer-encoding\r\nTransfer-Encoding: chunked\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: cookie\r\nCookie: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: Authorization\r\nAuthorization: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: x-forwarded-client-cert\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: close; x\r\n\r\n",
        // No body where none can be.
        "TRACE / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n",
        "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\nTransfer-Encoding: chunked\r\n\r\n",
        "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\nContent-Length: 3\r\n\r\n",
        // An expectation that is none.
        "GET / HTTP/1.1\r\nHost: a\r\nExpect: 200-ok\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nExpect: x\r\n\r\n",
    ] {
        assert!(request(bad).is_err(), "{bad:?} was read: {:?}", request(bad));
    }
}

#[test]
fn other_versions_are_told_from_noise() {
    for version in ["2.0", "1.2", "0.9", "9.9"] {
        let refused = request(&format!("GET / HTTP/{version}\r\nHost: a\r\n\r\n")).unwrap_err();
        assert_eq!(refused, Refused::Version, "{version}");
    }
    let refused = request("GET /a b HTTP/1.1\r\nHost: a\r\n\r\n").unwrap_err();
    assert!(matches!(refused, Refused::Malformed(_)), "{refused:?}");
}

#[test]
fn too_many_fields_are_too_large() {
    let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "x: 1\r\n".repeat(100));
    assert_eq!(request(&head).unwrap_err(), Refused::TooLarge);
}

#[test]
fn responses_are_framed_by_what_was_asked() {
    let read = |text, method: Method| response(text, &method).unwrap().unwrap();
    let sized = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
    assert_eq!(read(sized, Method::GET).head.length, Length::Sized(5));
    assert_eq!(read(sized, Method::HEAD).head.length, Length::Sized(5));
    let endless = read("HTTP/1.1 200 OK\r\n\r\n", Method::GET);
    assert!(endless.head.length == Length::Stream && !endless.keep_alive && !endless.chunked);
    let none = read("HTTP/1.1 204 No Content\r\n\r\n", Method::GET);
    assert!(none.head.length == Length::None && none.keep_alive);
    let chunked = read("HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n", Method::GET);
    assert!(chunked.head.length == Length::Stream && chunked.keep_alive && chunked.chunked);
    for bad in [
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/1.1 099 No\r\n\r\n",
        "HTTP/1.1 600 No\r\n\r\n",
        "HTTP/1.1 999 No\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 100 Continue\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\nX: 1\n\n",
        "HTTP/1.1 200 OK\r\nX : 1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: 1\r\n folded\r\n\r\n",
    ] {
        assert!(response(bad, &Method::GET).is_err(), "{bad:?}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        let _ = parse::request(&mut BytesMut::from(&bytes[..]), 100);
        let _ = parse::response(&mut BytesMut::from(&bytes[..]), &Method::GET, 100);
        let _ = parse::trailers(&mut BytesMut::from(&bytes[..]), 100);
    }

    /// A head cut anywhere is partial or refused, never read as something shorter.
    #[test]
    fn a_part_is_not_the_whole(cut in 0usize..90) {
        let whole = "POST /x HTTP/1.1\r\nHost: orders.shop\r\nContent-Length: 5\r\nX-A: b\r\nConnection: close\r\n\r\n";
        let part = &whole[..cut.min(whole.len() - 1)];
        prop_assert!(!matches!(request(part), Ok(Some(_))));
    }
}
