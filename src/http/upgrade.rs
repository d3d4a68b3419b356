//! Which protocols a connection may switch to (RFC 9110 section 7.8).
//!
//! Behind a switch there is nothing but bytes, which no rule sees. So nothing that carries requests
//! of its own is offered: `h2c` and its like would take them past every route, limit and policy.

use http::HeaderValue;

/// The protocols of a list, if every one of them may be offered.
pub fn offered(list: &[u8]) -> bool {
    let mut protocols = tokens(list).peekable();
    protocols.peek().is_some() && protocols.all(may_be_offered)
}

/// Whether a protocol is carried: a token, with or without a version (`SPDY/3.1`), and none that
/// carries HTTP.
fn may_be_offered(protocol: &[u8]) -> bool {
    const CARRY_HTTP: [&[u8]; 5] = [b"h2c", b"h2", b"h3", b"http", b"tls"];
    let name = protocol.split(|b| *b == b'/').next().unwrap_or_default();
    let is_token = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~/".contains(b);
    !name.is_empty()
        && protocol.iter().all(is_token)
        && !CARRY_HTTP.iter().any(|carrier| carrier.eq_ignore_ascii_case(name))
}

/// Whether an answer switches to what was offered, and to nothing else.
pub(super) fn is_among(taken: Option<&HeaderValue>, offered: Option<&HeaderValue>) -> bool {
    let (Some(taken), Some(offered)) = (taken, offered) else { return false };
    let mut taken = tokens(taken.as_bytes()).peekable();
    taken.peek().is_some()
        && taken.all(|protocol| tokens(offered.as_bytes()).any(|o| o.eq_ignore_ascii_case(protocol)))
}

fn tokens(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_carries_requests_is_not_offered() {
        for list in ["websocket", "WebSocket", "SPDY/3.1", "tcp", "websocket, chat/2", ", websocket"] {
            assert!(offered(list.as_bytes()), "{list}");
        }
        for list in [
            "",
            ",",
            "h2c",
            "H2C",
            "h2",
            "websocket,h2c",
            "h2c , websocket",
            "HTTP/2.0",
            "TLS/1.0",
            "a b",
            "/1",
        ] {
            assert!(!offered(list.as_bytes()), "{list}");
        }
    }

    #[test]
    fn an_answer_takes_what_was_offered() {
        let value = HeaderValue::from_static;
        assert!(is_among(Some(&value("WebSocket")), Some(&value("chat, websocket"))));
        for (taken, offered) in [("chat", "websocket"), ("websocket, chat", "websocket"), ("", "websocket")] {
            assert!(!is_among(Some(&value(taken)), Some(&value(offered))), "{taken} of {offered}");
        }
        assert!(!is_among(None, Some(&value("websocket"))));
        assert!(!is_among(Some(&value("websocket")), None));
    }
}
