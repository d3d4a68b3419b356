#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    pannier_fuzz::mesh(input);
    pannier_fuzz::nothing_is_held();
});
