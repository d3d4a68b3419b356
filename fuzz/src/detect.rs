//! Detection: what the first bytes decide, no later byte changes. So it does not depend on how a
//! connection's bytes were cut into packets.

use std::fmt::Debug;

use pannier::proxy::detect::classify;
use pannier::tls::hello::{self, Hello};

use super::cuts;

/// A connection's first bytes.
pub fn detect(input: &[u8]) {
    let bytes = &input[..input.len().min(hello::MAX)];
    assert_final(bytes, |bytes| match hello::detect(bytes) {
        Hello::NeedMore => None,
        hello => Some(hello),
    });
    assert_final(bytes, classify);
}

fn assert_final<T: Debug + PartialEq>(bytes: &[u8], decide: impl Fn(&[u8]) -> Option<T>) {
    let whole = decide(bytes);
    for cut in cuts(bytes.len()) {
        let part = decide(&bytes[..cut]);
        assert!(part.is_none() || part == whole, "{part:?} after {cut} bytes, {whole:?} in the end");
    }
}
