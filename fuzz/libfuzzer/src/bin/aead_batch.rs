//! Target `aead_batch`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| warren_fuzz::aead::batch(data));
