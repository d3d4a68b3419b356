//! Heads: each has one reading however it was cut, nothing of one hop crosses, and what crosses
//! reads back as it was.

use bytes::BytesMut;
use http::{Method, StatusCode, Version};
use pannier::http::h1::parse::{self, Refused};
use pannier::http::{Fields, Length};

use super::cuts;
use super::hop::BOUNDS;

type Read<T> = Result<Option<(T, usize)>, Refused>;

/// A request's head.
pub fn request_head(input: &[u8]) {
    let read = |bytes: &[u8]| taken(bytes, |buf| parse::request(buf, BOUNDS.fields));
    let whole = read(input);
    assert_uncut(input, &whole, read);
    let Ok(Some((parsed, len))) = whole else { return };
    let head = parsed.head;
    assert_lines(&input[..len]);
    assert_fields(&head.fields, BOUNDS.fields);
    assert!(head.path.as_str().bytes().all(|b| b > b' ' && b != 0x7f && b != b'#'), "{}", head.path);
    if let Some(host) = head.fields.get("host") {
        assert_eq!(host, head.authority.as_ref().map_or("", |a| a.as_str()).as_bytes());
    }
    assert!(
        head.authority.is_some() || head.version == Version::HTTP_10 || head.fields.get("host") == Some(b"")
    );
    assert!(!head.host().bytes().any(|b| b.is_ascii_uppercase()));
    assert!(head.length != Length::Stream || head.version == Version::HTTP_11);
    assert!(!head.is_grpc() || head.version == Version::HTTP_2);
    let _ = head.port();
}

/// A response's head, to a request of either kind. The first byte, which tells
/// `differential_response` what was asked, is passed over.
pub fn response_head(input: &[u8]) {
    let [_, input @ ..] = input else { return };
    let ends = [Method::GET, Method::HEAD].map(|method| {
        let read = |bytes: &[u8]| taken(bytes, |buf| parse::response(buf, &method, BOUNDS.fields));
        let whole = read(input);
        assert_uncut(input, &whole, read);
        let (parsed, len) = whole.ok()??;
        let head = parsed.head;
        assert_lines(&input[..len]);
        assert_fields(&head.fields, BOUNDS.fields);
        assert!(!parsed.chunked || head.length == Length::Stream);
        if head.length == Length::Stream && !parsed.chunked {
            assert!(!parsed.keep_alive && head.may_have_body(&method), "an end that nothing tells");
        }
        if head.status.is_informational() || head.status == StatusCode::NO_CONTENT {
            assert!(!matches!(head.length, Length::Sized(_)));
        }
        Some(len)
    });
    assert_eq!(ends[0], ends[1], "where a head ends depends on the question");
}

/// What `parse` takes from the front, and how long it was.
fn taken<T>(bytes: &[u8], parse: impl Fn(&mut BytesMut) -> Result<Option<T>, Refused>) -> Read<T> {
    let mut buf = BytesMut::from(bytes);
    let read = parse(&mut buf)?;
    assert!(read.is_some() || buf == bytes, "an unfinished head was touched");
    Ok(read.map(|read| (read, bytes.len() - buf.len())))
}

/// A part of the input is read as the whole is, or is unfinished.
fn assert_uncut<T>(input: &[u8], whole: &Read<T>, read: impl Fn(&[u8]) -> Read<T>) {
    for cut in cuts(input.len()) {
        match (read(&input[..cut]), whole) {
            (Ok(None), Ok(Some((_, len)))) => assert!(cut < *len, "{cut} of {len} bytes are unfinished"),
            (Ok(Some((_, part))), Ok(Some((_, len)))) => assert_eq!(part, *len, "cut at {cut}"),
            (Ok(Some((_, part))), _) => panic!("read to {part} if cut at {cut}, but not as a whole"),
            (Err(refused), Ok(_)) => panic!("{refused:?} if cut at {cut}, but not as a whole"),
            (Ok(None), _) | (Err(_), Err(_)) => {}
        }
    }
}

/// CR and LF stand together at the ends of lines, and nowhere else.
fn assert_lines(head: &[u8]) {
    let text = String::from_utf8_lossy(head);
    assert!(text.ends_with("\r\n\r\n") && !text.replace("\r\n", "").contains(['\r', '\n', '\0']), "{text:?}");
}

/// End-to-end fields alone, each with one reading: in HTTP/2, and read again.
fn assert_fields(fields: &Fields, most: usize) {
    const OF_ONE_HOP: [&[u8]; 8] = [
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"transfer-encoding",
        b"content-length",
        b"upgrade",
        b"te",
        b"http2-settings",
    ];
    let listed = list(fields);
    for (name, value) in &listed {
        let lower = name.to_ascii_lowercase();
        assert!(
            !lower.is_empty() && !OF_ONE_HOP.contains(&&lower[..]),
            "{:?}",
            String::from_utf8_lossy(name)
        );
        assert!(!value.iter().any(|b| matches!(b, b'\r' | b'\n' | 0)));
    }
    assert!(listed.len() <= most);
    assert_eq!(fields.to_map().len(), listed.len(), "a field that HTTP/2 cannot carry");
    let mut again = BytesMut::from("HTTP/1.1 204 \r\n");
    fields.write_h1(&mut again);
    again.extend_from_slice(b"\r\n");
    let again = parse::response(&mut again, &Method::GET, most).expect("we wrote it").expect("all of it");
    assert_eq!(list(&again.head.fields), listed);
}

fn list(fields: &Fields) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut list = Vec::new();
    fields.each(|name, value| list.push((name.to_vec(), value.to_vec())));
    list
}
