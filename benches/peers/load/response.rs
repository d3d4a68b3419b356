//! Reading answers: enough of HTTP/1.1 to know where one ends, and whether it was what it should
//! have been.

/// Fields in an answer's head that are looked at.
const MAX_FIELDS: usize = 64;

/// The longest head that is read.
const MAX_HEAD: usize = 64 << 10;

/// An answer that is being read.
#[derive(Default)]
pub(crate) struct Response {
    /// The part of a head that came without its end.
    head: Vec<u8>,
    status: u16,
    closes: bool,
    /// What is missing of the body, once the head was read.
    missing: Option<u64>,
}

/// A whole answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Whether the connection ends with it.
    pub(crate) closes: bool,
}

/// Bytes that are no answer, or not the expected one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

impl Response {
    /// Whether nothing has come yet.
    pub(crate) fn is_untouched(&self) -> bool {
        self.head.is_empty() && self.missing.is_none()
    }

    /// Takes what was read: the answer once it is whole. Its body must be of `expected` bytes where
    /// it was a good one, and nothing may follow it, because nothing more was asked.
    pub(crate) fn take(&mut self, bytes: &[u8], expected: u64) -> Result<Option<Answer>, Malformed> {
        let body = match self.missing {
            Some(_) => bytes.len(),
            None if self.head.is_empty() => match self.parse(bytes, expected)? {
                Some(length) => bytes.len() - length,
                None => {
                    self.head.extend_from_slice(bytes);
                    return Ok(None);
                }
            },
            None => {
                let mut head = std::mem::take(&mut self.head);
                head.extend_from_slice(bytes);
                match self.parse(&head, expected)? {
                    Some(length) => head.len() - length,
                    None if head.len() > MAX_HEAD => return Err(Malformed),
                    None => {
                        self.head = head;
                        return Ok(None);
                    }
                }
            }
        };
        let missing = self.missing.unwrap_or_default().checked_sub(body as u64).ok_or(Malformed)?;
        if missing > 0 {
            self.missing = Some(missing);
            return Ok(None);
        }
        self.missing = None;
        Ok(Some(Answer { status: self.status, closes: self.closes }))
    }

    /// Reads a head, and returns its length if it is whole.
    fn parse(&mut self, bytes: &[u8], expected: u64) -> Result<Option<usize>, Malformed> {
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut head = httparse::Response::new(&mut fields);
        let httparse::Status::Complete(length) = head.parse(bytes).map_err(|_| Malformed)? else {
            return Ok(None);
        };
        self.status = head.code.ok_or(Malformed)?;
        self.closes = false;
        let mut missing = None;
        for field in head.headers.iter() {
            if field.name.eq_ignore_ascii_case("content-length") {
                missing = std::str::from_utf8(field.value).ok().and_then(|text| text.parse().ok());
            } else if field.name.eq_ignore_ascii_case("connection") {
                self.closes |= field.value.eq_ignore_ascii_case(b"close");
            }
        }
        // Every application here states its length, and no proxy has a reason to take it away.
        self.missing = Some(missing.ok_or(Malformed)?);
        if is_good(self.status) && self.missing != Some(expected) {
            return Err(Malformed);
        }
        Ok(Some(length))
    }
}

/// 2xx.
pub(crate) fn is_good(status: u16) -> bool {
    (200..300).contains(&status)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";

    #[test]
    fn an_answer_in_any_pieces() {
        let whole = format!("{HEAD}hello");
        for cut in 1..whole.len() {
            let mut response = Response::default();
            let (first, second) = whole.as_bytes().split_at(cut);
            assert_eq!(response.take(first, 5), Ok(None));
            assert!(!response.is_untouched());
            assert_eq!(response.take(second, 5), Ok(Some(Answer { status: 200, closes: false })));
            assert!(response.is_untouched());
        }
    }

    #[test]
    fn what_is_not_the_expected_answer() {
        let take = |text: &str| Response::default().take(text.as_bytes(), 5);
        assert_eq!(take(&format!("{HEAD}hello and more")), Err(Malformed));
        assert_eq!(take("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhell"), Err(Malformed));
        assert_eq!(take("HTTP/1.1 200 OK\r\n\r\n"), Err(Malformed));
        assert_eq!(take("SSH-2.0\r\n"), Err(Malformed));
        let refused = "HTTP/1.1 503 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        assert_eq!(take(refused), Ok(Some(Answer { status: 503, closes: true })));
    }
}
