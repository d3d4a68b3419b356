//! What keeps requests to one endpoint: the value of a field or of a cookie.

use crate::balance;
use crate::config::model;
use crate::http::RequestHead;

/// Where a route's requests carry what keeps them together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Sticky {
    /// In a field of this name, in lower case.
    Header(Box<str>),
    /// In a cookie of this name.
    Cookie(Box<str>),
}

impl From<&model::Sticky> for Sticky {
    fn from(written: &model::Sticky) -> Self {
        match written {
            model::Sticky::Header(name) => Sticky::Header(name.to_ascii_lowercase().into()),
            model::Sticky::Cookie(name) => Sticky::Cookie(name.as_str().into()),
        }
    }
}

impl Sticky {
    /// What keeps a request together with others; none, if it carries nothing.
    pub(super) fn key(&self, head: &RequestHead) -> Option<u64> {
        match self {
            Sticky::Header(name) => head.fields.get(name).map(balance::key),
            Sticky::Cookie(name) => {
                let mut key = None;
                head.fields.each(|field, value| {
                    if key.is_none() && field.eq_ignore_ascii_case(b"cookie") {
                        key = cookie(value, name.as_bytes()).map(balance::key);
                    }
                });
                key
            }
        }
    }
}

/// The value of a cookie in a field (RFC 6265 section 4.2.1).
fn cookie<'a>(field: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    field.split(|byte| *byte == b';').find_map(|pair| {
        let pair = pair.trim_ascii();
        let at = pair.iter().position(|byte| *byte == b'=')?;
        (&pair[..at] == name).then(|| &pair[at + 1..])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_found_among_others() {
        let field = b"a=1; session=abc=; sessionx=2;b";
        assert_eq!(cookie(field, b"session"), Some(&b"abc="[..]));
        assert_eq!(cookie(field, b"a"), Some(&b"1"[..]));
        assert_eq!(cookie(field, b"b"), None);
        assert_eq!(cookie(field, b"essionx"), None);
    }
}
