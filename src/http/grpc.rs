//! Refusals in the words of gRPC (the gRPC over HTTP/2 protocol, and `google.rpc` for their details).

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};

use crate::error::Error;

/// Adds what an answer without a message says: the status, its message, and when to come again, as
/// `google.rpc.RetryInfo` and in milliseconds for clients that retry by themselves (gRFC A6).
pub(super) fn refusal(fields: &mut HeaderMap, error: &Error) {
    let (status, text) = (error.reason.grpc_status(), error.to_string());
    fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    fields.insert("grpc-status", HeaderValue::from(u16::from(status)));
    fields.insert("grpc-message", message(&text));
    if let Some(after) = error.retry_after {
        let millis = i32::try_from(after.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX);
        fields.insert("grpc-retry-pushback-ms", HeaderValue::from(millis));
        let details = BASE64_STANDARD_NO_PAD.encode(status_details(status, &text, after));
        if let Ok(details) = HeaderValue::from_str(&details) {
            fields.insert("grpc-status-details-bin", details);
        }
    }
}

/// A `google.rpc.Status` with one detail, a `google.rpc.RetryInfo`.
fn status_details(status: u8, text: &str, after: Duration) -> Vec<u8> {
    let mut delay = Vec::new();
    number(&mut delay, 1, after.as_secs());
    number(&mut delay, 2, u64::from(after.subsec_nanos()));
    let mut retry = Vec::new();
    bytes(&mut retry, 1, &delay);
    let mut any = Vec::new();
    bytes(&mut any, 1, b"type.googleapis.com/google.rpc.RetryInfo");
    bytes(&mut any, 2, &retry);
    let mut out = Vec::new();
    number(&mut out, 1, u64::from(status));
    bytes(&mut out, 2, text.as_bytes());
    bytes(&mut out, 3, &any);
    out
}

/// A field of Protocol Buffers that is a number.
fn number(out: &mut Vec<u8>, field: u8, value: u64) {
    out.push(field << 3);
    varint(out, value);
}

/// A field of Protocol Buffers that is text, bytes or a message.
fn bytes(out: &mut Vec<u8>, field: u8, value: &[u8]) {
    out.push(field << 3 | 2);
    varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Percent-encodes what a `grpc-message` may not hold.
fn message(text: &str) -> HeaderValue {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if (0x20..0x7f).contains(&byte) && byte != b'%' {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    HeaderValue::from_str(&out).unwrap_or_else(|_| HeaderValue::from_static("refused"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_info_is_what_protobuf_reads() {
        // As `protoc --encode=google.rpc.Status` writes it, by hand: code 8, "no", a delay of 1.5 s.
        let mut expected = vec![0x08, 8, 0x12, 2, b'n', b'o', 0x1a, 54, 0x0a, 40];
        expected.extend_from_slice(b"type.googleapis.com/google.rpc.RetryInfo");
        expected.extend_from_slice(&[0x12, 10, 0x0a, 8, 0x08, 1, 0x10, 0x80, 0xca, 0xb5, 0xee]);
        expected.push(1);
        let details = status_details(8, "no", Duration::from_millis(1500));
        assert_eq!(details.len(), expected.len());
        assert_eq!(details, expected);
    }

    #[test]
    fn messages_hold_printable_ascii_alone() {
        assert_eq!(message("no: 100 %\n\u{e9}"), "no: 100 %25%0A%C3%A9");
    }
}
