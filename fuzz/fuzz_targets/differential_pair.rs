#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| pannier_fuzz::differential_pair(input));
