//! The little HTTP/1.1 that both sides speak. Every message states its length, and no proxy has a
//! reason to take it away.

use std::str;

/// What is neither a message nor the beginning of one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

const FIELDS: usize = 64;

/// The id of a request, the last segment of its path, if the request is there to its end.
pub(crate) fn request(bytes: &[u8]) -> Result<Option<u64>, Malformed> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS];
    let mut head = httparse::Request::new(&mut fields);
    let httparse::Status::Complete(of_head) = head.parse(bytes).map_err(|_| Malformed)? else {
        return Ok(None);
    };
    if field(head.headers, "transfer-encoding").is_some() {
        return Err(Malformed);
    }
    let length = of_head + content_length(head.headers)?.unwrap_or(0);
    let id = head.path.and_then(|path| path.rsplit('/').next()).and_then(|last| last.parse().ok());
    let id = id.ok_or(Malformed)?;
    Ok((bytes.len() >= length).then_some(id))
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer<'a> {
    pub(crate) status: u16,
    /// Whether the connection is of no further use.
    pub(crate) closes: bool,
    pub(crate) body: &'a str,
}

/// An answer, if it is there to its end.
pub(crate) fn answer(bytes: &[u8]) -> Result<Option<Answer<'_>>, Malformed> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS];
    let mut head = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(of_head) = head.parse(bytes).map_err(|_| Malformed)? else {
        return Ok(None);
    };
    let length = of_head + content_length(head.headers)?.ok_or(Malformed)?;
    if bytes.len() < length {
        return Ok(None);
    }
    let closes = field(head.headers, "connection").is_some_and(|value| value.eq_ignore_ascii_case(b"close"));
    let body = str::from_utf8(&bytes[of_head..length]).map_err(|_| Malformed)?;
    Ok(Some(Answer { status: head.code.ok_or(Malformed)?, closes: closes || bytes.len() > length, body }))
}

/// The body of the answer to a request: which it was, and the how manieth of its connection.
pub(crate) fn body(id: u64, number: u64) -> String {
    format!("{id} {number}")
}

/// The how manieth of its connection the request was, if this is the body of the answer to it.
pub(crate) fn number(body: &str, id: u64) -> Option<u64> {
    let (of, number) = body.split_once(' ')?;
    (of.parse() == Ok(id)).then(|| number.parse().ok())?
}

fn field<'a>(fields: &[httparse::Header<'a>], name: &str) -> Option<&'a [u8]> {
    fields.iter().find(|field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
}

fn content_length(fields: &[httparse::Header<'_>]) -> Result<Option<usize>, Malformed> {
    let Some(value) = field(fields, "content-length") else { return Ok(None) };
    str::from_utf8(value).ok().and_then(|text| text.parse().ok()).map(Some).ok_or(Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_there_once_its_body_is() {
        let whole = b"POST /row/17 HTTP/1.1\r\nHost: e1.row\r\nContent-Length: 2\r\n\r\nhi";
        assert_eq!(request(&whole[..whole.len() - 1]), Ok(None));
        assert_eq!(request(whole), Ok(Some(17)));
        assert_eq!(request(b"GET /row HTTP/1.1\r\n\r\n"), Err(Malformed));
    }

    #[test]
    fn an_answer_tells_of_its_connection() {
        let text = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\n17 2";
        assert_eq!(answer(text.as_bytes()), Ok(Some(Answer { status: 200, closes: true, body: "17 2" })));
        assert_eq!(number("17 2", 17), Some(2));
        assert_eq!(number("17 2", 18), None);
        assert_eq!(body(17, 2), "17 2");
    }
}
