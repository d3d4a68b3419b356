//! What is fuzzed: one function for each target. It takes any bytes, and panics where a promise of
//! the proxy does not hold.
//!
//! Two drivers run the same functions: libFuzzer, by `fuzz_targets/`, and the test `tests/fuzz.rs`,
//! which replays the corpora and generates input of its own where there is no libFuzzer.

mod chunked;
mod detect;
mod differential;
mod heads;
mod hop;
mod mesh;

pub use chunked::chunked;
pub use detect::detect;
pub use differential::{differential_pair, differential_request, differential_response};
pub use heads::{request_head, response_head};
pub use mesh::{mesh, nothing_is_held, requests};

/// An operator's file is read or refused, whatever is in it.
pub fn configuration(input: &[u8]) {
    if let Ok(text) = std::str::from_utf8(input) {
        let _ = pannier::config::parse(text, "fuzz.yaml");
    }
}

/// Places at which an input of this length is cut: all of a short one, some of a long one.
fn cuts(len: usize) -> impl Iterator<Item = usize> {
    const MOST: usize = 48;
    (0..len).step_by(len.div_ceil(MOST).max(1)).chain(len.checked_sub(1))
}
