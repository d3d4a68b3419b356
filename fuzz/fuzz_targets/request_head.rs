#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| pannier_fuzz::request_head(input));
